"""onnxruntime's tools: static quantization, the optimized model it writes, and its ORT format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.tools import convert_onnx_models_to_ort as ort_format

import perfonnx
from tests.neighbours import nets
from tests.passes.nets import feed

QUANTIZED = 3e-2
"""Largest error of 8-bit integers, relative to the largest value."""


class OneInput(CalibrationDataReader):
    """Calibration data of one input."""

    def __init__(self) -> None:
        self.left = [feed()]

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def quantized(source: onnx.ModelProto, directory: Path, kind: str) -> onnx.ModelProto:
    onnx.save(source, directory / "m.onnx")
    quantize_static(directory / "m.onnx", directory / "q.onnx", OneInput(), quant_format=QuantFormat[kind])
    return onnx.load(directory / "q.onnx")


kinds = pytest.mark.parametrize("kind", ["QDQ", "QOperator"])


@kinds
@nets.forms
@pytest.mark.parametrize("opset", [11, 13, 21])
def test_a_rewritten_model_is_quantized(kind: str, form: str, opset: int, tmp_path: Path) -> None:
    source = nets.rewritten(form, opset)
    result = quantized(source, tmp_path, kind)
    assert nets.operators(result) == nets.operators(source)
    nets.assert_runs(result, nets.run(source, library=False), QUANTIZED)


@kinds
def test_quantization_of_old_models_loses_the_bodies_that_it_needs(kind: str, tmp_path: Path) -> None:
    """It brings them to opset 11 by onnx's converter, which drops functions, and then runs them without the library."""
    with pytest.raises(Exception, match=r"ai\.perfonnx.*is not a registered function/op"):
        quantized(nets.rewritten("maps", 9), tmp_path, kind)


@pytest.mark.parametrize("opset", [9, 17])
def test_quantized_layers_are_left_alone(opset: int, tmp_path: Path) -> None:
    source = quantized(nets.network(opset), tmp_path, "QDQ")
    result = perfonnx.rewrite(source, only=[""])
    assert [s.reason for s in result.report.skips] == ["quantized weights (DequantizeLinear)"] * 3
    assert result.proto == source
    unread = quantized(nets.network(opset), tmp_path, "QOperator")
    assert perfonnx.rewrite(unread).proto == unread


LEVELS = ("BASIC", "EXTENDED", "ALL")


def optimized(source: onnx.ModelProto, file: Path, level: str, *, library: bool) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(file)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    if library:
        perfonnx.register(options)
    ort.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(file)


@nets.forms
@pytest.mark.parametrize("level", LEVELS)
def test_a_rewritten_model_is_optimized(level: str, form: str, tmp_path: Path) -> None:
    """Without the library the bodies stand in the operators' place for good; with it they are gone."""
    source = nets.rewritten(form)
    expected = nets.run(source, library=False)
    spelled_out = optimized(source, tmp_path / "o.onnx", level, library=False)
    assert nets.operators(spelled_out) == []
    nets.assert_runs(spelled_out, expected)
    kept = optimized(source, tmp_path / "k.onnx", level, library=True)
    assert sorted(nets.operators(kept)) == sorted(nets.operators(source))
    nets.assert_needs_library(kept, expected)


def test_an_optimized_model_is_rewritten(tmp_path: Path) -> None:
    nets.assert_can_be_rewritten(optimized(nets.network(), tmp_path / "o.onnx", "BASIC", library=False))


@nets.forms
@pytest.mark.parametrize("library", [False, True])
def test_a_rewritten_model_is_converted_to_the_ort_format(form: str, library: bool, tmp_path: Path) -> None:
    source = nets.rewritten(form)
    onnx.save(source, tmp_path / "m.onnx")
    ort_format.convert_onnx_models_to_ort(
        tmp_path,
        optimization_styles=[ort_format.OptimizationStyle.Fixed],
        custom_op_library_path=Path(perfonnx.get_library_path()) if library else None,
    )
    expected = nets.run(source, library=False)
    if library:
        nets.assert_needs_library(str(tmp_path / "m.ort"), expected)
    else:
        nets.assert_runs(str(tmp_path / "m.ort"), expected)
