"""Measures what a plan loses: rewrites the model by it, runs the images through it, compares with the original."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from perfonnx import runtime
from perfonnx.comparing.metrics import Metric, Quality, joined, metric_for
from perfonnx.data.inputs import Array, Feed, feed_size
from perfonnx.data.samples import BatchLike
from perfonnx.errors import PerfonnxError
from perfonnx.model.files import LoadedModel
from perfonnx.model.signature import fed_shapes, fixed_batch
from perfonnx.plan import Plan
from perfonnx.running.opened import OpenModel, open_model
from perfonnx.subject import REPAIR_IMAGES, SamplesLike, Subject

HELD_BYTES = 1 << 30
"""Inputs, and outputs of the original, are kept in memory up to this size each; beyond it they are made anew."""

FITTING, CHOOSING, HELD_BACK = "fitting", "choosing", "held back"
"""Parts of the data: to refit layers by, to choose by, and those that fits and choices never saw."""

FEW, QUICK = 2, 1.0
"""Images that a metric is found by, and that the original is timed on, for so many seconds."""


@dataclass(frozen=True)
class Task:
    """One measurement.

    Attributes:
        plan: What is done with the model.
        part: `CHOOSING` or `HELD_BACK`.
        images: How many images of that part, the first ones.
        layout: Of the rewritten model, None: the plan's. The numbers are the same in all.
        repaired_by: How many images layers are repaired by.
    """

    plan: Plan
    part: str
    images: int
    layout: str | None = None
    repaired_by: int = REPAIR_IMAGES


@dataclass(frozen=True)
class Outcome:
    """What a measurement gave, and the seconds that it took."""

    quality: Quality
    seconds: float


class Evaluator(Protocol):
    """Anything that measures plans.

    An executor of processes pickles it for every task. `PlanEvaluator` can be pickled, but takes the images along that
    it holds in memory: give such an executor an evaluator that finds its data itself.
    """

    def __call__(self, task: Task) -> Outcome:
        """Measure."""


@dataclass
class PlanEvaluator:
    """Measures plans on onnxruntime.

    Attributes:
        subject: The model.
        parts: The images, by part.
        metric: What is measured.
        threads: Intra-op threads.
        reference: What plans are compared with; None: the subject, unchanged.
        libraries: Libraries of other custom operators: an executor's threads and processes do not know them.
        provider: Where models run, likewise.
    """

    subject: Subject
    parts: dict[str, SamplesLike]
    metric: Metric
    threads: int | None = None
    reference: Subject | None = None
    libraries: tuple[str, ...] = field(default_factory=runtime.other_libraries)
    provider: str = field(default_factory=runtime.chosen_provider)
    _reference: dict[tuple[str, int], list[dict[str, Array]] | None] = field(default_factory=dict, repr=False)
    _taken: dict[tuple[str, int], SamplesLike] = field(default_factory=dict, repr=False)
    _original: OpenModel | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which cannot be sent, and the parts' first images."""
        return {**self.__dict__, "_original": None, "_taken": {}}

    def __call__(self, task: Task) -> Outcome:
        """Measure.

        Raises:
            PerfonnxError: The plan does not fit the model, or a model does not run.
        """
        with runtime.with_libraries(self.libraries), runtime.with_provider(self.provider):
            return self._measured(task)

    def _measured(self, task: Task) -> Outcome:
        start = time.perf_counter()
        rewritten = self.subject.rewrite(task.plan, layout=task.layout, images=task.repaired_by)
        candidate = open_model(rewritten.model, threads=self.threads)
        scores = []
        for batch, expected in self._references(task.part, task.images):
            actual = candidate.run(candidate.adapt(batch.feeds))
            scores.append(self.metric.scores(expected, actual, batch.labels))
        if not scores:
            raise PerfonnxError("there is no image to measure on")
        return Outcome(self.metric.quality(joined(scores)), time.perf_counter() - start)

    def _first(self, part: str, images: int) -> SamplesLike:
        """The first images of a part, in memory where they are small enough."""
        samples = self.parts[part]
        if images >= len(samples):
            return samples
        if (part, images) not in self._taken:
            self._taken[part, images] = hold(samples.take(images))
        return self._taken[part, images]

    def _references(self, part: str, images: int) -> Iterator[tuple[BatchLike, Mapping[str, Array]]]:
        """Batches with the original's outputs for them, which are kept where they are small enough."""
        batches = self._first(part, images)
        kept = self._reference.get((part, images))
        if kept is not None:
            yield from zip(batches, kept, strict=True)
            return
        if self._original is None:
            self._original = open_model((self.reference or self.subject).original(), threads=self.threads)
        collected: list[dict[str, Array]] | None = [] if (part, images) not in self._reference else None
        size = 0
        for batch in batches:
            outputs = self._original.run(self._original.adapt(batch.feeds))
            outputs = {name: outputs[name] for name in self.metric.outputs}
            size += sum(array.nbytes for array in outputs.values())
            if collected is not None:
                collected.append(outputs)
                if size > HELD_BYTES:
                    collected = None
            yield batch, outputs
        self._reference[part, images] = collected


def check_same_interface(reference: Subject, subject: Subject) -> None:
    """Raise `PerfonnxError` where a model cannot be compared with a reference."""
    if reference.source is subject.source:
        return
    right, graph = (each.original().proto.graph for each in (reference, subject))
    weights = {tensor.name for each in (right, graph) for tensor in each.initializer}
    for what in ("input", "output"):
        wanted, found = ({v.name for v in getattr(each, what)} - weights for each in (right, graph))
        if wanted != found:
            names = " and ".join(", ".join(sorted(each)) for each in (wanted, found))
            raise PerfonnxError(f"the reference and the model have other {what}s, {names}: give them the same names")


def find_metric(
    name: str | None, subject: Subject, samples: SamplesLike, *, threads: int | None = None
) -> tuple[Metric, float]:
    """The metric for a model, and the seconds that the original takes per image of these samples.

    Raises:
        PerfonnxError: See `metrics.choose_metric`; or the model does not run, or there is no image.
    """
    loaded = subject.original()
    original = open_model(loaded, threads=threads)
    batch = next(iter(samples), None)
    if batch is None:
        raise PerfonnxError("there is no image to measure on")
    feed = original.adapt(first_images(loaded, batch.feeds, FEW))
    outputs = original.run(feed)
    images = max(1, feed_size(feed))
    times = [_seconds(original, feed)]
    while len(times) < 3 and sum(times) < QUICK:
        times.append(_seconds(original, feed))
    seconds = min(times) / images
    metric = metric_for(original, name, outputs, images=images, labelled=batch.labels is not None)
    return metric, seconds


def _seconds(model: OpenModel, feed: Feed) -> float:
    start = time.perf_counter()
    model.run(feed)
    return time.perf_counter() - start


def first_images(loaded: LoadedModel, feed: Feed, count: int) -> Feed:
    """The first images of a feed; as many as the model fixes, where it does."""
    available, count = feed_size(feed), fixed_batch(fed_shapes(loaded.proto.graph)) or count
    batched = (name for name, array in feed.items() if array.ndim and len(array) == available)
    return {**feed, **{name: feed[name][:count] for name in batched}}


@dataclass
class Held:
    """Samples in memory: decoded once, run many times."""

    batches: list[BatchLike]
    source: SamplesLike

    def __iter__(self) -> Iterator[BatchLike]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.source)

    def take(self, n: int) -> SamplesLike:
        """The first n images."""
        if n >= len(self):
            return self
        kept, count = [], 0
        for batch in self.batches:
            size = feed_size(batch.feeds)
            if count + size > n:
                break
            kept.append(batch)
            count += size
        return Held(kept, self.source.take(n)) if count == n else hold(self.source.take(n))

    def split(self, a: int, b: int, seed: int = 0) -> tuple[SamplesLike, SamplesLike]:
        """Two parts without a common image."""
        first, second = self.source.split(a, b, seed)
        return hold(first), hold(second)

    def shuffled(self, seed: int = 0) -> SamplesLike:
        """All images, in an order that the seed decides."""
        return hold(self.source.shuffled(seed))


@dataclass(frozen=True)
class Joined:
    """Two samples, one behind the other."""

    first: SamplesLike
    second: SamplesLike

    def __iter__(self) -> Iterator[BatchLike]:
        yield from self.first
        yield from self.second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def take(self, n: int) -> SamplesLike | Joined:
        """The first n images."""
        more = n - len(self.first)
        return Joined(self.first, self.second.take(more)) if more > 0 else self.first.take(n)


def hold(samples: SamplesLike) -> SamplesLike:
    """The samples in memory if they are small enough, else as they are."""
    batches: list[BatchLike] = []
    size = 0
    for batch in samples:
        batches.append(batch)
        size += sum(array.nbytes for array in batch.feeds.values())
        if size > HELD_BYTES:
            return samples
    return Held(batches, samples)


class SerialExecutor(Executor):
    """Does each task at once, in this thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
