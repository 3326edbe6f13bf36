"""Factors of low-rank layers are layers like others: they train, and what they become goes on."""

from __future__ import annotations

import numpy as np
import pytest

import perfonnx
from perfonnx import PerfonnxError, Plan
from perfonnx.methods import METHODS
from tests.extras import needs
from tests.methods.lowrank.test_lowrank import batches, network
from tests.passes import nets

torch = needs("torch")


def test_factors_train_and_come_out_as_a_model() -> None:
    from perfonnx.torch import from_onnx

    original = network(nets.values(16, 8, 3, 3))
    factored = perfonnx.rewrite(original, method="jaderberg", save=0.7, only="conv2", samples=batches()).proto
    module = from_onnx(factored)
    names = dict(module.named_parameters())
    feeds = nets.feed(seed=9)
    x, wanted = torch.from_numpy(feeds["x"]), torch.from_numpy(nets.run(original, feeds)[0])
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.square(module(x) - wanted).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    trained = module.to_onnx()
    assert nets.op_types(trained) == nets.op_types(factored)
    (given,) = nets.run(trained, feeds)
    np.testing.assert_allclose(given, module(x).detach().numpy(), atol=1e-4)
    assert sum("conv2" in name for name in names) >= 2
    again = perfonnx.rewrite(trained, rate=0.5, mask="uniform", only="conv3")
    assert [layer.name for layer in again.report.layers] == ["conv3"]


def test_a_plan_of_factors_is_for_rewriting() -> None:
    from perfonnx.torch import apply, from_onnx

    module = from_onnx(network(nets.values(16, 8, 3, 3)))
    with pytest.raises(
        PerfonnxError, match="layer 'conv2': its factors are layers of the rewritten model: rewrite first"
    ):
        apply(module, Plan({"conv2": METHODS["jaderberg"]()}))
