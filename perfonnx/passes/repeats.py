"""Repeats: which positions of a map show one row, as far as that is known before anything is lowered.

The engine adds up the weights of taps that read the same row, class by class of sites (`merged.cpp`); a layer behind
such a map is priced by the taps that are left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.masks import Mask
from perfonnx.methods import Decision
from perfonnx.model.layers import Layer
from perfonnx.model.workspace import Workspace
from perfonnx.passes.positions import MOVES_POSITIONS
from perfonnx.passes.regions import Regions
from perfonnx.passes.rules import rule_of
from perfonnx.passes.rules.rule import Table

MOST_TAPS = 4
"""All classes together have at most so many times the taps of the layer, as the engine chooses them."""
MOST_MERGED = 127
"""Kernels of more taps are not merged."""


def sources_of(
    members: Mapping[int, gs.Node], decisions: Mapping[int, Decision], pointwise: set[int], flow: Regions
) -> dict[str, Table]:
    """The row that each position shows, of the maps in which positions are known to share some.

    Args:
        members: The nodes on rows by id, in their order.
        decisions: What becomes of layers, by the id of their nodes.
        pointwise: ids of the layers of which each output reads the input at its own position.
        flow: Where rows may flow.

    Returns:
        Tables [H*W] by the names of tensors, -1: zeros.
    """
    found: dict[str, Table] = {}
    for i, node in members.items():
        decision, rule = decisions.get(i), rule_of(node)
        before = [found.get(name) for name in flow.maps(node)]
        source = before[0]
        if decision is not None and not (i in pointwise and decision.share == 1):
            source = decision.source
        elif node.op in MOVES_POSITIONS:
            source = _resized(flow.workspace, node, source)
        elif i in pointwise | flow.folded or (rule is not None and rule.keeps_rows):
            source = source if all(_same(source, other) for other in before[1:]) else None
        else:
            source = None
        if source is not None:
            found[node.outputs[0].name] = source
    return found


def _same(a: Table | None, b: Table | None) -> bool:
    return a is not None and b is not None and np.array_equal(a, b)


def _resized(workspace: Workspace, node: gs.Node, source: Table | None) -> Table | None:
    """What a map becomes that is repeated by whole factors, as nearest resizes mostly do."""
    before, after = (workspace.types[tensor.name].shape for tensor in (node.inputs[0], node.outputs[0]))
    if node.op not in ("Resize", "Upsample") or before is None or after is None:
        return None
    height, width, tall, wide = (int(d) for d in (*before[2:], *after[2:]))  # type: ignore[arg-type]
    if tall % height or wide % width:
        return None
    y, x = np.indices((tall, wide))
    positions = (y // (tall // height) * width + x // (wide // width)).reshape(-1)
    return positions.astype(np.int32) if source is None else source[positions]


def taps_left(layer: Layer, mask: Mask | None, source: Table) -> float:
    """The share of a layer's taps that is left where those of a site that read one row are merged.

    Args:
        layer: With its attributes and sizes.
        mask: [H, W] of its sites; None: all.
        source: The row that each position of its input shows, -1: zeros.
    """
    a = layer.attributes
    assert a is not None
    assert layer.input_shape is not None
    assert layer.output_shape is not None
    height, width = (int(d) for d in layer.input_shape[2:])  # type: ignore[arg-type]
    taps = math.prod(a.kernel_shape)
    ys, xs = np.nonzero(np.ones(layer.output_shape, bool) if mask is None else mask)
    if taps > MOST_MERGED or not ys.size or source.size != height * width:
        return 1.0
    rows = np.full((taps, ys.size), -1, np.int32)
    for tap, (i, j) in enumerate(np.ndindex(a.kernel_shape)):
        y = ys * a.strides[0] - a.pads[0] + i * a.dilations[0]
        x = xs * a.strides[1] - a.pads[1] + j * a.dilations[1]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        rows[tap, inside] = source[y[inside] * width + x[inside]]
    # A site's class, as a number made of the first tap that reads what each tap reads.
    kinds, left = np.zeros(ys.size, np.uint64), np.zeros(ys.size, np.int64)
    for tap in range(taps):
        first = np.where(rows[tap] < 0, taps, (rows[: tap + 1] == rows[tap]).argmax(axis=0))
        left += first == tap
        kinds = kinds * np.uint64(1_000_003) + first.astype(np.uint64)
    _, where, counts = np.unique(kinds, return_index=True, return_counts=True)
    gains = counts * (taps - left[where])
    order = np.argsort(-gains, kind="stable")
    merged = np.cumsum(left[where][order]) <= (MOST_TAPS - 1) * taps  # beside plain weights for all others
    return 1.0 - float(gains[order][merged].sum()) / (taps * ys.size)
