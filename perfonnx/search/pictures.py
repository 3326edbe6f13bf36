"""Outputs of models that make images: the same image through the original and through the rewritten model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.comparing.metrics import Metric
from perfonnx.rewriting import Rewritten
from perfonnx.running.opened import open_model
from perfonnx.subject import SamplesLike, Subject

PICTURES = 3
"""Images that are kept, at most."""


@dataclass(frozen=True)
class Picture:
    """One image, as two models made it.

    Attributes:
        name: What the data calls the input that it was made from.
        before: The original's output, [C, H, W], C 1 or 3.
        after: The rewritten model's.
        value: The metric, in its own terms.
    """

    name: str
    before: NDArray[Any]
    after: NDArray[Any]
    value: float


def output_pictures(
    subject: Subject, result: Rewritten, samples: SamplesLike, metric: Metric, *, threads: int | None = None
) -> list[Picture]:
    """The first few images of some samples through both models; none where the metric is not one of images."""
    pictures: list[Picture] = []
    if metric.name not in ("ssim", "psnr"):
        return pictures
    original, rewritten = (open_model(loaded, threads=threads) for loaded in (subject.original(), result.model))
    output = metric.outputs[0]
    for batch in samples:
        before, after = (model.run(model.adapt(batch.feeds)) for model in (original, rewritten))
        values = metric.scores(before, after).value
        names: Sequence[str] = getattr(batch, "names", ())
        for i in range(min(PICTURES - len(pictures), len(values))):
            name = str(names[i]) if i < len(names) else str(len(pictures))
            pictures.append(Picture(name, before[output][i], after[output][i], float(values[i])))
        if len(pictures) == PICTURES:
            break
    return pictures


def as_pixels(picture: Picture) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Both images as uint8, [H, W] or [H, W, 3].

    Both by one scale: 0 to 1 or 0 to 255 where the original roughly fits one of these, else the original's range.
    """
    original = np.nan_to_num(np.asarray(picture.before, np.float64), posinf=0.0, neginf=0.0)
    low, high = np.percentile(original, (1, 99))
    if low >= -0.1 and 0.25 < high <= 1.1:
        low, high = 0.0, 1.0
    elif low >= -26 and 64 < high <= 281:
        low, high = 0.0, 255.0
    span = high - low or 1.0

    def pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
        scaled = (np.nan_to_num(np.asarray(image, np.float64), posinf=high, neginf=low) - low) * (255 / span)
        rounded = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        return np.asarray(rounded[0] if len(rounded) == 1 else rounded.transpose(1, 2, 0))

    return pixels(picture.before), pixels(picture.after)
