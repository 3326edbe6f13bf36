"""Data to calibrate, judge and train on: images, arrays or anything iterable, as batches that fit a model.

A *sample* is one entry along the first axis of the inputs; a run takes as many as the model's batch size. A `Samples`
is read when it is iterated, batch by batch, and can be iterated again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from perfonnx.data.formats import ImageFormat
from perfonnx.data.inputs import Feed, Inputs, InputSpec, Shapes, input_specs, shape_fits
from perfonnx.data.labels import Labels, checked_labels, find_labels
from perfonnx.data.sources import open_data
from perfonnx.errors import PerfonnxError
from perfonnx.model.signature import fixed_batch

DEFAULT_BATCH = 8
"""Samples per batch where the model leaves it open."""


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        feeds: Arrays by input name, samples along the first axis.
        labels: int64, one class per sample, or None.
        names: One name per sample, for messages and tables.
    """

    feeds: Feed
    labels: Labels | None
    names: list[str]


class BatchLike(Protocol):
    """Some images, ready to be fed."""

    @property
    def feeds(self) -> Feed:
        """Arrays by input name."""

    @property
    def labels(self) -> NDArray[Any] | None:
        """Class of each image."""


@dataclass(frozen=True)
class FeedsOf:
    """The feeds of some batches, to be iterated as often as these."""

    batches: Iterable[BatchLike]

    def __iter__(self) -> Iterator[Feed]:
        return (batch.feeds for batch in self.batches)


@dataclass(frozen=True)
class Mirrored:
    """Feeds, each followed by its mirror image from left to right.

    Attributes:
        feeds: Arrays by input name, to be iterated as often as these.
        images: Names of the inputs [N, C, H, W] that are turned over; others are as they were.
    """

    feeds: Iterable[Mapping[str, NDArray[Any]]]
    images: Collection[str]

    def __iter__(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        for feed in self.feeds:
            yield feed
            yield {name: array[..., ::-1] if name in self.images else array for name, array in feed.items()}


def count_of(feeds: Iterable[Mapping[str, NDArray[Any]]]) -> int:
    """How many samples there are; they are read where nothing tells."""
    if isinstance(feeds, Mirrored):
        return 2 * count_of(feeds.feeds)
    if isinstance(feeds, FeedsOf) and isinstance(feeds.batches, Samples):
        return len(feeds.batches)
    return sum(len(next(iter(feed.values()))) for feed in feeds)


@dataclass(frozen=True)
class _Source:
    """Samples in their own order; `read` gives those from a first to before a last one."""

    where: str
    count: int
    read: Callable[[int, int], Feed]
    name: Callable[[int], str]
    labels: Labels | None


class Samples:
    """Samples for a model, as batches; iterate it as often as you like.

    A model that fixes its batch gets batches of that size, and a last incomplete one is left out.
    """

    def __init__(self, source: _Source, batch: int, *, fixed: bool, indices: Sequence[int] | None = None) -> None:
        self._source = source
        self._batch = batch
        self._fixed = fixed
        self._indices = np.arange(source.count) if indices is None else np.asarray(indices, np.int64)
        if fixed:
            self._indices = self._indices[: len(self._indices) // batch * batch]
        if not len(self._indices):
            raise PerfonnxError(f"data {source.where}: too few samples for the model's batch of {batch}")

    @classmethod
    def load(
        cls,
        data: str | Path | Iterable[Any],
        inputs: Inputs,
        *,
        image_format: ImageFormat | None = None,
        labels: str | Path | Sequence[int] | None = None,
        shapes: Shapes | None = None,
        batch: int | None = None,
    ) -> Samples:
        """Open data for a model.

        Args:
            data: A folder of images or .npy files, a .zip file of images, an .npz or .npy file (see
                `perfonnx.data.sources.open_data`), or an iterable of samples: arrays without a batch axis, or
                dictionaries of them by input name. What is no sequence is read into memory.
            inputs: The model's inputs: a session, or `model_inputs(path)`.
            image_format: How images become numbers; None: 0..1, RGB.
            labels: Classes, as a sequence; as a .tsv or .csv file of file names and classes; `folders`, the number of
                a file's folder in alphabetical order; `prefix`, the number in front of a file's name; `suffix`, the
                number behind the last underscore of its name; or the name of an array in the .npz file. None:
                `labels`, `label` or `y` in the .npz file, or the folder's `labels.txt`, where there is one.
            shapes: Sizes of dimensions that the model leaves open, by input name.
            batch: Samples per batch where the model leaves it open.

        Raises:
            PerfonnxError: The data or its labels are missing or do not fit; while iterating where it concerns a single
                sample.
        """
        if batch is not None and batch < 1:
            raise PerfonnxError(f"batch {batch}: give 1 or more")
        specs = input_specs(inputs)
        if isinstance(data, (str, Path)):
            opened = open_data(data, specs, image_format=image_format, shapes=shapes)
            files, path = opened.files, Path(data)
            name = (lambda i: str(files[i].relative_to(path))) if files else str
            found = find_labels(labels, path, files, opened.count)
            source = _Source(str(data), opened.count, opened.read, name, found)
            fixed = opened.batch
        else:
            source = _items(data, specs, labels)
            fixed = fixed_batch(spec.shape for spec in specs)
        if not source.count:
            raise PerfonnxError(f"data {source.where}: has no samples")
        return cls(source, fixed or batch or DEFAULT_BATCH, fixed=fixed is not None)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self._batch):
            yield self.pick(range(start, min(start + self._batch, len(self))))

    def pick(self, places: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Some samples, by their places in this order, as one batch."""
        chosen = [int(i) for i in self._indices[np.asarray(places)]]
        labels = None if self._source.labels is None else self._source.labels[chosen]
        return Batch(self._read(chosen), labels, [self._source.name(i) for i in chosen])

    def _read(self, chosen: Sequence[int]) -> Feed:
        if chosen[-1] - chosen[0] == len(chosen) - 1 and list(chosen) == sorted(chosen):
            return self._source.read(chosen[0], chosen[-1] + 1)
        parts = [self._source.read(i, i + 1) for i in chosen]
        if any(part[name].shape != parts[0][name].shape for part in parts for name in part):
            raise PerfonnxError(f"data {self._source.where}: samples of one batch differ in shape; use a batch of 1")
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @property
    def labels(self) -> Labels | None:
        """The class of every sample, in order, or None."""
        return None if self._source.labels is None else self._source.labels[self._indices]

    def feeds(self) -> Iterable[Feed]:
        """The feeds alone, which can be iterated again too."""
        return FeedsOf(self)

    def take(self, n: int) -> Samples:
        """The first `n`, or all where there are fewer."""
        if n < 1:
            raise PerfonnxError(f"{n} samples: give 1 or more")
        return self._subset(self._indices[:n])

    def shuffled(self, seed: int = 0) -> Samples:
        """All, in an order that the seed decides."""
        return self._subset(np.random.default_rng(seed).permutation(self._indices))

    def split(self, a: int, b: int, seed: int = 0) -> tuple[Samples, Samples]:
        """Two sets without a common sample, of `a` and `b`, drawn by the seed.

        Raises:
            PerfonnxError: There are fewer than a + b samples.
        """
        if min(a, b) < 1 or a + b > len(self):
            raise PerfonnxError(f"data {self._source.where}: {len(self)} samples cannot be split into {a} and {b}")
        drawn = np.random.default_rng(seed).permutation(self._indices)
        return self._subset(np.sort(drawn[:a])), self._subset(np.sort(drawn[a : a + b]))

    def _subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Samples:
        return Samples(self._source, self._batch, fixed=self._fixed, indices=list(indices))


def _items(data: Iterable[Any], specs: Sequence[InputSpec], labels: str | Path | Sequence[int] | None) -> _Source:
    items = data if isinstance(data, Sequence) or hasattr(data, "__getitem__") else list(data)
    count = len(items)  # type: ignore[arg-type]
    if isinstance(labels, (str, Path)):
        raise PerfonnxError(f"labels {labels}: for data in memory give the classes themselves")

    def read(first: int, last: int) -> Feed:
        rows = [_item(items[i], i, specs) for i in range(first, last)]
        for row in rows:
            for name, array in row.items():
                if array.shape != rows[0][name].shape:
                    raise PerfonnxError("samples of one batch differ in shape; use a batch of 1")
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    known = None if labels is None else checked_labels(labels, "in memory", count)
    return _Source("in memory", count, read, str, known)


def _item(item: Any, number: int, specs: Sequence[InputSpec]) -> Feed:
    if not isinstance(item, Mapping):
        if len(specs) != 1:
            raise PerfonnxError(f"sample {number}: the model has several inputs; give a dictionary by input name")
        item = {specs[0].name: item}
    feed = {}
    for spec in specs:
        if spec.name not in item:
            raise PerfonnxError(f"sample {number}: nothing for input '{spec.name}'")
        array = np.asarray(item[spec.name])
        wanted = spec.shape[1:]
        if not shape_fits(array.shape, wanted) or (
            array.dtype.kind != spec.dtype.kind and array.dtype.kind not in "iub"
        ):
            raise PerfonnxError(
                f"sample {number}: {array.dtype} {list(array.shape)} does not fit input '{spec.name}', "
                f"{spec.dtype} {list(wanted)} without the batch"
            )
        feed[spec.name] = array.astype(spec.dtype)
    return feed
