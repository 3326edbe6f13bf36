"""DepthToSpace and ConvTranspose on rows: the map is as large as before, and no map lies between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto

import perfonnx
from perfonnx.model import files
from perfonnx.model.shapes import infer_types
from perfonnx.model.workspace import Workspace
from perfonnx.passes.rules import obstacle
from tests.passes import nets
from tests.passes.nets import node

CHANNELS = 16


def between_layers(middle: Sequence[NodeProto], weights: dict[str, Any], width: int, size: int = 12) -> onnx.ModelProto:
    """A convolution, the nodes from `r` to `m`, and a convolution of m's `width` channels."""
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        nets.conv("x", "c", "w1", name="first", **same),
        node("Relu", ["c"], ["r"]),
        *middle,
        node("Relu", ["m"], ["q"]),
        nets.conv("q", "y", "w2", name="second", **same),
    ]
    first = nets.values(CHANNELS, CHANNELS, 3, 3, seed=1)
    weights = {**weights, "w1": first, "w2": nets.values(CHANNELS, width, 3, 3, seed=2)}
    inputs = {"x": ("N", CHANNELS, size, size + 3)}
    return nets.model(nodes, weights, inputs=inputs, outputs={"y": ("N", CHANNELS, "H", "W")})


CHOICES: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "perforated": {"rate": 0.5, "mask": "uniform"},
    "sparse": {"method": "sparse", "rate": 0.5, "mask": "uniform"},
}


def assert_on_rows(model: onnx.ModelProto, choice: str, expected: str) -> None:
    """The rewritten model gives what its canonical form gives, by kernels and by bodies, and is on maps at its ends."""
    result = perfonnx.rewrite(model, only=[""], **CHOICES[choice])
    made = nets.op_types(result.proto)
    assert made.count("Compact") == made.count("ExpandRows") == 1
    assert expected in made
    exact = choice == "exact"
    canonical = model if exact else perfonnx.rewrite(model, only=[""], layout="nchw", **CHOICES[choice]).proto
    feeds = nets.feed(2, CHANNELS, 12, 15)
    want = perfonnx.session(canonical, library=not exact).run(None, feeds)[0]
    for other in (True, False):
        got = perfonnx.session(result.proto, library=other).run(None, feeds)[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    nets.check(result.proto)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_depth_to_space(mode: str, block: int, choice: str) -> None:
    middle = [node("DepthToSpace", ["r"], ["m"], blocksize=block, mode=mode)]
    assert_on_rows(between_layers(middle, {}, CHANNELS // block**2), choice, "Reshape")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "padding"),
    [
        ((2, 2), 2, (0, 0, 0, 0), (0, 0)),
        ((4, 4), 2, (1, 1, 1, 1), (0, 0)),
        ((3, 3), 2, (1, 1, 1, 1), (1, 1)),
        ((3, 3), 2, (0, 0, 0, 0), (0, 0)),
        ((5, 4), 3, (1, 0, 2, 1), (1, 0)),
        ((1, 2), 2, (0, 0, 0, 0), (1, 0)),
        ((6, 6), 2, (2, 2, 2, 2), (0, 0)),
    ],
)
def test_conv_transpose(
    kernel: tuple[int, int], stride: int, pads: Sequence[int], padding: Sequence[int], bias: bool, choice: str
) -> None:
    attributes = {"strides": [stride] * 2, "pads": list(pads), "output_padding": list(padding)}
    weights = {"t": nets.values(CHANNELS, 10, *kernel, seed=3), **({"b": nets.values(10, seed=4)} if bias else {})}
    middle = [node("ConvTranspose", ["r", *weights], ["m"], kernel_shape=list(kernel), **attributes)]
    assert_on_rows(between_layers(middle, weights, 10), choice, "Reshape")


def test_two_without_names() -> None:
    weights = {"t": nets.values(CHANNELS, 12, 2, 2, seed=3), "u": nets.values(12, 10, 4, 4, seed=4)}
    first = node("ConvTranspose", ["r", "t"], ["n"], kernel_shape=[2, 2], strides=[2, 2])
    second = node("ConvTranspose", ["n", "u"], ["m"], kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1])
    for each in (first, second):
        each.ClearField("name")
    assert_on_rows(between_layers([first, second], weights, 10), "exact", "Reshape")


@pytest.mark.parametrize(
    ("attributes", "shape", "reason"),
    [
        ({"group": 2}, (CHANNELS, 5, 2, 2), "it has groups"),
        ({"strides": [2, 1]}, (CHANNELS, 10, 2, 2), "its strides are not alike"),
        ({"dilations": [2, 2]}, (CHANNELS, 10, 2, 2), "it is dilated"),
        ({"auto_pad": "SAME_UPPER"}, (CHANNELS, 10, 4, 4), "its pads follow from its output"),
        ({"pads": [3, 3, 3, 3]}, (CHANNELS, 10, 3, 3), "its pads cut rows or columns"),
    ],
)
def test_other_transposed_convolutions_stay_on_maps(
    attributes: dict[str, Any], shape: tuple[int, ...], reason: str
) -> None:
    given = {"strides": [2, 2], "kernel_shape": list(shape[2:]), **attributes}
    middle = [node("ConvTranspose", ["r", "t"], ["m"], name="up", **given)]
    model = between_layers(middle, {"t": nets.values(*shape, seed=3)}, 10)
    result = perfonnx.rewrite(model, method="exact", only=[""])
    assert "ConvTranspose" in nets.op_types(result.proto)
    want, got = (perfonnx.session(m).run(None, nets.feed(1, CHANNELS, 12, 15))[0] for m in (model, result.proto))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    workspace = Workspace.open(files.load(model))
    infer_types(workspace)
    (up,) = (n for n in workspace.graph.nodes if n.op == "ConvTranspose")
    assert reason in str(obstacle(workspace, up))


@pytest.mark.parametrize("choice", ["exact", "perforated"])
def test_products_of_maps_stay_on_rows(choice: str) -> None:
    """SiLU, x times its sigmoid."""
    middle = [node("Sigmoid", ["r"], ["s"]), node("Mul", ["r", "s"], ["m"])]
    assert_on_rows(between_layers(middle, {}, CHANNELS), choice, "Mul")
