"""The search itself: profile, screen, search, verify, each in its part of the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from perfonnx.inspection import Inspection
from perfonnx.methods import Method
from perfonnx.passes.targets import influences
from perfonnx.plan import LAYOUTS, Plan
from perfonnx.rewriting import opened
from perfonnx.search.choose import Option, pareto
from perfonnx.search.costs import layer_costs
from perfonnx.search.evaluate import CHOOSING
from perfonnx.search.greedy import Measured, greedy
from perfonnx.search.groups import Units, alone, meeting_layers, together
from perfonnx.search.lines import walk_line
from perfonnx.search.networks import OVERTIME, Networks, kind_of
from perfonnx.search.pace import PROFILE, PROFILE_SHARE, REGION_SHARE, SCREEN_SHARE, TRIAL, VERIFICATION
from perfonnx.search.regional import RegionalSearch
from perfonnx.search.regions import regions, resolution_runs
from perfonnx.search.result import TIME, Trial
from perfonnx.search.sensitivity import Row, eligible, measure_layers, plan_key, reducible
from perfonnx.search.ways import Selected, Way
from perfonnx.subject import Subject

PATIENCE = 8
"""Changes of single layers that may fail in a row before the search ends."""

RESORTS = 3
"""Single layers that are tried where no selection of several stayed within the bound."""

HOPEFUL = 1.15
"""What is predicted to take so many times as long as something else, at the same error, is not tried."""

CERTAIN = 2.0
"""Losses of single layers tell where the bound lies if they may be so many times as large, by their standard errors."""

LEAST_WORK = 0.03
"""Part of the multiplies of all runs of layers that a run has to have: others are no regions."""

LEAST = 2
"""Profiles and measurements of layers that are made in any case: without them there is nothing to choose from."""

MIDDLE = 0.5
"""The rate that is tried first."""


@dataclass(frozen=True)
class _Move:
    """A unit and the choice that it gets; the smallest order comes first."""

    order: float
    unit: str
    choice: Method | None


@dataclass
class Search:
    """One search, and what it has found so far.

    Attributes:
        subject: The model.
        networks: Whole networks, and all that measures.
        choices: What may be done with a layer.
        seed: Seed of the masks.
        seconds: What the original takes for one image.
        batch: Images that the model takes at once.
        start: What layers have at first; None: they are dense.
        rows: The sensitivities.
        ways: How the network was looked at.
        units: The layers of every unit.
        errors: What choices in units add to the guide.
        screened: Images that layers were screened by.
        obstacles: Why layers were not even tried.
    """

    subject: Subject
    networks: Networks
    choices: Sequence[Method]
    seed: int
    seconds: float
    batch: int = 1
    start: Plan | None = None
    rows: list[Row] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    units: dict[str, tuple[str, ...]] = field(default_factory=dict)
    errors: dict[str, dict[Method, float]] = field(default_factory=dict)
    screened: int = 0
    obstacles: dict[str, str] = field(default_factory=dict)
    _order: list[str] = field(default_factory=list)
    _regional: RegionalSearch | None = None
    _behind: frozenset[Method] = frozenset()
    _reach: float | None = None
    _lines: dict[tuple[str, tuple[str, ...] | None], list[Selected]] = field(default_factory=dict)

    def find(self, search: str, inspection: Inspection) -> Trial | None:
        """The best network that stays within the bound on held-back images; None where there is none."""
        layers, more = list(eligible(inspection)), reducible(self.subject, inspection)
        self._order = [layer.name for layer in self.subject.layers()]
        self._note_obstacles(inspection)
        if search == "budget" and self.start is None:
            self._regional = self._regions(layers)
        if search == "budget" and self.start is None:
            layers = sorted([*layers, *more], key=self._order.index)
        if not layers or not self.choices:
            return self._verified(self._combine)
        self._look(layers, self.choices, groups=search == "budget" and not self._base)  # those of a start may differ
        pairs = self._pairs()
        if search == "greedy":
            return self._verified(lambda: self._greedy(pairs))
        if self.start is not None:
            self.networks.attempt(self._plan({}, LAYOUTS[0]), "the start")
        self._screen(pairs)
        return self._verified(self._search)

    @property
    def _base(self) -> Mapping[str, Method]:
        """What layers have at first."""
        return {} if self.start is None else self.start.layers

    def known(self, inspection: Inspection) -> Trial | None:
        """The best of the networks that were measured before, for another target."""
        self._note_obstacles(inspection)
        self.networks.recall()
        return self._verified(lambda: None)

    def _note_obstacles(self, inspection: Inspection) -> None:
        """Why layers are not tried."""
        tried = reducible(self.subject, inspection)
        self.obstacles = {c.name: c.reason for c in inspection.convs if c.reason is not None and c.name not in tried}

    # --- regions -----------------------------------------------------------------------------------------------------

    def _regions(self, layers: Sequence[str]) -> RegionalSearch | None:
        """Measures and combines regions, where there are choices for them; all else starts from what loses nothing."""
        regional = [choice for choice in self.choices if choice.regional]
        self.choices = [choice for choice in self.choices if not choice.regional]
        if not regional or not self.networks.sizes.refitting:
            return None
        lossless = [choice for choice in self.choices if choice.lossless]
        if layers and lossless:
            self._look(layers, lossless, groups=True, borders=False)
            for unit, choice in self._pairs(lossless):
                self.errors.setdefault(unit, {})[choice] = 0.0
            self._lose_nothing()
        best = self.networks.best()
        workspace = opened(self.subject.original())
        self._behind = frozenset(behind for method in regional for behind in method.behind)
        both = [*regional, *self._behind]
        able = {method: frozenset(self.subject.able(self._order, method, self.seed)) for method in both}
        runs = resolution_runs(workspace, frozenset.intersection(*(able[method] for method in regional)))
        runs.sort(key=lambda run: -run.work)  # what promises most is measured first
        runs = [run for run in runs if run.work >= LEAST_WORK * sum(each.work for each in runs)]
        found = RegionalSearch(
            self.networks,
            [regions(run) for run in runs],
            sorted(regional, key=lambda method: method.saving),
            able,
            influences(workspace),
            best,
            self._order,
            self.seed,
            REGION_SHARE if [choice for choice in self.choices if not choice.lossless] else 1.0,
        )
        found.measure()
        self.rows += found.rows
        self.units.update(found.units)
        found.combine()
        self.networks.pace.begin()
        return found

    def _combine(self) -> None:
        """Combines regions anew, by what is known by now of what is allowed."""
        if self._regional is not None:
            self._regional.share = 1.0  # all that is left
            self._regional.combine()

    # --- 1. profile --------------------------------------------------------------------------------------------------

    def _look(self, layers: Sequence[str], choices: Sequence[Method], *, groups: bool, borders: bool = True) -> None:
        """Profiles the network in every way: what matters most first, what is left while there is time."""
        every = list(dict.fromkeys([*choices, *self._base.values()]))
        looks: list[tuple[str, str, Units, list[Method]]] = [(each, each, alone(layers), every) for each in LAYOUTS]
        timed = self.networks.target.minimised == TIME
        looks = looks if timed else looks[:1]  # what is counted is the same in all layouts
        shared = [choice for choice in every if choice.shareable]
        meeting = meeting_layers(self.subject.original()) if groups and shared else []
        if meeting:
            looks.insert(0, ("groups", LAYOUTS[0], together(layers, meeting, self._order), shared))
        found: dict[str, Way] = {}
        pace, records = self.networks.pace, self.networks.tools.records
        made, before = 0, records.clock

        def go_on() -> bool:
            nonlocal made, before
            if records.clock > before:
                pace.took(PROFILE, records.clock - before)
            made, before = made + 1, records.clock
            affords = made <= LEAST or pace.affords(PROFILE, until=PROFILE_SHARE)
            self.networks.cut_short |= not affords
            return affords

        for rank, bordered in ((0, False), (1, False), (1, True), (2, True))[: None if borders else 1]:
            for name, layout, units, candidates in looks:
                chosen = [choice for choice in candidates if self._rank(choice) <= rank]
                if not chosen:
                    continue
                costs = layer_costs(
                    self.subject,
                    self.networks.tools.timer if timed else self.networks.tools.counts,
                    units,
                    chosen,
                    layout=layout,
                    seed=self.seed,
                    records=records,
                    borders=bordered and timed,
                    kind=PROFILE if timed else self.networks.target.minimised,
                    go_on=go_on,
                    progress=lambda what, done, total: self.networks.tell(f"profiling {what}", done, total),
                )
                found[name] = Way(name, layout, units, costs, self._base)
        self.ways = list(found.values())
        for way in self.ways:
            self.units.update(way.units)

    def _rank(self, choice: Method) -> int:
        """0 for what is tried first: what loses nothing, one that samples, a start's; 1 for its kin; else 2."""
        sampling = [choice for choice in self.choices if not choice.lossless]
        if choice in self._base.values() or choice.lossless:
            return 0
        first = sampling[0]
        if choice.kind != first.kind:
            return 2
        same = [c.saving for c in sampling if c.kind == first.kind]
        return 0 if choice.saving == min(same, key=lambda saving: (abs(saving - MIDDLE), saving)) else 1

    # --- 2. screen ---------------------------------------------------------------------------------------------------

    def _pairs(self, choices: Sequence[Method] | None = None) -> list[tuple[str, Method]]:
        """Units with choices that make them faster in some way, in the order in which they matter."""
        found = []
        for choice in self.choices if choices is None else choices:
            for unit, layers in self.units.items():
                gains = [way.stay(unit).time - way.costs.sampled[choice][unit] for way in self.ways_of(unit, choice)]
                if gains:
                    found.append((self._rank(choice), len(layers) == 1, -max(gains), unit, choice))
        found.sort(key=lambda pair: pair[:3])
        return [(unit, choice) for *_, unit, choice in found]

    def ways_of(self, unit: str, choice: Method) -> list[Way]:
        """The ways in which a choice makes a unit faster."""
        return [way for way in self.ways if unit in way.units and way.is_further(unit, choice)]

    def _screen(self, pairs: Sequence[tuple[str, Method]]) -> None:
        """Measures the error of each pair; what loses nothing has none."""
        for unit, choice in pairs:
            if choice.lossless:
                self.errors.setdefault(unit, {})[choice] = 0.0
        pairs = [(unit, choice) for unit, choice in pairs if not choice.lossless]
        if not pairs:
            return
        networks, records = self.networks, self.networks.tools.records
        ranks = [self._rank(choice) for _, choice in pairs]
        least, useful = (sum(r <= rank for r in ranks) for rank in (0, 1))
        images = self.screened = networks.pace.screening(
            least, useful, self.seconds, networks.sizes.choosing, self.batch
        )
        end = records.clock + SCREEN_SHARE * (networks.pace.max_time - networks.pace.begun)
        made = 0

        def go_on() -> bool:
            nonlocal made
            made += 1
            time = records.clock < end and networks.pace.affords(TRIAL, TRIAL, VERIFICATION)
            networks.cut_short |= not time and made > LEAST
            return time or made <= LEAST

        rows = measure_layers(
            pairs,
            self.units,
            networks.tools.evaluator,
            images=images,
            seed=self.seed,
            records=records,
            executor=networks.tools.executor,
            base=self._base,
            go_on=go_on,
            progress=lambda done, total: networks.tell("measuring layers", done, total),
        )
        before = 0.0
        if self.start is not None:
            before = networks.evaluate(self._plan({}, LAYOUTS[0]), CHOOSING, images).guide
        for row in rows:
            self.rows.append(row)
            self.errors.setdefault(row.layer, {})[row.choice] = max(row.quality.guide - before, 0.0)

    # --- 3. search ---------------------------------------------------------------------------------------------------

    def _search(self) -> None:
        """Walks along the best selections in each way, falls back to single layers, and changes what was found."""
        if not self.errors:
            self._combine()
            return
        self._lose_nothing()
        kinds = sorted({choice.family for errors in self.errors.values() for choice in errors})
        times: list[float] = []
        for way in sorted(self.ways, key=self._promise):
            promise = self._promise(way)
            if times and promise > HOPEFUL * min(times):
                continue
            times.append(promise)
            self._walk(way, kinds, f"best by times and errors, {way.name}")
        best = self.networks.best()
        if best is None:
            self._resort()
        layout = best.plan.layout if best else LAYOUTS[0]
        for way in self.ways:
            for kind in kinds if len(kinds) > 1 and way.layout == layout else ():
                # layers of one size then share one mask, and rows pass between them as they are
                if self._is_hopeful(self._promise(way, [kind])):
                    self._walk(way, [kind], f"best with {kind} alone, {way.name}")
        self._combine()
        self._swap()

    def _lose_nothing(self) -> None:
        """Tries the fastest network whose layers give what they gave: what is found is to be no slower than that."""
        errors = {unit: {c: e for c, e in known.items() if c.lossless} for unit, known in self.errors.items()}
        lines = [(way, line[-1]) for way in self.ways if (line := way.line(errors))]
        if lines and self.networks.goes_on():
            way, selected = min(lines, key=lambda found: found[1].time)
            self.networks.attempt(self._plan(selected.choices, way.layout), "what loses nothing")

    def _promise(self, way: Way, kinds: Sequence[str] | None = None) -> float:
        """The time that is predicted at the error that was reached so far."""
        reach = self._expected_reach()
        line = self._line(way, kinds)
        within = [selected.time for selected in line if reach is None or selected.error <= reach]
        return min(within, default=line[0].time if line else math.inf)

    def _is_hopeful(self, promise: float) -> bool:
        """Whether what is predicted to take so long may beat the best network so far."""
        best = self.networks.best()
        return best is None or promise <= HOPEFUL / max(self.networks.target.gain(best), 1e-9)

    def _line(self, way: Way, kinds: Sequence[str] | None = None) -> list[Selected]:
        """A way's best selections, found once."""
        key = way.name, None if kinds is None else tuple(kinds)
        if key not in self._lines:
            self._lines[key] = way.line(self.errors, kinds)
        return self._lines[key]

    def _expected_reach(self) -> float | None:
        """The predicted error at which the bound is met: where it was before, or by what single layers lost."""
        if self._reach is not None or self.networks.target.max_drop is None:
            return self._reach
        metric = self.networks.tools.metric
        qualities = [row.quality for row in self.rows if row.quality.drop_error < math.inf]
        guides = sum(quality.guide for quality in qualities)
        sizes = sum(metric.size(quality.drop) for quality in qualities)
        most = sum(metric.size(quality.drop + quality.drop_error) for quality in qualities)
        if not 0 < most <= CERTAIN * sizes:
            return None  # a dozen images say nothing about classes that change
        return metric.size(self.networks.target.max_drop) * guides / sizes

    def _walk(self, way: Way, kinds: Sequence[str], why: str) -> None:
        """Looks along the best selections for the place where the bound, or the speed, is met."""
        reached = walk_line(
            self.networks,
            self._line(way, kinds),
            lambda selected: self._plan(selected.choices, way.layout),
            why,
            start=self._expected_reach(),
        )
        if reached is not None:
            self._reach = max(reached, self._reach or 0.0)

    def _resort(self) -> None:
        """Tries single units, those that lose the least first, until one stays within the bound."""
        if self.networks.target.max_drop is None:
            return
        singles = sorted(
            ((single, way) for way in self.ways for single in way.single(self.errors)), key=lambda pair: pair[0].error
        )
        tried: set[tuple[str, ...]] = set()
        for single, way in singles:
            layers = tuple(single.choices)
            if len(tried) == RESORTS or self.networks.best() is not None:
                return
            if layers not in tried:
                if not self.networks.goes_on():
                    return
                tried.add(layers)
                self.networks.attempt(self._plan(single.choices, way.layout), "best single layer")

    def _swap(self) -> None:
        """Changes single layers of the best network: one goes further, or one goes back and another further."""
        networks = self.networks
        failures = 0
        while failures < PATIENCE:
            best = networks.best()
            if best is None:
                return
            for plan, why in self._changes(best):
                if plan_key(plan) in networks.trials:
                    continue
                if not networks.goes_on(kind_of(plan)):
                    return
                networks.attempt(plan, why)
                failures += 1
                if networks.best() is not best:
                    failures = 0
                    break
                if failures >= PATIENCE:
                    return
            else:
                return

    def _changes(self, best: Trial) -> Iterator[tuple[Plan, str]]:
        """Plans near a network's, the most promising first."""
        further: list[_Move] = []
        back: list[_Move] = []
        layout = best.plan.layout
        for way, unit in self._places(layout):
            rungs = way.rungs(self.errors, unit)
            lossless = next((rung.choice for rung in rungs if rung.choice is not None and rung.choice.lossless), None)
            chosen = {best.plan.layers.get(layer) for layer in way.units[unit]}
            chosen = {lossless if choice in self._behind else choice for choice in chosen}
            now = next((rung for rung in rungs if {rung.choice} == chosen), None)
            if now is None:
                continue  # a group whose layers have different choices, or one that it has no time for
            ladder = [rungs[i] for i in pareto([Option(r.time, r.error) for r in rungs])]
            faster = next((r for r in ladder if r.time < now.time), None)
            safer = next((r for r in reversed(ladder) if r.error < now.error), None)
            if faster is not None:
                cost = max(faster.error - now.error, 0.0) / (now.time - faster.time)
                further.append(_Move(cost, unit, faster.choice))
            if safer is not None:
                back.append(_Move((safer.error - now.error) / max(safer.time - now.time, 1e-9), unit, safer.choice))
        further.sort(key=lambda move: (move.order, move.unit))
        back.sort(key=lambda move: (move.order, move.unit))

        def changed(*moves: _Move) -> Plan:
            layers: dict[str, Method | None] = {**best.plan.layers}
            for move in moves:
                layers.update(dict.fromkeys(self.units[move.unit], move.choice))
            return self._plan(layers, layout)

        if self.networks.target.speedup is None:
            for move in further[:3]:
                yield changed(move), f"more in {move.unit}"
        else:
            for move in back[:3]:
                yield changed(move), f"less in {move.unit}"
        for one in back[:2]:
            for other in further[:3]:
                if not set(self.units[one.unit]) & set(self.units[other.unit]):
                    yield changed(one, other), f"less in {one.unit}, more in {other.unit}"

    def _places(self, layout: str) -> Iterator[tuple[Way, str]]:
        """Every unit with errors, and the first way in which it was looked at in a layout."""
        for unit in self.errors:
            way = next((way for way in self.ways if way.layout == layout and unit in way.units), None)
            if way is not None:
                yield way, unit

    def _greedy(self, pairs: Sequence[tuple[str, Method]]) -> None:
        """The paper's search; see `perfonnx.search.greedy`."""
        networks = self.networks
        ladders: dict[str, list[list[Method]]] = {}
        for layer in sorted({layer for layer, _ in pairs}, key=self._order.index):
            own = [choice for choice in self.choices if (layer, choice) in pairs]
            savings = sorted({choice.saving for choice in own})
            ladders[layer] = [[choice for choice in own if choice.saving == saving] for saving in savings]

        def measure(choices: Mapping[str, Method]) -> Measured:
            trial = networks.attempt(self._plan(choices, LAYOUTS[0]), "greedy step")
            uncertainty = (1 / trial.speed.low - 1 / trial.speed.high) / 2
            return Measured(1 / trial.speed.ratio, uncertainty, trial.choosing.guide)

        for step in greedy(ladders, measure, max_loss=math.inf, go_on=networks.goes_on):
            taken = networks.attempt(self._plan(step.choices, LAYOUTS[0]), "greedy step")
            fast_enough = networks.target.speedup is not None and networks.target.reached(taken.speed)
            if fast_enough or not networks.within(taken):
                return

    def _plan(self, choices: Mapping[str, Method | None], layout: str) -> Plan:
        """A plan, its layers in running order; others are as at first, None: dense."""
        wanted = {**self._base, **choices}
        chosen = {layer: choice for layer in self._order if (choice := wanted.get(layer)) is not None}
        return Plan(chosen, self.seed, layout=layout)

    # --- 4. verify ---------------------------------------------------------------------------------------------------

    def _verified(self, search: Callable[[], None]) -> Trial | None:
        """Searches, and looks at the held-back images, the best network first, until none is left that may be better.

        A network that is beyond the bound there is known to be so from then on: the search goes on from there, towards
        milder ones. What it asks for again was measured before. The longer timing of the others may put them behind
        networks that were not looked at.
        """
        networks = self.networks
        while True:
            search()
            candidates = networks.candidates()
            found = next((t for t in candidates if t.held_back is not None), None)
            trial = next((t for t in candidates if t.held_back is None), None)
            if found is not None and (trial is None or networks.merit(found) <= networks.merit(trial)):
                return found
            looks = sum(t.held_back is not None for t in networks.trials.values())
            spare = found is None and looks <= OVERTIME
            if trial is None or (looks and not networks.affords(VERIFICATION) and not spare):
                return found
            networks.verify(trial)
