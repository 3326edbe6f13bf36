"""Trainable counterparts of layers with smaller maps, see `perfonnx.methods.lowrank.smaller`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from perfonnx.methods.lowrank.smaller import nearest
from perfonnx.torch.modules import SampledConv2d


class SmallerConv2d(SampledConv2d):
    """A layer that gives a smaller map, by a longer stride or of means of its input; see `stride` and `resize`.

    Args:
        dense: The layer whose parameters it takes over.
        shrink: By how much along each axis.
        averaged: Whether the input is averaged over squares of that side; else the stride is so many times as long.
        restored: Whether positions are repeated until the map has the size that it had.
    """

    def __init__(self, dense: nn.Conv2d, shrink: int, *, averaged: bool, restored: bool) -> None:
        self.take_over(dense)
        self.shrink = shrink
        self.averaged = averaged
        self.restored = restored
        self._size: Sequence[int] = ()  # of the smaller map, of the last forward pass

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW], or a smaller map."""
        if self.averaged:
            y = self.dense(functional.avg_pool2d(x, self.shrink, ceil_mode=True, count_include_pad=False))
        else:
            y = self.dense(x)[:, :, :: self.shrink, :: self.shrink]
        self._size = y.shape[2:]
        if not self.restored:
            return y
        for axis, around in ((0, self.pads[::2]), (1, self.pads[1::2])):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            whole = (x.shape[2 + axis] + sum(around) - reach) // self.stride[axis] + 1
            y = _taken(y, axis, nearest(whole, self._sites(axis, whole)))
        return y

    def goal(self, y: Tensor) -> Tensor:
        """See `SampledConv2d.goal`: of a smaller map, what lies nearest to its positions."""
        for axis in () if self.restored else (0, 1):
            y = _taken(y, axis, np.round(self._sites(axis, y.shape[2 + axis])).astype(np.int64))
        return y

    def _sites(self, axis: int, whole: int) -> Sequence[float]:
        """Where the smaller map's positions lie in the whole one, of so many."""
        small = self._size[axis]
        if self.averaged:
            return [(number + 0.5) * whole / small - 0.5 for number in range(small)]
        return range(0, whole, self.shrink)


def _taken(y: Tensor, axis: int, positions: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
    return y.index_select(axis + 2, torch.from_numpy(positions).to(y.device))
