"""Means: an average over a whole map of which a lattice is computed is one over the sites.

What skipped positions show is copied from sites, of which some would count more than others; and for it all positions
would be needed of the maps in front, residual streams that hold more than the sites among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.masks import Mask, PoolWindow
from perfonnx.methods.sublattice import KEEPS_POSITIONS
from perfonnx.model.layers import pool_window, unique_name
from perfonnx.model.proto import TensorType, is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Change, Pass, State
from perfonnx.passes.rules.rule import is_map, map_size

GLOBAL = "GlobalAveragePool"

Positions = NDArray[np.int64]


class Means(Pass):
    """Selects the sites in front of averages, which are `GlobalAveragePool` then, whatever they were."""

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Change the averages of maps that live on lattices."""
        changes = []
        for node, sites in list(averaged_sites(workspace, state)):
            _select(workspace, node, sites)
            changes.append(Change(node.name, f"the mean of {sites.size} sites"))
        return changes


def averaged_sites(workspace: Workspace, state: State) -> Iterator[tuple[gs.Node, Positions]]:
    """The averages over whole maps that live on lattices of layers which read sites alone, and the sites' positions.

    The layers have been replaced.
    """
    masks = {
        state.rewritten[name].outputs[0].name: d.mask
        for name, d in state.decisions.items()
        if d.mask is not None and (d.step.reads_sites or d.step.is_dense)
    }
    for node in workspace.graph.nodes if masks else ():
        if _averages_a_map(workspace, node):
            sites = _sites(workspace, node.inputs[0], masks)
            if sites.any() and not sites.all():
                yield node, np.flatnonzero(sites)


def _sites(workspace: Workspace, tensor: gs.Tensor, masks: Mapping[str, Mask]) -> Mask:
    """The positions, bool [H, W], at which a map is what it should be.

    Args:
        workspace: The network.
        tensor: The map.
        masks: Those of the layers that are fitted, by the names of their outputs. Such a layer makes good at its sites
            what is wrong with what its output is added to.
    """
    if tensor.name in masks:
        return masks[tensor.name]
    size = map_size(workspace, tensor)
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or not is_standard(node) or node.op not in KEEPS_POSITIONS:
        return np.ones(size, bool)
    maps = [t for t in node.inputs if is_map(workspace, t) and map_size(workspace, t) == size]
    fitted = [t for t in maps if t.name in masks]
    parts = fitted if node.op == "Add" and fitted else maps
    return np.logical_and.reduce([_sites(workspace, t, masks) for t in parts] or [np.ones(size, bool)])


def _averages_a_map(workspace: Workspace, node: gs.Node) -> bool:
    """Whether a node gives the mean of all positions, for each channel."""
    if not is_standard(node) or not node.inputs or not is_map(workspace, node.inputs[0]):
        return False
    if node.op == "AveragePool":
        window = pool_window(workspace, node)
        return window is not None and window == PoolWindow(map_size(workspace, node.inputs[0]), window.strides)
    if node.op == "ReduceMean":
        axes = workspace.constant(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("axes")
        return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]
    return node.op == GLOBAL


def _select(workspace: Workspace, node: gs.Node, sites: Positions) -> None:
    """Put a selection of sites in front of an average: as positions of a map one position wide."""
    x, y = node.inputs[0], node.outputs[0]
    known = workspace.types[x.name]
    assert known.shape is not None

    def new(op: str, part: str, inputs: list[gs.Tensor], attributes: dict[str, int], size: int = 1) -> gs.Node:
        output = gs.Variable(workspace.free_name(f"{y.name}.{part}"))
        workspace.types[output.name] = TensorType(known.elem_type, (*known.shape[:2], size, 1))  # type: ignore[index]
        return gs.Node(op, unique_name(workspace, f"{node.name}.{part}"), attributes, inputs, [output])

    shape = workspace.add_table("shape", np.array([0, 0, -1, 1], np.int64))
    height, width = map_size(workspace, x)
    line = new("Reshape", "positions", [x, shape], {}, height * width)
    taken = new("Gather", "sites", [line.outputs[0], workspace.add_table("sites", sites)], {"axis": 2}, sites.size)
    mean = new(GLOBAL, "mean", [taken.outputs[0]], {})
    mean.name = node.name
    nodes = [line, taken, mean]
    if node.op == "ReduceMean" and not node.attrs.get("keepdims", 1):
        nodes.append(gs.Node("Flatten", unique_name(workspace, f"{node.name}.flat"), {"axis": 1}, mean.outputs))
    workspace.inherit(nodes[-1], node)
    index = next(i for i, other in enumerate(workspace.graph.nodes) if other is node)
    node.inputs.clear()
    node.outputs.clear()
    nodes[-1].outputs = [y]
    workspace.graph.nodes[index : index + 1] = nodes
