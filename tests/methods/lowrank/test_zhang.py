"""Fewer filters and a mixture: multiplies, the linear solution, and the one behind the ReLU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.fitting import Goal
from perfonnx.methods.lowrank.rows import Rows
from perfonnx.methods.lowrank.zhang import ResponseFit, Zhang
from tests.methods.lowrank import chains
from tests.passes import nets


def rows(outputs: int = 6, inputs: int = 10, count: int = 500) -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((count, inputs)) + 0.5).astype(np.float32)
    weight = rng.standard_normal((outputs, inputs))
    wanted = x @ weight.T + 0.3 * rng.standard_normal((count, outputs)) - 0.5
    return Rows(x, wanted, np.zeros((count, 1)), Goal(low=0.0)), weight


def test_multiplies_are_those_of_the_paper() -> None:
    """d' k^2 c + d d' instead of d k^2 c (section 3.1)."""
    form = chains.form(512, 256, chains.geometry(3), (14, 14))
    assert form.multiplies(Zhang().pieces(form, 100)) == (100 * 9 * 256 + 512 * 100) * 196


def test_the_linear_solution_is_that_of_reduced_rank_regression() -> None:
    data, weight = rows()
    mix, chosen, bias = ResponseFit(data, weight, 3).linear()
    given = data.x @ weight.T
    error = np.square(data.wanted - given @ chosen @ mix.T - bias).sum()
    # the best map of the rank: regression, then the principal components of what it explains
    centred, wanted = given - given.mean(axis=0), data.wanted - data.wanted.mean(axis=0)
    explained = centred @ np.linalg.lstsq(centred, wanted, rcond=None)[0]
    values = np.linalg.svd(explained, compute_uv=False)
    expected = np.square(wanted - explained).sum() + np.square(values[3:]).sum()
    assert error == pytest.approx(expected, rel=1e-5)


def test_behind_the_relu_less_is_lost() -> None:
    data, weight = rows()
    fit = ResponseFit(data, weight, 3)

    def loss(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
        mix, chosen, bias = found
        given = data.x @ weight.T @ chosen @ mix.T + bias
        return float(np.square(np.maximum(given, 0) - np.maximum(data.wanted, 0)).sum())

    assert loss(fit.through_relu()) < 0.97 * loss(fit.linear())


def test_which_response_is_a_setting() -> None:
    model = nets.followed_by([nets.node("Relu", ["c"], ["y"])])
    samples = [nets.feed(6, 3, 12, 10, seed=seed) for seed in range(3)]
    found = [
        perfonnx.rewrite(model, method="zhang", rank=4, only="conv", samples=samples, response=response)
        for response in ("relu", "linear")
    ]
    feeds = nets.feed(seed=50)
    (expected,) = nets.run(model, feeds)
    through, linear = (np.square(nets.run(each.proto, feeds)[0] - expected).mean() for each in found)
    assert through < linear
    with pytest.raises(PerfonnxError, match="unknown response 'cubic'; choose from relu, linear"):
        perfonnx.rewrite(model, method="zhang", response="cubic")


def test_a_model_of_the_time_when_initializers_were_inputs() -> None:
    model = nets.single(ir=3)
    assert len(model.graph.input) > 1
    onnx.checker.check_model(model)
    result = perfonnx.rewrite(model, method="zhang", rank=2, only=[""], freeze_weights=True)
    assert result.report.layers
    onnx.checker.check_model(result.proto, full_check=True)
    assert [i.name for i in result.proto.graph.input] == ["x"]
