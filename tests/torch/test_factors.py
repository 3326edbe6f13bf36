"""Factors of low-rank layers are layers like others: they train, and what they become goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.extras import needs

torch = needs("torch")

import perfonnx  # noqa: E402
from perfonnx import PerfonnxError, Plan  # noqa: E402
from perfonnx.data.inputs import model_inputs  # noqa: E402
from perfonnx.data.samples import Samples  # noqa: E402
from perfonnx.methods import METHODS, Chain, Method  # noqa: E402
from perfonnx.methods.perforate import Perforate  # noqa: E402
from perfonnx.methods.sublattice import Sublattice  # noqa: E402
from perfonnx.passes import Options  # noqa: E402
from perfonnx.torch import Settings, apply, export, finetune_model, from_onnx, sampled_modules  # noqa: E402
from perfonnx.torch.factors import FactoredConv2d  # noqa: E402
from tests.methods.lowrank.test_lowrank import GENERAL, batches, network  # noqa: E402
from tests.passes import nets  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_factors_train_and_come_out_as_a_model() -> None:
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


CASES = {
    "square": {},
    "awkward": {"strides": [2, 1], "pads": [0, 1, 2, 0], "dilations": [1, 2]},
    "groups": {"group": 2, "strides": [2, 2]},
}
METHODS_HERE = [method() for method in GENERAL] + [
    METHODS["bicluster-svd"](input_groups=1, output_groups=2),
    METHODS["bicluster-outer"](input_groups=4, output_groups=1),
    METHODS["cp"](depthwise="split"),
    METHODS["column-sparse"](block=0),
    METHODS["column-sparse"](error=0.2, metric="frobenius"),
    Chain((METHODS["jaderberg"](), METHODS["exact"]())),
]


def images(count: int = 48) -> Samples:
    values = np.random.default_rng(1).standard_normal((count, 3, 12, 10), dtype=np.float32)
    values += 2 * np.random.default_rng(2).standard_normal((count, 3, 1, 1), dtype=np.float32)
    return Samples.load(values, model_inputs(network(nets.values(16, 8, 3, 3))))


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = perfonnx.session(model).run(None, {"x": x})
    return y


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS_HERE, ids=lambda method: method.label)
def test_a_network_with_factors_is_the_rewritten_model_before_and_after_they_change(method: Method, case: str) -> None:
    shape = (16, 8, 3, 3) if case != "groups" else (16, 4, 3, 3)
    original, plan = network(2 * nets.values(*shape), **CASES[case]), Plan({"conv2": method})
    fit = perfonnx.rewrite(original, plan=plan, samples=batches())
    assert list(fit.plan.layers) == ["conv2"], fit.report.skips
    student = from_onnx(original)
    apply(student, plan, corrections=fit.corrections)
    (layer,) = sampled_modules(student).values()
    assert isinstance(layer, FactoredConv2d)
    x = nets.feed(1, 3, 12, 10, seed=9)["x"]
    np.testing.assert_allclose(student(torch.from_numpy(x)).detach().numpy(), outputs(fit.proto, x), atol=2e-4)
    parameters = [*layer.factors.parameters(), layer.shift]
    assert {id(p) for p in parameters} <= {id(p) for p in student.parameters() if p.requires_grad}
    with torch.no_grad():
        for p in parameters:
            p += 0.05 * torch.randn(p.shape)
    wanted = student(torch.from_numpy(x)).detach().numpy()
    assert np.abs(wanted - outputs(fit.proto, x)).max() > 1e-2
    exported = export(student)
    np.testing.assert_allclose(outputs(exported.proto, x), wanted, atol=2e-4)
    np.testing.assert_allclose(nets.run(exported.proto, {"x": x})[0], wanted, atol=2e-4)
    assert exported.report.multiplies == fit.report.multiplies  # zeros stay zeros, for one
    assert "trained" in exported.report.layers[0].notes[0]


@pytest.mark.parametrize("method", ["monochromatic", "svd"])
def test_factors_of_first_layers_and_of_1x1_layers(method: str) -> None:
    weights = {"w1": nets.values(16, 3, 3, 3), "w2": nets.values(16, 16, 1, 1)}
    nodes = [
        nets.conv("x", "a", "w1", name="monochromatic"),
        nets.node("Relu", ["a"], ["r"]),
        nets.conv("r", "y", "w2", name="svd", kernel_shape=[1, 1], pads=[0] * 4),
    ]
    original = nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 16, 12, 10)})
    plan = Plan({method: METHODS[method]()})
    fit = perfonnx.rewrite(original, plan=plan, samples=batches())
    student = from_onnx(original)
    assert apply(student, plan, corrections=fit.corrections).modules
    x = nets.feed(1, 3, 12, 10, seed=9)["x"]
    np.testing.assert_allclose(student(torch.from_numpy(x)).detach().numpy(), outputs(fit.proto, x), atol=1e-4)


def test_zeros_of_column_sparse_layers_stay_while_the_others_train() -> None:
    original, plan = network(nets.values(16, 8, 3, 3)), Plan({"conv2": METHODS["column-sparse"](metric="frobenius")})
    fit = perfonnx.rewrite(original, plan=plan)
    done = finetune_model(original, None, images(), plan=plan, settings=SETTINGS)
    before, after = (found.corrections["conv2"].arrays["factor0"] for found in (fit, done.result))
    assert (after == 0).mean() == (before == 0).mean() == 0.5
    assert done.after.guide < 0.9 * done.before.guide


SETTINGS = Settings(epochs=4, batch=8, lr=3e-3, validate=0.25)


@pytest.mark.parametrize("method", ["jaderberg", "bicluster-outer", "tucker"])
def test_training_takes_back_what_the_factors_lost_and_a_plan_makes_the_same_model(method: str, tmp_path: Path) -> None:
    original, options = network(nets.values(16, 8, 3, 3)), Options(method, metric="frobenius", only="conv2")
    done = finetune_model(original, tmp_path / "fast.onnx", images(), options=options, settings=SETTINGS)
    assert done.aside
    assert done.after.guide < 0.9 * done.before.guide
    done.result.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(original, plan=tmp_path / "plan.json")
    assert again.to_bytes() == (tmp_path / "fast.onnx").read_bytes()
    further = finetune_model(
        original, None, images(), plan=tmp_path / "plan.json", settings=replace(SETTINGS, epochs=1, lr=0.0)
    )
    for name, array in done.result.corrections["conv2"].arrays.items():
        np.testing.assert_array_equal(further.result.corrections["conv2"].arrays[name], array)


def test_layers_with_factors_train_beside_others(tmp_path: Path) -> None:
    original = network(nets.values(16, 8, 3, 3))
    layers = {"conv1": Sublattice(), "conv2": METHODS["jaderberg"](metric="frobenius"), "conv3": Perforate(0.5, "grid")}
    done = finetune_model(original, tmp_path / "fast.onnx", images(), plan=Plan(layers), settings=SETTINGS)
    assert set(done.result.plan.layers) == set(layers)
    assert not done.aside
    assert done.after.guide < 0.9 * done.before.guide
    kept = Plan({name: layers[name] for name in ("conv1", "conv2")})
    done = finetune_model(original, tmp_path / "fast.onnx", images(), plan=kept, settings=SETTINGS)
    assert done.aside
    done.result.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(original, plan=tmp_path / "plan.json")
    assert again.to_bytes() == (tmp_path / "fast.onnx").read_bytes()


def products() -> onnx.ModelProto:
    """A layer, a product of the flattened map and one whose bias is added behind it."""
    weights = {
        "w1": nets.values(8, 3, 3, 3),
        "w2": nets.values(24, 8 * 3 * 3),
        "b2": nets.values(24),
        "w3": nets.values(24, 20),
        "b3": nets.values(20),
    }
    nodes = [
        nets.conv("x", "a", "w1", name="conv1", strides=[4, 4]),
        nets.node("Relu", ["a"], ["r"]),
        nets.node("Flatten", ["r"], ["f"]),
        nets.node("Gemm", ["f", "w2", "b2"], ["g"], name="gemm", transB=1),
        nets.node("Relu", ["g"], ["h"]),
        nets.node("MatMul", ["h", "w3"], ["m"], name="matmul"),
        nets.node("Add", ["m", "b3"], ["y"]),
    ]
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 20)})


@pytest.mark.parametrize("method", [METHODS["svd"](), METHODS["prune"]()], ids=lambda method: method.NAME)
def test_factors_of_products_train_in_their_places(method: Method, tmp_path: Path) -> None:
    original, plan = products(), Plan({"gemm": method, "matmul": method})
    fit = perfonnx.rewrite(original, plan=plan, samples=batches())
    student = from_onnx(original)
    dense = student(torch.from_numpy(nets.feed(2, 3, 12, 10, seed=9)["x"])).detach().numpy()
    assert set(apply(student, plan, corrections=fit.corrections).modules) == {"gemm", "matmul"}
    x = nets.feed(2, 3, 12, 10, seed=9)["x"]
    np.testing.assert_allclose(student(torch.from_numpy(x)).detach().numpy(), outputs(fit.proto, x), atol=1e-4)
    with torch.no_grad():
        for layer in sampled_modules(student).values():
            for p in (*layer.factors.parameters(), layer.shift):
                p += 0.05 * torch.randn(p.shape)
    wanted = student(torch.from_numpy(x)).detach().numpy()
    assert np.abs(wanted - outputs(fit.proto, x)).max() > 1e-2
    np.testing.assert_allclose(outputs(export(student).proto, x), wanted, atol=1e-4)
    apply(student, Plan())
    assert not sampled_modules(student)
    np.testing.assert_allclose(student(torch.from_numpy(x)).detach().numpy(), dense, atol=1e-6)

    values = np.random.default_rng(1).standard_normal((48, 3, 12, 10), dtype=np.float32)
    data = Samples.load(values, model_inputs(original))
    poor = Plan({name: replace(step, metric="frobenius") for name, step in plan.layers.items()})
    done = finetune_model(original, tmp_path / "fast.onnx", data, plan=poor, settings=SETTINGS)
    assert done.aside
    assert done.after.guide < 0.9 * done.before.guide
    done.result.save_plan(tmp_path / "plan.json")
    assert perfonnx.rewrite(original, plan=tmp_path / "plan.json").to_bytes() == (tmp_path / "fast.onnx").read_bytes()


def test_products_of_sequences_and_of_half_precision() -> None:
    weights = {"w": nets.values(16, 12)}
    nodes = [nets.node("MatMul", ["x", "w"], ["y"], name="product")]
    for kind, dtype in ((onnx.TensorProto.FLOAT, np.float32), (onnx.TensorProto.FLOAT16, np.float16)):
        given = {name: value.astype(dtype) for name, value in weights.items()}
        original = nets.model(nodes, given, inputs={"x": (2, 5, 16)}, outputs={"y": (2, 5, 12)}, dtype=kind)
        plan = Plan({"product": METHODS["svd"](rank=3)})
        fit, student = perfonnx.rewrite(original, plan=plan), from_onnx(original)
        apply(student, plan, corrections=fit.corrections)
        x = nets.values(2, 5, 16, seed=1).astype(dtype)
        wanted = student(torch.from_numpy(x)).detach().numpy()
        assert wanted.shape == (2, 5, 12)
        np.testing.assert_allclose(outputs(fit.proto, x).astype(np.float32), wanted, atol=1e-5 if kind == 1 else 2e-2)


def test_half_precision_is_trained_and_written_back() -> None:
    original = network(nets.values(16, 8, 3, 3), dtype=np.float16)
    plan, data = Plan({"conv2": METHODS["jaderberg"]()}), batches(np.float16)
    fit = perfonnx.rewrite(original, plan=plan, samples=data)
    student = from_onnx(original)
    apply(student, plan, corrections=fit.corrections)
    x = data[0]["x"][:1]
    wanted = student(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(outputs(export(student).proto, x).astype(np.float32), wanted, atol=2e-2)


def test_what_cannot_be_trained_is_refused() -> None:
    original = network(nets.values(16, 8, 3, 3))
    student, plan = from_onnx(original), Plan({"conv2": METHODS["jaderberg"]()})
    with pytest.raises(PerfonnxError, match="layer 'conv2': its training goes on from a fit, which is not here"):
        apply(student, plan)
    fit = perfonnx.rewrite(original, plan=plan, samples=batches())
    behind = Plan({"conv2": Chain((METHODS["jaderberg"](), Perforate(0.5, "grid")))})
    with pytest.raises(PerfonnxError, match="'conv2': jaderberg is trained, but not with perforate behind it"):
        apply(student, behind, corrections=fit.corrections)
    with pytest.raises(PerfonnxError, match="layer 'conv2': its factors were found for other weights"):
        apply(student, plan, corrections={"conv2": replace(fit.corrections["conv2"], weights="0")})
    assert not sampled_modules(student)
    nodes = [
        nets.conv("x", "a", "w1", name="conv1"),
        nets.node("BatchNormalization", ["a", *["one"] * 4], ["y"]),
    ]
    weights = {"w1": nets.values(16, 3, 3, 3), "one": np.ones(16, np.float32)}
    normalized = nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 16, 12, 10)})
    plan = Plan({"conv1": METHODS["zhang"]()})
    fit = perfonnx.rewrite(normalized, plan=plan, samples=batches())
    with pytest.raises(PerfonnxError, match="'conv1': a BatchNormalization behind it belongs to its factors"):
        apply(from_onnx(normalized), plan, corrections=fit.corrections)


def test_a_layer_that_its_fit_left_is_trained_by_nobody() -> None:
    original = network(nets.values(16, 8, 3, 3))
    layers = {"conv2": METHODS["jaderberg"](error=1e-6), "conv3": METHODS["zhang"](rank=2, metric="frobenius")}
    done = finetune_model(original, None, images(), plan=Plan(layers), settings=replace(SETTINGS, epochs=1))
    assert list(done.result.plan.layers) == ["conv3"]
    assert "has an error of" in done.result.plan.notes["conv2"]
