"""Fewer filters and a mixture of them (Zhang et al., arXiv 1505.06798), fitted on responses and behind the ReLU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Goal
from perfonnx.methods.base import setting
from perfonnx.methods.lowrank.base import Approximation, Factors, LowRank
from perfonnx.methods.lowrank.form import Form, Part, Piece, pointwise
from perfonnx.methods.lowrank.rows import Rows
from perfonnx.model.layers import Layer

Float = NDArray[np.float64]

RELU, LINEAR = "relu", "linear"

PENALTIES = (0.01,) * 5 + (1.0,) * 5
"""Of the auxiliary responses, step by step (section 3.2 of the paper)."""

_RIDGE = 1e-6


@dataclass(frozen=True)
class Zhang(LowRank):
    """`rank` filters of kh x kw, then a 1x1 convolution.

    Attributes:
        response: What is approximated: the response behind the ReLU, where one follows the layer, or the linear one.
    """

    NAME = "zhang"
    SUMMARY = (
        "fewer filters and a 1x1 convolution that mixes them, fitted on responses, through the ReLU where one follows"
    )
    PLACE = 23

    TRIED = True

    response: str = setting(RELU, "responses that zhang fits: relu (default, where one follows) or linear", "KIND")

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        if self.response not in (RELU, LINEAR):
            raise PerfonnxError(f"{where}: unknown response {self.response!r}; choose from {RELU}, {LINEAR}")

    def promises(self, layer: Layer) -> bool:
        """See `Method.promises`; of 1x1 kernels it makes what `svd` makes."""
        return layer.w_shape[2:] != (1, 1) and super().promises(layer)

    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """See `LowRank.pieces`."""
        filters = Part("filters", (rank, form.inputs, *form.kernel), form.attributes)
        return [filters, pointwise("mixed", form.outputs, rank)]

    def full(self, form: Form) -> int:
        """See `LowRank.full`."""
        return min(form.outputs, form.inputs * form.taps)

    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """See `LowRank.factors`."""
        if problem.rows is None:
            mix, filters = problem.metric.low_rank(problem.weight, rank)
            bias = None
        else:
            fit = ResponseFit(problem.rows, problem.original.reshape(form.outputs, -1), rank)
            mix, chosen, bias = fit.through_relu() if self._through(problem.rows.goal) else fit.linear()
            filters = (chosen.T @ problem.original.reshape(form.outputs, -1)).reshape(rank, form.inputs, *form.kernel)
        weight = (mix @ filters.reshape(rank, -1)).reshape(problem.original.shape)
        return Factors([filters, mix[:, :, None, None]], weight, bias)

    def _through(self, goal: Goal) -> bool:
        return self.response == RELU and goal.low == 0 and goal.high == np.inf


class ResponseFit:
    """The best P Q' of a rank, with which P Q' y + b comes nearest to what a layer should give.

    Args:
        rows: What the layer sees and should give.
        weight: [M, K]; y = weight x.
        rank: Columns of P and Q.
    """

    def __init__(self, rows: Rows, weight: Float, rank: int) -> None:
        self.rows = rows
        self.rank = rank
        self.weight = weight
        self.mean = weight @ rows.mean
        self.given = rows.responses(weight)
        covariance = self.given.T @ self.given / len(self.given)
        values, vectors = np.linalg.eigh(covariance)
        # responses that never differ explain nothing
        roots = np.where(values > _RIDGE * values[-1], 1 / np.sqrt(np.maximum(values, 1e-300)), 0.0)
        self.whitening = vectors * roots @ vectors.T

    def linear(self) -> tuple[Float, Float, Float]:
        """P [M, rank], Q [M, rank] and b [M]; b with what the layer's responses have for a mean."""
        return self._solve(self.rows.wanted)

    def through_relu(self) -> tuple[Float, Float, Float]:
        """The same behind the ReLU, by turns with auxiliary responses."""
        mix, chosen, bias = self._solve(self.rows.wanted)
        target = np.maximum(self.rows.wanted + self.rows.other, 0)
        best = min(self._steps(target, mix, chosen, bias), key=lambda found: found[0])
        return best[1]

    def _steps(
        self, target: Float, mix: Float, chosen: Float, bias: Float
    ) -> Iterator[tuple[float, tuple[Float, Float, Float]]]:
        for penalty in (*PENALTIES, 0.0):
            given = self._output(mix, chosen, bias)
            yield float(np.square(np.maximum(given, 0) - target).sum()), (mix, chosen, bias)
            below, above = np.minimum(given, 0), np.maximum((penalty * given + target) / (penalty + 1), 0)
            costs = (np.square(np.maximum(z, 0) - target) + penalty * np.square(z - given) for z in (below, above))
            wanted = np.where(np.less_equal(*costs), below, above) - self.rows.other
            mix, chosen, bias = self._solve(wanted)

    def _output(self, mix: Float, chosen: Float, bias: Float) -> Float:
        """The sum at the layer, [rows, M]."""
        return self.given @ chosen @ mix.T + self.mean @ chosen @ mix.T + bias + self.rows.other

    def _solve(self, wanted: Float) -> tuple[Float, Float, Float]:
        centre = wanted.mean(axis=0)
        cross = (wanted - centre).T @ self.given / len(self.given)
        left, values, right = np.linalg.svd(cross @ self.whitening)
        roots = np.sqrt(values[: self.rank])
        mix = left[:, : self.rank] * roots
        chosen = self.whitening @ right[: self.rank].T * roots
        return mix, chosen, centre - mix @ (chosen.T @ self.mean)
