"""What an operator of the domain is: inputs, attributes and meaning, each said once; all else is made of that."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TypeProto
from onnx.defs import OpSchema
from onnx.reference.op_run import OpRun

from perfonnx.ops.bodies import FunctionBuilder

DOMAIN = "ai.perfonnx"
VERSION = 1

CONSTRAINTS = {
    "T": (["tensor(float)", "tensor(float16)"], "float32 or float16"),
    "F": (["tensor(float)", "tensor(float16)"], "float32, or float16 where a converter made it that"),
}
"""The type parameters that inputs may have: what they stand for, and a word about it."""

Known: TypeAlias = Callable[[str], "tuple[np.dtype[Any], Sequence[int | None]]"]
"""Type and sizes of a node's input, by the name that the operator gives it; None for a size that is not known."""

Constants: TypeAlias = Callable[[str], "NDArray[Any] | None"]
"""The value of a node's input, by the name that the operator gives it; None where it is left out or not constant."""


@dataclass(frozen=True)
class Default:
    """What an optional input says where it is left out, written out.

    Attributes:
        kind: What the table is called in a model.
        make: Makes it.
    """

    kind: str
    make: Callable[[Known], NDArray[Any]]


@dataclass(frozen=True)
class Input:
    """An input or the output of an operator.

    Attributes:
        name: As in the schema.
        type: A type such as `tensor(int32)`, or a parameter of `CONSTRAINTS`.
        doc: Shape and meaning.
        optional: Whether it may be left out.
        default: What it is then, for function bodies, which cannot ask; None: they never see a node without it.
        by_model: Whether it is left out of the bodies too, where no node of a model has it: for inputs that cost
            something to compute with.
        rank: Number of dimensions, where values are constant; None: it is not looked at.
        least: The smallest number that may be in a table.
        is_table: Whether its numbers say what is where, so that a look at its shape is not enough.
    """

    name: str
    type: str
    doc: str
    optional: bool = False
    default: Default | None = None
    by_model: bool = False
    rank: int | None = None
    least: int | None = None
    is_table: bool = False

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """The numpy types that it may have."""
        names = CONSTRAINTS[self.type][0] if self.type in CONSTRAINTS else [self.type]
        return [np.dtype(_NUMPY_TYPES[name]) for name in names]

    def formal(self) -> OpSchema.FormalParameter:
        """As a schema says it."""
        options = OpSchema.FormalParameterOption
        option = options.Optional if self.optional else options.Single
        return OpSchema.FormalParameter(self.name, self.type, self.doc, param_option=option)


_NUMPY_TYPES: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Attribute:
    """An attribute of an operator.

    Attributes:
        name: As in the schema.
        doc: Meaning.
        default: What it is where a node does not say; None: a list of `length` whole numbers without a default.
        required: Whether a node has to say it, if there is no default.
        length: How many numbers a list without a default has.
        least: The smallest number that makes sense; None: it is not looked at.
    """

    name: str
    doc: str
    default: Any = None
    required: bool = False
    length: int | None = None
    least: int | None = None

    @property
    def count(self) -> int | None:
        """How many numbers a list has; None for what is no list."""
        return len(self.default) if isinstance(self.default, list) else self.length

    @property
    def type(self) -> AttributeProto.AttributeType:
        """The type of its protobuf message."""
        return AttributeProto.INTS if self.default is None else self.proto().type

    def proto(self) -> AttributeProto:
        """The default as a node's attribute."""
        return onnx.helper.make_attribute(self.name, self.default)

    def formal(self) -> OpSchema.Attribute:
        """As a schema says it."""
        if self.default is None:
            return OpSchema.Attribute(self.name, OpSchema.AttrType.INTS, self.doc, required=self.required)
        return OpSchema.Attribute(self.name, self.proto(), self.doc)


@dataclass(frozen=True)
class Given:
    """What a node gives its operator: inputs by name, None where one is left out, and attributes, none left out."""

    inputs: Mapping[str, NDArray[Any] | None]
    attributes: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.inputs[name]


@dataclass(frozen=True)
class Operator:
    """An operator of the domain. Its module makes one, and the registry of the package finds it.

    Attributes:
        name: The operator's type.
        doc: What it computes.
        inputs: In order.
        output: The only output.
        infer: Tells the type and shape of the output.
        compute: The operator in numpy; computes in float64 and rounds once, to the type of its first input.
        body: Adds the nodes of standard operators that compute it, and returns the name of their result. It is told
            which inputs that differ by model are given.
        attributes: In the order in which a function body lists them.
        lowered: Whether it works on rows, which only the lowering makes.
        positions: How many output positions a node computes per image, by its constants and the (OH, OW) of the map
            that its result is or stands for; None where that is not known. Operators that are no convolution have none.
    """

    name: str
    doc: str
    inputs: tuple[Input, ...]
    output: Input
    infer: Callable[[Inference], None]
    compute: Callable[[Given], NDArray[Any]]
    body: Callable[[FunctionBuilder, Collection[str]], str]
    attributes: tuple[Attribute, ...] = ()
    lowered: bool = False
    positions: Callable[[Constants, Sequence[int] | None], int | None] | None = None

    @property
    def is_layer(self) -> bool:
        """Whether it stands for a convolution of a model."""
        return self.positions is not None

    @property
    def by_model(self) -> list[str]:
        """Names of the inputs that all of a model's nodes have, or none."""
        return [i.name for i in self.inputs if i.by_model]

    def position(self, name: str) -> int:
        """Where an input stands."""
        return next(place for place, known in enumerate(self.inputs) if known.name == name)

    def has_input(self, name: str) -> bool:
        """Whether there is an input of this name."""
        return any(known.name == name for known in self.inputs)

    def schema(self) -> OpSchema:
        """For onnx's checker and shape inference."""
        used = {i.type for i in (*self.inputs, self.output)}
        result = OpSchema(
            self.name,
            DOMAIN,
            VERSION,
            self.doc,
            inputs=[i.formal() for i in self.inputs],
            outputs=[self.output.formal()],
            type_constraints=[(name, *what) for name, what in CONSTRAINTS.items() if name in used],
            attributes=[a.formal() for a in self.attributes],
        )
        result.set_type_and_shape_inference_function(lambda context: self.infer(Inference(self, context)))
        return result

    def reference(self, *inputs: NDArray[Any] | None, **attributes: Any) -> NDArray[Any]:
        """The operator in numpy.

        Args:
            *inputs: In the operator's order, of the shapes that its inputs say; None, or nothing at the end, where one
                is left out.
            **attributes: As of a node; what is left out or None is the default.
        """
        given = dict(zip((i.name for i in self.inputs), inputs, strict=False))
        known = {a.name: a.default for a in self.attributes}
        known.update({name: value for name, value in attributes.items() if value is not None})
        return self.compute(Given({i.name: given.get(i.name) for i in self.inputs}, known))

    def evaluator(self) -> type[OpRun]:
        """The numpy form for onnx's `ReferenceEvaluator(model, new_ops=[...])`, which goes by the class's name."""

        def run(_: OpRun, *inputs: Any, **attributes: Any) -> tuple[NDArray[Any]]:
            return (self.reference(*inputs, **attributes),)

        return type(self.name, (OpRun,), {"op_domain": DOMAIN, "_run": run})

    def function_body(self, opset: int, elem_type: int, given: Collection[str] = ()) -> onnx.FunctionProto:
        """The operator in standard operators, for models without the library.

        Args:
            opset: Version of the standard operators.
            elem_type: Type of the first input; see `FunctionBuilder`.
            given: Which inputs that differ by model the nodes have.
        """
        f = FunctionBuilder(opset, elem_type, {a.name: a.type for a in self.attributes})
        result = self.body(f, given)
        taken = [not i.by_model or i.name in given for i in self.inputs]
        last = max(place for place, is_taken in enumerate(taken) if is_taken)
        return onnx.helper.make_function(
            DOMAIN,
            self.name,
            [i.name for i in self.inputs[: last + 1]],
            ["Y"],
            [*f.nodes, onnx.helper.make_node("Identity", [result], ["Y"])],
            [onnx.helper.make_opsetid("", opset)],
            attributes=[a.name for a in self.attributes],
        )


class Inference:
    """A node under shape inference; its inputs have the names that the operator gives them."""

    def __init__(self, operator: Operator, context: Any) -> None:
        self.operator = operator
        self.context = context

    def type(self, name: str) -> TypeProto.Tensor | None:
        """Type of an input; None where it is left out, or inference did not reach it."""
        position = self.operator.position(name)
        known = self.context.get_input_type(position) if position < self.context.get_num_inputs() else None
        return None if known is None else known.tensor_type

    def dims(self, name: str, rank: int | None = None) -> list[Any] | None:
        """Dimensions of an input; None where they are not known, or not as many as `rank`."""
        known = self.type(name)
        if known is None or not known.HasField("shape") or rank not in (None, len(known.shape.dim)):
            return None
        return list(known.shape.dim)

    def map_size(self, name: str) -> tuple[int, int] | None:
        """Height and width that an input says, where it is constant."""
        position = self.operator.position(name)
        data = self.context.get_input_data(position) if position < self.context.get_num_inputs() else None
        values = None if data is None else onnx.numpy_helper.to_array(data)
        return (int(values[0]), int(values[1])) if values is not None and values.shape == (2,) else None

    def attributes(self) -> dict[str, Any]:
        """The attributes that the node has."""
        found = ((a.name, self.context.get_attribute(a.name)) for a in self.operator.attributes)
        return {name: onnx.helper.get_attribute_value(value) for name, value in found if value is not None}

    def give(self, dims: Sequence[Any] | None) -> None:
        """Say the output: the type of the first input, and dimensions, as messages, numbers or None for unknown."""
        result = TypeProto()
        first = self.type(self.operator.inputs[0].name)
        assert first is not None
        result.tensor_type.elem_type = first.elem_type
        for dim in () if dims is None else dims:
            added = result.tensor_type.shape.dim.add()
            if isinstance(dim, int):
                added.dim_value = dim
            elif dim is not None:
                added.CopyFrom(dim)
        self.context.set_output_type(0, result)


def refuse(why: str) -> NoReturn:
    """End shape inference of a node that is wrong."""
    raise onnx.shape_inference.InferenceError(why)
