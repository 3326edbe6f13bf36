"""Separable filters (Jaderberg et al., arXiv 1405.3866, scheme 2): a column of taps, then a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.form import Form, Part, Piece
from perfonnx.methods.lowrank.metric import Frobenius
from perfonnx.methods.lowrank.multilinear import einsum, fit


@dataclass(frozen=True)
class Jaderberg(LowRank):
    """`rank` filters of kh x 1, then M filters of 1 x kw."""

    NAME = "jaderberg"
    SUMMARY = "separable filters: kh x 1, then 1 x kw"
    PLACE = 24
    TRIED = True

    def unfit(self, form: Form) -> str | None:
        """See `LowRank.unfit`."""
        kernel = "x".join(map(str, form.kernel))
        return f"its kernel of {kernel} does not come apart" if 1 in form.kernel else None

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`."""
        height, width = form.kernel
        return [
            Part("vertical", (rank, form.inputs, height, 1), form.vertical()),
            Part("horizontal", (form.outputs, rank, 1, width), form.horizontal()),
        ]

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return min(form.inputs * form.kernel[0], form.outputs * form.kernel[1])

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`: by singular values, then alternating in the metric where that is another."""
        outputs, inputs, height, width = problem.weight.shape
        matrix = problem.weight.transpose(1, 2, 0, 3).reshape(inputs * height, outputs * width)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        root = np.sqrt(values[:rank])
        vertical = (left[:, :rank] * root).T.reshape(rank, inputs, height)
        horizontal = (root[:, None] * right[:rank]).reshape(rank, outputs, width).transpose(1, 0, 2)
        if not isinstance(problem.metric, Frobenius):
            horizontal, vertical = fit("mrj,rci->mcij", [horizontal, vertical], problem.weight, problem.metric.apply)
        weight = einsum("mrj,rci->mcij", horizontal, vertical)
        return Factors([vertical[:, :, :, None], horizontal[:, :, None, :]], weight)
