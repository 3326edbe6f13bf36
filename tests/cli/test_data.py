"""The flags of data: what they choose, and what they refuse."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from perfonnx.cli.data import add_data, samples_from
from perfonnx.errors import PerfonnxError
from tests.cli.running import COMMANDS, run
from tests.data.cases import IMAGE, pictures
from tests.models import small


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_data(parser)
    return parser.parse_args(arguments)


def test_flags(tmp_path: Path) -> None:
    data = str(pictures(tmp_path, 12))
    assert samples_from(parsed(), [IMAGE]) is None
    flags = ["--data", data, "--labels", "prefix", "--scale", "1", "--mean", "5", "--channels", "bgr", "--samples", "5"]
    samples = samples_from(parsed(*flags, "--seed", "3"), [IMAGE])
    assert samples is not None
    assert samples.labels is not None
    (batch,) = samples
    assert (batch.feeds["x"][:, 2, 0, 0] / 10 + 0.5).tolist() == samples.labels.tolist()
    assert samples.labels.tolist() != list(range(5))
    for wrong, message in (
        (["--samples", "0"], "--samples 0: give 1 or more"),
        (["--size", "8x8x8"], "--size 8x8x8: give one number, or height and width"),
        (["--mean", "a"], "--mean a: give a number"),
        (["--mean", "1,2"], "has 2 values, but the model has 3 channels"),
    ):
        with pytest.raises(PerfonnxError, match=message):
            list(samples_from(parsed("--data", data, *wrong), [IMAGE]) or ())
    with pytest.raises(PerfonnxError, match="--labels is about data; give --data"):
        samples_from(parsed("--labels", "prefix"), [IMAGE])


FEEDING = tuple(name for name in COMMANDS if name not in ("inspect", "lib"))


@pytest.mark.parametrize("command", FEEDING)
def test_every_command_that_feeds_a_model_has_the_same_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "data: " in text
    for flag in ("data PATH", "labels PATH|folders", "preset NAME|FILE", "size N|HxW", "crop HxW", "scale SCALE"):
        assert f"--{flag}" in text
    for flag in ("mean M[,M,M]", "std S[,S,S]", "channels {rgb,bgr,gray}", "image-layout", "samples N", "library FILE"):
        assert f"--{flag}" in text
    assert "--bgr" not in text


def test_earlier_spellings(with_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(with_data / "a.png")
    onnx.save(small.pictures_classifier(), "p.onnx")
    results = []
    how = ("--input-shape", "x:1,3,10,10", "--metric", "loss", "--json")
    for spelling in (("-n", "1", "--bgr"), ("--samples", "1", "--channels", "bgr"), ("--samples", "1")):
        assert run("check", "p.onnx", "p.onnx", "--data", ".", *how, *spelling) == 0
        results.append(json.loads(capsys.readouterr().out)["quality"]["reference"])
        assert run("check", "m.onnx", "m.onnx", *spelling[:2], "--json") == 0
        assert json.loads(capsys.readouterr().out)["samples"] == 1
    assert results[0] == results[1] != results[2]
