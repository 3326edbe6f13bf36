"""ExpandRows: the map that rows stand for, interpolated.

It is not called Expand: simplifiers go by the names of operators alone, and take away an Expand that changes no shape.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops import common, rows
from perfonnx.ops.base import Default, Given, Inference, Input, Operator, refuse
from perfonnx.ops.bodies import FunctionBuilder
from perfonnx.ops.perforated_conv import ones_for_source

DOC = """Map [N, C, OH, OW] in which position q holds the weighted sum of the rows source[q, :]; -1 adds zero."""


def _infer(node: Inference) -> None:
    if node.type("S") is None:
        return
    dims = node.dims("S")
    if dims is not None and len(dims) != 3:
        refuse(f"S must have rank 3, not {len(dims)}")
    node.give(None if dims is None else [dims[0], dims[2], *(node.map_size("shape") or (None, None))])


def _compute(given: Given) -> NDArray[Any]:
    s, source, shape, weight = given["S"], given["source"], given["shape"], given["weight"]
    result = np.zeros((s.shape[0], s.shape[2], int(shape[0]), int(shape[1])))
    for k in range(source.shape[1]):
        factor = 1.0 if weight is None else weight[:, k].astype(np.float64).reshape(result.shape[2:])
        result += rows.virtual_map(s.astype(np.float64), source[:, k], shape) * factor
    return common.cast_like(result, s)


def _body(f: FunctionBuilder, given: Collection[str]) -> str:
    return rows.body_map(f, "S", "source", "shape", "weight" if "weight" in given else "")


EXPAND = Operator(
    name="ExpandRows",
    doc=DOC,
    inputs=(
        Input("S", "T", "Rows [N, P, C]."),
        Input("source", "tensor(int32)", "[OH*OW, K], row numbers; -1 adds zero.", rank=2, is_table=True),
        rows.map_size("shape", "[2]: OH, OW."),
        Input(
            "weight",
            "F",
            "[OH*OW, K] factors; absent: all 1.",
            optional=True,
            default=Default("weight", ones_for_source),
            by_model=True,
            rank=2,
            is_table=True,
        ),
    ),
    output=Input("Y", "T", "Map [N, C, OH, OW]."),
    infer=_infer,
    compute=_compute,
    body=_body,
    lowered=True,
)
