"""Which layers may be put on a lattice together: runs of layers of one resolution, and the parts of such runs.

The layers of a run have maps of one height and width and are connected: one reads what the other gives, or their
outputs meet. A run is cut into blocks where everything that goes on is one tensor: behind a residual block, behind a
concatenation; where nothing meets, behind each layer. Regions are a run as a whole, its halves, its blocks, and a run
without the layers that a pool follows: these read the lattice and give every position that the pool wants.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import onnx_graphsurgeon as gs

from perfonnx.model.layers import conv_layers
from perfonnx.model.workspace import Workspace
from perfonnx.passes.fold import foldable
from perfonnx.passes.positions import MOVES_POSITIONS
from perfonnx.passes.rules import joins, rule_of, works_on_rows

BLOCKS = 6
"""Parts that a run is cut into, at most; neighbouring blocks are taken together."""

HALVES = 4
"""Blocks of a run whose halves are regions too, at least."""


@dataclass(frozen=True)
class Run:
    """A run of layers of one resolution.

    Attributes:
        name: The size of its maps.
        blocks: Names of the layers of each block, in running order.
        pooled: The layers that a larger pool follows.
        multiplies: By layer.
    """

    name: str
    blocks: tuple[tuple[str, ...], ...]
    pooled: frozenset[str] = frozenset()
    multiplies: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """All of them, in running order."""
        return tuple(name for block in self.blocks for name in block)

    @property
    def work(self) -> int:
        """Multiplies of them all."""
        return sum(self.multiplies.get(name, 0) for name in self.layers)


@dataclass(frozen=True)
class Region:
    """Layers that get one choice together.

    Attributes:
        name: For a reader.
        run: The name of the run that it is a part of.
        layers: Names, in running order.
        level: 0 for a whole run, 1 for one without the layers in front of a pool, 2 for a half, 3 for a block.
        share: Part of the run's multiplies.
    """

    name: str
    run: str
    layers: tuple[str, ...]
    level: int
    share: float = field(default=1.0, compare=False)


def regions(run: Run) -> list[Region]:
    """The regions of a run, the largest first; none twice."""
    found = [Region(run.name, run.name, run.layers, 0)]
    rest = tuple(name for name in run.layers if name not in run.pooled)
    if run.pooled and rest:
        found.append(Region(f"{run.name} but in front of the pool", run.name, rest, 1))
    if len(run.blocks) >= HALVES:
        halves = _joined(run, 2)
        names = ("first", "second")
        found += [Region(f"{run.name}, {n} half", run.name, h, 2) for n, h in zip(names, halves, strict=False)]
    blocks = _joined(run, BLOCKS)
    found += [
        Region(f"{run.name}, block {i} of {len(blocks)}", run.name, block, 3) for i, block in enumerate(blocks, 1)
    ]
    distinct: dict[tuple[str, ...], Region] = {}
    for region in found:
        distinct.setdefault(region.layers, region)
    work = {layers: sum(run.multiplies.get(name, 0) for name in layers) for layers in distinct}
    whole = max(work[run.layers], 1)
    return [replace(region, share=work[layers] / whole) for layers, region in distinct.items()]


def _joined(run: Run, parts: int) -> list[tuple[str, ...]]:
    """So many parts of a run at most, each of whole blocks, of about the same work."""
    if len(run.blocks) <= parts:
        return list(run.blocks)
    middles, done = [], 0.0
    for block in run.blocks:
        work = sum(run.multiplies.get(name, 1) for name in block)
        middles.append(done + work / 2)
        done += work
    found: dict[int, tuple[str, ...]] = {}
    for block, middle in zip(run.blocks, middles, strict=True):
        part = min(int(middle * parts / max(done, 1)), parts - 1)
        found[part] = found.get(part, ()) + block
    return list(found.values())


def resolution_runs(workspace: Workspace, able: Collection[str]) -> list[Run]:
    """The runs of a model, in running order, of the layers that may be put on a lattice; none of a single position.

    Args:
        workspace: The model, with its types inferred.
        able: Names of these layers.
    """
    layers = {id(layer.node): layer for layer in conv_layers(workspace)}
    folded = {
        id(node)
        for layer in layers.values()
        if layer.w_shape
        for node in foldable(workspace, layer.node, layer.w_shape[0])
    }
    runs: dict[str, list[str]] = {}  # layer -> the names of its run's layers, one list for all of them
    place: dict[str, list[str]] = {}  # tensor -> the run whose positions it has
    within: dict[int, list[gs.Node]] = {}  # run, by its list's id -> its nodes

    def united(found: Sequence[list[str]]) -> list[str]:
        first = found[0]
        for other in found[1:]:
            if other is first:
                continue
            first.extend(other)
            within[id(first)] = within.get(id(first), []) + within.pop(id(other), [])
            for known in (runs, place):
                known.update((key, first) for key, run in known.items() if run is other)
        return first

    for node in workspace.graph.nodes:
        if not node.outputs or not node.outputs[0].name:
            continue
        output = node.outputs[0]
        size = _size(workspace, output)
        layer = layers.get(id(node))
        same = [place[t.name] for t in node.inputs if t.name in place and _size(workspace, t) == size]
        if layer is not None and layer.attributes is not None and set(layer.attributes.strides) == {1}:
            same = [place[t.name] for t in node.inputs[:1] if t.name in place]  # maps shrink a little without pads
        if layer is not None and size is not None and math.prod(size) > 1:
            own = [layer.name]
            run = united([*same, own])
            runs[layer.name] = run
        elif same and (id(node) in folded or (works_on_rows(workspace, node) and _keeps_positions(node))):
            run = united(same)
        else:
            continue
        place[output.name] = run
        within.setdefault(id(run), []).append(node)
    order = {layer.name: i for i, layer in enumerate(layers.values())}
    places = {id(node): i for i, node in enumerate(workspace.graph.nodes)}
    multiplies = {layer.name: layer.multiplies or 0 for layer in layers.values()}
    found, taken = [], set[str]()
    distinct = {id(run): run for run in runs.values()}
    for key in sorted(distinct, key=lambda key: min(order[name] for name in distinct[key])):
        nodes = sorted(within[key], key=lambda node: places[id(node)])
        names = {id(node): layers[id(node)].name for node in nodes if id(node) in layers}
        blocks = tuple(part for block in _blocks(nodes, names) if (part := tuple(n for n in block if n in able)))
        if not blocks:
            continue
        name = _named(workspace, next(node for node in nodes if id(node) in layers), taken)
        found.append(Run(name, blocks, frozenset(_pooled(workspace, nodes, names) & set(able)), multiplies))
    return found


def _named(workspace: Workspace, node: gs.Node, taken: set[str]) -> str:
    size = "x".join(str(d) for d in _size(workspace, node.outputs[0]) or ())
    name, number = size, 1
    while name in taken:
        number += 1
        name = f"{size} ({number})"
    taken.add(name)
    return name


def _size(workspace: Workspace, tensor: gs.Tensor) -> tuple[int, ...] | None:
    """Height and width of a map; None where they are not known."""
    known = workspace.types.get(tensor.name)
    if known is None or known.shape is None or len(known.shape) != 4:
        return None
    size = tuple(d for d in known.shape[2:] if isinstance(d, int))
    return size if len(size) == 2 else None


def _keeps_positions(node: gs.Node) -> bool:
    rule = rule_of(node)
    return rule is not None and rule.keeps_rows and node.op not in MOVES_POSITIONS


def _blocks(nodes: Sequence[gs.Node], names: dict[int, str]) -> list[list[str]]:
    """The layers of a run, cut where all that goes on is one tensor, one that was joined where any are."""
    inside = {id(node) for node in nodes}
    joined = any(joins(node) for node in nodes)
    whole: set[str] = set()  # tensors that were joined, or that elementwise nodes made of such
    live: dict[str, int] = {}  # tensor -> nodes of the run that are still to read it
    blocks: list[list[str]] = [[]]
    for node in nodes:
        for tensor in node.inputs:
            if tensor.name in live:
                live[tensor.name] -= 1
                if not live[tensor.name]:
                    del live[tensor.name]
        output = node.outputs[0]
        readers = sum(sum(t is output for t in reader.inputs) for reader in output.outputs if id(reader) in inside)
        if readers:
            live[output.name] = readers
        if id(node) in names:
            blocks[-1].append(names[id(node)])
        if joins(node) or any(tensor.name in whole for tensor in node.inputs if id(node) not in names):
            whole.add(output.name)
        if blocks[-1] and list(live) == [output.name] and (output.name in whole or (not joined and id(node) in names)):
            blocks.append([])
    return [block for block in blocks if block]


def _pooled(workspace: Workspace, nodes: Sequence[gs.Node], names: dict[int, str]) -> set[str]:
    """The layers whose positions a larger pool reads, through nodes that keep positions."""
    nearest: dict[str, set[str]] = {}
    found: set[str] = set()
    for node in nodes:
        behind = {names[id(node)]} if id(node) in names else set[str]()
        if not behind:
            behind.update(*(nearest.get(tensor.name, set()) for tensor in node.inputs))
        nearest[node.outputs[0].name] = behind
        if any(reader.op == "MaxPool" for reader in node.outputs[0].outputs):
            found |= behind
    return found
