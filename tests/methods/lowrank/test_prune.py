"""Channel pruning: inputs that nothing is lost by, and others that make up for those that are left out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import perfonnx
from perfonnx.methods.lowrank.elimination import eliminated
from perfonnx.methods.lowrank.prune import Prune
from tests.methods.lowrank import chains
from tests.methods.lowrank.test_svd import connected
from tests.passes import nets


def test_multiplies_are_those_of_the_inputs_that_are_left() -> None:
    form = chains.form(8, 6, chains.AWKWARD)
    assert chains.counted(Prune(), form, 4) == 6 / 4


def test_one_input_less_is_the_best_one() -> None:
    """Against trying all, each with the other weights fitted anew by least squares."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((5, 12)), rng.standard_normal((300, 12)) @ rng.standard_normal((12, 12))
    metric = x.T @ x / len(x)
    kept, left = eliminated(weight, np.linalg.inv(metric), 6, 5)

    def fitted(inputs: tuple[int, ...]) -> float:
        columns = [2 * i + t for i in inputs for t in (0, 1)]
        solved = np.linalg.lstsq(x[:, columns], x @ weight.T, rcond=None)[0]
        return float(np.square(x[:, columns] @ solved - x @ weight.T).sum())

    losses = {inputs: fitted(inputs) for inputs in itertools.combinations(range(6), 5)}
    assert tuple(kept.tolist()) == min(losses, key=lambda inputs: losses[inputs])
    assert np.square(x @ (left - weight).T).sum() == pytest.approx(min(losses.values()))


@pytest.mark.parametrize("kind", ["gemm", "matmul"])
def test_inputs_that_say_the_same_are_left_out(kind: str) -> None:
    """Half of the inputs are twice the others: without data all count, with it half of them say everything."""
    model = connected(kind, nets.values(12, 20))
    half = np.random.default_rng(0).standard_normal((300, 10)).astype(np.float32)
    feeds = {"x": np.concatenate([half, 2 * half], axis=1)}
    result = perfonnx.rewrite(model, method="prune", rank=10, samples=[feeds], ridge=1e-7)
    nets.check(result.proto)
    assert result.report.layers[0].multiplies == (240, 120)
    nets.assert_same_results(model, result.proto, feeds, tolerance=1e-3)
    plain = perfonnx.rewrite(model, method="prune", rank=10)
    (expected,), (given,) = (nets.run(each.proto if each is plain else each, feeds) for each in (model, plain))
    assert np.abs(given - expected).max() > 0.1 * np.abs(expected).max()


def test_rows_that_are_too_long_are_refused() -> None:
    model = connected("gemm", nets.values(12, 20))
    wide = nets.model(
        [nets.node("MatMul", ["x", "w"], ["y"], name="fc")],
        {"w": np.zeros((7000, 12), np.float32)},
        inputs={"x": ("N", 7000)},
        outputs={"y": (None, 12)},
    )
    (skip,) = perfonnx.rewrite(wide, method="prune").report.skips
    assert skip.reason == "its rows of 7000 values are too long"
    assert perfonnx.rewrite(model, method="prune").report.layers
