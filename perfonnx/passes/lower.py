"""Lower: regions of sampled layers work on rows, so that skipped positions are neither written nor read.

Every sampled layer gives rows and the table by which they stand for a map. Consumers read through the table; a map is
written out, once, where somebody needs it. The rules are local and exact: the lowered model computes what the canonical
one computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx import ops
from perfonnx.masks import Mask
from perfonnx.model.layers import CONV, only_consumer
from perfonnx.model.proto import TensorType, is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.ops.compact import COMPACT
from perfonnx.ops.expand import EXPAND
from perfonnx.passes.absorb import has_activation
from perfonnx.passes.base import Change, Pass, Skip, State
from perfonnx.passes.needed import needed_positions
from perfonnx.passes.regions import Regions
from perfonnx.passes.rules import is_sampled, joins, obstacle, rule_of
from perfonnx.passes.rules.rule import Match, Rows, Table, map_size, numbered, skip

CHEAPER_ON_MAPS = "by estimate it costs less on maps"


class Lower(Pass):
    """Moves regions of two layers or more to rows; a sampled layer among dense ones stays canonical."""

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Rewrite the graph."""
        nodes = list(workspace.graph.nodes)
        on_maps = {id(node) for name, node in state.rewritten.items() if name in state.placement.on_maps}
        sampled = {id(n) for n in nodes if id(n) not in on_maps and is_sampled(workspace, n)}
        if not sampled:
            return []
        regions = Regions(workspace, dict.fromkeys(sampled, 1.0), set(), kept=state.kept)
        lowering = Lowering(workspace, state, regions, sampled)
        for node in nodes:
            lowering.visit(node)
        lowering.finish()
        return lowering.changes


class Lowering:
    """The graph on its way to rows: what stands as rows already, and how rules emit what comes next.

    Attributes:
        rows: The rows of each tensor that stands as rows.
        convs: The SampledConvs that give a rows tensor, some of its rows each, in their order; by the tensor's name.
        adding: Names of those that add other rows.
        nodes: The new order of nodes, so far.
    """

    def __init__(self, workspace: Workspace, state: State, regions: Regions, sampled: set[int]) -> None:
        self.workspace = workspace
        self.state = state
        self.regions = regions
        self.sampled = sampled
        self.rows: dict[str, Rows] = {}
        self.standing: dict[str, list[gs.Tensor]] = {}  # the maps that one tensor of rows stands for
        self.maps: set[str] = set()  # tensors that have rows and are written out as maps too
        self.nodes: list[gs.Node] = []
        self.convs: dict[str, list[gs.Node]] = {}
        self.adding: set[str] = set()  # those that add other rows
        self.changes: list[Change] = []
        self.outputs = {o.name for o in workspace.graph.outputs}
        self.visited = ""  # name of the node that is looked at
        self._needed = needed_positions(workspace)

    def visit(self, node: gs.Node) -> None:
        """Emit a node: on rows where a rule applies, else as it is, with the maps that it reads."""
        self.visited = node.name
        answer = self._answer(node)
        if not isinstance(answer, Match):
            if answer is not None:
                self.state.left_on_maps.append(answer)
            for tensor in node.inputs:
                self._need_map(tensor)
            self.nodes.append(node)
            return
        self.changes.append(Change(node.name, answer.what))
        output = node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        if output.name in self.workspace.captured or output.name in self.outputs:
            self._need_map(output)

    def finish(self) -> None:
        """Hand the new order of nodes to the graph."""
        self.workspace.graph.nodes[:] = self.nodes

    def _answer(self, node: gs.Node) -> Match | Skip | None:
        """What becomes of a node; None where there is nothing to say: no rows reach it."""
        rule, reached = rule_of(node), any(t.name in self.rows for t in node.inputs)
        if id(node) in self.sampled and rule is not None:
            answer = rule.apply(self, node)
            return answer if reached or isinstance(answer, Match) else None
        if not reached:
            return None
        chosen = node.name in self.state.placement.on_maps and self.state.rewritten.get(node.name) is node
        if chosen or id(node) in self.regions.kept:
            return skip(node, CHEAPER_ON_MAPS)
        if rule is not None and rule.ends(self.workspace, node):
            return rule.apply(self, node)
        if node.op == CONV and is_standard(node):
            return skip(node, "it is a dense layer that stays on maps")
        reason = obstacle(self.workspace, node)
        if reason is not None or rule is None:
            return skip(node, reason or "")
        return rule.apply(self, node)

    def read_as_rows(self, tensor: gs.Tensor) -> bool:
        """Whether some consumer of a sampled layer's output works on rows."""
        for consumer in tensor.outputs:
            if id(consumer) in self.sampled:
                return True
            if not any(consumer is n for n in self.workspace.graph.nodes) or not self.regions.passes(consumer):
                continue
            if not joins(consumer) or self.goes_on(consumer.outputs[0]):
                return True
        return False

    def goes_on(self, tensor: gs.Tensor) -> bool:
        """Whether rows of this tensor reach a sampled layer."""
        return tensor.name in self.regions.wanted

    def is_worth_it(self, node: gs.Node) -> bool:
        """Whether there are fewer rows than positions, or the node's rows reach a sampled layer."""
        rows = self.rows[node.inputs[0].name]
        return rows.count < rows.source.size or self.goes_on(node.outputs[0])

    def open_convs(self, tensor: gs.Tensor, reader: gs.Node) -> list[gs.Node]:
        """The SampledConvs behind a tensor if nobody but `reader` reads what they give and their activations are free.

        None at all where one of them is not so.
        """
        rows = self.rows.get(tensor.name)
        convs = self.convs.get(rows.tensor.name, []) if rows is not None else []
        if rows is None or rows.tensor.outputs or tensor.name in self.maps:
            return []
        if only_consumer(self.workspace, tensor) is not reader:
            return []
        if any(other is not tensor and self._is_read(other) for other in self.standing[rows.tensor.name]):
            return []  # its rows stand for another map too, from which this one was cropped or resized
        return [] if any(has_activation(self.workspace, conv) for conv in convs) else convs

    def drop(self, tensor: gs.Tensor) -> None:
        """Take back the node that gives rows which nobody reads."""
        (node,) = tensor.inputs
        self.nodes = [other for other in self.nodes if other is not node]
        node.inputs.clear()
        node.outputs.clear()

    def move_behind(self, tensor: gs.Tensor) -> None:
        """Move what gives rows that nobody reads yet behind all that was emitted."""
        last = [node for node in self.nodes if node.outputs[0] is tensor]
        moved = [*(conv for conv in self.convs[tensor.name] if conv is not last[0]), *last]
        self.nodes = [node for node in self.nodes if all(node is not other for other in moved)] + moved

    def _is_read(self, tensor: gs.Tensor) -> bool:
        """Whether somebody still needs a map that stands as rows; nodes that were visited no longer read any."""
        return bool(tensor.outputs) or tensor.name in self.maps | self.outputs | self.workspace.captured

    def rows_of(self, tensor: gs.Tensor) -> Rows:
        """The rows of a tensor, taken from its map where it has none."""
        if tensor.name not in self.rows:
            known = self.workspace.types[tensor.name]
            assert known.shape is not None
            channels, height, width = self.sizes(tensor)
            needed = self.needed(tensor)
            positions, source = np.flatnonzero(needed).astype(np.int32), numbered(needed)
            name = self.workspace.free_name(f"{tensor.name}.rows")
            rows = Rows(
                gs.Variable(name), positions.size, source, (height, width), channels, known.elem_type, known.shape[0]
            )
            inputs = [tensor, self.table("index", positions), self.table("shape", np.array(rows.shape, np.int64))]
            node = gs.Node(COMPACT.name, f"{self.visited}/{name}", {}, inputs, [rows.tensor], domain=ops.DOMAIN)
            self.nodes.append(node)
            self.workspace.types[name] = TensorType(known.elem_type, (known.shape[0], rows.count, channels))
            self.let_stand(rows, tensor)
            self.maps.add(tensor.name)
        return self.rows[tensor.name]

    def _need_map(self, tensor: gs.Tensor) -> None:
        """Write a tensor out as a map, once."""
        if tensor.name not in self.rows or tensor.name in self.maps:
            return
        rows = self.rows[tensor.name]
        inputs = [
            rows.tensor,
            self.table("source", rows.source.reshape(-1, 1)),
            self.table("shape", np.array(rows.shape, np.int64)),
        ]
        name = self.workspace.free_name(f"{tensor.name}.map")
        self.nodes.append(gs.Node(EXPAND.name, name, {}, inputs, [tensor], domain=ops.DOMAIN))
        self.maps.add(tensor.name)

    def emit_standard(
        self,
        old: gs.Node,
        inputs: list[gs.Tensor],
        attributes: dict[str, Any],
        output: gs.Tensor,
        result: Rows,
        op: str | None = None,
    ) -> None:
        """Append a standard operator that gives rows, in place of one of a map."""
        new = self.emit(op or old.op, old.name, inputs, attributes, output, result, domain=old.domain)
        self.workspace.inherit(new, old)

    def emit(
        self,
        op: str,
        name: str,
        inputs: list[gs.Tensor],
        attributes: dict[str, Any],
        output: gs.Tensor,
        result: Rows,
        *,
        domain: str | None = ops.DOMAIN,
    ) -> gs.Node:
        """Append a node that gives rows like `result`, whose tensor is yet to be made, instead of the map `output`."""
        tensor = gs.Variable(self.workspace.free_name(f"{output.name}.rows"))
        node = gs.Node(op, name, attributes, inputs, [tensor], domain=domain)
        self.nodes.append(node)
        self.workspace.types[tensor.name] = TensorType(result.elem_type, (result.batch, result.count, result.channels))
        self.let_stand(replace(result, tensor=tensor), output)
        return node

    def sizes(self, tensor: gs.Tensor) -> tuple[int, int, int]:
        """Channels, height and width of a map."""
        known = self.workspace.types[tensor.name].shape
        assert known is not None
        channels, height, width = (int(d) for d in known[1:])  # type: ignore[arg-type]
        return channels, height, width

    def take(self, rows: Rows, numbers: Table) -> gs.Tensor:
        """Rows picked by number, repeated where a number is."""
        if rows.count == numbers.size and np.array_equal(numbers, np.arange(numbers.size)):
            return rows.tensor
        index = self.table("index", numbers.astype(np.int32))
        name = self.workspace.free_name(f"{rows.tensor.name}.picked")
        picked = gs.Variable(name)
        self.nodes.append(gs.Node("Gather", name, {"axis": 1}, [rows.tensor, index], [picked]))
        self.workspace.types[name] = TensorType(rows.elem_type, (rows.batch, int(numbers.size), rows.channels))
        return picked

    def let_stand(self, rows: Rows, tensor: gs.Tensor) -> None:
        """Let rows stand for a map."""
        needed = self._needed.get(tensor.name)
        self.rows[tensor.name] = replace(rows, needed=None) if needed is None else rows.at(needed)
        self.standing.setdefault(rows.tensor.name, []).append(tensor)

    def needed(self, tensor: gs.Tensor) -> Mask:
        """The positions of a map that somebody reads, bool [H, W]."""
        known = self._needed.get(tensor.name)
        return np.ones(map_size(self.workspace, tensor), bool) if known is None else known

    def table(self, kind: str, values: NDArray[Any]) -> gs.Constant:
        """A constant, named by its kind."""
        return self.workspace.add_table(kind, values)
