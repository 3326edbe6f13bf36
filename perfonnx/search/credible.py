"""What a network loses, given what others lost: an estimate that luck fools less than the number measured.

Among many networks measured on a few hundred images, the one that seems to lose nothing was lucky, most likely. But all
of them were also measured by the guide, which is far less noisy, and a network's loss is about proportional to it. So
each measured loss is drawn towards what the guide lets expect, the more so the less certain it is (empirical Bayes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from perfonnx.comparing.metrics import Quality

NEAR = 4.0
"""Networks count whose guide is within this factor: over larger ranges losses are not proportional to it."""

ENOUGH = 4
"""With fewer networks the number measured stands as it is."""

SCATTER = 0.1
"""How far losses are from proportional at least, as a part of them."""


def credible_drop(quality: Quality, measured: Sequence[Quality]) -> float:
    """The loss to expect of a network.

    Args:
        quality: What was measured of it.
        measured: What was measured of all networks, this one among them.

    Returns:
        The mean of what was measured and what the guide lets expect, weighted by how certain each is.
    """
    near = [
        q for q in measured if quality.guide / NEAR <= q.guide <= quality.guide * NEAR and 0 < q.drop_error < math.inf
    ]
    if len(near) < ENOUGH or quality.guide <= 0 or not 0 < quality.drop_error < math.inf:
        return quality.drop
    weights = [1 / q.drop_error**2 for q in near]
    slope = sum(w * q.guide * q.drop for w, q in zip(weights, near, strict=True)) / sum(
        w * q.guide**2 for w, q in zip(weights, near, strict=True)
    )
    expected = slope * quality.guide
    # What the losses scatter about the line by more than their own uncertainty, at this guide.
    excess = sum(((q.drop - slope * q.guide) ** 2 - q.drop_error**2) / q.guide**2 for q in near) / len(near)
    scatter = max(excess, (SCATTER * slope) ** 2) * quality.guide**2
    if scatter <= 0:
        return expected
    certainty, prior = 1 / quality.drop_error**2, 1 / scatter
    return (certainty * quality.drop + prior * expected) / (certainty + prior)
