"""Reference == kernel in onnxruntime, for every operator, geometry and instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perfonnx
from perfonnx import _engine, ops
from perfonnx.ops.common import Activation, ConvAttributes
from tests.ops.cases import Case, assert_close, cases
from tests.processes import run_python


@pytest.mark.parametrize("op", list(ops.CANONICAL))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_kernel_equals_reference(op: str, data: st.DataObject) -> None:
    case: Case = data.draw(cases(op))
    threads = data.draw(st.sampled_from([1, 2]))
    session = perfonnx.session(case.model(fallback=False), threads=threads)
    assert_close(session.run(None, {"X": case.x})[0], case.reference())


@pytest.mark.parametrize("op", list(ops.CANONICAL))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_three_ways_agree(op: str, data: st.DataObject) -> None:
    """With a function body in the model the kernel still runs, and both give the reference's answer."""
    case: Case = data.draw(cases(op))
    model = case.model(fallback=True)
    by_kernel = perfonnx.session(model, threads=1).run(None, {"X": case.x})[0]
    by_function = perfonnx.session(model, threads=1, library=False).run(None, {"X": case.x})[0]
    assert_close(by_kernel, case.reference())
    assert_close(by_function, case.reference())


@pytest.mark.parametrize("isa", _engine.available_isas()[:-1])
def test_lower_instruction_sets_agree_too(isa: str) -> None:
    """The choice is made once per process, so each instruction set gets a process of its own."""
    program = (
        "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'kernel_equals', "
        f"{__file__!r}]))"
    )
    done = run_python(program, PERFONNX_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_skipped_position_is_never_computed() -> None:
    """A NaN that only skipped positions would see does not show."""
    x = np.ones((1, 1, 4, 4), np.float32)
    x[0, 0, 3, 3] = np.nan
    mask = np.ones((4, 4), bool)
    mask[3, 3] = False
    constants = {"W": np.ones((1, 1, 1, 1), np.float32), "B": None, "mask": mask, "fill": None}
    case = Case("SparseConv", x, constants, ConvAttributes((1, 1)), Activation())
    assert np.isfinite(perfonnx.session(case.model(fallback=False)).run(None, {"X": x})[0]).all()
