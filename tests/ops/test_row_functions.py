"""Reference == function body in stock onnxruntime, for the operators on rows."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perfonnx
from tests.ops.cases import assert_close
from tests.ops.row_cases import OPERATORS, RowCase, row_cases


@pytest.mark.parametrize("op", OPERATORS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_function_body_equals_reference(op: str, data: st.DataObject) -> None:
    case: RowCase = data.draw(row_cases(op))
    pools = "Pool" in op
    case.opset = data.draw(st.sampled_from([10, 11, 13, 17, 21] if pools else [7, 9, 10, 11, 12, 13, 15, 21]))
    model = case.model(fallback=True)
    session = perfonnx.session(model, threads=1, library=False)
    assert_close(session.run(None, case.feed)[0], case.expected)


@pytest.mark.parametrize("op", OPERATORS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_shape_inference_agrees_with_the_result(op: str, data: st.DataObject) -> None:
    case: RowCase = data.draw(row_cases(op))
    for fallback in (False, True):
        model = case.model(fallback=fallback)
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True, data_prop=True)
        shape = inferred.graph.output[0].type.tensor_type.shape
        assert shape.dim[0].dim_param == "N"
        assert [d.dim_value for d in shape.dim[1:]] == list(case.expected.shape[1:])
