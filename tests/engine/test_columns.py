"""Weights that are zero for whole panels of outputs, against numpy, with every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx import _engine
from tests.engine.reference import NO_ACTIVATION, Geometry, activate, conv, map_of, picked, rows_of
from tests.processes import assert_same_on_any_number_of_processors

ISAS = _engine.available_isas()


def _sparse(rng: np.random.Generator, w: np.ndarray, kept: float, block: int = 16, runs: bool = False) -> np.ndarray:
    """The weights [M, C, kh, kw] with a share of their columns, or taps, for each block of outputs."""
    sparse = w.copy()
    for first in range(0, len(w), block):
        sparse[first : first + block] *= rng.random((1 if runs else w.shape[1], *w.shape[2:])) < kept
    return sparse


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    inputs=st.sampled_from([1, 3, 16, 40, 200]),
    outputs=st.integers(1, 70),
    group=st.sampled_from([1, 1, 2, 5]),
    images=st.integers(0, 3),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    kept=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    block=st.sampled_from([1, 8, 16, 32]),
    runs=st.booleans(),
    sites=st.sampled_from(["all", "some", "any order"]),
    adds=st.booleans(),
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
    kept: float,
    block: int,
    runs: bool,
    sites: str,
    adds: bool,
    activation: tuple[float, float, float],
    sloped: bool,
    isa: str,
) -> None:
    rng = np.random.default_rng(seed)
    geometry = Geometry(kernel, strides, pads, dilations)
    outputs *= group
    in_source = rng.integers(-1, size[0] * size[1], size[0] * size[1]).astype(np.int32)
    s = rng.standard_normal((images, in_source.size, inputs * group)).astype(np.float32)
    w = rng.standard_normal((outputs, inputs, *kernel)).astype(np.float32)
    w = _sparse(rng, w, kept, block, runs)
    b = rng.standard_normal(outputs).astype(np.float32) if rng.random() < 0.7 else None
    out = geometry.output_size(*size)
    numbers = np.flatnonzero(rng.random(out[0] * out[1]) < (1 if sites == "all" else 0.4)).astype(np.int32)
    if sites == "any order":
        rng.shuffle(numbers)
    linear = rows_of(conv(map_of(s, in_source, size), w, geometry, group), numbers)
    if b is not None:
        linear = linear + b
    z, z_source = None, None
    if adds:
        z = rng.standard_normal((1, 5, outputs)).astype(np.float32)
        z_source = rng.integers(-1, 5, len(numbers)).astype(np.int32)
        linear = linear + picked(z, z_source)
    slope = rng.choice(np.array([-1, 0, 0.25, 1], np.float32), outputs) if sloped else None
    engine = _engine.SampledConv(
        w,
        b,
        in_shape=size,
        in_source=in_source,
        sites=numbers,
        adds=adds,
        z_source=z_source,
        group=group,
        activation=activation,
        slope=slope,
        isa=isa,
        implementation="columns",
        **geometry.keywords(),
    )
    got = engine(s, z)
    np.testing.assert_allclose(got, activate(linear, activation, slope), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(engine(s, z, threads=3), got)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_panel_does_not_read_what_it_has_no_weights_for(isa: str, value: float) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((32, 600, 1, 1)).astype(np.float32)
    w[:16, 7] = 0
    w[16:, 555] = 0
    s = rng.standard_normal((1, 30, 600)).astype(np.float32)
    engine = _engine.SampledConv(w, None, in_shape=(5, 6), isa=isa, implementation="columns")
    clean = engine(s)
    s[0, 4, 7] = value
    s[0, 9, 555] = value
    got = engine(s)
    assert not np.isfinite(got[0, 4, 16:]).any()
    assert not np.isfinite(got[0, 9, :16]).any()
    got[0, 4, 16:], got[0, 9, :16] = clean[0, 4, 16:], clean[0, 9, :16]
    np.testing.assert_array_equal(got, clean)


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "kept", "block", "chosen"),
    [
        (64, 64, 3, 0.15, 16, "columns"),
        (64, 64, 3, 0.5, 16, "winograd4"),
        (64, 64, 5, 0.25, 16, "columns"),
        (64, 256, 1, 0.5, 16, "columns"),
        (64, 256, 1, 1.0, 16, "direct"),
        (64, 64, 1, 0.5, 1, "direct"),  # few columns are zero for 16 outputs
        (512, 128, 3, 0.2, 16, "columns"),
        (512, 130, 1, 0.6, 16, "columns"),
        (1, 64, 3, 0.5, 16, "direct"),
    ],
)
def test_enough_zeros_are_left_out(
    inputs: int, outputs: int, kernel: int, kept: float, block: int, chosen: str
) -> None:
    rng = np.random.default_rng(0)
    w = _sparse(rng, np.ones((outputs, inputs, kernel, kernel), np.float32), kept, block)
    engine = _engine.SampledConv(w, None, in_shape=(28, 28), pads=(kernel // 2,) * 4)
    assert engine.implementation == chosen
    mask = rng.random((28, 28)) < 0.3
    maps = _engine.MaskedConv.sparse(w, None, mask, pads=(kernel // 2,) * 4)
    x = rng.standard_normal((1, inputs, 28, 28)).astype(np.float32)
    expected = np.where(mask, conv(x, w, Geometry((kernel, kernel), pads=(kernel // 2,) * 4)), 0)
    np.testing.assert_allclose(maps(x), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_results_do_not_depend_on_the_number_of_processors() -> None:
    assert_same_on_any_number_of_processors("""
w = rng.standard_normal((70, 130, 3, 3)).astype(np.float32)
for first in range(0, 70, 16):
    w[first : first + 16] *= rng.random((130, 3, 3)) < 0.2
s = rng.standard_normal((2, 196, 130)).astype(np.float32)
engine = _engine.SampledConv(w, None, in_shape=(14, 14), pads=(1, 1, 1, 1), implementation="columns")
result = engine(s).tobytes()
""")
