"""The radius-adaptive convolution by the CUDA kernels, run on the host, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda import host
from tests.cuda.test_product import MODES, assert_close, reference, rounded
from tests.engine.reference import activate, picked


@pytest.mark.parametrize(("dtype", "mode"), MODES)
@pytest.mark.parametrize("center_gain", [0.0, 1.0])
@pytest.mark.parametrize(("channels", "group"), [(6, 1), (8, 2), (5, 5)])
@pytest.mark.parametrize("alpha_bias", [-9.0, 0.0, 9.0])
def test_radius(dtype: str, mode: int, center_gain: float, channels: int, group: int, alpha_bias: float) -> None:
    """No ring, some rings and all of them, at sites of several images."""
    rng = np.random.default_rng(channels)
    rows, exact_rows = rounded(rng.standard_normal((2, 30, channels)), dtype)
    w = (rng.standard_normal((2 * channels, channels // group, 9)) / np.sqrt(9 * channels)).astype(np.float32)
    _, exact_w = rounded(w, dtype)
    table = rng.integers(-1, 30, (45, 9)).astype(np.int32)
    alpha_weights = rng.standard_normal(channels).astype(np.float32)
    bias, ring_bias = rng.standard_normal((2, len(w))).astype(np.float32)
    activation = (0.25, -1.0, 2.0)
    inner = np.zeros(9)
    inner[4] = 1
    alpha = picked(exact_rows.astype(np.float64), table[:, 4]) @ alpha_weights + alpha_bias
    alpha = np.clip(alpha, 0, 1)[..., None]
    centre = reference(exact_rows, exact_w * inner, table, group)
    ring = reference(exact_rows, exact_w * (1 - inner), table, group) + ring_bias
    expected = activate((1 + center_gain * alpha) * centre + bias + alpha * ring, activation)
    got = host.radius(
        rows,
        w,
        table,
        alpha_weights,
        alpha_bias=alpha_bias,
        bias=bias,
        ring_bias=ring_bias,
        center_gain=center_gain,
        group=group,
        activation=activation,
        math_mode=mode,
    )
    assert_close(got, expected, dtype, mode)


def test_a_gate_that_is_no_number_shows() -> None:
    rows = np.ones((1, 2, 4), np.float32)
    rows[0, 0, 0] = np.nan
    table = np.repeat(np.arange(2, dtype=np.int32)[:, None], 9, axis=1)
    got = host.radius(rows, np.ones((4, 4, 9), np.float32), table, np.ones(4, np.float32))
    assert np.isnan(got[0, 0]).all()
    assert (got[0, 1] == 36).all()
