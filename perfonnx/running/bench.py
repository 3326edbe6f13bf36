"""Times models against each other, as a whole and layer by layer.

Runs are interleaved and their order rotates, so that a machine that slows down or speeds up does so for every model
alike; what is compared are medians, and the ratio of runs that stood next to each other. What the activations need in
memory is measured afterwards, in a process for each model.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfonnx.data.feeds import random_feeds
from perfonnx.data.inputs import Feed, Shapes, merged_inputs
from perfonnx.errors import PerfonnxError
from perfonnx.model import files
from perfonnx.model.files import ModelSource, take_in_data
from perfonnx.model.signature import freeze_weights, overridable
from perfonnx.names import shortened
from perfonnx.running.memory import ActivationMemory, activation_memory
from perfonnx.running.opened import OpenModel, Progress, open_model
from perfonnx.running.profiles import Names, layer_times, open_profiled, read_profile
from perfonnx.runtime import chosen_provider, timed_options

PROFILE_RUNS = 10
"""Most runs that are profiled for the times per layer."""


# --- reports ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelTiming:
    """The runs of one model. All times in milliseconds.

    Attributes:
        name: Name of the model.
        times: One time per run, in the order of the rounds.
        ratio: Median of the first model over this one's: above 1 is faster than the first.
        paired_ratio: Median over the rounds of the first model's time over this one's in the same round.
    """

    name: str
    times: tuple[float, ...]
    ratio: float
    paired_ratio: float

    @property
    def median(self) -> float:
        """Median time."""
        return statistics.median(self.times)

    @property
    def minimum(self) -> float:
        """Shortest time."""
        return min(self.times)

    @property
    def spread(self) -> float:
        """Interquartile range; 0 for a single run."""
        if len(self.times) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return high - low


@dataclass(frozen=True)
class LayerTiming:
    """One layer in all models.

    Attributes:
        name: Name of the node in the first model; of another model's, if the first has none like it.
        operators: What onnxruntime ran, per model; None where the model has no such layer, or one that was fused into
            another.
        times: Median milliseconds per run, per model.
    """

    name: str
    operators: tuple[str | None, ...]
    times: tuple[float | None, ...]


@dataclass(frozen=True)
class BenchReport:
    """What `bench` measured.

    Attributes:
        models: One entry per model, in the order given; the first is the one that ratios refer to.
        runs: Timed runs of each model.
        threads: Intra-op threads asked for, None for onnxruntime's default.
        layers: Times per layer, in the order in which they run; None if not asked for.
        memory: What each model's activations need; None if not asked for.
        frozen: Weights that the first model is timed with as constants, although they are graph inputs of it too: those
            that another model has made constant (`rewrite --freeze-weights`), which makes onnxruntime faster by itself.
    """

    models: tuple[ModelTiming, ...]
    runs: int
    threads: int | None
    layers: tuple[LayerTiming, ...] | None
    memory: tuple[ActivationMemory, ...] | None = None
    frozen: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; times in milliseconds."""
        return {
            "runs": self.runs,
            "threads": self.threads,
            "frozen": list(self.frozen),
            "models": [
                {
                    "name": model.name,
                    "median_ms": model.median,
                    "spread_ms": model.spread,
                    "min_ms": model.minimum,
                    "ratio": model.ratio,
                    "paired_ratio": model.paired_ratio,
                    "times_ms": list(model.times),
                }
                for model in self.models
            ],
            "layers": None
            if self.layers is None
            else [
                {"name": layer.name, "operators": list(layer.operators), "times_ms": list(layer.times)}
                for layer in self.layers
            ],
            "memory": None
            if self.memory is None
            else [
                {
                    "name": model.name,
                    "peak_bytes": memory.peak,
                    "live_bytes": memory.live,
                    "ratio": self.memory[0].peak / max(memory.peak, 1),
                }
                for model, memory in zip(self.models, self.memory, strict=True)
            ],
        }


# --- timing ----------------------------------------------------------------------------------------------------------


def bench(
    models: Sequence[ModelSource],
    *,
    names: Sequence[str] | None = None,
    threads: int | None = None,
    runs: int = 30,
    warmup: int = 3,
    feed: Feed | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
    per_layer: bool = False,
    memory: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Times models on one and the same input.

    Every model gets its session first; then each round runs every model once, starting with the next one each time.
    Sessions are told to stop spinning when their run ends, or an idle one would take the cores of the one being timed.

    Args:
        models: One model or more. All must take the same inputs, up to the precision of floating-point ones. Weights
            that the first one lists as graph inputs, and another one does not, are made constant in the first one too.
        names: Names for the report; by default the files' names, numbered where they repeat.
        threads: Intra-op threads, None for onnxruntime's default.
        runs: Timed rounds, 1 or more.
        warmup: Rounds before these, that are not timed; 0 or more.
        feed: The input; None draws a random one of the shape that the models fix.
        shapes: Shapes of inputs by name, for dimensions the model leaves open.
        seed: Seed of a random input.
        per_layer: Also profile a few runs, of separate sessions, for the times per layer.
        memory: Also measure what the activations need in memory, in a process for each model.
        progress: Called after each round with the rounds done and their total.

    Raises:
        PerfonnxError: A model does not load or run, or the models take other inputs.
    """
    if not models:
        raise PerfonnxError("there is no model to time")
    if runs < 1 or warmup < 0:
        raise PerfonnxError(f"runs {runs}, warm-up {warmup}: there must be 1 run or more, and no negative warm-up")
    if threads is not None and threads < 1:
        raise PerfonnxError(f"threads {threads}: must be 1 or more")
    if memory and chosen_provider() != "cpu":
        raise PerfonnxError("memory is measured on the CPU alone; leave out --memory or --provider")
    called = list(names) if names else [files.load(model).name for model in models]
    models, frozen = _equally_frozen(models)
    if frozen:
        called[0] += " (weights frozen)"
    opened = [
        open_model(model, name=name, threads=threads, options=timed_options())
        for model, name in zip(models, _distinct(called), strict=True)
    ]
    if feed is None:
        inputs = merged_inputs([model.inputs for model in opened])
        feed = next(random_feeds(inputs, n=1, seed=seed, shapes=shapes))
    feeds = [model.adapt(feed) for model in opened]
    profiled = min(runs, PROFILE_RUNS) if per_layer else 0
    total = warmup + runs + (warmup + profiled if per_layer else 0)

    def report(rounds: int) -> None:
        if progress:
            progress(rounds, total)

    times = _rounds(opened, feeds, warmup + runs, report)
    layers = None
    if per_layer:
        layers = _layers(models, feeds, threads, warmup, profiled, lambda done: report(warmup + runs + done))
    needs = None
    if memory:
        needs = tuple(
            activation_memory(source, given, threads=threads) for source, given in zip(models, feeds, strict=True)
        )
    kept = [tuple(series[warmup:]) for series in times]
    return BenchReport(
        models=tuple(
            ModelTiming(
                name=model.name,
                times=series,
                ratio=statistics.median(kept[0]) / statistics.median(series),
                paired_ratio=statistics.median(ours / its for ours, its in zip(kept[0], series, strict=True)),
            )
            for model, series in zip(opened, kept, strict=True)
        ),
        runs=runs,
        threads=threads,
        layers=layers,
        memory=needs,
        frozen=frozen,
    )


def _equally_frozen(models: Sequence[ModelSource]) -> tuple[Sequence[ModelSource], tuple[str, ...]]:
    """The models, the first one with those weights constant that are so in another one, and the names of these."""
    first = files.load(models[0])
    free = overridable(first.proto)
    if not free:
        return models, ()
    frozen = sorted(free - set.intersection(*({i.name for i in files.load(m).proto.graph.input} for m in models)))
    if not frozen:
        return models, ()
    freeze_weights(first, frozen)
    take_in_data(first)
    return [first.proto, *models[1:]], tuple(frozen)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind the second and later ones of a kind."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct


def _rounds(
    models: Sequence[OpenModel], feeds: Sequence[Feed], rounds: int, report: Callable[[int], None]
) -> list[list[float]]:
    """Milliseconds [model][round]; each round starts with another model."""
    times: list[list[float]] = [[] for _ in models]
    for done in range(rounds):
        for step in range(len(models)):
            index = (done + step) % len(models)
            model, feed = models[index], feeds[index]
            if done == 0:
                model.run(feed)  # with the checks, and their message if onnxruntime refuses
            times[index].append(model.milliseconds(feed))
        report(done + 1)
    return times


# --- layers ----------------------------------------------------------------------------------------------------------


def _layers(
    sources: Sequence[ModelSource],
    feeds: Sequence[Feed],
    threads: int | None,
    warmup: int,
    runs: int,
    report: Callable[[int], None],
) -> tuple[LayerTiming, ...]:
    """Profiles every model and puts the layers side by side."""
    with tempfile.TemporaryDirectory(prefix="perfonnx-profile-") as directory:
        profiled = [open_profiled(files.load(source), directory, threads=threads) for source in sources]
        _rounds(profiled, feeds, warmup + runs, report)
        events = [read_profile(model) for model in profiled]  # of one run more than the rounds, the checked one
    base = Names(profiled[0].proto)
    tables = []
    for index, (model, trace) in enumerate(zip(profiled, events, strict=True)):
        names = base if index == 0 else Names(model.proto, base)
        tables.append(layer_times(trace, names, runs))
    keys = _merged([list(table) for table in tables])
    return tuple(
        LayerTiming(
            key,
            tuple(table[key][0] if key in table else None for table in tables),
            tuple(table[key][1] if key in table else None for table in tables),
        )
        for key in keys
    )


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """All keys in the first order; those of later orders that are new stand behind what preceded them there."""
    merged: list[str] = []
    for order in orders:
        place = 0
        for key in order:
            if key in merged:
                place = merged.index(key) + 1
            else:
                merged.insert(place, key)
                place += 1
    return merged


# --- showing ---------------------------------------------------------------------------------------------------------


def render_bench(report: BenchReport) -> RenderableType:
    """The report as rich tables."""
    threads = "" if report.threads is None else f", {report.threads} thread{'s' if report.threads > 1 else ''}"
    table = Table(title=f"milliseconds per run, {report.runs} interleaved runs{threads}", title_justify="left")
    table.add_column("model")
    for column in ("median", "quartiles' spread", "min"):
        table.add_column(column, justify="right")
    if len(report.models) > 1:
        table.add_column("speed-up", justify="right")
        table.add_column("paired", justify="right")
    for model in report.models:
        cells = [f"{value:.3f}" for value in (model.median, model.spread, model.minimum)]
        if len(report.models) > 1:
            cells += [f"{model.ratio:.2f}x", f"{model.paired_ratio:.2f}x"]
        table.add_row(Text(model.name), *cells)  # as text: a name may contain rich's markup characters
    parts: list[RenderableType] = [table]
    if report.frozen:
        parts.append(
            f"The first model is timed with {len(report.frozen)} weights as constants that are graph inputs of it too: "
            "what freezing gains by itself is not counted."
        )
    if report.memory is not None:
        parts.append(_memory_table(report, report.memory))
    if report.layers is not None:
        parts.append(_layer_table(report, report.layers))
    return Group(*parts)


def _memory_table(report: BenchReport, memory: Sequence[ActivationMemory]) -> Table:
    table = Table(title="MB of activations at the peak of a run", title_justify="left")
    table.add_column("model")
    table.add_column("measured", justify="right")
    table.add_column("alive at once, by the graph", justify="right")
    if len(memory) > 1:
        table.add_column("first / this", justify="right")
    for model, needs in zip(report.models, memory, strict=True):
        cells = [f"{value / 1e6:.2f}" for value in (needs.peak, needs.live)]
        if len(memory) > 1:
            cells.append(f"{memory[0].peak / max(needs.peak, 1):.2f}x")
        table.add_row(Text(model.name), *cells)
    return table


def _layer_table(report: BenchReport, layers: Sequence[LayerTiming]) -> Table:
    table = Table(title="milliseconds per layer (profiled, so a little slower)", title_justify="left")
    table.add_column("layer")
    for model in report.models:
        table.add_column(Text(model.name), justify="right")
    for index in range(1, len(report.models)):
        table.add_column("speed-up" if len(report.models) == 2 else f"speed-up {index + 1}", justify="right")
    for layer in layers:
        operators = list(dict.fromkeys(operator for operator in layer.operators if operator))
        label = Text(shortened(layer.name)).append(f" {', '.join(operators)}", style="dim")
        table.add_row(label, *_cells(layer.times))
    totals = [sum(layer.times[index] or 0.0 for layer in layers) for index in range(len(report.models))]
    table.add_section()
    table.add_row("all layers", *_cells(totals))
    return table


def _cells(times: Sequence[float | None]) -> list[str]:
    cells = ["-" if value is None else f"{value:.3f}" for value in times]
    first = times[0]
    return cells + [f"{first / value:.2f}x" if first and value else "-" for value in times[1:]]
