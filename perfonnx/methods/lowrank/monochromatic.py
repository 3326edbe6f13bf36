"""Monochromatic filters, for the first layer (Denton et al., arXiv 1404.0736, section 3.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.clusters import equal_clusters
from perfonnx.methods.lowrank.form import Form, Order, Part, Piece, pointwise
from perfonnx.methods.lowrank.metric import Frobenius
from perfonnx.methods.lowrank.multilinear import einsum, fit

Float = NDArray[np.float64]

MOST_INPUTS = 4
"""Channels of an image, at most."""


@dataclass(frozen=True)
class Monochromatic(LowRank):
    """Each filter sees the image in one of `rank` colours."""

    NAME = "monochromatic"
    SUMMARY = "first layers: a 1x1 convolution gives a few colours, and each filter reads one of them"
    PLACE = 20

    def unfit(self, form: Form) -> str | None:
        """See `LowRank.unfit`."""
        if not 1 < form.inputs <= MOST_INPUTS:
            return f"it has {form.inputs} inputs, which are no colours of an image"
        return "its kernel is 1x1; svd is for those" if form.taps == 1 else None

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`."""
        filters = Part("filters", (form.outputs, 1, *form.kernel), replace(form.attributes, group=rank))
        return [pointwise("colours", rank, form.inputs), filters, Order("order", form.outputs, form.outputs)]

    def ranks(self, form: Form) -> Sequence[int]:
        """See `LowRank.ranks`: groups have as many filters each."""
        return [rank for rank in range(1, form.outputs + 1) if form.outputs % rank == 0]

    def full(self, form: Form) -> int:
        """See `LowRank.full`: as many as there are filters, which even so have one colour each."""
        return form.outputs

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`: colours are clustered, then the filters fitted; in another metric both by turns."""
        weight = problem.weight.reshape(form.outputs, form.inputs, form.taps)
        colours = np.linalg.svd(weight)[0][:, :, 0]
        largest = np.take_along_axis(colours, np.abs(colours).argmax(axis=1)[:, None], axis=1)
        colours = colours * np.sign(largest)  # the filter may turn its sign
        order = equal_clusters(colours, rank)
        sorted_colours = colours[order].reshape(rank, -1, form.inputs)
        centres = np.stack(
            [np.linalg.svd(each)[2][0] for each in sorted_colours]
        )  # the nearest line: signs do not count
        grouped = weight[order].reshape(rank, -1, form.inputs, form.taps)
        filters = einsum("gc,gmct->gmt", centres, grouped)
        if not isinstance(problem.metric, Frobenius):
            back = np.argsort(order)

            def apply(w: Float) -> Float:
                flat = w.reshape(form.outputs, *problem.weight.shape[1:])[back]
                return problem.metric.apply(flat)[order].reshape(grouped.shape)

            centres, filters = fit("gc,gmt->gmct", [centres, filters], grouped, apply)
        product = einsum("gc,gmt->gmct", centres, filters).reshape(form.outputs, form.inputs, form.taps)
        arrays = [centres[:, :, None, None], filters.reshape(form.outputs, 1, *form.kernel), np.argsort(order)]
        return Factors(arrays, product[np.argsort(order)].reshape(problem.weight.shape))
