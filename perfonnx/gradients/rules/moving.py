"""Operators that move values without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.gradients.builder import Builder, Value
from perfonnx.gradients.network import Node
from perfonnx.gradients.rules.registry import gradient, gradient_of_all


@gradient("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [dy.reshape(node.shape())]


@gradient("Transpose")
def _transpose(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    rank = len(node.shape())
    order = node.attribute("perm") or list(range(rank))[::-1]
    return [dy.transpose([list(order).index(axis) for axis in range(rank)])]


@gradient("Expand")
def _expand(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [dy.fit(node.output_shape(), node.shape())]


@gradient("Tile")
def _tile(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    before, after = node.shape(), node.output_shape()
    split = [length for n, m in zip(before, after, strict=True) for length in (m // n if n else 1, n)]
    return [dy.reshape(split).sum(range(0, len(split), 2)).reshape(before)]


@gradient("Concat")
def _concat(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    axis = node.axis(1)
    ends = np.cumsum([node.shape(i)[axis] for i in range(len(node.inputs))])
    starts = [0, *ends[:-1]]
    return [dy.slice(axis, int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


@gradient_of_all("Split")
def _split(g: Builder, node: Node, dys: Sequence[Value | None]) -> Sequence[Value | None]:
    parts = [g.constant(np.zeros(1)).expand(node.output_shape(i)) if dy is None else dy for i, dy in enumerate(dys)]
    return [parts[0].map("Concat", *parts[1:], axis=node.axis(0))]


@gradient("DepthToSpace")
def _depth_to_space(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    (n, c, height, width), block = node.shape(), int(node.attribute("blocksize"))
    out = c // block**2
    split = dy.reshape([n, out, height, block, width, block])
    by_column = node.attribute("mode", "DCR") == "CRD"
    order = [0, 1, 3, 5, 2, 4] if by_column else [0, 3, 5, 1, 2, 4]
    return [split.transpose(order).reshape(node.shape())]


@gradient("SpaceToDepth")
def _space_to_depth(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    return [dy.map("DepthToSpace", blocksize=int(node.attribute("blocksize")))]


# --- parts of axes ---------------------------------------------------------------------------------------------------


def _integers(node: Node, name: str, position: int) -> list[int] | None:
    """Integers that are an attribute or an input, as the version says; None where they are left out."""
    given = node.attribute(name)
    if given is None and node.has(position):
        constant = node.constant(position)
        if constant is None:
            raise node.refuse(f"its {name} are computed from the data; a gradient needs constant ones")
        given = constant.ravel()
    return None if given is None else [int(value) for value in given]


@gradient("Slice")
def _slice(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    shape = node.shape()
    starts, ends = _integers(node, "starts", 1), _integers(node, "ends", 2)
    assert starts is not None
    assert ends is not None
    axes = _integers(node, "axes", 3) or list(range(len(starts)))
    steps = _integers(node, "steps", 4) or [1] * len(starts)
    own = list(node.output_shape())
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis %= len(shape)
        taken = np.arange(shape[axis])[_python_slice(start, end, step, shape[axis])]
        dy = dy.scatter(axis, taken, own, shape[axis])
        own[axis] = shape[axis]
    return [dy]


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX counts from the end as Python does, but says "before the first" by any number below -size."""
    if step < 0:
        return slice(min(start, size - 1), None if end < -size else end, step)
    return slice(start, end, step)


@gradient("Pad")
def _pad(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    shape, rank = node.shape(), len(node.shape())
    pads = _integers(node, "pads", 1) or []
    axes = _integers(node, "axes", 3) or list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    mode = node.attribute("mode", "constant")
    if mode == "constant":
        return [dy.pad([-p for p in before], [-p for p in after])]
    own = list(node.output_shape())
    for axis in range(rank):
        if before[axis] or after[axis]:
            taken = _padded_index(shape[axis], before[axis], after[axis], mode)
            dy = dy.scatter(axis, taken, own, shape[axis])
            own[axis] = shape[axis]
    return [dy]


def _padded_index(size: int, before: int, after: int, mode: str) -> NDArray[Any]:
    """For each position of the padded axis, the one that its value comes from."""
    index = np.arange(size)
    # pads of one sign first: numpy knows no negative ones
    index = index[max(-before, 0) : size - max(-after, 0)]
    return np.pad(index, (max(before, 0), max(after, 0)), mode)  # type: ignore[call-overload]


@gradient("Crop")
def _crop(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    """Dropped from ONNX, kept by onnxruntime; border is left, top, right, bottom."""
    shape, own = node.shape(), node.output_shape()
    left, top = (int(v) for v in node.attribute("border")[:2])
    after = [shape[2] - top - own[2], shape[3] - left - own[3]]
    return [dy.pad([0, 0, top, left], [0, 0, *after])]


@gradient("Gather")
def _gather(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    shape, axis = node.shape(), node.axis(0)
    size, length = shape[axis], math.prod(node.shape(1))
    front, back = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    constant = node.constant(1)
    index: NDArray[Any] | Value
    if constant is not None:
        index = constant.ravel().astype(np.int64) % max(size, 1)
    else:
        index = g.index(node, 1).reshape([-1]).map("Mod", g.integers([size]))
    own = [front, length, back]
    return [dy.reshape(own).scatter(1, index, own, size).reshape(shape)]
