"""What nodes of the domain say, checked as their kernels do: a model may come from another program, or an editor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from perfonnx.ops.base import Attribute, Input, Operator

_LARGEST = 2**31 - 1


def misfit(
    operator: Operator,
    attributes: Mapping[str, Any],
    inputs: Sequence[str],
    constant: Callable[[int], NDArray[Any] | None],
) -> str | None:
    """What is wrong with a node, in a few words; None where it is as its operator wants it, as far as that is constant.

    Args:
        operator: The node's operator.
        attributes: The node's attributes.
        inputs: Names of its inputs, empty where one is left out.
        constant: The value of the input at a position, of tables; an array of the right shape of others; None where it
            is not constant.
    """
    for attribute in operator.attributes:
        value = attributes.get(attribute.name)
        if value is not None and attribute.least is not None and (problem := _attribute_misfit(attribute, value)):
            return f"attribute {attribute.name} is {problem}"
    for position, known in enumerate(operator.inputs):
        if not known.optional and (position >= len(inputs) or not inputs[position]):
            return f"input {known.name} is missing"
    found = {}
    for position, (known, given) in enumerate(zip(operator.inputs, inputs, strict=False)):
        value = found[known.name] = constant(position) if given else None
        if value is not None and (problem := _value_misfit(known, value)):
            return f"input {known.name} {problem}"
    return _misfit_of_two(found, attributes)


def _attribute_misfit(attribute: Attribute, value: Any) -> str | None:
    assert attribute.least is not None
    if attribute.count is None:
        return None if type(value) is int and value >= attribute.least else repr(value)
    if not isinstance(value, (list, tuple)) or len(value) != attribute.count or any(type(v) is not int for v in value):
        return f"{value!r}, not {attribute.count} whole numbers"
    return None if all(attribute.least <= v <= _LARGEST for v in value) else str(list(value))


def _value_misfit(known: Input, value: NDArray[Any]) -> str | None:
    if not known.is_table:
        if known.rank is not None and value.ndim != known.rank:
            return f"has {value.ndim} dimensions, not {known.rank}"
        return f"is empty: {list(value.shape)}" if known.name == "W" and 0 in value.shape else None
    if value.dtype not in known.dtypes or value.ndim != known.rank:
        return f"is {value.dtype} of {value.ndim} dimensions, not {known.dtypes[0]} of {known.rank}"
    if known.name in ("in_shape", "shape"):
        if value.shape != (2,):
            return f"holds {value.size} numbers, not height and width"
        if value.min() < 0 or int(value[0]) * int(value[1]) > _LARGEST:
            return f"is {value.tolist()}, which is no size of a map"
    if known.least is not None and value.size and int(value.min()) < known.least:
        return f"holds {int(value.min())}"
    return None


def _misfit_of_two(found: Mapping[str, NDArray[Any] | None], attributes: Mapping[str, Any]) -> str | None:
    w, mask, source, weight = (found.get(name) for name in ("W", "mask", "source", "weight"))
    kernel = attributes.get("kernel_shape")
    if w is not None and kernel is not None and tuple(kernel) != w.shape[2:]:
        return f"attribute kernel_shape is {list(kernel)}, but W is {list(w.shape)}"
    if mask is not None and source is not None and len(source) != mask.size:
        return f"input source has {len(source)} rows for the {mask.size} positions of the mask"
    if source is not None and weight is not None and source.shape != weight.shape:
        return f"input weight is {list(weight.shape)}, but source is {list(source.shape)}"
    shape, in_source = found.get("in_shape"), found.get("in_source")
    if shape is not None and in_source is not None and len(in_source) != int(shape[0]) * int(shape[1]):
        return f"input in_source has {len(in_source)} entries for a map of {int(shape[0])} x {int(shape[1])}"
    return None
