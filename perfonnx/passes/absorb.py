"""Absorb: the activation behind a rewritten layer moves into it; onnxruntime fuses nothing into custom operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.model.layers import activation_of, input_of, numpy_type, only_consumer, set_input
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import Activation, activation_from
from perfonnx.passes.base import Change, Pass, State


class Absorb(Pass):
    """Takes up one Relu, LeakyRelu, Clip or PRelu (by channel at most) per layer; other activations stay nodes."""

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Change the layers that were rewritten in this run."""
        changes = []
        for name, node in state.rewritten.items():
            if is_standard(node):
                continue
            follower = only_consumer(workspace, node.outputs[0])
            if follower is None or has_activation(workspace, node):
                continue
            activation = activation_of(workspace, follower)
            if activation is None or follower.inputs[0] is not node.outputs[0]:
                continue
            activate(workspace, node, activation)
            state.decisions[name].step.absorbed(workspace, node, activation)
            known = workspace.types.get(node.outputs[0].name)
            workspace.bypass(node, follower)
            if known is not None:
                workspace.types[node.outputs[0].name] = known
            changes.append(Change(name, f"absorbed {follower.op}"))
        return changes


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
        set_input(node, "slope", workspace.add_table("slope", np.array(activation.slopes, dtype)))
