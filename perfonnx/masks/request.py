"""What a mask function is asked, and the counting that all masks share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from perfonnx.errors import PerfonnxError

Mask: TypeAlias = npt.NDArray[np.bool_]
Shape: TypeAlias = tuple[int, int]

_SLACK = Fraction(1, 10**6)  # of one position: far above float rounding of a rate, far below anything meant


@dataclass(frozen=True)
class PoolWindow:
    """The window of a pooling layer, in ONNX's terms; `auto_pad` is resolved by the caller.

    Attributes:
        kernel: height and width of the window.
        strides: step down and across.
        pads: top, left, bottom, right.
        dilations: distance between taps, down and across.
        ceil_mode: round the output size up instead of down.

    Raises:
        PerfonnxError: a size is not a whole number in range.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        """Checks lengths and ranges."""
        for name, length, least in (("kernel", 2, 1), ("strides", 2, 1), ("pads", 4, 0), ("dilations", 2, 1)):
            value = getattr(self, name)
            if len(value) != length or any(int(v) != v or v < least for v in value):
                raise PerfonnxError(f"pooling window: {name} is {value!r}; it needs {length} integers >= {least}")

    def output_shape(self, shape: Shape) -> Shape:
        """Size of the pooled map, by ONNX's rule.

        Args:
            shape: height and width of the map that is pooled.

        Returns:
            Height and width of the result. With `ceil_mode`, windows that would start in the padding after the map
            are left out.

        Raises:
            PerfonnxError: the window is larger than the padded map.
        """
        return self._output_length(shape, 0), self._output_length(shape, 1)

    def rounded_down(self, shape: Shape) -> PoolWindow:
        """The same windows of a map of this size without `ceil_mode`: what reaches behind the map is padding.

        Runtimes differ in what `ceil_mode` makes of a window that starts behind the map; nothing is left to them.

        Raises:
            PerfonnxError: the window is larger than the padded map.
        """
        if not self.ceil_mode:
            return self
        pads = list(self.pads)
        for axis, length in enumerate(self.output_shape(shape)):
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            reached = (length - 1) * self.strides[axis] + extent - pads[axis] - shape[axis]
            pads[axis + 2] = min(max(pads[axis + 2], reached), reached + self.strides[axis] - 1)
        return PoolWindow(self.kernel, self.strides, (pads[0], pads[1], pads[2], pads[3]), self.dilations)

    def _output_length(self, shape: Shape, axis: int) -> int:
        before, after = self.pads[axis], self.pads[axis + 2]
        stride = self.strides[axis]
        room = shape[axis] + before + after - ((self.kernel[axis] - 1) * self.dilations[axis] + 1)
        if room < 0:
            raise PerfonnxError(
                f"pooling window: kernel {list(self.kernel)} with dilations {list(self.dilations)} is larger than the "
                f"map {list(shape)} with pads {list(self.pads)}"
            )
        if not self.ceil_mode:
            return room // stride + 1
        length = -(-room // stride) + 1
        return length - 1 if (length - 1) * stride >= shape[axis] + before else length


@dataclass(frozen=True)
class MaskRequest:
    """What a mask function needs to know.

    Attributes:
        shape: height and width of the layer's output map.
        rate: share of positions to skip, in [0, 1).
        rng: where all random choices come from.
        pool: the pooling layer that reads this map, if one does; wanted by `pooling-structure`.
        scores: float [H_in, W_in], one random map at the model's input resolution for all layers; wanted by
            `propagated`.
        impact: float [H, W], how much each position matters to the loss; wanted by `impact`.

    Raises:
        PerfonnxError: the shape or the rate is out of range.
    """

    shape: Shape
    rate: float
    rng: np.random.Generator
    pool: PoolWindow | None = None
    scores: npt.NDArray[np.floating] | None = None
    impact: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        """Checks shape and rate, so that mask functions need not."""
        check_shape(self.shape)
        exact_rate(self.rate)


MaskFunction: TypeAlias = Callable[[MaskRequest], Mask]
"""From a request to a bool array [H, W] with at least one site."""


@dataclass(frozen=True)
class NamedMask:
    """A mask function, the name a user types for it, and its place where masks are listed, the lowest first."""

    name: str
    place: int
    function: MaskFunction


NAMED: list[NamedMask] = []
"""What `named` has made known so far."""


def named(name: str, *, place: int) -> Callable[[MaskFunction], MaskFunction]:
    """Makes the mask function below it known under a name; see `NamedMask`.

    Raises:
        ValueError: another mask has this name.
    """
    if any(mask.name == name for mask in NAMED):
        raise ValueError(f"two masks are called {name!r}")

    def known(function: MaskFunction) -> MaskFunction:
        NAMED.append(NamedMask(name, place, function))
        return function

    return known


def check_shape(shape: Shape) -> None:
    """Refuses shapes that are not two whole numbers >= 1.

    Raises:
        PerfonnxError: the shape is something else.
    """
    if len(shape) != 2 or any(int(size) != size or size < 1 for size in shape):
        raise PerfonnxError(f"mask: shape is {shape!r}; it needs height and width, both >= 1")


def exact_rate(rate: float) -> Fraction:
    """The rate as the decimal fraction that a person typed: 0.1 is 1/10, not the nearest double.

    Raises:
        PerfonnxError: the rate is not a number in [0, 1).
    """
    try:
        value = float(rate)
    except (TypeError, ValueError):
        raise PerfonnxError(f"rate: {rate!r} is no number; give the share to skip, in [0, 1)") from None
    if not 0 <= value < 1:
        raise PerfonnxError(f"rate: {value} is out of range; give the share to skip, in [0, 1)")
    return Fraction(str(value))


def count_sites(shape: Shape, rate: float) -> int:
    """Number of sites: floor((1 - rate) * H * W), at least 1 (Figurnov et al., arXiv 1504.08362, section 3).

    Exact, with a millionth of a position of slack, so that 1 - 1/3 of 9 positions leaves 3 and not 2.
    """
    positions = shape[0] * shape[1]
    return max(1, math.floor((1 - exact_rate(rate)) * positions + _SLACK))


def top_sites(weights: npt.NDArray[np.generic], count: int, rng: np.random.Generator) -> Mask:
    """Mask of the `count` largest weights [H, W]; equal weights are ordered by seeded noise."""
    flat = weights.ravel()
    best = np.lexsort((rng.random(flat.size), flat))[flat.size - count :]
    mask = np.zeros(flat.size, dtype=np.bool_)
    mask[best] = True
    return mask.reshape(weights.shape)
