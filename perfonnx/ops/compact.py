"""Compact: the rows of a map at some positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from perfonnx.ops import common, rows

NAME = "Compact"
INPUTS = ("X", "sites", "shape")
ATTRIBUTES = ()

DOC = """Rows of X [N, C, H, W] at the flat positions `sites` (all of them where absent), channels last. A map of
another height or width than `shape` is an error: its positions would be other ones."""


def schema() -> onnx.defs.OpSchema:
    """The operator's signature for onnx's checker and shape inference."""
    result = onnx.defs.OpSchema(
        NAME,
        common.DOMAIN,
        common.VERSION,
        DOC,
        inputs=[
            common.formal("X", "T", "Map [N, C, H, W]."),
            common.formal("sites", "tensor(int32)", "[P], flat positions y*W+x; absent: all.", optional=True),
            common.formal(
                "shape", "tensor(int64)", "[2]: H, W that sites were made for; absent or 0: any.", optional=True
            ),
        ],
        outputs=[common.formal("S", "T", "Rows [N, P, C].")],
        type_constraints=[common.FLOAT_CONSTRAINT],
    )
    result.set_type_and_shape_inference_function(_infer)
    return result


def _infer(context: Any) -> None:
    x = context.get_input_type(0)
    if x is None or not x.tensor_type.HasField("shape"):
        return
    dims = x.tensor_type.shape.dim
    if len(dims) != 4:
        raise onnx.shape_inference.InferenceError(f"X must have rank 4, not {len(dims)}")
    sizes = [d.dim_value for d in dims[2:] if d.HasField("dim_value")]
    wanted = rows.constant_shape(context, 2) if context.get_num_inputs() > 2 else None
    if wanted is not None and len(sizes) == 2 and not _fits(sizes, wanted):
        raise onnx.shape_inference.InferenceError(_misfit(sizes, wanted))
    positions = sizes[0] * sizes[1] if len(sizes) == 2 else None
    rows.infer_rows(context, sites_input=1, channels=dims[1], positions=positions)


def _fits(sizes: Sequence[int], wanted: Sequence[int]) -> bool:
    return all(other in (0, size) for size, other in zip(sizes, wanted, strict=True))


def _misfit(sizes: Sequence[int], wanted: Sequence[int]) -> str:
    return f"X is {sizes[0]} x {sizes[1]}, but the layer was made for {wanted[0]} x {wanted[1]}"


def reference(
    x: NDArray[Any], sites: NDArray[np.int32] | None = None, shape: NDArray[np.int64] | None = None
) -> NDArray[Any]:
    """The operator in numpy; shapes as in `schema`. Raises `ValueError` for a map of another size than `shape`."""
    if shape is not None and not _fits(x.shape[2:], shape.tolist()):
        raise ValueError(_misfit(x.shape[2:], shape.tolist()))
    return rows.take_sites(x, sites)


class Reference(OpRun):
    """The numpy form for onnx's `ReferenceEvaluator(model, new_ops=[...])`."""

    op_domain = common.DOMAIN

    def _run(
        self, x: NDArray[Any], sites: NDArray[np.int32] | None = None, shape: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[Any]]:
        return (reference(x, sites, shape),)


Reference.__name__ = NAME  # onnx finds the operator by the class's name


def function_body(opset: int, elem_type: int) -> onnx.FunctionProto:
    """The operator in standard operators."""
    f = common.FunctionBuilder(opset, elem_type)
    return f.build(NAME, INPUTS, rows.body_rows(f, "X", "sites", "shape"), ATTRIBUTES)
