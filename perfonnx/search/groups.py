"""Which layers are chosen for together: a unit is one layer, or a group of layers whose outputs meet.

Where outputs meet in a `Concat` or an `Add`, the result has a row for every position at which one of them has one: a
single dense operand makes it dense, and everything behind it. So the layers of a group get one choice, and with it one
mask (masks depend on the size of the map alone), and what follows stays on the few rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import onnx_graphsurgeon as gs

from perfonnx.methods import Method
from perfonnx.model.files import LoadedModel
from perfonnx.model.layers import conv_layers
from perfonnx.model.shapes import infer_types
from perfonnx.model.workspace import Workspace
from perfonnx.passes.fold import foldable
from perfonnx.passes.positions import MOVES_POSITIONS
from perfonnx.passes.rules import joins, rule_of, works_on_rows

Units: TypeAlias = Mapping[str, tuple[str, ...]]
"""Names of units, in running order, each with its layers."""

NAMED = 2
"""A group with more layers than this is named after the first one."""


def meeting_layers(model: LoadedModel) -> list[tuple[str, ...]]:
    """Groups of two layers or more whose outputs meet; layers, and groups by their first one, in running order.

    Groups with a layer that cannot be rewritten are left out.
    """
    workspace = Workspace.open(model)
    infer_types(workspace)
    layers = conv_layers(workspace)
    names = {id(layer.node): layer.name for layer in layers}
    folded = {
        id(node) for layer in layers if layer.w_shape for node in foldable(workspace, layer.node, layer.w_shape[0])
    }
    behind: dict[str, set[str]] = {}  # tensor -> the layers whose positions it has
    groups: dict[str, set[str]] = {name: {name} for name in names.values()}
    for node in workspace.graph.nodes:
        if not node.outputs:
            continue
        if id(node) in names:
            behind[node.outputs[0].name] = {names[id(node)]}
        elif id(node) in folded or (works_on_rows(workspace, node) and _keeps_positions(node)):
            met = set().union(*(behind.get(tensor.name, set()) for tensor in node.inputs))
            behind[node.outputs[0].name] = met
            if joins(node) and met:
                group = set().union(*(groups[name] for name in met))
                groups.update(dict.fromkeys(group, group))
    refused = {layer.name for layer in layers if layer.obstacle}
    found = [tuple(name for name in names.values() if name in groups[first]) for first in names.values()]
    return [group for group in dict.fromkeys(found) if len(group) > 1 and not refused & set(group)]


def _keeps_positions(node: gs.Node) -> bool:
    """Whether rows go through a node that works on them as they are."""
    rule = rule_of(node)
    return rule is not None and rule.keeps_rows and node.op not in MOVES_POSITIONS


def alone(layers: Sequence[str]) -> Units:
    """Every layer by itself."""
    return {layer: (layer,) for layer in layers}


def together(layers: Collection[str], groups: Sequence[tuple[str, ...]], order: Sequence[str]) -> Units:
    """The groups, and by itself every other layer.

    Args:
        layers: Those that may be rewritten with profit.
        groups: Layers whose outputs meet, maybe such that would gain nothing by themselves.
        order: All layers in running order.
    """
    first = {group[0]: group for group in groups}
    grouped = {layer for group in groups for layer in group}
    units = [first.get(layer, (layer,)) for layer in order if layer in first or layer in set(layers) - grouped]
    return {_name(unit): unit for unit in units}


def _name(unit: tuple[str, ...]) -> str:
    return " + ".join(unit) if len(unit) <= NAMED else f"{unit[0]} + {len(unit) - 1} more"


def by_layer(units: Units, choices: Mapping[str, Method]) -> dict[str, Method]:
    """The choice of each layer, from that of each unit."""
    return {layer: choice for unit, choice in choices.items() for layer in units[unit]}
