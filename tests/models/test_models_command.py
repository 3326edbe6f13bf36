"""`python -m models`: what it writes, what it prints, how it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import models
from models.__main__ import main


def test_writes_the_model_that_build_gives(tmp_path: Path) -> None:
    path = tmp_path / "nin.onnx"
    assert main(["nin", str(path), "--seed", "4", "--batch", "N", "--opset", "13"]) == 0
    expected = models.build("nin", seed=4, batch="N", opset=13)
    assert path.read_bytes() == expected.SerializeToString(deterministic=True)
    assert [file.name for file in tmp_path.iterdir()] == ["nin.onnx"]
    first = path.read_bytes()
    assert main(["nin", str(path), "--seed", "4", "--batch", "N", "--opset", "13"]) == 0
    assert path.read_bytes() == first


def test_runs_as_a_module(tmp_path: Path) -> None:
    root = Path(models.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "models", "nin", str(tmp_path / "a.onnx"), "--batch", "2"], cwd=root, check=False
    )
    assert done.returncode == 0
    shape = onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [2, 3, 32, 32]


def test_list_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(models.NAMES)
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    assert "python -m models vgg16 vgg16.onnx" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a network and a file to write"),
        (["nin"], "name a network and a file to write"),
        (["lenet", "OUT"], "unknown network 'lenet'"),
        (["nin", "OUT", "--seed", "x"], "--seed"),
        (["nin", "OUT", "--batch", "-1"], "batch"),
        (["nin", "OUT", "--opset", "3"], "opset 3"),
        (["nin", "OUT", "--fold-bn"], "--fold-bn"),
        (["nin", "OUT", "--open-share", "0.5"], "nin has no gates to open: leave --open-share out"),
        (["nin", "OUT", "--what"], "--what"),
        (["nin", "DIR"], "is a directory"),
        (["nin", "MISSING"], "there is no directory"),
    ],
)
def test_mistakes_give_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"OUT": tmp_path / "out.onnx", "DIR": tmp_path, "MISSING": tmp_path / "no" / "out.onnx"}
    assert main([str(places.get(argument, argument)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
