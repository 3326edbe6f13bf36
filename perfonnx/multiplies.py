"""How many multiplies a model's layers take per image, and which layers' are not known."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import onnx_graphsurgeon as gs
from onnx import NodeProto

from perfonnx import ops
from perfonnx.model.layers import CONV, Layer, conv_layers
from perfonnx.model.proto import TensorType, all_nodes, is_standard, subgraphs
from perfonnx.model.shapes import types_of_one_image
from perfonnx.model.signature import fed_shapes, fixed_batch
from perfonnx.model.workspace import Workspace

Shape: TypeAlias = "tuple[int, ...]"


def conv_multiplies(workspace: Workspace, layers: Sequence[Layer]) -> list[int | None]:
    """Multiplies per image of each of these convolutions, those that are not 2-D too; None where they are not known."""
    counting = _Counting(workspace)
    return [counting.of_conv(layer) for layer in layers]


def other_multiplies(workspace: Workspace) -> int:
    """Multiplies per image of the layers that are no Conv, as far as they are known.

    Those are ConvTranspose, DeformConv and quantized convolutions, matrix products (Gemm, MatMul and their quantized
    forms, Einsum of two tensors), recurrent layers, and attention.
    """
    counting = _Counting(workspace)
    return sum(counting.of(node) or 0 for node in workspace.graph.nodes if node.op != CONV)


def not_counted(workspace: Workspace) -> list[str]:
    """The layers whose multiplies are not known and in no total, such as `2 LSTM of unknown shape`."""
    counting = _Counting(workspace)
    layers = {id(layer.node): layer for layer in conv_layers(workspace)}
    bodies = {(f.domain, f.name): f.node for f in workspace.proto.functions if f.domain != ops.DOMAIN}
    found: Counter[str] = Counter()
    for node in workspace.graph.nodes:
        kind = (_domain(node), node.op)
        if id(node) in layers:
            found["Conv of unknown shape"] += counting.of_conv(layers[id(node)]) is None
        elif kind in _COUNTERS:
            found[f"{node.op} of unknown shape"] += counting.of(node) is None
        elif kind in bodies:
            inside = _heavy(bodies[kind])
            found[f"call{{s}} of {node.op}, which has {_listed(inside)}"] += bool(inside)
        elif _multiplies(*kind) or kind[0] not in _KNOWN_DOMAINS:
            found[f"{node.op} of {kind[0]}" if kind[0] else node.op] += 1
    for proto in workspace.proto.graph.node:
        inside = _heavy(inner for graph in subgraphs(proto) for inner in graph.node)
        for name, number in inside.items():
            found[f"{name} in the body of {proto.op_type}"] += number
    return [f"{number} {name.format(s='s' * (number > 1))}" for name, number in found.items() if number]


def _listed(inside: Counter[str]) -> str:
    return " and ".join(f"{number} {name}" for name, number in inside.items())


def _heavy(nodes: Iterable[NodeProto]) -> Counter[str]:
    """The operators among nodes, and in the bodies in them, that multiply a lot."""
    return Counter(node.op_type for node in all_nodes(nodes) if _multiplies(_domain(node), node.op_type))


def _multiplies(domain: str, op: str) -> bool:
    return (domain, op) in _COUNTERS or (domain == "com.microsoft" and _CONTRIB.search(op) is not None)


def _domain(node: gs.Node | NodeProto) -> str:
    return "" if is_standard(node) else str(node.domain)


class _Counting:
    """Counts the multiplies of nodes, per image.

    Where the model leaves the batch open, shapes are those of a batch of one; else the model's, and numbers are divided
    by its batch.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._one_image: dict[str, TensorType] | None = None
        self.batch = fixed_batch(fed_shapes(workspace.proto.graph))

    def of_conv(self, layer: Layer) -> int | None:
        """Of a convolution; None where it is not known."""
        return layer.multiplies if layer.multiplies is not None else self._of(layer.node, _convolution(1))

    def of(self, node: gs.Node) -> int | None:
        """None where it is not known; 0 for what multiplies little."""
        counter = _COUNTERS.get((_domain(node), node.op))
        return 0 if counter is None else self._of(node, counter)

    def _of(self, node: gs.Node, counter: _Counter) -> int | None:
        try:
            total = counter(node, self.shape)
        except (IndexError, KeyError, TypeError, ValueError):  # fewer inputs or dimensions than it takes
            return None
        return None if total is None else total // (self.batch or 1)

    def shape(self, tensor: gs.Tensor) -> Shape:
        """A tensor's sizes; ValueError where they are not all known."""
        found = _numbers(self.workspace.types.get(tensor.name))
        if found is None and self.batch is None:
            if self._one_image is None:
                self._one_image = types_of_one_image(self.workspace)
            found = _numbers(self._one_image.get(tensor.name))
        if found is None:
            raise ValueError(f"the shape of {tensor.name!r} is not known")
        return found


_Sizes: TypeAlias = Callable[[gs.Tensor], Shape]
_Counter: TypeAlias = Callable[[gs.Node, _Sizes], "int | None"]


def _numbers(known: TensorType | None) -> Shape | None:
    if known is None or known.shape is None:
        return None
    sizes = tuple(dim for dim in known.shape if isinstance(dim, int) and dim >= 0)
    return sizes if len(sizes) == len(known.shape) else None


# --- operators -------------------------------------------------------------------------------------------------------


def _convolution(weight: int) -> _Counter:
    def count(node: gs.Node, shape: _Sizes) -> int:
        return math.prod(shape(node.outputs[0])) * math.prod(shape(node.inputs[weight])[1:])

    return count


def _transposed_convolution(node: gs.Node, shape: _Sizes) -> int:
    return math.prod(shape(node.inputs[0])) * math.prod(shape(node.inputs[1])[1:])


def _product(first: str, *, axis: int, transposed: int) -> _Counter:
    """A matrix product; the axis of its first factor that is summed over, and which one it is transposed."""

    def count(node: gs.Node, shape: _Sizes) -> int | None:
        if node.attrs.get("transBatchA") or node.attrs.get("transBatchB"):
            return None
        inner = shape(node.inputs[0])[transposed if node.attrs.get(first) else axis]
        return math.prod(shape(node.outputs[0])) * inner

    return count


def _recurrent(node: gs.Node, shape: _Sizes) -> int:
    steps_and_batch = shape(node.inputs[0])[:2]
    return math.prod(steps_and_batch) * (math.prod(shape(node.inputs[1])) + math.prod(shape(node.inputs[2])))


def _einsum(node: gs.Node, shape: _Sizes) -> int | None:
    terms = str(node.attrs["equation"]).replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or any("." in term for term in terms):
        return None
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, node.inputs, strict=True):
        sizes.update(zip(term, shape(tensor), strict=True))
    return math.prod(sizes.values())


def _attention(node: gs.Node, shape: _Sizes) -> int | None:
    """[N, heads, positions, features], or [N, positions, heads * features] with as many heads of keys as of queries."""
    q, k, v = (shape(tensor) for tensor in node.inputs[:3])
    if len(node.inputs) > 4 and any(tensor.name for tensor in node.inputs[4:6]):
        return None  # with what earlier runs left
    if not len(q) == len(k) == len(v) or len(q) not in (3, 4):
        return None
    if len(q) == 3 and node.attrs.get("q_num_heads") != node.attrs.get("kv_num_heads"):
        return None
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


_COUNTERS: dict[tuple[str, str], _Counter] = {
    ("", "Attention"): _attention,
    ("", CONV): _convolution(1),
    ("", "ConvInteger"): _convolution(1),
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "DeformConv"): _convolution(1),
    ("", "Einsum"): _einsum,
    ("", "GRU"): _recurrent,
    ("", "Gemm"): _product("transA", axis=-1, transposed=0),
    ("", "LSTM"): _recurrent,
    ("", "MatMul"): _product("", axis=-1, transposed=-1),
    ("", "MatMulInteger"): _product("", axis=-1, transposed=-1),
    ("", "QLinearConv"): _convolution(3),
    ("", "QLinearMatMul"): _product("", axis=-1, transposed=-1),
    ("", "RNN"): _recurrent,
    ("com.microsoft", "FusedMatMul"): _product("transA", axis=-1, transposed=-2),
}

_CONTRIB = re.compile("Attention|Conv|GRU|Gemm|LSTM|MatMul|MoE")
"""What names of onnxruntime's own operators have in them that multiply a lot."""

_KNOWN_DOMAINS = ("", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", ops.DOMAIN)
"""Domains of which it is known which operators multiply a lot; of others, all may."""
