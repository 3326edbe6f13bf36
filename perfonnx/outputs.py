"""Which outputs of a model can be compared: tensors of numbers, whose size does not depend on the values fed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto

from perfonnx.model.proto import used_names, value_type

_SIZE_INPUTS = {
    "CenterCropPad": 1,
    "ConstantOfShape": 0,
    "Expand": 1,
    "OneHot": 1,
    "Pad": 1,
    "Range": 0,
    "Reshape": 1,
    "Resize": 1,
    "Slice": 1,
    "Tile": 1,
    "TopK": 1,
    "Upsample": 1,
}
"""From which input on an operator's inputs say how large its output is."""

_VARYING = frozenset("Compress If Loop NonMaxSuppression NonZero Scan StringSplit Unique".split())  # noqa: SIM905
"""Operators whose outputs may be as long as the values make them."""

_STANDARD = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "ai.perfonnx")
"""Domains whose other operators' sizes follow from their inputs' sizes."""


def not_numbers(value: Any) -> str | None:
    """What an output is that is no tensor of numbers or booleans, in words; None where it is one."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "fiub":
            return None
        return "it holds strings" if value.dtype.kind in "OSU" else f"it holds values of type {value.dtype}"
    if value is None:
        return "it is optional and absent"
    return "it is a map" if isinstance(value, dict) else "it is a sequence"


def varying_outputs(proto: ModelProto) -> set[str]:
    """The outputs whose size may depend on the values that are fed, not on their shapes alone.

    An output whose declared sizes are numbers, or symbols of the inputs, is none.
    """
    fed = {info.name for info in proto.graph.input}
    of_values, varying = set(fed), set()
    for node in proto.graph.node:
        read = [name for name in used_names([node]) if name]
        depends = node.op_type not in ("Shape", "Size") and any(name in of_values for name in read)
        if _varies(node, of_values) or any(name in varying for name in read):
            varying.update(node.output)
            depends = True  # a size that follows from values is as good as a value
        if depends:
            of_values.update(node.output)
    symbols = {dim for info in proto.graph.input for dim in _shape(info) or () if isinstance(dim, str)}
    fixed = {
        output.name
        for output in proto.graph.output
        if (shape := _shape(output)) is not None and all(isinstance(dim, int) or dim in symbols for dim in shape)
    }
    return {output.name for output in proto.graph.output if output.name in varying} - fixed


def _varies(node: NodeProto, of_values: Collection[str]) -> bool:
    if node.domain not in _STANDARD or node.op_type in _VARYING:
        return True
    first = _SIZE_INPUTS.get(node.op_type)
    return first is not None and any(name in of_values for name in node.input[first:] if name)


def _shape(info: ValueInfoProto) -> tuple[int | str | None, ...] | None:
    known = value_type(info)
    return known.shape if known is not None else None
