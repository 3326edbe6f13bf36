"""What depends on constants alone, or on sizes that are fixed, is computed beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import perfonnx
from perfonnx.model import constants, files
from perfonnx.model.constants import fold_constants
from perfonnx.model.shapes import infer_types
from perfonnx.model.tensors import dense_tensor, tensor_bytes
from perfonnx.model.workspace import Workspace
from tests.passes import nets
from tests.passes.nets import node

Made = tuple[list[NodeProto], dict[str, Any]]
"""Nodes that make a constant, and the initializers that they read."""

W = nets.values(8, 3, 3, 3)


def sparse(name: str, *, linear: bool = True) -> onnx.SparseTensorProto:
    """A weight with three values."""
    places = np.array([[0, 1, 2, 0], [3, 0, 1, 1], [7, 2, 2, 2]], np.int64)
    indices = np.ravel_multi_index(tuple(places.T), W.shape) if linear else places
    values = numpy_helper.from_array(np.array([1, -2, 0.5], np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices, f"{name}_at"), W.shape)


def weights() -> Iterator[tuple[str, Made]]:
    """Ways to come to a weight `w`."""
    ints = np.array(W.shape, np.int64)
    yield "Cast", ([node("Cast", ["v"], ["w"], to=TensorProto.FLOAT)], {"v": W.astype(np.float16)})
    yield (
        "Transpose",
        ([node("Transpose", ["v"], ["w"], perm=[3, 2, 0, 1])], {"v": np.ascontiguousarray(W.transpose(2, 3, 1, 0))}),
    )
    yield "Reshape", ([node("Reshape", ["v", "s"], ["w"])], {"v": W.reshape(8, 27), "s": ints})
    yield (
        "ConstantOfShape",
        (
            [node("ConstantOfShape", ["s"], ["w"], value=helper.make_tensor("", 1, [1], [0.1]))],
            {"s": ints},
        ),
    )
    yield "Mul", ([node("Mul", ["v", "s"], ["w"])], {"v": W, "s": nets.values(8, 1, 1, 1)})
    yield "Concat", ([node("Concat", ["u", "v"], ["w"], axis=0)], {"u": W[:5], "v": W[5:]})
    yield (
        "a chain",
        (
            [
                node("Identity", ["v"], ["i"]),
                node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
                node("Identity", ["f"], ["g"]),
                node("Mul", ["g", "g"], ["m"]),
                node("Sub", ["m", "half"], ["s"]),
                node("Identity", ["s"], ["w"]),
            ],
            {"v": W.astype(np.float16), "half": np.array(0.5, np.float32)},
        ),
    )
    yield (
        "value_floats",
        (
            [node("Constant", [], ["v"], value_floats=W.ravel().tolist()), node("Reshape", ["v", "s"], ["w"])],
            {"s": ints},
        ),
    )
    yield (
        "value_ints",
        ([node("Constant", [], ["s"], value_ints=W.shape), node("Reshape", ["v", "s"], ["w"])], {"v": W}),
    )
    yield "sparse_value", ([node("Constant", [], ["w"], sparse_value=sparse("w"))], {})
    yield (
        "bfloat16",
        (
            [node("Cast", ["v"], ["w"], to=TensorProto.FLOAT)],
            {"v": helper.make_tensor("v", TensorProto.BFLOAT16, W.shape, W.ravel().tolist())},
        ),
    )


@pytest.mark.parametrize("layout", ["nchw", "rows"])
@pytest.mark.parametrize("made", [pytest.param(m, id=n) for n, m in weights()])
def test_a_computed_weight_is_a_constant(made: Made, layout: str) -> None:
    nodes, initializers = made
    model = nets.model([*nodes, nets.conv(y="y", b="b")], {**initializers, "b": nets.values(8)})
    assert_rewritten(model, 1, layout)


@pytest.mark.parametrize("linear", [True, False])
def test_a_sparse_initializer_is_a_constant(linear: bool) -> None:
    model = nets.model([nets.conv(y="y")], {})
    model.graph.sparse_initializer.append(sparse("w", linear=linear))
    assert_rewritten(model, 1)


def assert_rewritten(model: ModelProto, layers: int, layout: str = "rows") -> perfonnx.Rewritten:
    """All layers are; the result runs everywhere, and reads initializers where the operators' kernels want them."""
    result = perfonnx.rewrite(model, rate=0.0, layout=layout, only=[""])
    assert len(result.report.layers) == layers, result.report.skips
    nets.check(result.proto)
    held = {t.name for t in result.proto.graph.initializer}
    held |= {n.output[0] for n in result.proto.graph.node if n.op_type == "Constant"}
    for own in nets.ours(result.proto):
        assert held.issuperset(own.input[1:3]), own
    (expected,) = nets.run(model, nets.feed())
    for library in (True, False):
        for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            session = perfonnx.session(result.proto, library=library, options=options)
            (actual,) = session.run(None, nets.feed())
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return result


def test_parameters_of_what_follows() -> None:
    """Normalization, slope, bounds and bias, each from another form of constant, are folded and absorbed."""
    halves = {name: nets.values(8, seed=i).astype(np.float16) for i, name in enumerate(("g", "b", "m"))}
    nodes = [
        *(node("Cast", [name], [f"{name}32"], to=TensorProto.FLOAT) for name in halves),
        node("Constant", [], ["v"], value_floats=[1.0, 2.0] * 4),
        node("Constant", [], ["bias"], value_floats=[0.5] * 8),
        node("Constant", [], ["low"], value_float=0.0),
        node("Constant", [], ["six"], value_int=6),
        node("Cast", ["six"], ["high"], to=TensorProto.FLOAT),
        node("Constant", [], ["slope"], value_float=0.1),
        node("Unsqueeze", ["slope", "axis"], ["slopes"]),
        nets.conv(b="bias"),
        node("BatchNormalization", ["c", "g32", "b32", "m32", "v"], ["n"]),
        node("PRelu", ["n", "slopes"], ["p"]),
        nets.conv("p", "d", "w2", name="second"),
        node("Clip", ["d", "low", "high"], ["y"]),
    ]
    model = nets.model(nodes, {"w": W, "w2": nets.values(8, 8, 3, 3), "axis": np.zeros(1, np.int64), **halves})
    result = assert_rewritten(model, 2, "nchw")
    assert set(nets.op_types(result.proto)) <= {"PerforatedConv", "Constant"}


def test_pads_that_are_put_together() -> None:
    """A region goes through a Pad whose pads are computed, as through any other."""
    nodes = [
        node("Constant", [], ["none"], value_ints=[0, 0]),
        node("Concat", ["none", "one", "none", "one"], ["pads"], axis=0),
        nets.conv(),
        node("Pad", ["c", "pads"], ["p"]),
        nets.conv("p", "y", "v", name="second", pads=[0, 0, 0, 0]),
    ]
    model = nets.model(nodes, {"w": W, "v": nets.values(8, 8, 3, 3), "one": np.array([1, 1], np.int64)})
    result = assert_rewritten(model, 2)
    assert "Pad" not in nets.op_types(result.proto)


def test_only_what_is_rewritten_reads_folded_values() -> None:
    """Everything else computes them as before, and what nothing computes with any more is taken out."""
    nodes = [
        node("Cast", ["v"], ["w"], to=TensorProto.FLOAT),
        node("Cast", ["u"], ["t"], to=TensorProto.FLOAT),
        node("Neg", ["t"], ["idle"]),
        nets.conv("x", "c", "w", name="a"),
        nets.conv("c", "d", "t", name="b"),
        nets.conv("c", "e", "t", name="dense"),
        node("Add", ["d", "e"], ["y"]),
    ]
    halves = {"v": W.astype(np.float16), "u": nets.values(8, 8, 3, 3, dtype=np.float16)}
    model = nets.model(nodes, halves)
    proto = nets.rewrite(model, rate=0.0, only=["^[ab]$"]).proto
    nets.check(proto)
    assert [n.input[0] for n in proto.graph.node if n.op_type == "Cast"] == ["u"]
    assert [n.output[0] for n in proto.graph.node if n.op_type == "Neg"] == ["idle"]  # idle as it came
    assert "v" not in {t.name for t in proto.graph.initializer}
    nets.assert_same_results(model, proto)
    untouched = perfonnx.rewrite(model, skip="").proto
    assert untouched == model


def test_layers_share_a_computed_weight() -> None:
    nodes = [
        node("Cast", ["v"], ["w"], to=TensorProto.FLOAT),
        nets.conv("x", "c", "w", name="a", pads=[1, 1, 1, 1]),
        nets.conv("c", "y", "w", name="b"),
    ]
    model = nets.model(nodes, {"v": nets.values(3, 3, 3, 3, dtype=np.float16)})
    result = assert_rewritten(model, 2, "nchw")
    first, second = nets.ours(result.proto)
    assert first.input[1] == second.input[1]


def test_external_weights_are_cast(tmp_path: Any) -> None:
    model = nets.model(
        [node("Cast", ["v"], ["w"], to=TensorProto.FLOAT), nets.conv(y="y")],
        {"v": nets.values(80, 3, 3, 3, dtype=np.float16)},
    )
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="d")
    perfonnx.rewrite(tmp_path / "m.onnx", tmp_path / "out.onnx", rate=0.0)
    nets.assert_same_results(model, onnx.load(tmp_path / "out.onnx"))


# --- what is left ----------------------------------------------------------------------------------------------------


def quantized() -> Made:
    nodes = [node("DequantizeLinear", ["v", "scale", "zero"], ["q"], axis=0), node("Identity", ["q"], ["w"])]
    scale, zero = np.full(8, 0.02, np.float32), np.zeros(8, np.int8)
    return nodes, {"v": (W * 50).astype(np.int8), "scale": scale, "zero": zero}


def quantized_pair() -> list[NodeProto]:
    """As quantizers that keep floats write it."""
    return [node("QuantizeLinear", ["f", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["w"])]


@pytest.mark.parametrize(
    ("made", "inputs_too", "reason"),
    [
        (quantized(), [], "quantized weights (DequantizeLinear)"),
        (
            (
                [node("Cast", ["v"], ["f"], to=TensorProto.FLOAT), *quantized_pair()],
                {"v": W.astype(np.float16), "s": np.array(0.02, np.float32)},
            ),
            [],
            "quantized weights (DequantizeLinear)",
        ),
        (
            ([node("RandomNormal", [], ["w"], shape=W.shape)], {}),
            [],
            "its weight is not constant (computed by RandomNormal)",
        ),
        (
            ([node("Cast", ["v"], ["w"], to=TensorProto.FLOAT)], {"v": W.astype(np.float16)}),
            ["v"],
            "its weight is computed from 'v', which is also a graph input; --freeze-weights makes it constant",
        ),
        (
            ([node("ReduceSum", ["x"], ["s"], keepdims=0), node("Mul", ["v", "s"], ["w"])], {"v": W}),
            [],
            "its weight is not constant (computed by Mul)",
        ),
    ],
)
def test_weights_that_are_left(made: Made, inputs_too: list[str], reason: str) -> None:
    nodes, initializers = made
    model = nets.model([*nodes, nets.conv(y="y")], initializers, inputs_too=inputs_too)
    result = perfonnx.rewrite(model, rate=0.5, only=[""])
    assert [skip.reason for skip in result.report.skips] == [reason]
    assert result.proto == model
    if inputs_too:
        assert len(perfonnx.rewrite(model, rate=0.5, freeze_weights=True).report.layers) == 1


def folded(model: ModelProto) -> dict[str, np.ndarray]:
    workspace = Workspace.open(files.load(model))
    infer_types(workspace)
    return {name: numpy_helper.to_array(tensor) for name, tensor in workspace.folded.items()}


def test_what_would_blow_up_is_not_folded() -> None:
    """A long way from a shape to a large map; only weights may be made of so little."""
    large = np.array([1, 8, 1000, 1000], np.int64)
    nodes = [
        node("ConstantOfShape", ["s"], ["zeros"]),
        node("Expand", ["one", "s"], ["ones"]),
        node("Tile", ["few", "times"], ["many"]),
        node("Range", ["start", "end", "step"], ["numbers"]),
        node("Neg", ["ones"], ["minus"]),
        nets.conv(y="y"),
        *(node("ReduceSum", [name], [f"{name}_sum"], keepdims=0) for name in ("zeros", "minus", "many", "numbers")),
    ]
    constants = {
        "w": W,
        "s": large,
        "one": np.ones(1, np.float32),
        "few": np.ones(100, np.float32),
        "times": np.array([10**11], np.int64),
        "start": np.array(0.0),
        "end": np.array(1e12),
        "step": np.array(1.0),
    }
    assert folded(nets.model(nodes, constants)) == {}


def test_doublings_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes only twice what it is made from, all together would take a terabyte."""
    monkeypatch.setattr(constants, "_LARGEST_MADE", 1 << 16)
    nodes = [node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(32)]
    workspace = Workspace.open(
        files.load(nets.model([*nodes, nets.conv(y="y")], {"w": W, "c0": np.ones(64, np.float32)}))
    )
    assert fold_constants(workspace)
    assert 1 << 15 < sum(tensor_bytes(tensor) for tensor in workspace.folded.values()) < 1 << 17


def test_division_of_whole_numbers_by_zero_is_left_to_others() -> None:
    """onnxruntime would stop the process."""
    nodes = [
        node("Div", ["a", "b"], ["c"]),
        node("Mod", ["a", "b"], ["d"]),
        node("Div", ["a", "two"], ["half"]),
        nets.conv(y="y"),
    ]
    numbers = {"a": np.array([7, 8], np.int64), "b": np.array([1, 0], np.int64), "two": np.array(2, np.int64)}
    values = folded(nets.model(nodes, {"w": W, **numbers}))
    assert {name: array.tolist() for name, array in values.items()} == {"half": [3, 4]}


def test_a_node_that_cannot_be_run_does_not_keep_the_others() -> None:
    nodes = [
        node("Reshape", ["a", "bad"], ["c"]),
        node("Transpose", ["a"], ["t"]),
        node("Gather", ["a", "far"], ["g"]),
        nets.conv(y="y"),
    ]
    numbers = {"a": nets.values(2, 3), "bad": np.array([4, -1], np.int64), "far": np.array([9], np.int64)}
    assert list(folded(nets.model(nodes, {"w": W, **numbers}))) == ["t"]


@pytest.mark.parametrize("places", [[[0, 0, 0, 9]], [[-1, 0, 0, 0]], [[0, 0]]])
def test_sparse_tensors_with_wrong_indices(places: list[list[int]]) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(places, np.int64)), W.shape)
    assert dense_tensor(tensor) is None
    huge = helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64)), [2**31, 2**31])
    assert dense_tensor(huge) is None


# --- sizes -----------------------------------------------------------------------------------------------------------


def upsampled(batch: int | str, factor: list[NodeProto]) -> ModelProto:
    """Conv, Resize to a computed size, Conv; `factor` makes `hw` from the sizes `h` and `w_` of the first one's map."""
    nodes = [
        nets.conv(),
        node("Relu", ["c"], ["r"]),
        node("Shape", ["r"], ["shape"]),
        node("Gather", ["shape", "two"], ["h"]),
        node("Gather", ["shape", "three"], ["w_"]),
        *factor,
        node("Slice", ["shape", "zero", "twos"], ["nc"]),
        node("Concat", ["nc", "hw"], ["sizes"], axis=0),
        node(
            "Resize", ["r", "", "", "sizes"], ["u"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        ),
        nets.conv("u", "y", "v", name="second"),
    ]
    numbers = {
        "two": np.array(2, np.int64),
        "three": np.array(3, np.int64),
        "zero": np.array([0], np.int64),
        "twos": np.array([2], np.int64),
        "times": np.array(2, np.float32),
        "one_axis": np.array([0], np.int64),
        "itwo": np.array(2, np.int64),
    }
    initializers = {"w": W, "v": nets.values(8, 8, 3, 3), **numbers}
    return nets.model(nodes, initializers, inputs={"x": (batch, 3, 12, 10)}, outputs={"y": (batch, 8, None, None)})


def by_floats() -> list[NodeProto]:
    """As torch exported it for years."""
    nodes = []
    for name in ("h", "w_"):
        nodes += [
            node("Cast", [name], [f"{name}f"], to=TensorProto.FLOAT),
            node("Mul", [f"{name}f", "times"], [f"{name}m"]),
            node("Floor", [f"{name}m"], [f"{name}l"]),
            node("Cast", [f"{name}l"], [f"{name}i"], to=TensorProto.INT64),
            node("Unsqueeze", [f"{name}i", "one_axis"], [f"{name}u"]),
        ]
    return [*nodes, node("Concat", ["hu", "w_u"], ["hw"], axis=0)]


def by_numbers() -> list[NodeProto]:
    """Multiplied, divided and added as whole numbers."""
    nodes = []
    for name in ("h", "w_"):
        nodes += [
            node("Add", [name, name], [f"{name}2"]),
            node("Mul", [f"{name}2", "itwo"], [f"{name}4"]),
            node("Div", [f"{name}4", "itwo"], [f"{name}d"]),
            node("Reshape", [f"{name}d", "zero_to_one"], [f"{name}u"]),
        ]
    ones = node("Constant", [], ["zero_to_one"], value_ints=[1])
    return [ones, *nodes, node("Concat", ["hu", "w_u"], ["hw"], axis=0)]


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("factor", [by_floats(), by_numbers()], ids=["floats", "numbers"])
def test_sizes_that_are_computed(batch: int | str, factor: list[NodeProto]) -> None:
    model = upsampled(batch, factor)
    result = perfonnx.rewrite(model, rate=0.0)
    assert [layer.output_shape for layer in result.report.layers] == [(12, 10), (24, 20)]
    feeds = nets.feed(1 if batch == 1 else 2, 3, 12, 10)
    expected = nets.run(model, feeds)[0]
    for library in (True, False):
        (actual,) = perfonnx.session(result.proto, library=library).run(None, feeds)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    if batch == 1:  # all is known, and the region goes through
        assert "Resize" not in nets.op_types(result.proto)
        assert not {"Shape", "Gather", "Floor", "Mul"} & set(nets.op_types(result.proto))


def test_sizes_behind_sizes() -> None:
    """What is behind a Reshape of computed size has a shape of its own, from which the next sizes are computed."""
    nodes = [nets.conv("x", "m0", "w0", name="c0")]
    numbers: dict[str, Any] = {"w0": nets.values(4, 3, 3, 3), "half": np.array([1, 1, 2, 1], np.int64)}
    for i in range(3):
        nodes += [
            node("Shape", [f"m{i}"], [f"s{i}"]),
            node("Div", [f"s{i}", "half"], [f"t{i}"]),
            node("Resize", [f"m{i}", "", "", f"t{i}"], [f"r{i}"]),
            nets.conv(f"r{i}", f"m{i + 1}", f"w{i + 1}", name=f"c{i + 1}"),
        ]
        numbers[f"w{i + 1}"] = nets.values(4, 4, 3, 3, seed=i)
    model = nets.model(nodes, numbers, inputs={"x": (1, 3, 16, 6)}, outputs={"m3": (1, 4, 2, 6)})
    result = perfonnx.rewrite(model, rate=0.0, only=[""])
    assert [layer.output_shape for layer in result.report.layers] == [(16, 6), (8, 6), (4, 6), (2, 6)]
    nets.assert_same_results(model, result.proto, nets.feed(1, 3, 16, 6))


@pytest.mark.parametrize("layout", ["nchw", "rows"])
def test_a_layer_of_which_only_the_size_is_read_is_still_a_layer(layout: str) -> None:
    """A plan may name it, and the report has it."""
    nodes = [
        nets.conv("x", "c", "w", name="a", strides=[2, 2]),
        node("Relu", ["c"], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Slice", ["s", "two", "four"], ["hw"]),
        node("Concat", ["nc", "hw"], ["sizes"], axis=0),
        node("Resize", ["x", "", "", "sizes"], ["u"]),
        nets.conv("u", "y", "v", name="b"),
    ]
    numbers = {name: np.array(v, np.int64) for name, v in (("two", [2]), ("four", [4]), ("nc", [1, 3]))}
    model = nets.model(nodes, {"w": W, "v": nets.values(8, 3, 3, 3, seed=1), **numbers})
    plan = perfonnx.rewrite(model, rate=0.0, only=[""], layout=layout).plan
    result = perfonnx.rewrite(model, plan=plan)
    assert [layer.name for layer in result.report.layers] == ["a", "b"]
    nets.assert_same_results(model, result.proto)


def test_what_is_open_stays_open() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "at"], ["front"]),
        node("Mul", ["s", "s"], ["square"]),
        node("Slice", ["square", "two", "four"], ["tail"]),
        node("Concat", ["tail", "front"], ["mixed"], axis=0),
        node("ReduceProd", ["front"], ["count"]),
        node("ReduceProd", ["tail"], ["area"]),
        node("Size", ["x"], ["all"]),
        node("Shape", ["x"], ["hw"], start=-2),
        nets.conv(y="y"),
    ]
    numbers = {name: np.array(v, np.int64) for name, v in (("at", [0, 1]), ("two", [2]), ("four", [4]))}
    values = folded(nets.model(nodes, {"w": W, **numbers}, inputs={"x": ("N", 3, 12, 10)}))
    assert {n: v.tolist() for n, v in values.items()} == {"tail": [144, 100], "area": [14400], "hw": [12, 10]}


def test_folding_ends() -> None:
    workspace = Workspace.open(files.load(upsampled(1, by_floats())))
    infer_types(workspace)
    assert not fold_constants(workspace)
