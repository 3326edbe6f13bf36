"""`perfonnx check`: it repeats what was judged elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.cli.running import run
from tests.models import small


def test_check_repeats_what_tune_judged(with_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On pictures that need their preset, size, crop, order of colours and labels."""
    random = np.random.default_rng(0)
    for number, pixels in enumerate(random.integers(0, 256, (30, 40, 30, 3), dtype=np.uint8)):
        Image.fromarray(pixels).resize((60, 80), Image.Resampling.BICUBIC).save(
            with_data / f"{number % 5}_{number}.png"
        )
    flags = ("--data", ".", "--preset", "imagenet", "--size", "20", "--crop", "16x16", "--channels", "bgr")
    flags += ("--labels", "prefix", "--samples", "26", "--seed", "3", "--input-shape", "x:N,3,16,16")
    onnx.save(small.pictures_classifier(), "p.onnx")
    tuning = ("--rates", ".75", "--masks", "uniform", "--repair", "none", "--threads", "1", "--no-cache")
    tuning += ("--max-drop", "100%", "--max-time", "3", "--report-json", "report.json")
    assert run("tune", "p.onnx", "out.onnx", *flags, *tuning, "-q") == 0
    report = json.loads((with_data / "report.json").read_text())
    assert report["metric"]["name"] == "top1"
    assert report["best"] is not None
    capsys.readouterr()
    assert run("check", "p.onnx", "out.onnx", *flags, "--held-back", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == report["metric"]
    for key, value in report["trials"][report["best"]]["held_back"].items():
        assert found["quality"][key] == pytest.approx(value, rel=1e-4, abs=1e-7), key
    assert run("check", "p.onnx", "out.onnx", *flags, "--json", "--metric", "distance", "--max-drop", "0") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["quality"]["images"] == 26
    assert "distance loses" in shown.err
