"""Groups of equal size: k-means where every cluster has as many members as every other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

RESTARTS = 4
ROUNDS = 30


def equal_clusters(points: Float, count: int) -> NDArray[np.intp]:
    """The points' numbers, those of the first cluster before those of the second, and so on.

    Assigning to centres with places for so many members is a linear assignment problem, which is solved exactly.

    Args:
        points: [n, d]; `count` divides n.
        count: Number of clusters.
    """
    if count == 1 or count == len(points):
        return np.arange(len(points))
    rng = np.random.default_rng(0)
    found = [_lloyd(points, count, rng) for _ in range(RESTARTS)]
    return np.argsort(min(found, key=lambda each: each[0])[1], kind="stable")


def _lloyd(points: Float, count: int, rng: np.random.Generator) -> tuple[float, NDArray[np.intp]]:
    """Squared distances to the centres, and each point's cluster."""
    from scipy.optimize import linear_sum_assignment

    places = np.repeat(np.arange(count), len(points) // count)
    centres = points[rng.choice(len(points), count, replace=False)]
    owner, energy = np.zeros(len(points), np.intp), np.inf
    for _ in range(ROUNDS):
        distances = np.square(points).sum(axis=1)[:, None] - 2 * points @ centres.T + np.square(centres).sum(axis=1)
        chosen = places[linear_sum_assignment(distances[:, places])[1]]
        now = float(distances[np.arange(len(points)), chosen].sum())
        if now >= energy * (1 - 1e-9):
            break
        owner, energy = chosen, now
        centres = np.stack([points[owner == each].mean(axis=0) for each in range(count)])
    return energy, owner
