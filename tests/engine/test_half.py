"""float16 conversions against numpy's, over every value of the format, one at a time and with every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from perfonnx import _engine

ALL = np.arange(65536, dtype=np.uint16)
each_isa = pytest.mark.parametrize("isa", _engine.available_isas())


@each_isa
def test_every_half_becomes_the_same_float(isa: str) -> None:
    expected = ALL.view(np.float16).astype(np.float32)
    got = _engine.half_to_float(ALL, isa)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(got[number].view(np.uint32), expected[number].view(np.uint32))
    quiet = ALL[~number].astype(np.uint32)
    quiet = (quiet & 0x8000) << 16 | 0x7FC00000 | (quiet & 0x1FF) << 13
    np.testing.assert_array_equal(got[~number].view(np.uint32), quiet)


@each_isa
def test_every_half_comes_back(isa: str) -> None:
    back = _engine.float_to_half(_engine.half_to_float(ALL, isa), isa)
    number = ~np.isnan(ALL.view(np.float16))
    np.testing.assert_array_equal(back, np.where(number, ALL, ALL | 0x200))


@each_isa
def test_floats_between_halves_round_to_nearest_even(isa: str) -> None:
    """Each boundary between two halves, with its neighbours, and every exponent of float32."""
    positive = ALL[:0x7C00].view(np.float16).astype(np.float64)
    middle = ((positive[:-1] + positive[1:]) / 2).astype(np.float32)
    last = np.array([65519.996, 65520, 65520.004, 65536, 1e10, np.inf], np.float32)
    powers = np.ldexp(np.float32(1.5), np.arange(-149, 128)).astype(np.float32)
    tiny = np.array([0.0, 1e-45, 2.9802322e-8, 2.9802326e-8, 5.9604645e-8], np.float32)
    values = np.concatenate(
        [np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(1e9)), last, powers, tiny]
    ).astype(np.float32)
    values = np.concatenate([values, -values])
    with np.errstate(over="ignore", under="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(_engine.float_to_half(values, isa), expected.view(np.uint16))


@each_isa
def test_nan_with_a_low_payload_stays_nan(isa: str) -> None:
    values = np.array([0x7F800001, 0xFFC00000, 0x7FFFFFFF, 0x7FA00000], np.uint32).view(np.float32)
    np.testing.assert_array_equal(_engine.float_to_half(values, isa), [0x7E00, 0xFE00, 0x7FFF, 0x7F00])


@each_isa
@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33])
def test_any_number_of_values(isa: str, count: int) -> None:
    """Vectors and what is left over."""
    values = np.linspace(-3, 3, count).astype(np.float32)
    halves = values.astype(np.float16)
    np.testing.assert_array_equal(_engine.float_to_half(values, isa), halves.view(np.uint16))
    np.testing.assert_array_equal(_engine.half_to_float(halves.view(np.uint16), isa), halves.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("isa", [name for name in _engine.available_isas() if name != "baseline"])
def test_every_float_rounds_as_one_at_a_time(isa: str) -> None:
    """All 2^32 floats, NaNs included; the baseline's way is compared with numpy's above."""
    step = 1 << 26
    for start in range(0, 1 << 32, step):
        values: NDArray[np.float32] = np.arange(start, start + step, dtype=np.uint32).view(np.float32)
        expected = _engine.float_to_half(values, "baseline")
        assert np.array_equal(_engine.float_to_half(values, isa), expected), f"from the bits {start:#x} on"
