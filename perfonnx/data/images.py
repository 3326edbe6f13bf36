"""Images: files are read, resized and cropped to a model's input, and their pixels become numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from perfonnx.data.formats import IMAGE_SUFFIXES, ImageFormat
from perfonnx.data.inputs import Array, InputSpec, open_dimensions, shape_fits
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.proto import shape_text

_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")
"""What an image may be inside. Pillow knows many more, and starts Ghostscript for one of them."""

MAX_PIXELS = 1 << 26
"""Of an image, before and after it is resized: 8192 x 8192."""

_MAX_IMAGE_BYTES = 1 << 29  # of MAX_PIXELS without compression, with room to spare

OpenFile: TypeAlias = Callable[[Path], IO[bytes]]
"""Opens a file by its path."""


def only_images(files: Iterable[Path]) -> list[Path]:
    """The files that are called like images."""
    return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]


def image_reader(
    images: Sequence[Path], spec: InputSpec, image_format: ImageFormat, open_file: OpenFile
) -> Callable[[int, int], Array]:
    """What reads the images from a first to before a last one as the model wants them.

    Raises:
        PerfonnxError: The input takes no images.
    """
    channels, height, width = _image_shape(spec, image_format)
    last_axis = image_layout(spec, image_format) == "nhwc"

    def take(first: int, last: int) -> Array:
        pixels = np.stack(
            [_read_image(file, open_file, channels, height, width, image_format) for file in images[first:last]]
        )
        if spec.dtype.kind == "f":
            pixels = normalize(pixels, image_format)
        elif image_format.bgr:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if last_axis else pixels, dtype=spec.dtype)

    return take


def normalize(pixels: Array, image_format: ImageFormat) -> Array:
    """[N, C, H, W] RGB or gray, 0..255, to float32 of the same shape.

    Raises:
        PerfonnxError: The format has values for another number of channels.
    """
    channels = pixels.shape[1]
    for name, values in (("mean", image_format.mean), ("std", image_format.std)):
        if len(values) not in (1, channels):
            raise PerfonnxError(f"image {name} has {len(values)} values, but the model has {channels} channels")
    if image_format.bgr:
        pixels = pixels[:, ::-1]
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (image_format.mean, image_format.std))
    return np.asarray((pixels.astype(np.float32) * np.float32(image_format.scale) - mean) / std, np.float32)


def image_layout(spec: InputSpec, image_format: ImageFormat) -> str:
    """The order of an image input's dimensions: as told, else from where 1 or 3 channels can be."""
    if image_format.layout is not None:
        return image_format.layout
    dims = spec.shape[1:]
    return "nhwc" if len(dims) == 3 and dims[2] in (1, 3) and dims[0] not in (1, 3) else "nchw"


def _image_shape(spec: InputSpec, image_format: ImageFormat) -> tuple[int, int, int]:
    """Channels, height and width of an image input."""
    dims = spec.shape[1:]
    if len(dims) == 3 and image_layout(spec, image_format) == "nhwc":
        dims = (dims[2], dims[0], dims[1])
    if len(dims) == 3 and image_format.window is not None:
        if not shape_fits(image_format.window, dims[1:]):
            raise PerfonnxError(
                f"image crop {image_format.window}: input '{spec.name}' {shape_text(spec.shape)} has another size"
            )
        dims = (dims[0], *image_format.window)
    if len(dims) == 3 and isinstance(dims[0], int) and not all(isinstance(dim, int) for dim in dims):
        raise open_dimensions(spec)
    if len(dims) != 3 or dims[0] not in (1, 3) or (spec.dtype.kind != "f" and spec.dtype != np.uint8):
        raise PerfonnxError(
            f"input '{spec.name}' is {spec.dtype} {shape_text(spec.shape)}: images need a floating-point input (or "
            "uint8) [N, 1 or 3, height, width] or [N, height, width, 1 or 3], give .npy or .npz data instead"
        )
    channels, height, width = (int(cast(int, dim)) for dim in dims)
    if height < 1 or width < 1:
        raise PerfonnxError(f"input '{spec.name}' {shape_text(spec.shape)}: an image needs a size of 1 or more")
    return channels, height, width


def _read_image(
    file: Path, open_file: OpenFile, channels: int, height: int, width: int, image_format: ImageFormat
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
        raise PerfonnxError(f"image {file}: cannot be read ({one_line(error)})") from error
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


def _pixels(image: Any) -> NDArray[np.uint8]:
    """[C, H, W] of a Pillow image."""
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
