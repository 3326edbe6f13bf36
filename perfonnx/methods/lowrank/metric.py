"""In what sense one filter is close to another: the metrics of Denton et al. (arXiv 1404.0736, section 3.1).

All are squared forms <D, S(D)> of the difference D of two weights [M, C, kh, kw], and a method asks for S alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perfonnx.methods.lowrank import multilinear
from perfonnx.methods.lowrank.rows import DIRECT, Rows

Float = NDArray[np.float64]

FROBENIUS, COVARIANCE, MAHALANOBIS = "frobenius", "covariance", "mahalanobis"
METRICS = (FROBENIUS, COVARIANCE, MAHALANOBIS)

ARBITRARY = "arbitrary"
"""In the place of a metric: any factors will do, which take as long as good ones."""


class Metric(ABC):
    """A squared form on weights."""

    @abstractmethod
    def apply(self, weight: Float) -> Float:
        """S(weight), [M, C, kh, kw]."""

    def squared(self, weight: Float) -> float:
        """<weight, S(weight)>."""
        return float(np.vdot(weight, self.apply(weight)))

    def low_rank(self, weight: Float, rank: int) -> tuple[Float, Float]:
        """The nearest product [M, rank] [rank, C, kh, kw]."""
        start = Frobenius().low_rank(weight, rank)
        first, second = multilinear.fit("mr,rcij->mcij", start, weight, self.apply)
        return first, second


class Frobenius(Metric):
    """The sum of squares."""

    def apply(self, weight: Float) -> Float:
        """See `Metric.apply`."""
        return weight

    def low_rank(self, weight: Float, rank: int) -> tuple[Float, Float]:
        """See `Metric.low_rank`."""
        flat = weight.reshape(len(weight), -1)
        if len(flat) > flat.shape[1]:
            right = _leading(flat.T @ flat, rank)
            return flat @ right, right.T.reshape(rank, *weight.shape[1:])
        left = _leading(flat @ flat.T, rank)
        return left, (left.T @ flat).reshape(rank, *weight.shape[1:])


@dataclass(frozen=True)
class Covariance(Metric):
    """The mean square of what the filters give, on data.

    Attributes:
        rows: The data.
        strength: What is added to the diagonal of their covariance: directions that were not seen count a little too.
    """

    rows: Rows
    strength: float

    @classmethod
    def of(cls, rows: Rows, ridge: float) -> Covariance:
        """With this part of the mean variance added."""
        return cls(rows, max(ridge * rows.variance, 1e-300))

    @cached_property
    def inverse(self) -> Float:
        """Of the form's matrix, [K, K], where rows are no longer than `DIRECT`."""
        return np.asarray(np.linalg.inv(self.apply(np.eye(self.rows.x.shape[1]))), np.float64)

    def apply(self, weight: Float) -> Float:
        """See `Metric.apply`."""
        flat = weight.reshape(len(weight), -1)
        if flat.shape[1] <= DIRECT:
            seen = flat @ self.rows.sigma
        else:
            seen = flat @ self.rows.centred.T @ self.rows.centred / len(self.rows.x)
        return (seen + self.strength * flat).reshape(weight.shape)

    def low_rank(self, weight: Float, rank: int) -> tuple[Float, Float]:
        """The responses' principal components."""
        flat = weight.reshape(len(weight), -1)
        kept = _leading(self.apply(weight).reshape(flat.shape) @ flat.T, rank)
        return kept, (kept.T @ flat).reshape(rank, *weight.shape[1:])


@dataclass(frozen=True)
class Mahalanobis(Metric):
    """Each weight counts by how much the loss minds it.

    Attributes:
        alpha: [M, C, kh, kw], root mean squares of the loss's gradient, with a mean of 1.
    """

    alpha: Float

    def apply(self, weight: Float) -> Float:
        """See `Metric.apply`."""
        return weight * np.square(self.alpha)


def _leading(form: Float, rank: int) -> Float:
    """So many eigenvectors of a symmetric matrix, those of the largest values first: columns."""
    return np.linalg.eigh(form)[1][:, ::-1][:, :rank]
