"""Masks that repeat: a square, checkerboard or sheared lattice of sites or of holes, and stripes, with a random phase.

No two skipped positions are further from a site than they must be, and all are surrounded alike, which interpolation
and its repair profit from.
"""

import numpy as np

from perfonnx.masks.grid import spread
from perfonnx.masks.request import Mask, MaskRequest, Shape, exact_rate, named

SHEARED = ((3, 1), (5, 2), (10, 3))
"""Lattices of one position in n: n, and the step to the side from each row to the next. Those of 3 are diagonals, those
of 5 and 10 squares that stand askew."""


@named("lattice", place=60)
def lattice_mask(request: MaskRequest) -> Mask:
    """The lattice that comes closest to the asked rate.

    Lattice n holds one position in 2**n: n = 1 is the checkerboard, n = 2 every second position of every second row,
    n = 3 the checkerboard of these, and so on; three more hold one of 3, 5 and 10. These are the sites, or the holes:
    rate 0.2 leaves out one of five, 1/3 every third diagonal, 0.5 every other position, 0.75 keeps one of four.

    Returns:
        bool [H, W] with at least one site.
    """
    rows, columns = request.shape
    origin = int(request.rng.integers(rows)), int(request.rng.integers(columns))
    wanted = float(1 - exact_rate(request.rate)) * rows * columns
    best = np.ones(request.shape, dtype=np.bool_)
    last = int(np.log2(4 * max(rows, columns) ** 2)) + 1
    lattices = [_sheared(request.shape, step, shear, origin) for step, shear in SHEARED]
    lattices += [_lattice(request.shape, number, origin) for number in range(1, last + 1)]
    for points in lattices:
        for mask in (points, ~points):
            if mask.any() and abs(int(mask.sum()) - wanted) < abs(int(best.sum()) - wanted):
                best = mask
    return best


def _lattice(shape: Shape, number: int, origin: tuple[int, int]) -> Mask:
    """One position in 2**number, among them the origin."""
    step = 2 ** (number // 2)
    y, x = (np.arange(size) - start for size, start in zip(shape, origin, strict=True))
    mask = np.logical_and.outer(y % step == 0, x % step == 0)
    if number % 2:
        mask &= np.add.outer(y // step, x // step) % 2 == 0
    return np.asarray(mask, dtype=np.bool_)


def _sheared(shape: Shape, step: int, shear: int, origin: tuple[int, int]) -> Mask:
    """Every `step`-th position of each row, `shear` further to the left in each next row, among them the origin."""
    y, x = (np.arange(size) - start for size, start in zip(shape, origin, strict=True))
    return np.asarray(np.add.outer(shear * y, x) % step == 0, dtype=np.bool_)


@named("stripes-rows", place=70)
def row_stripes_mask(request: MaskRequest) -> Mask:
    """Whole rows, evenly spread with a random phase; as many as come closest to the asked rate."""
    return _stripes(request, 0)


@named("stripes-columns", place=80)
def column_stripes_mask(request: MaskRequest) -> Mask:
    """Whole columns, likewise."""
    return _stripes(request, 1)


def _stripes(request: MaskRequest, axis: int) -> Mask:
    length = request.shape[axis]
    count = max(1, round((1 - exact_rate(request.rate)) * length))
    kept = np.zeros(length, dtype=np.bool_)
    kept[spread(length, count, request.rng)] = True
    wide = kept[:, np.newaxis] if axis == 0 else kept
    return np.array(np.broadcast_to(wide, request.shape))
