"""SampledConv: convolution from rows to rows, reading through the producer's interpolation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops import common, rows
from perfonnx.ops.base import Given, Input, Operator
from perfonnx.ops.bodies import FunctionBuilder

DOC = """Convolution of the map that S stands for (position q of it is row in_source[q], -1 zeros), at the output
positions `sites`. Row z_source[p] of Z, if any, is added to row p (-1 adds zero); the activation follows. The
interpolation of the layer before is thus never written out (Figurnov et al., arXiv 1504.08362, section 3.3)."""


def _compute(given: Given) -> NDArray[Any]:
    s, z, z_source = given["S"], given["Z"], given["z_source"]
    x = rows.virtual_map(s, given["in_source"], given["in_shape"])
    result = rows.take_sites(common.convolve(x, given["W"], given["B"], common.geometry_of(given)), given["sites"])
    if z is not None:
        source = np.arange(result.shape[1]) if z_source is None else z_source
        padded = np.concatenate([np.zeros((z.shape[0], 1, z.shape[2])), z.astype(np.float64)], axis=1)
        result = result + padded[:, source + 1]
    return common.cast_like(common.activation_of(given)(result), s)


def _body(f: FunctionBuilder, given: Collection[str]) -> str:
    """Build the map, convolve all of it, take the sites."""
    conv = f.conv(rows.body_map(f, "S", "in_source", "in_shape"), "W", "B")
    index = f.add("Add", "z_source", f.constant(np.array(1, np.int32)))
    added = f.add("Gather", f.pad("Z", [0, 1, 0, 0, 0, 0]), index, axis=1)
    total = f.add("Add", rows.body_rows(f, conv, "sites"), added)
    return f.activate(total, sloped="slope" in given, channels_last=True)


SAMPLED_CONV = Operator(
    name="SampledConv",
    doc=DOC,
    inputs=(
        rows.S,
        common.W,
        common.B,
        rows.IN_SOURCE,
        rows.IN_SHAPE,
        rows.sites("[P], flat output positions; absent: all."),
        Input("Z", "T", "Rows [N or 1, Pz, M] to add.", optional=True),
        rows.numbers("z_source", "[P] or [1], row numbers of Z; absent: 0, 1, 2, ...", least=-1),
        common.SLOPE,
    ),
    output=Input("R", "T", "Rows [N, P, M]."),
    attributes=common.ATTRIBUTES,
    infer=rows.infer_conv,
    compute=_compute,
    body=_body,
    lowered=True,
    positions=rows.at_sites,
)
