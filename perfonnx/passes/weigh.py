"""Weigh: which layers gain at all, which work on rows, and which dense layers join them there.

By estimates (`perfonnx.passes.estimates`), since a rewrite must give the same model on every machine; `perfonnx bench`
measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.methods import Decision
from perfonnx.methods.exact import Exact
from perfonnx.model.layers import Layer, conv_layers, table_obstacle
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import LARGEST_TILE
from perfonnx.passes.base import Change, Pass, Skip, State
from perfonnx.passes.estimates import DEFAULT_COSTS, Costs
from perfonnx.passes.fold import foldable
from perfonnx.passes.regions import Regions
from perfonnx.passes.repeats import sources_of, taps_left
from perfonnx.passes.rules import joins, rule_of
from perfonnx.passes.rules.normalizations import INSTANCE_NORMALIZATION
from perfonnx.passes.rules.rule import is_map
from perfonnx.plan import Placement

NOTICEABLE = 50_000.0
"""Nanoseconds: what was asked for is done where leaving layers alone would save no more than that."""


@dataclass
class Weigh(Pass):
    """Gives up decisions that are not worth it, adds decisions marked `joined`, fills `state.placement` and `kept`.

    Joined layers become sampled layers with every position a site, so that folding, absorbing and lowering treat them
    like the others. Their results are those of the dense convolution.

    Attributes:
        rows: Whether layers may exchange rows.
        largest_tile: What kernels may use of Winograd's algorithm: tiles of at most so many outputs along an edge.
        costs: What things cost.
        placement: What was decided before, after which nothing is weighed.
    """

    rows: bool = True
    largest_tile: int = LARGEST_TILE
    costs: Costs = field(default_factory=lambda: DEFAULT_COSTS)
    placement: Placement | None = None

    def __post_init__(self) -> None:
        """Let the costs know."""
        self.costs = replace(self.costs, largest_tile=self.largest_tile)

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Change `state`."""
        state.placement = self.placement or self._weighed(workspace, state)
        joined = set(state.placement.joined) - state.decisions.keys()  # a placement that was edited decides nothing
        for layer in conv_layers(workspace):
            if layer.name in joined and not layer.obstacle and _may_join(workspace, layer):
                assert layer.output_shape is not None
                everywhere = np.ones(layer.output_shape, bool)
                state.decisions[layer.name] = Decision(layer, Exact(), everywhere, joined=True)
        kept = set(state.placement.kept)
        state.kept = {id(node): node for node in workspace.graph.nodes if node.outputs and node.outputs[0].name in kept}
        return []

    def _weighed(self, workspace: Workspace, state: State) -> Placement:
        """Give up what is not worth it, and choose what works on rows."""
        layout = _Layout(workspace, state, self.costs, self.rows)
        if any(decision.worth is not None and decision.worth < 1 for decision in state.decisions.values()):
            asked = _Layout(workspace, state, self.costs, self.rows, may_give_up=False)
            if asked.estimate() <= layout.estimate() + NOTICEABLE:
                layout = asked
        on_maps, dense = [], []
        for name, decision in list(state.decisions.items()):  # in order: what is given up is written into the model
            if layout.gives_up(decision):
                del state.decisions[name]
                state.skips.append(Skip(name, self._reason(decision)))
            elif id(decision.layer.node) not in layout.on_rows:
                on_maps.append(name)
                if layout.is_faster_dense(decision):
                    dense.append(name)
        joined = (layer.name for layer in layout.joining())
        kept = (node.outputs[0].name for node in layout.kept().values())
        return Placement(joined=tuple(joined), on_maps=tuple(on_maps), dense=tuple(dense), kept=tuple(kept))

    def _reason(self, decision: Decision) -> str:
        ours, dense = self.costs.of_canonical(decision.layer, decision.share), self.costs.of_dense(decision.layer)
        at = f"at {decision.step.asked} " if decision.step.asked else ""
        what = "be slower" if ours > dense else "hardly be faster"
        return (
            f"{at}it would {what}, est. {_milliseconds(ours)} ms against "
            f"{_milliseconds(dense)}; --only rewrites it all the same"
        )


def _milliseconds(nanoseconds: float) -> str:
    value = nanoseconds / 1e6
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _is_pointwise(layer: Layer) -> bool:
    """Whether each output reads the input at its own position."""
    a = layer.attributes
    return a is not None and a.kernel_shape == a.strides == (1, 1) and not any(a.pads)


def _may_join(workspace: Workspace, layer: Layer) -> bool:
    """Whether a dense layer can be computed on rows."""
    assert layer.output_shape is not None
    fits = table_obstacle(math.prod(layer.output_shape), layer.w_shape[2:]) is None
    return fits and is_map(workspace, layer.output)


def _has_rows(workspace: Workspace, decision: Decision) -> bool:
    """Whether the layer has a form on rows, as far as that is known before anything is folded."""
    layer = decision.layer
    return decision.step.has_rows(layer, folds=bool(foldable(workspace, layer.node, layer.w_shape[0])))


@dataclass
class _Tensor:
    """A map between nodes that may work on rows, and others.

    Attributes:
        size: Values per image.
        producer: id of the node that may give it as rows; None: it comes as a map.
        readers: ids of those that may read it as rows.
        outside: Whether something else reads it.
    """

    size: int
    producer: int | None = None
    readers: list[int] = field(default_factory=list)
    outside: bool = False

    def turns(self, on_rows: set[int]) -> tuple[bool, bool]:
        """Whether it is turned to rows, and whether it is written from rows."""
        if self.producer in on_rows:
            return False, self.outside or any(i not in on_rows for i in self.readers)
        return any(i in on_rows for i in self.readers), False


class _Layout:
    """Which nodes work on rows: the choice that costs least.

    A choice costs what each convolution costs in its form, and the turns of every map that lies between the two sorts.
    That is a cut through a network of flows, with the nodes on rows on one side and those on maps on the other.
    """

    def __init__(
        self, workspace: Workspace, state: State, costs: Costs, rows: bool, *, may_give_up: bool = True
    ) -> None:
        self.workspace = workspace
        self.costs = costs
        self.may_give_up = may_give_up
        self.layers = {id(layer.node): layer for layer in conv_layers(workspace) if not layer.obstacle}
        self.chosen = {id(d.layer.node): d for d in state.decisions.values()}
        self.pointwise = {i for i, layer in self.layers.items() if _is_pointwise(layer)}
        sampled = {i for i, d in self.chosen.items() if rows and _has_rows(workspace, d)}
        dense = {i for i, s in self.layers.items() if i not in self.chosen and _may_join(workspace, s)}
        self.taps_left: dict[tuple[int, bytes], float] = {}
        self.on_rows: set[int] = set()
        self.seen: dict[int, gs.Node] = {}
        self._enter(sampled, dense if sampled else set())
        while True:  # with fewer nodes on rows others have more rows, so that the set only shrinks
            self.on_rows = self._connected(self._cut())
            if sampled | dense <= self.on_rows:  # what else stays on maps leaves all layers their rows
                break
            sampled, dense = sampled & self.on_rows, dense & self.on_rows
            self._enter(sampled, dense)

    def gives_up(self, decision: Decision) -> bool:
        """Whether a layer stays as it was."""
        if decision.worth is None or not self.may_give_up or id(decision.layer.node) in self.on_rows:
            return False
        dense = self.costs.of_dense(decision.layer)
        return dense <= decision.worth * self.costs.of_canonical(decision.layer, decision.share)

    def is_faster_dense(self, decision: Decision) -> bool:
        """Whether a `Conv` may stand for a layer on maps, and had better."""
        i = id(decision.layer.node)
        if not decision.step.is_dense or self._reads_sites(i):
            return False
        return self.costs.of_dense(decision.layer) < self.costs.of_canonical(decision.layer, decision.share)

    def _canonical(self, decision: Decision) -> float:
        """A layer that was decided on, on maps."""
        if self.is_faster_dense(decision):
            return self.costs.of_dense(decision.layer)
        return self.costs.of_canonical(decision.layer, decision.share)

    def joining(self) -> list[Layer]:
        """The dense layers on rows."""
        return [layer for i, layer in self.layers.items() if i in self.on_rows and i not in self.chosen]

    def kept(self) -> dict[int, gs.Node]:
        """The nodes, other than convolutions, that could work on rows and do not, by id."""
        layers = self.on_rows | self.layers.keys()
        return {i: node for i, node in self.seen.items() if i not in layers}

    def estimate(self) -> float:
        """Nanoseconds of all convolutions and turns."""
        total = 0.0
        for i, layer in self.layers.items():
            decision = self.chosen.get(i)
            if i in self.on_rows:
                total += self._on_rows(i) + (0.0 if self._producer(i) in self.on_rows else self._saved(i))
            elif decision is None or self.gives_up(decision):
                total += self.costs.of_dense(layer)
            else:
                total += self._canonical(decision)
        for i, node in self.seen.items():
            if rule_of(node) is INSTANCE_NORMALIZATION:
                total += self._normalization(node)[i in self.on_rows]
        for tensor in self._tensors().values():
            compact, expand = tensor.turns(self.on_rows)
            total += compact * self.costs.of_compact(tensor.size) + expand * self.costs.of_expand(tensor.size)
        return total

    def _enter(self, sampled: set[int], dense: set[int]) -> None:
        """Let these layers work on rows, and what lies between them."""
        shares = {i: self.chosen[i].share for i in sampled}
        layers = [self.layers[i] for i in (*dense, *sampled)]
        folded = {id(node) for layer in layers for node in foldable(self.workspace, layer.node, layer.w_shape[0])}
        kept = self.kept()
        flow = Regions(self.workspace, shares, dense, folded, self.pointwise, kept)
        for i in dense:
            x = self.layers[i].node.inputs[0].name
            shares[i] = flow.share.get(x, 1.0) if i in self.pointwise else 1.0
        self.shares = shares
        self.flow = Regions(self.workspace, shares, set(), folded, kept=kept)  # now dense layers start rows as well
        self.members = {id(n): n for n in self.workspace.graph.nodes if self._is_member(n)}
        self.seen |= self.members
        self.sources = sources_of(self.members, self.chosen, self.pointwise, self.flow)
        self.producers = {node.outputs[0].name: i for i, node in self.members.items()}

    def _is_member(self, node: gs.Node) -> bool:
        if id(node) in self.shares:
            return True
        if not node.outputs or not self.flow.passes(node):
            return False
        output = node.outputs[0].name
        # A pool computes every position, but reads only the rows that there are.
        rule = rule_of(node)
        read = output if rule is None or rule.keeps_rows else self.flow.maps(node)[0]
        return output in self.flow.share and (output in self.flow.wanted or self.flow.share.get(read, 1.0) < 1)

    def _on_rows(self, i: int) -> float:
        """Where the input comes as rows."""
        if self._reads_sites(i):
            return self.costs.of_rows(self.layers[i], self.shares[i], own_grid=True)
        return self.costs.of_rows(self.layers[i], self.shares[i], self._taps_left(i))

    def _reads_sites(self, i: int) -> bool:
        """Whether a layer lies behind a map of fewer rows than positions, and reads no others."""
        decision, source = self.chosen.get(i), self.sources.get(self.layers[i].node.inputs[0].name)
        if decision is None or not decision.step.reads_sites or source is None:
            return False
        return np.unique(source).size < source.size

    def _saved(self, i: int) -> float:
        """What a layer on rows takes more where the input comes as a map, in which nothing is known to repeat."""
        return 0.0 if self._reads_sites(i) else self.costs.of_rows(self.layers[i], self.shares[i]) - self._on_rows(i)

    def _taps_left(self, i: int) -> float:
        source = self.sources.get(self.layers[i].node.inputs[0].name)
        if source is None:
            return 1.0
        key = i, source.tobytes()
        if key not in self.taps_left:
            decision = self.chosen.get(i)
            self.taps_left[key] = taps_left(self.layers[i], None if decision is None else decision.mask, source)
        return self.taps_left[key]

    def _producer(self, i: int) -> int | None:
        """The node that may give a layer's input as rows."""
        return self.producers.get(self.layers[i].node.inputs[0].name)

    def _on_maps(self, i: int) -> float:
        layer, decision = self.layers[i], self.chosen.get(i)
        dense = self.costs.of_dense(layer)
        if decision is None:
            return dense
        canonical = self._canonical(decision)
        if decision.worth is None or not self.may_give_up:
            return canonical
        return min(canonical, dense / decision.worth)

    def _normalization(self, node: gs.Node) -> tuple[float, float]:
        """What it costs on maps and on rows."""
        name = node.outputs[0].name
        size = self._size(name)
        on_rows = self.costs.normalize_rows * self.costs.moved(size * self.flow.share.get(name, 1.0))
        return self.costs.normalize_maps * self.costs.moved(size), on_rows

    def _tensors(self) -> dict[str, _Tensor]:
        """The maps that members give or read, by name."""
        found: dict[str, _Tensor] = {}
        for i, node in self.members.items():
            output = node.outputs[0]
            tensor = found.setdefault(output.name, _Tensor(self._size(output.name)))
            tensor.producer = i
            readers = {id(reader) for reader in output.outputs}
            is_output = any(o.name == output.name for o in self.workspace.graph.outputs)
            tensor.outside = is_output or output.name in self.workspace.captured or not readers <= self.members.keys()
            for name in self.flow.maps(node):
                found.setdefault(name, _Tensor(self._size(name))).readers.append(i)
        return found

    def _cut(self) -> set[int]:
        """The nodes on rows where everything together costs least; where it costs the same, rather on rows."""
        network = _Network()
        tensors = self._tensors()
        for i, node in self.members.items():
            if i in self.shares:
                network.add(network.ROWS, i, self._on_maps(i))  # cut where the layer is on maps
                network.add(i, network.MAPS, self._on_rows(i))
                producer = self._producer(i)
                if producer is not None:
                    network.add(i, producer, self._saved(i))
            elif not joins(node):  # only what comes as rows stays rows
                if rule_of(node) is INSTANCE_NORMALIZATION:
                    on_maps, on_rows = self._normalization(node)
                    network.add(network.ROWS, i, on_maps)
                    network.add(i, network.MAPS, on_rows)
                for name in self.flow.maps(node):
                    producer = tensors[name].producer
                    network.add(i, network.MAPS if producer is None else producer, math.inf)
        for name, tensor in tensors.items():
            compact, expand = self.costs.of_compact(tensor.size), self.costs.of_expand(tensor.size)
            turned, written = ("turned", name), ("written", name)
            network.add(turned, network.MAPS if tensor.producer is None else tensor.producer, compact)
            for i in tensor.readers:
                network.add(i, turned, math.inf)
            if tensor.producer is not None and tensor.outside:
                network.add(tensor.producer, network.MAPS, expand)
            elif tensor.producer is not None:
                network.add(tensor.producer, written, expand)
                for i in tensor.readers:
                    network.add(written, i, math.inf)
        return self.members.keys() & network.rows()

    def _connected(self, on_rows: set[int]) -> set[int]:
        """Without the parts that hold no sampled layer, or one layer alone."""
        root = {i: i for i in on_rows}

        def find(i: int) -> int:
            while root[i] != i:
                root[i] = i = root[root[i]]
            return i

        for tensor in self._tensors().values():
            if tensor.producer in on_rows:
                for i in tensor.readers:
                    if i in on_rows:
                        root[find(i)] = find(tensor.producer)
        layers: dict[int, list[int]] = {}
        for i in on_rows & self.shares.keys():
            layers.setdefault(find(i), []).append(i)
        good = {r for r, found in layers.items() if len(found) > 1 and any(i in self.chosen for i in found)}
        return {i for i in on_rows if find(i) in good}

    def _size(self, name: str) -> int:
        """Values of a map, per image."""
        known = self.workspace.types[name].shape
        return math.prod(d for d in (known or ())[1:] if isinstance(d, int))


class _Network:
    """Nodes and the capacities between them; the least cut between ROWS and MAPS."""

    ROWS, MAPS = "rows", "maps"

    def __init__(self) -> None:
        self.numbers: dict[object, int] = {self.ROWS: 0, self.MAPS: 1}
        self.edges: list[tuple[int, int, float]] = []

    def add(self, tail: object, head: object, capacity: float) -> None:
        """What is paid where `tail` is on rows and `head` on maps."""
        number = [self.numbers.setdefault(node, len(self.numbers)) for node in (tail, head)]
        self.edges.append((number[0], number[1], capacity))

    def rows(self) -> set[object]:
        """All nodes that are on rows in some cut that costs least."""
        from scipy.sparse import csgraph, csr_array  # slow to import

        tails, heads, capacities = zip(*self.edges, strict=True) if self.edges else ((), (), ())
        finite = sum(c for c in capacities if math.isfinite(c))
        scale = (1 << 29) / max(finite, 1.0)  # whole numbers that fit into 31 bits, sums too
        whole = [round(c * scale) if math.isfinite(c) else 1 << 30 for c in capacities]
        size = len(self.numbers)
        network = csr_array((np.array(whole, np.int32), (tails, heads)), shape=(size, size), dtype=np.int32)
        residual = network - csgraph.maximum_flow(network, 0, 1).flow
        residual.eliminate_zeros()
        on_maps = set(csgraph.breadth_first_order(residual.T.tocsr(), 1, return_predecessors=False).tolist())
        return {node for node, number in self.numbers.items() if number not in on_maps}
