"""Random single-node models of every operator, in all the awkward geometries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from perfonnx import ops
from perfonnx.ops.common import FLOAT_MAX, TILE_SIZES, Activation, ConvAttributes

LATEST_OPSET = 21


@dataclass
class Case:
    """One operator with its inputs; `constants` are in the operator's input order, None where omitted."""

    op: str
    x: np.ndarray
    constants: dict[str, np.ndarray | None]
    geometry: ConvAttributes
    activation: Activation
    extra: dict[str, Any] = field(default_factory=dict)
    opset: int = 17

    def model(self, *, fallback: bool) -> onnx.ModelProto:
        """A model of one node; with `fallback` omitted optional inputs are filled in, as a body needs them."""
        constants = dict(self.constants)
        operator = ops.OPERATORS[self.op]
        elem_type = helper.np_dtype_to_tensor_dtype(self.x.dtype)
        functions = []
        if fallback:
            write_out(operator, {"X": self.x, **constants}, constants)
            given = [name for name in operator.by_model if constants.get(name) is not None]
            functions = [operator.function_body(self.opset, elem_type, given)]
        names = ["X", *(name if value is not None else "" for name, value in constants.items())]
        while not names[-1]:
            names.pop()
        attributes = {**self.geometry.attributes(), **self.activation.attributes(), **self.extra}
        node = helper.make_node(self.op, names, ["Y"], name="the_node", domain=ops.DOMAIN, **attributes)
        initializers = [numpy_helper.from_array(v, k) for k, v in constants.items() if v is not None]
        shape = ["N", *self.x.shape[1:]]
        graph = helper.make_graph(
            [node],
            "case",
            [helper.make_tensor_value_info("X", elem_type, shape)],
            [helper.make_tensor_value_info("Y", elem_type, [None] * 4)],
            initializers,
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)

    def reference(self) -> np.ndarray:
        """The numpy reference's answer."""
        attributes = {**self.geometry.attributes(), **self.activation.attributes(), **self.extra}
        return ops.OPERATORS[self.op].reference(self.x, *self.constants.values(), **attributes)


def write_out(
    operator: ops.Operator, given: Mapping[str, np.ndarray | None], into: dict[str, np.ndarray | None]
) -> None:
    """Add the optional inputs that are absent and that a function body cannot do without."""

    def known(name: str) -> tuple[np.dtype, Sequence[int]]:
        value = given[name]
        assert value is not None
        return value.dtype, value.shape

    for i in operator.inputs:
        if i.name in into and into[i.name] is None and i.default is not None and not i.by_model:
            into[i.name] = i.default.make(known)


ACTIVATIONS = (
    Activation(),
    Activation(negative_slope=0.0),
    Activation(negative_slope=0.125),
    Activation(negative_slope=0.0, clip_max=1.5),
    Activation(clip_min=0.25, clip_max=1.0),
    Activation(negative_slope=0.0, clip_min=-FLOAT_MAX, clip_max=FLOAT_MAX),
)


def _array(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(dtype)


def draw_slope(draw: st.DrawFn, rng: np.random.Generator, outputs: int, dtype: Any) -> np.ndarray | None:
    """Slopes for each channel: none, any, or such as are special."""
    kind = draw(st.sampled_from(["none", "any", "special"]))
    if kind == "none":
        return None
    return _array(rng, (outputs,), dtype) if kind == "any" else rng.choice([-1.5, 0, 0.25, 1, 3], outputs).astype(dtype)


def weighing_taps(draw: st.DrawFn, rng: np.random.Generator, kernel: tuple[int, int]) -> np.ndarray:
    """Which taps [kh, kw] have weights other than zero: often all of them."""
    return rng.random(kernel) < draw(st.sampled_from([1.0, 1.0, 0.5, 0.0]))


@st.composite
def cases(draw: st.DrawFn, op: str) -> Case:
    """Any geometry: non-square maps and kernels, stride, dilation, asymmetric pads, groups, depthwise, batch 0..3."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels = group * draw(st.sampled_from([1, 2, 3, 5]))
    out_channels = group * draw(st.sampled_from([1, 2, 5, 17, 33]))
    kernel = (3, 3) if op == "RadiusAdaptiveConv" else (draw(st.integers(1, 5)), draw(st.integers(1, 4)))
    two = st.tuples(st.integers(1, 3), st.integers(1, 2))
    geometry = ConvAttributes(
        kernel,
        draw(two),
        draw(st.tuples(*[st.integers(0, 3)] * 4)),
        draw(st.tuples(st.integers(1, 2), st.integers(1, 3))),
        group,
    )
    height, width = draw(st.integers(1, 13)), draw(st.integers(1, 11))
    out_h, out_w = geometry.output_shape(height, width)
    assume(out_h >= 1 and out_w >= 1)
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    x = _array(rng, (draw(st.sampled_from([1, 1, 2, 3, 0])), channels, height, width), dtype)
    w = _array(rng, (out_channels, channels // group, *kernel), dtype, 1 / np.sqrt(channels * kernel[0] * kernel[1]))
    w *= weighing_taps(draw, rng, kernel).astype(dtype)
    b = _array(rng, (out_channels,), dtype) if draw(st.booleans()) else None
    constants: dict[str, np.ndarray | None] = {"W": w, "B": b}
    extra: dict[str, Any] = {}
    if op == "RadiusAdaptiveConv":
        constants["W_alpha"] = _array(rng, (1, channels, 1, 1), dtype)
        constants["B_alpha"] = _array(rng, (1,), dtype) if draw(st.booleans()) else None
        constants["B_ring"] = _array(rng, (out_channels,), dtype) if draw(st.booleans()) else None
        extra["center_gain"] = draw(st.sampled_from([0.0, 1.0]))
    else:
        mask = rng.random((out_h, out_w)) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
        constants["mask"] = mask
        if op == "SparseConv":
            constants["fill"] = _array(rng, (out_channels,), dtype) if draw(st.booleans()) else None
        else:
            constants["source"], constants["weight"] = _tables(draw, rng, mask)
            extra["interpolation"] = "test"
    constants["slope"] = draw_slope(draw, rng, out_channels, dtype)
    extra["largest_tile"] = draw(st.sampled_from(TILE_SIZES))
    return Case(op, x, constants, geometry, draw(st.sampled_from(ACTIVATIONS)), extra)


def _tables(draw: st.DrawFn, rng: np.random.Generator, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    sites = np.append(np.flatnonzero(mask), -1)
    count = draw(st.integers(1, 3))
    source = rng.choice(sites, (mask.size, count)).astype(np.int32)
    weight = rng.standard_normal(source.shape).astype(np.float32) if draw(st.booleans()) else None
    return source, weight


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal within rounding of the type, relative to the largest value."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(1.0, float(np.abs(expected.astype(np.float64)).max(initial=0)))
    tolerance = 1e-5 if expected.dtype == np.float32 else 4e-3
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance * scale)
