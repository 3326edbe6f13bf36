"""Reverse mode: from the loss back to the tensors whose gradients are wanted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from perfonnx import runtime
from perfonnx.data.inputs import Array, Feed
from perfonnx.errors import PerfonnxError
from perfonnx.gradients.builder import Builder, Value
from perfonnx.gradients.losses import Labels, Loss
from perfonnx.gradients.network import Network, Node, inputs_of
from perfonnx.gradients.rules import FLAT, RULES
from perfonnx.model.files import ModelSource
from perfonnx.model.proto import node_name, operator_name

Tensors: TypeAlias = dict[str, tuple[Array, NDArray[np.float32]]]
"""Value and gradient of each wanted tensor, by name."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_KEPT = 3
"""Shapes of inputs for which sessions are kept: the full batch, and a last smaller one."""


@dataclass(frozen=True)
class _Step:
    """Both models for inputs of one shape."""

    forward: Any
    fetched: list[str]
    backward: Any
    builder: Builder


class Gradients:
    """Gradients of a loss with respect to tensors of a model.

    The losses of the images in a batch are summed, never averaged, so that each image's gradient does not depend on
    the others. Computed in float32, also for models in float16.

    Args:
        model: See `perfonnx.model.files.load`, or a `Network`.
        wanted: Names of tensors: graph inputs or outputs of nodes.
        loss: `log_loss`, `output_distance`, or another `Loss`.
        threads: Intra-op threads; None leaves onnxruntime's choice.

    Raises:
        PerfonnxError: The model cannot be read, has no such tensor, or has no such loss.
    """

    def __init__(
        self,
        model: ModelSource | Network,
        wanted: Sequence[str],
        loss: Loss,
        *,
        threads: int | None = None,
    ) -> None:
        self.network = model if isinstance(model, Network) else Network(model)
        self.wanted = list(dict.fromkeys(wanted))
        for name in self.wanted:
            if name not in self.network.tensors or name in self.network.initializers:
                raise PerfonnxError(
                    f"{self.network.name}: has no tensor {name!r} to take a gradient of; name an input or what a node "
                    "makes"
                )
        self.loss = loss.bind(self.network)
        self.threads = threads
        self._steps: OrderedDict[tuple[Any, ...], _Step] = OrderedDict()

    def run(self, feeds: Feed, labels: Labels = None) -> tuple[NDArray[np.float64], Tensors]:
        """The loss of each image, and value and gradient of each wanted tensor.

        Args:
            feeds: Inputs by name; any number of images along their first axis.
            labels: What the loss compares with; see there.

        Returns:
            Losses [N]; by name, the tensor's value and the gradient of the summed losses, both of its shape. A tensor
            that the loss does not depend on has gradient 0.

        Raises:
            PerfonnxError: Feeds or labels do not fit, or a node between has no gradient.
        """
        parts = list(self.stream(feeds, labels))
        if len(parts) == 1:
            return parts[0]
        tensors = {}
        for name in self.wanted:
            values, gradients = zip(*(tensors[name] for _, tensors in parts), strict=True)
            tensors[name] = np.concatenate(values), np.concatenate(gradients)
        return np.concatenate([losses for losses, _ in parts]), tensors

    def stream(self, feeds: Feed, labels: Labels = None) -> Iterator[tuple[NDArray[np.float64], Tensors]]:
        """Like `run`, one result for each batch of the size that the model is made for."""
        unknown = sorted(set(feeds) ^ set(self.network.feeds))
        if unknown:
            inputs = ", ".join(self.network.feeds)
            raise PerfonnxError(f"{self.network.name}: has the inputs {inputs}, but is given {', '.join(feeds)}")
        arrays = {name: np.asarray(feeds[name]) for name in self.network.feeds}
        images = next((len(array) for array in arrays.values() if array.ndim), 0)
        batch = self.network.batch() or images
        if not images or images % batch or any(array.ndim and len(array) != images for array in arrays.values()):
            raise PerfonnxError(
                f"{self.network.name}: is made for batches of {batch}; give inputs with a multiple of that, all of the "
                "same length"
            )
        for start in range(0, images, batch):
            part = slice(start, start + batch)
            chosen = {name: array[part] if array.ndim else array for name, array in arrays.items()}
            yield self._run(chosen, _part(labels, part, images))

    def _run(self, feeds: Feed, labels: Labels) -> tuple[NDArray[np.float64], Tensors]:
        step = self._step(feeds)
        what = self.network.name
        values = dict(zip(step.fetched, runtime.run(step.forward, step.fetched, feeds, what), strict=True))
        losses, seeds = self.loss({name: values[name] for name in self.loss.tensors}, labels)
        gradients: dict[str, Array] = {}
        if step.backward is not None:
            builder = step.builder
            given = {own: np.asarray(values[name], builder.numpy_type(own)) for own, name in builder.saved.items()}
            given |= {own: seeds[name] for name, own in builder.seeds.items()}
            names = list(builder.outputs.values())
            results = runtime.run(step.backward, names, given, f"{what}, backward")
            gradients = dict(zip(builder.outputs, results, strict=True))
        tensors: Tensors = {}
        for name in self.wanted:
            gradient = gradients.get(name)
            tensors[name] = values[name], np.zeros(values[name].shape, np.float32) if gradient is None else gradient
        return losses, tensors

    def _step(self, feeds: Feed) -> _Step:
        key = tuple((name, array.shape) for name, array in feeds.items())
        if key in self._steps:
            self._steps.move_to_end(key)
            return self._steps[key]
        builder = _build(self.network, self.wanted, self.loss.tensors, feeds)
        backward = None
        if builder.outputs:
            backward = runtime.session(builder.build(), threads=self.threads, library=False)
        fetched = list(dict.fromkeys([*self.wanted, *self.loss.tensors, *builder.saved.values()]))
        step = _Step(self.network.session(fetched, self.threads), fetched, backward, builder)
        self._steps[key] = step
        if len(self._steps) > _KEPT:
            self._steps.popitem(last=False)
        return step


def _part(labels: Labels, part: slice, images: int) -> Labels:
    if labels is None:
        return None
    for array in labels.values() if isinstance(labels, Mapping) else [labels]:
        if len(array) != images:
            raise PerfonnxError(f"{len(array)} labels or targets for {images} images; give one for each")
    return {name: a[part] for name, a in labels.items()} if isinstance(labels, Mapping) else labels[part]


# --- building the backward model -------------------------------------------------------------------------------------


def _build(network: Network, wanted: Sequence[str], losses: Sequence[str], feeds: Feed) -> Builder:
    """The backward model for inputs of these shapes."""
    path, active = _path(network, wanted, losses)
    named = [name for node in path for name in (*node.input, *node.output) if name]
    shapes, constants = network.measure([*named, *wanted], path, feeds)
    builder = Builder()
    gradients: dict[str, list[Value]] = {name: [builder.seed(name)] for name in losses}
    for proto in reversed(path):
        node = Node(proto, network.opset, shapes, constants, active)
        dys = [_total(gradients, name) for name in proto.output]
        if all(dy is None for dy in dys):
            continue
        for name, dx in zip(proto.input, _gradients_of(builder, node, dys), strict=True):
            if name not in active:
                continue
            if dx is None:
                raise node.refuse(f"its gradient with respect to {name!r} is not known; choose tensors behind it")
            gradients.setdefault(name, []).append(dx)
    for name in wanted:
        total = _total(gradients, name)
        if total is not None:
            builder.output(name, total)
    return builder


def _gradients_of(builder: Builder, node: Node, dys: Sequence[Value | None]) -> list[Value | None]:
    rule = RULES.get(node.op)
    if rule is None:
        raise node.refuse(
            "this operator has no gradient rule; choose tensors behind it, or add perfonnx.gradients.rules"
        )
    dxs = list(rule(builder, node, dys))
    return [*dxs, *[None] * len(node.inputs)][: len(node.inputs)]


def _total(gradients: dict[str, list[Value]], name: str) -> Value | None:
    """The sum of what all readers of a tensor give back."""
    parts = gradients.get(name)
    if not parts:
        return None
    if len(parts) > 1:
        gradients[name] = [parts[0].map("Sum", *parts[1:])]
    return gradients[name][0]


def _path(network: Network, wanted: Sequence[str], losses: Sequence[str]) -> tuple[list[NodeProto], frozenset[str]]:
    """The nodes between the wanted tensors and the loss, in order, and the tensors that gradients go through."""
    active = set(wanted)
    for node in network.nodes:
        if active.intersection(inputs_of(node)) and not _is_flat(node):
            active.update(name for name in node.output if name)
    needed = set(losses)
    path = []
    for node in reversed(network.nodes):
        if needed.intersection(node.output) and active.intersection(inputs_of(node)) and not _is_flat(node):
            hidden = active.intersection(inputs_of(node)) - set(node.input)
            if hidden:
                raise PerfonnxError(
                    f"node {node_name(node)!r} ({operator_name(node)}): reads {min(hidden)!r} in its body; gradients "
                    "do not go into bodies, choose tensors behind it"
                )
            path.append(node)
            needed.update(name for name in node.input if name in active)
    return path[::-1], frozenset(active)


def _is_flat(node: NodeProto) -> bool:
    if node.op_type == "Cast":
        return any(a.name == "to" and a.i not in _FLOATS for a in node.attribute)
    return operator_name(node) in FLAT
