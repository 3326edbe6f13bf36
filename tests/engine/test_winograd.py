"""Winograd's algorithm against numpy: tiles whole and cut, sites chosen, rows interpolated, with every instruction set.

Sums of transformed numbers round otherwise than those of a direct convolution: errors of 1e-6 to 4e-6 of the largest
output are what float32 gives with tiles of 4 x 4, a fifth of that with 2 x 2 or three taps in a line, twice that with
seven taps.
"""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx import _engine
from tests.engine.reference import NO_ACTIVATION, Geometry, activate, conv, map_of, picked, rows_of
from tests.processes import assert_same_on_any_number_of_processors, run_python

ISAS = _engine.available_isas()
TOLERANCE = {
    ("winograd5", (2, 2)): 1e-5,
    ("winograd3", (2, 2)): 3e-6,
    ("winograd4", (3, 3)): 1e-5,
    ("winograd2", (3, 3)): 3e-6,
    ("winograd2", (5, 5)): 3e-6,
    ("winograd4", (2, 3)): 1e-5,
    ("winograd2", (3, 2)): 3e-6,
    ("winograd2", (5, 4)): 3e-6,
    ("winograd2", (4, 4)): 3e-6,
    ("winograd4_line", (3, 1)): 3e-6,
    ("winograd4_line", (1, 3)): 3e-6,
    ("winograd4_line", (5, 1)): 6e-6,
    ("winograd4_line", (1, 7)): 1e-5,
}
"""Of implementations and kernels that they compute."""
FORMS = list(TOLERANCE)
SMALLER = [("winograd3", (2, 2)), ("winograd2", (3, 3)), ("winograd2", (3, 2))]
"""Those that are taken for the weights of layers of many channels and few tiles alone."""


def _layer(
    seed: int, inputs: int, outputs: int, size: int, images: int = 1, kernel: tuple[int, int] = (3, 3)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, weights and bias of a layer."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, inputs, size, size)).astype(np.float32)
    w = (rng.standard_normal((outputs, inputs, *kernel)) / np.sqrt(np.prod(kernel) * inputs)).astype(np.float32)
    return rows_of(x), w, rng.standard_normal(outputs).astype(np.float32)


def _pads(kernel: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pads that leave a map its size."""
    down, across = kernel
    return (down // 2, across // 2, (down - 1) // 2, (across - 1) // 2)


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 70),
    images=st.integers(0, 3),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    keep=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    rows=st.sampled_from(["as they are", "interpolated"]),
    adds=st.sampled_from(["nothing", "rows", "rows of one image"]),
    activation=st.sampled_from([NO_ACTIVATION, (0.0, -1e30, 1e30), (0.2, -1.0, 2.0)]),
    sloped=st.booleans(),
    form=st.sampled_from(FORMS),
    group=st.sampled_from([1, 1, 2, 3]),
    isa=st.sampled_from(ISAS),
)
def test_any_layer(
    seed: int,
    inputs: int,
    outputs: int,
    images: int,
    size: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
    keep: float,
    rows: str,
    adds: str,
    activation: tuple[float, float, float],
    sloped: bool,
    form: tuple[str, tuple[int, int]],
    group: int,
    isa: str,
) -> None:
    rng = np.random.default_rng(seed)
    implementation, kernel = form
    if group > 1:  # of whole pieces of channels
        inputs, outputs = (group * -(-channels // 16) * 16 for channels in (inputs, outputs))
    geometry = Geometry(kernel, pads=pads, dilations=dilations)
    positions = size[0] * size[1]
    in_source = np.arange(positions, dtype=np.int32)
    if rows == "interpolated":
        in_source = rng.integers(-1, positions, positions).astype(np.int32)
    s = rng.standard_normal((images, positions, inputs)).astype(np.float32)
    w = rng.standard_normal((outputs, inputs // group, *kernel)).astype(np.float32)
    b = rng.standard_normal(outputs).astype(np.float32)
    out = geometry.output_size(*size)
    sites = np.flatnonzero(rng.random(out[0] * out[1]) < keep).astype(np.int32)
    rng.shuffle(sites)
    linear = rows_of(conv(map_of(s, in_source, size), w, geometry, group) + b[:, None, None], sites)
    z, z_source = None, None
    if adds != "nothing":
        z = rng.standard_normal((1 if adds == "rows of one image" else images, 5, outputs)).astype(np.float32)
        z_source = rng.integers(-1, 5, len(sites)).astype(np.int32)
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
        pads=pads,
        dilations=dilations,
        group=group,
        activation=activation,
        slope=slope,
        isa=isa,
        implementation=implementation,
    )
    assert engine.implementation == implementation
    got = engine(s, z)
    largest = kernel[0] * kernel[1] * inputs  # of the terms of a sum; a layer of few sites may have small outputs alone
    expected = activate(linear, activation, slope)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[form] * max(np.sqrt(largest) * 4, 10))
    np.testing.assert_array_equal(engine(s, z, threads=3), got)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("implementation", "kernel"), FORMS)
@pytest.mark.parametrize(("inputs", "outputs", "size"), [(64, 64, 28), (130, 66, 21), (256, 48, 14), (512, 64, 7)])
def test_error_relative_to_the_largest_output(
    isa: str, implementation: str, kernel: tuple[int, int], inputs: int, outputs: int, size: int
) -> None:
    s, w, b = _layer(0, inputs, outputs, size, kernel=kernel)
    pads = _pads(kernel)
    x = s.transpose(0, 2, 1).reshape(1, inputs, size, size)
    expected = conv(x, w, Geometry(kernel, pads=pads)) + b[:, None, None]
    engine = _engine.SampledConv(w, b, in_shape=(size, size), pads=pads, isa=isa, implementation=implementation)
    error = np.abs(engine(s) - rows_of(expected)).max() / np.abs(expected).max()
    assert error < TOLERANCE[implementation, kernel]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("implementation", "kernel"), FORMS)
def test_a_site_has_the_bits_of_its_tile_or_of_the_direct_kernel(
    isa: str, implementation: str, kernel: tuple[int, int]
) -> None:
    """Which other sites there are decides only which of the two."""
    s, w, b = _layer(1, 48, 40, 32, images=2, kernel=kernel)
    arguments = {"in_shape": (32, 32), "pads": _pads(kernel), "isa": isa}
    sites = np.flatnonzero(np.random.default_rng(1).random(1024) < 0.35).astype(np.int32)
    tiles = _engine.SampledConv(w, b, **arguments, implementation=implementation)(s)[:, sites]
    direct = _engine.SampledConv(w, b, **arguments, implementation="direct")(s)[:, sites]
    got = _engine.SampledConv(w, b, sites=sites, **arguments, implementation=implementation)(s)
    by_tiles, directly = (got == tiles).all(axis=(0, 2)), (got == direct).all(axis=(0, 2))
    assert (by_tiles | directly).all()
    assert by_tiles.mean() > 0.1
    assert directly.mean() > 0.1


def test_sites_that_are_named_twice_are_computed_twice() -> None:
    s, w, b = _layer(2, 32, 32, 8)
    sites = np.repeat(np.arange(64, dtype=np.int32), 2)
    engine = _engine.SampledConv(w, b, in_shape=(8, 8), sites=sites, pads=(1, 1, 1, 1), implementation="winograd4")
    dense = _engine.SampledConv(w, b, in_shape=(8, 8), pads=(1, 1, 1, 1))(s)
    np.testing.assert_allclose(engine(s), dense[:, sites], rtol=0, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_stays_in_the_tiles_that_read_it(isa: str, value: float) -> None:
    s, w, b = _layer(3, 32, 32, 16)
    engine = _engine.SampledConv(w, b, in_shape=(16, 16), pads=(1, 1, 1, 1), isa=isa, implementation="winograd4")
    clean = engine(s).reshape(16, 16, 32)
    s[0, 5 * 16 + 5] = value
    got = engine(s).reshape(16, 16, 32)
    assert not np.isfinite(got[4:7, 4:7]).any()
    got[4:8, 4:8] = clean[4:8, 4:8]
    np.testing.assert_array_equal(got, clean)


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "images"),
    [(64, 64, 24, 1), (256, 256, 8, 1), (512, 512, 7, 2), (24, 40, 6, 1), (16, 16, 30, 3)],
)
def test_results_do_not_depend_on_the_number_of_processors(inputs: int, outputs: int, size: int, images: int) -> None:
    """Few tiles, many weights and many tiles are shared out in different ways."""
    assert_same_on_any_number_of_processors(f"""
s = rng.standard_normal(({images}, {size**2}, {inputs})).astype(np.float32)
z = rng.standard_normal((1, {size**2}, {outputs})).astype(np.float32)
results = []
for implementation, kernel in {FORMS}:
    w = rng.standard_normal(({outputs}, {inputs}, *kernel)).astype(np.float32)
    pads = (kernel[0] // 2, kernel[1] // 2, (kernel[0] - 1) // 2, (kernel[1] - 1) // 2)  # the map keeps its size
    engine = _engine.SampledConv(
        w, None, in_shape=({size}, {size}), pads=pads, adds=True, implementation=implementation
    )
    results.append(engine(s, z, threads=processors + 1))
result = np.stack(results)
""")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("keep", [0.45, 0.8, 1.0])
@pytest.mark.parametrize(("implementation", "kernel"), [form for form in FORMS if form not in SMALLER])
@pytest.mark.parametrize(
    ("pads", "dilations"),
    [((1, 1, 1, 1), (1, 1)), ((0, 2, 1, 0), (1, 1)), ((2, 2, 2, 2), (2, 2)), ((1, 4, 3, 2), (3, 2))],
)
def test_maps_in_bands_of_whole_tiles(
    isa: str,
    keep: float,
    implementation: str,
    kernel: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
) -> None:
    rng = np.random.default_rng(0)
    geometry = Geometry(kernel, pads=pads, dilations=dilations)
    x = rng.standard_normal((2, 72, 62, 45)).astype(np.float32)
    w = (rng.standard_normal((40, 72, *kernel)) / np.sqrt(np.prod(kernel) * 72)).astype(np.float32)
    b = rng.standard_normal(40).astype(np.float32)
    # Of small kernels, and of those that are computed like larger ones, fewer sites do not pay.
    least = 0.7 if min(kernel) < 3 else 0.9 if min(kernel) == 4 else 0.0
    mask = rng.random(geometry.output_size(62, 45)) < max(keep, least)
    mask[:6] = False  # a row of tiles without a site, and half a one
    fill = rng.standard_normal(40).astype(np.float32)
    engine = _engine.MaskedConv.sparse(w, b, mask, fill, pads=pads, dilations=dilations, isa=isa)
    assert engine.implementation == implementation or (engine.implementation, kernel) in SMALLER
    expected = np.where(mask, conv(x, w, geometry) + b[:, None, None], fill[:, None, None])
    got = engine(x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[implementation, kernel] * np.abs(expected).max())
    np.testing.assert_array_equal(engine(x, threads=3), got)
    sites = np.flatnonzero(mask).astype(np.int32)
    rows = _engine.SampledConv(w, b, in_shape=(62, 45), sites=sites, pads=pads, dilations=dilations, isa=isa)
    np.testing.assert_array_equal(rows_of(got, mask.ravel()), rows(rows_of(x)))


def test_bands_do_not_change_with_the_number_of_processors() -> None:
    assert_same_on_any_number_of_processors("""
x = rng.standard_normal((1, 64, 90, 60)).astype(np.float32)
w = rng.standard_normal((48, 64, 3, 3)).astype(np.float32)
engine = _engine.MaskedConv.sparse(w, None, rng.random((90, 60)) < 0.5, pads=(1, 1, 1, 1))
assert engine.implementation == "winograd4"
result = engine(x, threads=2)
""")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("channels", "outputs", "size"), [(48, 40, (33, 30)), (64, 96, (14, 14)), (320, 32, (12, 20))])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.8, 1.0])
def test_rings_of_open_gates_by_tiles(
    isa: str, channels: int, outputs: int, size: tuple[int, int], share: float
) -> None:
    """Against the form on maps, whose rings are computed directly."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, channels, *size)).astype(np.float32)
    x[:, 0] = np.where(rng.random((3, *size)) < share, 1, -1)
    w = (rng.standard_normal((outputs, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
    b, ring = rng.standard_normal((2, outputs)).astype(np.float32)
    gate = np.zeros((1, channels, 1, 1), np.float32)
    gate[0, 0] = 0.7
    arguments = {"b_ring": ring, "center_gain": 0.5, "pads": (1, 1, 1, 1), "isa": isa}
    directly = rows_of(_engine.RadiusAdaptiveConv(w, b, gate, **arguments)(x))
    engine = _engine.SampledRadiusAdaptiveConv(w, b, gate, in_shape=size, **arguments)
    got = engine(rows_of(x))
    np.testing.assert_allclose(got, directly, rtol=0, atol=1e-5 * np.abs(directly).max())
    if share == 1:
        assert (got != directly).any()  # tiles round otherwise
    np.testing.assert_array_equal(engine(rows_of(x), threads=3), got)
    sites = np.flatnonzero(rng.random(size[0] * size[1]) < 0.7).astype(np.int32)
    some = _engine.SampledRadiusAdaptiveConv(w, b, gate, in_shape=size, sites=sites, **arguments)(rows_of(x))
    np.testing.assert_allclose(some, directly[:, sites], rtol=0, atol=1e-5 * np.abs(directly).max())


def test_rings_do_not_change_with_the_number_of_processors() -> None:
    assert_same_on_any_number_of_processors("""
s = rng.standard_normal((2, 56 * 56, 64)).astype(np.float32)
w = rng.standard_normal((64, 64, 3, 3)).astype(np.float32)
gate = np.zeros((1, 64, 1, 1), np.float32)
gate[0, 0] = 1
engine = _engine.SampledRadiusAdaptiveConv(w, None, gate, in_shape=(56, 56), pads=(1, 1, 1, 1))
result = engine(s, threads=processors)
""")


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "size", "chosen"),
    [
        (64, 64, (2, 2), 56, "winograd5"),
        (256, 256, (2, 2), 9, "winograd3"),
        (64, 64, (3, 3), 56, "winograd4"),
        (16, 16, (3, 3), 32, "winograd4"),
        (512, 512, (3, 3), 28, "winograd4"),
        (512, 512, (3, 3), 7, "winograd2"),
        (512, 512, (3, 3), 1, "gathered"),
        (64, 64, (3, 3), 1, "direct"),
        (1, 2, (3, 3), 8, "direct"),
        (16, 32, (5, 5), 28, "winograd2"),
        (64, 64, (5, 5), 1, "direct"),
        (384, 384, (1, 3), 8, "winograd4_line"),
        (64, 64, (3, 1), 56, "winograd4_line"),
        (64, 64, (1, 5), 14, "winograd4_line"),
        (128, 128, (7, 1), 17, "winograd4_line"),
        (12, 12, (3, 1), 56, "direct"),
    ],
)
def test_tiles_are_taken_where_they_pay(
    inputs: int, outputs: int, kernel: tuple[int, int], size: int, chosen: str
) -> None:
    w = np.ones((outputs, inputs, *kernel), np.float32)
    engine = _engine.SampledConv(w, None, in_shape=(size, size), pads=_pads(kernel))
    assert engine.implementation == chosen


@pytest.mark.parametrize(("keep", "chosen"), [(0.9, "winograd4"), (0.5, "winograd4"), (0.05, "direct")])
def test_scattered_sites(keep: float, chosen: str) -> None:
    sites = np.flatnonzero(np.random.default_rng(0).random(32 * 32) < keep).astype(np.int32)
    w = np.ones((64, 64, 3, 3), np.float32)
    assert _engine.SampledConv(w, None, in_shape=(32, 32), sites=sites, pads=(1, 1, 1, 1)).implementation == chosen


@pytest.mark.parametrize(
    ("inputs", "arguments", "reason"),
    [
        (64, {"strides": (2, 1)}, "its strides are not 1"),
        (24, {"group": 2}, "the channels of its groups are no multiples of 16"),
    ],
)
@pytest.mark.parametrize(("implementation", "kernel"), FORMS)
def test_other_convolutions_are_refused(
    implementation: str, kernel: tuple[int, int], inputs: int, arguments: dict[str, object], reason: str
) -> None:
    w = np.ones((64, inputs, *kernel), np.float32)
    with pytest.raises(ValueError, match=f"'{implementation}' does not apply: {reason}"):
        _engine.SampledConv(w, None, in_shape=(32, 32), implementation=implementation, **arguments)
    assert _engine.SampledConv(w, None, in_shape=(32, 32), **arguments).implementation == "direct"


@pytest.mark.parametrize(
    ("implementation", "reason"),
    [
        ("winograd5", "2 x 2"),
        ("winograd3", "2 x 2"),
        ("winograd4", "3 x 3"),
        ("winograd2", "3 x 3 or 5 x 5"),
        ("winograd4_line", "a line of 3, 5 or 7 taps"),
    ],
)
@pytest.mark.parametrize("kernel", [(1, 1), (9, 1), (3, 5), (7, 7)])
def test_other_kernels_are_refused(implementation: str, reason: str, kernel: tuple[int, int]) -> None:
    w = np.ones((64, 64, *kernel), np.float32)
    with pytest.raises(ValueError, match=f"'{implementation}' does not apply: its kernel is not {reason}"):
        _engine.SampledConv(w, None, in_shape=(32, 32), implementation=implementation)
    assert _engine.SampledConv(w, None, in_shape=(32, 32)).implementation in ("direct", "gathered")


def _run(exactness: str, verbose: str = "") -> subprocess.CompletedProcess[str]:
    code = """
import numpy as np
from perfonnx import _engine
for kernel in ((3, 3), (5, 5), (3, 1), (1, 3)):
    engine = _engine.SampledConv(np.ones((64, 64, *kernel), np.float32), None, in_shape=(28, 28))
    engine(np.ones((1, 784, 64), np.float32))
    print(engine.implementation)
"""
    return run_python(code, PERFONNX_EXACTNESS=exactness, PERFONNX_VERBOSE=verbose)


def test_strict_exactness_keeps_to_the_direct_kernels() -> None:
    names = ["winograd4", "winograd2", "winograd4_line"]
    assert _run("").stdout.split() == [*names, "winograd4_line"]
    done = _run("strict", verbose="1")
    assert done.stdout.split() == ["direct"] * 4
    for name in names:
        assert f"not {name}: PERFONNX_EXACTNESS is strict" in done.stderr


def test_exactness_of_another_kind_is_a_clear_error() -> None:
    done = _run("loose")
    assert done.returncode != 0
    assert "PERFONNX_EXACTNESS=loose: use strict, or unset it" in done.stderr


@pytest.mark.parametrize(("implementation", "kernel"), FORMS)
def test_few_sites_of_a_huge_map(implementation: str, kernel: tuple[int, int]) -> None:
    """Tables are as large as the sites are many, not as the map is."""
    side = 2**15
    corners = np.array([0, 1, side, side + 1, side * (side - 1), side**2 - 1], np.int32)
    engine = _engine.SampledConv(
        np.ones((8, 8, *kernel), np.float32),
        None,
        in_shape=(side, side),
        sites=corners,
        pads=_pads(kernel),
        implementation=implementation,
    )
    with pytest.raises(ValueError, match="there must be 1073741824"):
        engine(np.ones((1, 4, 8), np.float32))


@pytest.mark.parametrize(("implementation", "kernel"), FORMS)
def test_maps_smaller_than_the_kernel_have_no_output(implementation: str, kernel: tuple[int, int]) -> None:
    size = (min(kernel[0] - 1, 2), 5) if kernel[0] > 1 else (5, 2)
    w = np.ones((8, 8, *kernel), np.float32)
    engine = _engine.SampledConv(w, None, in_shape=size, implementation=implementation)
    assert engine(np.ones((1, size[0] * size[1], 8), np.float32)).shape == (1, 0, 8)
