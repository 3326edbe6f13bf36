"""Exact layers give what they gave, and nobody has to ask for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import perfonnx
from perfonnx import Plan
from perfonnx.methods.exact import Exact
from perfonnx.methods.perforate import Perforate
from tests.passes import nets
from tests.passes.nets import node


def network(channels: int = 48, size: int = 28, batch: int | str = "N") -> ModelProto:
    """A residual block with normalization between a strided layer and one of another kernel."""
    nodes = [
        nets.conv("x", "a", "w0", name="first", strides=[2, 2]),
        node("Relu", ["a"], ["ra"]),
        nets.conv("ra", "b", "w1", name="one"),
        node("BatchNormalization", ["b", "scale", "scale", "scale", "scale"], ["n"]),
        node("Relu", ["n"], ["rb"]),
        nets.conv("rb", "c", "w2", name="two"),
        node("Add", ["c", "ra"], ["s"]),
        node("LeakyRelu", ["s"], ["rs"]),
        nets.conv("rs", "y", "w3", name="last", kernel_shape=[1, 1], pads=[0] * 4),
    ]
    weights = {
        "w0": nets.values(channels, 3, 3, 3),
        "w1": nets.values(channels, channels, 3, 3, seed=1),
        "w2": nets.values(channels, channels, 3, 3, seed=2),
        "w3": nets.values(8, channels, 1, 1),
        "scale": np.linspace(0.5, 2, channels, dtype=np.float32),
    }
    half = size // 2
    shapes = {"inputs": {"x": (batch, 3, size, size)}, "outputs": {"y": (batch, 8, half, half)}}
    return nets.model(nodes, weights, **shapes)  # type: ignore[arg-type]


def error(model: ModelProto, other: ModelProto, feed: dict[str, np.ndarray]) -> float:
    """The largest difference, relative to the largest output."""
    (first,), (second,) = nets.run(model, feed), nets.run(other, feed)
    return float(np.abs(first - second).max() / np.abs(first).max())


@pytest.mark.parametrize("layout", ["rows", "nchw"])
@pytest.mark.parametrize("size", [7, 28, 57])
def test_outputs_stay_what_they_were(size: int, layout: str) -> None:
    model = network(size=size)
    result = perfonnx.rewrite(model, only=["one", "two"], method="exact", layout=layout)
    assert [layer.name for layer in result.report.layers] == ["one", "two"]
    assert result.report.reduction == 1
    assert error(model, result.proto, nets.feed(3, 3, size, size)) < 2e-6
    nets.check(result.proto)


def test_nobody_has_to_ask() -> None:
    model = network(64, 112)
    result = perfonnx.rewrite(model)
    assert {layer.plan for layer in result.report.layers} == {Exact()}
    assert {"one", "two"} <= {layer.name for layer in result.report.layers}
    assert "SampledConv" in nets.op_types(result.proto)
    assert error(model, result.proto, nets.feed(1, 3, 112, 112)) < 5e-6
    again = perfonnx.rewrite(result.proto)
    assert again.to_bytes() == result.to_bytes()


def test_layers_that_gain_nothing_stay() -> None:
    result = perfonnx.rewrite(network(8, 16))
    assert result.report.layers == []
    assert result.to_bytes() == network(8, 16).SerializeToString(deterministic=True)
    reasons = {skip.layer: skip.reason for skip in result.report.skips}
    assert "it would be slower, est. " in reasons["one"]


@pytest.mark.parametrize("choices", [{"rate": 0.5}, {"mask": "uniform"}, {"interpolation": "zero"}])
def test_a_setting_of_sampling_means_sampling(choices: dict[str, Any]) -> None:
    result = perfonnx.rewrite(network(64, 112), **choices)
    assert result.report.layers
    assert all(isinstance(layer.plan, Perforate) for layer in result.report.layers)


def test_a_plan_says_it() -> None:
    plan = Plan({"one": Exact(), "two": Perforate(0.5, "grid")})
    assert plan.to_json()["layers"]["one"] == {"method": "exact"}
    assert Plan.from_json(plan.to_json()).layers == plan.layers
    result = perfonnx.rewrite(network(), plan=plan)
    assert {layer.name: layer.plan.NAME for layer in result.report.layers} == {"one": "exact", "two": "perforate"}
