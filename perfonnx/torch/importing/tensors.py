"""Tensors between onnx and torch."""

from __future__ import annotations

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

from perfonnx.errors import PerfonnxError
from perfonnx.model.tensors import constant_value, to_array
from perfonnx.torch.importing.node import Node

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *HALF)
_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def torch_type(node: Node, elem_type: int) -> torch.dtype:
    """The type that values of an onnx element type are computed in: float32 for half precision.

    Raises:
        PerfonnxError: There is none.
    """
    if elem_type not in _TYPES:
        raise node.refuse(f"values of type {TensorProto.DataType.Name(elem_type).lower()} are not supported")
    return _TYPES[elem_type]


def constants_of(proto: ModelProto) -> dict[str, TensorProto]:
    """The constants of a graph by name: initializers and values of Constant nodes, where they lie in the message.

    Raises:
        PerfonnxError: A Constant node's value is text, or cannot be read.
    """
    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    found |= {node.output[0]: _value(node) for node in proto.graph.node if node.op_type == "Constant"}
    return found


def _value(node: NodeProto) -> TensorProto:
    value = constant_value(node)
    if value is None or value.data_type == TensorProto.STRING:
        raise PerfonnxError(f"node {node.name or node.output[0]!r} (Constant): its value is not supported")
    return value


def to_torch(tensor: TensorProto) -> Tensor:
    """The values of a tensor; half precision as float32."""
    values = to_array(tensor, None)
    if tensor.data_type in HALF:
        values = values.astype(np.float32)
    return torch.from_numpy(np.array(values))


def write(tensor: TensorProto, values: Tensor) -> None:
    """Put values into a tensor, in its own type; one that has them already is not touched."""
    before = to_array(tensor, None)
    numbers = values.detach().cpu()
    after = (numbers if numbers.dtype == torch.float64 else numbers.float()).numpy().astype(before.dtype)
    if after.tobytes() == before.tobytes():
        return
    for field in ("float_data", "int32_data", "double_data"):  # int32_data: half precision
        tensor.ClearField(field)
    tensor.raw_data = numpy_helper.from_array(after).raw_data
