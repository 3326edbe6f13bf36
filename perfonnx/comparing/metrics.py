"""What is lost: how far a model's outputs are from those of the original, image by image.

Every comparison is paired: the same image goes through both models, so what is common to both cancels out, and the
standard error is that of the difference. Beside the number that a user bounds, every comparison gives a *guide*: a
smooth measure, never negative, that also moves where not a single answer has changed yet. Choices between layers are
made by the guide, answers to the user by the number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfonnx.comparing.outputs import classifier_outputs, is_class_scores, varying_outputs
from perfonnx.comparing.tallies import decibel
from perfonnx.errors import PerfonnxError
from perfonnx.running.opened import OpenModel, not_numbers

Outputs: TypeAlias = Mapping[str, NDArray[Any]]
"""A model's outputs by name, each [N, ...]."""

Vector: TypeAlias = NDArray[np.float64]

_TINY = 1e-12  # probabilities below this count as this
_BEST_PSNR = 100.0  # dB; what equal images get
_SMALLEST_IMAGE = 16  # pixels a side; smaller maps of 1 or 3 channels are no images
_GUIDES = dict.fromkeys(("top1", "agreement", "loss"), "KL") | dict.fromkeys(("ssim", "psnr", "distance"), "distance")

METRICS = tuple(_GUIDES)
"""Names that `--metric` knows."""


@dataclass(frozen=True)
class Scores:
    """One value per image: what the metric says of the original and of the candidate, and the guide; each [N]."""

    reference: Vector
    value: Vector
    guide: Vector


@dataclass(frozen=True)
class Quality:
    """What was measured on a number of images.

    Attributes:
        images: How many.
        reference: The metric's mean for the original.
        value: The metric's mean for the candidate.
        drop: What was lost, in the metric's terms: positive is worse.
        drop_error: Standard error of `drop`, paired by image; infinite where it is not known.
        guide: Mean of the guide.
    """

    images: int
    reference: float
    value: float
    drop: float
    drop_error: float
    guide: float

    def to_json(self) -> dict[str, Any]:
        """As plain data; an error that is not known is None, since JSON has no infinity."""
        return {**asdict(self), "drop_error": self.drop_error if math.isfinite(self.drop_error) else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quality:
        """What `to_json` gave."""
        error = data["drop_error"]
        return cls(**{**data, "drop_error": math.inf if error is None else error})


@dataclass(frozen=True)
class Metric:
    """A measure of loss on one model's outputs.

    | name | of one image | drop |
    |---|---|---|
    | `top1` | 1 where the first class is the label | share of images, 1 % is one percentage point |
    | `agreement` | 1 where the first class is the original's | share of images that change their class |
    | `loss` | log-loss of the label, or of the original's class where there are no labels | nats |
    | `ssim` | structural similarity to the original's output | 1 - SSIM |
    | `psnr` | PSNR to the original's output, in dB | -PSNR: a bound of 35 dB says that it stays above |
    | `distance` | relative L2 distance to the original's outputs | the distance |

    The guide of the first three is the Kullback-Leibler divergence from the original's class probabilities: in
    expectation it is what the log-loss of a well calibrated model grows by, but it needs no labels, is never negative,
    and varies far less from image to image. The guide of the others is the squared relative L2 distance.

    Attributes:
        name: One of `METRICS`.
        outputs: Names of the outputs that are looked at.
        probabilities: The output holds probabilities; else it holds logits, or their logarithms.
        left_out: What is to be said of outputs that cannot be compared.
    """

    name: str
    outputs: tuple[str, ...]
    probabilities: bool = False
    left_out: tuple[str, ...] = ()

    def scores(self, reference: Outputs, actual: Outputs, labels: NDArray[Any] | None = None) -> Scores:
        """Compares two models on a batch.

        Args:
            reference: The original's outputs.
            actual: The candidate's.
            labels: [N] classes, for `top1` and `loss`.

        Raises:
            PerfonnxError: Shapes differ, or `top1` has no labels.
        """
        for name in self.outputs:
            if reference[name].shape != actual[name].shape:
                raise PerfonnxError(
                    f"output '{name}' has shape {list(reference[name].shape)} in the original and "
                    f"{list(actual[name].shape)} in the rewritten model: they cannot be compared"
                )
        if self.of_classes:
            return self._classes(reference, actual, labels)
        distance = _distance(reference, actual, self.outputs)
        guide = distance**2
        if self.name == "distance":
            return Scores(np.zeros_like(distance), distance, guide)
        measure = _ssim if self.name == "ssim" else _psnr
        a, b = (_double(outputs[self.outputs[0]]) for outputs in (reference, actual))
        values = np.array([measure(x, y) for x, y in zip(a, b, strict=True)])
        best = 1.0 if self.name == "ssim" else _BEST_PSNR
        return Scores(np.full_like(values, best), values, guide)

    def _classes(self, reference: Outputs, actual: Outputs, labels: NDArray[Any] | None) -> Scores:
        a, b = (self._log_probabilities(outputs[self.outputs[0]]) for outputs in (reference, actual))
        guide = np.maximum((np.exp(a) * (a - b)).sum(axis=1), 0.0)
        own = a.argmax(axis=1)
        truth = own if labels is None or self.name == "agreement" else np.asarray(labels, np.int64)
        if self.name == "loss":
            if truth.min() < 0 or truth.max() >= a.shape[1]:
                raise PerfonnxError(f"label {int(truth.max())}: the model has the classes 0 to {a.shape[1] - 1}")
            rows = np.arange(len(a))
            return Scores(-a[rows, truth], -b[rows, truth], guide)
        if self.name == "top1" and labels is None:
            raise PerfonnxError("metric top1 needs labels; give them, or use agreement")
        return Scores((own == truth).astype(float), (b.argmax(axis=1) == truth).astype(float), guide)

    def _log_probabilities(self, output: NDArray[Any]) -> Vector:
        values = _double(output).reshape(output.shape[0], -1)
        if self.probabilities:
            return np.log(np.maximum(values, _TINY))
        values = values - values.max(axis=1, keepdims=True)
        return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))

    def quality(self, scores: Scores) -> Quality:
        """Sums up the scores of all images."""
        count = len(scores.value)
        # Of top-1, SSIM and PSNR more is better, of the others less.
        loss = scores.value - scores.reference
        if self.name in ("top1", "agreement", "ssim"):
            loss = -loss
        elif self.name == "psnr":
            loss = -scores.value
        error = float(loss.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf
        if self.is_share:
            error = max(error, 1 / count)  # that no image of a few changed does not say that none of many will
        return Quality(
            count,
            float(scores.reference.mean()),
            float(scores.value.mean()),
            float(loss.mean()),
            error,
            float(scores.guide.mean()),
        )

    def size(self, drop: float) -> float:
        """A drop on a scale on which it grows as the guide does, roughly; 0 at least."""
        if self.name == "psnr":
            return float(10 ** (drop / 10))
        return drop**2 if self.name == "distance" else max(drop, 0.0)

    def relaxed(self, drop: float, factor: float) -> float:
        """The drop whose `size` is so many times as large."""
        if self.name == "psnr":
            return drop + 10 * math.log10(factor)
        return drop * (math.sqrt(factor) if self.name == "distance" else factor)

    @property
    def is_share(self) -> bool:
        """Whether it is a share of images."""
        return self.name in ("top1", "agreement")

    @property
    def of_classes(self) -> bool:
        """Whether it looks at a classifier's output."""
        return _GUIDES[self.name] == "KL"

    @property
    def default_drop(self) -> float:
        """The bound where the user gives none."""
        return {"top1": 0.01, "agreement": 0.01, "loss": 0.02, "ssim": 0.02, "psnr": -35.0, "distance": 0.05}[self.name]

    def parse_drop(self, text: str) -> float:
        """Reads a bound in the metric's terms: `1%` or `0.01`; `35dB` or `35` for psnr.

        Raises:
            PerfonnxError: It is no number, or out of range.
        """
        bare = text.strip()
        number, factor = bare, 1.0
        if self.name == "psnr" and bare.lower().endswith("db"):
            number = bare[:-2]
        elif self.name != "psnr" and bare.endswith("%"):
            number, factor = bare[:-1], 0.01
        try:
            value = float(number) * factor
        except ValueError:
            value = math.nan
        if self.name == "psnr":
            if not 0 < value < _BEST_PSNR:
                raise PerfonnxError(
                    f"drop '{text}': for psnr, give the PSNR to the original's output that must remain, such as 35dB"
                )
            return -value
        if not 0 <= value <= (math.inf if self.name == "loss" else 1):
            what = "nats of log-loss such as 0.02" if self.name == "loss" else "a share such as 1% or 0.01"
            raise PerfonnxError(f"drop '{text}': for {self.name}, write {what}")
        return value

    def show(self, drop: float) -> str:
        """A drop as a person reads it."""
        if self.is_share:
            return f"{100 * drop:.2f} points"
        if self.name == "psnr":
            return f"{-drop:.1f} dB"
        return f"{drop:.2%}" if self.name == "distance" else f"{drop:.4f}"

    def show_error(self, error: float) -> str:
        """A standard error of a drop as a person reads it."""
        if self.is_share:
            return f"{100 * error:.2f} points"
        if self.name == "psnr":
            return f"{error:.1f} dB"
        return f"{error:.2%}" if self.name == "distance" else f"{error:.2g}"

    def within(self, bound: float) -> str:
        """A bound as part of a sentence."""
        return f"above {self.show(bound)}" if self.name == "psnr" else f"within {self.show(bound)} of loss"

    def lost(self, drop: float) -> str:
        """What was lost, as a sentence."""
        return f"{self.name} is {self.show(drop)}" if self.name == "psnr" else f"{self.name} loses {self.show(drop)}"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "name": self.name,
            "outputs": list(self.outputs),
            "guide": _GUIDES[self.name],
            "left_out": list(self.left_out),
        }


def joined(parts: list[Scores]) -> Scores:
    """The scores of several batches as one."""
    return Scores(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("reference", "value", "guide")))


def metric_for(model: OpenModel, name: str | None, outputs: Outputs, *, images: int, labelled: bool) -> Metric:
    """The metric that suits what a model gave for a batch, or the one asked for; see `choose_metric`."""
    return choose_metric(
        name,
        outputs,
        images=images,
        classifiers=classifier_outputs(model.proto),
        labelled=labelled,
        left_out=model.left_out,
        varying=varying_outputs(model.proto),
    )


def choose_metric(
    name: str | None,
    outputs: Outputs,
    *,
    images: int,
    classifiers: Collection[str],
    labelled: bool,
    left_out: Mapping[str, str] | None = None,
    varying: Collection[str] = (),
) -> Metric:
    """The metric that suits a model's outputs, or the one asked for.

    Without a name: `top1` for a classifier with labels, `agreement` for one without, `ssim` for a model with one output
    that is an image, and `distance` for all others.

    Args:
        name: One of `METRICS`, or None.
        outputs: What the original gives for a batch.
        images: How many images are in that batch.
        classifiers: Outputs that may be a classifier's by what computes them (`outputs.classifier_outputs`).
        labelled: Whether there are labels.
        left_out: Outputs that are not among `outputs`, with the reason (`OpenModel.left_out`).
        varying: Outputs whose size depends on the values fed (`outputs.varying_outputs`); they are left out where there
            are others.

    Raises:
        PerfonnxError: The name is unknown, or the outputs do not suit it.
    """
    if name is not None and name not in METRICS:
        raise PerfonnxError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
    reasons = {**(left_out or {}), **{n: what for n, array in outputs.items() if (what := not_numbers(array))}}
    if set(outputs) - set(reasons) - set(varying):
        reasons |= dict.fromkeys(outputs.keys() & varying, "its size depends on the values that are fed")
    notes = tuple(f"output '{n}' does not count: {why}" for n, why in reasons.items())
    outputs = {n: array for n, array in outputs.items() if n not in reasons}
    if not outputs:
        raise PerfonnxError(f"no output can be compared; {'; '.join(notes)}")
    scores = [n for n, array in outputs.items() if n in classifiers and is_class_scores(array, images)]
    pictures = [n for n, array in outputs.items() if _is_image(array, images)]
    if name is None:
        if scores:
            name = "top1" if labelled else "agreement"
        else:
            name = "ssim" if pictures and len(outputs) == 1 else "distance"
    if _GUIDES[name] == "KL":
        scores = scores or [n for n, array in outputs.items() if is_class_scores(array, images)]
        if not scores:
            raise PerfonnxError(f"metric {name}: no output is a classifier's, [N, classes]; use distance")
        if name == "top1" and not labelled:
            raise PerfonnxError("metric top1 needs labels; give them, or use agreement")
        values = _double(outputs[scores[0]]).reshape(images, -1)
        probabilities = bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=2e-3))
        return Metric(name, (scores[0],), probabilities, notes)
    if name == "distance":
        usable = tuple(n for n, array in outputs.items() if array.ndim and array.shape[0] % images == 0)
        if not usable:
            raise PerfonnxError("metric distance: no output has one entry per image")
        return Metric(name, usable, left_out=notes)
    if not pictures:
        raise PerfonnxError(f"metric {name}: no output is an image, [N, 1 or 3, height, width]; use distance")
    return Metric(name, (pictures[0],), left_out=notes)


def _is_image(array: NDArray[Any], images: int) -> bool:
    if array.ndim != 4 or array.shape[0] != images or array.dtype.kind not in "fu":
        return False
    return array.shape[1] in (1, 3) and min(array.shape[2:]) >= _SMALLEST_IMAGE


def _double(array: NDArray[Any]) -> Vector:
    """As float64, with what is not finite made finite, so that a broken candidate is bad and not NaN."""
    return np.nan_to_num(np.asarray(array, np.float64), nan=0.0, posinf=1e30, neginf=-1e30)


def _distance(reference: Outputs, actual: Outputs, names: tuple[str, ...]) -> Vector:
    """Mean over the outputs of |a - b| / |a|, [N]; the largest value is 1e3."""
    parts = []
    images = min(reference[name].shape[0] for name in names)
    for name in names:
        a, b = (_double(outputs[name]).reshape(images, -1) for outputs in (reference, actual))
        size = np.linalg.norm(a, axis=1)
        parts.append(np.linalg.norm(a - b, axis=1) / np.maximum(size, _TINY))
    return np.asarray(np.minimum(np.mean(parts, axis=0), 1e3))


def _psnr(a: Vector, b: Vector) -> float:
    """Peak signal-to-noise ratio in dB, the peak being the range of `a`; 100 at most."""
    noise = float(np.mean((a - b) ** 2))
    span = float(a.max() - a.min()) or 1.0
    return min(_BEST_PSNR, decibel(span**2, noise))


def _ssim(a: Vector, b: Vector) -> float:
    """Mean structural similarity of two images [C, H, W]; the dynamic range is the range of `a`.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    TIP 13 (2004): Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03. Channels are averaged.
    """
    from scipy import ndimage

    span = float(a.max() - a.min()) or 1.0
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2

    def blur(x: Vector) -> Vector:
        return np.asarray(ndimage.gaussian_filter(x, (0, 1.5, 1.5), radius=(0, 5, 5)))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))
