"""Add, Sum, Mul and Concat: on the common refinement of the samplings, which is exact.

A sum of maps of which each holds zeros where another has rows has all their rows, one behind the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.model.layers import set_input
from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Skip
from perfonnx.passes.rules.rule import NO_MAP, NO_WORK_SAVED, Match, Rows, Rule, Table, is_map, same_positions, skip

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering


def _obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    if node.op == "Concat" and node.attrs.get("axis", 1) not in (1, -3):
        return "it joins along another axis than the channels"
    if len(node.inputs) < 2:
        return "it joins nothing"
    if not all(is_map(workspace, tensor) for tensor in node.inputs):
        return NO_MAP
    sizes = [workspace.types[tensor.name].shape or () for tensor in (*node.inputs, node.outputs[0])]
    alike = {size[2:] if node.op == "Concat" else size[1:] for size in sizes}
    return None if len(alike) == 1 else "its inputs have different sizes"


def _rows_beside(own: Rows, other: Rows) -> Table | None:
    """For each row the other's row, -1 for zeros, where that is one row for all positions a row stands for."""
    if own.has_fill:
        return np.arange(own.count, dtype=np.int32) if own.same_sampling(other) else None
    beside = np.full(own.count, -1, np.int32)
    at = slice(None) if own.needed is None else own.needed.reshape(-1)
    beside[own.source[at]] = other.source[at]
    return beside if np.array_equal(beside[own.source[at]], other.source[at]) else None


def _join(lowering: Lowering, node: gs.Node) -> Match | Skip:
    output = node.outputs[0]
    needed = lowering.needed(output)
    known = [None if t.name not in lowering.rows else lowering.rows[t.name].at(needed) for t in node.inputs]
    if not all(known) and not lowering.goes_on(output):
        return skip(node, "not all that it reads comes as rows, and no sampled layer follows that would read its rows")
    if node.op in ("Add", "Sum") and _are_disjoint(known):
        return _one_behind_the_other(lowering, node, known)
    if any(r is not None and r.has_fill for r in known) and not _all_alike(known):
        return skip(node, "positions without a row hold zeros in one of its inputs and something else in another")
    parts = [lowering.rows_of(t).at(needed) for t in node.inputs]
    first = parts[0]
    source: NDArray[Any]
    alike = all(part.same_sampling(first) for part in parts)
    if node.op in ("Add", "Sum") and len(parts) == 2 and _add_into_conv(lowering, node, parts):
        return Match("added by the layer before it")
    if alike:
        source, count, tensors = first.source, first.count, [part.tensor for part in parts]
    else:
        at = np.flatnonzero(needed)
        keys, numbers = np.unique(np.stack([p.source[at] for p in parts], axis=1), axis=0, return_inverse=True)
        source, count = np.full(needed.size, -1, np.int32), len(keys)
        source[at] = numbers.reshape(-1)
        if count >= first.source.size and not lowering.goes_on(output):
            return skip(node, NO_WORK_SAVED)
        tensors = [lowering.take(part, keys[:, i]) for i, part in enumerate(parts)]
    attributes = dict(node.attrs)
    channels = first.channels
    if node.op == "Concat":
        attributes["axis"] = 2
        channels = sum(part.channels for part in parts)
    known_output = lowering.workspace.types[output.name].shape
    assert known_output is not None
    result = Rows(output, count, source, first.shape, channels, first.elem_type, known_output[0])
    lowering.emit_standard(node, tensors, attributes, output, result)
    return Match("on rows")


def _add_into_conv(lowering: Lowering, node: gs.Node, parts: list[Rows]) -> bool:
    """Let one operand's convolution add the other operand before its activation.

    Each of its rows has to stand for positions that have one row in the other operand too.
    """
    if not _one_batch(parts[0], parts[1]):
        return False  # the convolution's result has the batch of its own input, the sum may have the other's
    for own, other in ((1, 0), (0, 1)):
        convs = lowering.open_convs(node.inputs[own], node)
        names = {conv.name for conv in convs}
        if not convs or names & lowering.adding or node.inputs[0] is node.inputs[1]:
            continue
        z_source = _rows_beside(parts[own], parts[other])
        if z_source is None:
            continue
        lowering.adding |= names
        first = 0
        for conv in convs:
            count = _count(lowering, conv)
            set_input(conv, "Z", parts[other].tensor)
            set_input(conv, "z_source", lowering.table("index", z_source[first : first + count]))
            first += count
        lowering.move_behind(parts[own].tensor)
        lowering.let_stand(parts[own], node.outputs[0])
        return True
    return False


def _count(lowering: Lowering, conv: gs.Node) -> int:
    """How many rows it gives."""
    shape = lowering.workspace.types[conv.outputs[0].name].shape
    assert shape is not None
    return int(shape[1])  # type: ignore[arg-type]


def _are_disjoint(known: list[Rows | None]) -> TypeGuard[list[Rows]]:
    """Whether every position has a row in one of several maps at most, and holds zeros in the others."""
    parts = [rows for rows in known if rows is not None]
    if len(parts) < len(known) or not all(_one_batch(part, parts[0]) for part in parts):
        return False
    return bool((np.stack([part.source >= 0 for part in parts]).sum(axis=0) <= 1).all())


def _one_behind_the_other(lowering: Lowering, node: gs.Node, parts: list[Rows]) -> Match:
    """A sum of disjoint maps; what follows is taken up by all layers that give them, where nobody else reads these."""
    convs = [lowering.open_convs(tensor, node) for tensor in node.inputs]
    source, count = np.full_like(parts[0].source, -1), 0
    tensors: list[gs.Tensor] = []
    for part, some in zip(parts, convs, strict=True):
        source = np.where(part.source >= 0, part.source + count, source)
        count += part.count
        tensors += [conv.outputs[0] for conv in some] or [part.tensor]
        if len(some) > 1:  # nobody else reads the sum that it is
            lowering.drop(part.tensor)
    result = replace(parts[0], source=source, count=count)
    output = node.outputs[0]
    lowering.emit_standard(node, tensors, {"axis": 1}, output, result, "Concat")
    if all(convs):
        lowering.convs[lowering.rows[output.name].tensor.name] = [conv for some in convs for conv in some]
    return Match("one behind the other")


def _one_batch(a: Rows, b: Rows) -> bool:
    """Whether neither of two batches can be 1 where the other is more."""
    return a.batch is not None and a.batch == b.batch


def _all_alike(known: list[Rows | None]) -> bool:
    first = known[0]
    return first is not None and all(r is not None and r.same_sampling(first) for r in known)


JOINS = Rule(["Add", "Sum", "Mul", "Concat"], _join, _obstacle, joins=True, reads=same_positions)
