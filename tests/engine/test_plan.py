"""The row table against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx import _engine
from tests.engine.reference import Geometry, taps

PAIR = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=200, deadline=None)
@given(
    kernel=PAIR,
    strides=PAIR,
    dilations=PAIR,
    pads=st.tuples(*[st.integers(0, 5)] * 4),
    size=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_row_table_names_the_pixel_under_each_tap(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    size: tuple[int, int],
    seed: int,
) -> None:
    geometry = Geometry(kernel, strides, pads, dilations)
    height, width = geometry.output_size(*size)
    rng = np.random.default_rng(seed)
    sites = np.flatnonzero(rng.random(height * width) < 0.6).astype(np.int32)
    table = _engine.row_table(kernel, strides, pads, dilations, size, max(width, 1), sites)
    numbered = np.arange(1, size[0] * size[1] + 1).reshape(1, 1, *size)  # padding reads 0, which becomes -1
    expected = taps(numbered, geometry).reshape(height * width, kernel[0] * kernel[1])[sites] - 1
    np.testing.assert_array_equal(table, expected)


def test_huge_pads_read_the_zero_row() -> None:
    table = _engine.row_table(
        (3, 3), (1, 1), (2**31 - 1,) * 4, (2**20, 2**20), (4, 4), 100, np.array([0, 9999], np.int32)
    )
    assert (table == -1).all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("strides", ((3, 3), (0, 1), (0, 0, 0, 0), (1, 1))),
        ("dilations", ((3, 3), (1, 1), (0, 0, 0, 0), (1, 0))),
        ("pads", ((3, 3), (1, 1), (0, -1, 0, 0), (1, 1))),
        ("kernel_shape", ((0, 3), (1, 1), (0, 0, 0, 0), (1, 1))),
        ("strides", ((3, 3), (2**40, 1), (0, 0, 0, 0), (1, 1))),
    ],
)
def test_impossible_attributes_are_refused_by_name(
    name: str, arguments: tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]]
) -> None:
    with pytest.raises(ValueError, match=name):
        _engine.row_table(*arguments, (4, 4), 4, np.array([0], np.int32))


def test_image_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="pixels"):
        _engine.row_table((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (2**20, 2**20), 4, np.array([0], np.int32))
