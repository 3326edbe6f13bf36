"""Models serialized by hand, tensor by tensor: protobuf needs twice a message's size to do it at once."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from perfonnx.errors import PerfonnxError
from perfonnx.model.atomic import Digested
from perfonnx.model.proto import set_field
from perfonnx.model.tensors import external_location, is_external, tensor_bytes

_STREAMED = 1 << 24  # bytes; tensors from here on are written one by one

_EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the message, where every reader finds them


def write_message(proto: ModelProto, stream: IO[bytes]) -> None:
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
            set_field(result, descriptor.name, value)
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


# --- external data ----------------------------------------------------------------------------------------------------


def externalized(source: ModelProto, directory: Path | None, data: Path) -> tuple[ModelProto, str]:
    """A copy of the message whose larger tensors point into a data file, which is written tensor by tensor.

    Returns:
        The message, in which the file has no name yet, and the digest of the file.
    """
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
            _copy_data(tensor, directory, stream)
            copied.data_location = TensorProto.EXTERNAL
            for key, text in entries.items():
                copied.external_data.add(key=key, value=text)
    return result, stream.digest


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


def point_to(proto: ModelProto, location: str) -> None:
    """Name the file in which the external initializers lie."""
    for tensor in filter(is_external, proto.graph.initializer):
        tensor.external_data.add(key="location", value=location)
