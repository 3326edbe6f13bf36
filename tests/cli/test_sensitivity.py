"""`perfonnx sensitivity`."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.cli.running import run
from tests.search.test_tune import network


def test_sensitivity_prints_a_table_or_json(with_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choices = ("--methods", "perforate", "--rates", ".25,.5", "--masks", "uniform", "--repair", "none")
    arguments = ("--data", "data.npz", "--samples", "8", *choices)
    assert run("sensitivity", "m.onnx", *arguments) == 0
    assert "conv3" in capsys.readouterr().out
    assert run("sensitivity", "m.onnx", *arguments, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["images"] == 8
    assert {(row["layer"], row["choice"]["rate"]) for row in data["layers"]} == {
        (f"conv{i}", rate) for i in (1, 2, 3, 4) for rate in (0.25, 0.5)
    }


def test_sensitivity_of_weights_that_are_inputs_too(with_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save_model(model, with_data / "open.onnx", save_as_external_data=True, size_threshold=0)
    few = ("--data", "data.npz", "--masks", "lattice", "--rates", ".5", "--repair", "none")
    assert run("sensitivity", "open.onnx", *few) == 2
    assert "want --freeze-weights" in capsys.readouterr().err
    assert run("sensitivity", "open.onnx", *few, "--freeze-weights") == 0
