"""Losses: one number per image, and where its gradient starts. Never divided by the number of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from perfonnx.data.inputs import Array
from perfonnx.errors import PerfonnxError
from perfonnx.gradients.network import Network
from perfonnx.model.proto import is_standard, node_name

Labels: TypeAlias = "Array | Mapping[str, Array] | None"
"""What a loss compares with: classes, or target outputs; sliced along the first axis together with the inputs."""

_TRANSPARENT = ("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


class BoundLoss(ABC):
    """A loss for one network.

    Attributes:
        tensors: The tensors of the network that it reads.
    """

    tensors: Sequence[str]

    @abstractmethod
    def __call__(
        self, values: Mapping[str, Array], labels: Labels
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
        """The loss of each image [N], and the gradient of their sum with respect to each of `tensors`.

        Raises:
            PerfonnxError: The labels do not fit, or are needed and missing.
        """


class Loss(ABC):
    """A way to judge outputs."""

    @abstractmethod
    def bind(self, network: Network) -> BoundLoss:
        """The loss for a network.

        Raises:
            PerfonnxError: It has no meaning for this network.
        """


@dataclass(frozen=True)
class LogLoss(Loss):
    """Negative logarithm of the probability that a classifier gives to an image's class.

    The classes come out of a Softmax, or are logits: where the output is computed by a Softmax, with nothing but
    reshaping behind it, its input is taken, so that the loss is exact where probabilities round to 0. Labels are
    integers [N]; without labels, the model's own choice is the label. A network that classifies many positions
    (labels [N, ...]) gives the mean over them.

    Attributes:
        output: The output to judge; None takes the only one, or the only one that a Softmax computes.
    """

    output: str | None = None

    def bind(self, network: Network) -> BoundLoss:
        """See `Loss.bind`."""
        names = network.output_names
        if self.output is not None and self.output not in names:
            raise PerfonnxError(f"{network.name}: has no output {self.output!r}; its outputs are {', '.join(names)}")
        candidates = [self.output] if self.output is not None else _outputs_of_numbers(network)
        softmaxes = {name: found for name in candidates if (found := _classifier(network, name)) is not None}
        if len(candidates) > 1:
            candidates = list(softmaxes)
        if len(candidates) != 1:
            raise PerfonnxError(
                f"{network.name}: the log-loss is for one output of class scores; name one of {', '.join(names)}, or "
                "take the distance of outputs"
            )
        return softmaxes.get(candidates[0]) or _BoundLogLoss(network.name, candidates[0], 1, True, False)


def _outputs_of_numbers(network: Network) -> list[str]:
    """The outputs that may hold class scores: not those declared as strings, integers, maps or sequences."""
    floats = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    return [
        output.name
        for output in network.proto.graph.output
        if output.type.WhichOneof("value") in (None, "tensor_type") and output.type.tensor_type.elem_type in floats
    ]


@dataclass
class _BoundLogLoss(BoundLoss):
    """`axis`: where classes lie; `flat`: all axes from there on are one; `logits`: no Softmax was found."""

    model: str
    tensor: str
    axis: int
    flat: bool
    positions: bool

    def __post_init__(self) -> None:
        self.tensors = [self.tensor]

    def __call__(
        self, values: Mapping[str, Array], labels: Labels
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
        """See `BoundLoss`."""
        logits = np.asarray(values[self.tensor], np.float64)
        shape, axis = logits.shape, self.axis % max(logits.ndim, 1)
        if logits.ndim < 2 or axis == 0 or (not self.positions and any(size != 1 for size in shape[2:])):
            raise PerfonnxError(
                f"{self.model}: {self.tensor!r} of shape {list(shape)} has no class scores [N, classes]; take the "
                "distance of outputs as the loss"
            )
        scores = logits.reshape(*shape[:axis], -1) if self.flat else np.moveaxis(logits, axis, -1)
        rows = scores.reshape(-1, scores.shape[-1])
        truth = self._truth(rows, scores.shape[:-1], labels)
        shifted = rows - rows.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        per_image = len(rows) // max(shape[0], 1)
        index = np.arange(len(rows))
        losses = -log_p[index, truth].reshape(shape[0], per_image).mean(axis=1)
        gradient = np.exp(log_p)
        gradient[index, truth] -= 1
        gradient = (gradient / per_image).reshape(scores.shape)
        gradient = gradient.reshape(shape) if self.flat else np.moveaxis(gradient, -1, axis)
        return losses, {self.tensor: np.ascontiguousarray(gradient, np.float32)}

    def _truth(self, rows: NDArray[np.float64], shape: tuple[int, ...], labels: Labels) -> NDArray[np.int64]:
        if labels is None:
            return rows.argmax(axis=1)
        given = np.asarray(labels)
        if given.dtype.kind not in "iu" or given.size != len(rows) or given.shape[0] != shape[0]:
            raise PerfonnxError(
                f"labels of shape {list(given.shape)} and type {given.dtype}: {self.model} needs one integer for each "
                f"of {list(shape)}"
            )
        truth = given.reshape(-1).astype(np.int64)
        if truth.size and not 0 <= truth.min() <= truth.max() < rows.shape[1]:
            raise PerfonnxError(f"labels from {truth.min()} to {truth.max()}: {self.model} has {rows.shape[1]} classes")
        return truth


def _classifier(network: Network, output: str) -> _BoundLogLoss | None:
    """The loss on the input of the Softmax that computes an output, if one does."""
    node = network.producers.get(output)
    while node is not None and node.op_type in _TRANSPARENT:
        node = network.producers.get(node.input[0])
    if node is None or not is_standard(node):
        return None
    if node.op_type in ("Sigmoid", "HardSigmoid"):
        raise PerfonnxError(
            f"{network.name}: output {output!r} comes out of {node.op_type} {node_name(node)!r}, not of a Softmax; "
            "take the distance of outputs as the loss"
        )
    if node.op_type not in ("Softmax", "LogSoftmax"):
        return None
    old = network.opset < 13
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1 if old else -1)
    return _BoundLogLoss(network.name, node.input[0], axis, old, True)


@dataclass(frozen=True)
class OutputDistance(Loss):
    """Squared distance between a network's outputs and given ones, summed over all values of an image.

    For networks that are no classifiers. Labels are the target outputs: an array where the network has one output, or
    arrays by output name. Against the network's own outputs the distance and its gradient are 0.

    Attributes:
        outputs: The outputs to compare; None takes all.
    """

    outputs: Sequence[str] | None = None

    def bind(self, network: Network) -> BoundLoss:
        """See `Loss.bind`."""
        names = network.output_names
        unknown = [name for name in self.outputs or () if name not in names]
        if unknown:
            raise PerfonnxError(f"{network.name}: has no output {unknown[0]!r}; its outputs are {', '.join(names)}")
        return _BoundDistance(network.name, list(self.outputs or names))


@dataclass
class _BoundDistance(BoundLoss):
    model: str
    tensors: Sequence[str]

    def __call__(
        self, values: Mapping[str, Array], labels: Labels
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
        """See `BoundLoss`."""
        targets = self._targets(labels)
        losses: Any = 0.0
        gradients = {}
        for name in self.tensors:
            value, target = np.asarray(values[name], np.float64), np.asarray(targets[name], np.float64)
            if value.shape != target.shape or not value.ndim:
                raise PerfonnxError(
                    f"{self.model}: the target of output {name!r} has shape {list(target.shape)}, the output "
                    f"{list(value.shape)}"
                )
            difference = value - target
            losses = losses + np.square(difference).reshape(len(value), -1).sum(axis=1)
            gradients[name] = (2 * difference).astype(np.float32)
        return losses, gradients

    def _targets(self, labels: Labels) -> Mapping[str, Array]:
        if labels is None:
            raise PerfonnxError(
                f"{self.model}: the distance of outputs needs target outputs for {', '.join(self.tensors)}; give them "
                "as labels"
            )
        targets = labels if isinstance(labels, Mapping) else {self.tensors[0]: np.asarray(labels)}
        missing = [name for name in self.tensors if name not in targets]
        if missing:
            raise PerfonnxError(f"{self.model}: no target for output {missing[0]!r}; give arrays by output name")
        return targets


log_loss = LogLoss()
"""`LogLoss` of the model's only classifying output."""

output_distance = OutputDistance()
"""`OutputDistance` over all outputs."""
