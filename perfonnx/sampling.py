"""A mask with its interpolation: which output positions are computed, and what the others are made from.

Vocabulary: a *site* is an output position that is computed; the *mask* is true at sites; the *rate* is the share of
positions skipped (perforated convolution, Figurnov et al., arXiv 1504.08362, section 3). Positions are flat and
row-major, `y * W + x`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from perfonnx.errors import PerfonnxError

BoolArray: TypeAlias = npt.NDArray[np.bool_]
Int32Array: TypeAlias = npt.NDArray[np.int32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
Float32Array: TypeAlias = npt.NDArray[np.float32]

_Scalar = TypeVar("_Scalar", bound=np.generic)

Ties: TypeAlias = Literal["first", "random"]

INTERPOLATIONS = ("nearest", "zero", "barycentric")
"""Names that `interpolate` knows."""

FILL = -1
"""Entry of a source table that stands for the fill value instead of a site."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """A mask and the table that makes every output position from sites.

    The value of position q is `sum_k weight[q, k] * (fill if source[q, k] < 0 else V[source[q, k]])` with V the
    convolution at the sites. The arrays are copied and made read-only. A mask with no site is legal: everything is
    then the fill value.

    Attributes:
        mask: bool [H, W], true at sites.
        source: int32 [H*W, K], flat positions of sites; -1 is the fill value. A site is made from itself alone.
            For K > 1 an unused entry is -1 with weight 0.
        weight: float32 [H*W, K], or None for all ones; always None for K = 1.
        interpolation: name of the interpolation that made the table; informative, the tables decide.

    Raises:
        PerfonnxError: an array has the wrong rank, type or size, an index is out of range or names a position that is
            no site, a site is not made from itself with weight 1, or a weight is not finite.
    """

    mask: BoolArray
    source: Int32Array
    weight: Float32Array | None
    interpolation: str

    def __post_init__(self) -> None:
        """Freezes private copies of the arrays, then checks them."""
        object.__setattr__(self, "mask", _frozen(_checked_mask(self.mask)))
        if not isinstance(self.source, np.ndarray) or self.source.dtype != np.int32 or self.source.ndim != 2:
            raise PerfonnxError(f"sampling: source is {_kind(self.source)}; make it an int32 array [H*W, K]")
        object.__setattr__(self, "source", _frozen(self.source))
        if self.weight is not None:
            if not isinstance(self.weight, np.ndarray) or self.weight.dtype != np.float32:
                raise PerfonnxError(f"sampling: weight is {_kind(self.weight)}; make it a float32 array [H*W, K]")
            object.__setattr__(self, "weight", _frozen(self.weight))
        if not isinstance(self.interpolation, str) or not self.interpolation:
            raise PerfonnxError(f"sampling: interpolation is {self.interpolation!r}; give its name")
        self._check_source()
        self._check_weight()
        self._check_sites()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the output map, (H, W)."""
        height, width = self.mask.shape
        return height, width

    @cached_property
    def sites(self) -> Int32Array:
        """Flat positions of the sites in raster order, int32 [P]."""
        return _frozen(np.flatnonzero(self.mask).astype(np.int32))

    @cached_property
    def rows(self) -> Int32Array:
        """`source` with each position replaced by its number among the sites, int32 [H*W, K]; -1 stays -1."""
        number = np.cumsum(self.mask.ravel(), dtype=np.int32) - np.int32(1)
        return _frozen(np.where(self.source < 0, np.int32(FILL), number[self.source]))

    @property
    def rate(self) -> float:
        """Share of positions really skipped, 1 - P / (H*W)."""
        return 1.0 - len(self.sites) / self.mask.size

    def _check_source(self) -> None:
        positions = self.mask.size
        if self.source.shape[0] != positions or self.source.shape[1] < 1:
            raise PerfonnxError(
                f"sampling: source has shape {list(self.source.shape)}; a mask of {list(self.mask.shape)} needs "
                f"[{positions}, K] with K >= 1"
            )
        low, high = int(self.source.min()), int(self.source.max())
        if low < FILL or high >= positions:
            wrong = low if low < FILL else high
            raise PerfonnxError(f"sampling: source holds {wrong}; entries lie in -1..{positions - 1}")
        stray = (self.source >= 0) & ~self.mask.ravel()[self.source]
        if stray.any():
            q, k = np.argwhere(stray)[0]
            raise PerfonnxError(
                f"sampling: source[{q}, {k}] = {self.source[q, k]} is no site; use positions where the mask is true"
            )

    def _check_weight(self) -> None:
        if self.weight is None:
            return
        if self.weight.shape != self.source.shape:
            raise PerfonnxError(
                f"sampling: weight has shape {list(self.weight.shape)}; it needs that of source, "
                f"{list(self.source.shape)}"
            )
        if self.source.shape[1] == 1:
            raise PerfonnxError("sampling: weight is given although K = 1; leave it out")
        if not np.isfinite(self.weight).all():
            raise PerfonnxError("sampling: weight holds NaN or infinity; all weights must be finite")
        if (self.weight[self.source < 0] != 0).any():
            raise PerfonnxError("sampling: an entry -1 of source has a weight; for K > 1 an unused entry weighs 0")

    def _check_sites(self) -> None:
        source = self.source[self.sites]
        own = source == self.sites[:, np.newaxis]
        weight = (source >= 0).astype(np.float32) if self.weight is None else self.weight[self.sites]
        total = np.where(own, weight, np.float32(0)).sum(axis=1)
        wrong = (total != 1) | (~own & (weight != 0)).any(axis=1)
        if wrong.any():
            site = int(self.sites[np.argmax(wrong)])
            raise PerfonnxError(f"sampling: site {site} is not made from itself alone; give it source {site}, weight 1")


Vector: TypeAlias = tuple[int, int]
"""(dy, dx)."""


@dataclass(frozen=True)
class Sublattice:
    """A regular subset of positions that is a grid in its own basis: `offset + u * basis[0] + v * basis[1]`.

    Attributes:
        basis: Two independent vectors.
        offset: A position of it; the same lattice with another offset is a coset.

    Raises:
        PerfonnxError: the vectors lie on one line.
    """

    basis: tuple[Vector, Vector]
    offset: Vector = (0, 0)

    def __post_init__(self) -> None:
        """Check the basis."""
        if self._determinant == 0:
            raise PerfonnxError(f"sublattice: the vectors {self.basis[0]} and {self.basis[1]} lie on one line")

    @property
    def _determinant(self) -> int:
        (a, b), (c, d) = self.basis
        return a * d - b * c

    @property
    def index(self) -> int:
        """How many cosets fill the map: one of so many positions lies on the lattice."""
        return abs(self._determinant)

    def at(self, offset: Vector) -> "Sublattice":
        """The coset that holds a position."""
        return replace(self, offset=offset)

    def coordinates(self, positions: npt.ArrayLike) -> Int64Array:
        """Where positions of the lattice lie in its own grid, int64 [..., 2] of int [..., 2].

        Raises:
            PerfonnxError: a position does not lie on it.
        """
        scaled = self._scaled(positions)
        if (scaled % self._determinant).any():
            raise PerfonnxError("sublattice: a position does not lie on it")
        return np.asarray(scaled // self._determinant, np.int64)

    def fractions(self, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Where any positions lie in its grid, between its own too: float64 [..., 2] of numbers [..., 2]."""
        return self._scaled(positions) / self._determinant

    def positions(self, coordinates: npt.ArrayLike) -> Int64Array:
        """The positions at coordinates of its own grid, int64 [..., 2] of int [..., 2]."""
        return np.asarray(coordinates, np.int64) @ np.array(self.basis, np.int64) + np.array(self.offset, np.int64)

    def contains(self, positions: npt.ArrayLike) -> BoolArray:
        """Which positions lie on it, bool [...] of int [..., 2]."""
        inside: BoolArray = (self._scaled(positions) % self._determinant == 0).all(axis=-1)
        return inside

    def mask(self, shape: tuple[int, int]) -> BoolArray:
        """The positions of a map that lie on it, bool [H, W]."""
        return self.contains(np.moveaxis(np.indices(shape), 0, -1))

    def residues(self, positions: npt.ArrayLike) -> Int64Array:
        """What tells cosets apart, int64 [..., 2] of int [..., 2]: the same for all positions of one."""
        return np.asarray(self._scaled(positions) % self.index, np.int64)

    def _scaled(self, positions: npt.ArrayLike) -> npt.NDArray[Any]:
        """Coordinates times the determinant, whole numbers of whole numbers."""
        y, x = np.moveaxis(np.asarray(positions) - np.array(self.offset, np.int64), -1, 0)
        (a, b), (c, d) = self.basis
        return np.stack([y * d - x * c, x * a - y * b], axis=-1)


QUINCUNX = Sublattice(((1, 1), (1, -1)))
"""Every other position, those of even y + x: a square grid turned by 45 degrees."""

SQUARE = Sublattice(((2, 0), (0, 2)))
"""Every second position of every second row."""


@dataclass(frozen=True)
class Cosets:
    """A union of cosets of one sublattice.

    Attributes:
        parts: The cosets, which differ in their offsets alone.
    """

    parts: tuple[Sublattice, ...]

    @classmethod
    def of(cls, lattice: Sublattice, *offsets: Vector) -> "Cosets":
        """Those that hold these positions."""
        return cls(tuple(lattice.at(offset) for offset in offsets))

    @property
    def lattice(self) -> Sublattice:
        """One of the cosets."""
        return self.parts[0]

    @property
    def share(self) -> float:
        """The share of positions that lie on it."""
        return len(self.parts) / self.lattice.index

    def contains(self, positions: npt.ArrayLike) -> BoolArray:
        """Which positions lie on it, bool [...] of int [..., 2]."""
        inside: BoolArray = np.logical_or.reduce([part.contains(positions) for part in self.parts])
        return inside

    def mask(self, shape: tuple[int, int], offset: Vector = (0, 0)) -> BoolArray:
        """The positions of a map that lie on it where it is moved by an offset, bool [H, W]."""
        return self.contains(np.moveaxis(np.indices(shape), 0, -1) - np.array(offset))


HONEYCOMB = Cosets.of(Sublattice(((1, -1), (1, 2))), (0, 0), (0, 1))
"""Two of three positions: without every third diagonal. Each has three neighbours among (0, 1), (1, 0), (1, 1) and
their opposites, as in a honeycomb, which is what a triangular lattice becomes without one of three positions."""

DEPLETED = Cosets.of(Sublattice(((1, -2), (2, 1))), (0, 0), (0, 1), (0, 2), (0, 3))
"""Four of five positions, all but those a knight's moves apart: the 1/5-depleted square lattice."""


def spanned(steps: Iterable[Vector], offset: Vector = (0, 0)) -> Sublattice:
    """The coarsest lattice on which all of these steps lead from its positions to others, in a reduced basis.

    Where the steps all lie on one line, a short vector across completes the basis. The basis is reduced as by Lagrange
    and Gauss: no vector of the lattice is shorter than the first, none that is independent of it than the second.
    """
    a, b, c = 0, 0, 0  # the lattice so far: (a, b) and (0, c)
    for step in steps:
        y, x = (int(v) for v in step)
        while y:
            a, b, y, x = y, x, a % y, b - a // y * x
        c = math.gcd(c, x)
    if a == 0:
        a, c = 1, max(c, 1)
    c = max(c, 1)
    short, long = sorted([(a, b % c), (0, c)], key=_length)
    while True:
        times = round((short[0] * long[0] + short[1] * long[1]) / _length(short))
        long = (long[0] - times * short[0], long[1] - times * short[1])
        if _length(long) >= _length(short):
            return Sublattice((short, long), offset)
        short, long = long, short


def _length(vector: Vector) -> int:
    """Squared."""
    return vector[0] ** 2 + vector[1] ** 2


def interpolate(
    mask: BoolArray,
    interpolation: str = "nearest",
    *,
    ties: Ties = "first",
    rng: np.random.Generator | None = None,
) -> Sampling:
    """Gives every skipped position its sources.

    - `nearest`: the site at the smallest Euclidean distance on the grid (K = 1).
    - `zero`: the fill value (K = 1).
    - `barycentric`: inside the convex hull of the sites, the corners of the surrounding Delaunay triangle with the
      point's barycentric weights (K = 3); outside the hull, the nearest site. A lattice (all crossings of some rows
      and some columns) has no unique triangulation: its cells are split along the diagonal from top left to bottom
      right. Sites on one line have no triangle: everything is then outside, and so nearest.

    Source: Figurnov et al., arXiv 1504.08362, section 3 (nearest, barycentric). The authors break ties at random.

    Args:
        mask: bool [H, W], true at sites.
        interpolation: one of `INTERPOLATIONS`.
        ties: between sites at the same distance, take the `first` in row-major order, or one at `random`.
        rng: where random ties come from; needed for `ties="random"`.

    Returns:
        The sampling; the same arguments give the same bytes.

    Raises:
        PerfonnxError: the mask is not bool [H, W], it has no site (unless `zero`), a name is unknown, or random ties
            come without a generator.
    """
    mask = _checked_mask(mask)
    if interpolation not in INTERPOLATIONS:
        raise PerfonnxError(f"unknown interpolation {interpolation!r}; choose from {', '.join(INTERPOLATIONS)}")
    if ties not in get_args(Ties):
        raise PerfonnxError(f"unknown tie rule {ties!r}; choose from {', '.join(get_args(Ties))}")
    if ties == "random" and rng is None:
        raise PerfonnxError("random ties need a generator; pass rng=numpy.random.default_rng(seed)")
    if interpolation == "zero":
        flat = np.arange(mask.size, dtype=np.int32)
        return Sampling(mask, np.where(mask.ravel(), flat, np.int32(FILL))[:, np.newaxis], None, interpolation)
    if not mask.any():
        raise PerfonnxError(f"the mask has no site, so {interpolation} has nothing to copy; use interpolation zero")
    nearest = _nearest(mask, rng if ties == "random" else None)
    if interpolation == "nearest":
        return Sampling(mask, nearest[:, np.newaxis], None, interpolation)
    source = np.full((mask.size, 3), FILL, dtype=np.int32)
    weight = np.zeros((mask.size, 3), dtype=np.float32)
    source[:, 0] = nearest
    weight[:, 0] = 1
    queries, corners, shares = _triangles(mask)
    source[queries], weight[queries] = _canonical(corners, shares)
    return Sampling(mask, source, weight, interpolation)


def _nearest(mask: BoolArray, rng: np.random.Generator | None) -> Int32Array:
    """Nearest site of every position, int32 [H*W]; ties to the first in row-major order, or drawn from `rng`.

    A distance transform finds the exact squared distance to the nearest site, but breaks ties as it likes. So for
    each position the offsets of exactly that length are tried in row-major order until one hits a site. There are few
    of them (three on average, about a hundred at worst), whatever the number of sites.
    """
    height, width = mask.shape
    flat = np.arange(mask.size, dtype=np.int64)
    y, x = np.divmod(flat, width)
    from scipy import ndimage  # here, not above: it takes longer to import than the rest of the package

    found_y, found_x = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    squared = (found_y.ravel().astype(np.int64) - y) ** 2 + (found_x.ravel().astype(np.int64) - x) ** 2
    lengths, which = np.unique(squared, return_inverse=True)
    reach = math.isqrt(int(lengths[-1]))
    reach_y, reach_x = min(reach, height - 1), min(reach, width - 1)
    offset_y, offset_x = (
        axis.ravel() for axis in np.mgrid[-reach_y : reach_y + 1, -reach_x : reach_x + 1].astype(np.int64)
    )
    length = offset_y**2 + offset_x**2
    order = np.argsort(length, kind="stable")  # stable: offsets of one length stay in row-major order
    offset_y, offset_x, length = offset_y[order], offset_x[order], length[order]
    cursor = np.searchsorted(length, lengths, side="left")[which]
    end = np.searchsorted(length, lengths, side="right")[which]

    nearest = flat.copy()
    hits = np.zeros(mask.size, dtype=np.int64)
    todo = np.flatnonzero(squared)
    while todo.size:
        at = cursor[todo]
        site_y, site_x = y[todo] + offset_y[at], x[todo] + offset_x[at]
        inside = (site_y >= 0) & (site_y < height) & (site_x >= 0) & (site_x < width)
        site = np.where(inside, site_y * width + site_x, 0)
        hit = inside & mask.ravel()[site]
        hits[todo[hit]] += 1
        # Reservoir sampling: the k-th of the tied sites replaces the earlier ones with probability 1/k.
        take = hit if rng is None else hit & (rng.random(todo.size) * hits[todo] < 1)
        nearest[todo[take]] = site[take]
        cursor[todo] += 1
        todo = todo[~hit] if rng is None else todo[cursor[todo] < end[todo]]
    return nearest.astype(np.int32)


def _triangles(mask: BoolArray) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Skipped positions inside the hull of the sites, with their triangles.

    Returns:
        queries [Q] flat positions; corners [Q, 3] flat positions of sites; shares [Q, 3] integers >= 0, the
        barycentric weights up to their common sum (twice the triangle's area).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size * columns.size == np.count_nonzero(mask):
        return _lattice_triangles(mask, rows, columns)
    sites = np.argwhere(mask)
    spread = sites - sites[0]
    if not (spread[1, 0] * spread[:, 1] - spread[1, 1] * spread[:, 0]).any():
        return _no_triangles()
    return _delaunay_triangles(mask, sites)


def _no_triangles() -> tuple[Int64Array, Int64Array, Int64Array]:
    return np.empty(0, np.int64), np.empty((0, 3), np.int64), np.empty((0, 3), np.int64)


def _lattice_triangles(
    mask: BoolArray, rows: Int64Array, columns: Int64Array
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Triangles of the lattice `rows` x `columns`, its cells cut from top left to bottom right; see `_triangles`."""
    if rows.size < 2 or columns.size < 2:
        return _no_triangles()
    width = mask.shape[1]
    hull = ~mask
    hull[: rows[0]] = hull[rows[-1] + 1 :] = False
    hull[:, : columns[0]] = hull[:, columns[-1] + 1 :] = False
    y, x = np.nonzero(hull)
    row = np.minimum(np.searchsorted(rows, y, side="right") - 1, rows.size - 2)
    column = np.minimum(np.searchsorted(columns, x, side="right") - 1, columns.size - 2)
    top, bottom, left, right = rows[row], rows[row + 1], columns[column], columns[column + 1]
    cell_height, cell_width = bottom - top, right - left
    down, across = (y - top) * cell_width, (x - left) * cell_height
    upper = across >= down
    corners = np.stack([top * width + left, np.where(upper, top * width + right, bottom * width + left)], axis=1)
    corners = np.column_stack([corners, bottom * width + right])
    far, near = np.minimum(down, across), np.maximum(down, across)
    shares = np.stack([cell_height * cell_width - near, near - far, far], axis=1)
    return y * width + x, corners, shares


def _delaunay_triangles(mask: BoolArray, sites: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Delaunay triangles of sites [P, 2] that are not all on one line; see `_triangles`.

    Qhull works in floating point and leaves flat triangles where sites lie on one line or circle, as they often do on
    a grid. It only proposes: a triangle counts when it contains the position in exact integer arithmetic.
    """
    width = mask.shape[1]
    from scipy import spatial

    triangulation = spatial.Delaunay(sites)
    simplices = triangulation.simplices.astype(np.int64)
    backward = _cross(*(sites[simplices[:, k]] for k in range(3))) < 0
    simplices[backward] = simplices[backward][:, [0, 2, 1]]
    queries = np.argwhere(~mask)
    queries = queries[_in_hull(queries, mask)]
    chosen = triangulation.find_simplex(queries).astype(np.int64)
    shares = _shares(queries, sites[simplices[chosen]])
    for missed in np.flatnonzero((chosen < 0) | ~_contains(shares)):
        every = _shares(queries[missed], sites[simplices])
        chosen[missed] = np.argmax(_contains(every))
        shares[missed] = every[chosen[missed]]
    found = _contains(shares)
    corners = sites[simplices[chosen[found]]] @ np.array([width, 1], dtype=np.int64)
    return queries[found] @ np.array([width, 1], dtype=np.int64), corners, shares[found]


def _cross(a: Int64Array, b: Int64Array, c: Int64Array) -> Int64Array:
    """Twice the signed area of the triangles a, b, c, each [..., 2]; positive in one sense of rotation."""
    one, two = b - a, c - a
    area: Int64Array = one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]
    return area


def _shares(query: Int64Array, triangle: Int64Array) -> Int64Array:
    """Barycentric weights, times twice the area, of query [..., 2] in triangle [..., 3, 2]."""
    a, b, c = (triangle[..., k, :] for k in range(3))
    return np.stack([_cross(query, b, c), _cross(a, query, c), _cross(a, b, query)], axis=-1)


def _contains(shares: Int64Array) -> BoolArray:
    """True where the triangle is not flat and the point lies in it or on its border."""
    contains: BoolArray = (shares >= 0).all(axis=-1) & (shares.sum(axis=-1) > 0)
    return contains


def _in_hull(points: Int64Array, mask: BoolArray) -> BoolArray:
    """True for the points [Q, 2] inside or on the convex hull of the sites, in exact integer arithmetic."""
    rows = np.flatnonzero(mask.any(axis=1))
    left = np.argmax(mask[rows], axis=1)
    right = mask.shape[1] - 1 - np.argmax(mask[rows, ::-1], axis=1)
    inside: BoolArray = (points[:, 0] >= rows[0]) & (points[:, 0] <= rows[-1])
    # The hull is the region between two chains over the rows: the left border bends right, the right one bends left.
    for border, side in ((left, 1), (right, -1)):
        chain: list[tuple[int, int]] = []
        for y, x in zip(rows.tolist(), border.tolist(), strict=True):
            while len(chain) > 1 and side * _turn(chain[-2], chain[-1], (y, x)) <= 0:
                chain.pop()
            chain.append((y, x))
        corners = np.array(chain, dtype=np.int64)
        if len(chain) == 1:
            continue
        edge = np.clip(np.searchsorted(corners[:, 0], points[:, 0], side="right") - 1, 0, len(chain) - 2)
        inside &= side * _cross(corners[edge], corners[edge + 1], points) >= 0
    return inside


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    """`_cross` of three points in plain integers."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _canonical(corners: Int64Array, shares: Int64Array) -> tuple[Int32Array, Float32Array]:
    """Table entries of triangles: used corners by position, then unused ones as (-1, 0).

    A point on an edge thus gets the same entries from both triangles that share the edge.
    """
    source = np.where(shares > 0, corners, FILL)
    order = np.argsort(np.where(source < 0, np.iinfo(np.int64).max, source), axis=1)
    weight = shares / shares.sum(axis=1, keepdims=True)
    return (
        np.take_along_axis(source, order, axis=1).astype(np.int32),
        np.take_along_axis(weight, order, axis=1).astype(np.float32),
    )


def _checked_mask(mask: object) -> BoolArray:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2:
        raise PerfonnxError(f"mask: found {_kind(mask)}; make it a bool array [H, W]")
    if not 0 < mask.size <= np.iinfo(np.int32).max:
        raise PerfonnxError(f"mask: shape {list(mask.shape)} has {mask.size} positions; it needs 1 to 2**31 - 1")
    return mask


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


def _frozen(array: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    """A contiguous read-only copy."""
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy
