"""DepthToSpace and ConvTranspose: what makes a larger map of channels gives several rows for each that it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.model.layers import numpy_type
from perfonnx.model.proto import TensorType
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import Activation, ConvAttributes
from perfonnx.ops.sampled_conv import SAMPLED_CONV
from perfonnx.passes.base import Skip
from perfonnx.passes.rules.rule import Match, Rows, Rule, Table, skip

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering

NOBODY_READS_ON = "no sampled layer follows that would read its rows"


def _spread(source: Table, shape: tuple[int, int], block: int, out: tuple[int, int]) -> Table:
    """The row of each position of a map made of blocks: of block b, row source[b] * block^2 + the place in it."""
    y, x = np.arange(out[0])[:, np.newaxis], np.arange(out[1])[np.newaxis]
    blocks = source.reshape(shape)[y // block, x // block].astype(np.int64)
    rows = blocks * block**2 + y % block * block + x % block
    return np.where(blocks < 0, -1, rows).reshape(-1).astype(np.int32)


def _let_blocks_stand(
    lowering: Lowering, node: gs.Node, rows: Rows, block: int, *, channels_first: bool = False
) -> None:
    """Emit what turns rows of block^2 times as many channels into as many rows, for the output of a node.

    Args:
        lowering: The graph.
        node: What the rows stand in for.
        rows: Its channels are [block^2][channels], or, with `channels_first`, [channels][block^2].
        block: Positions along an edge.
        channels_first: See `rows`.
    """
    output = node.outputs[0]
    channels, height, width = lowering.sizes(output)
    tensor = rows.tensor
    if channels_first:
        for op, name, attributes, inputs, sizes in (
            ("Reshape", "blocks", {}, [[0, rows.count, channels, block**2]], (channels, block**2)),
            ("Transpose", "turned", {"perm": [0, 1, 3, 2]}, [], (block**2, channels)),
        ):
            made = gs.Variable(lowering.workspace.free_name(f"{output.name}.{name}"))
            constants = [lowering.table("shape", np.array(values, np.int64)) for values in inputs]
            lowering.nodes.append(gs.Node(op, made.name, attributes, [tensor, *constants], [made]))
            lowering.workspace.types[made.name] = TensorType(rows.elem_type, (rows.batch, rows.count, *sizes))
            tensor = made
    count = rows.count * block**2
    source = _spread(rows.source, rows.shape, block, (height, width))
    result = Rows(output, count, source, (height, width), channels, rows.elem_type, rows.batch)
    shape = lowering.table("shape", np.array([0, count, channels], np.int64))
    lowering.emit_standard(node, [tensor, shape], {}, output, result, "Reshape")


def _depth_to_space(lowering: Lowering, node: gs.Node) -> Match | Skip:
    if not lowering.goes_on(node.outputs[0]):
        return skip(node, NOBODY_READS_ON)
    rows = lowering.rows[node.inputs[0].name]
    channels_first = node.attrs.get("mode", "DCR") == "CRD"
    _let_blocks_stand(lowering, node, rows, int(node.attrs["blocksize"]), channels_first=channels_first)
    return Match("on rows")


def _transposed_geometry(workspace: Workspace, node: gs.Node) -> tuple[int, ConvAttributes] | str:
    """The stride of a ConvTranspose, and the convolution that gives a block of outputs at each position; or why not."""
    w, attrs = workspace.types.get(node.inputs[1].name), node.attrs
    if any(workspace.constant_proto(tensor) is None for tensor in node.inputs[1:] if tensor.name):
        return "its weights are not constant"
    if w is None or w.shape is None or len(w.shape) != 4 or attrs.get("group", 1) != 1:
        return "it has groups, or weights of another rank"
    strides, dilations = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
    if len(set(strides)) != 1 or strides[0] < 2 or set(dilations) != {1}:
        return "its strides are not alike, or 1, or it is dilated"
    if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET") or attrs.get("output_shape"):
        return "its pads follow from its output"
    stride = int(strides[0])
    before, after = (workspace.types[t.name].shape for t in (node.inputs[0], node.outputs[0]))
    assert before is not None
    assert after is not None
    given = [int(p) for p in attrs.get("pads", [0, 0, 0, 0])]
    kernel, begin, end = [], [], []
    for axis in range(2):
        first, last = _reach(int(w.shape[2 + axis]), stride, given[axis])  # type: ignore[arg-type]
        blocks = -(-int(after[2 + axis]) // stride)  # type: ignore[arg-type]
        kernel.append(last - first + 1)
        begin.append(-first)
        end.append(blocks - 1 + last - (int(before[2 + axis]) - 1))  # type: ignore[arg-type]
    if min(begin + end) < 0:
        return "its pads cut rows or columns of its input off"
    return stride, ConvAttributes((kernel[0], kernel[1]), pads=(begin[0], begin[1], end[0], end[1]))


def _reach(kernel: int, stride: int, pad: int) -> tuple[int, int]:
    """First and last position, from its own on, that a block of outputs reads along an axis."""
    return -((kernel - 1 - pad) // stride), (stride - 1 + pad) // stride


def _block_weights(w: NDArray[Any], stride: int, attributes: ConvAttributes, pads: list[int]) -> NDArray[Any]:
    """Weights [stride^2 * M, C, kh, kw] that give the outputs of a block as channels, of a ConvTranspose's [C, M, ...].

    Output i of a block reads, from the position d away, tap i + pad - stride * d.
    """
    result = np.zeros((stride, stride, w.shape[1], w.shape[0], *attributes.kernel_shape), w.dtype)
    for i, j in np.ndindex(stride, stride):
        for y, x in np.ndindex(*attributes.kernel_shape):
            tap = (
                i + pads[0] - stride * (y - attributes.pads[0]),
                j + pads[1] - stride * (x - attributes.pads[1]),
            )
            if all(0 <= t < size for t, size in zip(tap, w.shape[2:], strict=True)):
                result[i, j, :, :, y, x] = w[:, :, tap[0], tap[1]].T
    return result.reshape(-1, *result.shape[3:])


def _transpose_obstacle(workspace: Workspace, node: gs.Node) -> str | None:
    found = _transposed_geometry(workspace, node)
    return found if isinstance(found, str) else None


def _conv_transpose(lowering: Lowering, node: gs.Node) -> Match | Skip:
    """A convolution whose outputs are the channels of blocks: ConvTranspose reads each input where it is needed."""
    if not lowering.goes_on(node.outputs[0]):
        return skip(node, NOBODY_READS_ON)
    found = _transposed_geometry(lowering.workspace, node)
    assert not isinstance(found, str)
    stride, attributes = found
    rows = lowering.rows[node.inputs[0].name]
    w = lowering.workspace.constant(node.inputs[1])
    assert w is not None
    weights = _block_weights(w, stride, attributes, [int(p) for p in node.attrs.get("pads", [0, 0, 0, 0])])
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    bias = lowering.workspace.constant(node.inputs[2]) if has_bias else None
    b = np.zeros(w.shape[1], numpy_type(rows.elem_type)) if bias is None else bias
    height, width = attributes.output_shape(*rows.shape)
    positions = np.arange(height * width, dtype=np.int32)
    made = gs.Variable(lowering.workspace.free_name(f"{node.outputs[0].name}.blocks"))
    blocks = Rows(made, positions.size, positions, (height, width), len(weights), rows.elem_type, rows.batch)
    inputs = [
        rows.tensor,
        lowering.workspace.add_constant(f"{made.name}.weight", weights),
        lowering.table("bias", np.tile(b, stride**2)),
        lowering.table("index", rows.source),
        lowering.table("shape", np.array(rows.shape, np.int64)),
        lowering.table("index", positions),
        lowering.table("zeros", np.zeros((1, 1, len(weights)), numpy_type(rows.elem_type))),
        lowering.table("index", np.zeros(1, np.int32)),
    ]
    shared = {**attributes.attributes(), **Activation().attributes()}
    conv = lowering.emit(SAMPLED_CONV.name, made.name, inputs, shared, made, blocks)
    lowering.workspace.inherit(conv, node)
    _let_blocks_stand(lowering, node, lowering.rows[made.name], stride)
    return Match("a convolution on rows")


DEPTH_TO_SPACE = Rule(["DepthToSpace"], _depth_to_space, keeps_rows=False)
CONV_TRANSPOSE = Rule(["ConvTranspose"], _conv_transpose, _transpose_obstacle, keeps_rows=False)
