from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.extras import needs

torch = needs("torch")

import perfonnx  # noqa: E402
from perfonnx.corrections import Correction  # noqa: E402
from perfonnx.data.inputs import model_inputs  # noqa: E402
from perfonnx.data.samples import Samples  # noqa: E402
from perfonnx.errors import PerfonnxError  # noqa: E402
from perfonnx.methods.perforate import Perforate  # noqa: E402
from perfonnx.methods.sublattice import Sublattice  # noqa: E402
from perfonnx.passes import Options  # noqa: E402
from perfonnx.plan import Plan  # noqa: E402
from perfonnx.rewriting import folded  # noqa: E402
from perfonnx.sampling import interpolate  # noqa: E402
from perfonnx.torch import Settings, apply, dense_onnx, export, finetune_model, from_onnx, sampled_modules  # noqa: E402
from perfonnx.torch.modules import Conv2d  # noqa: E402
from perfonnx.torch.sublattice import SublatticeConv2d  # noqa: E402
from perfonnx.torch.training import OPTIMIZERS, _optimizer  # noqa: E402
from tests.passes import nets  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


RNG = np.random.default_rng
QUINCUNX = [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (2, 0), (-2, 0), (0, 2), (0, -2)]
ODD = [(0, 1), (0, -1), (1, 0), (-1, 0)]
SQUARE = [(2 * y, 2 * x) for y in (-1, 0, 1) for x in (-1, 0, 1)]

GEOMETRIES = {
    "same": ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "valid": ((3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "strided": ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    "uneven strides": ((3, 3), (2, 1), (1, 1, 1, 1), (1, 1), 1),
    "asymmetric": ((3, 2), (1, 2), (0, 1, 2, 0), (1, 1), 1),
    "dilated": ((3, 3), (1, 1), (2, 1, 2, 3), (2, 1), 1),
    "groups": ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    "depthwise": ((5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 4),
    "pointwise": ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
}
PATTERNS = {
    "quincunx": lambda y, x: np.where((y + x) % 2 == 0, 0, -1),
    "quincunx with an offset": lambda y, x: np.where((y + x) % 2 == 1, 0, -1),
    "square": lambda y, x: np.where((y % 2 == 0) & (x % 2 == 0), 0, -1),
    "dense": lambda y, x: 0 * y,
    "by parity": lambda y, x: (y + x) % 2,
    "quincunx of two squares": lambda y, x: np.where((y + x) % 2 == 0, y % 2, -1),
    "of no period": lambda y, x: np.where((2 * y + x) % 5 == 0, 0, -1),
}


def dense(geometry: str, bias: bool = True) -> Conv2d:
    kernel, strides, pads, dilations, group = GEOMETRIES[geometry]
    return Conv2d(4, 8, kernel, strides, pads, dilations, group, bias)


def fitted(layer: Conv2d, pattern: str, size: tuple[int, int]) -> tuple[np.ndarray, Correction]:
    """Classes with taps and weights of their own for a layer with maps of some size: the mask and the correction."""
    numbers = PATTERNS[pattern](*np.mgrid[: size[0], : size[1]]).astype(np.float32)
    arrays: dict[str, Any] = {"classes": numbers}
    for i, taps in enumerate((QUINCUNX, ODD)[: int(numbers.max()) + 1]):
        arrays[f"taps{i}"] = np.array(taps, np.float32)
        arrays[f"weight{i}"] = RNG(i).normal(size=(8, 4 // layer.groups, len(taps))).astype(np.float32)
        arrays[f"bias{i}"] = RNG(i).normal(size=8).astype(np.float32)
    return numbers >= 0, Correction.of(layer.weight.detach().numpy(), arrays, 0.5, 0.25)


def by_hand(layer: Conv2d, correction: Correction, x: np.ndarray) -> np.ndarray:
    """Sum by sum: at a site of class i, sum of weight_i[tap] x[position * stride + tap] + bias_i."""
    numbers = correction.arrays["classes"]
    n, c, height, width = x.shape
    y = np.zeros((n, 8, *numbers.shape))
    for (a, b), number in np.ndenumerate(numbers):
        if number < 0:
            continue
        taps, weight = (correction.arrays[f"{kind}{int(number)}"] for kind in ("taps", "weight"))
        y[:, :, a, b] = correction.arrays[f"bias{int(number)}"]
        for t, (dy, dx) in enumerate(taps.astype(int)):
            row, column = a * layer.stride[0] + dy, b * layer.stride[1] + dx
            if 0 <= row < height and 0 <= column < width:
                pixel = x[:, :, row, column].reshape(n, layer.groups, -1)
                parts = weight[:, :, t].reshape(layer.groups, -1, c // layer.groups)
                y[:, :, a, b] += np.einsum("gmc,ngc->ngm", parts, pixel).reshape(n, -1)
    if numbers.max() > 0:
        return y
    return y.reshape(n, 8, -1)[:, :, interpolate(numbers >= 0).source[:, 0]].reshape(y.shape)


@pytest.mark.parametrize("size", [(8, 10), (9, 7), (6, 5)])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_layer_computes_its_classes(geometry: str, pattern: str, size: tuple[int, int]) -> None:
    layer, x = dense(geometry), torch.randn(2, 4, *size)
    mask, correction = fitted(layer, pattern, tuple(layer(x).shape[2:]))
    y = SublatticeConv2d(layer, mask, correction)(x)
    np.testing.assert_allclose(y.detach().numpy(), by_hand(layer, correction, x.numpy()), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pattern", ["quincunx", "square", "dense"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_was_not_fitted_starts_as_the_dense_layer(geometry: str, pattern: str, bias: bool) -> None:
    layer, x = dense(geometry, bias), torch.randn(2, 4, 9, 10)
    expected = layer(x).detach()
    mask, _ = fitted(layer, pattern, tuple(expected.shape[2:]))
    module = SublatticeConv2d(layer, mask, Correction.of(layer.weight.detach().numpy(), {}, 0.0, 0.0))
    torch.testing.assert_close(module(x)[:, :, mask], expected[:, :, mask])


def normalized() -> onnx.ModelProto:
    """Groups, strides, valid pads, a shortcut, batch normalization and a dense layer behind a lattice."""
    nodes = [
        nets.conv("x", "c0", "w0", name="conv0"),
        nets.node("BatchNormalization", ["c0", "scale", "shift", "mean", "var"], ["n0"]),
        nets.node("Relu", ["n0"], ["r0"]),
        nets.conv("r0", "c1", "w1", "b1", name="conv1", group=2),
        nets.node("Relu", ["c1"], ["r1"]),
        nets.conv("r1", "c2", "w2", name="conv2"),
        nets.node("Add", ["c2", "r0"], ["a2"]),
        nets.node("Relu", ["a2"], ["r2"]),
        nets.conv("r2", "c3", "w3", "b1", name="strided", strides=[2, 2]),
        nets.node("Relu", ["c3"], ["r3"]),
        nets.conv("r3", "c4", "w4", name="valid", pads=[0] * 4),
        nets.node("Relu", ["c4"], ["r4"]),
        nets.conv("r4", "c5", "w5", name="leaving"),
        nets.node("GlobalAveragePool", ["c5"], ["y"]),
    ]
    shapes = [(8, 3, 3, 3), (8, 4, 3, 3), *[(8, 8, 3, 3)] * 3, (5, 8, 3, 3)]
    weights = {f"w{i}": 2 * nets.values(*shape, seed=i) for i, shape in enumerate(shapes)}
    weights |= {name: nets.values(8, seed=9 + i) for i, name in enumerate(("b1", "scale", "shift", "mean"))}
    return nets.model(
        nodes, weights | {"var": np.ones(8, np.float32)}, inputs={"x": ("N", 3, 17, 14)}, outputs={"y": ("N", 5, 1, 1)}
    )


def lattices(**of: str) -> Plan:
    """All its layers on quincunxes, but where `of` says otherwise."""
    names = ("conv0", "conv1", "conv2", "strided", "valid", "leaving")
    return Plan({name: Sublattice({"leaving": "dense", **of}.get(name, "quincunx")) for name in names})


def images(count: int = 48) -> Samples:
    values = RNG(1).standard_normal((count, 3, 17, 14), dtype=np.float32)
    values += 2 * RNG(2).standard_normal((count, 3, 1, 1), dtype=np.float32)
    return Samples.load(values, model_inputs(normalized()))


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = perfonnx.session(model).run(None, {"x": x})
    return y


def poorly_fitted(folder: Path) -> Plan:
    """A saved plan with much left to train: three images say little of so many weights."""
    fit = perfonnx.rewrite(normalized(), plan=lattices(), samples=images().take(3).feeds())
    fit.save_plan(folder / "plan.json")
    return Plan.load(folder / "plan.json")


SETTINGS = Settings(epochs=4, batch=8, lr=1e-3, validate=0.25)


@pytest.mark.parametrize(
    ("of", "in_classes"),
    [
        ({"conv2": "square"}, "leaving"),
        ({"strided": "square"}, "valid"),
        ({"strided": "square", "leaving": "quincunx"}, "valid"),
    ],
)
def test_the_exported_model_is_the_trained_network(of: dict[str, str], in_classes: str) -> None:
    plan, model = lattices(**of), folded(normalized(), {"conv0"})
    fit = perfonnx.rewrite(model, plan=plan, samples=images().feeds())
    classes = {name: c.arrays["classes"].max() + 1 for name, c in fit.corrections.items() if c.arrays}
    assert classes[in_classes] > 1
    network = from_onnx(model)
    apply(network, plan, corrections=fit.corrections)
    with torch.no_grad():
        for module in sampled_modules(network).values():
            for p in (*module.weights, *module.biases):
                p += 0.1 * torch.randn(p.shape)
    x = images().pick(range(4)).feeds["x"]
    wanted = network(torch.from_numpy(x)).detach().numpy()
    assert np.abs(wanted - outputs(fit.proto, x)).max() > 1e-2
    for layout in ("rows", "nchw"):
        exported = export(network, layout=layout).proto
        np.testing.assert_allclose(outputs(exported, x), wanted, atol=1e-5)
        np.testing.assert_allclose(nets.run(exported, {"x": x})[0], wanted, atol=1e-5)


class Headed(torch.nn.Module):
    """A layer and a mean that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def test_means_of_a_network_of_pytorch_are_of_maps() -> None:
    network, example, plan = Headed(), torch.zeros(1, 3, 9, 10), Plan({"conv": Sublattice()})
    data = [{"x": RNG(3).standard_normal((32, 3, 9, 10), dtype=np.float32)}]
    fit = perfonnx.rewrite(dense_onnx(network, example)[0], plan=plan, samples=data)
    apply(network, plan, example, corrections=fit.corrections)
    x = data[0]["x"][:4]
    wanted = network(torch.from_numpy(x)).detach().numpy()
    result = export(network)
    assert result.plan.means == "maps"
    np.testing.assert_allclose(outputs(result.proto, x), wanted, atol=1e-5)
    assert np.abs(outputs(fit.proto, x) - wanted).max() > 1e-3


def test_a_plan_applied_again_averages_anew() -> None:
    network, model = from_onnx(folded(normalized(), {"conv0"})), folded(normalized(), {"conv0"})
    x = torch.from_numpy(images().pick(range(4)).feeds["x"])
    dense, last = network(x), Plan({"leaving": Sublattice("quincunx")})
    fit = perfonnx.rewrite(model, plan=last, samples=images().feeds())
    apply(network, last, corrections=fit.corrections)
    assert (network(x) - dense).abs().max() > 1e-4
    apply(network, Plan())
    torch.testing.assert_close(network(x), dense)


def test_pools_read_in_training_what_they_read_in_the_model() -> None:
    """Skipped positions are filled from sites in the same windows of a pool, not from the first of the nearest."""
    nodes = [
        nets.conv("x", "a", "w0", name="first"),
        nets.node("Relu", ["a"], ["ra"]),
        nets.node("MaxPool", ["ra"], ["p"], kernel_shape=[3, 3], strides=[2, 2]),
        nets.conv("p", "y", "w1", name="second"),
    ]
    weights = {"w0": nets.values(8, 3, 3, 3), "w1": nets.values(8, 8, 3, 3, seed=1)}
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 17, 14)}, outputs={"y": ("N", 8, 8, 6)})
    plan = Plan({"first": Sublattice("quincunx"), "second": Sublattice("dense")})
    fit = perfonnx.rewrite(model, plan=plan, samples=images().feeds())
    network = from_onnx(model)
    apply(network, plan, corrections=fit.corrections)
    x = images().pick(range(4)).feeds["x"]
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), outputs(fit.proto, x), atol=1e-5)


def test_training_takes_back_what_the_lattices_lost(tmp_path: Path) -> None:
    done = finetune_model(normalized(), None, images(), plan=poorly_fitted(tmp_path), settings=SETTINGS)
    epochs = done.rounds[0].epochs
    assert epochs[-1].loss < 0.9 * epochs[0].loss
    assert done.after.guide < 0.9 * done.before.guide


def test_a_saved_plan_makes_the_same_model_of_the_same_model_without_data(tmp_path: Path) -> None:
    done = finetune_model(normalized(), tmp_path / "fast.onnx", images(), plan=lattices(), settings=SETTINGS)
    done.result.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(normalized(), plan=tmp_path / "plan.json")
    assert again.to_bytes() == (tmp_path / "fast.onnx").read_bytes()


def test_layers_without_names_keep_those_of_their_outputs(tmp_path: Path) -> None:
    model = normalized()
    for node in model.graph.node:
        node.ClearField("name")
    options: dict[str, Any] = {"options": Options("sublattice", only="c[0-2]"), "settings": replace(SETTINGS, epochs=1)}
    done = finetune_model(model, tmp_path / "fast.onnx", images(), **options)
    done.result.save_plan(tmp_path / "plan.json")
    assert list(done.result.plan.layers) == ["c0", "c1", "c2"]
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    assert again.to_bytes() == (tmp_path / "fast.onnx").read_bytes()


def test_fully_connected_layers_keep_their_own_weights(tmp_path: Path) -> None:
    """A refit of one would not be known to the network that is trained."""
    nodes = [
        nets.conv("x", "a", "w0", name="first", strides=[8, 8]),
        nets.node("Relu", ["a"], ["ra"]),
        nets.node("Flatten", ["ra"], ["f"]),
        nets.node("Gemm", ["f", "w1"], ["y"], name="head"),
    ]
    weights = {"w0": nets.values(2, 3, 3, 3), "w1": nets.values(2 * 3 * 2, 3, seed=1)}
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 17, 14)}, outputs={"y": ("N", 3)})
    fit = perfonnx.rewrite(model, method="sublattice", samples=images().feeds())
    assert fit.corrections["head"].arrays
    fit.save_plan(tmp_path / "plan.json")
    settings = replace(SETTINGS, epochs=1)
    for how in ({"options": Options("sublattice")}, {"plan": tmp_path / "plan.json"}):
        done = finetune_model(model, None, images(), settings=settings, **how)
        assert list(done.result.plan.layers) == ["first"]
        assert list(done.result.corrections) == ["first"]
    network = from_onnx(model)
    (skip,) = apply(network, fit.plan, corrections=fit.corrections).skips
    assert (skip.layer, skip.reason) == ("head", "it is trained from its own weights")


def test_training_goes_on_from_a_saved_plan(tmp_path: Path) -> None:
    fit = perfonnx.rewrite(normalized(), plan=lattices(), samples=images().feeds())
    fit.save_plan(tmp_path / "plan.json")
    start = finetune_model(
        normalized(), None, images(), plan=tmp_path / "plan.json", settings=replace(SETTINGS, epochs=1, lr=0.0)
    )
    for name, correction in fit.corrections.items():
        for kind, array in correction.arrays.items():
            np.testing.assert_array_equal(start.result.corrections[name].arrays[kind], array)


def test_rounds_and_interruptions_go_on_from_what_was_trained(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    options: dict[str, Any] = {"plan": poorly_fitted(tmp_path), "settings": settings, "rounds": 2}
    wanted = finetune_model(normalized(), None, images(), checkpoint=tmp_path / "state", **options)
    assert wanted.rounds[0].best == 1
    assert wanted.rounds[1].before == pytest.approx(wanted.rounds[0].epochs[-1].held_out)
    (tmp_path / "state.2").unlink()
    found = finetune_model(normalized(), None, images(), checkpoint=tmp_path / "state", resume=True, **options)
    assert found.result.to_bytes() == wanted.result.to_bytes()


def test_other_layers_of_a_plan_train_their_own_weights(tmp_path: Path) -> None:
    plan = poorly_fitted(tmp_path)
    plan.layers["conv2"] = Perforate(0.5, "grid")
    done = finetune_model(normalized(), None, images(), plan=plan, settings=SETTINGS)
    x = images().pick(range(4)).feeds["x"]
    assert np.abs(outputs(done.dense, x) - outputs(normalized(), x)).max() > 1e-3
    assert outputs(done.result.proto, x).shape == (4, 5, 1, 1)


def test_what_cannot_be_trained_is_refused() -> None:
    network = from_onnx(normalized())
    fit = perfonnx.rewrite(normalized(), plan=lattices(), samples=images().feeds())
    with pytest.raises(PerfonnxError, match="layer 'conv0': a BatchNormalization behind it belongs to its weights"):
        apply(network, lattices(), corrections=fit.corrections)
    inner = Plan({"conv1": Sublattice()})
    with pytest.raises(PerfonnxError, match="layer 'conv1': its training goes on from a fit, which is not here"):
        apply(network, inner)
    for wrong, message in (
        (replace(fit.corrections["conv1"], weights="0"), "its weights were fitted for others"),
        (fit.corrections["strided"], "its weights were fitted for others"),
    ):
        with pytest.raises(PerfonnxError, match=f"layer 'conv1': {message}"):
            apply(network, inner, corrections={"conv1": wrong})
    assert not sampled_modules(network)
    apply(network, inner, corrections=fit.corrections)
    with pytest.raises(PerfonnxError, match="a lattice of 17x14 meets a map of 16x14; apply the plan with such inputs"):
        network(torch.zeros(1, 3, 16, 14))


def test_a_fit_is_trained_by_adamw_unless_something_else_is_said() -> None:
    fit = perfonnx.rewrite(normalized(), plan=Plan({"conv1": Sublattice()}), samples=images().feeds())
    network = from_onnx(normalized())
    assert type(_optimizer(network, Settings())) is torch.optim.SGD
    apply(network, Plan({"conv1": Sublattice()}), corrections=fit.corrections)
    for settings, kind, rate in (
        (Settings(), torch.optim.AdamW, OPTIMIZERS["adamw"]),
        (Settings(lr=0.5), torch.optim.AdamW, 0.5),
        (Settings(optimizer="sgd"), torch.optim.SGD, OPTIMIZERS["sgd"]),
    ):
        optimizer = _optimizer(network, settings)
        assert type(optimizer) is kind
        assert {group["highest"] for group in optimizer.param_groups} == {rate}
