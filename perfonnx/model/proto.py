"""What is asked of an ONNX message everywhere: its operators, names, types; and its form as onnx wants it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TensorShapeProto,
    ValueInfoProto,
    helper,
)

_LONG_DOMAIN = "ai.onnx"

_IMPLIED_DOMAINS = {"com.microsoft": 1, "com.microsoft.nchwc": 1, "ai.onnx.ml": 5}
"""Domains whose operators onnxruntime knows, with the newest version: it needs no import to use that."""


def is_standard(node: gs.Node | NodeProto) -> bool:
    """True for operators of the default domain."""
    return node.domain in (None, "", _LONG_DOMAIN)


def operator_name(node: NodeProto) -> str:
    """The operator, behind its domain where that is not the default one."""
    return str(node.op_type) if is_standard(node) else f"{node.domain}.{node.op_type}"


def node_name(node: NodeProto) -> str:
    """A node's name; one that has none is called after its result."""
    return node.name or next((name for name in node.output if name), node.op_type)


def default_opset(proto: ModelProto) -> int | None:
    """The version of the standard operators that a model imports; of two, the last one counts, as in onnxruntime."""
    versions = [imported.version for imported in proto.opset_import if imported.domain in ("", _LONG_DOMAIN)]
    return versions[-1] if versions else None


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes (bodies of If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of the graphs in their attributes."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def used_names(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """The names that nodes read, in the graphs in their attributes too."""
    for node in nodes:
        yield from node.input
        for graph in subgraphs(node):
            yield from names_in(graph)


def names_in(graph: GraphProto) -> Iterator[str]:
    """The names that a graph reads, its outputs among them."""
    yield from used_names(graph.node)
    yield from (o.name for o in graph.output)


# --- types of values --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorType:
    """Element type (an onnx enumerator) and shape: int, symbol or None for each dimension; None: rank unknown."""

    elem_type: int
    shape: tuple[int | str | None, ...] | None

    @property
    def byte_size(self) -> int | None:
        """Size with symbolic batch (first dimension) taken as 1; None when unknown."""
        if self.shape is None:
            return None
        symbolic_batch = bool(self.shape) and not isinstance(self.shape[0], int)
        dims = [d for d in self.shape if isinstance(d, int)]
        if len(dims) + symbolic_batch != len(self.shape) or self.elem_type in (0, TensorProto.STRING):
            return None
        try:
            item = int(helper.tensor_dtype_to_np_dtype(self.elem_type).itemsize)
        except (KeyError, TypeError):
            return None
        return math.prod(dims) * item


def value_type(info: ValueInfoProto) -> TensorType | None:
    """Type of a graph input, output or value_info; None where it is no tensor.

    Sizes below 1, which exporters write where they know none (Paddle -1, MXNet 0), are unknown.
    """
    if not info.type.HasField("tensor_type"):
        return None
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(tensor.elem_type, None)
    return TensorType(
        tensor.elem_type, tuple(d.dim_value if is_fixed(d) else d.dim_param or None for d in tensor.shape.dim)
    )


def shape_text(shape: Sequence[int | str | None]) -> str:
    """A shape for messages."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def is_fixed(dimension: TensorShapeProto.Dimension) -> bool:
    """Whether a declared dimension says a size."""
    return bool(dimension.HasField("dim_value") and dimension.dim_value > 0)


# --- what onnxruntime accepts and onnx does not -----------------------------------------------------------------------


def tidy(proto: ModelProto) -> None:
    """Make of a model that onnxruntime accepts and onnx does not the same one as onnx wants it.

    The nodes of the main graph come in topological order. Every domain is imported once, with the version that
    onnxruntime reads it in: the last of several imports, and for its own domains without an import the newest. Of
    several equal initializers of one name there is one, the dense one if one is sparse; of those without a name none.
    """
    graph = proto.graph
    order = topological_order(graph.node)
    if order != list(range(len(order))):
        nodes = [graph.node[i] for i in order]
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    tidy_imports(proto)
    first: dict[str, int] = {}
    for i, tensor in enumerate(graph.initializer):
        first.setdefault(tensor.name, i)
    first.pop("", None)
    keep_only(graph.initializer, list(first.values()))
    sparse = graph.sparse_initializer
    keep_only(sparse, [i for i, tensor in enumerate(sparse) if tensor.values.name not in first])


def tidy_imports(proto: ModelProto) -> None:
    """The part of `tidy` that is about the imported domains."""
    names = ["" if i.domain == _LONG_DOMAIN else i.domain for i in proto.opset_import]
    keep_only(proto.opset_import, [i for i, name in enumerate(names) if name not in names[i + 1 :]])
    used = {node.domain for node in all_nodes(proto.graph.node)}
    for domain in sorted(used & _IMPLIED_DOMAINS.keys() - set(names)):
        proto.opset_import.append(helper.make_opsetid(domain, _IMPLIED_DOMAINS[domain]))


def topological_order(nodes: Sequence[NodeProto]) -> list[int]:
    """The nodes' positions, so sorted that each reads what comes before it, and else as they are.

    Nodes that read each other in a circle have no order, and keep theirs.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in used_names([node]) if name in maker} for node in nodes]
    if all(needed < i for i, many in enumerate(needs) for needed in many):
        return list(range(len(nodes)))
    readers: list[list[int]] = [[] for _ in nodes]
    for i, many in enumerate(needs):
        for needed in many:
            readers[needed].append(i)
    missing = [len(many) for many in needs]
    ready = [i for i, count in enumerate(missing) if count == 0]  # ascending, and so a heap
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers[order[-1]]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    return order if len(order) == len(nodes) else list(range(len(nodes)))


def shorten_domains(proto: ModelProto) -> None:
    """Give the default domain its short name in the imports and in the nodes of the main graph."""
    for imported in proto.opset_import:
        if imported.domain == _LONG_DOMAIN:
            imported.domain = ""
    for node in all_nodes(proto.graph.node):
        if node.domain == _LONG_DOMAIN:
            node.ClearField("domain")


# --- editing ----------------------------------------------------------------------------------------------------------


def set_field(message: Any, name: str, value: Any) -> None:
    """Give a field of a message, of whatever kind, the value that a field of its kind has elsewhere."""
    if isinstance(value, (int, float, str, bytes)):
        setattr(message, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    else:
        getattr(message, name).extend(value)


def keep_only(repeated: Any, indices: Sequence[int]) -> None:
    """Delete the other elements of a repeated field."""
    wanted = set(indices)
    for i in reversed(range(len(repeated))):
        if i not in wanted:
            del repeated[i]
