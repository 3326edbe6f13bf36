"""Whole networks that a search really rewrites, runs and times, and what they tell about each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

from perfonnx.comparing.metrics import Metric, Quality
from perfonnx.plan import LAYOUTS, Plan
from perfonnx.search.choose import Option, pareto
from perfonnx.search.counts import Counts
from perfonnx.search.credible import credible_drop
from perfonnx.search.evaluate import CHOOSING, FITTING, HELD_BACK, Evaluator, Outcome, Task
from perfonnx.search.pace import FINAL_SECONDS, REFIT, REFITS, TIMED_SECONDS, TRIAL, VERIFICATION, Pace, Sizes
from perfonnx.search.result import TARGETS, Progress, Target, Trial
from perfonnx.search.sensitivity import plan_key
from perfonnx.search.state import Records
from perfonnx.search.timing import Speed, Timer
from perfonnx.subject import SamplesLike

OVERTIME = 2
"""Networks that are tried, and verified, after the time is up where nothing was found: the mildest ones."""

LUCKY = 4.0
"""A network that failed on the images held back is taken to have lost no less than this part of the bound on others."""

PROBED = 32
"""Images that refitting is timed by first."""

GROWTH, LEAST_GROWTH = 1.5, 0.05
"""Refitting is timed again by so many times as many images at least, and takes so much of its time longer then."""

NETWORK = "network"
"""Before the keys of whole networks in the records."""

MILDER = 0.9
"""What the next one may lose, against one that failed."""


@dataclass
class Tools:
    """What a search measures with.

    Attributes:
        parts: The images, by part.
        metric: What is measured of them.
        evaluator: Measures losses.
        timer: Measures times.
        counts: Counts multiplies and bytes.
        executor: Does the evaluator's work.
        records: What is known already.
        progress: Called with each step.
    """

    parts: Mapping[str, SamplesLike]
    metric: Metric
    evaluator: Evaluator
    timer: Timer
    counts: Counts
    executor: Executor
    records: Records
    progress: Callable[[Progress], None]


@dataclass
class Networks:
    """The networks that were measured.

    Attributes:
        tools: What is measured with.
        target: What is wanted.
        pace: Time.
        sizes: Images.
        trials: All networks, in order, by `plan_key`.
        cut_short: Whether there was more to try than time.
        overtime: Networks that were tried beyond it.
    """

    tools: Tools
    target: Target
    pace: Pace
    sizes: Sizes
    trials: dict[str, Trial] = field(default_factory=dict)
    cut_short: bool = False
    overtime: int = 0

    def attempt(self, plan: Plan, why: str) -> Trial:
        """Rewrites, runs and times a plan, unless that was done before."""
        key = plan_key(plan)
        if key not in self.trials:
            layers = len(plan.layers)
            self.tell(f"searching {why}: {layers} layer{'s' if layers != 1 else ''}", len(self.trials))
            kind = kind_of(plan)
            with self.pace.measuring(kind):
                quality = self.evaluate(plan, CHOOSING, self.sizes.choosing)
                speed = self.tools.records.ask(f"time {key}", lambda: self.tools.timer.speed(plan).to_json())
                counts = self.tools.records.ask(f"counts {key}", lambda: self.tools.counts.network(plan))
            if kind == TRIAL:
                self.pace.foresee(VERIFICATION, self.pace.expected[TRIAL] + FINAL_SECONDS - TIMED_SECONDS)
            pairs = {kind: (before, after) for kind, (before, after) in counts.items()}
            trial = Trial(plan, why, quality, Speed(**speed), None, pairs, self.repaired_by(plan))
            self.trials[key] = trial
            self._remember(trial)
            self.tell("searching", len(self.trials), news=f"{self.describe(trial)} ({why})")
        return self.trials[key]

    def verify(self, trial: Trial) -> bool:
        """Runs a network on images held back, and times it once more where it stays within the bound.

        Returns:
            Whether it does.
        """
        self.tell(f"verifying {self.describe(trial)}", sum(t.held_back is not None for t in self.trials.values()))
        with self.pace.measuring(VERIFICATION):
            quality = self._look(trial)
            if self.target.allows(quality):
                speed = self.tools.records.ask(
                    f"final time {plan_key(trial.plan)}",
                    lambda: self.tools.timer.speed(trial.plan, seconds=FINAL_SECONDS).to_json(),
                )
                trial.speed = Speed(**speed)
        self._remember(trial)
        allowed = self.target.allows(quality)
        verdict = "" if allowed or self.target.max_drop is None else ", which is too much"
        self.tell(
            "verifying",
            0,
            news=f"{trial.speed.ratio:.2f}x, {self.tools.metric.lost(quality.drop)} on "
            f"{quality.images} images held back{verdict}",
        )
        return allowed

    def _look(self, trial: Trial) -> Quality:
        """Runs a network on the images held back."""
        trial.held_back = self.evaluate(trial.plan, HELD_BACK, self.sizes.held_back, trial.repaired_by)
        return trial.held_back

    def repaired_by(self, plan: Plan) -> int:
        """By how many images the layers of a plan are repaired, or refitted."""
        return (self.sizes.refitting if is_regional(plan) else self.sizes.repairing) or 1

    def settle(self, plan: Plan) -> None:
        """Says by how many images regions are refitted, by what refitting such a plan takes here and now."""
        images, batch, records = len(self.tools.parts[FITTING]), self.sizes.batch, self.tools.records
        allotted, count = self.pace.max_time / REFITS, min(math.ceil(PROBED / batch) * batch, self.sizes.refitting)
        fewer: tuple[int, float] | None = None  # a number of images before, and what it took
        while True:
            clock = records.clock
            self.evaluate(plan, CHOOSING, self.sizes.choosing, count)
            took = max(records.clock - clock, 1e-9)
            if fewer is None:  # a part of the time does not grow with the images: twice as many take less than twice it
                wanted = max(count * allotted / took, 2 * count)
            else:
                each = max(took - fewer[1], LEAST_GROWTH * took) / (count - fewer[0])
                wanted = count + (allotted - took) / each
            following = math.floor(min(wanted, images) / batch) * batch
            if took >= allotted or following < GROWTH * count:
                break
            fewer, count = (count, took), following
        self.sizes = replace(self.sizes, refitting=count)
        self.pace.took(REFIT, took + TIMED_SECONDS)

    def finish(self, trial: Trial | None) -> Trial | None:
        """A network with regions, refitted by all images but those held back, if there is time and that is no worse.

        What was chosen by need not be new to it any more.
        """
        if trial is None or trial.held_back is None or not is_regional(trial.plan):
            return trial
        images = len(self.tools.parts[FITTING]) + len(self.tools.parts[CHOOSING])
        seconds = self.pace.expected[REFIT] * images / trial.repaired_by
        if images <= trial.repaired_by or seconds > self.pace.left:
            return trial
        self.tell("refitting by all images", 0)
        quality = self.evaluate(trial.plan, HELD_BACK, self.sizes.held_back, images)
        if not self.target.allows(quality) or quality.guide > trial.held_back.guide:
            return trial
        finished = replace(trial, held_back=quality, repaired_by=images)
        self.trials[plan_key(trial.plan)] = finished
        self._remember(finished)
        return finished

    def evaluate(self, plan: Plan, part: str, images: int, repaired_by: int | None = None) -> Quality:
        """What a plan loses on the first images of a part; None: repaired by as many images as all are."""
        repaired_by = repaired_by or self.repaired_by(plan)

        def measure() -> dict[str, Any]:
            task = Task(plan, part, images, repaired_by=repaired_by)
            outcome: Outcome = self.tools.executor.submit(self.tools.evaluator, task).result()
            return outcome.quality.to_json()

        same = plan_key(replace(plan, layout=LAYOUTS[0]))  # what is lost does not depend on the layout
        return Quality.from_json(self.tools.records.ask(f"{part} {same} {images} {repaired_by}", measure))

    def affords(self, *kinds: str, until: float = 1.0) -> bool:
        """Whether there is time for that; asked where there is more to try."""
        affords = self.pace.affords(*kinds, until=until)
        self.cut_short |= not affords
        return affords

    def goes_on(self, kind: str = TRIAL, until: float = 1.0) -> bool:
        """Whether there is time for one network more, in a part of all of it, and to verify one after it.

        For the first one always, and for a few more where nothing was found: a search shall not end in between.
        """
        if not self.trials or self.affords(kind, VERIFICATION, until=until):
            return True
        if until < 1:
            return False
        if self.overtime == OVERTIME or self.best() is not None:
            return False
        self.overtime += 1
        return True

    def is_last(self, kind: str = TRIAL, until: float = 1.0) -> bool:
        """Whether there is no time for two of them."""
        return not self.pace.affords(kind, kind, VERIFICATION, until=until)

    # --- other targets -----------------------------------------------------------------------------------------------

    def _remember(self, trial: Trial) -> None:
        """Keeps a network as it is known now, for a search with another target."""
        key, data = f"{NETWORK} {plan_key(trial.plan)}", trial.to_json()
        known, _ = self.tools.records.known.get(key, (None, 0.0))
        if known is None or (trial.held_back is not None and known != data):
            self.tools.records.put(key, data, 0.0)

    def recall(self) -> None:
        """Takes over all networks that searches with other targets measured."""
        for key, (data, _) in self.tools.records.known.items():
            if key.split()[0] == NETWORK:
                trial = Trial.from_json(data)
                self.trials[plan_key(trial.plan)] = trial

    def best_trades(self) -> list[Trial]:
        """The networks that no other one beats in loss and gain, whatever is minimised."""
        trials = list(self.trials.values())
        found: dict[int, Trial] = {}
        for minimised in TARGETS:
            target = Target(minimised=minimised)
            for losses in (self.loss, lambda trial: trial.choosing.guide):
                options = [Option(1 / target.gain(trial), losses(trial)) for trial in trials]
                found.update((i, trials[i]) for i in pareto(options))
        return [found[i] for i in sorted(found)]

    def look_ahead(self) -> list[Trial]:
        """Runs the best trades on the images held back, as far as there is time: another target may choose of them."""
        trades = self.best_trades()
        for done, trial in enumerate(trades):
            if trial.held_back is not None:
                continue
            if not self.pace.affords(VERIFICATION):
                break
            self.tell("measuring for other targets", done, len(trades))
            self._look(trial)
            self._remember(trial)
        return trades

    # --- what is known -----------------------------------------------------------------------------------------------

    def loss(self, trial: Trial) -> float:
        """The loss to expect of a network, in the metric's terms."""
        if trial.held_back is not None and not self.target.allows(trial.held_back):
            return trial.held_back.drop
        return credible_drop(trial.choosing, self._known())

    def _known(self) -> list[Quality]:
        return [trial.choosing for trial in self.trials.values()]

    def limit(self) -> float:
        """The largest loss to look for, as `Metric.size` has it: less than the bound once networks within it were not.

        What a network lost on the images held back, more than on the others, its neighbours will lose in proportion.
        """
        size, bound = self.tools.metric.size, self.target.max_drop
        if bound is None:
            return math.inf
        allowed = limit = size(bound)
        for trial in self.trials.values():
            if trial.held_back is not None and not self.target.allows(trial.held_back):
                expected = max(size(credible_drop(trial.choosing, self._known())), allowed / LUCKY)
                limit = min(limit, expected * min(allowed / size(trial.held_back.drop), MILDER))
        return limit

    def within(self, trial: Trial) -> bool:
        """Whether the loss to expect of a network is within the bound, and within what is left of it."""
        if self.target.max_drop is None or trial.held_back is not None:
            return self.target.allows(trial.held_back)
        loss = self.loss(trial)
        return loss <= self.target.max_drop and self.tools.metric.size(loss) <= self.limit()

    def candidates(self) -> list[Trial]:
        """Networks that are faster than the original and within the bound, as far as is known, the best one first."""
        found = [t for t in self.trials.values() if self.target.gain(t) >= self.target.least and self.within(t)]
        return sorted(found, key=self.merit)

    def merit(self, trial: Trial) -> tuple[float, ...]:
        """The order of networks: the fastest first; or the least lossy of those that have the speed that is wanted."""
        if self.target.speedup is not None and self.target.reached(trial.speed):
            return (0.0, trial.choosing.guide)
        return (1.0, -self.target.gain(trial))

    def best(self) -> Trial | None:
        """The best candidate."""
        return next(iter(self.candidates()), None)

    def describe(self, trial: Trial) -> str:
        """A network in a few words."""
        layers = len(trial.plan.layers)
        return (
            f"{layers} layer{'s' if layers != 1 else ''}, {trial.speed.ratio:.2f}x, "
            f"{self.tools.metric.lost(trial.choosing.drop)}"
        )

    def tell(self, phase: str, done: int, total: int = 0, news: str = "") -> None:
        """Says where the search is."""
        best = self.best()
        words = "" if best is None else f"{best.speed.ratio:.2f}x, {self.tools.metric.show(best.choosing.drop)}"
        self.tools.progress(Progress(phase, done, total, self.pace.left, words, news))


def kind_of(plan: Plan) -> str:
    """What measuring a plan's network is, see `perfonnx.search.pace`."""
    return REFIT if is_regional(plan) else TRIAL


def is_regional(plan: Plan) -> bool:
    """Whether a plan puts regions on a lattice."""
    return any(step.regional for step in plan.steps())
