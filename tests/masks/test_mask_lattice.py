"""Lattices of sites or holes, and stripes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.masks import Mask, MaskRequest, make_mask


def make(name: str, shape: tuple[int, int], rate: float, seed: int = 0) -> Mask:
    return make_mask(name, MaskRequest(shape, rate, np.random.default_rng(seed)))


@pytest.mark.parametrize(("rate", "keep"), [(0.25, 3 / 4), (0.5, 1 / 2), (0.75, 1 / 4), (0.875, 1 / 8), (0.125, 7 / 8)])
@pytest.mark.parametrize("shape", [(16, 16), (16, 24)])
def test_rates_that_a_lattice_has_are_met(shape: tuple[int, int], rate: float, keep: float) -> None:
    assert all(make("lattice", shape, rate, seed).mean() == keep for seed in range(6))


def test_half_is_a_checkerboard() -> None:
    mask = make("lattice", (7, 10), 0.5)
    assert (mask[1:] != mask[:-1]).all()
    assert (mask[:, 1:] != mask[:, :-1]).all()


def test_three_of_four_has_single_holes() -> None:
    holes = ~make("lattice", (12, 12), 0.25, 3)
    assert holes.any(axis=1).sum() == holes.any(axis=0).sum() == 6
    assert not (holes[1:] & holes[:-1]).any()
    assert not (holes[:, 1:] & holes[:, :-1]).any()


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), rate=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_a_lattice_repeats(height: int, width: int, rate: float, seed: int) -> None:
    mask = make("lattice", (height, width), rate, seed)
    period = 2 ** math.ceil(math.log2(max(mask.shape))) * 2
    for step in (2**n for n in range(int(math.log2(period)))):
        # a lattice that repeats after `step` down and across repeats everywhere, so its first block tells the rest
        block = mask[: 2 * step, : 2 * step]
        tiled = np.tile(block, (-(-height // block.shape[0]), -(-width // block.shape[1])))[:height, :width]
        if (tiled == mask).all():
            return
    raise AssertionError(mask)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(2, 20), width=st.integers(2, 20), rate=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_stripes(height: int, width: int, rate: float, seed: int) -> None:
    rows, columns = (make(f"stripes-{axis}", (height, width), rate, seed) for axis in ("rows", "columns"))
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
    assert rows[:, 0].sum() == max(1, round((1 - rate) * height)) or abs(rows.mean() - (1 - rate)) <= 0.51 / height
    gaps = np.diff(np.flatnonzero(columns[0]))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_phases_differ_by_seed() -> None:
    for name in ("lattice", "stripes-rows", "stripes-columns"):
        assert len({make(name, (16, 16), 0.5, seed).tobytes() for seed in range(8)}) == 2


@pytest.mark.parametrize(("rate", "step", "squared"), [(0.2, 5, 5), (0.1, 10, 10), (0.8, 5, 5), (0.9, 10, 10)])
def test_fifths_and_tenths_are_squares_on_their_corners(rate: float, step: int, squared: int) -> None:
    mask = make("lattice", (20, 30), rate, 2)
    assert mask.mean() == pytest.approx(1 - rate)
    points = np.argwhere(mask if rate > 0.5 else ~mask)
    away = np.square(points[:, np.newaxis] - points).sum(axis=2)
    np.fill_diagonal(away, 10**6)
    assert (away.min(axis=1) == squared).all()  # the nearest others are as far as they can be
    inside = (points > 4).all(axis=1) & (points < (15, 25)).all(axis=1)
    assert ((away == squared).sum(axis=1)[inside] == 4).all()


@pytest.mark.parametrize(("rate", "kept"), [(1 / 3, 2), (0.35, 2), (2 / 3, 1), (0.62, 1)])
def test_thirds_are_diagonals(rate: float, kept: int) -> None:
    mask = make_mask("lattice", MaskRequest((12, 9), rate, np.random.default_rng(1)))
    assert mask.sum() == kept * 12 * 9 // 3
    assert (mask[1:, :-1] == mask[:-1, 1:]).all()
    assert (mask[:, :-3] == mask[:, 3:]).all()
