"""Inputs for running a model: seeded random arrays, arrays from files, images from a directory.

A *sample* is one entry along the first axis of the inputs; a run takes as many as the model's batch size.
`perfonnx.data.samples.Samples` makes batches of samples from files, with labels where there are some.
"""

from __future__ import annotations

import math
import shlex
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from perfonnx.cli.data import IMAGE_SUFFIXES, LAYOUTS
from perfonnx.errors import PerfonnxError

Array: TypeAlias = NDArray[Any]
Feed: TypeAlias = dict[str, Array]
Shapes: TypeAlias = Mapping[str, Sequence[int | str | None]]

_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")
"""What an image may be inside. Pillow knows many more, and starts Ghostscript for one of them."""

MAX_PIXELS = 1 << 26
"""Of an image, before and after it is resized: 8192 x 8192."""

_MAX_IMAGE_BYTES = 1 << 29  # of MAX_PIXELS without compression, with room to spare

LABEL_NAMES = ("labels", "label", "y")
"""Names under which an .npz file may carry one integer class per sample."""

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


class ValueLike(Protocol):
    """What onnxruntime's `NodeArg` shows of a model's input or output."""

    @property
    def name(self) -> str:
        """Name of the tensor."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Dimensions; the name of a symbolic one, None for an unknown one."""

    @property
    def type(self) -> str:
        """Type as onnxruntime writes it, such as `tensor(float)`."""


class SessionLike(Protocol):
    """The part of `onnxruntime.InferenceSession` that is needed here."""

    def get_inputs(self) -> Sequence[ValueLike]:
        """The model's inputs."""

    def get_outputs(self) -> Sequence[ValueLike]:
        """The model's outputs."""

    def run(self, names: Sequence[str] | None, feed: Feed) -> Sequence[Any]:
        """The values of the named outputs, of all for None."""


@dataclass(frozen=True)
class InputSpec:
    """One model input.

    Attributes:
        name: Its name.
        shape: A dimension that is not fixed is its symbolic name, or None.
        dtype: Type of its numbers.
        ranked: Whether the model says how many dimensions it has; `shape` is empty where it does not.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any]
    ranked: bool = True

    def fits(self, actual: Sequence[int | str | None]) -> bool:
        """Whether a shape agrees with this one, whose dimensions may be open."""
        return not self.ranked or _fits(actual, self.shape)


@dataclass(frozen=True)
class ImageFormat:
    """How an 8-bit image becomes numbers: `(pixel * scale - mean) / std`, per channel.

    Attributes:
        scale: Factor for the pixel values 0..255; the default gives 0..1.
        mean: One value for all channels, or one per channel in the order the model sees them.
        std: Likewise.
        bgr: The model wants blue first.
        crop: Share of the image's short side that the centre crop keeps, in (0, 1]; not with `size`.
        size: Images are first resized: their shorter side to this one number, or to this height and width. Empty: as
            far as the crop needs it.
        window: Height and width of the centre crop; None: the model's. Only for models that leave theirs open.
        gray: Colours are taken out; a model of three channels gets the same in each.
        layout: `nchw` or `nhwc`, for models whose shape does not tell; None: from the shape.
    """

    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    crop: float = 1.0
    size: tuple[int, ...] = ()
    window: tuple[int, int] | None = None
    gray: bool = False
    layout: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.crop <= 1.0:
            raise PerfonnxError(f"image crop {self.crop}: must be above 0 and at most 1")
        if len(self.size) > 2 or any(n < 1 for n in (*self.size, *(self.window or ()))):
            raise PerfonnxError(f"image size {self.size} or crop {self.window}: give one or two sizes of 1 or more")
        if self.layout not in (None, *LAYOUTS):
            raise PerfonnxError(f"image layout {self.layout!r}: choose from {', '.join(LAYOUTS)}")
        if any(value == 0 for value in self.std):
            raise PerfonnxError("image std: must not be 0")

    def normalize(self, pixels: Array) -> Array:
        """[N, C, H, W] RGB or gray, 0..255, to float32 of the same shape."""
        channels = pixels.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise PerfonnxError(f"image {name} has {len(values)} values, but the model has {channels} channels")
        if self.bgr:
            pixels = pixels[:, ::-1]
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return np.asarray((pixels.astype(np.float32) * np.float32(self.scale) - mean) / std, np.float32)


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


def input_specs(inputs: SessionLike | Sequence[ValueLike] | Sequence[InputSpec]) -> list[InputSpec]:
    """The inputs of a session, or of a list as `session.get_inputs()` gives it.

    Raises:
        PerfonnxError: An input is no tensor of numbers or booleans.
    """
    values = inputs.get_inputs() if hasattr(inputs, "get_inputs") else inputs
    specs = []
    for value in cast("Sequence[ValueLike | InputSpec]", values):
        if isinstance(value, InputSpec):
            specs.append(value)
        elif value.type not in _DTYPES:
            raise PerfonnxError(f"input '{value.name}' has type {value.type}: only numbers and booleans can be fed")
        else:
            specs.append(InputSpec(value.name, tuple(value.shape), np.dtype(_DTYPES[value.type])))
    return specs


def merged_inputs(models: Sequence[SessionLike | Sequence[InputSpec]]) -> list[InputSpec]:
    """The first model's inputs, with dimensions that it leaves open taken from the others where those fix them."""
    first, *others = ([*input_specs(model)] for model in models)
    merged = []
    for spec in first:
        for other in (s for specs in others for s in specs if s.name == spec.name and s.ranked):
            if not spec.ranked:
                spec = InputSpec(spec.name, other.shape, spec.dtype)
            elif len(other.shape) == len(spec.shape):
                dims = zip(spec.shape, other.shape, strict=True)
                spec = InputSpec(spec.name, tuple(d if isinstance(d, int) else o for d, o in dims), spec.dtype)
        merged.append(spec)
    return merged


def parse_input_shapes(texts: Iterable[str]) -> dict[str, tuple[int | str, ...]]:
    """Reads `--input-shape` values such as `x:1,3,224,224`.

    The shape follows the last colon, so names with a colon need no quoting. A name in place of a number, as in
    `x:N,3,224,224`, keeps that dimension open.

    Raises:
        PerfonnxError: A value has another form, or an input is named twice.
    """
    shapes: dict[str, tuple[int | str, ...]] = {}
    for text in texts:
        name, colon, numbers = text.rpartition(":")
        parts = [part.strip() for part in numbers.split(",")]
        if not colon or not name or not all(_is_size(part) or part.isidentifier() or part == "?" for part in parts):
            raise PerfonnxError(f"input shape '{text}': write NAME:1,3,224,224, whole numbers of 0 or more")
        if name in shapes:
            raise PerfonnxError(f"input shape '{text}': input '{name}' is given twice")
        shapes[name] = tuple(int(part) if _is_size(part) else part for part in parts)
    return shapes


def _is_size(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def resolve_shapes(specs: Sequence[InputSpec], shapes: Shapes | None) -> dict[str, tuple[int, ...]]:
    """Fills the open dimensions of all inputs: from `shapes` where given, else 1 for the first one, the batch.

    Raises:
        PerfonnxError: `shapes` names no input of the model or contradicts it, or a dimension other than the first is
            open and not given; the message has the flag to type.
    """
    _check_names(specs, shapes)
    resolved: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        open_shape = _narrow(spec, shapes).shape
        filled = [1 if axis == 0 and not isinstance(dim, int) else dim for axis, dim in enumerate(open_shape)]
        if not all(isinstance(dim, int) for dim in filled):
            raise PerfonnxError(
                f"input '{spec.name}' has open dimensions {_text(spec.shape)}: add --input-shape {_example(spec)} "
                "with the size you use"
            )
        resolved[spec.name] = tuple(int(cast(int, dim)) for dim in filled)
    return resolved


def random_feeds(
    inputs: SessionLike | Sequence[ValueLike] | Sequence[InputSpec],
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
    _check_count(n)
    specs = input_specs(inputs)
    resolved = resolve_shapes(specs, shapes)
    size = batch_size(resolved)
    batches = math.ceil(n / size) if size else 1

    def generate() -> Iterator[Feed]:
        random = np.random.default_rng(seed)
        for _ in range(batches):
            yield {spec.name: _draw(random, resolved[spec.name], spec.dtype) for spec in specs}

    return Feeds(batches * size, batches, generate())


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
    inputs: SessionLike | Sequence[ValueLike] | Sequence[InputSpec],
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
    specs = input_specs(inputs)
    _check_names(specs, shapes)
    specs = [_narrow(spec, shapes) for spec in specs]
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
        takes, count = _arrays({spec.name: (str(path), _open_npy(path))}, specs, image_format)
    elif path.suffix == ".zip":
        takes, files = _zip(path, specs, image_format)
        count = len(files)
    else:
        raise PerfonnxError(f"data {path}: give a directory, an .npz file, an .npy file or a .zip file of images")
    first = next((spec.shape[0] for spec in specs if spec.shape), 1)
    return Data(count, files, max(1, first) if isinstance(first, int) else None, takes)


def load_labels(path: str | Path, n: int) -> NDArray[np.int64] | None:
    """The class of each of the first `n` samples of `open_data`, where the data carries it.

    An .npz file carries labels as an array named `labels`, `label` or `y`; a directory as a text file `labels.txt`,
    one integer per line in the order of the sample files.

    Returns:
        int64 [n], or None where there are no labels.

    Raises:
        PerfonnxError: There are labels, but no integers, or fewer than samples.
    """
    path = Path(path)
    labels: Array | None = None
    where = str(path)
    if path.is_dir():
        file = path / "labels.txt"
        if not file.exists():
            return None
        where = str(file)
        try:
            labels = np.array([int(word) for word in file.read_text(encoding="utf-8").split()], np.int64)
        except (OSError, ValueError) as error:
            raise PerfonnxError(f"labels {where}: must have one integer per line") from error
    elif path.suffix == ".npz":
        arrays = _load_numpy(path)
        names = [name for name in LABEL_NAMES if name in arrays]
        if not names:
            return None
        where = f"{path}, array '{names[0]}'"
        labels = np.asarray(arrays[names[0]])
    if labels is None:
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise PerfonnxError(f"labels {where}: must be one integer per sample, not {labels.dtype} {labels.shape}")
    if len(labels) < n:
        raise PerfonnxError(f"labels {where}: {len(labels)} labels for {n} samples")
    return labels[:n].astype(np.int64)


# --- arrays ----------------------------------------------------------------------------------------------------------

_Take: TypeAlias = Callable[[int, int], Array]
"""Gives the samples from a first to before a last one, as the model wants them."""

_Open: TypeAlias = Callable[[Path], IO[bytes]]
"""Opens a file by its path."""


def _arrays(
    sources: Mapping[str, tuple[str, Array]], specs: Sequence[InputSpec], image_format: ImageFormat
) -> tuple[dict[str, _Take], int]:
    """`sources` holds for each input name a description for messages and the samples."""
    takes: dict[str, _Take] = {}
    counts: dict[str, int] = {}
    for spec in specs:
        what, array = sources[spec.name]
        convert = _converter(what, array, spec, image_format)
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


def _converter(what: str, array: Array, spec: InputSpec, image_format: ImageFormat) -> Callable[[Array, int], Array]:
    """Checks rank, shape and type once; what it returns converts a slice and looks for NaN."""
    shape = array.shape
    if array.ndim != len(spec.shape) or array.ndim == 0:
        raise PerfonnxError(
            f"{what} has shape {_text(shape)}: input '{spec.name}' {_text(spec.shape)} needs {len(spec.shape)} "
            "dimensions, the first one counting samples"
        )
    as_image = array.dtype == np.uint8 and spec.dtype.kind == "f" and array.ndim == 4
    model_last = as_image and _layout(spec, image_format) == "nhwc"
    channels_last = model_last
    if as_image and not _fits(shape[1:], spec.shape[1:]):
        turned = (shape[2], shape[3], shape[1]) if model_last else (shape[3], shape[1], shape[2])
        channels_last = _fits(turned, spec.shape[1:]) != model_last
    fits = _fits(shape[1:], spec.shape[1:])
    if channels_last == model_last and not fits:
        raise PerfonnxError(f"{what} has shape {_text(shape)}: it does not fit input '{spec.name}' {_text(spec.shape)}")
    if not as_image and not _convertible(array.dtype, spec.dtype):
        raise PerfonnxError(f"{what} has type {array.dtype}: input '{spec.name}' needs {spec.dtype}, convert it first")

    def convert(part: Array, first: int) -> Array:
        if as_image:
            part = image_format.normalize(part.transpose(0, 3, 1, 2) if channels_last else part)
            part = part.transpose(0, 2, 3, 1) if model_last else part
        return _finish(part, spec, what, first)

    return convert


def _finish(part: Array, spec: InputSpec, what: str, first: int | None) -> Array:
    """Casts to the input's type, having looked for NaN and for integers that do not fit."""
    where = what if first is None else f"{what}, samples {first} to {first + len(part) - 1}"
    if part.dtype.kind == "f" and np.isnan(part).any():
        raise PerfonnxError(f"{where}: has NaN values, clean the data first")
    if part.dtype.kind in "iu" and part.size and spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        if int(part.min()) < limits.min or int(part.max()) > limits.max:
            raise PerfonnxError(f"{where}: has values outside {spec.dtype}, the type of input '{spec.name}'")
    return np.ascontiguousarray(part, dtype=spec.dtype)


def _convertible(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    integers = "iu"
    return (
        source == target
        or (source.kind == "f" and target.kind == "f")
        or (source.kind in integers and target.kind in integers)
    )


def _load_numpy(path: Path) -> Any:
    try:
        # Mapped, so that a large .npy is read batch by batch; numpy ignores the mode for .npz, whose arrays are read
        # when they are asked for.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PerfonnxError(f"data {path}: cannot be read as {path.suffix} ({_first_line(error)})") from error
    except Exception as error:  # zipfile.BadZipFile, and what else a damaged archive raises
        raise PerfonnxError(f"data {path}: is damaged ({_first_line(error)})") from error


def _open_npy(path: Path) -> Array:
    array = _load_numpy(path)
    if not isinstance(array, np.ndarray):
        raise PerfonnxError(f"data {path}: holds several arrays, name it .npz")
    return array


def _open_npz(path: Path, specs: Sequence[InputSpec]) -> dict[str, tuple[str, Array]]:
    archive = _load_numpy(path)
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
    arrays: dict[str, tuple[str, Array]] = {}
    for name, key in wanted.items():
        try:
            arrays[name] = (f"{path}, array '{key}'", np.asarray(archive[key]))
        except Exception as error:  # a damaged member shows only when it is read: zlib.error, ValueError, BadZipFile
            raise PerfonnxError(f"data {path}: array '{key}' cannot be read ({_first_line(error)})") from error
    return arrays


# --- directories and .zip files --------------------------------------------------------------------------------------


def _directory(
    path: Path, specs: Sequence[InputSpec], image_format: ImageFormat
) -> tuple[dict[str, _Take], Sequence[Path]]:
    spec = _only_input(specs, path)
    visible = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    images = _images(visible)
    arrays = [file for file in visible if file.suffix == ".npy"]
    if images and arrays:
        raise PerfonnxError(f"data {path}: has both images and .npy files, keep one kind in the directory")
    if not images and not arrays:
        raise PerfonnxError(f"data {path}: no image ({', '.join(IMAGE_SUFFIXES)}) and no .npy file in it")
    if arrays:
        return {spec.name: lambda first, last: _stack_samples(arrays[first:last], spec)}, arrays
    return {spec.name: _image_take(images, spec, image_format, lambda file: file.open("rb"))}, images


def _zip(path: Path, specs: Sequence[InputSpec], image_format: ImageFormat) -> tuple[dict[str, _Take], Sequence[Path]]:
    """Images of a .zip file; their paths are what they would be if a directory had its name."""
    spec = _only_input(specs, path)
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise PerfonnxError(f"data {path}: cannot be read as .zip ({_first_line(error)})") from error
    members = {path / name: name for name in archive.namelist()}
    images = _images(sorted(file for file in members if not file.name.startswith(".")))
    if not images:
        raise PerfonnxError(f"data {path}: no image ({', '.join(IMAGE_SUFFIXES)}) in it")
    return {spec.name: _image_take(images, spec, image_format, lambda file: archive.open(members[file]))}, images


def _images(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]


def _image_take(images: Sequence[Path], spec: InputSpec, image_format: ImageFormat, open_file: _Open) -> _Take:
    channels, height, width = _image_shape(spec, image_format)
    last_axis = _layout(spec, image_format) == "nhwc"

    def take(first: int, last: int) -> Array:
        pixels = np.stack(
            [_read_image(file, open_file, channels, height, width, image_format) for file in images[first:last]]
        )
        if spec.dtype.kind == "f":
            pixels = image_format.normalize(pixels)
        elif image_format.bgr:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if last_axis else pixels, dtype=spec.dtype)

    return take


def _stack_samples(files: Sequence[Path], spec: InputSpec) -> Array:
    samples: list[Array] = []
    for file in files:
        sample = _open_npy(file)
        if sample.ndim == len(spec.shape) and sample.shape[:1] == (1,):
            sample = sample[0]
        if not _fits(sample.shape, spec.shape[1:]):
            raise PerfonnxError(
                f"{file} has shape {_text(sample.shape)}: one sample of input '{spec.name}' has {_text(spec.shape[1:])}"
            )
        if not _convertible(sample.dtype, spec.dtype):
            raise PerfonnxError(f"{file} has type {sample.dtype}: input '{spec.name}' needs {spec.dtype}")
        if samples and sample.shape != samples[0].shape:
            raise PerfonnxError(f"{file} has shape {_text(sample.shape)}: it differs from others in its batch")
        samples.append(_finish(np.asarray(sample), spec, str(file), None))
    return np.stack(samples)


def _layout(spec: InputSpec, image_format: ImageFormat) -> str:
    """The order of an image input's dimensions: as told, else from where 1 or 3 channels can be."""
    if image_format.layout is not None:
        return image_format.layout
    dims = spec.shape[1:]
    return "nhwc" if len(dims) == 3 and dims[2] in (1, 3) and dims[0] not in (1, 3) else "nchw"


def _image_shape(spec: InputSpec, image_format: ImageFormat) -> tuple[int, int, int]:
    """Channels, height and width of an image input."""
    dims = spec.shape[1:]
    if len(dims) == 3 and _layout(spec, image_format) == "nhwc":
        dims = (dims[2], dims[0], dims[1])
    if len(dims) == 3 and image_format.window is not None:
        if not _fits(image_format.window, dims[1:]):
            raise PerfonnxError(
                f"image crop {image_format.window}: input '{spec.name}' {_text(spec.shape)} has another size"
            )
        dims = (dims[0], *image_format.window)
    if len(dims) == 3 and isinstance(dims[0], int) and not all(isinstance(dim, int) for dim in dims):
        raise PerfonnxError(
            f"input '{spec.name}' has open dimensions {_text(spec.shape)}: add --input-shape {_example(spec)} "
            "with the size you use"
        )
    if len(dims) != 3 or dims[0] not in (1, 3) or (spec.dtype.kind != "f" and spec.dtype != np.uint8):
        raise PerfonnxError(
            f"input '{spec.name}' is {spec.dtype} {_text(spec.shape)}: images need a floating-point input (or uint8) "
            "[N, 1 or 3, height, width] or [N, height, width, 1 or 3], give .npy or .npz data instead"
        )
    channels, height, width = (int(cast(int, dim)) for dim in dims)
    if height < 1 or width < 1:
        raise PerfonnxError(f"input '{spec.name}' {_text(spec.shape)}: an image needs a size of 1 or more")
    return channels, height, width


def _read_image(
    file: Path, open_file: _Open, channels: int, height: int, width: int, image_format: ImageFormat
) -> NDArray[np.uint8]:
    """Reads, scales and crops one image; [C, H, W] uint8, RGB or gray."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise PerfonnxError("reading images needs Pillow: pip install pillow, or give .npy or .npz data") from error
    try:
        with open_file(file) as stream:
            data = stream.read(_MAX_IMAGE_BYTES + 1)
        if len(data) > _MAX_IMAGE_BYTES:
            raise PerfonnxError(f"image {file}: has more than {_MAX_IMAGE_BYTES >> 20} MB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which have our own bound
            opened = Image.open(BytesIO(data), formats=_IMAGE_FORMATS)
            _check_pixels(file, opened.width, opened.height)
            if not _is_complete(data, opened.format or ""):
                raise PerfonnxError(f"image {file}: is cut short")
            if opened.mode.startswith(("I", "F")):
                raise PerfonnxError(f"image {file}: has more than 8 bits per channel, convert it or give .npy data")
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 or image_format.gray else "RGB")
            image = image.convert("L" if channels == 1 else "RGB")
    except PerfonnxError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(_IMAGE_FORMATS)
        raise PerfonnxError(f"image {file}: cannot be read: it is none of {known}, whatever it is called") from error
    except Exception as error:  # decoders raise many kinds
        raise PerfonnxError(f"image {file}: cannot be read ({_first_line(error)})") from error
    if image_format.size:
        image = _resized(file, image, image_format.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if left < 0 or top < 0:
            raise PerfonnxError(
                f"image {file}: is {image.height}x{image.width} after resizing, too small for {height}x{width}; "
                "give a larger --size"
            )
        return _pixels(image.crop((left, top, left + width, top + height)))
    crop = image_format.crop
    # The crop box is found first and resampled straight to the target, so no pixel is interpolated twice.
    scale = crop * min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + scale * width, image.width),
        min(top + scale * height, image.height),
    )
    if (image.width, image.height) != (width, height) or crop != 1.0:
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return _pixels(image)


def _check_pixels(file: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PerfonnxError(
            f"image {file}: {height}x{width} are more than {MAX_PIXELS >> 20} megapixels; scale it down"
        )


def _is_complete(data: bytes, kind: str) -> bool:
    """Whether a file has its end: Pillow is content with all lines of the image, some decoders with fewer."""
    if kind == "PNG":
        position = 8
        while position + 12 <= len(data):
            if data[position + 4 : position + 8] == b"IEND":
                return True
            position += 12 + int.from_bytes(data[position : position + 4], "big")
        return False
    if kind in ("JPEG", "MPO"):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")  # end of image behind the last start of a scan
    if kind == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True  # BMP, PPM: lines without compression, all of which are read


def _resized(file: Path, image: Any, size: tuple[int, ...]) -> Any:
    """To a shorter side, or to height and width."""
    from PIL import Image

    if len(size) == 1:
        factor = size[0] / min(image.width, image.height)
        size = (max(size[0], round(image.height * factor)), max(size[0], round(image.width * factor)))
    if (image.height, image.width) == size:
        return image
    _check_pixels(file, size[1], size[0])  # the long side of a narrow strip
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _pixels(image: Any) -> NDArray[np.uint8]:
    """[C, H, W] of a Pillow image."""
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


# --- shapes and messages ---------------------------------------------------------------------------------------------


def _check_names(specs: Sequence[InputSpec], shapes: Shapes | None) -> None:
    known = {spec.name for spec in specs}
    for name in shapes or {}:
        if name not in known:
            raise PerfonnxError(
                f"input shape for '{name}': the model's inputs are {', '.join(map(repr, sorted(known)))}"
            )


def _narrow(spec: InputSpec, shapes: Shapes | None) -> InputSpec:
    """The input with the dimensions that `shapes` gives."""
    if not shapes or spec.name not in shapes:
        if not spec.ranked:
            raise PerfonnxError(
                f"input '{spec.name}' has no shape: add --input-shape {spec.name}:1,3,224,224 with the size you use"
            )
        return spec
    given = tuple(shapes[spec.name])
    if len(given) == len(spec.shape):  # where a name is given instead of a number, the dimension stays as it is
        given = tuple(g if isinstance(g, int) else dim for g, dim in zip(given, spec.shape, strict=True))
    if not spec.fits(given):
        raise PerfonnxError(
            f"input shape {spec.name}:{','.join(map(str, given))} contradicts the model's {_text(spec.shape)}"
        )
    return InputSpec(spec.name, given, spec.dtype)


def _fits(actual: Sequence[int | str | None], wanted: Sequence[int | str | None]) -> bool:
    """Whether a shape agrees with one that may have open dimensions."""
    if len(actual) != len(wanted):
        return False
    return all(not isinstance(dim, int) or dim == size for size, dim in zip(actual, wanted, strict=True))


def _only_input(specs: Sequence[InputSpec], path: Path) -> InputSpec:
    if len(specs) != 1:
        names = ", ".join(repr(spec.name) for spec in specs)
        raise PerfonnxError(
            f"data {path}: the model has several inputs ({names}), give an .npz file with one array each"
        )
    return specs[0]


def batch_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Samples per run for inputs of these shapes: the first dimension of the first input that has one."""
    return next((shape[0] for shape in shapes.values() if shape), 1)


def _check_count(n: int) -> None:
    if n < 1:
        raise PerfonnxError(f"number of samples {n}: must be 1 or more")


def _draw(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return np.asarray(random.standard_normal(shape, dtype=np.float32), dtype=dtype)
    top = 256 if dtype == np.uint8 else 2
    return np.asarray(random.integers(0, top, shape), dtype=dtype)


def _example(spec: InputSpec) -> str:
    """A value for `--input-shape` that fits the input, as a shell takes it."""
    sizes = [dim if isinstance(dim, int) else 1 if axis == 0 else 224 for axis, dim in enumerate(spec.shape)]
    return shlex.quote(f"{spec.name}:{','.join(map(str, sizes))}")


def _text(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
