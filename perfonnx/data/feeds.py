"""Feeds without data: seeded random arrays for a model's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perfonnx.data.inputs import Array, Feed, Inputs, Shapes, count_samples, input_specs, resolve_shapes
from perfonnx.errors import PerfonnxError


@dataclass
class Feeds(Iterator[Feed]):
    """An iterator over feeds that knows how many there are.

    Attributes:
        samples: Samples in all feeds together.
        batches: Number of feeds.
    """

    samples: int
    batches: int
    _source: Iterator[Feed] = field(repr=False)

    def __iter__(self) -> Iterator[Feed]:
        return self

    def __next__(self) -> Feed:
        return next(self._source)


def random_feeds(
    inputs: Inputs,
    *,
    n: int,
    seed: int = 0,
    shapes: Shapes | None = None,
) -> Feeds:
    """Seeded random inputs.

    Floating-point values are standard normal, booleans fair coins, 8-bit unsigned integers 0..255 (images); other
    integers are 0 or 1, which are valid as indices and lengths in most models.

    Args:
        inputs: A session or its inputs.
        n: Number of samples, 1 or more; rounded up to whole batches.
        seed: Seed; the same one gives the same arrays.
        shapes: Shapes of inputs by name, for dimensions the model leaves open.

    Raises:
        PerfonnxError: See `resolve_shapes`.
    """
    if n < 1:
        raise PerfonnxError(f"number of samples {n}: must be 1 or more")
    specs = input_specs(inputs)
    resolved = resolve_shapes(specs, shapes)
    size = count_samples(resolved.values())
    batches = math.ceil(n / size) if size else 1

    def generate() -> Iterator[Feed]:
        random = np.random.default_rng(seed)
        for _ in range(batches):
            yield {spec.name: _draw(random, resolved[spec.name], spec.dtype) for spec in specs}

    return Feeds(batches * size, batches, generate())


def _draw(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return np.asarray(random.standard_normal(shape, dtype=np.float32), dtype=dtype)
    top = 256 if dtype == np.uint8 else 2
    return np.asarray(random.integers(0, top, shape), dtype=dtype)
