"""SampledMaxPool and SampledAveragePool: pooling from rows to rows, reading through the producer's interpolation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.masks import PoolWindow
from perfonnx.ops import common, rows
from perfonnx.ops.base import Attribute, Given, Inference, Input, Operator
from perfonnx.ops.bodies import FunctionBuilder

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


def _infer(node: Inference) -> None:
    if node.type("S") is None:
        return
    shape, named, positions = node.map_size("in_shape"), node.attributes(), None
    if shape is not None and "kernel_shape" in named:
        out = window(named).output_shape(shape)
        positions = out[0] * out[1]
    dims = node.dims("S", 3)
    rows.infer_rows(node, channels=None if dims is None else dims[2], positions=positions)


def _compute(given: Given, *, average: bool) -> NDArray[Any]:
    pool = window(given.attributes)
    x = rows.virtual_map(given["S"], given["in_source"], given["in_shape"]).astype(np.float64)
    height, width = x.shape[2:]
    out_h, out_w = pool.output_shape((height, width))
    result = np.zeros((*x.shape[:2], out_h, out_w))
    for oy in range(out_h):
        ys = oy * pool.strides[0] - pool.pads[0] + pool.dilations[0] * np.arange(pool.kernel[0])
        for ox in range(out_w):
            xs = ox * pool.strides[1] - pool.pads[1] + pool.dilations[1] * np.arange(pool.kernel[1])
            inside = x[:, :, ys[(ys >= 0) & (ys < height)]][:, :, :, xs[(xs >= 0) & (xs < width)]]
            if not average:
                result[:, :, oy, ox] = inside.max(axis=(2, 3), initial=-np.inf)
                continue
            count = inside.shape[2] * inside.shape[3]
            if given.attributes["count_include_pad"]:  # not what a ceil_mode window reaches beyond the padding
                count = int((ys < height + pool.pads[2]).sum() * (xs < width + pool.pads[3]).sum())
            result[:, :, oy, ox] = inside.sum(axis=(2, 3)) / max(count, 1)
    return common.cast_like(rows.take_sites(result, given["sites"]), given["S"])


def _body(f: FunctionBuilder, _: Collection[str], *, op: str) -> str:
    refs = {name: name for name in f.attributes}
    if f.opset < 10:  # neither attribute was there; the rewriter does not ask for them then
        refs.pop("ceil_mode")
        refs.pop("dilations", None)
    pooled = f.add(op, rows.body_map(f, "S", "in_source", "in_shape"), refs=refs)
    return rows.body_rows(f, pooled, "sites")


def _operator(kind: str, own: Attribute) -> Operator:
    """One of the two operators: a function body cannot choose by an attribute."""
    return Operator(
        name=f"Sampled{kind}",
        doc=DOC,
        inputs=(
            rows.S,
            rows.IN_SOURCE,
            rows.IN_SHAPE,
            rows.sites("[P], flat pooled positions; absent: all."),
        ),
        output=Input("R", "T", "Rows [N, P, C]."),
        attributes=(
            Attribute("kernel_shape", "Height and width of the window.", required=True, length=2, least=1),
            Attribute("strides", "Stride along height and width.", [1, 1], least=1),
            Attribute("pads", "Padding: top, left, bottom, right.", [0, 0, 0, 0], least=0),
            Attribute("ceil_mode", "1 rounds the output size up.", 0),
            own,
        ),
        infer=_infer,
        compute=partial(_compute, average=kind == "AveragePool"),
        body=partial(_body, op=kind),
        lowered=True,
    )


SAMPLED_MAX_POOL = _operator("MaxPool", Attribute("dilations", "Dilation along height and width.", [1, 1], least=1))
SAMPLED_AVERAGE_POOL = _operator("AveragePool", Attribute("count_include_pad", "1 counts padding in the divisor.", 0))
