"""What a tuning wants, where it is, and what it found."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from perfonnx.comparing.metrics import Metric, Quality
from perfonnx.errors import PerfonnxError
from perfonnx.masks import ImpactMaps
from perfonnx.plan import Plan
from perfonnx.rewriting import Rewritten
from perfonnx.search.choose import Option, pareto
from perfonnx.search.costs import LayerCosts
from perfonnx.search.error_maps import ErrorMap
from perfonnx.search.groups import Units
from perfonnx.search.pictures import Picture
from perfonnx.search.sensitivity import Row
from perfonnx.search.timing import Speed, machine

FORMAT = 1

MIN_SPEEDUP = 1.03
"""A model that is not faster than this is not worth a change: repeated timings differ by as much."""

TIME, MULTIPLIES, SIZE = "time", "multiplies", "size"
TARGETS = (TIME, MULTIPLIES, SIZE)
"""What may be minimised: the measured time, the exact multiplies, or the bytes of the model's file."""

_GAINED = {TIME: "faster", MULTIPLIES: "fewer multiplies", SIZE: "smaller"}
_WORTH = {TIME: f"is faster than {MIN_SPEEDUP:g}x", MULTIPLIES: "has fewer multiplies", SIZE: "is smaller"}


@dataclass(frozen=True)
class Target:
    """What is wanted.

    Attributes:
        max_drop: Largest loss, in the metric's terms; None where only the speed counts.
        speedup: How many times faster; None: as fast as the loss allows. With both, the smallest loss at that speed.
        minimised: What is to be small, one of `TARGETS`.
    """

    max_drop: float | None = None
    speedup: float | None = None
    minimised: str = TIME

    def __post_init__(self) -> None:
        """Checks the range."""
        if self.minimised not in TARGETS:
            raise PerfonnxError(f"unknown target {self.minimised!r}; choose from {', '.join(TARGETS)}")
        if self.speedup is not None and self.minimised != TIME:
            raise PerfonnxError(f"a speed-up is about time; with the target {self.minimised}, give the largest loss")
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise PerfonnxError(f"speed-up {self.speedup:g}: give a number above 1, such as 1.5")
        if self.max_drop is not None and math.isnan(self.max_drop):
            raise PerfonnxError("drop: it is no number")

    def allows(self, quality: Quality | None) -> bool:
        """Whether a loss is within the bound."""
        return self.max_drop is None or (quality is not None and quality.drop <= self.max_drop)

    @property
    def least(self) -> float:
        """The gain below which a model is not worth a change: time is measured, the others are exact."""
        return MIN_SPEEDUP if self.minimised == TIME else math.nextafter(1.0, 2.0)

    def reached(self, speed: Speed) -> bool:
        """Whether a speed is enough beyond doubt: the lower end of its interval counts."""
        return speed.low >= (self.speedup or MIN_SPEEDUP)

    def met(self, trial: Trial) -> bool:
        """Whether a network gains enough beyond doubt."""
        return self.reached(trial.speed) if self.minimised == TIME else self.gain(trial) >= self.least

    def gain(self, trial: Trial) -> float:
        """How many times less than the original a network has of what is minimised."""
        if self.minimised == TIME:
            return trial.speed.ratio
        before, after = trial.counts[self.minimised]
        return before / max(after, 1)

    @property
    def worth(self) -> str:
        """What a network has to be, in words."""
        return _WORTH[self.minimised]

    def gained(self, trial: Trial) -> str:
        """The gain in words; the speed is always told."""
        speed = f"{trial.speed.ratio:.2f}x {_GAINED[TIME]}"
        return speed if self.minimised == TIME else f"{self.gain(trial):.2f}x {_GAINED[self.minimised]}, {speed}"


@dataclass
class Trial:
    """A whole network that was really rewritten, run and timed.

    Attributes:
        plan: What was done.
        why: How the search came to it.
        choosing: Its loss on the images to choose by.
        speed: Its time against the original's.
        held_back: Its loss on the other images; None where it was not looked at.
        counts: Multiplies of one image and bytes of the file, of the original and of the network, by `MULTIPLIES` and
            `SIZE`.
        repaired_by: Images that its layers were repaired by.
    """

    plan: Plan
    why: str
    choosing: Quality
    speed: Speed
    held_back: Quality | None = None
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    repaired_by: int = 1

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "why": self.why,
            "plan": self.plan.to_json(),
            "speed": self.speed.to_json(),
            "choosing": self.choosing.to_json(),
            "held_back": None if self.held_back is None else self.held_back.to_json(),
            "counts": {kind: list(pair) for kind, pair in self.counts.items()},
            "repaired_by": self.repaired_by,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """What `to_json` gave."""
        return cls(
            Plan.from_json(data["plan"]),
            data["why"],
            Quality.from_json(data["choosing"]),
            Speed(**data["speed"]),
            None if data["held_back"] is None else Quality.from_json(data["held_back"]),
            {kind: (before, after) for kind, (before, after) in data["counts"].items()},
            data["repaired_by"],
        )


@dataclass(frozen=True)
class Progress:
    """Where a search is.

    Attributes:
        phase: What is being done.
        done: Steps of the phase that are done.
        total: All its steps, 0 where that is not known.
        seconds_left: Until the time given is used up; searches end earlier where nothing is left to try.
        best: The best that was found, in words.
        news: What was found out since the step before, in words; mostly nothing.
    """

    phase: str
    done: int
    total: int
    seconds_left: float
    best: str
    news: str = ""


@dataclass(frozen=True)
class Training:
    """What the network that was found has learned since.

    Attributes:
        before: Its loss on the images held back, before.
        after: The same after.
        speed: Its time against the original's, after.
        held_out: What the training lost on samples of its own that it held out, epoch by epoch.
        images: Samples that it learned from.
        seconds: What it took.
    """

    before: Quality
    after: Quality
    speed: Speed
    held_out: tuple[float, ...]
    images: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **asdict(self),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "speed": self.speed.to_json(),
        }


@dataclass
class Tuned:
    """What `tune` found.

    Attributes:
        result: The rewritten model; the original where nothing was found.
        best: The trial that was taken, None where nothing was found.
        message: In one line, what came out.
        warnings: What should be known before the numbers are trusted.
        reached: Whether the target was reached.
        metric: What was measured.
        target: What was wanted.
        trials: Everything that was really measured, in order.
        rows: The units' sensitivities.
        costs: What the units take, as parts of the original's time, by the way in which the network was looked at.
        units: The layers of every unit.
        layer_times: Of every convolution in the original and in the result, as parts of the original's time; empty
            where nothing was found.
        images: How many, by part.
        threads: Intra-op threads asked for.
        seconds: What the measurements took.
        impact_maps: What masks called `impact` were made from, None where that was no choice.
        obstacles: Why layers were not even tried, by name.
        pictures: Outputs of both models side by side, where the model makes images; made from images held back.
        error_maps: Where layers and outputs differ from the original's, on images held back.
        training: What training brought, where the network was trained.
    """

    result: Rewritten
    best: Trial | None
    message: str
    warnings: tuple[str, ...]
    reached: bool
    metric: Metric
    target: Target
    trials: list[Trial]
    rows: list[Row]
    costs: dict[str, LayerCosts]
    units: Units
    layer_times: dict[str, tuple[float, float]]
    images: dict[str, int]
    threads: int | None
    seconds: float
    impact_maps: ImpactMaps | None = None
    obstacles: dict[str, str] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    error_maps: list[ErrorMap] = field(default_factory=list)
    training: Training | None = None

    @property
    def plan(self) -> Plan:
        """The plan that makes the model again."""
        return self.result.plan

    def save_plan(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, and beside it what it needs; see `Rewritten.save_plan`.

        Raises:
            PerfonnxError: A file cannot be written.
        """
        self.result.save_plan(path)

    def pareto(self) -> list[Trial]:
        """The trials that no other one beats in both gain and guide, from the least loss to the largest gain."""
        options = [Option(1 / self.target.gain(trial), trial.choosing.guide) for trial in self.trials]
        return [self.trials[i] for i in pareto(options)]

    def to_json(self) -> dict[str, Any]:
        """As plain data, for a report."""
        best = [i for i, trial in enumerate(self.trials) if trial is self.best]
        front = {id(trial) for trial in self.pareto()}
        return {
            "perfonnx_tune": FORMAT,
            "model": self.result.report.model,
            "message": self.message,
            "warnings": list(self.warnings),
            "reached": self.reached,
            "metric": self.metric.to_json(),
            "target": asdict(self.target),
            "machine": machine(),
            "threads": self.threads,
            "images": self.images,
            "seconds": self.seconds,
            "best": best[0] if best else None,
            "plan": self.plan.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
            "pareto": [i for i, trial in enumerate(self.trials) if id(trial) in front],
            "obstacles": self.obstacles,
            "sensitivity": [row.to_json() for row in self.rows],
            "units": {name: list(layers) for name, layers in self.units.items()},
            "profiles": {way: costs.to_json() for way, costs in self.costs.items()},
            "training": None if self.training is None else self.training.to_json(),
            "layer_times": {name: list(pair) for name, pair in self.layer_times.items()},
            "errors": [each.to_json() for each in self.error_maps],
        }
