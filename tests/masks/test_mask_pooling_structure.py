"""The pooling-structure mask: window counts against a plain enumeration, and the sites they choose."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perfonnx.errors import PerfonnxError
from perfonnx.masks import MaskRequest, PoolWindow, count_sites, make_mask, pooling_weights


def windows(shape: tuple[int, int], pool: PoolWindow) -> list[set[tuple[int, int]]]:
    """The positions of each window that starts before the padding on the far side, clipped to the map."""
    found = []
    starts = []
    for axis in (0, 1):
        extent = (pool.kernel[axis] - 1) * pool.dilations[axis] + 1
        length = (shape[axis] + pool.pads[axis] + pool.pads[axis + 2] - extent) / pool.strides[axis] + 1
        count = math.ceil(length) if pool.ceil_mode else math.floor(length)
        every = [i * pool.strides[axis] - pool.pads[axis] for i in range(count)]
        starts.append([s for s in every if not pool.ceil_mode or s < shape[axis]])
    for top in starts[0]:
        for left in starts[1]:
            taps = {
                (top + i * pool.dilations[0], left + j * pool.dilations[1])
                for i in range(pool.kernel[0])
                for j in range(pool.kernel[1])
            }
            found.append({(y, x) for y, x in taps if 0 <= y < shape[0] and 0 <= x < shape[1]})
    return found


def pair(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def test_published_weights() -> None:
    """27x27 under 3x3 windows of stride 2."""
    values, counts = np.unique(pooling_weights((27, 27), PoolWindow((3, 3), (2, 2))), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {1: 225, 2: 360, 4: 144}


@settings(max_examples=200, deadline=None)
@given(pair(1, 12), pair(1, 4), pair(1, 4), st.tuples(*[st.integers(0, 2)] * 4), pair(1, 3), st.booleans())
def test_weights_count_windows(
    shape: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
    ceil_mode: bool,
) -> None:
    pool = PoolWindow(kernel, strides, pads, dilations, ceil_mode)
    # Windows made of padding alone are refused by ONNX runtimes.
    assume(all(max(pads[a], pads[a + 2]) <= (kernel[a] - 1) * dilations[a] for a in (0, 1)))
    assume(all(shape[a] + pads[a] + pads[a + 2] > (kernel[a] - 1) * dilations[a] for a in (0, 1)))
    expected = np.zeros(shape, dtype=np.int64)
    every = windows(shape, pool)
    for window in every:
        for position in window:
            expected[position] += 1
    assert math.prod(pool.output_shape(shape)) == len(every)
    np.testing.assert_array_equal(pooling_weights(shape, pool), expected)


@pytest.mark.parametrize(
    ("length", "pool", "pooled"),
    [
        (55, PoolWindow((3, 3), (2, 2)), 27),
        (112, PoolWindow((3, 3), (2, 2), (1, 1, 1, 1)), 56),
        (112, PoolWindow((3, 3), (2, 2), ceil_mode=True), 56),
        (32, PoolWindow((3, 3), (2, 2), ceil_mode=True), 16),
        (2, PoolWindow((1, 1), (2, 2), ceil_mode=True), 1),  # a second window would start past the map
        (7, PoolWindow((7, 7)), 1),
    ],
)
def test_output_shape(length: int, pool: PoolWindow, pooled: int) -> None:
    assert pool.output_shape((length, length)) == (pooled, pooled)


@settings(max_examples=60, deadline=None)
@given(pair(3, 20), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_no_skipped_position_outweighs_a_site(shape: tuple[int, int], rate: float, seed: int) -> None:
    pool = PoolWindow((3, 3), (2, 2))
    mask = make_mask("pooling-structure", MaskRequest(shape, rate, np.random.default_rng(seed), pool))
    weights = pooling_weights(shape, pool)
    assert mask.sum() == count_sites(shape, rate)
    assert weights[mask].min() >= weights[~mask].max(initial=0)


def test_ties_are_broken_by_the_seed() -> None:
    pool = PoolWindow((2, 2), (2, 2))
    share = np.mean(
        [make_mask("pooling-structure", MaskRequest((6, 6), 0.5, np.random.default_rng(s), pool)) for s in range(800)],
        axis=0,
    )
    np.testing.assert_allclose(share, 0.5, atol=0.1)


def test_needs_a_pool_that_fits() -> None:
    with pytest.raises(PerfonnxError, match="no pooling layer reads this layer; use mask grid"):
        make_mask("pooling-structure", MaskRequest((6, 6), 0.5, np.random.default_rng(0)))
    with pytest.raises(PerfonnxError, match=r"kernel \[7, 7\] .* larger than the map \[6, 6\]"):
        make_mask("pooling-structure", MaskRequest((6, 6), 0.5, np.random.default_rng(0), PoolWindow((7, 7))))
