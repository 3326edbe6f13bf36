"""SparseConv: convolution at the sites, a constant elsewhere (Grimaldi et al., semi-structured activation sparsity)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops import common
from perfonnx.ops.base import Given, Input, Operator
from perfonnx.ops.bodies import FunctionBuilder

DOC = """Two-dimensional convolution and activation at the positions where `mask` is true (the sites); every other
position holds `fill`, per channel, which the activation does not touch."""


def _compute(given: Given) -> NDArray[Any]:
    x, w, fill = given["X"], given["W"], given["fill"]
    dense = common.convolve(x, w, given["B"], common.geometry_of(given))
    constant = np.zeros(w.shape[0]) if fill is None else fill.astype(np.float64)
    active = common.activation_of(given)(dense, channel_axis=1)
    return common.cast_like(np.where(given["mask"], active, constant[:, None, None]), x)


def _body(f: FunctionBuilder, given: Collection[str]) -> str:
    """A full Conv, then a choice between it and `fill`."""
    conv = f.conv("X", "W", "B")
    dense = f.activate(f.with_size_of(conv, conv, "mask"), sloped="slope" in given)
    fill = f.add("Reshape", "fill", f.constant(np.array([1, -1, 1, 1], np.int64)))
    if f.opset >= 9:
        return f.add("Where", "mask", dense, fill)
    kept = f.add("Cast", "mask", to=f.elem_type)  # no Where yet: blend with a mask of zeros and ones
    skipped = f.add("Sub", f.number(1, "W"), kept)
    return f.add("Add", f.add("Mul", dense, kept), f.add("Mul", fill, skipped))


SPARSE_CONV = Operator(
    name="SparseConv",
    doc=DOC,
    inputs=(
        common.X,
        common.W,
        common.B,
        common.MASK,
        Input(
            "fill",
            "T",
            "[M], the value of masked positions; absent: 0.",
            optional=True,
            default=common.ZEROS,
            rank=1,
        ),
        common.SLOPE,
    ),
    output=common.Y,
    attributes=common.ATTRIBUTES,
    infer=common.infer_map,
    compute=_compute,
    body=_body,
    positions=common.at_mask,
)
