"""The canonical operators of the engine against numpy, over awkward geometries."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

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
    interpolate,
    map_of,
    nearest_source,
    radius_adaptive,
    rows_of,
)

ISAS = _engine.available_isas()
ACTIVATIONS = [
    NO_ACTIVATION,
    (0.0, NO_ACTIVATION[1], NO_ACTIVATION[2]),
    (0.2, NO_ACTIVATION[1], NO_ACTIVATION[2]),
    (0.0, NO_ACTIVATION[1], 6.0),
    (1.0, 0.5, 2.0),  # act(0) is not 0
]
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
GEOMETRY = st.builds(Geometry, kernel=PAIR, strides=PAIR, pads=st.tuples(*[st.integers(0, 2)] * 4), dilations=PAIR)


class Case:
    """A random convolution with a random mask."""

    def __init__(
        self,
        geometry: Geometry,
        seed: int,
        *,
        images: int = 2,
        size: tuple[int, int] = (7, 6),
        group: int = 1,
        keep: float = 0.4,
        inputs: int = 3,
        outputs: int = 5,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.geometry = geometry
        self.group = group
        self.x = rng.standard_normal((images, inputs * group, *size)).astype(np.float32)
        self.w = rng.standard_normal((outputs * group, inputs, *geometry.kernel)).astype(np.float32)
        self.b = rng.standard_normal(outputs * group).astype(np.float32)
        self.mask = rng.random(geometry.output_size(*size)) < keep

    def dense(self) -> np.ndarray:
        return conv(self.x, self.w, self.geometry, self.group) + self.b[:, None, None]


def _slope(case: Case) -> np.ndarray:
    return case.rng.choice(np.array([-1.5, 0, 0.25, 1, 3], np.float32), len(case.w))


def _by_channel(slope: np.ndarray | None) -> np.ndarray | None:
    return None if slope is None else slope[:, None, None]


def _close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(
    geometry=GEOMETRY,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    group=st.integers(1, 3),
    keep=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    activation=st.sampled_from(ACTIVATIONS),
    sloped=st.booleans(),
    isa=st.sampled_from(ISAS),
    method=st.sampled_from(["nearest", "zero", "weighted", "sum"]),
)
def test_perforated_conv(
    geometry: Geometry,
    seed: int,
    images: int,
    size: tuple[int, int],
    group: int,
    keep: float,
    activation: tuple[float, float, float],
    sloped: bool,
    isa: str,
    method: str,
) -> None:
    case = Case(geometry, seed, images=images, size=size, group=group, keep=keep)
    sites = np.flatnonzero(case.mask).astype(np.int32)
    weight = None
    if method == "nearest":
        source = nearest_source(case.mask)
    elif method == "zero":
        source = np.where(case.mask.ravel(), np.arange(case.mask.size), -1).astype(np.int32)[:, None]
    else:
        choices = np.append(sites, np.int32(-1))
        source = case.rng.choice(choices, (case.mask.size, 3)).astype(np.int32)
        if method == "weighted":
            weight = case.rng.choice(np.array([0, 0.25, -0.5, 1], np.float32), source.shape)
    slope = _slope(case) if sloped else None
    engine = _engine.MaskedConv.perforated(
        case.w,
        case.b,
        case.mask,
        source,
        weight,
        **geometry.keywords(),
        group=group,
        activation=activation,
        slope=slope,
        isa=isa,
    )
    expected = activate(interpolate(case.dense(), source, weight), activation, _by_channel(slope))
    got = engine(case.x)
    _close(got, expected)
    np.testing.assert_array_equal(engine(case.x, threads=3), got)


@settings(max_examples=100, deadline=None)
@given(
    geometry=GEOMETRY,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 3),
    group=st.integers(1, 3),
    keep=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    activation=st.sampled_from(ACTIVATIONS),
    sloped=st.booleans(),
    with_fill=st.booleans(),
)
def test_sparse_conv(
    geometry: Geometry,
    seed: int,
    images: int,
    group: int,
    keep: float,
    activation: tuple[float, float, float],
    sloped: bool,
    with_fill: bool,
) -> None:
    case = Case(geometry, seed, images=images, group=group, keep=keep)
    fill = case.rng.standard_normal(len(case.w)).astype(np.float32) if with_fill else None
    slope = _slope(case) if sloped else None
    engine = _engine.MaskedConv.sparse(
        case.w, case.b, case.mask, fill, **geometry.keywords(), group=group, activation=activation, slope=slope
    )
    elsewhere = np.zeros(len(case.w)) if fill is None else fill
    expected = np.where(case.mask, activate(case.dense(), activation, _by_channel(slope)), elsewhere[:, None, None])
    _close(engine(case.x), expected)


@settings(max_examples=100, deadline=None)
@given(
    strides=PAIR,
    dilations=PAIR,
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 3),
    group=st.integers(1, 3),
    b_alpha=st.sampled_from([-100.0, -0.5, 0.5, 100.0]),
    center_gain=st.sampled_from([0.0, 1.0]),
    activation=st.sampled_from(ACTIVATIONS),
    sloped=st.booleans(),
    isa=st.sampled_from(ISAS),
)
def test_radius_adaptive_conv(
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    seed: int,
    images: int,
    group: int,
    b_alpha: float,
    center_gain: float,
    activation: tuple[float, float, float],
    sloped: bool,
    isa: str,
) -> None:
    geometry = Geometry((3, 3), strides, pads, dilations)
    case = Case(geometry, seed, images=images, group=group)
    w_alpha = case.rng.standard_normal((1, case.x.shape[1], 1, 1)).astype(np.float32)
    b_ring = case.rng.standard_normal(len(case.w)).astype(np.float32)
    slope = _slope(case) if sloped else None
    engine = _engine.RadiusAdaptiveConv(
        case.w,
        case.b,
        w_alpha,
        b_alpha,
        b_ring,
        center_gain=center_gain,
        **geometry.keywords(),
        group=group,
        activation=activation,
        slope=slope,
        isa=isa,
    )
    expected = radius_adaptive(
        case.x, case.w, case.b, w_alpha, b_alpha, b_ring, geometry, group=group, center_gain=center_gain
    )
    got = engine(case.x)
    _close(got, activate(expected, activation, _by_channel(slope)))
    np.testing.assert_array_equal(engine(case.x, threads=3), got)


@settings(max_examples=100, deadline=None)
@given(
    strides=PAIR,
    dilations=PAIR,
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 3),
    group=st.integers(1, 3),
    keep=st.sampled_from([0.1, 0.5, 1.0]),
    b_alpha=st.sampled_from([-100.0, -0.5, 0.5, 100.0]),
    center_gain=st.sampled_from([0.0, 1.0]),
    activation=st.sampled_from(ACTIVATIONS),
    sloped=st.booleans(),
    isa=st.sampled_from(ISAS),
)
def test_sampled_radius_adaptive_conv(
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    seed: int,
    images: int,
    group: int,
    keep: float,
    b_alpha: float,
    center_gain: float,
    activation: tuple[float, float, float],
    sloped: bool,
    isa: str,
) -> None:
    """The sites of the map that rows stand for, some of them repeated, some of them zeros."""
    geometry = Geometry((3, 3), strides, pads, dilations)
    case = Case(geometry, seed, images=images, group=group, keep=keep)
    w_alpha = case.rng.standard_normal((1, case.x.shape[1], 1, 1)).astype(np.float32)
    b_ring = case.rng.standard_normal(len(case.w)).astype(np.float32)
    s = case.rng.standard_normal((images, 9, case.x.shape[1])).astype(np.float32)
    in_source = case.rng.integers(-1, 9, 7 * 6).astype(np.int32)
    sites = np.flatnonzero(case.mask).astype(np.int32)
    engine = _engine.SampledRadiusAdaptiveConv(
        case.w,
        case.b,
        w_alpha,
        b_alpha,
        b_ring,
        in_shape=(7, 6),
        in_source=in_source,
        sites=sites,
        center_gain=center_gain,
        **geometry.keywords(),
        group=group,
        activation=activation,
        isa=isa,
    )
    x = map_of(s, in_source, (7, 6))
    expected = radius_adaptive(
        x, case.w, case.b, w_alpha, b_alpha, b_ring, geometry, group=group, center_gain=center_gain
    )
    got = engine(s)
    _close(got, activate(rows_of(expected, sites), activation))
    np.testing.assert_array_equal(engine(s, threads=3), got)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("outputs", [5, 64])
def test_radius_adaptive_blocks_of_a_large_map(isa: str, outputs: int) -> None:
    """Many blocks of sites, some of which go over the end of an image; gates open in stripes."""
    case = Case(Geometry(), 1, images=5, size=(53, 61), outputs=outputs)
    case.x[:, 0] = np.sin(np.arange(case.x[:, 0].size) / 300).reshape(case.x[:, 0].shape)
    gate = np.array([2, 0, 0], np.float32).reshape(1, 3, 1, 1)
    zeros = np.zeros(outputs, np.float32)
    expected = radius_adaptive(case.x, case.w, case.b, gate, 0.0, zeros, case.geometry)
    engine = _engine.RadiusAdaptiveConv(case.w, case.b, gate, pads=(1, 1, 1, 1), isa=isa)
    got = engine(case.x)
    _close(got, expected)
    np.testing.assert_array_equal(engine(case.x, threads=3), got)
    rows = _engine.SampledRadiusAdaptiveConv(case.w, case.b, gate, in_shape=(53, 61), pads=(1, 1, 1, 1), isa=isa)
    np.testing.assert_array_equal(rows(rows_of(case.x), threads=3).transpose(0, 2, 1).reshape(got.shape), got)
    half = engine(case.x.astype(np.float16))
    np.testing.assert_array_equal(half, engine(case.x.astype(np.float16).astype(np.float32)).astype(np.float16))


@pytest.mark.parametrize("size", [(0, 3), (1, 1), (2, 9)])
def test_radius_adaptive_maps_that_lie_in_the_padding(size: tuple[int, int]) -> None:
    geometry = Geometry(pads=(5, 4, 3, 2))
    case = Case(geometry, 0, size=size, images=40)
    ones = np.ones((1, 3, 1, 1), np.float32)
    engine = _engine.RadiusAdaptiveConv(case.w, case.b, ones, 0.5, **geometry.keywords())
    expected = radius_adaptive(case.x, case.w, case.b, ones, 0.5, np.zeros(5, np.float32), geometry)
    _close(engine(case.x), expected)
    np.testing.assert_array_equal(engine(case.x, threads=3), engine(case.x))


def test_alpha_one_everywhere_is_the_plain_convolution() -> None:
    case = Case(Geometry(), 0)
    zeros = np.zeros((1, 3, 1, 1), np.float32)
    engine = _engine.RadiusAdaptiveConv(case.w, case.b, zeros, 1.0, pads=(1, 1, 1, 1))
    _close(engine(case.x), case.dense())


@functools.cache
def _large(geometry: Geometry, size: tuple[int, int]) -> tuple[Case, np.ndarray]:
    case = Case(geometry, 0, images=2, size=size, inputs=96, outputs=21)
    case.mask[5:9] = False  # rows of the map without a site
    return case, case.dense()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        (Geometry(), (48, 41)),
        (Geometry(kernel=(5, 3), dilations=(2, 1), pads=(4, 1, 4, 1)), (48, 40)),
        (Geometry(strides=(3, 2), pads=(0, 2, 1, 0)), (97, 60)),
    ],
)
@pytest.mark.parametrize("method", ["nearest", "anywhere", "fill", "weighted"])
def test_maps_that_are_made_in_several_bands(geometry: Geometry, size: tuple[int, int], isa: str, method: str) -> None:
    """The input is too large for the cache, and positions copy sites of the same band or of any other."""
    case, dense = _large(geometry, size)
    rng = np.random.default_rng(1)
    arguments = {**geometry.keywords(), "activation": (0.0, -1.0, 6.0), "isa": isa}
    if method == "fill":
        fill = rng.standard_normal(len(case.w)).astype(np.float32)
        engine = _engine.MaskedConv.sparse(case.w, case.b, case.mask, fill, **arguments)
        expected = np.where(case.mask, activate(dense, arguments["activation"]), fill[:, None, None])
    else:
        source, weight = nearest_source(case.mask), None
        choices = np.append(np.flatnonzero(case.mask), -1)
        if method == "anywhere":
            source = rng.choice(choices, (case.mask.size, 1)).astype(np.int32)
        elif method == "weighted":
            source = rng.choice(choices, (case.mask.size, 2)).astype(np.int32)
            weight = rng.choice(np.array([0.25, -0.5, 1], np.float32), source.shape)
        engine = _engine.MaskedConv.perforated(case.w, case.b, case.mask, source, weight, **arguments)
        expected = activate(interpolate(dense, source, weight), arguments["activation"])
    got = engine(case.x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(engine(case.x, threads=3), got)


def test_float16_is_the_float32_result_rounded() -> None:
    case = Case(Geometry(), 3, inputs=20, outputs=40, size=(17, 19))
    half = case.x.astype(np.float16)
    source = nearest_source(case.mask)
    engine = _engine.MaskedConv.perforated(case.w, case.b, case.mask, source, pads=(1, 1, 1, 1))
    got = engine(half)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, engine(half.astype(np.float32)).astype(np.float16))


def test_image_sizes_may_alternate_where_they_give_the_same_map() -> None:
    geometry = Geometry(strides=(2, 2))
    small, large = Case(geometry, 0, size=(7, 7)), Case(geometry, 0, size=(8, 8))
    source = nearest_source(small.mask)
    engine = _engine.MaskedConv.perforated(small.w, small.b, small.mask, source, **geometry.keywords())
    for case in (small, large, small):
        expected = conv(case.x, small.w, geometry) + small.b[:, None, None]
        _close(engine(case.x), interpolate(expected, source))


def test_map_that_lies_in_the_padding_is_the_bias() -> None:
    geometry = Geometry(kernel=(1, 1), pads=(2, 2, 0, 0))
    case = Case(geometry, 0, size=(0, 3), keep=1.0)
    engine = _engine.MaskedConv.perforated(case.w, case.b, case.mask, nearest_source(case.mask), **geometry.keywords())
    assert case.mask.shape == (2, 5)
    _close(engine(case.x), np.broadcast_to(case.b[:, None, None], (2, 5, 2, 5)).astype(np.float64))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 4, 7, 6), "channels"), ((1, 3, 8, 6), "made for 7 x 6"), ((1, 3, 7, 99), "made for 7 x 6")],
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, int, int, int], message: str) -> None:
    case = Case(Geometry(), 0)
    engine = _engine.MaskedConv.sparse(case.w, case.b, case.mask, pads=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=message):
        engine(np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", ["perforated", "radius_adaptive"])
def test_one_object_serves_many_threads(kind: str) -> None:
    """Image sizes that nobody has seen yet come from several threads at once."""
    geometry = Geometry(strides=(3, 3))
    sizes = [(13, 13), (14, 13), (15, 14), (13, 15)]
    cases = [Case(geometry, 0, size=size) for size in sizes]
    first = cases[0]

    def new() -> _engine.MaskedConv | _engine.RadiusAdaptiveConv:
        if kind == "perforated":
            source = nearest_source(first.mask)
            return _engine.MaskedConv.perforated(first.w, first.b, first.mask, source, **geometry.keywords())
        ones = np.ones((1, 3, 1, 1), np.float32)
        return _engine.RadiusAdaptiveConv(first.w, first.b, ones, **geometry.keywords())

    expected = [new()(case.x) for case in cases]
    for _ in range(5):
        shared = new()
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda i: shared(cases[i % 4].x), range(16)))  # noqa: B023
        for i, y in enumerate(got):
            np.testing.assert_array_equal(y, expected[i % 4])
