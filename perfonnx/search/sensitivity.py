"""How much each layer minds being sampled: one layer at a time is rewritten, and the network's output is compared."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfonnx.comparing.metrics import Metric, Quality
from perfonnx.errors import PerfonnxError
from perfonnx.inspection import Inspection
from perfonnx.methods import METHODS, Method, find_method
from perfonnx.methods.perforate import BIAS, PREDICTOR
from perfonnx.model.files import ModelSource
from perfonnx.names import shortened
from perfonnx.passes.estimates import work_of
from perfonnx.plan import Plan
from perfonnx.sampling import INTERPOLATIONS
from perfonnx.search.evaluate import (
    CHOOSING,
    Evaluator,
    Outcome,
    PlanEvaluator,
    SerialExecutor,
    Task,
    find_metric,
    hold,
)
from perfonnx.search.groups import Units, alone, by_layer
from perfonnx.search.impacts import IMPACT, with_impacts
from perfonnx.search.state import Records, fingerprint
from perfonnx.subject import SamplesLike, Subject

MASK_CHOICES = ("lattice", "uniform", "pooling-structure")
RATES = (0.25, 0.5, 0.75)
REPAIR_CHOICES = (BIAS, PREDICTOR)
"""Without repair a layer is as fast as with a bias, and less accurate: no choice worth measuring."""

NOTICEABLE = 0.01
"""Part of the multiplies that a layer has to carry for a search to look at it, where most methods leave it alone."""

REPAIRED_BY = 48
"""Images that a single layer is repaired by, at most; half as many as it is measured on where these are few."""


@dataclass(frozen=True)
class Space:
    """What may be done with a layer: what the methods make of it, such as every mask at every rate with every repair.

    Attributes:
        masks: Names or files, as plans take them.
        rates: Fractions of positions to skip.
        interpolations: How skipped positions are filled.
        repairs: How layers are corrected, names in `perfonnx.methods.perforate.REPAIRS`.
        methods: Names in `perfonnx.methods.METHODS`; those without candidates add nothing.
        flips: Whether regions are refitted to mirror images of the data too.

    Raises:
        PerfonnxError: A name is unknown, a rate is out of range, or nothing is left to choose from.
    """

    masks: Sequence[str] = MASK_CHOICES
    rates: Sequence[float] = RATES
    interpolations: Sequence[str] = INTERPOLATIONS[:1]
    repairs: Sequence[str] = REPAIR_CHOICES
    methods: Sequence[str] = field(default_factory=lambda: list(METHODS))
    flips: bool = False

    def __post_init__(self) -> None:
        """Checks everything once."""
        for what in ("mask", "rate", "interpolation", "repair"):
            if not getattr(self, f"{what}s"):
                raise PerfonnxError(f"no {what} to choose from")
        for name in self.methods:
            find_method(name, "choices")
        for choice in self.choices():
            choice.check("choices")
            if not choice.saving and not choice.lossless:
                raise PerfonnxError("rate 0 skips nothing; the original is always among the choices")

    def choices(self) -> list[Method]:
        """All of them, each once."""
        return list(dict.fromkeys(c for name in self.methods for c in METHODS[name].candidates(self)))

    @property
    def savings(self) -> Sequence[float]:
        """See `perfonnx.methods.Space`."""
        return self.rates

    def of(self, setting: str) -> Sequence[Any]:
        """See `perfonnx.methods.Space`."""
        found: Sequence[Any] = getattr(self, f"{setting}s", ())
        return found


def plan_key(plan: Plan) -> str:
    """The same for plans that do the same."""
    data = plan.content()
    data["layers"] = dict(sorted(data["layers"].items()))
    return fingerprint(str(data))


@dataclass(frozen=True)
class Row:
    """What one choice in one layer, or in a group of layers, costs.

    Attributes:
        layer: Name of the unit.
        choice: What was done with it; all others stay as they are.
        quality: What the network then loses.
    """

    layer: str
    choice: Method
    quality: Quality

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"layer": self.layer, "choice": self.choice.to_json(), **self.quality.to_json()}


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of a model's layers.

    Attributes:
        model: Its name.
        metric: What was measured.
        images: On how many images.
        rows: One per layer and choice.
        shares: Each layer's part of the multiplies.
    """

    model: str
    metric: Metric
    images: int
    rows: tuple[Row, ...]
    shares: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "model": self.model,
            "metric": self.metric.to_json(),
            "images": self.images,
            "layers": [row.to_json() for row in self.rows],
            "shares": dict(self.shares),
        }


def eligible(inspection: Inspection) -> dict[str, float]:
    """The layers that may be rewritten with profit, each with its part of the multiplies."""
    return {conv.name: conv.share for conv in inspection.convs if conv.reason is None}


def reducible(subject: Subject, inspection: Inspection) -> list[str]:
    """The other layers that carry a noticeable part of the work: 1x1 convolutions and matrix products, say.

    Most methods leave them alone, or can do nothing with them; those of low rank may.
    """
    usual, least = eligible(inspection), NOTICEABLE * inspection.multiplies
    return [each.name for each in subject.layers() if each.name not in usual and work_of(each) >= least]


def measure_layers(
    tasks: Sequence[tuple[str, Method]],
    units: Units,
    evaluator: Evaluator,
    *,
    images: int,
    seed: int,
    records: Records,
    executor: Executor,
    base: Mapping[str, Method] | None = None,
    go_on: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Row]:
    """Measures (unit, choice) pairs, one at a time.

    Args:
        tasks: The pairs, in the order in which they matter.
        units: The units' layers.
        evaluator: Measures a plan.
        images: How many images of the choosing part.
        seed: Seed of the masks.
        records: What is known already.
        executor: Does the work; as many tasks are under way as it has workers.
        base: What all other layers have; None: they are dense.
        go_on: Asked before each measurement.
        progress: Called with the pairs done and their total.
    """
    workers = int(getattr(executor, "_max_workers", 1))
    repaired_by = min(REPAIRED_BY, math.ceil(images / 2))
    waiting: deque[tuple[str, str, Method, Future[Outcome] | None]] = deque()
    todo = iter(tasks)
    done = 0
    try:
        while True:
            while len(waiting) < workers and go_on():
                pair = next(todo, None)
                if pair is None:
                    break
                layer, choice = pair
                plan = Plan({**(base or {}), **by_layer(units, {layer: choice})}, seed)
                key = f"layer {plan_key(plan)} {images}"
                future = None
                if key not in records.known:
                    future = executor.submit(evaluator, Task(plan, CHOOSING, images, "nchw", repaired_by))
                waiting.append((key, layer, choice, future))
            if not waiting:
                return
            key, layer, choice, future = waiting.popleft()
            if future is not None:
                outcome = future.result()
                records.measured += 1
                records.put(key, outcome.quality.to_json(), outcome.seconds)
            done += 1
            if progress:
                progress(done, len(tasks))
            yield Row(layer, choice, Quality.from_json(records.read(key)))
    finally:
        for *_, future in waiting:
            if future is not None:
                future.cancel()


def sensitivity(
    model: ModelSource,
    samples: SamplesLike,
    *,
    space: Space | None = None,
    metric: str | None = None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    freeze_weights: bool = False,
    threads: int | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Measures what each choice in each layer does to a model's output.

    Args:
        model: As for `perfonnx.rewrite`.
        samples: The images.
        space: The choices; default: three masks at three rates.
        metric: Name in `METRICS`; None: by the model's outputs.
        input_shapes: Sizes for symbolic dimensions.
        freeze_weights: As for `perfonnx.rewrite`.
        threads: Intra-op threads, None for all cores.
        seed: Seed of the masks.
        executor: Does the measuring; None: this thread.
        progress: Called with the pairs done and their total.

    Raises:
        PerfonnxError: The model or the data cannot be used, or no layer can be rewritten.
    """
    space = space or Space()
    subject = Subject(model, dict(input_shapes or {}), freeze_weights)
    inspection = subject.inspect()
    shares = eligible(inspection)
    if not shares:
        wanted = "".join(f"; {number} want {flag}" for flag, number in inspection.missing.items())
        raise PerfonnxError(f"{inspection.model}: no layer can be rewritten with profit{wanted}; see perfonnx inspect")
    held = hold(samples)
    subject = replace(subject, calibration=held)
    found, _ = find_metric(metric, subject, held, threads=threads)
    records = Records()
    if IMPACT in space.masks:
        units, rate = alone(list(shares)), max(space.rates)
        subject = with_impacts(subject, held, found, units, rate=rate, records=records, threads=threads)
    evaluator = PlanEvaluator(subject, {CHOOSING: held}, found, threads)
    lossy = [choice for choice in space.choices() if not choice.lossless]
    choices = [choice for choice in lossy if not choice.regional] or lossy
    tasks = [(layer, choice) for choice in choices for layer in subject.able(list(shares), choice, seed)]
    rows = measure_layers(
        tasks,
        alone(list(shares)),
        evaluator,
        images=len(held),
        seed=seed,
        records=records,
        executor=executor or SerialExecutor(),
        progress=progress,
    )
    return Sensitivity(inspection.model, found, len(held), tuple(rows), shares)


def render_sensitivity(result: Sensitivity) -> RenderableType:
    """One line per layer, one column per choice: the guide, and the drop where it is not 0."""
    choices = list(dict.fromkeys(row.choice for row in result.rows))
    cells = {(row.layer, row.choice): row.quality for row in result.rows}
    guide = result.metric.to_json()["guide"]
    table = Table(
        title=Text(f"{result.model}: {guide} of the output with one layer sampled, and drop of {result.metric.name}"),
        title_justify="left",
    )
    table.add_column("layer", overflow="fold")
    table.add_column("share", justify="right")
    for choice in choices:
        table.add_column(choice.label, justify="right")
    for layer in dict.fromkeys(row.layer for row in result.rows):
        texts = []
        for choice in choices:
            quality = cells.get((layer, choice))
            texts.append("-" if quality is None else f"{quality.guide:.4f}\n{result.metric.show(quality.drop)}")
        table.add_row(Text(shortened(layer)), f"{result.shares[layer]:.1%}", *texts)
    notes = (Text(f"note: {note}", "yellow") for note in result.metric.left_out)
    return Group(table, f"{result.images} images; standard errors are in --json", *notes)
