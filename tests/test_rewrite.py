"""`perfonnx.rewrite` as a whole: opsets, determinism, idempotence, the report, combinations of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

import perfonnx
from perfonnx import Options, PerfonnxError, ops
from tests.passes import nets
from tests.passes.nets import node

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = ("nchw", "rows")
OPSETS = range(7, min(onnx.defs.onnx_opset_version(), 26) + 1)
VARIANTS: dict[str, dict[str, Any]] = {
    "nearest": {"mask": "uniform"},
    "zero": {"mask": "grid", "interpolation": "zero"},
    "barycentric": {"mask": "uniform", "interpolation": "barycentric"},
    "sparse": {"method": "sparse"},
    "adaptive": {"method": "radius-adaptive"},
    "adaptive with gain": {"method": "radius-adaptive", "center_gain": 1.0},
}


def network(opset: int = 17, ir: int = 8, **options: Any) -> ModelProto:
    """Conv, BatchNormalization, Relu, MaxPool, Conv, Clip, Dropout, GlobalAveragePool, Flatten, Gemm."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "w1": nets.values(8, 3, 3, 3),
        "gamma": rng.uniform(0.5, 2, 8).astype(np.float32),
        "beta": nets.values(8),
        "mean": nets.values(8, seed=1),
        "variance": rng.uniform(0.5, 2, 8).astype(np.float32),
        "w2": nets.values(6, 8, 3, 3),
        "b2": nets.values(6),
        "w3": nets.values(5, 6),
        "b3": nets.values(5),
    }
    bounds: list[str] = []
    clip: dict[str, float] = {"min": 0.0, "max": 6.0}
    if opset >= 11:
        weights |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
        bounds, clip = ["low", "high"], {}
    nodes = [
        nets.conv("x", "c1", "w1", name="conv1", strides=[2, 1], pads=[1, 0, 1, 2]),
        node("BatchNormalization", ["c1", "gamma", "beta", "mean", "variance"], ["n1"]),
        node("Relu", ["n1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[1, 1]),
        nets.conv("p1", "c2", "w2", "b2", name="conv2"),
        node("Clip", ["c2", *bounds], ["r2"], **clip),
        node("Dropout", ["r2"], ["d"]),
        node("GlobalAveragePool", ["d"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    options.setdefault("inputs", {"x": ("N", 3, 12, 10)})
    return nets.model(nodes, weights, outputs={"y": ("N", 5)}, opset=opset, ir=ir, **options)


def expected(proto: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the numpy references of the operators say, in onnx's own evaluator."""
    bare = ModelProto()
    bare.CopyFrom(proto)
    del bare.functions[:]
    return list(ReferenceEvaluator(bare, new_ops=ops.REFERENCE_OPS).run(None, feeds))


# --- opsets and IR versions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset: int, layout: str) -> None:
    model = network(opset)
    feeds = nets.feed(2, 3, 12, 10)
    for name, options in VARIANTS.items():
        result = perfonnx.rewrite(model, rate=0.5, layout=layout, **options)
        assert len(result.report.layers) == 2, name
        nets.check(result.proto)
        assert [(o.domain, o.version) for o in result.proto.opset_import] == [("", opset), ("ai.perfonnx", 1)]
        assert {"BatchNormalization", "Relu", "Clip", "Conv"}.isdisjoint(nets.op_types(result.proto))
        (y,), (wanted,) = nets.run(result.proto, feeds), expected(result.proto, feeds)
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
        exact = perfonnx.rewrite(model, layout=layout, **{**options, "rate": 0.0})
        nets.assert_same_results(model, exact.proto, feeds)


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4), (15, 8), (17, 10), (21, 10), (22, 11), (23, 13)])
def test_ir_versions(opset: int, ir: int) -> None:
    model = network(opset, ir)
    for options in VARIANTS.values():
        proto = perfonnx.rewrite(model, **{**options, "rate": 0.0}).proto
        assert proto.ir_version == max(8, ir)
        assert [i.name for i in proto.graph.input] == ["x"]
        nets.check(proto)
        nets.assert_same_results(model, proto, nets.feed(1, 3, 12, 10))


@pytest.mark.parametrize("opset", [7, 9, 11, 14, 15, 17])
def test_float16_at_every_turn_of_the_function_bodies(opset: int) -> None:
    model = nets.followed_by([node("LeakyRelu", ["c"], ["y"])], dtype=np.float16, opset=opset)
    for options in VARIANTS.values():
        proto = perfonnx.rewrite(model, **{**options, "rate": 0.0}).proto
        nets.check(proto)
        nets.assert_same_results(model, proto, nets.feed(dtype=np.float16), tolerance=4e-3)


def test_without_function_bodies() -> None:
    model = network()
    for layout in LAYOUTS:
        proto = perfonnx.rewrite(model, rate=0.5, fallback=False, layout=layout).proto
        assert not proto.functions
        nets.check(proto)
        with pytest.raises(Exception, match=r"ai\.perfonnx"):
            nets.run(proto, nets.feed(1, 3, 12, 10))


# --- the same again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_second_run_changes_nothing(name: str, layout: str) -> None:
    once = perfonnx.rewrite(network(), rate=0.5, layout=layout, **VARIANTS[name])
    others: tuple[dict[str, Any], ...] = (
        {},
        {"only": ["conv"]},
        {"rate": 0.75},
        {"seed": 5},
        {"fallback": False},
        {"layout": "nchw"},
    )
    for options in (VARIANTS[name], *others):
        again = perfonnx.rewrite(once.proto, **options)
        assert again.to_bytes() == once.to_bytes()
        assert not again.report.layers
        assert {s.layer: s.reason for s in again.report.skips} == dict.fromkeys(["conv1", "conv2"], "already rewritten")
    assert perfonnx.rewrite(once.proto, plan=once.plan).to_bytes() == once.to_bytes()


def test_same_seed_same_bytes() -> None:
    for mask in ("uniform", "grid", "pooling-structure", "propagated"):
        first = perfonnx.rewrite(network(), rate=0.4, mask=mask).to_bytes()
        assert perfonnx.rewrite(network(), rate=0.4, mask=mask).to_bytes() == first
        assert perfonnx.rewrite(network(), rate=0.4, mask=mask, seed=1).to_bytes() != first
        protos = [nets.rewrite(network(), rate=0.4, mask=mask, seed=seed).proto for seed in (0, 1)]
        masks = [[nets.constant(proto, n.input[3]).tolist() for n in nets.ours(proto)] for proto in protos]
        assert masks[0] != masks[1], "another seed draws another mask"


def test_same_bytes_in_other_processes(tmp_path: Path) -> None:
    """Whatever Python's hash seed is."""
    (tmp_path / "m.onnx").write_bytes(network().SerializeToString())
    code = "import sys, perfonnx; perfonnx.rewrite(sys.argv[1], sys.argv[2], rate=0.5, mask='uniform')"
    written = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        out = tmp_path / f"{seed}.onnx"
        subprocess.run([sys.executable, "-c", code, tmp_path / "m.onnx", out], env=environment, cwd=ROOT, check=True)
        written.append(out.read_bytes())
    here = perfonnx.rewrite(tmp_path / "m.onnx", rate=0.5, mask="uniform").to_bytes()
    assert written == [here, here]


# --- further layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", VARIANTS)
@pytest.mark.parametrize("second", VARIANTS)
def test_further_layers_of_a_rewritten_model(first: str, second: str, layout: str) -> None:
    """Two runs for one layer each; a function body that serves both must come out of it."""
    feeds = nets.feed(2, 3, 12, 10)
    model = network()
    once = perfonnx.rewrite(model, rate=0.5, only=["conv1"], layout=layout, **VARIANTS[first])
    twice = perfonnx.rewrite(once.proto, rate=0.5, only=["conv2"], layout=layout, **VARIANTS[second])
    assert [layer.name for layer in twice.report.layers] == ["conv2"]
    nets.check(twice.proto)
    (y,), (wanted,) = nets.run(twice.proto, feeds), expected(twice.proto, feeds)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert len({(f.domain, f.name) for f in twice.proto.functions}) == len(twice.proto.functions)
    assert list(nets.plan_in(twice.proto)["layers"]) == ["conv1", "conv2"]
    assert twice.report.multiplies[0] < perfonnx.rewrite(model).report.multiplies[0] or "adaptive" in first


def test_the_activation_behind_a_layer_of_an_earlier_run_is_left_alone() -> None:
    """A run touches only the layers that it rewrites."""
    model = nets.followed_by(
        [node("Sigmoid", ["c"], ["d"]), nets.conv("d", "y", "v", name="last")], {"v": nets.values(4, 8, 3, 3)}
    )
    once = nets.rewrite(model, rate=0.5, only=["^conv$"]).proto
    twice = nets.rewrite(once, rate=0.5, only=["last"]).proto
    assert nets.ours(twice)[0] == nets.ours(once)[0]


def test_a_damaged_plan_in_the_metadata_is_replaced() -> None:
    for text in ("", "nonsense", "[]", '{"layers": 3}', '{"layers": {"a": 1}}'):
        model = network()
        model.metadata_props.add(key="perfonnx.plan", value=text)
        proto = perfonnx.rewrite(model, rate=0.5).proto
        assert {"conv1", "conv2"} <= set(nets.plan_in(proto)["layers"])


def test_plans_under_the_key_of_old_and_of_two_models_are_joined() -> None:
    model = network()
    layer = {"method": "sparse", "rate": 0.5, "mask": "grid"}
    for key, name in (("perfonnx.plan", "a"), ("perfonnx.plan.0123456789ab", "b"), ("perfonnx.planner", "c")):
        model.metadata_props.add(key=key, value=json.dumps({"perfonnx_plan": 1, "layers": {name: layer}}))
    proto = perfonnx.rewrite(model, rate=0.5).proto
    assert [p.key for p in proto.metadata_props if not p.key.startswith("perfonnx.plan.")] == ["perfonnx.planner"]
    (text,) = (p.value for p in proto.metadata_props if p.key.startswith("perfonnx.plan."))
    assert set(json.loads(text)["layers"]) == {"a", "b", "conv1", "conv2"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_initializer_stays_the_last(layout: str) -> None:
    model = network()
    proto = perfonnx.rewrite(model, rate=0.5, layout=layout).proto
    names = [t.name for t in proto.graph.initializer]
    kept = [t.name for t in model.graph.initializer if t.name in names]
    assert len(kept) >= 2
    assert names[-1] == kept[-1]


# --- the report ------------------------------------------------------------------------------------------------------


def test_report() -> None:
    report = nets.rewrite(network(), rate=0.5, mask="uniform").report
    first, second = report.layers
    assert first.output_shape == (6, 10)
    assert second.output_shape == (5, 9)
    assert first.multiplies == (60 * 8 * 27, 30 * 8 * 27)
    assert second.multiplies == (45 * 6 * 72, 22 * 6 * 72)
    gemm = 30
    assert report.conv_multiplies == tuple(a + b for a, b in zip(first.multiplies, second.multiplies, strict=True))
    assert report.multiplies == tuple(c + gemm for c in report.conv_multiplies)
    assert report.reduction == report.multiplies[0] / report.multiplies[1]
    assert first.rate == 0.5
    assert second.rate == pytest.approx(23 / 45)
    assert first.notes == ("folded BatchNormalization", "uniform, nearest, 50.0% skipped", "absorbed Relu")
    float_size = 4
    conv1 = 60 * 8 * float_size
    assert report.activations[0] - report.activations[1] == 2 * conv1 + 45 * 6 * float_size
    assert report.little_to_gain is None
    rows = perfonnx.rewrite(network(), rate=0.5, mask="uniform").report
    assert rows.multiplies == report.multiplies
    assert [(r.name, r.rate, r.multiplies) for r in rows.layers] == [
        (r.name, r.rate, r.multiplies) for r in report.layers
    ]
    assert json.loads(json.dumps(report.to_json()))["layers"][0]["name"] == "conv1"


def test_little_to_gain() -> None:
    nodes = [nets.conv(), node("Flatten", ["c"], ["f"]), node("Gemm", ["f", "k"], ["y"])]
    weights = {"w": nets.values(2, 3, 3, 3), "k": nets.values(240, 500)}
    report = perfonnx.rewrite(nets.model(nodes, weights, outputs={"y": (1, 500)})).report
    assert report.multiplies[0] == 120 * 54 + 240 * 500
    assert report.little_to_gain is not None
    assert "5.1%" in report.little_to_gain


def test_a_model_without_convolutions() -> None:
    result = perfonnx.rewrite(nets.model([node("Relu", ["x"], ["y"])], {}))
    assert result.report.layers == []
    assert result.report.skips == []
    assert result.report.little_to_gain
    assert result.plan.layers == {}


# --- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rate": 1.0}, r"rate 1.0 is not in \[0, 1\)"),
        ({"rate": -0.1}, "rate -0.1"),
        ({"rate": float("nan")}, "rate nan"),
        ({"rate": float("inf")}, "rate inf"),
        ({"rate": "0.5"}, "rate '0.5'"),
        ({"rate": True}, "rate True"),
        ({"method": "magic"}, "unknown method 'magic'; choose from exact, .*perforate, radius-adaptive, sparse"),
        ({"mask": "magic"}, "unknown mask 'magic'; choose from"),
        ({"mask": 3}, "unknown mask 3"),
        ({"mask": "gone.npy"}, r"gone\.npy"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'; choose from nearest, zero, barycentric"),
        ({"interpolation": ["nearest"]}, "unknown interpolation"),
        ({"center_gain": 0.5}, "center_gain 0.5"),
        ({"center_gain": float("nan")}, "center_gain nan"),
        ({"seed": -1}, "seed -1 is not a whole number from 0 up"),
        ({"seed": 0.5}, "seed 0.5"),
        ({"layout": "nhwc"}, "unknown layout 'nhwc'; choose from rows, nchw"),
        ({"largest_tile": 3}, "largest_tile is 3; choose from 4, 2, 0"),
        ({"speed": 11}, "unknown option: .*speed"),
        ({"options": Options(), "rate": 0.5}, "give options or keywords, not both"),
        ({"plan": perfonnx.Plan(), "rate": 0.5}, "a plan says everything"),
    ],
)
def test_wrong_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(PerfonnxError, match=match):
        perfonnx.rewrite(network(), **options)


def test_numpy_numbers_are_numbers() -> None:
    result = perfonnx.rewrite(network(), rate=np.float32(0.5), seed=np.int64(3))
    assert json.loads(json.dumps(result.plan.to_json()))["seed"] == 3
    assert result.report.layers[0].rate == 0.5


def test_symbolic_sizes_need_a_shape() -> None:
    model = nets.model([nets.conv(y="y")], {"w": nets.values(8, 3, 3, 3)}, inputs={"image": ("N", 3, "H", None)})
    model.graph.node[0].input[0] = "image"
    with pytest.raises(PerfonnxError, match=r"add --input-shape image:N,3,224,224 \(with your size\)"):
        perfonnx.rewrite(model)
    result = perfonnx.rewrite(model, input_shapes={"image": (None, 3, 9, 7)}, rate=0.5)
    assert result.report.layers[0].output_shape == (9, 7)
    rate_zero = perfonnx.rewrite(model, input_shapes={"image": (None, 3, 9, 7)}, rate=0.0)
    nets.assert_same_results(model, rate_zero.proto, {"image": nets.feed(2, 3, 9, 7)["x"]})


def test_shapes_behind_operators_that_onnx_cannot_infer_are_measured() -> None:
    """A Reshape to a computed shape hides the rank from inference when the operands are large; one run shows it."""
    nodes = [
        node("ImageScaler", ["x"], ["s"], scale=2.0, bias=[0.0, 0.0, 0.0]),
        nets.conv("s", "c"),
        node("Crop", ["c"], ["y"], border=[1, 1, 1, 1]),
    ]
    model = nets.model(nodes, {"w": nets.values(8, 3, 3, 3)}, opset=7, outputs={"y": (1, 8, 10, 8)})
    result = perfonnx.rewrite(model, rate=0.0)
    assert [layer.output_shape for layer in result.report.layers] == [(12, 10)]
    nets.assert_same_results(model, result.proto)


def test_progress() -> None:
    told: list[str] = []
    perfonnx.rewrite(network(), progress=told.append)
    assert told == ["reading", "choosing layers", "rewriting"]


# --- any network -----------------------------------------------------------------------------------------------------


@st.composite
def networks(draw: st.DrawFn) -> ModelProto:
    """A random directed graph of convolutions, activations, arithmetic and pools on one map size."""
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    channels, nodes = 4, list[NodeProto]()
    weights: dict[str, Any] = {}
    known = ["x"]
    for i in range(draw(st.integers(1, 9))):
        op = draw(
            st.sampled_from(["Conv", "Conv", "Conv", "Relu", "Clip", "Add", "Mul", "Scale", "Norm", "Sigmoid", "Pool"])
        )
        # mostly the newest tensor, so that chains arise; now and then an older one, so that it has several readers
        a, b = (draw(st.sampled_from([*known, *[known[-1]] * 4])) for _ in range(2))
        y = f"t{i}"
        if op == "Conv":
            w = draw(st.sampled_from([f"w{i}", "shared"]))
            weights.setdefault(w, nets.values(channels, channels, 3, 3, seed=i, dtype=dtype))
            bias = f"b{i}" if draw(st.booleans()) else None
            if bias:
                weights[bias] = nets.values(channels, seed=i, dtype=dtype)
            nodes.append(nets.conv(a, y, w, bias, name=draw(st.sampled_from([f"conv{i}", ""]))))
        elif op == "Scale":
            weights[f"k{i}"] = nets.values(channels, 1, 1, seed=i, dtype=dtype)
            order = [a, f"k{i}"] if draw(st.booleans()) else [f"k{i}", a]
            nodes.append(node(draw(st.sampled_from(["Add", "Sub", "Mul"])), order, [y]))
        elif op == "Norm":
            for name in ("g", "o", "m"):
                weights[f"{name}{i}"] = nets.values(channels, seed=i, dtype=dtype)
            weights[f"v{i}"] = np.abs(nets.values(channels, seed=i, dtype=dtype)) + dtype(0.5)
            nodes.append(node("BatchNormalization", [a, f"g{i}", f"o{i}", f"m{i}", f"v{i}"], [y]))
        elif op == "Pool":
            nodes.append(node("MaxPool", [a], [y], kernel_shape=[3, 3], pads=[1] * 4))
        elif op == "Clip":
            weights["low"], weights["high"] = np.array(-0.5, dtype), np.array(1.5, dtype)
            nodes.append(node("Clip", [a, "low", "high"], [y]))
        else:
            nodes.append(node(op, [a, b] if op in ("Add", "Mul") else [a], [y]))
        known.append(y)
    outputs = {known[-1]: (None,) * 4}
    if draw(st.booleans()):
        outputs[draw(st.sampled_from(known[1:]))] = (None,) * 4
    return nets.model(
        nodes,
        weights,
        inputs={"x": ("N", channels, 7, 6)},
        outputs=outputs,
        opset=draw(st.sampled_from([12, 15, 18])),
        dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    )


@settings(max_examples=120, deadline=None)
@given(networks(), st.sampled_from(list(VARIANTS)), st.integers(0, 3), st.sampled_from(LAYOUTS))
def test_any_network(model: ModelProto, variant: str, seed: int, layout: str) -> None:
    half = model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    dtype = np.float16 if half else np.float32
    options = VARIANTS[variant]
    before = model.SerializeToString(deterministic=True)
    exact = perfonnx.rewrite(model, layout=layout, **{**options, "rate": 0.0, "seed": seed})
    assert model.SerializeToString(deterministic=True) == before
    nets.check(exact.proto)
    # products of products have no useful float16 result to compare
    if not half:
        nets.assert_same_results(model, exact.proto, nets.feed(2, 4, 7, 6, dtype=dtype), tolerance=5e-4)
    sampled = perfonnx.rewrite(model, rate=0.6, seed=seed, layout=layout, **options)
    nets.check(sampled.proto)
    nets.run(sampled.proto, nets.feed(2, 4, 7, 6, dtype=dtype))
    if not half:  # lowering is exact
        canonical = nets.rewrite(model, rate=0.6, seed=seed, **options).proto
        nets.assert_same_results(canonical, sampled.proto, nets.feed(2, 4, 7, 6), tolerance=5e-4)
    assert perfonnx.rewrite(sampled.proto, rate=0.6, layout=layout, **options).to_bytes() == sampled.to_bytes()
    assert perfonnx.rewrite(model, plan=sampled.plan, layout=layout).to_bytes() == sampled.to_bytes()
    names = [layer.name for layer in sampled.report.layers] + [skip.layer for skip in sampled.report.skips]
    assert sorted(names) == sorted(c.name for c in perfonnx.inspect(model).convs)


def test_nodes_of_another_tool_get_what_a_function_body_needs() -> None:
    """Attributes and inputs that are left to the schema's defaults are written out when function bodies come."""
    mask = np.zeros((12, 10), bool)
    mask[::2, ::2] = True
    nodes = [
        node("SparseConv", ["x", "w", "", "mask"], ["a"], domain="ai.perfonnx", pads=[1, 1, 1, 1]),
        node("PerforatedConv", ["a", "v", "", "mask", "source"], ["b"], domain="ai.perfonnx", pads=[1, 1, 1, 1]),
        node("RadiusAdaptiveConv", ["b", "v", "", "gate"], ["c"], domain="ai.perfonnx", pads=[1, 1, 1, 1]),
        nets.conv("c", "y", "v", name="ours"),
    ]
    constants = {
        "w": nets.values(8, 3, 3, 3),
        "v": nets.values(8, 8, 3, 3),
        "gate": nets.values(1, 8, 1, 1),
        "mask": mask,
        "source": perfonnx.sampling.interpolate(mask, "nearest").source,
    }
    model = nets.model(nodes, constants, domains=["ai.perfonnx"])
    expected = perfonnx.session(model).run(None, nets.feed())
    for layout in LAYOUTS:
        proto = perfonnx.rewrite(model, only=["ours"], rate=0.0, layout=layout).proto
        nets.check(proto)
        for library in (True, False):
            (actual,) = perfonnx.session(proto, library=library).run(None, nets.feed())
            np.testing.assert_allclose(actual, expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_names_give_way_to_those_of_the_model(layout: str) -> None:
    """Nodes and tensors, in the bodies of control flow too, that are called what lowering would call its own."""
    inner = helper.make_graph(
        [node("Add", ["y0", "y0"], ["x.rows"]), node("Neg", ["x.rows"], ["out"])],
        "body",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    nodes = [
        nets.conv(name="a"),
        nets.conv("c", "d", "v", name="b"),
        node("Relu", ["d"], ["y0"], name="c.rows"),
        node("Greater", ["zero", "zero"], ["go"], name="y0.map"),
        node("If", ["go"], ["y"], then_branch=inner, else_branch=inner, name="x.rows"),
    ]
    constants = {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3), "zero": np.zeros((), np.float32)}
    model = nets.model(nodes, constants)
    proto = perfonnx.rewrite(model, rate=0.0, only=[""], layout=layout).proto
    names = [n.name for n in proto.graph.node]
    assert len(set(names)) == len(names)
    assert {"a", "b", "x.rows", "y0.map"} <= set(names)
    nets.check(proto)
    (expected,), (actual,) = nets.run(model, nets.feed()), nets.run(proto, nets.feed())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_behind_identities_are_constants(layout: str) -> None:
    nodes = [
        node("Identity", ["w"], ["w_"]),
        node("Identity", ["w_"], ["w__"]),
        node("Identity", ["v"], ["v_"]),
        nets.conv("x", "c", "w__", name="a"),
        nets.conv("c", "d", "v_", name="b"),
        nets.conv("c", "e", "v_", name="dense"),
        node("Add", ["d", "e"], ["y"]),
    ]
    model = nets.model(nodes, {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3)})
    proto = perfonnx.rewrite(model, rate=0.0, only=["^[ab]$"], layout=layout).proto
    nets.check(proto)
    assert [n.input[0] for n in proto.graph.node if n.op_type == "Identity"] == ["v"]  # for the layer that stays
    expected = nets.run(model, nets.feed())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # an Identity is no constant there
    for session in (perfonnx.session(proto, options=options), perfonnx.session(proto, library=False)):
        np.testing.assert_allclose(session.run(None, nets.feed())[0], expected[0], rtol=0, atol=1e-5)


def test_an_overridable_weight_behind_an_identity_is_left_alone() -> None:
    model = nets.model(
        [node("Identity", ["w"], ["w_"]), nets.conv("x", "y", "w_")],
        {"w": nets.values(8, 3, 3, 3)},
        inputs_too=["w"],
    )
    result = perfonnx.rewrite(model, only=[""])
    assert result.proto == model
    (skip,) = result.report.skips
    assert "'w' is also a graph input; --freeze-weights" in skip.reason
    assert len(perfonnx.rewrite(model, only=[""], freeze_weights=True).report.layers) == 1


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["perforate", "sparse", "radius-adaptive"])
def test_float16_layers_between_nodes_that_run_in_float32(method: str, layout: str, channels: int) -> None:
    """There onnxruntime casts what the layers read, and folds only the casts of constants that have one reader."""
    nodes, x = [], "x"
    for i in range(4):  # layers 2 and 3 share their weight, as heads of several levels do
        nodes += [nets.conv(x, f"c{i}", f"w{min(i, 2)}", "b", name=f"layer{i}")]
        nodes += [node("Sigmoid", [f"c{i}"], [f"s{i}"]), node("Mul", [f"c{i}", f"s{i}"], [f"m{i}"])]
        x = f"m{i}"
    nodes.append(node("InstanceNormalization", [x, "b", "b"], ["y"]))
    half = np.float16
    weights = {f"w{i}": nets.values(channels, channels, 3, 3, seed=i, dtype=half) for i in range(3)}
    weights["b"] = nets.values(channels, dtype=half)
    shape = ("N", channels, 8, 8)
    model = nets.model(nodes, weights, inputs={"x": shape}, outputs={"y": shape}, dtype=TensorProto.FLOAT16)
    result = perfonnx.rewrite(model, method=method, rate=0.5, only=["."], layout=layout).proto
    feeds = nets.feed(2, channels, 8, 8, dtype=half)
    (ours,), (body,) = perfonnx.session(result).run(None, feeds), nets.run(result, feeds)
    np.testing.assert_allclose(ours.astype(np.float32), body.astype(np.float32), atol=2e-2 * np.abs(body).max())
    again = perfonnx.rewrite(result, rate=0.5, only=["."]).proto
    assert again.SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
