"""Canonical polyadic decomposition: multiplies, both forms, and components that are told of."""

from __future__ import annotations

import numpy as np
import pytest

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.methods.lowrank.cp import SPLIT, Cp, balanced
from tests.methods.lowrank import chains
from tests.passes import nets


def test_multiplies_are_those_of_the_paper() -> None:
    """R (S + 2 d + T) instead of S T d^2 per position (Lebedev et al., section 3.1)."""
    form = chains.form(48, 32, chains.geometry(5), (20, 20))
    assert form.multiplies(Cp(depthwise=SPLIT).pieces(form, 30)) == 30 * (32 + 10 + 48) * 400
    assert form.multiplies(Cp().pieces(form, 30)) == 30 * (32 + 25 + 48) * 400


@pytest.mark.parametrize("outputs", [4, 8])
@pytest.mark.parametrize("split", [False, True])
def test_the_full_form_is_the_layer(split: bool, outputs: int) -> None:
    method, form = Cp(depthwise=SPLIT) if split else Cp(), chains.form(outputs, 6, chains.AWKWARD)
    weight, full = chains.weight(form), method.full(form)
    found = method.factors(chains.plain(weight), form, full)
    x = np.random.default_rng(1).standard_normal((2, 6, 9, 7))
    expected = chains.convolve(x, weight, None, chains.AWKWARD)
    np.testing.assert_allclose(chains.run(method.pieces(form, full), found.arrays, x), expected, atol=1e-9)


def test_few_components_are_found_again() -> None:
    rng = np.random.default_rng(2)
    weight = np.einsum("mr,ri,rj,rc->mcij", *(rng.standard_normal(s) for s in ((12, 3), (3, 3), (3, 3), (3, 8))))
    form = chains.form(12, 8)
    for method in (Cp(), Cp(depthwise=SPLIT)):
        found = method.factors(chains.plain(weight), form, 6)
        assert np.square(found.weight - weight).sum() < 1e-3 * np.square(weight).sum()


def test_balanced_components_have_factors_of_one_norm() -> None:
    rng = np.random.default_rng(0)
    factors = [1e6 * rng.standard_normal((5, 3)), 1e-6 * rng.standard_normal((3, 2, 2)), rng.standard_normal((3, 4))]
    found = balanced(factors)
    spec = "mr,rij,rc->mcij"
    np.testing.assert_allclose(np.einsum(spec, *found), np.einsum(spec, *factors))
    norms = [np.linalg.norm(found[0], axis=0), *(np.linalg.norm(f.reshape(3, -1), axis=1) for f in found[1:])]
    np.testing.assert_allclose(norms[1:], [norms[0]] * 2)


def test_components_are_told_of() -> None:
    model = nets.model([nets.conv(y="y")], {"w": nets.values(16, 3, 3, 3)})
    result = perfonnx.rewrite(model, method="cp", rank=4, only="conv")
    assert "the largest component" in result.report.layers[0].notes[-1]
    with pytest.raises(PerfonnxError, match="unknown depthwise 'none'; choose from whole, split"):
        perfonnx.rewrite(model, method="cp", depthwise="none")
