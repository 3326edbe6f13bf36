"""Column sparsity: columns of the im2row matrix, a tap of a channel each, that outputs do without.

For all outputs together (Lebedev and Lempitsky, arXiv 1506.02515), or with columns of their own for each block of them.
The engine computes such layers from lists of the columns that each panel of outputs reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import Context, Method, setting
from perfonnx.methods.exact import Exact
from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.elimination import eliminated
from perfonnx.methods.lowrank.form import Form, Piece
from perfonnx.methods.lowrank.metric import Covariance
from perfonnx.methods.lowrank.rows import DIRECT
from perfonnx.model.layers import Layer, table_obstacle
from perfonnx.ops.common import LISTED_PANEL

Float = NDArray[np.float64]


@dataclass(frozen=True)
class ColumnSparse(LowRank):
    """`rank` columns are left of each block of outputs; their weights are fitted anew.

    What stands in the layer's place is a convolution with zeros, which the library computes: every position, without
    the columns of a block that are zero.

    Attributes:
        block: Outputs that read the same columns; 0: all of them.
    """

    NAME = "column-sparse"
    SUMMARY = "leaves out taps of inputs, block by block of outputs, and fits the weights of the others anew"
    PLACE = 27

    TRIED = True

    block: int = setting(
        LISTED_PANEL, "outputs of column-sparse that read the same taps of inputs; 0, or more than there are: all", "N"
    )

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        if (
            not isinstance(self.block, int)
            or isinstance(self.block, bool)
            or self.block < 0
            or self.block % LISTED_PANEL
        ):
            raise PerfonnxError(f"{where}: block {self.block!r} is not a multiple of {LISTED_PANEL}, or 0")

    @property
    def steps(self) -> tuple[Method, ...]:
        """See `Method.steps`: the library skips the zeros, onnxruntime does not."""
        return self, Exact()

    @property
    def goes_on(self) -> Method:
        """See `LowRank.goes_on`: it does so anyway."""
        return self

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """See `Method.obstacle`."""
        reason = super().obstacle(layer, context)
        if reason is None and layer.output_shape is not None:
            reason = table_obstacle(layer.output_shape[0] * layer.output_shape[1], layer.w_shape[2:])
        return reason

    def unfit(self, form: Form) -> str | None:
        """See `LowRank.unfit`."""
        columns = form.inputs * form.taps
        if form.groups > 1 and form.inputs == 1:
            return "depthwise: the library reads all of its taps"
        return f"its rows of {columns} values are too long" if columns > DIRECT else None

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`."""
        return [replace(form.whole, name="sparse", columns=rank)]

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return form.inputs * form.taps

    @property
    def unit(self) -> int:
        """See `LowRank.unit`."""
        return 1

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`: one column after the other is left out, the one that costs least in the metric."""
        weight = problem.weight.reshape(form.outputs, -1)
        left = np.zeros_like(weight)
        step = self.block or form.outputs
        for first in range(0, form.outputs, step):
            rows = slice(first, first + step)
            if isinstance(problem.metric, Covariance):
                _, left[rows] = eliminated(weight[rows], problem.metric.inverse, weight.shape[1], rank)
            else:  # no column makes up for another
                costs = weight[rows] * problem.metric.apply(problem.weight).reshape(weight.shape)[rows]
                kept = np.argsort(-costs.sum(axis=0), kind="stable")[:rank]
                left[rows, kept] = weight[rows, kept]
        found = left.reshape(problem.weight.shape)
        return Factors([found], found)
