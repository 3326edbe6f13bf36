"""SampledRadiusAdaptiveConv: the radius-adaptive convolution from rows to rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from perfonnx.ops import common, radius_adaptive_conv, rows
from perfonnx.ops.base import Given, Input, Operator
from perfonnx.ops.bodies import FunctionBuilder

DOC = """RadiusAdaptiveConv of the map that S stands for (position q of it is row in_source[q], -1 zeros), at the output
positions `sites`. The ring is computed at those of them alone whose alpha is above 0."""


def _compute(given: Given) -> NDArray[Any]:
    x = rows.virtual_map(given["S"], given["in_source"], given["in_shape"])
    dense = radius_adaptive_conv.adaptive_sum(given, x)
    return common.cast_like(common.activation_of(given)(rows.take_sites(dense, given["sites"])), given["S"])


def _body(f: FunctionBuilder, given: Collection[str]) -> str:
    """Build the map, compute all of it, take the sites."""
    dense = radius_adaptive_conv.body_sum(f, rows.body_map(f, "S", "in_source", "in_shape"))
    return f.activate(rows.body_rows(f, dense, "sites"), sloped="slope" in given, channels_last=True)


SAMPLED_RADIUS_ADAPTIVE_CONV = Operator(
    name="SampledRadiusAdaptiveConv",
    doc=DOC,
    inputs=(
        rows.S,
        replace(common.W, doc="Weights [M, C/group, 3, 3]."),
        common.B,
        *radius_adaptive_conv.GATE_INPUTS,
        rows.IN_SOURCE,
        rows.IN_SHAPE,
        rows.sites("[P], flat output positions; absent: all."),
        common.SLOPE,
    ),
    output=Input("R", "T", "Rows [N, P, M]."),
    attributes=radius_adaptive_conv.ATTRIBUTES,
    infer=rows.infer_conv,
    compute=_compute,
    body=_body,
    lowered=True,
    positions=rows.at_sites,
)
