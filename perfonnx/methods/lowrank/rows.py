"""What a layer sees and should give: rows of its im2row matrix, sampled over calibration data, with its targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Goal
from perfonnx.methods.base import Spot
from perfonnx.ops.common import ConvAttributes

Float = NDArray[np.float64]

ENOUGH = 16384
"""Rows that a layer is fitted on, at most; twice as many as a row has values where these are many."""

LIMIT = 1 << 27
"""Values of all rows, at most."""

DIRECT = 6000
"""Values of a row up to which normal matrices of that size are made; beyond, those of as many rows as there are."""


@dataclass(frozen=True)
class Rows:
    """Sampled output positions of a layer, or of one of its groups.

    Attributes:
        x: float32 [rows, K], K = C kh kw, what each reads.
        wanted: float64 [rows, M], what the layer should give there; what is added to it is taken off.
        other: float64 [rows, M], what is added to it, or zeros [rows, 1].
        goal: What the sum is for.
    """

    x: NDArray[np.float32]
    wanted: Float
    other: Float
    goal: Goal

    def group(self, number: int, groups: int) -> Rows:
        """Those of one group."""
        if groups == 1:
            return self
        inputs, outputs = self.x.shape[1] // groups, self.wanted.shape[1] // groups
        ours = slice(number * outputs, (number + 1) * outputs)
        other = self.other[:, ours] if self.other.shape[1] > 1 else self.other
        return Rows(self.x[:, number * inputs : (number + 1) * inputs], self.wanted[:, ours], other, self.goal)

    @cached_property
    def mean(self) -> Float:
        """Of what is read, [K]."""
        return self.x.mean(axis=0, dtype=np.float64)

    @cached_property
    def centred(self) -> Float:
        """What is read, less its mean."""
        return self.x - self.mean

    @cached_property
    def sigma(self) -> Float:
        """Covariance of what is read, [K, K]."""
        return self.centred.T @ self.centred / len(self.x)

    @cached_property
    def variance(self) -> float:
        """Mean variance of what is read."""
        squares = float(np.einsum("nk,nk->n", self.x, self.x, dtype=np.float64).sum()) / self.x.size
        return max(squares - float(np.square(self.mean).mean()), 0.0)

    @cached_property
    def spread(self) -> float:
        """Mean square of what is wanted, less its mean, over all outputs."""
        return max(float(np.square(self.wanted - self.wanted.mean(axis=0)).mean()), 1e-300)

    def refitted(self, weight: Float, ridge: float) -> Float:
        """The weight [M, K] that gives what is wanted, by ridge regression towards the one that is there."""
        left = self.wanted - self.wanted.mean(axis=0) - self.centred @ weight.T
        count, width = self.x.shape
        strength = max(ridge * count * self.variance, 1e-300)
        if width <= min(DIRECT, count):
            gram = self.sigma * count + strength * np.eye(width)
            return weight + np.linalg.solve(gram, self.centred.T @ left).T
        gram = self.centred @ self.centred.T + strength * np.eye(count)
        return weight + (self.centred.T @ np.linalg.solve(gram, left)).T

    def responses(self, weight: Float) -> Float:
        """What a weight [M, K] gives, less its mean, [rows, M]."""
        given = (self.x @ weight.T.astype(np.float32)).astype(np.float64)
        return given - given.mean(axis=0)

    def bias(self, weight: Float) -> Float:
        """What brings the mean of a weight [M, K]'s responses to that of what is wanted."""
        return self.wanted.mean(axis=0) - weight @ self.mean

    def given(self, weight: Float, bias: Float) -> Float:
        """What a layer of a weight [M, K] gives, [rows, M]."""
        return self.x @ weight.T.astype(np.float32) + bias

    def error(self, given: Float) -> float:
        """Mean squared error that the activation lets through, over the variance of what the layer should give."""
        return float(np.square(self._missing(given)).mean()) / self.spread

    def met(self, given: Float) -> Rows:
        """The rows with what counts as well, and is nearest to what a layer gives now, in the place of what is wanted.

        Where the activation makes one of what is wanted and what is given, that is what is given. A fit to the result
        loses less behind the activation, as the fit to auxiliary responses of Zhang et al. (arXiv 1505.06798, 3.2).
        """
        found = Rows(self.x, given + self._missing(given), self.other, self.goal)
        known = ("mean", "centred", "sigma", "variance")  # of what is read, which stays
        found.__dict__.update({name: self.__dict__[name] for name in known if name in self.__dict__})
        return found

    def _missing(self, given: Float) -> Float:
        return self.goal.error(self.wanted + self.other, given + self.other)


def sampled(spot: Spot) -> Rows:
    """Rows of a layer that is to be fitted.

    Raises:
        PerfonnxError: There are none, or values that are not finite.
    """
    assert spot.targets is not None
    sample, goal = _Sample(), spot.targets.goal(spot.name)
    for x, _, target, other in spot.targets.values(spot.name, settled=True):
        maps = [target, *([] if other is None else [other])]
        if spot.layer.is_conv:
            size = target.shape[2:]
            width = x.shape[1] * math.prod(spot.attributes.kernel_shape)
            maps = [np.moveaxis(m, 1, -1) for m in maps]
        else:
            size, width = target.shape[1:-1], x.shape[-1]
        total = len(target) * math.prod(size)
        picked = sample.picked(total, min(max(ENOUGH, 2 * width), max(LIMIT // width, 1)))
        seen = patches(x, spot.attributes, size, picked) if spot.layer.is_conv else x.reshape(total, -1)[picked]
        sample.add(seen, *(m.reshape(total, -1)[picked] for m in maps))
    arrays = sample.arrays()
    added = arrays[2].astype(np.float64) if len(arrays) > 2 else np.zeros((len(arrays[0]), 1))
    return Rows(arrays[0], arrays[1] - added, added, goal)


class _Sample:
    """A random sample of positions that holds no more than it may, every position as likely as every other."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.parts: list[tuple[NDArray[np.float32], ...]] = []
        self.share = 1.0
        self.limit = 0

    def picked(self, total: int, limit: int) -> NDArray[np.intp]:
        """Which of a batch's positions are to be added."""
        self.limit = limit
        while total * self.share > limit:
            self._halve()
        return np.flatnonzero(self.rng.random(total) < self.share)

    def add(self, *arrays: NDArray[np.floating]) -> None:
        """Rows of the positions that were picked; the same number of arrays each time."""
        self.parts.append(tuple(array.astype(np.float32) for array in arrays))
        while sum(len(part[0]) for part in self.parts) > self.limit:
            self._halve()

    def _halve(self) -> None:
        self.share /= 2
        kept = [self.rng.random(len(part[0])) < 0.5 for part in self.parts]
        self.parts = [tuple(array[k] for array in part) for part, k in zip(self.parts, kept, strict=True)]

    def arrays(self) -> list[NDArray[np.float32]]:
        """All rows."""
        if not any(len(part[0]) for part in self.parts):
            raise PerfonnxError("the calibration data has no positions to fit on")
        found = [np.concatenate(arrays) for arrays in zip(*self.parts, strict=True)]
        if not all(np.isfinite(array).all() for array in found):
            raise PerfonnxError("the calibration data gives values that are not finite")
        return found


def patches(
    x: NDArray[np.floating], attributes: ConvAttributes, size: tuple[int, ...], picked: NDArray[np.intp]
) -> NDArray[np.float32]:
    """What the output positions of these numbers, counted over [N, OH, OW], read of x [N, C, H, W]: [rows, C kh kw]."""
    top, left, bottom, right = attributes.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    image, position = np.divmod(picked, size[0] * size[1])
    row, column = np.divmod(position, size[1])
    (step_y, step_x), (far_y, far_x), kernel = attributes.strides, attributes.dilations, attributes.kernel_shape
    result = np.empty((len(picked), x.shape[1], *kernel), np.float32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            result[:, :, i, j] = padded[image, :, row * step_y + i * far_y, column * step_x + j * far_x]
    return result.reshape(len(picked), -1)
