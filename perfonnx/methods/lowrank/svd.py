"""Truncated singular value decomposition of matrix products and 1x1 convolutions (Denton et al., arXiv 1404.0736)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.form import Form, Part, Piece, pointwise


@dataclass(frozen=True)
class Svd(LowRank):
    """A matrix of M x K becomes one of `rank` x K and one of M x `rank`."""

    NAME = "svd"
    SUMMARY = "fully connected layers and 1x1 convolutions as two of a smaller rank, by singular values"
    PLACE = 29
    REPLACES = frozenset({"Conv", "Gemm", "MatMul"})
    TRIED = True

    def unfit(self, form: Form) -> str | None:
        """See `LowRank.unfit`."""
        return None if form.taps == 1 else f"its kernel is {form.kernel[0]}x{form.kernel[1]}; zhang is for those"

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`: the stride and the pads come first, where they make the map smaller."""
        first = Part("down", (rank, form.inputs, 1, 1), replace(form.attributes, group=1))
        return [first, pointwise("up", form.outputs, rank)]

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return min(form.outputs, form.inputs)

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`."""
        up, down = problem.metric.low_rank(problem.weight, rank)
        weight = (up @ down.reshape(rank, -1)).reshape(problem.weight.shape)
        return Factors([down, up[:, :, None, None]], weight)
