"""From a model and unlabeled inputs to the fastest model within the accuracy asked, measured on this machine.

1. Profile: every choice (mask kind and rate) in all layers at once; one profile per choice gives the time of every
   layer under it, among neighbours that work on rows. Once layer by layer, and once for groups of layers whose outputs
   meet, which then share a mask.
2. Screen: the error of every choice in every unit, a layer or a group, that it makes faster, one unit at a time, on
   part of the images.
3. Choose: times and errors add up, roughly; the best selections under that model form a frontier.
4. Search: selections of the frontier are rewritten, run on all images to choose by, and timed against the original;
   bisection finds the fastest one within the bound, then single layers are changed where that promises most.
5. Verify: the fastest ones are run on images that took no part in the choice, until one stays within the bound.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from perfonnx import io
from perfonnx.errors import PerfonnxError
from perfonnx.io import ModelSource
from perfonnx.plan import LAYOUTS, LayerPlan, Plan, is_own_mask
from perfonnx.rewriting import Rewritten
from perfonnx.search.choose import DENSE, Option, Selection, frontier, pareto, total_time
from perfonnx.search.costs import LayerCosts, layer_costs, layer_times, profile
from perfonnx.search.credible import credible_drop
from perfonnx.search.evaluate import (
    CHOOSING,
    HELD_BACK,
    Evaluator,
    Outcome,
    PlanEvaluator,
    SamplesLike,
    SerialExecutor,
    Subject,
    Task,
    check_same_interface,
    count_images,
    find_metric,
    first_images,
    hold,
)
from perfonnx.search.greedy import Measured, greedy
from perfonnx.search.groups import Units, alone, by_layer, can_be_shared, meeting_layers, together
from perfonnx.search.impacts import IMPACT, with_impacts
from perfonnx.search.metrics import Metric, Quality
from perfonnx.search.pictures import output_pictures
from perfonnx.search.result import MIN_SPEEDUP, Progress, Target, Trial, Tuned
from perfonnx.search.sensitivity import Row, Space, eligible, measure_layers, plan_key
from perfonnx.search.state import Records, digest
from perfonnx.search.timing import PairedTimer, Speed, Timer, TimingCache, machine

SEARCHES = ("budget", "greedy")

MIN_IMAGES = 8
HELD_BACK_SHARE = 0.4
"""Part of the images that the choice does not see."""

SCREEN_IMAGES = (12, 128)
"""Fewest and most images to screen layers on."""

IMPACT_SHARE = 0.2
"""Part of the time after which no more impacts are measured."""

PROFILE_SHARE, SCREEN_SHARE, SEARCH_SHARE = 0.4, 0.4, 0.9
"""Parts of the time after which profiling comes to an end, that screening takes, and after which search ends."""

PATIENCE = 8
"""Changes of single layers that may fail in a row before the search ends."""

CLOSE = 0.003
"""Bisection ends where predicted times differ by less than this part."""

FINAL_SECONDS = 5.0
"""Time spent on timing the model that is taken once more."""

POOR = 0.2
"""An original that is right on fewer images than this was given the wrong labels or pixels, most likely."""


def tune(
    model: ModelSource,
    output: str | os.PathLike[str] | None,
    samples: SamplesLike,
    *,
    max_drop: float | str | None = None,
    speedup: float | None = None,
    metric: str | None = None,
    space: Space | None = None,
    search: str = "budget",
    start: Plan | None = None,
    reference: ModelSource | None = None,
    max_time: float = 900.0,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    freeze_weights: bool = False,
    fallback: bool = True,
    seed: int = 0,
    state: str | os.PathLike[str] | None = None,
    cache: TimingCache | None = None,
    executor: Executor | None = None,
    evaluator: Evaluator | None = None,
    timer: Timer | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Tuned:
    """Find the fastest model within a loss, or the model with the smallest loss at a speed.

    Args:
        model: As for `perfonnx.rewrite`.
        output: Where the model goes; None: nowhere. Where nothing is found, the original goes there.
        samples: Images, a few hundred; labels are used where they have some. Part of them takes no part in the choice.
        max_drop: The largest loss, a number or a text such as "1%", in the metric's terms; None: the metric's default,
            unless a speed is asked for.
        speedup: How many times faster the model should become; with `max_drop` too, the smallest loss at that speed,
            or the fastest model within the loss.
        metric: Name in `METRICS`; None: by the model's outputs and labels.
        space: What may be done with a layer.
        search: "budget", or "greedy" for the perforation paper's search.
        start: A plan for this model to start from: its layers, perforated, only go further, one by one. None: all
            layers are dense at first. For the search "budget".
        reference: The model whose outputs count as right, of the same inputs and outputs; None: the model itself, which
            speeds are always related to. For the search "budget".
        max_time: Seconds of measuring; one model more is verified where they are used up.
        threads: Intra-op threads, None for all cores.
        input_shapes: Sizes for symbolic dimensions; timings are made at them.
        freeze_weights: As for `perfonnx.rewrite`.
        fallback: As for `perfonnx.rewrite`.
        seed: Seed of the split of the images and of the masks.
        state: File in which measurements are kept; a tuning that was interrupted goes on from there.
        cache: Where timings are kept between tunings; None: nowhere.
        executor: Does the screening of layers; None: this thread.
        evaluator: Measures losses; None: on onnxruntime.
        timer: Measures times; None: on onnxruntime.
        progress: Called now and then.

    Returns:
        The model, its plan, and everything that was measured.

    Raises:
        PerfonnxError: Bad usage or input. Nothing has been written then, but the state.
    """
    if search not in SEARCHES:
        raise PerfonnxError(f"unknown search {search!r}; choose from {', '.join(SEARCHES)}")
    if not 0 < max_time < math.inf:
        raise PerfonnxError(f"time {max_time:g}: give the seconds that tuning may take, above 0")
    if start is None and reference is not None:
        start = Plan(seed=seed)  # loses something already
    if start is not None and search != "budget":
        raise PerfonnxError(f"the search {search!r} takes neither a start nor a reference; take budget")
    if output is not None:
        io.check_target(output)
    space = space or Space()
    subject = Subject(model, dict(input_shapes or {}), freeze_weights)
    right = subject if reference is None else replace(subject, source=reference)
    check_same_interface(right, subject)
    if start is not None:
        _check_start(start, subject, seed)
    first, second = divided(samples, seed)
    parts = {CHOOSING: hold(first), HELD_BACK: hold(second)}
    subject = replace(subject, calibration=parts[CHOOSING])
    found, seconds_per_image = find_metric(metric, right, parts[CHOOSING], threads=threads)
    bound = found.parse_drop(max_drop) if isinstance(max_drop, str) else max_drop
    if bound is None and speedup is None:
        bound = found.default_drop
    target = Target(bound, speedup)
    feed = next(iter(parts[CHOOSING])).feeds
    about = _fingerprint(subject, right, samples, feed, found, target, space, search, start, threads, seed)
    records = Records.open(state, about)
    tell = progress or (lambda _: None)
    if IMPACT in space.masks:
        subject = _with_impacts(subject, parts[CHOOSING], found, space, records, max_time, threads, tell)
    if timer is None:
        timer = PairedTimer(subject, first_images(subject.original(), feed, 1), threads, cache)
    run = _Search(
        subject,
        parts,
        found,
        target,
        space,
        evaluator or PlanEvaluator(subject, parts, found, threads, right),
        timer,
        executor or SerialExecutor(),
        records,
        max_time,
        seed,
        tell,
        start,
    )
    best = run.find(search, seconds_per_image)
    plan = best.plan if best else Plan(seed=seed)
    tuned = run.tuned(subject.rewrite(plan, fallback=fallback), best, threads)
    tuned.impact_maps = subject.impact_maps
    if best is not None:
        tuned.pictures = output_pictures(subject, tuned.result, parts[HELD_BACK], found, threads=threads)
    if output is not None:
        tuned.result.save(output)
    return tuned


def divided(samples: SamplesLike, seed: int) -> tuple[SamplesLike, SamplesLike]:
    """The samples that a tuning chooses by, and those that it holds back to verify on.

    Raises:
        PerfonnxError: They are too few.
    """
    if len(samples) < MIN_IMAGES:
        raise PerfonnxError(
            f"{len(samples)} images are too few to choose by some and verify on others; give {MIN_IMAGES} or more, "
            "better a few hundred"
        )
    held = max(MIN_IMAGES // 2, round(len(samples) * HELD_BACK_SHARE))
    first, second = samples.split(len(samples) - held, held, seed)
    return first, second


def _check_start(start: Plan, subject: Subject, seed: int) -> None:
    """Raise `PerfonnxError` where a plan cannot be searched further."""
    layers = eligible(subject.inspect())
    for name, choice in start.layers.items():
        if name not in layers:
            raise PerfonnxError(f"layer {name!r} of the start: the model has no such layer that can be perforated")
        if choice.method != "perforate" or is_own_mask(choice.mask):
            raise PerfonnxError(
                f"layer {name!r} of the start: only perforated layers whose masks have rates go further"
            )
    if start.seed != seed:
        raise PerfonnxError(f"the start's masks are drawn with the seed {start.seed}, not {seed}; give the same seed")


def _with_impacts(
    subject: Subject,
    samples: SamplesLike,
    metric: Metric,
    space: Space,
    records: Records,
    max_time: float,
    threads: int | None,
    tell: Callable[[Progress], None],
) -> Subject:
    """The subject with maps of impacts; a layer of a group shares the group's, also where it is sampled alone."""
    inspection = subject.inspect()
    groups = meeting_layers(subject.original())
    order = [conv.name for conv in inspection.convs]

    def progress(done: int, total: int) -> None:
        tell(Progress("measuring impacts", done, total, max(max_time - records.clock, 0.0), ""))

    return with_impacts(
        subject,
        samples,
        metric,
        together(eligible(inspection), groups, order),
        rate=max(space.rates),
        records=records,
        threads=threads,
        go_on=lambda: records.clock < IMPACT_SHARE * max_time,
        progress=progress,
    )


def _fingerprint(
    subject: Subject,
    reference: Subject,
    samples: SamplesLike,
    feed: Mapping[str, Any],
    metric: Metric,
    target: Target,
    space: Space,
    search: str,
    start: Plan | None,
    threads: int | None,
    seed: int,
) -> dict[str, Any]:
    """What a state file is about; another time limit is no other search."""
    data = digest(*(array.tobytes() for _, array in sorted(feed.items())))
    return {
        "model": digest(subject.serialized()),
        "data": f"{len(samples)} images, {data}",
        "metric": metric.name,
        "target": asdict(target),
        "choices": [asdict(choice) for choice in space.choices()],
        "search": search,
        "threads": threads,
        "seed": seed,
        "machine": digest(machine()),
        **({} if start is None else {"start": plan_key(start), "reference": digest(reference.serialized())}),
    }


@dataclass(frozen=True)
class _Rung:
    """One choice of a unit (None: dense) among sampled ones, with its time and error."""

    choice: LayerPlan | None
    time: float
    error: float


@dataclass(frozen=True)
class _Move:
    """A unit and the choice that it gets; the smallest order comes first."""

    order: float
    unit: str
    choice: LayerPlan | None


@dataclass(frozen=True)
class _Way:
    """A way to look at the network: its layout, what gets one choice together, and what that costs."""

    name: str
    layout: str
    units: Units
    costs: LayerCosts


@dataclass
class _Search:
    """One tuning: its tools, and what it has found so far."""

    subject: Subject
    parts: dict[str, SamplesLike]
    metric: Metric
    target: Target
    space: Space
    evaluator: Evaluator
    timer: Timer
    executor: Executor
    records: Records
    max_time: float
    seed: int
    progress: Callable[[Progress], None]
    start: Plan | None = None
    trials: dict[str, Trial] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    ways: list[_Way] = field(default_factory=list)
    units: dict[str, tuple[str, ...]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    errors: dict[str, dict[LayerPlan, float]] = field(default_factory=dict)
    screened: int = 0
    obstacles: dict[str, str] = field(default_factory=dict)
    cut_short: bool = False

    @property
    def _base(self) -> Mapping[str, LayerPlan]:
        """What layers have at first."""
        return {} if self.start is None else self.start.layers

    def find(self, search: str, seconds_per_image: float) -> Trial | None:
        """The best trial that stays within the bound on held-back images; None where there is none."""
        inspection = self.subject.inspect()
        self.obstacles = {conv.name: conv.reason for conv in inspection.convs if conv.reason is not None}
        layers = list(eligible(inspection))
        if not layers:
            return None
        self.order = [conv.name for conv in inspection.convs]
        if search == "budget" and not self._base:  # layers of a start may differ where their outputs meet
            self._look_at_groups(layers)
        for layout in LAYOUTS:
            choices = list(dict.fromkeys([*self.space.choices(), *self._base.values()]))
            self._look(layout, layout, alone(layers), choices)
        pairs = [(unit, c) for c in self.space.choices() for unit in self.units if self._is_further(unit, c)]
        if search == "greedy":
            self._greedy(pairs)
        else:
            if self._base:
                self._try(self._plan({}, LAYOUTS[0]), "the start")
            self._screen(pairs, seconds_per_image)
            if self.errors:
                self._bisect()
                self._swap()
        return self._verify()

    # --- 1. profile --------------------------------------------------------------------------------------------------

    def _look_at_groups(self, layers: Sequence[str]) -> None:
        """Profiles the network by groups of layers, where it has some."""
        groups = meeting_layers(self.subject.original())
        choices = [choice for choice in self.space.choices() if can_be_shared(choice)]
        if groups and choices:
            self._look("groups", LAYOUTS[0], together(layers, groups, self.order), choices)

    def _look(self, name: str, layout: str, units: Units, choices: Sequence[LayerPlan]) -> None:
        costs = layer_costs(
            self.subject,
            self.timer,
            units,
            choices,
            layout=layout,
            seed=self.seed,
            records=self.records,
            go_on=lambda: self._time_left(PROFILE_SHARE),
            progress=lambda what, done, total: self._tell(f"profiling {what}", done, total),
        )
        self.ways.append(_Way(name, layout, units, costs))
        self.units.update(units)

    def _is_further(self, unit: str, choice: LayerPlan) -> bool:
        """Whether a choice makes a unit faster in some way, and goes beyond the start."""
        ways = [way for way in self.ways if unit in way.costs.sampled.get(choice, ())]
        now = self._started(unit)
        if now is None:
            return any(way.costs.gain(unit, choice) > 0 for way in ways)
        faster = any(way.costs.sampled[choice][unit] < self._stay(way, unit).time for way in ways)
        return choice.rate > now.rate and faster

    # --- 2. screen ---------------------------------------------------------------------------------------------------

    def _screen(self, pairs: Sequence[tuple[str, LayerPlan]], seconds_per_image: float) -> None:
        """Measures the error of each pair, and fills the table of options."""
        if not pairs:
            return
        images = self.records.ask("screening images", lambda: self._screening_images(len(pairs), seconds_per_image))
        self.screened = images
        end = self.records.clock + SCREEN_SHARE * self.max_time
        rows = measure_layers(
            pairs,
            self.units,
            self.evaluator,
            images=images,
            seed=self.seed,
            records=self.records,
            executor=self.executor,
            base=self._base,
            go_on=lambda: self._goes_on(end),
            progress=lambda done, total: self._tell("measuring layers", done, total),
        )
        before = 0.0 if self.start is None else self._evaluate(self._plan({}, LAYOUTS[0]), CHOOSING, images).guide
        for row in rows:
            self.rows.append(row)
            self.errors.setdefault(row.layer, {})[row.choice] = max(row.quality.guide - before, 0.0)

    def _screening_images(self, pairs: int, seconds_per_image: float) -> int:
        """As many images as the time allows, a fixed number otherwise."""
        available = len(self.parts[CHOOSING])
        affordable = SCREEN_SHARE * self.max_time / pairs / max(seconds_per_image, 1e-6)
        size = count_images(next(iter(self.parts[CHOOSING])).feeds)
        wanted = int(min(max(affordable * 0.8, SCREEN_IMAGES[0]), SCREEN_IMAGES[1]))
        return min(math.ceil(wanted / size) * size, available)

    # --- 3. and 4. choose and search ---------------------------------------------------------------------------------

    def _bisect(self) -> None:
        """Looks along the frontiers of the additive model for the places where the bound is met."""
        kinds = sorted({choice.mask for errors in self.errors.values() for choice in errors})
        for way in self.ways:
            self._bisect_frontier(way, kinds, f"best by times and errors, {way.name}")
        best = self._best()
        layout = best.plan.layout if best else LAYOUTS[0]
        for way in self.ways:
            for kind in kinds if len(kinds) > 1 and way.layout == layout else ():
                # layers of one size then share one mask, and rows pass between them as they are
                self._bisect_frontier(way, [kind], f"best with {kind} alone, {way.name}")

    def _options(self, way: _Way, unit: str, kinds: Sequence[str] | None = None) -> dict[LayerPlan, Option]:
        """What can be done with a unit in one way, with masks of these kinds."""
        sampled = way.costs.sampled
        return {
            choice: Option(sampled[choice][unit], error)
            for choice, error in self.errors.get(unit, {}).items()
            if unit in sampled.get(choice, ()) and (kinds is None or choice.mask in kinds)
        }

    def _started(self, unit: str) -> LayerPlan | None:
        """What a unit has at first; units are single layers where there is a start."""
        return self._base.get(unit)

    def _stay(self, way: _Way, unit: str) -> _Rung:
        """A unit as it is at first, between sampled ones."""
        choice = self._started(unit)
        dense = way.costs.inside.get(unit, way.costs.dense[unit])
        return _Rung(choice, dense if choice is None else way.costs.sampled.get(choice, {}).get(unit, dense), 0.0)

    def _bisect_frontier(self, way: _Way, kinds: Sequence[str], why: str) -> None:
        options = {unit: self._options(way, unit, kinds) for unit in way.units}
        started = {unit: self._stay(way, unit).time for unit in way.units if self._started(unit) is not None}
        chain = way.costs.chain({unit: list(known.values()) for unit, known in options.items()}, started)
        line = frontier(chain)
        unchanged = dict.fromkeys(chain, DENSE)
        if line[0].picks != unchanged:  # beaten by choices that cost nothing
            line.insert(0, Selection(unchanged, total_time(chain, unchanged), 0.0))

        def attempt(place: int) -> Trial:
            picks = {unit: pick for unit, pick in line[place].picks.items() if pick != DENSE}
            choices = {unit: list(options[unit])[pick] for unit, pick in picks.items()}
            return self._try(self._plan(by_layer(way.units, choices), way.layout), why)

        low, high = 0, len(line) - 1  # what is unchanged is within the bound and too slow
        if high <= low or (self.trials and not self._time_left(SEARCH_SHARE)) or not self._beyond(attempt(high)):
            return
        while high - low > 1 and self._time_left(SEARCH_SHARE):
            if line[low].time - line[high].time < CLOSE * (way.costs.rest + line[low].time):
                break
            place = self._between(line, low, high)
            if self._beyond(attempt(place)):
                high = place
            else:
                low = place

    def _beyond(self, trial: Trial) -> bool:
        """Whether a trial lies on the far side of the target: too lossy, or, where a speed is wanted, fast enough."""
        if self.target.speedup is not None:
            return self.target.reached(trial.speed)
        return not self._within(trial)

    def _within(self, trial: Trial) -> bool:
        """Whether a trial's loss is within the bound, by the images to choose by and with what is known of others."""
        measured = [other.choosing for other in self.trials.values()]
        return self.target.max_drop is None or credible_drop(trial.choosing, measured) <= self.target.max_drop

    def _between(self, line: Sequence[Selection], low: int, high: int) -> int:
        """A place strictly between two: half the time where speed is sought, else the geometric mean of the errors."""
        inner = range(low + 1, high)
        if self.target.speedup is not None:
            middle = (line[low].time + line[high].time) / 2
            return min(inner, key=lambda i: abs(line[i].time - middle))
        error = math.sqrt(max(line[low].error, line[high].error * 1e-3) * line[high].error)
        return min(inner, key=lambda i: abs(line[i].error - error))

    def _swap(self) -> None:
        """Changes single layers of the best trial: one goes further, or one goes back and another further."""
        failures = 0
        while failures < PATIENCE and self._time_left(SEARCH_SHARE):
            best = self._best()
            if best is None:
                return
            for plan, why in self._changes(best):
                if plan_key(plan) in self.trials:
                    continue
                self._try(plan, why)
                failures += 1
                if self._best() is not best:
                    failures = 0
                    break
                if failures >= PATIENCE or not self._time_left(SEARCH_SHARE):
                    return
            else:
                return

    def _rungs(self, way: _Way, unit: str) -> list[_Rung]:
        """The choices of a unit between sampled ones, what it has at first before all others."""
        return [self._stay(way, unit), *(_Rung(c, o.time, o.error) for c, o in self._options(way, unit).items())]

    def _changes(self, best: Trial) -> Iterator[tuple[Plan, str]]:
        """Plans near a trial's, the most promising first."""
        further: list[_Move] = []
        back: list[_Move] = []
        layout = best.plan.layout
        for way, unit in self._places(layout):
            rungs = self._rungs(way, unit)
            chosen = {best.plan.layers.get(layer) for layer in way.units[unit]}
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
            layers: dict[str, LayerPlan | None] = {**best.plan.layers}
            for move in moves:
                layers.update(dict.fromkeys(self.units[move.unit], move.choice))
            return self._plan(layers, layout)

        if self.target.speedup is None:
            for move in further[:3]:
                yield changed(move), f"more in {move.unit}"
        else:
            for move in back[:3]:
                yield changed(move), f"less in {move.unit}"
        for one in back[:2]:
            for other in further[:3]:
                if not set(self.units[one.unit]) & set(self.units[other.unit]):
                    yield changed(one, other), f"less in {one.unit}, more in {other.unit}"

    def _places(self, layout: str) -> Iterator[tuple[_Way, str]]:
        """Every unit with errors, and the first way in which it was looked at in a layout."""
        for unit in self.errors:
            way = next((way for way in self.ways if way.layout == layout and unit in way.units), None)
            if way is not None:
                yield way, unit

    def _greedy(self, pairs: Sequence[tuple[str, LayerPlan]]) -> None:
        """The paper's search; see `perfonnx.search.greedy`."""
        ladders: dict[str, list[list[LayerPlan]]] = {}
        for layer in dict.fromkeys(layer for layer, _ in pairs):
            own = [choice for other, choice in pairs if other == layer]
            rates = sorted({choice.rate for choice in own})
            ladders[layer] = [[choice for choice in own if choice.rate == rate] for rate in rates]

        def measure(choices: Mapping[str, LayerPlan]) -> Measured:
            trial = self._try(self._plan(choices, LAYOUTS[0]), "greedy step")
            uncertainty = (1 / trial.speed.low - 1 / trial.speed.high) / 2
            return Measured(1 / trial.speed.ratio, uncertainty, trial.choosing.guide)

        for step in greedy(ladders, measure, max_loss=math.inf, go_on=lambda: self._time_left(SEARCH_SHARE)):
            taken = self._try(self._plan(step.choices, LAYOUTS[0]), "greedy step")
            fast_enough = self.target.speedup is not None and self.target.reached(taken.speed)
            if fast_enough or not self._within(taken):
                return

    # --- 5. verify ---------------------------------------------------------------------------------------------------

    def _verify(self) -> Trial | None:
        """Looks at the held-back images, the best trial first, until one is within the bound."""
        second_best: Trial | None = None
        for number, trial in enumerate(sorted(self._candidates(), key=self._merit)):
            if number and self.records.clock >= self.max_time:
                break
            if second_best is not None and not self.target.reached(trial.speed):
                break  # slower than what is there already
            self._tell("verifying", number, 0)
            trial.held_back = self._evaluate(trial.plan, HELD_BACK)
            if not self.target.allows(trial.held_back):
                continue
            speed = self.records.ask(
                f"final time {plan_key(trial.plan)}",
                lambda plan=trial.plan: self.timer.speed(plan, seconds=FINAL_SECONDS).to_json(),  # type: ignore[misc]
            )
            trial.speed = Speed(**speed)
            if self.target.reached(trial.speed):
                return trial
            if trial.speed.ratio >= MIN_SPEEDUP and second_best is None:
                second_best = trial
        return second_best

    def _candidates(self) -> list[Trial]:
        """Trials that are faster than the original and within the bound, as far as the images to choose by say."""
        return [t for t in self.trials.values() if t.speed.ratio >= MIN_SPEEDUP and self._within(t)]

    def _merit(self, trial: Trial) -> tuple[float, ...]:
        """The order of trials: the fastest first; or the least lossy of those that have the speed that is wanted."""
        if self.target.speedup is not None and self.target.reached(trial.speed):
            return (0.0, trial.choosing.guide)
        return (1.0, -trial.speed.ratio)

    def _best(self) -> Trial | None:
        return min(self._candidates(), key=self._merit, default=None)

    # --- measuring ---------------------------------------------------------------------------------------------------

    def _plan(self, choices: Mapping[str, LayerPlan | None], layout: str) -> Plan:
        """A plan, its layers in running order; others are as at first, None: dense."""
        wanted = {**self._base, **choices}
        chosen = {layer: choice for layer in self.order if (choice := wanted.get(layer)) is not None}
        return Plan(chosen, self.seed, layout=layout)

    def _try(self, plan: Plan, why: str) -> Trial:
        """Rewrites, runs and times a plan, unless that was done before."""
        key = plan_key(plan)
        if key not in self.trials:
            self._tell("searching", len(self.trials), 0)
            quality = self._evaluate(plan, CHOOSING)
            speed = self.records.ask(f"time {key}", lambda: self.timer.speed(plan).to_json())
            self.trials[key] = Trial(plan, why, quality, Speed(**speed))
        return self.trials[key]

    def _evaluate(self, plan: Plan, part: str, images: int | None = None) -> Quality:
        images = images or len(self.parts[part])

        def measure() -> dict[str, Any]:
            outcome: Outcome = self.executor.submit(self.evaluator, Task(plan, part, images)).result()
            return outcome.quality.to_json()

        same = plan_key(replace(plan, layout=LAYOUTS[0]))  # what is lost does not depend on the layout
        return Quality.from_json(self.records.ask(f"{part} {same} {images}", measure))

    def _time_left(self, share: float) -> bool:
        return self._goes_on(share * self.max_time)

    def _goes_on(self, end: float) -> bool:
        """Whether the clock has not come to `end`; asked where there is more to try."""
        goes_on = self.records.clock < end
        self.cut_short |= not goes_on
        return goes_on

    def _tell(self, phase: str, done: int, total: int) -> None:
        best = self._best()
        words = "" if best is None else f"{best.speed.ratio:.2f}x, {self.metric.show(best.choosing.drop)}"
        self.progress(Progress(phase, done, total, max(self.max_time - self.records.clock, 0.0), words))

    # --- the answer --------------------------------------------------------------------------------------------------

    def tuned(self, result: Rewritten, best: Trial | None, threads: int | None) -> Tuned:
        """Everything, with a message and warnings."""
        reached = best is not None and self.target.allows(best.held_back) and self.target.reached(best.speed)
        return Tuned(
            result,
            best,
            self._message(result, best, reached),
            tuple(self._warnings(best)),
            reached,
            self.metric,
            self.target,
            list(self.trials.values()),
            self.rows,
            {way.name: way.costs for way in self.ways},
            self.units,
            {} if best is None else self._layer_times(best.plan),
            {**{part: len(samples) for part, samples in self.parts.items()}, "screening": self.screened},
            threads,
            self.records.clock,
            obstacles=self.obstacles,
        )

    def _layer_times(self, plan: Plan) -> dict[str, tuple[float, float]]:
        original, rewritten = (profile(self.records, self.timer, p) for p in (Plan(seed=self.seed), plan))
        return layer_times(original, rewritten)

    def _message(self, result: Rewritten, best: Trial | None, reached: bool) -> str:
        name = result.report.model
        bound = "" if self.target.max_drop is None else f" {self.metric.within(self.target.max_drop)}"
        if best is None:
            reason = result.report.little_to_gain
            return f"{name}: nothing{bound} is faster than {MIN_SPEEDUP:g}x; the model is left alone" + (
                f" ({reason})" if reason else ""
            )
        assert best.held_back is not None
        text = (
            f"{name}: {best.speed.ratio:.2f}x faster, {self.metric.lost(best.held_back.drop)} on "
            f"{best.held_back.images} images that took no part in the choice"
        )
        wanted = self.target.speedup or MIN_SPEEDUP
        return text if reached else f"{text}; {wanted:g}x is not reached for certain{bound}"

    def _warnings(self, best: Trial | None) -> Iterator[str]:
        yield from self.metric.left_out
        bound = self.target.max_drop
        first = next(iter(self.trials.values()), None)
        if self.metric.name == "top1" and first is not None and first.choosing.reference < POOR:
            yield (
                f"the original itself is right on {first.choosing.reference:.0%} of the images only: are the labels, "
                "and the numbers made of the pixels, those that it was trained for?"
            )
        quality = best.held_back if best else None
        if bound is not None and quality is not None and bound > 0:
            half = 1.96 * quality.drop_error
            if bound < half < math.inf:
                needed = math.ceil(quality.images * (half / bound) ** 2 / HELD_BACK_SHARE / 50) * 50
                yield (
                    f"{quality.images} images cannot tell a loss of {self.metric.show(bound)} from twice as much: the "
                    f"loss is known to +-{self.metric.show(half)} (95 %); about {needed} images in all would do"
                )
        if self.cut_short:
            yield (
                f"the time was up after {len(self.rows)} measurements of layers and {len(self.trials)} networks; "
                "there may be better ones: give more time, fewer kinds of masks and repairs, or smaller inputs"
            )
        looks = sum(trial.held_back is not None for trial in self.trials.values())
        if looks > 1:
            yield (
                f"{looks} models were looked at on the held-back images until one stayed within the bound, so its loss "
                "there is a little flattering"
            )
