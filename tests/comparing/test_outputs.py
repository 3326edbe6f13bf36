"""Which outputs may be a classifier's, and which may vary in size."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from perfonnx.comparing.outputs import classifier_outputs, varying_outputs
from tests.models import small


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        (["Conv", "GlobalAveragePool"], True),
        (["Conv", "GlobalAveragePool", "Softmax"], True),
        (["Conv", "Flatten", "Identity"], True),
        (["Conv", "Sigmoid"], False),
        (["Relu"], False),
        ([], False),
    ],
)
def test_which_outputs_look_like_a_classifiers(chain: list[str], found: bool) -> None:
    names = ["x", *(f"t{index}" for index in range(1, len(chain))), "y"]
    nodes = [
        helper.make_node(kind, [source, "w"] if kind == "Conv" else [source], [target])
        for kind, source, target in zip(chain, names, names[1:], strict=False)
    ]
    model = small.make(nodes, {}, input_shape=[1], output_shape=[1])
    assert classifier_outputs(model) == ({"y"} if found else set())


def test_matmul_with_a_separate_bias_is_a_classifier() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    assert classifier_outputs(small.make(nodes, {}, input_shape=[1], output_shape=[1])) == {"y"}


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([helper.make_node("NonZero", ["x"], ["y"])], True),
        ([helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])], False),
        (
            [
                helper.make_node("Cast", ["x"], ["s"], to=TensorProto.INT64),
                helper.make_node("ConstantOfShape", ["s"], ["z"]),
                helper.make_node("Relu", ["z"], ["y"]),
            ],
            True,
        ),
        (
            [
                helper.make_node("NonZero", ["x"], ["z"]),
                helper.make_node("Shape", ["z"], ["s"]),
                helper.make_node("Expand", ["x", "s"], ["y"]),
            ],
            True,
        ),
        ([helper.make_node("Boxes", ["x"], ["y"], domain="elsewhere")], True),
    ],
)
def test_which_outputs_may_vary_in_size(nodes: list[onnx.NodeProto], found: bool) -> None:
    model = small.make(nodes, {}, input_shape=["N", 4], output_shape=["N", None])
    assert varying_outputs(model) == ({"y"} if found else set())
    declared = small.make(nodes, {}, input_shape=["N", 4], output_shape=["N", 4])
    assert varying_outputs(declared) == set()
