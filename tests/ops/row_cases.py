"""Random single-node models of the operators on rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from perfonnx import ops
from perfonnx.masks import PoolWindow
from perfonnx.ops.common import TILE_SIZES, Activation, ConvAttributes, conv_attributes
from perfonnx.ops.sampled_conv import SAMPLED_CONV
from perfonnx.ops.sampled_pool import SAMPLED_AVERAGE_POOL
from perfonnx.ops.sampled_pool import window as window_of
from perfonnx.ops.sampled_radius_adaptive_conv import SAMPLED_RADIUS_ADAPTIVE_CONV
from tests.ops.cases import ACTIVATIONS, draw_slope, weighing_taps, write_out

OPERATORS = list(ops.LOWERED)


@dataclass
class RowCase:
    """One operator with its inputs in order, None where omitted; the first is fed, the others are constant."""

    op: str
    inputs: dict[str, np.ndarray | None]
    attributes: dict[str, Any]
    expected: np.ndarray
    opset: int = 17

    @property
    def first(self) -> str:
        """Name of the input that is fed."""
        return next(iter(self.inputs))

    @property
    def feed(self) -> dict[str, np.ndarray]:
        """The first input, for a session."""
        value = self.inputs[self.first]
        assert value is not None
        return {self.first: value}

    def model(self, *, fallback: bool) -> onnx.ModelProto:
        """A model of one node; a function body is given every optional input."""
        inputs = dict(self.inputs)
        functions = []
        value = inputs[self.first]
        assert value is not None
        elem_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        if fallback:
            operator = ops.OPERATORS[self.op]
            fill_in(inputs, self.op, self.attributes)
            given = [name for name in operator.by_model if inputs.get(name) is not None]
            functions = [operator.function_body(self.opset, elem_type, given)]
        names = [name if v is not None else "" for name, v in inputs.items()]
        while not names[-1]:
            names.pop()
        rank = 4 if self.op == "ExpandRows" else 3
        node = helper.make_node(self.op, names, ["R"], name="the_node", domain=ops.DOMAIN, **self.attributes)
        graph = helper.make_graph(
            [node],
            "case",
            [helper.make_tensor_value_info(self.first, elem_type, ["N", *value.shape[1:]])],
            [helper.make_tensor_value_info("R", elem_type, [None] * rank)],
            [numpy_helper.from_array(v, k) for k, v in inputs.items() if v is not None and k != self.first],
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)


def fill_in(inputs: dict[str, np.ndarray | None], op: str, attributes: dict[str, Any]) -> None:
    """Write the optional inputs that are absent as what their absence means."""
    shape = inputs.get("in_shape")
    if "in_source" in inputs and inputs["in_source"] is None and shape is not None:
        inputs["in_source"] = np.arange(int(shape.prod()), dtype=np.int32)
    x = inputs.get("X")
    if op == "Compact" and x is not None:
        if inputs["sites"] is None:
            inputs["sites"] = np.arange(x.shape[2] * x.shape[3], dtype=np.int32)
        if inputs["shape"] is None:  # any size
            inputs["shape"] = np.zeros(2, np.int64)
    if "Pool" in op and inputs["sites"] is None and shape is not None:
        out = window_of(attributes).output_shape((int(shape[0]), int(shape[1])))
        inputs["sites"] = np.arange(out[0] * out[1], dtype=np.int32)
    write_out(ops.OPERATORS[op], dict(inputs), inputs)
    if ops.OPERATORS[op].is_layer:
        w = inputs["W"]
        assert w is not None
        assert shape is not None
        if inputs["sites"] is None:
            out = conv_attributes(w, attributes).output_shape(int(shape[0]), int(shape[1]))
            inputs["sites"] = np.arange(out[0] * out[1], dtype=np.int32)
    if op == "SampledConv":
        sites, z = inputs["sites"], inputs["Z"]
        assert sites is not None
        if z is None:
            inputs["Z"] = np.zeros((1, 1, w.shape[0]), w.dtype)
            inputs["z_source"] = np.zeros(sites.size, np.int32)
        elif inputs["z_source"] is None:
            inputs["z_source"] = np.arange(sites.size, dtype=np.int32)


def _floats(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


@st.composite
def row_cases(draw: st.DrawFn, op: str) -> RowCase:
    """Any geometry, batch 0..3, tables with and without zeros, present and absent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    batch, height, width = draw(st.sampled_from([1, 2, 3, 0])), draw(st.integers(1, 9)), draw(st.integers(1, 8))
    shape = np.array([height, width], np.int64)
    group = draw(st.sampled_from([1, 1, 2]))
    channels = group * draw(st.sampled_from([1, 3, 8, 17]))
    if op == "Compact":
        x = _floats(rng, (batch, channels, height, width), dtype)
        sites = _sites(draw, rng, height * width)
        inputs = {"X": x, "sites": sites, "shape": draw(st.sampled_from([shape, shape * [0, 1], None]))}
        return RowCase(op, inputs, {}, ops.OPERATORS[op].reference(*inputs.values()))
    rows = draw(st.integers(1, 12)) if draw(st.booleans()) else height * width
    s = _floats(rng, (batch, rows, channels), dtype)
    if op == "ExpandRows":
        source = rng.integers(-1, rows, (height * width, draw(st.integers(1, 3)))).astype(np.int32)
        weight = rng.standard_normal(source.shape).astype(np.float32) if draw(st.booleans()) else None
        inputs = {"S": s, "source": source, "shape": shape, "weight": weight}
        return RowCase(op, inputs, {}, ops.OPERATORS[op].reference(*inputs.values()))
    in_source = None
    if rows != height * width or draw(st.booleans()):
        in_source = rng.integers(-1, rows, height * width).astype(np.int32)
    if op == "SampledConv":
        return _sampled_conv(draw, rng, s, in_source, shape, group)
    if op == "SampledRadiusAdaptiveConv":
        return _sampled_radius(draw, rng, s, in_source, shape, group)
    return _sampled_pool(draw, rng, op, s, in_source, shape)


def _sites(draw: st.DrawFn, rng: np.random.Generator, positions: int) -> np.ndarray | None:
    if draw(st.booleans()):
        return None
    chosen = rng.random(positions) < draw(st.sampled_from([0.3, 0.8]))
    chosen[rng.integers(positions)] = True  # rows without any site are not made
    return np.flatnonzero(chosen).astype(np.int32)


def _sampled_conv(
    draw: st.DrawFn,
    rng: np.random.Generator,
    s: np.ndarray,
    in_source: np.ndarray | None,
    shape: np.ndarray,
    group: int,
) -> RowCase:
    geometry = ConvAttributes(
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        draw(st.tuples(st.integers(1, 2), st.integers(1, 3))),
        draw(st.tuples(*[st.integers(0, 2)] * 4)),
        draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        group,
    )
    out_h, out_w = geometry.output_shape(int(shape[0]), int(shape[1]))
    assume(out_h >= 1 and out_w >= 1)
    outputs = group * draw(st.sampled_from([1, 5, 33]))
    w = _floats(rng, (outputs, s.shape[2] // group, *geometry.kernel_shape), s.dtype)
    w = (w / np.sqrt(max(1, w[0].size)) * weighing_taps(draw, rng, geometry.kernel_shape)).astype(s.dtype)
    b = _floats(rng, (outputs,), s.dtype) if draw(st.booleans()) else None
    sites = _sites(draw, rng, out_h * out_w)
    count = out_h * out_w if sites is None else sites.size
    z, z_source = None, None
    if draw(st.booleans()):
        direct = draw(st.booleans())
        z = _floats(rng, (draw(st.sampled_from([1, s.shape[0]])), count if direct else 4, outputs), s.dtype)
        z_source = None if direct else rng.integers(-1, 4, count).astype(np.int32)
    activation: Activation = draw(st.sampled_from(ACTIVATIONS))
    inputs = {
        "S": s,
        "W": w,
        "B": b,
        "in_source": in_source,
        "in_shape": shape,
        "sites": sites,
        "Z": z,
        "z_source": z_source,
        "slope": draw_slope(draw, rng, outputs, s.dtype),
    }
    attributes = {**geometry.attributes(), **activation.attributes(), "largest_tile": draw(st.sampled_from(TILE_SIZES))}
    expected = SAMPLED_CONV.reference(*inputs.values(), **attributes)
    return RowCase("SampledConv", inputs, attributes, expected)


def _sampled_radius(
    draw: st.DrawFn,
    rng: np.random.Generator,
    s: np.ndarray,
    in_source: np.ndarray | None,
    shape: np.ndarray,
    group: int,
) -> RowCase:
    geometry = ConvAttributes(
        (3, 3),
        draw(st.tuples(st.integers(1, 2), st.integers(1, 3))),
        draw(st.tuples(*[st.integers(0, 3)] * 4)),
        draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        group,
    )
    out_h, out_w = geometry.output_shape(int(shape[0]), int(shape[1]))
    assume(out_h >= 1 and out_w >= 1)
    outputs, channels = group * draw(st.sampled_from([1, 5, 33])), s.shape[2]
    w = _floats(rng, (outputs, channels // group, 3, 3), s.dtype)
    gate = _floats(rng, (1, channels, 1, 1), s.dtype) * draw(st.sampled_from([0, 1]))
    bias = draw(st.sampled_from([None, -1.0, -0.25, 0.25, 1.0]))
    inputs = {
        "S": s,
        "W": (w / np.sqrt(max(1, w[0].size))).astype(s.dtype),
        "B": _floats(rng, (outputs,), s.dtype) if draw(st.booleans()) else None,
        "W_alpha": gate.astype(s.dtype),
        "B_alpha": None if bias is None else np.array([bias], s.dtype),
        "B_ring": _floats(rng, (outputs,), s.dtype) if draw(st.booleans()) else None,
        "in_source": in_source,
        "in_shape": shape,
        "sites": _sites(draw, rng, out_h * out_w),
        "slope": draw_slope(draw, rng, outputs, s.dtype),
    }
    activation: Activation = draw(st.sampled_from(ACTIVATIONS))
    gain = draw(st.sampled_from([0.0, 1.0]))
    attributes = {**geometry.attributes(), **activation.attributes(), "center_gain": gain}
    attributes["largest_tile"] = draw(st.sampled_from(TILE_SIZES))
    expected = SAMPLED_RADIUS_ADAPTIVE_CONV.reference(*inputs.values(), **attributes)
    return RowCase("SampledRadiusAdaptiveConv", inputs, attributes, expected)


def _sampled_pool(
    draw: st.DrawFn,
    rng: np.random.Generator,
    op: str,
    s: np.ndarray,
    in_source: np.ndarray | None,
    shape: np.ndarray,
) -> RowCase:
    average = op == SAMPLED_AVERAGE_POOL.name
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    if draw(st.integers(0, 4)) == 0:
        kernel = (int(shape[0]), int(shape[1]))
    attributes: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "strides": list(draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))),
        "pads": [draw(st.integers(0, max(0, kernel[i % 2] - 1))) for i in range(4)],
        "ceil_mode": draw(st.integers(0, 1)),
    }
    if average:
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    else:
        attributes["dilations"] = list(draw(st.tuples(st.integers(1, 2), st.integers(1, 2))))
    window: PoolWindow = window_of(attributes)
    height, width = int(shape[0]), int(shape[1])
    extent = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    assume(extent[0] <= height + attributes["pads"][0] + attributes["pads"][2])
    assume(extent[1] <= width + attributes["pads"][1] + attributes["pads"][3])
    out_h, out_w = window.output_shape((height, width))
    assume(out_h >= 1 and out_w >= 1)
    sites = _sites(draw, rng, out_h * out_w)
    expected = ops.OPERATORS[op].reference(s, in_source, shape, sites, **attributes)
    assume(np.isfinite(expected.astype(np.float64)).all())  # a window wholly in the padding is nobody's
    inputs = {"S": s, "in_source": in_source, "in_shape": shape, "sites": sites}
    return RowCase(op, inputs, attributes, expected)
