"""What nodes of the domain say, checked as their kernels do: a model may come from another program, or an editor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from perfonnx import ops

_LENGTHS = {"kernel_shape": 2, "strides": 2, "dilations": 2, "pads": 4}
TABLES: dict[str, tuple[type, int]] = {
    "mask": (np.bool_, 2),
    "source": (np.int32, 2),
    "weight": (np.float32, 2),
    "in_source": (np.int32, 1),
    "sites": (np.int32, 1),
    "z_source": (np.int32, 1),
    "in_shape": (np.int64, 1),
    "shape": (np.int64, 1),
}
"""Type and rank of the inputs that are tables."""
_LEAST = {"in_source": -1, "z_source": -1, "sites": 0, "in_shape": 0, "shape": 0}
_RANKS = {"W": 4, "W_alpha": 4, "B": 1, "B_alpha": 1, "B_ring": 1, "fill": 1, "slope": 1}
_LARGEST = 2**31 - 1


def misfit(
    op: str, attributes: Mapping[str, Any], inputs: Sequence[str], constant: Callable[[int], NDArray[Any] | None]
) -> str | None:
    """What is wrong with a node, in a few words; None where it is as its operator wants it, as far as that is constant.

    Args:
        op: Name of an operator of the domain.
        attributes: The node's attributes.
        inputs: Names of its inputs, empty where one is left out.
        constant: The value of the input at a position, of those in `TABLES`; an array of the right shape of others;
            None where it is not constant.
    """
    for name, length in _LENGTHS.items():
        values = attributes.get(name)
        if values is None:
            continue
        if not isinstance(values, (list, tuple)) or len(values) != length or any(type(v) is not int for v in values):
            return f"attribute {name} is {values!r}, not {length} whole numbers"
        if not all((name != "pads") <= v <= _LARGEST for v in values):
            return f"attribute {name} is {list(values)}"
    group = attributes.get("group", 1)
    if type(group) is not int or group < 1:
        return f"attribute group is {group!r}"
    module = ops.OPERATORS.get(op) or ops.LOWERED[op]
    for position, known in enumerate(onnx.defs.get_schema(op, ops.DOMAIN).inputs):
        given = position < len(inputs) and inputs[position]
        if not given and known.option != onnx.defs.OpSchema.FormalParameterOption.Optional:
            return f"input {known.name} is missing"
    found = {name: constant(i) for i, (name, given) in enumerate(zip(module.INPUTS, inputs, strict=False)) if given}
    for name, value in found.items():
        if value is not None and (problem := _value_misfit(name, value)):
            return f"input {name} {problem}"
    return _misfit_of_two(found, attributes)


def _value_misfit(name: str, value: NDArray[Any]) -> str | None:
    if name in _RANKS and value.ndim != _RANKS[name]:
        return f"has {value.ndim} dimensions, not {_RANKS[name]}"
    if name == "W" and 0 in value.shape:
        return f"is empty: {list(value.shape)}"
    if name not in TABLES:
        return None
    dtype, rank = TABLES[name]
    if value.dtype != dtype or value.ndim != rank:
        return f"is {value.dtype} of {value.ndim} dimensions, not {np.dtype(dtype)} of {rank}"
    if name in ("in_shape", "shape"):
        if value.shape != (2,):
            return f"holds {value.size} numbers, not height and width"
        if value.min() < 0 or int(value[0]) * int(value[1]) > _LARGEST:
            return f"is {value.tolist()}, which is no size of a map"
    if name in _LEAST and value.size and int(value.min()) < _LEAST[name]:
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
