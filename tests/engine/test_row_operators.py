"""The operators on rows of the engine, without onnxruntime, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx import _engine
from tests.engine.reference import NO_ACTIVATION, Geometry, activate, conv, map_of, picked, rows_of

ISAS = _engine.available_isas()
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
GEOMETRY = st.builds(Geometry, kernel=PAIR, strides=PAIR, pads=st.tuples(*[st.integers(0, 2)] * 4), dilations=PAIR)
TYPES = [np.float32, np.float16]


@settings(max_examples=150, deadline=None)
@given(
    geometry=GEOMETRY,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    group=st.integers(1, 3),
    keep=st.sampled_from([0.1, 0.5, 1.0]),
    adds=st.sampled_from(["nothing", "rows", "rows of one image"]),
    activation=st.sampled_from([NO_ACTIVATION, (0.2, -1.0, 2.0)]),
    isa=st.sampled_from(ISAS),
)
def test_sampled_conv(
    geometry: Geometry,
    seed: int,
    images: int,
    size: tuple[int, int],
    group: int,
    keep: float,
    adds: str,
    activation: tuple[float, float, float],
    isa: str,
) -> None:
    """Rows repeated and missing, sites left out, rows added through a table, all with every instruction set."""
    rng = np.random.default_rng(seed)
    s = rng.standard_normal((images, 9, 2 * group)).astype(np.float32)
    w = rng.standard_normal((3 * group, 2, *geometry.kernel)).astype(np.float32)
    b = rng.standard_normal(len(w)).astype(np.float32)
    in_source = rng.integers(-1, 9, size[0] * size[1]).astype(np.int32)
    out = geometry.output_size(*size)
    sites = np.flatnonzero(rng.random(out[0] * out[1]) < keep).astype(np.int32)
    expected = rows_of(conv(map_of(s, in_source, size), w, geometry, group) + b[:, None, None], sites)
    z, z_source = None, None
    if adds != "nothing":
        z = rng.standard_normal((1 if adds == "rows of one image" else images, 5, len(w))).astype(np.float32)
        z_source = rng.integers(-1, 5, len(sites)).astype(np.int32)
        expected = expected + picked(z, z_source)
    engine = _engine.SampledConv(
        w,
        b,
        in_shape=size,
        in_source=in_source,
        sites=sites,
        adds=z is not None,
        z_source=z_source,
        **geometry.keywords(),
        group=group,
        activation=activation,
        isa=isa,
    )
    got = engine(s, z)
    assert got.shape == (images, len(sites), len(w))
    np.testing.assert_allclose(got, activate(expected, activation), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(engine(s, z, threads=3), got)
    half = engine(s.astype(np.float16), None if z is None else z.astype(np.float16))
    rounded = engine(s.astype(np.float16).astype(np.float32), None if z is None else z.astype(np.float16))
    np.testing.assert_array_equal(half, rounded.astype(np.float16))


@pytest.mark.parametrize("z", [None, np.zeros((1, 4, 2), np.float32)])
def test_rows_to_add_are_given_where_they_are_wanted(z: np.ndarray | None) -> None:
    w = np.ones((2, 1, 1, 1), np.float32)
    engine = _engine.SampledConv(w, None, in_shape=(2, 2), adds=z is None)
    with pytest.raises(ValueError, match="'Z'"):
        engine(np.zeros((1, 4, 1), np.float32), z)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_source": np.array([0, 1, 2, -2], np.int32)}, r"'in_source': \[3\] = -2"),
        ({"in_source": np.array([0, 1, 2], np.int32)}, "'in_source': 3 entries instead of 4"),
        ({"sites": np.array([4], np.int32)}, r"'sites': \[0\] = 4 is no position"),
        ({"adds": True, "z_source": np.array([0, 1], np.int32)}, "'z_source': 2 entries instead of 4"),
        ({"strides": (0, 1)}, "'strides'"),
    ],
)
def test_constants_that_are_wrong_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _engine.SampledConv(np.ones((2, 1, 1, 1), np.float32), None, **{"in_shape": (2, 2), **arguments})


@settings(max_examples=100, deadline=None)
@given(
    kernel=PAIR,
    strides=PAIR,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 2),
    channels=st.sampled_from([1, 7, 40]),
    average=st.booleans(),
    isa=st.sampled_from(ISAS),
    dtype=st.sampled_from(TYPES),
)
def test_sampled_pool(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    seed: int,
    images: int,
    channels: int,
    average: bool,
    isa: str,
    dtype: type,
) -> None:
    rng = np.random.default_rng(seed)
    size = (6, 7)
    s = rng.standard_normal((images, 9, channels)).astype(dtype)
    in_source = rng.integers(-1, 9, size[0] * size[1]).astype(np.int32)
    x = map_of(s, in_source, size).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    pooled = windows.mean(axis=(4, 5)) if average else windows.max(axis=(4, 5))
    sites = np.flatnonzero(rng.random(pooled.shape[2] * pooled.shape[3]) < 0.5).astype(np.int32)
    engine = _engine.SampledPool(
        kernel, in_shape=size, in_source=in_source, sites=sites, strides=strides, average=average, isa=isa
    )
    got = engine(s)
    assert got.dtype == dtype
    tolerance = 1e-6 if dtype == np.float32 else 2e-3
    np.testing.assert_allclose(got, rows_of(pooled, sites), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(engine(s, threads=3), got)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [3, 16, 70])
def test_the_largest_of_a_window_with_what_is_no_number_is_that(isa: str, channels: int) -> None:
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((1, channels, 15, 15)).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.1] = value
    expected = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3)).max(axis=(4, 5))
    assert np.isnan(expected).any()
    assert np.isfinite(expected).any()
    got = _engine.SampledPool((3, 3), in_shape=(15, 15), isa=isa)(rows_of(x, np.arange(225)))
    np.testing.assert_array_equal(got, rows_of(expected, np.arange(169)))
    low = np.full((1, 225, channels), -np.inf, np.float32)
    assert (_engine.SampledPool((3, 3), in_shape=(15, 15), isa=isa)(low) == -np.inf).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 5, 16, 50])
@pytest.mark.parametrize("picked", ["all", "some"])
def test_compact_and_expand_are_inverse_at_the_sites(isa: str, dtype: type, channels: int, picked: str) -> None:
    rng = np.random.default_rng(channels)
    size = (13, 11)
    x = rng.standard_normal((2, channels, *size)).astype(dtype)
    sites = rng.choice(13 * 11, 60, replace=False).astype(np.int32) if picked == "some" else None
    positions = np.arange(13 * 11) if sites is None else sites
    rows = _engine.Compact(sites, size, isa=isa)(x, threads=2)
    np.testing.assert_array_equal(rows, rows_of(x, positions))
    source = np.full((13 * 11, 1), -1, np.int32)
    source[positions, 0] = np.arange(len(positions))
    expected = np.zeros((2, channels, 13 * 11), dtype)
    expected[:, :, positions] = x.reshape(2, channels, -1)[:, :, positions]
    got = _engine.ExpandRows(source, size, isa=isa)(rows, threads=2)
    np.testing.assert_array_equal(got, expected.reshape(x.shape))


@pytest.mark.parametrize("isa", ISAS)
def test_expand_adds_up_weighted_rows(isa: str) -> None:
    rng = np.random.default_rng(0)
    s = rng.standard_normal((2, 6, 19)).astype(np.float32)
    source = rng.integers(-1, 6, (20, 3)).astype(np.int32)
    weight = rng.standard_normal(source.shape).astype(np.float32)
    expected = (picked(s, source) * weight[..., None]).sum(axis=2).transpose(0, 2, 1).reshape(2, 19, 4, 5)
    got = _engine.ExpandRows(source, (4, 5), weight, isa=isa)(s)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_maps_and_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="made for 2 x 2"):
        _engine.Compact(None, (2, 2))(np.zeros((1, 1, 2, 3), np.float32))
    with pytest.raises(ValueError, match="source reads row 3"):
        _engine.ExpandRows(np.arange(4, dtype=np.int32)[:, None], (2, 2))(np.zeros((1, 3, 1), np.float32))
    with pytest.raises(ValueError, match="float32 or float16"):
        _engine.Compact()(np.zeros((1, 1, 2, 3), np.float64))
