"""Separable filters: multiplies, and the nearest pair without and with data."""

from __future__ import annotations

import numpy as np

from perfonnx.methods.lowrank.jaderberg import Jaderberg
from tests.methods.lowrank import chains


def test_multiplies_are_those_of_the_paper() -> None:
    """d' (c + d) k instead of c d k^2 per position, at stride 1 (Jaderberg et al., section 3.2)."""
    form = chains.form(64, 48, chains.geometry(9), (40, 30))
    positions = 40 * 30
    assert form.multiplies([form.whole]) == 64 * 48 * 81 * positions
    assert form.multiplies(Jaderberg().pieces(form, 20)) == 20 * (48 + 64) * 9 * positions


def test_a_stride_is_split_per_axis() -> None:
    form = chains.form(8, 6, chains.geometry(5, strides=(2, 2)), (20, 12))
    vertical, horizontal = Jaderberg().pieces(form, 4)
    assert vertical.attributes.output_shape(20, 12) == (10, 12)
    assert horizontal.attributes.output_shape(10, 12) == (10, 6)
    assert form.multiplies([vertical, horizontal]) == 4 * 6 * 5 * 120 + 8 * 4 * 5 * 60


def test_the_nearest_pair_is_found() -> None:
    """Without data the error is that of the singular values that are left out."""
    form = chains.form(8, 6)
    weight = chains.weight(form)
    found = Jaderberg().factors(chains.plain(weight), form, 5)
    values = np.linalg.svd(weight.transpose(1, 2, 0, 3).reshape(18, 24), compute_uv=False)
    np.testing.assert_allclose(np.square(weight - found.weight).sum(), np.square(values[5:]).sum())
