"""What training found, in `perfonnx.rewrite`: masks, gates, and the fill of masks in front of a normalization."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

import perfonnx
from perfonnx import PerfonnxError, Plan, TrainedGate, ops
from perfonnx.methods import Chain, Method
from perfonnx.methods.perforate import Perforate
from perfonnx.methods.radius_adaptive import RadiusAdaptive
from perfonnx.methods.sparse import BEFORE_NORMALIZATION, Sparse
from perfonnx.ops.common import ConvAttributes, convolve
from perfonnx.rewriting import decide
from tests.passes import nets
from tests.passes.nets import node

GEOMETRY = ConvAttributes((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
LAYOUTS = ("rows", "nchw")


def network(tail: str = "Relu", **clip: float) -> ModelProto:
    """conv1, BatchNormalization, an activation, conv2, the same sum as in a residual block, conv3."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": nets.values(8, 3, 3, 3),
        "b1": nets.values(8, seed=2),
        "gamma": rng.uniform(0.5, 2, 8).astype(np.float32),
        "beta": nets.values(8),
        "mean": nets.values(8, seed=1),
        "variance": rng.uniform(0.5, 2, 8).astype(np.float32),
        "w2": nets.values(8, 8, 3, 3),
        "w3": nets.values(6, 8, 3, 3),
    }
    nodes = [
        nets.conv("x", "c1", "w1", "b1", name="conv1"),
        node("BatchNormalization", ["c1", "gamma", "beta", "mean", "variance"], ["n1"], epsilon=1e-3),
        node(tail, ["n1"], ["r1"], **clip),
        nets.conv("r1", "c2", "w2", name="conv2"),
        node("Add", ["c2", "r1"], ["s"]),
        node("Relu", ["s"], ["r2"]),
        nets.conv("r2", "y", "w3", name="conv3"),
    ]
    return nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)}, opset=9)


def normalized(values: np.ndarray) -> np.ndarray:
    """`values` [N, 8, ...] behind the network's normalization, in float64."""
    constant = {t.name: nets.numpy_helper.to_array(t).astype(np.float64) for t in network().graph.initializer}
    shape = (8, *[1] * (values.ndim - 2))
    gamma, beta, mean, variance = (constant[n].reshape(shape) for n in ("gamma", "beta", "mean", "variance"))
    return gamma * (values - mean) / np.sqrt(variance + 1e-3) + beta


def random_mask(seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).random((12, 10)) < 0.6


def in_three_ways(proto: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Function bodies, kernels and numpy references; the last is what the others are held against."""
    bare = ModelProto()
    bare.CopyFrom(proto)
    del bare.functions[:]
    (wanted,) = ReferenceEvaluator(bare, new_ops=ops.REFERENCE_OPS).run(None, feeds)
    found = [nets.run(proto, feeds)[0], perfonnx.session(proto).run(None, feeds)[0]]
    for values in found:
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    return [*found, wanted]


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_given_masks_take_the_place_of_drawn_ones_and_are_kept(layout: str, tmp_path: Path) -> None:
    plan = Plan({"conv1": Sparse(0.5, "propagated"), "conv2": Perforate(0.25, "grid")}, layout=layout)
    masks = {"conv1": random_mask(), "conv2": random_mask(4).astype(np.int64)}
    first = perfonnx.rewrite(network(), plan=plan, masks=masks)
    for layer in first.report.layers:
        np.testing.assert_array_equal(first.masks[layer.name], masks[layer.name])
        assert layer.rate == layer.plan.rate == 1 - masks[layer.name].mean()
        assert layer.plan.mask == "given"
    assert plan.layers["conv1"].mask == "propagated", "the caller's plan stays as it is"
    first.save_plan(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["masks"] == "plan.masks.npz"
    again = perfonnx.rewrite(network(), plan=tmp_path / "plan.json")
    assert again.to_bytes() == first.to_bytes()
    again.save_plan(tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text()) == {**data, "masks": "copy.masks.npz"}


def test_masks_of_a_saved_plan_can_be_replaced_one_by_one(tmp_path: Path) -> None:
    plan = Plan({name: Sparse() for name in ("conv1", "conv2")})
    perfonnx.rewrite(network(), plan=plan, masks={n: random_mask() for n in plan.layers}).save_plan(tmp_path / "p.json")
    masks = perfonnx.rewrite(network(), plan=tmp_path / "p.json", masks={"conv2": random_mask(9)}).masks
    np.testing.assert_array_equal(masks["conv1"], random_mask())
    np.testing.assert_array_equal(masks["conv2"], random_mask(9))


def test_a_saved_plan_with_masks_can_be_repaired(tmp_path: Path) -> None:
    plan = Plan({"conv2": Perforate()})
    perfonnx.rewrite(network(), plan=plan, masks={"conv2": random_mask()}).save_plan(tmp_path / "p.json")
    saved = Plan.load(tmp_path / "p.json")
    repaired = replace(saved, layers={name: replace(layer, repair="bias") for name, layer in saved.layers.items()})
    result = perfonnx.rewrite(network(), plan=repaired, samples=[nets.feed(4, 3, 12, 10)])
    np.testing.assert_array_equal(result.corrections["conv2"].mask, random_mask())


@pytest.mark.parametrize(
    ("masks", "match"),
    [
        (
            {"conv9": random_mask()},
            "there is a mask for 'conv9', but the plan has no perforated or sparse layer 'conv9'",
        ),
        ({"conv2": random_mask()}, "the plan has no perforated or sparse layer 'conv2'"),
        ({"conv1": random_mask()[:5]}, "layer 'conv1': its mask is 5x10; its output map is 12x10"),
        ({"conv1": np.zeros((12, 10), bool)}, "layer 'conv1': its mask has no site"),
        ({"conv1": np.full((12, 10), 0.5)}, "mask of layer 'conv1': holds values other than 0 and 1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: dict[str, np.ndarray], match: str) -> None:
    plan = Plan({"conv1": Sparse(), "conv2": RadiusAdaptive()})
    with pytest.raises(PerfonnxError, match=match):
        perfonnx.rewrite(network(), plan=plan, masks=masks)


def test_given_masks_that_are_not_there_are_missed() -> None:
    plan = perfonnx.rewrite(network(), plan=Plan({"conv1": Sparse()}), masks={"conv1": random_mask()}).plan
    with pytest.raises(PerfonnxError, match="layer 'conv1': its mask was given and is not here; take the plan that"):
        perfonnx.rewrite(network(), plan=plan)
    with pytest.raises(PerfonnxError, match="masks and gates need a plan"):
        perfonnx.rewrite(network(), masks={"conv1": random_mask()})


# --- gates -----------------------------------------------------------------------------------------------------------


def trained_gate(channels: int, outputs: int, share: float = 0.4, seed: int = 0) -> TrainedGate:
    rng = np.random.default_rng([seed, channels])
    return TrainedGate(rng.standard_normal(channels), 0.1, rng.standard_normal(outputs), share)


def trained_sum(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, gate: TrainedGate, gain: float) -> np.ndarray:
    """The layer as it was trained, written out: float64 [N, M, H, W]."""
    alpha = np.clip(np.tensordot(x, gate.weight, (1, 0)) + gate.bias, 0, 1)[:, None]
    centre = np.einsum("nchw,mc->nmhw", x.astype(np.float64), w[:, :, 1, 1])
    ring = w.copy()
    ring[:, :, 1, 1] = 0
    ring_bias = np.zeros(len(w)) if gate.ring_bias is None else gate.ring_bias
    bias = np.zeros(len(w)) if b is None else b
    around = convolve(x, ring, ring_bias, GEOMETRY)
    return (1 + gain * alpha) * centre + bias[:, None, None] + alpha * around


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_trained_gates_give_the_trained_layers(gain: float, layout: str, tmp_path: Path) -> None:
    """Also where a normalization is folded in: it scales the ring's bias, and leaves the gate alone."""
    plan = Plan({name: RadiusAdaptive(center_gain=gain) for name in ("conv1", "conv2")}, layout=layout)
    gates = {"conv1": trained_gate(3, 8), "conv2": replace(trained_gate(8, 8, 0.7), ring_bias=None)}
    model = network()
    result = perfonnx.rewrite(model, plan=plan, gates=gates)
    weights = {t.name: nets.numpy_helper.to_array(t) for t in model.graph.initializer}
    feeds = nets.feed(2, 3, 12, 10)
    first = trained_sum(feeds["x"], weights["w1"], weights["b1"], gates["conv1"], gain)
    hidden = np.maximum(normalized(first), 0)
    second = trained_sum(hidden, weights["w2"], None, gates["conv2"], gain)
    wanted = convolve(np.maximum(second + hidden, 0), weights["w3"], None, GEOMETRY)
    for found in in_three_ways(result.proto, feeds):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert [layer.rate for layer in result.report.layers] == pytest.approx([0.6, 0.3])
    assert [layer.plan.open_share for layer in result.report.layers] == [0.4, 0.7]
    result.save_plan(tmp_path / "plan.json")
    assert perfonnx.rewrite(model, plan=tmp_path / "plan.json").to_bytes() == result.to_bytes()
    with_data = perfonnx.rewrite(model, plan=tmp_path / "plan.json", samples=[feeds])
    assert with_data.to_bytes() == result.to_bytes(), "data does not make a trained gate be fitted again"


def test_a_trained_gate_that_is_open_everywhere() -> None:
    plan = Plan({"conv3": RadiusAdaptive()})
    result = perfonnx.rewrite(network(), plan=plan, gates={"conv3": TrainedGate(np.zeros(8), 1.0)})
    assert result.corrections["conv3"].gate is not None
    nets.assert_same_results(network(), result.proto)
    assert result.plan.to_json()["layers"]["conv3"]["trained_gate"]


@pytest.mark.parametrize(
    ("gates", "match"),
    [
        ({"conv9": trained_gate(8, 8)}, "there is a gate for 'conv9', but the plan has no radius-adaptive layer"),
        ({"conv2": trained_gate(8, 8)}, "the plan has no radius-adaptive layer 'conv2'"),
        ({"conv1": trained_gate(8, 8)}, r"layer 'conv1': its gate has a weight of shape \[8\] and .* takes 3 channels"),
        ({"conv1": trained_gate(3, 1)}, r"a ring bias of shape \[1\]; the layer takes 3 channels and gives 8"),
        ({"conv1": trained_gate(3, 8, 1.5)}, "layer 'conv1': open_share 1.5"),
        ({"conv1": replace(trained_gate(3, 8), bias=np.nan)}, "layer 'conv1': its gate holds values that are not fin"),
    ],
)
def test_gates_that_do_not_fit_are_refused(gates: dict[str, TrainedGate], match: str) -> None:
    plan = Plan({"conv1": RadiusAdaptive(), "conv2": Sparse()})
    with pytest.raises(PerfonnxError, match=match):
        perfonnx.rewrite(network(), plan=plan, gates=gates)


def test_trained_gates_that_are_not_there_or_of_other_weights_are_refused(tmp_path: Path) -> None:
    """Else the layer would silently be a convolution that nobody trained."""
    plan = Plan({"conv3": RadiusAdaptive()})
    result = perfonnx.rewrite(network(), plan=plan, gates={"conv3": trained_gate(8, 6)})
    with pytest.raises(PerfonnxError, match="layer 'conv3': its gate was trained and is not here; take the plan that"):
        perfonnx.rewrite(network(), plan=result.plan)
    result.save_plan(tmp_path / "plan.json")
    other = network()
    other.graph.initializer[-1].CopyFrom(nets.numpy_helper.from_array(nets.values(6, 8, 3, 3, seed=5), "w3"))
    with pytest.raises(PerfonnxError, match="layer 'conv3': its gate was found for other weights; train it again"):
        perfonnx.rewrite(other, plan=tmp_path / "plan.json")


# --- masks in front of a normalization -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("tail", "attributes"),
    [("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Clip", {"min": 0.25, "max": 0.5}), ("Sigmoid", {})],
)
def test_masks_in_front_of_a_normalization(tail: str, attributes: dict[str, float], layout: str) -> None:
    """As in training: the convolution's output is 0 where it is masked, whatever follows."""
    sparse = {n: Sparse(fill=BEFORE_NORMALIZATION) for n in ("conv1", "conv2")}
    model, masks = network(tail, **attributes), {"conv1": random_mask(), "conv2": random_mask(7)}
    result = perfonnx.rewrite(model, plan=Plan(sparse, layout=layout), masks=masks)
    assert "BatchNormalization" not in nets.op_types(result.proto)
    nets.check(result.proto)
    masked = masked_network(model, masks)
    feeds = nets.feed(2, 3, 12, 10)
    (wanted,) = nets.run(masked, feeds)
    for found in in_three_ways(result.proto, feeds):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def masked_network(model: ModelProto, masks: dict[str, np.ndarray]) -> ModelProto:
    """The network as it is trained: a Mul by the mask behind each convolution."""
    result = ModelProto()
    result.CopyFrom(model)
    for name, mask in masks.items():
        position, layer = next((i, n) for i, n in enumerate(result.graph.node) if n.name == name)
        output, layer.output[0] = layer.output[0], f"{name}.before"
        result.graph.initializer.append(nets.numpy_helper.from_array(mask.astype(np.float32), f"{name}.mask"))
        result.graph.node.insert(position + 1, node("Mul", [f"{name}.before", f"{name}.mask"], [output]))
    return result


def test_the_fill_is_what_the_activation_makes_of_the_shift() -> None:
    plan = Plan({"conv1": Sparse(fill=BEFORE_NORMALIZATION), "conv2": Sparse()})
    proto = nets.rewrite(network(), plan=plan).proto
    first, second = (nets.constant(proto, layer.input[4]) for layer in nets.ours(proto))
    np.testing.assert_allclose(first, np.maximum(normalized(np.zeros((1, 8)))[0], 0), rtol=1e-6)
    assert first.any()
    assert not second.any()


def test_without_a_normalization_the_fill_is_zero_and_works_on_rows() -> None:
    weights = {"w1": nets.values(8, 3, 3, 3), "w2": nets.values(6, 8, 3, 3)}
    nodes = [
        nets.conv("x", "c1", "w1", name="conv1"),
        node("Relu", ["c1"], ["r1"]),
        nets.conv("r1", "y", "w2", name="conv2"),
    ]
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)})
    plan = Plan({n: Sparse(0.5, fill=BEFORE_NORMALIZATION) for n in ("conv1", "conv2")})
    proto = perfonnx.rewrite(model, plan=plan).proto
    assert [layer.name for layer in nets.ours(proto) if layer.op_type == "SampledConv"] == ["conv1", "conv2"]
    zero = perfonnx.rewrite(model, plan=Plan({n: replace(p, fill="zero") for n, p in plan.layers.items()})).proto
    nets.assert_same_results(zero, proto, tolerance=0)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"method": "sparse", "fill": "one"}, "unknown fill 'one'; choose from zero, before-normalization"),
        ({"method": "sparse", "fill": 0}, "unknown fill 0"),
        ({"method": "perforate", "fill": "before-normalization"}, "only sparse layers have a fill, not perforate ones"),
        ({"method": "sparse", "trained_gate": True}, "only radius-adaptive layers have a trained_gate"),
        ({"method": "radius-adaptive", "trained_gate": 1}, "trained_gate 1 is neither true nor false"),
    ],
)
def test_plans_without_meaning(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(PerfonnxError, match=match):
        Plan.from_json({"perfonnx_plan": 1, "layers": {"conv1": fields}})


@pytest.mark.parametrize(
    "layer",
    [
        Sparse(0.5, "given", fill=BEFORE_NORMALIZATION),
        RadiusAdaptive(center_gain=1.0, open_share=0.5, trained_gate=True),
    ],
)
def test_round_trip(layer: Method) -> None:
    plan = Plan({"conv1": layer}, masks="p.masks.npz", corrections="p.corrections.npz")
    assert json.loads(json.dumps(plan.to_json())) == Plan.from_json(plan.to_json()).to_json() == plan.to_json()


# --- decide ----------------------------------------------------------------------------------------------------------


def test_decide_says_what_rewrite_does() -> None:
    plan = Plan(
        {
            "conv1": Perforate(0.5, "uniform"),
            "conv2": Sparse(0.5),
            "conv3": RadiusAdaptive(),
        },
        seed=4,
    )
    choices, skips, _ = decide(network(), plan, masks={"conv2": random_mask()})
    result = nets.rewrite(network(), plan=plan, masks={"conv2": random_mask()})
    assert {name: choice.plan for name, choice in choices.items()} == result.plan.layers
    assert [choice.folds_normalization for choice in choices.values()] == [True, False, False]
    assert not skips
    first, second, third = choices.values()
    layer = nets.ours(result.proto)[0]
    assert first.mask is not None
    assert second.mask is not None
    assert third.mask is None
    np.testing.assert_array_equal(first.mask, nets.constant(result.proto, layer.input[3]))
    np.testing.assert_array_equal(second.mask, random_mask())


def test_decide_tells_of_layers_that_cannot_be_what_the_plan_says(tmp_path: Path) -> None:
    plan = Plan(
        {
            "conv1": Chain(),
            "conv2": Perforate(0.5, "pooling-structure"),
            "conv3": Perforate(0.5, "grid"),
        }
    )
    plan.save(tmp_path / "plan.json")
    choices, skips, _ = decide(network(), tmp_path / "plan.json")
    assert list(choices) == ["conv3"]
    assert [(s.layer, s.reason) for s in skips] == [
        ("conv2", "no pooling layer follows; the pooling-structure mask needs one")
    ]
    with pytest.raises(PerfonnxError, match="the plan names layer 'ghost'"):
        decide(network(), Plan({"ghost": Sparse()}))
