"""ExpandRows: the map that rows stand for, interpolated.

It is not called Expand: simplifiers go by the names of operators alone, and take away an Expand that changes no shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TypeProto
from onnx.reference.op_run import OpRun

from perfonnx.ops import common, rows

NAME = "ExpandRows"
INPUTS = ("S", "source", "shape", "weight")
ATTRIBUTES = ()

DOC = """Map [N, C, OH, OW] in which position q holds the weighted sum of the rows source[q, :]; -1 adds zero."""


def schema() -> onnx.defs.OpSchema:
    """The operator's signature for onnx's checker and shape inference."""
    result = onnx.defs.OpSchema(
        NAME,
        common.DOMAIN,
        common.VERSION,
        DOC,
        inputs=[
            common.formal("S", "T", "Rows [N, P, C]."),
            common.formal("source", "tensor(int32)", "[OH*OW, K], row numbers; -1 adds zero."),
            common.formal("shape", "tensor(int64)", "[2]: OH, OW."),
            common.formal("weight", "F", "[OH*OW, K] factors; absent: all 1.", optional=True),
        ],
        outputs=[common.formal("Y", "T", "Map [N, C, OH, OW].")],
        type_constraints=[common.FLOAT_CONSTRAINT, common.FACTORS_CONSTRAINT],
    )
    result.set_type_and_shape_inference_function(_infer)
    return result


def _infer(context: Any) -> None:
    s, shape = context.get_input_type(0), rows.constant_shape(context, 2)
    if s is None:
        return
    result = TypeProto()
    result.tensor_type.elem_type = s.tensor_type.elem_type
    if s.tensor_type.HasField("shape"):
        if len(s.tensor_type.shape.dim) != 3:
            raise onnx.shape_inference.InferenceError(f"S must have rank 3, not {len(s.tensor_type.shape.dim)}")
        dims = result.tensor_type.shape.dim
        dims.add().CopyFrom(s.tensor_type.shape.dim[0])
        dims.add().CopyFrom(s.tensor_type.shape.dim[2])
        for size in shape or (None, None):
            dim = dims.add()
            if size is not None:
                dim.dim_value = size
    context.set_output_type(0, result)


def reference(
    s: NDArray[Any],
    source: NDArray[np.int32],
    shape: NDArray[np.int64],
    weight: NDArray[np.float32] | None = None,
) -> NDArray[Any]:
    """The operator in numpy; shapes as in `schema`. Computes in float64 and rounds once, to the type of `s`."""
    result = np.zeros((s.shape[0], s.shape[2], int(shape[0]), int(shape[1])))
    for k in range(source.shape[1]):
        factor = 1.0 if weight is None else weight[:, k].astype(np.float64).reshape(result.shape[2:])
        result += rows.virtual_map(s.astype(np.float64), source[:, k], shape) * factor
    return common.cast_like(result, s)


class Reference(OpRun):
    """The numpy form for onnx's `ReferenceEvaluator(model, new_ops=[...])`."""

    op_domain = common.DOMAIN

    def _run(
        self,
        s: NDArray[Any],
        source: NDArray[np.int32],
        shape: NDArray[np.int64],
        weight: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[Any]]:
        return (reference(s, source, shape, weight),)


Reference.__name__ = NAME  # onnx finds the operator by the class's name


def function_body(opset: int, elem_type: int, *, weighted: bool) -> onnx.FunctionProto:
    """The operator in standard operators; `weighted` as for `PerforatedConv`."""
    f = common.FunctionBuilder(opset, elem_type)
    result = rows.body_map(f, "S", "source", "shape", "weight" if weighted else "")
    return f.build(NAME, INPUTS if weighted else INPUTS[:-1], result, ATTRIBUTES)
