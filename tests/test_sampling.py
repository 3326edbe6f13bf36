"""Samplings: interpolation against brute force, and the checks on tables that come from elsewhere."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from perfonnx.errors import PerfonnxError
from perfonnx.masks import MaskRequest, make_mask
from perfonnx.sampling import (
    DEPLETED,
    HONEYCOMB,
    INTERPOLATIONS,
    QUINCUNX,
    SQUARE,
    Sampling,
    Sublattice,
    interpolate,
    spanned,
)

BoolArray = npt.NDArray[np.bool_]

MASK = np.array([[True, False, True]])

MASKS = st.one_of(
    arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)),
    st.builds(  # sparse ones and dense ones, which the line above rarely draws
        lambda height, width, keep, seed: np.random.default_rng(seed).random((height, width)) < keep,
        st.integers(1, 25),
        st.integers(1, 25),
        st.sampled_from([0.01, 0.05, 0.2, 0.5, 0.9, 1.0]),
        st.integers(0, 2**32),
    ),
).filter(np.any)


def distances(mask: BoolArray) -> npt.NDArray[np.int64]:
    """Squared distance from every position to every site, int64 [H*W, P]."""
    positions = np.argwhere(np.ones_like(mask))
    distance: npt.NDArray[np.int64] = ((positions[:, None] - np.argwhere(mask)[None]) ** 2).sum(axis=2)
    return distance


def in_hull(mask: BoolArray) -> BoolArray:
    """Positions in the convex hull of the sites, bool [H*W]; none if the sites lie on one line.

    A point is outside exactly if a line through two sites has it strictly on one side and every site on the other.
    """
    sites, positions = np.argwhere(mask), np.argwhere(np.ones_like(mask))

    def sides(points: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        edge = (sites[None] - sites[:, None])[:, :, None]
        to = points[None, None] - sites[:, None, None]
        side: npt.NDArray[np.int64] = edge[..., 0] * to[..., 1] - edge[..., 1] * to[..., 0]
        return side.reshape(-1, len(points))

    of_sites = sides(sites)
    if not of_sites.any():
        return np.zeros(mask.size, np.bool_)
    border = (of_sites >= 0).all(axis=1) & (of_sites > 0).any(axis=1)
    return np.asarray((sides(positions)[border] >= 0).all(axis=0))


def resolve(sampling: Sampling, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What the table makes of values [H*W] that are known at the sites."""
    taken = np.where(sampling.source < 0, 0.0, values[sampling.source])
    weight = 1.0 if sampling.weight is None else sampling.weight.astype(np.float64)
    result: npt.NDArray[np.float64] = (taken * weight).sum(axis=1)
    return result


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_nearest_is_the_first_of_the_closest(mask: BoolArray) -> None:
    sampling = interpolate(mask)
    expected = np.flatnonzero(mask)[distances(mask).argmin(axis=1)]  # argmin takes the first of equals
    np.testing.assert_array_equal(sampling.source[:, 0], expected)
    assert sampling.weight is None
    assert sampling.interpolation == "nearest"


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(0, 2**32))
def test_random_ties_are_among_the_closest(mask: BoolArray, seed: int) -> None:
    sampling = interpolate(mask, ties="random", rng=np.random.default_rng(seed))
    again = interpolate(mask, ties="random", rng=np.random.default_rng(seed))
    distance = distances(mask)
    np.testing.assert_array_equal(distance[np.arange(mask.size), sampling.rows[:, 0]], distance.min(axis=1))
    assert sampling.source.tobytes() == again.source.tobytes()


def test_random_ties_are_fair() -> None:
    mask = np.zeros((3, 3), np.bool_)
    mask[::2, ::2] = True
    rng = np.random.default_rng(0)
    centre = [int(interpolate(mask, ties="random", rng=rng).source[4, 0]) for _ in range(1000)]
    assert sorted(set(centre)) == [0, 2, 6, 8]
    assert np.unique(centre, return_counts=True)[1].min() > 200


@pytest.mark.parametrize("shape", [(720, 720), (1, 100_000), (9, 2000)])
def test_nearest_on_large_maps(shape: tuple[int, int]) -> None:
    """Against independent slow paths that large maps allow: a few sites, all distances."""
    mask = np.zeros(shape, np.bool_)
    sites = np.sort(np.random.default_rng(1).choice(mask.size, 5, replace=False))
    mask.ravel()[sites] = True
    y, x = np.divmod(np.arange(mask.size), shape[1])
    distance = [(y - site // shape[1]) ** 2 + (x - site % shape[1]) ** 2 for site in sites]
    np.testing.assert_array_equal(interpolate(mask).source[:, 0], sites[np.argmin(distance, axis=0)])


@settings(max_examples=50, deadline=None)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_zero_fills_everything_but_the_sites(mask: BoolArray) -> None:
    sampling = interpolate(mask, "zero")
    flat = np.arange(mask.size)
    np.testing.assert_array_equal(sampling.source[:, 0], np.where(mask.ravel(), flat, -1))
    assert sampling.weight is None


@settings(max_examples=150, deadline=None)
@given(MASKS.filter(lambda mask: np.count_nonzero(mask) <= 40))
def test_barycentric_is_exact_for_affine_maps_inside_and_nearest_outside(mask: BoolArray) -> None:
    sampling = interpolate(mask, "barycentric")
    assert sampling.weight is not None
    assert sampling.weight.min() >= 0
    np.testing.assert_allclose(sampling.weight.sum(axis=1), 1, rtol=1e-6)
    inside = in_hull(mask)
    y, x = np.divmod(np.arange(mask.size), mask.shape[1])
    plane = 3.0 * y - 2.0 * x + 7.0
    np.testing.assert_allclose(resolve(sampling, plane)[inside], plane[inside], atol=1e-4)
    outside = ~inside & ~mask.ravel()
    np.testing.assert_array_equal(sampling.source[outside, 0], interpolate(mask).source[outside, 0])
    assert (sampling.source[outside, 1:] == -1).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 40), st.integers(2, 40), st.floats(0, 0.9), st.sampled_from(["uniform", "grid"]), st.integers(0, 9)
)
def test_barycentric_on_made_masks(height: int, width: int, rate: float, name: str, seed: int) -> None:
    mask = make_mask(name, MaskRequest((height, width), rate, np.random.default_rng(seed)))
    sampling = interpolate(mask, "barycentric")
    assert sampling.weight is not None
    y, x = np.divmod(np.arange(mask.size), width)
    plane = 3.0 * y - 2.0 * x + 7.0
    several = (sampling.source[:, 1] >= 0) | mask.ravel()
    np.testing.assert_allclose(resolve(sampling, plane)[several], plane[several], atol=1e-4)
    assert (sampling.weight[sampling.source < 0] == 0).all()
    assert (sampling.weight[sampling.source >= 0] > 0).all()


def test_barycentric_splits_lattice_cells_from_top_left_to_bottom_right() -> None:
    mask = np.zeros((4, 4), np.bool_)
    mask[::3, ::3] = True
    sampling = interpolate(mask, "barycentric")
    assert sampling.weight is not None
    third = 1 / 3
    for position, source, weight in [
        (1, [0, 3, -1], [2 * third, third, 0]),  # on the top edge
        (5, [0, 15, -1], [2 * third, third, 0]),  # on the diagonal
        (6, [0, 3, 15], [third, third, third]),  # above it
        (9, [0, 12, 15], [third, third, third]),  # below it
    ]:
        assert sampling.source[position].tolist() == source
        np.testing.assert_allclose(sampling.weight[position], weight, rtol=1e-6)


@pytest.mark.parametrize("sites", [[(2, 2)], [(0, 0), (4, 4)], [(0, 1), (1, 2), (3, 4)], [(3, 0), (3, 2), (3, 4)]])
def test_barycentric_without_a_triangle_is_nearest(sites: list[tuple[int, int]]) -> None:
    mask = np.zeros((5, 6), np.bool_)
    mask[tuple(zip(*sites, strict=True))] = True
    sampling = interpolate(mask, "barycentric")
    np.testing.assert_array_equal(sampling.source[:, 0], interpolate(mask).source[:, 0])
    assert (sampling.source[:, 1:] == -1).all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@settings(max_examples=50, deadline=None)
@given(mask=MASKS)
def test_what_every_sampling_holds(interpolation: Any, mask: BoolArray) -> None:
    before = mask.copy()
    sampling, again = interpolate(mask, interpolation), interpolate(mask, interpolation)
    sites = np.flatnonzero(mask)
    assert sampling.shape == mask.shape
    assert sampling.rate == 1 - sites.size / mask.size
    np.testing.assert_array_equal(sampling.sites, sites)
    np.testing.assert_array_equal(sampling.source[sites, 0], sites)
    np.testing.assert_array_equal(np.where(sampling.rows < 0, -1, sites[sampling.rows]), sampling.source)
    assert sampling.sites.dtype == sampling.source.dtype == sampling.rows.dtype == np.int32
    assert sampling.source.tobytes() == again.source.tobytes()
    values = np.random.default_rng(0).random(mask.size)
    np.testing.assert_array_equal(resolve(sampling, values)[sites], values[sites])
    for array in (sampling.mask, sampling.source, sampling.sites, sampling.rows):
        assert not array.flags.writeable
    np.testing.assert_array_equal(mask, before)
    assert mask.flags.writeable


def test_a_mask_without_sites() -> None:
    mask = np.zeros((3, 4), np.bool_)
    sampling = interpolate(mask, "zero")
    assert sampling.rate == 1
    assert sampling.sites.shape == (0,)
    assert (sampling.rows == -1).all()
    for interpolation in ("nearest", "barycentric"):
        with pytest.raises(PerfonnxError, match=r"no site.*use interpolation zero"):
            interpolate(mask, interpolation)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interpolate(MASK, "linear"), "unknown interpolation 'linear'; choose from nearest"),  # type: ignore[arg-type]
        (lambda: interpolate(MASK, ties="last"), "unknown tie rule 'last'"),  # type: ignore[arg-type]
        (lambda: interpolate(MASK, ties="random"), "random ties need a generator"),
        (lambda: interpolate(np.ones((2, 2))), r"mask: found float64 \[2, 2\]"),  # type: ignore[arg-type]
        (lambda: interpolate(np.ones(4, np.bool_)), r"mask: found bool \[4\]"),
        (lambda: interpolate(np.ones((0, 4), np.bool_)), r"mask: shape \[0, 4\] has 0 positions"),
        (lambda: interpolate([[True]]), "mask: found list"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(call: Callable[[], Sampling], message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        call()


def table(*rows: list[int]) -> npt.NDArray[np.int32]:
    return np.array(rows, np.int32)


def weights(*rows: list[float]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32)


def test_a_table_from_elsewhere() -> None:
    sampling = Sampling(MASK, table([0, -1], [0, 2], [-1, 2]), weights([1, 0], [1.5, -0.5], [0, 1]), "learned")
    assert sampling.rows.tolist() == [[0, -1], [0, 1], [-1, 1]]
    without_weight = Sampling(MASK, table([0, -1], [0, 2], [2, -1]), None, "sum")
    assert without_weight.weight is None


@pytest.mark.parametrize(
    ("source", "weight", "message"),
    [
        (table([0], [2]), None, r"source has shape \[2, 1\]"),
        (np.zeros((3, 0), np.int32), None, r"source has shape \[3, 0\]"),
        (np.zeros(3, np.int32), None, r"source is int32 \[3\]"),
        (np.zeros((3, 1), np.int64), None, r"source is int64"),
        (table([0], [3], [2]), None, r"source holds 3; entries lie in -1..2"),
        (table([0], [-2], [2]), None, r"source holds -2"),
        (table([0], [1], [2]), None, r"source\[1, 0\] = 1 is no site"),
        (table([2], [0], [2]), None, "site 0 is not made from itself alone"),
        (table([0], [0], [-1]), None, "site 2 is not made from itself alone"),
        (table([0, 2], [0, 2], [2, -1]), None, "site 0 is not made from itself alone"),
        (table([0], [0], [2]), weights([1], [1], [1]), "weight is given although K = 1"),
        (table([0, -1], [0, 2], [2, -1]), weights([1, 0], [0.5, np.nan], [1, 0]), "weight holds NaN"),
        (table([0, -1], [0, 2], [2, -1]), weights([1, 0], [0.5, np.inf], [1, 0]), "weight holds NaN"),
        (table([0, -1], [0, 2], [2, -1]), weights([0.5, 0], [1, 1], [1, 0]), "site 0 is not made"),
        (table([0, 2], [0, 2], [2, -1]), weights([1, 0.5], [1, 1], [1, 0]), "site 0 is not made"),
        (table([0, -1], [0, -1], [2, -1]), weights([1, 0], [1, 0.5], [1, 0]), "an entry -1 of source has a weight"),
        (table([0, -1], [0, 2], [2, -1]), weights([1, 0]), r"weight has shape \[1, 2\]"),
        (table([0, -1], [0, 2], [2, -1]), np.ones((3, 2)), "weight is float64"),
    ],
)
def test_bad_tables(source: Any, weight: Any, message: str) -> None:
    with pytest.raises(PerfonnxError, match=f"^sampling: {message}") as caught:
        Sampling(MASK, source, weight, "nearest")
    assert "\n" not in str(caught.value)


# --- sublattices -----------------------------------------------------------------------------------------------------

VECTORS = st.tuples(st.integers(-6, 6), st.integers(-6, 6))
LATTICES = st.builds(
    Sublattice,
    st.tuples(VECTORS, VECTORS).filter(lambda basis: basis[0][0] * basis[1][1] != basis[0][1] * basis[1][0]),
    VECTORS,
)


def test_the_lattices_that_have_names() -> None:
    y, x = np.indices((5, 6))
    np.testing.assert_array_equal(QUINCUNX.mask((5, 6)), (y + x) % 2 == 0)
    np.testing.assert_array_equal(QUINCUNX.at((0, 1)).mask((5, 6)), (y + x) % 2 == 1)
    np.testing.assert_array_equal(SQUARE.at((1, 0)).mask((5, 6)), (y % 2 == 1) & (x % 2 == 0))
    assert (QUINCUNX.index, SQUARE.index) == (2, 4)


def test_the_unions_that_have_names() -> None:
    y, x = np.indices((9, 10))
    np.testing.assert_array_equal(HONEYCOMB.mask((9, 10)), (y + x) % 3 != 2)
    np.testing.assert_array_equal(DEPLETED.mask((9, 10), (1, 2)), (x - 2 + 2 * (y - 1)) % 5 != 4)
    assert (HONEYCOMB.share, DEPLETED.share) == (2 / 3, 4 / 5)
    around = np.array([(0, 1), (1, 0), (1, 1)])
    for site in np.argwhere(HONEYCOMB.mask((3, 3))):
        assert HONEYCOMB.contains(site + np.concatenate([around, -around])).sum() == 3


@given(LATTICES, st.lists(VECTORS, min_size=1))
def test_positions_of_one_coset_have_one_residue(lattice: Sublattice, coordinates: list[tuple[int, int]]) -> None:
    positions = [*lattice.positions(coordinates).tolist(), *np.ndindex(lattice.index, lattice.index)]
    cosets = {tuple(residue) for residue in lattice.residues(positions).tolist()}
    assert len(cosets) == lattice.index
    assert all((lattice.residues(position) == 0).all() == lattice.contains(position) for position in positions)


@given(LATTICES)
def test_cosets_of_a_lattice_fill_the_map(lattice: Sublattice) -> None:
    size = lattice.index
    cosets = {lattice.at((y, x)).mask((size, size)).tobytes() for y in range(size) for x in range(size)}
    assert len(cosets) == size
    total = sum(np.frombuffer(mask, np.bool_).astype(np.int64) for mask in cosets)
    assert (total == 1).all()


@given(LATTICES, st.lists(VECTORS, min_size=1))
def test_coordinates_of_positions(lattice: Sublattice, coordinates: list[tuple[int, int]]) -> None:
    positions = lattice.positions(coordinates)
    assert lattice.contains(positions).all()
    np.testing.assert_array_equal(lattice.coordinates(positions), coordinates)
    half = (np.array(lattice.basis[0]) + lattice.basis[1]) / 2
    np.testing.assert_allclose(lattice.fractions(positions + half), np.array(coordinates) + 0.5)
    if lattice.index > 1:
        others = [p for p in np.ndindex(lattice.index, lattice.index) if not lattice.contains(p)]
        with pytest.raises(PerfonnxError, match="does not lie on it"):
            lattice.coordinates([*positions, others[0]])


@given(st.lists(VECTORS, max_size=6), VECTORS)
def test_the_lattice_that_steps_span(steps: list[tuple[int, int]], offset: tuple[int, int]) -> None:
    lattice = spanned(steps, offset)
    assert lattice.contains(np.add(offset, [(0, 0), *steps])).all()
    minors = [a * d - b * c for a, b in steps for c, d in steps]
    if any(minors):  # they are no multiples of the vectors of a coarser one
        assert lattice.index == math.gcd(*minors)
    short, long = (np.array(vector) for vector in lattice.basis)
    assert short @ short <= long @ long
    assert 2 * abs(short @ long) <= short @ short


def test_vectors_on_one_line_are_no_basis() -> None:
    with pytest.raises(PerfonnxError, match="lie on one line"):
        Sublattice(((1, 2), (2, 4)))
