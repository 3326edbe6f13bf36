"""Ways to look at a network: by layers or by groups of them, on rows or on maps; and the best selections in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from perfonnx.methods import Method
from perfonnx.search.choose import UNCHANGED, Layer, Option, frontier, total_time
from perfonnx.search.costs import LayerCosts
from perfonnx.search.groups import Units, by_layer
from perfonnx.search.result import MIN_SPEEDUP

CLOSE = 0.003
"""Selections whose predicted times differ by less than this part are taken for one."""

Errors: TypeAlias = Mapping[str, Mapping[Method, float]]
"""What each choice in each unit adds to the guide."""


@dataclass(frozen=True)
class Rung:
    """One choice of a unit (None: dense) among sampled ones, with its time and error."""

    choice: Method | None
    time: float
    error: float


@dataclass(frozen=True)
class Selected:
    """What layers get, with what is predicted of the network: its error, and its time as a part of the original's."""

    choices: Mapping[str, Method]
    error: float
    time: float


@dataclass(frozen=True)
class Way:
    """A way to look at the network.

    Attributes:
        name: For a reader.
        layout: One of `perfonnx.plan.LAYOUTS`.
        units: What gets one choice together, in running order.
        costs: What units take.
        base: What layers have at first; others are dense. Where there is something, units are single layers.
    """

    name: str
    layout: str
    units: Units
    costs: LayerCosts
    base: Mapping[str, Method] = field(default_factory=dict)

    def is_further(self, unit: str, choice: Method) -> bool:
        """Whether a choice makes a unit faster, and goes beyond what it has at first."""
        if unit not in self.costs.sampled.get(choice, ()):
            return False
        now = self.base.get(unit)
        if now is None:
            return self.costs.gain(unit, choice) > 0
        return choice.saving > now.saving and self.costs.sampled[choice][unit] < self.stay(unit).time

    def stay(self, unit: str) -> Rung:
        """A unit as it is at first, between sampled ones."""
        choice = self.base.get(unit)
        dense = self.costs.inside.get(unit, self.costs.dense[unit])
        return Rung(choice, dense if choice is None else self.costs.sampled.get(choice, {}).get(unit, dense), 0.0)

    def options(self, errors: Errors, unit: str, kinds: Sequence[str] | None = None) -> dict[Method, Option]:
        """What can be done with a unit, with masks of these kinds."""
        sampled = self.costs.sampled
        return {
            choice: Option(sampled[choice][unit], error)
            for choice, error in errors.get(unit, {}).items()
            if unit in sampled.get(choice, ()) and (kinds is None or choice.family in kinds)
        }

    def rungs(self, errors: Errors, unit: str) -> list[Rung]:
        """The choices of a unit between sampled ones, what it has at first before all others."""
        return [self.stay(unit), *(Rung(c, o.time, o.error) for c, o in self.options(errors, unit).items())]

    def line(self, errors: Errors, kinds: Sequence[str] | None = None) -> list[Selected]:
        """The best selections, from the mildest that is worth a change to the boldest."""
        options = {unit: self.options(errors, unit, kinds) for unit in self.units}
        chain = self._chain(options)
        unchanged = total_time(chain, dict.fromkeys(chain, UNCHANGED))
        best = [s for s in frontier(chain) if any(pick != UNCHANGED for pick in s.picks.values())]
        rest, whole = self.costs.rest, unchanged + self.costs.rest
        worth = [s for s in best if (s.time + rest) * MIN_SPEEDUP <= whole] or best[-1:]
        kept = worth[:1]
        for selected in worth[1:]:
            if selected.time <= kept[-1].time - CLOSE * whole or selected is worth[-1]:
                kept.append(selected)
        return [self._selected(options, s.picks, s.time, s.error) for s in kept]

    def single(self, errors: Errors) -> list[Selected]:
        """Single units that are worth a change by themselves, by growing error."""
        options = {unit: self.options(errors, unit) for unit in self.units}
        chain = self._chain(options)
        unchanged = dict.fromkeys(chain, UNCHANGED)
        whole = total_time(chain, unchanged) + self.costs.rest
        found = []
        for unit, known in options.items():
            for place, option in enumerate(known.values()):
                picks = {**unchanged, unit: place}
                found.append(self._selected(options, picks, total_time(chain, picks), option.error))
        return sorted((s for s in found if s.time * MIN_SPEEDUP <= whole), key=lambda s: s.error)

    def _chain(self, options: Mapping[str, Mapping[Method, Option]]) -> dict[str, Layer]:
        started = {unit: self.stay(unit).time for unit in self.units if unit in self.base}
        return self.costs.chain({unit: list(known.values()) for unit, known in options.items()}, started)

    def _selected(
        self, options: Mapping[str, Mapping[Method, Option]], picks: Mapping[str, int], time: float, error: float
    ) -> Selected:
        chosen = {unit: list(options[unit])[pick] for unit, pick in picks.items() if pick != UNCHANGED}
        return Selected(by_layer(self.units, chosen), error, time + self.costs.rest)
