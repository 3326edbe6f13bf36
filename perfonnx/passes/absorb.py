"""Absorb: the activation behind a rewritten layer moves into it; onnxruntime fuses nothing into custom operators."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from perfonnx import ops
from perfonnx.graph import activation_of, only_consumer
from perfonnx.io import Workspace
from perfonnx.ops.common import Activation, activation_from
from perfonnx.passes.base import Change, Pass, PassResult, State
from perfonnx.passes.convert import add_table
from perfonnx.plan import BEFORE_NORMALIZATION


class Absorb(Pass):
    """Takes up one Relu, LeakyRelu, Clip or one-slope PRelu per layer; other activations stay nodes."""

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Change the layers that were rewritten in this run."""
        changes = []
        for name, node in state.rewritten.items():
            follower = only_consumer(workspace, node.outputs[0])
            if follower is None or not activation_from(node.attrs).is_identity:
                continue
            activation = activation_of(workspace, follower)
            if activation is None or follower.inputs[0] is not node.outputs[0]:
                continue
            node.attrs.update(activation.attributes())
            if node.op == ops.sparse_conv.NAME and state.decisions[name].plan.fill == BEFORE_NORMALIZATION:
                _activate_fill(workspace, node, activation)
            known = workspace.types.get(node.outputs[0].name)
            workspace.bypass(node, follower)
            if known is not None:
                workspace.types[node.outputs[0].name] = known
            changes.append(Change(name, f"absorbed {follower.op}"))
        return PassResult(bool(changes), changes)


def _activate_fill(workspace: Workspace, node: gs.Node, activation: Activation) -> None:
    """The operator writes `fill` after its activation: what training put before it has to pass it here."""
    fill = workspace.constant(node.inputs[ops.sparse_conv.FILL_INPUT])
    assert fill is not None
    node.inputs[ops.sparse_conv.FILL_INPUT] = add_table(workspace, "fill", activation(fill).astype(fill.dtype))
