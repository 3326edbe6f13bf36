"""Channel pruning by exact surgery (as He et al., arXiv 1707.06168, with least squares for those that are left).

In matrix products and 1x1 convolutions an input is one column of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.elimination import eliminated
from perfonnx.methods.lowrank.form import Form, Order, Part, Piece
from perfonnx.methods.lowrank.metric import Covariance
from perfonnx.methods.lowrank.rows import DIRECT


@dataclass(frozen=True)
class Prune(LowRank):
    """`rank` inputs are left; the weights of those are fitted anew."""

    NAME = "prune"
    SUMMARY = "leaves out inputs, and fits the weights of the others anew"
    PLACE = 28
    REPLACES = frozenset({"Conv", "Gemm", "MatMul"})

    def unfit(self, form: Form) -> str | None:
        """See `LowRank.unfit`."""
        columns = form.inputs * form.taps
        return f"its rows of {columns} values are too long" if columns > DIRECT else None

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`."""
        left = Part("left", (form.outputs, rank, *form.kernel), form.attributes)
        return [Order("taken", form.inputs, rank), left]

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return form.inputs

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`: one input after the other is left out, the one that costs least in the metric."""
        if isinstance(problem.metric, Covariance):
            weight = problem.weight.reshape(form.outputs, -1)
            kept, left = eliminated(weight, problem.metric.inverse, form.inputs, rank)
            left = left.reshape(problem.weight.shape)
        else:  # no input makes up for another
            costs = (problem.weight * problem.metric.apply(problem.weight)).sum(axis=(0, 2, 3))
            kept = np.sort(np.argsort(-costs, kind="stable")[:rank])
            left = np.zeros_like(problem.weight)
            left[:, kept] = problem.weight[:, kept]
        return Factors([kept, left[:, kept]], left)
