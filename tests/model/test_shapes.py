"""Shapes follow from a model's inputs; what its file says of them is checked, not believed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import perfonnx
from perfonnx.data.inputs import parse_input_shapes
from perfonnx.inspection import inspect
from perfonnx.model import files
from perfonnx.model.layers import conv_layers
from perfonnx.model.shapes import contradiction_note, infer_types, symbolic_input_flag
from perfonnx.model.signature import fix_input_shapes
from perfonnx.model.workspace import Workspace
from perfonnx.rewriting import Report
from tests.passes import nets
from tests.passes.nets import Shape, node

OTHER = "com.microsoft"
TWO = {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3)}


def says(model: ModelProto, *declared: tuple[str, Shape]) -> ModelProto:
    """The model with more value_info."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in declared]
    model.graph.value_info.extend(infos)
    return model


def types_of(model: ModelProto) -> Workspace:
    workspace = Workspace.open(files.load(model))
    infer_types(workspace)
    return workspace


def two_convolutions(*between: object, **options: object) -> ModelProto:
    """The chain x -> c, then `between` from r to s, then the second convolution and y."""
    nodes = [nets.conv(), node("Relu", ["c"], ["r"]), *between, nets.conv("s", "d", "v", name="second")]
    return nets.model([*nodes, node("Relu", ["d"], ["y"])], TWO, **options)  # type: ignore[arg-type,list-item]


def check(model: ModelProto, *feeds: dict[str, np.ndarray], layers: int, **options: object) -> Report:
    """At rate 0 the rewritten model gives what the original gives, by kernels and by bodies, in both layouts."""
    for layout in ("rows", "nchw"):
        result = perfonnx.rewrite(model, rate=0.0, layout=layout, only=["."], **options)
        assert len(result.report.layers) == layers, result.report.skips
        for feed in feeds or (nets.feed(),):
            expected = nets.run(model, feed)
            for library in (True, False):
                found = perfonnx.session(result.to_bytes(), library=library).run(None, feed)
                for a, b in zip(expected, found, strict=True):
                    np.testing.assert_allclose(b, a, rtol=0, atol=1e-4)
    return result.report


STALE: dict[str, list[tuple[str, Shape]]] = {
    "smaller": [("c", (1, 8, 6, 5)), ("r", (1, 8, 6, 5)), ("s", (1, 8, 3, 2)), ("d", (1, 8, 3, 2))],
    "larger": [("c", (1, 8, 24, 20)), ("r", (1, 8, 24, 20)), ("s", (1, 8, 12, 10)), ("d", (1, 8, 12, 10))],
    "in one place": [("s", (1, 8, 3, 2))],
    "of another rank": [("r", (8, 12, 10)), ("d", (1, 8, 60))],
    "with symbols": [("c", ("N", 8, "H", "W")), ("c", ("M", 8, "K", "L")), ("c", ("M", 8, 6, "L"))],
    "of no size": [("c", (-1, 8, -1, -1)), ("s", (0, 0, 0, 0))],
}


@pytest.mark.parametrize("declared", STALE.values(), ids=STALE)
def test_stale_value_info_changes_nothing(declared: list[tuple[str, Shape]]) -> None:
    pool = node("MaxPool", ["r"], ["s"], kernel_shape=[2, 2], strides=[2, 2])
    report = check(says(two_convolutions(pool), *declared), layers=2)
    assert {layer.output_shape for layer in report.layers} == {(12, 10), (6, 5)}


def test_stale_value_info_at_every_rate() -> None:
    """Half of the positions are sampled: those of the true size."""
    pool = node("MaxPool", ["r"], ["s"], kernel_shape=[2, 2], strides=[2, 2])
    model = two_convolutions(pool)
    expected = perfonnx.rewrite(model, rate=0.5).proto
    stale = perfonnx.rewrite(says(model, *STALE["smaller"]), rate=0.5).proto
    for a, b in zip(nets.run(expected, nets.feed()), nets.run(stale, nets.feed()), strict=True):
        np.testing.assert_array_equal(b, a)


def test_a_declared_output_that_a_layer_reads_is_no_fact() -> None:
    model = two_convolutions(node("Identity", ["r"], ["s"]), outputs={"y": (None,) * 4, "c": (1, 8, 6, 5)})
    check(model, layers=2)
    proto = perfonnx.rewrite(model, rate=0.5).proto
    assert [d.dim_value for d in proto.graph.output[1].type.tensor_type.shape.dim] == [1, 8, 12, 10]


def test_the_report_says_what_is_wrong() -> None:
    pool = node("MaxPool", ["r"], ["s"], kernel_shape=[2, 2], strides=[2, 2])
    model = says(two_convolutions(pool), ("r", (1, 8, 12, 10)), ("s", (1, 8, 3, 2)), ("d", (1, 8, 3, 2)))
    note = (
        "the file's value_info contradicts its inputs at 2 tensors (first: 's' is [1, 8, 6, 5], not [1, 8, 3, 2]); "
        "ignored"
    )
    assert perfonnx.rewrite(model).report.notes == [note]
    assert inspect(model).notes == [note]
    proto = perfonnx.rewrite(model, rate=0.5).proto
    assert contradiction_note(types_of(proto)) is None, "what onnxruntime would believe must be right"


def test_right_value_info_is_no_news() -> None:
    model = says(two_convolutions(node("Identity", ["r"], ["s"])), ("c", (1, 8, 12, 10)), ("r", (1, "C", None, 10)))
    report = perfonnx.rewrite(model, rate=0.5).report
    assert report.notes == []


def test_bodies_and_functions_may_be_stale_too() -> None:
    small = helper.make_tensor_value_info("t", TensorProto.FLOAT, (1, 8, 2, 2))
    branches = [helper.make_graph([node("Neg", ["r"], ["t"])], "branch", [], [small]) for _ in range(2)]
    chosen = node("If", ["k"], ["f"], then_branch=branches[0], else_branch=branches[1])
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    function.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, (1, 8, 2, 2)))
    model = two_convolutions(chosen, node("Twice", ["f"], ["s"], domain="local"), domains=["local"])
    model.graph.initializer.append(helper.make_tensor("k", TensorProto.BOOL, [], [True]))
    model.functions.append(function)
    check(model, layers=2)


# --- the batch -------------------------------------------------------------------------------------------------------


def test_the_batch_is_not_that_of_the_value_info() -> None:
    pool = node("MaxPool", ["r"], ["s"], kernel_shape=[2, 2], strides=[2, 2])
    model = two_convolutions(pool, inputs={"x": ("N", 3, 12, 10)})
    says(model, ("c", (1, 8, 12, 10)), ("r", (1, 8, 12, 10)), ("s", (1, 8, 6, 5)), ("d", (1, 8, 6, 5)))
    report = check(model, nets.feed(), nets.feed(4, 3, 12, 10), layers=2)
    assert report.notes == [
        "the file's value_info contradicts its inputs at 4 tensors (first: 'c' is [N, 8, 12, 10], not "
        "[1, 8, 12, 10]); ignored"
    ]


def test_open_batches_of_two_inputs_need_not_be_equal() -> None:
    """A convolution adds what has the batch of its input, not what may be broadcast against it."""
    nodes = [
        nets.conv("x", "c"),
        nets.conv("c", "d", "v", name="second"),
        nets.conv("z", "e", "w", name="third"),
        nets.conv("e", "f", "v", name="fourth"),
        node("Add", ["d", "f"], ["a"]),
        nets.conv("a", "y", "v", name="fifth"),
    ]
    model = nets.model(nodes, TWO, inputs={"x": (None, 3, 12, 10), "z": (None, 3, 12, 10)})
    sizes = ((2, 2), (1, 3), (3, 1))
    feeds = [{"x": nets.feed(a, 3, 12, 10)["x"], "z": nets.feed(b, 3, 12, 10, seed=2)["x"]} for a, b in sizes]
    check(model, *feeds, layers=5)


# --- sizes that are no sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_size", [-1, 0, None, "size"])
def test_sizes_below_one_are_open(open_size: int | str | None) -> None:
    shape = (open_size, 3, open_size, open_size)
    model = nets.model(
        [nets.conv(y="y")], TWO, inputs={"x": shape}, outputs={"y": (open_size, 8, open_size, open_size)}
    )
    with pytest.raises(perfonnx.PerfonnxError, match="height and width are not fixed") as caught:
        perfonnx.rewrite(model)
    flag = str(caught.value).split("--input-shape ")[1].split(" ")[0]
    shapes = parse_input_shapes([flag.replace("224", "12")])
    assert shapes["x"][1:] == (3, 12, 12)
    result = perfonnx.rewrite(model, rate=0.5, input_shapes=shapes)
    assert [layer.output_shape for layer in result.report.layers] == [(12, 12)]
    for batch in (1, 2):
        feeds = nets.feed(batch, 3, 12, 12)
        assert perfonnx.session(result.to_bytes()).run(None, feeds)[0].shape == (batch, 8, 12, 12)


@pytest.mark.parametrize("shape", [(-1, 3, 12, 10), (0, 3, 12, 10), (1, 3, -1, 10), (1, 3, 0, -1)])
def test_no_size_in_a_report_is_negative(shape: Shape) -> None:
    model = says(nets.single(y=shape), ("y", shape))
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    report = perfonnx.rewrite(model, skip=["."], input_shapes={"x": ("N", 3, 12, 10)}).report
    assert min(*report.activations, *report.multiplies) > 0


@pytest.mark.parametrize(
    ("name", "shape", "flag"),
    [
        ("x", ("batch size", 3, "?h", None), "--input-shape x:N,3,224,224"),
        ("x:0", ("unk__1", 3, 224, None), "--input-shape x:0:unk__1,3,224,224"),
        ("an image", (1, 3, "h", "w"), "--input-shape 'an image:1,3,224,224'"),
    ],
)
def test_the_flag_that_is_suggested_is_understood(name: str, shape: Shape, flag: str) -> None:
    model = nets.model([nets.conv(name, "y")], TWO, inputs={name: shape})
    assert symbolic_input_flag(types_of(model)) == flag
    text = flag.removeprefix("--input-shape ").strip("'")
    fix_input_shapes(files.load(model), parse_input_shapes([text]))


def test_value_info_with_many_symbols_does_not_keep_a_given_size_out() -> None:
    inputs = {"x": ("N", 3, "H", "W")}
    model = two_convolutions(node("Neg", ["r"], ["s"]), inputs=inputs, outputs={"y": ("N", 8, "H", "W")})
    says(
        model,
        ("c", ("N", 8, "H", "W")),
        ("c", ("a", 8, "b", "d")),
        ("r", ("e", 8, "f", "g")),
        ("r", ("N", 8, "H", "W")),
    )
    check(model, layers=2, input_shapes={"x": ("N", 3, 12, 10)})


# --- sizes that onnx does not know -----------------------------------------------------------------------------------


def quick_gelu(x: str, y: str) -> object:
    """An operator that onnx has no shapes for, and onnxruntime runs."""
    return node("QuickGelu", [x], [y], domain=OTHER, alpha=1.0)


@pytest.mark.parametrize("batch", [1, "N", None])
@pytest.mark.parametrize("claimed", [None, (1, 8, 12, 10), (1, 8, 6, 5), (4, 8, 24, 20), (8, 120)])
def test_what_another_operator_gives_is_measured(batch: int | str | None, claimed: Shape | None) -> None:
    model = two_convolutions(quick_gelu("r", "s"), inputs={"x": (batch, 3, 12, 10)}, domains=[OTHER])
    if claimed is not None:
        says(model, ("s", claimed))
    feeds = [nets.feed()] + ([] if batch == 1 else [nets.feed(3, 3, 12, 10)])
    check(model, *feeds, layers=2)


def test_an_operator_that_cannot_be_run_is_not_believed() -> None:
    model = two_convolutions(node("Secret", ["r"], ["s"], domain="nobody"), domains=["nobody"])
    report = perfonnx.rewrite(says(model, ("s", (1, 8, 6, 5))), rate=0.5).report
    assert [layer.name for layer in report.layers] == ["conv"]
    assert [skip.reason for skip in report.skips] == ["shape inference does not reach its input"]


def sized_by_brightness() -> list[object]:
    """Nodes that give `size` [4]: `small` where the mean of x is below zero, else `large`."""
    return [
        node("ReduceMean", ["x"], ["mean"], keepdims=0),
        node("Less", ["mean", "zero"], ["dark"]),
        node("Where", ["dark", "small", "large"], ["size"]),
    ]


NUMBERS = {
    "zero": np.array(0, np.float32),
    "small": np.array([1, 8, 6, 5], np.int64),
    "large": np.array([1, 8, 12, 10], np.int64),
    "none": np.array([], np.float32),
}


def by_resize() -> list[object]:
    return [*sized_by_brightness(), node("Resize", ["r", "none", "none", "size"], ["s"], mode="nearest")]


def by_branches() -> list[object]:
    def branch(name: str) -> object:
        out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
        resize = node("Resize", ["r", "none", "none", name], ["b"], mode="nearest")
        return helper.make_graph([resize], "branch", [], [out])

    return [
        *sized_by_brightness(),
        node("If", ["dark"], ["s"], then_branch=branch("small"), else_branch=branch("large")),
    ]


def by_crops() -> list[object]:
    """An operator of another domain, whose result's size is an input."""
    return [
        *sized_by_brightness(),
        node("Slice", ["size", "two", "four"], ["crop"]),
        node("Cast", ["crop"], ["crop32"], to=TensorProto.INT32),
        node("CropAndResize", ["r", "boxes", "which", "crop32"], ["s"], domain=OTHER),
    ]


def by_counting() -> list[object]:
    """A column for every twenty positive numbers in x."""
    return [
        node("Greater", ["x", "zero"], ["above"]),
        node("NonZero", ["above"], ["places"]),
        node("Shape", ["places"], ["count"]),
        node("Slice", ["count", "one", "two"], ["columns"]),
        node("Div", ["columns", "twenty"], ["wide"]),
        node("Concat", ["front", "wide"], ["size"], axis=0),
        node("Resize", ["r", "none", "none", "size"], ["s"], mode="nearest"),
    ]


COUNTS = {
    "one": np.array([1], np.int64),
    "two": np.array([2], np.int64),
    "four": np.array([4], np.int64),
    "twenty": np.array([20], np.int64),
    "front": np.array([1, 8, 12], np.int64),
    "boxes": np.array([[0, 0, 1, 1]], np.float32),
    "which": np.array([0], np.int32),
}


@pytest.mark.parametrize("between", [by_resize, by_branches, by_crops, by_counting])
def test_a_size_that_depends_on_values_is_no_size(between: object) -> None:
    nodes = [nets.conv(), node("Relu", ["c"], ["r"]), *between()]  # type: ignore[operator]
    nodes += [nets.conv("s", "d", "v", name="second"), node("Relu", ["d"], ["y"])]
    model = nets.model(nodes, {**TWO, **NUMBERS, **COUNTS}, domains=[OTHER])
    feeds = [{"x": nets.feed()["x"] + shift} for shift in (-1, 1)]
    assert len({y.shape for feed in feeds for y in nets.run(model, feed)}) == 2, "the test would show nothing"
    for declared in ((), (("s", (1, 8, 6, 5)),)):
        report = check(says(model, *declared), *feeds, layers=1)
        (reason,) = (skip.reason for skip in report.skips)
        assert "depends on the values" in reason


def test_two_runs_tell_a_size_that_depends_on_values() -> None:
    """An operator of which nothing is known but that: how many different numbers x has."""
    between = [
        node("Reshape", ["x", "flat"], ["numbers"]),
        node("Unique", ["numbers"], ["unique", "where", "counts"], domain=OTHER),
        node("Shape", ["unique"], ["count"]),
        node("Div", ["count", "thirty"], ["wide"]),
        node("Concat", ["front", "wide"], ["size"], axis=0),
        node("Resize", ["r", "none", "none", "size"], ["s"], mode="nearest"),
    ]
    nodes = [nets.conv(), node("Relu", ["c"], ["r"]), *between, nets.conv("s", "d", "v", name="second")]
    numbers = {"flat": np.array([-1], np.int64), "thirty": np.array([30], np.int64)}
    constants = {**TWO, **numbers, "none": NUMBERS["none"], "front": COUNTS["front"]}
    model = nets.model([*nodes, node("Relu", ["d"], ["y"])], constants, domains=[OTHER])
    feeds = [nets.feed(), {"x": np.round(nets.feed()["x"], 1)}]
    assert len({y.shape for feed in feeds for y in nets.run(model, feed)}) == 2, "the test would show nothing"
    report = check(model, *feeds, layers=1)
    assert "depends on the values" in report.skips[0].reason


def test_a_size_that_follows_from_a_fixed_input_is_known() -> None:
    """Arithmetic that onnx does not do."""
    between = [
        node("Shape", ["r"], ["shape"]),
        node("Cast", ["shape"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "half"], ["less"]),
        node("Floor", ["less"], ["floor"]),
        node("Max", ["floor", "least"], ["most"]),
        node("Cast", ["most"], ["size"], to=TensorProto.INT64),
        node("Resize", ["r", "none", "none", "size"], ["s"], mode="nearest"),
    ]
    constants = {
        "half": np.array([1, 1, 0.5, 0.5], np.float32),
        "least": np.array([1, 8, 1, 1], np.float32),
        "none": np.array([], np.float32),
    }
    model = two_convolutions(*between)
    for name, value in constants.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, value.shape, value))
    report = check(model, layers=2)
    assert [layer.output_shape for layer in report.layers] == [(12, 10), (6, 5)]


def test_a_size_that_a_caller_may_replace_is_no_size() -> None:
    resize = node("Resize", ["r", "none", "none", "size"], ["s"], mode="nearest")
    nodes = [nets.conv(), node("Relu", ["c"], ["r"]), resize, nets.conv("s", "y", "v", name="second")]
    constants = {**TWO, "none": NUMBERS["none"], "size": NUMBERS["small"]}
    model = nets.model(nodes, constants, inputs_too=["size"])
    feeds = [nets.feed(), {**nets.feed(), "size": NUMBERS["large"]}]
    report = check(model, *feeds, layers=1)
    (reason,) = (skip.reason for skip in report.skips)
    assert reason == "its size depends on 'size', which is also a graph input; --freeze-weights makes it constant"
    check(model, layers=2, freeze_weights=True)


def test_a_tail_that_onnx_cannot_judge_is_not_blamed_on_the_rewrite() -> None:
    """Behind an operator that onnx does not know, with sizes declared for another input."""
    tail = [
        quick_gelu("d", "q"),
        node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["y"]),
    ]
    nodes = [nets.conv(), quick_gelu("c", "s"), nets.conv("s", "d", "v", name="second"), *tail]
    model = nets.model(nodes, TWO, outputs={"y": (1, 64)}, domains=[OTHER])
    says(model, ("s", (1, 8, 6, 5)), ("q", (1, 8, 6, 5)), ("p", (1, 8, 4, 2)))
    report = check(model, layers=2)
    assert report.notes


def test_a_tail_that_onnx_refuses_as_it_came_stays() -> None:
    """onnx's checker counts one window more than onnxruntime has; that is so before rewriting, and after."""
    pool = node("MaxPool", ["s"], ["p"], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1)
    nodes = [nets.conv(), quick_gelu("c", "s"), pool, node("Reshape", ["p", "flat"], ["y"])]
    flat = np.array([1, 8 * 6 * 5], np.int64)
    model = nets.model(nodes, {"w": TWO["w"], "flat": flat}, outputs={"y": (1, 240)}, domains=[OTHER])
    check(model, layers=1)


@pytest.mark.parametrize("claims", [[1, 8, 12, 10], [1, 8, 6, 5]])
def test_weights_that_are_inputs_have_the_shape_of_their_values(claims: Sequence[int]) -> None:
    """What an old file says of an initializer in its list of inputs is not asked."""
    model = nets.followed_by([node("Add", ["c", "t"], ["y"])], {"t": nets.values(8, 1, 1)}, inputs_too=["t"])
    listed = next(i for i in model.graph.input if i.name == "t")
    listed.CopyFrom(helper.make_tensor_value_info("t", TensorProto.FLOAT, claims))
    assert [s.output_shape for s in conv_layers(types_of(model))] == [(12, 10)]
    assert types_of(model).types["y"].shape == (1, 8, 12, 10)
