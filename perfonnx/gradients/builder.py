"""Builds the backward model: ONNX nodes written as arithmetic on `Value`s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from perfonnx import runtime
from perfonnx.gradients.network import Node

OPSET = 18
"""Version of the standard operators in backward models, whatever the version of the model that they belong to."""

_IR_VERSION = 8
_SHARED = 64  # elements; equal constants up to this size are kept once

Operand: TypeAlias = "Value | float"
Shape: TypeAlias = Sequence[int]


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the backward model. Operators and methods append nodes; a comparison gives 0 and 1 as floats."""

    builder: Builder
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.builder.add("Add", self, other)

    def __radd__(self, other: float) -> Value:
        return self + other

    def __sub__(self, other: Operand) -> Value:
        return self.builder.add("Sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return self.builder.add("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.builder.add("Mul", self, other)

    def __rmul__(self, other: float) -> Value:
        return self * other

    def __truediv__(self, other: Operand) -> Value:
        return self.builder.add("Div", self, other)

    def __rtruediv__(self, other: float) -> Value:
        return self.builder.add("Div", other, self)

    def __neg__(self) -> Value:
        return self.builder.add("Neg", self)

    def __pow__(self, exponent: Operand) -> Value:
        return self.builder.add("Pow", self, exponent)

    def __gt__(self, other: Operand) -> Value:
        return self.builder.add("Greater", self, other).as_float()

    def __lt__(self, other: Operand) -> Value:
        return self.builder.add("Less", self, other).as_float()

    def equals(self, other: Operand) -> Value:
        """1 where both are equal."""
        return self.builder.add("Equal", self, other).as_float()

    def map(self, op: str, *others: Operand, **attributes: Any) -> Value:
        """An operator whose first input this is."""
        return self.builder.add(op, self, *others, **attributes)

    def as_float(self) -> Value:
        """Cast to float32."""
        return self.map("Cast", to=TensorProto.FLOAT)

    def reshape(self, shape: Shape) -> Value:
        """The same values in another shape."""
        return self.map("Reshape", self.builder.integers(shape), allowzero=1)

    def transpose(self, order: Sequence[int]) -> Value:
        """Axes in another order."""
        if list(order) == list(range(len(order))):
            return self
        return self.map("Transpose", perm=list(order))

    def swap(self, rank: int) -> Value:
        """The last two axes swapped."""
        return self.transpose([*range(rank - 2), rank - 1, rank - 2])

    def matmul(self, other: Value) -> Value:
        """Matrix product."""
        return self.map("MatMul", other)

    def sum(self, axes: Sequence[int]) -> Value:
        """Sum over axes, which stay with length 1."""
        return self.map("ReduceSum", self.builder.integers(axes), keepdims=1) if axes else self

    def mean(self, axes: Sequence[int]) -> Value:
        """Mean over axes, which stay with length 1."""
        return self.map("ReduceMean", self.builder.integers(axes), keepdims=1) if axes else self

    def expand(self, shape: Shape) -> Value:
        """Broadcast to a shape."""
        return self.map("Expand", self.builder.integers(shape))

    def fit(self, own: Shape, wanted: Shape) -> Value:
        """The gradient of broadcasting: sums a value of shape `own` over what had been broadcast from `wanted`."""
        if tuple(own) == tuple(wanted):
            return self
        padded = (1,) * (len(own) - len(wanted)) + tuple(wanted)
        axes = [axis for axis, (a, b) in enumerate(zip(own, padded, strict=True)) if a != b]
        return self.sum(axes).reshape(wanted)

    def slice(self, axis: int, start: int, stop: int) -> Value:
        """The part from `start` to before `stop` of an axis."""
        integers = self.builder.integers
        return self.map("Slice", integers([start]), integers([stop]), integers([axis]))

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Value:
        """Zeros around; negative numbers cut off."""
        if not any(before) and not any(after):
            return self
        return self.map("Pad", self.builder.integers([*before, *after]))

    def scatter(self, axis: int, index: NDArray[Any] | Value, own: Shape, size: int) -> Value:
        """The gradient of `Gather`: entries of an axis are added up where `index` says.

        Args:
            axis: The axis.
            index: [K] where each of the K entries goes, 0..size-1.
            own: Shape of this value, K along the axis.
            size: Length of the axis in the result.
        """
        if isinstance(index, np.ndarray) and len(np.unique(index)) == len(index):
            sources = np.full(size, len(index))  # of each entry of the result; the last one is a zero
            sources[index] = np.arange(len(index))
            before, after = [0] * len(own), [int(a == axis) for a in range(len(own))]
            return self.pad(before, after).map("Gather", self.builder.integers(sources), axis=axis)
        result = [size if a == axis else length for a, length in enumerate(own)]
        along = [-1 if a == axis else 1 for a in range(len(own))]
        where = index if isinstance(index, Value) else self.builder.integers(index)
        zeros = self.builder.constant(np.zeros(1)).expand(result)
        return zeros.map("ScatterElements", where.reshape(along).expand(own), self, axis=axis, reduction="add")

    def along(self, axis: int, rank: int, matrix: NDArray[Any]) -> Value:
        """Multiplies every vector that lies along an axis by a matrix [old length, new length]."""
        if axis == rank - 1:
            return self.matmul(self.builder.constant(matrix))
        if axis == rank - 2:
            return self.builder.constant(matrix.T).matmul(self)
        order = [*range(axis), *range(axis + 1, rank), axis]
        moved = self.transpose(order).matmul(self.builder.constant(matrix))
        return moved.transpose([order.index(a) for a in range(rank)])


class Builder:
    """Collects the nodes of a backward model.

    Its inputs are tensors of the forward run, fed as float32, int64 or bool, and the gradients that the loss gives.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.inputs: dict[str, int] = {}
        self.saved: dict[str, str] = {}
        self.seeds: dict[str, str] = {}
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._outputs: dict[str, str] = {}

    def add(self, op: str, *inputs: Operand, output: int = 0, **attributes: Any) -> Value:
        """Appends a node and returns one of its outputs."""
        names = [value.name if isinstance(value, Value) else self.constant(value).name for value in inputs]
        outputs = [f"{op}_{len(self.nodes)}_{i}" for i in range(output + 1)]
        self.nodes.append(helper.make_node(op, names, outputs, **attributes))
        return Value(self, outputs[output])

    def constant(self, values: NDArray[Any] | float) -> Value:
        """A float32 constant."""
        return self._constant(np.asarray(values, np.float32))

    def integers(self, values: Sequence[int] | NDArray[Any]) -> Value:
        """An int64 constant of rank 1."""
        return self._constant(np.asarray(values, np.int64).reshape(-1))

    def _constant(self, array: NDArray[Any]) -> Value:
        array = np.ascontiguousarray(array).reshape(array.shape)  # the former makes a scalar a vector
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= _SHARED else None
        if key in self._constants:
            return self._constants[key]
        name = f"constant_{len(self._initializers)}"
        self._initializers[name] = numpy_helper.from_array(array, name)
        value = Value(self, name)
        if key is not None:
            self._constants[key] = value
        return value

    def value(self, node: Node, position: int) -> Value:
        """An input of a forward node, as float32."""
        return self._forward(node.inputs[position], node, TensorProto.FLOAT)

    def result(self, node: Node, position: int = 0) -> Value:
        """An output of a forward node, as float32."""
        return self._forward(node.outputs[position], node, TensorProto.FLOAT)

    def index(self, node: Node, position: int) -> Value:
        """An input of a forward node that holds integers, as int64."""
        return self._forward(node.inputs[position], node, TensorProto.INT64)

    def _forward(self, name: str, node: Node, elem_type: int) -> Value:
        own = f"forward_{TensorProto.DataType.Name(elem_type)}/{name}"
        if name in node.constants:
            if own not in self._initializers:
                values = np.asarray(node.constants[name], helper.tensor_dtype_to_np_dtype(elem_type))
                self._initializers[own] = numpy_helper.from_array(values, own)
        else:
            self.inputs[own] = elem_type
            self.saved[own] = name
        return Value(self, own)

    def seed(self, tensor: str) -> Value:
        """The gradient that the loss gives for a tensor of the forward model."""
        self.seeds[tensor] = f"seed/{tensor}"
        self.inputs[self.seeds[tensor]] = TensorProto.FLOAT
        return Value(self, self.seeds[tensor])

    def output(self, tensor: str, gradient: Value) -> None:
        """Makes a value the gradient of a tensor of the forward model."""
        name = f"gradient/{tensor}"
        self.nodes.append(helper.make_node("Identity", [gradient.name], [name]))
        self._outputs[tensor] = name

    @property
    def outputs(self) -> dict[str, str]:
        """Names of the backward model's outputs by tensor of the forward model."""
        return self._outputs

    def build(self) -> ModelProto:
        """The backward model, with only what its outputs need; `saved` and `seeds` are cut down to that too."""
        needed = set(self._outputs.values())
        nodes = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        self.saved = {own: name for own, name in self.saved.items() if own in needed}
        self.seeds = {name: own for name, own in self.seeds.items() if own in needed}
        graph = helper.make_graph(
            nodes[::-1],
            "backward",
            [helper.make_tensor_value_info(n, t, None) for n, t in self.inputs.items() if n in needed],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self._outputs.values()],
            [tensor for name, tensor in self._initializers.items() if name in needed],
        )
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION, producer_name="perfonnx")

    def numpy_type(self, name: str) -> Any:
        """The numpy type in which an input of the backward model is fed."""
        return helper.tensor_dtype_to_np_dtype(self.inputs[name])


def count(shape: Shape, axes: Sequence[int]) -> int:
    """Number of elements along some axes."""
    return math.prod(shape[axis] for axis in axes)


def probe(proto: NodeProto, opset: int, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """What onnxruntime gives for one node; how linear operators are read off as matrices."""
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    graph = helper.make_graph([proto], "probe", infos, [helper.make_empty_tensor_value_info(proto.output[0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)
    session = runtime.session(model, library=False)
    return np.asarray(session.run(None, feeds)[0])


__all__ = ["OPSET", "Builder", "Operand", "Shape", "Value", "count", "probe"]
