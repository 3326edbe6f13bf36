"""What layers are estimated to cost."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from perfonnx.model.layers import Layer
from perfonnx.ops.common import ConvAttributes
from perfonnx.passes.estimates import DEFAULT_COSTS


def in_a_column(channels: int, outputs: int, kernel: int, size: tuple[int, int]) -> Layer:
    """A layer whose kernel is one column, on a map of this size, padded to the same."""
    geometry = ConvAttributes((kernel, 1), pads=(kernel // 2 - 1, 0, kernel - kernel // 2, 0))
    shape, weight = geometry.output_shape(*size), (outputs, channels, kernel, 1)
    return Layer("", None, geometry, weight, TensorProto.FLOAT, (1, channels, *size), shape, None, None)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "lines", "milliseconds"),
    [(1024, 128, 64, 128, 35.5), (128, 128, 64, 64, 2.07), (128, 128, 64, 32, 0.65), (64, 64, 32, 64, 0.26)],
)
def test_long_kernels_on_one_column_cost_what_reading_their_weights_costs(
    channels: int, outputs: int, kernel: int, lines: int, milliseconds: float
) -> None:
    """As measured with one thread of a Zen 4 and onnxruntime 1.32."""
    layer = in_a_column(channels, outputs, kernel, (lines, 1))
    assert DEFAULT_COSTS.of_dense(layer) / 1e6 == pytest.approx(milliseconds, rel=0.15)


def test_short_kernels_and_wider_maps_cost_their_multiplies() -> None:
    short, wide = in_a_column(64, 64, 5, (64, 1)), in_a_column(128, 128, 64, (64, 8))
    assert DEFAULT_COSTS.of_dense(short) / (64 * 64 * 64 * 5) == pytest.approx(0.0182, rel=0.15)
    assert DEFAULT_COSTS.of_dense(wide) / (128 * 128 * 64 * 64 * 8) == pytest.approx(0.0182, rel=0.15)
