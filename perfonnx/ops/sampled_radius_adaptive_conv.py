"""SampledRadiusAdaptiveConv: the radius-adaptive convolution from rows to rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from perfonnx.ops import common, radius_adaptive_conv, rows

NAME = "SampledRadiusAdaptiveConv"
INPUTS = ("S", "W", "B", "W_alpha", "B_alpha", "B_ring", "in_source", "in_shape", "sites", "slope")
ATTRIBUTES = radius_adaptive_conv.ATTRIBUTES
SHAPE_INPUT = 7
SITES_INPUT = 8

DOC = """RadiusAdaptiveConv of the map that S stands for (position q of it is row in_source[q], -1 zeros), at the output
positions `sites`. The ring is computed at those of them alone whose alpha is above 0."""


def schema() -> onnx.defs.OpSchema:
    """The operator's signature for onnx's checker and shape inference."""
    result = onnx.defs.OpSchema(
        NAME,
        common.DOMAIN,
        common.VERSION,
        DOC,
        inputs=[
            common.formal("S", "T", "Rows [N, Pin, C]."),
            common.formal("W", "T", "Weights [M, C/group, 3, 3]."),
            common.formal("B", "T", "Bias [M].", optional=True),
            *radius_adaptive_conv.gate_inputs(),
            common.formal("in_source", "tensor(int32)", "[H*W], row numbers; absent: 0, 1, 2, ...", optional=True),
            common.formal("in_shape", "tensor(int64)", "[2]: H, W of the map that S stands for."),
            common.formal("sites", "tensor(int32)", "[P], flat output positions; absent: all.", optional=True),
            common.slope_input(),
        ],
        outputs=[common.formal("R", "T", "Rows [N, P, M].")],
        type_constraints=[common.FLOAT_CONSTRAINT],
        attributes=[*common.schema_attributes(), radius_adaptive_conv.gain_attribute()],
    )
    result.set_type_and_shape_inference_function(
        lambda context: rows.infer_conv_rows(context, shape_input=SHAPE_INPUT, sites_input=SITES_INPUT)
    )
    return result


def reference(
    s: NDArray[Any],
    w: NDArray[Any],
    b: NDArray[Any] | None,
    w_alpha: NDArray[Any],
    b_alpha: NDArray[Any] | None,
    b_ring: NDArray[Any] | None,
    in_source: NDArray[np.int32] | None,
    in_shape: NDArray[np.int64],
    sites: NDArray[np.int32] | None = None,
    slope: NDArray[Any] | None = None,
    *,
    attributes: common.ConvAttributes,
    activation: common.Activation | None = None,
    center_gain: float = 0.0,
) -> NDArray[Any]:
    """The operator in numpy; shapes as in `schema`. Computes in float64 and rounds once, to the type of `s`."""
    activation = (activation or common.Activation()).with_slopes(slope)
    x = rows.virtual_map(s, in_source, in_shape)
    dense = radius_adaptive_conv.adaptive_sum(x, w, b, w_alpha, b_alpha, b_ring, attributes, center_gain)
    return common.cast_like(activation(rows.take_sites(dense, sites)), s)


class Reference(OpRun):
    """The numpy form for onnx's `ReferenceEvaluator(model, new_ops=[...])`."""

    op_domain = common.DOMAIN

    def _run(
        self,
        s: NDArray[Any],
        w: NDArray[Any],
        b: NDArray[Any] | None,
        w_alpha: NDArray[Any],
        b_alpha: NDArray[Any] | None,
        b_ring: NDArray[Any] | None,
        in_source: NDArray[np.int32] | None,
        in_shape: NDArray[np.int64],
        sites: NDArray[np.int32] | None = None,
        slope: NDArray[Any] | None = None,
        **attributes: Any,
    ) -> tuple[NDArray[Any]]:
        geometry, activation = common.conv_attributes(w, attributes), common.activation_from(attributes)
        gain = float(attributes.get("center_gain") or 0.0)
        inputs = (s, w, b, w_alpha, b_alpha, b_ring, in_source, in_shape, sites, slope)
        return (reference(*inputs, attributes=geometry, activation=activation, center_gain=gain),)


Reference.__name__ = NAME  # onnx finds the operator by the class's name


def function_body(opset: int, elem_type: int, *, sloped: bool = False) -> onnx.FunctionProto:
    """The operator in standard operators: build the map, compute all of it, take the sites."""
    f = common.FunctionBuilder(opset, elem_type)
    dense = radius_adaptive_conv.body_sum(f, rows.body_map(f, "S", "in_source", "in_shape"))
    result = f.activate(rows.body_rows(f, dense, "sites"), sloped=sloped, channels_last=True)
    return f.build(NAME, INPUTS if sloped else INPUTS[:-1], result, ATTRIBUTES)
