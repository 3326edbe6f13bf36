"""What the operators share: convolution attributes, the activation, the numpy convolution, schema pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TypeProto

DOMAIN = "ai.perfonnx"
VERSION = 1

MISFIT = "made_for_another_height_and_width"
"""Name of the node of a function body that refuses a map of another size."""

FLOAT_MAX = float(np.finfo(np.float32).max)

_OpSchema = onnx.defs.OpSchema
FLOAT_CONSTRAINT = ("T", ["tensor(float)", "tensor(float16)"], "float32 or float16")
FACTORS_CONSTRAINT = ("F", ["tensor(float)", "tensor(float16)"], "float32, or float16 where a converter made it that")


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


# --- schema pieces ---------------------------------------------------------------------------------------------------


def formal(name: str, type_str: str, doc: str, *, optional: bool = False) -> onnx.defs.OpSchema.FormalParameter:
    """One formal input or output of a schema."""
    option = _OpSchema.FormalParameterOption.Optional if optional else _OpSchema.FormalParameterOption.Single
    return _OpSchema.FormalParameter(name, type_str, doc, param_option=option)


def schema_attributes() -> list[onnx.defs.OpSchema.Attribute]:
    """The attributes that every convolution operator of the domain has."""
    kinds = _OpSchema.AttrType
    make = onnx.helper.make_attribute
    return [
        _OpSchema.Attribute("kernel_shape", kinds.INTS, "Height and width of the kernel.", required=False),
        _OpSchema.Attribute("strides", make("strides", [1, 1]), "Stride along height and width."),
        _OpSchema.Attribute("pads", make("pads", [0, 0, 0, 0]), "Padding: top, left, bottom, right."),
        _OpSchema.Attribute("dilations", make("dilations", [1, 1]), "Dilation along height and width."),
        _OpSchema.Attribute("group", make("group", 1), "Number of groups, as in Conv."),
        _OpSchema.Attribute("negative_slope", make("negative_slope", 1.0), "Factor for negative values; 0 is Relu."),
        _OpSchema.Attribute("clip_min", make("clip_min", -math.inf), "Lower bound of the output."),
        _OpSchema.Attribute("clip_max", make("clip_max", math.inf), "Upper bound of the output."),
    ]


def slope_input() -> onnx.defs.OpSchema.FormalParameter:
    """The last input of every convolution operator of the domain."""
    return formal("slope", "T", "[M], factors of negative_slope, one for each channel; absent: all 1.", optional=True)


def conv_schema(
    name: str,
    doc: str,
    inputs: Sequence[onnx.defs.OpSchema.FormalParameter],
    attributes: Sequence[onnx.defs.OpSchema.Attribute] = (),
    constraints: Sequence[tuple[str, Sequence[str], str]] = (),
    *,
    mask_input: int | None,
) -> onnx.defs.OpSchema:
    """Schema of a convolution from map to map: X, W, B, the operator's own `inputs` and `attributes`, slope."""
    result = _OpSchema(
        name,
        DOMAIN,
        VERSION,
        doc,
        inputs=[
            formal("X", "T", "Input [N, C, H, W]."),
            formal("W", "T", "Weights [M, C/group, kh, kw]."),
            formal("B", "T", "Bias [M].", optional=True),
            *inputs,
            slope_input(),
        ],
        outputs=[formal("Y", "T", "Output [N, M, OH, OW].")],
        type_constraints=[FLOAT_CONSTRAINT, *constraints],
        attributes=[*schema_attributes(), *attributes],
    )
    result.set_type_and_shape_inference_function(lambda context: infer_conv_output(context, mask_input=mask_input))
    return result


def inferred_attributes(context: Any, kernel: Sequence[int]) -> ConvAttributes:
    """The convolution attributes of the node under shape inference."""
    named = {}
    for name in ("kernel_shape", "strides", "pads", "dilations", "group"):
        attribute = context.get_attribute(name)
        if attribute is not None:
            named[name] = onnx.helper.get_attribute_value(attribute)
    return conv_attributes(np.empty([1, 1, *kernel], np.bool_), named)


def infer_conv_output(context: Any, *, mask_input: int | None) -> None:
    """Shape inference of all convolution operators: [N, M, OH, OW], OH and OW from the mask or from the geometry."""
    x_type, w_type = context.get_input_type(0), context.get_input_type(1)
    if x_type is None:  # inference did not reach the input
        return
    x, w = x_type.tensor_type, TypeProto().tensor_type if w_type is None else w_type.tensor_type
    result = TypeProto()
    result.tensor_type.elem_type = x.elem_type
    if not x.HasField("shape"):
        context.set_output_type(0, result)
        return
    if len(x.shape.dim) != 4:
        raise onnx.shape_inference.InferenceError(f"X must have rank 4, not {len(x.shape.dim)}")
    dims = result.tensor_type.shape.dim
    dims.add().CopyFrom(x.shape.dim[0])
    channels = dims.add()
    has_weight_shape = w.HasField("shape")
    if has_weight_shape:
        if len(w.shape.dim) != 4:
            raise onnx.shape_inference.InferenceError(f"W must have rank 4, not {len(w.shape.dim)}")
        channels.CopyFrom(w.shape.dim[0])
    height, width = dims.add(), dims.add()
    geometry: list[int | None] = [None, None]
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in x.shape.dim[2:]]
    if has_weight_shape and all(d.HasField("dim_value") for d in w.shape.dim[2:]):
        attributes = inferred_attributes(context, [d.dim_value for d in w.shape.dim[2:]])
        known = attributes.output_shape(*(0 if size is None else size for size in sizes))
        geometry = [None if size is None else out for size, out in zip(sizes, known, strict=True)]
    if mask_input is not None:
        mask_type = context.get_input_type(mask_input)
        mask = TypeProto().tensor_type if mask_type is None else mask_type.tensor_type
        if mask.HasField("shape") and len(mask.shape.dim) == 2:
            for axis, dim in enumerate(mask.shape.dim):
                if not dim.HasField("dim_value"):
                    continue
                if geometry[axis] is not None and geometry[axis] != dim.dim_value:
                    raise onnx.shape_inference.InferenceError(
                        f"the mask is {dim.dim_value} long on axis {axis}, the output {geometry[axis]}"
                    )
                geometry[axis] = dim.dim_value
    for dim, size in zip((height, width), geometry, strict=True):
        if size is not None:
            dim.dim_value = size
    context.set_output_type(0, result)


def dense_multiplies(w_shape: Sequence[int], positions: int) -> int:
    """Multiplies of a convolution per image: `positions` outputs of M x C/group x kh x kw each."""
    return positions * int(np.prod(w_shape, dtype=np.int64))


# --- function bodies -------------------------------------------------------------------------------------------------

_ATTRIBUTE_TYPES = {
    "kernel_shape": AttributeProto.INTS,
    "strides": AttributeProto.INTS,
    "pads": AttributeProto.INTS,
    "dilations": AttributeProto.INTS,
    "group": AttributeProto.INT,
    "negative_slope": AttributeProto.FLOAT,
    "clip_min": AttributeProto.FLOAT,
    "clip_max": AttributeProto.FLOAT,
    "center_gain": AttributeProto.FLOAT,
    "interpolation": AttributeProto.STRING,
    "ceil_mode": AttributeProto.INT,
    "count_include_pad": AttributeProto.INT,
}


_FIRST = np.zeros((1, 1), np.int64)


class FunctionBuilder:
    """Collects the nodes of a model-local function, valid for one version of the standard operators.

    Args:
        opset: Version of the default domain that the model imports (7 or later).
        elem_type: Float type of the operator's X. Below version 9 a body serves this type only. From 9 on it serves
            all: a converter may change the types of a model around it.
    """

    def __init__(self, opset: int, elem_type: int) -> None:
        self.opset = opset
        self.elem_type = elem_type
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, *inputs: str, refs: Mapping[str, str] | None = None, **attributes: Any) -> str:
        """Append a node and return its output's name; `refs` maps its attributes to the function's."""
        output = f"{op.lower()}_{len(self.nodes)}"
        node = onnx.helper.make_node(op, list(inputs), [output], **attributes)
        for name, target in (refs or {}).items():
            node.attribute.append(AttributeProto(name=name, ref_attr_name=target, type=_ATTRIBUTE_TYPES[target]))
        self.nodes.append(node)
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """A constant of the array's own type."""
        if self.opset >= 9 or value.dtype == np.float32:
            return self.add("Constant", value=onnx.numpy_helper.from_array(value))
        as_float = self.constant(value.astype(np.float32))  # Constant was for floats only
        return self.add("Cast", as_float, to=onnx.helper.np_dtype_to_tensor_dtype(value.dtype))

    def factors(self, value: str, like: str) -> str:
        """Cast float factors to the type of the tensor `like`."""
        if self.opset >= 15:
            return self.add("CastLike", value, like)
        if self.elem_type == onnx.TensorProto.FLOAT:  # a converter that changes `like` changes them too
            return value
        return self.add("Cast", value, to=self.elem_type)

    def number(self, value: float, like: str) -> str:
        """A scalar of the type of the tensor `like`, which has an entry at least."""
        if self.opset >= 15:
            return self.add("CastLike", self.constant(np.array(value, np.float32)), like)
        if self.opset < 9:
            return self.add("Cast", self.constant(np.array(value, np.float32)), to=self.elem_type)
        # No CastLike yet; EyeLike makes a 1 of another tensor's type, and LeakyRelu(-1) is -alpha.
        entry = self.add("Gather", self.add("Reshape", like, self.constant(np.array([-1]))), self.constant(_FIRST))
        one = self.add("Reshape", self.add("EyeLike", entry), self.constant(np.array([], np.int64)))
        return one if value == 1 else self.add("LeakyRelu", self.add("Neg", one), alpha=float(-value))

    def float_attribute(self, name: str, like: str) -> str:
        """A float attribute of the function as a scalar of the type of `like`."""
        if self.opset >= 15:
            return self.add("CastLike", self.add("Constant", refs={"value_float": name}), like)
        return self.add("Neg", self.add("LeakyRelu", self.number(-1, like), refs={"alpha": name}))

    def conv(self, x: str, w: str, b: str = "", *, one_group: bool = False) -> str:
        """A Conv with the function's own geometry."""
        refs = {name: name for name in ("kernel_shape", "strides", "pads", "dilations")}
        inputs = (x, w, b) if b else (x, w)
        if one_group:
            return self.add("Conv", *inputs, refs=refs, group=1)
        return self.add("Conv", *inputs, refs={**refs, "group": "group"})

    def clip(self, value: str, low: str, high: str) -> str:
        """Clip between two float attributes of the function, which has weights W."""
        if self.opset < 11:
            return self.add("Clip", value, refs={"min": low, "max": high})
        return self.add("Clip", value, self.float_attribute(low, "W"), self.float_attribute(high, "W"))

    def clip_unit(self, value: str) -> str:
        """Clip to [0, 1], in a function that has weights W."""
        if self.opset < 11:
            return self.add("Clip", value, min=0.0, max=1.0)
        return self.add("Clip", value, self.number(0, "W"), self.number(1, "W"))

    def activate(self, value: str, *, sloped: bool, channels_last: bool = False) -> str:
        """The activation given by the attributes of a function that has weights W, and a slope [M] where `sloped`."""
        factor = self.float_attribute("negative_slope", "W")
        if sloped:
            shape = np.array([-1] if channels_last else [-1, 1, 1], np.int64)
            factor = self.add("Mul", self.add("Reshape", "slope", self.constant(shape)), factor)
        leaky = self.add("PRelu", value, factor)
        return self.clip(leaky, "clip_min", "clip_max")

    def front_of(self, x: str, size: str = "") -> str:
        """The first two sizes of a map x [N, C, H, W], int64 [2].

        Where (H, W) is not `size`, int64 [2], it fails when the function runs; a `size` of 0 allows any. Standard
        operators have no assertion: the two numbers are reshaped, which only their own count of elements allows.
        """
        shape = self.add("Shape", x)
        front = self.add("Gather", shape, self.constant(np.array([0, 1], np.int64)), axis=0)
        if not size:
            return front
        here = self.add("Gather", shape, self.constant(np.array([2, 3], np.int64)), axis=0)
        apart = self.add("Abs", self.add("Mul", self.add("Sub", here, size), size))
        checked = self.add("Reshape", front, self.add("Add", apart, self.constant(np.array([1, 2], np.int64))))
        self.nodes[-1].name = MISFIT  # which onnxruntime names in its message
        # a second Reshape would take the list back, but onnxruntime makes one of two, and nothing would be checked
        return self.add("Gather", checked, self.constant(np.array(0, np.int64)), axis=0)

    def with_size_of(self, value: str, conv: str, mask: str) -> str:
        """`value`, which has the positions of `mask`, as a map like `conv`; fails where that has another size."""
        size = self.add("Shape", mask)
        return self.add("Reshape", value, self.add("Concat", self.front_of(conv, size), size, axis=0))

    def sum_last_axis(self, value: str, axis: int) -> str:
        """Sum over `axis`, which is dropped."""
        if self.opset < 13:
            return self.add("ReduceSum", value, axes=[axis], keepdims=0)
        return self.add("ReduceSum", value, self.constant(np.array([axis], np.int64)), keepdims=0)

    def pad(self, value: str, pads: Sequence[int]) -> str:
        """Pad with zeros."""
        if self.opset < 11:
            return self.add("Pad", value, pads=list(pads))
        return self.add("Pad", value, self.constant(np.array(pads, np.int64)))

    def build(self, name: str, inputs: Sequence[str], result: str, attributes: Sequence[str]) -> onnx.FunctionProto:
        """Finish the function; its output is called Y."""
        self.nodes.append(onnx.helper.make_node("Identity", [result], ["Y"]))
        return onnx.helper.make_function(
            DOMAIN,
            name,
            list(inputs),
            ["Y"],
            self.nodes,
            [onnx.helper.make_opsetid("", self.opset)],
            attributes=list(attributes),
        )


def cast_like(value: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Round a float64 result to the operator's type."""
    with np.errstate(over="ignore"):
        return value.astype(x.dtype)


COMMON_ATTRIBUTES = (
    "kernel_shape",
    "strides",
    "pads",
    "dilations",
    "group",
    "negative_slope",
    "clip_min",
    "clip_max",
)
