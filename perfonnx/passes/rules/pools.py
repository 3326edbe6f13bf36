"""Pools: they read rows through the table, and give every pooled position a row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.masks import Mask, PoolWindow
from perfonnx.model.layers import pool_window, table_obstacle
from perfonnx.model.workspace import Workspace
from perfonnx.ops.sampled_pool import SAMPLED_AVERAGE_POOL, SAMPLED_MAX_POOL
from perfonnx.passes.base import Skip
from perfonnx.passes.rules.rule import NO_WORK_SAVED, Match, Rows, Rule, map_size, numbered, skip, window_positions

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering


_POOLS = {"AveragePool": SAMPLED_AVERAGE_POOL.name, "MaxPool": SAMPLED_MAX_POOL.name}
_GLOBAL_POOLS = {"GlobalAveragePool": SAMPLED_AVERAGE_POOL.name, "GlobalMaxPool": SAMPLED_MAX_POOL.name}


def _obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    if node.op in _GLOBAL_POOLS:
        return None
    window = _window_on_rows(workspace, node)
    if window is None:
        return "versions of onnxruntime differ in what its window is, or it cannot be read"
    if int(node.attrs.get("storage_order", 0)):
        return "it counts its positions by columns"
    if window.dilations != (1, 1) and (node.op == "AveragePool" or workspace.opset < 10):
        return "its window is dilated"
    before, after = workspace.types[node.inputs[0].name].shape, workspace.types[node.outputs[0].name].shape
    assert before is not None
    assert after is not None
    height, width = (d for d in before[2:] if isinstance(d, int))
    output = window.output_shape((height, width))
    if output != after[2:]:
        return "its result has another size than its window gives"
    return table_obstacle(math.prod(output), window.kernel)


def _window_on_rows(workspace: Workspace, node: gs.Node) -> PoolWindow | None:
    """The window of a pooling node whose map has a known size, without `ceil_mode`; None where it is not certain.

    With `count_include_pad`, versions of onnxruntime differ in whether they count what `ceil_mode` reaches behind the
    padding, and from opset 19 on in how they count pads of two sizes. None of them takes pads as large as the kernel.
    """
    window, known = pool_window(workspace, node), workspace.types[node.inputs[0].name].shape
    if window is None or known is None:
        return None
    height, width = (d for d in known[2:] if isinstance(d, int))
    rounded = window.rounded_down((height, width))
    if node.op == "AveragePool" and node.attrs.get("count_include_pad", 0):
        unequal = window.pads[:2] != window.pads[2:]
        if node.attrs.get("ceil_mode", 0) or (unequal and workspace.opset >= 19):
            return None
    return rounded if all(pad < k for pad, k in zip(rounded.pads, rounded.kernel * 2, strict=True)) else None


def _pool(lowering: Lowering, node: gs.Node) -> Match | Skip:
    rows, output = lowering.rows[node.inputs[0].name], node.outputs[0]
    if rows.count >= rows.source.size and node.op not in _GLOBAL_POOLS and not lowering.goes_on(output):
        return skip(node, NO_WORK_SAVED)  # a dense map: onnxruntime's own pool is as good
    _, *shape = lowering.sizes(output)
    if node.op in _GLOBAL_POOLS:
        op, window = _GLOBAL_POOLS[node.op], PoolWindow(rows.shape)
    else:
        found = _window_on_rows(lowering.workspace, node)
        assert found is not None
        op, window = _POOLS[node.op], found
    attributes: dict[str, Any] = {
        "kernel_shape": list(window.kernel),
        "strides": list(window.strides),
        "pads": list(window.pads),
        "ceil_mode": 0,
    }
    if op == SAMPLED_AVERAGE_POOL.name:
        attributes["count_include_pad"] = int(node.attrs.get("count_include_pad", 0))
    else:
        attributes["dilations"] = list(window.dilations)
    needed = lowering.needed(output)
    positions = np.flatnonzero(needed).astype(np.int32)
    inputs = [
        rows.tensor,
        lowering.table("index", rows.source),
        lowering.table("shape", np.array(rows.shape, np.int64)),
        lowering.table("index", positions),
    ]
    source = numbered(needed)
    result = Rows(output, positions.size, source, (shape[0], shape[1]), rows.channels, rows.elem_type, rows.batch)
    lowering.emit(op, node.name, inputs, attributes, output, result)
    return Match("on rows")


def _reads(workspace: Workspace, node: gs.Node, needed: Mask) -> Mask:
    shape = map_size(workspace, node.inputs[0])
    window = None if node.op in _GLOBAL_POOLS else _window_on_rows(workspace, node)
    if window is None:
        return np.ones(shape, bool)
    taps = np.argwhere(np.ones(window.kernel, bool)) * window.dilations - window.pads[:2]
    return window_positions(needed, window.strides, taps, shape)


POOLS = Rule([*_POOLS, *_GLOBAL_POOLS], _pool, _obstacle, keeps_rows=False, reads=_reads)
