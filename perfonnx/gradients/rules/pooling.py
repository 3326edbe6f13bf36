"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from perfonnx.gradients.builder import Builder, Value, count, probe
from perfonnx.gradients.network import Node
from perfonnx.gradients.rules.registry import gradient


def _max_pool(g: Builder, node: Node, dy: Value, **attributes: Any) -> Value:
    """Every output's gradient goes to the position that it was taken from; overlapping windows add up."""
    x, shape = g.value(node, 0), node.shape()
    taken = g.add("MaxPool", x, output=1, **attributes).reshape([-1])
    zeros = g.constant(np.zeros(1)).expand([count(shape, range(len(shape)))])
    flat = zeros.map("ScatterElements", taken, dy.reshape([-1]), axis=0, reduction="add")
    return flat.reshape(shape)


@gradient("MaxPool")
def _max_pool_rule(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    names = ("kernel_shape", "strides", "pads", "dilations", "auto_pad", "ceil_mode")
    given = {name: node.attribute(name) for name in names}
    return [_max_pool(g, node, dy, **{name: value for name, value in given.items() if value is not None})]


@gradient("GlobalMaxPool")
def _global_max_pool(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [_max_pool(g, node, dy, kernel_shape=list(node.shape()[2:]))]


@gradient("AveragePool")
def _average_pool(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    """Averaging is linear and separable; each axis is read off as a matrix, divisors and all."""
    rank = len(node.shape())
    for axis in range(2, rank):
        dy = dy.along(axis, rank, _averaging(node, axis - 2, node.shape()[axis]).T)
    return [dy]


def _averaging(node: Node, axis: int, size: int) -> NDArray[Any]:
    """[size, size of the output]: what each position of one axis adds to each average."""
    rank = len(node.shape()) - 2
    attributes: dict[str, Any] = {}
    for name in ("kernel_shape", "strides", "dilations"):
        value = node.attribute(name)
        if value is not None:
            attributes[name] = [1, int(value[axis])]
    pads = node.attribute("pads")
    if pads is not None:
        attributes["pads"] = [0, int(pads[axis]), 0, int(pads[rank + axis])]
    for name in ("auto_pad", "ceil_mode", "count_include_pad"):
        value = node.attribute(name)
        if value is not None:
            attributes[name] = value
    pool = helper.make_node("AveragePool", ["x"], ["y"], **attributes)
    return probe(pool, node.opset, {"x": np.eye(size, dtype=np.float32)[None, None]})[0, 0]


@gradient("GlobalAveragePool")
def _global_average_pool(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    shape = node.shape()
    return [(dy / float(count(shape, range(2, len(shape))))).expand(shape)]
