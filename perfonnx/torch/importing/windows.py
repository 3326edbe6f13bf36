"""Convolution and pooling: operators with a window that slides over the map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from perfonnx.model.layers import same_pads
from perfonnx.torch.importing.node import Node

_CONV = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_CONV_TRANSPOSE = {
    3: functional.conv_transpose1d,
    4: functional.conv_transpose2d,
    5: functional.conv_transpose3d,
}
_MAX_POOL = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
_AVERAGE_POOL: dict[int, Any] = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}


@dataclass(frozen=True)
class Window:
    """A sliding window on a map of a known size, one number per axis.

    Attributes:
        kernel: Its size.
        strides: Steps.
        dilations: Distances of its taps.
        before: Pads before the map.
        after: Pads behind the map.
        overhang: What the last window of `ceil_mode` needs behind those pads.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    overhang: list[int]

    @classmethod
    def of(cls, node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
        """The window of a node on a map of these sizes, `auto_pad` and `ceil_mode` resolved."""
        rank = len(kernel)
        strides = list(node.attribute("strides", [1] * rank))
        dilations = list(node.attribute("dilations", [1] * rank))
        pads = list(node.attribute("pads", [0] * 2 * rank))
        auto_pad = node.attribute("auto_pad", "NOTSET")
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            same = same_pads(auto_pad, sizes, kernel, strides, dilations)
            if same is None:
                raise node.refuse(f"{auto_pad} with a stride longer than its kernel is not supported")
            pads = same
        elif auto_pad == "VALID":
            pads = [0] * 2 * rank
        before, after, overhang = pads[:rank], pads[rank:], [0] * rank
        if node.flag("ceil_mode"):
            for i in range(rank):
                extent = dilations[i] * (kernel[i] - 1) + 1
                steps = -(-(sizes[i] + before[i] + after[i] - extent) // strides[i])
                if steps * strides[i] >= sizes[i] + before[i]:  # a window may not start behind the map
                    steps -= 1
                overhang[i] = max(0, steps * strides[i] + extent - sizes[i] - before[i] - after[i])
        return cls(list(kernel), strides, dilations, before, after, overhang)

    @property
    def after_all(self) -> list[int]:
        """Pads behind the map, with the overhang."""
        return [a + o for a, o in zip(self.after, self.overhang, strict=True)]

    def fits_torch(self, limits: Sequence[float]) -> bool:
        """Whether torch's own padding, the same before and behind, can do it; `limits` are what it allows."""
        return self.before == self.after_all and all(p <= limit for p, limit in zip(self.before, limits, strict=True))


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads of the last axes, in ONNX's order."""
    if not any((*before, *after)):
        return x
    pairs = [(b, a) for b, a in zip(before, after, strict=True)]
    return functional.pad(x, [p for pair in reversed(pairs) for p in pair], value=value)


def conv(node: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """A convolution that is no module: of another rank, with a computed weight, or with pads that sizes decide."""
    window = Window.of(node, x.shape[2:], w.shape[2:])
    padding = window.before
    if not window.fits_torch([math.inf] * len(padding)):
        x, padding = pad(x, window.before, window.after), [0] * len(padding)
    return _CONV[w.dim()](x, w, b, window.strides, padding, window.dilations, node.attribute("group", 1))


def conv_transpose(node: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Computed without pads, which then are cut off; what `output_shape` asks for beyond that holds the bias alone."""
    rank = w.dim() - 2
    strides = list(node.attribute("strides", [1] * rank))
    dilations = list(node.attribute("dilations", [1] * rank))
    extra = list(node.attribute("output_padding", [0] * rank))
    full = [
        s * (n - 1) + d * (k - 1) + 1 + e
        for s, n, d, k, e in zip(strides, x.shape[2:], dilations, w.shape[2:], extra, strict=True)
    ]
    before, after = _cut(node, x, full, strides)
    if before == after and min(before) >= 0:
        return _convolve_transposed(node, x, w, b, strides, before, extra, dilations)
    extra = [e + max(0, -a) for e, a in zip(extra, after, strict=True)]
    y = _convolve_transposed(node, x, w, b, strides, [0] * rank, extra, dilations)
    return pad(y, [-p for p in before], [-max(0, p) for p in after])


def _convolve_transposed(
    node: Node,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    strides: list[int],
    padding: list[int],
    extra: list[int],
    dilations: list[int],
) -> Tensor:
    function = _CONV_TRANSPOSE[w.dim()]
    return function(x, w, b, strides, padding, extra, node.attribute("group", 1), dilations)


def _cut(node: Node, x: Tensor, full: list[int], strides: list[int]) -> tuple[list[int], list[int]]:
    """What is cut off before and behind the full result; negative where something is added."""
    rank = len(full)
    auto_pad = node.attribute("auto_pad", "NOTSET")
    shape = node.attribute("output_shape")
    if shape:
        wanted = list(shape)[-rank:]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    else:
        pads = list(node.attribute("pads", [0] * 2 * rank)) if auto_pad == "NOTSET" else [0] * 2 * rank
        return pads[:rank], pads[rank:]
    before, after = [], []
    for have, want in zip(full, wanted, strict=True):
        total = have - want
        half = max(0, total) // 2
        first = half if auto_pad == "SAME_UPPER" else max(0, total) - half
        before.append(first)
        after.append(total - first)
    return before, after


def max_pool(node: Node, x: Tensor) -> Tensor:
    """The largest value of each window; pads never are."""
    window = Window.of(node, x.shape[2:], node.attribute("kernel_shape"))
    padding = window.before
    if not window.fits_torch([k // 2 for k in window.kernel]):
        x, padding = pad(x, window.before, window.after_all, -math.inf), [0] * len(padding)
    return _MAX_POOL[x.dim()](x, window.kernel, window.strides, padding, window.dilations)


def average_pool(node: Node, x: Tensor) -> Tensor:
    """The mean of each window, with or without the pads in it; what `ceil_mode` adds behind them never counts."""
    window = Window.of(node, x.shape[2:], node.attribute("kernel_shape"))
    counted = node.flag("count_include_pad")
    if set(window.dilations) != {1}:
        raise node.refuse("average pooling with dilations is not supported")
    pool = _AVERAGE_POOL[x.dim()]
    if window.fits_torch([k // 2 for k in window.kernel]):
        return pool(x, window.kernel, window.strides, window.before, count_include_pad=counted)
    valid = x.new_ones((1, 1, *x.shape[2:]))
    valid = pad(valid, window.before, window.after, float(counted))
    valid = pad(valid, [0] * len(window.before), window.overhang)
    x = pad(x, window.before, window.after_all)
    return pool(x, window.kernel, window.strides) / pool(valid, window.kernel, window.strides)


def _over_the_map(function: Any) -> Any:
    return lambda node, x: function(x, dim=tuple(range(2, x.dim())), keepdim=True)


OPERATORS: dict[str, Any] = {
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": _over_the_map(torch.mean),
    "GlobalMaxPool": _over_the_map(torch.amax),
    "MaxPool": max_pool,
}
