"""Slice, Pad and nearest Resize: rows stay what they are, the table says who reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Skip
from perfonnx.passes.positions import MOVES_POSITIONS, may_move_positions, moved_positions
from perfonnx.passes.rules.rule import Match, Rule, skip

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering


MORE_THAN_COPIES = "it does more than to copy positions, alike in all images and channels"


def _obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    if may_move_positions(workspace, node):
        return None
    return MORE_THAN_COPIES


def _move_positions(lowering: Lowering, node: gs.Node) -> Match | Skip:
    positions = moved_positions(lowering.workspace, node)
    if positions is None:
        return skip(node, MORE_THAN_COPIES)
    if not lowering.goes_on(node.outputs[0]):
        return skip(node, "no sampled layer follows that would read its rows")
    rows, output = lowering.rows[node.inputs[0].name], node.outputs[0]
    source = np.where(positions < 0, -1, rows.source[positions]).astype(np.int32)
    _, height, width = lowering.sizes(output)
    lowering.let_stand(replace(rows, source=source, shape=(height, width)), output)
    return Match("a change of the table")


MOVES = Rule(MOVES_POSITIONS, _move_positions, _obstacle)
