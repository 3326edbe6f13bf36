"""Tucker-2 decomposition (Kim et al., arXiv 1511.06530): pointwise, a smaller convolution, pointwise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import setting
from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.form import Form, Part, Piece, pointwise
from perfonnx.methods.lowrank.multilinear import einsum, fit

Float = NDArray[np.float64]


def check_input_rank(value: int, where: str) -> None:
    """Raise `PerfonnxError` where the setting has no meaning."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise PerfonnxError(f"{where}: input_rank {value!r} is not a whole number from 1 up")


def input_rank_of(given: int, rank: int, inputs: int, outputs: int) -> int:
    """The rank on the input side: the one that is given, or the same part of the inputs as `rank` is of the outputs."""
    return min(given or max(math.ceil(rank * inputs / outputs), 1), inputs)


@dataclass(frozen=True)
class Tucker(LowRank):
    """The inputs are mixed to fewer, convolved to `rank`, and mixed to all outputs.

    Attributes:
        input_rank: What the inputs are mixed to; 0: the same part of them as `rank` is of the outputs.
    """

    NAME = "tucker"
    SUMMARY = "Tucker-2: 1x1, a smaller convolution, 1x1"
    PLACE = 26

    input_rank: int = setting(0, "rank on the input side, for tucker and bicluster-svd", "K")

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        check_input_rank(self.input_rank, where)

    def unfit(self, form: Form) -> str | None:
        """See `LowRank.unfit`."""
        return "its kernel is 1x1; svd is for those" if form.taps == 1 else None

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`."""
        inner = input_rank_of(self.input_rank, rank, form.inputs, form.outputs)
        core = Part("core", (rank, inner, *form.kernel), form.attributes)
        return [pointwise("inputs", inner, form.inputs), core, pointwise("outputs", form.outputs, rank)]

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return form.outputs

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`: from the singular vectors of both sides, alternating in the metric."""
        inner = input_rank_of(self.input_rank, rank, form.inputs, form.outputs)
        found = two_sided(problem.weight, rank, inner)
        spec = "ma,abij,bc->mcij"
        if rank < form.outputs or inner < form.inputs:
            found = fit(spec, found, problem.weight, problem.metric.apply)
        outputs, core, inputs = found
        arrays = [inputs[:, :, None, None], core, outputs[:, :, None, None]]
        return Factors(arrays, einsum(spec, *found))


def two_sided(weight: Float, rank: int, inner: int) -> list[Float]:
    """Outputs [M, rank], core [rank, inner, kh, kw] and inputs [inner, C] by the singular vectors of both sides."""
    rows, columns = (_leading(np.moveaxis(weight, axis, 0), count) for axis, count in ((0, rank), (1, inner)))
    return [rows, einsum("mcij,ma,cb->abij", weight, rows, columns), columns.T]


def _leading(unfolded: Float, count: int) -> Float:
    flat = unfolded.reshape(len(unfolded), -1)
    return np.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, :count]
