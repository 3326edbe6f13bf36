"""Columns of a weight that are left out one after the other, the others making up for each: optimal brain surgery.

Hassibi and Stork (Second order derivatives for network pruning, 1992), on the squared form of data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

CANDIDATES = 128
"""Columns among which the next ones are looked for, at most; all others follow suit when a part of them is gone."""


def eliminated(weight: Float, inverse: Float, units: int, left: int) -> tuple[NDArray[np.intp], Float]:
    """The units that are left, and the weight [M, K] with zeros for the columns of the others.

    With H the metric's matrix, leaving out the columns b of a unit costs tr(W_b (H^-1_bb)^-1 W_b'), when all others
    make up for them by W -= W_b (H^-1_bb)^-1 H^-1_b. The unit that costs least goes first.

    Args:
        weight: [M, K].
        inverse: [K, K], that of H.
        units: K is so many times the columns of a unit, which lie side by side.
        left: Units that are left.
    """
    result, size = np.zeros_like(weight), weight.shape[1] // units
    there = np.arange(units)
    while len(there) > left:
        costs = _costs(weight, inverse, size)
        count = min(max(CANDIDATES // size, 2), len(there))
        candidates = np.sort(np.argpartition(costs, count - 1)[:count])
        columns = _columns(candidates, size)
        gone = candidates[
            _cheapest(weight[:, columns], inverse[np.ix_(columns, columns)], size, min(count // 2, len(there) - left))
        ]
        columns, kept = _columns(gone, size), np.delete(np.arange(len(there)), gone)
        rest = _columns(kept, size)
        makes_up = np.linalg.solve(inverse[np.ix_(columns, columns)], inverse[np.ix_(columns, rest)])
        weight = weight[:, rest] - weight[:, columns] @ makes_up
        inverse = inverse[np.ix_(rest, rest)] - inverse[np.ix_(rest, columns)] @ makes_up
        there = there[kept]
    result[:, _columns(there, size)] = weight
    return there, result


def _cheapest(weight: Float, inverse: Float, size: int, count: int) -> NDArray[np.intp]:
    """So many units that are to go, each the cheapest when those before it are gone."""
    gone = np.zeros(weight.shape[1] // size, bool)
    for _ in range(count):
        costs = np.where(gone, np.inf, _costs(weight, inverse, size))
        least = int(np.argmin(costs))
        gone[least] = True
        b = slice(least * size, (least + 1) * size)
        makes_up = np.linalg.solve(inverse[b, b], inverse[b])
        weight = weight - weight[:, b] @ makes_up
        inverse = inverse - inverse[:, b] @ makes_up
        inverse[b, b] = np.eye(size)  # not asked for again
    return np.flatnonzero(gone)


def _costs(weight: Float, inverse: Float, size: int) -> Float:
    """What it costs to leave out each unit."""
    units = weight.shape[1] // size
    number = np.arange(units)
    blocks = inverse.reshape(units, size, units, size)[number, :, number]
    of_units = weight.T.reshape(units, size, -1)
    if size == 1:
        return np.square(of_units).sum(axis=(1, 2)) / blocks[:, 0, 0]
    costs: Float = (np.linalg.solve(blocks, of_units) * of_units).sum(axis=(1, 2))
    return costs


def _columns(units: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    return (units[:, None] * size + np.arange(size)).reshape(-1)
