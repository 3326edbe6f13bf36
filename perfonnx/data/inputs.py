"""A model's inputs: their names, shapes and types, and the sizes of the dimensions that the model leaves open."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from perfonnx.errors import PerfonnxError
from perfonnx.model import files
from perfonnx.model.files import ModelSource
from perfonnx.model.proto import shape_text, value_type
from perfonnx.model.signature import fed_inputs

Array: TypeAlias = NDArray[Any]

Feed: TypeAlias = dict[str, Array]
"""Arrays by input name, samples along the first axis."""

Shapes: TypeAlias = Mapping[str, Sequence[int | str | None]]
"""Sizes by input name; a name or None keeps a dimension open."""

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}
"""What can be fed, by the types as onnxruntime writes them."""


class ValueLike(Protocol):
    """What onnxruntime's `NodeArg` shows of a model's input or output."""

    @property
    def name(self) -> str:
        """Name of the tensor."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Dimensions; the name of a symbolic one, None for an unknown one."""

    @property
    def type(self) -> str:
        """Type as onnxruntime writes it, such as `tensor(float)`."""


class SessionLike(Protocol):
    """The part of `onnxruntime.InferenceSession` that is needed here."""

    def get_inputs(self) -> Sequence[ValueLike]:
        """The model's inputs."""

    def get_outputs(self) -> Sequence[ValueLike]:
        """The model's outputs."""

    def run(self, names: Sequence[str] | None, feed: Feed) -> Sequence[Any]:
        """The values of the named outputs, of all for None."""


@dataclass(frozen=True)
class InputSpec:
    """One model input.

    Attributes:
        name: Its name.
        shape: A dimension that is not fixed is its symbolic name, or None.
        dtype: Type of its numbers.
        ranked: Whether the model says how many dimensions it has; `shape` is empty where it does not.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any]
    ranked: bool = True

    def fits(self, actual: Sequence[int | str | None]) -> bool:
        """Whether a shape agrees with this one, whose dimensions may be open."""
        return not self.ranked or shape_fits(actual, self.shape)


Inputs: TypeAlias = "SessionLike | Sequence[ValueLike] | Sequence[InputSpec]"


def input_specs(inputs: Inputs) -> list[InputSpec]:
    """The inputs of a session, or of a list as `session.get_inputs()` gives it.

    Raises:
        PerfonnxError: An input is no tensor of numbers or booleans.
    """
    values = inputs.get_inputs() if hasattr(inputs, "get_inputs") else inputs
    specs = []
    for value in cast("Sequence[ValueLike | InputSpec]", values):
        if isinstance(value, InputSpec):
            specs.append(value)
        elif value.type not in _DTYPES:
            raise PerfonnxError(f"input '{value.name}' has type {value.type}: only numbers and booleans can be fed")
        else:
            specs.append(InputSpec(value.name, tuple(value.shape), np.dtype(_DTYPES[value.type])))
    return specs


def model_inputs(model: ModelSource) -> list[InputSpec]:
    """The inputs that a model must be fed.

    Raises:
        PerfonnxError: It cannot be read, or an input is no tensor of numbers.
    """
    loaded = files.load(model)
    specs = []
    for info in fed_inputs(loaded.proto.graph):
        known = value_type(info)
        try:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(known.elem_type)) if known is not None else None
        except KeyError:
            dtype = None
        if known is None or dtype is None or dtype.kind not in "fiub":
            raise PerfonnxError(f"{loaded.name}: input '{info.name}' is no tensor of numbers")
        specs.append(InputSpec(info.name, known.shape or (), dtype, ranked=known.shape is not None))
    return specs


def merged_inputs(models: Sequence[SessionLike | Sequence[InputSpec]]) -> list[InputSpec]:
    """The first model's inputs, with dimensions that it leaves open taken from the others where those fix them."""
    first, *others = ([*input_specs(model)] for model in models)
    merged = []
    for spec in first:
        for other in (s for specs in others for s in specs if s.name == spec.name and s.ranked):
            if not spec.ranked:
                spec = InputSpec(spec.name, other.shape, spec.dtype)
            elif len(other.shape) == len(spec.shape):
                dims = zip(spec.shape, other.shape, strict=True)
                spec = InputSpec(spec.name, tuple(d if isinstance(d, int) else o for d, o in dims), spec.dtype)
        merged.append(spec)
    return merged


def parse_input_shapes(texts: Iterable[str]) -> dict[str, tuple[int | str, ...]]:
    """Reads `--input-shape` values such as `x:1,3,224,224`.

    The shape follows the last colon, so names with a colon need no quoting. A name in place of a number, as in
    `x:N,3,224,224`, keeps that dimension open.

    Raises:
        PerfonnxError: A value has another form, or an input is named twice.
    """
    shapes: dict[str, tuple[int | str, ...]] = {}
    for text in texts:
        name, colon, numbers = text.rpartition(":")
        parts = [part.strip() for part in numbers.split(",")]
        if not colon or not name or not all(_is_size(part) or part.isidentifier() or part == "?" for part in parts):
            raise PerfonnxError(f"input shape '{text}': write NAME:1,3,224,224, whole numbers of 0 or more")
        if name in shapes:
            raise PerfonnxError(f"input shape '{text}': input '{name}' is given twice")
        shapes[name] = tuple(int(part) if _is_size(part) else part for part in parts)
    return shapes


def _is_size(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def narrowed(specs: Sequence[InputSpec], shapes: Shapes | None) -> list[InputSpec]:
    """The inputs with the dimensions that `shapes` gives.

    Raises:
        PerfonnxError: `shapes` names no input of the model or contradicts it, or an input without shape is not given.
    """
    shapes = shapes or {}
    known = {spec.name for spec in specs}
    for name in shapes:
        if name not in known:
            raise PerfonnxError(
                f"input shape for '{name}': the model's inputs are {', '.join(map(repr, sorted(known)))}"
            )
    return [_narrowed(spec, shapes) for spec in specs]


def _narrowed(spec: InputSpec, shapes: Shapes) -> InputSpec:
    if spec.name not in shapes:
        if not spec.ranked:
            raise PerfonnxError(
                f"input '{spec.name}' has no shape: add --input-shape {spec.name}:1,3,224,224 with the size you use"
            )
        return spec
    given = tuple(shapes[spec.name])
    if len(given) == len(spec.shape):  # where a name is given instead of a number, the dimension stays as it is
        given = tuple(g if isinstance(g, int) else dim for g, dim in zip(given, spec.shape, strict=True))
    if not spec.fits(given):
        raise PerfonnxError(
            f"input shape {spec.name}:{','.join(map(str, given))} contradicts the model's {shape_text(spec.shape)}"
        )
    return InputSpec(spec.name, given, spec.dtype)


def resolve_shapes(specs: Sequence[InputSpec], shapes: Shapes | None) -> dict[str, tuple[int, ...]]:
    """Fills the open dimensions of all inputs: from `shapes` where given, else 1 for the first one, the batch.

    Raises:
        PerfonnxError: `shapes` names no input of the model or contradicts it, or a dimension other than the first is
            open and not given; the message has the flag to type.
    """
    resolved: dict[str, tuple[int, ...]] = {}
    for spec in narrowed(specs, shapes):
        filled = [1 if axis == 0 and not isinstance(dim, int) else dim for axis, dim in enumerate(spec.shape)]
        if not all(isinstance(dim, int) for dim in filled):
            raise open_dimensions(spec)
        resolved[spec.name] = tuple(int(cast(int, dim)) for dim in filled)
    return resolved


def count_samples(shapes: Iterable[Sequence[int]]) -> int:
    """Samples in arrays of these shapes: the first dimension of the first one that has any."""
    return next((shape[0] for shape in shapes if shape), 1)


def feed_size(feed: Feed) -> int:
    """Samples in a feed."""
    return count_samples(array.shape for array in feed.values())


def shape_fits(actual: Sequence[int | str | None], wanted: Sequence[int | str | None]) -> bool:
    """Whether a shape agrees with one that may have open dimensions."""
    if len(actual) != len(wanted):
        return False
    return all(not isinstance(dim, int) or dim == size for size, dim in zip(actual, wanted, strict=True))


def open_dimensions(spec: InputSpec) -> PerfonnxError:
    """What to say of an input whose size must be given: it has the flag to type, as a shell takes it."""
    sizes = [dim if isinstance(dim, int) else 1 if axis == 0 else 224 for axis, dim in enumerate(spec.shape)]
    example = shlex.quote(f"{spec.name}:{','.join(map(str, sizes))}")
    return PerfonnxError(
        f"input '{spec.name}' has open dimensions {shape_text(spec.shape)}: add --input-shape {example} "
        "with the size you use"
    )
