"""`perfonnx.alphas`: what gates do on data, counted by hand and on both layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from PIL import Image

import perfonnx
from perfonnx import PerfonnxError, Plan, TrainedGate
from perfonnx.alphas import alphas
from perfonnx.cli import main
from perfonnx.methods.perforate import Perforate
from perfonnx.methods.radius_adaptive import RadiusAdaptive
from tests.passes import nets
from tests.passes.nets import node

LAYOUTS = ("rows", "nchw")
GATES = {
    "conv1": TrainedGate(np.array([1.0, 0.0, 0.0]), 0.0),
    "conv2": TrainedGate(np.array([6.0, *[0.0] * 7]), -0.5),
}
X = np.random.default_rng(3).standard_normal((5, 3, 12, 10)).astype(np.float32)


def model(layout: str, **first: Any) -> ModelProto:
    """Two radius-adaptive layers and a perforated one in front of the second, whose rows it reads."""
    nodes = [
        nets.conv("x", "c1", "w1", name="conv1", **first),
        node("Relu", ["c1"], ["r1"]),
        nets.conv("r1", "c", "w", name="perforated"),
        node("Relu", ["c"], ["r"]),
        nets.conv("r", "y", "w2", name="conv2"),
    ]
    weights = {"w1": nets.values(8, 3, 3, 3), "w": nets.values(8, 8, 3, 3), "w2": nets.values(6, 8, 3, 3)}
    layers = {n: RadiusAdaptive() for n in GATES} | {"perforated": Perforate(0.5, "uniform")}
    dense = nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)})
    return perfonnx.rewrite(dense, plan=Plan(layers, layout=layout), gates=GATES).proto


def shares(alpha: np.ndarray) -> list[float]:
    return [float(share.mean()) for share in (alpha <= 0, (alpha > 0) & (alpha < 1), alpha >= 1)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shares_are_those_of_the_gates(layout: str) -> None:
    """The first layer's by hand, the second's from its input in the model on maps."""
    proto = model(layout)
    assert ("SampledRadiusAdaptiveConv" in nets.op_types(proto)) == (layout == "rows")
    result = alphas(proto, [{"x": X[:2]}, {"x": X[2:]}], keep=3)
    assert result.samples == 5
    assert [layer.layer for layer in result.layers] == ["conv1", "conv2"]
    probe = model("nchw")
    inside = nets.ours(probe)[2].input[0]
    probe.graph.output.append(nets.helper.make_empty_tensor_value_info(inside))
    (r,) = perfonnx.session(probe).run([inside], {"x": X})
    expected = {"conv1": X[:, 0], "conv2": 6 * r[:, 0] - 0.5}
    for layer in result.layers:
        assert [layer.zero, layer.between, layer.one] == pytest.approx(shares(expected[layer.layer]), abs=1e-3)
        assert layer.zero + layer.between + layer.one == pytest.approx(1)
        assert layer.output_shape == (12, 10)
        np.testing.assert_allclose(result.maps[layer.layer], np.clip(expected[layer.layer][:3], 0, 1), atol=1e-5)
    assert all(min(layer.zero, layer.between, layer.one) > 0.1 for layer in result.layers)


@pytest.mark.parametrize(
    "first", [{"strides": [2, 1]}, {"pads": [0, 0, 0, 0], "dilations": [2, 1]}, {"pads": [2, 0, 1, 3]}]
)
def test_the_pixel_under_the_centre_tap(first: dict[str, Any]) -> None:
    """Another way to the same: a convolution whose only tap is the centre."""
    proto = model("nchw", **first)
    layer = nets.ours(proto)[0]
    tap = np.zeros((1, 3, 3, 3), np.float32)
    tap[0, 0, 1, 1] = 1
    centre = nets.model([nets.conv("x", "y", "w", **first)], {"w": tap}, inputs={"x": ("N", 3, 12, 10)})
    (y,) = nets.run(centre, {"x": X})
    found = alphas(proto, [{"x": X}], keep=5)
    assert found.layers[0].layer == layer.name
    np.testing.assert_allclose(found.maps["conv1"], np.clip(y[:, 0], 0, 1), atol=1e-6)


def test_models_without_gates_and_data_without_samples_are_refused() -> None:
    with pytest.raises(PerfonnxError, match="net: has no radius-adaptive layer; perfonnx rewrite --method radius-ad"):
        alphas(nets.single(), [nets.feed()])
    with pytest.raises(PerfonnxError, match="there are no samples"):
        alphas(model("nchw"), [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_command(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data, picture = (str(tmp_path / name) for name in ("m.onnx", "x.npy", "alphas.png"))
    Path(path).write_bytes(model(layout).SerializeToString())
    np.save(data, X)
    assert main(["alphas", path, "--data", data, "--json", "--images", picture]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 5
    expected = alphas(path, [{"x": X}], keep=4)
    assert found == json.loads(json.dumps(expected.to_json()))
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (4 * 14 - 2, 2 * 12 - 2)
    np.testing.assert_array_equal(pixels[14:26, 12:], np.rint(expected.maps["conv2"][1] * 255))
    assert main(["alphas", path, "--data", data, "-n", "2"]) == 0
    table = capsys.readouterr().out
    assert "alpha on 2 samples" in table
    assert "0 < alpha < 1" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.onnx", "--data", "gone"], "gone"),
        (["m.onnx", "--data", "x.npy", "--images", "a.gif"], "a.gif: maps of alpha are written as .png"),
        (["dense.onnx", "--data", "x.npy"], "has no radius-adaptive layer"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(model("nchw").SerializeToString())
    Path("dense.onnx").write_bytes(nets.single().SerializeToString())
    np.save("x.npy", X)
    assert main(["alphas", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
