"""The baselines with smaller maps train, and come out as what was trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.extras import needs

torch = needs("torch")

import perfonnx  # noqa: E402
from perfonnx import PerfonnxError, Plan  # noqa: E402
from perfonnx.data.inputs import model_inputs  # noqa: E402
from perfonnx.data.samples import Samples  # noqa: E402
from perfonnx.methods import METHODS  # noqa: E402
from perfonnx.torch import Settings, apply, export, finetune_model, from_onnx  # noqa: E402
from tests.passes import nets  # noqa: E402

torch.set_num_threads(1)


def network(**attributes: Any) -> onnx.ModelProto:
    """Two layers and a mean, which takes maps of every size."""
    weights = {"w1": nets.values(8, 3, 3, 3), "w2": nets.values(6, 8, 3, 3), "b2": nets.values(6)}
    nodes = [
        nets.conv("x", "a", "w1", name="conv1"),
        nets.node("Relu", ["a"], ["r"]),
        nets.conv("r", "b", "w2", "b2", name="conv2", **attributes),
        nets.node("Relu", ["b"], ["s"]),
        nets.node("GlobalAveragePool", ["s"], ["y"]),
    ]
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 13, 10)}, outputs={"y": ("N", 6, 1, 1)})


@pytest.mark.parametrize("restore", ["nearest", "none"])
@pytest.mark.parametrize("attributes", [{}, {"pads": [2, 0, 1, 1], "strides": [1, 2], "dilations": [2, 1]}], ids=str)
@pytest.mark.parametrize(("method", "shrink"), [("stride", 2), ("stride", 3), ("resize", 2), ("resize", 3)])
def test_the_network_is_the_rewritten_model(method: str, shrink: int, attributes: dict[str, Any], restore: str) -> None:
    model, plan = network(**attributes), Plan({"conv2": METHODS[method](shrink, restore)})
    rewritten, student = perfonnx.rewrite(model, plan=plan), from_onnx(model)
    assert apply(student, plan).modules == {"conv2": "nodes.conv2"}, rewritten.report.skips
    x = nets.feed(2, 3, 13, 10)["x"]
    for result in (rewritten, export(student)):
        wanted = student(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(nets.run(result.proto, {"x": x})[0], wanted, atol=1e-5)
    assert np.abs(wanted - nets.run(model, {"x": x})[0]).max() > 1e-3
    layer = student.get_submodule("nodes.conv2")
    dense = from_onnx(model).get_submodule("nodes.conv2")(torch.zeros(2, 8, 13, 10))
    assert layer.goal(dense).shape == layer(torch.zeros(2, 8, 13, 10)).shape


def test_training_takes_back_what_a_longer_stride_lost() -> None:
    values = np.random.default_rng(1).standard_normal((48, 3, 13, 10), dtype=np.float32)
    plan = Plan({"conv1": METHODS["stride"]()})
    done = finetune_model(
        network(),
        None,
        Samples.load(values, model_inputs(network())),
        plan=plan,
        settings=Settings(epochs=6, batch=8, lr=0.1, validate=0.25),
    )
    assert done.after.guide < 0.9 * done.before.guide


def test_a_grid_is_trained_by_perforation() -> None:
    with pytest.raises(PerfonnxError, match="what fractional-stride makes of a layer cannot be trained"):
        apply(from_onnx(network()), Plan({"conv1": METHODS["fractional-stride"]()}))
