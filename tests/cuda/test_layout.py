"""Between maps and rows by the CUDA kernels, run on the host, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda import host
from tests.engine.reference import activate, picked, rows_of


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("channels", [1, 33, 64])
@pytest.mark.parametrize("taken", ["all", "some"])
def test_compact(dtype: type, channels: int, taken: str) -> None:
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((2, channels, 9, 11)).astype(dtype)
    sites = rng.choice(99, 40, replace=False).astype(np.int32) if taken == "some" else None
    got = host.compact(x, sites)
    np.testing.assert_array_equal(got, rows_of(x, slice(None) if sites is None else sites))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("channels", [1, 33])
@pytest.mark.parametrize("per_position", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("filled", [False, True])
def test_expand(dtype: type, channels: int, per_position: int, weighted: bool, filled: bool) -> None:
    rng = np.random.default_rng(channels)
    rows = rng.standard_normal((2, 20, channels)).astype(dtype)
    source = rng.integers(-1, 20, (70, per_position)).astype(np.int32)
    source[::5] = -1
    weight = rng.standard_normal(source.shape).astype(np.float32) if weighted else None
    fill = rng.standard_normal(channels).astype(np.float32) if filled else None
    activation = (0.5, -0.75, 1.5)
    values = picked(rows.astype(np.float64), source)
    if weight is not None:
        values = values * weight[..., None]
    expected = activate(values.sum(axis=2), activation)
    if fill is not None:
        expected[:, (source < 0).all(axis=1)] = fill
    got = host.expand(rows, source, weight, fill, activation)
    tolerance = 1e-6 if dtype == np.float32 else 2e-3
    np.testing.assert_allclose(got, expected.transpose(0, 2, 1), rtol=tolerance, atol=tolerance)


def test_no_images_and_no_sites_are_no_work() -> None:
    assert host.compact(np.zeros((0, 3, 2, 2), np.float32)).shape == (0, 4, 3)
    assert host.compact(np.zeros((1, 3, 2, 2), np.float32), np.zeros(0, np.int32)).shape == (1, 0, 3)
    assert host.expand(np.zeros((0, 3, 2), np.float32), np.zeros((4, 1), np.int32)).shape == (0, 2, 4)
