"""Low-rank methods in a search: the layer whose filters come apart is the one that gives up work."""

from __future__ import annotations

import numpy as np

from perfonnx import Plan
from perfonnx.methods import METHODS
from perfonnx.methods.lowrank.base import LowRank
from perfonnx.search import Space, Speed, tune
from tests.methods.lowrank.test_lowrank import network, separable
from tests.passes import nets
from tests.search.arrays import Arrays


class ByFormula:
    """Times by a formula: a layer takes less by what its method asks to leave out."""

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        ratio = 1 / (1 - sum(0.3 * method.saving for method in plan.layers.values()))
        return Speed(ratio, ratio * 0.999, ratio * 1.001, 10 / ratio, 10.0, 9)

    def layers(self, plan: Plan) -> dict[str, float]:
        names = ("conv1", "conv2", "conv3")
        return dict.fromkeys(names, 3.0) | {n: 3 * (1 - m.saving) for n, m in plan.layers.items()} | {"(other)": 1.0}


def test_a_search_chooses_it() -> None:
    images = np.concatenate([nets.feed(4, 3, 12, 10, seed=seed)["x"] for seed in range(8)])
    data = Arrays("x", images, None, 1)
    space = Space(rates=(0.25, 0.75), masks=("grid",))
    tuned = tune(network(separable()), None, data, max_drop="1%", timer=ByFormula(), space=space)
    assert tuned.reached
    assert tuned.plan.layers["conv2"] == METHODS["jaderberg"](save=0.75)


def test_rates_that_are_no_savings_are_left_to_who_reads_them() -> None:
    tried = [choice for choice in Space(rates=(0.5, 0.9)).choices() if isinstance(choice, LowRank)]
    assert [choice.saving for choice in tried] == [0.5, 0.9]
    assert {choice.NAME for choice in tried} == {"jaderberg"}
