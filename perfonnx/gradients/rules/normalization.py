"""Normalization layers, as they are at inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perfonnx.gradients.builder import Builder, Value
from perfonnx.gradients.network import Node
from perfonnx.gradients.rules.registry import gradient


def _channels(node: Node, value: Value) -> Value:
    """[C] as [C, 1, 1, ...], to broadcast against the map."""
    return value.reshape([-1, *[1] * (len(node.shape()) - 2)])


@gradient("BatchNormalization")
def _batch_normalization(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    if node.attribute("training_mode", 0) or any(node.outputs[1:]) or not node.attribute("spatial", 1):
        raise node.refuse("normalizes as in training; export the model for inference")
    scale, variance = g.value(node, 1), g.value(node, 4)
    factor = scale / (variance + node.attribute("epsilon", 1e-5)).map("Sqrt")
    return [dy * _channels(node, factor)]


def _normalized(x: Value, dy: Value, axes: Sequence[int], epsilon: float) -> Value:
    """Gradient of (x - mean) / sqrt(variance + epsilon), mean and variance over `axes`."""
    centred = x - x.mean(axes)
    deviation = ((centred * centred).mean(axes) + epsilon).map("Sqrt")
    unit = centred / deviation
    return (dy - dy.mean(axes) - unit * (dy * unit).mean(axes)) / deviation


@gradient("InstanceNormalization")
def _instance_normalization(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    axes = list(range(2, len(node.shape())))
    scaled = dy * _channels(node, g.value(node, 1))
    return [_normalized(g.value(node, 0), scaled, axes, node.attribute("epsilon", 1e-5))]


@gradient("LayerNormalization")
def _layer_normalization(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    axes = list(range(node.axis(-1), len(node.shape())))
    scaled = dy * g.value(node, 1)
    return [_normalized(g.value(node, 0), scaled, axes, node.attribute("epsilon", 1e-5))]


@gradient("LRN")
def _lrn(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    """Y = x / d**beta, d = bias + alpha / size * sum of x**2 over the neighbouring channels."""
    shape, size = node.shape(), int(node.attribute("size"))
    alpha, beta = node.attribute("alpha", 1e-4) / size, node.attribute("beta", 0.75)
    channel = np.arange(shape[1])
    distance = channel[None, :] - channel[:, None]  # of the neighbour in column j from channel i
    near = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    x = g.value(node, 0)
    d = (x * x).along(1, len(shape), near.T) * alpha + node.attribute("bias", 1.0)
    inner = dy * x * d ** (-beta - 1.0)
    return [dy * d**-beta - x * inner.along(1, len(shape), near) * (2.0 * alpha * beta)]
