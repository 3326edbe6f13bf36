"""The approximate Mahalanobis metric: gradients against finite differences, and what they do to a fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.methods.base import Context, Spot
from perfonnx.methods.lowrank.loss_gradients import WRONG, LossGradients
from perfonnx.model import files
from perfonnx.model.layers import conv_layers
from perfonnx.model.shapes import infer_types
from perfonnx.model.workspace import Workspace
from tests.passes import nets
from tests.passes.nets import node


def classifier(**attributes: Any) -> ModelProto:
    """Two layers, and five classes."""
    groups = attributes.get("group", 1)
    weights = {"w1": nets.values(4, 3, 3, 3), "w2": nets.values(6, 4 // groups, 3, 3), "w3": nets.values(5, 6, 1, 1)}
    nodes = [
        nets.conv("x", "a", "w1", name="conv1"),
        node("Relu", ["a"], ["ra"]),
        nets.conv("ra", "b", "w2", name="conv2", **attributes),
        node("Relu", ["b"], ["rb"]),
        node("GlobalAveragePool", ["rb"], ["p"]),
        nets.conv("p", "s", "w3", name="head", kernel_shape=[1, 1], pads=[0] * 4),
        node("Flatten", ["s"], ["y"]),
    ]
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 5)})


def alpha(model: ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    workspace = Workspace.open(files.load(model))
    infer_types(workspace)
    layer = next(layer for layer in conv_layers(workspace) if layer.name == "conv2")
    context = Context(workspace, feeds=[feeds])
    return LossGradients(context).alpha(Spot(context, "conv2", layer.node, layer))


def losses(model: ModelProto, feeds: dict[str, np.ndarray], classes: np.ndarray) -> np.ndarray:
    (scores,) = (result.astype(np.float64) for result in nets.run(model, feeds))
    return np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), classes]


@pytest.mark.parametrize(
    "attributes", [{}, {"group": 2, "strides": [2, 1], "pads": [0, 1, 2, 0]}], ids=["plain", "odd"]
)
def test_alpha_is_that_of_finite_differences(attributes: dict[str, Any]) -> None:
    model, feeds = classifier(**attributes), nets.feed(3, 3, 12, 10)
    found = alpha(model, feeds)
    assert found.mean() == pytest.approx(1)
    ranked = np.argsort(-nets.run(model, feeds)[0], axis=1)
    step, sums = 1e-3, []
    for index in ((0, 0, 0, 0), (3, 1, 2, 1), (5, 0, 1, 1)):
        sides = []
        for sign in (1, -1):
            changed = onnx.ModelProto()
            changed.CopyFrom(model)
            (tensor,) = (t for t in changed.graph.initializer if t.name == "w2")
            values = numpy_helper.to_array(tensor).copy()
            values[index] += sign * step
            tensor.CopyFrom(numpy_helper.from_array(values, "w2"))
            sides.append([losses(changed, feeds, ranked[:, place]) for place in range(1, WRONG + 1)])
        slopes = (np.array(sides[0]) - np.array(sides[1])) / (2 * step)
        sums.append((found[index], float(np.sqrt(np.square(slopes).sum()))))
    ratios = [ours / theirs for ours, theirs in sums]
    np.testing.assert_allclose(ratios, ratios[0], rtol=0.02)


@pytest.mark.parametrize("method", ["zhang", "jaderberg", "cp"])
def test_it_is_one_metric_of_three(method: str) -> None:
    model, feeds = classifier(), [nets.feed(8, 3, 12, 10, seed=seed) for seed in range(3)]
    found = {
        metric: perfonnx.rewrite(model, method=method, metric=metric, rank=3, only="conv2", samples=feeds)
        for metric in ("frobenius", "covariance", "mahalanobis")
    }
    outputs = [nets.run(each.proto, feeds[0])[0] for each in found.values()]
    assert all(np.isfinite(output).all() for output in outputs)
    if method != "zhang":  # which fits responses, whatever the metric
        assert np.abs(outputs[2] - outputs[1]).max() > 1e-6
    assert np.abs(outputs[2] - outputs[0]).max() > 1e-6


def test_what_is_no_classifier_has_none() -> None:
    with pytest.raises(PerfonnxError, match="has no class scores"):
        perfonnx.rewrite(
            nets.single(), method="jaderberg", rank=1, metric="mahalanobis", only="conv", samples=[nets.feed()]
        )
