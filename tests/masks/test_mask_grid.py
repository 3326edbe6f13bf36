"""The grid masks: the authors' numbers, and ours close to the asked rate on any shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.errors import PerfonnxError
from perfonnx.masks import Mask, MaskRequest, grid_size, make_mask


def make(name: str, shape: tuple[int, int], rate: float, seed: int = 0) -> Mask:
    return make_mask(name, MaskRequest(shape, rate, np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("side", "keep", "real"),
    [
        (13, 1 / 2, 0.479),
        (13, 1 / 3, 0.290),
        (13, 1 / 4, 0.213),
        (13, 1 / 5, 0.148),
        (8, 1 / 2, 0.391),
        (27, 1 / 4, 0.232),
    ],
)
def test_authors_grid(side: int, keep: float, real: float) -> None:
    """The real keep of the authors' program, by its formula floor(sqrt(keep * H * W))**2 / (H * W)."""
    for seed in range(20):
        assert round(float(make("grid-square", (side, side), 1 - keep, seed).mean()), 3) == real


def test_authors_grid_wants_a_square() -> None:
    with pytest.raises(PerfonnxError, match="map is 8x9, not square; use mask grid"):
        make("grid-square", (8, 9), 0.5)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32), st.booleans())
def test_grid_is_a_spread_lattice(height: int, width: int, rate: float, seed: int, authors: bool) -> None:
    shape = (height, height) if authors else (height, width)
    mask = make("grid-square" if authors else "grid", shape, rate, seed)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert mask.sum() == rows.size * columns.size
    if not authors:
        assert (rows.size, columns.size) == grid_size(shape, rate)
    for chosen, length in ((rows, shape[0]), (columns, shape[1])):
        spacing = length / chosen.size
        around = np.diff(np.append(chosen, chosen[0] + length))  # the phase is free: the step across the ends counts
        assert around.min() >= np.floor(spacing)
        assert around.max() <= np.ceil(spacing)


@pytest.mark.parametrize("shape", [(2, 2), (8, 8), (14, 14), (56, 28), (224, 224), (6, 100)])
def test_three_quarters_on_even_maps_is_every_second(shape: tuple[int, int]) -> None:
    mask = make("grid", shape, 0.75)
    for axis in (0, 1):
        chosen = np.flatnonzero(mask.any(axis=axis))
        assert chosen.size == shape[1 - axis] // 2
        assert (np.diff(chosen) == 2).all()


def test_all_phases_occur() -> None:
    seen = {tuple(np.argwhere(make("grid", (4, 4), 0.75, seed))[0].tolist()) for seed in range(40)}
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


@settings(max_examples=300, deadline=None)
@given(st.integers(16, 120), st.integers(16, 120), st.floats(0.1, 0.95))
def test_real_rate_is_close_on_larger_maps(height: int, width: int, rate: float) -> None:
    rows, columns = grid_size((height, width), rate)
    products = np.multiply.outer(np.arange(1, height + 1), np.arange(1, width + 1))
    possible = np.abs(1 - products / (height * width) - rate).min()
    error = abs(1 - rows * columns / (height * width) - rate)
    assert error <= 0.02 or error <= possible + 0.005


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.floats(0, 1, exclude_max=True))
def test_thin_maps_are_exact(length: int, rate: float) -> None:
    target = max((1 - rate) * length, 1)
    for shape, size in (((1, length), 1), ((length, 1), 0)):
        rows_columns = grid_size(shape, rate)
        assert rows_columns[1 - size] == 1
        assert abs(rows_columns[size] - target) <= 0.5 + 1e-6


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_grid_is_even_unless_that_costs_rate(height: int, width: int, rate: float) -> None:
    """No other grid is both closer to the asked number of sites and more evenly spaced."""
    rows, columns = grid_size((height, width), rate)
    target = max((1 - rate) * height * width, 1)
    error, unevenness = abs(rows * columns - target), abs(np.log(height / rows * columns / width))
    every = np.multiply.outer(np.arange(1, height + 1), np.arange(1, width + 1))
    skew = np.abs(np.log(np.divide.outer(height / np.arange(1, height + 1), width / np.arange(1, width + 1))))
    if target >= max(height, width):  # otherwise an even grid may not fit the thin side
        assert not ((np.abs(every - target) < error - 1e-4) & (skew < unevenness - 1e-4)).any()


def test_uneven_choices() -> None:
    assert grid_size((224, 224), 0.75) == (112, 112)
    assert grid_size((56, 56), 0.25) == (48, 49)  # 87 % of each, not 3 of 4 rows and all columns
    assert grid_size((27, 27), 0.75) == (13, 14)
    assert grid_size((5, 200), 0.75) == (3, 83)
    assert grid_size((1, 1), 0.9) == (1, 1)
