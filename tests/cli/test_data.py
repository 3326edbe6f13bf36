"""The flags of data: what they choose, and what they refuse."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from perfonnx.cli.data import add_data, samples_from
from perfonnx.errors import PerfonnxError
from tests.data.cases import IMAGE, pictures


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
