"""Training data as batches of tensors, and their augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError

AUGMENTATIONS = ("none", "flip", "crop+flip")
PADDING = 4
"""Pixels by which a random crop moves, at most."""

HELD_BYTES = 2 << 30
"""Decoded samples are kept in memory up to this size; beyond it they are read again in each epoch."""

Item: TypeAlias = "tuple[list[Tensor], Tensor | None]"
"""The model's inputs, and the labels."""


class Batches:
    """Samples as tensors, any of them in one batch; decoded once where they fit in memory."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._held: list[NDArray[np.generic]] | None = None
        first = samples.pick([0]).feeds.values()
        if sum(array.nbytes for array in first) * len(samples) <= HELD_BYTES:
            self._held = [np.empty((len(samples), *array.shape[1:]), array.dtype) for array in first]
            start = 0
            for batch in samples:
                for array, part in zip(self._held, batch.feeds.values(), strict=True):
                    array[start : start + len(part)] = part
                start += len(batch.names)
        self.labels = samples.labels

    def __len__(self) -> int:
        return len(self._samples)

    def pick(self, places: NDArray[np.int64]) -> Item:
        """The samples at some places."""
        if self._held is None:
            arrays: Sequence[NDArray[np.generic]] = list(self._samples.pick(places).feeds.values())
        else:
            arrays = [array[places] for array in self._held]
        labels = None if self.labels is None else torch.from_numpy(self.labels[places])
        return [torch.from_numpy(array) for array in arrays], labels


def augmented(inputs: list[Tensor], kind: str) -> list[Tensor]:
    """The inputs with random changes, one of `AUGMENTATIONS`, drawn by torch's generator.

    `flip` mirrors every other image, on average; `crop+flip` also moves images by up to `PADDING` pixels, with zeros
    (after normalization) coming in.

    Raises:
        PerfonnxError: The input is no image [N, C, H, W].
    """
    if kind == "none":
        return inputs
    if len(inputs) != 1 or inputs[0].ndim != 4 or inputs[0].shape[1] not in (1, 3):
        raise PerfonnxError(f"augmentation {kind}: only for models with one input [N, 1 or 3, height, width]")
    (x,) = inputs
    count, _, height, width = x.shape
    x = torch.where(torch.rand(count, 1, 1, 1) < 0.5, x.flip(3), x)
    if kind == "crop+flip":
        windows = functional.pad(x, (PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        top, left = torch.randint(0, 2 * PADDING + 1, (2, count))
        x = windows[torch.arange(count), :, top, left]
    return [x]
