"""Resize and Upsample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from perfonnx.gradients.builder import Builder, Value, probe
from perfonnx.gradients.network import Node
from perfonnx.gradients.rules.registry import gradient


@gradient("Resize", "Upsample")
def _resize(g: Builder, node: Node, dy: Value) -> Sequence[Value | None]:
    """All modes are linear and separable; each axis is read off as a matrix, so every coordinate rule is right."""
    if node.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise node.refuse("tf_crop_and_resize has no gradient here; choose tensors behind it")
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("keep_aspect_ratio_policy has no gradient here; choose tensors behind it")
    shape, rank = node.shape(), len(node.shape())
    scales, sizes = _scales(node), _sizes(node)
    for axis in range(rank):
        same = scales[axis] == 1 if scales is not None else sizes is not None and sizes[axis] == shape[axis]
        if not same:
            scale = None if scales is None else scales[axis]
            dy = dy.along(axis, rank, _weights(node, shape[axis], node.output_shape()[axis], scale).T)
    return [dy]


def _weights(node: Node, size: int, out: int, scale: float | None) -> NDArray[Any]:
    """[size, out]: what each position of one axis adds to each position of the result."""
    attributes = [a for a in node.proto.attribute if a.name not in ("axes", "scales", "height_scale", "width_scale")]
    feeds: dict[str, NDArray[Any]] = {"x": np.eye(size, dtype=np.float32)[None, None]}
    inputs = ["x"]
    scales = np.array([1, 1, 1, 0.0 if scale is None else scale], np.float32)
    if node.op == "Upsample" and node.opset < 9:
        attributes.append(onnx.helper.make_attribute("scales", scales.tolist()))
    elif node.op == "Upsample" or node.opset < 11:
        inputs.append("scales")
        feeds["scales"] = scales
    elif scale is not None:
        inputs += ["roi", "scales"] if node.opset < 13 else ["", "scales"]
        feeds["scales"] = scales
    else:
        inputs += ["roi", "none", "sizes"] if node.opset < 13 else ["", "", "sizes"]
        feeds["sizes"] = np.array([1, 1, size, out], np.int64)
    if "roi" in inputs:
        feeds["roi"] = np.zeros(0, np.float32)
    if "none" in inputs:
        feeds["none"] = np.zeros(0, np.float32)
    proto = onnx.helper.make_node(node.op, inputs, ["y"])
    proto.attribute.extend(attributes)
    return probe(proto, node.opset, feeds)[0, 0]


def _scales(node: Node) -> list[float] | None:
    """The factor of each axis; None where sizes are given instead."""
    given = node.attribute("scales")
    if given is None:
        position = 1 if node.op == "Upsample" or node.opset < 11 else 2
        if not node.has(position):
            return None
        constant = _constant(node, position)
        if constant.size == 0:
            return None
        given = constant.ravel().tolist()
    return _on_all_axes(node, given, [1.0] * len(node.shape()))


def _sizes(node: Node) -> list[int] | None:
    if not node.has(3):
        return None
    return [int(n) for n in _on_all_axes(node, _constant(node, 3).ravel().tolist(), list(node.shape()))]


def _on_all_axes(node: Node, given: Sequence[Any], default: list[Any]) -> list[Any]:
    """Values for the axes of the attribute `axes`, spread to all of them."""
    axes = node.attribute("axes") or range(len(given))
    for axis, value in zip(axes, given, strict=True):
        default[axis] = value
    return default


def _constant(node: Node, position: int) -> NDArray[Any]:
    values = node.constant(position)
    if values is None:
        raise node.refuse("its sizes are computed from the data; a gradient needs constant ones")
    return values
