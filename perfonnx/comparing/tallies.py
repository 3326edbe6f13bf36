"""What is tallied of one output, batch by batch: how far it is from its reference, and which classes it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.comparing.outputs import is_class_scores
from perfonnx.data.inputs import Array
from perfonnx.errors import PerfonnxError


@dataclass(frozen=True)
class OutputError:
    """How far one output is from its reference.

    Attributes:
        name: Name of the output.
        values: Values compared, over all samples.
        max_abs: Largest absolute difference.
        max_rel: `max_abs` divided by the largest magnitude of the reference output over all samples; 0 where both are
            0, infinite where only the reference is. Not a per-value ratio, which would be about values near 0.
        mean_abs: Mean absolute difference.
        mean_rel: `mean_abs`, divided by the same.
        cosine: Cosine of the angle between the two outputs, each seen as one long vector; 1 where both are 0.
        snr_db: Power of the reference over power of the difference, in dB; infinite where they are equal.
        psnr_db: Squared range (maximum - minimum) of the reference over mean squared difference, in dB.
        not_finite: Values that are NaN or infinite in one model and something else in the other. They enter none of
            the other numbers.
    """

    name: str
    values: int
    max_abs: float
    max_rel: float
    mean_abs: float
    mean_rel: float
    cosine: float
    snr_db: float
    psnr_db: float
    not_finite: int


@dataclass
class ErrorTally:
    """Running sums of one output's error."""

    name: str
    values: int = 0
    compared: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    top: float = -math.inf
    bottom: float = math.inf
    dot: float = 0.0
    power_a: float = 0.0
    power_b: float = 0.0
    power_error: float = 0.0
    not_finite: int = 0

    def add(self, reference: Array, actual: Array) -> None:
        """Takes in a batch.

        Raises:
            PerfonnxError: The shapes differ.
        """
        if reference.shape != actual.shape:
            raise PerfonnxError(
                f"output '{self.name}' has shape {list(reference.shape)} in one model and {list(actual.shape)} in the "
                "other: they cannot be compared"
            )
        a, b = (np.asarray(array, np.float64).ravel() for array in (reference, actual))
        self.values += a.size
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self.not_finite += int(np.count_nonzero(~finite & ~same))
            a, b = a[finite], b[finite]
        if not a.size:
            return
        error = b - a
        size = np.abs(error)
        self.compared += a.size
        self.max_abs = max(self.max_abs, float(size.max()))
        self.sum_abs += float(size.sum())
        self.top, self.bottom = max(self.top, float(a.max())), min(self.bottom, float(a.min()))
        self.dot += float(a @ b)
        self.power_a += float(a @ a)
        self.power_b += float(b @ b)
        self.power_error += float(error @ error)

    def report(self) -> OutputError:
        """Of all batches."""
        span = max(abs(self.top), abs(self.bottom)) if self.compared else 0.0
        swing = self.top - self.bottom if self.compared else 0.0
        mean = self.sum_abs / self.compared if self.compared else 0.0
        norms = math.sqrt(self.power_a) * math.sqrt(self.power_b)
        return OutputError(
            name=self.name,
            values=self.values,
            max_abs=self.max_abs,
            max_rel=_ratio(self.max_abs, span),
            mean_abs=mean,
            mean_rel=_ratio(mean, span),
            cosine=min(1.0, self.dot / norms) if norms else float(self.power_a == self.power_b),
            snr_db=decibel(self.power_a, self.power_error),
            psnr_db=decibel(swing**2 * self.compared, self.power_error),
            not_finite=self.not_finite,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)


def decibel(signal: float, noise: float) -> float:
    """The ratio of two powers in dB; infinite where there is no noise."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


# --- classes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Top1:
    """Top-1 classes of one output; ties go to the first class.

    Attributes:
        output: Name of the output.
        samples: Samples compared.
        agree: Samples on which both models choose the same class.
        correct_a: With labels, samples that the first model gets right.
        correct_b: With labels, samples that the second model gets right.
        only_a: With labels, samples that only the first model gets right.
        only_b: With labels, samples that only the second model gets right.
    """

    output: str
    samples: int
    agree: int
    correct_a: int | None = None
    correct_b: int | None = None
    only_a: int | None = None
    only_b: int | None = None

    @property
    def disagreement(self) -> float:
        """Share of samples on which the models differ: no accuracy can drop by more."""
        return 1 - self.agree / self.samples if self.samples else 0.0


@dataclass
class ClassTally:
    """Running counts of one output's top-1 classes."""

    name: str
    labels: Sequence[int] | NDArray[np.integer[Any]] | None
    counts: dict[str, int] = field(default_factory=dict)
    samples: int = 0

    def add(self, a: Array, b: Array, batch: int) -> bool:
        """False if the shape is no classifier's for a batch of that size."""
        if not is_class_scores(a, batch):
            return False
        ours, theirs = (array.reshape(array.shape[:2]).argmax(axis=1) for array in (a, b))
        start, self.samples = self.samples, self.samples + len(ours)
        self._count("agree", ours == theirs)
        if self.labels is not None:
            if len(self.labels) < self.samples:
                raise PerfonnxError(f"labels: {len(self.labels)} are too few, there are {self.samples} samples or more")
            truth = np.asarray(self.labels[start : self.samples])
            right_a, right_b = ours == truth, theirs == truth
            self._count("correct_a", right_a)
            self._count("correct_b", right_b)
            self._count("only_a", right_a & ~right_b)
            self._count("only_b", right_b & ~right_a)
        return True

    def _count(self, name: str, hits: NDArray[np.bool_]) -> None:
        self.counts[name] = self.counts.get(name, 0) + int(np.count_nonzero(hits))

    def report(self) -> Top1:
        """Of all batches."""
        return Top1(self.name, self.samples, **self.counts)
