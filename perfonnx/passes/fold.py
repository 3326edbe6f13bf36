"""Fold: batch normalization and per-channel arithmetic behind a chosen layer go into its weight and bias.

It runs before a layer is rewritten, so that a network means the same whether its exporter folded already or not: the
value of a skipped position is set after normalization in both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.graph import only_consumer
from perfonnx.io import Workspace
from perfonnx.passes.base import Change, Pass, PassResult, State


class _Affine(NamedTuple):
    """y = scale * x + shift, per channel: float64 [M] each."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


class Fold(Pass):
    """Folds what follows a chosen convolution and is affine per channel."""

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Change weight and bias of the chosen layers; shared weights are copied, never changed in place."""
        changes = []
        for name, decision in state.decisions.items():
            node = decision.site.node
            folded, affine = [], None
            while (follower := only_consumer(workspace, node.outputs[0])) is not None:
                step = _affine_of(workspace, follower, node.outputs[0], decision.site.w_shape[0])
                if step is None:
                    break
                folded.append(follower.op)
                affine = (
                    step
                    if affine is None
                    else _Affine(affine.scale * step.scale, affine.shift * step.scale + step.shift)
                )
                workspace.bypass(node, follower)
            if affine is not None:
                _apply(workspace, node, affine)
                changes.append(Change(name, f"folded {', '.join(folded)}"))
        return PassResult(bool(changes), changes)


def _apply(workspace: Workspace, node: gs.Node, affine: _Affine) -> None:
    w = workspace.constant(node.inputs[1])
    assert w is not None
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    b = workspace.constant(node.inputs[2]) if has_bias else np.zeros(w.shape[0])
    assert b is not None
    weight, bias = node.inputs[1].name, node.inputs[2].name if has_bias else f"{node.inputs[1].name}.bias"
    new_w = (w.astype(np.float64) * affine.scale[:, None, None, None]).astype(w.dtype)
    new_b = (b.astype(np.float64) * affine.scale + affine.shift).astype(w.dtype)
    node.inputs = [
        node.inputs[0],
        workspace.add_constant(f"{weight}.folded", new_w),
        workspace.add_constant(f"{bias}.folded", new_b),
    ]


def _affine_of(workspace: Workspace, node: gs.Node, x: gs.Tensor, channels: int) -> _Affine | None:
    if node.domain not in (None, "", "ai.onnx"):
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
        return _Affine(one, constant)
    if node.op == "Sub":
        return _Affine(one, -constant) if first else _Affine(-one, constant)
    return _Affine(constant if node.op == "Mul" else 1 / constant, zero)


def _per_channel(values: NDArray[Any] | None, channels: int) -> NDArray[np.float64] | None:
    """A constant as [M], where broadcasting it against [N, M, H, W] gives one value per channel and keeps the shape."""
    if values is None or values.ndim > 4 or values.dtype.kind != "f":
        return None
    shape = (1,) * (4 - values.ndim) + values.shape
    if shape[0] != 1 or shape[1] not in (1, channels) or shape[2:] != (1, 1):
        return None
    return np.broadcast_to(values.astype(np.float64).reshape(shape[1]), (channels,)).copy()


def _batch_normalization(workspace: Workspace, node: gs.Node, x: gs.Tensor, channels: int) -> _Affine | None:
    attributes = node.attrs
    unused = all(not list(o.outputs) for o in node.outputs[1:])
    if attributes.get("training_mode", 0) or attributes.get("spatial", 1) != 1 or not unused or node.inputs[0] is not x:
        return None
    values = [workspace.constant(t) for t in node.inputs[1:5]]
    if len(values) != 4 or any(v is None or v.shape != (channels,) for v in values):
        return None
    gamma, beta, mean, variance = (v.astype(np.float64) for v in values if v is not None)
    scale = gamma / np.sqrt(variance + float(attributes.get("epsilon", 1e-5)))
    return _Affine(scale, beta - mean * scale) if np.isfinite(scale).all() else None
