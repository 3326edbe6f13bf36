"""Fold: batch normalization and per-channel arithmetic behind a chosen layer go into its weight and bias.

It runs before a layer is rewritten, so that a network means the same whether its exporter folded already or not: the
value of a skipped position is set after normalization in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.methods import Affine
from perfonnx.model.layers import Layer, only_consumer
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Change, Pass, State


class Fold(Pass):
    """Folds what follows a chosen convolution and is affine per channel."""

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Change weight and bias of the chosen layers; shared weights are copied, never changed in place."""
        changes = []
        for name, decision in list(state.decisions.items()):
            affine, folded = fold(workspace, decision.layer)
            if folded:
                state.decisions[name] = replace(decision, folded=affine)
                changes.append(Change(name, f"folded {', '.join(folded)}"))
        return changes


def fold(workspace: Workspace, layer: Layer) -> tuple[Affine, list[str]]:
    """Take into a convolution's weight and bias what can be: what that was, and the operators that are gone."""
    node, channels = layer.node, layer.w_shape[0]
    before = best = _Weights.read(workspace, node)
    affine = kept = Affine.identity(channels)
    folded: list[str] = []
    for follower, step in list(_affine_followers(workspace, node, channels)):
        affine = affine.then(step)
        candidate = before.folded(affine)
        if not candidate.is_finite():
            break
        best, kept = candidate, affine
        folded.append(follower.op)
        workspace.bypass(node, follower)
    if folded:
        best.write(workspace, node)
    return kept, folded


def foldable(workspace: Workspace, node: gs.Node, channels: int) -> list[gs.Node]:
    """The nodes behind a convolution of so many output channels that `Fold` would take into its weight and bias."""
    return [follower for follower, _ in _affine_followers(workspace, node, channels)]


def folded_output(workspace: Workspace, node: gs.Node, channels: int) -> gs.Tensor:
    """The tensor that a convolution would give if it were folded with what follows it."""
    folded = foldable(workspace, node, channels)
    return folded[-1].outputs[0] if folded else node.outputs[0]


def _affine_followers(workspace: Workspace, node: gs.Node, channels: int) -> Iterator[tuple[gs.Node, Affine]]:
    x = node.outputs[0]
    while (follower := only_consumer(workspace, x)) is not None:
        step = _affine_of(workspace, follower, x, channels)
        if step is None:
            return
        yield follower, step
        x = follower.outputs[0]


@dataclass(frozen=True)
class _Weights:
    """Weight [M, C/group, kh, kw] and bias [M] of a convolution."""

    weight: NDArray[Any]
    bias: NDArray[Any]

    @classmethod
    def read(cls, workspace: Workspace, node: gs.Node) -> _Weights:
        weight = workspace.constant(node.inputs[1])
        assert weight is not None
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return cls(weight, np.zeros(weight.shape[0], weight.dtype))
        bias = workspace.constant(node.inputs[2])
        assert bias is not None
        return cls(weight, bias)

    def folded(self, affine: Affine) -> _Weights:
        with np.errstate(over="ignore", invalid="ignore"):
            weight = self.weight.astype(np.float64) * affine.scale[:, None, None, None]
            bias = self.bias.astype(np.float64) * affine.scale + affine.shift
            return _Weights(weight.astype(self.weight.dtype), bias.astype(self.weight.dtype))

    def is_finite(self) -> bool:
        """False where float16 is too narrow for the folded values, or a normalization divides by zero."""
        return bool(np.isfinite(self.weight).all() and np.isfinite(self.bias).all())

    def write(self, workspace: Workspace, node: gs.Node) -> None:
        name = node.inputs[1].name
        bias = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2].name else f"{name}.bias"
        node.inputs = [
            node.inputs[0],
            workspace.add_constant(f"{name}.folded", self.weight),
            workspace.add_constant(f"{bias}.folded", self.bias),
        ]


def _affine_of(workspace: Workspace, node: gs.Node, x: gs.Tensor, channels: int) -> Affine | None:
    if not is_standard(node):
        return None
    if node.op == "BatchNormalization":
        return _batch_normalization(workspace, node, x, channels)
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is x
    if node.op == "Div" and not first:
        return None
    constant = _per_channel(workspace.constant(node.inputs[1 if first else 0]), channels)
    if constant is None or (node.op == "Div" and not constant.all()):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == "Add":
        return Affine(one, constant)
    if node.op == "Sub":
        return Affine(one, -constant) if first else Affine(-one, constant)
    return Affine(constant if node.op == "Mul" else 1 / constant, zero)


def _per_channel(values: NDArray[Any] | None, channels: int) -> NDArray[np.float64] | None:
    """A constant as [M], where broadcasting it against [N, M, H, W] gives one value per channel and keeps the shape."""
    if values is None or values.ndim > 4 or values.dtype.kind != "f":
        return None
    shape = (1,) * (4 - values.ndim) + values.shape
    if shape[0] != 1 or shape[1] not in (1, channels) or shape[2:] != (1, 1):
        return None
    return np.broadcast_to(values.astype(np.float64).reshape(shape[1]), (channels,)).copy()


def _batch_normalization(workspace: Workspace, node: gs.Node, x: gs.Tensor, channels: int) -> Affine | None:
    attributes = node.attrs
    # Below opset 14 there is no attribute for it: more outputs, read or not, mean statistics of the batch at hand.
    training = attributes.get("training_mode", 0) or any(output.name for output in node.outputs[1:])
    if training or attributes.get("spatial", 1) != 1 or node.inputs[0] is not x:
        return None
    values = [workspace.constant(t) for t in node.inputs[1:5]]
    if len(values) != 4 or any(v is None or v.shape != (channels,) for v in values):
        return None
    gamma, beta, mean, variance = (v.astype(np.float64) for v in values if v is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + float(attributes.get("epsilon", 1e-5)))
        return Affine(scale, beta - mean * scale)
