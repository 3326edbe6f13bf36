"""The search over regions: with an invented method and invented measurements, and for real on a small network."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import perfonnx
from perfonnx.methods import METHODS, Method
from perfonnx.methods import Space as Asked
from perfonnx.methods.exact import Exact
from perfonnx.methods.perforate import Perforate
from perfonnx.methods.product import RefitProduct
from perfonnx.methods.sublattice import Sublattice
from perfonnx.plan import Plan
from perfonnx.search import Outcome, Quality, Space, Speed, Task, Tuned, state, tune
from perfonnx.search.evaluate import CHOOSING, HELD_BACK
from perfonnx.subject import Subject
from tests.passes import nets
from tests.search.test_tune import samples

BIG, SMALL = ("big1", "big2"), ("small1", "small2", "small3")


@pytest.fixture
def together() -> Iterator[type[Method]]:
    """A method that is chosen for regions; layers behind them are computed exactly."""

    @dataclass(frozen=True)
    class Together(Perforate):
        NAME = "together"

        @property
        def regional(self) -> bool:
            return True

        @property
        def behind(self) -> Sequence[Method]:
            return (Exact(),)

        @classmethod
        def candidates(cls, space: Asked) -> Sequence[Method]:
            return [cls(rate, "grid") for rate in space.savings]

    yield Together
    del METHODS["together"]


def network() -> ModelProto:
    """Two layers of one resolution, three of another, and a classifier of five classes."""
    nodes, x = [], "x"
    for number, name in enumerate((*BIG, *SMALL)):
        strides = [2, 2] if name == SMALL[0] else [1, 1]
        nodes.append(nets.conv(x, f"c{number}", f"w{number}", name=name, strides=strides))
        nodes.append(nets.node("Relu", [f"c{number}"], [f"r{number}"]))
        x = f"r{number}"
    nodes += [nets.node("GlobalAveragePool", [x], ["g"]), nets.conv("g", "y", "w", name="head", pads=[0] * 4)]
    nodes[-1].attribute[0].ints[:] = [1, 1]
    weights = {f"w{i}": 2 * nets.values(12, 12 if i else 3, 3, 3, seed=i) / (i + 1) for i in range(5)}
    weights["w"] = 20 * nets.values(5, 12, 1, 1)
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 16, 14)}, outputs={"y": ("N", 5, 1, 1)})


@dataclass
class Invented:
    """Losses and times by a formula: regions of both resolutions together lose twice as much as each alone."""

    plans: list[Plan] = field(default_factory=list)
    parts: list[tuple[str, int]] = field(default_factory=list)

    @staticmethod
    def _work(plan: Plan) -> dict[str, float]:
        return {name: method.saving for name, method in plan.layers.items() if method.regional}

    @classmethod
    def loss(cls, plan: Plan) -> float:
        work = cls._work(plan)
        big, small = (sum(work.get(name, 0.0) for name in names) for names in (BIG, SMALL))
        return (0.01 * big + 0.005 * small) * (2 if big and small else 1)

    @classmethod
    def ratio(cls, plan: Plan) -> float:
        work = cls._work(plan)
        return 1 / (
            1 - sum(0.3 * work.get(name, 0.0) for name in BIG) - sum(0.1 * work.get(name, 0.0) for name in SMALL)
        )

    def __call__(self, task: Task) -> Outcome:
        self.plans.append(task.plan)
        self.parts.append((task.part, task.images))
        loss = self.loss(task.plan)
        return Outcome(Quality(task.images, 1.0, 1 - loss, loss, 0.0001, loss), 0.1)

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        ratio = self.ratio(plan)
        return Speed(ratio, ratio * 0.999, ratio * 1.001, 10 / ratio, 10.0, 9)

    def layers(self, plan: Plan) -> dict[str, float]:
        return dict.fromkeys((*BIG, *SMALL), 2.0) | {"(other)": 2.0}


def searched(tool: Invented, **arguments: Any) -> Tuned:
    space = Space(rates=(0.5, 0.75), repairs=("none",), methods=("exact", "together"))
    return tune(network(), None, samples(60), evaluator=tool, timer=tool, space=space, **arguments)


@pytest.mark.parametrize("bound", [0.006, 0.0105, 0.0155, 0.0305, 0.06])
def test_the_fastest_combination_within_the_bound_is_found(together: type[Any], bound: float) -> None:
    tuned = searched(Invented(), max_drop=bound)
    rates = [None, *Space(rates=(0.5, 0.75), methods=("together",)).choices()]
    best = 1.0
    for big, *small in product(rates, repeat=4):
        layers = {n: big for n in BIG if big} | {n: m for n, m in zip(SMALL, small, strict=True) if m}
        plan = Plan(layers)
        if Invented.loss(plan) <= bound:
            best = max(best, Invented.ratio(plan))
    assert tuned.best is not None
    assert Invented.loss(tuned.plan) <= bound
    assert tuned.best.speed.ratio >= 0.97 * best


def test_regions_alone_come_first_and_what_is_behind_them_follows(together: type[Any]) -> None:
    tool = Invented()
    tuned = searched(tool, max_drop=0.03)
    half = together(0.5, "grid")
    singles = [{n for n, m in trial.plan.layers.items() if m == half} for trial in tuned.trials[:2]]
    assert singles == [set(BIG), set(SMALL)]
    first, second = (trial.plan.layers for trial in tuned.trials[:2])
    assert {first[name] for name in SMALL} == {Exact()}
    assert not set(second) & set(BIG), "in front of a region nothing changes"
    assert {row.layer for row in tuned.rows} >= {"16x14", "8x7"}
    assert tuned.units["8x7"] == SMALL


def test_what_is_chosen_by_is_new_to_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["perfonnx.search.tune"]
    seen: list[Any] = []
    make = module.PlanEvaluator

    def spied(subject: Subject, parts: Any, *rest: Any) -> Any:
        seen.append((subject.calibration, parts[CHOOSING], parts[HELD_BACK]))
        return make(subject, parts, *rest)

    monkeypatch.setattr(module, "PlanEvaluator", spied)
    data = samples(60)
    space = Space(rates=(0.5,), methods=("sublattice",))
    tuned = tune(network(), None, data, max_drop=0.5, space=space, max_time=20, threads=1)
    images = [np.concatenate([batch.feeds["x"] for batch in part]) for part in seen[0]]
    fitted, chosen, held_back = images
    assert [len(part) for part in images] == [36, 18, 24]
    np.testing.assert_array_equal(fitted[18:], chosen)  # which only the last fit sees
    assert {key: tuned.images[key] for key in ("fitting", "choosing", "held back")} == {
        "fitting": 18,
        "choosing": 18,
        "held back": 24,
    }
    whole = np.concatenate([fitted, held_back])
    assert len(np.unique(whole.reshape(60, -1), axis=0)) == 60


def test_a_network_with_regions_is_tuned_for_real(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "in.onnx")

    @dataclass
    class ByWork(Invented):
        @staticmethod
        def _work(plan: Plan) -> dict[str, float]:
            return {name: method.saving for name, method in plan.layers.items()}

    space = Space(rates=(0.5,), repairs=("none",), methods=("exact", "sublattice"), flips=True)
    same: dict[str, Any] = {"space": space, "timer": ByWork(), "state": tmp_path / "state"}
    tuned = tune(tmp_path / "in.onnx", tmp_path / "out.onnx", samples(60), max_drop=0.6, **same)
    assert tuned.best is not None
    assert {type(method) for method in tuned.plan.layers.values()} >= {Sublattice}
    assert {method.mirrors for method in tuned.plan.layers.values() if isinstance(method, Sublattice)} == {True}
    tuned.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(tmp_path / "in.onnx", plan=tmp_path / "plan.json")
    assert again.to_bytes() == (tmp_path / "out.onnx").read_bytes()
    mildest = min(t.held_back.drop for t in tuned.trials if t.held_back is not None)
    other = tune(tmp_path / "in.onnx", None, samples(60), max_drop=max(mildest, 0.01), **same)
    assert any("nothing was measured anew" in warning for warning in other.warnings)


def test_products_behind_regions_are_refitted() -> None:
    model = network()
    pool, head = model.graph.node[-2:]
    head.CopyFrom(nets.node("Gemm", ["f", "w"], ["y"], name="head"))
    model.graph.node.insert(len(model.graph.node) - 1, nets.node("Flatten", [pool.output[0]], ["f"]))
    weight = next(t for t in model.graph.initializer if t.name == "w")
    weight.CopyFrom(onnx.numpy_helper.from_array(20 * nets.values(12, 5), "w"))
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    space = Space(rates=(0.5,), repairs=("none",), methods=("sublattice",))
    tool = Invented()
    tuned = tune(model, None, samples(60), evaluator=tool, timer=tool, space=space, max_drop=0.5)
    assert tuned.best is not None
    assert {type(tuned.plan.layers[name]) for name in BIG} == {Sublattice}
    assert tuned.plan.layers["head"] == RefitProduct()
    assert "head" in tuned.result.corrections


def test_regions_and_layers_share_the_time_and_the_best_is_taken(together: type[Any]) -> None:
    """Layers one by one are better here: the search with both finds what the search with them alone finds."""

    @dataclass
    class LayersAreBetter(Invented):
        @classmethod
        def loss(cls, plan: Plan) -> float:
            single = {n: m.saving for n, m in plan.layers.items() if not m.regional and not m.lossless}
            return super().loss(plan) + 0.002 * sum(single.values())

        @classmethod
        def ratio(cls, plan: Plan) -> float:
            single = {n: m.saving for n, m in plan.layers.items() if not m.regional and not m.lossless}
            return 1 / (1 / super().ratio(plan) - 0.2 * sum(single.values()))

        def layers(self, plan: Plan) -> dict[str, float]:
            times = {n: 2.0 * (1 - m.saving) for n, m in plan.layers.items() if not m.regional}
            return super().layers(plan) | times

    def found(*methods: str) -> float:
        tool = LayersAreBetter()
        space = Space(masks=("grid",), rates=(0.5, 0.75), repairs=("none",), methods=methods)
        tuned = tune(network(), None, samples(60), evaluator=tool, timer=tool, space=space, max_drop=0.008)
        assert tuned.best is not None
        return tuned.best.speed.ratio

    families = found("exact", "together"), found("exact", "perforate")
    assert found("exact", "together", "perforate") >= max(families)


def test_layers_behind_regions_may_be_sampled_by_themselves(together: type[Any]) -> None:
    """One method is good for the large maps, the other for the small ones."""

    def single(plan: Plan) -> float:
        layers = {n: m for n, m in plan.layers.items() if n in SMALL and not m.regional}
        return sum(method.saving for method in layers.values())

    @dataclass
    class Mixed(Invented):
        @classmethod
        def loss(cls, plan: Plan) -> float:
            return super().loss(plan) + 0.001 * single(plan)

        @classmethod
        def ratio(cls, plan: Plan) -> float:
            return 1 / (1 / super().ratio(plan) - 0.05 * single(plan))

        def layers(self, plan: Plan) -> dict[str, float]:
            work = {n: m.saving for n, m in plan.layers.items() if n in SMALL}
            return super().layers(plan) | {n: 2.0 * (1 - saving / 4) for n, saving in work.items()}

    tool = Mixed()
    space = Space(masks=("grid",), rates=(0.5,), repairs=("none",), methods=("exact", "together", "perforate"))
    tuned = tune(network(), None, samples(60), evaluator=tool, timer=tool, space=space, max_drop=0.0118)
    assert {tuned.plan.layers[name] for name in BIG} == {together(0.5, "grid")}
    assert {tuned.plan.layers[name] for name in SMALL} == {Perforate(0.5, "grid", repair="none")}


@dataclass
class Clocked(Invented):
    """A network takes a second, and more for each image that its regions are refitted by."""

    each: float = 0.05
    now: float = 0.0
    refitted_by: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, task: Task) -> Outcome:
        self.now += 1.0
        if any(method.regional for method in task.plan.layers.values()):
            self.now += self.each * task.repaired_by
            self.refitted_by.append((task.part, task.repaired_by))
        return super().__call__(task)


def test_regions_that_lead_have_most_of_the_time(together: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other choices that the search may look at too leave them nearly all that they would have alone."""

    def measured(*methods: str) -> int:
        tool = Clocked()
        monkeypatch.setattr(state, "time", SimpleNamespace(perf_counter=lambda: tool.now))
        space = Space(masks=("grid",), rates=(0.5, 0.75), repairs=("none",), methods=("exact", "together", *methods))
        same: dict[str, Any] = {"evaluator": tool, "timer": tool, "space": space}
        tune(network(), None, samples(300), max_drop=0.0305, max_time=60.0, **same)
        return sum(part == CHOOSING for part, _ in tool.refitted_by)

    assert measured("perforate", "sparse") >= 0.8 * measured()


@pytest.mark.parametrize(("each", "count"), [(0.05, 90), (0.5, 32), (0.001, 90)])
def test_regions_are_refitted_by_as_many_images_as_there_is_time_for(
    together: type[Any], monkeypatch: pytest.MonkeyPatch, each: float, count: int
) -> None:
    tool = Clocked(each=each)
    monkeypatch.setattr(state, "time", SimpleNamespace(perf_counter=lambda: tool.now))
    space = Space(rates=(0.5, 0.75), repairs=("none",), methods=("exact", "together"))
    same: dict[str, Any] = {"evaluator": tool, "timer": tool, "space": space}
    tuned = tune(network(), None, samples(300), max_drop=0.0155, max_time=168.0, **same)
    assert tuned.seconds <= 168 + 3
    by = {n for part, n in tool.refitted_by if part == CHOOSING}
    assert by <= {32, count}
    assert tool.refitted_by.count((CHOOSING, count)) > 4
    assert any("images to refit regions by" in warning for warning in tuned.warnings) == (count < 90)
    assert tuned.best is not None
    # What was found is refitted by all of them in the end, where there is time left.
    assert ((HELD_BACK, 180) in tool.refitted_by) == (tuned.best.repaired_by == 180)
    assert tuned.best.repaired_by == (count if each == 0.5 else 180)
