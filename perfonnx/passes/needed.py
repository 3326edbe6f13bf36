"""Needed positions: which positions of maps anybody reads; the others need not be computed."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.masks import Mask
from perfonnx.model.workspace import Workspace
from perfonnx.passes.rules import joins, obstacle, rule_of
from perfonnx.passes.rules.rule import map_size


def needed_positions(workspace: Workspace) -> dict[str, Mask]:
    """The positions that are read of maps, bool [H, W], by the names of tensors; maps that are read whole are left out.

    What a position holds that nobody reads does not matter, as long as it is a finite number: zero, where rows stand
    for a map.
    """
    whole = {output.name for output in workspace.graph.outputs} | workspace.captured
    needed: dict[str, Mask] = {}
    for node in (n for n in reversed(workspace.graph.nodes) if n.outputs):
        read = _read(workspace, node, None if node.outputs[0].name in whole else needed.get(node.outputs[0].name))
        local = 0 if read is None else len(node.inputs) if joins(node) else 1
        for tensor in node.inputs[:local]:
            assert read is not None
            needed[tensor.name] = needed[tensor.name] | read if tensor.name in needed else read
        whole |= {tensor.name for tensor in node.inputs[local:]}
    for mask in needed.values():
        mask[0, 0] |= not mask.any()  # rows that are none are no use to anybody
    return {name: mask for name, mask in needed.items() if name not in whole and not mask.all()}


def _read(workspace: Workspace, node: gs.Node, needed: Mask | None) -> Mask | None:
    """What a node reads of its maps where these positions of its result are needed (None: all); None: all of it."""
    rule = rule_of(node)
    if rule is None or rule.reads is None or obstacle(workspace, node) is not None:
        return None
    whole = np.ones(map_size(workspace, node.outputs[0]), bool)
    return rule.reads(workspace, node, whole if needed is None else needed)
