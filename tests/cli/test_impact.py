"""`perfonnx impact`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.cli.running import run
from tests.models import small


def test_impact_takes_the_output_of_class_scores(with_data: Path) -> None:
    onnx.save(small.odd_outputs(), with_data / "odd.onnx")
    np.save(with_data / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 12, 10)).astype(np.float32))
    assert run("impact", "odd.onnx", "maps.npz", "--data", "x.npy") == 0
    with np.load(with_data / "maps.npz") as maps:
        assert set(maps) == {"conv1", "conv2"}
