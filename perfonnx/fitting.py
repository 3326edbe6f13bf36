"""Least squares for the repair of perforated layers, from sums that grow batch by batch.

What is kept does not depend on the number of images. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.ops.common import Activation
from perfonnx.sampling import Sampling

Float = NDArray[np.float64]

RIDGE = 1e-3
"""Default strength of regularization, relative to the mean diagonal of the normal matrix."""

NEIGHBOURS = 4
"""Sites from which a learned interpolation makes a position."""

MOST_UNKNOWNS = 5000
"""For an output: their products with each other are kept, 200 MB then, and solving for them takes seconds."""

_BLOCK = 1 << 18
"""Float64 values that are worked on at once, about: what stays in a cache."""


def fit_obstacle(unknowns: int) -> str | None:
    """Why weights are not refitted, of so many that each output has; None: they can be."""
    if unknowns <= MOST_UNKNOWNS:
        return None
    return f"its {unknowns} weights for each output are too many to be refitted: more than {MOST_UNKNOWNS}"


@dataclass(frozen=True)
class Solution:
    """What makes a layer's output closest to its target.

    Attributes:
        bias: float64 [M], to be added to the layer's bias.
        predictor: float64 [M, C/group], or None.
        before: Mean squared error over mean squared deviation of the target from its channels' means, before.
        after: The same with this solution.
    """

    bias: Float
    predictor: Float | None
    before: float
    after: float


@dataclass(frozen=True)
class Goal:
    """What a layer's output is for: values that its activation maps to one need not be told apart.

    A target at or below `low` is met by anything there, so the error counts from the nearest such value; likewise at
    and above `high`. The squared error so measured bounds that behind the activation from above. (Zhang et al., arXiv
    1505.06798, section 3.2, fit through ReLU likewise.)
    """

    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def of(cls, activation: Activation) -> Goal:
        """From the activation that follows the layer, or the sum that the layer ends in."""
        low = max(activation.clip_min, 0.0) if activation.negative_slope == 0 else activation.clip_min
        return cls(low, activation.clip_max)

    def error(self, target: Float, result: Float) -> Float:
        """What has to be added to the result."""
        error = target - result
        np.copyto(error, np.minimum(self.low - result, 0), where=target <= self.low)
        np.copyto(error, np.maximum(self.high - result, 0), where=target >= self.high)
        return error


class Residual:
    """What is left of a layer's target, and how much of it a bias and a linear map of the input explain.

    The layer gives Interp(V), V its convolution at the sites and Interp its interpolation. The corrected layer gives
    A x + Interp(V - A x) + b s, with s what Interp makes of ones: 1 for every interpolation but `zero`. So the target Y
    leaves E = Y - Interp(V), to be explained by A (x - Interp(x)) + b s. The first term is 0 at sites: A is fitted on
    the skipped positions alone, with an intercept; b then on all.

    Args:
        sampling: The layer's mask and interpolation.
        groups: Groups of the convolution.
        goal: What the target is for.
    """

    def __init__(self, sampling: Sampling, groups: int = 1, goal: Goal | None = None) -> None:
        self.sampling = sampling
        self.groups = groups
        self.goal = goal or Goal()
        ones = np.ones((1, 1, sampling.mask.size))
        self.share = _interpolated(ones, sampling.source, sampling.weight)[0, 0]
        self.skipped = np.flatnonzero(~sampling.mask)
        self.images = 0
        self.error_squares = self.target_squares = 0.0
        self.target_sum: Float | float = 0.0
        self.error_sum: Float | float = 0.0  # of s E, [M]
        self.skipped_error_sum: Float | float = 0.0  # of s E, skipped positions only
        self.input_sum: Float | float = 0.0  # of s G, [groups, C/group]
        self.gram: Float | None = None  # of G G', [groups, C/group, C/group]
        self.cross: Float | float = 0.0  # of G E', [groups, C/group, M/group]

    def add(
        self,
        result: NDArray[np.floating],
        target: NDArray[np.floating],
        other: NDArray[np.floating] | None = None,
        x: NDArray[np.floating] | None = None,
    ) -> None:
        """Count a batch.

        Args:
            result: [N, M, H, W], the layer's output; only its sites are read.
            target: [N, M, H, W], what it should be, together with `other`.
            other: [N, M, H, W], what the network adds to the layer's output.
            x: [N, C, H, W], the input at the output's positions; None: no predictor is fitted.
        """
        per_image = self.sampling.mask.size * (2 * target.shape[1] + (0 if x is None else x.shape[1]))
        for part in _blocks(len(target), per_image):
            rest = (None if values is None else _flat(values[part]) for values in (other, x))
            self._add(_flat(result[part]), _flat(target[part]), *rest)

    def _add(self, result: Float, target: Float, other: Float | None, x: Float | None) -> None:
        sampling = self.sampling
        result = _interpolated(result, sampling.source, sampling.weight)
        error = self.goal.error(target, result if other is None else result + other)
        self.images += len(target)
        self.error_squares += float(np.square(error).sum())
        self.target_squares += float(np.square(target).sum())
        self.target_sum = self.target_sum + target.sum(axis=(0, 2))
        shared = (error @ self.share).sum(axis=0)
        self.error_sum = self.error_sum + shared
        if x is None or not self.skipped.size:
            return
        weight = None if sampling.weight is None else sampling.weight[self.skipped]
        excess = x[:, :, self.skipped] - _interpolated(x, sampling.source[self.skipped], weight)
        error, share = error[:, :, self.skipped], self.share[self.skipped]
        self.skipped_error_sum = self.skipped_error_sum + (error @ share).sum(axis=0)
        excess, error = self._grouped(excess), self._grouped(error)
        self.input_sum = self.input_sum + excess @ np.tile(share, len(x))
        gram = excess @ excess.transpose(0, 2, 1)
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = self.cross + excess @ error.transpose(0, 2, 1)

    def _grouped(self, values: Float) -> Float:
        """[N, C, Q] to [groups, C/group, N*Q]."""
        images, channels, positions = values.shape
        split = values.reshape(images, self.groups, channels // self.groups, positions)
        return split.transpose(1, 2, 0, 3).reshape(self.groups, channels // self.groups, images * positions)

    def solve(self, ridge: float = RIDGE) -> Solution:
        """The best bias, and predictor if inputs were counted.

        Raises:
            PerfonnxError: Nothing was counted, or the values were not finite.
        """
        sums = (self.error_squares, self.target_squares, 0.0 if self.gram is None else float(self.gram.sum()))
        if not self.images or not np.isfinite(sums).all():
            raise PerfonnxError("the calibration data gives values that are not finite" if self.images else "no data")
        weight = self.images * float(self.share @ self.share)
        predictor = None if self.gram is None else self._predictor(ridge)
        unexplained = self.error_sum
        left = self.error_squares
        if predictor is not None:
            assert self.gram is not None
            unexplained = unexplained - (predictor @ np.asarray(self.input_sum)[:, :, None]).reshape(-1)
            left -= 2 * float(np.einsum("gmc,gcm->", predictor, self.cross))
            left += float(np.einsum("gmc,gcd,gmd->", predictor, self.gram, predictor))
        bias = np.asarray(unexplained, np.float64) / max(weight, 1e-300) if weight else np.zeros_like(self.target_sum)
        left -= weight * float(bias @ bias)
        mean = np.asarray(self.target_sum)
        spread = self.target_squares - float(mean @ mean) / (self.images * self.sampling.mask.size)
        spread = max(spread, 1e-12 * self.target_squares, 1e-300)
        flat = None if predictor is None else predictor.reshape(-1, predictor.shape[2])
        return Solution(bias, flat, self.error_squares / spread, max(left, 0.0) / spread)

    def _predictor(self, ridge: float) -> Float:
        """[groups, M/group, C/group]."""
        assert self.gram is not None
        gram, cross = self.gram, np.asarray(self.cross)
        skipped_share = self.share[self.skipped]
        weight = self.images * float(skipped_share @ skipped_share)
        if weight:  # the intercept, eliminated
            inputs = np.asarray(self.input_sum)
            errors = np.asarray(self.skipped_error_sum).reshape(self.groups, 1, -1)
            gram = gram - inputs[:, :, None] * inputs[:, None, :] / weight
            cross = cross - inputs[:, :, None] * errors / weight
        channels = gram.shape[1]
        scale = np.trace(gram, axis1=1, axis2=2) / channels
        # an input that never differs from its interpolation explains nothing: a positive diagonal gives zeros then
        diagonal = np.where(scale > 0, np.maximum(ridge, 1e-10) * scale, 1.0)
        return np.linalg.solve(gram + diagonal[:, None, None] * np.eye(channels), cross).transpose(0, 2, 1)


class Neighbours:
    """Weights by which each skipped position is made from its nearest sites, shared by all channels.

    Ridge regression per position, towards the nearest site alone.

    Args:
        mask: bool [H, W].
        goal: What the target is for.
        count: Sites per position.
    """

    def __init__(self, mask: NDArray[np.bool_], goal: Goal | None = None, count: int = NEIGHBOURS) -> None:
        self.mask = mask
        self.goal = goal or Goal()
        self.skipped = np.flatnonzero(~mask)
        self.nearest = nearest_sites(mask, count)
        number = self.nearest.shape[1]
        self.gram = np.zeros((self.skipped.size, number, number))
        self.cross = np.zeros((self.skipped.size, number))

    def add(
        self,
        result: NDArray[np.floating],
        target: NDArray[np.floating],
        other: NDArray[np.floating] | None = None,
    ) -> None:
        """Count a batch; see `Residual.add`."""
        if not self.skipped.size:
            return
        per_image = target.shape[1] * (self.skipped.size * (self.nearest.shape[1] + 1) + self.mask.size)
        for part in _blocks(len(target), per_image):
            sites, wanted = _flat(result[part]), _flat(target[part])
            added = 0.0 if other is None else _flat(other[part])
            wanted = (sites + self.goal.error(wanted, sites + added))[:, :, self.skipped]
            values = sites[:, :, self.nearest[self.skipped]]  # [N, M, Q, K]
            values = values.transpose(2, 3, 0, 1).reshape(self.skipped.size, self.nearest.shape[1], -1)
            wanted = wanted.transpose(2, 0, 1).reshape(self.skipped.size, -1, 1)
            self.gram += values @ values.transpose(0, 2, 1)
            self.cross += (values @ wanted)[:, :, 0]

    def solve(self, ridge: float = RIDGE) -> Sampling:
        """The learned interpolation.

        Raises:
            PerfonnxError: The values were not finite.
        """
        if not (np.isfinite(self.gram).all() and np.isfinite(self.cross).all()):
            raise PerfonnxError("the calibration data gives values that are not finite")
        number = self.nearest.shape[1]
        scale = np.trace(self.gram, axis1=1, axis2=2) / number
        strength = np.where(scale > 0, np.maximum(ridge, 1e-10) * scale, 1.0)
        prior = np.eye(number)[0]
        solved = np.linalg.solve(
            self.gram + strength[:, None, None] * np.eye(number), (self.cross + strength[:, None] * prior)[:, :, None]
        )[:, :, 0]
        source = self.nearest.copy()
        weight = np.zeros(source.shape, np.float32)
        weight[self.skipped] = solved
        sites = np.flatnonzero(self.mask)
        source[sites, 0], source[sites, 1:], weight[sites, 0] = sites, -1, 1
        return Sampling(self.mask, source, weight, "learned") if number > 1 else _scaled(self.mask, source, weight)


def _scaled(mask: NDArray[np.bool_], source: NDArray[np.int32], weight: NDArray[np.float32]) -> Sampling:
    """One site for all positions: a sampling of K = 1 has no weights, so a second, unused entry makes room for them."""
    source = np.concatenate([source, np.full_like(source, -1)], axis=1)
    return Sampling(mask, source, np.concatenate([weight, np.zeros_like(weight)], axis=1), "learned")


class Refit:
    """Weights of a layer at some of its positions, by ridge regression towards those that it begins with.

    The first solution counts every error; those after `again` count what the goal lets through, from where the one
    before stands (as Zhang et al., arXiv 1505.06798, section 3.2, fit to auxiliary responses).

    Args:
        mask: bool [OH, OW], the positions.
        taps: int64 [T, 2], (dy, dx) from a position times the stride; what lies outside the input is zero.
        strides: Down and across.
        weight: float64 [M, C/group, T], what it begins with.
        bias: [M], likewise.
        goal: What the target is for.
        per_image: Positions of an image that are taken, at random, at most.
        groups: Groups of the convolution.
    """

    def __init__(
        self,
        mask: NDArray[np.bool_],
        taps: NDArray[np.int64],
        strides: tuple[int, int],
        weight: Float,
        bias: NDArray[np.floating],
        goal: Goal,
        per_image: int,
        groups: int = 1,
    ) -> None:
        self.sites = np.argwhere(mask)
        self.taps = taps
        self.strides = np.array(strides)
        self.first = weight.transpose(0, 2, 1).reshape(groups, len(weight) // groups, -1)  # [groups, M/group, T C]
        self.start: Float = self.first
        self.bias: Float = bias.astype(np.float64).reshape(groups, -1)
        self.goal = goal
        self.counted = Goal()
        self.per_image = min(per_image, len(self.sites))
        self.groups = groups
        width = self.first.shape[2]
        self.gram = np.zeros((groups, width, width))
        self.sum = np.zeros((groups, width))
        self.is_new = True  # rows that are counted again, from another start, are the same ones
        self._begin()

    def _begin(self) -> None:
        groups, outputs, width = self.start.shape
        self.rng = np.random.default_rng(0)
        self.rows = self.images = 0
        self.cross = np.zeros((groups, width, outputs))  # with what the start leaves
        self.left_sum = np.zeros((groups, outputs))
        self.squares = self.target_squares = 0.0  # of what the goal lets through of the errors; of the target
        self.target_sum: Float = np.zeros((groups, outputs))

    @property
    def unknowns(self) -> int:
        """Weights of an output."""
        return self.start.shape[2]

    @property
    def error(self) -> float:
        """Mean squared error of what it begins with, as far as the goal lets it through, over the target's variance."""
        spread = self.target_squares - float(np.square(self.target_sum).sum()) / max(self.rows, 1)
        return self.squares / max(spread, 1e-12 * self.target_squares, 1e-300)

    def again(self, weight: Float, bias: Float) -> None:
        """Begin anew from a solution, as `solve` gives it; the same batches are to be added again."""
        self.start = weight.transpose(0, 2, 1).reshape(self.start.shape)
        self.bias = bias.reshape(self.bias.shape)
        self.counted = self.goal
        self.is_new = False
        self._begin()

    def add(
        self,
        x: NDArray[np.floating],
        target: NDArray[np.floating],
        other: NDArray[np.floating] | None = None,
        *,
        only_error: bool = False,
    ) -> None:
        """Count a batch.

        Args:
            x: [N, C, H, W], the layer's input.
            target: [N, M, OH, OW], what it should give, together with `other`.
            other: [N, M, OH, OW], what the network adds to the layer's output.
            only_error: Nobody will `solve` this again.

        Raises:
            PerfonnxError: It gives values that are not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # `solve` looks whether it is finite
            for part in _blocks(len(x), self.per_image * x.shape[1] * len(self.taps)):
                self._add(x[part], target[part], None if other is None else other[part], only_error)

    def _add(
        self,
        x: NDArray[np.floating],
        target: NDArray[np.floating],
        other: NDArray[np.floating] | None,
        only_error: bool,
    ) -> None:
        images, channels, height, width = x.shape
        few = self.per_image < len(self.sites)
        sites = self.rng.permutation(self.sites)[: self.per_image] if few else self.sites
        read = np.zeros((images, len(sites), len(self.taps), channels), np.float32)
        for t, tap in enumerate(self.taps):
            y, across = (sites * self.strides + tap).T
            inside = (y >= 0) & (y < height) & (across >= 0) & (across < width)
            read[:, inside, t] = x[:, :, y[inside], across[inside]].transpose(0, 2, 1)
        rows = images * len(sites)
        grouped = read.reshape(rows, len(self.taps), self.groups, channels // self.groups)
        grouped = grouped.transpose(2, 0, 1, 3).reshape(self.groups, rows, -1)

        def at_sites(values: NDArray[np.floating]) -> Float:
            """[N, M, OH, OW] to [groups, rows, M/group]."""
            taken = values[:, :, sites[:, 0], sites[:, 1]].transpose(0, 2, 1).reshape(rows, self.groups, -1)
            return taken.transpose(1, 0, 2).astype(np.float64)

        wanted = at_sites(target)
        given: Float = grouped @ self.start.transpose(0, 2, 1).astype(np.float32) + self.bias[:, None]
        if other is not None:
            given += at_sites(other)
        through = self.goal.error(wanted, given)
        squares = float(np.square(through).sum())
        if not np.isfinite(squares):
            finite = np.isfinite(np.square(through)).reshape(self.groups, images, -1).all(axis=(0, 2))
            number = self.images + (0 if finite.all() else int(finite.argmin()))
            raise PerfonnxError(f"sample {number} of the calibration data, from 0 on, gives values that are not finite")
        self.rows += rows
        self.images += images
        if not only_error:
            left = through if self.counted == self.goal else self.counted.error(wanted, given)
            turned = grouped.transpose(0, 2, 1)
            if self.is_new:
                self.gram += turned @ grouped
                self.sum += grouped.sum(axis=1, dtype=np.float64)
            self.cross += turned @ left.astype(np.float32)
            self.left_sum += left.sum(axis=1)
        self.squares += squares
        self.target_squares += float(np.square(wanted).sum())
        self.target_sum += wanted.sum(axis=1)

    def solve(self, ridge: float) -> tuple[Float, Float]:
        """The best weights [M, C/group, T] and biases [M].

        Raises:
            PerfonnxError: Nothing was counted, or the values were not finite.
        """
        if not self.rows or not (np.isfinite(self.gram).all() and np.isfinite(self.cross).all()):
            raise PerfonnxError("the calibration data gives values that are not finite" if self.rows else "no data")
        count, width = self.rows, self.unknowns
        gram = self.gram - self.sum[:, :, None] * self.sum[:, None] / count
        cross = self.cross - self.sum[:, :, None] * self.left_sum[:, None] / count
        scale = np.trace(gram, axis1=1, axis2=2) / width
        strength = np.where(scale > 0, ridge * scale, 1.0)[:, None, None]
        cross = cross - strength * (self.start - self.first).transpose(0, 2, 1)
        change = np.linalg.solve(gram + strength * np.eye(width), cross)
        bias = self.bias + (self.left_sum - np.einsum("gk,gkm->gm", self.sum, change)) / count
        weight = self.start + change.transpose(0, 2, 1)
        weight = weight.reshape(-1, len(self.taps), width // len(self.taps)).transpose(0, 2, 1)
        return weight, bias.reshape(-1)


def nearest_sites(mask: NDArray[np.bool_], count: int) -> NDArray[np.int32]:
    """The nearest sites of every position, nearest first; ties to the first in row-major order.

    Args:
        mask: bool [H, W] with a site.
        count: How many; fewer where the mask has fewer.

    Returns:
        int32 [H*W, count], flat positions.
    """
    from scipy import spatial

    sites = np.argwhere(mask)
    count = min(count, len(sites))
    positions = np.argwhere(np.ones_like(mask))
    # Enough candidates that the sites at the distance of the last one chosen are among them, on lattices too.
    _, found = spatial.cKDTree(sites).query(positions, k=min(len(sites), count + 12))
    found = found.reshape(len(positions), -1)
    squares = ((positions[:, None] - sites[found]) ** 2).sum(axis=2)
    order = np.lexsort((found, squares), axis=1)[:, :count]
    numbers = np.flatnonzero(mask).astype(np.int32)
    return numbers[np.take_along_axis(found, order, axis=1)]


def _interpolated(values: Float, source: NDArray[np.int32], weight: NDArray[np.float32] | None) -> Float:
    """[N, C, H*W] read through `source` [Q, K]: [N, C, Q]."""
    result = np.zeros((*values.shape[:2], len(source)))
    for k in range(source.shape[1]):
        factor = (source[:, k] >= 0).astype(np.float64)
        if weight is not None:
            factor = factor * weight[:, k]
        result += values[:, :, np.maximum(source[:, k], 0)] * factor
    return result


def _flat(values: NDArray[np.floating]) -> Float:
    return values.reshape(*values.shape[:2], -1).astype(np.float64)


def _blocks(images: int, values_per_image: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(values_per_image, 1))
    for start in range(0, images, step):
        yield slice(start, start + step)
