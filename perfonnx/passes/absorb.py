"""Absorb: the activation behind a rewritten layer moves into it; onnxruntime fuses nothing into custom operators."""

from __future__ import annotations

from perfonnx.graph import activation_of, only_consumer
from perfonnx.io import Workspace
from perfonnx.ops.common import activation_from
from perfonnx.passes.base import Change, Pass, PassResult, State


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
            known = workspace.types.get(node.outputs[0].name)
            workspace.bypass(node, follower)
            if known is not None:
                workspace.types[node.outputs[0].name] = known
            changes.append(Change(name, f"absorbed {follower.op}"))
        return PassResult(bool(changes), changes)
