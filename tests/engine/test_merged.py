"""Merged taps against numpy: behind interpolations, resizes and fills, with every instruction set."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx import _engine
from tests.engine.reference import (
    NO_ACTIVATION,
    Geometry,
    activate,
    conv,
    map_of,
    nearest_source,
    picked,
    rows_of,
)
from tests.processes import assert_same_on_any_number_of_processors, run_python

ISAS = _engine.available_isas()
PADS = (1, 1, 1, 1)


def _resized(height: int, width: int, down: int, across: int) -> np.ndarray:
    """The source of a map that is larger than its rows by whole factors."""
    y, x = np.divmod(np.arange(height * width), width)
    return (y // down * -(-width // across) + x // across).astype(np.int32)


def _numbered(source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A source that names positions as one that names rows, -1 where it is no site."""
    row = np.where(mask.ravel(), np.cumsum(mask) - 1, -1)
    return np.where(source < 0, -1, row[source]).astype(np.int32).ravel()


def _source(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = size
    mask = np.zeros(size, bool)
    mask[rng.integers(2) :: 2, rng.integers(2) :: 2] = True
    if kind == "grid":
        return _numbered(nearest_source(mask), mask)
    if kind == "checkerboard, zeros":
        mask = np.indices(size).sum(axis=0) % 2 == 0
        return _numbered(np.arange(mask.size), mask)
    if kind == "resized":
        return _resized(height, width, *rng.integers(1, 5, 2))
    return rng.integers(-1, 4, height * width).astype(np.int32)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 40),
    group=st.integers(1, 3),
    images=st.integers(0, 3),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    keep=st.sampled_from([0.2, 0.9, 1.0]),
    rows=st.sampled_from(["grid", "checkerboard, zeros", "resized", "few rows anywhere"]),
    adds=st.sampled_from(["nothing", "rows", "rows of one image", "all rows"]),
    activation=st.sampled_from([NO_ACTIVATION, (0.0, -1e30, 1e30), (0.2, -1.0, 2.0)]),
    sloped=st.booleans(),
    isa=st.sampled_from(ISAS),
)
def test_any_layer(
    seed: int,
    inputs: int,
    outputs: int,
    group: int,
    images: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    keep: float,
    rows: str,
    adds: str,
    activation: tuple[float, float, float],
    sloped: bool,
    isa: str,
) -> None:
    rng = np.random.default_rng(seed)
    geometry = Geometry(kernel, strides, pads, dilations)
    inputs, outputs = inputs * group, outputs * group
    in_source = _source(rows, size, rng)
    s = rng.standard_normal((images, max(in_source.max(initial=0) + 1, 1), inputs)).astype(np.float32)
    w = rng.standard_normal((outputs, inputs // group, *kernel)).astype(np.float32)
    b = rng.standard_normal(outputs).astype(np.float32)
    out = geometry.output_size(*size)
    sites = np.flatnonzero(rng.random(out[0] * out[1]) < keep).astype(np.int32)
    if rng.random() < 0.3:
        rng.shuffle(sites)
    linear = rows_of(conv(map_of(s, in_source, size), w, geometry, group) + b[:, None, None], sites)
    z, z_source = None, None
    if adds != "nothing":
        count = len(sites) if adds == "all rows" else 5
        z = rng.standard_normal((1 if adds == "rows of one image" else images, count, outputs)).astype(np.float32)
        z_source = np.arange(count) if adds == "all rows" else rng.integers(-1, 5, len(sites))
        z_source = z_source.astype(np.int32)
        linear = linear + picked(z, z_source)
    slope = rng.choice(np.array([-1, 0, 0.25, 1], np.float32), outputs) if sloped else None
    engine = _engine.SampledConv(
        w,
        b,
        in_shape=size,
        in_source=in_source,
        sites=sites,
        adds=z is not None,
        z_source=z_source,
        group=group,
        activation=activation,
        slope=slope,
        isa=isa,
        implementation="" if np.array_equal(in_source, np.arange(in_source.size)) else "merged",
        **geometry.keywords(),
    )
    got = engine(s, z)
    expected = activate(linear, activation, slope)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=3e-6 * max(w[0].size, 10))
    np.testing.assert_array_equal(engine(s, z, threads=3), got)


def _behind(source: np.ndarray, size: int, channels: int = 32, seed: int = 0, **arguments: Any) -> tuple[Any, Any, Any]:
    """A layer that reads a map through a source; its rows, and what numpy makes of them."""
    rng = np.random.default_rng(seed)
    s = rng.standard_normal((2, int(source.max()) + 1, channels)).astype(np.float32)
    w = (rng.standard_normal((channels, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
    b = rng.standard_normal(channels).astype(np.float32)
    engine = _engine.SampledConv(w, b, in_shape=(size, size), in_source=source, pads=PADS, **arguments)
    expected = rows_of(conv(map_of(s, source, (size, size)), w, Geometry()) + b[:, None, None])
    return engine, s, expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("factor", "size"), [(2, 36), (3, 36), (4, 36), (2, 73)])
def test_classes_of_a_resized_map(isa: str, factor: int, size: int) -> None:
    """Those of a factor of 2 are grids of their own for kernels of 2x2, which have tiles."""
    engine, s, expected = _behind(_resized(size, size, factor, factor), size, isa=isa, implementation="merged")
    np.testing.assert_allclose(engine(s), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(engine(s[1:])[0], engine(s)[1])
    np.testing.assert_array_equal(engine(s, threads=3), engine(s))


@pytest.mark.parametrize("isa", ISAS)
def test_sites_in_another_order_and_sites_left_out(isa: str) -> None:
    """They are no grid of their own, or one with holes."""
    source = _resized(40, 40, 2, 2)
    order = np.random.default_rng(0).permutation(1600).astype(np.int32)
    for sites in (order, np.sort(order[:1200]), np.flatnonzero(np.eye(40)).astype(np.int32)):
        engine, s, expected = _behind(source, 40, sites=sites, isa=isa, implementation="merged")
        np.testing.assert_allclose(engine(s), expected[:, sites], rtol=0, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(engine(s, threads=3), engine(s))


@pytest.mark.parametrize("isa", ISAS)
def test_taps_of_one_row_are_one_product(isa: str) -> None:
    """Weights that cancel each other do so before they meet a value that would make infinities of them."""
    source = _resized(24, 24, 2, 2)
    w = np.zeros((16, 16, 3, 3), np.float32)
    w[:, :, 1, 1], w[:, :, 1, 2] = 3e38, -3e38  # they read the same row where x is even
    s = np.full((1, 144, 16), 2, np.float32)
    merged, plain = (
        _engine.SampledConv(
            w, None, in_shape=(24, 24), in_source=source, pads=PADS, isa=isa, implementation=implementation
        )(s).reshape(24, 24, 16)
        for implementation in ("merged", "direct")
    )
    assert (merged[:, ::2] == 0).all()
    assert not np.isfinite(plain).any()


def test_results_do_not_depend_on_the_number_of_processors() -> None:
    """One class of all sites, and several of many and of few sites, are shared out in different ways."""
    for size, channels, chosen in [(56, 32, "np.arange(1)"), (16, 48, "sites"), (96, 16, "sites")]:
        assert_same_on_any_number_of_processors(f"""
y, x = np.divmod(np.arange({size**2}), {size})
source = (y // 2 * {size // 2} + x // 2).astype(np.int32)
sites = np.arange({size**2}, dtype=np.int32)
if {chosen!r} != "sites":
    sites = sites[(y % 2 == 0) & (x % 2 == 0)]
s = rng.standard_normal((3, {size**2 // 4}, {channels})).astype(np.float32)
z = rng.standard_normal((3, len(sites), {channels})).astype(np.float32)
w = rng.standard_normal(({channels}, {channels}, 3, 3)).astype(np.float32)
engine = _engine.SampledConv(
    w, None, in_shape=({size}, {size}), in_source=source, sites=sites, pads=(1, 1, 1, 1), adds=True,
    implementation="merged",
)
result = engine(s, z, threads=processors + 1)
""")


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every second row and column, and the source that it makes by nearest interpolation."""
    mask = np.zeros((size, size), bool)
    mask[1::2, 1::2] = True
    return np.flatnonzero(mask).astype(np.int32), _numbered(nearest_source(mask), mask)


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "sites", "chosen"),
    [
        (64, 56, 3, "grid", "merged"),
        (256, 14, 3, "grid", "merged"),
        (64, 56, 3, "all", "merged"),
        (256, 28, 3, "all", "winograd4"),
        (64, 56, 5, "all", "merged"),
        (24, 56, 7, "all", "merged"),
        (4, 56, 3, "all", "merged"),
    ],
)
def test_taken_where_it_pays(channels: int, size: int, kernel: int, sites: str, chosen: str) -> None:
    grid, source = _grid(size)
    engine = _engine.SampledConv(
        np.ones((channels, channels, kernel, kernel), np.float32),
        None,
        in_shape=(size, size),
        in_source=source,
        sites=grid if sites == "grid" else None,
        pads=(kernel // 2,) * 4,
    )
    assert engine.implementation == chosen


def test_scattered_rows_keep_to_the_direct_kernel() -> None:
    source = np.random.default_rng(0).permutation(56 * 56).astype(np.int32)
    sites = np.flatnonzero(np.random.default_rng(0).random(56 * 56) < 0.1).astype(np.int32)
    w = np.ones((32, 32, 3, 3), np.float32)
    engine = _engine.SampledConv(w, None, in_shape=(56, 56), in_source=source, sites=sites, pads=PADS)
    assert engine.implementation == "direct"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "every position has a row of its own"),
        ({"in_source": np.arange(1024, dtype=np.int32)}, "every position has a row of its own"),
        ({"in_source": np.zeros(1024, np.int32), "kernel": 12}, "its kernel has more than 127 taps"),
    ],
)
def test_what_it_cannot_do(arguments: dict[str, Any], reason: str) -> None:
    w = np.ones((8, 8, arguments.get("kernel", 3), arguments.pop("kernel", 3)), np.float32)
    with pytest.raises(ValueError, match=f"'merged' does not apply: {reason}"):
        _engine.SampledConv(w, None, in_shape=(32, 32), implementation="merged", **arguments)


@pytest.mark.parametrize("isa", ISAS)
def test_sites_that_read_nothing_are_the_bias(isa: str) -> None:
    source = np.full(400, -1, np.int32)
    source[210] = 0
    w = np.random.default_rng(0).standard_normal((24, 24, 3, 3)).astype(np.float32)
    b = np.arange(24, dtype=np.float32)
    engine = _engine.SampledConv(w, b, in_shape=(20, 20), in_source=source, isa=isa, implementation="merged")
    s = np.ones((1, 1, 24), np.float32)
    got = engine(s).reshape(18, 18, 24)
    expected = conv(map_of(s, source, (20, 20)), w, Geometry(pads=(0, 0, 0, 0)))[0].transpose(1, 2, 0) + b
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    assert (got[:8] == b).all()


def test_sites_that_are_named_twice_are_computed_twice() -> None:
    source = _resized(32, 32, 2, 2)
    sites = np.repeat(np.arange(1024, dtype=np.int32), 2)
    engine, s, expected = _behind(source, 32, sites=sites, implementation="merged")
    np.testing.assert_allclose(engine(s), expected[:, sites], rtol=0, atol=1e-5)


def test_few_sites_of_a_huge_map() -> None:
    """What is looked at are the sites, not the map."""
    source = np.zeros((2**13) ** 2, np.int32)
    corners = np.array([0, 1, 2**13, 2**26 - 1], np.int32)
    w = np.ones((8, 8, 3, 3), np.float32)
    engine = _engine.SampledConv(
        w, None, in_shape=(2**13, 2**13), in_source=source, sites=corners, pads=PADS, implementation="merged"
    )
    assert engine(np.ones((1, 1, 8), np.float32))[0, :, 0].tolist() == [32, 48, 48, 32]


def test_a_table_that_names_rows_that_are_not_there_is_refused() -> None:
    engine = _engine.SampledConv(
        np.ones((8, 8, 3, 3), np.float32),
        None,
        in_shape=(8, 8),
        in_source=np.full(64, 2**31 - 1, np.int32),
        implementation="merged",
    )
    with pytest.raises(ValueError, match="in_source reads row 2147483647"):
        engine(np.ones((1, 64, 8), np.float32))


def test_no_sites() -> None:
    engine = _engine.SampledConv(
        np.ones((8, 8, 3, 3), np.float32),
        None,
        in_shape=(8, 8),
        in_source=np.zeros(64, np.int32),
        sites=np.zeros(0, np.int32),
        implementation="merged",
    )
    assert engine(np.ones((1, 1, 8), np.float32)).shape == (1, 0, 8)


def _run(exactness: str, verbose: str = "") -> subprocess.CompletedProcess[str]:
    code = """
import numpy as np
from perfonnx import _engine
y, x = np.divmod(np.arange(28**2), 28)
engine = _engine.SampledConv(
    np.ones((64, 64, 3, 3), np.float32), None, in_shape=(28, 28), in_source=(y // 2 * 14 + x // 2).astype(np.int32),
    sites=np.flatnonzero((y % 2 == 0) & (x % 2 == 0)).astype(np.int32), pads=(1, 1, 1, 1)
)
engine(np.ones((1, 196, 64), np.float32))
print(engine.implementation)
"""
    return run_python(code, PERFONNX_EXACTNESS=exactness, PERFONNX_VERBOSE=verbose)


def test_strict_exactness_keeps_to_the_direct_kernels() -> None:
    assert _run("").stdout.strip() == "merged"
    done = _run("strict", verbose="1")
    assert done.stdout.strip() == "direct"
    assert "not merged: PERFONNX_EXACTNESS is strict" in done.stderr


def test_lines_of_tiles_are_not_cut() -> None:
    """Rows of every fourth line stand for four: kernels of 1 x 3 are left, whose tiles lie in one row of a long map."""
    rng = np.random.default_rng(0)
    height, width, channels = 224, 224, 64
    source = (np.arange(height)[:, None] // 4 * width + np.arange(width)).astype(np.int32).reshape(-1)
    sites = np.flatnonzero(np.arange(height * width) // width % 4 == 2).astype(np.int32)
    w = (rng.standard_normal((32, channels, 3, 3)) / 24).astype(np.float32)
    s = rng.standard_normal((1, height // 4 * width, channels)).astype(np.float32)
    arguments = {"in_shape": (height, width), "in_source": source, "sites": sites, "pads": (1, 1, 1, 1)}
    expected = _engine.SampledConv(w, None, **arguments, implementation="direct")(s)
    got = _engine.SampledConv(w, None, **arguments, implementation="merged")(s, threads=2)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
