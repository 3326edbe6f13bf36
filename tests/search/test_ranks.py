"""Ranks for a whole network: the layers that lose least for a multiply give up most."""

from __future__ import annotations

import numpy as np
import pytest

import perfonnx
from perfonnx import PerfonnxError, Plan
from perfonnx.methods import METHODS, Method
from perfonnx.search.ranks import ENERGY, SENSITIVITY, Rung, allocated, measured_rungs
from perfonnx.subject import Subject
from tests.methods.lowrank.test_lowrank import network, separable
from tests.passes import nets
from tests.search.arrays import Arrays


def choice(save: float) -> Method:
    return METHODS["jaderberg"](save=save)


def rung(save: float, error: float, guide: float, size: int = 100) -> Rung:
    return Rung(choice(save), round(save * size), error, guide)


def test_the_cheapest_steps_are_taken() -> None:
    rungs = {
        "tame": [rung(0.25, 0.01, 0.1), rung(0.5, 0.02, 0.2), rung(0.75, 0.5, 5.0)],
        "wild": [rung(0.25, 0.005, 3.0), rung(0.5, 0.01, 9.0)],
    }
    assert allocated(rungs, 50, SENSITIVITY) == {"tame": choice(0.5)}
    assert allocated(rungs, 70, SENSITIVITY) == {"tame": choice(0.5), "wild": choice(0.25)}
    assert allocated(rungs, 50, ENERGY) == {"wild": choice(0.5)}
    assert allocated(rungs, 0, ENERGY) == {}


def test_a_rung_that_loses_more_for_a_multiply_than_the_next_is_skipped() -> None:
    rungs = {"a": [rung(0.25, 0.1, 4.0), rung(0.5, 0.1, 5.0)], "b": [rung(0.25, 0.1, 3.5)]}
    assert allocated(rungs, 25, SENSITIVITY) == {"a": choice(0.5)}


def test_what_cannot_be_saved_is_said() -> None:
    with pytest.raises(PerfonnxError, match="50 can be saved, not 60"):
        allocated({"a": [rung(0.5, 0.1, 1.0)]}, 60, SENSITIVITY)
    with pytest.raises(PerfonnxError, match="unknown objective 'luck'; choose from sensitivity, energy"):
        allocated({}, 0, "luck")


def data() -> Arrays:
    return Arrays("x", np.concatenate([nets.feed(4, 3, 12, 10, seed=seed)["x"] for seed in range(4)]), None, 1)


def test_rungs_are_measured_layer_by_layer() -> None:
    """The second layer's filters come apart into two terms: it loses nothing, and gives up most."""
    model, images = network(separable()), data()
    subject = Subject(model, calibration=images)
    rungs = measured_rungs(subject, images, [choice(save) for save in (0.25, 0.75)])
    assert list(rungs) == ["conv1", "conv2", "conv3"]
    tame, wild = rungs["conv2"][-1], rungs["conv1"][0]
    assert tame.error < 1e-6 < wild.error
    assert tame.guide < 1e-6 < wild.guide
    chosen = allocated(rungs, tame.saved, SENSITIVITY)
    assert chosen == {"conv2": choice(0.75)}
    result = perfonnx.rewrite(model, plan=Plan(chosen), samples=[batch.feeds for batch in images])
    assert result.report.multiplies[0] - result.report.multiplies[1] == tame.saved


class Times:
    """Layers take a part each; those of a plan so many times less as said, as two convolutions."""

    def __init__(self, faster: dict[str, dict[str, float]]) -> None:
        self.faster = faster

    def layers(self, plan: Plan) -> dict[str, float]:
        times = {"conv1": 0.2, "conv2": 0.5, "conv3": 0.3}
        for name, method in plan.layers.items():
            whole = times.pop(name) / self.faster[method.steps[0].NAME].get(name, 1.0)
            times |= {f"{name}.vertical": 0.4 * whole, f"{name}.horizontal": 0.6 * whole}
        return times


@pytest.mark.parametrize("slow", [1.03, 1.4])
def test_by_time_what_saves_multiplies_alone_is_no_choice(slow: float) -> None:
    """In one layer it takes longer, in one next to as long, or longer than what loses nothing."""
    model, images = network(separable()), data()
    timer = Times({"jaderberg": {"conv1": 4.0, "conv2": 0.5, "conv3": slow}, "exact": {"conv1": 2.0, "conv3": 1.5}})
    choices = [METHODS["exact"](), choice(0.75)]
    rungs = measured_rungs(Subject(model, calibration=images), images, choices, timer=timer)
    assert {name: [rung.choice for rung in each] for name, each in rungs.items()} == {
        "conv1": choices,
        "conv3": choices[:1],
    }
    saved = [rung.saved for rung in rungs["conv1"]]
    assert saved == pytest.approx([0.1, 0.15])
    lossless, lossy = rungs["conv1"]
    assert lossless.error == 0
    assert lossless.guide < 1e-6 < lossy.guide
    assert allocated(rungs, 0.2, SENSITIVITY) == {"conv1": choices[0], "conv3": choices[0]}
    assert allocated(rungs, 0.25, SENSITIVITY) == {"conv1": choices[1], "conv3": choices[0]}
    with pytest.raises(PerfonnxError, match=r"0\.25 can be saved, not 0\.3"):
        allocated(rungs, 0.3, ENERGY)
