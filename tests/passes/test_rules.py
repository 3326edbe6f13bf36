"""Why a node stays on maps though rows reach it: said in words, and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import perfonnx
from perfonnx.cli import main
from perfonnx.passes.rules import RULES
from perfonnx.passes.rules.rule import NO_WORK_SAVED, POSITIONS_WITHOUT_ROWS
from tests.passes.test_lower import network

CONV = "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>"
WEIGHTS = {"w1": (8, 4, 3, 3), "w2": (8, 8, 3, 3)}
MAP = "float[N,8,12,10] y"


def reasons(tail: str, output: str = MAP, **choices: Any) -> dict[str, str]:
    """Of the nodes in `tail`, which reads b, behind two sampled layers; by the name that `network` gives them."""
    model = network(f"a = {CONV}(x, w1)\nb = {CONV}(a, w2)\n{tail}", WEIGHTS, output)
    report = perfonnx.rewrite(model, **({"rate": 0.5, "only": ["Conv_[01]"]} | choices)).report
    return {skip.layer: skip.reason for skip in report.left_on_maps}


CASES: list[tuple[str, str, dict[str, str]]] = [
    ("y = Softmax<axis=1>(b)", MAP, {"Softmax_2": "Softmax has no form on rows"}),
    ("y = Concat<axis=2>(b, b)", "float[N,8,24,10] y", {"Concat_2": "it joins along another axis than the channels"}),
    (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1>(b)",
        "float[N,8,6,5] y",
        {"AveragePool_2": "versions of onnxruntime differ in what its window is, or it cannot be read"},
    ),
    (
        "y = MaxPool<kernel_shape=[2,2], storage_order=1>(b)",
        "float[N,8,11,9] y",
        {"MaxPool_2": "it counts its positions by columns"},
    ),
    (
        "y = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(b)",
        "float[N,8,10,8] y",
        {"AveragePool_2": "its window is dilated"},
    ),
    (
        "f = Flatten(b)\ny = Relu(f)",
        "float[N,960] y",
        {"Flatten_2": "what reads it is not one Gemm or MatMul with a matrix for it"},
    ),
]


@pytest.mark.parametrize(("tail", "output", "expected"), CASES, ids=[case[0] for case in CASES])
def test_why_a_node_stays_on_maps(tail: str, output: str, expected: dict[str, str]) -> None:
    opset = 19 if "dilations" in tail else 13
    model = network(f"a = {CONV}(x, w1)\nb = {CONV}(a, w2)\n{tail}", WEIGHTS, output, opset)
    report = perfonnx.rewrite(model, rate=0.5, only=["Conv_[01]"]).report
    assert {skip.layer: skip.reason for skip in report.left_on_maps} == expected


def test_zeros_that_are_not_kept() -> None:
    assert reasons("y = Exp(b)", interpolation="zero") == {"Exp_2": POSITIONS_WITHOUT_ROWS}
    assert reasons("y = Tanh(b)", interpolation="zero") == {}


def test_rows_that_save_nothing() -> None:
    assert reasons("y = Tanh(b)", rate=0.0) == {"Tanh_2": NO_WORK_SAVED}


def test_every_operator_has_one_rule() -> None:
    taken = [(rule.domain, op) for rule in RULES for op in rule.takes]
    assert len(taken) == len(set(taken))
    assert all(onnx.defs.has(op, domain) for domain, op in taken)


def test_reasons_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(network(f"a = {CONV}(x, w1)\nb = {CONV}(a, w2)\ny = Softmax<axis=1>(b)", WEIGHTS, MAP), path)
    line = ["rewrite", str(path), str(tmp_path / "fast.onnx"), "--rate", "0.5", "--only", "Conv_[01]"]
    assert main(line) == 0
    assert "no form on rows" not in capsys.readouterr().out
    assert main([*line, "-v"]) == 0
    shown = capsys.readouterr().out
    assert "rows reach them, but they stay on maps" in shown
    assert "Softmax_2" in shown
    assert "Softmax has no form on rows" in shown
    assert main([*line, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["left_on_maps"] == [{"layer": "Softmax_2", "reason": "Softmax has no form on rows"}]
