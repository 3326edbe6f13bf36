"""RadiusAdaptiveConv: per position, a learned alpha adds the 3x3 ring to the 1x1 centre (Rakhshanfar)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from perfonnx.ops import common

NAME = "RadiusAdaptiveConv"
INPUTS = ("X", "W", "B", "W_alpha", "B_alpha", "B_ring", "slope")
ATTRIBUTES = (*common.COMMON_ATTRIBUTES, "center_gain")
MASK_INPUT = None

DOC = """With alpha = clip(x . W_alpha + B_alpha, 0, 1) of the pixel x under the centre tap, the output is
(1 + center_gain * alpha) * centre + B + alpha * (ring + B_ring), then the activation: centre is the convolution with
the centre tap alone, ring with the eight others of its 3x3 kernel. center_gain 0 is the paper's form, 1 its released
program's."""

CENTRE = np.zeros((1, 1, 3, 3), np.float32)
CENTRE[..., 1, 1] = 1


def schema() -> onnx.defs.OpSchema:
    """The operator's signature for onnx's checker and shape inference."""
    return common.conv_schema(
        NAME,
        DOC,
        gate_inputs(),
        [gain_attribute()],
        mask_input=MASK_INPUT,
    )


def gate_inputs() -> list[onnx.defs.OpSchema.FormalParameter]:
    """The inputs that the radius-adaptive form has beside those of a convolution."""
    return [
        common.formal("W_alpha", "T", "[1, C, 1, 1], weights of the gate."),
        common.formal("B_alpha", "T", "[1], bias of the gate; absent: 0.", optional=True),
        common.formal("B_ring", "T", "[M], added to the ring before alpha scales it; absent: 0.", optional=True),
    ]


def gain_attribute() -> onnx.defs.OpSchema.Attribute:
    """The attribute that it has beside them."""
    return onnx.defs.OpSchema.Attribute(
        "center_gain",
        onnx.helper.make_attribute("center_gain", 0.0),
        "How much alpha adds to the centre's factor of 1.",
    )


def reference(
    x: NDArray[Any],
    w: NDArray[Any],
    b: NDArray[Any] | None,
    w_alpha: NDArray[Any],
    b_alpha: NDArray[Any] | None = None,
    b_ring: NDArray[Any] | None = None,
    slope: NDArray[Any] | None = None,
    *,
    attributes: common.ConvAttributes,
    activation: common.Activation | None = None,
    center_gain: float = 0.0,
) -> NDArray[Any]:
    """The operator in numpy; shapes as in `schema`. Computes in float64 and rounds once, to the type of `x`."""
    activation = (activation or common.Activation()).with_slopes(slope)
    total = adaptive_sum(x, w, b, w_alpha, b_alpha, b_ring, attributes, center_gain)
    return common.cast_like(activation(total, channel_axis=1), x)


def adaptive_sum(
    x: NDArray[Any],
    w: NDArray[Any],
    b: NDArray[Any] | None,
    w_alpha: NDArray[Any],
    b_alpha: NDArray[Any] | None,
    b_ring: NDArray[Any] | None,
    attributes: common.ConvAttributes,
    center_gain: float,
) -> NDArray[np.float64]:
    """The sum [N, M, OH, OW] before the activation, in float64."""
    one_group = common.ConvAttributes(
        attributes.kernel_shape, attributes.strides, attributes.pads, attributes.dilations, 1
    )
    alpha = np.clip(common.convolve(x, w_alpha * CENTRE, b_alpha, one_group), 0, 1)
    centre = common.convolve(x, w * CENTRE, None, attributes)
    ring = common.convolve(x, w * (1 - CENTRE), b_ring, attributes)
    bias = np.zeros(w.shape[0]) if b is None else b.astype(np.float64)
    return (1 + center_gain * alpha) * centre + bias[:, None, None] + alpha * ring


def under_centre(x: NDArray[Any], attributes: common.ConvAttributes) -> NDArray[Any]:
    """The pixels [N, C, OH, OW] of x [N, C, H, W] that the centre tap reads: what the gate sees."""
    height, width = attributes.output_shape(*x.shape[2:])
    top, left, bottom, right = attributes.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (down, across), (step_y, step_x) = attributes.dilations, attributes.strides
    return padded[:, :, down::step_y, across::step_x][:, :, :height, :width]


class Reference(OpRun):
    """The numpy form for onnx's `ReferenceEvaluator(model, new_ops=[...])`."""

    op_domain = common.DOMAIN

    def _run(
        self,
        x: NDArray[Any],
        w: NDArray[Any],
        b: NDArray[Any] | None,
        w_alpha: NDArray[Any],
        b_alpha: NDArray[Any] | None = None,
        b_ring: NDArray[Any] | None = None,
        slope: NDArray[Any] | None = None,
        **attributes: Any,
    ) -> tuple[NDArray[Any]]:
        geometry, activation = common.conv_attributes(w, attributes), common.activation_from(attributes)
        gain = float(attributes.get("center_gain") or 0.0)
        inputs = (x, w, b, w_alpha, b_alpha, b_ring, slope)
        return (reference(*inputs, attributes=geometry, activation=activation, center_gain=gain),)


Reference.__name__ = NAME  # onnx finds the operator by the class's name


def function_body(opset: int, elem_type: int, *, sloped: bool = False) -> onnx.FunctionProto:
    """The operator in standard operators: three Convs of the same geometry (gate, centre, ring) and their sum."""
    f = common.FunctionBuilder(opset, elem_type)
    result = f.activate(body_sum(f, "X"), sloped=sloped)
    return f.build(NAME, INPUTS if sloped else INPUTS[:-1], result, ATTRIBUTES)


def body_sum(f: common.FunctionBuilder, x: str) -> str:
    """Nodes that compute the sum of the map `x`, before the activation."""
    one = f.add("Reshape", f.number(1, "W"), f.constant(np.array([1, 1, 1, 1], np.int64)))
    centre_tap = f.pad(one, [0, 0, 1, 1, 0, 0, 1, 1])
    w_centre = f.add("Mul", "W", centre_tap)
    centre = f.conv(x, w_centre)
    ring = f.conv(x, f.add("Sub", "W", w_centre), "B_ring")
    alpha = f.clip_unit(f.conv(x, f.add("Mul", "W_alpha", centre_tap), "B_alpha", one_group=True))
    extra = f.add("Mul", f.add("Mul", alpha, f.float_attribute("center_gain", "W")), centre)
    bias = f.add("Reshape", "B", f.constant(np.array([1, -1, 1, 1], np.int64)))
    base = f.add("Add", f.add("Add", centre, extra), bias)
    return f.add("Add", base, f.add("Mul", alpha, ring))
