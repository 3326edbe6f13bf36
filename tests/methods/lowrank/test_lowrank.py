"""What all low-rank methods share: exact at full rank, fitted on data, refused where nothing is saved, replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

import perfonnx
from perfonnx import PerfonnxError, Plan
from perfonnx.methods import METHODS, Chain
from perfonnx.methods.lowrank import base
from perfonnx.methods.lowrank.base import LowRank, register_width
from perfonnx.ops.common import ConvAttributes, convolve
from tests import real_models
from tests.methods.lowrank import chains
from tests.passes import nets
from tests.passes.nets import node

GENERAL = [
    method for method in METHODS.values() if issubclass(method, LowRank) and method().unfit(chains.form(8, 6)) is None
]
"""Those that take layers of 3x3 kernels."""


def named(method: type[LowRank]) -> str:
    return method.NAME


def separable(outputs: int = 16, inputs: int = 8, rank: int = 2, seed: int = 3) -> np.ndarray:
    """A weight whose filters are sums of so many products of a column and a row."""
    rng = np.random.default_rng(seed)
    columns, rows = rng.standard_normal((rank, inputs, 3)), rng.standard_normal((outputs, rank, 3))
    return (np.einsum("mrj,rci->mcij", rows, columns) / 10).astype(np.float32)


def network(w2: np.ndarray, *, dtype: Any = np.float32, **attributes: Any) -> ModelProto:
    """Three layers, the second one with this weight, a bias, and a ReLU behind it."""
    outputs, inputs = w2.shape[0], w2.shape[1] * attributes.get("group", 1)
    weights = {
        "w1": nets.values(inputs, 3, 3, 3),
        "w2": w2,
        "b2": nets.values(outputs),
        "w3": nets.values(4, outputs, 3, 3),
    }
    nodes = [
        nets.conv("x", "a", "w1", name="conv1"),
        node("Relu", ["a"], ["ra"]),
        nets.conv("ra", "b", "w2", "b2", name="conv2", **attributes),
        node("Relu", ["b"], ["rb"]),
        nets.conv("rb", "y", "w3", name="conv3"),
    ]
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    return nets.model(nodes, {name: value.astype(dtype) for name, value in weights.items()}, dtype=kind)


def batches(dtype: Any = np.float32) -> list[dict[str, np.ndarray]]:
    return [nets.feed(6, 3, 12, 10, seed=seed, dtype=dtype) for seed in range(4)]


def difference(model: ModelProto, other: ModelProto, seed: int = 99) -> float:
    """Squared error over variance."""
    feeds = nets.feed(1, 3, 12, 10, seed=seed)
    (a,), (b,) = nets.run(model, feeds), nets.run(other, feeds)
    return float(np.square(a - b).mean() / a.var())


@pytest.mark.parametrize("geometry", [chains.SQUARE, chains.AWKWARD], ids=["square", "awkward"])
@pytest.mark.parametrize("method", GENERAL, ids=named)
def test_the_full_form_is_the_layer(method: type[LowRank], geometry: Any) -> None:
    form = chains.form(8, 6, geometry)
    weight, chosen = chains.weight(form), method()
    full = chosen.full(form)
    found = chosen.factors(chains.plain(weight), form, full)
    x = np.random.default_rng(1).standard_normal((2, 6, *form.size))
    expected = convolve(x, weight, None, geometry)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(chains.run(chosen.pieces(form, full), found.arrays, x), expected, atol=1e-4 * scale)
    np.testing.assert_allclose(found.weight, weight, atol=1e-4 * np.abs(weight).max())


@pytest.mark.parametrize("method", GENERAL, ids=named)
def test_the_weight_that_is_told_is_what_the_chain_gives(method: type[LowRank]) -> None:
    form = chains.form(8, 6, chains.AWKWARD)
    weight, chosen = chains.weight(form), method()
    rank = max(chosen.largest(form, form.multiplies([form.whole]) * 0.7), 1)
    found = chosen.factors(chains.plain(weight), form, rank)
    x = np.random.default_rng(1).standard_normal((2, 6, *form.size))
    expected = convolve(x, found.weight, None, chains.AWKWARD)
    np.testing.assert_allclose(chains.run(chosen.pieces(form, rank), found.arrays, x), expected, atol=1e-9)
    left = np.square(weight - found.weight).sum() / np.square(weight).sum()
    assert 0 < left < 1


@pytest.mark.parametrize("data", [False, True], ids=["plain", "data"])
@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 1], "pads": [2, 0, 0, 1]}, {"group": 2}], ids=str)
def test_a_layer_of_that_rank_stays_what_it_was(attributes: dict[str, Any], data: bool) -> None:
    groups = attributes.get("group", 1)
    w = np.concatenate([separable(16 // groups, 8, seed=g) for g in range(groups)])
    model = network(w, **attributes)
    result = perfonnx.rewrite(model, method="jaderberg", rank=2, only="conv2", samples=batches() if data else None)
    nets.check(result.proto)
    assert nets.op_types(result.proto).count("Conv") == 4
    assert difference(model, result.proto) < 1e-8
    (layer,) = result.report.layers
    assert layer.multiplies[1] < layer.multiplies[0]
    assert layer.notes[-1].startswith("rank 2 of ")


@pytest.mark.parametrize("method", GENERAL, ids=named)
def test_data_makes_it_better(method: type[LowRank]) -> None:
    """The same form, at the same multiplies: fitted on responses, then on the weight alone."""
    model = network(nets.values(16, 8, 3, 3))
    fitted = perfonnx.rewrite(model, method=method.NAME, save=0.5, only="conv2", samples=batches())
    plain = perfonnx.rewrite(model, method=method.NAME, save=0.5, only="conv2")
    nets.check(fitted.proto)
    assert fitted.report.multiplies == plain.report.multiplies
    assert fitted.report.multiplies[1] < fitted.report.multiplies[0]
    assert difference(model, fitted.proto) < 0.85 * difference(model, plain.proto)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", GENERAL, ids=named)
def test_what_is_timed_has_the_form_of_what_is_fitted(method: type[LowRank], groups: int) -> None:
    model = network(nets.values(32, 8, 3, 3), group=groups)
    plain = perfonnx.rewrite(model, method=method.NAME, save=0.5, only="conv2")
    (step,) = (each.steps[0] for each in plain.plan.layers.values())
    timed = perfonnx.rewrite(model, plan=Plan({"conv2": step.timed}))
    nets.check(timed.proto)
    assert timed.report.multiplies == plain.report.multiplies
    shapes = [{t.name: t.dims for t in each.proto.graph.initializer} for each in (timed, plain)]
    assert shapes[0] == shapes[1]
    assert np.isfinite(nets.run(timed.proto, nets.feed(1, 3, 12, 10))[0]).all()


def test_what_the_activation_hides_need_not_be_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ReLU follows the layer: fits behind it lose less of what it lets through."""
    model = network(nets.values(16, 8, 3, 3))
    options: dict[str, Any] = {"method": "jaderberg", "save": 0.6, "only": "conv2", "samples": batches()}
    behind = perfonnx.rewrite(model, **options)
    monkeypatch.setattr(base, "TURNS", 0)
    linear = perfonnx.rewrite(model, **options)
    errors = [each.corrections["conv2"].after for each in (behind, linear)]
    assert errors[0] < 0.97 * errors[1]
    assert difference(model, behind.proto) < difference(model, linear.proto)


def test_a_layer_makes_up_for_what_is_before_it() -> None:
    """Fitted front to back, conv2 and conv3 are nearer to the original than if each were fitted by itself."""
    model = network(nets.values(16, 8, 3, 3))
    both = perfonnx.rewrite(model, method="jaderberg", save=0.5, only=["conv2", "conv3"], samples=batches())
    alone = {}
    for name in ("conv2", "conv3"):
        alone |= perfonnx.rewrite(model, method="jaderberg", save=0.5, only=name, samples=batches()).corrections
    method = METHODS["jaderberg"](save=0.5)
    apart = perfonnx.rewrite(model, plan=Plan({"conv2": method, "conv3": method}), corrections=alone)
    assert difference(model, both.proto) < difference(model, apart.proto)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", GENERAL, ids=named)
def test_the_network_gives_what_the_chain_gives(method: type[LowRank], groups: int) -> None:
    """In onnxruntime, with bias, groups and orders of channels: the error is the one of the weight alone."""
    model = network(nets.values(16, 8, 3, 3), group=groups)
    result = perfonnx.rewrite(model, method=method.NAME, save=0.4, only="conv2")
    nets.check(result.proto)
    (correction,) = result.corrections.values()
    weight, chosen, rank = nets.values(16, 8, 3, 3), method(), int(correction.arrays["rank"][0])
    form = chains.form(16 // groups, 8)
    product = [
        chosen.factors(chains.plain(part.astype(np.float64)), form, rank).weight for part in np.split(weight, groups)
    ]
    nets.assert_same_results(network(np.concatenate(product).astype(np.float32), group=groups), result.proto)


@pytest.mark.parametrize("data", [False, True], ids=["plain", "data"])
def test_a_plan_gives_the_same_bytes_without_data(data: bool, tmp_path: Path) -> None:
    model = network(nets.values(16, 8, 3, 3))
    result = perfonnx.rewrite(model, method="jaderberg", save=0.5, samples=batches() if data else None)
    result.save_plan(tmp_path / "plan.json")
    assert perfonnx.rewrite(model, plan=tmp_path / "plan.json").to_bytes() == result.to_bytes()
    assert json.loads((tmp_path / "plan.json").read_text())["layers"]["conv2"]["method"] == "jaderberg"
    other = network(nets.values(16, 8, 3, 3, seed=5))
    with pytest.raises(PerfonnxError, match="its factors were found for other weights; approximate again with --data"):
        perfonnx.rewrite(other, plan=tmp_path / "plan.json")


@pytest.mark.parametrize("method", ["jaderberg", "column-sparse"])
def test_a_bias_that_is_fitted_to_nothing_is_the_same_in_a_plan(method: str, tmp_path: Path) -> None:
    """A layer without a bias that sees zeros alone gets a bias of zeros."""
    model = network(nets.values(16, 8, 3, 3))
    del model.graph.node[2].input[2]
    zeros = [{"x": np.zeros((2, 3, 12, 10), np.float32)}]
    result = perfonnx.rewrite(model, method=method, only="conv2", samples=zeros)
    result.save_plan(tmp_path / "plan.json")
    assert not result.corrections["conv2"].arrays["bias"].any()
    assert perfonnx.rewrite(model, plan=tmp_path / "plan.json").to_bytes() == result.to_bytes()


@pytest.mark.parametrize("only", ["conv2|conv3", "conv3"])
def test_a_plan_knows_what_was_folded_into_a_layer_that_was_left(only: str, tmp_path: Path) -> None:
    """No rank is good enough for it, which is known after its normalization was folded into it."""
    model = network(separable())
    model.graph.node[-1].output[0] = "c"
    model.graph.node.append(node("BatchNormalization", ["c", *"1234"], ["y"]))
    for name in "1234":
        model.graph.initializer.append(onnx.numpy_helper.from_array(nets.values(4, seed=7) ** 2, name))
    plan = Plan({name: METHODS["jaderberg"](error=1e-6) for name in only.split("|")} | {"conv1": METHODS["exact"]()})
    result = perfonnx.rewrite(model, plan=plan, samples=batches())
    assert list(result.plan.layers) == [name for name in ("conv1", "conv2") if name in plan.layers]
    assert "BatchNormalization" not in nets.op_types(result.proto)
    result.save_plan(tmp_path / "plan.json")
    assert perfonnx.rewrite(model, plan=tmp_path / "plan.json").to_bytes() == result.to_bytes()
    anew = perfonnx.rewrite(model, plan=replace(result.plan, placement=None), corrections=result.corrections)
    assert "BatchNormalization" in nets.op_types(anew.proto)


def test_a_plan_knows_that_a_later_step_was_left(tmp_path: Path) -> None:
    """Behind what the first layer loses no rank is good enough, though the weights by themselves could be had."""
    model = network(nets.values(16, 8, 3, 3))
    zhang, jaderberg, svd = (METHODS[name] for name in ("zhang", "jaderberg", "svd"))
    plan = Plan({"conv1": jaderberg(rank=1), "conv2": Chain((zhang(save=0.3), svd(error=0.3)))})
    result = perfonnx.rewrite(model, plan=plan, samples=batches())
    reasons = {skip.layer: skip.reason for skip in result.report.skips}
    assert reasons["conv2.mixed"].startswith("rank 5, the largest that saves something, has an error of ")
    result.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    assert again.to_bytes() == result.to_bytes()
    assert again.plan.notes == result.plan.notes
    text = (tmp_path / "plan.json").read_text().replace('"error": 0.3', '"error": 0.6')
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PerfonnxError, match="its factors have no rank of this method; approximate again with --data"):
        perfonnx.rewrite(model, plan=tmp_path / "plan.json")


def test_an_error_is_kept_by_the_smallest_rank() -> None:
    model = network(nets.values(16, 8, 3, 3))
    ranks = []
    for error in (0.3, 0.1):
        result = perfonnx.rewrite(model, method="jaderberg", error=error, only="conv2", samples=batches())
        (correction,) = result.corrections.values()
        ranks.append(int(correction.arrays["rank"][0]))
        assert correction.after <= error
        below = perfonnx.rewrite(model, method="jaderberg", rank=ranks[-1] - 1, only="conv2", samples=batches())
        if ranks[-1] % register_width():
            assert next(iter(below.corrections.values())).after > error
    assert ranks[0] < ranks[1]
    none = perfonnx.rewrite(model, method="jaderberg", error=1e-6, only="conv2", samples=batches())
    assert not none.report.layers
    (reason,) = (skip.reason for skip in none.report.skips if skip.layer == "conv2")
    assert "the largest that saves something, has an error of" in reason
    assert nets.op_types(none.proto) == nets.op_types(model)


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("method", [*GENERAL, METHODS["svd"], METHODS["monochromatic"]], ids=named)
def test_ranks_are_rounded_to_registers_where_these_are_near(
    method: type[LowRank], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "register_width", lambda: width)
    chosen, inputs = method(), 3 if method.NAME == "monochromatic" else 96
    of = chains.form(192, inputs, ConvAttributes((1, 1)) if method.NAME == "svd" else chains.SQUARE)
    assert chosen.unfit(of) is None
    rounded = set()
    for share in np.linspace(0.05, 0.95, 19):
        rank = chosen.largest(of, share * of.multiplies([of.whole]))
        found = chosen.rounded_down(of, rank)
        assert found in chosen.ranks(of)
        if method.NAME == "column-sparse":  # columns are not what lies in registers
            assert found == rank
        elif found % width:
            assert found == rank
            assert rank // width * width < 0.75 * rank or rank // width * width not in chosen.ranks(of)
        else:
            assert 0.75 * rank <= found <= rank
            rounded.add(found < rank)
    assert method.NAME in ("column-sparse", "monochromatic") or True in rounded


@pytest.mark.parametrize(
    ("width", "settings", "words"),
    [
        (
            16,
            {"save": 0.5},
            "rank 16 of 48, 2.45x fewer multiplies, error *, rank 19 rounded to registers of 16 *",
        ),
        (16, {"save": 0.4}, "rank 23 of 48, 1.71x fewer multiplies, error *%"),
        (8, {"save": 0.5}, "rank 16 of 48, 2.45x fewer multiplies, error *, rank 19 rounded to registers of 8 values"),
        (16, {"error": 0.25}, "rank 32 of 48, 1.23x fewer multiplies, error *, rank 27 rounded to registers of 16 *"),
        (16, {"rank": 19}, "rank 19 of 48, 2.07x fewer multiplies, error *%"),
    ],
)
def test_the_report_says_that_a_rank_was_rounded(
    width: int, settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "register_width", lambda: width)
    done = perfonnx.rewrite(network(nets.values(48, 24, 3, 3)), method="zhang", only="conv2", **settings)
    (note,) = done.report.layers[0].notes
    assert fnmatch(note, words), note


def test_what_saves_nothing_is_refused_with_the_numbers() -> None:
    model = network(nets.values(16, 8, 3, 3))
    result = perfonnx.rewrite(model, method="jaderberg", rank=20, only="conv2")
    (reason,) = (skip.reason for skip in result.report.skips if skip.layer == "conv2")
    assert reason == f"rank 20 saves nothing: {20 * (24 + 48) * 120} multiplies instead of {16 * 8 * 9 * 120}"
    result = perfonnx.rewrite(model, method="jaderberg", rank=25, only="conv2")
    (reason,) = (skip.reason for skip in result.report.skips if skip.layer == "conv2")
    assert reason == "rank 25 is more than its 24"
    result = perfonnx.rewrite(model, method="jaderberg", save=0.99, only="conv2")
    (reason,) = (skip.reason for skip in result.report.skips if skip.layer == "conv2")
    assert reason == "rank 1 saves only 93.8% of its multiplies"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank -1 is not a whole number"),
        ({"rank": 1.5}, "rank 1.5 is not a whole number"),
        ({"save": 1.0}, "save 1.0 is not a number from 0 up and below 1"),
        ({"error": "much"}, "error 'much' is not a number"),
        ({"rank": 2, "error": 0.1}, "a rank and an error: give one of them"),
        ({"metric": "angle"}, "unknown metric 'angle'"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        perfonnx.rewrite(network(nets.values(16, 8, 3, 3)), method="jaderberg", **settings)
    plan = {"perfonnx_plan": 1, "layers": {"conv2": {"method": "jaderberg", **settings}}}
    with pytest.raises(PerfonnxError, match=f"layer 'conv2': {message}"):
        Plan.from_json(plan)


@pytest.mark.parametrize("metric", ["covariance", "mahalanobis"])
def test_metrics_of_data_want_data(metric: str) -> None:
    with pytest.raises(PerfonnxError, match=f"the metric {metric} is of data, and there is none; give --data"):
        perfonnx.rewrite(network(nets.values(16, 8, 3, 3)), method="jaderberg", metric=metric, only="conv2")


def test_half_precision_stays_half() -> None:
    model = network(separable(), dtype=np.float16)
    result = perfonnx.rewrite(model, method="jaderberg", rank=2, only="conv2", samples=batches(np.float16))
    nets.check(result.proto)
    feeds = nets.feed(dtype=np.float16)
    (a,), (b,) = nets.run(model, feeds), nets.run(result.proto, feeds)
    assert b.dtype == np.float16
    assert float(np.abs(a.astype(float) - b).max() / np.abs(a).max()) < 0.02


def test_hostile_factors_are_refused() -> None:
    model = network(nets.values(16, 8, 3, 3))
    result = perfonnx.rewrite(model, method="jaderberg", rank=3, only="conv2")
    (correction,) = result.corrections.values()
    plan = Plan({"conv2": METHODS["jaderberg"](rank=3)})
    for name, values, message in (
        ("rank", np.zeros(1, np.float32), "no rank of this method"),
        ("rank", np.full(1, 4, np.float32), "of another form"),
        ("factor0", np.zeros((3, 8, 1, 3), np.float32), "of another form"),
        ("bias", np.zeros(15, np.float32), "no bias of its size"),
    ):
        arrays = {**correction.arrays, name: values}
        changed = {"conv2": type(correction)(**{**vars(correction), "arrays": arrays})}
        with pytest.raises(PerfonnxError, match=f"layer 'conv2': its factors .*{message}"):
            perfonnx.rewrite(model, plan=plan, corrections=changed)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["jaderberg", "cp", "tucker", "zhang"])
def test_on_real_responses_covariance_beats_frobenius(method: str) -> None:
    """ResNet-20's layer3.1.conv2 at half its multiplies: what the network gives on images that were not fitted on."""
    model = real_models.path("cifar10_resnet20")
    archive = np.load(real_models.DATA / "images" / "cifar10_test_jpg_dev2000.npz")
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    images = np.ascontiguousarray(((archive["x"][:300] / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    name = onnx.load(model).graph.input[0].name
    fitting, fresh = [{name: images[i : i + 50]} for i in range(0, 200, 50)], {name: images[200:]}
    (expected,) = nets.run(model.read_bytes(), fresh)
    errors = []
    for samples in (fitting, None):
        result = perfonnx.rewrite(model, method=method, only=r"layer3\.1\.conv2", samples=samples)
        errors.append(float(np.square(nets.run(result.proto, fresh)[0] - expected).mean()))
    assert errors[0] < 0.8 * errors[1]
