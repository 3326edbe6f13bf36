"""Image formats: the presets, files of formats, and what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from perfonnx.data import images
from perfonnx.data.formats import PRESETS, ImageFormat, image_format
from perfonnx.errors import PerfonnxError


def test_image_format_checks_itself() -> None:
    with pytest.raises(PerfonnxError, match="crop 0"):
        ImageFormat(crop=0)
    with pytest.raises(PerfonnxError, match="std"):
        ImageFormat(std=(1, 0, 1))
    with pytest.raises(PerfonnxError, match="mean has 2 values, but the model has 3 channels"):
        images.normalize(np.zeros((1, 3, 2, 2), np.uint8), ImageFormat(mean=(1, 2)))


def test_presets(tmp_path: Path) -> None:
    assert image_format() == image_format("unit") == PRESETS["unit"]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"preset": "imagenet", "size": 232, "bgr": True}))
    assert image_format(str(file)) == ImageFormat(
        mean=PRESETS["imagenet"].mean, std=PRESETS["imagenet"].std, size=(232,), bgr=True
    )
    for text, message in (
        ('{"means": 1}', "needs an object with fields of preset, bgr"),
        ('{"mean": "high"}', "mean is 'high'; give numbers"),
        ('{"bgr": 1}', "give true or false"),
        ('{"size": [1.5]}', "size is"),
        ('{"preset": "mine"}', "starts from 'mine'"),
        ('{"preset": ["unit"]}', "starts from"),
        ('{"scale": 1' + "0" * 400 + "}", "scale is 1"),
        ('{"std": 0}', "std: must not be 0"),
        ('{"layout": "hwc"}', "layout 'hwc': choose from nchw, nhwc"),
        ("{", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(PerfonnxError, match=message):
            image_format(str(file))
    with pytest.raises(PerfonnxError, match=r"preset 'imagnet': choose from unit, pixels"):
        image_format("imagnet")
