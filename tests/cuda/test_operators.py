"""The operators on the device, as onnxruntime runs them: reference == operator, the kernels being run on the host."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx import ops
from perfonnx.ops.common import Activation, ConvAttributes
from tests.cuda.library import session
from tests.ops.cases import Case, assert_close, cases
from tests.ops.row_cases import OPERATORS, RowCase, row_cases


@pytest.mark.parametrize("op", list(ops.CANONICAL))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_operators_on_maps_equal_the_reference(op: str, data: st.DataObject) -> None:
    case: Case = data.draw(cases(op))
    assert_close(session(case.model(fallback=False)).run(None, {"X": case.x})[0], case.reference())


@pytest.mark.parametrize("op", OPERATORS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_operators_on_rows_equal_the_reference(op: str, data: st.DataObject) -> None:
    case: RowCase = data.draw(row_cases(op))
    assert_close(session(case.model(fallback=False)).run(None, case.feed)[0], case.expected)


def _perforated(size: int = 6) -> Case:
    rng = np.random.default_rng(3)
    mask = rng.random((size, size)) < 0.5
    mask[0, 0] = True
    constants = {
        "W": rng.standard_normal((5, 4, 3, 3)).astype(np.float32),
        "B": rng.standard_normal(5).astype(np.float32),
        "mask": mask,
        "source": np.where(mask, np.arange(size * size).reshape(size, size), 0).reshape(-1, 1).astype(np.int32),
        "weight": None,
    }
    x = rng.standard_normal((2, 4, size, size)).astype(np.float32)
    return Case("PerforatedConv", x, constants, ConvAttributes((3, 3), pads=(1, 1, 1, 1)), Activation())


def test_threads_that_meet_in_the_first_run_pack_the_weights_once() -> None:
    case = _perforated()
    shared = session(case.model(fallback=False))
    expected = case.reference()
    results: list[np.ndarray] = []

    def work() -> None:
        results.append(shared.run(None, {"X": case.x})[0])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for result in results:
        assert_close(result, expected)


def test_a_map_of_another_size_is_refused() -> None:
    model = _perforated().model(fallback=False)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(Exception, match="the layer was made for 6 x 6"):
        session(model).run(None, {"X": np.zeros((1, 4, 7, 6), np.float32)})


def test_maps_of_several_sizes_have_tables_of_their_own() -> None:
    rng = np.random.default_rng(4)
    constants = {
        "W": rng.standard_normal((5, 4, 3, 3)).astype(np.float32),
        "B": None,
        "W_alpha": rng.standard_normal((1, 4, 1, 1)).astype(np.float32),
        "B_alpha": None,
        "B_ring": None,
    }
    x = rng.standard_normal((2, 4, 6, 7)).astype(np.float32)
    case = Case("RadiusAdaptiveConv", x, constants, ConvAttributes((3, 3), pads=(1, 1, 1, 1)), Activation())
    model = case.model(fallback=False)
    for dim in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[dim].dim_param = f"D{dim}"
    shared = session(model)
    for height, width in [(6, 7), (3, 4), (6, 7)]:
        case.x = rng.standard_normal((1, 4, height, width)).astype(np.float32)
        assert_close(shared.run(None, {"X": case.x})[0], case.reference())
