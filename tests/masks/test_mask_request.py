"""Counting, rates and the rules that hold for every mask."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.errors import PerfonnxError
from perfonnx.masks import MASKS, Mask, MaskRequest, PoolWindow, count_sites, make_mask, propagated_scores

SIDES = st.integers(1, 24)
RATES = st.floats(0, 1, exclude_max=True)
POOL = PoolWindow((3, 3), (2, 2), (1, 1, 1, 1))


def request(shape: tuple[int, int], rate: float, seed: int) -> MaskRequest:
    """A request that every mask accepts, on square maps."""
    rng = np.random.default_rng(seed)
    return MaskRequest(shape, rate, rng, POOL, propagated_scores((32, 20), rng), rng.random(shape))


def make(name: str, shape: tuple[int, int], rate: float, seed: int) -> Mask:
    return make_mask(name, request(shape, rate, seed))


def test_names() -> None:
    assert list(MASKS) == [
        *("uniform", "grid", "grid-square", "pooling-structure", "propagated"),
        *("lattice", "stripes-rows", "stripes-columns", "blocks", "impact"),
    ]


@pytest.mark.parametrize("name", MASKS)
@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, rate=RATES, seed=st.integers(0, 2**32))
def test_every_mask_fits_and_repeats(name: str, height: int, width: int, rate: float, seed: int) -> None:
    shape = (height, height if name == "grid-square" else width)
    mask = make(name, shape, rate, seed)
    assert mask.shape == shape
    assert mask.dtype == np.bool_
    assert mask.any()
    assert mask.tobytes() == make(name, shape, rate, seed).tobytes()


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (12, 12)])
def test_rate_zero_keeps_everything(name: str, shape: tuple[int, int]) -> None:
    assert make(name, shape, 0.0, 1).all()
    assert make(name, shape, -0.0, 1).all()


@pytest.mark.parametrize("name", MASKS)
def test_rate_near_one_keeps_one_site_or_the_least_there_is(name: str) -> None:
    least = {"stripes-rows": {6}, "stripes-columns": {6}, "blocks": {4, 8, 16}}.get(name, {1})
    assert make(name, (6, 6), math.nextafter(1, 0), 1).sum() in least


@pytest.mark.parametrize("name", ["uniform", "grid", "grid-square", "pooling-structure"])
def test_seeds_differ(name: str) -> None:
    assert len({make(name, (20, 20), 0.7, seed).tobytes() for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("shape", "rate", "count"),
    [
        ((3, 3), 1 - 1 / 3, 3),  # in doubles (1 - rate) * 9 is just below 3
        ((3, 3), 2 / 3, 3),
        ((10, 10), 0.9, 10),
        ((10, 10), 0.1, 90),
        ((13, 13), 0.5, 84),
        ((1, 1), 0.99, 1),
        ((4, 4), 0.99, 1),
        ((1000, 1000), 1e-6, 999999),
    ],
)
def test_count_sites(shape: tuple[int, int], rate: float, count: int) -> None:

    assert count_sites(shape, rate) == count


@given(height=st.integers(1, 800), width=st.integers(1, 800), percent=st.integers(0, 99))
def test_count_is_exact_for_decimal_rates(height: int, width: int, percent: int) -> None:
    exact = math.floor(Fraction(100 - percent, 100) * height * width)
    assert count_sites((height, width), percent / 100) == max(1, exact)
    assert count_sites((height, width), 1 - (100 - percent) / 100) == max(1, exact)  # a rate with rounding in it


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1, 1, 1.5, "half", None])
def test_bad_rate(rate: object) -> None:
    with pytest.raises(PerfonnxError, match=r"^rate: .*\[0, 1\)$"):
        MaskRequest((4, 4), rate, np.random.default_rng(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(0, 4), (4, -1), (4,), (4, 4, 4), (2.5, 2)])
def test_bad_shape(shape: tuple[int, int]) -> None:
    with pytest.raises(PerfonnxError, match=r"^mask: shape"):
        MaskRequest(shape, 0.5, np.random.default_rng(0))


def test_unknown_mask() -> None:
    with pytest.raises(PerfonnxError, match=r"unknown mask 'gird'; choose from uniform, grid,"):
        make("gird", (4, 4), 0.5, 0)


def test_windows_that_are_none() -> None:
    for arguments in (((0, 3),), ((3, 3), (0, 1)), ((3, 3), (1, 1), (0, 0, -1, 0)), ((3, 3, 3),)):
        with pytest.raises(PerfonnxError, match=r"^pooling window: \w+ is .*integers >= [01]$"):
            PoolWindow(*arguments)
