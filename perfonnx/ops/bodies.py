"""Function bodies: the operators in standard operators, for models that run without the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto

MISFIT = "made_for_another_height_and_width"
"""Name of the node of a function body that refuses a map of another size."""

_FIRST = np.zeros((1, 1), np.int64)


class FunctionBuilder:
    """Collects the nodes of a model-local function, valid for one version of the standard operators.

    Args:
        opset: Version of the default domain that the model imports (7 or later).
        elem_type: Float type of the operator's X. Below version 9 a body serves this type only. From 9 on it serves
            all: a converter may change the types of a model around it.
        attributes: Types of the function's attributes, by name.
    """

    def __init__(self, opset: int, elem_type: int, attributes: Mapping[str, AttributeProto.AttributeType]) -> None:
        self.opset = opset
        self.elem_type = elem_type
        self.attributes = attributes
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, *inputs: str, refs: Mapping[str, str] | None = None, **attributes: Any) -> str:
        """Append a node and return its output's name; `refs` maps its attributes to the function's."""
        output = f"{op.lower()}_{len(self.nodes)}"
        node = onnx.helper.make_node(op, list(inputs), [output], **attributes)
        for name, target in (refs or {}).items():
            node.attribute.append(AttributeProto(name=name, ref_attr_name=target, type=self.attributes[target]))
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
