"""Tensors of a model: where they stand, their sizes, where their data lie, and their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.proto import subgraphs

_LARGEST_DENSE = 1 << 27  # elements of a sparse tensor, zeros included


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


def stored_elements(tensor: TensorProto) -> int:
    """How many elements lie in the field for the tensor's type (where `raw_data` is not used)."""
    stored = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    count = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return stored // 2
    bits = _packed_bits(tensor.data_type)
    if bits and stored == (count * bits + 7) // 8:  # several to a value; numbers that fill it are padding
        return count
    return stored


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


# --- every tensor -----------------------------------------------------------------------------------------------------


def all_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers, those of attributes, of subgraphs and of functions."""
    yield from proto.graph.initializer
    yield from inner_tensors(proto)


def inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Those that are not initializers of the main graph."""
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
