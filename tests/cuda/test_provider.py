"""The operators on onnxruntime's CUDA provider, where there is one with a GPU."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import perfonnx
from perfonnx import ops, runtime
from perfonnx.errors import PerfonnxError
from perfonnx.ops.common import Activation, ConvAttributes
from tests.ops.cases import Case, assert_close, cases
from tests.ops.row_cases import OPERATORS, RowCase, row_cases


@functools.cache
def _missing() -> str | None:
    """Why these tests cannot run here."""
    node = onnx.helper.make_node("Relu", ["X"], ["Y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("X", "Y")]
    graph = onnx.helper.make_graph([node], "probe", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    try:
        with runtime.with_provider("cuda"):
            runtime.session(model, library=False, providers=runtime.provider_list("cuda"))
    except PerfonnxError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def _on_cuda() -> None:
    reason = _missing()
    if reason is not None:
        pytest.skip(reason)


def _session(model: onnx.ModelProto, **settings: str) -> ort.InferenceSession:
    providers = [
        ("CUDAExecutionProvider", {"use_tf32": "0", **settings})
    ]  # the CPU's may not be named where it may not be used
    options = runtime.quiet_options()
    perfonnx.register(options)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # our operators have to be there
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers)


@pytest.mark.parametrize("op", list(ops.CANONICAL))
@hypothesis_settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_operators_on_maps_equal_the_reference(op: str, data: st.DataObject) -> None:
    case: Case = data.draw(cases(op))
    assert_close(_session(case.model(fallback=False)).run(None, {"X": case.x})[0], case.reference())


@pytest.mark.parametrize("op", OPERATORS)
@hypothesis_settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_operators_on_rows_equal_the_reference(op: str, data: st.DataObject) -> None:
    case: RowCase = data.draw(row_cases(op))
    assert_close(_session(case.model(fallback=False)).run(None, case.feed)[0], case.expected)


def test_memory_that_is_not_there_is_onnxruntime_s_error() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "W": rng.standard_normal((1024, 1024, 3, 3)).astype(np.float32),
        "B": None,
        "mask": np.ones((8, 8), bool),
    }
    x = np.zeros((1, 1024, 8, 8), np.float32)
    case = Case(
        "SparseConv",
        x,
        {**constants, "fill": None},
        ConvAttributes((3, 3), pads=(1, 1, 1, 1)),
        Activation(),
    )
    options = runtime.quiet_options()
    perfonnx.register(options)
    with pytest.raises(Exception, match=r"(?i)memory|arena"):
        ort.InferenceSession(
            case.model(fallback=False).SerializeToString(),
            options,
            providers=[("CUDAExecutionProvider", {"gpu_mem_limit": str(2**20)})],
        )


def test_a_run_that_lacks_memory_fails_and_the_session_goes_on() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((16, 16)) < 0.75
    constants = {"W": rng.standard_normal((64, 64, 3, 3)).astype(np.float32), "B": None, "mask": mask, "fill": None}
    x = rng.standard_normal((2, 64, 16, 16)).astype(np.float32)
    case = Case("SparseConv", x, constants, ConvAttributes((3, 3), pads=(1, 1, 1, 1)), Activation())
    model = case.model(fallback=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    session = _session(model, gpu_mem_limit=str(2**25), arena_extend_strategy="kSameAsRequested")
    before = session.run(None, {"X": x})[0]
    failed = []
    # The largest first: what the arena holds for its input then serves those after it, until the operator's output
    # finds a place and its scratch memory does not.
    for images in range(448, 32, -16):
        try:
            session.run(None, {"X": np.zeros((images, 64, 16, 16), np.float32)})
        except Exception as error:  # of a type that onnxruntime does not export
            failed.append(str(error))
    assert failed
    assert all("vailable memory" in message for message in failed)
    assert any("SparseConv node" in message for message in failed)
    np.testing.assert_array_equal(session.run(None, {"X": x})[0], before)
