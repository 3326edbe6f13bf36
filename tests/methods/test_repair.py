"""Repair: what the fitted layers do in the model that comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

import perfonnx
from perfonnx import PerfonnxError, Plan, corrections, ops
from perfonnx.data.inputs import model_inputs
from perfonnx.data.samples import Samples
from perfonnx.methods.perforate import REPAIRS, Perforate
from perfonnx.methods.sparse import Sparse
from perfonnx.passes import targets
from perfonnx.replay import Replay
from tests.passes import nets
from tests.passes.nets import node

KINDS = REPAIRS[1:]
LAYOUTS = ("nchw", "rows")


def chain(*, relu: bool = True, dtype: Any = np.float32, **first: Any) -> ModelProto:
    """conv1, conv2 with a shortcut around it, conv3; every result is an output of the model."""
    weights = {
        "w1": nets.values(8, 3, 3, 3, dtype=dtype),
        "w2": nets.values(8, 8, 3, 3, dtype=dtype),
        "b2": nets.values(8, dtype=dtype),
        "w3": nets.values(6, 8, 3, 3, dtype=dtype),
    }
    act = "Relu" if relu else "Identity"
    nodes = [
        nets.conv("x", "c1", "w1", name="conv1", **first),
        node(act, ["c1"], ["r1"]),
        nets.conv("r1", "c2", "w2", "b2", name="conv2"),
        node("Add", ["c2", "r1"], ["s"]),
        node(act, ["s"], ["r2"]),
        nets.conv("r2", "y", "w3", name="conv3"),
    ]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    size = (6, 5) if first.get("strides") == [2, 2] else (12, 10)
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 6, *size)}, dtype=kind)


def batches(count: int = 3, size: int = 8, dtype: Any = np.float32) -> list[dict[str, np.ndarray]]:
    """Smooth maps: neighbours are alike, as in pictures."""
    rng = np.random.default_rng(5)
    rough = rng.standard_normal((count, size, 3, 15, 13))
    smooth = sum(rough[..., i : i + 12, j : j + 10] for i in range(4) for j in range(4)) / 4 + 0.3
    return [{"x": part.astype(dtype)} for part in smooth]


def outputs(model: ModelProto, feeds: list[dict[str, np.ndarray]], name: str = "y") -> np.ndarray:
    shown = ModelProto()
    shown.CopyFrom(model)
    if name != "y":
        shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = perfonnx.session(shown)
    return np.concatenate([session.run([name], feed)[0] for feed in feeds]).astype(np.float64)


def rewrite(model: ModelProto, kind: str, **options: Any) -> perfonnx.Rewritten:
    options = {"rate": 0.5, "mask": "lattice", "samples": batches(), **options}
    return perfonnx.rewrite(model, only=[""], repair=kind, **options)


def share_of_error(model: ModelProto, result: ModelProto, feeds: list[dict[str, np.ndarray]]) -> float:
    wanted, found = outputs(model, feeds), outputs(result, feeds)
    return float(((wanted - found) ** 2).sum() / ((wanted - wanted.mean(axis=(0, 2, 3), keepdims=True)) ** 2).sum())


# --- what it is for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("interpolation", ["nearest", "barycentric"])
def test_bias_removes_the_mean_error_of_every_layer(layout: str, interpolation: str) -> None:
    """The last layer's mean error is zero only if its input came from the network repaired before it."""
    model = chain(relu=False)
    result = rewrite(model, "bias", layout=layout, interpolation=interpolation)
    plain = rewrite(model, "none", samples=None, layout=layout, interpolation=interpolation)
    for name in ("y", *(["s"] if layout == "nchw" else [])):
        wanted = outputs(model, batches(), name).mean(axis=(0, 2, 3))
        np.testing.assert_allclose(outputs(result.proto, batches(), name).mean(axis=(0, 2, 3)), wanted, atol=1e-5)
        assert np.abs(outputs(plain.proto, batches(), name).mean(axis=(0, 2, 3)) - wanted).max() > 1e-3


def test_each_kind_leaves_less_error() -> None:
    model, unseen = chain(relu=False), batches(2, 16)
    errors = {}
    for kind in REPAIRS:
        samples = None if kind == "none" else batches()
        errors[kind] = share_of_error(model, rewrite(model, kind, samples=samples).proto, unseen)
    assert errors["none"] > errors["bias"] > errors["predictor"] > errors["full"]
    assert errors["bias"] > errors["interpolation"]
    assert errors["bias"] > 1.5 * errors["weights"]


def test_the_errors_told_are_those_of_the_model() -> None:
    model = chain(relu=False)
    result = rewrite(model, "predictor", layout="nchw")
    after = share_of_error(model, result.proto, batches())
    assert result.corrections["conv3"].after == pytest.approx(after, rel=1e-3)
    notes = [note for layer in result.report.layers for note in layer.notes]
    assert sum(note.startswith("repaired by bias, predictor: error ") for note in notes) == 3


def test_refitted_weights_cost_nothing() -> None:
    result = rewrite(chain(), "weights")
    plain = rewrite(chain(), "none", samples=None)
    assert [layer.multiplies for layer in result.report.layers] == [layer.multiplies for layer in plain.report.layers]
    assert nets.op_types(result.proto) == nets.op_types(plain.proto)
    assert result.corrections["conv3"].after < 0.5 * result.corrections["conv3"].before
    assert not result.corrections["conv1"].arrays  # it reads no copies, and is right at its sites


def test_little_memory_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    wanted = rewrite(model, "full").corrections
    monkeypatch.setattr(targets, "Replay", lambda *arguments: Replay(*arguments[:-1], 0))
    found = rewrite(model, "full").corrections
    for name, correction in wanted.items():
        np.testing.assert_allclose(found[name].bias, correction.bias, atol=1e-5)
        np.testing.assert_allclose(found[name].predictor, correction.predictor, atol=1e-4)


# --- the graph that comes out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_three_ways_agree(kind: str, layout: str, strides: list[int]) -> None:
    result = rewrite(chain(strides=strides), kind, layout=layout)
    nets.check(result.proto)
    feed = batches(1)[0]
    (by_kernel,) = perfonnx.session(result.proto).run(None, feed)
    (by_function,) = nets.run(result.proto, feed)
    bare = ModelProto()
    bare.CopyFrom(result.proto)
    del bare.functions[:]
    (by_reference,) = ReferenceEvaluator(bare, new_ops=ops.REFERENCE_OPS).run(None, feed)
    for other in (by_function, by_reference):
        np.testing.assert_allclose(by_kernel, other, rtol=0, atol=1e-4 * np.abs(by_reference).max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
def test_a_predictor_is_exact_at_the_sites(strides: list[int], group: int, layout: str, tmp_path: Path) -> None:
    """Whatever its weights."""
    weights = {"w": nets.values(8, 4 // group, 3, 3), "b": nets.values(8)}
    conv = nets.conv("x", "y", "w", "b", group=group, strides=strides)
    model = nets.model([conv], weights, inputs={"x": ("N", 4, 12, 10)}, outputs={"y": ("N", 8, None, None)})
    x = np.random.default_rng(0).standard_normal((2, 4, 12, 10)).astype(np.float32)
    result = rewrite(model, "predictor", samples=[{"x": x}])
    found = result.corrections["conv"]
    assert found.predictor is not None
    changed = replace(found, bias=np.zeros(8, np.float32), predictor=nets.values(8, 4 // group, seed=3))
    corrections.save({"conv": changed}, tmp_path / "c.npz")
    plan = Plan(result.plan.layers, result.plan.seed, corrections=str(tmp_path / "c.npz"))
    (wanted,), proto = nets.run(model, {"x": x}), perfonnx.rewrite(model, plan=plan, layout=layout).proto
    (y,) = perfonnx.session(proto).run(None, {"x": x})
    np.testing.assert_allclose(y[:, :, found.mask], wanted[:, :, found.mask], atol=1e-5)
    assert np.abs(y - wanted)[:, :, ~found.mask].max() > 0.1


def test_on_rows_the_predictor_takes_the_layer_in() -> None:
    """Between other layers, one convolution everywhere adds the sampled one: no map, no gather, no separate sum."""
    proto = rewrite(chain(), "predictor", layout="rows").proto
    kinds = nets.op_types(proto)
    assert kinds.count("SampledConv") == 6
    assert "Gather" not in kinds
    assert "Conv" not in kinds
    canonical = nets.op_types(rewrite(chain(), "predictor", layout="nchw").proto)
    assert (canonical.count("PerforatedConv"), canonical.count("Conv"), canonical.count("Add")) == (3, 3, 4)


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        ({"pads": [0, 0, 0, 0]}, "no tap of its kernel reads the position itself"),
        ({"pads": [1, 1, 0, 1]}, "no tap of its kernel reads the position itself"),
        ({"pads": [1, 1, 1, 1], "dilations": [2, 2]}, "no tap of its kernel reads the position itself"),
        ({"kernel_shape": [1, 1], "pads": [0] * 4}, "it would cost what skipping saves"),
    ],
)
def test_layers_that_cannot_have_a_predictor_get_a_bias(conv: dict[str, Any], reason: str) -> None:
    kernel = conv.get("kernel_shape", [3, 3])
    model = nets.model([nets.conv("x", "y", **conv)], {"w": nets.values(8, 3, *kernel)})
    result = rewrite(model, "predictor", samples=[nets.feed()])
    (layer,) = result.report.layers
    assert any(f"repaired by bias (no predictor: {reason})" in note for note in layer.notes)
    assert result.corrections["conv"].predictor is None


@pytest.mark.parametrize("kind", KINDS)
def test_float16(kind: str) -> None:
    model = chain(relu=False, dtype=np.float16)
    result = rewrite(model, kind, samples=batches(dtype=np.float16))
    nets.check(result.proto)
    feeds = batches(1, dtype=np.float16)
    assert share_of_error(model, result.proto, feeds) < share_of_error(
        model, rewrite(model, "none", samples=None).proto, feeds
    )


def test_multiplies_count_the_predictor() -> None:
    layers = {kind: rewrite(chain(), kind).report.layers[1].multiplies for kind in ("bias", "predictor")}
    assert layers["predictor"][1] - layers["bias"][1] == 12 * 10 * 8 * 8


def test_a_second_rewrite_leaves_repaired_layers() -> None:
    result = rewrite(chain(), "predictor", layout="nchw")
    again = perfonnx.rewrite(result.proto)
    assert again.to_bytes() == result.to_bytes()


# --- plans and usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_plan_makes_the_model_again_without_data(kind: str, tmp_path: Path) -> None:
    model = chain()
    result = rewrite(model, kind)
    result.save_plan(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["corrections"] == "plan.corrections.npz"
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    assert again.to_bytes() == result.to_bytes()
    again.save_plan(tmp_path / "copy.json")
    third = perfonnx.rewrite(model, plan=tmp_path / "copy.json")
    assert third.to_bytes() == result.to_bytes()


def test_a_plan_can_be_fitted_anew(tmp_path: Path) -> None:
    model = chain()
    result = rewrite(model, "predictor")
    result.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json", samples=batches(2, 4))
    assert again.corrections["conv3"].after != result.corrections["conv3"].after


def test_what_is_found_is_told_and_the_plan_stays() -> None:
    model = chain()
    layers = {
        "conv2": Perforate(0.5, "lattice", repair="bias"),
        "conv3": Sparse(0.5, "uniform"),
    }
    plan = Plan(dict(layers))
    samples = Samples.load([feed["x"][0] for feed in batches()], model_inputs(model))
    found = perfonnx.rewrite(model, plan=plan, samples=samples).corrections
    assert list(found) == ["conv2"]
    assert found["conv2"].bias.shape == (8,)
    assert plan == Plan(layers)


def edited(path: Path, **fields: Any) -> None:
    plan = json.loads(path.read_text())
    for layer in plan["layers"].values():
        layer.update(fields)
    path.write_text(json.dumps(plan))


def test_corrections_for_something_else_are_refused(tmp_path: Path) -> None:
    model, path = chain(), tmp_path / "plan.json"
    rewrite(model, "predictor").save_plan(path)
    edited(path, rate=0.25)
    with pytest.raises(PerfonnxError, match=r"layer 'conv1': .*another mask or interpolation; repair again"):
        perfonnx.rewrite(model, plan=path)
    edited(path, rate=0.5, repair="weights")
    with pytest.raises(PerfonnxError, match=r"layer 'conv1': it was repaired, not refitted; fit again"):
        perfonnx.rewrite(model, plan=path)
    edited(path, repair="predictor")
    retrained = chain()
    retrained.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(nets.values(8, 8, 3, 3, seed=9), retrained.graph.initializer[1].name)
    )
    with pytest.raises(PerfonnxError, match=r"layer 'conv2': .*other weights; repair again"):
        perfonnx.rewrite(retrained, plan=path)
    (tmp_path / "plan.corrections.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(PerfonnxError, match=r"corrections.npz: is damaged, or was not written with this plan"):
        perfonnx.rewrite(model, plan=path)
    (tmp_path / "plan.corrections.npz").unlink()
    with pytest.raises(PerfonnxError, match=r"plan.corrections.npz: cannot be read"):
        perfonnx.rewrite(model, plan=path)


def test_refitted_weights_for_something_else_are_refused(tmp_path: Path) -> None:
    model, path = chain(), tmp_path / "plan.json"
    rewrite(model, "weights").save_plan(path)
    edited(path, rate=0.25)
    with pytest.raises(PerfonnxError, match=r"layer 'conv2': its weights were fitted for other sites; fit again"):
        perfonnx.rewrite(model, plan=path)
    edited(path, rate=0.5, repair="bias")
    with pytest.raises(PerfonnxError, match=r"layer 'conv1': .*another mask or interpolation; repair again"):
        perfonnx.rewrite(model, plan=path)


def test_bad_usage() -> None:
    with pytest.raises(PerfonnxError, match="no calibration data; give --data"):
        rewrite(chain(), "bias", samples=None)
    with pytest.raises(PerfonnxError, match="unknown repair 'glue'; choose from none, bias"):
        rewrite(chain(), "glue")
    with pytest.raises(PerfonnxError, match="only perforated layers can be repaired"):
        rewrite(chain(), "bias", method="sparse")
    nan = [{"x": np.full((2, 3, 12, 10), np.nan, np.float32)}]
    with pytest.raises(PerfonnxError, match="layer 'conv1': the calibration data gives values that are not finite"):
        rewrite(chain(), "bias", samples=nan)
    with pytest.raises(PerfonnxError, match="onnxruntime cannot run it on the calibration data"):
        rewrite(chain(), "bias", samples=[{"x": np.zeros((2, 4, 12, 10), np.float32)}])
    with pytest.raises(PerfonnxError, match="no data"):
        rewrite(chain(), "bias", samples=[])
    with pytest.raises(PerfonnxError, match="nothing for input 'x'"):
        rewrite(chain(), "bias", samples=[{"z": np.zeros((2, 3, 12, 10), np.float32)}])


def test_layers_with_a_predictor_do_not_skip_the_same_positions() -> None:
    masks = {kind: {c.mask.tobytes() for c in rewrite(chain(), kind).corrections.values()} for kind in KINDS}
    assert len(masks["bias"]) == len(masks["interpolation"]) == 1
    assert len(masks["predictor"]) == len(masks["full"]) == 2  # a checkerboard has two phases


def test_a_table_out_of_range_is_left_on_maps() -> None:
    model = rewrite(chain(), "bias", layout="nchw").proto
    source = next(t for t in model.graph.initializer if t.name.startswith("perfonnx.source"))
    values = onnx.numpy_helper.to_array(source).copy()
    values[5] = 10**6
    source.CopyFrom(onnx.numpy_helper.from_array(values, source.name))
    again = perfonnx.rewrite(model)
    assert "SampledConv" not in nets.op_types(again.proto)
