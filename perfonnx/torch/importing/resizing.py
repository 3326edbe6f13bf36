"""Resize and its predecessor Upsample: nearest and linear, one axis after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfonnx.torch.importing.node import Node

_COORDINATES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
_PLAIN = {
    "antialias": 0,
    "exclude_outside": 0,
    "keep_aspect_ratio_policy": "stretch",
}
"""Attributes that are supported with these values only."""


def resize(node: Node, x: Tensor, *settings: Tensor | None) -> Tensor:
    """Version 10 has one more input, scales; later ones have a region, which only cropping needs, scales and sizes."""
    for name, value in _PLAIN.items():
        if node.attribute(name, value) != value:
            raise node.refuse(f"{name} {node.attribute(name)} is not supported")
    if node.opset < 11:
        return _resized(node, x, _floats(settings[0]), None, "asymmetric", "floor")
    _, scales, sizes = (*settings, None, None, None)[:3]
    coordinates = node.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = node.attribute("nearest_mode", "round_prefer_floor")
    return _resized(node, x, _floats(scales), _floats(sizes), coordinates, rounding)


def upsample(node: Node, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Scales are an attribute in version 7 and an input later."""
    factors = node.attribute("scales") if scales is None else _floats(scales)
    return _resized(node, x, factors, None, "asymmetric", "floor")


def _floats(values: Tensor | None) -> list[float] | None:
    return None if values is None or values.numel() == 0 else [float(v) for v in values.tolist()]


def _resized(
    node: Node, x: Tensor, scales: list[float] | None, sizes: list[float] | None, coordinates: str, rounding: str
) -> Tensor:
    mode = node.attribute("mode", "nearest")
    if mode not in ("nearest", "linear") or coordinates not in _COORDINATES:
        raise node.refuse(f"mode {mode!r} with coordinates {coordinates!r} is not supported")
    axes = [a % x.dim() for a in node.attribute("axes", range(x.dim()))]
    for i, axis in enumerate(axes):
        size = x.shape[axis]
        if axis == 0 and node.attribute("axes") is None:  # a batch stays what it is
            continue
        if sizes is not None:
            wanted = int(sizes[i])
            scale = wanted / size
        else:
            scale = (scales or [])[i]
            wanted = int(np.float32(scale) * np.float32(size))
        if scale == 1:
            continue
        place = _places(coordinates, size, wanted, scale, x.device)
        x = _nearest(x, axis, place, rounding) if mode == "nearest" else _linear(x, axis, place)
    return x


def _places(coordinates: str, size: int, wanted: int, scale: float, device: torch.device) -> Tensor:
    """Where each position of the result lies on the axis, float32 [wanted]."""
    place = torch.arange(wanted, dtype=torch.float32, device=device)
    if coordinates == "asymmetric":
        return place / scale
    if coordinates == "align_corners":
        return place * (size - 1) / max(wanted - 1, 1)
    if coordinates == "pytorch_half_pixel" and wanted == 1:
        return place
    return (place + 0.5) / scale - 0.5


def _nearest(x: Tensor, axis: int, place: Tensor, rounding: str) -> Tensor:
    rounded = {
        "floor": place.floor(),
        "ceil": place.ceil(),
        "round_prefer_floor": (place - 0.5).ceil(),
        "round_prefer_ceil": (place + 0.5).floor(),
    }[rounding]
    return x.index_select(axis, rounded.long().clamp(0, x.shape[axis] - 1))


def _linear(x: Tensor, axis: int, place: Tensor) -> Tensor:
    last = x.shape[axis] - 1
    place = place.clamp(0, last)
    low = place.floor()
    part = (place - low).to(x.dtype).reshape(-1, *[1] * (x.dim() - 1 - axis))
    index = low.long()
    return torch.lerp(x.index_select(axis, index), x.index_select(axis, (index + 1).clamp(max=last)), part)


OPERATORS: dict[str, Any] = {"Resize": resize, "Upsample": upsample}
