"""The search over regions: runs of layers that are put on a lattice together, and are refitted with all behind them.

What regions lose does not add up, and what lies behind them makes up for a part of it, so whole networks are refitted
and measured: first every region alone, the largest first; then combinations of them. What is predicted of these, by
adding up, serves to say which to measure next. Layers in front of what changes are fitted once, see `Subject.rewrite`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain as chained

from perfonnx.comparing.metrics import Quality
from perfonnx.methods import Method
from perfonnx.plan import Plan
from perfonnx.search.choose import UNCHANGED, Layer, Option, frontier, pareto
from perfonnx.search.lines import walk_line
from perfonnx.search.networks import Networks
from perfonnx.search.pace import REFIT, VERIFICATION
from perfonnx.search.regions import Region
from perfonnx.search.result import Trial
from perfonnx.search.sensitivity import Row, plan_key
from perfonnx.search.ways import CLOSE, Selected

PATIENCE = 4
"""Changes of single regions that may fail in a row before the search ends."""

LEADING = 0.75
"""Part of the time that regions have while the best network has some: other choices seldom add to it."""

ALONE = 0.6
"""Part of their time in which regions are measured alone."""

WORTH = 0.005
"""Part of the original's time that a region has to save to count."""

PART_WORTH = 0.03
"""The same for a part of a run, by its share in what the run saves: leaving the lattice costs something."""

HOPELESS = 4.0
"""Where a region loses so many times what is allowed, it is not put on a wider lattice."""

COMBINED = 256
"""Combinations of regions of one run that are looked at, at most."""


@dataclass(frozen=True)
class Piece:
    """A region on a lattice, as it was measured alone: the time that it saves, and what it adds to the guide."""

    region: Region
    choice: Method
    saved: float
    error: float
    quality: Quality


@dataclass
class RegionalSearch:
    """One search over regions.

    Attributes:
        networks: Whole networks, and all that measures.
        regions: By run, the largest first.
        choices: What may be done with a region, the mildest first.
        able: The layers that each choice, and what follows behind it, can replace.
        influence: For each layer those that have an influence on it, see `perfonnx.passes.targets.influences`.
        before: The network without regions that is gone on from; None: the original.
        order: All layers in running order.
        seed: Seed of the plans.
        share: Part of the time that regions have at least; more, see `LEADING`, while the best network has some.
        pieces: What was measured.
    """

    networks: Networks
    regions: Sequence[Sequence[Region]]
    choices: Sequence[Method]
    able: Mapping[Method, frozenset[str]]
    influence: Mapping[str, frozenset[str]]
    before: Trial | None
    order: Sequence[str]
    seed: int
    share: float
    pieces: list[Piece] = field(default_factory=list)
    _combined: dict[str, list[Piece]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """What each region loses alone."""
        return [Row(piece.region.name, piece.choice, piece.quality) for piece in self.pieces]

    @property
    def units(self) -> dict[str, tuple[str, ...]]:
        """The layers of each region."""
        return {region.name: region.layers for region in chained.from_iterable(self.regions)}

    @property
    def until(self) -> float:
        """The part of the time that regions have, by what is known by now."""
        best = self.networks.best()
        leads = best is not None and plan_key(best.plan) in self._combined
        return max(self.share, LEADING) if leads else self.share

    # --- plans -------------------------------------------------------------------------------------------------------

    def plan(self, picks: Sequence[tuple[Region, Method]]) -> Plan:
        """Regions on their lattices; what lies behind one is refitted, all else is as it was."""
        chosen = {name: method for region, method in picks for name in region.layers if name in self.able[method]}
        layers = {**({} if self.before is None else self.before.plan.layers), **chosen}
        for _, method in picks:
            for behind in method.behind:
                rest = self.able[behind] - chosen.keys()
                layers |= {name: behind for name in rest if self.influence.get(name, frozenset()) & chosen.keys()}
        return Plan({name: layers[name] for name in self.order if name in layers}, self.seed)

    # --- single regions ----------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Measures regions alone: whole runs, then parts of them and wider lattices, while there is time."""
        if self.regions:
            self.networks.settle(self.plan([(self.regions[0][0], self.choices[0])]))
        for made, (region, choice) in enumerate(chained(self._whole(), self._parts())):
            if made and not self.networks.pace.affords(REFIT, VERIFICATION, until=ALONE * self.until):
                self.networks.cut_short = True
                return
            trial = self.networks.attempt(self.plan([(region, choice)]), f"{region.name} {choice.label}")
            piece = self._piece(region, choice, trial)
            self.pieces.append(piece)
            self._planned([piece])

    def _whole(self) -> Iterator[tuple[Region, Method]]:
        for of_run in self.regions:
            yield of_run[0], self.choices[0]

    def _parts(self) -> Iterator[tuple[Region, Method]]:
        """Those that promise something by what is known when their turn comes."""
        whole = {piece.region.run: piece.saved for piece in self.pieces}
        order = sorted(self.regions, key=lambda of_run: -whole[of_run[0].run])
        for number, choice in [(0, c) for c in self.choices[1:2]] + [(1, self.choices[0])]:
            yield from self._of_level(order, number, choice)
        for level in (2, 3):
            for choice in self.choices:
                yield from self._of_level(order, level, choice)
        for choice in self.choices[2:]:
            yield from self._of_level(order, 0, choice)

    def _of_level(
        self, order: Sequence[Sequence[Region]], level: int, choice: Method
    ) -> Iterator[tuple[Region, Method]]:
        for region in chained.from_iterable(reversed(of_run) for of_run in order):
            # the last parts of a run first: what follows the others reads a lattice and has as many maps as before
            if region.level == level and self._promises(region, choice):
                yield region, choice

    def _promises(self, region: Region, choice: Method) -> bool:
        """Whether the run saves enough time, and the region did not lose far too much on a milder lattice."""
        known = [piece for piece in self.pieces if piece.region.run == region.run]
        saved = max(piece.saved for piece in known) * region.share
        if saved <= (PART_WORTH if region.level > 1 else WORTH):
            return False
        allowed, metric = self.networks.limit(), self.networks.tools.metric
        milder = (p for p in known if p.region == region and self.choices.index(p.choice) < self.choices.index(choice))
        return all(metric.size(piece.quality.drop - piece.quality.drop_error) <= HOPELESS * allowed for piece in milder)

    def _piece(self, region: Region, choice: Method, trial: Trial) -> Piece:
        saved = self._time(self.before) - self._time(trial)
        error = max(trial.choosing.guide - (self.before.choosing.guide if self.before else 0.0), 0.0)
        return Piece(region, choice, saved, error, trial.choosing)

    def _time(self, trial: Trial | None) -> float:
        """A network's part of the original's time, or of what else is minimised."""
        return 1.0 if trial is None else 1 / max(self.networks.target.gain(trial), 1e-9)

    # --- combinations ------------------------------------------------------------------------------------------------

    def combine(self) -> None:
        """Walks along the best combinations that are predicted, and changes what was found, in the time of regions."""
        ladders = self._ladders()
        line = self._line(ladders)
        combined = {id(selected): pieces for selected, pieces in line}
        walk_line(
            self.networks,
            [selected for selected, _ in line],
            lambda selected: self._planned(combined[id(selected)]),
            "best of regions",
            start=self._expected(),
            kind=REFIT,
            until=self.until,
        )
        self._change(ladders)

    def _planned(self, pieces: Sequence[Piece]) -> Plan:
        plan = self.plan([(piece.region, piece.choice) for piece in pieces])
        self._combined[plan_key(plan)] = list(pieces)
        return plan

    def _expected(self) -> float | None:
        """The predicted error at which the bound is met, by what single regions lost; None where they do not tell."""
        metric, target = self.networks.tools.metric, self.networks.target
        guides = sum(piece.quality.guide for piece in self.pieces)
        sizes = sum(metric.size(piece.quality.drop) for piece in self.pieces)
        return None if target.max_drop is None or sizes <= 0 else metric.size(target.max_drop) * guides / sizes

    def _ladders(self) -> dict[str, list[list[Piece]]]:
        """By run, sets of regions without common layers that no other one beats, by growing error; first, none."""
        found = {}
        for run in dict.fromkeys(piece.region.run for piece in self.pieces):
            own = [piece for piece in self.pieces if piece.region.run == run and piece.saved > WORTH]
            sets: list[list[Piece]] = [[]]
            for piece in sorted(own, key=lambda piece: piece.error / piece.saved):
                taken = set(piece.region.layers)
                free = [s for s in sets if not any(taken & set(other.region.layers) for other in s)]
                sets += [[*s, piece] for s in free[: max(COMBINED - len(sets), 0)]]
            found[run] = [sets[i] for i in pareto([Option(1 - _saved(s), _error(s)) for s in sets])]
        return found

    def _line(self, ladders: Mapping[str, Sequence[Sequence[Piece]]]) -> list[tuple[Selected, list[Piece]]]:
        """The best combinations, from the mildest to the boldest, with their regions."""
        chain = {
            run: Layer(1.0, 1.0, [Option(1 - _saved(pieces), _error(pieces)) for pieces in ladder])
            for run, ladder in ladders.items()
        }
        rest = self._time(self.before) - len(ladders)
        line: list[tuple[Selected, list[Piece]]] = []
        best = frontier(chain)
        for selection in best:
            chosen = ((run, pick) for run, pick in selection.picks.items() if pick != UNCHANGED)
            pieces = [piece for run, pick in chosen for piece in ladders[run][pick]]
            time = selection.time + rest
            if pieces and (not line or time <= line[-1][0].time - CLOSE or selection is best[-1]):
                line.append((Selected(self._planned(pieces).layers, selection.error, time), pieces))
        return line

    def _change(self, ladders: Mapping[str, Sequence[Sequence[Piece]]]) -> None:
        """Changes the best combination, one run at a time or two against each other, while that leads on."""
        networks, failures = self.networks, 0
        while failures < PATIENCE:
            best = networks.best()
            if best is None or (now := self._combined.get(plan_key(best.plan))) is None:
                return
            for pieces in self._neighbours(ladders, now):
                plan = self._planned(pieces)
                if plan_key(plan) in networks.trials:
                    continue
                if not networks.goes_on(REFIT, self.until):
                    return
                networks.attempt(plan, "regions near the best")
                failures = 0 if networks.best() is not best else failures + 1
                if not failures or failures == PATIENCE:
                    break
            else:
                return

    def _neighbours(
        self, ladders: Mapping[str, Sequence[Sequence[Piece]]], now: Sequence[Piece]
    ) -> Iterator[list[Piece]]:
        """Combinations near one, the most promising first."""
        further: list[_Move] = []
        back: list[_Move] = []
        for run, ladder in ladders.items():
            own = [piece for piece in now if piece.region.run == run]
            faster = next((s for s in ladder if _saved(s) > _saved(own)), None)
            safer = next((s for s in reversed(ladder) if _error(s) < _error(own)), None)
            if faster is not None:
                more = max(_error(faster) - _error(own), 0.0)
                further.append(_Move(more / (_saved(faster) - _saved(own)), run, faster))
            if safer is not None:
                less = _error(safer) - _error(own)
                back.append(_Move(less / max(_saved(own) - _saved(safer), 1e-9), run, safer))
        further.sort(key=lambda move: (move.order, move.run))
        back.sort(key=lambda move: (move.order, move.run))

        def changed(*moves: _Move) -> list[Piece]:
            runs = {move.run for move in moves}
            return [*(p for p in now if p.region.run not in runs), *(p for move in moves for p in move.pieces)]

        for move in further[:3] if self.networks.target.speedup is None else back[:3]:
            yield changed(move)
        for one in back[:2]:
            for other in further[:3]:
                if one.run != other.run:
                    yield changed(one, other)


@dataclass(frozen=True)
class _Move:
    """A run, and the regions that it gets; the smallest order comes first."""

    order: float
    run: str
    pieces: Sequence[Piece]


def _saved(pieces: Sequence[Piece]) -> float:
    return sum(piece.saved for piece in pieces)


def _error(pieces: Sequence[Piece]) -> float:
    return sum(piece.error for piece in pieces)
