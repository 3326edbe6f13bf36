"""Sampled layers: they start regions of rows, and read those of others through a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx import ops
from perfonnx.masks import Mask
from perfonnx.model.layers import constant_input, input_of, numpy_type, set_input
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import activation_from, conv_attributes
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV
from perfonnx.ops.sampled_conv import SAMPLED_CONV
from perfonnx.ops.sampled_radius_adaptive_conv import SAMPLED_RADIUS_ADAPTIVE_CONV
from perfonnx.ops.sparse_conv import SPARSE_CONV
from perfonnx.passes.base import Skip
from perfonnx.passes.rules.lattices import Reading, on_own_grid, used_taps
from perfonnx.passes.rules.rule import Match, Rows, Rule, Table, map_size, numbered, skip, window_positions

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering

ON_ROWS = Match("on rows")
ALONE = "no layer beside it works on rows: turning the map there and back is what its own kernel does"


def _mask_obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    """Not interpolation by several sites, since the activation follows it there, and no fill value other than zero.

    Nor tables that fit no map, which the kernel refuses by name.
    """
    mask, output = constant_input(workspace, node, "mask"), workspace.types[node.outputs[0].name].shape
    if mask is None:
        return "its mask is not constant"
    if output is None or mask.size == 0 or mask.shape != tuple(output[2:]):
        return "its mask has another size than its result"
    if node.op == SPARSE_CONV.name:
        if input_of(node, "fill") is None:
            return None
        fill = constant_input(workspace, node, "fill")
        return None if fill is None or not fill.any() else "its masked positions hold values other than zero"
    if input_of(node, "weight") is not None:
        return "it interpolates between several sites before its activation"
    source = constant_input(workspace, node, "source")
    if source is None or source.ndim != 2 or source.shape[0] != mask.size:
        return "its table of sources does not fit its mask"
    if source.shape[1] != 1:
        return "it interpolates between several sites before its activation"
    if source.min() < -1 or source.max() >= mask.size or not mask.reshape(-1)[source[source >= 0]].all():
        return "its table of sources names positions that are no sites"
    if (source >= 0).all() or activation_from(node.attrs)(np.zeros(1))[0] == 0:
        return None
    return "its activation makes something else of the zeros that it fills with"


def _gate_obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    gate = input_of(node, "W_alpha")
    return None if gate is not None and workspace.constant_proto(gate) is not None else "its gate is not constant"


def is_pointwise(node: gs.Node) -> bool:
    """True for a canonical operator each of whose outputs reads the input at its own position."""
    attributes = node.attrs
    return set(attributes["kernel_shape"]) == set(attributes["strides"]) == {1} and not any(attributes["pads"])


def _distinct(source: Table, needed: Mask) -> tuple[Table, Table]:
    """A position of each row that `source` names, in the order of the rows, and the number of each position's row.

    A pointwise function of a map need be computed once per row: positions filled from one row get one result.
    """
    at = np.flatnonzero(needed)
    _, first, row = np.unique(source[at], return_index=True, return_inverse=True)
    numbers = np.full(source.size, -1, np.int32)
    numbers[at] = row.reshape(-1)
    return at[first].astype(np.int32), numbers


def _shown(workspace: Workspace, node: gs.Node) -> Table:
    """The site that each position of a layer's result shows, int32 [H*W], -1: zeros."""
    if node.op == PERFORATED_CONV.name:
        source = constant_input(workspace, node, "source")
        assert source is not None
        return source[:, 0]
    mask = constant_input(workspace, node, "mask")
    assert mask is not None
    return np.where(mask.reshape(-1), np.arange(mask.size), -1).astype(np.int32)


def _read_sites(shown: Table, needed: Mask) -> Mask:
    """The sites, bool [H, W], that are shown where it is needed."""
    read = np.zeros_like(needed)
    at = shown[needed.reshape(-1)]
    read.reshape(-1)[at[at >= 0]] = True
    return read


def _reads(workspace: Workspace, node: gs.Node, needed: Mask) -> Mask:
    """What the sites read by taps whose weights are not all zero."""
    shape, weight = map_size(workspace, node.inputs[0]), workspace.constant(node.inputs[1])
    if weight is None:
        return np.ones(shape, bool)
    a = conv_attributes(weight, node.attrs)
    taps = used_taps(weight) * np.array(a.dilations) - np.array(a.pads[:2])
    return window_positions(_read_sites(_shown(workspace, node), needed), a.strides, taps, shape)


def _sampled(lowering: Lowering, node: gs.Node) -> Match | Skip:
    x, y = node.inputs[0], node.outputs[0]
    if x.name not in lowering.rows and not lowering.read_as_rows(y):
        return skip(node, ALONE)
    rows_in = lowering.rows_of(x)
    mask = constant_input(lowering.workspace, node, "mask")
    assert mask is not None
    needed = lowering.needed(y)
    if mask.all() and is_pointwise(node):
        sites, source = _distinct(rows_in.source, needed)
    else:
        shown = _shown(lowering.workspace, node)
        read = _read_sites(shown, needed)
        if not read.any():  # all that is read of it is zero; rows that are none are no use to anybody
            read.reshape(-1)[np.flatnonzero(mask)[:1]] = True
        sites, rank = np.flatnonzero(read).astype(np.int32), numbered(read)
        source = np.where(shown < 0, -1, rank[shown]).astype(np.int32)
    channels = lowering.sizes(y)[0]
    zeros: NDArray[np.float32] = np.zeros((1, 1, channels), numpy_type(rows_in.elem_type))
    taken = {attribute.name for attribute in SAMPLED_CONV.attributes}
    attributes = {name: value for name, value in node.attrs.items() if name in taken}
    weight, in_source, in_shape, read_at = node.inputs[1], rows_in.source, rows_in.shape, sites
    found = _on_own_grid(lowering, node, rows_in, sites)
    if found is not None:
        weight = lowering.workspace.add_constant(f"{weight.name}.taps", found.weight)
        attributes |= found.attributes.attributes()
        in_source, in_shape, read_at = found.source, found.shape, found.sites
    new = lowering.emit(
        SAMPLED_CONV.name,
        node.name,
        [
            rows_in.tensor,
            weight,
            node.inputs[2],
            lowering.table("index", in_source),
            lowering.table("shape", np.array(in_shape, np.int64)),
            lowering.table("index", read_at),
            lowering.table("zeros", zeros),
            lowering.table("index", np.zeros(1, np.int32)),
        ],
        attributes,
        y,
        Rows(y, int(sites.size), source, mask.shape, channels, rows_in.elem_type, rows_in.batch),
    )
    lowering.convs[new.outputs[0].name] = [new]
    _stands_for(lowering, new, node)
    return ON_ROWS


def _on_own_grid(lowering: Lowering, node: gs.Node, rows: Rows, sites: Table) -> Reading | None:
    weight = lowering.workspace.constant(node.inputs[1])
    if weight is None:
        return None
    return on_own_grid(Reading(weight, conv_attributes(weight, node.attrs), rows.source, rows.shape, sites))


def _radius_adaptive(lowering: Lowering, node: gs.Node) -> Match | Skip:
    """Every position is a site and gets a row, so that rows save nothing to those that only read the map."""
    x, y = node.inputs[0], node.outputs[0]
    if x.name not in lowering.rows and not lowering.goes_on(y):
        return skip(node, ALONE)
    rows_in = lowering.rows_of(x)
    channels, height, width = lowering.sizes(y)
    positions = np.arange(height * width, dtype=np.int32)

    def written_out(name: str, size: int) -> gs.Tensor:
        given = input_of(node, name)
        return lowering.table("zeros", np.zeros(size, numpy_type(rows_in.elem_type))) if given is None else given

    inputs = [
        rows_in.tensor,
        node.inputs[1],
        written_out("B", channels),
        node.inputs[3],
        written_out("B_alpha", 1),
        written_out("B_ring", channels),
        lowering.table("index", rows_in.source),
        lowering.table("shape", np.array(rows_in.shape, np.int64)),
        lowering.table("index", positions),
    ]
    result = Rows(y, positions.size, positions, (height, width), channels, rows_in.elem_type, rows_in.batch)
    op = SAMPLED_RADIUS_ADAPTIVE_CONV.name
    _stands_for(lowering, lowering.emit(op, node.name, inputs, dict(node.attrs), y, result), node)
    return ON_ROWS


def _stands_for(lowering: Lowering, new: gs.Node, old: gs.Node) -> None:
    """Record that one of our layers is on rows now, with its slopes."""
    slope = input_of(old, "slope")
    if slope is not None:
        set_input(new, "slope", slope)
    lowering.workspace.inherit(new, old)
    if old.name in lowering.state.rewritten:
        lowering.state.rewritten[old.name] = new


SAMPLED = Rule([PERFORATED_CONV.name, SPARSE_CONV.name], _sampled, _mask_obstacle, domain=ops.DOMAIN, reads=_reads)
RADIUS_ADAPTIVE = Rule([RADIUS_ADAPTIVE_CONV.name], _radius_adaptive, _gate_obstacle, domain=ops.DOMAIN)
