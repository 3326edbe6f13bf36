"""Files of samples: an array file, a folder or a .zip file becomes samples that can be read in any order."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from perfonnx.data.arrays import converter, load_numpy, member, open_npy, stack_samples
from perfonnx.data.formats import IMAGE_SUFFIXES, ImageFormat
from perfonnx.data.images import image_reader, only_images
from perfonnx.data.inputs import Array, Feed, Inputs, InputSpec, Shapes, input_specs, narrowed
from perfonnx.data.labels import LABEL_NAMES
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.signature import fixed_batch

_Take: TypeAlias = Callable[[int, int], Array]
"""Gives the samples from a first to before a last one, as the model wants them."""


@dataclass(frozen=True)
class Data:
    """Samples that can be read in any order.

    Attributes:
        count: How many there are.
        files: Their files, for folders and .zip files; else empty.
        batch: The batch that the model fixes; None where it leaves it open.
    """

    count: int
    files: Sequence[Path]
    batch: int | None
    _takes: Mapping[str, _Take] = field(repr=False)

    def read(self, first: int, last: int) -> Feed:
        """The samples from `first` to before `last`, as the model wants them."""
        return {name: take(first, last) for name, take in self._takes.items()}


def open_data(
    path: str | Path,
    inputs: Inputs,
    *,
    image_format: ImageFormat | None = None,
    shapes: Shapes | None = None,
) -> Data:
    """Opens files of samples, without reading these.

    `path` is one of

    - an .npz file: one array per input, named like it, samples along the first axis. For a model with one input the
      array may have any name, beside an optional array of labels (see `LABEL_NAMES`);
    - an .npy file: the samples of a model with one input;
    - a directory, searched with its sub-directories, for a model with one input: either .npy files with one sample
      each, or images (`IMAGE_SUFFIXES`), in the order of their paths. An image is scaled so that its short side fits,
      cropped at the centre to the model's height and width, and turned into numbers by `image_format`;
    - a .zip file of images, read as the directory that it was made from.

    Arrays of 8-bit images, [n, H, W, C] or [n, C, H, W] and of type uint8, given to a floating-point input, are turned
    into numbers by `image_format` too, at the size they have.

    Args:
        path: File or directory.
        inputs: A session or its inputs.
        image_format: Scaling of images; None means `ImageFormat()`, 0..1 and RGB.
        shapes: Shapes of inputs by name, for dimensions the model leaves open.

    Raises:
        PerfonnxError: The data is missing, unreadable, or does not fit the model; raised while reading where it
            concerns a single sample.
    """
    path = Path(path)
    image_format = image_format or ImageFormat()
    specs = narrowed(input_specs(inputs), shapes)
    if not specs:
        raise PerfonnxError("the model has no input: there is nothing to feed")
    files: Sequence[Path] = ()
    if path.is_dir():
        takes, files = _directory(path, specs, image_format)
        count = len(files)
    elif not path.exists():
        raise PerfonnxError(f"data {path}: no such file or directory")
    elif path.suffix == ".npz":
        takes, count = _arrays(_open_npz(path, specs), specs, image_format)
    elif path.suffix == ".npy":
        spec = _only_input(specs, path)
        takes, count = _arrays({spec.name: (str(path), open_npy(path))}, specs, image_format)
    elif path.suffix == ".zip":
        takes, files = _zip(path, specs, image_format)
        count = len(files)
    else:
        raise PerfonnxError(f"data {path}: give a directory, an .npz file, an .npy file or a .zip file of images")
    return Data(count, files, fixed_batch(spec.shape for spec in specs), takes)


def _arrays(
    sources: Mapping[str, tuple[str, Array]], specs: Sequence[InputSpec], image_format: ImageFormat
) -> tuple[dict[str, _Take], int]:
    """`sources` holds for each input name a description for messages and the samples."""
    takes: dict[str, _Take] = {}
    counts: dict[str, int] = {}
    for spec in specs:
        what, array = sources[spec.name]
        convert = converter(what, array, spec, image_format)
        counts[what] = len(array)

        def take(
            first: int, last: int, *, array: Array = array, convert: Callable[[Array, int], Array] = convert
        ) -> Array:
            return convert(array[first:last], first)

        takes[spec.name] = take
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{what} has {count}" for what, count in counts.items())
        raise PerfonnxError(f"inputs differ in their number of samples: {listed}")
    return takes, next(iter(counts.values()))


def _open_npz(path: Path, specs: Sequence[InputSpec]) -> dict[str, tuple[str, Array]]:
    archive = load_numpy(path)
    if isinstance(archive, np.ndarray):
        raise PerfonnxError(f"data {path}: holds a single array, name it .npy")
    keys = list(archive.files)
    wanted = {spec.name: spec.name for spec in specs}
    if len(specs) == 1 and specs[0].name not in keys:
        candidates = [key for key in keys if key not in LABEL_NAMES]
        if len(candidates) == 1:
            wanted = {specs[0].name: candidates[0]}
    missing = [name for name, key in wanted.items() if key not in keys]
    if missing:
        raise PerfonnxError(
            f"data {path}: no array for input '{missing[0]}', it has {', '.join(map(repr, keys)) or 'no array'}"
        )
    return {name: member(archive, path, key) for name, key in wanted.items()}


def _directory(
    path: Path, specs: Sequence[InputSpec], image_format: ImageFormat
) -> tuple[dict[str, _Take], Sequence[Path]]:
    spec = _only_input(specs, path)
    visible = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    images = only_images(visible)
    arrays = [file for file in visible if file.suffix == ".npy"]
    if images and arrays:
        raise PerfonnxError(f"data {path}: has both images and .npy files, keep one kind in the directory")
    if not images and not arrays:
        raise PerfonnxError(f"data {path}: no image ({', '.join(IMAGE_SUFFIXES)}) and no .npy file in it")
    if arrays:
        return {spec.name: lambda first, last: stack_samples(arrays[first:last], spec)}, arrays
    return {spec.name: image_reader(images, spec, image_format, lambda file: file.open("rb"))}, images


def _zip(path: Path, specs: Sequence[InputSpec], image_format: ImageFormat) -> tuple[dict[str, _Take], Sequence[Path]]:
    """Images of a .zip file; their paths are what they would be if a directory had its name."""
    spec = _only_input(specs, path)
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise PerfonnxError(f"data {path}: cannot be read as .zip ({one_line(error)})") from error
    members = {path / name: name for name in archive.namelist()}
    images = only_images(sorted(file for file in members if not file.name.startswith(".")))
    if not images:
        raise PerfonnxError(f"data {path}: no image ({', '.join(IMAGE_SUFFIXES)}) in it")
    return {spec.name: image_reader(images, spec, image_format, lambda file: archive.open(members[file]))}, images


def _only_input(specs: Sequence[InputSpec], path: Path) -> InputSpec:
    if len(specs) != 1:
        names = ", ".join(repr(spec.name) for spec in specs)
        raise PerfonnxError(
            f"data {path}: the model has several inputs ({names}), give an .npz file with one array each"
        )
    return specs[0]
