"""A model being rewritten: its message, and graphsurgeon's graph over it.

Graph work is done on onnx-graphsurgeon, but a model is not sent through its importer and exporter: those drop
metadata, doc strings, denotations, overridable initializers and more. `Workspace` keeps the protobuf message beside
the graph, and `Workspace.commit` writes back only what changed. Everything else stays as it came, to the byte.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from perfonnx import ops
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.files import LoadedModel
from perfonnx.model.proto import (
    TensorType,
    default_opset,
    is_standard,
    keep_only,
    names_in,
    set_field,
    shorten_domains,
    subgraphs,
    tidy,
    tidy_imports,
    topological_order,
    used_names,
)
from perfonnx.model.tensors import constant_value, is_external, to_array
from perfonnx.names import unique
from perfonnx.ops import foreign

_SMALL_TENSOR = 1024  # elements that shape inference may want to read (shapes, axes, scales)


ORIGIN_KEY = "perfonnx.from"
"""Key in a node's metadata that says which layer it comes from, and by which method."""


@dataclass
class Workspace:
    """A model being rewritten: the message, the graph over it, and what is known of its tensors.

    Attributes:
        model: The loaded message. Its graph's nodes and initializers are edited only by `commit`.
        graph: graphsurgeon's view, on which passes work.
        types: Tensor types by name, from shape inference.
        symbols: Names of the inputs' open sizes in them.
        doubts: Tensors whose size is not known because it is not the same for all inputs, or not told the same by all
            tools, and why.
        added: New initializers by name.
        folded: Values of tensors that the model's nodes compute from constants or fixed sizes, and of sparse
            initializers, by name; see `perfonnx.model.constants`.
        captured: Names that the bodies of If, Loop and Scan mention, and so may take from the main graph.
    """

    model: LoadedModel
    graph: gs.Graph
    types: dict[str, TensorType] = field(default_factory=dict)
    symbols: frozenset[str] = frozenset()
    doubts: dict[str, str] = field(default_factory=dict)
    added: dict[str, TensorProto] = field(default_factory=dict)
    folded: dict[str, TensorProto] = field(default_factory=dict)
    captured: frozenset[str] = frozenset()
    _reserved: frozenset[str] = frozenset()  # names that a new tensor may not have, although the graph knows none
    _origin: dict[int, NodeProto] = field(default_factory=dict)
    _inherited: dict[int, NodeProto] = field(default_factory=dict)
    _alive: list[gs.Node] = field(
        default_factory=list
    )  # removed nodes too: an id is unique only while its object lives
    _initializers: dict[str, TensorProto] = field(default_factory=dict)
    _constants: dict[str, gs.Constant] = field(default_factory=dict)

    @classmethod
    def open(cls, model: LoadedModel) -> Workspace:
        """Build the graph over a loaded model.

        Raises:
            PerfonnxError: graphsurgeon cannot import it, or a node of our own domain is not as its operator wants it.
        """
        try:
            with _quiet_graphsurgeon():
                graph = gs.import_onnx(_shown(model.proto))
        except Exception as error:  # a foreign file can fail anywhere in the importer
            raise PerfonnxError(f"{model.name}: the graph cannot be read: {one_line(error)}") from error
        workspace = cls(model, graph)
        workspace._origin = {id(n): p for n, p in zip(graph.nodes, model.proto.graph.node, strict=True)}
        workspace._alive = list(graph.nodes)
        graph.nodes[:] = [graph.nodes[i] for i in topological_order(model.proto.graph.node)]
        for tensor in model.proto.graph.initializer:
            if tensor.name:
                workspace._initializers.setdefault(tensor.name, tensor)
        bodies = [graph for node in model.proto.graph.node for graph in subgraphs(node)]
        workspace.captured = frozenset(name for graph in bodies for name in names_in(graph))
        workspace._reserved = workspace.captured.union(
            (v.name for v in model.proto.graph.value_info), *(_names_made_in(graph) for graph in bodies)
        )
        workspace._check_own_nodes()
        return workspace

    def _check_own_nodes(self) -> None:
        """Refuse nodes of our domain that no kernel takes: everything that follows relies on what they say."""
        for node in self.graph.nodes:
            if node.domain != ops.DOMAIN or node.op not in ops.OPERATORS:
                continue
            operator = ops.OPERATORS[node.op]

            def constant(position: int, node: gs.Node = node, operator: ops.Operator = operator) -> NDArray[Any] | None:
                proto = self.constant_proto(node.inputs[position])
                if proto is None or operator.inputs[position].is_table:
                    return None if proto is None else to_array(proto, self.model.directory)
                return np.broadcast_to(np.float32(0), tuple(proto.dims))

            problem = foreign.misfit(operator, node.attrs, [tensor.name for tensor in node.inputs], constant)
            if problem is not None:
                raise PerfonnxError(f"{self.model.name}: {node.op} node {node.name!r}: {problem}")

    @property
    def proto(self) -> ModelProto:
        """The message."""
        return self.model.proto

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        opset = default_opset(self.proto)
        assert opset is not None
        return opset

    def overridable(self) -> set[str]:
        """Initializers that a caller may replace because they are graph inputs too (from IR version 4 on)."""
        if self.proto.ir_version < 4:  # asked of every constant: without a walk over the initializers
            return set()
        sparse = {t.values.name for t in self.proto.graph.sparse_initializer}
        return {i.name for i in self.proto.graph.input} & (self._initializers.keys() | sparse)

    def sparse_initializers(self) -> list[SparseTensorProto]:
        """Those that count: no run can change them, and there is no dense one of their name."""
        taken = self.overridable() | self._initializers.keys()
        return [t for t in self.proto.graph.sparse_initializer if t.values.name not in taken]

    def held(self) -> Iterator[TensorProto]:
        """All tensors whose values are in the model, are new, or were computed beforehand."""
        yield from self._initializers.values()
        yield from self.added.values()
        yield from self.folded.values()

    def constant(self, tensor: gs.Tensor) -> NDArray[Any] | None:
        """The values of a tensor that no run can change; None where there are none, or they are not known."""
        proto = self.constant_proto(tensor)
        return None if proto is None else to_array(proto, self.model.directory)

    def constant_proto(self, tensor: gs.Tensor) -> TensorProto | None:
        """Like `constant`, without reading the values."""
        tensor = self.behind_identities(tensor)
        if tensor.name in self.added:
            return self.added[tensor.name]
        if tensor.name in self.folded:
            return self.folded[tensor.name]
        if tensor.name in self._initializers and isinstance(tensor, gs.Constant):
            return None if tensor.name in self.overridable() else self._initializers[tensor.name]
        producers = list(tensor.inputs)
        if len(producers) == 1 and producers[0].op == "Constant" and id(producers[0]) in self._origin:
            return constant_value(self._origin[id(producers[0])])
        return None

    @staticmethod
    def behind_identities(tensor: gs.Tensor) -> gs.Tensor:
        """The tensor whose values this one has: itself, or what Identity nodes pass on to it."""
        passed = {tensor.name}
        while len(tensor.inputs) == 1:
            (node,) = tensor.inputs
            if node.op != "Identity" or not is_standard(node) or len(node.inputs) != 1:
                break
            tensor = node.inputs[0]
            if tensor.name in passed:  # a cycle, which no valid model has
                break
            passed.add(tensor.name)
        return tensor

    def is_taken(self, name: str) -> bool:
        """Whether a tensor of this name would collide with one of the model, bodies of control flow included."""
        known = (self.types, self.added, self._initializers, self._reserved)
        return any(name in names for names in known) or name in self.graph.tensors()

    def free_name(self, name: str) -> str:
        """The name, with as many underscores behind it as a new tensor needs."""
        while self.is_taken(name):
            name += "_"
        return name

    def add_constant(self, name: str, values: NDArray[Any]) -> gs.Constant:
        """A new initializer. An equal one of that name is shared; a name that is taken by another gets a number."""
        proto = numpy_helper.from_array(np.ascontiguousarray(values), name)
        tensors = self.graph.tensors()
        taken = (tensors, self.added, self._initializers, self._reserved)
        numbered, count = name, 0
        while any(numbered in names for names in taken):
            known = self.added.get(numbered) or self._initializers.get(numbered)
            if known is not None and numbered not in self.overridable() and _same_values(known, proto):
                break
            count += 1
            numbered = f"{name}_{count}"
        else:
            proto.name = numbered
            self.added[numbered] = proto
            self.types[numbered] = TensorType(proto.data_type, tuple(proto.dims))
        existing = self._constants.get(numbered) or tensors.get(numbered)
        if not isinstance(existing, gs.Constant):
            existing = gs.Constant(numbered, values)
        self._constants[numbered] = existing  # it may be asked for again before a node reads it
        return existing

    def add_table(self, kind: str, values: NDArray[Any]) -> gs.Constant:
        """An initializer named after its content, so that layers with the same table share it."""
        digest = hashlib.sha256(repr((values.shape, values.dtype.str)).encode() + values.tobytes()).hexdigest()
        return self.add_constant(f"perfonnx.{kind}.{digest[:12]}", values)

    def replace(self, old: gs.Node, new: gs.Node) -> None:
        """Put a node in another's place; the old node's outputs must already be taken over or free."""
        index = next(i for i, node in enumerate(self.graph.nodes) if node is old)
        self.graph.nodes[index] = new
        old.inputs.clear()
        old.outputs.clear()

    def replace_by_several(self, old: gs.Node, nodes: Sequence[gs.Node], origin: str) -> None:
        """Put nodes in another's place, of which the last gives its output. They say in their metadata whence they are.

        They keep what the old one's metadata say else; the last one its doc string too.
        """
        output = old.outputs[0]
        known = self._origin.get(id(old)) or self._inherited.get(id(old)) or NodeProto()
        for node in nodes:
            kept = NodeProto(doc_string=known.doc_string if node is nodes[-1] else "")
            kept.metadata_props.extend(entry for entry in known.metadata_props if entry.key != ORIGIN_KEY)
            kept.metadata_props.add(key=ORIGIN_KEY, value=origin)
            self._inherited[id(node)] = kept
            self._alive.append(node)
        index = next(i for i, node in enumerate(self.graph.nodes) if node is old)
        self.graph.nodes[index : index + 1] = nodes
        old.inputs.clear()
        old.outputs.clear()
        nodes[-1].outputs = [output]

    def origin_of(self, node: gs.Node) -> str | None:
        """What a standard node that we made comes from, as layer/method; None for all others."""
        known = self._origin.get(id(node)) or self._inherited.get(id(node))
        entries = known.metadata_props if known is not None else ()
        return next((entry.value for entry in entries if entry.key == ORIGIN_KEY), None)

    def remove(self, node: gs.Node) -> None:
        """Take a node out of the graph."""
        index = next(i for i, other in enumerate(self.graph.nodes) if other is node)
        del self.graph.nodes[index]
        node.inputs.clear()
        node.outputs.clear()

    def bypass(self, node: gs.Node, follower: gs.Node) -> None:
        """Take out `follower`, the only reader of a node's output; the node produces its output instead."""
        output = follower.outputs[0]
        self.remove(follower)
        node.outputs = [output]

    def inherit(self, new: gs.Node, old: gs.Node) -> None:
        """Let a replacing node keep doc string and metadata of the one that it replaces."""
        if id(old) in self._origin:
            kept = NodeProto(doc_string=self._origin[id(old)].doc_string)
            kept.metadata_props.extend(self._origin[id(old)].metadata_props)
            self._inherited[id(new)] = kept
        elif id(old) in self._inherited:
            self._inherited[id(new)] = self._inherited[id(old)]
        self._alive.append(new)

    def skeleton(self, *, folded: bool = False) -> ModelProto:
        """The model without its large weights, which become typed graph inputs: cheap to check and to infer on.

        The default domain has its short name everywhere, which is all that onnx's checker knows. With `folded`, the
        values that are known stand in place of the nodes that compute them.
        """
        result = ModelProto()
        for name in ("ir_version", "opset_import", "functions", "domain"):
            set_field(result, name, getattr(self.proto, name))
        source, graph = self.proto.graph, result.graph
        graph.name = source.name or "graph"
        hidden = self.folded if folded else {}
        graph.node.extend(n for n in self.node_protos() if not n.output or not all(name in hidden for name in n.output))
        graph.input.extend(source.input)
        graph.output.extend(source.output)
        graph.value_info.extend(source.value_info)
        covered = hidden.keys() | self._initializers.keys()
        graph.sparse_initializer.extend(t for t in source.sparse_initializer if t.values.name not in covered)
        known = {i.name for i in graph.input}
        replaceable = self.overridable()  # whose values nothing may be inferred from
        for tensor in (*self._initializers.values(), *self.added.values(), *hidden.values()):
            if tensor.name in replaceable:
                continue
            if not is_external(tensor) and math.prod(tensor.dims) <= _SMALL_TENSOR:
                graph.initializer.append(tensor)
                if result.ir_version >= 4 or tensor.name in known:
                    continue
            if tensor.name not in known:
                graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        shorten_domains(result)
        tidy_imports(result)
        return result

    def commit(self) -> None:
        """Write the graph back into the message: changed nodes, new initializers, without those no longer used."""
        target = self.proto.graph
        nodes = GraphProto()
        nodes.node.extend(self.node_protos())
        before, after = set(used_names(target.node)), set(used_names(nodes.node))
        after |= {o.name for o in target.output}
        lost = before - after
        del target.node[:]
        target.node.extend(n for n in nodes.node if n.op_type != "Constant" or not lost.issuperset(n.output))
        produced = {name for node in target.node for name in node.output}
        keep = [i for i, t in enumerate(target.initializer) if t.name not in lost]
        keep_only(target.initializer, keep)
        sparse = target.sparse_initializer
        keep_only(sparse, [i for i, t in enumerate(sparse) if t.values.name not in lost])
        gone = {name for name in lost if name not in produced}
        keep_only(target.value_info, [i for i, v in enumerate(target.value_info) if v.name not in gone])
        keep_only(target.input, [i for i, v in enumerate(target.input) if v.name not in gone or self._is_feed(v)])
        # In front of the last one: some programs know that to be a model's last weight.
        place = max(0, len(target.initializer) - 1)
        for tensor in (t for name, t in self.added.items() if name in after):
            target.initializer.insert(place, tensor)
            place += 1
        tidy(self.proto)
        self._initializers = {t.name: t for t in target.initializer}
        self.added = {}

    def _is_feed(self, info: ValueInfoProto) -> bool:
        return info.name not in self._initializers

    def node_protos(self) -> list[NodeProto]:
        """The graph's nodes as messages, those that no pass changed as they came."""
        result = []
        kept = {node.name for node in self.graph.nodes if id(node) in self._origin or id(node) in self._inherited}
        for node in self.graph.nodes:
            origin = self._origin.get(id(node))
            if origin is None:
                exported = OnnxExporter.export_node(node)
                inherited = self._inherited.get(id(node))
                if inherited is not None:
                    exported.MergeFrom(inherited)
                else:  # a name of our own making gives way to the model's
                    exported.name = unique(exported.name, kept)
                    kept.add(exported.name)
                result.append(exported)
                continue
            inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
            if inputs != list(origin.input) or outputs != list(origin.output):
                changed = NodeProto()
                changed.CopyFrom(origin)
                del changed.input[:], changed.output[:]
                changed.input.extend(inputs)
                changed.output.extend(outputs)
                result.append(changed)
            else:
                result.append(origin)
        return result


def _same_values(a: TensorProto, b: TensorProto) -> bool:
    return bool(a.data_type == b.data_type and a.dims == b.dims and a.raw_data == b.raw_data)


def _names_made_in(graph: GraphProto) -> Iterator[str]:
    for named in (*graph.input, *graph.initializer, *graph.value_info):
        yield named.name
    for node in graph.node:
        yield from node.output
        for inner in subgraphs(node):
            yield from _names_made_in(inner)


# --- graphsurgeon's view ----------------------------------------------------------------------------------------------


_SHOWN_ATTRIBUTES = frozenset(
    AttributeProto.AttributeType.Value(name)
    for name in ("FLOAT", "INT", "STRING", "TENSOR", "GRAPH", "FLOATS", "INTS", "STRINGS")
)


def _shown(proto: ModelProto) -> ModelProto:
    """What graphsurgeon is shown: the structure, without data, functions and attributes that it cannot import."""
    shown = ModelProto(ir_version=proto.ir_version)
    shown.opset_import.extend(proto.opset_import)
    _show_graph(proto.graph, shown.graph)
    return shown


def _show_graph(source: GraphProto, target: GraphProto) -> None:
    target.name = source.name
    target.input.extend(source.input)
    target.output.extend(source.output)
    target.value_info.extend(source.value_info)
    target.sparse_initializer.extend(source.sparse_initializer)
    target.initializer.extend(_without_data(t) for t in source.initializer)
    for node in source.node:
        added = target.node.add(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
        if node.HasField("domain"):
            added.domain = node.domain
        for attribute in node.attribute:
            kind = attribute.type
            if kind not in _SHOWN_ATTRIBUTES or not _is_text((attribute.s, *attribute.strings)):
                continue
            if kind in (AttributeProto.TENSOR, AttributeProto.GRAPH) and not attribute.ref_attr_name:
                shown = added.attribute.add(name=attribute.name, type=kind)
                if kind == AttributeProto.TENSOR:
                    shown.t.CopyFrom(_without_data(attribute.t))
                else:
                    _show_graph(attribute.g, shown.g)
            else:
                added.attribute.append(attribute)


def _without_data(tensor: TensorProto) -> TensorProto:
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _is_text(values: Iterable[bytes]) -> bool:
    try:
        for value in values:
            value.decode()
    except UnicodeDecodeError:
        return False
    return True


class _quiet_graphsurgeon:  # noqa: N801
    """Context: graphsurgeon's warnings (types it does not know) are about what `Workspace` keeps itself."""

    def __enter__(self) -> None:
        from onnx_graphsurgeon.logger import G_LOGGER

        self._severity = G_LOGGER.severity
        G_LOGGER.severity = G_LOGGER.CRITICAL

    def __exit__(self, *_: object) -> None:
        from onnx_graphsurgeon.logger import G_LOGGER

        G_LOGGER.severity = self._severity
