"""The lowering rules: each is local and exact, a file or an entry of one. A new one is listed in `RULES`."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from perfonnx import ops
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.passes.rules.elementwise import ELEMENTWISE
from perfonnx.passes.rules.flatten import FLATTEN
from perfonnx.passes.rules.joins import JOINS
from perfonnx.passes.rules.layers import RADIUS_ADAPTIVE, SAMPLED
from perfonnx.passes.rules.moves import MOVES
from perfonnx.passes.rules.normalizations import INSTANCE_NORMALIZATION, LRN
from perfonnx.passes.rules.pools import POOLS
from perfonnx.passes.rules.rule import NO_MAP, Rule, is_map
from perfonnx.passes.rules.upsampling import CONV_TRANSPOSE, DEPTH_TO_SPACE

RULES = (
    SAMPLED,
    RADIUS_ADAPTIVE,
    ELEMENTWISE,
    JOINS,
    MOVES,
    DEPTH_TO_SPACE,
    CONV_TRANSPOSE,
    LRN,
    INSTANCE_NORMALIZATION,
    POOLS,
    FLATTEN,
)

_BY_OPERATOR = {(rule.domain, op): rule for rule in RULES for op in rule.takes}


def rule_of(node: gs.Node) -> Rule | None:
    """The rule that takes nodes of this operator."""
    return _BY_OPERATOR.get(("" if is_standard(node) else node.domain, node.op))


def joins(node: gs.Node) -> bool:
    """Whether all inputs of a node are maps that it joins."""
    rule = rule_of(node)
    return rule is not None and rule.joins


def obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    """Why a node cannot take rows and give rows, whatever rows reach it; None where it can."""
    rule = rule_of(node)
    if rule is None or rule.ends(workspace, node):
        return f"{node.op} has no form on rows"
    read = [] if rule.joins else node.inputs[:1]
    if not node.inputs or not all(is_map(workspace, tensor) for tensor in (node.outputs[0], *read)):
        return NO_MAP
    if any(_is_read(workspace, output) for output in node.outputs[1:]):
        return "more than its first output is read"
    return rule.obstacle(workspace, node)


def is_sampled(workspace: Workspace, node: gs.Node) -> bool:
    """True for a canonical operator that has a form on rows."""
    return node.domain == ops.DOMAIN and obstacle(workspace, node) is None


def works_on_rows(workspace: Workspace, node: gs.Node) -> bool:
    """True for a standard operator, other than Conv, that the rules take from rows to rows."""
    return is_standard(node) and obstacle(workspace, node) is None


def _is_read(workspace: Workspace, tensor: gs.Tensor) -> bool:
    outputs = {output.name for output in workspace.graph.outputs}
    return bool(tensor.outputs) or tensor.name in outputs | workspace.captured
