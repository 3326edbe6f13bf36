"""How much each output position of each layer matters to the loss, measured on images.

B(y, x) is the mean over images of the sum over channels of |dL/dV * V|, the absolute value before any sum: a
first-order estimate of what the loss changes by when a value is lost. V is what the convolution gives, bias (and a
normalization that would be folded into it) included, before the activation; L is the loss of one image. Figurnov et
al., arXiv 1504.08362, section 3.

On a network that is perforated already, the gradients of all positions filled from a site add up at that site, and
skipped positions get 0, so that they do not come back when the rate grows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfonnx.data.inputs import Array, Feed, feed_size
from perfonnx.errors import PerfonnxError
from perfonnx.gradients import Gradients, Labels, Loss, Network, log_loss
from perfonnx.masks import ImpactMaps, save_arrays
from perfonnx.masks.impact import check_impact
from perfonnx.methods.perforate import Perforate
from perfonnx.model import files
from perfonnx.model.constants import fold_constants
from perfonnx.model.files import ModelSource
from perfonnx.model.layers import conv_layers, rewritten_nodes
from perfonnx.model.workspace import Workspace
from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV
from perfonnx.passes.fold import folded_output
from perfonnx.plan import LAYOUTS, Plan
from perfonnx.rewriting import Rewritten, rewrite

STEP = 0.1
"""The rate that `ranked_impact` grows by between two measurements."""


class LabelledBatch(Protocol):
    """Inputs by name, and what the loss compares with."""

    @property
    def feeds(self) -> Feed:
        """Inputs by name, one entry per image along the first axis."""

    @property
    def labels(self) -> Any:
        """Labels of these images, or None."""


Samples: TypeAlias = Iterable["Feed | LabelledBatch"]


def impact_maps(
    model: ModelSource,
    samples: Samples,
    *,
    labels: Labels = None,
    layers: Sequence[str] | None = None,
    loss: Loss = log_loss,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """The impact of each output position of each convolution.

    Memory does not grow with the number of images; it does with the size of their batches.

    Args:
        model: The model, original or rewritten (with its function bodies).
        samples: Batches, each a dictionary of inputs by name or an object with `feeds` and `labels`.
        labels: Labels of all images in order, where batches carry none. Without any, `log_loss` takes the model's own
            choice as the label.
        layers: Names of layers; None takes all 2-D convolutions, except radius-adaptive ones, which have no mask.
        loss: What is to stay small.
        threads: Intra-op threads; None leaves onnxruntime's choice.
        progress: Called with the number of images done, after each batch.

    Returns:
        float64 [H, W] by layer name; 0 everywhere for a layer that the loss does not depend on.

    Raises:
        PerfonnxError: No such layer, no samples, or `Gradients` refuses.
    """
    network = Network(model)
    tensors = layer_tensors(model, network)
    if layers is not None:
        unknown = [name for name in layers if name not in tensors]
        if unknown:
            raise PerfonnxError(f"{network.name}: has no convolution {unknown[0]!r} with a map; see perfonnx inspect")
        tensors = {name: tensors[name] for name in layers}
    gradients = Gradients(network, list(tensors.values()), loss, threads=threads)
    sums: dict[str, Any] = dict.fromkeys(tensors, 0.0)
    images = 0
    for feeds, own in _batches(samples, labels):
        for losses, results in gradients.stream(feeds, own):
            images += len(losses)
            for name, tensor in tensors.items():
                value, gradient = results[tensor]
                sums[name] = sums[name] + _impact(name, value, gradient)
        if progress:
            progress(images)
    if not images:
        raise PerfonnxError(f"{network.name}: there is no image to measure impacts on; give samples that can be read")
    return {name: total / images for name, total in sums.items()}


def _impact(layer: str, value: Array, gradient: NDArray[np.float32]) -> NDArray[np.float64]:
    if value.ndim != 4:
        raise PerfonnxError(f"layer {layer!r}: gives values of shape {list(value.shape)}, not maps; leave it out")
    products = np.abs(np.multiply(value, gradient, dtype=np.float32))
    impact = products.sum(axis=(0, 1), dtype=np.float64)
    if not np.isfinite(impact).all():
        raise PerfonnxError(f"layer {layer!r}: its impacts are not finite; look for NaN or overflow in model and data")
    return impact


def layer_tensors(model: ModelSource, network: Network) -> dict[str, str]:
    """The tensor of `network` that holds V of each 2-D convolution of a model, by layer name."""
    workspace = Workspace.open(files.load(model))
    fold_constants(workspace)
    tensors = {}
    for layer in conv_layers(workspace):
        if len(layer.w_shape) == 4:
            tensors[layer.name] = folded_output(workspace, layer.node, layer.w_shape[0]).name
    for node in rewritten_nodes(workspace):
        if node.op != RADIUS_ADAPTIVE_CONV.name:
            tensors[node.name] = _convolved(network, node.outputs[0].name)
    return tensors


def _convolved(network: Network, tensor: str) -> str:
    """The output of the convolution in the function body that made a tensor: first inputs lead to it."""
    node = network.producers[tensor]
    while node.op_type != "Conv":
        tensor = node.input[1 if node.op_type == "Where" else 0]
        node = network.producers[tensor]
    return tensor


def _batches(samples: Samples, labels: Labels) -> Iterator[tuple[Feed, Labels]]:
    start = 0
    for batch in samples:
        feeds, own = (batch, None) if isinstance(batch, Mapping) else (batch.feeds, batch.labels)
        if own is None and labels is not None:
            size = feed_size(feeds)
            own = _slice(labels, start, start + size)
            start += size
        yield feeds, own


def _slice(labels: Labels, start: int, stop: int) -> Labels:
    if isinstance(labels, Mapping):
        return {name: array[start:stop] for name, array in labels.items()}
    return None if labels is None else np.asarray(labels)[start:stop]


def rewrite_by_impact(
    model: ModelSource,
    samples: Samples,
    rates: Sequence[float],
    *,
    labels: Labels = None,
    loss: Loss = log_loss,
    threads: int | None = None,
    from_original: bool = False,
    **choices: Any,
) -> Rewritten:
    """Rewrites with impact masks, the rate growing step by step and impacts measured anew at each.

    Small steps matter: the sites that one map ranks highest lie together, and leave large gaps; measured anew, those
    that fill the gaps rank higher. For a layer of ResNet-20 at rate 2/3, steps of 0.1 lost a fifteenth of what three
    steps lost.

    Args:
        model: The model, not yet rewritten.
        samples: See `impact_maps`; gone through once for each rate, so not an iterator.
        rates: Rates, growing; the last one is the result's.
        labels: See `impact_maps`.
        loss: See `impact_maps`.
        threads: See `impact_maps`.
        from_original: Measure on the original network only, as the authors' program does, instead of on the network as
            it is perforated so far, as in their paper.
        **choices: See `rewrite`: which layers, interpolation, seed.

    Returns:
        The model rewritten at the last rate.

    Raises:
        PerfonnxError: See `impact_maps` and `rewrite`.
    """
    if not rates or list(rates) != sorted(rates):
        raise PerfonnxError(f"rates {list(rates)}: give one or more, each larger than the one before")
    if iter(samples) is samples:
        raise PerfonnxError("samples: an iterator can be gone through only once; give a list of batches")
    settings: dict[str, Any] = {"labels": labels, "loss": loss, "threads": threads}
    maps: ImpactMaps = impact_maps(model, samples, **settings)
    if from_original:
        return rewrite(model, rate=rates[-1], mask="impact", impact_maps=maps, **choices)
    for rate in rates[:-1]:
        current = rewrite(model, rate=rate, mask="impact", impact_maps=maps, **choices)
        maps = {**maps, **impact_maps(current.proto, samples, **settings)}
    return rewrite(model, rate=rates[-1], mask="impact", impact_maps=maps, **choices)


def ranked_impact(
    model: ModelSource,
    samples: Samples,
    layers: Sequence[str],
    *,
    rate: float,
    labels: Labels = None,
    loss: Loss = log_loss,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """One map from which the mask `impact` makes what iterative impact would make at every rate up to one.

    Masks of growing rates are nested: what was skipped does not come back. So the order in which positions leave says
    it all. Impacts are measured anew after every `STEP` of rate, with these layers perforated and no others.

    Args:
        model: The model, not yet rewritten.
        samples: See `impact_maps`; gone through once for each step, so not an iterator.
        layers: Layers of one map size that share a mask; their impacts add up.
        rate: The highest rate that is wanted.
        labels: See `impact_maps`.
        loss: See `impact_maps`.
        threads: See `impact_maps`.

    Returns:
        float64 [H, W]: the steps that a position stays, and below 1, its rank by impact at the last of them.

    Raises:
        PerfonnxError: See `impact_maps` and `rewrite`.
    """

    def impact(current: ModelSource) -> NDArray[np.float64]:
        maps = impact_maps(current, samples, layers=layers, labels=labels, loss=loss, threads=threads)
        return np.sum(list(maps.values()), axis=0, dtype=np.float64)

    ranks = _ranks(impact(model))
    for step in range(1, math.ceil(rate / STEP - 1e-9)):
        plan = Plan(dict.fromkeys(layers, Perforate(round(step * STEP, 6), "impact")))
        current = rewrite(model, plan=plan, layout=LAYOUTS[1], impact_maps=dict.fromkeys(layers, ranks))
        kept = current.masks[layers[0]]
        ranks = np.where(kept, step + _ranks(impact(current.proto)), ranks)
    return ranks


def _ranks(impact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places in ascending order, in [0, 1); equal impacts in raster order."""
    ranks = np.empty(impact.size)
    ranks[np.argsort(impact, axis=None, kind="stable")] = np.arange(impact.size) / impact.size
    return ranks.reshape(impact.shape)


def save_impact_maps(path: str | os.PathLike[str], maps: ImpactMaps) -> None:
    """Writes maps to a .npz file, one array per layer under its name, atomically; see `load_impact_maps`.

    Raises:
        PerfonnxError: There is none, one is no map of impacts, or the place cannot be written.
    """
    if not maps:
        raise PerfonnxError(f"{os.fspath(path)}: there is no map of impacts to write; the model has no convolution")
    save_arrays(path, {name: check_impact(values, f"impact map {name!r}") for name, values in maps.items()})
