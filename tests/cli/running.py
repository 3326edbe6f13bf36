"""The commands as tests run them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto

from perfonnx.cli import main
from perfonnx.cli.commands import commands
from tests.model.chains import listing
from tests.passes import nets
from tests.passes.nets import node

COMMANDS = tuple(command.name for command in commands())

FAST = ("--max-time", "5", "--masks", "lattice", "--rates", ".75", "--repair", "bias", "--threads", "1", "--no-cache")
"""Flags with which a search is over soon."""


def network() -> ModelProto:
    nodes = [
        nets.conv("x", "a", "w1", name="conv1"),
        node("Relu", ["a"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        nets.conv("p", "y", "w2", name="conv2"),
    ]
    return nets.model(nodes, {"w1": nets.values(8, 3, 3, 3), "w2": nets.values(8, 8, 3, 3)})


def run(*arguments: Any) -> int:
    """The exit status, however it is reached."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capfd: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Runs a command that must fail as promised, and returns its one line."""
    capfd.readouterr()
    before = listing(Path.cwd())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(*arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("perfonnx")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert len(err) < 1000
    assert "Traceback" not in err
    assert listing(Path.cwd()) == before
    return err
