"""Compares two models output by output: errors, top-1 agreement, and the library's kernels against the function bodies.

Everything is accumulated batch by batch, so the number of samples does not matter to memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from perfonnx import runtime
from perfonnx.comparing.check_report import CheckReport, Noise
from perfonnx.comparing.metrics import Metric, Quality, Scores, joined, metric_for
from perfonnx.comparing.outputs import classifier_outputs, varying_outputs
from perfonnx.comparing.tallies import ClassTally, ErrorTally
from perfonnx.data.feeds import Feeds
from perfonnx.data.inputs import Array, Feed, feed_size
from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from perfonnx.model.files import ModelSource
from perfonnx.ops import DOMAIN
from perfonnx.running.opened import OpenModel, Progress, open_model, used_operators

KERNEL_BOUND = 1e-4
"""Largest relative error of a kernel against its function body, for models in float32."""

KERNEL_BOUND_HALF = 2e-2
"""The same for models with float16 tensors, where both sides round every layer to 11 bits."""


def compare(
    a: ModelSource | OpenModel,
    b: ModelSource | OpenModel,
    feeds: Iterable[Feed] | Samples,
    *,
    tolerance: float | None = None,
    max_drop: float | str | None = None,
    metric: str | None = None,
    judge: bool = False,
    fallback: bool = True,
    labels: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Runs two models on the same inputs and compares their outputs.

    Top-1 is reported for outputs that look like a classifier's: of shape [N, classes] or [N, classes, 1, 1] with two
    classes or more, and computed in the first model by a Softmax, or by a fully connected, convolution or averaging
    layer with nothing behind it but reshaping and casts. An embedding can look like that too; its agreement is then
    harmless, but means little.

    Where the second model uses the library's operators and carries their function bodies, it also runs a second time
    without the library, and both runs are compared (`CheckReport.kernel`). Where they are further apart than the bound,
    the first model runs a second time too, without onnxruntime's optimizations (`CheckReport.noise`).

    Outputs that are no tensors of numbers are not compared, nor are those whose size depends on the values that are fed
    (behind NonZero, NonMaxSuppression and their like) where it differs (`CheckReport.skipped`).

    On a GPU float32 is computed as such, not in TF32: what the models differ by is then their own. Models that are open
    already should be opened so (`open_model`'s `exact`).

    Args:
        a: The reference.
        b: The model to judge. Its floating-point inputs may have another precision.
        feeds: Inputs for `a`: `perfonnx.data.samples.Samples`, or feeds such as
            `perfonnx.data.feeds.random_feeds` gives.
        tolerance: Bound on `OutputError.max_rel`, or None for no bound.
        max_drop: Bound on what is lost, a number or a text such as "1%", in the metric's terms; None for no bound.
        metric: Name of what the loss is measured by (`perfonnx.comparing.metrics.METRICS`); None: the one that suits
            the outputs and labels.
        judge: Measure the loss, as `perfonnx.search.tune` does, where outputs suit; a metric or a bound says so too.
        fallback: Whether to compare kernels with function bodies.
        labels: The class of each sample, for accuracies; one per sample or more. None: those of `Samples`.
        threads: Intra-op threads, None for onnxruntime's default.
        progress: Called after each batch with the samples done and their total (0 if not known).

    Raises:
        PerfonnxError: A model does not load or run, the models have other inputs or outputs, there is no sample, or
            the metric or its bound does not suit the outputs.
    """
    if tolerance is not None and not tolerance >= 0:  # NaN is no bound either
        raise PerfonnxError(f"tolerance {tolerance:g}: give a number from 0 up")
    first, second = (m if isinstance(m, OpenModel) else open_model(m, threads=threads, exact=True) for m in (a, b))
    if first.name == second.name:
        first.name, second.name = f"{first.name} (A)", f"{second.name} (B)"
    _same_outputs(first, second)
    reason = _reason_to_skip(second.proto, fallback)
    bodies = None
    if reason is None:
        name = f"{second.name} without the library"
        bodies = open_model(second.source, name=name, threads=threads, library=False, exact=True)
    if isinstance(feeds, Samples):
        total, labels, feeds = len(feeds), feeds.labels if labels is None else labels, feeds.feeds()
    else:
        total = feeds.samples if isinstance(feeds, Feeds) else 0
    asked = metric is not None or max_drop is not None
    judged = _Judged(metric, max_drop, labels, needed=asked) if judge or asked else None
    comparison = _Comparison(first, second, bodies, labels, threads)
    samples = 0
    for feed in feeds:
        samples += comparison.add(feed, judged)
        if progress:
            progress(samples, total)
    if not comparison.batches:
        raise PerfonnxError("there is no sample to compare on")
    if not comparison.errors:
        listed = "; ".join(f"output '{name}': {why}" for name, why in comparison.skipped.items())
        raise PerfonnxError(f"{first.name} and {second.name} have no output that can be compared: {listed}")
    return CheckReport(
        a=first.name,
        b=second.name,
        samples=samples,
        outputs=tuple(error.report() for error in comparison.errors.values()),
        top1=tuple(item.report() for item in comparison.classes.values()),
        kernel=tuple(error.report() for error in comparison.kernel.values()),
        kernel_skipped=reason,
        kernel_bound=comparison.bound,
        tolerance=tolerance,
        max_drop=None if judged is None else judged.bound,
        metric=None if judged is None else judged.metric,
        quality=None if judged is None else judged.quality(),
        not_judged=None if judged is None else judged.unsuited,
        skipped=comparison.skipped,
        noise=comparison.noise(),
    )


class _Comparison:
    """What `compare` has found so far."""

    def __init__(
        self,
        first: OpenModel,
        second: OpenModel,
        bodies: OpenModel | None,
        labels: Sequence[int] | NDArray[np.integer[Any]] | None,
        threads: int | None,
    ) -> None:
        self.first, self.second, self.bodies, self.threads = first, second, bodies, threads
        names = [value.name for value in first.session.get_outputs()]
        found = classifier_outputs(first.proto)
        self.varying = varying_outputs(first.proto)
        self.bound = KERNEL_BOUND_HALF if _has_half(second.proto) else KERNEL_BOUND
        self.errors = {name: ErrorTally(name) for name in names}
        self.kernel = {name: ErrorTally(name) for name in names} if bodies else {}
        self.classes = {name: ClassTally(name, labels) for name in names if name in found}
        self.skipped: dict[str, str] = {}
        self.plain: OpenModel | None = None
        self.doubts = {name: (ErrorTally(name), ErrorTally(name)) for name in names}
        self.batches = 0

    def add(self, feed: Feed, judged: _Judged | None) -> int:
        """Runs a batch through all models; the number of its samples."""
        given, adapted = self.first.adapt(feed), self.second.adapt(feed)
        expected, actual = self.first.run(given), self.second.run(adapted)
        size = feed_size(feed)
        for name in list(self.errors):
            if self._fits(name, expected, actual):
                self.errors[name].add(expected[name], actual[name])
                if name in self.classes and not self.classes[name].add(expected[name], actual[name], size):
                    del self.classes[name]
        if judged is not None:
            judged.add(self.first, expected, actual, size)
        if self.bodies:
            reference = self.bodies.run(adapted)
            for name in list(self.kernel):
                if self._fits(name, reference, actual):
                    self.kernel[name].add(reference[name], actual[name])
            self._look_at_noise(given, expected, reference, actual)
        self.batches += 1
        return size

    def _fits(self, name: str, reference: dict[str, Array], actual: dict[str, Array]) -> bool:
        """Whether an output can be compared; if not, it is skipped from here on."""
        why = None
        if name not in reference or name not in actual:
            why = next(m.left_out[name] for m in (self.first, self.second) if name in m.left_out)
        elif reference[name].shape != actual[name].shape and name in self.varying:
            sizes = " and ".join(str(list(outputs[name].shape)) for outputs in (reference, actual))
            why = f"its size depends on the values fed, and is {sizes}"
        if why is None:
            return True
        self.skipped[name] = why
        for known in (self.errors, self.kernel, self.classes, self.doubts):
            known.pop(name, None)
        return False

    def _look_at_noise(
        self, feed: Feed, expected: dict[str, Array], reference: dict[str, Array], actual: dict[str, Array]
    ) -> None:
        if all(error.report().max_rel <= self.bound for error in self.kernel.values()):
            return
        if self.plain is None:
            options = runtime.quiet_options(optimized=False)
            self.plain = open_model(
                self.first.source, name=self.first.name, threads=self.threads, options=options, exact=True
            )
        plain = self.plain.run(feed)
        for name in self.kernel:
            if plain[name].shape == expected[name].shape:
                original, kernel = self.doubts[name]
                original.add(plain[name], expected[name])
                kernel.add(reference[name], actual[name])

    def noise(self) -> dict[str, Noise]:
        """What was found where kernels and function bodies were too far apart."""
        return {
            name: Noise(original.report(), kernel.report())
            for name, (original, kernel) in self.doubts.items()
            if original.values and name in self.kernel and self.kernel[name].report().max_rel > self.bound
        }


def _same_outputs(first: OpenModel, second: OpenModel) -> None:
    ours, theirs = ([value.name for value in model.session.get_outputs()] for model in (first, second))
    if sorted(ours) != sorted(theirs):
        raise PerfonnxError(
            f"the models have other outputs: {first.name} has {', '.join(ours)}; {second.name} has {', '.join(theirs)}"
        )


def _reason_to_skip(proto: onnx.ModelProto, fallback: bool) -> str | None:
    """Why kernels cannot be compared with function bodies, or None."""
    used = used_operators(proto)
    if not fallback:
        return "switched off"
    if not used:
        return f"the model has no operator of {DOMAIN}"
    without = used - {function.name for function in proto.functions if function.domain == DOMAIN}
    if without:
        return f"the model has no function body for {', '.join(sorted(without))}"
    return None


def _has_half(proto: onnx.ModelProto) -> bool:
    half = onnx.TensorProto.FLOAT16
    infos = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    return any(tensor.data_type == half for tensor in proto.graph.initializer) or any(
        info.type.tensor_type.elem_type == half for info in infos
    )


class _Judged:
    """What a metric says, sample by sample."""

    def __init__(
        self,
        name: str | None,
        max_drop: float | str | None,
        labels: Sequence[int] | NDArray[np.integer[Any]] | None,
        *,
        needed: bool,
    ) -> None:
        self.name, self.max_drop, self.labels, self.needed = name, max_drop, labels, needed
        self.unsuited: str | None = None
        self.metric: Metric | None = None
        self.bound: float | None = None
        self.scores: list[Scores] = []
        self.samples = 0

    def add(self, model: OpenModel, reference: dict[str, Array], actual: dict[str, Array], size: int) -> None:
        """Compares a batch; the first one decides about the metric."""
        if self.unsuited is None and self.metric is None:
            try:
                self._choose(model, reference, size)
            except PerfonnxError as error:
                if self.needed:
                    raise
                self.unsuited = str(error)
        if self.metric is None:
            return
        start, self.samples = self.samples, self.samples + size
        labels = None if self.labels is None else np.asarray(self.labels[start : self.samples])
        self.scores.append(self.metric.scores(reference, actual, labels))

    def _choose(self, model: OpenModel, outputs: dict[str, Array], size: int) -> None:
        self.metric = metric_for(model, self.name, outputs, images=size, labelled=self.labels is not None)
        bound = self.max_drop
        self.bound = self.metric.parse_drop(bound) if isinstance(bound, str) else bound

    def quality(self) -> Quality | None:
        """What was lost on all samples."""
        return None if self.metric is None else self.metric.quality(joined(self.scores))
