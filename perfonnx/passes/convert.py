"""The three rewriting passes: a chosen Conv becomes PerforatedConv, SparseConv or RadiusAdaptiveConv."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx import ops
from perfonnx.model.layers import numpy_type
from perfonnx.model.proto import TensorType
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import Activation
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV
from perfonnx.ops.sparse_conv import SPARSE_CONV
from perfonnx.passes.base import Change, Decision, Pass, PassResult, State
from perfonnx.plan import BEFORE_NORMALIZATION
from perfonnx.sampling import interpolate

EXACT_ALPHA = 1.0
"""Gate bias of a new radius-adaptive layer: with a zero gate weight, alpha is 1 everywhere and the layer is dense."""


def add_table(workspace: Workspace, kind: str, values: NDArray[Any]) -> gs.Constant:
    """An initializer named after its content, so that layers with the same table share it."""
    digest = hashlib.sha256(repr((values.shape, values.dtype.str)).encode() + values.tobytes()).hexdigest()
    return workspace.add_constant(f"perfonnx.{kind}.{digest[:12]}", values)


class Convert(Pass):
    """Base of the passes that replace a Conv by one operator."""

    method: str
    op: str

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Replace the layers whose decision names this pass's method."""
        changes = []
        for name, decision in state.decisions.items():
            if decision.plan.method != self.method:
                continue
            inputs, attributes, what = self.describe(workspace, decision)
            state.rewritten[name] = self._replace(workspace, name, decision, inputs, attributes)
            changes.append(Change(name, what))
        return PassResult(bool(changes), changes)

    def describe(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], Mapping[str, Any], str]:
        """Inputs after the bias, attributes beside the common ones, and a few words for the report."""
        raise NotImplementedError

    def _replace(
        self,
        workspace: Workspace,
        name: str,
        decision: Decision,
        inputs: list[gs.Constant],
        attributes: Mapping[str, Any],
    ) -> gs.Node:
        layer = decision.layer
        old = layer.node
        assert layer.attributes is not None
        assert layer.output_shape is not None
        bias = old.inputs[2] if len(old.inputs) > 2 and old.inputs[2].name else None
        if bias is None:
            zeros = np.zeros(layer.w_shape[0], numpy_type(layer.elem_type))
            bias = add_table(workspace, "zeros", zeros)
        output = old.outputs[0]
        new = gs.Node(
            self.op,
            name,
            {**layer.attributes.attributes(), **Activation().attributes(), **attributes},
            [old.inputs[0], old.inputs[1], bias, *inputs],
            [],
            domain=ops.DOMAIN,
        )
        workspace.inherit(new, old)
        workspace.replace(old, new)
        new.outputs = [output]
        batch = layer.input_shape[0] if layer.input_shape else None
        workspace.types[output.name] = TensorType(layer.elem_type, (batch, layer.w_shape[0], *layer.output_shape))
        return new


class Perforate(Convert):
    """Perforated convolution: `mask`, and the table of `source` positions that the interpolation gives."""

    method = "perforate"
    op = PERFORATED_CONV.name

    def describe(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], Mapping[str, Any], str]:
        """See `Convert.describe`."""
        assert decision.mask is not None
        sampling = interpolate(decision.mask, decision.plan.interpolation)
        inputs = [
            add_table(workspace, "mask", sampling.mask),
            add_table(workspace, "source", sampling.source),
        ]
        if sampling.weight is not None:
            inputs.append(add_table(workspace, "weight", sampling.weight))
        what = f"{decision.plan.mask}, {sampling.interpolation}, {sampling.rate:.1%} skipped"
        return inputs, {"interpolation": sampling.interpolation}, what


class Sparsify(Convert):
    """Semi-structured activation sparsity: `mask`, and a `fill`: zeros, or what folding made of them."""

    method = "sparse"
    op = SPARSE_CONV.name

    def describe(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], Mapping[str, Any], str]:
        """See `Convert.describe`."""
        assert decision.mask is not None
        kind, fill = "zeros", np.zeros(decision.layer.w_shape[0])
        if decision.plan.fill == BEFORE_NORMALIZATION and decision.folded is not None:
            kind, fill = "fill", decision.folded.shift  # Absorb takes it through the activation
        values = fill.astype(numpy_type(decision.layer.elem_type))
        inputs = [add_table(workspace, "mask", decision.mask), add_table(workspace, kind, values)]
        return inputs, {}, f"{decision.plan.mask}, {1 - decision.mask.mean():.1%} masked"


class RadiusAdaptive(Convert):
    """Radius-adaptive convolution with a gate that is open everywhere: the dense layer, ready for a gate.

    It comes from `perfonnx.passes.gate`. A layer whose gate was trained has its centre tap from training too.
    """

    method = "radius-adaptive"
    op = RADIUS_ADAPTIVE_CONV.name

    def describe(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], Mapping[str, Any], str]:
        """See `Convert.describe`."""
        layer, gain = decision.layer, decision.plan.center_gain
        assert layer.attributes is not None
        if gain and not decision.plan.trained_gate:
            self._share_centre(workspace, layer.node, gain)
        dtype = numpy_type(layer.elem_type)
        channels = layer.w_shape[1] * layer.attributes.group
        inputs = [
            add_table(workspace, "gate", np.zeros((1, channels, 1, 1), dtype)),
            add_table(workspace, "gate_bias", np.full(1, EXACT_ALPHA, dtype)),
            add_table(workspace, "zeros", np.zeros(layer.w_shape[0], dtype)),
        ]
        is_open = decision.plan.open_share == 1 and not decision.plan.trained_gate
        what = f"centre gain {gain:g}, gate open everywhere" if is_open else "radius-adaptive"
        return inputs, {"center_gain": float(gain)}, what

    @staticmethod
    def _share_centre(workspace: Workspace, node: gs.Node, gain: float) -> None:
        """Divide the centre tap by 1 + gain, its factor where alpha is 1: the open gate then gives the dense layer."""
        weight = workspace.constant(node.inputs[1])
        assert weight is not None
        shared = weight.copy()
        shared[:, :, 1, 1] /= 1 + gain
        node.inputs[1] = workspace.add_constant(f"{node.inputs[1].name}.centred", shared)
