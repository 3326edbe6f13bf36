"""Sizes that no network has: refused at once, or done at once; and sessions without number."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from perfonnx.errors import PerfonnxError
from perfonnx.runtime import session
from tests.runtime.nodes import model

BORDER = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1}
W = np.ones((2, 2, 3, 3), np.float32)
MANY = 1 << 20
"""With a map of 1000 x 1000 so many that a loop over them would take minutes."""


@contextmanager
def _at_once() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < 2


def _refusal(candidate: onnx.ModelProto) -> str:
    with _at_once(), pytest.raises(PerfonnxError) as caught:
        session(candidate)
    return str(caught.value)


def _run(op: str, constants: dict[str, Any], x: tuple[int, ...], **attributes: Any) -> tuple[int, ...]:
    rank = ["a", "b", "c", "d"][: len(x)]
    running = session(model(op, constants, x_shape=rank, **attributes), threads=2)
    value = np.empty(x, np.float32)
    with _at_once():
        return tuple(running.run(None, {"X": value})[0].shape)


def test_nothing_times_very_much_is_nothing() -> None:
    sites, shape = np.arange(64, dtype=np.int32), np.array([1000, 1000])
    assert _run("Compact", {"sites": sites}, (MANY, 0, 1000, 1000)) == (MANY, 64, 0)
    assert _run("Compact", {"sites": None, "shape": shape}, (MANY, 0, 1000, 1000)) == (MANY, 10**6, 0)
    assert _run("Compact", {"sites": sites[:0]}, (0, MANY, 1000, 1000)) == (0, 0, MANY)
    source = np.full((10**6, 1), -1, np.int32)
    assert _run("ExpandRows", {"source": source, "shape": shape}, (MANY, 7, 0)) == (MANY, 0, 1000, 1000)
    assert _run("ExpandRows", {"source": source[:0], "shape": shape * 0}, (MANY, 0, MANY)) == (MANY, MANY, 0, 0)
    pool = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [0] * 4, "ceil_mode": 0}
    tables = {"in_source": np.zeros(10**6, np.int32), "in_shape": shape, "sites": None}
    assert _run("SampledMaxPool", tables, (MANY, 1, 0), dilations=[1, 1], **pool) == (MANY, 998 * 998, 0)
    tables = {"W": W, "B": None, "in_source": tables["in_source"], "in_shape": shape, "sites": sites[:0]}
    assert _run("SampledConv", tables, (MANY, 1, 2), **BORDER) == (MANY, 0, 2)
    mask = np.zeros((0, 1000), bool)
    assert _run("SparseConv", {"W": W, "B": None, "mask": mask}, (MANY, 2, 0, 0), **BORDER | {"pads": [0, 2, 0, 1000]})[
        2:
    ] == (0, 1000)


def _masked(op: str, mask: np.ndarray) -> dict[str, Any]:
    tables: dict[str, Any] = {"W": W, "B": None, "mask": mask}
    return tables | ({"source": np.zeros((mask.size, 1), np.int32)} if op == "PerforatedConv" else {})


@pytest.mark.parametrize("group", [2**62, 2**63 - 1, -(2**62), 0])
@pytest.mark.parametrize(
    ("op", "tables"),
    [
        ("PerforatedConv", _masked("PerforatedConv", np.ones((1, 1), bool))),
        ("SparseConv", _masked("SparseConv", np.ones((1, 1), bool))),
        ("RadiusAdaptiveConv", {"W": W, "B": None, "W_alpha": np.ones((1, 2, 1, 1), np.float32)}),
        ("SampledConv", {"W": W, "B": None, "in_source": None, "in_shape": np.array([1, 1])}),
    ],
)
def test_groups_that_overflow(op: str, tables: dict[str, Any], group: int) -> None:
    assert f"'group': {group} does not divide" in _refusal(model(op, tables, **{**BORDER, "group": group}))


@pytest.mark.parametrize("op", [pytest.param("PerforatedConv", marks=pytest.mark.slow), "SparseConv"])
def test_tables_beyond_reason(op: str) -> None:
    """Sixteen million sites are a small file; with a kernel of 5 x 5 their table would take 1.6 GB."""
    mask = np.ones((4096, 4096), bool)
    tables = _masked(op, mask) | {"W": np.ones((1, 1, 5, 5), np.float32)}
    assert "'mask'" in _refusal(model(op, tables, **BORDER | {"kernel_shape": [5, 5], "pads": [2] * 4}))


def test_a_map_of_no_entries_may_not_be_endless() -> None:
    tables = {"source": np.empty((2**31 - 1, 0), np.int32), "shape": np.array([2**31 - 1, 1])}
    assert "'source'" in _refusal(model("ExpandRows", tables, x_shape=["a", "b", "c"]))


def test_pads_far_wider_than_the_map() -> None:
    """An output of 40000 x 40000 from 3 x 3 pixels."""
    pads = BORDER | {"pads": [20000] * 4}
    running = session(model("RadiusAdaptiveConv", {"W": W, "B": None, "W_alpha": W[:1, :, :1, :1]}, **pads))
    with _at_once(), pytest.raises(Exception, match=r"'X': .*2\^28"):
        running.run(None, {"X": np.ones((1, 2, 3, 3), np.float32)})
    tables = {"W": W, "B": None, "in_source": None, "in_shape": np.array([3, 3])}
    assert "'in_shape'" in _refusal(model("SampledConv", tables, x_shape=["a", "b", "c"], **pads))


@pytest.mark.parametrize("op", ["SampledAveragePool", "SampledMaxPool"])
def test_large_windows_are_sorted_quickly_and_right(op: str) -> None:
    """A window over the whole of a map whose rows stand in any order, some of them often."""
    rng = np.random.default_rng(0)
    source = rng.integers(-1, 3000, 1 << 20).astype(np.int32)
    tables = {"in_source": source, "in_shape": np.array([1024, 1024]), "sites": np.zeros(3, np.int32)}
    x = rng.standard_normal((1, 3000, 2)).astype(np.float32)
    own = {"count_include_pad": 0} if "Average" in op else {"dilations": [1, 1]}
    pool = {"kernel_shape": [1024, 1024], "strides": [1, 1], "pads": [0] * 4, "ceil_mode": 0, **own}
    with _at_once():
        running = session(model(op, tables, x_shape=["a", "b", "c"], **pool))
    counts = np.bincount(source + 1, minlength=3001)[1:]
    whole = np.append(x[0], np.zeros((1, 2), np.float32), axis=0)
    expected = counts @ x[0].astype(np.float64) / source.size if "Average" in op else whole.max(axis=0)
    np.testing.assert_allclose(running.run(None, {"X": x})[0][0], np.tile(expected, (3, 1)), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_thousand_sessions_leave_nothing_behind() -> None:
    """onnxruntime unloads the library with the last session; what it leaves then adds up."""
    data = model("SparseConv", _masked("SparseConv", np.ones((4, 4), bool)), **BORDER).SerializeToString()

    def cycle(count: int) -> int:
        for _ in range(count):
            running = session(data, threads=1)
            running.run(None, {"X": np.ones((1, 2, 4, 4), np.float32)})
            del running
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    before = cycle(200)
    assert cycle(2000) - before < 8 << 20  # 140 MB when 72 KB stay of each
