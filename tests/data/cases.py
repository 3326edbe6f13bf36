"""Inputs and pictures that tests of data share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perfonnx.data.inputs import Feed, InputSpec
from perfonnx.data.samples import Samples


def input_of(shape: Sequence[int | str | None], dtype: Any = np.float32, name: str = "x") -> InputSpec:
    return InputSpec(name, tuple(shape), np.dtype(dtype))


IMAGE = input_of(["N", 3, 8, 8])


def pictures(folder: Path, count: int = 6, size: tuple[int, int] = (8, 8)) -> Path:
    """Pictures of one colour, red 10 * number, in two folders."""
    for number in range(count):
        place = folder / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * number, 100, 200)).save(place / f"{number:03d}_a.png")
    return folder


def load_feeds(path: Path, specs: Sequence[InputSpec], **settings: Any) -> Iterator[Feed]:
    """The feeds of a file's or directory's samples, one by one where the model leaves its batch open."""
    return iter(Samples.load(path, specs, batch=1, **settings).feeds())
