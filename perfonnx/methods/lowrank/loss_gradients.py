"""What the loss minds of weights: the approximate Mahalanobis metric of Denton et al. (arXiv 1404.0736, 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.data.inputs import Array, feed_size
from perfonnx.errors import PerfonnxError
from perfonnx.gradients import BoundLoss, Gradients, Labels, Loss, Network, log_loss
from perfonnx.methods.base import Context, Spot
from perfonnx.methods.lowrank.rows import patches

Float = NDArray[np.float64]

WRONG = 2
"""The most likely wrong classes whose loss is taken."""

IMAGES = 64
"""Images that gradients are measured on, at most."""


@dataclass(frozen=True)
class RunnerUp(Loss):
    """The log-loss, as if the class were the one that the network finds so many places behind its first.

    Attributes:
        place: 1 is the most likely one but the network's choice.
    """

    place: int

    def bind(self, network: Network) -> BoundLoss:
        """See `Loss.bind`."""
        return _BoundRunnerUp(log_loss.bind(network), self.place)


class _BoundRunnerUp(BoundLoss):
    def __init__(self, inner: BoundLoss, place: int) -> None:
        self.inner = inner
        self.place = place
        self.tensors = inner.tensors

    def __call__(
        self, values: Mapping[str, Array], labels: Labels
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
        """See `BoundLoss`."""
        (scores,) = (np.asarray(values[name]) for name in self.tensors)
        flat = scores.reshape(len(scores), -1)
        if flat.shape[1] <= self.place:
            raise PerfonnxError(f"{flat.shape[1]} classes: there is none in place {self.place + 1}")
        return self.inner(values, np.argsort(-flat, axis=1, kind="stable")[:, self.place])


class LossGradients:
    """Of one network's layers; one for all of them while it is rewritten."""

    def __init__(self, context: Context) -> None:
        self.feeds = context.feeds
        self.network = Network(context.workspace.model.proto)

    def close(self, left: Mapping[str, str]) -> None:
        """Nothing is wrong with it."""

    def alpha(self, spot: Spot) -> Float:
        """Root mean squares of the gradient with respect to each weight, with a mean of 1: [M, C/group, kh, kw].

        Raises:
            PerfonnxError: The network is no classifier, or has no gradients.
        """
        assert self.feeds is not None
        x, y = spot.node.inputs[0].name, spot.node.outputs[0].name
        unknown = [name for name in (x, y) if name not in self.network.tensors]
        if unknown or not spot.layer.is_conv:
            raise PerfonnxError("gradients are those of convolutions of the network as it came; take another metric")
        squares: Any = 0.0
        for place in range(1, WRONG + 1):
            gradients = Gradients(self.network, [x, y], RunnerUp(place))
            images = 0
            for batch in self.feeds:
                if images >= IMAGES:
                    break
                feed = dict(batch)
                images += feed_size(feed)
                for _, found in gradients.stream(feed, None):
                    squares = squares + self._squares(spot, found[x][0], found[y][1])
        roots = np.sqrt(np.asarray(squares, np.float64))
        mean = float(roots.mean())
        return roots / mean if mean > 0 else np.ones_like(roots)

    def _squares(self, spot: Spot, x: Array, gradient: Array) -> Float:
        """Squares of each image's gradient with respect to the weights, summed over images."""
        groups = spot.attributes.group
        outputs, positions = gradient.shape[1] // groups, gradient.shape[2] * gradient.shape[3]
        total = np.zeros(spot.weight.shape)
        for image, arrived in zip(x, gradient, strict=True):
            read = patches(image[None], spot.attributes, gradient.shape[2:], np.arange(positions))
            read = read.reshape(positions, groups, -1)
            sent = arrived.reshape(groups, outputs, positions)
            of_image = np.einsum("gmp,pgk->gmk", sent, read, optimize=True)
            total += np.square(of_image, dtype=np.float64).reshape(total.shape)
        return total
