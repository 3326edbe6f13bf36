"""Operators that work value by value."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from perfonnx.torch.importing.node import Node
from perfonnx.torch.importing.tensors import torch_type

Function = Callable[..., Any]


def plain(function: Callable[..., Tensor]) -> Function:
    """A torch function that needs nothing but the inputs."""
    return lambda node, *inputs: function(*inputs)


def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are attributes before version 11, and inputs from then on."""
    least = node.attribute("min", -math.inf) if low is None else low.item()
    most = node.attribute("max", math.inf) if high is None else high.item()
    return x.clamp(least, most)


def prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """One slope per channel is torch's own form; others are broadcast."""
    per_channel = slope.dim() == x.dim() - 1 and slope.shape[0] == slope.numel() == x.shape[1]
    if slope.numel() == 1 or per_channel:
        return functional.prelu(x, slope.flatten().to(x.dtype))
    return torch.where(x < 0, slope * x, x)


def divide(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Whole numbers are divided without a remainder, towards zero."""
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def cast(node: Node, x: Tensor) -> Tensor:
    """Half precision is computed in float32."""
    return x.to(torch_type(node, int(node.attribute("to"))))


def affine(node: Node, x: Tensor) -> Tensor:
    """An operator that onnx has dropped."""
    return x * node.attribute("alpha", 1.0) + node.attribute("beta", 0.0)


def image_scaler(node: Node, x: Tensor) -> Tensor:
    """An operator that onnx has dropped: a factor, then a number to add for each channel."""
    bias = torch.tensor(node.attribute("bias", [0.0]), dtype=x.dtype, device=x.device)
    return x * node.attribute("scale", 1.0) + bias.reshape(-1, 1, 1)


def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """A sigmoid of three straight pieces."""
    return (x * node.attribute("alpha", 0.2) + node.attribute("beta", 0.5)).clamp(0, 1)


def selu(node: Node, x: Tensor) -> Tensor:
    """An exponential unit with a factor."""
    alpha, gamma = node.attribute("alpha", 1.6732632423543772), node.attribute("gamma", 1.0507009873554805)
    return gamma * functional.elu(x, alpha)


def gelu(node: Node, x: Tensor) -> Tensor:
    """Exact, or by tanh."""
    return functional.gelu(x, approximate=node.attribute("approximate", "none"))


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda node, *inputs: functools.reduce(function, inputs)


OPERATORS: dict[str, Function] = {
    "Abs": plain(torch.abs),
    "Add": plain(torch.add),
    "Affine": affine,
    "And": plain(torch.logical_and),
    "Cast": cast,
    "Ceil": plain(torch.ceil),
    "Celu": lambda node, x: functional.celu(x, node.attribute("alpha", 1.0)),
    "Cos": plain(torch.cos),
    "Div": divide,
    "Elu": lambda node, x: functional.elu(x, node.attribute("alpha", 1.0)),
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Gelu": gelu,
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": plain(functional.hardswish),
    "Identity": plain(lambda x: x),
    "ImageScaler": image_scaler,
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.attribute("alpha", 0.01)),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Log": plain(torch.log),
    "Max": _folded(torch.maximum),
    "Mean": lambda node, *inputs: functools.reduce(torch.add, inputs) / len(inputs),
    "Min": _folded(torch.minimum),
    "Mish": plain(functional.mish),
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "PRelu": prelu,
    "Pow": plain(torch.pow),
    "Reciprocal": plain(torch.reciprocal),
    "Relu": plain(torch.relu),
    "Round": plain(torch.round),
    "Selu": selu,
    "Sigmoid": plain(torch.sigmoid),
    "Sign": plain(torch.sign),
    "Sin": plain(torch.sin),
    "Softplus": plain(functional.softplus),
    "Softsign": plain(functional.softsign),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(torch.sub),
    "Sum": _folded(torch.add),
    "Tanh": plain(torch.tanh),
    "ThresholdedRelu": lambda node, x: x * (x > node.attribute("alpha", 1.0)),
    "Where": plain(torch.where),
    "Clip": clip,
}
