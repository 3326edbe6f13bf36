"""The table of what fine-tuning is worth, on a network of three layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.extras import needs

torch = needs("torch")

import onnx  # noqa: E402

import perfonnx.torch  # noqa: E402
from tests.torch.test_applying import EXAMPLE, Small  # noqa: E402

TOOL = Path(__file__).parents[2] / "tools" / "training_table.py"


@pytest.mark.slow
def test_every_method_has_its_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense, _ = perfonnx.torch.dense_onnx(Small(), EXAMPLE)
    onnx.save(dense, tmp_path / "dense.onnx")
    rng = np.random.default_rng(0)
    name = dense.graph.input[0].name
    for file, count in (("train", 96), ("test", 24)):
        images = rng.standard_normal((count, 3, 12, 10)).astype(np.float32)
        np.savez(tmp_path / f"{file}.npz", **{name: images, "labels": np.arange(count) % 5})
    cases = ["perforate:lattice:0.5", "perforate:impact:0.3", "sparse:propagated:0.2", "radius-adaptive::0.5"]
    command = [sys.executable, str(TOOL), str(tmp_path / "dense.onnx"), *cases]
    command += ["--data", str(tmp_path / "train.npz"), "--test", str(tmp_path / "test.npz"), "--epochs", "1"]
    command += ["--augment", "flip", "--runs", "2", "--batch", "1", "4", "--json", str(tmp_path / "rows.json")]
    command += ["--models", str(tmp_path / "models"), "--precision", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"] for row in rows] == cases
    assert done.stdout.count("|") > 7 * len(cases)
    assert all(row["reduction"] > 1 for row in rows[:3])
    assert all(sorted(row["speeds"]) == ["1", "4"] for row in rows)
    assert rows[3]["open_share"] is not None
    assert len(list((tmp_path / "models").glob("*.onnx"))) == len(cases)
    bad = subprocess.run([*command[:3], "perforate:lattice", *command[7:]], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.splitlines()[-1].startswith("training_table: case 'perforate:lattice'")
