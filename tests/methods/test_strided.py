"""Regular lattices in standard operators: what they give is perforation, and no operator of ours is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.methods.strided import SCALES
from perfonnx.ops.common import ConvAttributes, convolve
from tests.passes import nets

CHANNELS = 6


def _source(lattice: str, y: int, x: int) -> tuple[int, int]:
    """The position that a position takes its value from."""
    if lattice == "quincunx":
        return y, x - x % 2 + y % 2
    rows, columns = SCALES[lattice]
    return y - y % rows, x - x % columns


def _expected(lattice: str, dense: np.ndarray) -> np.ndarray:
    result = np.empty_like(dense)
    for y, x in np.ndindex(dense.shape[2:]):
        row, column = _source(lattice, y, x)
        result[:, :, y, x] = dense[:, :, row, column]
    return result


def _network(attributes: ConvAttributes, size: tuple[int, int], dtype: Any = np.float32, opset: int = 17) -> ModelProto:
    """A convolution 6-9 and a LeakyRelu."""
    group_inputs = CHANNELS // attributes.group
    constants = {
        "w": nets.values(9, group_inputs, *attributes.kernel_shape, dtype=dtype),
        "b": nets.values(9, seed=5, dtype=dtype),
    }
    nodes = [
        nets.node("Conv", ["x", "w", "b"], ["c"], **attributes.attributes()),
        nets.node("LeakyRelu", ["c"], ["y"], alpha=0.25),
    ]
    kind = 1 if dtype == np.float32 else 10
    return nets.model(nodes, constants, inputs={"x": ("N", CHANNELS, *size)}, opset=opset, dtype=kind)


GEOMETRIES = {
    "3x3": (ConvAttributes((3, 3), pads=(1, 1, 1, 1)), (12, 10)),
    "5x3, stride 2x1": (ConvAttributes((5, 3), (2, 1), (2, 1, 2, 1)), (12, 10)),
    "3x2, dilated, lopsided pads": (ConvAttributes((3, 2), (1, 1), (2, 1, 1, 2), (2, 2)), (9, 9)),
    "groups": (ConvAttributes((3, 3), pads=(1, 1, 1, 1), group=3), (8, 6)),
}
ODD = {
    "odd map": (ConvAttributes((3, 3), pads=(1, 1, 1, 1)), (11, 9)),
    "no padding": (ConvAttributes((3, 3)), (9, 12)),
}


FITTING = [(lattice, geometry) for lattice in SCALES for geometry in GEOMETRIES]
FITTING += [(lattice, geometry) for lattice in SCALES if lattice != "quincunx" for geometry in ODD]


@pytest.mark.parametrize(("lattice", "geometry"), FITTING)
def test_a_layer_gives_what_perforation_on_the_lattice_gives(lattice: str, geometry: str) -> None:
    attributes, size = (GEOMETRIES | ODD)[geometry]
    model = _network(attributes, size)
    result = perfonnx.rewrite(model, method="strided", lattice=lattice).proto
    assert not nets.ours(result)
    x = nets.values(2, CHANNELS, *size, seed=3)
    constants = {t.name: np.frombuffer(t.raw_data, np.float32).reshape(tuple(t.dims)) for t in model.graph.initializer}
    dense = convolve(x, constants["w"], constants["b"], attributes)
    expected = _expected(lattice, np.where(dense < 0, dense * 0.25, dense))
    np.testing.assert_allclose(nets.run(result, {"x": x})[0], expected, rtol=0, atol=2e-5)


def test_the_activation_is_applied_to_what_is_computed_alone() -> None:
    result = perfonnx.rewrite(_network(*GEOMETRIES["3x3"]), method="strided").proto
    assert nets.op_types(result) == ["Conv", "LeakyRelu", "Resize"]


@pytest.mark.parametrize("opset", [11, 12, 13, 18])
def test_half_precision_stays_that(opset: int) -> None:
    model = _network(*GEOMETRIES["3x3"], dtype=np.float16, opset=opset)
    result = perfonnx.rewrite(model, method="strided").proto
    x = nets.values(1, CHANNELS, 12, 10, dtype=np.float16)
    dense = nets.run(model, {"x": x})[0].astype(np.float32)
    np.testing.assert_allclose(nets.run(result, {"x": x})[0], _expected("square", dense), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("network", "lattice", "reason"),
    [
        (_network(*ODD["odd map"]), "quincunx", "does not divide into cells of 2x2"),
        (_network(ConvAttributes((3, 3)), (10, 12)), "quincunx", "padding is smaller than its stride"),
        (_network(*GEOMETRIES["3x3"], opset=10), "rows", "opset"),
    ],
)
def test_a_layer_that_does_not_fit_stays_with_a_reason(network: ModelProto, lattice: str, reason: str) -> None:
    report = perfonnx.rewrite(network, method="strided", lattice=lattice).report
    assert [reason in skip.reason for skip in report.skips] == [True]


def test_multiplies_are_counted() -> None:
    report = perfonnx.rewrite(_network(*GEOMETRIES["3x3"]), method="strided").report
    assert report.multiplies[0] == 4 * report.multiplies[1]


def test_an_unknown_lattice_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PerfonnxError, match="square, quincunx, rows, columns"):
        perfonnx.rewrite(_network(*GEOMETRIES["3x3"]), method="strided", lattice="hexagons")
