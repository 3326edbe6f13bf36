"""The tables of methods: what is wrong with their command lines is a line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("tool", ["lowrank_table", "tune_families"])
def test_without_data_is_a_line(tool: str) -> None:
    command = [sys.executable, str(TOOLS / f"{tool}.py"), "m.onnx"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f"{tool}: it measures on your data: add --data with a folder of images or a file\n"


def test_no_fewer_times_are_a_line() -> None:
    command = [sys.executable, str(TOOLS / "lowrank_table.py"), "m.onnx", "--times", "1.5", "0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "lowrank_table: --times 1.5 0: give numbers above 1\n"
