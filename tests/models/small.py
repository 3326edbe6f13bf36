"""Small models for tests of whatever runs models, and the way to real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfonnx import runtime
from perfonnx.errors import PerfonnxError
from perfonnx.ops import DOMAIN, VERSION
from perfonnx.ops.sparse_conv import SPARSE_CONV

OPSET = 17


def make(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    input_shape: Sequence[int | str],
    output_shape: Sequence[int | str | None],
    dtype: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", dtype, input_shape)],
        [helper.make_tensor_value_info("y", dtype, output_shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions))
    model.ir_version = 8
    return model


def classifier(
    *, shift: float = 0.0, half: bool = False, batch: int | str = "N", named: bool = True
) -> onnx.ModelProto:
    """[batch, 3, 12, 10] to scores of 5 classes [batch, 5]; `shift` is added to the first class's score."""
    random = np.random.default_rng(7)
    kind = np.float16 if half else np.float32
    weights = {
        "w1": random.standard_normal((16, 3, 3, 3)).astype(kind),
        "b1": random.standard_normal(16).astype(kind),
        "w2": (random.standard_normal((16, 16, 3, 3)) / 8).astype(kind),
        "w3": (random.standard_normal((5, 16)) / 2).astype(kind),
        # Brings the scores of standard normal images to about 0, so that every class is chosen now and then.
        "b3": np.array([12 + shift, -4, 3, 7, 5], kind),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1] * 4, kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1] * 4, kernel_shape=[3, 3]),
        helper.make_node("Add", ["c2", "r1"], ["s2"], name="sum2"),
        helper.make_node("Relu", ["s2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    if not named:
        for node in nodes:
            node.name = ""
    return make(
        nodes,
        weights,
        input_shape=[batch, 3, 12, 10],
        output_shape=[batch, 5],
        dtype=TensorProto.FLOAT16 if half else TensorProto.FLOAT,
    )


def elementwise(operator: str = "Identity", *, shape: Sequence[int | str] = ("N", 4)) -> onnx.ModelProto:
    """One unary operator from `x` to `y`."""
    return make([helper.make_node(operator, ["x"], ["y"], name="only")], {}, input_shape=shape, output_shape=shape)


def sampled(*, body: bool = True, wrong_by: float = 0.0) -> onnx.ModelProto:
    """A `SparseConv` [N, 2, 6, 6] to [N, 4, 6, 6] with every second position kept.

    Args:
        body: Whether the function body is there.
        wrong_by: Added to the result of the function body, to make one that is not what the kernel computes.
    """
    random = np.random.default_rng(11)
    mask = np.add.outer(np.arange(6), np.arange(6)) % 2 == 0
    weights = {
        "w": random.standard_normal((4, 2, 3, 3)).astype(np.float32),
        "b": random.standard_normal(4).astype(np.float32),
        "mask": mask,
        "fill": np.zeros(4, np.float32),
    }
    limit = float(np.finfo(np.float32).max)
    node = helper.make_node(
        "SparseConv",
        ["x", "w", "b", "mask", "fill"],
        ["y"],
        name="conv",
        domain=DOMAIN,
        kernel_shape=[3, 3],
        strides=[1, 1],
        pads=[1] * 4,
        dilations=[1, 1],
        group=1,
        negative_slope=1.0,
        clip_min=-limit,
        clip_max=limit,
    )
    functions = []
    if body:
        function = SPARSE_CONV.function_body(OPSET, TensorProto.FLOAT)
        if wrong_by:
            last = function.node[-1]
            result = last.output[0]
            last.output[0] = "almost"
            offset = helper.make_tensor("offset", TensorProto.FLOAT, [], [wrong_by])
            function.node.append(helper.make_node("Constant", [], ["offset"], value=offset))
            function.node.append(helper.make_node("Add", ["almost", "offset"], [result]))
        functions.append(function)
    return make([node], weights, input_shape=["N", 2, 6, 6], output_shape=["N", 4, 6, 6], functions=functions)


def dense() -> onnx.ModelProto:
    """The convolution that `sampled` thins out."""
    weights = {t.name: numpy_helper.to_array(t) for t in sampled().graph.initializer if t.name in ("w", "b")}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", kernel_shape=[3, 3], pads=[1] * 4)
    return make([node], weights, input_shape=["N", 2, 6, 6], output_shape=["N", 4, 6, 6])


def need_library() -> None:
    """Skips the test where the custom-operator library is not built."""
    try:
        runtime.get_library_path()
    except PerfonnxError as error:
        pytest.skip(str(error))


def odd_outputs() -> onnx.ModelProto:
    """[1, 3, 12, 10] to scores `y`, and to what is no tensor of numbers or of a size that depends on the input."""
    random = np.random.default_rng(5)
    weights = {
        "w1": random.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "w2": (random.standard_normal((4, 8, 3, 3)) / 8).astype(np.float32),
        "half": np.float32(0.5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Softmax", ["f"], ["y"], name="softmax"),
        helper.make_node("Cast", ["y"], ["words"], name="words", to=TensorProto.STRING),
        helper.make_node("ZipMap", ["y"], ["chances"], name="map", domain="ai.onnx.ml", classlabels_int64s=[*range(4)]),
        helper.make_node("SequenceConstruct", ["y", "y"], ["parts"], name="sequence"),
        helper.make_node("Greater", ["c2", "half"], ["high"], name="high"),
        helper.make_node("NonZero", ["high"], ["places"], name="places"),
    ]
    model = make(nodes, weights, input_shape=[1, 3, 12, 10], output_shape=[1, 4])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    chances = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("words", TensorProto.STRING, [1, 4]),
            helper.make_value_info("chances", helper.make_sequence_type_proto(chances)),
            helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("places", TensorProto.INT64, [4, None]),
        ]
    )
    return model


def pictures_classifier() -> onnx.ModelProto:
    """[N, 3, H, W] to scores of 5 classes; what it says depends on how pixels become numbers."""
    random = np.random.default_rng(11)
    weights = {
        "w1": random.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "w2": (random.standard_normal((16, 16, 3, 3)) / 4).astype(np.float32),
        "w3": random.standard_normal((16, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["y"], name="fc"),
    ]
    return make(nodes, weights, input_shape=["N", 3, "H", "W"], output_shape=["N", 5])
