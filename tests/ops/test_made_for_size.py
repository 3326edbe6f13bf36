"""What was made for one height and width refuses another: kernel, function body and reference alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import perfonnx
from perfonnx.ops.bodies import MISFIT
from perfonnx.ops.common import Activation, ConvAttributes
from perfonnx.ops.compact import COMPACT
from perfonnx.ops.rows import body_rows
from tests.engine.reference import nearest_source
from tests.ops.cases import Case
from tests.ops.row_cases import RowCase
from tests.passes import nets

OPSETS = [7, 8, 9, 11, 13, 21]
OTHERS = [(8, 4), (4, 4), (8, 8), (16, 2), (2, 16), (4, 9), (5, 8), (1, 32), (32, 1), (1, 1)]
"""Height and width beside 4 x 8: of as many positions, of fewer, of more."""
MASK = np.ones((4, 8), bool)
MASK[1::2] = False


def _case(op: str, opset: int, shape: tuple[int, int]) -> Case | RowCase:
    """The operator for maps of 4 x 8, and an input of another size."""
    x = np.ones((2, 3, *shape), np.float32)
    if op == "Compact":
        inputs = {"X": x, "sites": np.arange(0, 32, 5, dtype=np.int32), "shape": np.array([4, 8], np.int64)}
        return RowCase(op, inputs, {}, np.empty(0), opset)
    constants: dict[str, np.ndarray | None] = {"W": np.ones((2, 3, 1, 1), np.float32), "B": None, "mask": MASK}
    if op == "PerforatedConv":
        constants.update(source=nearest_source(MASK), weight=None)
    else:
        constants.update(fill=None)
    extra = {"interpolation": "nearest"} if op == "PerforatedConv" else {}
    return Case(op, x, constants, ConvAttributes((1, 1)), Activation(), extra, opset)


def _free(case: Case | RowCase, *, fallback: bool) -> onnx.ModelProto:
    """Its model, which says nothing of the input's size."""
    model = case.model(fallback=fallback)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    return model


def _refusal(model: onnx.ModelProto, feed: dict[str, np.ndarray], *, library: bool) -> str:
    running = perfonnx.session(model, library=library, threads=1)
    with pytest.raises(Exception) as caught:
        running.run(None, feed)
    return str(caught.value)


@pytest.mark.parametrize("op", ["Compact", "PerforatedConv", "SparseConv"])
@pytest.mark.parametrize("shape", OTHERS, ids=str)
def test_kernels_refuse_another_size_and_say_both(op: str, shape: tuple[int, int]) -> None:
    case = _case(op, 17, shape)
    message = _refusal(_free(case, fallback=False), {"X": np.ones((2, 3, *shape), np.float32)}, library=True)
    assert f"{op} node 'the_node'" in message
    assert f"{shape[0]} x {shape[1]}, but the layer was made for 4 x 8; rewrite the model for this size" in message
    assert "--input-shape" in message


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op", ["Compact", "PerforatedConv", "SparseConv"])
def test_function_bodies_refuse_another_size(op: str, opset: int) -> None:
    model = _free(_case(op, opset, (4, 8)), fallback=True)
    for shape in OTHERS:
        assert _refusal(model, {"X": np.ones((2, 3, *shape), np.float32)}, library=False)
    running = perfonnx.session(model, library=False, threads=1)
    for batch in (1, 2, 3):
        assert running.run(None, {"X": np.ones((batch, 3, 4, 8), np.float32)})[0].shape[0] == batch


def test_a_misfit_that_no_standard_operator_would_notice_is_named() -> None:
    model = _free(_case("Compact", 17, (4, 8)), fallback=True)
    message = _refusal(model, {"X": np.ones((1, 3, 8, 4), np.float32)}, library=False)
    assert MISFIT in message


@pytest.mark.parametrize("shape", OTHERS, ids=str)
def test_compact_refuses_in_reference_and_inference(shape: tuple[int, int]) -> None:
    x, made_for = np.ones((1, 3, *shape), np.float32), np.array([4, 8])
    with pytest.raises(ValueError, match="made for 4 x 8"):
        COMPACT.reference(x, np.zeros(1, np.int32), made_for)
    with pytest.raises(onnx.shape_inference.InferenceError, match="made for 4 x 8"):
        onnx.shape_inference.infer_shapes(_case("Compact", 17, shape).model(fallback=False), strict_mode=True)


def _region(opset: int) -> onnx.ModelProto:
    """Two sampled layers behind a Relu, for maps of 8 x 16."""
    nodes = [
        nets.node("Relu", ["x"], ["r"]),
        nets.conv("r", "a", "v", name="first"),
        nets.conv("a", "y", name="second"),
    ]
    weights = {"v": nets.values(4, 3, 3, 3), "w": nets.values(4, 4, 3, 3)}
    shapes: dict[str, Any] = {"inputs": {"x": ("N", 3, 8, 16)}, "outputs": {"y": ("N", 4, 8, 16)}}
    return perfonnx.rewrite(nets.model(nodes, weights, opset=opset, **shapes), rate=0.5).proto


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("opset", [7, 13])
def test_a_rows_region_refuses_maps_it_was_not_made_for(opset: int, library: bool) -> None:
    model = _region(opset)
    assert {node.op_type for node in nets.ours(model)} == {"Compact", "SampledConv", "ExpandRows"}
    for value in (*model.graph.input, *model.graph.output):  # what a user does who wants any size
        for dim in value.type.tensor_type.shape.dim[2:]:
            dim.Clear()
    del model.graph.value_info[:]
    running = perfonnx.session(model, library=library, threads=1)
    for batch in (1, 3):
        assert running.run(None, {"x": np.ones((batch, 3, 8, 16), np.float32)})[0].shape == (batch, 4, 8, 16)
    for shape in ((16, 8), (16, 16), (8, 8), (32, 4)):
        with pytest.raises(Exception) as caught:
            running.run(None, {"x": np.ones((2, 3, *shape), np.float32)})
        if library:
            assert "node 'first/" in str(caught.value)
            assert f"{shape[0]} x {shape[1]}, but the layer was made for 8 x 16" in str(caught.value)


@pytest.mark.parametrize("library", [True, False])
def test_models_from_before_the_size_was_asked_still_run_and_learn_it_when_rewritten(library: bool) -> None:
    model = _region(13)
    current = model.SerializeToString()
    (compact,) = (node for node in model.graph.node if node.op_type == "Compact")
    del compact.input[2]
    (body,) = (f for f in model.functions if f.name == "Compact")
    older = replace(COMPACT, inputs=COMPACT.inputs[:2], body=lambda f, _: body_rows(f, "X", "sites"))
    body.CopyFrom(older.function_body(13, onnx.TensorProto.FLOAT))
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 16), np.float32)}
    expected = perfonnx.session(current, library=library, threads=1).run(None, feed)[0]
    np.testing.assert_array_equal(perfonnx.session(model, library=library, threads=1).run(None, feed)[0], expected)
    model.graph.node.append(nets.conv("y", "z", name="third"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", 1, ("N", 4, 8, 16)))
    again = perfonnx.rewrite(model, rate=0.5, only=["third"]).proto
    (compact,) = (node for node in again.graph.node if node.op_type == "Compact")
    assert len(compact.input) == 3
    assert perfonnx.session(again, library=library, threads=1).run(None, feed)[0].shape == (2, 4, 8, 16)
