"""Lower: regions of sampled layers work on rows, so that skipped positions are neither written nor read.

Every sampled layer gives rows and the table by which they stand for a map. Consumers read through the table; a map is
written out, once, where somebody needs it. The rules are local and exact: the lowered model computes what the canonical
one computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx import ops
from perfonnx.graph import activation_of, numpy_type, only_consumer, pool_window
from perfonnx.io import TensorType, Workspace
from perfonnx.ops.common import activation_from
from perfonnx.passes.base import Change, Pass, PassResult, State
from perfonnx.passes.convert import add_table
from perfonnx.passes.regions import (
    ELEMENTWISE,
    GLOBAL_POOLS,
    JOINING,
    POOLS,
    ZERO_TO_ZERO,
    Regions,
    is_sampled,
    works_on_rows,
)

Table = NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """A map that stands as rows.

    Attributes:
        tensor: The rows [N, P, C].
        count: P.
        source: int32 [H*W], the row of each position; -1: zeros.
        shape: (H, W).
        channels: C.
        elem_type: onnx element type.
        batch: First dimension.
    """

    tensor: gs.Tensor
    count: int
    source: Table
    shape: tuple[int, int]
    channels: int
    elem_type: int
    batch: int | str | None

    @property
    def has_fill(self) -> bool:
        """Whether some position has no row."""
        return bool((self.source < 0).any())

    def same_sampling(self, other: Rows) -> bool:
        """Whether row i of one stands for the positions that row i of the other stands for."""
        return self.count == other.count and np.array_equal(self.source, other.source)


def _read_per_row(rows: Rows, other: Rows) -> Table | None:
    """For each row, the other's row at the positions that it stands for; None where that is not one row."""
    present = rows.source >= 0
    numbers, wanted = rows.source[present], other.source[present]
    result = np.full(rows.count, -1, np.int32)
    result[numbers] = wanted
    exact = np.array_equal(result[numbers], wanted) and bool((other.source[~present] < 0).all())
    return result if exact else None


class Lower(Pass):
    """Moves regions of two layers or more to rows; a sampled layer among dense ones stays canonical."""

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Rewrite the graph."""
        nodes = list(workspace.graph.nodes)
        sampled = {id(n) for n in nodes if is_sampled(workspace, n)}
        if not sampled:
            return PassResult(modified=False)
        lowering = _Lowering(workspace, state, Regions(workspace, sampled, set()), sampled)
        for node in nodes:
            lowering.visit(node)
        lowering.finish()
        return PassResult(bool(lowering.changes), lowering.changes)


class _Lowering:
    def __init__(self, workspace: Workspace, state: State, regions: Regions, sampled: set[int]) -> None:
        self.workspace = workspace
        self.state = state
        self.regions = regions
        self.sampled = sampled
        self.rows: dict[str, Rows] = {}
        self.maps: set[str] = set()  # tensors that have rows and are written out as maps too
        self.nodes: list[gs.Node] = []
        self.convs: dict[str, gs.Node] = {}  # the SampledConv that gives a rows tensor
        self.adding: set[str] = set()  # those that add other rows
        self.changes: list[Change] = []
        self.outputs = {o.name for o in workspace.graph.outputs}

    def visit(self, node: gs.Node) -> None:
        """Emit a node: on rows where a rule applies, else as it is, with the maps that it reads."""
        rule = self._rule(node)
        if rule is None or not rule(node):
            for tensor in node.inputs:
                self._need_map(tensor)
            self.nodes.append(node)
            return
        output = node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        if output.name in self.workspace.captured or output.name in self.outputs:
            self._need_map(output)

    def finish(self) -> None:
        """Hand the new order of nodes to the graph."""
        self.workspace.graph.nodes[:] = self.nodes

    def _rule(self, node: gs.Node) -> Callable[[gs.Node], bool] | None:
        if id(node) in self.sampled:
            return self._sampled_conv
        if not works_on_rows(self.workspace, node) or not any(t.name in self.rows for t in node.inputs):
            return None
        if node.op in ELEMENTWISE:
            return self._elementwise
        if node.op in JOINING:
            return self._join
        return self._pool

    # --- rules -------------------------------------------------------------------------------------------------------

    def _sampled_conv(self, node: gs.Node) -> bool:
        x, y = node.inputs[0], node.outputs[0]
        if x.name not in self.rows and not self._read_as_rows(y):
            return False  # alone among dense layers: turning the map there and back is what the canonical kernel does
        rows_in = self._rows_of(x)
        mask = self.workspace.constant(node.inputs[3])
        assert mask is not None
        sites = np.flatnonzero(mask).astype(np.int32)
        rank = np.full(mask.size, -1, np.int32)
        rank[sites] = np.arange(sites.size, dtype=np.int32)
        source = rank
        if node.op == ops.perforated_conv.NAME:
            positions = self.workspace.constant(node.inputs[4])
            assert positions is not None
            source = np.where(positions[:, 0] < 0, -1, rank[positions[:, 0]]).astype(np.int32)
        known = self.workspace.types[y.name]
        assert known.shape is not None
        channels = int(known.shape[1])  # type: ignore[arg-type]
        dtype = numpy_type(rows_in.elem_type)
        attributes = {k: v for k, v in node.attrs.items() if k in ops.sampled_conv.ATTRIBUTES}
        new = self._emit(
            ops.sampled_conv.NAME,
            node.name,
            [
                rows_in.tensor,
                node.inputs[1],
                node.inputs[2],
                self._table("rows", rows_in.source),
                self._table("shape", np.array(rows_in.shape, np.int64)),
                self._table("sites", sites),
                self._table("zeros", np.zeros((1, 1, channels), dtype)),
                self._table("zero_index", np.zeros(sites.size, np.int32)),
            ],
            attributes,
            y,
            Rows(y, int(sites.size), source, mask.shape, channels, rows_in.elem_type, rows_in.batch),
        )
        self.convs[new.outputs[0].name] = new
        self.workspace.inherit(new, node)
        if node.name in self.state.rewritten:
            self.state.rewritten[node.name] = new
        self.changes.append(Change(node.name, "on rows"))
        return True

    def _elementwise(self, node: gs.Node) -> bool:
        rows = self.rows[node.inputs[0].name]
        if rows.has_fill and not self._keeps_zero(node):
            return False
        if rows.count == rows.source.size and not self._goes_on(node.outputs[0]):
            return False
        output = node.outputs[0]
        conv, activation = self._open_conv(node.inputs[0], node), activation_of(self.workspace, node)
        if conv is not None and activation is not None:
            conv.attrs.update(activation.attributes())
            self.rows[output.name] = rows
            return True
        inputs = [rows.tensor, *node.inputs[1:]]
        self._emit_standard(node, inputs, dict(node.attrs), output, rows)
        return True

    def _keeps_zero(self, node: gs.Node) -> bool:
        if node.op in ZERO_TO_ZERO:
            return True
        if node.op != "Clip":
            return False
        bounds = [node.attrs.get("min"), node.attrs.get("max")]
        for i, tensor in enumerate(node.inputs[1:3]):
            if tensor.name:
                values = self.workspace.constant(tensor)
                bounds[i] = None if values is None else float(values.reshape(()))
        return (bounds[0] is None or bounds[0] <= 0) and (bounds[1] is None or bounds[1] >= 0)

    def _join(self, node: gs.Node) -> bool:
        """Add and Concat: on the common refinement of the samplings, which is exact."""
        output = node.outputs[0]
        known = [self.rows.get(t.name) for t in node.inputs]
        if not all(known) and not self._goes_on(output):
            return False
        if any(r is not None and r.has_fill for r in known) and not self._all_alike(known):
            return False
        parts = [self._rows_of(t) for t in node.inputs]
        first = parts[0]
        source: NDArray[Any]
        alike = all(part.same_sampling(first) for part in parts)
        if node.op != "Concat" and len(parts) == 2 and self._add_into_conv(node, parts):
            return True
        if alike:
            source, count, tensors = first.source, first.count, [part.tensor for part in parts]
        else:
            keys, source = np.unique(np.stack([p.source for p in parts], axis=1), axis=0, return_inverse=True)
            source, count = source.reshape(-1).astype(np.int32), len(keys)
            if count == first.source.size and not self._goes_on(output):
                return False  # as many rows as positions: no work is saved
            tensors = [self._take(part, keys[:, i]) for i, part in enumerate(parts)]
        attributes = dict(node.attrs)
        channels = first.channels
        if node.op == "Concat":
            attributes["axis"] = 2
            channels = sum(part.channels for part in parts)
        known_output = self.workspace.types[output.name].shape
        assert known_output is not None
        result = Rows(output, count, source, first.shape, channels, first.elem_type, known_output[0])
        self._emit_standard(node, tensors, attributes, output, result)
        return True

    def _add_into_conv(self, node: gs.Node, parts: list[Rows]) -> bool:
        """Let one operand's convolution add the other operand before its activation.

        Each of its rows has to stand for positions that have one row in the other operand too.
        """
        if not self._one_batch(parts[0], parts[1]):
            return False  # the convolution's result has the batch of its own input, the sum may have the other's
        for own, other in ((1, 0), (0, 1)):
            conv = self._open_conv(node.inputs[own], node)
            if conv is None or conv.name in self.adding or node.inputs[0] is node.inputs[1]:
                continue
            added = _read_per_row(parts[own], parts[other])
            if added is None:
                continue
            self.adding.add(conv.name)
            conv.inputs[6] = parts[other].tensor
            conv.inputs[7] = self._table("sites", added)
            position = next(i for i, emitted in enumerate(self.nodes) if emitted is conv)
            self.nodes.append(self.nodes.pop(position))  # behind the other operand
            self.rows[node.outputs[0].name] = parts[own]
            return True
        return False

    def _one_batch(self, a: Rows, b: Rows) -> bool:
        """Whether neither of two batches can be 1 where the other is more."""
        if a.batch is not None or b.batch is not None:
            return a.batch == b.batch
        return len(self.workspace.graph.inputs) == 1

    def _open_conv(self, tensor: gs.Tensor, reader: gs.Node) -> gs.Node | None:
        """The SampledConv behind a tensor that only `reader` reads, if its activation is still free."""
        rows = self.rows.get(tensor.name)
        conv = self.convs.get(rows.tensor.name) if rows is not None else None
        if rows is None or conv is None or rows.tensor.outputs or tensor.name in self.maps:
            return None
        if only_consumer(self.workspace, tensor) is not reader:
            return None
        return conv if activation_from(conv.attrs).is_identity else None

    @staticmethod
    def _all_alike(known: list[Rows | None]) -> bool:
        first = known[0]
        return first is not None and all(r is not None and r.same_sampling(first) for r in known)

    def _take(self, rows: Rows, numbers: Table) -> gs.Tensor:
        """Rows picked by number, repeated where a number is."""
        if rows.count == numbers.size and np.array_equal(numbers, np.arange(numbers.size)):
            return rows.tensor
        index = self._table("pick", numbers.astype(np.int32))
        name = self._unique(f"{rows.tensor.name}.picked")
        picked = gs.Variable(name)
        node = gs.Node("Gather", name, {"axis": 1}, [rows.tensor, index], [picked])
        self.nodes.append(node)
        self.workspace.types[name] = TensorType(rows.elem_type, (rows.batch, int(numbers.size), rows.channels))
        return picked

    def _pool(self, node: gs.Node) -> bool:
        rows, output = self.rows[node.inputs[0].name], node.outputs[0]
        if rows.count == rows.source.size and not self._goes_on(output):
            return False  # a dense map: onnxruntime's own pool is as good
        known = self.workspace.types[output.name]
        assert known.shape is not None
        shape = (int(known.shape[2]), int(known.shape[3]))  # type: ignore[arg-type]
        if node.op in GLOBAL_POOLS:
            op, attributes = (
                GLOBAL_POOLS[node.op],
                {"kernel_shape": list(rows.shape), "strides": [1, 1], "pads": [0] * 4},
            )
            ceil_mode, dilations = 0, [1, 1]
        else:
            window = pool_window(self.workspace, node)
            assert window is not None
            op = POOLS[node.op]
            attributes = {
                "kernel_shape": list(window.kernel),
                "strides": list(window.strides),
                "pads": list(window.pads),
            }
            ceil_mode, dilations = int(window.ceil_mode), list(window.dilations)
        attributes["ceil_mode"] = ceil_mode  # type: ignore[assignment]
        if op == ops.sampled_pool.AVERAGE:
            attributes["count_include_pad"] = int(node.attrs.get("count_include_pad", 0))  # type: ignore[assignment]
        else:
            attributes["dilations"] = dilations
        positions = np.arange(shape[0] * shape[1], dtype=np.int32)
        inputs = [
            rows.tensor,
            self._table("rows", rows.source),
            self._table("shape", np.array(rows.shape, np.int64)),
            self._table("sites", positions),
        ]
        result = Rows(output, positions.size, positions, shape, rows.channels, rows.elem_type, rows.batch)
        self._emit(op, node.name, inputs, attributes, output, result)
        return True

    # --- rows and maps -----------------------------------------------------------------------------------------------

    def _read_as_rows(self, tensor: gs.Tensor) -> bool:
        """Whether some consumer of a sampled layer's output works on rows."""
        for consumer in tensor.outputs:
            if id(consumer) in self.sampled:
                return True
            if not any(consumer is n for n in self.workspace.graph.nodes) or not works_on_rows(
                self.workspace, consumer
            ):
                continue
            if consumer.op not in JOINING or self._goes_on(consumer.outputs[0]):
                return True
        return False

    def _goes_on(self, tensor: gs.Tensor) -> bool:
        """Whether rows of this tensor reach a sampled layer."""
        return tensor.name in self.regions.wanted

    def _rows_of(self, tensor: gs.Tensor) -> Rows:
        """The rows of a tensor, taken from its map where it has none."""
        if tensor.name not in self.rows:
            known = self.workspace.types[tensor.name]
            assert known.shape is not None
            channels, height, width = (int(d) for d in known.shape[1:])  # type: ignore[arg-type]
            positions = np.arange(height * width, dtype=np.int32)
            name = self._unique(f"{tensor.name}.rows")
            rows = Rows(
                gs.Variable(name), positions.size, positions, (height, width), channels, known.elem_type, known.shape[0]
            )
            node = gs.Node(
                ops.compact.NAME, name, {}, [tensor, self._table("sites", positions)], [rows.tensor], domain=ops.DOMAIN
            )
            self.nodes.append(node)
            self.workspace.types[name] = TensorType(known.elem_type, (known.shape[0], rows.count, channels))
            self.rows[tensor.name] = rows
            self.maps.add(tensor.name)
        return self.rows[tensor.name]

    def _need_map(self, tensor: gs.Tensor) -> None:
        """Write a tensor out as a map, once."""
        if tensor.name not in self.rows or tensor.name in self.maps:
            return
        rows = self.rows[tensor.name]
        inputs = [
            rows.tensor,
            self._table("source", rows.source.reshape(-1, 1)),
            self._table("shape", np.array(rows.shape, np.int64)),
        ]
        name = self._unique(f"{tensor.name}.map")
        self.nodes.append(gs.Node(ops.expand.NAME, name, {}, inputs, [tensor], domain=ops.DOMAIN))
        self.maps.add(tensor.name)

    def _emit_standard(
        self, old: gs.Node, inputs: list[gs.Tensor], attributes: dict[str, Any], output: gs.Tensor, result: Rows
    ) -> None:
        new = self._emit(old.op, old.name, inputs, attributes, output, result, domain=old.domain)
        self.workspace.inherit(new, old)

    def _emit(
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
        tensor = gs.Variable(self._unique(f"{output.name}.rows"))
        node = gs.Node(op, name, attributes, inputs, [tensor], domain=domain)
        self.nodes.append(node)
        self.workspace.types[tensor.name] = TensorType(result.elem_type, (result.batch, result.count, result.channels))
        self.rows[output.name] = replace(result, tensor=tensor)
        return node

    def _table(self, kind: str, values: NDArray[Any]) -> gs.Constant:
        return add_table(self.workspace, kind, values)

    def _unique(self, name: str) -> str:
        while name in self.workspace.types or name in self.workspace.graph.tensors():
            name += "_"
        return name
