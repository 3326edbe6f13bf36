"""Products of gathered rows by the CUDA kernels, run on the host, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cuda import host
from tests.engine.reference import activate, picked
from tools.cuda_kernels import STRICT, TENSOR_CORES

MODES = [("float32", STRICT), ("float32", TENSOR_CORES), ("float16", TENSOR_CORES), ("bfloat16", TENSOR_CORES)]
TILES = {STRICT: 2, TENSOR_CORES: 9}
FEW_CHANNELS = 4
"""Tiles up to this number take any number of channels."""
ALL_TILES = [(dtype, mode, tile) for dtype, mode in MODES for tile in range(1, TILES[mode] + 1)]
TOLERANCES = {("float32", STRICT): 1e-5, ("float32", TENSOR_CORES): 1e-3, ("float16", TENSOR_CORES): 2e-3}


def rounded(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of a type, and as float32."""
    if dtype == "bfloat16":
        bits = host.to_bfloat16(values)
        return bits, host.from_bfloat16(bits)
    typed = values.astype(dtype)
    return typed, typed.astype(np.float32)


def widened(values: np.ndarray) -> np.ndarray:
    """A result as float32."""
    return host.from_bfloat16(values) if values.dtype == np.uint16 else values.astype(np.float32)


def reference(rows: np.ndarray, w: np.ndarray, table: np.ndarray, group: int = 1) -> np.ndarray:
    """[N, P, M] in float64."""
    columns = picked(rows.astype(np.float64), table)  # [N, P, taps, C]
    columns = columns.reshape(*columns.shape[:3], group, rows.shape[2] // group)
    weights = w.astype(np.float64).reshape(group, -1, *w.shape[1:])
    return np.einsum("nptgc,gmct->npgm", columns, weights).reshape(len(rows), len(table), len(w))


def assert_close(got: np.ndarray, expected: np.ndarray, dtype: str, mode: int) -> None:
    tolerance = TOLERANCES.get((dtype, mode), 1e-2) * max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(widened(got), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "mode", "tile"), ALL_TILES)
def test_every_tile(dtype: str, mode: int, tile: int) -> None:
    """Several blocks down and across, the last of them not full."""
    rng = np.random.default_rng(tile)
    rows, exact_rows = rounded(rng.standard_normal((2, 70, 40)), dtype)
    w = rng.standard_normal((300, 40, 3)).astype(np.float32) / 5
    _, exact_w = rounded(w, dtype)
    table = rng.integers(-1, 70, (75, 3)).astype(np.int32)
    bias = rng.standard_normal(len(w)).astype(np.float32)
    got = host.product(rows, w, table, bias=bias, math_mode=mode, tile=tile)
    assert_close(got, reference(exact_rows, exact_w, table) + bias, dtype, mode)


@pytest.mark.parametrize("tile", range(1, TILES[TENSOR_CORES] + 1))
@pytest.mark.parametrize("channels", [3, 64])
def test_stages_are_used_again(tile: int, channels: int) -> None:
    """Sums of more slabs than there are stages. Few channels are not for every tile."""
    rng = np.random.default_rng(channels)
    taps = 130 if channels == 3 else 19
    rows, exact_rows = rounded(rng.standard_normal((1, 50, channels)), "float16")
    w = rng.standard_normal((20, channels, taps)).astype(np.float32) / 20
    _, exact_w = rounded(w, "float16")
    table = rng.integers(-1, 50, (30, taps)).astype(np.int32)
    if channels == 3 and tile > FEW_CHANNELS:
        with pytest.raises(RuntimeError, match="invalid"):
            host.product(rows, w, table, tile=tile)
        return
    got = host.product(rows, w, table, tile=tile)
    assert_close(got, reference(exact_rows, exact_w, table), "float16", TENSOR_CORES)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    mode=st.sampled_from(MODES),
    images=st.integers(0, 3),
    sites=st.integers(0, 40),
    taps=st.integers(1, 9),
    inputs=st.sampled_from([1, 2, 3, 4, 8, 12, 16, 40, 64]),
    outputs=st.sampled_from([1, 2, 4, 6, 17]),
    group=st.integers(1, 3),
    added=st.sampled_from(["nothing", "rows", "rows of one image", "rows by number"]),
    activation=st.sampled_from([host.NO_ACTIVATION, (0.0, -np.inf, np.inf), (0.2, -1.0, 2.0)]),
    sloped=st.booleans(),
)
def test_products(
    seed: int,
    mode: tuple[str, int],
    images: int,
    sites: int,
    taps: int,
    inputs: int,
    outputs: int,
    group: int,
    added: str,
    activation: tuple[float, float, float],
    sloped: bool,
) -> None:
    """Rows repeated and missing, groups, depthwise among them, and everything that the end of a product does."""
    rng = np.random.default_rng(seed)
    dtype, math_mode = mode
    rows, exact_rows = rounded(rng.standard_normal((images, 9, inputs * group)), dtype)
    w = (rng.standard_normal((outputs * group, inputs, taps)) / np.sqrt(inputs * taps)).astype(np.float32)
    _, exact_w = rounded(w, dtype)
    table = rng.integers(-1, 9, (sites, taps)).astype(np.int32)
    bias = rng.standard_normal(len(w)).astype(np.float32)
    expected = reference(exact_rows, exact_w, table, group) + bias
    z, z_source = None, None
    if added != "nothing":
        count = 5 if added == "rows by number" else sites
        z, exact_z = rounded(rng.standard_normal((1 if added == "rows of one image" else images, count, len(w))), dtype)
        if added == "rows by number":
            z_source = rng.integers(-1, 5, sites).astype(np.int32)
        expected = expected + (exact_z if z_source is None else picked(exact_z, z_source))
    slopes = rng.choice([-1.0, 0.0, 0.25, 1.0], len(w)).astype(np.float32) if sloped else None
    got = host.product(
        rows,
        w,
        table,
        bias=bias,
        group=group,
        added=z,
        added_source=z_source,
        activation=activation,
        slopes=slopes,
        math_mode=math_mode,
    )
    assert_close(got, activate(expected, activation, slopes), dtype, math_mode)


@pytest.mark.parametrize(("dtype", "mode"), MODES)
@pytest.mark.parametrize("splits", [2, 4, 8])
@pytest.mark.parametrize("channels", [3, 40, 64])
def test_blocks_that_share_the_sums_of_a_tile(dtype: str, mode: int, splits: int, channels: int) -> None:
    """Each has some of the slabs, and ends some of the rows."""
    rng = np.random.default_rng(splits)
    rows, exact_rows = rounded(rng.standard_normal((2, 30, channels)), dtype)
    taps = 240 if channels == 3 else 19
    w = (rng.standard_normal((20, channels, taps)) / 20).astype(np.float32)
    _, exact_w = rounded(w, dtype)
    table = rng.integers(-1, 30, (40, taps)).astype(np.int32)
    got = host.product(rows, w, table, math_mode=mode, tile=100 * splits)
    assert_close(got, reference(exact_rows, exact_w, table), dtype, mode)
    alone = host.product(rows, w, table, math_mode=mode, tile=100)
    np.testing.assert_allclose(widened(got), widened(alone), rtol=2e-2, atol=1e-2)


def test_tf32_is_rounded_to_nearest() -> None:
    """Truncated factors would make sums of positive numbers too small by some 5e-4."""
    rng = np.random.default_rng(0)
    rows = rng.random((1, 64, 512)).astype(np.float32) + 1
    w = rng.random((8, 512, 1)).astype(np.float32) + 1
    table = np.arange(64, dtype=np.int32)[:, None]
    error = host.product(rows, w, table) / reference(rows, w, table) - 1
    assert np.abs(error).max() < 5e-5


@pytest.mark.parametrize("mode", [STRICT, TENSOR_CORES])
def test_what_is_no_number_shows(mode: int) -> None:
    """In its own row alone; NaN is not lost where it is rounded."""
    rows = np.ones((1, 3, 8), np.float32)
    rows[0, 0, 0] = np.array(0x7FFFFFFF, np.uint32).view(np.float32)
    rows[0, 1, 1] = np.inf
    got = host.product(rows, np.ones((4, 8, 1), np.float32), np.arange(3, dtype=np.int32)[:, None], math_mode=mode)
    assert np.isnan(got[0, 0]).all()
    assert (got[0, 1] == np.inf).all()
    assert (got[0, 2] == 8).all()


def test_what_cannot_be_is_refused() -> None:
    rows = np.ones((1, 1, 4), np.float32)
    with pytest.raises(RuntimeError, match="invalid"):
        host.product(rows, np.ones((4, 4, 1), np.float32), np.zeros((1, 1), np.int32), tile=10)
    with pytest.raises(RuntimeError, match="invalid"):  # more blocks than slabs
        host.product(rows, np.ones((4, 4, 1), np.float32), np.zeros((1, 1), np.int32), tile=200)
