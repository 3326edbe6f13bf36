"""RadiusAdaptiveConv: per position, a learned alpha adds the 3x3 ring to the 1x1 centre (Rakhshanfar)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops import common
from perfonnx.ops.base import Attribute, Default, Given, Input, Known, Operator
from perfonnx.ops.bodies import FunctionBuilder

DOC = """With alpha = clip(x . W_alpha + B_alpha, 0, 1) of the pixel x under the centre tap, the output is
(1 + center_gain * alpha) * centre + B + alpha * (ring + B_ring), then the activation: centre is the convolution with
the centre tap alone, ring with the eight others of its 3x3 kernel. center_gain 0 is the paper's form, 1 its released
program's."""

CENTRE = np.zeros((1, 1, 3, 3), np.float32)
CENTRE[..., 1, 1] = 1


def _one_zero(known: Known) -> NDArray[Any]:
    return np.zeros(1, common.outputs_of(known)[0])


GATE_INPUTS = (
    Input("W_alpha", "T", "[1, C, 1, 1], weights of the gate.", rank=4),
    Input(
        "B_alpha",
        "T",
        "[1], bias of the gate; absent: 0.",
        optional=True,
        default=Default("zeros", _one_zero),
        rank=1,
    ),
    Input(
        "B_ring",
        "T",
        "[M], added to the ring before alpha scales it; absent: 0.",
        optional=True,
        default=common.ZEROS,
        rank=1,
    ),
)
"""The inputs that the radius-adaptive form has beside those of a convolution."""

ATTRIBUTES = (
    *common.ATTRIBUTES,
    Attribute("center_gain", "How much alpha adds to the centre's factor of 1.", 0.0),
)


def adaptive_sum(given: Given, x: NDArray[Any]) -> NDArray[np.float64]:
    """The sum [N, M, OH, OW] of the map `x` before the activation, in float64."""
    w, b, geometry = given["W"], given["B"], common.geometry_of(given)
    alpha = common.convolve(x, given["W_alpha"] * CENTRE, given["B_alpha"], replace(geometry, group=1))
    alpha = np.clip(alpha, 0, 1)
    centre = common.convolve(x, w * CENTRE, None, geometry)
    ring = common.convolve(x, w * (1 - CENTRE), given["B_ring"], geometry)
    bias = np.zeros(w.shape[0]) if b is None else b.astype(np.float64)
    return (1 + float(given.attributes["center_gain"]) * alpha) * centre + bias[:, None, None] + alpha * ring


def under_centre(x: NDArray[Any], attributes: common.ConvAttributes) -> NDArray[Any]:
    """The pixels [N, C, OH, OW] of x [N, C, H, W] that the centre tap reads: what the gate sees."""
    height, width = attributes.output_shape(*x.shape[2:])
    top, left, bottom, right = attributes.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (down, across), (step_y, step_x) = attributes.dilations, attributes.strides
    return padded[:, :, down::step_y, across::step_x][:, :, :height, :width]


def body_sum(f: FunctionBuilder, x: str) -> str:
    """Nodes that compute the sum of the map `x`, before the activation: three Convs of the same geometry."""
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


def _compute(given: Given) -> NDArray[Any]:
    total = adaptive_sum(given, given["X"])
    return common.cast_like(common.activation_of(given)(total, channel_axis=1), given["X"])


def _body(f: FunctionBuilder, given: Collection[str]) -> str:
    return f.activate(body_sum(f, "X"), sloped="slope" in given)


RADIUS_ADAPTIVE_CONV = Operator(
    name="RadiusAdaptiveConv",
    doc=DOC,
    inputs=(common.X, common.W, common.B, *GATE_INPUTS, common.SLOPE),
    output=common.Y,
    attributes=ATTRIBUTES,
    infer=common.infer_map,
    compute=_compute,
    body=_body,
    positions=common.everywhere,
)
