"""Elementwise operators: applied to rows, or taken up by the layer that gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from perfonnx.model.layers import activation_of, slope_of
from perfonnx.model.workspace import Workspace
from perfonnx.passes.absorb import activate
from perfonnx.passes.base import Skip
from perfonnx.passes.rules.rule import NO_WORK_SAVED, POSITIONS_WITHOUT_ROWS, Match, Rule, same_positions, skip

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering

_ZERO_TO_ZERO = frozenset(
    "Relu LeakyRelu Tanh Abs Neg Elu Selu Celu Softsign Erf HardSwish Gelu Mish "  # noqa: SIM905
    "ThresholdedRelu Identity Dropout PRelu".split()
)
"""Those that keep zero: a fill value of zero passes through them."""


def _obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    if node.op == "Clip" and any(workspace.constant_proto(t) is None for t in node.inputs[1:] if t.name):
        return "its bounds are not constant"
    if node.op == "PRelu" and slope_of(workspace, node) is None:
        return "its slope is not constant, or differs from position to position"
    if node.op == "Dropout" and len([i for i in node.inputs if i.name]) != 1:
        return "it reads whether it is training"
    return None


def _elementwise(lowering: Lowering, node: gs.Node) -> Match | Skip:
    rows = lowering.rows[node.inputs[0].name]
    if rows.has_fill and not _keeps_zero(lowering.workspace, node):
        return skip(node, POSITIONS_WITHOUT_ROWS)
    output = node.outputs[0]
    convs, activation = lowering.open_convs(node.inputs[0], node), activation_of(lowering.workspace, node)
    if convs and activation is not None:
        for conv in convs:
            activate(lowering.workspace, conv, activation)
        lowering.let_stand(rows, output)
        return Match("the activation of the layer before it")
    if not lowering.is_worth_it(node):
        return skip(node, NO_WORK_SAVED)
    inputs = [rows.tensor, *node.inputs[1:]]
    if node.op == "PRelu":
        slope = slope_of(lowering.workspace, node)
        assert slope is not None
        inputs[1] = lowering.table("slope", slope)
    lowering.emit_standard(node, inputs, dict(node.attrs), output, rows)
    return Match("on rows")


def _keeps_zero(workspace: Workspace, node: gs.Node) -> bool:
    if node.op in _ZERO_TO_ZERO:
        return True
    if node.op != "Clip":
        return False
    bounds = [node.attrs.get("min"), node.attrs.get("max")]
    for i, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            values = workspace.constant(tensor)
            bounds[i] = None if values is None else float(values.reshape(()))
    return (bounds[0] is None or bounds[0] <= 0) and (bounds[1] is None or bounds[1] >= 0)


ELEMENTWISE = Rule(
    _ZERO_TO_ZERO | {"Sigmoid", "HardSigmoid", "Exp", "Softplus", "Clip"}, _elementwise, _obstacle, reads=same_positions
)
