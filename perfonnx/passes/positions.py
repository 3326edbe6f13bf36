"""Standard operators that only move, repeat or drop positions of a map: on rows they change a table and no data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper

from perfonnx import runtime
from perfonnx.model.workspace import Workspace

MOVES_POSITIONS = frozenset(["Slice", "Pad", "Resize", "Upsample", "Reshape", "Gather"])
"""Operators whose output positions may each be a copy of an input position or zero; it depends on their attributes."""

_LARGEST_MAP = 1 << 24
"""Positions are counted in float32."""

_TO_THE_END = 2**31 - 1
"""What exporters write for the end of a slice that has none."""

_LARGEST_PROBE = 1 << 26
"""Elements of a tensor on which an operator is tried."""


def may_move_positions(workspace: Workspace, node: gs.Node) -> bool:
    """Whether a node of `MOVES_POSITIONS` looks like one that copies; `moved_positions` knows."""
    if node.op in ("Resize", "Upsample") and node.attrs.get("mode", "nearest") != "nearest":
        return False
    before, after = (workspace.types[t.name].shape for t in (node.inputs[0], node.outputs[0]))
    assert before is not None
    assert after is not None
    constant = all(workspace.constant_proto(t) is not None for t in node.inputs[1:] if t.name)
    return constant and before[1] == after[1] and (isinstance(before[0], int) or _keeps_any_batch(workspace, node))


def _keeps_any_batch(workspace: Workspace, node: gs.Node) -> bool:
    """Whether an operator that keeps the two images of a trial keeps any number of them."""
    if node.op in ("Resize", "Upsample"):  # to a number of images that is written in its sizes
        return not isinstance(workspace.types[node.outputs[0].name].shape[0], int)  # type: ignore[index]
    if node.op == "Gather":
        return node.attrs.get("axis", 0) not in (0, -4)
    if node.op == "Reshape":
        sizes = workspace.constant(node.inputs[1])
        return sizes is not None and int(sizes[0]) == 0 and not node.attrs.get("allowzero", 0)
    if node.op != "Slice":
        return True
    names = ("starts", "ends", "axes", "steps")
    given = [node.attrs.get(name) for name in names]
    for i, tensor in enumerate(node.inputs[1:]):
        given[i] = workspace.constant(tensor) if tensor.name else None
    starts, ends = ([int(v) for v in values] for values in given[:2])
    axes = range(len(starts)) if given[2] is None else [int(v) for v in given[2]]
    return all(starts[i] == 0 and ends[i] >= _TO_THE_END for i, axis in enumerate(axes) if axis in (0, -4))


def moved_positions(workspace: Workspace, node: gs.Node) -> NDArray[np.int32] | None:
    """For each output position of a map the input position it copies, int32 [OH*OW]; -1: zero.

    What the operator does is found by doing it: onnxruntime runs it on a map whose values are its own indices, so that
    every mode and rounding of every operator set means here what it will mean there.

    Returns:
        None where the operator does more than to move positions, alike in all images and channels.
    """
    known = workspace.types[node.inputs[0].name].shape
    assert known is not None
    channels, height, width = (int(d) for d in known[1:])  # type: ignore[arg-type]
    images = int(known[0]) if isinstance(known[0], int) else 2
    shape = (images, channels, height, width)
    result = workspace.types[node.outputs[0].name].shape
    assert result is not None
    largest = max(math.prod(shape), images * math.prod(d for d in result[1:] if isinstance(d, int)))
    if height * width >= _LARGEST_MAP or not 0 < largest <= _LARGEST_PROBE:
        return None
    numbers = [np.arange(1, n + 1, dtype=np.float32) for n in (images, channels, height * width)]
    try:
        run = _alone(workspace, node, shape)
        results = [
            run(np.broadcast_to(values, shape).astype(np.float32))
            for values in (
                numbers[0].reshape(-1, 1, 1, 1),
                numbers[1].reshape(1, -1, 1, 1),
                numbers[2].reshape(1, 1, height, width),
                -numbers[2].reshape(1, 1, height, width),
            )
        ]
    except Exception:  # it was an attempt; the node then stays as it is
        return None
    of_image, of_channel, of_position, negated = results
    if of_position.ndim != 4 or of_position.shape[:2] != shape[:2]:
        return None
    filled = of_position[0, 0] == 0
    same = (of_position == of_position[:1, :1]).all() and (negated == -of_position).all()  # a fill has one sign
    in_place = (of_image == np.where(filled, 0, numbers[0].reshape(-1, 1, 1, 1))).all()
    in_channel = (of_channel == np.where(filled, 0, numbers[1].reshape(1, -1, 1, 1))).all()
    positions = of_position[0, 0].reshape(-1)
    if not (same and in_place and in_channel) or not np.isin(positions, np.append(numbers[2], 0)).all():
        return None
    return positions.astype(np.int32) - 1


def _alone(workspace: Workspace, node: gs.Node, shape: tuple[int, ...]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function that runs this node alone."""
    constants = []
    for tensor in node.inputs[1:]:
        value = workspace.constant_proto(tensor) if tensor.name else None
        if value is not None:
            copy = TensorProto()
            copy.CopyFrom(value)
            copy.name = tensor.name
            constants.append(copy)
    proto = helper.make_node(node.op, [t.name for t in node.inputs], ["y"], **node.attrs)
    x = helper.make_tensor_value_info(node.inputs[0].name, TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([proto], "alone", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", workspace.opset)])
    model.ir_version = 8
    session = runtime.session(model, library=False)
    return lambda values: np.asarray(session.run(["y"], {node.inputs[0].name: values})[0])
