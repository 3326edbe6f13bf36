"""`perfonnx inspect`: tables, JSON, and names that are no markup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import perfonnx
from tests.cli.running import network, refused, run


def test_inspect(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "m.onnx") == 0
    out, err = capfd.readouterr()
    assert err == ""
    for text in ("m.onnx, opset 17", "conv1", "conv2", "8x3x3x3", "12x10", "25.9 k", "2 convolutions, 2 eligible"):
        assert text in out
    assert run("inspect", "m.onnx", "--json") == 0
    assert json.loads(capfd.readouterr().out) == perfonnx.inspect("m.onnx").to_json() | {
        "convs": json.loads(json.dumps(perfonnx.inspect("m.onnx").to_json()["convs"]))
    }


def test_names_with_brackets_are_no_markup(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.graph.node[0].name = "[/red]"
    Path("[red]m.onnx").write_bytes(model.SerializeToString())
    for command in (("inspect", "[red]m.onnx"), ("rewrite", "[red]m.onnx", "[b]out.onnx", "--rate", "0.5")):
        assert run(*command) == 0
        out, err = capfd.readouterr()
        assert "[red]m.onnx" in out
        assert "[/red]" in out
    assert "[b]out.onnx" in out
    assert err == ""
    assert "not there[/b]" in refused(capfd, "inspect", "not there[/b]")


def test_names_with_newlines(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.graph.name = "a\nb"
    model.graph.node[0].name = "conv\n1"
    model.graph.initializer[1].raw_data = b"short"
    model.graph.initializer[1].name = "w\n2"
    (here / "a\nb.onnx").write_bytes(model.SerializeToString())
    refused(capfd, "inspect", "a\nb.onnx")
    refused(capfd, "inspect", "a\nb\nc.onnx")
    refused(capfd, "rewrite", "m.onnx", "out.onnx", "--only", "a\n(")
    refused(capfd, "rewrite", "m.onnx", "no\nsuch/out.onnx")
