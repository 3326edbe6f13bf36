"""Trainable counterparts of layers on sublattices, whose parameters are the weights of their classes of sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from perfonnx.corrections import Correction
from perfonnx.errors import PerfonnxError
from perfonnx.masks import Mask
from perfonnx.sampling import interpolate
from perfonnx.torch.modules import FittedConv2d

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Cosets:
    """How the sites of one class are computed: as a convolution of the input's phases, without the rest of the map.

    Sites that repeat every `period` positions are those of a few cosets of the grid of multiples of the period. On a
    coset, a tap always reads one phase of the input, x[py::period, px::period], so the cosets are the output channels
    of one convolution over the phases that are read: on a quincunx, two cosets and two phases with kernels of 3x3 in
    place of one of 5x5 at all positions.

    Attributes:
        period: 1 or 2; 1: all positions are computed.
        cosets: First positions (y, x) of the cosets.
        phases: The input's phases that are read.
        into: int64 [cosets * T], places of the taps in a kernel [cosets, phases, kh, kw].
        low: Smallest offset (dy, dx) of a tap within its phase.
        kernel: (kh, kw).
        size: Height and width of a coset.
    """

    period: int
    cosets: list[tuple[int, int]]
    phases: list[tuple[int, int]]
    into: Ints
    low: tuple[int, int]
    kernel: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, mask: Mask, taps: Ints, strides: tuple[int, int]) -> _Cosets:
        """For sites, bool [OH, OW], and taps [T, 2] from the position times the strides."""
        parts = {(y, x): mask[y::2, x::2] for y, x in product((0, 1), (0, 1))}
        period = 1 if mask.all() or any(part.any() != part.all() for part in parts.values()) else 2
        cosets = [(0, 0)] if period == 1 else [start for start, part in parts.items() if part.any()]
        offsets = np.array(cosets)[:, None] * np.array(strides) + taps  # [cosets, T, 2]
        phase, shift = offsets % period, offsets // period
        phases = sorted({(int(y), int(x)) for y, x in phase.reshape(-1, 2)})
        low, high = shift.min(axis=(0, 1)), shift.max(axis=(0, 1))
        kh, kw = (int(n) for n in high - low + 1)
        which = np.array([[phases.index((y, x)) for y, x in row] for row in phase.tolist()])
        place = np.arange(len(cosets))[:, None] * len(phases) + which
        into = (place * kh + shift[..., 0] - low[0]) * kw + shift[..., 1] - low[1]
        height, width = (-(-n // period) for n in mask.shape)
        return cls(period, cosets, phases, into.ravel(), (int(low[0]), int(low[1])), (kh, kw), (height, width))

    def rows(self) -> Ints:
        """int64 [height, width, cosets], numbers of the rows that `_rows_of` makes of what is computed."""
        return np.arange(self.size[0] * self.size[1] * len(self.cosets)).reshape(*self.size, len(self.cosets))


class SublatticeConv2d(FittedConv2d):
    """A layer on a sublattice: each class of its sites has taps and weights of its own, see the method `sublattice`.

    With one class, other positions have the value of the nearest site; with several, 0. The weights of the dense layer
    are kept as they are: they take no part, but tell what the classes' weights belong to.

    Args:
        dense: The layer whose place it takes.
        mask: bool [OH, OW], the sites.
        correction: What was fitted; where that was nothing, it starts with the dense layer's own taps and weights.

    Attributes:
        weights: Of the classes, [M, C/groups, T] each.
        biases: Of the classes, [M] each.
        mask: The sites.
        shown: int64 [OH * OW], for each position the one of the site that it shows.
        source: int64 [OH * OW], the rows of these sites, which are in the order in which they are computed.
    """

    mask: Tensor
    shown: Tensor
    source: Tensor

    def __init__(self, dense: nn.Conv2d, mask: Mask, correction: Correction) -> None:
        self.take_over(dense)
        self.correction = correction
        arrays = correction.arrays or self._own(mask)
        numbers = arrays["classes"]
        self.numbers, self.taps = numbers, []
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self._cosets: list[_Cosets] = []
        rows, first = np.full(mask.shape, -1), 0
        for i in range(int(numbers.max()) + 1):
            self.taps.append(arrays[f"taps{i}"])
            for kept, kind in ((self.weights, "weight"), (self.biases, "bias")):
                kept.append(nn.Parameter(torch.from_numpy(np.array(arrays[f"{kind}{i}"])).to(self.weight)))
            sites = numbers == i
            cosets = _Cosets.of(sites, arrays[f"taps{i}"].astype(np.int64), cast("tuple[int, int]", self.stride))
            self._cosets.append(cosets)
            self._keep(f"into{i}", cosets.into)
            found = first + cosets.rows()
            for c, (y, x) in enumerate(cosets.cosets):
                here = rows[y :: cosets.period, x :: cosets.period]
                np.copyto(
                    here,
                    found[: here.shape[0], : here.shape[1], c],
                    where=sites[y :: cosets.period, x :: cosets.period],
                )
            first += found.size
        self._keep("mask", mask)
        shown = (correction.learned or interpolate(mask)).source[:, 0].astype(np.int64)
        self._keep("shown", shown)
        self._keep("source", rows.ravel()[shown])
        self.zero_elsewhere = len(self.taps) > 1 and not mask.all()
        self.plain = len(self.taps) == 1 and self._cosets[0].period == 1 and bool(mask.all())

    def _keep(self, name: str, values: NDArray[Any]) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(values)).to(self.weight.device), persistent=False)

    def _own(self, mask: Mask) -> Mapping[str, NDArray[np.float32]]:
        """One class, with the taps and weights of the dense layer."""
        (kh, kw), (top, left) = self.kernel_size, self.pads[:2]
        taps = [(i * self.dilation[0] - top, j * self.dilation[1] - left) for i in range(kh) for j in range(kw)]
        bias = self.weight.new_zeros(self.out_channels) if self.bias is None else self.bias
        return {
            "classes": np.where(mask, 0, -1).astype(np.float32),
            "taps0": np.array(taps, np.float32),
            "weight0": self.weight.detach().float().cpu().numpy().reshape(*self.weight.shape[:2], kh * kw),
            "bias0": bias.detach().float().cpu().numpy(),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW]."""
        self._check(x)
        if self.plain:
            return self._computed(0, x)
        parts = [_rows_of(self._computed(i, x), len(c.cosets), self.groups) for i, c in enumerate(self._cosets)]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self._map(rows, self.source)

    def goal(self, y: Tensor) -> Tensor:
        """Only at its sites the layer can be right: what it would show of y, if it were."""
        return y if self.plain else self._map(y.permute(0, 2, 3, 1).flatten(1, 2), self.shown)

    def _map(self, rows: Tensor, source: Tensor) -> Tensor:
        """Rows [N, R, M] as a map [N, M, OH, OW], which shows the row `source` at each position."""
        n, _, m = rows.shape
        y = rows.index_select(1, source).view(n, *self.mask.shape, m).permute(0, 3, 1, 2)
        return torch.where(self.mask, y, y.new_zeros(())) if self.zero_elsewhere else y

    def _check(self, x: Tensor) -> None:
        """The map has the size that the classes were made for."""
        (top, left, bottom, right), sizes = self.pads, []
        for axis, around in ((0, top + bottom), (1, left + right)):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            sizes.append((x.shape[2 + axis] + around - reach) // self.stride[axis] + 1)
        if tuple(sizes) != self.mask.shape:
            words = ["x".join(str(n) for n in shape) for shape in (self.mask.shape, sizes)]
            raise PerfonnxError(f"a lattice of {words[0]} meets a map of {words[1]}; apply the plan with such inputs")

    def _computed(self, i: int, x: Tensor) -> Tensor:
        """What is computed for a class: [N, groups * cosets * M/groups, height, width]."""
        c, g = self._cosets[i], self.groups
        weight, bias = self.weights[i], self.biases[i]
        m, channels, _ = weight.shape
        (kh, kw), many = c.kernel, (len(c.cosets), len(c.phases))
        kernel = weight.new_zeros(m, channels, many[0] * many[1] * kh * kw)
        kernel = kernel.index_copy(2, getattr(self, f"into{i}"), weight.repeat(1, 1, many[0]))
        kernel = kernel.view(g, m // g, channels, *many, kh, kw).permute(0, 3, 1, 4, 2, 5, 6)
        kernel = kernel.reshape(g * many[0] * (m // g), many[1] * channels, kh, kw)
        bias = bias.view(g, 1, -1).expand(-1, many[0], -1).reshape(-1)
        x, padding = self._padded(c, self._phases(c, x))
        return functional.conv2d(x, kernel, bias, self.stride, padding, groups=g)

    def _phases(self, c: _Cosets, x: Tensor) -> Tensor:
        """The phases that a class reads, as channels: [N, groups * phases * C/groups, H/period, W/period]."""
        if c.period == 1:
            return x
        down, across = (-n % c.period for n in x.shape[2:])
        if down or across:
            x = functional.pad(x, (0, across, 0, down))
        parts = [x[:, :, y :: c.period, x0 :: c.period] for y, x0 in c.phases]
        if self.groups == 1:
            return torch.cat(parts, dim=1)
        n, _, height, width = parts[0].shape
        grouped = [part.reshape(n, self.groups, -1, height, width) for part in parts]
        return torch.stack(grouped, dim=2).flatten(1, 3)

    def _padded(self, c: _Cosets, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The phases with what is missing around them, and what the convolution has to add by itself."""
        edges = []
        for axis in range(2):
            last = (c.size[axis] - 1) * self.stride[axis] + c.low[axis] + c.kernel[axis] - 1
            edges.append((-c.low[axis], last - (x.shape[2 + axis] - 1)))
        (top, bottom), (left, right) = edges
        if top == bottom >= 0 and left == right >= 0:
            return x, (top, left)
        return functional.pad(x, (left, right, top, bottom)), (0, 0)

    def trained(self) -> Correction:
        """What makes the layer as it is now, in the place of what was fitted."""
        arrays = {"classes": self.numbers}
        for i, taps in enumerate(self.taps):
            kinds = (("weight", self.weights), ("bias", self.biases))
            arrays[f"taps{i}"] = taps
            arrays |= {f"{kind}{i}": kept[i].detach().float().cpu().numpy() for kind, kept in kinds}
        return replace(self.correction, arrays=arrays, before=0.0, after=0.0)


def _rows_of(y: Tensor, cosets: int, groups: int) -> Tensor:
    """What is computed for a class as rows: [N, height * width * cosets, M]."""
    n, channels, height, width = y.shape
    shape = (n, height * width * cosets, channels // cosets)
    if groups == 1:
        return y.permute(0, 2, 3, 1).reshape(shape)
    return y.view(n, groups, cosets, -1, height, width).permute(0, 4, 5, 2, 1, 3).reshape(shape)
