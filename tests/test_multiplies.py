"""Multiplies of layers that are no 2-D convolution, against a count by hand; what is not counted is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

import perfonnx
from perfonnx.model import files
from perfonnx.model.shapes import infer_types
from perfonnx.model.workspace import Workspace
from perfonnx.multiplies import not_counted, other_multiplies
from perfonnx.render import render_inspection, render_report
from tests.passes import nets
from tests.passes.nets import node
from tests.test_inspect import shown

Dims = Sequence[int | str | None]


def _model(
    nodes: Sequence[NodeProto], inputs: dict[str, Dims], weights: dict[str, Dims], opset: int = 17
) -> ModelProto:
    return nets.model(
        nodes,
        {name: np.ones(dims, np.float32) for name, dims in weights.items()},  # type: ignore[arg-type]
        inputs={name: tuple(dims) for name, dims in inputs.items()},
        outputs={"y": None},
        opset=opset,
    )


def _counted(model: ModelProto) -> tuple[int, list[str]]:
    workspace = Workspace.open(files.load(model))
    infer_types(workspace)
    return other_multiplies(workspace), not_counted(workspace)


TURN = [node("Transpose", ["x"], ["t"], perm=[1, 0, 2])]
"""Recurrent layers have the batch behind the steps."""


@pytest.mark.parametrize(
    ("nodes", "inputs", "weights", "expected"),
    [
        ([node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": ("N", 7)}, {"w": (5, 7)}, 35),
        ([node("Gemm", ["x", "w"], ["y"], transA=1)], {"x": (7, 1)}, {"w": (7, 5)}, 5),  # a batch of 7
        ([node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 4, 7)}, {"w": (7, 5)}, 4 * 7 * 5),
        ([node("MatMul", ["x", "w"], ["y"])], {"x": (3, 4, 7)}, {"w": (7, 5)}, 4 * 7 * 5),  # a batch of 3
        ([node("MatMul", ["w", "x"], ["y"])], {"x": (1, 2, 7, 5)}, {"w": (4, 7)}, 2 * 4 * 7 * 5),
        ([node("MatMul", ["w", "x"], ["y"])], {"x": (1, 7, 5)}, {"w": (7,)}, 7 * 5),
        (
            [node("Reshape", ["x", "shape"], ["r"]), node("MatMul", ["r", "w"], ["y"])],
            {"x": ("N", 6, 7)},
            {"w": (7, 5)},
            6 * 7 * 5,  # six rows per image: the batch alone would be one
        ),
        ([node("ConvTranspose", ["x", "w"], ["y"], group=2)], {"x": ("N", 4, 5, 6)}, {"w": (4, 3, 2, 2)}, 120 * 12),
        ([node("Conv", ["x", "w"], ["y"])], {"x": ("N", 4, 12)}, {"w": (8, 4, 3)}, 0),  # among the convolutions
        (
            [*TURN, node("LSTM", ["t", "w", "r"], ["y"], hidden_size=3)],
            {"x": (2, 6, 5)},
            {"w": (1, 12, 5), "r": (1, 12, 3)},
            6 * 12 * 8,
        ),
        (
            [*TURN, node("GRU", ["t", "w", "r"], ["y"], hidden_size=3, direction="bidirectional")],
            {"x": ("N", 6, 5)},
            {"w": (2, 9, 5), "r": (2, 9, 3)},
            6 * 2 * 9 * 8,
        ),
        ([node("RNN", ["x", "w", "r"], ["y"], hidden_size=3)], {"x": (1, 1, 5)}, {"w": (1, 3, 5), "r": (1, 3, 3)}, 24),
        ([node("Einsum", ["x", "w"], ["y"], equation="bij, jk -> bik")], {"x": ("N", 4, 7)}, {"w": (7, 5)}, 140),
    ],
)
def test_against_a_count_by_hand(nodes: Any, inputs: Any, weights: Any, expected: int) -> None:
    model = _model(nodes, inputs, weights)
    if nodes[0].op_type == "Reshape":
        model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 7]))
    assert _counted(model) == (expected, [])


def test_attention_of_opset_23() -> None:
    inputs = {"x": (1, 2, 6, 4), "k": (1, 2, 9, 4), "v": (1, 2, 9, 5)}
    model = _model([node("Attention", ["x", "k", "v"], ["y"])], inputs, {}, opset=23)
    assert _counted(model) == (2 * 6 * 9 * (4 + 5), [])


@pytest.mark.parametrize(
    ("nodes", "inputs", "weights", "expected"),
    [
        ([node("MatMul", ["x", "w"], ["y"])], {"x": ("N", "T", 7)}, {"w": (7, 5)}, "1 MatMul of unknown shape"),
        (
            [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3)],
            {"x": ("N", "T", 5)},
            {"w": (1, 12, 5), "r": (1, 12, 3)},
            "1 LSTM of unknown shape",
        ),
        (
            [node("Einsum", ["x", "w"], ["y"], equation="...i,ij->...j")],
            {"x": (1, 7)},
            {"w": (7, 5)},
            "1 Einsum of unkn",
        ),
        ([helper.make_node("Fold", ["x"], ["y"], domain="elsewhere")], {"x": (1, 7)}, {}, "1 Fold of elsewhere"),
        (
            [helper.make_node("QAttention", ["x"], ["y"], domain="com.microsoft")],
            {"x": (1, 7)},
            {},
            "1 QAttention of com.microsoft",
        ),
        ([helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft")], {"x": (1, 7)}, {}, None),
    ],
)
def test_what_is_not_known_is_named(nodes: Any, inputs: Any, weights: Any, expected: str | None) -> None:
    model = _model(nodes, inputs, weights)
    for domain in {n.domain for n in nodes if n.domain}:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    _, named = _counted(model)
    if expected is None:
        assert named == []
    else:
        assert len(named) == 1
        assert named[0].startswith(expected)


def test_layers_in_bodies_and_functions_are_named() -> None:
    body = helper.make_graph(
        [node("MatMul", ["x", "w"], ["a"])], "body", [], [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Identity", ["x"], ["b"])], "body", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    branch = node("If", ["yes"], ["i"], then_branch=body, else_branch=other)
    call = helper.make_node("Block", ["i", "w"], ["y"], domain="mine")
    model = _model([branch, call], {"x": (7, 7)}, {"w": (7, 7)})
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    opsets = [helper.make_opsetid("", 17)]
    inner = [node("MatMul", ["a", "b"], ["c"]), node("MatMul", ["c", "b"], ["d"])]
    model.functions.append(helper.make_function("mine", "Block", ["a", "b"], ["d"], inner, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    _, named = _counted(model)
    assert set(named) == {"1 MatMul in the body of If", "1 call of Block, which has 2 MatMul"}


def test_reports_say_what_is_not_counted() -> None:
    """A speed-up of the convolutions alone is no speed-up of the whole model."""
    nodes = [
        nets.conv("x", "c", "w", name="conv"),
        node("Reshape", ["c", "shape"], ["s"]),
        node("LSTM", ["s", "lw", "lr"], ["y"], hidden_size=64, name="lstm"),
    ]
    weights = {
        "w": nets.values(8, 3, 3, 3),
        "lw": nets.values(1, 256, 8),
        "lr": nets.values(1, 256, 64),
        "shape": np.array([120, 1, 8]),
    }
    model = nets.model(nodes, weights, outputs={"y": None})
    report = nets.rewrite(model, rate=0.75, only=["conv"]).report
    lstm = 120 * 256 * (8 + 64)
    conv = 120 * 8 * 27
    assert report.multiplies[0] == conv + lstm
    assert report.not_counted == []
    assert report.reduction == pytest.approx((conv + lstm) / (conv // 4 + lstm), rel=1e-3)
    assert "0.75x" not in shown(render_report(report))

    nodes[1] = node("Cast", ["c"], ["s"], to=TensorProto.FLOAT)
    nodes.insert(2, node("NonZero", ["s"], ["places"]))
    nodes.insert(3, node("Cast", ["places"], ["p"], to=TensorProto.FLOAT))
    nodes[4] = node("MatMul", ["p", "m"], ["y"])
    del weights["lw"], weights["lr"], weights["shape"]
    model = nets.model(nodes, weights, outputs={"y": None}, inputs={"x": (1, 3, 12, 10), "m": ("K", 5)})
    report = nets.rewrite(model, rate=0.75, only=["conv"]).report
    assert report.not_counted == ["1 MatMul of unknown shape"]
    assert report.to_json()["not_counted"] == ["1 MatMul of unknown shape"]
    text = shown(render_report(report))
    assert "not counted: 1 MatMul of unknown shape" in text
    assert "multiplies, as far as counted" in text
    assert "at most " in text
    inspection = perfonnx.inspect(model)
    assert inspection.not_counted == ["1 MatMul of unknown shape"]
    assert "not counted: 1 MatMul of unknown shape" in shown(render_inspection(inspection))


def test_convolutions_that_are_not_2d_count_among_the_convolutions() -> None:
    model = nets.model(
        [node("Conv", ["x", "w"], ["y"], name="line", pads=[1, 1])],
        {"w": nets.values(8, 4, 3)},
        inputs={"x": (1, 4, 12)},
        outputs={"y": None},
    )
    (conv,) = perfonnx.inspect(model).convs
    assert conv.multiplies == 12 * 8 * 4 * 3
    report = nets.rewrite(model).report
    assert (report.multiplies[0], report.conv_multiplies[0]) == (conv.multiplies, conv.multiplies)


@pytest.mark.parametrize("unknown", [0, -1])
def test_a_batch_below_one_is_open(unknown: int) -> None:
    """Exporters write it where they know none."""
    nodes = [node("Reshape", ["x", "shape"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    model = _model(nodes, {"x": ("N", 6, 7)}, {"w": (7, 5)})
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 7]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = unknown
    assert _counted(model) == (6 * 7 * 5, [])
