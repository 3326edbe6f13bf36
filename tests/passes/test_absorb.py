from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import perfonnx
from perfonnx import ops
from tests.passes import nets
from tests.passes.nets import node

SQUARE = {"x": (1, 3, 8, 8)}
SIX = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}


def rewritten(model: ModelProto, **options: object) -> ModelProto:
    """At rate 0, checked against the original on inputs wide enough to reach every bend of the activation."""
    proto = nets.rewrite(model, rate=0.0, only=["conv"], **options).proto
    nets.check(proto)
    wide = {"x": nets.feed()["x"] * 20}
    nets.assert_same_results(model, proto, wide)
    return proto


def clip(*bounds: str, **attributes: float) -> NodeProto:
    return node("Clip", ["c", *bounds], ["y"], **attributes)


@pytest.mark.parametrize(
    ("tail", "constants", "opset", "expected"),
    [
        (node("Relu", ["c"], ["y"]), {}, 17, (1, 0, math.inf)),
        (node("LeakyRelu", ["c"], ["y"]), {}, 17, (0.01, -math.inf, math.inf)),
        (node("LeakyRelu", ["c"], ["y"], alpha=-0.5), {}, 17, (-0.5, -math.inf, math.inf)),
        (node("LeakyRelu", ["c"], ["y"], alpha=3.0), {}, 7, (3, -math.inf, math.inf)),
        (clip(min=0.0, max=6.0), {}, 7, (1, 0, 6)),
        (clip(max=2.5), {}, 10, (1, -math.inf, 2.5)),
        (clip(), {}, 10, (1, -math.inf, math.inf)),
        (clip("low", "high"), SIX, 11, (1, 0, 6)),
        (clip("", "high"), SIX, 13, (1, -math.inf, 6)),
        (clip("low"), SIX, 17, (1, 0, math.inf)),
        (clip("low", "high"), {"low": np.array([-1], np.float32), "high": np.array([1], np.float32)}, 11, None),
        (clip("low", "high"), {**SIX, "high": np.array(np.inf, np.float32)}, 17, (1, 0, math.inf)),
        (node("PRelu", ["c", "s"], ["y"]), {"s": np.array([0.3], np.float32)}, 17, (0.3, -math.inf, math.inf)),
        (node("PRelu", ["c", "s"], ["y"]), {"s": np.full((1, 1, 1), -2, np.float32)}, 7, (-2, -math.inf, math.inf)),
    ],
    ids=lambda value: value.op_type if isinstance(value, NodeProto) else None,
)
def test_activations_that_are_absorbed(
    tail: NodeProto, constants: dict[str, np.ndarray], opset: int, expected: tuple[float, float, float] | None
) -> None:
    model = nets.followed_by([tail], constants, opset=opset)
    if expected is None:  # onnxruntime takes bounds of shape [1], the standard does not
        expected = (1, -1, 1)
        proto = nets.rewrite(model, rate=0.0).proto
    else:
        proto = rewritten(model)
    assert nets.op_types(proto) == ["PerforatedConv"]
    (layer,) = proto.graph.node
    found = [nets.attribute(layer, name) for name in ("negative_slope", "clip_min", "clip_max")]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bounds_from_constant_nodes() -> None:
    tail = [
        node("Constant", [], ["low"], value=numpy_helper.from_array(np.array(-1, np.float32))),
        node("Constant", [], ["high"], value=numpy_helper.from_array(np.array(1, np.float32))),
        clip("low", "high"),
    ]
    proto = rewritten(nets.followed_by(tail))
    assert nets.op_types(proto) == ["PerforatedConv"], "constants that nothing reads any more must go"


def test_bounds_that_a_run_decides_stay() -> None:
    model = nets.followed_by([clip("", "high")], inputs={"x": (1, 3, 12, 10), "high": ()})
    proto = nets.rewrite(model, rate=0.0).proto
    assert nets.op_types(proto) == ["PerforatedConv", "Clip"]
    nets.assert_same_results(model, proto, {**nets.feed(), "high": np.array(0.1, np.float32)})


def test_empty_interval_stays() -> None:
    constants = {"low": np.array(1, np.float32), "high": np.array(-1, np.float32)}
    assert nets.op_types(rewritten(nets.followed_by([clip("low", "high")], constants)))[-1] == "Clip"


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Elu", "HardSigmoid", "Softplus", "Abs", "Neg"])
def test_other_activations_stay(op: str) -> None:
    assert nets.op_types(rewritten(nets.followed_by([node(op, ["c"], ["y"])]))) == ["PerforatedConv", op]


SLOPES = np.array([0.25, 0, 3, -1.5, 1, 0.01, -0.5, 2])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("opset", [7, 9, 17])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize("method", ["perforate", "sparse", "radius-adaptive"])
def test_slopes_per_channel_are_absorbed(method: str, shape: tuple[int, ...], opset: int, dtype: type) -> None:
    constants = {"s": SLOPES.reshape(shape).astype(dtype)}
    model = nets.followed_by([node("PRelu", ["c", "s"], ["y"])], constants, opset=opset, dtype=dtype)
    proto = nets.rewrite(model, rate=0.0, method=method).proto
    nets.check(proto)
    (layer,) = proto.graph.node
    np.testing.assert_array_equal(nets.constant(proto, layer.input[-1]), SLOPES.astype(dtype))
    assert nets.attribute(layer, "negative_slope") == 1
    for fallback in (True, False):
        proto = nets.rewrite(model, rate=0.0, method=method, fallback=fallback).proto
        x = nets.feed(dtype=dtype)
        (expected,) = nets.run(model, x)
        for library in (False, True) if fallback else (True,):
            actual = perfonnx.session(proto, library=library).run(None, x)[0]
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 if dtype is np.float32 else 2e-2)


@pytest.mark.parametrize("shape", [(10,), (1, 10), (12, 1), (8, 12, 10), (1, 1, 1, 10)])
def test_slopes_that_differ_within_a_channel_stay(shape: tuple[int, ...]) -> None:
    model = nets.followed_by([node("PRelu", ["c", "s"], ["y"])], {"s": nets.values(*shape)})
    assert nets.op_types(rewritten(model)) == ["PerforatedConv", "PRelu"]


def test_slopes_for_the_columns_of_a_map_as_wide_as_deep_stay() -> None:
    """Eight slopes in one dimension belong to the last axis."""
    model = nets.followed_by([node("PRelu", ["c", "s"], ["y"])], {"s": SLOPES.astype(np.float32)}, inputs=SQUARE)
    proto = nets.rewrite(model, rate=0.0).proto
    assert nets.op_types(proto) == ["PerforatedConv", "PRelu"]
    nets.assert_same_results(model, proto, nets.feed(1, 3, 8, 8))


@pytest.mark.parametrize("shape", [(), (8, 1, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_slopes_that_are_no_numbers_stay(shape: tuple[int, ...], value: float) -> None:
    model = nets.followed_by([node("PRelu", ["c", "s"], ["y"])], {"s": np.full(shape, value, np.float32)})
    assert nets.op_types(nets.rewrite(model, rate=0.0).proto) == ["PerforatedConv", "PRelu"]


def test_slopes_of_which_a_run_decides_stay() -> None:
    model = nets.followed_by([node("PRelu", ["c", "s"], ["y"])], inputs={"x": (1, 3, 12, 10), "s": (8, 1, 1)})
    assert nets.op_types(nets.rewrite(model, rate=0.0).proto) == ["PerforatedConv", "PRelu"]


@pytest.mark.parametrize("opset", [7, 13])
@pytest.mark.parametrize("interpolation", ["nearest", "barycentric"])
def test_layers_with_and_without_slopes_in_one_model(interpolation: str, opset: int) -> None:
    """One function body serves both: slopes of 1 stand where there are none, and change nothing."""
    tail = [
        node("PRelu", ["c", "s"], ["d"]),
        nets.conv("d", "e", "v", name="second"),
        node("LeakyRelu", ["e"], ["y"], alpha=0.3),
    ]
    constants = {"s": SLOPES.reshape(8, 1, 1).astype(np.float32), "v": nets.values(8, 8, 3, 3)}
    model = nets.followed_by(tail, constants, opset=opset)
    proto = nets.rewrite(model, rate=0.5, interpolation=interpolation, only=[""]).proto
    nets.check(proto)
    assert nets.op_types(proto) == ["PerforatedConv", "PerforatedConv"]
    (expected,) = nets.run(proto, nets.feed())
    np.testing.assert_allclose(perfonnx.session(proto).run(None, nets.feed())[0], expected, rtol=0, atol=1e-5)
    evaluator = ReferenceEvaluator(proto, new_ops=ops.REFERENCE_OPS)
    np.testing.assert_allclose(evaluator.run(None, nets.feed())[0], expected, rtol=0, atol=1e-5)
    again = perfonnx.rewrite(proto, rate=0.5).proto
    np.testing.assert_allclose(nets.run(again, nets.feed())[0], expected, rtol=0, atol=1e-5)


def test_a_layer_added_to_a_model_without_slopes() -> None:
    """A second rewrite brings slopes to a model whose layers and function bodies have none."""
    tail = [nets.conv("c", "e", "v", name="second"), node("PRelu", ["e", "s"], ["y"])]
    constants = {"s": SLOPES.reshape(8, 1, 1).astype(np.float32), "v": nets.values(8, 8, 3, 3)}
    model = nets.followed_by(tail, constants)
    first = nets.rewrite(model, rate=0.0, only=["conv"]).proto
    second = nets.rewrite(first, rate=0.0, only=["second"]).proto
    nets.check(second)
    assert nets.op_types(second) == ["PerforatedConv", "PerforatedConv"]
    nets.assert_same_results(model, second)


def test_fill_before_normalization_passes_slopes() -> None:
    """What training put in front of the normalization is, behind it, minus the mean by channel, times its slope."""
    tail = [
        node("BatchNormalization", ["c", "one", "zero", "mean", "one"], ["n"], epsilon=0.0),
        node("PRelu", ["n", "s"], ["y"]),
    ]
    mean = np.linspace(-2, 2, 8, dtype=np.float32)
    constants = {"one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32), "mean": mean}
    model = nets.followed_by(tail, {**constants, "s": SLOPES.reshape(8, 1, 1).astype(np.float32)})
    proto = nets.rewrite(model, rate=0.5, method="sparse", mask="uniform", fill="before-normalization").proto
    assert nets.op_types(proto) == ["SparseConv"]
    mask = nets.constant(proto, proto.graph.node[0].input[3])
    expected = np.where(mean > 0, -mean * SLOPES, -mean)
    for y in (nets.run(proto, nets.feed())[0], perfonnx.session(proto).run(None, nets.feed())[0]):
        np.testing.assert_allclose(y[0][:, ~mask], np.repeat(expected[:, None], (~mask).sum(), 1), rtol=1e-5)


def test_a_layer_as_the_slope_of_another_stays() -> None:
    model = nets.model(
        [nets.conv(), node("PRelu", ["k", "c"], ["y"])],
        {"w": nets.values(8, 3, 3, 3), "k": nets.values(1, 8, 12, 10)},
    )
    assert nets.op_types(rewritten(model)) == ["PerforatedConv", "PRelu"]


def test_only_one_activation_is_absorbed() -> None:
    tail = [node("LeakyRelu", ["c"], ["d"], alpha=0.5), node("Clip", ["d"], ["y"], min=-1.0, max=1.0)]
    assert nets.op_types(rewritten(nets.followed_by(tail, opset=10))) == ["PerforatedConv", "Clip"]


def test_a_foreign_operator_of_the_same_name_stays() -> None:
    model = nets.followed_by([helper.make_node("Relu", ["c"], ["y"], domain="foreign")], domains=["foreign"])
    proto = nets.rewrite(model, rate=0.5).proto
    assert nets.op_types(proto) == ["PerforatedConv", "Relu"]
    assert proto.graph.node[1] == model.graph.node[1]


def test_an_output_of_the_graph_stays() -> None:
    model = nets.followed_by([node("Relu", ["c"], ["y"])], outputs={"y": (None,) * 4, "c": (None,) * 4})
    proto = rewritten(model)
    assert nets.op_types(proto) == ["PerforatedConv", "Relu"]
    assert [o.name for o in proto.graph.output] == ["y", "c"]


def test_several_consumers_stay() -> None:
    tail = [node("Relu", ["c"], ["d"]), node("Add", ["c", "d"], ["y"])]
    assert nets.op_types(rewritten(nets.followed_by(tail))) == ["PerforatedConv", "Relu", "Add"]


def branches(reads: str) -> tuple[NodeProto, dict[str, tuple[int, ...]]]:
    """An If whose then-branch reads a tensor of the main graph."""
    info = helper.make_tensor_value_info
    then = helper.make_graph([node("Neg", [reads], ["t"])], "then", [], [info("t", TensorProto.FLOAT, [None] * 4)])
    other = helper.make_graph([node("Abs", ["d"], ["e"])], "else", [], [info("e", TensorProto.FLOAT, [None] * 4)])
    return node("If", ["flag"], ["y"], then_branch=then, else_branch=other), {"x": (1, 3, 12, 10)}


def test_a_reader_in_a_branch_counts() -> None:
    """Relu is the only reader in the main graph, and the branch reads the convolution too."""
    made, inputs = branches("c")
    model = nets.followed_by([node("Relu", ["c"], ["d"]), made], inputs=inputs)
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    proto = nets.rewrite(model, rate=0.0).proto
    nets.check(proto)
    assert nets.op_types(proto) == ["PerforatedConv", "Relu", "If"]
    for flag in (True, False):
        nets.assert_same_results(model, proto, {**nets.feed(), "flag": np.array(flag)})


def test_a_branch_that_reads_the_activation() -> None:
    made, inputs = branches("d")
    model = nets.followed_by([node("Relu", ["c"], ["d"]), made], inputs=inputs)
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    proto = nets.rewrite(model, rate=0.0).proto
    assert nets.op_types(proto) == ["PerforatedConv", "If"]
    for flag in (True, False):
        nets.assert_same_results(model, proto, {**nets.feed(), "flag": np.array(flag)})


@pytest.mark.parametrize("method", ["perforate", "sparse", "radius-adaptive"])
def test_every_method_absorbs_what_was_folded_before_it(method: str) -> None:
    tail = [node("Add", ["c", "k"], ["d"]), node("Relu", ["d"], ["y"])]
    model = nets.followed_by(tail, {"k": nets.values(8, 1, 1)})
    proto = rewritten(model, method=method)
    assert len(proto.graph.node) == 1
    assert proto.graph.value_info == [] or all(v.name != "c" for v in proto.graph.value_info)


def test_masked_positions_of_a_sparse_layer_skip_the_activation() -> None:
    """`fill` is written after the activation: Clip(1, 6) leaves 0 there, as it does in the authors' runtime."""
    model = nets.followed_by([clip(min=1.0, max=6.0)], opset=10)
    proto = nets.rewrite(model, rate=0.5, method="sparse", mask="uniform").proto
    (y,) = nets.run(proto, nets.feed())
    mask = nets.constant(proto, proto.graph.node[0].input[3])
    assert (y[..., ~mask] == 0).all()
    assert (y[..., mask] >= 1).all()


def test_stamps() -> None:
    """A new node says what made it; one that had a doc string keeps it, with its metadata."""
    model = nets.followed_by([node("Relu", ["c"], ["y"])])
    proto = nets.rewrite(model, rate=0.5, mask="uniform").proto
    assert proto.graph.node[0].doc_string == "perfonnx: perforate, mask uniform, rate 0.5"
    model.graph.node[0].doc_string = "first layer"
    model.graph.node[0].metadata_props.add(key="scope", value="features.0")
    (layer,) = nets.rewrite(model, rate=0.5).proto.graph.node
    assert layer.doc_string == "first layer"
    assert [(p.key, p.value) for p in layer.metadata_props] == [("scope", "features.0")]


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 17])
@pytest.mark.parametrize(
    "tail",
    [
        node("Relu", ["c"], ["y"]),
        node("LeakyRelu", ["c"], ["y"], alpha=0.25),
        node("Identity", ["c"], ["y"]),
    ],
    ids=lambda value: value.op_type,
)
@pytest.mark.parametrize("method", ["perforate", "sparse"])
def test_infinities_pass_an_activation(tail: NodeProto, opset: int, method: str) -> None:
    """As they would without us: in the original, the kernel, the function body and the reference."""
    layer = nets.conv(kernel_shape=[1, 1], pads=[0] * 4)
    shapes = {"inputs": {"x": (1, 1, 4, 4)}, "outputs": {"y": (1, 1, 4, 4)}}
    model = nets.model([layer, tail], {"w": np.ones((1, 1, 1, 1), np.float32)}, opset=opset, **shapes)
    proto = nets.rewrite(model, rate=0.0, method=method, mask="grid", only=["conv"]).proto
    x = np.linspace(-2, 2, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    x[0, 0, 0, 0], x[0, 0, 3, 3] = -np.inf, np.inf
    (expected,) = nets.run(model, {"x": x})
    assert expected[0, 0, 3, 3] == np.inf
    np.testing.assert_array_equal(nets.run(proto, {"x": x})[0], expected)
    np.testing.assert_array_equal(perfonnx.session(proto).run(None, {"x": x})[0], expected)
    evaluator = ReferenceEvaluator(proto, new_ops=ops.REFERENCE_OPS)
    np.testing.assert_array_equal(evaluator.run(None, {"x": x})[0], expected)
