"""Which constants of a graph are weights, to be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import TensorProto

from perfonnx.torch.importing.node import Node
from perfonnx.torch.importing.tensors import FLOATS

_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
}
"""The inputs of layers that are trained."""

_PASS_ON = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def trainable(nodes: Sequence[Node], constants: Mapping[str, TensorProto]) -> set[str]:
    """Names of the constants that are weights.

    They are the weights of layers, also where they are reshaped on the way, and what `Add` and `Mul` apply per channel
    to something that a layer computed: a vector. Numbers before the first layer (means of pixels), single numbers and
    whole maps (grids of anchors) are no weights.
    """
    wanted: set[str] = set()
    vectors: set[str] = set()
    computed = _computed_by_layers(nodes)
    for node in reversed(nodes):
        wanted.update(node.inputs[i] for i in _WEIGHTS.get(node.op, ()) if i < len(node.inputs))
        if node.op in ("Add", "Mul") and computed.intersection(node.inputs):
            vectors.update(node.inputs)
        if node.op in _PASS_ON:
            for names in (wanted, vectors):
                if node.outputs[0] in names:
                    names.add(node.inputs[0])
    floats = {name for name, tensor in constants.items() if tensor.data_type in FLOATS}
    vectors = {name for name in vectors & floats if sum(d > 1 for d in constants[name].dims) == 1}
    return (wanted & floats) | vectors


def _computed_by_layers(nodes: Sequence[Node]) -> set[str]:
    """Values that depend on a layer's weights."""
    computed: set[str] = set()
    for node in nodes:
        if node.op in _WEIGHTS or computed.intersection(node.inputs):
            computed.update(node.outputs)
    return computed
