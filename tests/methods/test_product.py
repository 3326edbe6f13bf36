"""Fully connected layers behind layers that changed: what their refit gains, and where they are left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import perfonnx
from perfonnx import PerfonnxError, Plan
from perfonnx.corrections import Correction
from perfonnx.methods.product import RefitProduct
from perfonnx.methods.sublattice import Sublattice
from tests.passes import nets
from tests.passes.nets import node

KINDS = ("gemm", "turned", "no bias", "matmul")
POSITIONS, HEAD = 4 * 6 * 5, "head"


def network(kind: str = "gemm", *, dtype: Any = np.float32, batch: int | str = "N") -> ModelProto:
    """A convolution, a ReLU, and a fully connected layer that reads each of its values."""
    wide = nets.values(POSITIONS, 3, seed=2, dtype=dtype)
    weights = {"w0": nets.values(4, 3, 3, 3, dtype=dtype), "b": nets.values(1, 3, seed=3, dtype=dtype)}
    weights["w1"] = wide.T if kind == "turned" else wide
    nodes = [nets.conv("x", "a", "w0", name="conv"), node("Relu", ["a"], ["r"]), node("Flatten", ["r"], ["f"])]
    if kind == "matmul":
        nodes += [node("MatMul", ["f", "w1"], ["m"], name=HEAD), node("Add", ["b", "m"], ["y"])]
    else:
        inputs = ["f", "w1", *([] if kind == "no bias" else ["b"])]
        nodes.append(node("Gemm", inputs, ["y"], name=HEAD, transB=int(kind == "turned")))
    elem = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return nets.model(nodes, weights, inputs={"x": (batch, 3, 6, 5)}, outputs={"y": (batch, 3)}, dtype=elem)


def samples(count: int = 400, dtype: Any = np.float32, batch: int = 50, seed: int = 3) -> list[dict[str, np.ndarray]]:
    """Smooth images, as photographs are."""
    images = np.random.default_rng(seed).normal(size=(count, 3, 6, 5))
    smooth = sum(np.roll(images, (dy, dx), (2, 3)) for dy in range(3) for dx in range(3)) / 3
    return [{"x": smooth[i : i + batch].astype(dtype)} for i in range(0, count, batch)]


def loss(model: ModelProto, other: ModelProto, dtype: Any = np.float32) -> float:
    """Mean squared difference over the variance of the first's output, on new images."""
    (feed,) = samples(50, dtype, seed=4)
    first, second = (nets.run(m, feed)[0].astype(np.float64) for m in (model, other))
    return float(np.square(first - second).mean() / first.var())


def plan(**steps: Any) -> Plan:
    return Plan({"conv": Sublattice("square"), HEAD: RefitProduct(), **steps})


@pytest.mark.parametrize("kind", KINDS)
def test_unseen_images_gain(kind: str, tmp_path: Path) -> None:
    model = network(kind)
    fitted = perfonnx.rewrite(model, plan=plan(), samples=samples())
    without = perfonnx.rewrite(model, plan=Plan({"conv": Sublattice("square")}), samples=samples())
    found = fitted.corrections[HEAD]
    assert found.after < 0.7 * found.before
    assert loss(model, without.proto) == pytest.approx(found.before, rel=0.5)
    assert loss(model, fitted.proto) == pytest.approx(found.after, rel=0.5)
    nets.check(fitted.proto)
    assert [layer.name for layer in fitted.report.layers] == ["conv", HEAD]
    fitted.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    assert again.to_bytes() == fitted.to_bytes()


def test_a_product_in_front_of_a_layer_of_another_branch(tmp_path: Path) -> None:
    """A plan has its layers in another order than the network; what is made of both is in the network's."""
    model = network()
    last = nets.conv("r", "z", "w2", name="last")
    model.graph.node.append(last)
    model.graph.initializer.append(onnx.numpy_helper.from_array(nets.values(4, 4, 3, 3, seed=5), "w2"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 4, 6, 5]))
    fitted = perfonnx.rewrite(model, plan=plan(last=Sublattice("dense")), samples=samples())
    assert set(fitted.corrections) == {"conv", HEAD, "last"}
    fitted.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    assert again.to_bytes() == fitted.to_bytes()


def test_it_is_the_solution_of_the_least_squares() -> None:
    """From a network in which nothing else changed, but whose own weights are not what is asked for."""
    model, data = network(), samples()
    result = perfonnx.rewrite(model, plan=plan(), samples=data)
    behind = onnx.ModelProto()
    behind.CopyFrom(perfonnx.rewrite(model, plan=Plan({"conv": Sublattice("square")}), samples=data).proto)
    behind.graph.output.append(onnx.helper.make_empty_tensor_value_info("f"))
    x = np.concatenate([nets.run(behind, feed)[1] for feed in data]).astype(np.float64)
    wanted = np.concatenate([nets.run(model, feed)[0] for feed in data]).astype(np.float64)
    first = nets.values(POSITIONS, 3, seed=2).astype(np.float64)
    centred = x - x.mean(axis=0)
    gram = centred.T @ centred
    gram += 0.05 * np.trace(gram) / len(gram) * np.eye(len(gram))
    expected = first + np.linalg.solve(gram, centred.T @ (wanted - wanted.mean(axis=0) - centred @ first))
    arrays = result.corrections[HEAD].arrays
    np.testing.assert_allclose(arrays["weight"], expected.T, atol=1e-4)
    np.testing.assert_allclose(arrays["bias"], wanted.mean(axis=0) - x.mean(axis=0) @ expected, atol=1e-4)


def test_the_flag_of_sublattices_takes_it_in() -> None:
    result = perfonnx.rewrite(network(), method="sublattice", lattice="square", samples=samples())
    assert result.plan.layers == {"conv": Sublattice("square"), HEAD: RefitProduct()}


def test_float16() -> None:
    model, data = network(dtype=np.float16), samples(dtype=np.float16)
    result = perfonnx.rewrite(model, plan=plan(), samples=data)
    without = perfonnx.rewrite(model, plan=Plan({"conv": Sublattice("square")}), samples=data)
    assert loss(model, result.proto, np.float16) < loss(model, without.proto, np.float16)


def test_a_batch_of_one_makes_no_shortcut_of_the_bias() -> None:
    model, data = network("matmul", batch=1), samples(batch=1)
    result = perfonnx.rewrite(model, plan=plan(), samples=data)
    assert result.corrections[HEAD].after < 0.7 * result.corrections[HEAD].before


# --- what is left alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "data", "reason"),
    [
        ({}, samples(100), "left as it was: 100 samples are too few for its 120 inputs"),
        ({"conv": Sublattice("dense")}, samples(), "as it was: what has changed hardly reaches it"),
    ],
)
def test_it_stays_where_it_cannot_gain(steps: dict[str, Any], data: list[dict[str, np.ndarray]], reason: str) -> None:
    model = network()
    result = perfonnx.rewrite(model, plan=plan(**steps), samples=data)
    assert result.report.layers[-1].notes == (reason,)
    assert not result.corrections[HEAD].arrays
    again = perfonnx.rewrite(model, plan=result.plan, corrections=result.corrections)
    assert again.to_bytes() == result.to_bytes()


def test_it_stays_where_unseen_images_do_not_gain() -> None:
    """Little is lost where four of five positions are computed, and 98 images hardly tell of 120 weights."""
    result = perfonnx.rewrite(network(), plan=plan(conv=Sublattice("depleted")), samples=samples(130))
    assert "a fit gains too little" in result.report.layers[-1].notes[0]
    assert not result.corrections[HEAD].arrays


def test_products_of_another_form_are_left_alone() -> None:
    weights = {
        "w0": nets.values(4, 3, 3, 3),
        "w1": nets.values(5, 5),
        "b": nets.values(5),
        "w2": nets.values(POSITIONS, 3),
    }
    nodes = [
        nets.conv("x", "a", "w0", name="conv"),
        node("MatMul", ["a", "w1"], ["m"], name="columns"),
        node("Add", ["m", "b"], ["s"]),
        node("Flatten", ["s"], ["f"]),
        node("MatMul", ["f", "w2"], ["y"], name="bare"),
    ]
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 6, 5)}, outputs={"y": ("N", 3)})
    result = perfonnx.rewrite(model, method="sublattice", samples=samples(50))
    reasons = {skip.layer: skip.reason for skip in result.report.skips}
    assert reasons["columns"] == "its input is not certain to be a row for each sample"
    assert reasons["bare"] == "no bias of its own is certain"


def test_methods_for_other_layers_are_refused_with_a_word() -> None:
    wrong = Plan({"conv": RefitProduct(), HEAD: Sublattice("dense")})
    result = perfonnx.rewrite(network(), plan=wrong, samples=samples(50))
    reasons = {skip.layer: skip.reason for skip in result.report.skips}
    assert reasons == {
        "conv": "it is a Conv; refitted layers are Gemm or MatMul",
        HEAD: "it is a Gemm; sublattice layers are Conv",
    }


# --- what was found before -------------------------------------------------------------------------------------------


def test_without_data_it_is_refused() -> None:
    with pytest.raises(PerfonnxError, match=f"layer '{HEAD}' is to be refitted, but there is no calibration data"):
        perfonnx.rewrite(network(), plan=Plan({HEAD: RefitProduct()}))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_of_another_form_are_refused(name: str) -> None:
    model = network()
    result = perfonnx.rewrite(model, plan=plan(), samples=samples())
    known = dict(result.corrections)
    old = known[HEAD]
    arrays = {**old.arrays, name: np.zeros((2, 2), np.float32)}
    known[HEAD] = Correction(old.bias, old.mask, old.interpolation, old.weights, arrays=arrays)
    with pytest.raises(PerfonnxError, match=rf"layer '{HEAD}': its weights are of another form; fit again"):
        perfonnx.rewrite(model, plan=result.plan, corrections=known)


def test_weights_fitted_for_others_are_refused(tmp_path: Path) -> None:
    perfonnx.rewrite(network(), plan=plan(), samples=samples()).save_plan(tmp_path / "plan.json")
    other = network()
    other.graph.initializer[-1].CopyFrom(
        onnx.numpy_helper.from_array(nets.values(POSITIONS, 3, seed=8), other.graph.initializer[-1].name)
    )
    assert json.loads((tmp_path / "plan.json").read_text())["layers"][HEAD] == {"method": "refit"}
    with pytest.raises(PerfonnxError, match=rf"layer '{HEAD}': its weights were fitted for others; fit again"):
        perfonnx.rewrite(other, plan=tmp_path / "plan.json")
