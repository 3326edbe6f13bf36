"""What a model's outputs are: class scores, tensors whose size depends on the values fed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto

from perfonnx.model.proto import is_standard, used_names, value_type
from perfonnx.ops import DOMAIN

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

_KNOWN_DOMAINS = ("ai.onnx.ml", "com.microsoft", DOMAIN)
"""Domains, beside the default one, whose other operators' sizes follow from their inputs' sizes."""


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
    known = is_standard(node) or node.domain in _KNOWN_DOMAINS
    if not known or node.op_type in _VARYING:
        return True
    first = _SIZE_INPUTS.get(node.op_type)
    return first is not None and any(name in of_values for name in node.input[first:] if name)


def _shape(info: ValueInfoProto) -> tuple[int | str | None, ...] | None:
    known = value_type(info)
    return known.shape if known is not None else None


# --- classifiers -----------------------------------------------------------------------------------------------------


_TRANSPARENT = {"Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "DequantizeLinear", "QuantizeLinear"}

_SOFTMAX = {"Softmax", "LogSoftmax"}

_LOGITS = {"Gemm", "MatMul", "Conv", "GlobalAveragePool", "AveragePool", "ReduceMean"}


def classifier_outputs(proto: onnx.ModelProto) -> set[str]:
    """Outputs whose last layer could give class scores; their shape is left to the caller. See `compare`."""
    producers = {name: node for node in proto.graph.node for name in node.output if name}
    found = set()
    for output in proto.graph.output:
        node = producers.get(output.name)
        while node is not None and node.op_type in _TRANSPARENT:
            node = producers.get(node.input[0])
        if node is None:
            continue
        terms = [producers[name].op_type for name in node.input if name in producers]
        biased = node.op_type == "Add" and "MatMul" in terms
        if node.op_type in _SOFTMAX | _LOGITS or node.domain == DOMAIN or biased:
            found.add(output.name)
    return found


def is_class_scores(array: NDArray[Any], images: int) -> bool:
    """Whether an output has the type and shape of a classifier's, [N, classes] or [N, classes, 1, 1], for N images."""
    flat = array.ndim == 2 or (array.ndim == 4 and array.shape[2:] == (1, 1))
    return flat and array.shape[0] == images and array.shape[1] > 1 and array.dtype.kind == "f"
