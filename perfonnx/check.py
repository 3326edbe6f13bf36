"""Compares two models output by output: errors, top-1 agreement, and the library's kernels against the function bodies.

Everything is accumulated batch by batch, so the number of samples does not matter to memory.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfonnx import runtime
from perfonnx.calibration import Samples
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.feeds import Array, Feed, Feeds, InputSpec, SessionLike, batch_size, input_specs
from perfonnx.model import files
from perfonnx.model.files import LoadedModel, ModelSource, data_files, has_external_data, take_in_data
from perfonnx.model.proto import subgraphs, value_type
from perfonnx.names import shortened
from perfonnx.ops.common import DOMAIN
from perfonnx.outputs import not_numbers, varying_outputs

if TYPE_CHECKING:
    from perfonnx.search.metrics import Metric, Quality, Scores

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the samples (or runs) done and their total, 0 where that is not known."""

KERNEL_BOUND = 1e-4
"""Largest relative error of a kernel against its function body, for models in float32."""

KERNEL_BOUND_HALF = 2e-2
"""The same for models with float16 tensors, where both sides round every layer to 11 bits."""

NOISE = 3
"""Kernels may differ from function bodies by so many times what the first model differs from itself without
onnxruntime's optimizations, if that is more: by the largest difference and by the mean one."""


# --- opening and running ---------------------------------------------------------------------------------------------


@dataclass
class OpenModel:
    """A model with its session.

    Attributes:
        name: For messages and tables.
        proto: The model without its external data.
        session: A session on it.
        source: What it was opened from.
        left_out: Outputs that `run` has met and does not give, with the reason.
    """

    source: ModelSource
    name: str
    proto: onnx.ModelProto
    session: SessionLike
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> list[InputSpec]:
        """What it must be fed. A session says of inputs without shape that they have no dimensions.

        Raises:
            PerfonnxError: An input is no tensor of numbers or booleans.
        """
        known = {info.name: value_type(info) for info in self.proto.graph.input}
        open_rank = {name for name, kind in known.items() if kind is not None and kind.shape is None}
        return [replace(spec, ranked=spec.name not in open_rank) for spec in input_specs(self.session)]

    def metric(self, name: str | None, outputs: dict[str, Array], *, images: int, labelled: bool) -> Metric:
        """The metric that suits what the model gave for a batch, or the one asked for; see `choose_metric`."""
        from perfonnx.search.metrics import choose_metric  # the search is made of what is here

        return choose_metric(
            name,
            outputs,
            images=images,
            classifiers=classifier_outputs(self.proto),
            labelled=labelled,
            left_out=self.left_out,
            varying=varying_outputs(self.proto),
        )

    def run(self, feed: Feed) -> dict[str, Array]:
        """The outputs that are tensors of numbers or booleans, by name; `left_out` says what the others are.

        Raises:
            PerfonnxError: onnxruntime refuses.
        """
        names = [value.name for value in self.session.get_outputs()]
        try:
            values = self.session.run(names, feed)
        except Exception as error:  # onnxruntime raises types of its own that it does not export
            raise PerfonnxError(f"{self.name}: onnxruntime cannot run it: {one_line(error)}") from error
        outputs = {}
        for name, value in zip(names, values, strict=True):
            what = not_numbers(value)
            if what is None:
                outputs[name] = value
            else:
                self.left_out[name] = what
        return outputs

    def adapt(self, feed: Feed) -> Feed:
        """The feed with floating-point arrays cast to this model's types.

        Raises:
            PerfonnxError: The model has other inputs than the feed, or they do not fit.
        """
        specs = self.inputs
        if {spec.name for spec in specs} != set(feed):
            ours, theirs = (", ".join(sorted(names)) for names in ({spec.name for spec in specs}, set(feed)))
            raise PerfonnxError(f"{self.name}: has the inputs {ours}, but is given {theirs}")
        adapted: Feed = {}
        for spec in specs:
            array = feed[spec.name]
            if array.dtype != spec.dtype and not (array.dtype.kind == spec.dtype.kind == "f"):
                raise PerfonnxError(f"{self.name}: input '{spec.name}' is {spec.dtype}, but is given {array.dtype}")
            if not spec.fits(array.shape):
                raise PerfonnxError(
                    f"{self.name}: input '{spec.name}' has shape {list(spec.shape)}, but is given {list(array.shape)}"
                )
            adapted[spec.name] = array.astype(spec.dtype, copy=False)
        return adapted


def open_model(
    source: ModelSource,
    *,
    name: str | None = None,
    threads: int | None = None,
    library: bool | None = None,
    options: Any = None,
) -> OpenModel:
    """Opens a model and a session on it.

    Args:
        source: See `perfonnx.model.files.load`.
        name: For messages; by default the file's name.
        threads: Intra-op threads, None for onnxruntime's default.
        library: Whether to register the custom-operator library; None registers it for models that use it, so that
            all others run in onnxruntime as it comes.
        options: `onnxruntime.SessionOptions` to start from.

    Raises:
        PerfonnxError: The model cannot be read or loaded.
    """
    loaded = files.load(source)
    name = name or loaded.name
    if library is None:
        library = uses_library(loaded.proto)
    model = source if isinstance(source, (str, bytes)) or hasattr(source, "__fspath__") else loaded.proto
    session = runtime.session(model, threads=threads, library=library, options=options)
    return OpenModel(source, name, loaded.proto, session)


def open_loaded(loaded: LoadedModel, *, threads: int | None = None, options: Any = None) -> OpenModel:
    """A session on a model in memory, whose external data stay where they are.

    Data that links lead to elsewhere are read: onnxruntime follows these only with the model's own path.
    """
    if options is None:
        options = runtime.quiet_options()
    if loaded.directory is not None and has_external_data(loaded):
        folder = loaded.directory.resolve()
        if all(file.is_relative_to(folder) for file in data_files(loaded)):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        else:
            loaded = LoadedModel(copy.deepcopy(loaded.proto), loaded.directory, loaded.name)
            take_in_data(loaded)
    session = runtime.session(loaded.proto, threads=threads, library=uses_library(loaded.proto), options=options)
    return OpenModel(loaded.proto, loaded.name, loaded.proto, session)


def uses_library(proto: onnx.ModelProto) -> bool:
    """Whether the model has nodes of the library's domain."""
    return bool(_used_operators(proto))


def _used_operators(proto: onnx.ModelProto) -> set[str]:
    """Operators of our domain in the graph and its sub-graphs."""

    def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield node
            for inner in subgraphs(node):
                yield from nodes(inner)

    return {node.op_type for node in nodes(proto.graph) if node.domain == DOMAIN}


# --- reports ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutputError:
    """How far one output is from its reference.

    Attributes:
        name: Name of the output.
        values: Values compared, over all samples.
        max_abs: Largest absolute difference.
        max_rel: `max_abs` divided by the largest magnitude of the reference output over all samples; 0 where both are
            0, infinite where only the reference is. Not a per-value ratio, which would be about values near 0.
        mean_abs: Mean absolute difference.
        mean_rel: `mean_abs`, divided by the same.
        cosine: Cosine of the angle between the two outputs, each seen as one long vector; 1 where both are 0.
        snr_db: Power of the reference over power of the difference, in dB; infinite where they are equal.
        psnr_db: Squared range (maximum - minimum) of the reference over mean squared difference, in dB.
        not_finite: Values that are NaN or infinite in one model and something else in the other. They enter none of
            the other numbers.
    """

    name: str
    values: int
    max_abs: float
    max_rel: float
    mean_abs: float
    mean_rel: float
    cosine: float
    snr_db: float
    psnr_db: float
    not_finite: int


@dataclass(frozen=True)
class Noise:
    """How far onnxruntime is from itself on the batches where kernels and function bodies were too far apart.

    Attributes:
        original: The first model with onnxruntime's optimizations against the same without.
        kernel: The second model's kernels against its function bodies.
    """

    original: OutputError
    kernel: OutputError

    @property
    def explains(self) -> bool:
        """Whether kernels and function bodies are no further apart than what optimizing makes of the first model."""
        return all(
            getattr(self.kernel, which) <= NOISE * getattr(self.original, which) for which in ("max_rel", "mean_rel")
        )


@dataclass(frozen=True)
class Top1:
    """Top-1 classes of one output; ties go to the first class.

    Attributes:
        output: Name of the output.
        samples: Samples compared.
        agree: Samples on which both models choose the same class.
        correct_a: With labels, samples that the first model gets right.
        correct_b: With labels, samples that the second model gets right.
        only_a: With labels, samples that only the first model gets right.
        only_b: With labels, samples that only the second model gets right.
    """

    output: str
    samples: int
    agree: int
    correct_a: int | None = None
    correct_b: int | None = None
    only_a: int | None = None
    only_b: int | None = None

    @property
    def disagreement(self) -> float:
        """Share of samples on which the models differ: no accuracy can drop by more."""
        return 1 - self.agree / self.samples if self.samples else 0.0


@dataclass(frozen=True)
class CheckReport:
    """What `compare` found.

    Attributes:
        a: Name of the first model, the reference.
        b: Name of the second model.
        samples: Samples compared.
        outputs: One entry per output of the model.
        top1: One entry per output that looks like a classifier's; see `compare`.
        kernel: The second model with the library against the same without it, per output; empty if skipped.
        kernel_skipped: Why that was not measured, or None.
        kernel_bound: Largest relative error that `kernel` may have, unless `noise` is behind it.
        tolerance: Largest relative error that `outputs` may have, or None.
        max_drop: Largest loss, in the metric's terms, or None.
        metric: What the loss was measured by, or None.
        quality: What was lost, as `perfonnx tune` measures it, or None.
        not_judged: Why that was not measured although it was wanted, or None.
        skipped: Outputs that were not compared, with the reason.
        noise: Outputs whose kernels were further from their function bodies than the bound on some batches, with what
            was found on these.
    """

    a: str
    b: str
    samples: int
    outputs: tuple[OutputError, ...]
    top1: tuple[Top1, ...]
    kernel: tuple[OutputError, ...]
    kernel_skipped: str | None
    kernel_bound: float
    tolerance: float | None
    max_drop: float | None
    metric: Metric | None = None
    quality: Quality | None = None
    not_judged: str | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    noise: Mapping[str, Noise] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line per bound that does not hold."""
        lines = []
        for error in self.outputs:
            if error.not_finite:
                lines.append(f"output '{error.name}': {error.not_finite} values are NaN or infinite in one model only")
            if self.tolerance is not None and error.max_rel > self.tolerance:
                lines.append(
                    f"output '{error.name}': relative error {error.max_rel:.3g} is above the tolerance "
                    f"{self.tolerance:.3g}"
                )
        if self.metric is not None and self.quality is not None and self.max_drop is not None:
            if self.metric.name == "agreement":  # of all outputs, not only of the one that the metric looks at
                lines += [
                    f"output '{top1.output}': top-1 differs on {top1.samples - top1.agree} of {top1.samples} samples "
                    f"({top1.disagreement:.2%}), above {self.max_drop:.2%}"
                    for top1 in self.top1
                    if top1.disagreement > self.max_drop
                ]
            elif self.quality.drop > self.max_drop:
                lost = self.metric.lost(self.quality.drop)
                lines.append(f"{lost} on {_samples(self.samples)}; wanted {self.metric.within(self.max_drop)}")
        for error in self.kernel:
            noise = self.noise.get(error.name)
            above = error.max_rel > self.kernel_bound and not (noise is not None and noise.explains)
            if error.not_finite or above:
                infinite = "; they need agree for finite values only" if error.not_finite else ""
                lines.append(
                    f"output '{error.name}': kernel and function body differ by {error.max_rel:.3g} relative"
                    f" ({error.not_finite} values not finite), above {self.kernel_bound:.3g}{infinite}"
                )
        return tuple(lines)

    @property
    def passed(self) -> bool:
        """Whether every bound holds."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; numbers that are not finite become None."""
        return {
            "a": self.a,
            "b": self.b,
            "samples": self.samples,
            "passed": self.passed,
            "failures": list(self.failures),
            "tolerance": self.tolerance,
            "max_drop": self.max_drop,
            "metric": None if self.metric is None else self.metric.to_json(),
            "quality": None if self.quality is None else self.quality.to_json(),
            "not_judged": self.not_judged,
            "outputs": [_plain(vars(error)) for error in self.outputs],
            "top1": [{**_plain(vars(top1)), "disagreement": top1.disagreement} for top1 in self.top1],
            "kernel": {
                "skipped": self.kernel_skipped,
                "bound": self.kernel_bound,
                "outputs": [_plain(vars(error)) for error in self.kernel],
                "noise": {
                    name: {"original": _plain(vars(noise.original)), "kernel": _plain(vars(noise.kernel))}
                    for name, noise in self.noise.items()
                },
            },
            "skipped": dict(self.skipped),
        }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


# --- comparing -------------------------------------------------------------------------------------------------------


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

    Args:
        a: The reference.
        b: The model to judge. Its floating-point inputs may have another precision.
        feeds: Inputs for `a`: `perfonnx.calibration.Samples`, or feeds such as `perfonnx.feeds.random_feeds` gives.
        tolerance: Bound on `OutputError.max_rel`, or None for no bound.
        max_drop: Bound on what is lost, a number or a text such as "1%", in the metric's terms; None for no bound.
        metric: Name of what the loss is measured by (`perfonnx.search.metrics.METRICS`); None: the one that suits the
            outputs and labels.
        judge: Measure the loss, as `perfonnx.search.tune` does, where outputs suit; a metric or a bound says so too.
        fallback: Whether to compare kernels with function bodies.
        labels: The class of each sample, for accuracies; one per sample or more. None: those of `Samples`.
        threads: Intra-op threads, None for onnxruntime's default.
        progress: Called after each batch with the samples done and their total (0 if not known).

    Raises:
        PerfonnxError: A model does not load or run, the models have other inputs or outputs, there is no sample, or
            the metric or its bound does not suit the outputs.
    """
    first, second = (m if isinstance(m, OpenModel) else open_model(m, threads=threads) for m in (a, b))
    if first.name == second.name:
        first.name, second.name = f"{first.name} (A)", f"{second.name} (B)"
    _same_outputs(first, second)
    reason = _reason_to_skip(second.proto, fallback)
    bodies = None
    if reason is None:
        bodies = open_model(second.source, name=f"{second.name} without the library", threads=threads, library=False)
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
        self.errors = {name: _Accumulator(name) for name in names}
        self.kernel = {name: _Accumulator(name) for name in names} if bodies else {}
        self.classes = {name: _Classes(name, labels) for name in names if name in found}
        self.skipped: dict[str, str] = {}
        self.plain: OpenModel | None = None
        self.doubts = {name: (_Accumulator(name), _Accumulator(name)) for name in names}
        self.batches = 0

    def add(self, feed: Feed, judged: _Judged | None) -> int:
        """Runs a batch through all models; the number of its samples."""
        given, adapted = self.first.adapt(feed), self.second.adapt(feed)
        expected, actual = self.first.run(given), self.second.run(adapted)
        size = batch_size({name: array.shape for name, array in feed.items()})
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
            options = runtime.quiet_options()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            self.plain = open_model(self.first.source, name=self.first.name, threads=self.threads, options=options)
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
    used = _used_operators(proto)
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


_TRANSPARENT = {"Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "DequantizeLinear", "QuantizeLinear"}
_SOFTMAX = {"Softmax", "LogSoftmax"}
_LOGITS = {"Gemm", "MatMul", "Conv", "GlobalAveragePool", "AveragePool", "ReduceMean"}


def classifier_outputs(proto: onnx.ModelProto) -> set[str]:
    """Outputs whose last layer could give class scores; their shape is left to the caller. See `compare`."""
    producers = {name: node for node in proto.graph.node for name in node.output if name}
    found = set()
    for output in proto.graph.output:
        node = producers.get(output.name)
        while node is not None and node.op_type in _TRANSPARENT:
            node = producers.get(node.input[0])
        if node is None:
            continue
        terms = [producers[name].op_type for name in node.input if name in producers]
        biased = node.op_type == "Add" and "MatMul" in terms
        if node.op_type in _SOFTMAX | _LOGITS or node.domain == DOMAIN or biased:
            found.add(output.name)
    return found


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
        self.metric = model.metric(self.name, outputs, images=size, labelled=self.labels is not None)
        bound = self.max_drop
        self.bound = self.metric.parse_drop(bound) if isinstance(bound, str) else bound

    def quality(self) -> Quality | None:
        """What was lost on all samples."""
        from perfonnx.search.metrics import joined

        return None if self.metric is None else self.metric.quality(joined(self.scores))


@dataclass
class _Accumulator:
    """Running sums of one output's error."""

    name: str
    values: int = 0
    compared: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    top: float = -math.inf
    bottom: float = math.inf
    dot: float = 0.0
    power_a: float = 0.0
    power_b: float = 0.0
    power_error: float = 0.0
    not_finite: int = 0

    def add(self, reference: Array, actual: Array) -> None:
        if reference.shape != actual.shape:
            raise PerfonnxError(
                f"output '{self.name}' has shape {list(reference.shape)} in one model and {list(actual.shape)} in the "
                "other: they cannot be compared"
            )
        a, b = (np.asarray(array, np.float64).ravel() for array in (reference, actual))
        self.values += a.size
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self.not_finite += int(np.count_nonzero(~finite & ~same))
            a, b = a[finite], b[finite]
        if not a.size:
            return
        error = b - a
        size = np.abs(error)
        self.compared += a.size
        self.max_abs = max(self.max_abs, float(size.max()))
        self.sum_abs += float(size.sum())
        self.top, self.bottom = max(self.top, float(a.max())), min(self.bottom, float(a.min()))
        self.dot += float(a @ b)
        self.power_a += float(a @ a)
        self.power_b += float(b @ b)
        self.power_error += float(error @ error)

    def report(self) -> OutputError:
        span = max(abs(self.top), abs(self.bottom)) if self.compared else 0.0
        swing = self.top - self.bottom if self.compared else 0.0
        mean = self.sum_abs / self.compared if self.compared else 0.0
        norms = math.sqrt(self.power_a) * math.sqrt(self.power_b)
        return OutputError(
            name=self.name,
            values=self.values,
            max_abs=self.max_abs,
            max_rel=_ratio(self.max_abs, span),
            mean_abs=mean,
            mean_rel=_ratio(mean, span),
            cosine=min(1.0, self.dot / norms) if norms else float(self.power_a == self.power_b),
            snr_db=_decibel(self.power_a, self.power_error),
            psnr_db=_decibel(swing**2 * self.compared, self.power_error),
            not_finite=self.not_finite,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)


def _decibel(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@dataclass
class _Classes:
    """Running counts of one output's top-1 classes."""

    name: str
    labels: Sequence[int] | NDArray[np.integer[Any]] | None
    counts: dict[str, int] = field(default_factory=dict)
    samples: int = 0

    def add(self, a: Array, b: Array, batch: int) -> bool:
        """False if the shape is no classifier's for a batch of that size."""
        scores = a.ndim == 2 or (a.ndim == 4 and a.shape[2:] == (1, 1))
        if not scores or a.shape[0] != batch or a.shape[1] < 2 or a.dtype.kind != "f":
            return False
        ours, theirs = (array.reshape(array.shape[:2]).argmax(axis=1) for array in (a, b))
        start, self.samples = self.samples, self.samples + len(ours)
        self._count("agree", ours == theirs)
        if self.labels is not None:
            if len(self.labels) < self.samples:
                raise PerfonnxError(f"labels: {len(self.labels)} are too few, there are {self.samples} samples or more")
            truth = np.asarray(self.labels[start : self.samples])
            right_a, right_b = ours == truth, theirs == truth
            self._count("correct_a", right_a)
            self._count("correct_b", right_b)
            self._count("only_a", right_a & ~right_b)
            self._count("only_b", right_b & ~right_a)
        return True

    def _count(self, name: str, hits: NDArray[np.bool_]) -> None:
        self.counts[name] = self.counts.get(name, 0) + int(np.count_nonzero(hits))

    def report(self) -> Top1:
        return Top1(self.name, self.samples, **self.counts)


# --- showing ---------------------------------------------------------------------------------------------------------


def render_check(report: CheckReport) -> RenderableType:
    """The report as rich tables, followed by one line per failure."""
    title = f"{report.b} against {report.a}, {_samples(report.samples)}"
    parts: list[RenderableType] = [_error_table(title, report.outputs)]
    parts += [Text(f"output '{name}': not compared, {why}", style="yellow") for name, why in report.skipped.items()]
    if report.top1:
        parts.append(_top1_table(report))
    if report.metric is not None and report.quality is not None:
        quality, metric = report.quality, report.metric
        sure = f" +-{metric.show_error(quality.drop_error)}" if math.isfinite(quality.drop_error) else ""
        parts.append(Text(f"{metric.lost(quality.drop)}{sure} on {_samples(quality.images)}"))
    if report.not_judged is not None:
        parts.append(Text(f"the loss was not measured: {report.not_judged}", style="yellow"))
    if report.kernel_skipped is None:
        parts.append(_error_table(f"kernels against function bodies (bound {report.kernel_bound:.0e})", report.kernel))
        parts += [Text(_noise_line(name, noise), style="dim") for name, noise in report.noise.items()]
    else:
        parts.append(Text(f"kernels against function bodies: not compared, {report.kernel_skipped}", style="dim"))
    if report.failures:
        parts.extend(Text(f"FAILED {line}", style="bold red") for line in report.failures)
    else:
        bounds = report.tolerance is not None or report.max_drop is not None
        parts.append(Text("passed" if bounds else "passed (no bound on the difference was given)", style="green"))
    return Group(*parts)


def _noise_line(name: str, noise: Noise) -> str:
    what = "no more than" if noise.explains else "unlike"
    return (
        f"output '{name}': on these inputs that is {what} what onnxruntime's own optimizations change in the first "
        f"model, {noise.original.max_rel:.3g} relative, {noise.original.mean_rel:.3g} in the mean"
    )


def _error_table(title: str, errors: Sequence[OutputError]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("output")
    for column in ("max abs", "max rel", "mean abs", "cosine", "SNR dB", "PSNR dB"):
        table.add_column(column, justify="right")
    marked = any(error.not_finite for error in errors)
    if marked:
        table.add_column("not finite", justify="right")
    for error in errors:
        row: list[RenderableType] = [
            Text(shortened(error.name)),  # as text: a name may contain rich's markup characters
            f"{error.max_abs:.3g}",
            f"{error.max_rel:.3g}",
            f"{error.mean_abs:.3g}",
            f"{error.cosine:.6f}",
            f"{error.snr_db:.1f}",
            f"{error.psnr_db:.1f}",
        ]
        table.add_row(*row, *([str(error.not_finite)] if marked else []))
    return table


def _top1_table(report: CheckReport) -> Table:
    table = Table(title="top-1 class", title_justify="left")
    table.add_column("output")
    table.add_column("agree", justify="right")
    labelled = any(top1.correct_a is not None for top1 in report.top1)
    if labelled:
        for column in ("A right", "B right", "only A", "only B"):
            table.add_column(column, justify="right")
    for top1 in report.top1:
        cells = [f"{top1.agree}/{top1.samples} ({1 - top1.disagreement:.1%})"]
        if labelled and top1.correct_a is not None and top1.correct_b is not None:
            cells += [f"{count / max(top1.samples, 1):.1%}" for count in (top1.correct_a, top1.correct_b)]
            cells += [str(top1.only_a), str(top1.only_b)]
        table.add_row(Text(shortened(top1.output)), *cells)
    return table


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"
