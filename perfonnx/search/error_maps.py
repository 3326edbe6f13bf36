"""Where the error lies: what a rewritten model's layers and outputs differ by from the original's, by position."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from perfonnx import runtime
from perfonnx.data.inputs import Array, Feed, feed_size
from perfonnx.masks import Mask
from perfonnx.methods.base import SampledMethod
from perfonnx.model.files import LoadedModel
from perfonnx.model.layers import Layer, activation_of, conv_layers, only_consumer
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.rewriting import Rewritten, opened, rewrite
from perfonnx.running.opened import OpenModel, open_model
from perfonnx.subject import SamplesLike, Subject

IMAGES = 16
"""Images that are looked at, and what else is in the last batch of them."""

SAME = 1e-2
"""Relative distance up to which outputs are those of the same network, in other sums and roundings."""

_AT_ONCE = 256 << 20
"""Bytes of responses that are in memory at a time, roughly; what one batch of one layer takes at least."""

_ADDED = frozenset(("Add", "Sum", "BatchNormalization"))


@dataclass(frozen=True)
class ErrorMap:
    """Where one response of the rewritten model differs from the original's.

    Attributes:
        name: The layer's, or the output's.
        error: float64 [H, W], the mean absolute difference over images and channels; NaN where the layer has no value,
            or only a copy that nobody reads.
        relative: Its mean over that of the original's absolute values, both where there are values.
        images: How many were looked at.
        is_output: Whether it is an output of the model.
    """

    name: str
    error: NDArray[np.float64]
    relative: float
    images: int
    is_output: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the map; None for what is no number."""
        relative = self.relative if math.isfinite(self.relative) else None
        return {"name": self.name, "relative": relative, "images": self.images, "is_output": self.is_output}


def error_maps(
    subject: Subject, result: Rewritten, samples: SamplesLike, *, layers: bool = True, threads: int | None = None
) -> list[ErrorMap]:
    """The maps of a rewritten model's layers, in the graph's order, and of those of its outputs that are maps.

    A layer's response is looked at behind what is added to it and its activation, as far as nothing else reads what is
    before: that is what it is fitted to. Layers on rows have no maps, so the model is rewritten once more on maps;
    where that gives other outputs, only the outputs are looked at.

    Args:
        subject: The original.
        result: What it was rewritten to.
        samples: Inputs, of which the first batches are taken.
        layers: Whether the result's plan makes it of the original, as it does not where the weights were trained; if
            not, only the outputs are looked at.
        threads: Intra-op threads.

    Raises:
        PerfonnxError: A model cannot be run.
    """
    original, shown = subject.original(), _on_maps(subject, result) if layers else result.model
    responses = _responses(opened(original), result, shown) if layers else []
    names = list(dict.fromkeys(each.tensor for each in responses))
    right, model = open_model(_giving(original, names), threads=threads), open_model(result.model, threads=threads)
    on_maps = open_model(_giving(shown, names), threads=threads)
    sums = {each.layer: _Sum(each.hidden) for each in responses}
    totals: dict[str, _Sum] = {}
    images = 0
    for batch in samples:
        feed = model.adapt(batch.feeds)
        outputs = {name: array for name, array in model.run(feed).items() if array.dtype.kind == "f" and array.size}
        expected = _run(right, list(outputs), right.adapt(batch.feeds))
        for name, array in outputs.items():
            if array.ndim == 4 and min(_maps(array).shape[2:]) > 1:
                totals.setdefault(name, _Sum(None)).add(_maps(array), _maps(expected[name]))
        if sums and not _same(_run(on_maps, list(outputs), on_maps.adapt(batch.feeds)), outputs):
            sums = {}
        for part in _parts(responses if sums else (), feed_size(feed)):
            tensors = list(dict.fromkeys(each.tensor for each in part))
            theirs, ours = (_run(each, tensors, each.adapt(batch.feeds)) for each in (right, on_maps))
            for each in part:
                sums[each.layer].add(ours[each.tensor], theirs[each.tensor])
        images += feed_size(feed)
        if images >= IMAGES:
            break
    return [total.found(name) for name, total in sums.items()] + [
        total.found(name, is_output=True) for name, total in totals.items()
    ]


@dataclass(frozen=True)
class _Response:
    """The tensor, in both models, by which a layer is looked at; `hidden` is true where it holds copies of sites."""

    layer: str
    tensor: str
    hidden: Mask | None
    values: int


def _on_maps(subject: Subject, result: Rewritten) -> LoadedModel:
    """The same network with every layer on maps."""
    if result.plan.layout == "nchw":
        return result.model
    return rewrite(
        subject.source,
        plan=result.plan,
        layout="nchw",
        input_shapes=subject.input_shapes,
        freeze_weights=subject.freeze_weights,
        fallback=False,
        corrections=result.corrections,
        impact_maps=subject.impact_maps,
    ).model


def _responses(workspace: Workspace, result: Rewritten, shown: LoadedModel) -> list[_Response]:
    """What to look at of the original's layers that were rewritten."""
    plans = {layer.name: layer.plan for layer in result.report.layers}
    made = [{name for node in model.proto.graph.node for name in node.output} for model in (workspace.model, shown)]
    found = []
    for layer in conv_layers(workspace):
        tensor = _last(workspace, layer, made[0] & made[1]) if layer.name in plans else None
        if tensor is None or layer.output_shape is None:
            continue
        step, mask = plans[layer.name], result.masks.get(layer.name)
        alone = isinstance(step, SampledMethod) and step.reads_sites and mask is not None
        values = layer.w_shape[0] * math.prod(layer.output_shape)
        found.append(_Response(layer.name, tensor, ~mask if alone and mask is not None else None, values))
    return found


def _last(workspace: Workspace, layer: Layer, names: Collection[str]) -> str | None:
    """The last of these tensors that is a layer's output, summed and activated."""
    tensor = layer.output
    shape, found = workspace.types.get(tensor.name), tensor.name if tensor.name in names else None
    while (node := only_consumer(workspace, tensor)) is not None:
        if activation_of(workspace, node) is None and not (is_standard(node) and node.op in _ADDED):
            break
        tensor = node.outputs[0]
        if workspace.types.get(tensor.name) != shape:
            break
        found = tensor.name if tensor.name in names else found
    return found


def _giving(model: LoadedModel, names: Sequence[str]) -> LoadedModel:
    """A copy of a model with more outputs."""
    copied = LoadedModel(copy.deepcopy(model.proto), model.directory, model.name)
    graph = copied.proto.graph
    present = {value.name for value in graph.output}
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    return copied


def _run(model: OpenModel, names: Sequence[str], feed: Feed) -> dict[str, Array]:
    return dict(zip(names, runtime.run(model.session, names, feed, model.name), strict=True)) if names else {}


def _same(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> bool:
    """Whether two runs gave the same, up to rounding; outputs without finite values say nothing."""
    for name, expected in theirs.items():
        difference, size = (np.linalg.norm(a.astype(np.float64)) for a in (ours[name] - expected, expected))
        if difference > SAME * size:
            return False
    return True


def _parts(responses: Sequence[_Response], images: int) -> Iterator[list[_Response]]:
    """Responses that fit into memory together."""
    part: list[_Response] = []
    size = 0
    for each in responses:
        bytes_ = 2 * 4 * images * each.values
        if part and size + bytes_ > _AT_ONCE:
            yield part
            part, size = [], 0
        part.append(each)
        size += bytes_
    if part:
        yield part


def _channels_last(array: Array) -> bool:
    """Whether four dimensions rather look like [N, H, W, C]."""
    return 4 * array.shape[3] < min(array.shape[1:3])


def _maps(array: Array) -> Array:
    return np.moveaxis(array, 3, 1) if _channels_last(array) else array


class _Sum:
    """Sums over images of absolute differences, [H, W], and of the original's absolute values."""

    def __init__(self, hidden: Mask | None) -> None:
        self.hidden = hidden
        self.error: NDArray[np.float64] | None = None
        self.size: NDArray[np.float64] | None = None
        self.images = 0

    def add(self, ours: Array, theirs: Array) -> None:
        """A batch, [N, C, H, W]."""
        difference = np.abs(ours.astype(np.float32) - theirs.astype(np.float32))
        error, size = (a.mean(axis=1, dtype=np.float64).sum(axis=0) for a in (difference, np.abs(theirs)))
        self.error = error if self.error is None else self.error + error
        self.size = size if self.size is None else self.size + size
        self.images += len(ours)

    def found(self, name: str, *, is_output: bool = False) -> ErrorMap:
        """The mean."""
        assert self.error is not None
        assert self.size is not None
        error = self.error / self.images
        if self.hidden is not None:
            error[self.hidden] = np.nan
        size = self.size[~np.isnan(error)].sum() / self.images
        relative = float(np.nansum(error) / size) if size > 0 else math.nan
        return ErrorMap(name, error, relative, self.images, is_output)
