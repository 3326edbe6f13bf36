"""Real pretrained models, where this machine has them: in the directory that PERFONNX_TEST_DATA names, or beside it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

DATA = Path(os.environ.get("PERFONNX_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

SHAPES: dict[str, dict[str, tuple[int | str, ...]]] = {
    "denoise_dncnn25_gray": {"input": ("N", 1, 64, 48)},
    "sr2x_waifu2x_upconv7_photo": {"input": ("N", 3, 48, 64)},
}
"""Sizes for the models whose height and width are symbolic."""

PIXELS = ("style_candy", "style_mosaic", "style_la_muse", "style_candy_raw_winml")
"""Models that want pixel values, 0 to 255. On noise around zero their instance normalization divides by next to
nothing, and onnxruntime's own optimization levels differ by more than 1e-4 there."""

STYLE_SIZE = 720
"""Height and width that the style networks were exported for; all four are one network with weights of their own."""

SMALL = ("portrait_sinet_softmax",)
"""Models that want values far below 1. On larger ones its logits reach 1e9, and its softmax turns the last digit of a
tie between classes into a difference of 1."""


def suited(name: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Standard normal inputs, brought to the range that a model was trained for."""
    if name in PIXELS:
        return {key: np.clip(127 + 64 * values, 0, 255).astype(values.dtype) for key, values in feed.items()}
    return {key: values / 64 for key, values in feed.items()} if name in SMALL else feed


def names() -> list[str]:
    """The models that are here, as paths below `models` without their suffix."""
    found = sorted((DATA / "models").rglob("*.onnx")) if DATA.is_dir() else []
    return [str(path.relative_to(DATA / "models").with_suffix("")) for path in found]


def path(name: str) -> Path:
    """The path of a model; the test is skipped where it is not here."""
    file = DATA / "models" / f"{name}.onnx"
    if not file.is_file():
        pytest.skip(f"the real model {name} is not here: set PERFONNX_TEST_DATA")
    return file


def model(name: str) -> str | onnx.ModelProto:
    """A model at a size that is quick to run: the style networks at 80x80, the others as they are.

    The test is skipped where the model is not here.
    """
    file = path(name)
    return _resized(onnx.load(file), 80) if file.stem in PIXELS else str(file)


def _resized(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """A style network for maps of another height and width, a multiple of 4; its function is the same."""
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_value == STYLE_SIZE:
                dimension.dim_value = size
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "output_shape":  # of a transposed convolution: the map, and a row to crop on each side
                attribute.ints[:] = [(n - 2) * size // STYLE_SIZE + 2 for n in attribute.ints]
    return model
