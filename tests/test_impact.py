"""Impacts of positions: what they are, on original and rewritten networks, and rewriting by them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import perfonnx
from perfonnx.cli import main
from perfonnx.errors import PerfonnxError
from perfonnx.gradients import output_distance
from perfonnx.impact import impact_maps, ranked_impact, rewrite_by_impact, save_impact_maps
from perfonnx.masks import load_impact_maps
from tests import real_models
from tests.gradients.differences import net


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(np.float32)


def network(batch: int | str = "N", *, normalized: bool = False) -> onnx.ModelProto:
    """Two convolutions, a pool and a classifier of four classes."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["n" if normalized else "c"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"]),
    ]
    if normalized:
        nodes.insert(3, helper.make_node("BatchNormalization", ["c", "g", "h", "m", "v"], ["n"]))
    weights = {"w1": values(4, 3, 3, 3) / 3, "b1": values(4), "w2": values(4, 4, 3, 3) / 3, "w3": values(4, 4)}
    weights |= {"g": values(4) + 2, "h": values(4), "m": values(4) / 2, "v": np.abs(values(4)) + 1}
    return net(nodes, {"x": (batch, 3, 6, 7)}, weights)


X = values(6, 3, 6, 7)
LABELS = np.array([0, 1, 2, 3, 0, 1])


@dataclass
class Batch:
    feeds: dict[str, np.ndarray]
    labels: np.ndarray | None


@pytest.mark.parametrize("form", ["Transpose", "value_floats", "sparse"])
def test_weights_in_other_forms_make_no_difference(form: str) -> None:
    model, w = network(), values(4, 3, 3, 3) / 3
    kept = [t for t in model.graph.initializer if t.name != "w1"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    if form == "sparse":
        entries = numpy_helper.from_array(w.ravel(), "w1")
        places = numpy_helper.from_array(np.arange(w.size))
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(entries, places, w.shape))
    elif form == "Transpose":
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(w.T), "w"))
        model.graph.node.insert(0, helper.make_node("Transpose", ["w"], ["w1"]))
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.array(w.shape), "shape"))
        model.graph.node.insert(0, helper.make_node("Reshape", ["w", "shape"], ["w1"]))
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value_floats=w.ravel()))
    expected = impact_maps(network(), [{"x": X}], labels=LABELS)
    for name, impact in impact_maps(model, [{"x": X}], labels=LABELS).items():
        np.testing.assert_allclose(impact, expected.pop(name), rtol=1e-4)
    assert not expected


def test_impact_is_the_product_of_value_and_gradient() -> None:
    """Computed by hand from differences of the last layers' loss, image by image."""
    model = network()
    maps = impact_maps(model, [{"x": X}], labels=LABELS, layers=["two"])
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(helper.make_tensor_value_info("c", 1, None))
    v = perfonnx.session(probe).run(["c"], {"x": X})[0].astype(np.float64)
    w = values(4, 4).astype(np.float64)

    def losses(changed: np.ndarray) -> np.ndarray:
        scores = np.maximum(changed, 0).mean(axis=(2, 3)) @ w
        return np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(6), LABELS]

    expected = np.zeros((6, 7))
    for index in np.ndindex(*v.shape[1:]):
        step = np.zeros_like(v)
        step[(slice(None), *index)] = 1e-6
        slope = (losses(v + step) - losses(v - step)) / 2e-6
        expected[index[1:]] += np.abs(slope * v[(slice(None), *index)]).mean()
    np.testing.assert_allclose(maps["two"], expected, rtol=1e-3)


@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_batches_do_not_matter(batch: int | str) -> None:
    expected = impact_maps(network(), [{"x": X}], labels=LABELS)
    assert expected.keys() == {"one", "two"}
    parts: list[list[Any]] = [
        [{"x": X[:4]}, {"x": X[4:]}],
        [Batch({"x": X[:2]}, LABELS[:2]), Batch({"x": X[2:]}, LABELS[2:])],
    ]
    for samples, labels in zip(parts, (LABELS, None), strict=True):
        done: list[int] = []
        maps = impact_maps(network(batch), iter(samples), labels=labels, progress=done.append)
        assert done[-1] == 6
        for name, values_ in expected.items():
            np.testing.assert_allclose(maps[name], values_, rtol=1e-4, atol=1e-7)


def test_a_normalization_that_would_be_folded_belongs_to_the_value() -> None:
    """Unlike a factor, a shift between convolution and activation changes impacts."""
    model = network(normalized=True)
    folded = perfonnx.rewrite(model, rate=0.0, mask="uniform", only=".").proto
    expected = impact_maps(folded, [{"x": X}], labels=LABELS)
    for name, impact in impact_maps(model, [{"x": X}], labels=LABELS).items():
        np.testing.assert_allclose(impact, expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layout", ["rows", "nchw"])
@pytest.mark.parametrize("method", ["perforate", "sparse"])
def test_skipped_positions_have_no_impact_and_do_not_return(method: str, layout: str) -> None:
    samples = [{"x": X}]
    maps = impact_maps(network(), samples, labels=LABELS)
    choices = {"method": method, "layout": layout, "only": ".", "mask": "impact"}
    first = perfonnx.rewrite(network(), rate=0.4, impact_maps=maps, **choices)
    again = impact_maps(first.proto, samples, labels=LABELS)
    for name, impact in again.items():
        assert np.count_nonzero(impact) <= round(0.6 * 42 + 0.5)
        kept = np.sort(maps[name].ravel())[-25:].min()
        assert (maps[name][impact > 0] >= kept).all()
    second = perfonnx.rewrite(network(), rate=0.7, impact_maps=again, **choices)
    for name, impact in impact_maps(second.proto, samples, labels=LABELS).items():
        assert not impact[again[name] == 0].any()


def test_rewriting_by_impact_step_by_step() -> None:
    samples = [{"x": X}]
    maps = impact_maps(network(), samples, labels=LABELS)
    whole = rewrite_by_impact(network(), samples, [0.3, 0.6], labels=LABELS, from_original=True, only=".")
    once = perfonnx.rewrite(network(), rate=0.6, mask="impact", impact_maps=maps, only=".")
    assert whole.to_bytes() == once.to_bytes()
    step = perfonnx.rewrite(network(), rate=0.3, mask="impact", impact_maps=maps, only=".")
    again = impact_maps(step.proto, samples, labels=LABELS)
    expected = perfonnx.rewrite(network(), rate=0.6, mask="impact", impact_maps=again, only=".")
    actual = rewrite_by_impact(network(), samples, [0.3, 0.6], labels=LABELS, only=".")
    assert actual.to_bytes() == expected.to_bytes() != once.to_bytes()


def test_other_losses() -> None:
    target = np.zeros((6, 4))
    maps = impact_maps(network(), [{"x": X}], labels=target, loss=output_distance)
    assert all(impact.any() for impact in maps.values())


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(PerfonnxError, match="no convolution 'three'"):
        impact_maps(network(), [{"x": X}], layers=["three"])
    with pytest.raises(PerfonnxError, match="there is no image"):
        impact_maps(network(), [])
    with pytest.raises(PerfonnxError, match="not finite"):
        impact_maps(network(), [{"x": X * np.nan}], labels=LABELS)
    for rates in ([], [0.5, 0.2]):
        with pytest.raises(PerfonnxError, match="give one or more, each larger"):
            rewrite_by_impact(network(), [{"x": X}], rates)
    with pytest.raises(PerfonnxError, match="only once"):
        rewrite_by_impact(network(), iter([{"x": X}]), [0.5])


def test_the_mask_needs_its_maps(tmp_path: Path) -> None:
    with pytest.raises(PerfonnxError, match=r"needs maps of impacts.*--impact-maps.*impact_maps"):
        perfonnx.rewrite(network(), mask="impact")
    plan = perfonnx.Plan({"one": perfonnx.Perforate(0.5, "impact")})
    with pytest.raises(PerfonnxError, match="needs maps of impacts"):
        perfonnx.rewrite(network(), plan=plan)
    maps = impact_maps(network(), [{"x": X}], layers=["one"])
    assert perfonnx.rewrite(network(), plan=plan, impact_maps=maps).report.layers[0].rate == 0.5
    report = perfonnx.rewrite(network(), mask="impact", only=".", impact_maps=maps).report
    assert [layer.name for layer in report.layers] == ["one"]
    assert [(s.layer, s.reason) for s in report.skips] == [("two", "there is no map of impacts for it")]
    with pytest.raises(PerfonnxError, match="layer 'one': mask impact: the map of impacts is 3x3"):
        perfonnx.rewrite(network(), mask="impact", only="one", impact_maps={"one": np.zeros((3, 3))})
    save_impact_maps(tmp_path / "maps.npz", maps)
    by_path = perfonnx.rewrite(network(), mask="impact", only="one", impact_maps=tmp_path / "maps.npz")
    assert by_path.to_bytes() == perfonnx.rewrite(network(), mask="impact", only="one", impact_maps=maps).to_bytes()


@pytest.mark.parametrize("method", ["perforate", "sparse"])
def test_a_saved_plan_has_the_maps_with_it(method: str, tmp_path: Path) -> None:
    maps = impact_maps(network(), [{"x": X}], labels=LABELS)
    asked: dict[str, Any] = {"method": method, "mask": "impact", "only": "one", "impact_maps": maps}
    result = perfonnx.rewrite(network(), rate=0.5, **asked)
    result.save_plan(tmp_path / "plan.json")
    assert perfonnx.rewrite(network(), plan=tmp_path / "plan.json").to_bytes() == result.to_bytes()
    assert list(load_impact_maps(tmp_path / "plan.impact.npz")) == ["one"]
    edited = json.loads((tmp_path / "plan.json").read_text())
    edited["layers"]["one"]["rate"] = 0.25
    (tmp_path / "plan.json").write_text(json.dumps(edited))
    again = perfonnx.rewrite(network(), plan=tmp_path / "plan.json").to_bytes()
    assert again == perfonnx.rewrite(network(), rate=0.25, **asked).to_bytes()


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "m.onnx")
    np.savez("data.npz", x=X, labels=LABELS)
    assert main(["impact", "m.onnx", "maps.npz", "--data", "data.npz"]) == 0
    assert "impacts of 2 layers, from 6 samples and given labels" in capsys.readouterr().out
    expected = impact_maps(network(), [{"x": X}], labels=LABELS)
    for name, impact in load_impact_maps("maps.npz").items():
        np.testing.assert_allclose(impact, expected[name], rtol=1e-4, atol=1e-7)
    flags = ["--rate", "0.5", "--mask", "impact", "--impact-maps", "maps.npz", "--only", "."]
    assert main(["rewrite", "m.onnx", "out.onnx", *flags]) == 0
    assert main(["impact", "out.onnx", "more.npz", "--data", "data.npz", "-n", "3", "-q"]) == 0
    assert all(np.count_nonzero(impact) <= 21 for impact in load_impact_maps("more.npz").values())
    capsys.readouterr()
    for arguments, match in (
        (["impact", "m.onnx", "maps.txt", "--data", "data.npz"], "maps.txt"),
        (["impact", "m.onnx", "gone/maps.npz", "--data", "data.npz"], "gone"),
        (["impact", "m.onnx", "m.npz", "--data", "gone"], "gone"),
        (["rewrite", "m.onnx", "o.onnx", "--mask", "impact"], "--impact-maps"),
        (["rewrite", "m.onnx", "o.onnx", "--mask", "impact", "--impact-maps", "gone.npz"], "gone.npz"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert match in err
        assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "m.onnx", "maps.npz", "more.npz", "out.onnx"]


def test_a_real_network_keeps_more_with_impact_than_with_chance() -> None:
    """ResNet-20 on CIFAR-10: the loss on other images than the impacts were measured on."""
    path, file = real_models.path("cifar10_resnet20"), real_models.DATA / "images" / "cifar10_test_jpg_dev2000.npz"
    if not file.is_file():
        pytest.skip("CIFAR-10 is not here: set PERFONNX_TEST_DATA")
    data = np.load(file)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    images = ((data["x"][:96] / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    labels = data["y"][:96].astype(np.int64)
    maps = impact_maps(path, [{"input": images[:32]}], labels=labels[:32])
    losses = {}
    for mask in ("impact", "uniform"):
        proto = perfonnx.rewrite(path, rate=0.5, mask=mask, impact_maps=maps, only="layer1").proto
        scores = perfonnx.session(proto).run(None, {"input": images[32:]})[0].astype(np.float64)
        top = scores.max(axis=1, keepdims=True)
        log_p = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
        losses[mask] = -log_p[np.arange(64), labels[32:]].mean()
    assert losses["impact"] < losses["uniform"]


def test_one_map_of_ranks_gives_the_masks_of_all_steps() -> None:
    samples = [Batch({"x": X}, LABELS)]
    ranks = ranked_impact(network(), samples, ["two"], rate=0.4)
    for last in range(1, 5):
        steps = [round(0.1 * step, 6) for step in range(1, last + 1)]
        expected = rewrite_by_impact(network(), samples, steps, only="two").masks["two"]
        once = perfonnx.rewrite(network(), rate=steps[-1], mask="impact", impact_maps={"two": ranks}, only="two")
        np.testing.assert_array_equal(once.masks["two"], expected)


def test_layers_that_share_a_mask_are_ranked_by_the_sum_of_their_impacts() -> None:
    samples = [Batch({"x": X}, LABELS)]
    ranks = ranked_impact(network(), samples, ["one", "two"], rate=0.1)
    maps = impact_maps(network(), samples)
    np.testing.assert_array_equal(ranks.argsort(axis=None), (maps["one"] + maps["two"]).argsort(axis=None))
