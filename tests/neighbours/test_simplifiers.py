"""OnnxSlim and onnxsim."""

from __future__ import annotations

import copy

import onnx
import pytest

from tests.extras import needs
from tests.neighbours import nets


def slim(source: onnx.ModelProto) -> onnx.ModelProto:
    tool = needs("onnxslim")
    return tool.slim(copy.deepcopy(source))


def sim(source: onnx.ModelProto) -> onnx.ModelProto:
    tool = needs("onnxsim")
    simplified, same = tool.simplify(source)
    assert same
    return simplified


TOOLS = {"OnnxSlim": slim, "onnxsim": sim}

tools = pytest.mark.parametrize("tool", TOOLS)


@tools
@nets.forms
@pytest.mark.parametrize("opset", [9, 13, 17])
def test_a_rewritten_model_is_simplified(tool: str, form: str, opset: int) -> None:
    source = nets.rewritten(form, opset)
    simplified = TOOLS[tool](source)
    assert nets.operators(simplified) == nets.operators(source)
    nets.assert_runs(simplified, nets.run(source, library=False))


@tools
@pytest.mark.parametrize("opset", [9, 21])
def test_a_simplified_model_is_rewritten(tool: str, opset: int) -> None:
    nets.assert_can_be_rewritten(TOOLS[tool](nets.network(opset)))
