"""Products, normalizations and other operators over whole axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from perfonnx.torch.importing.node import Node


def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """The sum alpha * a * b + beta * c, both matrices transposed where the node says so."""
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    a = a.t() if node.flag("transA") else a
    b = b if node.flag("transB") else b.t()
    if alpha == beta == 1 and (c is None or c.dim() == 1):
        return functional.linear(a, b, c)
    y = alpha * functional.linear(a, b)
    return y if c is None else y + beta * c


def batch_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """With the given statistics; where they are constants of its own, the node is a module instead."""
    return functional.batch_norm(x, mean, var, scale, bias, eps=node.attribute("epsilon", 1e-5))


def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each image by its own statistics."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=node.attribute("epsilon", 1e-5))


def layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Over all axes from `axis` on."""
    axis = node.attribute("axis", -1) % x.dim()
    return functional.layer_norm(x, x.shape[axis:], scale, bias, node.attribute("epsilon", 1e-5))


def lrn(node: Node, x: Tensor) -> Tensor:
    """Each value by the mean square over its neighbours among the channels."""
    size = int(node.attribute("size"))
    if size % 2 == 0:
        raise node.refuse("an even size is not supported")
    alpha, beta = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75)
    return functional.local_response_norm(x, size, alpha, beta, node.attribute("bias", 1.0))


def _softmax(function: Callable[..., Tensor]) -> Any:
    """Before version 13 it is over all axes from `axis` on, from then on over one."""

    def run(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, dim=node.attribute("axis", -1))
        axis = node.attribute("axis", 1) % x.dim()
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return run


def _reduction(function: Callable[..., Tensor]) -> Any:
    """Axes are an attribute in older versions and an input in newer ones; none are all."""

    def run(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = node.setting("axes", axes)
        if not chosen:
            if node.flag("noop_with_empty_axes"):
                return x
            chosen = list(range(x.dim()))
        return function(x, dim=tuple(chosen), keepdim=node.flag("keepdims", True))

    return run


def argmax(node: Node, x: Tensor) -> Tensor:
    """Index of the largest value."""
    if node.flag("select_last_index"):
        raise node.refuse("select_last_index is not supported")
    return x.argmax(node.attribute("axis", 0), keepdim=node.flag("keepdims", True))


OPERATORS: dict[str, Any] = {
    "ArgMax": argmax,
    "BatchNormalization": batch_normalization,
    "Gemm": gemm,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": lambda node, a, b: torch.matmul(a, b),
    "ReduceL2": _reduction(torch.linalg.vector_norm),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Softmax": _softmax(torch.softmax),
}
