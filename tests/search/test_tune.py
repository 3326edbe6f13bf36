"""Tuning: with invented measurements, where every decision can be foreseen, and for real on a small network."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import perfonnx
from perfonnx.errors import PerfonnxError
from perfonnx.methods.exact import Exact
from perfonnx.methods.perforate import Perforate
from perfonnx.methods.sparse import Sparse
from perfonnx.plan import Plan
from perfonnx.search import Outcome, Progress, Quality, Space, Speed, Task, Tuned, sensitivity, state, tune
from perfonnx.search.counts import Counts
from perfonnx.search.evaluate import CHOOSING, PlanEvaluator, find_metric, hold
from perfonnx.search.result import MIN_SPEEDUP, Target
from perfonnx.subject import Subject
from tests import real_models
from tests.passes import nets
from tests.search.arrays import Arrays

LAYERS = ("conv1", "conv2", "conv3", "conv4")
SPACE = Space(masks=("grid",), rates=(0.25, 0.5, 0.75), repairs=("none",), methods=("perforate",))


def network(batch: int | str = "N") -> ModelProto:
    """Four convolutions and a classifier of five classes."""
    nodes, x = [], "x"
    for number, name in enumerate(LAYERS):
        nodes.append(nets.conv(x, f"c{number}", f"w{number}", name=name))
        nodes.append(nets.node("Relu", [f"c{number}"], [f"r{number}"]))
        x = f"r{number}"
    nodes += [nets.node("GlobalAveragePool", [x], ["g"]), nets.conv("g", "y", "w", name="head", pads=[0] * 4)]
    nodes[-1].attribute[0].ints[:] = [1, 1]
    weights = {f"w{i}": 2 * nets.values(12, 12 if i else 3, 3, 3, seed=i) for i in range(4)}
    weights["w"] = 20 * nets.values(5, 12, 1, 1)
    shapes = {"x": (batch, 3, 16, 14)}
    return nets.model(nodes, weights, inputs=shapes, outputs={"y": (batch, 5, 1, 1)})


def samples(count: int = 40, batch: int = 8, labels: bool = False) -> Arrays:
    random = np.random.default_rng(0)
    images = random.standard_normal((count, 3, 16, 14), dtype=np.float32)
    images += 2 * random.standard_normal((count, 3, 1, 1), dtype=np.float32)
    return Arrays("x", images, random.integers(0, 5, count) if labels else None, batch)


@dataclass
class Invented:
    """Losses and times by a formula, in place of measurements; every call is counted.

    A layer's gain and loss grow with its rate; layers differ, so that their best order is known: conv4 costs the least.
    """

    scale: float = 0.01
    fail_after: int | None = None
    calls: list[str] = field(default_factory=list)

    def _call(self, what: str) -> None:
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(what)

    def __call__(self, task: Task) -> Outcome:
        self._call(f"{task.part} {sorted((n, c.saving) for n, c in task.plan.layers.items())}")
        loss = sum(self.scale * choice.saving * (4 - LAYERS.index(n)) for n, choice in task.plan.layers.items())
        extra = 0.002 if task.part != CHOOSING else 0.0
        return Outcome(Quality(task.images, 1.0, 1 - loss, loss + extra, 0.001, loss), 0.1)

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        self._call("speed")
        ratio = 1 / (1 - sum(0.2 * choice.saving for choice in plan.layers.values()))
        return Speed(ratio, ratio * 0.999, ratio * 1.001, 10 / ratio, 10.0, 9)

    def layers(self, plan: Plan) -> dict[str, float]:
        self._call("layers")
        times = dict.fromkeys(LAYERS, 2.0)
        return times | {n: 2.0 * (1 - c.saving) for n, c in plan.layers.items()} | {"(other)": 2.0}


def invented(tool: Invented, output: Path | None = None, **arguments: Any) -> Tuned:
    given: dict[str, Any] = {"space": SPACE, **arguments}
    return tune(network(), output, samples(), evaluator=tool, timer=tool, **given)


def rates(tuned: Tuned) -> dict[str, float]:
    return {name: choice.rate for name, choice in tuned.plan.layers.items()}


def test_the_fastest_within_the_bound_is_found() -> None:
    tuned = invented(Invented(), max_drop=0.0395)
    assert tuned.best is not None
    # Every selection: the most rate for the loss. The images held back lose 0.002 more.
    best = max(
        (sum(r), r)
        for r in np.ndindex(4, 4, 4, 4)
        if 0.01 * sum(v / 4 * (4 - i) for i, v in enumerate(r)) + 0.002 <= 0.0395
    )
    assert sum(rates(tuned).values()) == pytest.approx(best[0] / 4)
    assert tuned.reached
    assert tuned.best.held_back is not None
    assert tuned.best.held_back.drop <= 0.0395
    assert "on 16 images that took no part in the choice" in tuned.message


@dataclass
class FasterExactly(Invented):
    """Layers take half of their time where they are computed exactly."""

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        self._call("speed")
        ratio = 1 / (1 - sum(0.2 * (0.5 if m.lossless else m.saving) for m in plan.layers.values()))
        return Speed(ratio, ratio * 0.999, ratio * 1.001, 10 / ratio, 10.0, 9)

    def layers(self, plan: Plan) -> dict[str, float]:
        self._call("layers")
        times = {n: 1.0 if m.lossless else 2.0 * (1 - m.saving) for n, m in plan.layers.items()}
        return dict.fromkeys(LAYERS, 2.0) | times | {"(other)": 2.0}


def test_what_loses_nothing_is_mixed_with_what_does() -> None:
    space = Space(masks=("grid",), rates=(0.25, 0.75), repairs=("none",), methods=("exact", "perforate"))
    nothing = invented(FasterExactly(), max_drop=0.0021, space=space)  # images held back lose 0.002 more
    assert nothing.plan.layers == dict.fromkeys(LAYERS, Exact())
    assert nothing.reached
    assert not any(row.choice.lossless for row in nothing.rows), "what loses nothing need not be measured"
    assert nothing.trials[0].why == "what loses nothing"
    more = invented(FasterExactly(), max_drop=0.0105, space=space)
    assert {name: method.label for name, method in more.plan.layers.items()} == {
        **dict.fromkeys(LAYERS[:3], "exact"),
        "conv4": "grid 0.75",
    }


def test_the_least_loss_at_a_speed_is_found() -> None:
    tuned = invented(Invented(), speedup=1.4)
    assert tuned.reached
    assert tuned.best is not None
    assert tuned.best.speed.ratio >= 1.4
    losses = [
        sum(v / 4 * (4 - i) for i, v in enumerate(r))
        for r in np.ndindex(4, 4, 4, 4)
        if 1 / (1 - 0.2 * sum(r) / 4) >= 1.4
    ]
    assert tuned.best.choosing.guide == pytest.approx(0.01 * min(losses))


def test_a_speed_out_of_reach_gives_the_fastest_within_the_bound() -> None:
    tuned = invented(Invented(), speedup=1.9, max_drop=0.03)
    assert not tuned.reached
    assert tuned.best is not None
    assert tuned.best.held_back is not None
    assert tuned.best.held_back.drop <= 0.03
    assert "1.9x is not reached for certain within 3.00 points" in tuned.message


def test_the_greedy_search_stays_within_the_bound() -> None:
    tuned = invented(Invented(), max_drop=0.03, search="greedy")
    assert tuned.best is not None
    assert tuned.best.held_back is not None
    assert tuned.best.held_back.drop <= 0.03
    assert tuned.best.speed.ratio > MIN_SPEEDUP
    assert rates(tuned)["conv4"] == 0.75  # the cheapest layer goes first


def test_the_greedy_search_goes_on_until_the_speed_is_reached() -> None:
    tuned = invented(Invented(), speedup=1.4, search="greedy")
    assert tuned.reached
    assert tuned.best is not None
    assert 1.4 <= tuned.best.speed.ratio < 1.5


def test_layers_go_further_than_a_start() -> None:
    quarter, half, _ = SPACE.choices()
    start = Plan({"conv1": half, "conv2": quarter})  # which cost the most
    tuned = invented(Invented(), speedup=1.4, start=start)
    assert tuned.reached
    found = rates(tuned)
    assert (found["conv1"], found["conv2"]) == (0.5, 0.25)
    assert sum(found.values()) == pytest.approx(1.5)  # no more than the speed takes
    assert all(trial.plan.layers["conv1"].rate >= 0.5 for trial in tuned.trials)


def test_a_start_that_nothing_beats_stays() -> None:
    @dataclass
    class Peaked(Invented):
        def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
            speed = super().speed(plan, seconds=seconds)
            return (
                speed
                if {n: c.rate for n, c in plan.layers.items()} == {"conv1": 0.5}
                else Speed(1.05, 1.04, 1.06, 9.5, 10.0, 9)
            )

    start = Plan({"conv1": SPACE.choices()[1]})
    tuned = invented(Peaked(), speedup=1.4, start=start)
    assert not tuned.reached
    assert rates(tuned) == {"conv1": 0.5}


@pytest.mark.parametrize(
    ("start", "more", "message"),
    [
        (Plan({"conv9": Perforate(0.5, "grid")}), {}, "layer 'conv9' of the start: the model has no such"),
        (Plan({"conv1": Sparse(0.5, "grid")}), {}, "layer 'conv1' of the start: only perforated"),
        (Plan({"conv1": Perforate(0.5, "own.npz")}), {}, "layer 'conv1' of the start: only perforated"),
        (Plan(seed=3), {}, "the start's masks are drawn with the seed 3, not 0"),
        (Plan(), {"search": "greedy"}, "takes neither a start nor a reference; take budget"),
    ],
)
def test_a_start_that_cannot_go_further_is_refused(start: Plan, more: dict[str, Any], message: str) -> None:
    tool = Invented()
    with pytest.raises(PerfonnxError, match=message):
        invented(tool, speedup=1.4, start=start, **more)
    assert not tool.calls


def test_choices_that_cost_nothing_are_taken() -> None:
    tuned = invented(Invented(scale=0.0), speedup=1.4)
    assert tuned.reached


def test_one_lossy_candidate_does_not_end_the_greedy_search() -> None:
    @dataclass
    class Lossy(Invented):
        def __call__(self, task: Task) -> Outcome:
            outcome = super().__call__(task)
            more = 0.5 * ("conv4" in task.plan.layers)  # the last one that each step tries
            return replace(
                outcome,
                quality=replace(outcome.quality, drop=outcome.quality.drop + more, guide=outcome.quality.guide + more),
            )

    tuned = invented(Lossy(), max_drop=0.05, search="greedy")
    assert tuned.best is not None
    assert set(rates(tuned)) == {"conv1", "conv2", "conv3"}


def test_losses_are_against_the_reference() -> None:
    model, other = network(), network()
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(nets.values(12, 3, 3, 3, seed=9), "w0"))
    images = hold(samples())
    metric, _ = find_metric(None, Subject(model), images)
    losses = [
        PlanEvaluator(Subject(changed), {CHOOSING: images}, metric, reference=Subject(model))(
            Task(Plan(), CHOOSING, 40)
        )
        for changed in (model, other)
    ]
    assert losses[0].quality.drop == 0
    (right,), (wrong,) = (perfonnx.session(m).run(None, {"x": samples().images}) for m in (model, other))
    expected = (right.reshape(40, 5).argmax(1) != wrong.reshape(40, 5).argmax(1)).mean()
    assert losses[1].quality.drop == pytest.approx(expected)
    assert expected > 0
    tuned = tune(other, None, samples(), reference=model, speedup=1.2, space=SPACE, timer=Invented())
    assert tuned.trials
    assert max(trial.choosing.value for trial in tuned.trials) < 1  # nothing agrees with another network everywhere
    renamed = network()
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "z"
    with pytest.raises(PerfonnxError, match="the reference and the model have other outputs, z and y"):
        tune(model, None, samples(), reference=renamed, speedup=1.2, space=SPACE, timer=Invented())


@pytest.mark.parametrize(
    ("search", "fail_after"), [("budget", 0), ("budget", 5), ("budget", 20), ("budget", 33), ("greedy", 20)]
)
def test_an_interrupted_search_goes_on_to_the_same_plan(tmp_path: Path, search: str, fail_after: int) -> None:
    whole = Invented()
    expected = invented(whole, max_drop=0.03, search=search, state=tmp_path / "whole")
    state, output = tmp_path / "state", tmp_path / "out.onnx"
    with pytest.raises(KeyboardInterrupt):
        invented(Invented(fail_after=fail_after), output, max_drop=0.03, search=search, state=state)
    assert not output.exists()
    rest = Invented()
    tuned = invented(rest, output, max_drop=0.03, search=search, state=state)
    assert tuned.plan.to_json() == expected.plan.to_json()
    assert len(rest.calls) == len(whole.calls) - fail_after
    finished = Invented()
    assert invented(finished, max_drop=0.03, search=search, state=state).plan.to_json() == expected.plan.to_json()
    assert finished.calls == []


def test_the_state_of_another_search_is_refused(tmp_path: Path) -> None:
    invented(Invented(), max_drop=0.03, state=tmp_path / "state")
    for other in ({"max_drop": 0.03, "seed": 1}, {"max_drop": 0.03, "search": "greedy"}, {"fallback": False}):
        with pytest.raises(PerfonnxError, match="the state of another search"):
            invented(Invented(), state=tmp_path / "state", **other)
    assert invented(Invented(), max_drop=0.03, state=tmp_path / "state", max_time=1e6).best is not None


def test_a_directory_keeps_the_latest_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tmp_path / "alone.state"
    for number in range(2):
        invented(Invented(), max_drop=0.03, seed=number, state=tmp_path)
    assert len(list(tmp_path.glob("*.state"))) == 2
    invented(Invented(), max_drop=0.03, state=alone)
    monkeypatch.setattr(sys.modules["perfonnx.search.tune"], "KEPT_IN_ALL", 0)
    invented(Invented(), max_drop=0.03, seed=1, state=alone.parent / "file")
    assert len(list(tmp_path.glob("*.state"))) == 3, "one file is nobody's directory"
    invented(Invented(), max_drop=0.03, seed=2, state=tmp_path)
    assert len(list(tmp_path.glob("*.state"))) == 1


def test_another_target_is_answered_from_the_networks_that_were_measured(tmp_path: Path) -> None:
    swept = invented(Invented(), max_drop=0.03, state=tmp_path / "state")
    tool = Invented()
    milder = invented(tool, tmp_path / "out.onnx", max_drop=0.02, state=tmp_path / "state")
    assert not tool.calls
    assert milder.best is not None
    assert milder.best.held_back is not None
    within = [t for t in swept.trials if t.held_back is not None and t.held_back.drop <= 0.02]
    assert milder.best.speed.ratio == max(t.speed.ratio for t in within) < swept.best.speed.ratio  # type: ignore[union-attr]
    expected = perfonnx.rewrite(network(), plan=milder.plan)
    assert onnx.load(tmp_path / "out.onnx").graph == expected.proto.graph
    fewest = invented(tool, max_drop=0.02, target="multiplies", state=tmp_path / "state")
    assert not tool.calls
    assert fewest.best is not None
    counts = {t.counts["multiplies"] for t in within}
    assert fewest.best.counts["multiplies"][1] == min(after for _, after in counts)
    assert "fewer multiplies, " in fewest.message
    assert invented(tool, max_drop=0.03, state=tmp_path / "state").plan.to_json() == swept.plan.to_json()
    assert not tool.calls
    nothing = invented(tool, max_drop=1e-9, state=tmp_path / "state")
    assert nothing.best is None
    assert not tool.calls
    more = invented(tool, max_drop=0.06, max_time=1e6, state=tmp_path / "state")
    assert tool.calls, "more time searches on"
    assert more.best is not None
    assert more.best.speed.ratio > swept.best.speed.ratio  # type: ignore[union-attr]


def test_what_repaired_a_network_is_kept_for_another_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space(masks=("grid",), rates=(0.5, 0.75), repairs=("predictor",), methods=("perforate",))

    def tuned(bound: float, output: Path | None = None) -> Tuned:
        given: dict[str, Any] = {"space": space, "state": tmp_path / "state", "timer": Invented()}
        return tune(network(), output, samples(), max_drop=bound, **given)

    first = tuned(0.9, tmp_path / "first.onnx")
    assert first.best is not None
    fitted: list[int] = []
    monkeypatch.setattr(perfonnx.passes.apply.NetworkTargets, "__init__", lambda *_: fitted.append(1))
    second = tuned(0.8, tmp_path / "second.onnx")
    assert second.best is not None
    assert not fitted
    same = [t for t in first.trials if t.plan.to_json() == second.best.plan.to_json()]
    assert same
    assert same[0].held_back == second.best.held_back
    for file in (tmp_path / "state.fits").iterdir():
        file.unlink()
    monkeypatch.undo()
    tuned(0.8, tmp_path / "third.onnx")
    assert (tmp_path / "third.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


@pytest.mark.parametrize("target", ["multiplies", "size"])
def test_what_is_counted_is_minimised(target: str) -> None:
    tuned = invented(Invented(), max_drop=0.0295, target=target)
    if target == "size":
        assert tuned.best is None, "tables of masks make the file larger"
        assert "nothing within 2.95 points of loss is smaller" in tuned.message
        return
    assert tuned.best is not None
    assert tuned.reached
    before, after = tuned.best.counts["multiplies"]
    assert (before, after) == tuned.result.report.multiplies
    assert f"{before / after:.2f}x fewer multiplies, {tuned.best.speed.ratio:.2f}x faster" in tuned.message
    plan = Plan(dict.fromkeys(LAYERS[2:], Perforate(0.75, "grid")))
    last = Counts(Subject(network())).network(plan)
    assert after <= last["multiplies"][1], "which loses 2.45 points on the images held back"


def test_bytes_are_counted_layer_by_layer() -> None:
    plan = Plan({"conv2": Perforate(0.5, "grid")})
    counts = Counts(Subject(network()), "size")
    parts, whole = counts.layers(plan), counts.network(plan)["size"]
    assert sum(parts.values()) * whole[0] == pytest.approx(counts.subject.rewrite(plan).proto.ByteSize())
    assert parts["conv1"] == counts.layers(Plan())["conv1"] == pytest.approx(4 * 12 * 3 * 9 / whole[0])
    assert parts["conv2"] > counts.layers(Plan())["conv2"]  # the mask and its table
    with_bodies = perfonnx.rewrite(network(), plan=plan).to_bytes()
    assert whole == (len(network().SerializeToString()), len(with_bodies))


def test_layers_are_screened_by_an_executor() -> None:
    with ThreadPoolExecutor(3) as pool:
        many = invented(Invented(), max_drop=0.03, executor=pool)
    assert many.plan.to_json() == invented(Invented(), max_drop=0.03).plan.to_json()


class _Failing(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(PerfonnxError("the worker is gone"))
        return future


def test_a_failing_executor_is_heard() -> None:
    with pytest.raises(PerfonnxError, match="the worker is gone"):
        invented(Invented(), max_drop=0.03, executor=_Failing())


@dataclass
class _Slow(Invented):
    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        self._call("speed")
        return Speed(0.9, 0.89, 0.91, 11.0, 10.0, 9)


@pytest.mark.parametrize("tool", [_Slow(), Invented(scale=100.0)])
def test_where_nothing_is_gained_the_model_is_left_alone(tool: Invented, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    tuned = invented(tool, output, max_drop=0.01)
    assert tuned.best is None
    assert not tuned.reached
    assert tuned.plan.layers == {}
    assert "nothing within 1.00 points of loss is faster than 1.03x; the model is left alone" in tuned.message
    assert onnx.load(output).graph == network().graph
    tried = "is 0.90x)" if isinstance(tool, _Slow) else "even the mildest of"
    assert tried in tuned.message


@dataclass
class _Flattering(Invented):
    """Loses nothing on the images to choose by, and much on the others."""

    def __call__(self, task: Task) -> Outcome:
        outcome = super().__call__(task)
        drop = 0.0 if task.part == CHOOSING else outcome.quality.drop
        return Outcome(Quality(task.images, 1.0, 1 - drop, drop, 0.001, outcome.quality.guide), 0.1)


def test_what_fails_on_unseen_images_is_not_taken() -> None:
    tuned = invented(_Flattering(), max_drop=0.03)
    looked_at = [trial for trial in tuned.trials if trial.held_back is not None]
    assert len(looked_at) > 1
    assert tuned.best is None or tuned.best.held_back.drop <= 0.03  # type: ignore[union-attr]
    assert any(trial.held_back.drop > 0.03 for trial in looked_at)  # type: ignore[union-attr]
    if tuned.best is not None:
        assert any("models were looked at" in warning for warning in tuned.warnings)


def test_samples_too_small_for_the_bound_are_said_so() -> None:
    @dataclass
    class Unsure(Invented):
        def __call__(self, task: Task) -> Outcome:
            quality = super().__call__(task).quality
            return Outcome(Quality(task.images, 1.0, quality.value, quality.drop, 0.05, quality.guide), 0.1)

    tuned = invented(Unsure(), max_drop=0.03)
    expected = "16 images cannot tell a loss of 3.00 points from twice as much"
    assert any(expected in warning for warning in tuned.warnings)
    assert not any(expected in warning for warning in invented(Invented(), max_drop=0.03).warnings)


def test_an_original_that_is_mostly_wrong_is_said_so() -> None:
    @dataclass
    class Wrong(Invented):
        def __call__(self, task: Task) -> Outcome:
            quality = super().__call__(task).quality
            return Outcome(Quality(task.images, 0.05, 0.05, quality.drop, 0.001, quality.guide), 0.1)

    tuned = tune(network(), None, samples(labels=True), evaluator=Wrong(), timer=Wrong(), space=SPACE, max_drop=0.03)
    assert tuned.metric.name == "top1"
    assert any("the original itself is right on 5% of the images only" in warning for warning in tuned.warnings)


@dataclass
class _Hasty(Invented):
    """Takes every network for a tenth faster than it is, but at the last."""

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        speed = super().speed(plan)
        ratio = speed.ratio * (1.1 if seconds < 5 else 1.0)
        return Speed(ratio, ratio * 0.999, ratio * 1.001, 10 / ratio, 10.0, 9)


def test_a_speed_that_does_not_last_is_not_claimed() -> None:
    tuned = invented(_Hasty(), speedup=1.4)
    assert tuned.best is not None
    assert tuned.reached == (tuned.best.speed.ratio >= 1.4)
    rate = sum(rates(tuned).values())
    assert tuned.best.speed.ratio == pytest.approx(1 / (1 - 0.2 * rate))


def test_the_time_is_kept() -> None:
    @dataclass
    class Slower(Invented):
        def __call__(self, task: Task) -> Outcome:
            return Outcome(super().__call__(task).quality, 10.0)

    tool = Slower()
    tuned = invented(tool, max_drop=0.03, max_time=100.0)
    assert sum(call.startswith(CHOOSING) for call in tool.calls) < 15
    assert 0 < len(tuned.rows) < 12
    assert any(f"the time was up after {len(tuned.rows)} measurements" in warning for warning in tuned.warnings)


@pytest.mark.parametrize("search", ["budget", "greedy"])
def test_one_evaluation_at_most_is_too_much(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Ticking(Invented):
        now: float = 0.0

        def _call(self, what: str) -> None:
            super()._call(what)
            self.now += 1.0

        def __call__(self, task: Task) -> Outcome:
            return replace(super().__call__(task), seconds=1.0)

    tool = Ticking()
    monkeypatch.setattr(state, "time", SimpleNamespace(perf_counter=lambda: tool.now))
    tuned = invented(tool, max_drop=0.03, max_time=20.0, search=search)
    trial = 2  # its loss and its time; also where it is verified
    assert tuned.seconds <= 20.0 + trial + 1  # and the profile of the result, to be reported
    assert any("the time was up after" in warning for warning in tuned.warnings)
    assert not any("the time was up" in warning for warning in invented(Invented(), max_drop=0.03).warnings)


def test_a_speed_counts_from_the_lower_end_of_its_interval() -> None:
    target = Target(0.01, 1.2)
    assert target.reached(Speed(1.3, 1.2, 1.4, 1.0, 1.3, 9))
    assert not target.reached(Speed(1.3, 1.19, 1.4, 1.0, 1.3, 9))


def test_times_of_all_layers_in_the_result_are_told() -> None:
    tuned = invented(Invented(), max_drop=0.03)
    expected = {name: (2.0, 2.0 * (1 - rates(tuned).get(name, 0.0))) for name in LAYERS}
    assert tuned.layer_times == expected | {"(other)": (2.0, 2.0)}
    assert tuned.to_json()["layer_times"]["conv4"] == list(expected["conv4"])


def test_an_error_that_is_not_known_is_null_in_json() -> None:
    @dataclass
    class Unknown(Invented):
        def __call__(self, task: Task) -> Outcome:
            return Outcome(replace(super().__call__(task).quality, drop_error=math.inf), 0.1)

    tuned = invented(Unknown(), max_drop=0.03)
    data = json.loads(json.dumps(tuned.to_json(), allow_nan=False))
    assert data["trials"][0]["choosing"]["drop_error"] is None
    assert tuned.trials[0].choosing.drop_error == math.inf


def test_progress_is_told() -> None:
    steps: list[Progress] = []
    invented(Invented(), max_drop=0.03, progress=steps.append)
    phases = [step.phase.split()[0] for step in steps]
    assert list(dict.fromkeys(phases)) == ["profiling", "measuring", "searching", "verifying"]
    assert all(step.seconds_left >= 0 for step in steps)
    assert steps[-1].best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_drop": "lots"}, "drop 'lots'"),
        ({"speedup": 0.9}, "speed-up 0.9: give a number above 1"),
        ({"search": "best"}, "unknown search 'best'"),
        ({"target": "joy"}, "unknown target 'joy'; choose from time, multiplies, size"),
        ({"target": "size", "speedup": 2.0}, "a speed-up is about time"),
        ({"max_time": 0}, "give the seconds"),
        ({"metric": "f1"}, "unknown metric 'f1'"),
        ({"metric": "top1"}, "top1 needs labels"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PerfonnxError, match=message):
        invented(Invented(), tmp_path / "out.onnx", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_are_refused() -> None:
    with pytest.raises(PerfonnxError, match="3 images are too few"):
        tune(network(), None, samples(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": ()}, "no mask to choose from"),
        ({"masks": ("fog",)}, "unknown mask 'fog'"),
        ({"rates": (1.5,)}, "is not in"),
        ({"rates": (0.0,)}, "rate 0 skips nothing"),
        ({"repairs": ("glue",)}, "unknown repair 'glue'"),
    ],
)
def test_choices_without_meaning_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        Space(**arguments)


# --- for real --------------------------------------------------------------------------------------------------------


def test_a_network_is_tuned_for_real(tmp_path: Path) -> None:
    model, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(network(), model)
    space = Space(masks=("lattice",), rates=(0.5, 0.75), repairs=("bias", "predictor"))
    tuned = tune(model, output, samples(32), max_drop=0.3, space=space, max_time=20, threads=1)
    assert tuned.metric.name == "agreement"
    assert tuned.images == {"fitting": 10, "choosing": 9, "held back": 13, "screening": tuned.images["screening"]}
    data = json.loads(json.dumps(tuned.to_json()))
    assert data["plan"] == tuned.plan.to_json()
    # What is written is what was measured, also when it is made again by the plan alone.
    tuned.result.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    feed = {"x": samples(4).images}
    results = [perfonnx.session(m).run(None, feed)[0] for m in (str(output), again.proto)]
    np.testing.assert_array_equal(*results)
    if tuned.best is not None:
        assert tuned.best.held_back is not None
        assert tuned.best.held_back.drop <= 0.3


def test_losses_are_what_check_finds() -> None:
    data = samples(24, labels=True)
    subject = Subject(network())
    metric, seconds = find_metric("agreement", subject, data)
    assert seconds > 0
    plan = Plan({"conv2": Perforate(0.75, "uniform")}, seed=3)
    rewritten = perfonnx.rewrite(network(), plan=plan)
    evaluator = PlanEvaluator(subject, {CHOOSING: hold(data)}, metric)
    before, after = (perfonnx.session(m).run(None, {"x": data.images})[0] for m in (network(), rewritten.proto))
    expected = float((before.argmax(axis=1) != after.argmax(axis=1)).mean())
    for layout in ("rows", "nchw"):
        for _ in range(2):  # the second time with the original's outputs kept
            assert evaluator(Task(plan, CHOOSING, 24, layout)).quality.drop == pytest.approx(expected)
    part = evaluator(Task(plan, CHOOSING, 10)).quality
    assert part.images == 10
    assert part.drop == pytest.approx((before[:10].argmax(axis=1) != after[:10].argmax(axis=1)).mean())


def test_sensitivity_measures_each_layer_alone() -> None:
    result = sensitivity(network(), samples(16), space=SPACE)
    assert {row.layer for row in result.rows} == set(LAYERS)
    assert len(result.rows) == 12
    guides = {(row.layer, row.choice.rate): row.quality.guide for row in result.rows}
    assert all(guides[layer, 0.25] < guides[layer, 0.75] for layer in LAYERS)
    assert result.metric.name == "agreement"


def test_models_of_a_fixed_batch_are_run_in_it() -> None:
    result = sensitivity(
        network(batch=4),
        samples(16, batch=4),
        space=Space(("grid",), (0.5,), repairs=("bias",), methods=("perforate",)),
    )
    assert result.images == 16
    assert len(result.rows) == 4


@pytest.mark.slow
def test_resnet20_is_tuned_within_its_bound(tmp_path: Path) -> None:
    model = real_models.path("cifar10_resnet20")
    archive = np.load(real_models.DATA / "images" / "cifar10_test_jpg_dev2000.npz")
    images, labels = (archive[name] for name in sorted(archive.files, key=lambda name: -archive[name].ndim)[:2])
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = ((images[::5].astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    name = onnx.load(model).graph.input[0].name
    data = Arrays(name, np.ascontiguousarray(pixels), labels[::5].astype(np.int64), 16)  # they come class by class
    space = Space(masks=("lattice", "uniform"), rates=(0.25, 0.5), repairs=("bias",))
    tuned = tune(model, tmp_path / "out.onnx", data, max_drop="4%", space=space, max_time=60, threads=1)
    assert tuned.metric.name == "top1"
    assert tuned.rows
    assert tuned.trials
    assert tuned.trials[0].choosing.reference > 0.7
    if tuned.best is not None:
        assert tuned.best.held_back is not None
        assert tuned.best.held_back.drop <= 0.04


def test_impact_masks_are_made_from_the_images_to_choose_by(tmp_path: Path) -> None:
    space = Space(masks=("impact",), rates=(0.5,), repairs=("none",), methods=("exact", "perforate"))
    tuned = tune(network(), None, samples(), max_drop=1.0, space=space, max_time=20, threads=1, timer=Invented())
    assert tuned.best is not None
    assert all(choice.mask == "impact" for choice in tuned.plan.layers.values())
    tuned.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(network(), plan=tmp_path / "plan.json")
    assert again.to_bytes() == tuned.result.to_bytes()


def test_impact_needs_a_classifier() -> None:
    with pytest.raises(PerfonnxError, match="follows the log-loss of a classifier, not distance"):
        sensitivity(network(), samples(8), space=Space(masks=("impact",)), metric="distance")


def test_a_model_without_layers_to_rewrite_is_left_alone(tmp_path: Path) -> None:
    nodes = [nets.node("GlobalAveragePool", ["x"], ["g"]), nets.conv("g", "y", "w", name="head", pads=[0] * 4)]
    nodes[-1].attribute[0].ints[:] = [1, 1]
    shapes = {"x": ("N", 3, 16, 14)}
    model = nets.model(nodes, {"w": nets.values(5, 3, 1, 1)}, inputs=shapes, outputs={"y": ("N", 5, 1, 1)})
    tuned = tune(model, tmp_path / "out.onnx", samples(), timer=Invented(), evaluator=Invented())
    assert tuned.best is None
    assert "the model is left alone (there is little to gain" in tuned.message
    assert onnx.load(tmp_path / "out.onnx") == model
    assert tuned.to_json()["best"] is None
