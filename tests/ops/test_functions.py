"""Reference == function body in stock onnxruntime, for every operator, geometry and opset."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from perfonnx import ops
from perfonnx.ops.common import Activation, ConvAttributes
from tests.ops.cases import Case, assert_close, cases


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The model in onnxruntime without the library."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"X": x})[0]


@pytest.mark.parametrize("op", list(ops.CANONICAL))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_function_body_equals_reference(op: str, data: st.DataObject) -> None:
    case: Case = data.draw(cases(op))
    case.opset = data.draw(st.sampled_from([7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 21]))
    assert_close(run(case.model(fallback=True), case.x), case.reference())


@pytest.mark.parametrize("op", list(ops.CANONICAL))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_onnx_evaluates_body_and_reference_alike(op: str, data: st.DataObject) -> None:
    case: Case = data.draw(cases(op))
    model = case.model(fallback=True)
    onnx.checker.check_model(model, full_check=True)
    reference = ReferenceEvaluator(model, new_ops=ops.REFERENCE_OPS).run(None, {"X": case.x})[0]
    assert_close(reference, case.reference())
    if case.x.shape[0]:  # onnx's own Conv cannot do an empty batch
        body = ReferenceEvaluator(model).run(None, {"X": case.x})[0]
        assert_close(body.astype(case.x.dtype), case.reference())


@pytest.mark.parametrize("op", list(ops.CANONICAL))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_shape_inference_agrees_with_the_result(op: str, data: st.DataObject) -> None:
    case: Case = data.draw(cases(op))
    model = onnx.shape_inference.infer_shapes(case.model(fallback=False), strict_mode=True, check_type=True)
    shape = model.graph.output[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "N"
    assert [d.dim_value for d in shape.dim[1:]] == list(case.reference().shape[1:])


def test_shape_inference_refuses_a_mask_of_another_size() -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    constants = {"W": np.zeros((1, 1, 3, 3), np.float32), "B": None, "mask": np.ones((4, 4), bool), "fill": None}
    geometry = ConvAttributes((3, 3))
    case = Case("SparseConv", x, constants, geometry, Activation())
    with pytest.raises(onnx.shape_inference.InferenceError, match="mask is 4 long on axis 0, the output 2"):
        onnx.shape_inference.infer_shapes(case.model(fallback=False), strict_mode=True)
