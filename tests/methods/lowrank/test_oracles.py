"""Clusters, CP and Tucker forms beside those of scikit-learn and TensorLy.

Neither library can stand for ours: k-means has no clusters of one size, and decompositions know no metric of data.
"""

from __future__ import annotations

import numpy as np
import pytest

from perfonnx.fitting import Goal
from perfonnx.methods import METHODS
from perfonnx.methods.lowrank.base import Approximation
from perfonnx.methods.lowrank.clusters import equal_clusters
from perfonnx.methods.lowrank.metric import Covariance
from perfonnx.methods.lowrank.rows import Rows
from tests.extras import needs
from tests.methods.lowrank import chains

cluster = needs("sklearn.cluster")
tensorly = needs("tensorly")
decomposition = needs("tensorly.decomposition")

RANK = 8


def decaying(seed: int = 0) -> np.ndarray:
    """A weight [16, 12, 3, 3] whose products lose weight from one to the next, with a little noise."""
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((20, size)) for size in (16, 12, 3, 3)]
    weight = np.einsum("r,rm,rc,ri,rj->mcij", 0.8 ** np.arange(20), *factors)
    return weight + 0.05 * rng.standard_normal(weight.shape)


def lost(weight: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(weight - found.reshape(weight.shape)).sum() / np.square(weight).sum())


@pytest.mark.parametrize("rank", [16, 32])
@pytest.mark.parametrize("depthwise", ["whole", "split"])
@pytest.mark.parametrize("seed", range(2))
def test_products_lose_no_more_than_those_of_tensorly(depthwise: str, rank: int, seed: int) -> None:
    """On a weight whose minima are alike: in others, either finds the lower one by luck."""
    weight, form = np.random.default_rng(seed).standard_normal((16, 12, 3, 3)), chains.form(16, 12)
    ours = METHODS["cp"](depthwise=depthwise).factors(chains.plain(weight), form, rank)
    tensor = weight.reshape(16, 12, 9) if depthwise == "whole" else weight
    theirs = decomposition.parafac(tensor, rank, init="random", random_state=0, n_iter_max=40)
    assert 0.1 < lost(weight, ours.weight) < 1.03 * lost(weight, tensorly.cp_to_tensor(theirs))


@pytest.mark.parametrize("seed", range(3))
def test_tucker_loses_no_more_than_that_of_tensorly(seed: int) -> None:
    weight, form = decaying(seed), chains.form(16, 12)
    ours = METHODS["tucker"](input_rank=6).factors(chains.plain(weight), form, RANK)
    (core, sides), _ = decomposition.partial_tucker(weight, rank=[RANK, 6], modes=[0, 1])
    theirs = tensorly.tenalg.multi_mode_dot(core, sides, modes=[0, 1])
    assert 0.001 < lost(weight, ours.weight) < 1.02 * lost(weight, theirs)


def test_on_data_ours_lose_less_than_what_knows_none() -> None:
    weight, form = decaying(), chains.form(16, 12)
    x = np.random.default_rng(5).standard_normal((2000, 108)) * 0.97 ** np.arange(108)
    flat = weight.reshape(16, -1)
    rows = Rows(x.astype(np.float32), x @ flat.T, np.zeros((2000, 1)), Goal())
    problem = Approximation(weight, Covariance.of(rows, 1e-6), rows, 1e-6)
    (core, sides), _ = decomposition.partial_tucker(weight, rank=[RANK, 6], modes=[0, 1])
    products = decomposition.parafac(weight.reshape(16, 12, 9), RANK, init="random", random_state=0)
    for method, theirs in (
        (METHODS["tucker"](input_rank=6), tensorly.tenalg.multi_mode_dot(core, sides, modes=[0, 1])),
        (METHODS["cp"](), tensorly.cp_to_tensor(products)),
    ):
        ours = method.factors(problem, form, RANK).weight
        responses = [np.square(x @ (flat - found.reshape(16, -1)).T).sum() for found in (ours, theirs)]
        assert responses[0] < 0.8 * responses[1]


def test_clusters_of_one_size_are_those_of_k_means_where_these_have_one_size() -> None:
    rng = np.random.default_rng(0)
    points = np.repeat(10 * rng.standard_normal((4, 5)), 6, axis=0) + rng.standard_normal((24, 5))
    points = points[rng.permutation(24)]
    ours = equal_clusters(points, 4).reshape(4, 6)
    theirs = cluster.KMeans(4, n_init=4, random_state=0).fit(points).labels_
    assert {frozenset(each.tolist()) for each in ours} == {frozenset(np.flatnonzero(theirs == k)) for k in range(4)}


def test_clusters_of_one_size_are_not_those_of_k_means_where_points_stand_apart() -> None:
    points = np.random.default_rng(1).standard_normal((24, 5))
    points[:2] *= 20
    free = cluster.KMeans(4, n_init=4, random_state=0).fit(points)
    assert min(np.bincount(free.labels_)) < 6
    ours = points[equal_clusters(points, 4)].reshape(4, 6, 5)
    spread = np.square(ours - ours.mean(axis=1, keepdims=True)).sum()
    assert free.inertia_ <= spread
    randomly = points.reshape(4, 6, 5)
    assert spread < 0.9 * np.square(randomly - randomly.mean(axis=1, keepdims=True)).sum()
