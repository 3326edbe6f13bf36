"""Which nodes can work on rows, and which dense convolutions lie between sampled ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from perfonnx import ops
from perfonnx.graph import CONV, pool_window
from perfonnx.io import Workspace
from perfonnx.ops.common import activation_from

ZERO_TO_ZERO = frozenset(
    "Relu LeakyRelu Tanh Abs Neg Elu Selu Celu Softsign Erf HardSwish Gelu Mish "  # noqa: SIM905
    "ThresholdedRelu Identity Dropout".split()
)
"""Elementwise operators that keep zero: a fill value of zero passes through them."""

ELEMENTWISE = ZERO_TO_ZERO | frozenset("Sigmoid HardSigmoid Exp Softplus Clip".split())  # noqa: SIM905
CHEAPER_TO_TURN = 4
"""A layer's input is cheaper to turn into rows than its output where it is this many times smaller."""

JOINING = ("Add", "Sum", "Concat")
GLOBAL_POOLS = {"GlobalAveragePool": ops.sampled_pool.AVERAGE, "GlobalMaxPool": ops.sampled_pool.MAX}
POOLS = {"AveragePool": ops.sampled_pool.AVERAGE, "MaxPool": ops.sampled_pool.MAX}


def is_standard(node: gs.Node) -> bool:
    """True for operators of the default domain."""
    return node.domain in (None, "", "ai.onnx")


def is_map(workspace: Workspace, tensor: gs.Tensor) -> bool:
    """True for a float32 tensor of rank 4 whose channels, height and width are known.

    float16 stays on maps: the kernels compute in float32, and rows would be converted at every operator.
    """
    known = workspace.types.get(tensor.name)
    return (
        known is not None
        and known.shape is not None
        and len(known.shape) == 4
        and all(isinstance(d, int) for d in known.shape[1:])
        and known.elem_type == TensorProto.FLOAT
    )


def is_sampled(workspace: Workspace, node: gs.Node) -> bool:
    """True for a canonical operator that has a form on rows.

    Not for interpolation by several sites, since the activation follows the interpolation there, and not for a fill
    value other than zero.
    """
    if node.domain != ops.DOMAIN or not is_map(workspace, node.inputs[0]) or not is_map(workspace, node.outputs[0]):
        return False
    if workspace.constant_proto(node.inputs[3]) is None:
        return False
    if node.op == ops.sparse_conv.NAME:
        fill = workspace.constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4].name else None
        return fill is None or not fill.any()
    if node.op != ops.perforated_conv.NAME or (len(node.inputs) > 5 and node.inputs[5].name):
        return False
    source, mask = workspace.constant(node.inputs[4]), workspace.constant(node.inputs[3])
    if source is None or mask is None or source.ndim != 2 or source.shape[1] != 1:
        return False
    if len(source) != mask.size or int(source.max(initial=-1)) >= mask.size:
        return False  # a damaged table: the kernel will say so
    zero = np.zeros(1)
    return bool((source >= 0).all() or activation_from(node.attrs)(zero)[0] == 0)


def works_on_rows(workspace: Workspace, node: gs.Node) -> bool:
    """True for a standard operator, other than Conv, that the lowering rules know."""
    if not is_standard(node) or not node.inputs or not is_map(workspace, node.outputs[0]):
        return False
    if any(_is_read(workspace, output) for output in node.outputs[1:]):
        return False
    if node.op in JOINING:
        right_axis = node.op != "Concat" or node.attrs.get("axis", 1) in (1, -3)
        return right_axis and len(node.inputs) > 1 and all(_joins(workspace, i, node) for i in node.inputs)
    if not is_map(workspace, node.inputs[0]):
        return False
    if node.op == "Clip":
        return all(workspace.constant_proto(t) is not None for t in node.inputs[1:] if t.name)
    if node.op in ELEMENTWISE:
        return node.op != "Dropout" or len([i for i in node.inputs if i.name]) == 1
    if node.op in GLOBAL_POOLS:
        return True
    return node.op in POOLS and _pools(workspace, node)


def _is_read(workspace: Workspace, tensor: gs.Tensor) -> bool:
    outputs = {output.name for output in workspace.graph.outputs}
    return bool(tensor.outputs) or tensor.name in outputs | workspace.captured


def _joins(workspace: Workspace, tensor: gs.Tensor, node: gs.Node) -> bool:
    if not is_map(workspace, tensor):
        return False
    ours, theirs = workspace.types[tensor.name].shape, workspace.types[node.outputs[0].name].shape
    assert ours is not None
    assert theirs is not None
    return ours[2:] == theirs[2:] and (node.op == "Concat" or ours[1] == theirs[1])


def _pools(workspace: Workspace, node: gs.Node) -> bool:
    window = pool_window(workspace, node)
    if window is None or int(node.attrs.get("storage_order", 0)):
        return False
    if node.op == "AveragePool" and window.dilations != (1, 1):
        return False
    if workspace.opset < 10 and (window.ceil_mode or window.dilations != (1, 1)):
        return False
    before, after = workspace.types[node.inputs[0].name].shape, workspace.types[node.outputs[0].name].shape
    assert before is not None
    assert after is not None
    height, width = (d for d in before[2:] if isinstance(d, int))
    return window.output_shape((height, width)) == after[2:]


@dataclass
class Regions:
    """Where rows may flow. Tensors are named; a convolution that is to be sampled counts as sampled already.

    Attributes:
        sampled: ids of the nodes that start regions.
        dense: ids of the Conv nodes that may join.
        derived: Tensors that come from a sampled layer through nodes that work on rows.
        coarse: Those of them that have fewer rows than positions.
        wanted: Tensors that reach a sampled layer through such nodes.
    """

    workspace: Workspace
    sampled: set[int]
    dense: set[int]
    derived: set[str] = field(default_factory=set)
    coarse: set[str] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        nodes = list(self.workspace.graph.nodes)
        for node in nodes:
            if not node.outputs:
                continue
            output = node.outputs[0].name
            if id(node) in self.sampled:
                self.derived.add(output)
                self.coarse.add(output)
            elif self._passes(node):
                inputs = list(self._maps(node))
                if any(name in self.derived for name in inputs):
                    self.derived.add(output)
                keeps = node.op in ELEMENTWISE or node.op in JOINING or self._is_pointwise(node)
                if keeps and inputs and all(name in self.coarse for name in inputs):
                    self.coarse.add(output)
        for node in reversed(nodes):
            if id(node) in self.sampled or (self._passes(node) and node.outputs[0].name in self.wanted):
                self.wanted.update(self._maps(node))

    def joins(self, node: gs.Node) -> bool:
        """Whether a dense convolution is better computed on rows.

        That is between sampled layers, as a 1x1 convolution behind one, and before one where the layer's input is so
        much smaller than its output that it is cheaper to turn: a network's first layer, mostly.
        """
        if id(node) not in self.dense:
            return False
        if node.inputs[0].name not in self.derived:
            small = self._size(node.inputs[0]) * CHEAPER_TO_TURN <= self._size(node.outputs[0])
            return small and node.outputs[0].name in self.wanted
        pointwise_on_few = self._is_pointwise(node) and node.inputs[0].name in self.coarse
        return node.outputs[0].name in self.wanted or pointwise_on_few

    def _passes(self, node: gs.Node) -> bool:
        return id(node) in self.dense or works_on_rows(self.workspace, node)

    def _size(self, tensor: gs.Tensor) -> int:
        known = self.workspace.types[tensor.name].shape
        return math.prod(d for d in (known or ())[1:] if isinstance(d, int))

    def _maps(self, node: gs.Node) -> Iterator[str]:
        inputs = node.inputs if node.op in JOINING else node.inputs[:1]
        return (tensor.name for tensor in inputs)

    @staticmethod
    def _is_pointwise(node: gs.Node) -> bool:
        if node.op != CONV:
            return False
        ones = {int(v) for name in ("kernel_shape", "strides") for v in node.attrs.get(name, [])}
        return ones == {1} and not any(node.attrs.get("pads", []))
