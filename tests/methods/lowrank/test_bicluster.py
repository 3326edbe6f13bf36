"""Biclustering: the papers' multiplies, blocks that are found again, and groups of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.methods.lowrank.base import LowRank
from perfonnx.methods.lowrank.bicluster_outer import BiclusterOuter
from perfonnx.methods.lowrank.bicluster_svd import BiclusterSvd
from perfonnx.methods.lowrank.clusters import equal_clusters
from tests.methods.lowrank import chains
from tests.passes import nets

CONV2 = chains.form(256, 96, chains.geometry(5), (55, 55))
CONV3 = chains.form(512, 256, chains.geometry(3), (13, 13))


@pytest.mark.parametrize(("ranks", "saved"), [((38, 38), 6.5), ((51, 51), 4.0), ((76, 76), 2.1)])
def test_multiplies_of_singular_values_are_those_of_the_paper(ranks: tuple[int, int], saved: float) -> None:
    """Table 2 of Denton et al., third layer."""
    method = BiclusterSvd(input_groups=2, output_groups=4, input_rank=ranks[0])
    assert chains.counted(method, CONV3, ranks[1]) == pytest.approx(saved, abs=0.06)


def test_the_second_layer_s_are_without_what_is_pointwise() -> None:
    """The paper prints 4.2 there, which leaves out the 1x1 convolutions; they make it 3.28."""
    method = BiclusterSvd(input_rank=19)
    assert chains.counted(method, CONV2, 76) == pytest.approx(3.286, abs=0.001)
    core = method.pieces(CONV2, 76)[2]
    assert CONV2.multiplies([CONV2.whole]) / CONV2.multiplies([core]) == pytest.approx(4.25, abs=0.01)


@pytest.mark.parametrize(
    ("form", "groups", "terms", "saved"),
    [
        *(
            (CONV2, (48, 2), k, s)
            for k, s in ((5, 8.3), (6, 6.9), (8, 5.2), (10, 4.1), (12, 3.4), (14, 2.9), (16, 2.58))
        ),
        *((CONV3, (128, 4), k, s) for k, s in ((1, 16.6), (2, 8.3), (3, 5.5), (4, 4.1), (6, 2.8), (8, 2.1))),
    ],
)
def test_multiplies_of_outer_products_are_those_of_the_paper(
    form: Any, groups: tuple[int, int], terms: int, saved: float
) -> None:
    method = BiclusterOuter(input_groups=groups[0], output_groups=groups[1])
    assert chains.counted(method, form, terms) == pytest.approx(saved, abs=0.06)


def hidden() -> np.ndarray:
    """[8, 6, 3, 3]: blocks of 4 x 3 of one outer product each, rows and columns shuffled."""
    rng = np.random.default_rng(5)
    weight = np.empty((8, 6, 3, 3))
    for h in range(2):
        for g in range(2):
            outputs, inputs, taps = (
                rng.standard_normal((4, 1)),
                rng.standard_normal((1, 3)),
                rng.standard_normal((1, 3, 3)),
            )
            weight[4 * h : 4 * h + 4, 3 * g : 3 * g + 3] = np.einsum("mr,rij,rc->mcij", outputs + 4, taps, inputs + 4)
    return weight[rng.permutation(8)][:, rng.permutation(6)]


@pytest.mark.parametrize("method", [BiclusterOuter(), BiclusterSvd(input_rank=1)], ids=lambda m: m.NAME)
def test_blocks_of_one_term_are_found_again(method: LowRank) -> None:
    found = method.factors(chains.plain(hidden()), chains.form(8, 6), 1)
    np.testing.assert_allclose(found.weight, hidden(), atol=1e-6)


@pytest.mark.parametrize("groups", [(1, 1), (3, 1), (1, 4), (3, 4)], ids=str)
@pytest.mark.parametrize("method", [BiclusterOuter, BiclusterSvd], ids=lambda m: m.NAME)
def test_groups_of_every_number(method: type[Any], groups: tuple[int, int]) -> None:
    chosen = method(input_groups=groups[0], output_groups=groups[1])
    form = chains.form(8, 6, chains.AWKWARD)
    weight = chains.weight(form)
    full = chosen.full(form)
    for rank in (full, max(full // 2, 1)):
        found = chosen.factors(chains.plain(weight), form, rank)
        expected = found.weight if rank < full else weight
        x = np.random.default_rng(1).standard_normal((2, 6, 9, 7))
        given = chains.run(chosen.pieces(form, rank), found.arrays, x)
        np.testing.assert_allclose(given, chains.convolve(x, expected, None, chains.AWKWARD), atol=1e-6)


def test_groups_that_do_not_divide_are_refused() -> None:
    result = perfonnx.rewrite(nets.single(), method="bicluster-svd", only="conv")
    assert [skip.reason for skip in result.report.skips] == ["its 3 inputs are not 2 groups of one size"]
    with pytest.raises(PerfonnxError, match="output_groups 0 is not a whole number from 1 up"):
        perfonnx.rewrite(nets.single(), method="bicluster-outer", output_groups=0)


def test_clusters_are_of_one_size() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * rng.standard_normal((3, 4))
    owner = rng.permutation(np.repeat(np.arange(3), 5))
    order = equal_clusters(centres[owner] + rng.standard_normal((15, 4)), 3)
    assert sorted(order.tolist()) == list(range(15))
    assert [len(set(owner[order[start : start + 5]])) for start in (0, 5, 10)] == [1, 1, 1]
    crowded = np.concatenate([np.zeros((9, 2)), np.ones((3, 2))])
    assert len(equal_clusters(crowded, 2)) == 12
