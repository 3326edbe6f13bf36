"""`perfonnx bench`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.running import run
from tests.models import small


def test_bench_runs_on_the_data(with_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [onnx.helper.make_node("Gather", ["table", "x"], ["y"])]
    model = small.make(nodes, {"table": np.zeros(9, np.float32)}, input_shape=["N"], output_shape=["N"])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, with_data / "g.onnx")
    np.save(with_data / "inside.npy", np.array([8, 3]))
    np.save(with_data / "outside.npy", np.array([9, 3]))
    assert run("bench", "g.onnx", "--runs", "1", "--data", "inside.npy") == 0
    assert run("bench", "g.onnx", "--runs", "1", "--data", "outside.npy") == 2
    assert "onnxruntime cannot run it" in capsys.readouterr().err
