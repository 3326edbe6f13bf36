"""Data to calibrate, judge and train on: images, arrays or anything iterable, as batches that fit a model.

A `Samples` is read when it is iterated, batch by batch, and can be iterated again and again.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from perfonnx.data.sources import (
    Array,
    Feed,
    ImageFormat,
    InputSpec,
    SessionLike,
    Shapes,
    ValueLike,
    input_specs,
    load_labels,
    open_data,
    parse_input_shapes,
)
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model import files
from perfonnx.model.files import ModelSource
from perfonnx.model.proto import value_type
from perfonnx.model.signature import fed_inputs

Inputs: TypeAlias = "SessionLike | Sequence[ValueLike] | Sequence[InputSpec]"
Labels: TypeAlias = NDArray[np.int64]

DEFAULT_BATCH = 8
"""Samples per batch where the model leaves it open."""

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PRESETS: dict[str, ImageFormat] = {
    "unit": ImageFormat(),
    "pixels": ImageFormat(scale=1.0),
    "signed": ImageFormat(mean=(0.5,), std=(0.5,)),
    "imagenet": ImageFormat(**_IMAGENET, size=(256,)),  # type: ignore[arg-type]
    "imagenet-bgr-caffe": ImageFormat(scale=1.0, mean=(104.0, 117.0, 123.0), bgr=True, size=(256,)),
    "cifar": ImageFormat(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}
"""Image formats by name: values in 0..1, in 0..255, in -1..1; torchvision's and Caffe's for ImageNet (shorter side 256
before the crop); the usual one for CIFAR-10."""


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
            found = _labels(labels, path, files, opened.count)
            source = _Source(str(data), opened.count, opened.read, name, found)
            fixed = opened.batch
        else:
            source = _items(data, specs, labels)
            first = next((spec.shape[0] for spec in specs if spec.shape), None)
            fixed = first if isinstance(first, int) else None
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
        return _Feeds(self)

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


@dataclass(frozen=True)
class _Feeds:
    samples: Samples

    def __iter__(self) -> Iterator[Feed]:
        return (batch.feeds for batch in self.samples)


def model_inputs(model: ModelSource) -> list[InputSpec]:
    """The inputs that a model must be fed.

    Raises:
        PerfonnxError: It cannot be read, or an input is no tensor of numbers.
    """
    loaded = files.load(model)
    specs = []
    for info in fed_inputs(loaded.proto.graph):
        known = value_type(info)
        try:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(known.elem_type)) if known is not None else None
        except KeyError:
            dtype = None
        if known is None or dtype is None or dtype.kind not in "fiub":
            raise PerfonnxError(f"{loaded.name}: input '{info.name}' is no tensor of numbers")
        specs.append(InputSpec(info.name, known.shape or (), dtype, ranked=known.shape is not None))
    return specs


# --- items of an iterable --------------------------------------------------------------------------------------------


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

    known = None if labels is None else _checked_labels(np.asarray(labels), "in memory", count)
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
        fits = array.ndim == len(wanted) and all(
            not isinstance(d, int) or d == n for d, n in zip(wanted, array.shape, strict=True)
        )
        if not fits or (array.dtype.kind != spec.dtype.kind and array.dtype.kind not in "iub"):
            raise PerfonnxError(
                f"sample {number}: {array.dtype} {list(array.shape)} does not fit input '{spec.name}', "
                f"{spec.dtype} {list(wanted)} without the batch"
            )
        feed[spec.name] = array.astype(spec.dtype)
    return feed


# --- labels ----------------------------------------------------------------------------------------------------------


def _labels(given: str | Path | Sequence[int] | None, path: Path, files: Sequence[Path], count: int) -> Labels | None:
    if given is None:
        return load_labels(path, count)
    if not isinstance(given, (str, Path)):
        return _checked_labels(np.asarray(given), "given", count)
    if str(given) in ("folders", *_NUMBERS) and not files:
        raise PerfonnxError(f"labels {given}: only a folder or .zip file of images has them; {path} is none")
    if str(given) == "folders":
        folders = sorted({file.parent for file in files})
        numbers = {folder: number for number, folder in enumerate(folders)}
        return np.array([numbers[file.parent] for file in files], np.int64)
    if str(given) in _NUMBERS:
        return np.array([_number_in_name(file, str(given)) for file in files], np.int64)
    if path.suffix == ".npz" and not Path(given).exists():
        return _array_labels(path, str(given), count)
    table = _table(Path(given))
    names = [file.relative_to(path).as_posix() for file in files] if files else [str(i) for i in range(count)]
    return np.array([_look_up(table, name, Path(given)) for name in names], np.int64)


_NUMBERS = {
    "prefix": (r"(\d{1,18})", "does not start with a number"),
    "suffix": (r".*_(\d{1,18})$", "does not end with an underscore and a number"),
}
"""Kinds of labels in the name of a file, without its extension: what to look for, and what is wrong otherwise."""


def _number_in_name(file: Path, kind: str) -> int:
    pattern, wrong = _NUMBERS[kind]
    number = re.match(pattern, file.stem, re.DOTALL)
    if number is None:
        raise PerfonnxError(f"labels {kind}: the name of {file} {wrong}")
    return int(number.group(1))


def _array_labels(path: Path, key: str, count: int) -> Labels:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if key not in archive.files:
                raise PerfonnxError(
                    f"labels {key}: neither a file nor an array in {path}, which has {', '.join(archive.files)}"
                )
            return _checked_labels(archive[key], f"{path}, array '{key}'", count)
    except (OSError, ValueError) as error:
        raise PerfonnxError(f"labels {path}: cannot be read ({one_line(error)})") from error


def _checked_labels(labels: Array, where: str, count: int) -> Labels:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise PerfonnxError(f"labels {where}: must be one integer per sample, not {labels.dtype} {list(labels.shape)}")
    if len(labels) != count:
        raise PerfonnxError(f"labels {where}: {len(labels)} labels for {count} samples")
    return labels.astype(np.int64)


def _table(path: Path) -> dict[str, int]:
    """File names and classes of a .tsv or .csv file; a first line of headings is passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise PerfonnxError(f"labels {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    delimiter = "\t" if path.suffix == ".tsv" or "\t" in text.partition("\n")[0] else ","
    table = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter)):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        try:
            table[cells[0]] = int(cells[1])
        except (IndexError, ValueError) as error:
            if number == 0:
                continue
            raise PerfonnxError(f"labels {path}, line {number + 1}: needs a file name and a whole number") from error
    return table


def _look_up(table: Mapping[str, int], name: str, path: Path) -> int:
    for key in (name, name.rpartition("/")[2]):
        if key in table:
            return table[key]
    raise PerfonnxError(f"labels {path}: no label for {name}")


# --- image formats ---------------------------------------------------------------------------------------------------


def image_format(preset: str | None = None) -> ImageFormat:
    """A preset by name, or from a JSON file with fields of `ImageFormat` (and `preset`, what it starts from).

    Raises:
        PerfonnxError: Unknown, or not such a file.
    """
    if preset is None:
        return ImageFormat()
    if preset in PRESETS:
        return PRESETS[preset]
    path = Path(preset)
    if path.suffix != ".json":
        raise PerfonnxError(f"preset {preset!r}: choose from {', '.join(PRESETS)}, or give a .json file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PerfonnxError(f"preset {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    known = {field.name for field in fields(ImageFormat)}
    if not isinstance(data, dict) or not set(data) <= {*known, "preset"}:
        raise PerfonnxError(f"preset {path}: needs an object with fields of {', '.join(('preset', *sorted(known)))}")
    start = data.pop("preset", "unit")
    if start not in PRESETS:
        raise PerfonnxError(f"preset {path}: starts from {start!r}; choose from {', '.join(PRESETS)}")
    return _changed(PRESETS[start], data, f"preset {path}")


def _changed(start: ImageFormat, given: Mapping[str, Any], where: str) -> ImageFormat:
    values: dict[str, Any] = {}
    for name, value in given.items():
        sizes = name in ("size", "window")
        if name in ("mean", "std") or sizes:
            many = value if isinstance(value, (list, tuple)) else [value]
            if not all(_is_number(v) and (not sizes or v == int(v)) for v in many):
                raise PerfonnxError(f"{where}: {name} is {value!r}; give numbers")
            values[name] = tuple(int(v) if sizes else float(v) for v in many)
            if name == "window" and len(many) == 1:
                values[name] = values[name] * 2
        elif name in ("scale", "crop"):
            if not _is_number(value):
                raise PerfonnxError(f"{where}: {name} is {value!r}; give a number")
            values[name] = float(value)
        elif name in ("bgr", "gray") and not isinstance(value, bool):
            raise PerfonnxError(f"{where}: {name} is {value!r}; give true or false")
        else:
            values[name] = value
    return replace(start, **values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


# --- the command line ------------------------------------------------------------------------------------------------


def samples_from(
    options: argparse.Namespace, model: ModelSource | Sequence[InputSpec], *, batch: int | None = None
) -> Samples | None:
    """The samples that a command line asks for, None without `--data`.

    Args:
        options: Parsed flags of `perfonnx.cli.data.add_data_arguments`; `input_shape` and `seed` too, where the
            command has them.
        model: The model, or its inputs.
        batch: As for `Samples.load`.

    Raises:
        PerfonnxError: A flag has no meaning, or see `Samples.load`.
    """
    if options.data is None:
        for name in ("labels", "preset", "size", "crop", "mean", "std", "scale", "channels", "image_layout", "samples"):
            if getattr(options, name) is not None:
                raise PerfonnxError(f"--{name.replace('_', '-')} is about data; give --data")
        return None
    is_inputs = isinstance(model, Sequence) and not isinstance(model, (str, bytes))
    specs: Sequence[InputSpec] = model if is_inputs else model_inputs(model)  # type: ignore[assignment]
    shapes = parse_input_shapes(getattr(options, "input_shape", ()))
    samples = Samples.load(
        options.data, specs, image_format=_format_from(options), labels=options.labels, shapes=shapes, batch=batch
    )
    if options.samples is None:
        return samples
    if options.samples < 1:
        raise PerfonnxError(f"--samples {options.samples}: give 1 or more")
    return samples.shuffled(getattr(options, "seed", None) or 0).take(options.samples)


def _format_from(options: argparse.Namespace) -> ImageFormat:
    given: dict[str, Any] = {}
    for name in ("mean", "std"):
        if getattr(options, name) is not None:
            given[name] = _numbers(f"--{name}", getattr(options, name), ",", float)
    if options.size is not None:
        given["size"] = _numbers("--size", options.size, "x", int)
    if options.crop is not None:
        given["window"] = _numbers("--crop", options.crop, "x", int)
    if options.scale is not None:
        given["scale"] = options.scale
    if options.image_layout is not None:
        given["layout"] = options.image_layout
    if options.channels is not None:
        given |= {"bgr": options.channels == "bgr", "gray": options.channels == "gray"}
    return _changed(image_format(options.preset), given, "images")


def _numbers(flag: str, text: str, separator: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        values = [kind(part) for part in text.lower().split(separator)]
    except ValueError as error:
        example = "224x224" if separator == "x" else "0.5,0.5,0.5"
        raise PerfonnxError(f"{flag} {text}: give a number, or several as {example}") from error
    if separator == "x" and len(values) > 2:
        raise PerfonnxError(f"{flag} {text}: give one number, or height and width as 224x224")
    return values
