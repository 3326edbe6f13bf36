"""The float16 converters of onnxconverter-common and of onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto
from onnxruntime.transformers import float16

from tests.extras import needs
from tests.neighbours import nets


def common(source: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    tool = needs("onnxconverter_common")
    return tool.float16.convert_float_to_float16(source, **options)


CONVERTERS: dict[str, Callable[..., onnx.ModelProto]] = {
    "onnxconverter-common": common,
    "onnxruntime": float16.convert_float_to_float16,
}

converters = pytest.mark.parametrize("converter", CONVERTERS)


def half(source: onnx.ModelProto, converter: str) -> onnx.ModelProto:
    converted = CONVERTERS[converter](copy.deepcopy(source), keep_io_types=True)
    assert any(t.data_type == TensorProto.FLOAT16 for t in converted.graph.initializer)
    return converted


@converters
@nets.forms
@pytest.mark.parametrize("opset", [9, 11, 14, 15, 21])  # there is no CastLike before 15
def test_a_rewritten_model_is_converted(converter: str, form: str, opset: int) -> None:
    source = nets.rewritten(form, opset)
    converted = half(source, converter)
    assert nets.operators(converted) == nets.operators(source)
    nets.assert_runs(converted, nets.run(source, library=False), nets.HALF)
    if converter == "onnxconverter-common":  # onnxruntime's leaves nodes out of order, of any model
        onnx.checker.check_model(converted, full_check=True)


@converters
@pytest.mark.parametrize("opset", [9, 17])
def test_a_converted_model_is_rewritten(converter: str, opset: int) -> None:
    nets.assert_can_be_rewritten(half(nets.network(opset), converter), tolerance=nets.HALF)
