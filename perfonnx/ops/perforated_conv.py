"""PerforatedConv: convolution at the sites, interpolation elsewhere (Figurnov et al., arXiv 1504.08362, section 3)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.ops import common
from perfonnx.ops.base import Attribute, Default, Given, Input, Known, Operator
from perfonnx.ops.bodies import FunctionBuilder

DOC = """Two-dimensional convolution computed at the positions where `mask` is true (the sites). Every position takes
the weighted sum of the sites that `source` lists for it; the activation follows. Kept sites are exact."""


def ones_for_source(known: Known) -> NDArray[np.float32]:
    """Factors of 1 for a table `source`."""
    return np.ones(known("source")[1], np.float32)  # type: ignore[arg-type]


def _compute(given: Given) -> NDArray[Any]:
    mask, source, weight = given["mask"], given["source"], given["weight"]
    dense = common.convolve(given["X"], given["W"], given["B"], common.geometry_of(given))
    flat = dense.reshape(*dense.shape[:2], mask.size)
    sites = np.where(mask.ravel(), flat, np.nan)  # a skipped position that is read anyway shows as NaN
    values = np.where(source < 0, 0.0, sites[:, :, np.maximum(source, 0)])
    factors = np.ones(source.shape) if weight is None else weight.astype(np.float64)
    summed = (values * factors).sum(axis=-1)
    return common.cast_like(common.activation_of(given)(summed, channel_axis=1).reshape(dense.shape), given["X"])


def _body(f: FunctionBuilder, given: Collection[str]) -> str:
    """A full Conv, then a gather from it.

    The map is flattened behind one zero column, so that `source + 1` is an index and -1 reads zero.
    """
    conv = f.conv("X", "W", "B")
    columns = f.pad(f.add("Flatten", conv, axis=2), [0, 1, 0, 0])
    index = f.add("Add", "source", f.constant(np.array(1, np.int32)))
    values = f.add("Gather", columns, index, axis=1)
    if "weight" in given:
        values = f.add("Mul", values, f.factors("weight", "X"))
    summed = f.sum_last_axis(values, 2)
    return f.activate(f.with_size_of(summed, conv, "mask"), sloped="slope" in given)


PERFORATED_CONV = Operator(
    name="PerforatedConv",
    doc=DOC,
    inputs=(
        common.X,
        common.W,
        common.B,
        common.MASK,
        Input(
            "source",
            "tensor(int32)",
            "[OH*OW, K]: for each position, the flat positions y*OW+x of the sites it is made from; -1 adds zero.",
            rank=2,
            is_table=True,
        ),
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
        common.SLOPE,
    ),
    output=common.Y,
    attributes=(
        *common.ATTRIBUTES,
        Attribute(
            "interpolation", "How `source` and `weight` were made; for the reader, the tables decide.", default=""
        ),
    ),
    infer=common.infer_map,
    compute=_compute,
    body=_body,
    positions=common.at_mask,
)
