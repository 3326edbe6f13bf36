"""What the lowered operators share. They work on rows: float [N, P, C], one row of C channels per site.

At this level tables hold row numbers, -1 stands for a row of zeros, and the size of a map is a constant input (a
function body below opset 12 could not make a shape of an attribute).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TypeProto

from perfonnx.ops import common


def virtual_map(s: NDArray[Any], in_source: NDArray[np.int32] | None, in_shape: NDArray[np.int64]) -> NDArray[Any]:
    """The map [N, C, H, W] that rows [N, P, C] stand for: position q shows row in_source[q], -1 zeros."""
    height, width = (int(size) for size in in_shape)
    source = np.arange(height * width) if in_source is None else in_source
    padded = np.concatenate([np.zeros((s.shape[0], 1, s.shape[2]), s.dtype), s], axis=1)
    values = padded[:, source + 1]
    return values.transpose(0, 2, 1).reshape(s.shape[0], s.shape[2], height, width)


def take_sites(y: NDArray[Any], sites: NDArray[np.int32] | None) -> NDArray[Any]:
    """Rows [N, P, M] of a map [N, M, OH, OW] at flat positions; None: all."""
    flat = y.reshape(*y.shape[:2], y.shape[2] * y.shape[3])
    return (flat if sites is None else flat[:, :, sites]).transpose(0, 2, 1)


def body_map(f: common.FunctionBuilder, rows: str, source: str, shape: str, weight: str = "") -> str:
    """Nodes that build a map [N, C, H, W] from rows, through `source` [H*W] or [H*W, K]."""
    columns = f.add("Flatten", f.add("Transpose", rows, perm=[0, 2, 1]), axis=2)
    index = f.add("Add", source, f.constant(np.array(1, np.int32)))
    values = f.add("Gather", f.pad(columns, [0, 1, 0, 0]), index, axis=1)
    if weight:
        values = f.add("Mul", values, f.factors(weight, rows))
    if weight or source == "source":
        values = f.sum_last_axis(values, 2)
    front = f.add("Gather", f.add("Shape", rows), f.constant(np.array([0, 2], np.int64)), axis=0)
    return f.add("Reshape", values, f.add("Concat", front, shape, axis=0))


def body_rows(f: common.FunctionBuilder, x: str, sites: str, size: str = "") -> str:
    """Nodes that take rows [N, P, C] at flat positions from a map, which must have the height and width `size`."""
    values = f.add("Gather", f.add("Flatten", x, axis=2), sites, axis=1)
    front = f.front_of(x, size)
    shape = f.add("Concat", front, f.add("Shape", sites), axis=0)
    return f.add("Transpose", f.add("Reshape", values, shape), perm=[0, 2, 1])


def infer_rows(context: Any, *, sites_input: int, channels: Any, positions: int | None) -> None:
    """Shape [N, P, M]: P from `sites`, or `positions` where that is absent; M is the dimension `channels`."""
    s = context.get_input_type(0)
    if s is None:
        return
    result = TypeProto()
    result.tensor_type.elem_type = s.tensor_type.elem_type
    if s.tensor_type.HasField("shape"):
        if len(s.tensor_type.shape.dim) not in (3, 4):  # 4: the map of Compact
            raise onnx.shape_inference.InferenceError(f"rows must have rank 3, not {len(s.tensor_type.shape.dim)}")
        dims = result.tensor_type.shape.dim
        dims.add().CopyFrom(s.tensor_type.shape.dim[0])
        count = dims.add()
        sites = context.get_input_type(sites_input) if context.get_num_inputs() > sites_input else None
        if sites is not None and len(sites.tensor_type.shape.dim) == 1:
            count.CopyFrom(sites.tensor_type.shape.dim[0])
        elif sites is None and positions is not None:
            count.dim_value = positions
        last = dims.add()
        if channels is not None:
            last.CopyFrom(channels)
    context.set_output_type(0, result)


def infer_conv_rows(context: Any, *, shape_input: int, sites_input: int) -> None:
    """Shape [N, P, M] of a convolution: P from `sites`, or from the geometry; M from the weights, input 1."""
    w, shape = context.get_input_type(1), constant_shape(context, shape_input)
    known = w is not None and w.tensor_type.HasField("shape") and len(w.tensor_type.shape.dim) == 4
    positions = None
    if known and shape is not None:
        kernel = [d.dim_value for d in w.tensor_type.shape.dim[2:]]
        out = common.inferred_attributes(context, kernel).output_shape(*shape)
        positions = out[0] * out[1]
    channels = w.tensor_type.shape.dim[0] if known else None
    infer_rows(context, sites_input=sites_input, channels=channels, positions=positions)


def constant_shape(context: Any, position: int) -> tuple[int, int] | None:
    """The value of an `in_shape` input during shape inference, where it is known."""
    data = context.get_input_data(position)
    if data is None:
        return None
    values = onnx.numpy_helper.to_array(data)
    return (int(values[0]), int(values[1])) if values.shape == (2,) else None
