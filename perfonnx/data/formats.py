"""How images become numbers: what a format says, the formats known by name, and those of a JSON file.

A command line names them, so nothing large is imported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from perfonnx.errors import PerfonnxError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp")
"""By which the images in a folder or an archive are known."""

CHANNELS = ("rgb", "bgr", "gray")
"""Orders of colours."""

IMAGE_LAYOUTS = ("nchw", "nhwc")
"""Orders of an image input's dimensions."""


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
        if self.layout not in (None, *IMAGE_LAYOUTS):
            raise PerfonnxError(f"image layout {self.layout!r}: choose from {', '.join(IMAGE_LAYOUTS)}")
        if any(value == 0 for value in self.std):
            raise PerfonnxError("image std: must not be 0")


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
    if not isinstance(start, str) or start not in PRESETS:
        raise PerfonnxError(f"preset {path}: starts from {start!r}; choose from {', '.join(PRESETS)}")
    return changed(PRESETS[start], data, f"preset {path}")


def changed(start: ImageFormat, given: Mapping[str, Any], where: str) -> ImageFormat:
    """A format with some fields as they are given.

    Raises:
        PerfonnxError: A value is of the wrong kind or without meaning; the message begins with `where`.
    """
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
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
