"""Low-rank methods in a search: the layer whose filters come apart is the one that gives up work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from perfonnx import Plan
from perfonnx.methods import METHODS, Chain
from perfonnx.methods.exact import Exact
from perfonnx.methods.lowrank.base import LowRank
from perfonnx.search import Space, Speed, tune
from perfonnx.search.sensitivity import reducible
from perfonnx.subject import Subject
from tests.methods.lowrank.test_lowrank import network, separable
from tests.passes import nets
from tests.search.arrays import Arrays


@dataclass(frozen=True)
class ByFormula:
    """Times by a formula: a layer takes less by what its method asks to leave out."""

    names: tuple[str, ...] = ("conv1", "conv2", "conv3")

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        ratio = 1 / (1 - sum(0.3 * method.saving for method in plan.layers.values()))
        return Speed(ratio, ratio * 0.999, ratio * 1.001, 10 / ratio, 10.0, 9)

    def layers(self, plan: Plan) -> dict[str, float]:
        return (
            dict.fromkeys(self.names, 3.0) | {n: 3 * (1 - m.saving) for n, m in plan.layers.items()} | {"(other)": 1.0}
        )


def test_a_search_chooses_it() -> None:
    images = np.concatenate([nets.feed(4, 3, 12, 10, seed=seed)["x"] for seed in range(8)])
    data = Arrays("x", images, None, 1)
    space = Space(rates=(0.25, 0.75), masks=("grid",))
    tuned = tune(network(separable()), None, data, max_drop="1%", timer=ByFormula(), space=space)
    assert tuned.reached
    assert tuned.plan.layers["conv2"] == Chain((METHODS["jaderberg"](save=0.75), Exact()))


def test_it_chooses_it_for_a_product() -> None:
    """Of low rank, behind layers that mind being approximated."""
    rng = np.random.default_rng(3)
    low = (rng.standard_normal((1920, 4)) @ rng.standard_normal((4, 50)) / 40).astype(np.float32)
    weights = {"w": nets.values(16, 3, 3, 3), "v": low}
    nodes = [
        nets.conv("x", "a", "w", name="conv"),
        nets.node("Flatten", ["a"], ["f"]),
        nets.node("MatMul", ["f", "v"], ["y"], name="product"),
    ]
    model = nets.model(nodes, weights, outputs={"y": ("N", 50)})
    images = np.concatenate([nets.feed(4, 3, 12, 10, seed=seed)["x"] for seed in range(8)])
    space, timer = Space(rates=(0.5, 0.75), masks=("grid",)), ByFormula(("conv", "product"))
    tuned = tune(model, None, Arrays("x", images, None, 1), max_drop="1%", timer=timer, space=space)
    assert tuned.reached
    assert tuned.plan.layers["product"] == METHODS["svd"](save=0.75)
    assert tuned.obstacles == {}


def test_rates_that_are_no_savings_are_left_to_who_reads_them() -> None:
    choices = Space(rates=(0.5, 0.9)).choices()
    tried = [choice.steps for choice in choices if isinstance(choice.steps[0], LowRank)]
    names = Counter(" ".join(step.NAME for step in steps) for steps in tried)
    assert names == {
        "column-sparse exact": 2,
        "jaderberg exact": 2,
        "svd": 2,
        "svd exact": 2,
        "zhang exact": 2,
    }
    assert {steps[0].saving for steps in tried} == {0.5, 0.9}
    bare = Space(rates=(0.5,), methods=["jaderberg"]).choices()
    assert bare == [METHODS["jaderberg"](save=0.5)]


def test_products_and_pointwise_layers_are_tried_where_that_leaves_fewer_multiplies() -> None:
    weights = {"w": nets.values(64, 48, 1, 1), "v": nets.values(64, 40), "d": nets.values(64, 64, 3, 3)}
    nodes = [
        nets.conv("x", "a", "w", name="pointwise", kernel_shape=[1, 1], pads=[0, 0, 0, 0]),
        nets.conv("a", "b", "d", name="dense"),
        nets.node("GlobalAveragePool", ["b"], ["c"]),
        nets.node("Flatten", ["c"], ["f"]),
        nets.node("MatMul", ["f", "v"], ["y"], name="product"),
    ]
    model = nets.model(nodes, weights, inputs={"x": (1, 48, 24, 24)}, outputs={"y": (1, 40)})
    subject = Subject(model)
    assert reducible(subject, subject.inspect()) == ["pointwise"]  # the product multiplies hardly anything
    names = [layer.name for layer in subject.layers()]
    assert names == ["pointwise", "dense", "product"]

    def promising(name: str, save: float) -> list[str]:
        return subject.promising(names, METHODS[name](save=save), 0)

    assert promising("svd", 0.5) == ["pointwise", "product"]
    assert promising("zhang", 0.5) == promising("jaderberg", 0.5) == promising("column-sparse", 0.5)[1:] == []
    assert promising("column-sparse", 0.8) == ["pointwise", "dense"]  # fewer than by tiles of 4x4 outputs
    assert subject.promising(names, METHODS["exact"](), 0) == ["dense"]
