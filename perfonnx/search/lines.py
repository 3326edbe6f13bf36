"""Walks along a line of selections, from the mildest to the boldest, for the network that meets what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from perfonnx.plan import Plan
from perfonnx.search.networks import Networks
from perfonnx.search.pace import TRIAL
from perfonnx.search.sensitivity import plan_key
from perfonnx.search.walk import Seen, walk
from perfonnx.search.ways import Selected


def walk_line(
    networks: Networks,
    line: Sequence[Selected],
    plan: Callable[[Selected], Plan],
    why: str,
    *,
    start: float | None,
    kind: str = TRIAL,
    until: float = 1.0,
) -> float | None:
    """Measures networks of a line until the bound, or the speed, lies between two neighbours.

    Args:
        networks: What measures, and what is wanted.
        line: By growing error that is predicted.
        plan: Of a selection.
        why: How the search came to these networks.
        start: The error to start from where a bound is looked for; None: the middle.
        kind: What measuring one of them is, see `perfonnx.search.pace`.
        until: Part of the time in which to do it.

    Returns:
        The error that is predicted of the boldest one within the bound; None where there is none, or no bound.
    """
    target = networks.target
    if not line:
        return None
    if target.speedup is not None:
        _to_speed(networks, line, plan, why, target.speedup, kind, until)
        best = networks.best()
        if best is not None and target.reached(best.speed):
            return None
    return _to_loss(networks, line, plan, why, start, kind, until) if target.max_drop is not None else None


def _to_loss(
    networks: Networks,
    line: Sequence[Selected],
    plan: Callable[[Selected], Plan],
    why: str,
    start: float | None,
    kind: str,
    until: float,
) -> float | None:
    metric, allowed = networks.tools.metric, networks.limit()

    def attempt(place: int) -> Seen:
        trial = networks.attempt(plan(line[place]), why)
        size = metric.size(networks.loss(trial)) / allowed if allowed > 0 else None
        return Seen(not networks.within(trial), size)

    plans = [plan_key(plan(selected)) for selected in line]
    low, _ = walk(
        [selected.error for selected in line],
        attempt,
        start=start,
        safe=0,
        known={place: attempt(place) for place, key in enumerate(plans) if key in networks.trials},
        go_on=lambda: networks.goes_on(kind, until),
        last=lambda: networks.is_last(kind, until),
    )
    return line[low].error if low >= 0 else None


def _to_speed(
    networks: Networks,
    line: Sequence[Selected],
    plan: Callable[[Selected], Plan],
    why: str,
    speedup: float,
    kind: str,
    until: float,
) -> None:
    def attempt(place: int) -> Seen:
        speed = networks.attempt(plan(line[place]), why).speed
        return Seen(networks.target.reached(speed), max(speed.ratio - 1, 0.0) / (speedup - 1))

    walk(
        [max(1 / max(selected.time, 1e-9) - 1, 0.0) for selected in line],
        attempt,
        start=speedup - 1,
        safe=len(line) - 1,
        go_on=lambda: networks.goes_on(kind, until),
        last=lambda: networks.is_last(kind, until),
    )
