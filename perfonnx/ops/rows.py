"""What the lowered operators share. They work on rows: float [N, P, C], one row of C channels per site.

At this level tables hold row numbers, -1 stands for a row of zeros, and the size of a map is a constant input (a
function body below opset 12 could not make a shape of an attribute).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops import common
from perfonnx.ops.base import Constants, Default, Inference, Input, refuse
from perfonnx.ops.bodies import FunctionBuilder


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


def body_map(f: FunctionBuilder, rows: str, source: str, shape: str, weight: str = "") -> str:
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


def body_rows(f: FunctionBuilder, x: str, sites: str, size: str = "") -> str:
    """Nodes that take rows [N, P, C] at flat positions from a map, which must have the height and width `size`."""
    values = f.add("Gather", f.add("Flatten", x, axis=2), sites, axis=1)
    front = f.front_of(x, size)
    shape = f.add("Concat", front, f.add("Shape", sites), axis=0)
    return f.add("Transpose", f.add("Reshape", values, shape), perm=[0, 2, 1])


# --- what the descriptions share -------------------------------------------------------------------------------------


def numbers(name: str, doc: str, *, least: int) -> Input:
    """An optional list of numbers, `least` at least."""
    return Input(name, "tensor(int32)", doc, optional=True, rank=1, least=least, is_table=True)


def sites(doc: str) -> Input:
    """The positions that are computed."""
    return numbers("sites", doc, least=0)


def map_size(name: str, doc: str, *, optional: bool = False, default: Default | None = None) -> Input:
    """Height and width of a map."""
    return Input(name, "tensor(int64)", doc, optional, default, rank=1, least=0, is_table=True)


S = Input("S", "T", "Rows [N, Pin, C].")
IN_SOURCE = numbers("in_source", "[H*W], row numbers; absent: 0, 1, 2, ...", least=-1)
IN_SHAPE = map_size("in_shape", "[2]: H, W of the map that S stands for.")


def at_sites(constant: Constants, size: Sequence[int] | None) -> int | None:
    """How many positions a list names."""
    named = constant("sites")
    return None if named is None else int(named.size)


def infer_rows(node: Inference, *, channels: Any, positions: int | None) -> None:
    """Shape [N, P, M]: P from `sites`, or `positions` where that is absent; M is the dimension `channels`."""
    dims = node.dims(node.operator.inputs[0].name)
    if dims is None:
        node.give(None)
        return
    if len(dims) not in (3, 4):  # 4: the map of Compact
        refuse(f"rows must have rank 3, not {len(dims)}")
    named = node.dims("sites", 1)
    count = None if named is None else named[0]
    node.give([dims[0], positions if node.type("sites") is None else count, channels])


def infer_conv(node: Inference) -> None:
    """Shape [N, P, M] of a convolution: P from `sites`, or from the geometry; M from the weights."""
    if node.type("S") is None:
        return
    w, shape = node.dims("W", 4), node.map_size("in_shape")
    positions = None
    if w is not None and shape is not None:
        out = common.inferred_attributes(node, [d.dim_value for d in w[2:]]).output_shape(*shape)
        positions = out[0] * out[1]
    infer_rows(node, channels=None if w is None else w[0], positions=positions)
