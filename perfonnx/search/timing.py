"""Measures how fast a plan is: the whole network against the original, and each layer inside its region.

Whole networks are timed in pairs: both models in one process, in turn, the order changing from round to round, so that
a machine that slows down does so for both. What counts is the median of the ratios of neighbouring runs, and rounds go
on until its confidence interval is small. Layers are timed by onnxruntime's profiler, paired in the same way: one
profile with all layers rewritten alike gives the times of one choice in all layers, among neighbours that work on rows
as they will in the end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import onnx
import onnxruntime as ort

from perfonnx.data.inputs import Feed
from perfonnx.errors import PerfonnxError, PerfonnxWarning
from perfonnx.model.atomic import digest, write_atomically
from perfonnx.model.files import LoadedModel
from perfonnx.ops.compact import COMPACT
from perfonnx.plan import Plan
from perfonnx.running.opened import OpenModel, open_model
from perfonnx.running.profiles import CONVERSIONS, Names, is_conv, is_product, layer_runs, open_profiled, read_profile
from perfonnx.runtime import chosen_provider, get_library_path, timed_options
from perfonnx.subject import Subject

WARMUP = 3
MIN_ROUNDS, MAX_ROUNDS = 9, 400
SLOW, SLOW_ROUNDS = 500.0, 6
"""A pair of runs that takes more milliseconds than this is warm after one, and timed by so few rounds where the time is
up: fewer make no interval of 95 %."""

PRECISION = 0.01
"""Rounds go on until half the confidence interval of the ratio is below this part of it."""

IN_A_ROW = 5
"""Profiled runs of one model before the other has its turn: in the first of them the first layer waits for threads that
sleep, which the shortest runs must not show."""

OTHER = "(other)"
"""Time that belongs to no convolution: layout changes, and what stands before and beside all of them."""


@dataclass(frozen=True)
class Speed:
    """A model's time against the original's.

    Attributes:
        ratio: Original over candidate, median of paired rounds: above 1 is faster.
        low: Lower end of the 95 % confidence interval of `ratio`.
        high: Upper end.
        milliseconds: Median time of the candidate.
        original: Median time of the original, in the same rounds.
        rounds: How many.
    """

    ratio: float
    low: float
    high: float
    milliseconds: float
    original: float
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class LayerTimes(Protocol):
    """Anything that says what layers take."""

    def layers(self, plan: Plan) -> dict[str, float]:
        """Each layer's time in the network rewritten by a plan, as a part of the original network's time.

        An empty plan gives the original's layers; `OTHER` is what belongs to none.
        """


class Timer(LayerTimes, Protocol):
    """Anything that times plans."""

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        """The whole network rewritten by a plan against the original; about so many seconds are spent."""


@dataclass
class PairedTimer:
    """Times plans on the provider that `runtime.with_provider` names.

    Attributes:
        subject: The model.
        feed: The input that is run.
        threads: Intra-op threads, None for all cores.
        cache: Where results are kept between runs of the program; None: nowhere.
    """

    subject: Subject
    feed: Feed
    threads: int | None = None
    cache: TimingCache | None = None
    _original: OpenModel | None = field(default=None, repr=False)

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        """See `Timer.speed`."""
        loaded = self.subject.shaped(plan).model
        key = self._key("speed", loaded, f"{seconds:g}")
        known = self.cache.get(key) if self.cache else None
        if known is not None:
            return Speed(**known)
        if self._original is None:
            self._original = open_model(self.subject.original(), threads=self.threads, options=timed_options())
        speed = models_speed(self._original, loaded, self.feed, threads=self.threads, seconds=seconds)
        if self.cache:
            self.cache.put(key, speed.to_json())
        return speed

    def layers(self, plan: Plan) -> dict[str, float]:
        """See `Timer.layers`."""
        loaded = self.subject.shaped(plan).model if plan.layers else self.subject.original()
        key = self._key("layers", loaded, "")
        known = self.cache.get(key) if self.cache else None
        if known is not None:
            return {name: float(value) for name, value in known.items()}
        times = profile(loaded, self.subject.original(), self.feed, threads=self.threads)
        if self.cache:
            self.cache.put(key, times)
        return times

    def _key(self, what: str, loaded: LoadedModel, detail: str) -> str:
        total = hashlib.sha256()
        for part in (
            what,
            detail,
            machine(),
            str(self.threads),
            *([] if chosen_provider() == "cpu" else [chosen_provider(), *_gpus()]),
            ",".join(f"{name}{list(array.shape)}" for name, array in sorted(self.feed.items())),
        ):
            total.update(part.encode() + b"\0")
        for proto in (self.subject.original().proto, loaded.proto):
            total.update(hashlib.sha256(proto.SerializeToString(deterministic=True)).digest())
        return total.hexdigest()


def models_speed(
    original: OpenModel | LoadedModel, candidate: LoadedModel, feed: Feed, *, threads: int | None, seconds: float
) -> Speed:
    """Times a model against another one, see `paired`."""
    opened = (
        each if isinstance(each, OpenModel) else open_model(each, threads=threads, options=timed_options())
        for each in (original, candidate)
    )
    return paired(*(_runner(each, feed) for each in opened), seconds=seconds, precision=PRECISION)


def _runner(model: OpenModel, feed: Feed) -> Callable[[], float]:
    """Runs a model and returns the milliseconds; its first run is checked."""
    adapted = model.adapt(feed)
    model.run(adapted)
    return lambda: model.milliseconds(adapted)


def paired(
    original: Callable[[], float],
    candidate: Callable[[], float],
    *,
    seconds: float,
    precision: float = PRECISION,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Times two things in turn until their ratio is known well enough or the time is up.

    Args:
        original: Does one run and returns its milliseconds.
        candidate: Likewise.
        seconds: Time to spend at most, `MIN_ROUNDS` rounds aside.
        precision: Half the confidence interval of the ratio, relative to it, at which to stop.
        clock: Seconds from an arbitrary start.
    """
    slow = False
    for _ in range(WARMUP):
        slow = original() + candidate() > SLOW
        if slow:
            break
    ours: list[float] = []
    theirs: list[float] = []
    end = clock() + seconds
    while True:
        for one, times in ((original, ours), (candidate, theirs))[:: 1 if len(ours) % 2 else -1]:
            times.append(one())
        if len(ours) < (SLOW_ROUNDS if slow and clock() >= end else MIN_ROUNDS):
            continue
        ratios = [a / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True)]
        ratio = statistics.median(ratios)
        low, high = median_interval(ratios)
        if (high - low) / 2 <= precision * ratio or clock() >= end or len(ours) >= MAX_ROUNDS:
            return Speed(ratio, low, high, statistics.median(theirs), statistics.median(ours), len(ours))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Confidence interval of 95 % or a little more for the median, from order statistics (sign test)."""
    ordered, n = sorted(values), len(values)
    tail, rank = 0.0, 0
    while rank < n // 2:
        tail += math.comb(n, rank) / 2.0**n
        if tail > 0.025:
            break
        rank += 1
    # `rank` values may lie outside on each side
    return ordered[max(rank - 1, 0)], ordered[n - max(rank, 1)]


# --- layers ----------------------------------------------------------------------------------------------------------


def profile(
    loaded: LoadedModel,
    original: LoadedModel,
    feed: Feed,
    *,
    threads: int | None = None,
    seconds: float = 0.8,
) -> dict[str, float]:
    """The time of each convolution with everything around it that is not one, as a part of the original's time.

    The original is profiled in turn with the model and in the same way: profiles are compared that are made minutes
    apart, on a machine that may have become busy in between.

    Args:
        loaded: The model.
        original: What its times are related to.
        feed: The input of both.
        threads: Intra-op threads.
        seconds: How long to run both, roughly: 10 to 50 runs, 2 of slow models.

    Returns:
        Parts by layer; `OTHER` for what belongs to none.
    """
    with tempfile.TemporaryDirectory(prefix="perfonnx-profile-") as directory:
        models = [open_profiled(model, directory, threads=threads) for model in (original, loaded)]
        once = [_runner(model, feed) for model in models]
        needed = math.inf
        for _ in range(WARMUP):
            needed = min(needed, sum(run() for run in once))
            if needed > SLOW:
                break
        least = 2 if needed > SLOW else 10
        runs = round(min(50, max(least, 1e3 * seconds / max(needed, 1e-3))))
        in_a_row = min(IN_A_ROW, runs)
        runs = math.ceil(runs / in_a_row) * in_a_row
        for _ in range(runs // in_a_row):
            for run in once:
                for _ in range(in_a_row):
                    run()
        events = [read_profile(model) for model in models]
    whole, parts = (
        {name: undisturbed(times) for name, (_, times) in layer_runs(found, Names(m.proto), runs)}
        for found, m in zip(events, models, strict=True)
    )
    total = max(sum(whole.values()), 1e-9)
    owners = owning_layers(models[1].proto)
    sums: dict[str, float] = {}
    for name, milliseconds in parts.items():
        owner = OTHER if name == CONVERSIONS else owners.get(name, OTHER)
        sums[owner] = sums.get(owner, 0.0) + milliseconds / total
    return sums


def undisturbed(times: Sequence[float]) -> float:
    """The mean of the shortest quarter: what disturbs a run only makes it longer."""
    shortest = sorted(times)[: max(1, len(times) // 4)]
    return sum(shortest) / len(shortest)


def owning_layers(proto: onnx.ModelProto) -> dict[str, str]:
    """For each node the layer that its time is counted with, by name; nodes that have none are left out.

    A layer, a convolution or a matrix product with a constant, owns itself; a `Compact`, the next layer; every other
    node, the nearest layer before it, the latest where it reads several; a node before all layers, the next one. So the
    same rule, applied to the original and to a rewritten model, puts what was gained and what is paid at a region's
    border to the layer there.
    """
    nodes = list(proto.graph.node)
    constants = {tensor.name for tensor in proto.graph.initializer}
    layers = {id(node) for node in nodes if is_conv(node) or is_product(node, constants)}
    before: dict[str, tuple[int, str]] = {}  # tensor -> the layer behind it, and its place
    owners: dict[str, str] = {}
    for place, node in enumerate(nodes):
        known = max((before[name] for name in node.input if name in before), default=None)
        if id(node) in layers:
            owners[node.name] = node.name
            known = (place, node.name)
        elif known is not None and node.op_type != COMPACT.name:
            owners[node.name] = known[1]
        if known is not None:
            before.update((name, known) for name in node.output if name)
    after: dict[str, str] = {}  # tensor -> the layer that reads it, maybe through other nodes
    for node in reversed(nodes):
        following = node.name if id(node) in layers else next((after[n] for n in node.output if n in after), None)
        if following is not None:
            owners.setdefault(node.name, following)
            after.update((name, following) for name in node.input if name)
    return owners


# --- cache -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimingCache:
    """Timings in files, one per measurement, so that the same models need not be timed twice on one machine.

    A cache that cannot be read or written is no cache; nothing fails because of it.
    """

    directory: Path

    @classmethod
    def default(cls) -> TimingCache:
        """In `$XDG_CACHE_HOME/perfonnx/timing`, `~/.cache` without that."""
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(home) / "perfonnx" / "timing")

    def beside(self, name: str) -> Path | None:
        """A directory of its own for what else is kept between searches; None where there can be none."""
        directory = self.directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        return directory if os.access(directory, os.W_OK) else None

    def get(self, key: str) -> Any:
        """What was put under a key; None where there is nothing, or what is there is damaged, which is said."""
        file = self.directory / f"{key}.json"
        try:
            entry = json.loads(file.read_bytes())
            value = entry["value"]
            sound = entry["digest"] == digest(json.dumps(value)) and all(0 <= v < math.inf for v in value.values())
        except OSError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            sound = False
        if not sound:
            warnings.warn(f"{file}: is damaged; it is timed anew", PerfonnxWarning, stacklevel=2)
        return value if sound else None

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a result."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            entry = {"digest": digest(json.dumps(value)), "value": value}
            write_atomically(self.directory / f"{key}.json", json.dumps(entry))
        except (OSError, PerfonnxError):
            pass


def _gpus() -> list[str]:
    """Their names, as NVIDIA's driver has them."""
    lines = [
        line
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


@cache
def machine() -> str:
    """What a timing depends on beside the models: processor, onnxruntime, and the operator library."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    except OSError:
        names = set()
    library = hashlib.sha256(Path(get_library_path()).read_bytes()).hexdigest()
    isa = os.environ.get("PERFONNX_ISA", "")
    cpu = " ".join(sorted(names)) or platform.processor() or platform.machine()
    return f"{cpu}; {os.cpu_count()} cores; onnxruntime {ort.__version__}; perfonnx {library} {isa}"
