"""Taps whose weights are all zero are not read, and what is left is the smallest kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx import _engine
from tests.engine.reference import NO_ACTIVATION, Geometry, conv, map_of, nearest_source, rows_of

ISAS = _engine.available_isas()
QUINCUNX = ((0, 2), (1, 1), (1, 3), (2, 0), (2, 2), (2, 4), (3, 1), (3, 3), (4, 2))
"""The nine taps of the turned grid in a kernel of 5x5."""
INNER = tuple((i, j) for i in (1, 2, 3) for j in (1, 2, 3))
EVERY_SECOND = tuple((i, j) for i in (0, 2, 4) for j in (0, 2, 4))


def _only(w: np.ndarray, taps: Any) -> np.ndarray:
    """The weights [M, C, kh, kw] with zeros but at some taps."""
    kept = np.zeros_like(w)
    for i, j in taps:
        kept[:, :, i, j] = w[:, :, i, j]
    return kept


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    group=st.sampled_from([1, 1, 2, 16]),
    depthwise=st.booleans(),
    images=st.integers(0, 2),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    kernel=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    strides=PAIR,
    dilations=PAIR,
    pads=st.tuples(*[st.integers(0, 5)] * 4),
    weighing=st.sampled_from(["one in ten", "half", "a line", "a rectangle", "every second", "none"]),
    source=st.sampled_from(["every row", "rows anywhere"]),
    isa=st.sampled_from(ISAS),
)
def test_any_layer(
    seed: int,
    channels: tuple[int, int],
    group: int,
    depthwise: bool,
    images: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int],
    weighing: str,
    source: str,
    isa: str,
) -> None:
    rng = np.random.default_rng(seed)
    inputs, outputs = (group, group) if depthwise else (channels[0] * group, channels[1] * group)
    geometry = Geometry(kernel, strides, pads, dilations)
    keep = rng.random(kernel) < {"one in ten": 0.1, "half": 0.5, "none": 0.0}.get(weighing, 1.0)
    if weighing == "a line":
        keep[:] = False
        keep[rng.integers(kernel[0])] = True
    elif weighing == "a rectangle":
        keep[: rng.integers(kernel[0])] = False
        keep[:, rng.integers(1, kernel[1] + 1) :] = False
    elif weighing == "every second":
        keep[1::2] = False
        keep[:, 1::2] = False
    w = rng.standard_normal((outputs, inputs // group, *kernel)).astype(np.float32) * keep.astype(np.float32)
    b = rng.standard_normal(outputs).astype(np.float32)
    out = geometry.output_size(*size)
    arguments = {"group": group, "isa": isa, **geometry.keywords()}
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * max(np.sqrt(w[0].size) * 4, 10)}

    in_source = np.arange(size[0] * size[1], dtype=np.int32)
    if source == "rows anywhere":
        in_source = rng.integers(-1, 5, in_source.size).astype(np.int32)
    s = rng.standard_normal((images, max(in_source.max(initial=0) + 1, 1), inputs)).astype(np.float32)
    sites = np.flatnonzero(rng.random(out[0] * out[1]) < rng.choice([0.2, 1.0])).astype(np.int32)
    rows = _engine.SampledConv(w, b, in_shape=size, in_source=in_source, sites=sites, **arguments)
    expected = conv(map_of(s, in_source, size), w, geometry, group) + b[:, None, None]
    np.testing.assert_allclose(rows(s), rows_of(expected, sites), **tolerance)
    np.testing.assert_array_equal(rows(s, threads=3), rows(s))

    x = rng.standard_normal((images, inputs, *size)).astype(np.float32)
    mask = np.zeros(out, bool)
    mask.reshape(-1)[sites] = True
    maps = _engine.MaskedConv.sparse(w, b, mask, **arguments)
    expected = np.where(mask, conv(x, w, geometry, group) + b[:, None, None], 0)
    np.testing.assert_allclose(maps(x), expected, **tolerance)
    np.testing.assert_array_equal(maps(x, threads=3), maps(x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inputs", [8, 300])
@pytest.mark.parametrize("taps", [QUINCUNX, EVERY_SECOND, ((0, 0),), ((4, 4), (0, 4))])
def test_what_stands_at_other_taps_does_not_matter(isa: str, inputs: int, taps: Any) -> None:
    """Of one site, so that nothing else reads it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, inputs, 5, 5)).astype(np.float32)
    w = _only(rng.standard_normal((24, inputs, 5, 5)).astype(np.float32), taps)
    expected = conv(x, w, Geometry((5, 5), pads=(0, 0, 0, 0)))
    for i, j in np.ndindex(5, 5):
        if (i, j) not in taps:
            x[:, :, i, j] = np.nan if (i + j) % 2 else np.inf
    got = _engine.SampledConv(w, None, in_shape=(5, 5), isa=isa)(rows_of(x))
    np.testing.assert_allclose(got, rows_of(expected), rtol=1e-4, atol=1e-4)
    got = _engine.MaskedConv.sparse(w, None, np.ones((1, 1), bool), isa=isa)(x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_the_weight_of_one_output_is_enough(isa: str) -> None:
    w = np.zeros((70, 40, 3, 3), np.float32)
    w[69, 39, 1, 1] = 1
    s = np.random.default_rng(0).standard_normal((1, 64, 40)).astype(np.float32)
    got = _engine.SampledConv(w, None, in_shape=(8, 8), pads=(1, 1, 1, 1), isa=isa)(s)
    np.testing.assert_array_equal(got[:, :, 69], s[:, :, 39])
    assert not got[:, :, :69].any()


@pytest.mark.parametrize("isa", ISAS)
def test_a_weight_that_is_no_number_is_read(isa: str) -> None:
    w = np.zeros((1, 8, 3, 3), np.float32)
    w[0, 7, 2, 2] = np.nan
    got = _engine.SampledConv(w, None, in_shape=(8, 8), isa=isa)(np.ones((1, 64, 8), np.float32))
    assert np.isnan(got).all()


@pytest.mark.parametrize(
    ("taps", "chosen"),
    [
        (INNER, "winograd4"),
        (EVERY_SECOND, "winograd4"),
        (QUINCUNX, "direct"),
        (INNER[:8], "winograd4"),  # of a kernel of 3x3, one weight of which is zero
        (INNER[:6], "winograd4"),  # of 2x3, computed as 3x3
        (INNER[:3], "winograd4_line"),
        (((2, 2),), "direct"),
    ],
)
def test_what_is_left_is_the_smallest_kernel(taps: Any, chosen: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 64, 32, 32)).astype(np.float32)
    w = _only(rng.standard_normal((64, 64, 5, 5)).astype(np.float32), taps)
    expected = conv(x, w, Geometry((5, 5), pads=(2, 2, 2, 2)))
    tolerance = 1e-5 * np.abs(expected).max()
    rows = _engine.SampledConv(w, None, in_shape=(32, 32), pads=(2, 2, 2, 2))
    assert rows.implementation == chosen
    np.testing.assert_allclose(rows(rows_of(x)), rows_of(expected), rtol=0, atol=tolerance)
    maps = _engine.MaskedConv.sparse(w, None, np.ones((32, 32), bool), pads=(2, 2, 2, 2))
    assert maps.implementation == chosen
    np.testing.assert_allclose(maps(x), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("isa", ISAS)
def test_a_quincunx_of_its_own_taps(isa: str) -> None:
    """What a layer on every second position reads: whatever its interpolation is."""
    rng = np.random.default_rng(0)
    mask = np.indices((17, 20)).sum(axis=0) % 2 == 0
    x = rng.standard_normal((2, 24, 17, 20)).astype(np.float32)
    w = _only(rng.standard_normal((40, 24, 5, 5)).astype(np.float32), QUINCUNX)
    geometry = Geometry((5, 5), pads=(2, 2, 2, 2))
    expected = conv(x, w, geometry)
    source = nearest_source(mask)
    engine = _engine.MaskedConv.perforated(w, None, mask, source.reshape(-1, 1), pads=geometry.pads, isa=isa)
    filled = expected.reshape(2, 40, -1)[:, :, source.reshape(-1)].reshape(expected.shape)
    np.testing.assert_allclose(engine(x), filled, rtol=1e-4, atol=1e-4)
    # Between two such layers, rows stand for the sites alone.
    in_source = np.where(mask, np.cumsum(mask).reshape(mask.shape) - 1, -1).astype(np.int32).reshape(-1)
    sites = np.flatnonzero(mask).astype(np.int32)
    rows = _engine.SampledConv(
        w, None, in_shape=mask.shape, in_source=in_source, sites=sites, pads=geometry.pads, isa=isa
    )
    got = rows(rows_of(x, sites))
    np.testing.assert_allclose(got, rows_of(expected, sites), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [(1, 40), (40, 1), (13, 13)])
def test_kernels_of_many_taps(kernel: tuple[int, int]) -> None:
    """Of which few weigh anything, far apart, partly in the pads alone."""
    rng = np.random.default_rng(0)
    w = np.zeros((20, 8, *kernel), np.float32)
    w[:, :, 0, 0] = rng.standard_normal((20, 8))
    w[:, :, -1, -1] = rng.standard_normal((20, 8))
    geometry = Geometry(kernel, pads=(39, 39, 39, 39), dilations=(3, 2))
    x = rng.standard_normal((1, 8, 9, 9)).astype(np.float32)
    out = geometry.output_size(9, 9)
    got = _engine.MaskedConv.sparse(w, None, np.ones(out, bool), **geometry.keywords())(x)
    np.testing.assert_allclose(got, conv(x, w, geometry), rtol=1e-4, atol=1e-4)


def test_a_layer_that_tells_classes_apart_reads_taps_with_weights_alone() -> None:
    """Behind nearest resizing, with the corners of the kernel zero."""
    rng = np.random.default_rng(0)
    y, x = np.divmod(np.arange(64**2), 64)
    source = (y // 2 * 32 + x // 2).astype(np.int32)
    w = rng.standard_normal((64, 64, 3, 3)).astype(np.float32)
    w[:, :, ::2, ::2] = 0
    s = rng.standard_normal((1, 1024, 64)).astype(np.float32)
    engine = _engine.SampledConv(
        w, None, in_shape=(64, 64), in_source=source, pads=(1, 1, 1, 1), implementation="merged"
    )
    expected = conv(map_of(s, source, (64, 64)), w, Geometry())
    np.testing.assert_allclose(engine(s), rows_of(expected), rtol=0, atol=1e-5 * np.abs(expected).max())


def test_activations_and_added_rows_follow() -> None:
    rng = np.random.default_rng(0)
    w = _only(rng.standard_normal((33, 16, 5, 5)).astype(np.float32), QUINCUNX)
    s = rng.standard_normal((2, 81, 16)).astype(np.float32)
    z = rng.standard_normal((2, 81, 33)).astype(np.float32)
    engine = _engine.SampledConv(
        w, None, in_shape=(9, 9), pads=(2, 2, 2, 2), adds=True, activation=(0.0, *NO_ACTIVATION[1:])
    )
    x = map_of(s, np.arange(81, dtype=np.int32), (9, 9))
    expected = rows_of(conv(x, w, Geometry((5, 5), pads=(2, 2, 2, 2)))) + z
    np.testing.assert_allclose(engine(s, z), np.maximum(expected, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("taps", [((1, 1),), ((0, 0), (1, 1)), ((0, 2), (2, 0)), ((0, 0), (2, 2))])
def test_numbers_as_large_as_they_may_be(taps: Any) -> None:
    """Taps so far apart that of each site but one lies beyond the map."""
    far = 2**31 - 1
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 8, 3, 3)).astype(np.float32)
    w = _only(rng.standard_normal((8, 8, 3, 3)).astype(np.float32), taps)
    expected = np.einsum("mc,ncyx->nmyx", w[:, :, 1, 1], x)
    keywords = {"pads": (far,) * 4, "dilations": (far, far)}
    got = _engine.MaskedConv.sparse(w, None, np.ones((3, 3), bool), **keywords)(x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    got = _engine.SampledConv(w, None, in_shape=(3, 3), **keywords)(rows_of(x))
    np.testing.assert_allclose(got, rows_of(expected), rtol=1e-4, atol=1e-5)
