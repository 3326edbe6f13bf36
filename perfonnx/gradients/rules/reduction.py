"""Reductions over axes, and softmax."""

from __future__ import annotations

from collections.abc import Sequence

from perfonnx.gradients.builder import Builder, Value, count
from perfonnx.gradients.network import Node
from perfonnx.gradients.rules.registry import gradient


def _axes(node: Node) -> list[int]:
    """The axes that a reduction runs over: an attribute or an input, as the version says; none means all."""
    given = node.attribute("axes")
    if given is None and node.has(1):
        constant = node.constant(1)
        if constant is None:
            raise node.refuse("its axes are computed from the data; a gradient needs constant ones")
        given = constant.ravel().tolist()
    rank = len(node.shape())
    if not given:
        return [] if node.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({int(axis) % rank for axis in given})


def _spread(node: Node, dy: Value) -> Value:
    """The gradient with reduced axes kept, so that it broadcasts against the input."""
    axes = _axes(node)
    return dy.reshape([1 if axis in axes else size for axis, size in enumerate(node.shape())])


@gradient("ReduceSum")
def _sum(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [_spread(node, dy).expand(node.shape())]


@gradient("ReduceMean")
def _mean(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [(_spread(node, dy) / float(count(node.shape(), _axes(node)))).expand(node.shape())]


@gradient("ReduceSumSquare")
def _sum_square(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [_spread(node, dy) * g.value(node, 0) * 2.0]


@gradient("ReduceL2")
def _l2(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [_spread(node, dy) * g.value(node, 0) / _spread(node, g.result(node))]


@gradient("ReduceMax", "ReduceMin")
def _extremum(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    hits = g.value(node, 0).equals(_spread(node, g.result(node)))
    return [hits * (_spread(node, dy) / hits.sum(_axes(node)))]  # equal values share the gradient


def _softmax_axes(node: Node) -> list[int]:
    """Below opset 13 all axes from `axis` on are one."""
    rank = len(node.shape())
    if node.opset < 13:
        return list(range(node.axis(1), rank))
    return [node.axis(-1)]


@gradient("Softmax")
def _softmax(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    y = g.result(node)
    return [y * (dy - (dy * y).sum(_softmax_axes(node)))]


@gradient("LogSoftmax")
def _log_softmax(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [dy - g.result(node).map("Exp") * dy.sum(_softmax_axes(node))]
