"""Operators that move values, or tell about shapes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from perfonnx.torch.importing.node import Node
from perfonnx.torch.importing.tensors import to_torch
from perfonnx.torch.importing.windows import pad


def reshape(node: Node, x: Tensor, target: Tensor) -> Tensor:
    """0 takes over a size, -1 takes what is left."""
    sizes = [int(v) for v in target.tolist()]
    if not node.flag("allowzero"):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(node: Node, x: Tensor) -> Tensor:
    """To a matrix whose rows are the axes before `axis`."""
    axis = node.attribute("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(node: Node, x: Tensor) -> Tensor:
    """Axes in another order; reversed where none is given."""
    return x.permute(node.attribute("perm", list(reversed(range(x.dim())))))


def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without axes of size 1."""
    chosen = node.setting("axes", axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """With new axes of size 1; `axes` count in the result."""
    chosen = node.setting("axes", axes) or []
    for axis in sorted(a % (x.dim() + len(chosen)) for a in chosen):
        x = x.unsqueeze(axis)
    return x


def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """In parts of the given sizes, or in equal ones, the last of which may be smaller."""
    axis = node.attribute("axis", 0)
    parts = node.setting("split", sizes)
    if parts is None:
        return torch.split(x, -(-x.shape[axis] // len(node.outputs)), axis)
    return torch.split(x, parts, axis)


def slice_(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Python's slices; one with a negative step is gathered."""
    first, last = node.setting("starts", starts) or [], node.setting("ends", ends) or []
    chosen = node.setting("axes", axes) or list(range(len(first)))
    stride = node.setting("steps", steps) or [1] * len(first)
    for axis, *bounds in zip(chosen, first, last, stride, strict=True):
        wanted = range(*slice(*bounds).indices(x.shape[axis]))
        if wanted.step < 0:
            x = x.index_select(axis, torch.tensor(list(wanted), dtype=torch.int64, device=x.device))
        else:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(wanted.start, wanted.stop, wanted.step),)]
    return x


def pad_(
    node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """With a constant, or with values of the map: mirrored, or those at its edge."""
    mode = node.attribute("mode", "constant")
    amounts = node.setting("pads", pads) or []
    chosen = list(range(x.dim())) if axes is None else [int(a) % x.dim() for a in axes.tolist()]
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(chosen):
        before[axis], after[axis] = amounts[i], amounts[i + len(chosen)]
    if mode == "constant":
        return pad(x, before, after, node.attribute("value", 0.0) if value is None else value.item())
    if mode not in ("reflect", "edge"):
        raise node.refuse(f"mode {mode!r} is not supported")
    if any((*before[:2], *after[:2])) or min(*before, *after) < 0:
        raise node.refuse(f"mode {mode!r} is supported with positive pads of height and width only")
    pairs = [p for axis in reversed(range(2, x.dim())) for p in (before[axis], after[axis])]
    return functional.pad(x, pairs, mode="replicate" if mode == "edge" else "reflect")


def crop(node: Node, x: Tensor) -> Tensor:
    """An operator that onnx has dropped: left, top, right, bottom, or a size behind left and top."""
    left, top, right, bottom = node.attribute("border")
    height, width = node.attribute("scale") or (x.shape[2] - top - bottom, x.shape[3] - left - right)
    return x[:, :, top : top + height, left : left + width]


def gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Entries along one axis; negative indices count from its end."""
    axis = node.attribute("axis", 0) % x.dim()
    if indices.dim() == 0:
        return x.select(axis, int(indices))
    flat = indices.flatten().to(x.device)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def expand(node: Node, x: Tensor, target: Tensor) -> Tensor:
    """To a shape that it is broadcast with, both ways."""
    sizes = [int(v) for v in target.tolist()]
    sizes = [1] * (x.dim() - len(sizes)) + sizes
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    return x.expand([o if size == 1 else size for size, o in zip(sizes, own, strict=True)])


def constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    """One value everywhere, float zero unless told."""
    value = node.attribute("value")
    filled = torch.zeros(1) if value is None else to_torch(value)
    return filled.reshape(()).expand(shape.tolist())


def shape_of(node: Node, x: Tensor) -> Tensor:
    """The shape, or a part of it; it stays on the CPU."""
    return torch.tensor(x.shape[node.attribute("start", 0) : node.attribute("end")], dtype=torch.int64)


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels become blocks of positions."""
    size = int(node.attribute("blocksize"))
    if node.attribute("mode", "DCR") == "DCR":  # torch has the places in a block behind the channels
        n, c, h, w = x.shape
        x = x.reshape(n, size * size, c // size**2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return functional.pixel_shuffle(x, size)


def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Blocks of positions become channels."""
    size = int(node.attribute("blocksize"))
    y = functional.pixel_unshuffle(x, size)
    n, c, h, w = y.shape
    return y.reshape(n, c // size**2, size * size, h, w).transpose(1, 2).reshape(n, c, h, w)


OPERATORS: dict[str, Any] = {
    "Concat": lambda node, *inputs: torch.cat(inputs, node.attribute("axis")),
    "ConstantOfShape": constant_of_shape,
    "Crop": crop,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Pad": pad_,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": lambda node, x: torch.tensor(x.numel()),
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": lambda node, x, repeats: x.repeat(repeats.tolist()),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
