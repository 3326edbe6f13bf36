"""Models in and out: a path, bytes, a `ModelProto`, a `LoadedModel` or an `onnx_graphsurgeon.Graph`; external data."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto, numpy_helper

from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.atomic import check_target, data_name, drafts, publish_model, unwritable
from perfonnx.model.proto import default_opset
from perfonnx.model.streaming import externalized, point_to, write_message
from perfonnx.model.tensors import (
    external_location,
    inner_tensors,
    is_external,
    stored_elements,
    tensor_bytes,
    to_array,
)

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | LoadedModel | gs.Graph"

MIN_OPSET = 7

MAX_MESSAGE = 2**31 - 2**20
"""Bytes. A protobuf message ends at 2 GiB; the margin is for everything that is not a tensor."""


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
        source: A path, the bytes of a model, a `ModelProto` or a `LoadedModel` (which are copied) or a graphsurgeon
            graph.

    Raises:
        PerfonnxError: Not a model, or one that this version cannot read.
    """
    if isinstance(source, gs.Graph):
        try:
            loaded = LoadedModel(gs.export_onnx(source), None, source.name or "graph")
        except Exception as error:  # graphsurgeon raises many kinds
            raise PerfonnxError(f"the graphsurgeon graph cannot be exported: {one_line(error)}") from error
    elif isinstance(source, ModelProto | LoadedModel):
        known = source if isinstance(source, LoadedModel) else LoadedModel(source, None, source.graph.name or "model")
        proto = ModelProto()
        proto.CopyFrom(known.proto)
        loaded = LoadedModel(proto, known.directory, known.name)
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


# --- checks -----------------------------------------------------------------------------------------------------------


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
        elif stored_elements(tensor) != math.prod(tensor.dims):
            raise PerfonnxError(
                f"{where} holds {stored_elements(tensor)} values, its shape needs {math.prod(tensor.dims)}"
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


def _file_size(file: Path) -> int:
    """Bytes of a regular file; -1 where there is none."""
    try:
        return file.stat().st_size if file.is_file() else -1
    except OSError:  # a name that no file can have
        return -1


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


# --- external data ----------------------------------------------------------------------------------------------------


def _load_inner_tensors(model: LoadedModel) -> None:
    """Take external data of attributes and of subgraphs' initializers into the message.

    They are few and small, and only the main graph's initializers are carried along outside of it.
    """
    for tensor in inner_tensors(model.proto):
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


def has_external_data(model: LoadedModel) -> bool:
    """True where initializers lie in other files."""
    return any(is_external(t) for t in model.proto.graph.initializer)


def data_files(model: LoadedModel) -> set[Path]:
    """The files, links followed, in which initializers lie."""
    if model.directory is None:
        return set()
    tensors = [t for t in model.proto.graph.initializer if is_external(t)]
    return {external_location(tensor, model.directory)[0].resolve() for tensor in tensors}


# --- writing ----------------------------------------------------------------------------------------------------------


def model_bytes(model: LoadedModel) -> int:
    """Size of the model as one message with all its data inside, nearly."""
    return sum(tensor_bytes(t) for t in model.proto.graph.initializer)


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
                proto, digest = externalized(model.proto, model.directory, data)
                name = data_name(target, digest)
                point_to(proto, name)
                draft.write_bytes(proto.SerializeToString(deterministic=True))
                publish_model(draft, target, data, name, keep)
                if in_place:  # the data that the message pointed to may be gone
                    model.proto, model.directory, model.name = proto, target.parent, target.name
            else:
                with draft.open("wb") as stream:
                    write_message(model.proto, stream)
                publish_model(draft, target, None, name, keep)
    except OSError as error:
        raise unwritable(target, error) from error
