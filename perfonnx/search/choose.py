"""Choosing one option per layer under a model in which times add up, and errors add up.

Errors: what one sampled layer does to the output is taken to be independent of what the others do. Times: a layer's
time depends on where it stands. Sampled layers form one region on rows, from the first to the last of them; a dense
layer inside it is computed on rows too, and entering and leaving the region costs something.

Pure functions on numbers; what a layer or an option is does not matter here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

CAP = 4096
"""Selections kept while layers are joined, for each state. Up to here the frontier is exact."""

UNCHANGED = -1
"""The pick of a layer that is left as it is."""


@dataclass(frozen=True)
class Option:
    """One way of sampling a layer: the time it then takes among sampled layers, and the error that it makes."""

    time: float
    error: float


@dataclass(frozen=True)
class Layer:
    """What can be done with a layer, and what that costs in time.

    Attributes:
        dense: Its time where it is left as it is, outside the region.
        inside: Its time where it is left dense between sampled layers.
        options: The ways of sampling it.
        enter: What it costs more where it is the first sampled layer.
        leave: What it costs more where it is the last one.
    """

    dense: float
    inside: float
    options: Sequence[Option] = ()
    enter: float = 0.0
    leave: float = 0.0


Chain: TypeAlias = Mapping[str, Layer]
"""The layers, in the order in which they run."""


@dataclass(frozen=True)
class Selection:
    """What every layer gets, the place of an option or `UNCHANGED`, with the sums of times and errors."""

    picks: Mapping[str, int]
    time: float
    error: float


def pareto(options: Sequence[Option]) -> list[int]:
    """Places of the options that no other one beats, from the smallest error to the smallest time.

    An option is beaten by one that is not worse in either and better in one; of equal options the first stays.
    """
    order = sorted(range(len(options)), key=lambda i: (options[i].error, options[i].time, i))
    kept: list[int] = []
    for index in order:
        if not kept or options[index].time < options[kept[-1]].time:
            kept.append(index)
    return kept


def total_time(chain: Chain, picks: Mapping[str, int]) -> float:
    """The time of a selection."""
    sampled = [place for place, name in enumerate(chain) if picks[name] != UNCHANGED]
    time = 0.0
    for place, (name, layer) in enumerate(chain.items()):
        if picks[name] != UNCHANGED:
            time += layer.options[picks[name]].time
            time += layer.enter if place == sampled[0] else 0.0
            time += layer.leave if place == sampled[-1] else 0.0
        else:
            time += layer.inside if sampled and sampled[0] < place < sampled[-1] else layer.dense
    return time


@dataclass(frozen=True)
class _State:
    """Selections for the layers so far, as arrays; where each came from is kept for tracing it back."""

    time: NDArray[np.float64]
    error: NDArray[np.float64]
    origin: NDArray[np.int64]  # state before, place there, pick: [n, 3]


BEFORE, INSIDE, BEHIND = range(3)


def frontier(chain: Chain, *, cap: int = CAP) -> list[Selection]:
    """All selections that no other one beats, from the smallest error to the smallest time.

    Layers are joined one by one, apart for the three states before, inside and behind the region, and what is beaten
    in its state is dropped on the way (dynamic programming over Pareto frontiers). Where more than `cap` selections
    remain in a state, the range of times is cut into parts and the smallest error of each part stays.
    """
    none = np.zeros(0)
    states = [_State(np.zeros(1), np.zeros(1), np.zeros((1, 3), np.int64))]
    states += [_State(none, none, np.zeros((0, 3), np.int64))] * 2
    history = []
    for layer in chain.values():
        useful = pareto(layer.options)
        sampled = [(i, layer.options[i].time, layer.options[i].error) for i in useful]
        moves = [  # from, to, pick, time, error
            (BEFORE, BEFORE, UNCHANGED, layer.dense, 0.0),
            (INSIDE, INSIDE, UNCHANGED, layer.inside, 0.0),
            (BEHIND, BEHIND, UNCHANGED, layer.dense, 0.0),
        ]
        for pick, time, error in sampled:
            moves += [
                (BEFORE, INSIDE, pick, time + layer.enter, error),
                (BEFORE, BEHIND, pick, time + layer.enter + layer.leave, error),
                (INSIDE, INSIDE, pick, time, error),
                (INSIDE, BEHIND, pick, time + layer.leave, error),
            ]
        states = [_reached(states, [m for m in moves if m[1] == state], cap) for state in (BEFORE, INSIDE, BEHIND)]
        history.append(states)
    ends = [(state, place) for state in (BEFORE, BEHIND) for place in range(len(states[state].time))]
    times = np.concatenate([states[BEFORE].time, states[BEHIND].time])
    errors = np.concatenate([states[BEFORE].error, states[BEHIND].error])
    return [
        Selection(_traced(list(chain), history, *ends[place]), float(times[place]), float(errors[place]))
        for place in _best(times, errors, cap)
    ]


def _reached(states: Sequence[_State], moves: Sequence[tuple[int, int, int, float, float]], cap: int) -> _State:
    """The state that these moves lead to."""
    times, errors, origins = [], [], []
    for start, _, pick, time, error in moves:
        count = len(states[start].time)
        times.append(states[start].time + time)
        errors.append(states[start].error + error)
        origins.append(np.stack([np.full(count, start), np.arange(count), np.full(count, pick)], axis=1))
    time_, error_, origin = np.concatenate(times), np.concatenate(errors), np.concatenate(origins)
    kept = _best(time_, error_, cap)
    return _State(time_[kept], error_[kept], origin[kept].astype(np.int64))


def _best(time: NDArray[np.float64], error: NDArray[np.float64], cap: int) -> NDArray[np.int64]:
    """Places of what is not beaten, in order of growing error; at most `cap`."""
    if not len(time):
        return np.zeros(0, np.int64)
    order = np.lexsort((time, error))
    fastest = np.minimum.accumulate(time[order])
    better = np.ones(len(order), np.bool_)
    better[1:] = fastest[1:] < fastest[:-1]
    kept = order[better]
    if len(kept) <= cap:
        return np.asarray(kept, np.int64)
    slow, fast = time[kept[0]], time[kept[-1]]
    part = np.minimum((slow - time[kept]) / (slow - fast) * (cap - 1), cap - 2).astype(np.int64)
    first = np.ones(len(kept), np.bool_)
    first[1:] = part[1:] != part[:-1]
    first[-1] = True  # the fastest of all, so that no range is lost
    return np.asarray(kept[first], np.int64)


def _traced(names: Sequence[str], history: Sequence[Sequence[_State]], state: int, place: int) -> dict[str, int]:
    picks = {}
    for name, states in zip(reversed(names), reversed(history), strict=True):
        state, place, picks[name] = (int(v) for v in states[state].origin[place])
    return {name: picks[name] for name in names}
