"""What the convolution operators share: attributes, activation, inputs, the numpy convolution, shape inference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops.base import Attribute, Constants, Default, Given, Inference, Input, Known, refuse

LARGEST_TILE = 4
"""Outputs along an edge of the largest tile of Winograd's algorithm."""
TILE_SIZES = (LARGEST_TILE, 2, 0)
"""What the attribute largest_tile may be."""

LISTED_PANEL = 16
"""Outputs for which the engine lists the columns of the weights, a tap of a channel each, that are not all zero."""

FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Activation:
    """A piecewise linear activation, `min(max(v < 0 ? negative_slope * slope * v : v, clip_min), clip_max)`.

    Three numbers instead of a name: they express identity, Relu, LeakyRelu and Clip, and an ONNX function body can
    refer to them as attributes, so one body per operator serves every activation. Infinite bounds are none, and so are
    those of the largest float, which models of earlier versions have: an infinity passes. `slopes` has one number for
    each of the channels, as PRelu has, and is an input of an operator; empty: all are 1.
    """

    negative_slope: float = 1.0
    clip_min: float = -math.inf
    clip_max: float = math.inf
    slopes: tuple[float, ...] = ()

    def __call__(self, value: NDArray[Any], *, channel_axis: int = -1) -> NDArray[Any]:
        """Apply to an array of any shape, whose axis `channel_axis` is that of `slopes`, if there are any."""
        low = -math.inf if self.clip_min <= -FLOAT_MAX else self.clip_min
        high = math.inf if self.clip_max >= FLOAT_MAX else self.clip_max
        slope: Any = self.negative_slope
        if self.slopes:
            after = (1,) * (-channel_axis - 1 if channel_axis < 0 else value.ndim - channel_axis - 1)
            slope = (np.array(self.slopes) * slope).reshape(-1, *after)
        with np.errstate(invalid="ignore"):  # zero times minus infinity, which is not taken
            scaled = np.where(slope == 0, np.zeros_like(value), value * slope)
        return np.minimum(np.maximum(np.where(value < 0, scaled, value), low), high)

    def with_slopes(self, slope: NDArray[Any] | None) -> Activation:
        """The same with an operator's input `slope`, [M] or None."""
        return self if slope is None else replace(self, slopes=tuple(slope.tolist()))

    @property
    def is_identity(self) -> bool:
        """True when every finite float32 is left as it is."""
        straight = self.negative_slope == 1 and all(slope == 1 for slope in self.slopes)
        return straight and self.clip_min <= -FLOAT_MAX and self.clip_max >= FLOAT_MAX

    def attributes(self) -> dict[str, float]:
        """As node attributes; the slopes are an input."""
        return {"negative_slope": self.negative_slope, "clip_min": self.clip_min, "clip_max": self.clip_max}


@dataclass(frozen=True)
class ConvAttributes:
    """The attributes of ONNX `Conv` with `auto_pad` resolved. `pads` is (top, left, bottom, right)."""

    kernel_shape: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    group: int = 1

    def output_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of `height` x `width` (not positive where nothing fits)."""
        sizes = []
        for axis, size in enumerate((height, width)):
            extent = self.dilations[axis] * (self.kernel_shape[axis] - 1) + 1
            sizes.append((size + self.pads[axis] + self.pads[axis + 2] - extent) // self.strides[axis] + 1)
        return sizes[0], sizes[1]

    def attributes(self) -> dict[str, Any]:
        """As node attributes."""
        return {
            "kernel_shape": list(self.kernel_shape),
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
            "group": self.group,
        }


def convolve(
    x: NDArray[Any], w: NDArray[Any], b: NDArray[Any] | None, attributes: ConvAttributes
) -> NDArray[np.float64]:
    """Two-dimensional convolution as ONNX `Conv` defines it, in float64.

    Args:
        x: [N, C, H, W].
        w: [M, C / group, kh, kw].
        b: [M] or None.
        attributes: Geometry.

    Returns:
        [N, M, OH, OW].
    """
    n, _, height, width = x.shape
    out_channels, in_group, kernel_h, kernel_w = w.shape
    out_h, out_w = attributes.output_shape(height, width)
    top, left, bottom, right = attributes.pads
    (stride_h, stride_w), (dilation_h, dilation_w) = attributes.strides, attributes.dilations
    groups = attributes.group
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    padded = padded.reshape(n, groups, in_group, *padded.shape[2:])
    weights = w.astype(np.float64).reshape(groups, out_channels // groups, in_group, kernel_h, kernel_w)
    out = np.zeros((n, groups, out_channels // groups, out_h, out_w))
    for i in range(kernel_h):
        for j in range(kernel_w):
            y0, x0 = i * dilation_h, j * dilation_w
            tap = padded[
                ...,
                y0 : y0 + (out_h - 1) * stride_h + 1 : stride_h,
                x0 : x0 + (out_w - 1) * stride_w + 1 : stride_w,
            ]
            out += np.einsum("ngcyx,gmc->ngmyx", tap, weights[..., i, j])
    out = out.reshape(n, out_channels, out_h, out_w)
    return out if b is None else out + b.astype(np.float64)[:, None, None]


def conv_attributes(w: NDArray[Any], attributes: Mapping[str, Any]) -> ConvAttributes:
    """Read `ConvAttributes` from node attributes; what is absent or None gets ONNX's default."""

    def ints(name: str, default: Sequence[int]) -> tuple[int, ...]:
        value = attributes.get(name)
        return tuple(default) if value is None else tuple(int(v) for v in value)

    kernel = ints("kernel_shape", w.shape[2:])
    strides, dilations, pads = ints("strides", (1, 1)), ints("dilations", (1, 1)), ints("pads", (0, 0, 0, 0))
    group = attributes.get("group")
    return ConvAttributes(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        (dilations[0], dilations[1]),
        1 if group is None else int(group),
    )


def activation_from(attributes: Mapping[str, Any]) -> Activation:
    """Read an `Activation` from node attributes; what is absent or None means identity."""
    numbers = Activation().attributes()
    numbers.update({name: float(attributes[name]) for name in numbers if attributes.get(name) is not None})
    return Activation(numbers["negative_slope"], numbers["clip_min"], numbers["clip_max"])


def geometry_of(given: Given) -> ConvAttributes:
    """The geometry that a node says."""
    return conv_attributes(given["W"], given.attributes)


def activation_of(given: Given) -> Activation:
    """The activation that a node says, with its slopes."""
    return activation_from(given.attributes).with_slopes(given["slope"])


def cast_like(value: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Round a float64 result to the operator's type."""
    with np.errstate(over="ignore"):
        return value.astype(x.dtype)


def dense_multiplies(w_shape: Sequence[int], positions: int) -> int:
    """Multiplies of a convolution per image: `positions` outputs of M x C/group x kh x kw each."""
    return positions * int(np.prod(w_shape, dtype=np.int64))


def listed_columns(weight: NDArray[Any], group: int = 1) -> float:
    """Which part of the columns of a weight [M, C/group, kh, kw] is not zero for a whole panel of outputs."""
    outputs = len(weight) // group
    there = (weight != 0).reshape(group, outputs, -1)
    starts = np.arange(0, outputs, LISTED_PANEL)
    listed = np.logical_or.reduceat(there, starts, axis=1).sum(axis=2)  # [group, panels]
    sizes = np.minimum(LISTED_PANEL, outputs - starts)
    return float((listed * sizes).sum()) / max(there.size, 1)


# --- what the descriptions share -------------------------------------------------------------------------------------


def outputs_of(known: Known) -> tuple[np.dtype[Any], int]:
    """Type of the weights W, and M."""
    dtype, sizes = known("W")
    assert sizes[0] is not None
    return dtype, sizes[0]


def _zeros(known: Known) -> NDArray[Any]:
    dtype, outputs = outputs_of(known)
    return np.zeros(outputs, dtype)


def _ones(known: Known) -> NDArray[Any]:
    dtype, outputs = outputs_of(known)
    return np.ones(outputs, dtype)


ZEROS = Default("zeros", _zeros)
"""[M] zeros."""

X = Input("X", "T", "Input [N, C, H, W].")
W = Input(
    "W",
    "T",
    "Weights [M, C/group, kh, kw]. Where all weights of a tap are zero, what stands there need not be read: where that "
    "is infinite or no number, it may count or not.",
    rank=4,
)
B = Input("B", "T", "Bias [M].", optional=True, default=ZEROS, rank=1)
MASK = Input("mask", "tensor(bool)", "[OH, OW], true at the sites.", rank=2, is_table=True)
SLOPE = Input(
    "slope",
    "T",
    "[M], factors of negative_slope, one for each channel; absent: all 1.",
    optional=True,
    default=Default("slope", _ones),
    by_model=True,
    rank=1,
)
"""The last input of every convolution operator of the domain."""
Y = Input("Y", "T", "Output [N, M, OH, OW].")

ATTRIBUTES = (
    Attribute("kernel_shape", "Height and width of the kernel.", length=2, least=1),
    Attribute("strides", "Stride along height and width.", [1, 1], least=1),
    Attribute("pads", "Padding: top, left, bottom, right.", [0, 0, 0, 0], least=0),
    Attribute("dilations", "Dilation along height and width.", [1, 1], least=1),
    Attribute("group", "Number of groups, as in Conv.", 1, least=1),
    Attribute("negative_slope", "Factor for negative values; 0 is Relu.", 1.0),
    Attribute("clip_min", "Lower bound of the output.", -math.inf),
    Attribute("clip_max", "Upper bound of the output.", math.inf),
    Attribute(
        "largest_tile",
        "A kernel may use Winograd's algorithm with tiles of at most so many outputs along an edge: 4, 2 (weights take "
        "half the memory), or 0 for none.",
        LARGEST_TILE,
        least=0,
    ),
)
"""The attributes of every convolution operator of the domain."""


def at_mask(constant: Constants, size: Sequence[int] | None) -> int | None:
    """How many positions a mask lets be computed."""
    mask = constant("mask")
    return None if mask is None else int(mask.sum())


def everywhere(constant: Constants, size: Sequence[int] | None) -> int | None:
    """The number of all positions."""
    return None if size is None else size[0] * size[1]


def inferred_attributes(node: Inference, kernel: Sequence[int]) -> ConvAttributes:
    """The convolution attributes of the node under shape inference."""
    return conv_attributes(np.empty([1, 1, *kernel], np.bool_), node.attributes())


def infer_map(node: Inference) -> None:
    """Shape inference from map to map: [N, M, OH, OW], OH and OW from the mask or from the geometry."""
    if node.type("X") is None:  # inference did not reach it
        return
    x, w = node.dims("X"), node.dims("W")
    if x is None:
        node.give(None)
        return
    if len(x) != 4:
        refuse(f"X must have rank 4, not {len(x)}")
    if w is not None and len(w) != 4:
        refuse(f"W must have rank 4, not {len(w)}")
    out: list[int | None] = [None, None]
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in x[2:]]
    if w is not None and all(d.HasField("dim_value") for d in w[2:]):
        attributes = inferred_attributes(node, [d.dim_value for d in w[2:]])
        known = attributes.output_shape(*(0 if size is None else size for size in sizes))
        out = [None if size is None else found for size, found in zip(sizes, known, strict=True)]
    mask = node.dims("mask", 2) if node.operator.has_input("mask") else None
    for axis, dim in enumerate(mask or ()):
        if not dim.HasField("dim_value"):
            continue
        if out[axis] is not None and out[axis] != dim.dim_value:
            refuse(f"the mask is {dim.dim_value} long on axis {axis}, the output {out[axis]}")
        out[axis] = dim.dim_value
    node.give([x[0], None if w is None else w[0], *out])
