"""Streaming least squares: equal to one shot, right where the answer is known, finite where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Goal, Neighbours, Refit, Residual, nearest_sites
from perfonnx.ops.common import Activation
from perfonnx.sampling import Sampling, interpolate

RNG = np.random.default_rng(0)


def mask_of(height: int = 6, width: int = 5, seed: int = 0, keep: float = 0.5) -> np.ndarray:
    mask = np.random.default_rng(seed).random((height, width)) < keep
    mask[0, 0] = True
    return mask


def through(values: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Interp(values), written out position by position."""
    flat = values.reshape(*values.shape[:2], -1)
    result = np.zeros_like(flat)
    for position, sources in enumerate(sampling.source):
        for k, source in enumerate(sources):
            if source >= 0:
                factor = 1.0 if sampling.weight is None else sampling.weight[position, k]
                result[:, :, position] += factor * flat[:, :, source]
    return result.reshape(values.shape)


def values(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("interpolation", ["nearest", "zero", "barycentric"])
def test_a_predictor_that_exists_is_found(groups: int, interpolation: str) -> None:
    sampling = interpolate(mask_of(), interpolation)
    x, v, wanted = values(20, 4, 6, 5), values(20, 8, 6, 5), values(8, 4 // groups)
    split = x.reshape(20, groups, 4 // groups, -1)
    ax = np.einsum("gmc,ngcp->ngmp", wanted.reshape(groups, -1, 4 // groups), split).reshape(v.shape)
    bias = values(8)
    target = ax + through(v - ax + bias[:, None, None], sampling)
    residual = Residual(sampling, groups)
    residual.add(v, target, x=x)
    solution = residual.solve(ridge=0)
    assert solution.predictor is not None
    np.testing.assert_allclose(solution.predictor, wanted, atol=1e-7)
    np.testing.assert_allclose(solution.bias, bias, atol=1e-7)
    assert solution.before > 0.01
    assert solution.after < 1e-12


@pytest.mark.parametrize("interpolation", ["nearest", "zero", "barycentric"])
def test_the_error_reported_is_the_error(interpolation: str) -> None:
    sampling = interpolate(mask_of(), interpolation)
    x, v, target = values(9, 3, 6, 5), values(9, 4, 6, 5), values(9, 4, 6, 5) + 1
    residual = Residual(sampling)
    residual.add(v, target, x=x)
    solution = residual.solve(ridge=0.1)
    assert solution.predictor is not None
    ax = np.einsum("mc,nchw->nmhw", solution.predictor, x)
    result = ax + through(v - ax + solution.bias[:, None, None], sampling)
    spread = ((target - target.mean(axis=(0, 2, 3), keepdims=True)) ** 2).sum()
    assert solution.after == pytest.approx(((target - result) ** 2).sum() / spread)
    assert solution.before == pytest.approx(((target - through(v, sampling)) ** 2).sum() / spread)
    nudged = ((target - result - 0.01 * through(np.ones_like(v), sampling)) ** 2).sum() / spread
    assert nudged > solution.after


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 11), max_size=4), groups=st.sampled_from([1, 2]))
def test_streaming_equals_one_shot(cuts: list[int], groups: int) -> None:
    sampling = interpolate(mask_of(), "nearest")
    x, v, target, other = values(12, 4, 6, 5), values(12, 6, 6, 5), values(12, 6, 6, 5), values(12, 6, 6, 5)
    once, often = Residual(sampling, groups, Goal(0.0)), Residual(sampling, groups, Goal(0.0))
    one, many = Neighbours(sampling.mask), Neighbours(sampling.mask)
    once.add(v, target, other, x)
    one.add(v, target, other)
    for part in np.split(np.arange(12), sorted(cuts)):
        often.add(v[part], target[part], other[part], x[part])
        many.add(v[part], target[part], other[part])
    a, b = once.solve(), often.solve()
    np.testing.assert_allclose(a.bias, b.bias, atol=1e-12)
    np.testing.assert_allclose(a.predictor, b.predictor, atol=1e-12)
    assert a.after == pytest.approx(b.after)
    np.testing.assert_allclose(one.solve().weight, many.solve().weight, atol=1e-6)


def test_memory_does_not_grow_with_the_images() -> None:
    residual = Residual(interpolate(mask_of(), "nearest"))
    sizes = []
    for _ in range(3):
        residual.add(values(7, 4, 6, 5), values(7, 4, 6, 5), x=values(7, 3, 6, 5))
        sizes.append(sum(getattr(v, "nbytes", 0) for v in vars(residual).values()))
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("kind", ["zero", "constant", "twice"])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_singular_cases_stay_finite(kind: str, ridge: float) -> None:
    sampling = interpolate(mask_of(), "nearest")
    x = np.zeros((5, 4, 6, 5)) if kind == "zero" else np.ones((5, 4, 6, 5))
    if kind == "twice":
        x = np.repeat(values(5, 2, 6, 5), 2, axis=1)
    residual, neighbours = Residual(sampling), Neighbours(sampling.mask)
    residual.add(x, x, x=x)
    neighbours.add(x, x)
    solution, learned = residual.solve(ridge), neighbours.solve(ridge)
    assert solution.predictor is not None
    assert np.isfinite(solution.predictor).all()
    assert np.abs(solution.predictor).max() < 100
    assert np.isfinite(solution.bias).all()
    assert learned.weight is not None
    assert np.isfinite(learned.weight).all()


@pytest.mark.parametrize("mask", [np.ones((4, 4), bool), np.eye(4, dtype=bool) & (np.arange(4) == 0)])
def test_masks_with_all_sites_and_with_one(mask: np.ndarray) -> None:
    sampling = interpolate(mask, "nearest")
    v, target = values(6, 3, 4, 4), values(6, 3, 4, 4)
    residual, neighbours = Residual(sampling), Neighbours(mask)
    residual.add(v, target, x=v)
    neighbours.add(v, target)
    assert residual.solve().after <= residual.solve().before
    assert neighbours.solve().interpolation == "learned"


def test_learned_weights_are_found_and_sites_stay_exact() -> None:
    mask = mask_of(8, 8)
    neighbours = Neighbours(mask)
    v = values(40, 5, 8, 8)
    table = neighbours.nearest
    weight = RNG.random(table.shape)
    target = v.reshape(40, 5, -1).copy()
    skipped = np.flatnonzero(~mask)
    target[:, :, skipped] = (target[:, :, table[skipped]] * weight[skipped]).sum(axis=-1)
    neighbours.add(v, target.reshape(v.shape))
    learned = neighbours.solve(ridge=0)
    assert learned.weight is not None
    np.testing.assert_allclose(learned.weight[skipped], weight[skipped], atol=1e-5)
    np.testing.assert_allclose(through(v, learned), target.reshape(v.shape), atol=1e-4)


@given(seed=st.integers(0, 99), count=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_nearest_sites(seed: int, count: int) -> None:
    mask = mask_of(7, 9, seed, 0.4)
    sites = np.argwhere(mask)
    found = nearest_sites(mask, count)
    for position, (y, x) in enumerate(np.ndindex(mask.shape)):
        keys = sorted((int((a - y) ** 2 + (b - x) ** 2), int(a) * 9 + int(b)) for a, b in sites)
        assert found[position].tolist() == [key for _, key in keys[:count]]
    np.testing.assert_array_equal(found[:, 0], interpolate(mask, "nearest").source[:, 0])


@pytest.mark.parametrize(
    ("activation", "goal"),
    [
        (Activation(), Goal()),
        (Activation(0.0), Goal(0.0)),
        (Activation(0.0, 0.0, 6.0), Goal(0.0, 6.0)),
        (Activation(1.0, -1.0, 1.0), Goal(-1.0, 1.0)),
        (Activation(0.1), Goal()),
    ],
)
def test_goals(activation: Activation, goal: Goal) -> None:
    made = Goal.of(activation)
    assert (made.low, made.high) == pytest.approx((goal.low, goal.high))
    target, result = 4 * values(50), 4 * values(50)
    error = made.error(target, result)
    np.testing.assert_allclose(activation(result + error), activation(target), atol=1e-12)
    true = (activation(target) - activation(result)) ** 2
    assert (error**2 >= true - 1e-12).all()
    assert (error[(true == 0) & (activation.negative_slope == 0) & (target < 0)] == 0).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(wrong: float) -> None:
    sampling = interpolate(mask_of(), "nearest")
    v = values(2, 3, 6, 5)
    v[0, 0, 0, 0] = wrong
    residual: Any
    for residual in (Residual(sampling), Neighbours(sampling.mask)):
        with np.errstate(invalid="ignore"):
            residual.add(v, v)
        with pytest.raises(PerfonnxError, match="not finite"):
            residual.solve()
    with pytest.raises(PerfonnxError, match="no data"):
        Residual(sampling).solve()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_refit_names_the_sample_that_is_not_finite(wrong: float) -> None:
    x, target = values(7, 2, 6, 5), values(7, 3, 6, 5)
    x[5, 1, 2, 3] = wrong
    fit = Refit(mask_of(), np.array([(0, 0), (0, 1)]), (1, 1), values(3, 2, 2), np.zeros(3), Goal(), 30)
    fit.add(x[:4], target[:4])
    with pytest.raises(PerfonnxError, match="sample 5 of the calibration data, from 0 on"):
        fit.add(x[4:], target[4:])
