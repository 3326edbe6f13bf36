"""Gates of radius-adaptive layers, without training.

A gate tells from the pixel itself whether the layer can do without its ring there.

With alpha the gate, W' the centre tap and R the ring, a layer is (1 + gain alpha) W' x + B + alpha (R x + b). It is
fitted on a sample of pixels, by turns:

- the *gate*, linear in the pixel, by least squares on how much of the squared error opening it takes away; its bias is
  set so that the asked share of the sample is open, its slope so that few pixels are half open;
- the rest, by least squares with that gate, in one of three forms of the same cost: *biases* alone (an open pixel is
  what it was, but for its bias); a *gain*, with which closed pixels get the centre scaled, W' = W / (1 + gain); or
  another *centre*, W' = W + D, which also changes open pixels.

The form that leaves the smallest error is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.fitting import RIDGE, Goal

Float = NDArray[np.float64]

FORMS = ("biases", "gain", "centre")
"""What is fitted beside the gate."""

HALF_OPEN = 0.05
"""Share of the open pixels whose alpha is between 0 and 1."""

STEEPEST = 1e4
"""Largest slope of alpha over the gate's score, whose standard deviation on the sample is 1."""

ROUNDS = 2
"""How often gate and rest are fitted by turns."""

_STEPS = 2  # least squares steps for the rest in a round; each lowers the error, since the goal is a convex set
_SMALLEST_SCALE = 0.2
_LIMIT = 1 << 22  # values in a sample


class PixelSample:
    """A random sample of pixels, as large as fits: inputs, outputs and targets, one row per pixel."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self.limit = limit
        self.share = 1.0
        self.rng = np.random.default_rng(0)
        self.parts: list[tuple[NDArray[np.float32], ...]] = []

    def add(self, *maps: NDArray[np.floating]) -> None:
        """Count a batch of maps [N, C_i, H, W]; the same number of maps each time."""
        images, _, height, width = maps[0].shape
        chosen = np.flatnonzero(self.rng.random(images * height * width) < self.share)
        image, position = np.divmod(chosen, height * width)
        flat = (m.reshape(images, m.shape[1], -1) for m in maps)
        self.parts.append(tuple(m[image, :, position].astype(np.float32) for m in flat))
        while sum(array.size for part in self.parts for array in part) > self.limit and self.count > 1:
            self.share /= 2
            self.parts = [self._half(part) for part in self.parts]

    @property
    def count(self) -> int:
        """Pixels in it."""
        return sum(len(part[0]) for part in self.parts)

    def _half(self, part: tuple[NDArray[np.float32], ...]) -> tuple[NDArray[np.float32], ...]:
        kept = self.rng.random(len(part[0])) < 0.5
        return tuple(array[kept] for array in part)

    def columns(self) -> tuple[Float, ...]:
        """The maps as [pixels, C_i] each.

        Raises:
            PerfonnxError: There are none, or values that are not finite.
        """
        if not self.count:
            raise PerfonnxError("the calibration data has no pixels to fit a gate on")
        result = tuple(np.concatenate(arrays).astype(np.float64) for arrays in zip(*self.parts, strict=True))
        if not all(np.isfinite(array).all() for array in result):
            raise PerfonnxError("the calibration data gives values that are not finite")
        return result


@dataclass(frozen=True)
class GateSolution:
    """A gate, and what else changes in its layer.

    Attributes:
        weight: float64 [C], the gate's.
        bias: The gate's.
        share: Share of the sample that is open.
        closed_bias: float64 [M], added to the layer's bias.
        open_bias: float64 [M], what an open pixel gets in its place.
        gain: See the module.
        centre: float64 [M, C/group], added to the centre tap, or None.
        form: One of `FORMS`.
        before: Squared error over squared deviation of the target from its channels' means, if all pixels were closed
            and nothing else were changed.
        after: The same with this solution.
    """

    weight: Float
    bias: float
    share: float
    closed_bias: Float
    open_bias: Float
    gain: float
    centre: Float | None
    form: str
    before: float
    after: float


@dataclass
class _Rest:
    """All but the gate: two biases [M] each, the factor of the centre at closed pixels, and D [M, C/group]."""

    closed: Float
    opened: Float
    scale: float
    centre: Float


class GateFit:
    """Fits one layer's gate.

    Args:
        x: [pixels, C], the input under the centre tap.
        result: [pixels, M], the layer's output with an open gate.
        target: [pixels, M], what it should be, together with `other`.
        other: [pixels, M], what the network adds to the output, or None.
        tap: [M, C/group], the centre tap.
        bias: [M], the layer's bias.
        groups: Groups of the convolution.
        goal: What the target is for.
        ridge: Strength of regularization, relative to the mean diagonal of the normal matrix.
    """

    def __init__(
        self,
        x: Float,
        result: Float,
        target: Float,
        other: Float | None,
        tap: Float,
        bias: Float,
        *,
        groups: int = 1,
        goal: Goal | None = None,
        ridge: float = RIDGE,
    ) -> None:
        self.x, self.result, self.target, self.other = x, result, target, other
        self.tap, self.bias, self.groups = tap, bias, groups
        self.goal, self.ridge = goal or Goal(), ridge
        self.centre = self._pointwise(tap)
        self.spread = max(float(np.square(target - target.mean(axis=0)).sum()), 1e-300)

    def solve(self, share: float, weight: Float | None = None) -> GateSolution:
        """The best gate that opens the asked share of pixels.

        Args:
            share: In [0, 1].
            weight: [C], a direction to be taken for the gate instead of the fitted one.
        """
        before = self._relative(self._error(self.centre + self.bias))
        found = [self._alternate(form, share, weight, before) for form in FORMS]
        return min(found, key=lambda solution: solution.after)

    def _alternate(self, form: str, share: float, given: Float | None, before: float) -> GateSolution:
        zeros = np.zeros(len(self.bias))
        rest = _Rest(zeros, zeros, 1.0, np.zeros_like(self.tap))
        rest = self._refit("biases", rest, np.zeros(len(self.x)))
        best: GateSolution | None = None
        for _ in range(ROUNDS):
            weight = self._direction(rest, share) if given is None else given
            weight, bias, opened = set_bias(self.x, weight, share)
            alpha = np.clip(self.x @ weight + bias, 0, 1)
            for _ in range(_STEPS):
                rest = self._refit(form, rest, alpha)
            after = self._relative(self._error(self._output(rest, alpha)))
            if best is None or after < best.after:
                centre = rest.centre if form == "centre" else None
                gain = 1 / rest.scale - 1
                best = GateSolution(weight, bias, opened, rest.closed, rest.opened, gain, centre, form, before, after)
        assert best is not None
        return best

    def _output(self, rest: _Rest, alpha: Float) -> Float:
        a = alpha[:, None]
        closed = rest.scale * self.centre + self.bias + rest.closed
        return (1 - a) * closed + a * (self.result + rest.opened) + self._pointwise(rest.centre)

    def _error(self, output: Float) -> Float:
        return self.goal.error(self.target, output if self.other is None else output + self.other)

    def _relative(self, error: Float) -> float:
        return float(np.square(error).sum()) / self.spread

    def _direction(self, rest: _Rest, share: float) -> Float:
        """The gate's weight: of a few least squares fits the one whose open pixels take away most of the error."""
        ones = np.ones(len(self.x))
        closed, opened = (np.square(self._error(self._output(rest, a))).sum(axis=1) for a in (0 * ones, ones))
        benefit = closed - opened
        wishes = (
            benefit,
            np.sign(benefit) * np.sqrt(np.abs(benefit)),
            (benefit > np.quantile(benefit, 1 - share)).astype(np.float64),
        )
        x = self.x - self.x.mean(axis=0)
        gram = _ridged(x.T @ x, self.ridge)
        candidates = [np.linalg.solve(gram, x.T @ (wish - wish.mean())) for wish in wishes]

        def gained(weight: Float) -> float:
            weight, bias, _ = set_bias(self.x, weight, share)
            return float(benefit[self.x @ weight + bias > 0].sum())

        return max(candidates, key=gained)

    def _refit(self, form: str, rest: _Rest, alpha: Float) -> _Rest:
        """One least squares step for all but the gate."""
        error = self._error(self._output(rest, alpha))
        sides = np.stack([1 - alpha, alpha], axis=1)
        gram = _ridged(sides.T @ sides, 1e-9)

        def beside(values: Float) -> Float:
            """What the two biases do not explain."""
            return values - sides @ np.linalg.solve(gram, sides.T @ values)

        scale, centre = rest.scale, rest.centre
        if form == "gain":
            closed = (1 - alpha)[:, None] * self.centre
            part = beside(closed)
            step = float((part * error).sum()) / max(float(np.square(part).sum()), 1e-300)
            step = max(step, _SMALLEST_SCALE - scale)
            scale, error = scale + step, error - step * closed
        elif form == "centre":
            change = np.empty_like(centre)
            for inputs, outputs in self._split():
                part = beside(self.x[:, inputs])
                change[outputs] = np.linalg.solve(_ridged(part.T @ part, self.ridge), part.T @ error[:, outputs]).T
            centre, error = centre + change, error - self._pointwise(change)
        both = np.linalg.solve(gram, sides.T @ error)
        return _Rest(rest.closed + both[0], rest.opened + both[1], scale, centre)

    def _pointwise(self, weight: Float) -> Float:
        """The 1x1 convolution of x with [M, C/group]."""
        return np.concatenate([self.x[:, inputs] @ weight[outputs].T for inputs, outputs in self._split()], axis=1)

    def _split(self) -> Iterator[tuple[slice, slice]]:
        """Input and output channels of each group."""
        c, m = (n // self.groups for n in (self.x.shape[1], len(self.bias)))
        for group in range(self.groups):
            yield slice(group * c, (group + 1) * c), slice(group * m, (group + 1) * m)


def set_bias(x: Float, weight: Float, share: float) -> tuple[Float, float, float]:
    """Scale a gate and give it the bias with which the asked share of pixels is open.

    Where many pixels have the same score, the nearest share that can be had is taken.

    Args:
        x: [pixels, C].
        weight: [C].
        share: In [0, 1].

    Returns:
        Weight [C], bias, and the share of x for which x . weight + bias > 0.
    """
    score = x @ weight
    spread = float(score.std())
    if spread > 0:
        weight, score = weight / spread, score / spread
    values, counts = np.unique(np.round(score, 6), return_counts=True)  # rounding must not open or close pixels
    opened = np.append(counts[::-1].cumsum()[::-1], 0)  # by the number of values that stay closed
    closed = int(np.abs(opened - share * len(x)).argmin())
    borders = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2, [values[-1] + 1]])
    border = float(borders[closed])
    full = np.quantile(score[score > border], HALF_OPEN) if opened[closed] else border + 1
    slope = float(min(1 / max(full - border, 1e-12), STEEPEST))
    return weight * slope, -border * slope, float(opened[closed]) / len(x)


def _ridged(gram: Float, ridge: float) -> Float:
    """With `ridge` times its mean diagonal added to the diagonal, so that it can be solved."""
    return gram + np.eye(len(gram)) * max(ridge * float(np.trace(gram)) / len(gram), 1e-300)
