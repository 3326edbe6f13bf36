"""The command line: exit statuses, help, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perfonnx.cli import commands
from perfonnx.errors import PerfonnxError
from tests.cli.running import COMMANDS, refused, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)], ids=" ".join)
def test_help(command: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    out, err = capfd.readouterr()
    assert "example" in out
    assert err == ""


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capfd.readouterr().out.startswith("perfonnx ")


def test_as_a_program(here: Path) -> None:
    """In its own process: the statuses, and standard output that goes nowhere."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "perfonnx.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)

    done = program("rewrite", "m.onnx", "out.onnx", "--rate", "0.5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["layers"]) == 2
    done = program("inspect", "gone.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "perfonnx: gone.onnx: No such file or directory; give the path of an ONNX file\n"
    assert program().returncode == 2
    with subprocess.Popen(
        [sys.executable, "-m", "perfonnx.cli", "inspect", "m.onnx"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as piped:
        assert piped.stdout is not None
        assert piped.stderr is not None
        piped.stdout.close()  # the reader has gone before anything is written
        assert b"Traceback" not in piped.stderr.read()


@pytest.mark.parametrize(
    "arguments",
    [(), ("magic",), ("inspect",), ("rewrite",), ("rewrite", "m.onnx"), ("check", "m.onnx"), ("bench",), ("lib", "x")],
    ids=" ".join,
)
def test_bad_commands(arguments: tuple[str, ...], here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(capfd, *arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench m.onnx --seed -1", "--seed -1: give a whole number from 0 up"),
        ("impact m.onnx maps.npz --data x.npy --samples 1 --seed -1", "--seed -1"),
        ("check m.onnx m.onnx --threads 0", "--threads 0: give 1 or more"),
        ("alphas m.onnx --data x.npy --threads -2", "--threads -2"),
    ],
)
def test_values_that_no_command_takes(line: str, message: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capfd, *line.split())


def test_errors_of_our_own_are_not_swallowed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `PerfonnxError` becomes one line: a mistake in the program shows as what it is."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("perfonnx.inspection.inspect", broken)
    with pytest.raises(ZeroDivisionError):
        run("inspect", "m.onnx")
    monkeypatch.undo()
    assert issubclass(PerfonnxError, Exception)


def test_a_command_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is listed and runs, with nothing else said of it anywhere."""
    (tmp_path / "count.py").write_text(
        """
from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.named_files import Read

def run(options):
    print(len(options.words.split()))
    return ExitStatus.CHECK_FAILED

COMMAND = Command("count", 15, "count words", "examples: none", lambda p: p.add_argument("words", type=Read), run)
"""
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert run("--help") == 0
    listed = re.findall(r"^    (\w+)", capfd.readouterr().out, re.MULTILINE)
    assert listed[:3] == ["inspect", "count", "rewrite"]
    assert run("count", "a b c") == 1
    assert capfd.readouterr() == ("3\n", "")
