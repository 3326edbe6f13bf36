"""Models in and out: path, bytes, `ModelProto` or `onnx_graphsurgeon.Graph`; external data; atomic writing.

Graph work is done on onnx-graphsurgeon, but a model is not sent through its importer and exporter: those drop
metadata, doc strings, denotations, overridable initializers and more. `Workspace` keeps the protobuf message beside
the graph, and `Workspace.commit` writes back only what changed. Everything else stays as it came, to the byte.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TensorShapeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from perfonnx.errors import PerfonnxError
from perfonnx.files import Digested, data_name, drafts, publish_model
from perfonnx.files import check_target as check_target
from perfonnx.files import write_atomically as write_atomically

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | gs.Graph"

MIN_OPSET = 7
MAX_MESSAGE = 2**31 - 2**20
"""Bytes. A protobuf message ends at 2 GiB; the margin is for everything that is not a tensor."""

_LONG_DOMAIN = "ai.onnx"
_IMPLIED_DOMAINS = {"com.microsoft": 1, "com.microsoft.nchwc": 1, "ai.onnx.ml": 5}
"""Domains whose operators onnxruntime knows, with the newest version: it needs no import to use that."""

_SMALL_TENSOR = 1024  # elements that shape inference may want to read (shapes, axes, scales)
_STREAMED = 1 << 24  # bytes; tensors from here on are written one by one
_LARGEST_DENSE = 1 << 27  # elements of a sparse tensor, zeros included
_EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the message, where every reader finds them


@dataclass
class LoadedModel:
    """A model in memory.

    Attributes:
        proto: The message.
        directory: Where its external data are looked for, None when it has none or they are loaded.
        name: The file's name in that directory, or a name for messages.
    """

    proto: ModelProto
    directory: Path | None
    name: str


def load(source: ModelSource) -> LoadedModel:
    """Open a model without reading its external data.

    Args:
        source: A path, the bytes of a model, a `ModelProto` (which is copied) or a graphsurgeon graph.

    Raises:
        PerfonnxError: Not a model, or one that this version cannot read.
    """
    if isinstance(source, gs.Graph):
        try:
            loaded = LoadedModel(gs.export_onnx(source), None, source.name or "graph")
        except Exception as error:  # graphsurgeon raises many kinds
            raise PerfonnxError(f"the graphsurgeon graph cannot be exported: {one_line(error)}") from error
    elif isinstance(source, ModelProto):
        proto = ModelProto()
        proto.CopyFrom(source)
        loaded = LoadedModel(proto, None, source.graph.name or "model")
    elif isinstance(source, bytes):
        loaded = LoadedModel(_parse(source, "the bytes"), None, "model")
    else:
        path = Path(source)
        try:
            if path.exists() and not (path.is_file() or path.is_dir()):  # a device has no end, a pipe maybe no writer
                raise PerfonnxError(f"{path}: is not a regular file; give the path of an ONNX file")
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise PerfonnxError(f"{path}: {reason}; give the path of an ONNX file") from error
        loaded = LoadedModel(_parse(data, str(path)), path.parent, path.name)
    _check_readable(loaded)
    _load_inner_tensors(loaded)
    return loaded


def _parse(data: bytes, name: str) -> ModelProto:
    try:
        proto = ModelProto.FromString(data)
    except (DecodeError, RuntimeError) as error:
        raise PerfonnxError(f"{name}: not an ONNX model, or cut short ({one_line(error)})") from error
    _check_text(proto, name)
    return proto


def _check_text(message: Message, name: str) -> None:
    """Refuse names that are not UTF-8: protobuf hands them out as bytes, and nothing downstream expects that."""
    for descriptor in message.DESCRIPTOR.fields:
        if descriptor.type not in (descriptor.TYPE_STRING, descriptor.TYPE_MESSAGE):
            continue
        value = getattr(message, descriptor.name)
        if isinstance(value, Message):
            if message.HasField(descriptor.name):
                _check_text(value, name)
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            for inner in value:
                _check_text(inner, name)
        elif isinstance(value, bytes) or (not isinstance(value, str) and any(isinstance(v, bytes) for v in value)):
            what = message.DESCRIPTOR.name.removesuffix("Proto").lower()
            raise PerfonnxError(f"{name}: damaged: the {descriptor.name} of a {what} is not UTF-8 text")


def _check_readable(model: LoadedModel) -> None:
    proto, name = model.proto, model.name
    if not proto.HasField("graph") or not proto.graph.node or proto.ir_version < 1:
        raise PerfonnxError(f"{name}: not an ONNX model (no graph with nodes in it)")
    if proto.ir_version > onnx.IR_VERSION:
        raise PerfonnxError(
            f"{name}: IR version {proto.ir_version} is newer than the installed onnx reads ({onnx.IR_VERSION}); "
            "upgrade the package onnx"
        )
    opset = default_opset(proto)
    if opset is None:
        raise PerfonnxError(f"{name}: the model imports no version of the standard operators")
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise PerfonnxError(
            f"{name}: opset {opset} is not supported; convert the model to opset {MIN_OPSET} to {newest}"
        )
    _check_tensors(model)


def _check_tensors(model: LoadedModel) -> None:
    """Refuse tensors whose data are not there or are of another size than their shape says."""
    for tensor in model.proto.graph.initializer:
        where = f"{model.name}: initializer {tensor.name!r}"
        wanted = _checked_bytes(tensor, where)
        if is_external(tensor):
            _check_external(tensor, model, where)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != wanted:
                raise PerfonnxError(f"{where} holds {len(tensor.raw_data)} bytes, its shape needs {wanted}")
        elif _typed_values(tensor) != math.prod(tensor.dims):
            raise PerfonnxError(
                f"{where} holds {_typed_values(tensor)} values, its shape needs {math.prod(tensor.dims)}"
            )
    _check_twins(model)


def _checked_bytes(tensor: TensorProto, where: str) -> int:
    """Size of a tensor, which must have a shape and a type."""
    if any(d < 0 for d in tensor.dims):
        raise PerfonnxError(f"{where} has a negative dimension")
    try:
        return tensor_bytes(tensor)
    except (KeyError, TypeError, ValueError) as error:
        raise PerfonnxError(f"{where} has the unknown data type {tensor.data_type}") from error


def _check_external(tensor: TensorProto, model: LoadedModel, where: str) -> None:
    """Refuse external data that are not there, no regular file, or of another size than the tensor's shape says."""
    if model.directory is None:
        raise PerfonnxError(f"{where} is external data; give the model's path, or load the data first")
    _check_location(tensor, model)
    file, offset, length = external_location(tensor, model.directory)
    if length != _checked_bytes(tensor, where) or _file_size(file) < offset + length:
        raise PerfonnxError(f"{where}: external data file {file.name} is missing, too short or of another size")


def _check_twins(model: LoadedModel) -> None:
    """Refuse initializers of one name that differ: which one onnxruntime reads depends on what else there is."""
    first: dict[str, TensorProto] = {}
    for tensor in model.proto.graph.initializer:
        known = first.setdefault(tensor.name, tensor)
        if known is tensor or not tensor.name:
            continue
        same = (known.data_type, known.dims) == (tensor.data_type, tensor.dims)
        if not same or to_array(known, model.directory).tobytes() != to_array(tensor, model.directory).tobytes():
            raise PerfonnxError(f"{model.name}: initializer {tensor.name!r} is there twice, with different values")


def _file_size(file: Path) -> int:
    """Bytes of a regular file; -1 where there is none."""
    try:
        return file.stat().st_size if file.is_file() else -1
    except OSError:  # a name that no file can have
        return -1


def _typed_values(tensor: TensorProto) -> int:
    """How many elements lie in the field for the tensor's type (where `raw_data` is not used)."""
    stored = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    count = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return stored // 2
    bits = _packed_bits(tensor.data_type)
    if bits and stored == (count * bits + 7) // 8:  # several to a value; numbers that fill it are padding
        return count
    return stored


def _load_inner_tensors(model: LoadedModel) -> None:
    """Take external data of attributes and of subgraphs' initializers into the message.

    They are few and small, and only the main graph's initializers are carried along outside of it.
    """
    for tensor in _inner_tensors(model.proto):
        if not is_external(tensor):
            continue
        where = f"{model.name}: tensor {tensor.name!r}"
        _check_external(tensor, model, where)
        try:
            values = to_array(tensor, model.directory)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise PerfonnxError(f"{where}: its external data cannot be read: {one_line(error)}") from error
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def take_in_data(model: LoadedModel) -> None:
    """Take all external data into the message."""
    for tensor in model.proto.graph.initializer:
        if is_external(tensor):
            tensor.CopyFrom(numpy_helper.from_array(to_array(tensor, model.directory), tensor.name))
    model.directory = None


def all_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers, those of attributes, of subgraphs and of functions."""
    yield from proto.graph.initializer
    yield from _inner_tensors(proto)


def _inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    yield from _tensors_of_sparse(proto.graph.sparse_initializer)
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        yield from _tensors_of(nodes)


def _tensors_of(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _tensors_of_sparse([attribute.sparse_tensor])
            yield from _tensors_of_sparse(attribute.sparse_tensors)
        for graph in subgraphs(node):
            yield from graph.initializer
            yield from _tensors_of_sparse(graph.sparse_initializer)
            yield from _tensors_of(graph.node)


def _tensors_of_sparse(sparse: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def is_standard(node: gs.Node | NodeProto) -> bool:
    """True for operators of the default domain."""
    return node.domain in (None, "", _LONG_DOMAIN)


def default_opset(proto: ModelProto) -> int | None:
    """The version of the standard operators that a model imports; of two, the last one counts, as in onnxruntime."""
    versions = [imported.version for imported in proto.opset_import if imported.domain in ("", _LONG_DOMAIN)]
    return versions[-1] if versions else None


# --- what onnxruntime accepts and onnx does not ----------------------------------------------------------------------


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
    _tidy_imports(proto)
    first: dict[str, int] = {}
    for i, tensor in enumerate(graph.initializer):
        first.setdefault(tensor.name, i)
    first.pop("", None)
    _keep_only(graph.initializer, list(first.values()))
    sparse = graph.sparse_initializer
    _keep_only(sparse, [i for i, tensor in enumerate(sparse) if tensor.values.name not in first])


def _tidy_imports(proto: ModelProto) -> None:
    names = ["" if i.domain == _LONG_DOMAIN else i.domain for i in proto.opset_import]
    _keep_only(proto.opset_import, [i for i, name in enumerate(names) if name not in names[i + 1 :]])
    used = {node.domain for node in _nodes_in(proto.graph)}
    for domain in sorted(used & _IMPLIED_DOMAINS.keys() - set(names)):
        proto.opset_import.append(helper.make_opsetid(domain, _IMPLIED_DOMAINS[domain]))


def _nodes_in(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from _nodes_in(inner)


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


# --- tensors ---------------------------------------------------------------------------------------------------------


def is_external(tensor: TensorProto) -> bool:
    """True where the data lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def tensor_bytes(tensor: TensorProto) -> int:
    """Size of the data in bytes, from type and shape."""
    count = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return sum(len(s) for s in tensor.string_data)
    bits = _packed_bits(tensor.data_type)
    if bits:
        return (count * bits + 7) // 8
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _packed_bits(elem_type: int) -> int | None:
    """Bits per element of the types that share bytes."""
    name = TensorProto.DataType.Name(elem_type)
    return 4 if name in ("INT4", "UINT4", "FLOAT4E2M1") else 2 if name in ("INT2", "UINT2") else None


def external_location(tensor: TensorProto, directory: Path) -> tuple[Path, int, int]:
    """File, offset and length of external data. That the file may lie where it lies was seen to when it was loaded."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if "\0" in location:
        raise PerfonnxError(f"initializer {tensor.name!r}: the name of its external data file has a NUL in it")
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries["length"]) if "length" in entries else tensor_bytes(tensor)
    except ValueError as error:
        raise PerfonnxError(
            f"initializer {tensor.name!r}: offset or length of its external data is no number"
        ) from error
    if offset < 0 or length < 0:
        raise PerfonnxError(f"initializer {tensor.name!r}: offset or length of its external data is negative")
    return directory / location, offset, length


def _check_location(tensor: TensorProto, model: LoadedModel) -> None:
    """Refuse external data outside the model's directory, links followed, as onnxruntime does.

    They may lie in the directory of the path by which the model was opened, or, where that is a link, in that of the
    file that it leads to: caches keep a model and its data under names of their own, and links to both elsewhere.
    """
    assert model.directory is not None
    file, _, _ = external_location(tensor, model.directory)
    location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
    homes = (model.directory, Path(os.path.realpath(model.directory / model.name)).parent)
    lies_in = Path(os.path.realpath(file))
    if not location or os.path.isabs(location) or not any(lies_in.is_relative_to(h.resolve()) for h in homes):
        raise PerfonnxError(f"initializer {tensor.name!r}: external data may not lie outside the model's directory")


_CONSTANT_TYPES = {
    "value": TensorProto.UNDEFINED,  # its own
    "sparse_value": TensorProto.UNDEFINED,
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
    "value_string": TensorProto.STRING,
    "value_strings": TensorProto.STRING,
}


def constant_value(node: NodeProto) -> TensorProto | None:
    """What a Constant node gives, in whichever of its attributes it stands; None where that cannot be read."""
    attribute = next((a for a in node.attribute if a.name in _CONSTANT_TYPES), None)
    if attribute is None or attribute.ref_attr_name:
        return None
    if attribute.name == "value":
        return attribute.t
    if attribute.name == "sparse_value":
        return dense_tensor(attribute.sparse_tensor)
    value = helper.get_attribute_value(attribute)
    one = attribute.name in ("value_float", "value_int", "value_string")
    return helper.make_tensor(
        "", _CONSTANT_TYPES[attribute.name], [] if one else [len(value)], [value] if one else value
    )


def dense_tensor(sparse: SparseTensorProto) -> TensorProto | None:
    """A sparse tensor with its zeros; None where it is too large for that, or its indices are not what they must be."""
    shape = tuple(sparse.dims)
    size = math.prod(shape)
    if min(shape, default=0) < 0 or size > _LARGEST_DENSE:
        return None
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), shape)
        result = np.zeros(size, values.dtype)
        if len(values) and not 0 <= indices.min() <= indices.max() < size:
            return None
        result[indices] = values
    except (ValueError, TypeError, IndexError):
        return None
    return numpy_helper.from_array(result.reshape(shape), sparse.values.name)


def to_array(tensor: TensorProto, directory: Path | None) -> NDArray[Any]:
    """The values of a tensor, external ones included."""
    if is_external(tensor) and directory is not None:
        file, offset, length = external_location(tensor, directory)
        with file.open("rb") as stream:
            stream.seek(offset)
            loaded = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=stream.read(length))
        return numpy_helper.to_array(loaded)
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise PerfonnxError(f"tensor {tensor.name!r} cannot be read: {one_line(error)}") from error


# --- workspace -------------------------------------------------------------------------------------------------------


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


def is_fixed(dimension: TensorShapeProto.Dimension) -> bool:
    """Whether a declared dimension says a size."""
    return bool(dimension.HasField("dim_value") and dimension.dim_value > 0)


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
            initializers, by name; see `perfonnx.constants`.
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
        workspace.captured = frozenset(name for graph in bodies for name in _names_in(graph))
        workspace._reserved = workspace.captured.union(
            (v.name for v in model.proto.graph.value_info), *(_names_made_in(graph) for graph in bodies)
        )
        workspace._check_own_nodes()
        return workspace

    def _check_own_nodes(self) -> None:
        """Refuse nodes of our domain that no kernel takes: everything that follows relies on what they say."""
        from perfonnx import ops
        from perfonnx.ops import foreign

        for node in self.graph.nodes:
            if node.domain != ops.DOMAIN or not (node.op in ops.OPERATORS or node.op in ops.LOWERED):
                continue

            names = (ops.OPERATORS.get(node.op) or ops.LOWERED[node.op]).INPUTS

            def constant(position: int, node: gs.Node = node, names: Sequence[str] = names) -> NDArray[Any] | None:
                proto = self.constant_proto(node.inputs[position])
                if proto is None or names[position] in foreign.TABLES:
                    return None if proto is None else to_array(proto, self.model.directory)
                return np.broadcast_to(np.float32(0), tuple(proto.dims))

            problem = foreign.misfit(node.op, node.attrs, [tensor.name for tensor in node.inputs], constant)
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

    def add_constant(self, name: str, values: NDArray[Any]) -> gs.Constant:
        """A new initializer. An equal one of that name is shared; a name that is taken by another gets a number."""
        proto = numpy_helper.from_array(np.ascontiguousarray(values), name)
        tensors = self.graph.tensors()
        unique, count = name, 0
        while unique in tensors or unique in self.added or unique in self._initializers or unique in self._reserved:
            known = self.added.get(unique) or self._initializers.get(unique)
            if known is not None and unique not in self.overridable() and _same_values(known, proto):
                break
            count += 1
            unique = f"{name}_{count}"
        else:
            proto.name = unique
            self.added[unique] = proto
            self.types[unique] = TensorType(proto.data_type, tuple(proto.dims))
        existing = self._constants.get(unique) or tensors.get(unique)
        if not isinstance(existing, gs.Constant):
            existing = gs.Constant(unique, values)
        self._constants[unique] = existing  # it may be asked for again before a node reads it
        return existing

    def replace(self, old: gs.Node, new: gs.Node) -> None:
        """Put a node in another's place; the old node's outputs must already be taken over or free."""
        index = next(i for i, node in enumerate(self.graph.nodes) if node is old)
        self.graph.nodes[index] = new
        old.inputs.clear()
        old.outputs.clear()

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
            _copy_field(self.proto, result, name)
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
        for imported in result.opset_import:
            if imported.domain == _LONG_DOMAIN:
                imported.domain = ""
        _shorten_domains(graph.node)
        _tidy_imports(result)
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
        _keep_only(target.initializer, keep)
        sparse = target.sparse_initializer
        _keep_only(sparse, [i for i, t in enumerate(sparse) if t.values.name not in lost])
        gone = {name for name in lost if name not in produced}
        _keep_only(target.value_info, [i for i, v in enumerate(target.value_info) if v.name not in gone])
        _keep_only(target.input, [i for i, v in enumerate(target.input) if v.name not in gone or self._is_feed(v)])
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
                    while exported.name in kept:
                        exported.name += "_"
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


def _shorten_domains(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        if node.domain == _LONG_DOMAIN:
            node.ClearField("domain")
        for graph in subgraphs(node):
            _shorten_domains(graph.node)


def _same_values(a: TensorProto, b: TensorProto) -> bool:
    return bool(a.data_type == b.data_type and a.dims == b.dims and a.raw_data == b.raw_data)


def _copy_field(source: Any, target: Any, name: str) -> None:
    value = getattr(source, name)
    if isinstance(value, (int, str)):
        setattr(target, name, value)
    else:
        getattr(target, name).extend(value)


def _keep_only(repeated: Any, indices: Sequence[int]) -> None:
    wanted = set(indices)
    for i in reversed(range(len(repeated))):
        if i not in wanted:
            del repeated[i]


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes (bodies of If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def used_names(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """The names that nodes read, in the graphs in their attributes too."""
    for node in nodes:
        yield from node.input
        for graph in subgraphs(node):
            yield from _names_in(graph)


def _names_made_in(graph: GraphProto) -> Iterator[str]:
    for named in (*graph.input, *graph.initializer, *graph.value_info):
        yield named.name
    for node in graph.node:
        yield from node.output
        for inner in subgraphs(node):
            yield from _names_made_in(inner)


def _names_in(graph: GraphProto) -> Iterator[str]:
    yield from used_names(graph.node)
    yield from (o.name for o in graph.output)


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


def one_line(error: BaseException) -> str:
    """An error's message on one line, of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


# --- writing ---------------------------------------------------------------------------------------------------------


def model_bytes(model: LoadedModel) -> int:
    """Size of the model as one message with all its data inside, nearly."""
    return sum(tensor_bytes(t) for t in model.proto.graph.initializer)


def has_external_data(model: LoadedModel) -> bool:
    """True where initializers lie in other files."""
    return any(is_external(t) for t in model.proto.graph.initializer)


def save(model: LoadedModel, path: str | os.PathLike[str]) -> None:
    """Write a model, atomically: whatever happens, the old model is there or the new one, never a part or a mix.

    A model that came with external data, or that is over 2 GB, gets one external data file, `NAME.DIGEST.data`, beside
    it. That of the model which is replaced goes, unless another model beside it reads it.

    Raises:
        PerfonnxError: The place cannot be written, or holds the model's own weights.
    """
    target = Path(path)
    check_target(target)
    if target.resolve() in data_files(model):
        raise PerfonnxError(f"{target} holds the weights of {model.name}; choose another name for the output")
    in_place = model.directory is not None and (model.directory / model.name).resolve() == target.resolve()
    keep = set() if in_place else data_files(model)
    try:
        with drafts(target) as directory:
            draft, data, name = directory / "model", directory / "data", ""
            if has_external_data(model) or model_bytes(model) > MAX_MESSAGE:
                check_target(target.with_name(data_name(target, "0" * 16)))
                proto, digest = _externalized(model, data)
                name = data_name(target, digest)
                _point_to(proto, name)
                draft.write_bytes(proto.SerializeToString(deterministic=True))
                publish_model(draft, target, data, name, keep)
                if in_place:  # the data that the message pointed to may be gone
                    model.proto, model.directory, model.name = proto, target.parent, target.name
            else:
                with draft.open("wb") as stream:
                    _write_message(model.proto, stream)
                publish_model(draft, target, None, name, keep)
    except OSError as error:
        raise PerfonnxError(f"{target}: cannot be written: {error.strerror or error}") from error


def _write_message(proto: ModelProto, stream: IO[bytes]) -> None:
    """Serialize; a large model tensor by tensor, since protobuf needs twice the message's size to do it at once.

    Fields may stand in any order in protobuf's encoding, so large `raw_data` are put behind what else a tensor has.
    """
    if all(tensor_bytes(t) < _STREAMED for t in proto.graph.initializer):
        stream.write(proto.SerializeToString(deterministic=True))
        return
    graph = _without(proto.graph, "initializer").SerializeToString(deterministic=True)
    heads, sizes = [], []
    for tensor in proto.graph.initializer:
        streamed = tensor.HasField("raw_data") and tensor_bytes(tensor) >= _STREAMED
        head = (_without(tensor, "raw_data") if streamed else tensor).SerializeToString(deterministic=True)
        heads.append(head)
        sizes.append(len(head) + (_field_bytes(tensor_bytes(tensor)) if streamed else 0))
    stream.write(_without(proto, "graph").SerializeToString(deterministic=True))
    stream.write(_field_head(ModelProto.GRAPH_FIELD_NUMBER, len(graph) + sum(map(_field_bytes, sizes))))
    stream.write(graph)
    for tensor, head, size in zip(proto.graph.initializer, heads, sizes, strict=True):
        stream.write(_field_head(GraphProto.INITIALIZER_FIELD_NUMBER, size))
        stream.write(head)
        if size > len(head):
            stream.write(_field_head(TensorProto.RAW_DATA_FIELD_NUMBER, tensor_bytes(tensor)))
            stream.write(tensor.raw_data)


def _without(message: Any, field_name: str) -> Any:
    """A copy of a message without one of its fields."""
    result = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.name != field_name:
            _set_field(result, descriptor.name, value)
    return result


def _field_head(number: int, length: int) -> bytes:
    """Tag and length in front of a length-delimited field of a number below 16."""
    encoded = bytearray([number << 3 | 2])
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def _field_bytes(length: int) -> int:
    """Size of a length-delimited field, head and content."""
    return len(_field_head(1, length)) + length


def data_files(model: LoadedModel) -> set[Path]:
    """The files, links followed, in which initializers lie."""
    if model.directory is None:
        return set()
    tensors = [t for t in model.proto.graph.initializer if is_external(t)]
    return {external_location(tensor, model.directory)[0].resolve() for tensor in tensors}


def _externalized(model: LoadedModel, data: Path) -> tuple[ModelProto, str]:
    """A copy of the message whose larger tensors point into a data file, which is written tensor by tensor.

    Returns:
        The message, in which the file has no name yet, and the digest of the file.
    """
    source = model.proto
    result = _without(source, "graph")
    result.graph.CopyFrom(_without(source.graph, "initializer"))
    with data.open("wb") as file:
        stream = Digested(file)
        for tensor in source.graph.initializer:
            size = tensor_bytes(tensor)
            copied = result.graph.initializer.add()
            if tensor.data_type == TensorProto.STRING or (size < _EXTERNAL_THRESHOLD and not is_external(tensor)):
                copied.CopyFrom(tensor)
                continue
            copied.name, copied.data_type, copied.doc_string = tensor.name, tensor.data_type, tensor.doc_string
            copied.dims.extend(tensor.dims)
            copied.metadata_props.extend(tensor.metadata_props)
            stream.write(b"\0" * (-stream.tell() % 64))
            entries = {"offset": str(stream.tell()), "length": str(size)}
            _copy_data(tensor, model.directory, stream)
            copied.data_location = TensorProto.EXTERNAL
            for key, text in entries.items():
                copied.external_data.add(key=key, value=text)
    return result, stream.digest


def _point_to(proto: ModelProto, location: str) -> None:
    """Name the file in which the external initializers lie."""
    for tensor in filter(is_external, proto.graph.initializer):
        tensor.external_data.add(key="location", value=location)


def _copy_data(tensor: TensorProto, directory: Path | None, stream: Digested) -> None:
    if is_external(tensor):
        assert directory is not None
        file, offset, remaining = external_location(tensor, directory)
        with file.open("rb") as source:
            source.seek(offset)
            while remaining > 0:
                block = source.read(min(remaining, 1 << 24))
                if not block:
                    raise PerfonnxError(f"external data file {file.name} ended early")
                stream.write(block)
                remaining -= len(block)
    elif tensor.HasField("raw_data"):
        stream.write(tensor.raw_data)
    else:
        stream.write(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _set_field(message: Any, name: str, value: Any) -> None:
    if isinstance(value, (int, float, str, bytes)):
        setattr(message, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    else:
        getattr(message, name).extend(value)


# --- input shapes ----------------------------------------------------------------------------------------------------


def fix_input_shapes(model: LoadedModel, shapes: Mapping[str, Sequence[int | str | None]]) -> None:
    """Put sizes into the declared shapes of graph inputs; None or a symbol keeps a dimension symbolic.

    Raises:
        PerfonnxError: No such input, another rank, or a size that contradicts the model's.
    """
    inputs = {info.name: info for info in fed_inputs(model.proto.graph)}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise PerfonnxError(
                f"--input-shape {name}: the model has no such input; its inputs are {', '.join(inputs)}"
            )
        info = inputs[name]
        known = value_type(info)
        if known is None:
            raise PerfonnxError(f"--input-shape {name}: this input is not a tensor")
        dims = info.type.tensor_type.shape.dim
        if known.shape is None:
            for _ in sizes:
                dims.add()
        if len(dims) != len(sizes):
            raise PerfonnxError(f"--input-shape {name}: has {len(sizes)} dimensions, the model's input has {len(dims)}")
        for dim, size in zip(dims, sizes, strict=True):
            if not isinstance(size, Integral):
                if size and not is_fixed(dim) and dim.HasField("dim_value"):
                    dim.dim_param = size  # onnxruntime takes a declared size of 0 at its word
                continue
            if not 0 <= size < 2**63:
                raise PerfonnxError(f"--input-shape {name}: {size} is no size; give whole numbers of 0 or more")
            if is_fixed(dim) and dim.dim_value != size:
                raise PerfonnxError(
                    f"--input-shape {name}: the model fixes this dimension at {dim.dim_value}, not {size}"
                )
            dim.dim_value = int(size)


def freeze_weights(model: LoadedModel, names: Collection[str] | None = None) -> None:
    """Make initializers that are also graph inputs constant, by taking them off the inputs (IR version 4 and later).

    Those that nothing reads go altogether: onnxruntime would warn of each of them whenever the model is loaded.

    Args:
        model: Is changed.
        names: Those to make constant; None: all.
    """
    graph = model.proto.graph
    if model.proto.ir_version >= 4:
        free = overridable(model.proto)
        frozen = free if names is None else free.intersection(names)
        unread = frozen - set(_names_in(graph))
        _keep_only(graph.input, [i for i, info in enumerate(graph.input) if info.name not in frozen])
        _keep_only(graph.initializer, [i for i, t in enumerate(graph.initializer) if t.name not in unread])


def fed_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that a caller must feed: those that no initializer has a value for."""
    valued = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return [info for info in graph.input if info.name not in valued]


def overridable(proto: ModelProto) -> set[str]:
    """Initializers that a caller may replace because they are graph inputs too (from IR version 4 on)."""
    graph = proto.graph
    if proto.ir_version < 4:
        return set()
    sparse = {t.values.name for t in graph.sparse_initializer}
    return {i.name for i in graph.input} & ({t.name for t in graph.initializer} | sparse)
