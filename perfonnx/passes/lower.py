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
from onnx import TensorProto

from perfonnx import ops
from perfonnx.model.layers import activation_of, input_of, numpy_type, only_consumer, set_input, slope_of
from perfonnx.model.proto import TensorType, is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.ops.compact import COMPACT
from perfonnx.ops.expand import EXPAND
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV
from perfonnx.ops.sampled_conv import SAMPLED_CONV
from perfonnx.ops.sampled_pool import SAMPLED_AVERAGE_POOL
from perfonnx.ops.sampled_radius_adaptive_conv import SAMPLED_RADIUS_ADAPTIVE_CONV
from perfonnx.passes.absorb import activate, has_activation
from perfonnx.passes.base import Change, Pass, PassResult, State
from perfonnx.passes.convert import add_table
from perfonnx.passes.positions import MOVES_POSITIONS, moved_positions
from perfonnx.passes.regions import (
    ELEMENTWISE,
    GLOBAL_POOLS,
    INSTANCE_NORMALIZATION,
    JOINING,
    LRN,
    POOLS,
    ZERO_TO_ZERO,
    Regions,
    is_pointwise,
    is_sampled,
    window_on_rows,
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


def _rows_beside(own: Rows, other: Rows) -> Table | None:
    """For each row the other's row, -1 for zeros, where that is one row for all positions a row stands for."""
    if own.has_fill:
        return np.arange(own.count, dtype=np.int32) if own.same_sampling(other) else None
    beside = np.full(own.count, -1, np.int32)
    beside[own.source] = other.source
    return beside if np.array_equal(beside[own.source], other.source) else None


def _distinct(source: Table) -> tuple[Table, Table]:
    """The first position of each row that `source` names, in raster order, and the number of each position's row.

    A pointwise function of a map need be computed once per row: positions filled from one row get one result.
    """
    _, first, row = np.unique(source, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return first[order].astype(np.int32), rank[row.reshape(-1)].astype(np.int32)


class Lower(Pass):
    """Moves regions of two layers or more to rows; a sampled layer among dense ones stays canonical."""

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Rewrite the graph."""
        nodes = list(workspace.graph.nodes)
        on_maps = {id(node) for name, node in state.rewritten.items() if name in state.on_maps}
        sampled = {id(n) for n in nodes if id(n) not in on_maps and is_sampled(workspace, n)}
        if not sampled:
            return PassResult(modified=False)
        regions = Regions(workspace, dict.fromkeys(sampled, 1.0), set(), kept=state.kept)
        lowering = _Lowering(workspace, state, regions, sampled)
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
        self.standing: dict[str, list[gs.Tensor]] = {}  # the maps that one tensor of rows stands for
        self.maps: set[str] = set()  # tensors that have rows and are written out as maps too
        self.nodes: list[gs.Node] = []
        self.convs: dict[str, gs.Node] = {}  # the SampledConv that gives a rows tensor
        self.adding: set[str] = set()  # those that add other rows
        self.changes: list[Change] = []
        self.outputs = {o.name for o in workspace.graph.outputs}
        self.visited = ""  # name of the node that is looked at

    def visit(self, node: gs.Node) -> None:
        """Emit a node: on rows where a rule applies, else as it is, with the maps that it reads."""
        self.visited = node.name
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
            return self._radius_adaptive if node.op == RADIUS_ADAPTIVE_CONV.name else self._sampled_conv
        if node.op in ("Flatten", "Reshape") and is_standard(node) and node.inputs[0].name in self.rows:
            return self._flatten
        if not self.regions.passes(node) or not any(t.name in self.rows for t in node.inputs):
            return None
        if node.op in ELEMENTWISE:
            return self._elementwise
        if node.op in JOINING:
            return self._join
        if node.op in MOVES_POSITIONS:
            return self._move_positions
        return {LRN: self._lrn, INSTANCE_NORMALIZATION: self._instance_normalization}.get(node.op, self._pool)

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
        if mask.all() and is_pointwise(node):
            sites, source = _distinct(rows_in.source)
        elif node.op == PERFORATED_CONV.name:
            positions = self.workspace.constant(node.inputs[4])
            assert positions is not None
            source = np.where(positions[:, 0] < 0, -1, rank[positions[:, 0]]).astype(np.int32)
        known = self.workspace.types[y.name]
        assert known.shape is not None
        channels = int(known.shape[1])  # type: ignore[arg-type]
        dtype = numpy_type(rows_in.elem_type)
        taken = {attribute.name for attribute in SAMPLED_CONV.attributes}
        attributes = {k: v for k, v in node.attrs.items() if k in taken}
        new = self._emit(
            SAMPLED_CONV.name,
            node.name,
            [
                rows_in.tensor,
                node.inputs[1],
                node.inputs[2],
                self._table("index", rows_in.source),
                self._table("shape", np.array(rows_in.shape, np.int64)),
                self._table("index", sites),
                self._table("zeros", np.zeros((1, 1, channels), dtype)),
                self._table("index", np.zeros(1, np.int32)),
            ],
            attributes,
            y,
            Rows(y, int(sites.size), source, mask.shape, channels, rows_in.elem_type, rows_in.batch),
        )
        self.convs[new.outputs[0].name] = new
        self._stands_for(new, node)
        return True

    def _radius_adaptive(self, node: gs.Node) -> bool:
        """Every position is a site and gets a row, so that rows save nothing to those that only read the map."""
        x, y = node.inputs[0], node.outputs[0]
        if x.name not in self.rows and not self._goes_on(y):
            return False
        rows_in = self._rows_of(x)
        known = self.workspace.types[y.name].shape
        assert known is not None
        channels, height, width = (int(d) for d in known[1:])  # type: ignore[arg-type]
        positions = np.arange(height * width, dtype=np.int32)
        inputs = [
            rows_in.tensor,
            node.inputs[1],
            self._or_zeros(node, 2, channels, rows_in.elem_type),
            node.inputs[3],
            self._or_zeros(node, 4, 1, rows_in.elem_type),
            self._or_zeros(node, 5, channels, rows_in.elem_type),
            self._table("index", rows_in.source),
            self._table("shape", np.array(rows_in.shape, np.int64)),
            self._table("index", positions),
        ]
        result = Rows(y, positions.size, positions, (height, width), channels, rows_in.elem_type, rows_in.batch)
        op = SAMPLED_RADIUS_ADAPTIVE_CONV.name
        self._stands_for(self._emit(op, node.name, inputs, dict(node.attrs), y, result), node)
        return True

    def _or_zeros(self, node: gs.Node, position: int, size: int, elem_type: int) -> gs.Tensor:
        """An optional input of a node, written out."""
        if position < len(node.inputs) and node.inputs[position].name:
            return node.inputs[position]
        return self._table("zeros", np.zeros(size, numpy_type(elem_type)))

    def _stands_for(self, new: gs.Node, old: gs.Node) -> None:
        """Record that one of our layers is on rows now, with its slopes."""
        slope = input_of(old, "slope")
        if slope is not None:
            set_input(new, "slope", slope)
        self.workspace.inherit(new, old)
        if old.name in self.state.rewritten:
            self.state.rewritten[old.name] = new
        self.changes.append(Change(old.name, "on rows"))

    def _elementwise(self, node: gs.Node) -> bool:
        rows = self.rows[node.inputs[0].name]
        if rows.has_fill and not self._keeps_zero(node):
            return False
        output = node.outputs[0]
        conv, activation = self._open_conv(node.inputs[0], node), activation_of(self.workspace, node)
        if conv is not None and activation is not None:
            activate(self.workspace, conv, activation)
            self._let_stand(rows, output)
            return True
        if not self._is_worth_it(node):
            return False
        inputs = [rows.tensor, *node.inputs[1:]]
        if node.op == "PRelu":
            slope = slope_of(self.workspace, node)
            assert slope is not None
            inputs[1] = self._table("slope", slope)
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

    def _move_positions(self, node: gs.Node) -> bool:
        """Slice, Pad and nearest Resize: rows stay what they are, the table says who reads them."""
        positions = moved_positions(self.workspace, node)
        if positions is None or not self._goes_on(node.outputs[0]):
            return False
        rows, output = self.rows[node.inputs[0].name], node.outputs[0]
        known = self.workspace.types[output.name].shape
        assert known is not None
        source = np.where(positions < 0, -1, rows.source[positions]).astype(np.int32)
        shape = (int(known[2]), int(known[3]))  # type: ignore[arg-type]
        self._let_stand(replace(rows, source=source, shape=shape), output)
        return True

    def _lrn(self, node: gs.Node) -> bool:
        """Gives x / (bias + alpha * mean of x^2 over near channels) ^ beta; channels are the last axis of rows."""
        if not self._is_worth_it(node):
            return False
        rows, size = self.rows[node.inputs[0].name], int(node.attrs["size"])
        alpha, beta, bias = (float(node.attrs.get(k, v)) for k, v in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
        before = (size - 1) // 2
        window = {"kernel_shape": [size], "pads": [before, size - 1 - before], "count_include_pad": 1}
        emit = _Formula(self, node, rows)
        x = emit.widened(rows.tensor)
        mean = emit("AveragePool", emit("Mul", x, x), **window)
        base = emit("Add", emit("Mul", mean, emit.number(alpha)), emit.number(bias))
        if beta == 0.75:  # onnxruntime's Pow takes several times as long as three square roots
            root = emit("Sqrt", base)
            power = emit("Mul", root, emit("Sqrt", root))
        else:
            power = emit("Pow", base, emit.number(beta))
        emit.finish("Div", x, power)
        return True

    def _instance_normalization(self, node: gs.Node) -> bool:
        """Mean and variance over the map that the rows stand for.

        A long sum in float32 rounds the mean. What is left of it is found where it is small, in the centred values: far
        from zero and close to each other, values would else be shifted by more than their own rounding.
        """
        rows = self.rows[node.inputs[0].name]
        if rows.has_fill or not self._is_worth_it(node):
            return False
        emit = _Formula(self, node, rows)
        x, scale, bias = (emit.widened(t) for t in (rows.tensor, node.inputs[1], node.inputs[2]))
        centred = emit("Sub", x, emit.mean(x))
        rest = emit.mean(centred)
        variance = emit("Sub", emit.mean(emit("Mul", centred, centred)), emit("Mul", rest, rest))
        deviation = emit("Sqrt", emit("Add", variance, emit.number(float(node.attrs.get("epsilon", 1e-5)))))
        factor = emit("Div", scale, deviation)
        emit.finish("Add", emit("Mul", centred, factor), emit("Sub", bias, emit("Mul", rest, factor)))
        return True

    def _is_worth_it(self, node: gs.Node) -> bool:
        rows = self.rows[node.inputs[0].name]
        return rows.count < rows.source.size or self._goes_on(node.outputs[0])

    def _flatten(self, node: gs.Node) -> bool:
        """Positions of one row share one column of the matrix that reads them: their weights are added up.

        Only where there are fewer rows than positions: else the weights, mostly a network's largest, would be rewritten
        to save the turn of a small map.
        """
        rows, output = self.rows[node.inputs[0].name], node.outputs[0]
        flat, reader = self.workspace.types.get(output.name), only_consumer(self.workspace, output)
        columns = rows.channels * rows.source.size
        if rows.count >= rows.source.size or flat is None or flat.shape is None or reader is None:
            return False
        if (
            len(flat.shape) != 2
            or flat.shape[1] != columns
            or not is_standard(reader)
            or reader.inputs[0] is not output
        ):
            return False
        if reader.op not in ("Gemm", "MatMul") or reader.attrs.get("transA", 0):
            return False
        weight = self.workspace.constant(reader.inputs[1])
        if weight is None or weight.ndim != 2 or weight.dtype != numpy_type(rows.elem_type):
            return False
        turned = bool(reader.attrs.get("transB", 0))
        matrix = weight.T if turned else weight
        if len(matrix) != columns:
            return False
        by_position = matrix.reshape(rows.channels, rows.source.size, -1).swapaxes(0, 1)
        present = rows.source >= 0  # positions of zeros add nothing
        by_row = np.zeros((rows.count, *by_position.shape[1:]), np.float32)
        np.add.at(by_row, rows.source[present], by_position[present])
        summed = by_row.reshape(rows.count * rows.channels, -1).astype(weight.dtype)
        reader.inputs[1] = self.workspace.add_constant(
            f"{reader.inputs[1].name}.summed", summed.T if turned else summed
        )
        name = self._unique(f"{output.name}.rows")
        result = gs.Variable(name)
        new = gs.Node("Flatten", node.name, {"axis": 1}, [rows.tensor], [result])
        self.nodes.append(new)
        self.workspace.inherit(new, node)
        self.workspace.types[name] = TensorType(rows.elem_type, (rows.batch, rows.count * rows.channels))
        reader.inputs[0] = result
        return True

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
            if count >= first.source.size and not self._goes_on(output):
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
            z_source = _rows_beside(parts[own], parts[other])
            if z_source is None:
                continue
            self.adding.add(conv.name)
            conv.inputs[6] = parts[other].tensor
            conv.inputs[7] = self._table("index", z_source)
            position = next(i for i, emitted in enumerate(self.nodes) if emitted is conv)
            self.nodes.append(self.nodes.pop(position))  # behind the other operand
            self._let_stand(parts[own], node.outputs[0])
            return True
        return False

    @staticmethod
    def _one_batch(a: Rows, b: Rows) -> bool:
        """Whether neither of two batches can be 1 where the other is more."""
        return a.batch is not None and a.batch == b.batch

    def _open_conv(self, tensor: gs.Tensor, reader: gs.Node) -> gs.Node | None:
        """The SampledConv behind a tensor if nobody but `reader` reads its result and its activation is still free."""
        rows = self.rows.get(tensor.name)
        conv = self.convs.get(rows.tensor.name) if rows is not None else None
        if rows is None or conv is None or rows.tensor.outputs or tensor.name in self.maps:
            return None
        if only_consumer(self.workspace, tensor) is not reader:
            return None
        if any(other is not tensor and self._is_read(other) for other in self.standing[rows.tensor.name]):
            return None  # its rows stand for another map too, from which this one was cropped or resized
        return None if has_activation(self.workspace, conv) else conv

    def _is_read(self, tensor: gs.Tensor) -> bool:
        """Whether somebody still needs a map that stands as rows; nodes that were visited no longer read any."""
        return bool(tensor.outputs) or tensor.name in self.maps | self.outputs | self.workspace.captured

    @staticmethod
    def _all_alike(known: list[Rows | None]) -> bool:
        first = known[0]
        return first is not None and all(r is not None and r.same_sampling(first) for r in known)

    def _take(self, rows: Rows, numbers: Table) -> gs.Tensor:
        """Rows picked by number, repeated where a number is."""
        if rows.count == numbers.size and np.array_equal(numbers, np.arange(numbers.size)):
            return rows.tensor
        index = self._table("index", numbers.astype(np.int32))
        name = self._unique(f"{rows.tensor.name}.picked")
        picked = gs.Variable(name)
        node = gs.Node("Gather", name, {"axis": 1}, [rows.tensor, index], [picked])
        self.nodes.append(node)
        self.workspace.types[name] = TensorType(rows.elem_type, (rows.batch, int(numbers.size), rows.channels))
        return picked

    def _pool(self, node: gs.Node) -> bool:
        rows, output = self.rows[node.inputs[0].name], node.outputs[0]
        if rows.count >= rows.source.size and not self._goes_on(output):
            return False  # a dense map: onnxruntime's own pool is as good
        known = self.workspace.types[output.name]
        assert known.shape is not None
        shape = (int(known.shape[2]), int(known.shape[3]))  # type: ignore[arg-type]
        if node.op in GLOBAL_POOLS:
            op, attributes = (
                GLOBAL_POOLS[node.op],
                {"kernel_shape": list(rows.shape), "strides": [1, 1], "pads": [0] * 4},
            )
            dilations = [1, 1]
        else:
            window = window_on_rows(self.workspace, node)
            assert window is not None
            op = POOLS[node.op]
            attributes = {
                "kernel_shape": list(window.kernel),
                "strides": list(window.strides),
                "pads": list(window.pads),
            }
            dilations = list(window.dilations)
        attributes["ceil_mode"] = 0  # type: ignore[assignment]
        if op == SAMPLED_AVERAGE_POOL.name:
            attributes["count_include_pad"] = int(node.attrs.get("count_include_pad", 0))  # type: ignore[assignment]
        else:
            attributes["dilations"] = dilations
        positions = np.arange(shape[0] * shape[1], dtype=np.int32)
        inputs = [
            rows.tensor,
            self._table("index", rows.source),
            self._table("shape", np.array(rows.shape, np.int64)),
            self._table("index", positions),
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
            if not any(consumer is n for n in self.workspace.graph.nodes) or not self.regions.passes(consumer):
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
            inputs = [tensor, self._table("index", positions), self._table("shape", np.array(rows.shape, np.int64))]
            node = gs.Node(COMPACT.name, f"{self.visited}/{name}", {}, inputs, [rows.tensor], domain=ops.DOMAIN)
            self.nodes.append(node)
            self.workspace.types[name] = TensorType(known.elem_type, (known.shape[0], rows.count, channels))
            self._let_stand(rows, tensor)
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
        self.nodes.append(gs.Node(EXPAND.name, name, {}, inputs, [tensor], domain=ops.DOMAIN))
        self.maps.add(tensor.name)

    def _emit_standard(
        self,
        old: gs.Node,
        inputs: list[gs.Tensor],
        attributes: dict[str, Any],
        output: gs.Tensor,
        result: Rows,
        op: str | None = None,
    ) -> None:
        new = self._emit(op or old.op, old.name, inputs, attributes, output, result, domain=old.domain)
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
        self._let_stand(replace(result, tensor=tensor), output)
        return node

    def _let_stand(self, rows: Rows, tensor: gs.Tensor) -> None:
        self.rows[tensor.name] = rows
        self.standing.setdefault(rows.tensor.name, []).append(tensor)

    def _table(self, kind: str, values: NDArray[Any]) -> gs.Constant:
        return add_table(self.workspace, kind, values)

    def _unique(self, name: str) -> str:
        while self.workspace.is_taken(name):
            name += "_"
        return name


class _Formula:
    """Emits the standard operators that take the place of one node of a map; they keep its rows' sampling.

    They compute in float32: squares of float16 are infinite from 256 on, and a mean rounded to it shifts what is left.
    """

    def __init__(self, lowering: _Lowering, node: gs.Node, rows: Rows) -> None:
        self.lowering = lowering
        self.node = node
        self.rows = rows
        self.count = 0

    def __call__(self, op: str, *inputs: gs.Tensor, **attributes: Any) -> gs.Tensor:
        """One step; its result."""
        self.count += 1
        name = self.lowering._unique(f"{self.node.outputs[0].name}.step{self.count}")
        result = gs.Variable(name)
        domain = ops.DOMAIN if op in ops.LOWERED else None
        self.lowering.nodes.append(gs.Node(op, name, attributes, list(inputs), [result], domain=domain))
        return result

    @property
    def _is_wide(self) -> bool:
        return self.rows.elem_type == TensorProto.FLOAT

    def widened(self, tensor: gs.Tensor) -> gs.Tensor:
        """A tensor of the rows' type as float32."""
        return tensor if self._is_wide else self("Cast", tensor, to=TensorProto.FLOAT)

    def number(self, value: float) -> gs.Constant:
        """A constant."""
        return self.lowering._table("number", np.array(value, np.float32))

    def mean(self, x: gs.Tensor) -> gs.Tensor:
        """The mean [N, 1, C] over all positions; first along the map's lines, so that long sums stay exact."""
        height, width = self.rows.shape
        lines = self._average(x, self.rows.source, (height, width), (1, width))
        return self._average(lines, np.arange(height, dtype=np.int32), (height, 1), (height, 1))

    def _average(self, x: gs.Tensor, source: Table, shape: tuple[int, int], kernel: tuple[int, int]) -> gs.Tensor:
        """Averages over windows that lie side by side."""
        table = self.lowering._table
        sites = np.arange(shape[0] // kernel[0], dtype=np.int32)
        return self(
            SAMPLED_AVERAGE_POOL.name,
            x,
            table("index", source),
            table("shape", np.array(shape, np.int64)),
            table("index", sites),
            kernel_shape=list(kernel),
            strides=list(kernel),
            pads=[0] * 4,
            ceil_mode=0,
            count_include_pad=0,
        )

    def finish(self, op: str, *inputs: gs.Tensor) -> None:
        """The last step, which carries the node's name."""
        attributes: dict[str, Any] = {}
        if not self._is_wide:
            inputs, op, attributes = (self(op, *inputs),), "Cast", {"to": self.rows.elem_type}
        self.lowering._emit_standard(self.node, list(inputs), attributes, self.node.outputs[0], self.rows, op)
