"""Tucker-2: multiplies, and both ranks."""

from __future__ import annotations

import numpy as np
import pytest

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.methods.lowrank.tucker import Tucker
from tests.methods.lowrank import chains
from tests.passes import nets


def test_multiplies_are_those_of_the_paper() -> None:
    """S R3 + D^2 R3 R4 + T R4 per position (Kim et al., section 3.1)."""
    form = chains.form(64, 48, chains.geometry(3), (20, 20))
    assert form.multiplies(Tucker(input_rank=10).pieces(form, 20)) == (48 * 10 + 9 * 10 * 20 + 64 * 20) * 400
    assert form.multiplies(Tucker().pieces(form, 20)) == (48 * 15 + 9 * 15 * 20 + 64 * 20) * 400


def test_a_weight_of_these_ranks_is_found_again() -> None:
    rng = np.random.default_rng(0)
    parts = (rng.standard_normal(shape) for shape in ((10, 3), (3, 2, 3, 3), (2, 8)))
    weight = np.einsum("ma,abij,bc->mcij", *parts)
    found = Tucker(input_rank=2).factors(chains.plain(weight), chains.form(10, 8), 3)
    np.testing.assert_allclose(found.weight, weight, atol=1e-9)


def test_an_input_rank_without_meaning_is_refused() -> None:
    with pytest.raises(PerfonnxError, match="input_rank -1 is not a whole number from 1 up"):
        perfonnx.rewrite(nets.single(), method="tucker", input_rank=-1)
