"""The greedy search of the perforation paper, on measured time and loss, with its holes closed.

Figurnov et al., arXiv 1504.08362, section 3.3: every layer has a ladder of choices, from dense to almost empty. Each
step tries every layer one rung further, measures time and loss of the whole network, and takes the layer with the
smallest (L - L0) / (t0 - t), both against the original network. What the paper leaves open is settled here:

- a candidate that is not faster than the original, or not faster than the network so far by more than the timing's
  uncertainty, is inadmissible: noise must not choose, and no time gained is no infinite cost to be ranked;
- a candidate whose loss did not grow comes before all others, and among such the one that gains the most time: a
  negative cost would rank the smallest gain first;
- candidates whose costs cannot be told apart, given the uncertainty of their times, are told apart by their loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Measured:
    """A whole network, measured.

    Attributes:
        time: Relative to the original's, 1 being as slow.
        uncertainty: Half the confidence interval of `time`.
        loss: What is to stay small; the original's is subtracted, so 0 is as good.
    """

    time: float
    uncertainty: float
    loss: float

    @property
    def cost(self) -> tuple[float, float]:
        """The order in which candidates are taken: (0, -gain) where nothing is lost, else (1, loss per gain)."""
        gain = 1.0 - self.time
        return (0.0, -gain) if self.loss <= 0 else (1.0, self.loss / gain)

    def best_cost(self) -> tuple[float, float]:
        """The cost if the time were as short as it may be."""
        return Measured(self.time - self.uncertainty, 0.0, self.loss).cost

    def worst_cost(self) -> tuple[float, float]:
        """The cost if the time were as long as it may be."""
        return Measured(min(self.time + self.uncertainty, 1.0 - 1e-9), 0.0, self.loss).cost


@dataclass(frozen=True)
class Step(Generic[C]):
    """One step: the layer that moved, what every layer has now, and what was measured."""

    layer: str
    choices: Mapping[str, C]
    measured: Measured


def admissible(candidate: Measured, current: Measured) -> bool:
    """Whether a candidate gains time against the original and against the network so far, beyond all doubt."""
    return candidate.time + candidate.uncertainty < min(1.0, current.time)


def pick(candidates: Mapping[str, Measured], current: Measured) -> str | None:
    """The candidate to take; None where none is admissible."""
    allowed = {name: m for name, m in candidates.items() if admissible(m, current)}
    if not allowed:
        return None
    best = min(allowed.values(), key=lambda m: m.cost)
    close = [name for name, m in allowed.items() if m.best_cost() <= best.worst_cost() and m.cost[0] == best.cost[0]]
    if best.cost[0] == 0:  # nothing is lost: the most time gained
        return min(close, key=lambda name: (allowed[name].time, name))
    return min(close, key=lambda name: (allowed[name].loss, allowed[name].time, name))


def greedy(
    ladders: Mapping[str, Sequence[Sequence[C]]],
    measure: Callable[[Mapping[str, C]], Measured],
    *,
    max_loss: float,
    go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Step[C]]:
    """Walks from the original to ever faster networks.

    Args:
        ladders: For each layer its rungs, in order of growing rate; each rung has one choice or more (mask kinds,
            draws). Layers are dense at first, which is no rung.
        measure: Measures the network with these choices.
        max_loss: Candidates with a larger loss are left out; the walk ends where none remains.
        go_on: Asked before each measurement.

    Yields:
        Each step taken.
    """
    rung = dict.fromkeys(ladders, 0)
    choices: dict[str, C] = {}
    current = Measured(1.0, 0.0, 0.0)
    while True:
        before = dict(rung)
        tried: dict[str, tuple[str, C, Measured]] = {}
        for layer, rungs in ladders.items():
            if rung[layer] >= len(rungs):
                continue
            found = []
            for number, choice in enumerate(rungs[rung[layer]]):
                if not go_on():
                    return
                measured = measure({**choices, layer: choice})
                found.append(measured)
                if measured.loss <= max_loss:
                    tried[f"{layer} {number}"] = layer, choice, measured
            if not any(admissible(measured, current) for measured in found):
                rung[layer] += 1  # this rung gains no time; the next one may
        name = pick({key: measured for key, (_, _, measured) in tried.items()}, current)
        if name is not None:
            layer, choices[tried[name][0]], current = tried[name]
            rung[layer] += 1
            yield Step(layer, dict(choices), current)
        elif rung == before:
            return
