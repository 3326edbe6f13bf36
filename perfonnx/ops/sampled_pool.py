"""SampledMaxPool and SampledAveragePool: pooling from rows to rows, reading through the producer's interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from perfonnx.masks import PoolWindow
from perfonnx.ops import common, rows

INPUTS = ("S", "in_source", "in_shape", "sites")
MAX, AVERAGE = "SampledMaxPool", "SampledAveragePool"
"""Two operators, since a function body cannot choose by an attribute."""

DOC = """Pooling of the map that S stands for (position q of it is row in_source[q], -1 zeros), at the pooled positions
`sites`. Average pooling counts repeated rows and divides by the true window; a global pool has the map's size."""


def window(attributes: Mapping[str, Any]) -> PoolWindow:
    """The pooling window that node attributes describe."""

    def ints(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = attributes.get(name)
        return default if value is None else tuple(int(v) for v in value)

    kernel, strides = ints("kernel_shape", ()), ints("strides", (1, 1))
    pads, dilations = ints("pads", (0, 0, 0, 0)), ints("dilations", (1, 1))
    return PoolWindow(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        (dilations[0], dilations[1]),
        bool(attributes.get("ceil_mode") or 0),
    )


def reference(
    s: NDArray[Any],
    in_source: NDArray[np.int32] | None,
    in_shape: NDArray[np.int64],
    sites: NDArray[np.int32] | None = None,
    *,
    window: PoolWindow,
    average: bool = False,
    count_include_pad: bool = False,
) -> NDArray[Any]:
    """The operators in numpy; shapes as in `schema`. Averages are taken in float64 and rounded once."""
    x = rows.virtual_map(s, in_source, in_shape).astype(np.float64)
    height, width = x.shape[2:]
    out_h, out_w = window.output_shape((height, width))
    result = np.zeros((*x.shape[:2], out_h, out_w))
    for oy in range(out_h):
        ys = oy * window.strides[0] - window.pads[0] + window.dilations[0] * np.arange(window.kernel[0])
        for ox in range(out_w):
            xs = ox * window.strides[1] - window.pads[1] + window.dilations[1] * np.arange(window.kernel[1])
            inside = x[:, :, ys[(ys >= 0) & (ys < height)]][:, :, :, xs[(xs >= 0) & (xs < width)]]
            if not average:
                result[:, :, oy, ox] = inside.max(axis=(2, 3), initial=-np.inf)
                continue
            count = inside.shape[2] * inside.shape[3]
            if count_include_pad:  # padding counts, what a ceil_mode window reaches beyond it does not
                count = int((ys < height + window.pads[2]).sum() * (xs < width + window.pads[3]).sum())
            result[:, :, oy, ox] = inside.sum(axis=(2, 3)) / max(count, 1)
    return common.cast_like(rows.take_sites(result, sites), s)


def _operator(name: str) -> SimpleNamespace:
    """One of the two operators, with the members that a module of this package has."""
    average = name == AVERAGE
    own = "count_include_pad" if average else "dilations"
    names = ("kernel_shape", "strides", "pads", "ceil_mode", own)

    def schema() -> onnx.defs.OpSchema:
        kinds, make, attribute = onnx.defs.OpSchema.AttrType, onnx.helper.make_attribute, onnx.defs.OpSchema.Attribute
        attributes = [
            attribute("kernel_shape", kinds.INTS, "Height and width of the window.", required=True),
            attribute("strides", make("strides", [1, 1]), "Stride along height and width."),
            attribute("pads", make("pads", [0, 0, 0, 0]), "Padding: top, left, bottom, right."),
            attribute("ceil_mode", make("ceil_mode", 0), "1 rounds the output size up."),
        ]
        if average:
            attributes.append(attribute(own, make(own, 0), "1 counts padding in the divisor."))
        else:
            attributes.append(attribute(own, make(own, [1, 1]), "Dilation along height and width."))
        result = onnx.defs.OpSchema(
            name,
            common.DOMAIN,
            common.VERSION,
            DOC,
            inputs=[
                common.formal("S", "T", "Rows [N, Pin, C]."),
                common.formal("in_source", "tensor(int32)", "[H*W], row numbers; absent: 0, 1, 2, ...", optional=True),
                common.formal("in_shape", "tensor(int64)", "[2]: H, W of the map that S stands for."),
                common.formal("sites", "tensor(int32)", "[P], flat pooled positions; absent: all.", optional=True),
            ],
            outputs=[common.formal("R", "T", "Rows [N, P, C].")],
            type_constraints=[common.FLOAT_CONSTRAINT],
            attributes=attributes,
        )
        result.set_type_and_shape_inference_function(infer)
        return result

    def infer(context: Any) -> None:
        s, shape, positions = context.get_input_type(0), rows.constant_shape(context, 2), None
        named = {n: onnx.helper.get_attribute_value(a) for n in names if (a := context.get_attribute(n)) is not None}
        if shape is not None and "kernel_shape" in named:
            out = window(named).output_shape(shape)
            positions = out[0] * out[1]
        known = s is not None and s.tensor_type.HasField("shape") and len(s.tensor_type.shape.dim) == 3
        channels = s.tensor_type.shape.dim[2] if known else None
        rows.infer_rows(context, sites_input=3, channels=channels, positions=positions)

    def run(self: OpRun, *inputs: Any, **attributes: Any) -> tuple[NDArray[Any]]:
        include = bool(attributes.get("count_include_pad") or 0)
        return (reference(*inputs, window=window(attributes), average=average, count_include_pad=include),)

    def function_body(opset: int, elem_type: int) -> onnx.FunctionProto:
        f = common.FunctionBuilder(opset, elem_type)
        refs = {n: n for n in names}
        if opset < 10:  # neither attribute was there; the rewriter does not ask for them then
            refs.pop("ceil_mode")
            refs.pop("dilations", None)
        op = "AveragePool" if average else "MaxPool"
        pooled = f.add(op, rows.body_map(f, "S", "in_source", "in_shape"), refs=refs)
        return f.build(name, INPUTS, rows.body_rows(f, pooled, "sites"), names)

    return SimpleNamespace(
        NAME=name,
        INPUTS=INPUTS,
        ATTRIBUTES=names,
        schema=schema,
        function_body=function_body,
        Reference=type(name, (OpRun,), {"op_domain": common.DOMAIN, "_run": run}),
    )


max_pool = _operator(MAX)
average_pool = _operator(AVERAGE)
