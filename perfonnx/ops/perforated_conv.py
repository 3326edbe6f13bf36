"""PerforatedConv: convolution at the sites, interpolation elsewhere (Figurnov et al., arXiv 1504.08362, section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from perfonnx.ops import common

NAME = "PerforatedConv"
INPUTS = ("X", "W", "B", "mask", "source", "weight", "slope")
ATTRIBUTES = (*common.COMMON_ATTRIBUTES, "interpolation")
MASK_INPUT = 3

DOC = """Two-dimensional convolution computed at the positions where `mask` is true (the sites). Every position takes
the weighted sum of the sites that `source` lists for it; the activation follows. Kept sites are exact."""


def schema() -> onnx.defs.OpSchema:
    """The operator's signature for onnx's checker and shape inference."""
    return common.conv_schema(
        NAME,
        DOC,
        [
            common.formal("mask", "tensor(bool)", "[OH, OW], true at the sites."),
            common.formal(
                "source",
                "tensor(int32)",
                "[OH*OW, K]: for each position, the flat positions y*OW+x of the sites it is made from; -1 adds zero.",
            ),
            common.formal("weight", "F", "[OH*OW, K] factors; absent: all 1.", optional=True),
        ],
        [
            onnx.defs.OpSchema.Attribute(
                "interpolation",
                onnx.helper.make_attribute("interpolation", ""),
                "How `source` and `weight` were made; for the reader, the tables decide.",
            ),
        ],
        [common.FACTORS_CONSTRAINT],
        mask_input=MASK_INPUT,
    )


def reference(
    x: NDArray[Any],
    w: NDArray[Any],
    b: NDArray[Any] | None,
    mask: NDArray[np.bool_],
    source: NDArray[np.int32],
    weight: NDArray[np.float32] | None = None,
    slope: NDArray[Any] | None = None,
    *,
    attributes: common.ConvAttributes,
    activation: common.Activation | None = None,
) -> NDArray[Any]:
    """The operator in numpy; shapes as in `schema`. Computes in float64 and rounds once, to the type of `x`."""
    activation = (activation or common.Activation()).with_slopes(slope)
    dense = common.convolve(x, w, b, attributes)
    flat = dense.reshape(*dense.shape[:2], mask.size)
    sites = np.where(mask.ravel(), flat, np.nan)  # a skipped position that is read anyway shows as NaN
    values = np.where(source < 0, 0.0, sites[:, :, np.maximum(source, 0)])
    factors = np.ones(source.shape) if weight is None else weight.astype(np.float64)
    out = activation((values * factors).sum(axis=-1), channel_axis=1).reshape(dense.shape)
    return common.cast_like(out, x)


class Reference(OpRun):
    """The numpy form for onnx's `ReferenceEvaluator(model, new_ops=[...])`."""

    op_domain = common.DOMAIN

    def _run(
        self,
        x: NDArray[Any],
        w: NDArray[Any],
        b: NDArray[Any] | None,
        mask: NDArray[np.bool_],
        source: NDArray[np.int32],
        weight: NDArray[np.float32] | None = None,
        slope: NDArray[Any] | None = None,
        **attributes: Any,
    ) -> tuple[NDArray[Any]]:
        geometry, activation = common.conv_attributes(w, attributes), common.activation_from(attributes)
        return (reference(x, w, b, mask, source, weight, slope, attributes=geometry, activation=activation),)


Reference.__name__ = NAME  # onnx finds the operator by the class's name


def function_body(opset: int, elem_type: int, *, weighted: bool, sloped: bool = False) -> onnx.FunctionProto:
    """The operator in standard operators: a full Conv, then a gather from it.

    The map is flattened behind one zero column, so that `source + 1` is an index and -1 reads zero. `weighted` and
    `sloped` say whether the nodes carry `weight` and `slope`: a function cannot ask, so it is all of a model's nodes or
    none.
    """
    f = common.FunctionBuilder(opset, elem_type)
    conv = f.conv("X", "W", "B")
    columns = f.pad(f.add("Flatten", conv, axis=2), [0, 1, 0, 0])
    index = f.add("Add", "source", f.constant(np.array(1, np.int32)))
    values = f.add("Gather", columns, index, axis=1)
    if weighted:
        values = f.add("Mul", values, f.factors("weight", "X"))
    summed = f.sum_last_axis(values, 2)
    result = f.activate(f.with_size_of(summed, conv, "mask"), sloped=sloped)
    inputs = INPUTS if sloped else INPUTS[:-1] if weighted else INPUTS[:-2]
    return f.build(NAME, inputs, result, ATTRIBUTES)
