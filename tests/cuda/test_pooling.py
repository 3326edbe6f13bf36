"""Pooling of rows by the CUDA kernels, run on the host, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda import host
from tests.engine.reference import picked


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("channels", [1, 7, 40])
@pytest.mark.parametrize("average", [False, True])
def test_pool(dtype: type, channels: int, average: bool) -> None:
    """Windows of different lengths; rows that are zeros; a NaN, which stays."""
    rng = np.random.default_rng(channels)
    rows = rng.standard_normal((2, 12, channels)).astype(dtype)
    rows[0, 3, 0] = np.nan
    lengths = rng.integers(1, 5, 30)
    begin = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    entries = rng.integers(-1, 12, begin[-1]).astype(np.int32)
    repeats = rng.integers(1, 3, begin[-1]).astype(np.float32) if average else None
    divisors = rng.integers(1, 9, 30).astype(np.float32) if average else None
    values = picked(rows.astype(np.float64), entries)
    if repeats is not None and divisors is not None:
        expected = np.add.reduceat(values * repeats[:, None], begin[:-1], axis=1) / divisors[:, None]
    else:
        expected = np.maximum.reduceat(values, begin[:-1], axis=1)
    got = host.pool(rows, begin, entries, repeats, divisors)
    tolerance = 1e-6 if dtype == np.float32 else 2e-3
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
