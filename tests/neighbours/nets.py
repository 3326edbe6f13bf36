"""A network for the tools to work on, its rewritten forms, and what is asserted of a tool's result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import perfonnx
from tests.passes.nets import conv, feed, model, node, values

FORMS: dict[str, dict[str, Any]] = {
    "rows": {"rate": 0.5},
    "maps": {"rate": 0.5, "layout": "nchw"},
    "weighted": {"rate": 0.5, "layout": "nchw", "interpolation": "barycentric"},
    "sparse": {"rate": 0.5, "layout": "nchw", "method": "sparse"},
    "gated": {"layout": "nchw", "method": "radius-adaptive"},
    "gated-rows": {"method": "radius-adaptive"},
}
"""Choices of a rewrite: between them every operator is used, with every kind of input."""

FLOAT, HALF = 2e-6, 2e-3
"""Largest error that rounding makes, relative to the largest value."""

forms = pytest.mark.parametrize("form", FORMS)


def network(opset: int = 17) -> onnx.ModelProto:
    """Three convolutions of x [1, 3, 12, 10], a pool, two activations and a sum."""
    nodes = [
        conv("x", "a", "w1", "b1", name="conv1"),
        node("Relu", ["a"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        conv("p", "c", "w2", "b2", name="conv2"),
        node("LeakyRelu", ["c"], ["l"], alpha=0.1),
        conv("l", "e", "w3", name="conv3"),
        node("Add", ["e", "l"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]
    weights = {"w1": values(8, 3, 3, 3), "b1": values(8), "w2": values(8, 8, 3, 3), "b2": values(8)}
    return model(nodes, {**weights, "w3": values(8, 8, 3, 3, seed=3)}, outputs={"y": (1, 8, 6, 5)}, opset=opset, ir=8)


def rewritten(form: str, opset: int = 17) -> onnx.ModelProto:
    """The network in one of its forms."""
    return perfonnx.rewrite(network(opset), only=[""], **FORMS[form]).proto


def run(source: onnx.ModelProto | bytes | str, *, library: bool = True) -> np.ndarray:
    """The output for one input."""
    data = source.SerializeToString() if isinstance(source, onnx.ModelProto) else source
    session = perfonnx.session(data, library=library, threads=1)
    return session.run(None, {session.get_inputs()[0].name: feed()["x"]})[0]


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Equal, relative to the largest value expected."""
    assert actual.shape == expected.shape
    scale = float(np.abs(expected.astype(np.float64)).max())
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance * scale)


def assert_runs(source: onnx.ModelProto | str, expected: np.ndarray, tolerance: float = FLOAT) -> None:
    """It gives what is expected, by the kernels and by the function bodies."""
    for library in (True, False):
        assert_near(run(source, library=library), expected, tolerance)


def assert_needs_library(source: onnx.ModelProto | str, expected: np.ndarray, tolerance: float = FLOAT) -> None:
    """It gives what is expected by the kernels; the tool has taken the function bodies out."""
    assert_near(run(source), expected, tolerance)
    with pytest.raises(perfonnx.PerfonnxError, match=r"ai\.perfonnx.*is not a registered function/op"):
        run(source, library=False)


def assert_can_be_rewritten(source: onnx.ModelProto, *, layers: int = 3, tolerance: float = FLOAT) -> None:
    """What a tool made is rewritten as any model: the same at rate 0, kernels and bodies alike at others."""
    expected = run(source, library=False)
    for layout in ("rows", "nchw"):
        result = perfonnx.rewrite(source, rate=0, layout=layout, only=[""])
        assert len(result.report.layers) == layers
        assert_runs(result.proto, expected, tolerance)
        sampled = perfonnx.rewrite(source, rate=0.5, layout=layout, only=[""]).proto
        assert_near(run(sampled), run(sampled, library=False), tolerance)


def operators(source: onnx.ModelProto) -> list[str]:
    """Operators of our domain, in order."""
    return [n.op_type for n in source.graph.node if n.domain == "ai.perfonnx"]
