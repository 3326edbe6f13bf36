"""Column sparsity: inputs that all outputs do without (Lebedev and Lempitsky, arXiv 1506.02515), by exact surgery.

The columns of a layer's im2row matrix that no output reads need not be made. In standard ONNX those of an input go
together, all taps of a channel; in matrix products and 1x1 convolutions an input is one column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.form import Form, Order, Part, Piece
from perfonnx.methods.lowrank.metric import Frobenius
from perfonnx.methods.lowrank.rows import DIRECT

Float = NDArray[np.float64]


@dataclass(frozen=True)
class ColumnSparse(LowRank):
    """`rank` inputs are left; the weights of those are fitted anew."""

    NAME = "column-sparse"
    SUMMARY = "leaves out inputs, and fits the weights of the others anew"
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
        weight = problem.weight.reshape(form.outputs, -1)
        if isinstance(problem.metric, Frobenius):  # no input makes up for another
            norms = np.square(weight).reshape(form.outputs, form.inputs, -1).sum(axis=(0, 2))
            kept = np.sort(np.argsort(-norms, kind="stable")[:rank])
            left = np.zeros_like(problem.weight)
            left[:, kept] = problem.weight[:, kept]
        else:
            columns = weight.shape[1]
            form_of_metric = problem.metric.apply(np.eye(columns).reshape(columns, *problem.weight.shape[1:]))
            kept, left = eliminated(weight, form_of_metric.reshape(columns, columns), form.inputs, rank)
            left = left.reshape(problem.weight.shape)
        return Factors([kept, left[:, kept]], left)


def eliminated(weight: Float, metric: Float, inputs: int, rank: int) -> tuple[NDArray[np.intp], Float]:
    """The inputs that are left, and the weight [M, K] with zeros for the others.

    With H the metric's matrix, leaving out columns b costs tr(W_b (H^-1_bb)^-1 W_b'), when all others make up for them
    by W -= W_b (H^-1_bb)^-1 H^-1_b.

    Args:
        weight: [M, K].
        metric: [K, K].
        inputs: K is so many times the taps.
        rank: Inputs that are left.
    """
    weight, inverse = weight.copy(), np.linalg.inv(metric)
    taps = weight.shape[1] // inputs
    left = list(range(inputs))
    while len(left) > rank:
        blocks = [slice(each * taps, (each + 1) * taps) for each in left]
        solved = [np.linalg.solve(inverse[b, b], weight[:, b].T) for b in blocks]
        costs = [float(np.vdot(s, weight[:, b].T)) for s, b in zip(solved, blocks, strict=True)]
        least = int(np.argmin(costs))
        block = blocks[least]
        weight -= solved[least].T @ inverse[block]
        inverse -= inverse[:, block] @ np.linalg.solve(inverse[block, block], inverse[block])
        weight[:, block] = 0
        del left[least]
    return np.array(left), weight
