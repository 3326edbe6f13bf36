"""Convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perfonnx.gradients.builder import Builder, Value
from perfonnx.gradients.network import Node
from perfonnx.gradients.rules.registry import gradient


class _Window:
    """Kernel, stride, dilation and the padding in front of a (transposed) convolution, for any number of axes."""

    def __init__(self, node: Node, small: Sequence[int], large: Sequence[int]) -> None:
        """`small` and `large` are the sizes of the map with a value per window, and of the one that windows lie on."""
        kernel = node.shape(1)[2:]
        rank = len(kernel)
        self.strides = list(node.attribute("strides") or [1] * rank)
        self.dilations = list(node.attribute("dilations") or [1] * rank)
        self.group = int(node.attribute("group", 1))
        pads = list(node.attribute("pads") or [0] * 2 * rank)
        self.extents = [d * (k - 1) + 1 for d, k in zip(self.dilations, kernel, strict=True)]
        # what all windows together reach over
        self.reach = [(n - 1) * s + e for n, s, e in zip(small, self.strides, self.extents, strict=True)]
        auto_pad = node.attribute("auto_pad", "NOTSET")
        self.before = pads[:rank]
        if auto_pad == "VALID":
            self.before = [0] * rank
        elif auto_pad != "NOTSET" or node.attribute("output_shape"):
            missing = node.attribute("output_padding") or [0] * rank
            totals = [max(r + o - n, 0) for r, o, n in zip(self.reach, missing, large, strict=True)]
            self.before = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in totals]
        self.after = [r - b - n for r, b, n in zip(self.reach, self.before, large, strict=True)]

    def attributes(self, after: Sequence[int]) -> dict[str, object]:
        """As node attributes."""
        pads = [*self.before, *after]
        return {"strides": self.strides, "dilations": self.dilations, "group": self.group, "pads": pads}


@gradient("Conv")
def _conv(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    """The transposed convolution with the same weight; the part of X that no window reaches gets 0."""
    large = node.shape()[2:]
    window = _Window(node, node.output_shape()[2:], large)
    after = [max(a, 0) for a in window.after]
    beyond = [max(-a, 0) for a in window.after]
    dx = dy.map("ConvTranspose", g.value(node, 1), **window.attributes(after))
    rank = len(node.shape())
    axes = [0, *range(2, rank)]
    db = dy.sum(axes).reshape(node.shape(2)) if node.has(2) else None
    return [dx.pad([0] * rank, [0, 0, *beyond]), None, db]


@gradient("ConvTranspose")
def _conv_transpose(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    """The convolution with the same weight; output that no window reaches is cut off."""
    small, large = node.shape()[2:], node.output_shape()[2:]
    window = _Window(node, small, large)
    after, rank = window.after, len(node.shape())
    cut = dy.pad([0] * rank, [0, 0, *(min(a, 0) for a in after)])
    dx = cut.map("Conv", g.value(node, 1), **window.attributes([max(a, 0) for a in after]))
    axes = [0, *range(2, rank)]
    db = dy.sum(axes).reshape(node.shape(2)) if node.has(2) else None
    return [dx, None, db]


@gradient("Gemm")
def _gemm(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    a_turned, b_turned = int(node.attribute("transA", 0)), int(node.attribute("transB", 0))
    a, b = g.value(node, 0), g.value(node, 1)
    if a_turned:
        da = b.map("Gemm", dy, alpha=alpha, transA=b_turned, transB=1)
    else:
        da = dy.map("Gemm", b, alpha=alpha, transB=1 - b_turned)
    if b_turned:
        db = dy.map("Gemm", a, alpha=alpha, transA=1, transB=a_turned)
    else:
        db = a.map("Gemm", dy, alpha=alpha, transA=1 - a_turned)
    dc = (dy * beta).fit(node.output_shape(), node.shape(2)) if node.has(2) else None
    return [da, db, dc]


@gradient("MatMul")
def _matmul(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    a_shape, b_shape = node.shape(0), node.shape(1)
    a_wide = (1, *a_shape) if len(a_shape) == 1 else a_shape
    b_wide = (*b_shape, 1) if len(b_shape) == 1 else b_shape
    front = np.broadcast_shapes(a_wide[:-2], b_wide[:-2])
    dy = dy.reshape((*front, a_wide[-2], b_wide[-1]))
    a, b = g.value(node, 0).reshape(a_wide), g.value(node, 1).reshape(b_wide)
    da = dy.matmul(b.swap(len(b_wide))).fit((*front, *a_wide[-2:]), a_wide)
    db = a.swap(len(a_wide)).matmul(dy).fit((*front, *b_wide[-2:]), b_wide)
    return [da.reshape(a_shape), db.reshape(b_shape)]
