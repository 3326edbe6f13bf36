"""Samples from arrays in memory, for tests of the search alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    feeds: dict[str, np.ndarray]
    labels: np.ndarray | None
    names: list[str]


@dataclass(frozen=True)
class Arrays:
    """Images [N, ...] for one input, with labels [N] or none, in batches."""

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    batch: int = 8

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.batch):
            part = slice(start, start + self.batch)
            labels = None if self.labels is None else self.labels[part]
            feed = {self.name: self.images[part]}
            yield Batch(feed, labels, [str(i) for i in range(start, start + len(feed[self.name]))])

    def __len__(self) -> int:
        return len(self.images)

    def take(self, n: int) -> Arrays:
        return self._part(np.arange(min(n, len(self))))

    def split(self, a: int, b: int, seed: int = 0) -> tuple[Arrays, Arrays]:
        order = np.random.default_rng(seed).permutation(len(self))
        return self._part(np.sort(order[:a])), self._part(np.sort(order[a : a + b]))

    def shuffled(self, seed: int = 0) -> Arrays:
        return self._part(np.random.default_rng(seed).permutation(len(self)))

    def _part(self, indices: np.ndarray) -> Arrays:
        labels = None if self.labels is None else self.labels[indices]
        return Arrays(self.name, self.images[indices], labels, self.batch)
