"""The benchmark tool: its sub-commands measure something and write it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from perfonnx import _engine
from tests.models import small
from tests.passes import nets
from tests.passes.nets import node

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, cwd=TOOL.parents[1], capture_output=True, text=True, timeout=300, check=False)


def test_layers(tmp_path: Path) -> None:
    small.need_library()
    out = tmp_path / "out.json"
    done = run(
        "layers", "--networks", "nin", "--only", "^conv3$", "--runs", "3", "--batch", "1", "2", "--json", str(out)
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["batch"] for row in rows] == [1] * 4 + [2] * 4
    assert [row["theory"] for row in rows[:4]] == pytest.approx([1, 4 / 3, 2, 4], rel=0.05)
    assert all(row["rows"] > 0 and row["NCHW"] > 0 and row["onnxruntime ms"] > 0 for row in rows)


@pytest.mark.slow
def test_what_stands_beside(tmp_path: Path) -> None:
    small.need_library()
    out = tmp_path / "out.json"
    arguments = ("--networks", "nin", "--only", "^conv3$", "--mask", "grid", "--rates", "0", "0.75", "--runs", "3")
    done = run("layers", *arguments, "--beside", "int8", "avx2", "resize", "--json", str(out))
    assert done.returncode == 0, done.stderr
    dense, grid = json.loads(out.read_text())["rows"]
    assert dense["int8"] > 0
    assert grid["int8"] > 0
    assert "stride 2 + Resize" not in dense
    assert grid["stride 2 + Resize"] > 0
    capped = len(_engine.available_isas()) > 2  # baseline, AVX2 and more
    assert ("rows, avx2" in grid) == capped
    assert capped == (grid.get("rows, avx2", 0) > 0)


@pytest.mark.slow
def test_chains(tmp_path: Path) -> None:
    """Stock layers of stride 2 with Resize stand beside a grid, and beside nothing else."""
    small.need_library()
    out = tmp_path / "out.json"
    done = run("chains", "--shapes", "32,24", "--runs", "3", "--json", str(out))
    assert done.returncode == 0, done.stderr
    grid, quincunx, square, decoder = json.loads(out.read_text())["rows"]
    assert [row["chain"] for row in (grid, quincunx, square, decoder)] == [
        "grid 1 of 4",
        "quincunx",
        "square",
        "decoder x2",
    ]
    assert grid["multiplies"] == pytest.approx(4)
    assert grid["rows / stride 2 + Resize"] == pytest.approx(grid["rows"] / grid["stride 2 + Resize"])
    assert (quincunx["multiplies"], square["multiplies"]) == (pytest.approx(2), pytest.approx(4))
    for row in (quincunx, square, decoder):
        assert row["rows"] > 0
        assert "stride 2 + Resize" not in row


@pytest.mark.slow
def test_networks_of_a_folder(tmp_path: Path) -> None:
    """Symbolic sizes are filled in; a model with another batch size is left out, and said so."""
    small.need_library()
    nodes = [nets.conv(name="first"), node("Relu", ["c"], ["r"]), nets.conv("r", "y", "v", name="second")]
    weights = {"w": nets.values(16, 3, 3, 3), "v": nets.values(16, 16, 3, 3)}
    onnx.save(nets.model(nodes, weights, inputs={"x": ("N", 3, "H", "W")}), tmp_path / "dncnn_open.onnx")
    onnx.save(nets.model(nodes, weights), tmp_path / "dncnn_one.onnx")
    onnx.save(nets.model(nodes, weights), tmp_path / "other.onnx")
    out = tmp_path / "out.json"
    arguments = ("--rates", "0.75", "--size", "256", "--batch", "2", "--runs", "3", "--json", str(out))
    done = run("networks", "--models", "--folder", str(tmp_path), *arguments)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert row["network"] == "dncnn_open"
    assert row["multiplies"] == pytest.approx(4, rel=0.05)
    assert row["onnxruntime MB"] > row["rows MB"] > 0
    assert "dncnn_one.onnx: has another batch size than 2" in done.stderr


def test_usage(tmp_path: Path) -> None:
    assert "examples:" in run("networks", "--help").stdout
    done = run("networks", "--models", "--files", str(tmp_path / "gone.onnx"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
