"""Finds the place on a line of networks where a bound is met, by measuring few of them.

The line goes from the mildest network to the boldest. What is predicted of each is right in its order, roughly, and
wrong in its size: errors of layers do not add. So each measurement says how far predictions are off, and where to look
next: a miss by a factor of ten is no reason to try its neighbour, nor to give up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

STEP = (2.0, 16.0)
"""Factor in what is predicted by which one step goes at least and at most, while the bound has been met on one side."""

INNER = (0.15, 0.85)
"""Between a network on each side the next one lies in this part of the way, on a logarithmic scale."""

CAUTION = 4.0
"""Factor in what is predicted by which a last attempt keeps away from where the bound is expected."""

_TINY = 1e-6  # of the largest prediction; what costs nothing is predicted to cost this


@dataclass(frozen=True)
class Seen:
    """A network that was measured.

    Attributes:
        beyond: It lies on the bolder side of the bound.
        size: What was measured as a multiple of the bound: 2 is twice too much. None: only the side is known.
    """

    beyond: bool
    size: float | None


def nearest(predicted: Sequence[float], wanted: float, low: int = -1, high: int | None = None) -> int:
    """The place strictly between two whose prediction is the nearest to a number, on a logarithmic scale."""
    inner = range(low + 1, len(predicted) if high is None else high)
    floor = max(predicted, default=0.0) * _TINY or _TINY
    return min(inner, key=lambda i: abs(math.log(max(predicted[i], floor) / max(wanted, floor))))


def walk(
    predicted: Sequence[float],
    attempt: Callable[[int], Seen],
    *,
    start: float | None,
    safe: int,
    known: Mapping[int, Seen] | None = None,
    go_on: Callable[[], bool] = lambda: True,
    last: Callable[[], bool] = lambda: False,
) -> tuple[int, int]:
    """Measures networks of a line until two neighbours lie on either side of the bound.

    Args:
        predicted: What is predicted of each network, growing.
        attempt: Measures the network at a place.
        start: The prediction to start from; None: the middle, on a logarithmic scale.
        safe: The place that is the likeliest to be of use, the first or the last one. Where there is time for one more
            and nothing of use was found, the walk turns towards it, and where that was not enough, goes there.
        known: Networks that were measured before; nothing outside the two of them about the bound is tried.
        go_on: Asked before each attempt.
        last: Asked before each attempt: whether there is no time for another one after it.

    Returns:
        The last place before the bound, -1 where there is none, and the first one beyond, `len(predicted)` where there
        is none.
    """
    known = known or {}
    high = min((place for place, seen in known.items() if seen.beyond), default=len(predicted))
    low = max((place for place, seen in known.items() if place < high), default=-1)
    sizes = {place: seen.size for place, seen in known.items()}
    moves: list[bool] = []  # whether each attempt was beyond
    cautious = False
    if high - low <= 1:
        return low, high
    if low >= 0 or high < len(predicted):
        place = _next(predicted, sizes, low, high, moves)
    else:
        floor = max(predicted) * _TINY or _TINY
        middle = math.sqrt(max(predicted[0], floor) * max(predicted[-1], floor))
        place = nearest(predicted, middle if start is None else start)
    while high - low > 1 and go_on():
        found = low >= 0 if safe == 0 else high < len(predicted)
        if last() and not found:
            wanted = predicted[place] * (1 / CAUTION if safe == 0 else CAUTION)
            place = safe if cautious and low < safe < high else nearest(predicted, wanted, low, high)
            cautious = True
        seen = attempt(place)
        sizes[place] = seen.size
        moves.append(seen.beyond)
        low, high = (low, place) if seen.beyond else (place, high)
        if high - low > 1:
            place = _next(predicted, sizes, low, high, moves)
    return low, high


def _next(
    predicted: Sequence[float], sizes: dict[int, float | None], low: int, high: int, moves: Sequence[bool]
) -> int:
    floor = max(predicted) * _TINY or _TINY
    if low < 0:
        size = _or(sizes[high], STEP[0])
        return nearest(predicted, predicted[high] / min(max(size, STEP[0]), STEP[1]), low, high)
    if high == len(predicted):
        size = 1 / max(_or(sizes[low], 1 / STEP[0]), 1 / STEP[1])
        return nearest(predicted, max(predicted[low], floor) * max(size, STEP[0]), low, high)
    a, b = (max(predicted[place], floor) for place in (low, high))
    below, above = _or(sizes[low], 0.0), _or(sizes[high], 0.0)
    part = 0.5
    stuck = len(moves) > 1 and moves[-1] == moves[-2]
    if not stuck and 0 < below < above and above > 1:
        part = min(max(math.log(1 / below) / math.log(above / below), INNER[0]), INNER[1])
    return nearest(predicted, a * (b / a) ** part, low, high)


def _or(size: float | None, otherwise: float) -> float:
    return otherwise if size is None else size
