from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.model import layers
from tests.passes import nets
from tests.passes.nets import node


def skips(model: ModelProto, **options: Any) -> dict[str, str]:
    """Reasons by layer, of a model in which nothing can be rewritten; it must come out as it came."""
    result = nets.rewrite(model, **options)
    assert not result.report.layers
    assert result.proto.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    return {skip.layer: skip.reason for skip in result.report.skips}


def conv_only(w: np.ndarray, *, x: nets.Shape = (1, 3, 12, 10), rank: int = 4, **attributes: Any) -> ModelProto:
    attributes.setdefault("kernel_shape", list(w.shape[2:]))
    if "pads" not in attributes and "auto_pad" not in attributes:
        attributes["pads"] = [1] * 2 * (rank - 2)
    return nets.model([nets.conv(y="y", **attributes)], {"w": w}, inputs={"x": x}, outputs={"y": (None,) * rank})


# --- geometry --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rate_zero_is_the_original_for_every_geometry(data: st.DataObject) -> None:
    """Strides, dilations, asymmetric pads, groups and every auto_pad, against onnxruntime's own Conv."""
    draw = data.draw
    group = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    size = draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    auto_pad = draw(st.sampled_from(["NOTSET", None, "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):  # onnxruntime takes these without dilation only
        dilations = (1, 1)
    attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(strides), "group": group}
    attributes["dilations"] = list(dilations)
    if auto_pad is not None:
        attributes["auto_pad"] = auto_pad
    pads = (0, 0, 0, 0)
    if auto_pad in ("NOTSET", None):
        pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
        attributes["pads"] = list(pads)
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    if auto_pad in ("NOTSET", None, "VALID"):
        assume(all(size[i] + pads[i] + pads[i + 2] >= extents[i] for i in range(2)))
    else:  # pads of -2 and less are another test's matter
        assume(all((-(-size[i] // strides[i]) - 1) * strides[i] + extents[i] - size[i] > -2 for i in range(2)))
    images = draw(st.integers(1, 2))
    batch: int | str = images if draw(st.booleans()) else "N"
    method = draw(st.sampled_from(["perforate", "sparse"] + (["radius-adaptive"] if kernel == (3, 3) else [])))
    model = nets.model(
        [nets.conv(y="y", **attributes)],
        {"w": nets.values(4 * group, 2, *kernel)},
        inputs={"x": (batch, 2 * group, *size)},
        opset=draw(st.sampled_from([7, 11, 17, 22])),
    )
    result = nets.rewrite(model, method=method, rate=0.0, only=["."], mask=None if method != "perforate" else "grid")
    feeds = nets.feed(images, 2 * group, *size)
    (expected,) = nets.run(model, feeds)
    if expected.shape[2:] == (1, 1):
        assert result.report.skips[0].reason == "a single output position: nothing to skip"
        return
    assert result.report.layers[0].output_shape == expected.shape[2:]
    assert result.report.layers[0].rate == 0
    nets.check(result.proto)
    nets.assert_same_results(model, result.proto, feeds)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_with_symbolic_size(auto_pad: str) -> None:
    """With stride 1 the pads are known before the size is; with stride 2 they are not, and --input-shape settles it."""
    for strides in ([1, 1], [2, 2]):
        model = nets.model(
            [nets.conv(y="y", auto_pad=auto_pad, strides=strides, kernel_shape=[4, 4])],
            {"w": nets.values(8, 3, 4, 4)},
            inputs={"x": ("N", 3, "H", "W")},
        )
        with pytest.raises(PerfonnxError, match=re.escape("--input-shape x:N,3,224,224")):
            nets.rewrite(model)
        proto = nets.rewrite(model, input_shapes={"x": ["N", 3, 11, 8]}, rate=0.0).proto
        nets.assert_same_results(model, proto, nets.feed(2, 3, 11, 8))


@pytest.mark.parametrize("rank", [3, 5])
def test_other_ranks_are_left_alone(rank: int) -> None:
    w = nets.values(4, 3, *[3] * (rank - 2))
    model = conv_only(w, x=(1, 3, *[12] * (rank - 2)), rank=rank)
    assert skips(model) == {"conv": f"{rank - 2}-D convolution; only 2-D ones are rewritten"}


def test_single_position_is_left_alone() -> None:
    assert skips(conv_only(nets.values(8, 3, 3, 3), x=(1, 3, 3, 3), pads=[0] * 4), only=["."]) == {
        "conv": "a single output position: nothing to skip"
    }


def test_layers_whose_tables_the_engine_refuses_are_left_alone() -> None:
    """What counts is the taps at the positions that are computed: at a higher rate the same layer is taken."""
    model = conv_only(nets.values(1, 1, 127, 127), x=(1, 1, 140, 140), pads=[63] * 4)
    assert skips(model, rate=0.0, only=["."]) == {
        "conv": "its 127x127 kernel at 19600 positions needs a table too large for the engine"
    }
    assert len(nets.rewrite(model, rate=0.25, only=["."], fallback=False).report.layers) == 1


def test_radius_adaptive_layers_compute_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_ENTRIES", 12 * 10 * 9 - 1)
    reasons = skips(nets.single(), method="radius-adaptive", only=["."])
    assert reasons == {"conv": "its 3x3 kernel at 120 positions needs a table too large for the engine"}


def test_narrow_maps() -> None:
    """Short 1 x N maps are not taken by themselves; asked for, they work."""
    model = conv_only(nets.values(8, 3, 1, 3), x=(1, 3, 1, 6), pads=[0, 1, 0, 1])
    assert skips(model) == {"conv": "its output is only 1x6"}
    for method in ("perforate", "sparse"):
        result = nets.rewrite(model, only=["conv"], rate=0.5, method=method)
        assert result.report.layers[0].rate == 0.5
        nets.run(result.proto, nets.feed(1, 3, 1, 6))


def test_depthwise_and_1x1_are_left_alone_unless_named() -> None:
    depthwise = conv_only(nets.values(3, 1, 3, 3), group=3)
    one = conv_only(nets.values(8, 3, 1, 1), pads=[0] * 4)
    for model, reason in ((depthwise, "depthwise"), (one, "1x1 kernel")):
        assert reason in skips(model)["conv"]
        assert "profit carry 0.0%" in (nets.rewrite(model).report.little_to_gain or "")
        proto = nets.rewrite(model, only=["conv"], rate=0.0).proto
        nets.assert_same_results(model, proto)


def test_absurd_sizes_are_refused_before_memory_is(capfd: pytest.CaptureFixture[str]) -> None:
    for size in (2**20, 2**40, 2**62):
        model = conv_only(nets.values(8, 3, 3, 3), x=(1, 3, size, 2**15))
        assert "too large" in skips(model)["conv"] or "does not fit" in skips(model)["conv"]
    model = conv_only(nets.values(8, 3, 3, 3), pads=[2**40] * 4)
    assert "too large" in skips(model)["conv"]
    model = conv_only(nets.values(8, 3, 3, 3), dilations=[2**40] * 2)
    assert "does not fit" in skips(model)["conv"]
    assert capfd.readouterr().err == ""


def test_a_kernel_that_does_not_fit() -> None:
    model = conv_only(nets.values(8, 3, 5, 5), x=(1, 3, 4, 4), pads=[0] * 4)
    assert "not a valid ONNX" in _error(model) or "does not fit" in skips(model)["conv"]


def _error(model: ModelProto) -> str:
    try:
        nets.rewrite(model)
    except PerfonnxError as error:
        return str(error)
    return ""


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_that_are_graph_inputs() -> None:
    """From IR version 4 on a caller may replace them; before, they are constants."""
    for name, what in (("w", "weight"), ("b", "bias")):
        model = nets.followed_by([node("Relu", ["c"], ["y"])], inputs_too=[name])
        reason = skips(model)["conv"]
        assert reason == f"its {what} '{name}' is also a graph input; --freeze-weights makes it constant"
        frozen = nets.rewrite(model, freeze_weights=True, rate=0.0).proto
        assert [i.name for i in frozen.graph.input] == ["x"]
        nets.assert_same_results(model, frozen)


def test_weights_of_ir_version_3() -> None:
    model = nets.followed_by([node("Relu", ["c"], ["y"])], opset=7, ir=3)
    assert {i.name for i in model.graph.input} == {"x", "w", "b"}
    proto = nets.rewrite(model, rate=0.0).proto
    assert proto.ir_version == 8
    assert [i.name for i in proto.graph.input] == ["x"]
    nets.check(proto)
    nets.assert_same_results(model, proto)


def test_weights_that_a_run_decides() -> None:
    model = nets.model([nets.conv(y="y")], {}, inputs={"x": (1, 3, 12, 10), "w": (8, 3, 3, 3)})
    assert skips(model) == {"conv": "its weight is not constant (an input of the graph)"}
    inputs = {"x": (1, 3, 12, 10), "k": (1,)}
    computed = nets.model(
        [node("Mul", ["v", "k"], ["w"]), nets.conv(y="y")], {"v": nets.values(8, 3, 3, 3)}, inputs=inputs
    )
    assert skips(computed) == {"conv": "its weight is not constant (computed by Mul)"}
    bias = nets.model(
        [node("Mul", ["v", "k"], ["b"]), nets.conv(y="y", b="b")],
        {"v": nets.values(8), "w": nets.values(8, 3, 3, 3)},
        inputs=inputs,
    )
    assert skips(bias) == {"conv": "its bias is not constant (computed by Mul)"}


def test_weights_from_constant_nodes() -> None:
    nodes = [
        node("Constant", [], ["w"], value=numpy_helper.from_array(nets.values(8, 3, 3, 3))),
        node("Constant", [], ["b"], value=numpy_helper.from_array(nets.values(8))),
        nets.conv(b="b"),
        node("Relu", ["c"], ["y"]),
    ]
    model = nets.model(nodes, {})
    for method in ("perforate", "sparse", "radius-adaptive"):
        proto = nets.rewrite(model, rate=0.0, method=method).proto
        assert len(nets.ours(proto)) == 1
        nets.check(proto)
        nets.assert_same_results(model, proto)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    w = nets.values(8, 3, 3, 3)
    w[3, 1, 2, 0] = bad
    assert skips(conv_only(w)) == {"conv": "its weight or bias has values that are not finite"}
    b = nets.values(8)
    b[3] = bad
    model = nets.model([nets.conv(y="y", b="b")], {"w": nets.values(8, 3, 3, 3), "b": b})
    assert skips(model) == {"conv": "its weight or bias has values that are not finite"}


def test_other_types_are_left_alone() -> None:
    model = nets.model([nets.conv(y="y")], {"w": nets.values(8, 3, 3, 3, dtype=np.float64)}, dtype=TensorProto.DOUBLE)
    assert skips(model) == {"conv": "weights of type double; float and float16 are rewritten"}
    model = nets.model([nets.conv(y="y")], {}, dtype=TensorProto.BFLOAT16, opset=22)
    w = helper.make_tensor("w", TensorProto.BFLOAT16, [8, 3, 3, 3], np.zeros(216))
    model.graph.initializer.append(w)
    assert skips(model) == {"conv": "weights of type bfloat16; float and float16 are rewritten"}


def test_float16() -> None:
    model = nets.followed_by([node("Relu", ["c"], ["y"])], dtype=np.float16)
    for method in ("perforate", "sparse", "radius-adaptive"):
        proto = nets.rewrite(model, rate=0.0, method=method).proto
        nets.check(proto)
        nets.assert_same_results(model, proto, nets.feed(dtype=np.float16), tolerance=4e-3)


def mixed(opset: int) -> ModelProto:
    """A float layer, then a float16 layer."""
    nodes = [
        nets.conv(name="first"),
        node("Cast", ["c"], ["h"], to=TensorProto.FLOAT16),
        nets.conv("h", "d", "v", name="second"),
        node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    return nets.model(
        nodes, {"w": nets.values(8, 3, 3, 3), "v": nets.values(4, 8, 3, 3, dtype=np.float16)}, opset=opset
    )


def test_two_float_types_from_opset_15_on() -> None:
    model = mixed(15)
    proto = nets.rewrite(model, rate=0.0).proto
    assert len(nets.ours(proto)) == 2
    nets.check(proto)
    nets.assert_same_results(model, proto, tolerance=4e-3)


def test_two_float_types_below_opset_15() -> None:
    """There a function body serves one type: the other is left alone, in this run and in later ones."""
    model = mixed(14)
    result = nets.rewrite(model, rate=0.0)
    assert [layer.name for layer in result.report.layers] == ["first"]
    assert "--no-fallback" in result.report.skips[0].reason
    nets.assert_same_results(model, result.proto, tolerance=4e-3)
    again = nets.rewrite(result.proto, rate=0.0, only=["second"])
    assert "--no-fallback" in {s.layer: s.reason for s in again.report.skips}["second"]
    assert len(nets.rewrite(model, fallback=False, rate=0.5).report.layers) == 2


# --- names -----------------------------------------------------------------------------------------------------------


def three(names: tuple[str, str, str]) -> ModelProto:
    nodes = [
        nets.conv("x", "a", "w", name=names[0]),
        nets.conv("a", "b", "v", name=names[1]),
        nets.conv("b", "y", "v", name=names[2]),
    ]
    return nets.model(nodes, {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3)})


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (("", "", ""), ["a", "b", "y"]),
        (("same", "same", "same"), ["a", "b", "y"]),
        (("same", "same", "own"), ["a", "b", "own"]),
        (("b", "", "y"), ["b", "b_", "y"]),
        (("y", "b", "b"), ["y", "b_", "y_"]),
        (("a", "", ""), ["a", "b", "y"]),
        (("b", "", ""), ["b", "b_", "y"]),
    ],
)
def test_layer_names_are_unique(names: tuple[str, str, str], layers: list[str]) -> None:
    model = three(names)
    result = nets.rewrite(model, rate=0.5)
    assert [layer.name for layer in result.report.layers] == layers
    assert [n.name for n in nets.ours(result.proto)] == layers
    assert [c.name for c in perfonnx.inspect(model).convs] == layers
    nets.check(result.proto)
    again = nets.rewrite(model, plan=result.plan)
    assert again.to_bytes() == result.to_bytes()
    assert nets.rewrite(result.proto, rate=0.5).to_bytes() == result.to_bytes()


def test_only_and_skip() -> None:
    model = three(("c1", "c2", "c3"))

    def chosen(**options: Any) -> list[str]:
        return [layer.name for layer in nets.rewrite(model, rate=0.5, **options).report.layers]

    assert chosen(only=["2", "c3"]) == ["c2", "c3"]
    assert chosen(only=["^c"], skip=["1$"]) == ["c2", "c3"]
    assert chosen(only="2|3") == ["c2", "c3"]
    assert chosen(skip=["."]) == []
    assert chosen(skip=["nothing"]) == ["c1", "c2", "c3"]
    with pytest.raises(PerfonnxError, match="--only zzz matches no convolution"):
        chosen(only=["zzz"])
    for flag in ("only", "skip"):
        with pytest.raises(PerfonnxError, match=rf"--{flag}: '\(' is not a regular expression"):
            chosen(**{flag: ["("]})


def test_layers_of_little_weight_are_left_alone_unless_named() -> None:
    nodes = [nets.conv("x", "a", "u", name="small"), nets.conv("a", "b", "w"), nets.conv("b", "y", "w", name="last")]
    model = nets.model(
        nodes, {"u": nets.values(64, 1, 3, 3), "w": nets.values(64, 64, 3, 3)}, inputs={"x": (1, 1, 8, 8)}
    )
    assert "carries only 0.8%" in {s.layer: s.reason for s in nets.rewrite(model).report.skips}["small"]
    assert [layer.name for layer in nets.rewrite(model, only=["small"]).report.layers] == ["small"]


def test_many_small_layers_that_make_up_a_network_are_not_little() -> None:
    count = 120
    nodes = [nets.conv(f"x{i}" if i else "x", f"x{i + 1}", "w", name=f"c{i}") for i in range(count)]
    nodes[-1].output[0] = "y"
    model = nets.model(nodes, {"w": nets.values(32, 32, 3, 3)}, inputs={"x": (1, 32, 8, 8)})
    assert len(perfonnx.rewrite(model, rate=0.5).report.layers) == count
    assert all(conv.reason is None for conv in perfonnx.inspect(model).convs)


def test_layers_of_little_weight_stay_little_when_the_others_are_rewritten() -> None:
    """What is left after a first run must not look big in the second."""
    nodes = [nets.conv("x", "a", "u", name="small"), nets.conv("a", "y", "w")]
    model = nets.model(
        nodes, {"u": nets.values(128, 1, 3, 3), "w": nets.values(128, 128, 3, 3)}, inputs={"x": (1, 1, 8, 8)}
    )
    once = nets.rewrite(model, rate=0.75)
    assert [layer.name for layer in once.report.layers] == ["conv"]
    assert nets.rewrite(once.proto, rate=0.75).to_bytes() == once.to_bytes()


# --- bodies ----------------------------------------------------------------------------------------------------------


def branch(name: str) -> Any:
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [nets.conv("x", f"{name}_y", name=name)], name, [], [info(f"{name}_y", TensorProto.FLOAT, [None] * 4)]
    )


def test_convolutions_in_branches_are_left_alone() -> None:
    model = nets.model(
        [
            node("If", ["flag"], ["d"], name="choice", then_branch=branch("inner"), else_branch=branch("other")),
            nets.conv("d", "y", "v", name="outer"),
        ],
        {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3)},
    )
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    result = nets.rewrite(model, rate=0.0)
    assert [layer.name for layer in result.report.layers] == ["outer"]
    reasons = {s.layer: s.reason for s in result.report.skips}
    assert reasons == dict.fromkeys(("inner", "other"), "inside the body of If 'choice'")
    assert result.proto.graph.node[0] == model.graph.node[0]
    assert "w" in {t.name for t in result.proto.graph.initializer}
    for flag in (True, False):
        nets.assert_same_results(model, result.proto, {**nets.feed(), "flag": np.array(flag)})


def test_convolutions_in_loops_are_left_alone() -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), nets.conv("carried", "next", "v", name="inner")],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("carried", 1, [1, 8, 12, 10])],
        [info("on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, [1, 8, 12, 10])],
    )
    nodes = [nets.conv("x", "c", name="outer"), node("Loop", ["n", "", "c"], ["y"], body=body)]
    constants = {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3), "n": np.array(3, np.int64)}
    model = nets.model(nodes, constants)
    result = nets.rewrite(model, rate=0.0)
    assert [layer.name for layer in result.report.layers] == ["outer"]
    assert result.report.skips[0].reason == "inside the body of Loop 'Loop_y'"
    nets.assert_same_results(model, result.proto)


def test_convolutions_in_functions_are_left_alone() -> None:
    function = helper.make_function(
        "local", "Block", ["a", "k"], ["z"], [nets.conv("a", "z", "k", name="hidden")], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Block", ["x", "w"], ["d"], name="block", domain="local"),
        nets.conv("d", "y", "v", name="outer"),
    ]
    model = nets.model(nodes, {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3)}, domains=["local"])
    model.functions.append(function)
    result = nets.rewrite(model, rate=0.0)
    assert [layer.name for layer in result.report.layers] == ["outer"]
    assert {s.layer: s.reason for s in result.report.skips} == {"hidden": "inside the function local.Block"}
    assert function in result.proto.functions
    nets.assert_same_results(model, result.proto)


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75, 0.99, math.nextafter(1, 0)])
@pytest.mark.parametrize("mask", ["uniform", "grid", "pooling-structure", "propagated"])
def test_masks_and_rates(mask: str, rate: float) -> None:
    model = nets.followed_by([node("MaxPool", ["c"], ["y"], kernel_shape=[3, 3], strides=[2, 2])])
    result = nets.rewrite(model, mask=mask, rate=rate)
    (layer,) = result.report.layers
    if mask != "grid":  # at least one site is kept, and their number is whole
        assert abs(layer.rate - min(rate, 119 / 120)) < 1 / 120
    assert layer.rate < 1
    assert layer.multiplies[1] == round(layer.multiplies[0] * (1 - layer.rate))
    nets.run(result.proto, nets.feed())


def test_default_masks() -> None:
    nodes = [
        nets.conv("x", "a", "w", name="before_pool"),
        node("Relu", ["a"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        nets.conv("c", "y", "v", name="last"),
    ]
    model = nets.model(nodes, {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3)})
    plan = nets.rewrite(model, rate=0.25).plan
    assert {k: (v.mask, v.rate, v.interpolation) for k, v in plan.layers.items()} == {
        "before_pool": ("pooling-structure", 0.25, "nearest"),
        "last": ("grid", 0.25, "nearest"),
    }
    reasons = {s.layer: s.reason for s in nets.rewrite(model, rate=0.25, mask="pooling-structure").report.skips}
    assert reasons == {"last": "no pooling layer follows; the pooling-structure mask needs one"}
    reasons = {s.layer: s.reason for s in nets.rewrite(model, rate=0.25, mask="grid-square").report.skips}
    assert "needs a square one" in reasons["last"]


def test_masks_do_not_depend_on_which_other_layers_are_rewritten() -> None:
    model = three(("c1", "c2", "c3"))
    every = nets.rewrite(model, mask="uniform", rate=0.5).proto
    alone = nets.rewrite(model, mask="uniform", rate=0.5, only=["c2"]).proto
    masks = {n.name: nets.constant(every, n.input[3]) for n in nets.ours(every)}
    np.testing.assert_array_equal(nets.constant(alone, nets.ours(alone)[0].input[3]), masks["c2"])
    np.testing.assert_array_equal(masks["c1"], masks["c2"])  # maps of one size share it


def test_mask_files(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((12, 10)) < 0.5
    path = tmp_path / "m.npz"
    np.savez(path, c1=mask, c3=~mask)
    result = nets.rewrite(three(("c1", "c2", "c3")), mask=str(path))
    assert [layer.name for layer in result.report.layers] == ["c1", "c3"]
    assert result.report.layers[0].rate == 1 - mask.mean()
    assert {s.layer: s.reason for s in result.report.skips} == {"c2": f"{path} has no mask for it"}
    np.testing.assert_array_equal(nets.constant(result.proto, nets.ours(result.proto)[0].input[3]), mask)
    again = nets.rewrite(three(("c1", "c2", "c3")), plan=result.plan)
    assert again.to_bytes() == result.to_bytes()


# --- batch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [True, False])
def test_batches(optimize: bool) -> None:
    model = nets.followed_by(
        [node("Relu", ["c"], ["y"])], inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 8, 12, 10)}
    )
    for method in ("perforate", "sparse", "radius-adaptive"):
        proto = nets.rewrite(model, rate=0.5, method=method).proto
        (three_images,) = nets.run(proto, nets.feed(3, 3, 12, 10), optimize=optimize)
        for i in range(3):
            (one,) = nets.run(proto, {"x": nets.feed(3, 3, 12, 10)["x"][i : i + 1]}, optimize=optimize)
            np.testing.assert_allclose(three_images[i], one[0], rtol=0, atol=1e-5)
        (none,) = nets.run(proto, {"x": np.zeros((0, 3, 12, 10), np.float32)}, optimize=optimize)
        assert none.shape == (0, 8, 12, 10)
