"""Which nodes can work on rows, and which dense convolutions lie between sampled ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from perfonnx import ops
from perfonnx.masks import PoolWindow
from perfonnx.model.layers import pool_window, slope_of, table_obstacle
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import activation_from
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV
from perfonnx.ops.sampled_pool import SAMPLED_AVERAGE_POOL, SAMPLED_MAX_POOL
from perfonnx.ops.sparse_conv import SPARSE_CONV
from perfonnx.passes.positions import MOVES_POSITIONS, may_move_positions

ZERO_TO_ZERO = frozenset(
    "Relu LeakyRelu Tanh Abs Neg Elu Selu Celu Softsign Erf HardSwish Gelu Mish "  # noqa: SIM905
    "ThresholdedRelu Identity Dropout PRelu".split()
)
"""Elementwise operators that keep zero: a fill value of zero passes through them."""

ELEMENTWISE = ZERO_TO_ZERO | frozenset("Sigmoid HardSigmoid Exp Softplus Clip".split())  # noqa: SIM905
JOINING = ("Add", "Sum", "Concat")
LRN = "LRN"
INSTANCE_NORMALIZATION = "InstanceNormalization"
NORMALIZATIONS = frozenset([LRN, INSTANCE_NORMALIZATION])
GLOBAL_POOLS = {"GlobalAveragePool": SAMPLED_AVERAGE_POOL.name, "GlobalMaxPool": SAMPLED_MAX_POOL.name}
KEEP_COARSE = ELEMENTWISE | NORMALIZATIONS | MOVES_POSITIONS | frozenset(JOINING)
POOLS = {"AveragePool": SAMPLED_AVERAGE_POOL.name, "MaxPool": SAMPLED_MAX_POOL.name}


def is_pointwise(node: gs.Node) -> bool:
    """True for a canonical operator each of whose outputs reads the input at its own position."""
    attributes = node.attrs
    return set(attributes["kernel_shape"]) == set(attributes["strides"]) == {1} and not any(attributes["pads"])


def is_map(workspace: Workspace, tensor: gs.Tensor) -> bool:
    """True for a float32 or float16 tensor of rank 4 whose channels, height and width are known."""
    known = workspace.types.get(tensor.name)
    return (
        known is not None
        and known.shape is not None
        and len(known.shape) == 4
        and all(isinstance(d, int) for d in known.shape[1:])
        and known.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    )


def is_sampled(workspace: Workspace, node: gs.Node) -> bool:
    """True for a canonical operator that has a form on rows.

    Not for interpolation by several sites, since the activation follows the interpolation there, not for a fill
    value other than zero, and not for tables that fit no map, which the kernel refuses by name.
    """
    if node.domain != ops.DOMAIN or not is_map(workspace, node.inputs[0]) or not is_map(workspace, node.outputs[0]):
        return False
    if workspace.constant_proto(node.inputs[3]) is None:
        return False
    if node.op == RADIUS_ADAPTIVE_CONV.name:
        return True
    mask, output = workspace.constant(node.inputs[3]), workspace.types[node.outputs[0].name].shape
    if mask is None or output is None or mask.size == 0 or mask.shape != tuple(output[2:]):
        return False
    if node.op == SPARSE_CONV.name:
        fill = workspace.constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4].name else None
        return fill is None or not fill.any()
    if node.op != PERFORATED_CONV.name or (len(node.inputs) > 5 and node.inputs[5].name):
        return False
    source = workspace.constant(node.inputs[4])
    if source is None or source.shape != (mask.size, 1) or source.min() < -1 or source.max() >= mask.size:
        return False
    if not mask.reshape(-1)[source[source >= 0]].all():
        return False
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
    if node.op == "PRelu":
        return slope_of(workspace, node) is not None
    if node.op in ELEMENTWISE:
        return node.op != "Dropout" or len([i for i in node.inputs if i.name]) == 1
    if node.op in GLOBAL_POOLS or node.op in NORMALIZATIONS:
        return True
    if node.op in MOVES_POSITIONS:
        return may_move_positions(workspace, node)
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
    window = window_on_rows(workspace, node)
    if window is None or int(node.attrs.get("storage_order", 0)):
        return False
    if window.dilations != (1, 1) and (node.op == "AveragePool" or workspace.opset < 10):
        return False
    before, after = workspace.types[node.inputs[0].name].shape, workspace.types[node.outputs[0].name].shape
    assert before is not None
    assert after is not None
    height, width = (d for d in before[2:] if isinstance(d, int))
    output = window.output_shape((height, width))
    return output == after[2:] and table_obstacle(math.prod(output), window.kernel) is None


def window_on_rows(workspace: Workspace, node: gs.Node) -> PoolWindow | None:
    """The window of a pooling node whose map has a known size, without `ceil_mode`; None where it is not certain.

    With `count_include_pad`, versions of onnxruntime differ in whether they count what `ceil_mode` reaches behind the
    padding, and from opset 19 on in how they count pads of two sizes. None of them takes pads as large as the kernel.
    """
    window, known = pool_window(workspace, node), workspace.types[node.inputs[0].name].shape
    if window is None or known is None:
        return None
    height, width = (d for d in known[2:] if isinstance(d, int))
    rounded = window.rounded_down((height, width))
    if node.op == "AveragePool" and node.attrs.get("count_include_pad", 0):
        unequal = window.pads[:2] != window.pads[2:]
        if node.attrs.get("ceil_mode", 0) or (unequal and workspace.opset >= 19):
            return None
    return rounded if all(pad < k for pad, k in zip(rounded.pads, rounded.kernel * 2, strict=True)) else None


@dataclass
class Regions:
    """Where rows may flow. Tensors are named; a convolution that is to be sampled counts as sampled already.

    Attributes:
        sampled: The nodes that start regions, by id, and the share of positions that each computes.
        dense: ids of the Conv nodes that may join.
        folded: ids of the nodes that vanish into those convolutions.
        pointwise: ids of those convolutions that need be computed once per row.
        kept: Nodes that stay on maps, by id.
        share: Tensors that come from a sampled layer through nodes that work on rows, and how many rows they have per
            position: an estimate where samplings meet.
        wanted: Tensors that reach a sampled layer through such nodes.
    """

    workspace: Workspace
    sampled: Mapping[int, float]
    dense: set[int]
    folded: set[int] = field(default_factory=set)
    pointwise: set[int] = field(default_factory=set)
    kept: Mapping[int, gs.Node] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        nodes = [node for node in self.workspace.graph.nodes if node.outputs]
        for node in nodes:
            output = node.outputs[0].name
            if id(node) in self.sampled:
                self.share[output] = self.sampled[id(node)]
            elif self.passes(node):
                shares = [self.share.get(name) for name in self.maps(node)]
                if any(share is not None for share in shares):
                    keeps = id(node) in self.folded | self.pointwise or node.op in KEEP_COARSE
                    self.share[output] = max(1.0 if share is None or not keeps else share for share in shares)
        for node in reversed(nodes):
            if id(node) in self.sampled or (self.passes(node) and node.outputs[0].name in self.wanted):
                self.wanted.update(self.maps(node))

    def passes(self, node: gs.Node) -> bool:
        """Whether a node that is not sampled can take rows and give rows."""
        if id(node) in self.kept:
            return False
        return id(node) in self.dense or id(node) in self.folded or works_on_rows(self.workspace, node)

    def maps(self, node: gs.Node) -> list[str]:
        """The maps that such a node reads."""
        if id(node) in self.folded:
            return [t.name for t in node.inputs if self.workspace.constant_proto(t) is None]
        return [t.name for t in (node.inputs if node.op in JOINING else node.inputs[:1])]
