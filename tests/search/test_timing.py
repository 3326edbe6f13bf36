"""Timing: pairs, confidence, whose time a node's is, the cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper

from perfonnx.data.inputs import Feed
from perfonnx.errors import PerfonnxWarning
from perfonnx.methods.perforate import Perforate
from perfonnx.model import files
from perfonnx.plan import Plan
from perfonnx.running.opened import OpenModel
from perfonnx.search import timing
from perfonnx.search.timing import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    OTHER,
    SLOW_ROUNDS,
    WARMUP,
    PairedTimer,
    TimingCache,
    median_interval,
    owning_layers,
    paired,
    undisturbed,
)
from perfonnx.subject import Subject
from tests.passes import nets


def _steps(values: list[float]) -> Callable[[], float]:
    """The values, over and over."""
    return itertools.cycle(values).__next__


def _clock(step: float) -> Callable[[], float]:
    return itertools.count(0, step).__next__


def test_certain_ratios_need_few_rounds() -> None:
    speed = paired(_steps([4.0]), _steps([2.0]), seconds=1e9, clock=_clock(1.0))
    assert (speed.ratio, speed.low, speed.high, speed.milliseconds, speed.original) == (2, 2, 2, 2, 4)
    assert speed.rounds == MIN_ROUNDS


def test_a_machine_that_slows_down_slows_both_down() -> None:
    drift = [1.0 + 0.1 * i for i in range(60)]
    ours, theirs = _steps([3 * d for d in drift]), _steps(drift)
    assert paired(ours, theirs, seconds=1e9, clock=_clock(1.0)).ratio == pytest.approx(3)


def test_noise_is_met_with_rounds_up_to_a_limit() -> None:
    random = np.random.default_rng(0)
    noisy = paired(lambda: 1 + 0.05 * random.random(), lambda: 1.0, seconds=1e9, clock=_clock(1.0))
    assert MIN_ROUNDS < noisy.rounds < MAX_ROUNDS
    assert (noisy.high - noisy.low) / 2 <= 0.01 * noisy.ratio
    wild = paired(lambda: float(random.integers(1, 9)), lambda: 1.0, seconds=1e9, clock=_clock(1.0))
    assert wild.rounds == MAX_ROUNDS
    assert paired(lambda: float(random.integers(1, 9)), lambda: 1.0, seconds=20, clock=_clock(1.0)).rounds < 30


def test_slow_networks_are_run_less_often() -> None:
    runs: list[float] = []

    def run() -> float:
        runs.append(3000.0)
        return 3000.0

    speed = paired(run, _steps([2000.0, 2400.0]), seconds=2.0, clock=_clock(5.0))
    assert speed.rounds == SLOW_ROUNDS
    assert len(runs) == SLOW_ROUNDS + 1  # warm after one
    assert speed.low < speed.ratio < speed.high
    assert paired(run, _steps([2000.0]), seconds=1e9, clock=_clock(5.0)).rounds == MIN_ROUNDS


def test_both_run_first_equally_often() -> None:
    order: list[str] = []

    def run(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or 1.0  # type: ignore[func-returns-value]

    paired(run("a"), run("b"), seconds=0.0, clock=_clock(1.0))
    rounds = ["".join(order[i : i + 2]) for i in range(2 * WARMUP, len(order), 2)]
    assert len(rounds) == MIN_ROUNDS
    assert abs(rounds.count("ab") - rounds.count("ba")) == 1


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    for n in (9, 30):
        intervals = [median_interval(list(random.standard_normal(n))) for _ in range(2000)]
        share = np.mean([low <= 0 <= high for low, high in intervals])
        assert 0.94 <= share <= 0.995
    assert median_interval([1.0, 2.0, 3.0]) == (1.0, 3.0)
    assert median_interval([1.0]) == (1.0, 1.0)


def test_what_disturbs_a_run_does_not_count() -> None:
    assert undisturbed([3.0, 1.0, 90.0, 2.0, 80.0, 70.0, 60.0, 50.0]) == 1.5
    assert undisturbed([2.0]) == 2.0


def _network() -> ModelProto:
    nodes = [
        nets.node("Neg", ["x"], ["n"]),
        nets.conv("n", "a", "w1", name="one"),
        nets.node("Relu", ["a"], ["r"]),
        nets.conv("r", "b", "w2", name="two"),
        nets.node("Add", ["r", "b"], ["y"]),
        nets.node("Abs", ["x"], ["z"]),
    ]
    weights = {"w1": nets.values(8, 3, 3, 3), "w2": nets.values(8, 8, 3, 3)}
    return nets.model(nodes, weights, outputs={"y": (1, 8, 12, 10), "z": (1, 3, 12, 10)})


def test_nodes_belong_to_the_convolution_before_them() -> None:
    assert owning_layers(_network()) == {"Neg_n": "one", "one": "one", "Relu_r": "one", "two": "two", "Add_y": "two"}


def test_compact_belongs_to_the_layer_that_it_is_for() -> None:
    graph = _network().graph
    compact = helper.make_node("Compact", ["r"], ["rows"], name="compact", domain="ai.perfonnx")
    graph.node.insert(3, compact)
    graph.node[4].input[0] = "rows"
    model = _network()
    model.graph.CopyFrom(graph)
    assert owning_layers(model)["compact"] == "two"


def test_a_real_network_is_profiled_and_timed(tmp_path: Path) -> None:
    feed = {"x": nets.values(1, 3, 12, 10)}
    cache = TimingCache(tmp_path / "cache")
    timer = PairedTimer(Subject(_network()), feed, 1, cache)
    dense = timer.layers(Plan())
    assert set(dense) == {"one", "two", OTHER}
    assert all(value >= 0 for value in dense.values())
    assert sum(dense.values()) == pytest.approx(1, abs=0.4)  # of the original, which it is
    plan = Plan({"one": Perforate(0.5), "two": Perforate(0.5)})
    assert {"one", "two"} <= set(timer.layers(plan))
    speed = timer.speed(plan, seconds=0.01)
    assert speed.low <= speed.ratio <= speed.high
    assert speed.rounds >= MIN_ROUNDS
    assert len(list((tmp_path / "cache").iterdir())) == 3
    again = PairedTimer(Subject(_network()), feed, 1, cache)
    assert again.speed(plan, seconds=0.01) == speed
    assert again.layers(Plan()) == dense
    assert again._original is None  # nothing was run
    two_threads = PairedTimer(Subject(_network()), feed, 2, cache)
    two_threads.speed(plan, seconds=0.01)
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_slow_network_is_profiled_by_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    runner = timing._runner

    def counted(model: OpenModel, feed: Feed) -> Callable[[], float]:
        run = runner(model, feed)
        counts.append(0)
        mine = len(counts) - 1

        def once() -> float:
            counts[mine] += 1
            run()
            return 400.0

        return once

    monkeypatch.setattr(timing, "_runner", counted)
    model = files.load(nets.model([nets.conv("x", "y", "w", name="c")], {"w": nets.values(4, 3, 3, 3)}))
    feed = {"x": np.zeros((1, 3, 12, 10), np.float32)}
    times = timing.profile(model, model, feed, threads=1)
    assert counts == [3, 3]  # one to be warm
    assert times["c"] > 0


def test_a_cache_that_cannot_be_used_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TimingCache(tmp_path / "file" / "cache")
    cache.put("key", {"a": 1})
    assert cache.get("key") is None
    damaged = TimingCache(tmp_path)
    for value in ({"a": -1.0}, {"a": float("nan")}, {"a": "1"}, [1.0], None):
        damaged.put("key", value)  # type: ignore[arg-type]
        with pytest.warns(PerfonnxWarning, match="is damaged; it is timed anew"):
            assert damaged.get("key") is None
    damaged.put("key", {"a": 0.5, "b": 1})
    content = (tmp_path / "key.json").read_bytes()
    assert damaged.get("key") == {"a": 0.5, "b": 1}
    for cut in range(len(content)):
        flipped = bytearray(content)
        flipped[cut] ^= 1
        for broken in (content[:cut], bytes(flipped)):
            (tmp_path / "key.json").write_bytes(broken)
            with pytest.warns(PerfonnxWarning, match="is damaged"):
                assert damaged.get("key") is None
