"""SparseConv: convolution at the sites, a constant elsewhere (Grimaldi et al., semi-structured activation sparsity)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from perfonnx.ops import common

NAME = "SparseConv"
INPUTS = ("X", "W", "B", "mask", "fill", "slope")
ATTRIBUTES = common.COMMON_ATTRIBUTES
MASK_INPUT = 3
FILL_INPUT = 4

DOC = """Two-dimensional convolution and activation at the positions where `mask` is true (the sites); every other
position holds `fill`, per channel, which the activation does not touch."""


def schema() -> onnx.defs.OpSchema:
    """The operator's signature for onnx's checker and shape inference."""
    return common.conv_schema(
        NAME,
        DOC,
        [
            common.formal("mask", "tensor(bool)", "[OH, OW], true at the sites."),
            common.formal("fill", "T", "[M], the value of masked positions; absent: 0.", optional=True),
        ],
        mask_input=MASK_INPUT,
    )


def reference(
    x: NDArray[Any],
    w: NDArray[Any],
    b: NDArray[Any] | None,
    mask: NDArray[np.bool_],
    fill: NDArray[Any] | None = None,
    slope: NDArray[Any] | None = None,
    *,
    attributes: common.ConvAttributes,
    activation: common.Activation | None = None,
) -> NDArray[Any]:
    """The operator in numpy; shapes as in `schema`. Computes in float64 and rounds once, to the type of `x`."""
    activation = (activation or common.Activation()).with_slopes(slope)
    dense = activation(common.convolve(x, w, b, attributes), channel_axis=1)
    constant = np.zeros(w.shape[0]) if fill is None else fill.astype(np.float64)
    return common.cast_like(np.where(mask, dense, constant[:, None, None]), x)


class Reference(OpRun):
    """The numpy form for onnx's `ReferenceEvaluator(model, new_ops=[...])`."""

    op_domain = common.DOMAIN

    def _run(
        self,
        x: NDArray[Any],
        w: NDArray[Any],
        b: NDArray[Any] | None,
        mask: NDArray[np.bool_],
        fill: NDArray[Any] | None = None,
        slope: NDArray[Any] | None = None,
        **attributes: Any,
    ) -> tuple[NDArray[Any]]:
        geometry, activation = common.conv_attributes(w, attributes), common.activation_from(attributes)
        return (reference(x, w, b, mask, fill, slope, attributes=geometry, activation=activation),)


Reference.__name__ = NAME  # onnx finds the operator by the class's name


def function_body(opset: int, elem_type: int, *, sloped: bool = False) -> onnx.FunctionProto:
    """The operator in standard operators: a full Conv, then a choice between it and `fill`."""
    f = common.FunctionBuilder(opset, elem_type)
    conv = f.conv("X", "W", "B")
    dense = f.activate(f.with_size_of(conv, conv, "mask"), sloped=sloped)
    fill = f.add("Reshape", "fill", f.constant(np.array([1, -1, 1, 1], np.int64)))
    if opset >= 9:
        result = f.add("Where", "mask", dense, fill)
    else:  # no Where yet: blend with a mask of zeros and ones
        kept = f.add("Cast", "mask", to=elem_type)
        skipped = f.add("Sub", f.number(1, "W"), kept)
        result = f.add("Add", f.add("Mul", dense, kept), f.add("Mul", fill, skipped))
    return f.build(NAME, INPUTS if sloped else INPUTS[:-1], result, ATTRIBUTES)
