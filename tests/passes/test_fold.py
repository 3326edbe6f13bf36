from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.passes import nets
from tests.passes.nets import node

BN_NAMES = ("gamma", "beta", "mean", "variance")


def bn_constants(channels: int = 8, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    made = [rng.uniform(0.5, 2, channels), rng.normal(size=channels), rng.normal(size=channels)]
    return dict(zip(BN_NAMES, (v.astype(dtype) for v in [*made, rng.uniform(0.5, 2, channels)]), strict=True))


def bn(x: str = "c", y: str = "y", *, epsilon: float = 1e-3, **attributes: object) -> NodeProto:
    return node("BatchNormalization", [x, *BN_NAMES], [y], epsilon=epsilon, **attributes)


def rewritten(model: ModelProto, **options: object) -> ModelProto:
    """At rate 0, checked against the original."""
    proto = nets.rewrite(model, rate=0.0, only=["conv"], **options).proto
    nets.check(proto)
    nets.assert_same_results(model, proto)
    return proto


@pytest.mark.parametrize(
    ("opset", "attributes"),
    [(7, {}), (7, {"spatial": 1}), (9, {"momentum": 0.5}), (14, {}), (15, {"training_mode": 0}), (22, {})],
)
def test_batch_normalization_is_folded(opset: int, attributes: dict[str, Any]) -> None:
    model = nets.followed_by([bn(**attributes)], bn_constants(), opset=opset)
    proto = rewritten(model)
    assert nets.op_types(proto) == ["PerforatedConv"]
    assert list(proto.graph.node[0].output) == ["y"]
    assert not {t.name for t in proto.graph.initializer} & {*BN_NAMES, "w", "b"}, "what is no longer used must go"


def test_folding_happens_before_interpolation() -> None:
    """A skipped position of zero interpolation is 0 after normalization, whether the exporter folded or not."""
    model = nets.followed_by([bn()], bn_constants())
    proto = nets.rewrite(model, rate=0.5, interpolation="zero").proto
    (y,) = nets.run(proto, nets.feed())
    mask = nets.constant(proto, nets.ours(proto)[0].input[3])
    assert not mask.all()
    assert (y[..., ~mask] == 0).all()
    (dense,) = nets.run(model, nets.feed())
    np.testing.assert_allclose(y[..., mask], dense[..., mask], rtol=0, atol=1e-5)


def test_a_convolution_without_bias_gets_one() -> None:
    model = nets.model([nets.conv(), bn()], {"w": nets.values(8, 3, 3, 3), **bn_constants()})
    proto = rewritten(model)
    assert nets.op_types(proto) == ["PerforatedConv"]
    assert nets.constant(proto, proto.graph.node[0].input[2]).any()


def test_training_mode_is_not_folded() -> None:
    made = node("BatchNormalization", ["c", *BN_NAMES], ["y", "m", "v"], training_mode=1)
    proto = nets.rewrite(nets.followed_by([made], bn_constants(), opset=14), rate=0.5).proto
    assert nets.op_types(proto) == ["PerforatedConv", "BatchNormalization"]
    nets.check(proto)


@pytest.mark.parametrize("opset", [7, 8, 9, 13])
def test_outputs_of_statistics_are_training_mode_read_or_not(opset: int) -> None:
    made = node("BatchNormalization", ["c", *BN_NAMES], ["y", "m", "v", "sm", "sv"])
    model = nets.followed_by([made], bn_constants(), opset=opset)
    proto = nets.rewrite(model, rate=0.0, only=["conv"]).proto
    assert nets.op_types(proto) == ["PerforatedConv", "BatchNormalization"]
    nets.assert_same_results(model, proto)


@pytest.mark.parametrize("opset", [7, 13])
def test_outputs_that_are_left_out_are_none(opset: int) -> None:
    made = node("BatchNormalization", ["c", *BN_NAMES], ["y", "", "", "", ""])
    assert nets.op_types(rewritten(nets.followed_by([made], bn_constants(), opset=opset))) == ["PerforatedConv"]


def test_statistics_that_are_graph_outputs_keep_the_node() -> None:
    made = node("BatchNormalization", ["c", *BN_NAMES], ["y", "m", "v", "sm", "sv"])
    model = nets.followed_by([made], bn_constants(), opset=9, outputs={"y": (None,) * 4, "m": (8,)})
    proto = nets.rewrite(model, rate=0.5).proto
    assert "BatchNormalization" in nets.op_types(proto)
    assert [o.name for o in proto.graph.output] == ["y", "m"]


def test_per_activation_normalization_of_opset_7_is_not_folded() -> None:
    model = nets.followed_by(
        [bn(spatial=0)], {k: np.broadcast_to(v[:, None, None], (8, 12, 10)) for k, v in bn_constants().items()}, opset=7
    )
    proto = nets.rewrite(model, rate=0.5).proto
    assert nets.op_types(proto) == ["PerforatedConv", "BatchNormalization"]


@pytest.mark.parametrize("name", BN_NAMES)
def test_parameters_that_are_not_constant_are_not_folded(name: str) -> None:
    constants = bn_constants()
    given = constants.pop(name)
    model = nets.followed_by([bn()], constants, inputs={"x": (1, 3, 12, 10), name: (8,)})
    proto = nets.rewrite(model, rate=0.0).proto
    assert nets.op_types(proto) == ["PerforatedConv", "BatchNormalization"]
    nets.assert_same_results(model, proto, {**nets.feed(), name: given})


def test_parameters_that_a_caller_may_replace_are_not_folded() -> None:
    model = nets.followed_by([bn()], bn_constants(), inputs_too=["mean"])
    assert "BatchNormalization" in nets.op_types(nets.rewrite(model, rate=0.5).proto)
    frozen = nets.rewrite(model, rate=0.5, freeze_weights=True).proto
    assert nets.op_types(frozen) == ["PerforatedConv"]
    assert [i.name for i in frozen.graph.input] == ["x"]


@pytest.mark.parametrize("variance", [-1.0, -1e-3, np.nan])
def test_a_normalization_that_divides_by_zero_is_left_alone(
    variance: float, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    constants = bn_constants()
    constants["variance"][2] = variance
    model = nets.followed_by([bn(epsilon=1e-3)], constants)
    proto = nets.rewrite(model, rate=0.5).proto
    assert nets.op_types(proto) == ["PerforatedConv", "BatchNormalization"]
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_values_that_float16_cannot_hold_are_not_folded() -> None:
    constants = {"s": np.full((1, 8, 1, 1), 6e4, np.float16), "t": np.full((1, 8, 1, 1), 1e-4, np.float16)}
    weights = {"w": np.full((8, 3, 3, 3), 2, np.float16), "b": np.zeros(8, np.float16)}
    tail = [node("Mul", ["c", "t"], ["d"]), node("Mul", ["d", "s"], ["y"])]
    model = nets.model([nets.conv(b="b"), *tail], {**weights, **constants}, dtype=TensorProto.FLOAT16)
    assert nets.op_types(nets.rewrite(model, rate=0.5).proto) == ["PerforatedConv"], "the product is fine"
    model.graph.node[1].input[1] = "s"
    assert nets.op_types(nets.rewrite(model, rate=0.5).proto) == ["PerforatedConv", "Mul", "Mul"]


PER_CHANNEL = [(8, 1, 1), (1, 8, 1, 1), (1, 1, 1), (1, 1), (1,), ()]


@pytest.mark.parametrize("shape", PER_CHANNEL)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("constant_first", [False, True])
def test_arithmetic_per_channel(op: str, shape: Sequence[int], constant_first: bool) -> None:
    constant = np.random.default_rng(5).uniform(0.5, 2, shape).astype(np.float32)
    inputs = ["k", "c"] if constant_first else ["c", "k"]
    proto = rewritten(nets.followed_by([node(op, inputs, ["y"])], {"k": constant}))
    if op == "Div" and constant_first:
        assert nets.op_types(proto) == ["PerforatedConv", "Div"]
    else:
        assert nets.op_types(proto) == ["PerforatedConv"]


@pytest.mark.parametrize("shape", [(10,), (12, 1), (12, 10), (8, 12, 1), (8, 1, 10), (1, 8, 12, 10), (2, 8, 1, 1)])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_arithmetic_of_another_shape_stays(op: str, shape: Sequence[int]) -> None:
    proto = rewritten(nets.followed_by([node(op, ["c", "k"], ["y"])], {"k": nets.values(*shape)}))
    assert nets.op_types(proto) == ["PerforatedConv", op]


def test_arithmetic_that_raises_the_rank_stays() -> None:
    model = nets.followed_by(
        [node("Add", ["c", "k"], ["y"])], {"k": nets.values(1, 1, 1, 1, 1)}, outputs={"y": (None,) * 5}
    )
    assert nets.op_types(rewritten(model)) == ["PerforatedConv", "Add"]


def test_one_channel_does_not_stretch_to_many() -> None:
    """With a single output channel a constant of 8 channels makes the map wider: that is no folding."""
    weights = {"w": nets.values(1, 3, 3, 3), "k": nets.values(8, 1, 1)}
    model = nets.model([nets.conv(), node("Add", ["c", "k"], ["y"])], weights)
    assert nets.op_types(rewritten(model)) == ["PerforatedConv", "Add"]


def test_division_by_zero_stays() -> None:
    model = nets.followed_by([node("Div", ["c", "k"], ["y"])], {"k": np.zeros((8, 1, 1), np.float32)})
    assert nets.op_types(nets.rewrite(model, rate=0.5).proto) == ["PerforatedConv", "Div"]


def test_adding_a_layer_to_itself_stays() -> None:
    proto = rewritten(nets.followed_by([node("Add", ["c", "c"], ["y"])]))
    assert nets.op_types(proto) == ["PerforatedConv", "Add"]


def test_a_chain_is_folded_as_one() -> None:
    tail = [
        node("Mul", ["c", "s"], ["d"]),
        bn("d", "e"),
        node("Sub", ["t", "e"], ["f"]),
        node("Div", ["f", "s"], ["g"]),
        node("Relu", ["g"], ["y"]),
    ]
    constants = {"s": np.linspace(0.5, 2, 8, dtype=np.float32)[:, None, None], "t": nets.values(8, 1, 1)}
    proto = rewritten(nets.followed_by(tail, {**constants, **bn_constants()}))
    assert nets.op_types(proto) == ["PerforatedConv"]
    assert nets.attribute(proto.graph.node[0], "clip_min") == 0


def test_constants_from_constant_nodes_and_typed_fields() -> None:
    typed = helper.make_tensor("k", TensorProto.FLOAT, [8, 1, 1], np.linspace(1, 2, 8).tolist())
    tail = [
        node("Constant", [], ["s"], value=numpy_helper.from_array(nets.values(8, 1, 1))),
        node("Mul", ["c", "s"], ["d"]),
        node("Add", ["d", "k"], ["y"]),
    ]
    proto = rewritten(nets.followed_by(tail, {"k": typed}))
    assert nets.op_types(proto) == ["PerforatedConv"]


def test_a_constant_that_another_node_reads_stays() -> None:
    tail = [bn("c", "d"), node("Relu", ["d"], ["r"]), bn("r", "y")]
    proto = rewritten(nets.followed_by(tail, bn_constants()))
    assert nets.op_types(proto).count("BatchNormalization") == 1
    assert {"gamma", "mean"} <= {t.name for t in proto.graph.initializer}


def test_shared_weights_are_copied_not_changed() -> None:
    nodes = [
        nets.conv(y="c", b="b"),
        bn("c", "d"),
        nets.conv(y="other", b="b", name="other"),
        node("Add", ["d", "other"], ["y"]),
    ]
    model = nets.model(nodes, {"w": nets.values(8, 3, 3, 3), "b": nets.values(8), **bn_constants()})
    proto = nets.rewrite(model, rate=0.0, only=["^conv$"]).proto
    nets.assert_same_results(model, proto)
    np.testing.assert_array_equal(nets.constant(proto, "w"), nets.values(8, 3, 3, 3))
    np.testing.assert_array_equal(nets.constant(proto, "b"), nets.values(8))
    both = nets.rewrite(model, rate=0.0).proto
    nets.assert_same_results(model, both)
    assert len(nets.ours(both)) == 2


def test_names_that_are_taken() -> None:
    """`w.folded` exists already, with other values, as do names in a subgraph's reach."""
    model = nets.followed_by([bn(y="d"), node("Mul", ["d", "w.folded"], ["y"])], bn_constants())
    model.graph.initializer.append(numpy_helper.from_array(nets.values(12, 10), "w.folded"))
    model.graph.value_info.append(helper.make_tensor_value_info("w.folded_1", TensorProto.FLOAT, [1]))
    proto = rewritten(model)
    names = [t.name for t in proto.graph.initializer]
    assert len(names) == len(set(names))


def test_an_intermediate_graph_output_stops_folding() -> None:
    model = nets.followed_by([bn()], bn_constants(), outputs={"y": (None,) * 4, "c": (None,) * 4})
    proto = rewritten(model)
    assert nets.op_types(proto) == ["PerforatedConv", "BatchNormalization"]
