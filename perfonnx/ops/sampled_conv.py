"""SampledConv: convolution from rows to rows, reading through the producer's interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from perfonnx.ops import common, rows

NAME = "SampledConv"
INPUTS = ("S", "W", "B", "in_source", "in_shape", "sites", "Z", "z_source", "slope")
ATTRIBUTES = common.COMMON_ATTRIBUTES
SHAPE_INPUT = 4
SITES_INPUT = 5

DOC = """Convolution of the map that S stands for (position q of it is row in_source[q], -1 zeros), at the output
positions `sites`. Row z_source[p] of Z, if any, is added to row p (-1 adds zero); the activation follows. The
interpolation of the layer before is thus never written out (Figurnov et al., arXiv 1504.08362, section 3.3)."""


def schema() -> onnx.defs.OpSchema:
    """The operator's signature for onnx's checker and shape inference."""
    result = onnx.defs.OpSchema(
        NAME,
        common.DOMAIN,
        common.VERSION,
        DOC,
        inputs=[
            common.formal("S", "T", "Rows [N, Pin, C]."),
            common.formal("W", "T", "Weights [M, C/group, kh, kw]."),
            common.formal("B", "T", "Bias [M].", optional=True),
            common.formal("in_source", "tensor(int32)", "[H*W], row numbers; absent: 0, 1, 2, ...", optional=True),
            common.formal("in_shape", "tensor(int64)", "[2]: H, W of the map that S stands for."),
            common.formal("sites", "tensor(int32)", "[P], flat output positions; absent: all.", optional=True),
            common.formal("Z", "T", "Rows [N or 1, Pz, M] to add.", optional=True),
            common.formal(
                "z_source", "tensor(int32)", "[P] or [1], row numbers of Z; absent: 0, 1, 2, ...", optional=True
            ),
            common.slope_input(),
        ],
        outputs=[common.formal("R", "T", "Rows [N, P, M].")],
        type_constraints=[common.FLOAT_CONSTRAINT],
        attributes=common.schema_attributes(),
    )
    result.set_type_and_shape_inference_function(
        lambda context: rows.infer_conv_rows(context, shape_input=SHAPE_INPUT, sites_input=SITES_INPUT)
    )
    return result


def reference(
    s: NDArray[Any],
    w: NDArray[Any],
    b: NDArray[Any] | None,
    in_source: NDArray[np.int32] | None,
    in_shape: NDArray[np.int64],
    sites: NDArray[np.int32] | None = None,
    z: NDArray[Any] | None = None,
    z_source: NDArray[np.int32] | None = None,
    slope: NDArray[Any] | None = None,
    *,
    attributes: common.ConvAttributes,
    activation: common.Activation | None = None,
) -> NDArray[Any]:
    """The operator in numpy; shapes as in `schema`. Computes in float64 and rounds once, to the type of `s`."""
    activation = (activation or common.Activation()).with_slopes(slope)
    result = rows.take_sites(common.convolve(rows.virtual_map(s, in_source, in_shape), w, b, attributes), sites)
    if z is not None:
        source = np.arange(result.shape[1]) if z_source is None else z_source
        padded = np.concatenate([np.zeros((z.shape[0], 1, z.shape[2])), z.astype(np.float64)], axis=1)
        result = result + padded[:, source + 1]
    return common.cast_like(activation(result), s)


class Reference(OpRun):
    """The numpy form for onnx's `ReferenceEvaluator(model, new_ops=[...])`."""

    op_domain = common.DOMAIN

    def _run(
        self,
        s: NDArray[Any],
        w: NDArray[Any],
        b: NDArray[Any] | None,
        in_source: NDArray[np.int32] | None,
        in_shape: NDArray[np.int64],
        sites: NDArray[np.int32] | None = None,
        z: NDArray[Any] | None = None,
        z_source: NDArray[np.int32] | None = None,
        slope: NDArray[Any] | None = None,
        **attributes: Any,
    ) -> tuple[NDArray[Any]]:
        geometry, activation = common.conv_attributes(w, attributes), common.activation_from(attributes)
        inputs = (s, w, b, in_source, in_shape, sites, z, z_source, slope)
        return (reference(*inputs, attributes=geometry, activation=activation),)


Reference.__name__ = NAME  # onnx finds the operator by the class's name


def function_body(opset: int, elem_type: int, *, sloped: bool = False) -> onnx.FunctionProto:
    """The operator in standard operators: build the map, convolve all of it, take the sites."""
    f = common.FunctionBuilder(opset, elem_type)
    conv = f.conv(rows.body_map(f, "S", "in_source", "in_shape"), "W", "B")
    index = f.add("Add", "z_source", f.constant(np.array(1, np.int32)))
    added = f.add("Gather", f.pad("Z", [0, 1, 0, 0, 0, 0]), index, axis=1)
    result = f.activate(f.add("Add", rows.body_rows(f, conv, "sites"), added), sloped=sloped, channels_last=True)
    return f.build(NAME, INPUTS if sloped else INPUTS[:-1], result, ATTRIBUTES)
