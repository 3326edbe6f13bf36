"""Layers that live on a lattice: computed in its own coordinates, where a wide kernel with zero taps is a small one.

A row of the result is made from `source[site * stride + tap]` for all taps. Where the taps whose weights are not all
zero, and the sites, lead from one position of a lattice to others of it only, what is read is a grid of its own: a map
of the lattice's positions, with a kernel of stride 1. The rows that are read stay what they were, so this is exact
whatever they stand for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops.common import ConvAttributes
from perfonnx.passes.estimates import TILES
from perfonnx.passes.rules.rule import Table
from perfonnx.sampling import Sublattice, spanned

MOST_HOLES = 16
"""The map of a lattice's positions is a rectangle in its basis: at most so many times as large as the map itself."""

_FAR = 1 << 32
"""Further than any coordinates lie apart."""

Points = NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """A layer on rows: the map that it reads and what it computes there.

    Attributes:
        weight: [M, C/group, kh, kw].
        attributes: Its geometry.
        source: int32 [H*W], the row of each position of its input, -1: zeros.
        shape: (H, W).
        sites: int32 [P], flat output positions.
    """

    weight: NDArray[Any]
    attributes: ConvAttributes
    source: Table
    shape: tuple[int, int]
    sites: Table


def on_own_grid(layer: Reading) -> Reading | None:
    """The same layer with the smallest kernel that holds its taps, in the coordinates of the lattice that it reads.

    Returns:
        What gives the same rows in the same order, up to the order of sums; None where it would gain nothing.
    """
    a = layer.attributes
    used = used_taps(layer.weight)
    if a.kernel_shape == (1, 1) or not used.size or not layer.sites.size:
        return None
    taps = used * a.dilations - a.pads[:2]
    columns = a.output_shape(*layer.shape)[1]
    sites: Points = np.stack(np.divmod(layer.sites.astype(np.int64), columns), axis=1) * np.array(a.strides)
    steps = [*np.unique(taps - taps[0], axis=0), *np.unique(np.diff(sites, axis=0), axis=0)]
    lattice = spanned(steps, _pair(taps[0] + sites[0]))
    if lattice.index > 1:
        lattice = min(_bases(lattice), key=lambda basis: (_extent(basis, taps), _extent(basis, sites)))
        if _extent(lattice, taps) <= np.prod(np.ptp(used, axis=0) + 1):
            found = _in_basis(layer, lattice, used, taps, sites)
            if math.prod(found.shape) <= MOST_HOLES * math.prod(layer.shape):
                return found
    return _trimmed(layer, used)


def used_taps(weight: NDArray[Any]) -> Points:
    """The taps [T, 2] of weights [M, C/group, kh, kw] that are not all zero."""
    return np.argwhere(weight.any(axis=(0, 1)))


def _bases(lattice: Sublattice) -> Iterator[Sublattice]:
    """A lattice in its own basis and in those whose vectors are sums and differences of these, the plainest first."""
    (a, b), (c, d) = lattice.basis
    for i, m, j, k in sorted(itertools.product((1, 0, -1), repeat=4), key=np.count_nonzero):
        if abs(i * m - j * k) == 1:
            yield replace(lattice, basis=((i * a + j * c, i * b + j * d), (k * a + m * c, k * b + m * d)))


def _extent(lattice: Sublattice, points: Points) -> int:
    """Of the smallest rectangle in a lattice's coordinates that holds points on one coset of it."""
    return int(np.prod(np.ptp(lattice.at(_pair(points[0])).coordinates(points), axis=0) + 1))


def _in_basis(layer: Reading, lattice: Sublattice, used: Points, taps: Points, sites: Points) -> Reading:
    """The layer in a lattice's coordinates.

    Args:
        layer: As it is.
        lattice: It holds all that is read.
        used: [T, 2], where in the kernel the taps are whose weights are not all zero.
        taps: [T, 2], where they read from a site's first input position on.
        sites: [P, 2], the sites' first input positions.
    """
    at_tap = lattice.coordinates(taps + sites[0])
    at_site = lattice.at(_pair(sites[0])).coordinates(sites)
    first_tap, kernel = at_tap.min(axis=0), np.ptp(at_tap, axis=0) + 1
    first_site = _first_tile(at_site, _pair(kernel))
    extent = at_site.max(axis=0) - first_site + 1
    weight = np.zeros((*layer.weight.shape[:2], *kernel), layer.weight.dtype)
    down, across = (at_tap - first_tap).T
    weight[:, :, down, across] = layer.weight[:, :, used[:, 0], used[:, 1]]
    shape = extent + kernel - 1
    read = lattice.positions(np.moveaxis(np.indices(shape), 0, -1) + first_tap + first_site)
    inside = ((read >= 0) & (read < layer.shape)).all(axis=-1)
    flat = np.where(inside, read @ np.array([layer.shape[1], 1]), 0)
    return Reading(
        weight,
        ConvAttributes(_pair(kernel), group=layer.attributes.group),
        np.where(inside, layer.source[flat], -1).reshape(-1).astype(np.int32),
        _pair(shape),
        ((at_site - first_site) @ np.array([extent[1], 1])).astype(np.int32),
    )


def _first_tile(sites: Points, kernel: tuple[int, int]) -> Points:
    """Where the engine's tiles had better begin, [2], so that as few as can be hold sites, [P, 2].

    They lie from a map's first position on; at the slanted borders of a lattice they are part-empty.
    """
    first = sites.min(axis=0)
    edges = next((tiles.tile for tiles in TILES if tiles.serves(kernel)), (1, 1))
    begins = [first - shift for shift in np.ndindex(edges)]
    return min(begins, key=lambda begin: len(np.unique((sites - begin) // edges @ np.array([_FAR, 1]))))


def _trimmed(layer: Reading, used: Points) -> Reading | None:
    """Without the lines of taps at the kernel's borders whose weights are all zero."""
    a = layer.attributes
    first, last = used.min(axis=0), used.max(axis=0)
    kernel = _pair(last - first + 1)
    before = np.array(a.pads[:2]) - first * a.dilations
    behind = np.array(a.pads[2:]) - (np.array(a.kernel_shape) - 1 - last) * a.dilations
    if kernel == a.kernel_shape or min(*before, *behind) < 0:
        return None
    attributes = replace(a, kernel_shape=kernel, pads=(*_pair(before), *_pair(behind)))
    weight = layer.weight[:, :, first[0] : last[0] + 1, first[1] : last[1] + 1]
    return replace(layer, weight=np.ascontiguousarray(weight), attributes=attributes)


def _pair(values: Sequence[int] | Points) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second
