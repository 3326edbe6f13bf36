"""Arrays of samples: read from .npz and .npy files, and brought to the type of a model's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perfonnx.data.formats import ImageFormat
from perfonnx.data.images import image_layout, normalize
from perfonnx.data.inputs import Array, InputSpec, shape_fits
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.proto import shape_text


def load_numpy(path: Path) -> Any:
    """The array of an .npy file, or the archive of an .npz file.

    Raises:
        PerfonnxError: It cannot be read.
    """
    try:
        # Mapped, so that a large .npy is read batch by batch; numpy ignores the mode for .npz, whose arrays are read
        # when they are asked for.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PerfonnxError(f"data {path}: cannot be read as {path.suffix} ({one_line(error)})") from error
    except Exception as error:  # zipfile.BadZipFile, and what else a damaged archive raises
        raise PerfonnxError(f"data {path}: is damaged ({one_line(error)})") from error


def member(archive: Any, path: Path, key: str) -> tuple[str, Array]:
    """An array of an .npz file, behind what it is called in messages.

    Raises:
        PerfonnxError: It cannot be read.
    """
    try:
        return f"{path}, array '{key}'", np.asarray(archive[key])
    except Exception as error:  # a damaged member shows only when it is read: zlib.error, ValueError, BadZipFile
        raise PerfonnxError(f"data {path}: array '{key}' cannot be read ({one_line(error)})") from error


def open_npy(path: Path) -> Array:
    """The array of an .npy file, which is read where it is looked at.

    Raises:
        PerfonnxError: It cannot be read.
    """
    array = load_numpy(path)
    if not isinstance(array, np.ndarray):
        raise PerfonnxError(f"data {path}: holds several arrays, name it .npz")
    return array


def stack_samples(files: Sequence[Path], spec: InputSpec) -> Array:
    """One sample from each .npy file, as the input wants them.

    Raises:
        PerfonnxError: One cannot be read, does not fit, or differs in shape.
    """
    samples: list[Array] = []
    for file in files:
        sample = open_npy(file)
        if sample.ndim == len(spec.shape) and sample.shape[:1] == (1,):
            sample = sample[0]
        if not shape_fits(sample.shape, spec.shape[1:]):
            raise PerfonnxError(
                f"{file} has shape {shape_text(sample.shape)}: one sample of input '{spec.name}' has "
                f"{shape_text(spec.shape[1:])}"
            )
        if not _convertible(sample.dtype, spec.dtype):
            raise PerfonnxError(f"{file} has type {sample.dtype}: input '{spec.name}' needs {spec.dtype}")
        if samples and sample.shape != samples[0].shape:
            raise PerfonnxError(f"{file} has shape {shape_text(sample.shape)}: it differs from others in its batch")
        samples.append(_finish(np.asarray(sample), spec, str(file), None))
    return np.stack(samples)


def converter(what: str, array: Array, spec: InputSpec, image_format: ImageFormat) -> Callable[[Array, int], Array]:
    """Checks rank, shape and type once; what it returns converts a slice and looks for NaN."""
    shape = array.shape
    if array.ndim != len(spec.shape) or array.ndim == 0:
        raise PerfonnxError(
            f"{what} has shape {shape_text(shape)}: input '{spec.name}' {shape_text(spec.shape)} needs "
            f"{len(spec.shape)} dimensions, the first one counting samples"
        )
    as_image = array.dtype == np.uint8 and spec.dtype.kind == "f" and array.ndim == 4
    model_last = as_image and image_layout(spec, image_format) == "nhwc"
    channels_last = model_last
    if as_image and not shape_fits(shape[1:], spec.shape[1:]):
        turned = (shape[2], shape[3], shape[1]) if model_last else (shape[3], shape[1], shape[2])
        channels_last = shape_fits(turned, spec.shape[1:]) != model_last
    if channels_last == model_last and not shape_fits(shape[1:], spec.shape[1:]):
        raise PerfonnxError(
            f"{what} has shape {shape_text(shape)}: it does not fit input '{spec.name}' {shape_text(spec.shape)}"
        )
    if not as_image and not _convertible(array.dtype, spec.dtype):
        raise PerfonnxError(f"{what} has type {array.dtype}: input '{spec.name}' needs {spec.dtype}, convert it first")

    def convert(part: Array, first: int) -> Array:
        if as_image:
            part = normalize(part.transpose(0, 3, 1, 2) if channels_last else part, image_format)
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
    return source == target or any(source.kind in kinds and target.kind in kinds for kinds in ("f", "iu"))
