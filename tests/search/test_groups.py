"""Groups of layers whose outputs meet, and the search that chooses for all of a group at once."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from perfonnx.methods.perforate import Perforate
from perfonnx.model import files
from perfonnx.plan import Plan
from perfonnx.search import Outcome, Quality, Space, Speed, Task, tune
from perfonnx.search.groups import alone, by_layer, meeting_layers, together
from tests.passes import nets
from tests.search.test_tune import samples


def pointwise(x: str, y: str, weight: str, name: str) -> NodeProto:
    node = nets.conv(x, y, weight, name=name, pads=[0] * 4)
    node.attribute[0].ints[:] = [1, 1]
    return node


def fire() -> ModelProto:
    """A squeeze layer, two expanding layers whose outputs are concatenated, and a classifier of five classes."""
    nodes = [
        pointwise("x", "s", "ws", "squeeze"),
        pointwise("s", "a", "wa", "expand1"),
        nets.conv("s", "b", "wb", name="expand3"),
        nets.node("Relu", ["b"], ["rb"]),
        nets.node("Concat", ["a", "rb"], ["c"], axis=1),
        nets.node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        nets.conv("p", "d", "wd", name="last"),
        nets.node("GlobalAveragePool", ["d"], ["g"]),
        pointwise("g", "y", "wy", "head"),
    ]
    weights = {
        "ws": nets.values(8, 3, 1, 1),
        "wa": nets.values(8, 8, 1, 1),
        "wb": nets.values(8, 8, 3, 3),
        "wd": nets.values(12, 16, 3, 3),
        "wy": nets.values(5, 12, 1, 1),
    }
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 16, 14)}, outputs={"y": ("N", 5, 1, 1)})


def residual() -> ModelProto:
    """Two residual blocks behind a first layer: one stream, which all sums are part of."""
    nodes = [nets.conv("x", "r0", "w3", name="first")]
    for block in (1, 2):
        nodes += [
            nets.conv(f"r{block - 1}", f"a{block}", "w8", name=f"{block}a"),
            nets.node("Relu", [f"a{block}"], [f"ra{block}"]),
            nets.conv(f"ra{block}", f"b{block}", "w8", name=f"{block}b"),
            nets.node("Add", [f"r{block - 1}", f"b{block}"], [f"r{block}"]),
        ]
    nodes.append(nets.conv("r2", "y", "w8", name="last"))
    weights = {"w3": nets.values(8, 3, 3, 3), "w8": nets.values(8, 8, 3, 3)}
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 16, 14)}, outputs={"y": ("N", 8, 16, 14)})


def test_layers_meet_in_concat_and_in_residual_streams() -> None:
    assert meeting_layers(files.load(fire())) == [("expand1", "expand3")]
    assert meeting_layers(files.load(residual())) == [("first", "1b", "2b")]


def test_a_group_with_a_layer_that_cannot_be_rewritten_is_left_out() -> None:
    model = fire()
    model.graph.input.append(helper.make_tensor_value_info("wa", TensorProto.FLOAT, (8, 8, 1, 1)))
    model.graph.initializer.remove(next(i for i in model.graph.initializer if i.name == "wa"))
    assert meeting_layers(files.load(model)) == []


def test_units_are_groups_and_the_other_layers_in_running_order() -> None:
    order = ["a", "b", "c", "d", "e", "f"]
    units = together(["a", "c", "f"], [("b", "c"), ("d", "e", "f")], order)
    assert units == {"a": ("a",), "b + c": ("b", "c"), "d + 2 more": ("d", "e", "f")}
    assert alone(["a", "c"]) == {"a": ("a",), "c": ("c",)}
    choice = Perforate(0.5)
    assert by_layer(units, {"b + c": choice}) == {"b": choice, "c": choice}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"repair": "bias"}, True),
        ({"repair": "predictor"}, False),
        ({"interpolation": "barycentric"}, False),
        ({"mask": "masks.npz"}, False),
    ],
)
def test_predictors_and_barycentric_layers_share_no_rows(changes: dict[str, str], expected: bool) -> None:
    assert Perforate(0.5, **changes).shareable == expected  # type: ignore[arg-type]


class OnlyTogether:
    """A network that is faster only where both layers that meet are sampled, at one rate."""

    def gain(self, plan: Plan) -> float:
        rates = {plan.layers[name].rate if name in plan.layers else 0.0 for name in ("expand1", "expand3")}
        return 0.4 * rates.pop() if len(rates) == 1 else -0.1

    def __call__(self, task: Task) -> Outcome:
        loss = sum(0.01 * choice.rate for choice in task.plan.layers.values())
        return Outcome(Quality(task.images, 1.0, 1 - loss, loss, 0.001, loss), 0.1)

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        ratio = 1 / (1 - self.gain(plan))
        return Speed(ratio, ratio * 0.999, ratio * 1.001, 10 / ratio, 10.0, 9)

    def layers(self, plan: Plan) -> dict[str, float]:
        return {"squeeze": 0.1, "expand1": 0.1, "expand3": 0.6 - self.gain(plan), "last": 0.1, "head": 0.1}


def test_what_is_gained_only_by_a_group_is_found() -> None:
    tool = OnlyTogether()
    space = Space(masks=("lattice",), rates=(0.25, 0.5, 0.75), repairs=("bias",), methods=("perforate",))
    tuned = tune(fire(), None, samples(), max_drop=0.011, space=space, evaluator=tool, timer=tool)
    assert {name: choice.rate for name, choice in tuned.plan.layers.items()} == {"expand1": 0.5, "expand3": 0.5}
    assert tuned.units["expand1 + expand3"] == ("expand1", "expand3")
    np.testing.assert_array_equal(tuned.result.masks["expand1"], tuned.result.masks["expand3"])
