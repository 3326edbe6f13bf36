"""float16 conversions against numpy's, over every value of the format."""

from __future__ import annotations

import numpy as np

from perfonnx import _engine

ALL = np.arange(65536, dtype=np.uint16)


def test_every_half_becomes_the_same_float() -> None:
    expected = ALL.view(np.float16).astype(np.float32)
    got = _engine.half_to_float(ALL)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), ~number)
    np.testing.assert_array_equal(got[number].view(np.uint32), expected[number].view(np.uint32))


def test_every_half_comes_back() -> None:
    number = ~np.isnan(ALL.view(np.float16))
    back = _engine.float_to_half(_engine.half_to_float(ALL))
    np.testing.assert_array_equal(back[number], ALL[number])
    assert np.isnan(back[~number].view(np.float16)).all()


def test_floats_between_halves_round_to_nearest_even() -> None:
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
    np.testing.assert_array_equal(_engine.float_to_half(values), expected.view(np.uint16))


def test_nan_with_a_low_payload_stays_nan() -> None:
    values = np.array([0x7F800001, 0xFFC00000, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(_engine.float_to_half(values).view(np.float16)).all()
