"""Weights as products of factors: alternating least squares in any metric.

A weight that is a sum of products, such as W[m, c, i, j] = sum_r H[m, r, j] V[r, c, i], is linear in each factor. With
the others held, the best one solves normal equations L' S L f = L' S w, with L from the factor to the weight and S the
metric's form. They are solved by conjugate gradients from where the factor stands, so that the error never grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

ROUNDS = 8
"""Rounds over all factors, at most."""

STEPS = 8
"""Steps of conjugate gradients for a factor in a round, at most."""

WORK = 4e11
"""Multiplies of a fit, about, where its metric is a full matrix: layers of long rows get fewer rounds, one at least."""

SMALLEST_GAIN = 2e-3
"""A round that takes away less than this part of the error is the last one."""

_TINY = 1e-10


def fit(
    spec: str,
    factors: Sequence[Float],
    weight: Float,
    apply: Callable[[Float], Float],
    *,
    rounds: int = ROUNDS,
) -> list[Float]:
    """The factors whose product is nearest to a weight.

    Args:
        spec: The product in einsum's notation, such as `mrj,rci->mcij`.
        factors: Where to start; at least all but the first must not be 0.
        weight: What they are to give.
        apply: The metric's form, see `perfonnx.methods.lowrank.metric.Metric.apply`.
        rounds: See `ROUNDS`.
    """
    names, result = spec.split("->")[0].split(","), spec.split("->")[1]
    current = [np.array(factor, np.float64) for factor in factors]
    wanted = apply(weight)
    whole = float(np.vdot(weight, wanted))
    last = whole
    of_round = len(names) * (STEPS + 1) * weight.size * (weight.size // len(weight))
    for _ in range(max(1, min(rounds, int(WORK // of_round)))):
        for place, name in enumerate(names):
            others = [factor for k, factor in enumerate(current) if k != place]
            rest = [n for k, n in enumerate(names) if k != place]
            forward = ",".join([name, *rest]) + "->" + result
            backward = ",".join([result, *rest]) + "->" + name

            def normal(f: Float, forward: str = forward, backward: str = backward, o: list[Float] = others) -> Float:
                return einsum(backward, apply(einsum(forward, f, *o)), *o)

            current[place] = _solve(normal, einsum(backward, wanted, *others), current[place])
        product = einsum(spec, *current)
        left = float(np.vdot(weight - product, apply(weight - product)))
        if left >= last * (1 - SMALLEST_GAIN) or left <= _TINY * whole:
            break
        last = left
    return current


def _solve(normal: Callable[[Float], Float], right: Float, start: Float) -> Float:
    """Conjugate gradients."""
    x = start
    residual = right - normal(x)
    direction = residual
    size = float(np.vdot(residual, residual))
    enough = _TINY * float(np.vdot(right, right))
    for _ in range(STEPS):
        if size <= enough:
            break
        image = normal(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= 0:
            break
        step = size / curvature
        x = x + step * direction
        residual = residual - step * image
        now = float(np.vdot(residual, residual))
        direction = residual + (now / size) * direction
        size = now
    return x


@lru_cache(maxsize=256)
def _path(spec: str, shapes: tuple[tuple[int, ...], ...]) -> Any:
    return np.einsum_path(spec, *(np.empty(shape) for shape in shapes), optimize="greedy")[0]


def einsum(spec: str, *arrays: Float) -> Float:
    """`numpy.einsum` by matrix products, in an order that is found once."""
    result: Float = np.einsum(spec, *arrays, optimize=_path(spec, tuple(array.shape for array in arrays)))
    return result
