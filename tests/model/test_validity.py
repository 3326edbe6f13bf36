"""Models that onnxruntime runs, though onnx's checker refuses them, are rewritten; what it refuses is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.model.proto import topological_order
from perfonnx.running.memory import live_bytes
from tests.model.chains import chain, rewrite_second
from tests.passes import nets
from tests.passes.nets import node

Change = Callable[[ModelProto], object]


def two_layers(*, opset: int = 17, ir: int = 8, clip: bool = False) -> ModelProto:
    """Conv, Relu or Clip with attributes, Conv, Relu."""
    between = node("Clip", ["c"], ["r"], min=0.0, max=0.5) if clip else node("Relu", ["c"], ["r"])
    nodes = [nets.conv(), between, nets.conv("r", "d", "v", name="second"), node("Relu", ["d"], ["y"])]
    weights = {"w": nets.values(8, 3, 3, 3), "v": nets.values(8, 8, 3, 3)}
    return nets.model(nodes, weights, opset=opset, ir=ir)


def reverse(model: ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def gelu(model: ModelProto) -> None:
    model.graph.node[1].op_type, model.graph.node[1].domain = "Gelu", "com.microsoft"


def imports(*versions: tuple[str, int]) -> Change:
    def change(model: ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions)

    return change


def again(values: np.ndarray) -> Change:
    return lambda model: model.graph.initializer.append(numpy_helper.from_array(values, "w"))


def sparse_twin(model: ModelProto) -> None:
    """onnxruntime reads the dense one."""
    entries, places = (numpy_helper.from_array(np.ones(1, dtype), "w") for dtype in (np.float32, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(entries, places, (8, 3, 3, 3)))


def shapeless_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def bare_output(model: ModelProto) -> None:
    model.graph.output[0].CopyFrom(ValueInfoProto(name="y"))


def bare_output_of_body(model: ModelProto) -> None:
    """The output of an If, whose type onnx can only take from the bodies."""
    result = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    bodies = [GraphProto(name=op, node=[node(op, ["d"], ["z"], name=op)], output=[result]) for op in ("Relu", "Neg")]
    model.graph.node[3].CopyFrom(node("If", ["yes"], ["y"], then_branch=bodies[0], else_branch=bodies[1]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    bare_output(model)


def changed(model: ModelProto, change: Change) -> ModelProto:
    """A changed copy."""
    copy = ModelProto()
    copy.CopyFrom(model)
    change(copy)
    return copy


def accepted() -> Iterator[tuple[str, ModelProto, Change]]:
    yield "order", two_layers(), reverse
    yield "domain", two_layers(), gelu
    yield "two imports", two_layers(clip=True), imports(("", 13), ("", 10))
    yield "two names", two_layers(clip=True), imports(("", 13), ("ai.onnx", 10))
    yield "two names, turned", two_layers(clip=True), imports(("ai.onnx", 13), ("", 10))
    yield "input", two_layers(), shapeless_input
    yield "output", two_layers(), bare_output
    yield "output of a body", two_layers(), bare_output_of_body
    yield "same again", two_layers(), again(nets.values(8, 3, 3, 3))
    yield "sparse too", two_layers(), sparse_twin
    yield "nameless", two_layers(), lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(3)))
    yield "input in IR 3", two_layers(ir=3), lambda m: m.graph.input[1].type.tensor_type.ClearField("shape")


@pytest.mark.parametrize("layout", ["nchw", "rows"])
@pytest.mark.parametrize(("model", "change"), [pytest.param(m, c, id=n) for n, m, c in accepted()])
def test_what_onnxruntime_runs_is_rewritten(model: ModelProto, change: Change, layout: str) -> None:
    model = changed(model, change)
    (expected,) = nets.run(model, nets.feed())
    shapes = {"x": (1, 3, 12, 10)}
    result = perfonnx.rewrite(model, rate=0.0, layout=layout, input_shapes=shapes)
    assert [layer.name for layer in result.report.layers] == ["conv", "second"]
    for library in (True, False):
        (actual,) = perfonnx.session(result.proto, library=library).run(None, nets.feed())
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    onnx.checker.check_model(_with_typed_output(result.proto))
    assert [c.reason for c in perfonnx.inspect(model, input_shapes=shapes).convs] == [None, None]
    assert live_bytes(model, shapes) > 0


def _with_typed_output(proto: ModelProto) -> ModelProto:
    """Outputs may stay without type: the caller's is not ours to declare."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4))
    return copy


@pytest.mark.parametrize(("model", "change"), [pytest.param(m, c, id=n) for n, m, c in accepted()])
def test_where_nothing_is_rewritten_it_stays_as_it_came(model: ModelProto, change: Change, tmp_path: Path) -> None:
    model = changed(model, change)
    before = model.SerializeToString(deterministic=True)
    flags = {"input_shapes": {"x": (1, 3, 12, 10)}} if change is shapeless_input else {}
    result = perfonnx.rewrite(model, tmp_path / "out.onnx", skip="", **flags)
    assert not result.report.layers
    if not flags:
        assert (tmp_path / "out.onnx").read_bytes() == before


def test_the_order_is_kept_where_it_is_one() -> None:
    """Nodes that are out of order move as little as may be: each goes right behind what it reads, the others stay."""
    nodes = [node("Relu", [a], [b]) for a, b in (("b", "c"), ("x", "a"), ("x", "e"), ("a", "b"), ("e", "f"))]
    assert topological_order(nodes) == [1, 2, 3, 0, 4]
    assert topological_order(nodes[1:]) == [0, 1, 2, 3]
    circle = [node("Relu", ["b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["x"], ["c"])]
    assert topological_order(circle) == [0, 1, 2]


def test_a_body_counts_as_reading_what_it_takes_from_outside() -> None:
    body = helper.make_graph([node("Neg", ["b"], ["z"])], "body", [], [])
    nodes = [node("If", ["yes"], ["y"], then_branch=body), node("Relu", ["x"], ["b"])]
    assert topological_order(nodes) == [1, 0]


def test_what_a_float16_converter_makes() -> None:
    """It puts the casts of inputs and outputs that stay float32 behind everything else."""
    converter = pytest.importorskip("onnxruntime.transformers.float16")
    model = converter.convert_float_to_float16(two_layers(), keep_io_types=True)
    assert model.graph.node[-1].op_type == "Cast"
    result = perfonnx.rewrite(model, rate=0.0)
    assert len(result.report.layers) == 2
    for library in (True, False):
        (actual,) = perfonnx.session(result.proto, library=library).run(None, nets.feed())
        np.testing.assert_allclose(actual, nets.run(model, nets.feed())[0], rtol=0, atol=0.02)


def test_an_input_without_shape_is_asked_for() -> None:
    model = two_layers()
    shapeless_input(model)
    with pytest.raises(PerfonnxError, match=r"are not fixed.*add --input-shape x:N,3,224,224 \(with your size\)"):
        perfonnx.rewrite(model)
    result = perfonnx.rewrite(model, input_shapes={"x": ["N", 3, 12, 10]}, rate=0.0)
    nets.assert_same_results(model, result.proto, nets.feed(2, 3, 12, 10))


def test_initializers_of_one_name_that_differ() -> None:
    """onnxruntime runs it, with a weight that depends on the initializers around it."""
    model = two_layers()
    again(np.zeros((8, 3, 3, 3), np.float32))(model)
    with pytest.raises(PerfonnxError, match="'w' is there twice, with different values"):
        perfonnx.rewrite(model)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.graph.node[0].input.__setitem__(0, "r"), "topologically sorted"),
        (imports(("", 10), ("", 13)), "Unrecognized attribute"),
        (lambda m: setattr(m.graph.node[1], "domain", "nowhere"), "No opset import for domain 'nowhere'"),
        (again(np.zeros((8, 27), np.float32)), "'w' is there twice, with different values"),
        (again(np.zeros((8, 3, 3, 3), np.float16)), "'w' is there twice, with different values"),
        (lambda m: m.graph.input[0].ClearField("type"), "'type' of 'value_info' is required"),
    ],
)
def test_what_onnxruntime_refuses_is_refused(change: Change, match: str) -> None:
    model = two_layers(clip=True, opset=10)
    change(model)
    with pytest.raises(PerfonnxError):
        perfonnx.session(model)
    with pytest.raises(PerfonnxError, match=match):
        perfonnx.rewrite(model)


def test_experimental_and_deprecated_operators_are_let_pass(capfd: pytest.CaptureFixture[str]) -> None:
    """onnx's checker prints a line about the first on stdout, which would spoil JSON there."""
    model = chain()
    model.graph.node.insert(0, node("ImageScaler", ["x"], ["scaled"], scale=0.5, bias=[0.0, 0.0, 0.0]))
    model.graph.node[1].input[0] = "scaled"
    model.opset_import[0].version = 7
    proto = rewrite_second(model)
    assert proto.graph.node[0].op_type == "ImageScaler"
    model = chain(opset=10)
    model.graph.node.append(node("Upsample", ["y", "scales"], ["out"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    model.graph.output[0].name = "out"
    assert nets.op_types(rewrite_second(model))[-1] == "Upsample"
    assert capfd.readouterr() == ("", "")


def test_outputs_without_shape_are_let_pass() -> None:
    """onnx's checker wants one; exporters leave it out, and every runtime accepts that."""
    model = chain()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    proto = rewrite_second(model)
    assert proto.graph.output[0] == model.graph.output[0]
    nets.run(proto, nets.feed())


def test_models_that_fail_strict_inference_only_are_let_pass() -> None:
    """A wrong value_info: the checker passes it, strict shape inference does not, onnxruntime warns."""
    model = chain()
    model.graph.node.append(node("Reshape", ["y", "shape"], ["out"]))
    model.graph.initializer.append(
        numpy_helper.from_array(np.array([1, -1, 7], np.int64), "shape")
    )  # 960 is no multiple of 7
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", 1, [None, None, None]))
    onnx.checker.check_model(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError:
        pass
    else:
        pytest.skip("this onnx infers less strictly")
    assert len(nets.ours(rewrite_second(model))) == 1
