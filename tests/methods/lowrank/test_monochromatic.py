"""Monochromatic filters: the paper's multiplies, and filters that are of a few colours."""

from __future__ import annotations

import numpy as np
import pytest

import perfonnx
from perfonnx.methods.lowrank.monochromatic import Monochromatic
from perfonnx.ops.common import ConvAttributes
from tests.methods.lowrank import chains
from tests.passes import nets


@pytest.mark.parametrize(("colours", "saved"), [(4, 2.97), (6, 2.95), (8, 2.94), (12, 2.91), (16, 2.88), (24, 2.82)])
def test_multiplies_are_those_of_the_paper(colours: int, saved: float) -> None:
    """Table 1 of Denton et al.: 96 filters of 7x7 at stride 2 on 224x224."""
    form = chains.form(96, 3, ConvAttributes((7, 7), (2, 2), (0, 0, 1, 1)), (224, 224))
    assert round(chains.counted(Monochromatic(), form, colours), 2) == saved


def coloured() -> np.ndarray:
    """12 filters of 4 colours, three each, in no order."""
    rng = np.random.default_rng(1)
    colours = np.repeat(rng.standard_normal((4, 3)), 3, axis=0)[rng.permutation(12)]
    return np.einsum("mc,mij->mcij", colours, rng.standard_normal((12, 3, 3)))


def test_filters_of_few_colours_are_found_again() -> None:
    form = chains.form(12, 3)
    found = Monochromatic().factors(chains.plain(coloured()), form, 4)
    np.testing.assert_allclose(found.weight, coloured(), atol=1e-9)


@pytest.mark.parametrize("data", [False, True], ids=["plain", "data"])
def test_a_first_layer_with_a_bias(data: bool) -> None:
    model = nets.model([nets.conv(y="y", b="b")], {"w": coloured().astype(np.float32), "b": nets.values(12)})
    samples = [nets.feed(6, 3, 12, 10, seed=seed) for seed in range(3)]
    result = perfonnx.rewrite(model, method="monochromatic", rank=4, only="conv", samples=samples if data else None)
    nets.check(result.proto)
    assert nets.op_types(result.proto) == ["Conv", "Conv", "Gather"]
    nets.assert_same_results(model, result.proto)


def test_ranks_are_those_of_equal_groups() -> None:
    model = nets.model([nets.conv(y="y")], {"w": coloured().astype(np.float32)})
    result = perfonnx.rewrite(model, method="monochromatic", rank=5, only="conv")
    assert [skip.reason for skip in result.report.skips] == ["rank 5 is none of 1, 2, 3, 4, 6, 12"]
    deep = nets.model([nets.conv(y="y")], {"w": nets.values(8, 6, 3, 3)}, inputs={"x": (1, 6, 12, 10)})
    result = perfonnx.rewrite(deep, method="monochromatic", only="conv")
    assert [skip.reason for skip in result.report.skips] == ["it has 6 inputs, which are no colours of an image"]
