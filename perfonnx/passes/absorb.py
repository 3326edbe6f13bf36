"""Absorb: the activation behind a rewritten layer moves into it; onnxruntime fuses nothing into custom operators."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.model.layers import activation_of, constant_input, input_of, numpy_type, only_consumer, set_input
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import Activation, activation_from
from perfonnx.ops.sparse_conv import SPARSE_CONV
from perfonnx.passes.base import Change, Pass, PassResult, State
from perfonnx.passes.convert import add_table
from perfonnx.plan import BEFORE_NORMALIZATION


class Absorb(Pass):
    """Takes up one Relu, LeakyRelu, Clip or PRelu (by channel at most) per layer; other activations stay nodes."""

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Change the layers that were rewritten in this run."""
        changes = []
        for name, node in state.rewritten.items():
            follower = only_consumer(workspace, node.outputs[0])
            if follower is None or has_activation(workspace, node):
                continue
            activation = activation_of(workspace, follower)
            if activation is None or follower.inputs[0] is not node.outputs[0]:
                continue
            activate(workspace, node, activation)
            if node.op == SPARSE_CONV.name and state.decisions[name].plan.fill == BEFORE_NORMALIZATION:
                _activate_fill(workspace, node, activation)
            known = workspace.types.get(node.outputs[0].name)
            workspace.bypass(node, follower)
            if known is not None:
                workspace.types[node.outputs[0].name] = known
            changes.append(Change(name, f"absorbed {follower.op}"))
        return PassResult(bool(changes), changes)


def has_activation(workspace: Workspace, node: gs.Node) -> bool:
    """Whether a convolution of ours has one already."""
    slope = input_of(node, "slope")
    if slope is not None:
        values = workspace.constant(slope)
        if values is None or (values != 1).any():
            return True
    return not activation_from(node.attrs).is_identity


def activate(workspace: Workspace, node: gs.Node, activation: Activation) -> None:
    """Give a convolution of ours, which has none, an activation."""
    node.attrs.update(activation.attributes())
    if activation.slopes:
        dtype = numpy_type(workspace.types[node.inputs[1].name].elem_type)
        set_input(node, "slope", add_table(workspace, "slope", np.array(activation.slopes, dtype)))


def _activate_fill(workspace: Workspace, node: gs.Node, activation: Activation) -> None:
    """The operator writes `fill` after its activation: what training put before it has to pass it here."""
    fill = constant_input(workspace, node, "fill")
    assert fill is not None
    set_input(node, "fill", add_table(workspace, "fill", activation(fill).astype(fill.dtype)))
