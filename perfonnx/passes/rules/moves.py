"""Slice, Pad and nearest Resize: rows stay what they are, the table says who reads them; Pad may add channels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.masks import Mask
from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Skip
from perfonnx.passes.positions import MOVES_POSITIONS, may_move_positions, moved_positions
from perfonnx.passes.rules.flatten import flatten
from perfonnx.passes.rules.rule import NO_WORK_SAVED, Match, Rule, is_map, map_size, skip

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering


PADS_ARE_INPUTS = 11
"""Operator set from which Pad is told them so."""

MORE_THAN_COPIES = "it does more than to copy positions, alike in all images and channels"


def _obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    if may_move_positions(workspace, node) or _channel_pads(workspace, node) is not None:
        return None
    return MORE_THAN_COPIES


def _channel_pads(workspace: Workspace, node: gs.Node) -> tuple[int, int] | None:
    """How many channels of zeros a node puts before and behind those of a map; None where it does anything else."""
    if node.op != "Pad" or node.attrs.get("mode", "constant") != "constant":
        return None
    given = [node.attrs.get("pads"), node.attrs.get("value"), None]
    for i, tensor in enumerate(node.inputs[1:]):
        if tensor.name:
            given[i] = workspace.constant(tensor)
            if given[i] is None:
                return None
    pads, value, axes = given
    if pads is None or (value is not None and np.any(np.asarray(value) != 0)):
        return None
    around = np.zeros((2, 4), np.int64)
    around[:, slice(None) if axes is None else axes] = np.reshape(pads, (2, -1))
    before, behind = (int(pad) for pad in around[:, 1])
    around[:, 1] = 0
    return None if around.any() or min(before, behind) < 0 else (before, behind)


def _pad_channels(lowering: Lowering, node: gs.Node, before: int, behind: int) -> None:
    rows, output = lowering.rows[node.inputs[0].name], node.outputs[0]
    at = np.flatnonzero(lowering.needed(output))
    numbers, source = np.unique(rows.source[at], return_inverse=True)
    tensor, channels = rows.tensor, rows.channels + before + behind
    copied, saved = numbers.size * rows.channels, (rows.count - numbers.size) * channels
    if copied < saved and numbers.size and numbers[0] >= 0:  # as a slice leaves them
        tensor = lowering.take(rows, numbers)
        taken = np.full_like(rows.source, -1)
        taken[at] = source.reshape(-1)
        rows = replace(rows, source=taken, count=numbers.size)
    pads = [0, 0, before, 0, 0, behind]
    attributes: dict[str, Any] = {"mode": "constant"}
    inputs: list[gs.Tensor] = [tensor]
    if lowering.workspace.opset < PADS_ARE_INPUTS:
        attributes["pads"] = pads
    else:
        inputs.append(lowering.table("shape", np.array(pads, np.int64)))
    result = replace(rows, channels=channels)
    lowering.emit_standard(node, inputs, attributes, output, result)


def _move_positions(lowering: Lowering, node: gs.Node) -> Match | Skip:
    if _ends(lowering.workspace, node):
        return flatten(lowering, node)
    pads = _channel_pads(lowering.workspace, node)
    positions = moved_positions(lowering.workspace, node) if pads is None else None
    if positions is None and pads is None:
        return skip(node, MORE_THAN_COPIES)
    if not lowering.is_worth_it(node):
        return skip(node, NO_WORK_SAVED)
    if pads is not None:
        _pad_channels(lowering, node, *pads)
        return Match("on rows")
    assert positions is not None
    rows, output = lowering.rows[node.inputs[0].name], node.outputs[0]
    source = np.where(positions < 0, -1, rows.source[positions]).astype(np.int32)
    _, height, width = lowering.sizes(output)
    lowering.let_stand(replace(rows, source=source, shape=(height, width)), output)
    return Match("a change of the table")


def _reads(workspace: Workspace, node: gs.Node, needed: Mask) -> Mask:
    if _channel_pads(workspace, node) is not None:
        return needed
    read = np.zeros(map_size(workspace, node.inputs[0]), bool)
    positions = moved_positions(workspace, node)
    if positions is None:
        return ~read
    moved = positions[needed.reshape(-1)]
    read.reshape(-1)[moved[moved >= 0]] = True
    return read


def _ends(workspace: Workspace, node: gs.Node) -> bool:
    return node.op == "Reshape" and not is_map(workspace, node.outputs[0])


MOVES = Rule(MOVES_POSITIONS, _move_positions, _obstacle, ends=_ends, reads=_reads)
