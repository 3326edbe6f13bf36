"""Gates of radius-adaptive layers: what the fitted layers do in the model that comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

import perfonnx
from perfonnx import PerfonnxError, Plan, corrections
from perfonnx.methods import Method
from perfonnx.methods.gate_fit import GateFit, PixelSample, set_bias
from perfonnx.methods.radius_adaptive import RadiusAdaptive
from perfonnx.ops.common import ConvAttributes, convolve
from tests.passes import nets
from tests.passes.nets import node


def chain(*, dtype: Any = np.float32, **first: Any) -> ModelProto:
    """conv1, conv2 with a shortcut around it, conv3."""
    weights = {
        "w1": nets.values(8, 3, 3, 3, dtype=dtype),
        "w2": nets.values(8, 8, 3, 3, dtype=dtype),
        "b2": nets.values(8, dtype=dtype),
        "w3": nets.values(6, 8, 3, 3, dtype=dtype),
    }
    nodes = [
        nets.conv("x", "c1", "w1", name="conv1", **first),
        node("Relu", ["c1"], ["r1"]),
        nets.conv("r1", "c2", "w2", "b2", name="conv2"),
        node("Add", ["c2", "r1"], ["s"]),
        node("Relu", ["s"], ["r2"]),
        nets.conv("r2", "y", "w3", name="conv3"),
    ]
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)})


def batches(count: int = 2, size: int = 8) -> list[dict[str, np.ndarray]]:
    """Smooth maps whose contrast lies in their right half, where the first channel is large: there the ring matters."""
    rng = np.random.default_rng(5)
    rough = rng.standard_normal((count, size, 3, 13, 11))
    smooth = sum(rough[..., i : i + 12, j : j + 10] for i in range(2) for j in range(2))
    contrast = np.where(np.arange(10) < 5, 0.1, 1.0)
    smooth = smooth * contrast
    smooth[:, :, 0] = 0.3 * smooth[:, :, 0] + contrast
    return [{"x": part.astype(np.float32)} for part in smooth]


def outputs(model: ModelProto, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = perfonnx.session(model)
    return np.concatenate([session.run(["y"], feed)[0] for feed in feeds])


def rewrite(model: ModelProto, share: float, **options: Any) -> perfonnx.Rewritten:
    options = {"samples": batches(), **options}
    return perfonnx.rewrite(model, only=[""], method="radius-adaptive", open_share=share, **options)


def test_share_1_is_the_dense_network() -> None:
    model = chain()
    result = rewrite(model, 1.0)
    assert not result.corrections
    np.testing.assert_allclose(outputs(result.proto, batches()), outputs(model, batches()), atol=1e-5)


@pytest.mark.parametrize(
    ("share", "first"), [(0.25, {}), (0.5, {"pads": [0, 0, 0, 0], "dilations": [2, 1]}), (0.5, {"strides": [2, 2]})]
)
def test_the_asked_share_is_open_in_the_model(share: float, first: dict[str, Any]) -> None:
    """The first layer's gate, computed by hand from its constants and inputs."""
    result = rewrite(chain(**first), share, layout="nchw")
    layers = {n.name: n for n in result.proto.graph.node}
    constants = {t.name: t for t in result.proto.graph.initializer}
    weight, bias = (nets.numpy_helper.to_array(constants[layers["conv1"].input[i]]) for i in (3, 4))
    taps = np.zeros((1, 3, 3, 3))
    taps[0, :, 1, 1] = weight[0, :, 0, 0]
    pads, strides = first.get("pads", [1, 1, 1, 1]), first.get("strides", [1, 1])
    dilations = first.get("dilations", [1, 1])
    geometry = ConvAttributes((3, 3), tuple(strides), tuple(pads), tuple(dilations))
    x = np.concatenate([feed["x"] for feed in batches()])
    alpha = np.clip(convolve(x, taps, bias, geometry), 0, 1)
    assert (alpha > 0).mean() == pytest.approx(share, abs=0.05)
    assert ((alpha > 0) & (alpha < 1)).mean() < 0.1
    for name, correction in result.corrections.items():
        assert correction.gate is not None
        assert correction.gate.share == pytest.approx(share, abs=0.05), name
    assert all(layer.rate == pytest.approx(1 - share, abs=0.05) for layer in result.report.layers)
    assert result.report.conv_multiplies[1] < result.report.conv_multiplies[0]


def test_the_more_is_open_the_smaller_the_error() -> None:
    model, wanted = chain(), outputs(chain(), batches())
    errors = [float(np.square(outputs(rewrite(model, s).proto, batches()) - wanted).sum()) for s in (0, 0.3, 0.7, 1.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 * errors[0]


def test_the_errors_told_are_those_of_the_model() -> None:
    model = chain()
    result = rewrite(model, 0.5)
    wanted, found = outputs(model, batches()).astype(np.float64), outputs(result.proto, batches())
    spread = np.square(wanted - wanted.mean(axis=(0, 2, 3), keepdims=True)).sum()
    assert result.corrections["conv3"].after == pytest.approx(np.square(wanted - found).sum() / spread, rel=1e-3)


@pytest.mark.parametrize("layout", ["rows", "nchw"])
def test_a_plan_makes_the_model_again_without_data(layout: str, tmp_path: Path) -> None:
    model = chain()
    first = rewrite(model, 0.5, layout=layout)
    first.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    np.testing.assert_array_equal(outputs(again.proto, batches()), outputs(first.proto, batches()))
    assert Plan.load(tmp_path / "plan.json").layers["conv1"].open_share == 0.5


def test_no_data_and_foreign_gates_are_refused(tmp_path: Path) -> None:
    model = chain()
    with pytest.raises(PerfonnxError, match="layer 'conv1' is to get a gate, but there is no calibration data"):
        rewrite(model, 0.5, samples=None)
    found = rewrite(model, 0.5)
    wrong = {name: replace(c, weights="other") for name, c in found.corrections.items()}
    corrections.save(wrong, tmp_path / "plan.corrections.npz")
    plan = replace(found.plan, corrections=str(tmp_path / "plan.corrections.npz"))
    with pytest.raises(PerfonnxError, match="layer 'conv1': its gate was found for other weights"):
        perfonnx.rewrite(model, plan=plan)


def test_values_that_are_not_finite_are_refused() -> None:
    feeds = batches()
    feeds[0]["x"][0, 0, 5, 5] = np.nan
    with pytest.raises(PerfonnxError, match="layer 'conv1': the calibration data gives values that are not finite"):
        rewrite(chain(), 0.5, samples=feeds)


def test_groups_and_float16() -> None:
    """A grouped layer in half precision: near the target, nearer than with a gate that is closed."""
    weights = {"w": nets.values(8, 1, 3, 3, dtype=np.float16)}
    nodes = [nets.conv("x", "y", "w", group=4)]
    model = nets.model(nodes, weights, inputs={"x": ("N", 4, 12, 10)}, dtype=TensorProto.FLOAT16)
    feeds = [{"x": np.concatenate([f["x"], f["x"][:, :1]], axis=1).astype(np.float16)} for f in batches()]
    wanted = outputs(model, feeds).astype(np.float64)
    errors = [
        float(np.square(outputs(rewrite(model, share, samples=feeds).proto, feeds) - wanted).sum())
        for share in (0.0, 0.6)
    ]
    assert np.isfinite(errors).all()
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (RadiusAdaptive(open_share=1.5), "open_share 1.5 is not in"),
        (RadiusAdaptive(open_share=float("nan")), "open_share nan is not in"),
        (RadiusAdaptive(open_share="x"), "is not a number"),  # type: ignore[arg-type]
        (RadiusAdaptive(center_gain=1, open_share=0.5), "leave out center_gain"),
    ],
)
def test_plans_without_meaning_are_refused(plan: Method, message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        plan.check("here")


# --- the fit alone ---------------------------------------------------------------------------------------------------


def pixels(count: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x [count, 4], outputs of the dense layer [count, 5], tap, bias; the ring is large where x[:, 0] is."""
    rng = np.random.default_rng(1)
    x, tap, bias = rng.random((count, 4)), rng.standard_normal((5, 4)), rng.standard_normal(5)
    ring = rng.standard_normal((count, 5)) * x[:, :1] ** 2
    return x, x @ tap.T + bias + ring, tap, bias


def test_a_fitted_gate_leaves_less_error_than_random_ones() -> None:
    x, dense, tap, bias = pixels()
    fit = GateFit(x, dense, dense, None, tap, bias)
    fitted = fit.solve(0.5)
    rng = np.random.default_rng(0)
    random = [fit.solve(0.5, rng.standard_normal(4)).after for _ in range(5)]
    assert fitted.after < fitted.before
    assert fitted.after < 0.5 * np.mean(random)
    assert fitted.after < min(random)


def test_equal_scores_open_the_nearest_share() -> None:
    x = np.array([0.0] * 60 + [1.0] * 40)[:, None]
    assert set_bias(x, np.ones(1), 0.5)[2] == 0.4
    assert set_bias(x, np.ones(1), 0.9)[2] == 1.0
    assert set_bias(np.zeros((9, 1)), np.ones(1), 0.3)[2] == 0.0


def test_a_sample_stays_within_its_limit_and_keeps_rows_together() -> None:
    sample = PixelSample(limit=4000)
    numbers = np.arange(10 * 20 * 20, dtype=np.float32).reshape(10, 1, 20, 20)
    for _ in range(3):
        sample.add(numbers, np.concatenate([2 * numbers, -numbers], axis=1))
    first, second = sample.columns()
    assert 500 < len(first) <= 4000 // 3
    np.testing.assert_array_equal(second, np.concatenate([2 * first, -first], axis=1))
    with pytest.raises(PerfonnxError, match="no pixels"):
        PixelSample().columns()
