"""Grid masks: all crossings of some rows and some columns, evenly spread, with a random phase per axis.

Figurnov et al., arXiv 1504.08362, section 3 and the authors' released program. With K of H rows, the rows are
`ceil(H / K * (i + u))` for i = 0..K-1, counted from 1, with u uniform in (0, 1).
"""

import math
from fractions import Fraction

import numpy as np

from perfonnx.errors import PerfonnxError
from perfonnx.masks.request import Mask, MaskRequest, Shape, count_sites, exact_rate, named

ANISOTROPY_COST = 0.15
"""Relative error of the number of sites that a spacing e times wider on one axis than on the other is worth."""

_PHASES = 2**32


@named("grid", place=20)
def grid_mask(request: MaskRequest) -> Mask:
    """Grid that comes close to the asked rate on a map of any shape; see `grid_size`.

    Returns:
        bool [H, W]. The number of sites is a product of two whole numbers, so the rate is met as closely as that
        allows; half the map in both directions (rate 0.75 on even sides) is met exactly.
    """
    return _lattice(request, *grid_size(request.shape, request.rate))


@named("grid-square", place=30)
def grid_square_mask(request: MaskRequest) -> Mask:
    """The authors' grid: floor(sqrt((1 - rate) * H * W)) rows and as many columns, on square maps.

    Returns:
        bool [H, W] with at most the asked number of sites: the real rate is often well above the asked one.

    Raises:
        PerfonnxError: the map is not square.
    """
    height, width = request.shape
    if height != width:
        raise PerfonnxError(f"mask grid-square: the map is {height}x{width}, not square; use mask grid")
    side = math.isqrt(count_sites(request.shape, request.rate))
    return _lattice(request, side, side)


def grid_size(shape: Shape, rate: float) -> tuple[int, int]:
    """How many rows and columns a grid gets.

    With t = (1 - rate) * H * W, at least 1, the pair (rows, columns) that minimises

        |rows * columns - t| / t  +  ANISOTROPY_COST * ln(spacing ratio)**2

    where the spacing ratio compares the distance of rows with that of columns, relative to the most even one that
    the map can have: on a thin map the short side may be full, and that is not held against it. So the rate is met
    closely, but not for the price of all rows and few columns when nearly as close a grid is nearly even. Equal costs
    go to fewer rows, whose sites lie closer in memory.

    Returns:
        Number of rows, 1..H, and of columns, 1..W.
    """
    height, width = shape
    target = max(float((1 - exact_rate(rate)) * height * width), 1.0)
    even_rows = min(max(math.sqrt(target * height / width), 1.0, target / width), float(height), target)
    even_ratio = even_rows / (target / even_rows)

    def cost(rows: int, columns: int) -> float:
        error = abs(rows * columns - target) / target
        # Rounded, so that grids that mirror each other cost the same on every machine.
        return round(error + ANISOTROPY_COST * math.log(rows / columns / even_ratio) ** 2, 9)

    best = (1, 1)
    for rows in range(1, height + 1):
        for columns in {min(max(math.floor(target / rows) + more, 1), width) for more in (0, 1)}:
            if cost(rows, columns) < cost(*best):
                best = rows, columns
    return best


def _lattice(request: MaskRequest, rows: int, columns: int) -> Mask:
    height, width = request.shape
    mask = np.zeros(request.shape, dtype=np.bool_)
    chosen_rows = spread(height, rows, request.rng)
    mask[np.ix_(chosen_rows, spread(width, columns, request.rng))] = True
    return mask


def spread(length: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` distinct indices in 0..length-1, evenly spread with a random phase."""
    phase = Fraction(int(rng.integers(1, _PHASES)), _PHASES)
    # Exact: a float that rounds up past a whole number would repeat a row or leave the map.
    return [math.ceil(Fraction(length, count) * (i + phase)) - 1 for i in range(count)]
