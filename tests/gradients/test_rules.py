"""Every rule against central differences, with the awkward cases of each operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from perfonnx.errors import PerfonnxError
from perfonnx.gradients import Gradients, output_distance
from perfonnx.gradients.rules import FLAT, RULES
from tests.gradients.differences import apart, check_against_differences, net


def check(
    op: str,
    shapes: Sequence[tuple[int, ...]],
    constants: Sequence[Any] = (),
    *,
    opset: int = 17,
    outputs: int = 1,
    shift: float = 0.0,
    spacing: float = 0.031,
    tolerance: float = 2e-3,
    **attributes: Any,
) -> None:
    """One node: inputs of the given shapes come first, then constants; None leaves one out."""
    feeds = {
        f"x{i}": apart(*shape, seed=i, spacing=spacing) + np.float32(shift + 0.0155 * i)
        for i, shape in enumerate(shapes)
    }
    named = {f"c{i}": np.asarray(value) for i, value in enumerate(constants) if value is not None}
    inputs = [*feeds, *(f"c{i}" if value is not None else "" for i, value in enumerate(constants))]
    names = [f"y{i}" for i in range(outputs)]
    model = net(
        [helper.make_node(op, inputs, names, **attributes)],
        {name: x.shape for name, x in feeds.items()},
        named,
        names,
        opset=opset,
    )
    check_against_differences(model, feeds, tolerance=tolerance)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


# --- convolutions and products ---------------------------------------------------------------------------------------

CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 6, 5), (4, 3, 3, 3), {}),
    ((1, 3, 6, 5), (4, 3, 3, 2), {"pads": [2, 0, 1, 1]}),
    ((1, 2, 8, 7), (3, 2, 3, 3), {"strides": [2, 3]}),
    ((1, 2, 8, 9), (3, 2, 2, 2), {"strides": [3, 4]}),
    ((1, 2, 8, 8), (3, 2, 3, 3), {"strides": [2, 2], "pads": [0, 1, 1, 2]}),
    ((1, 2, 9, 8), (3, 2, 3, 2), {"dilations": [2, 3], "pads": [1, 0, 0, 2]}),
    ((1, 2, 9, 8), (3, 2, 3, 2), {"dilations": [2, 2], "strides": [3, 2]}),
    ((1, 4, 5, 5), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    ((1, 4, 6, 5), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 2, 7, 6), (3, 2, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 2, 7, 6), (3, 2, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((1, 2, 7, 6), (3, 2, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    ((1, 2, 9), (3, 2, 3), {"strides": [2]}),
    ((1, 2, 4, 3, 5), (2, 2, 2, 2, 2), {"strides": [2, 1, 2], "pads": [0, 1, 0, 1, 0, 0]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVS)
def test_conv(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check("Conv", [x], [weight(*w), weight(w[0])], **attributes)


def test_conv_with_a_computed_bias() -> None:
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    model = net(nodes, {"x": (2, 2, 4, 4), "b": (3,)}, {"w": weight(3, 2, 3, 3)})
    check_against_differences(model, {"x": apart(2, 2, 4, 4), "b": apart(3)})


def test_conv_has_no_gradient_for_its_weight() -> None:
    model = net([helper.make_node("Conv", ["x", "w"], ["y"], name="c1")], {"x": (1, 1, 3, 3), "w": (1, 1, 2, 2)}, {})
    feeds = {"x": apart(1, 1, 3, 3), "w": apart(1, 1, 2, 2)}
    with pytest.raises(PerfonnxError, match=r"node 'c1' \(Conv\): its gradient with respect to 'w' is not known"):
        Gradients(model, ["w"], output_distance).run(feeds, np.zeros((1, 1, 2, 2)))


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 3, 4, 3), (3, 2, 3, 3), {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
        ((1, 3, 4, 3), (3, 2, 3, 3), {"strides": [2, 3], "output_padding": [1, 2]}),
        ((1, 3, 4, 3), (3, 2, 2, 2), {"strides": [3, 3], "output_padding": [2, 1], "pads": [1, 0, 0, 1]}),
        ((1, 4, 4, 3), (4, 3, 3, 2), {"group": 2, "dilations": [2, 1]}),
        ((1, 3, 4, 3), (3, 2, 3, 3), {"strides": [2, 2], "output_shape": [8, 6]}),
        ((1, 3, 4, 3), (3, 2, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((1, 3, 4, 3), (3, 2, 3, 4), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ],
)
def test_conv_transpose(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check("ConvTranspose", [x], [weight(*w), weight(w[1] * attributes.get("group", 1))], **attributes)


@pytest.mark.parametrize("b_turned", [0, 1])
@pytest.mark.parametrize("a_turned", [0, 1])
def test_gemm(a_turned: int, b_turned: int) -> None:
    a, b = (4, 3) if a_turned else (3, 4), (2, 4) if b_turned else (4, 2)
    check("Gemm", [a, b, (2,)], transA=a_turned, transB=b_turned, alpha=0.7, beta=1.3)
    check("Gemm", [a], [weight(*b), weight(3, 1)], transA=a_turned, transB=b_turned, alpha=0.7)


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3), (3, 4)),
        ((2, 2, 3), (3, 4)),
        ((3, 2), (2, 2, 3)),
        ((2, 1, 2, 3), (3, 3, 2)),
        ((3,), (3, 2)),
        ((2, 3), (3,)),
        ((2, 2, 3), (3,)),
        ((4,), (4,)),
    ],
)
def test_matmul(shapes: tuple[tuple[int, ...], ...]) -> None:
    check("MatMul", shapes)


# --- elementwise -----------------------------------------------------------------------------------------------------

X = (2, 3, 4)
LOW, HIGH = -0.1885, 0.2455
"""Halfway between two of the numbers of `apart`, so that no difference reaches over the kink."""


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Relu", {}),
        ("LeakyRelu", {}),
        ("LeakyRelu", {"alpha": -0.3}),
        ("ThresholdedRelu", {"alpha": 0.2145}),
        ("Elu", {"alpha": 0.7}),
        ("Selu", {}),
        ("Celu", {"alpha": 0.6}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("HardSigmoid", {"alpha": 0.5 / 0.2455}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("Erf", {}),
        ("Exp", {}),
        ("Abs", {}),
        ("Neg", {}),
        ("Sin", {}),
        ("Cos", {}),
        ("Identity", {}),
    ],
)
def test_functions(op: str, attributes: dict[str, Any]) -> None:
    check(op, [X], **attributes)


@pytest.mark.parametrize("op", ["Log", "Sqrt", "Reciprocal"])
def test_functions_of_positive_numbers(op: str) -> None:
    check(op, [X], shift=1.5)


def test_newer_functions() -> None:
    check("HardSwish", [(1, 5, 9)], spacing=0.21)
    check("Mish", [X], opset=18)
    check("Gelu", [X], opset=20)
    check("Gelu", [X], opset=20, approximate="tanh")


@pytest.mark.parametrize("op", ["Elu", "Selu", "Celu", "Softplus"])
def test_no_overflow_far_above_zero(op: str) -> None:
    model = net([helper.make_node(op, ["x"], ["y"])], {"x": (1, 2)}, {})
    feeds = {"x": np.array([[200.0, -200.0]], np.float32)}
    _, tensors = Gradients(model, ["x"], output_distance).run(feeds, np.zeros((1, 2)))
    assert np.isfinite(tensors["x"][1]).all()


def test_dropout() -> None:
    check("Dropout", [X], opset=7)
    check("Dropout", [X], [np.float32(0.5)], opset=13)
    check("Dropout", [X], [np.float32(0.5), np.array(False)], opset=13)


def test_dropout_in_training_is_refused() -> None:
    nodes = [helper.make_node("Dropout", ["x", "r", "t"], ["y"], name="d")]
    model = net(nodes, {"x": (1, 3)}, {"r": np.float32(0.5), "t": np.array(True)})
    with pytest.raises(PerfonnxError, match=r"node 'd' \(Dropout\): .*training mode"):
        Gradients(model, ["x"], output_distance).run({"x": apart(1, 3)}, np.zeros((1, 3)))


def test_cast_through_half_precision_and_to_integers() -> None:
    half = [helper.make_node("Cast", ["x"], ["h"], to=10), helper.make_node("Cast", ["h"], ["y"], to=1)]
    check_against_differences(net(half, {"x": (2, 3)}, {}), {"x": apart(2, 3)}, tolerance=5e-2)
    flat = [helper.make_node("Cast", ["x"], ["i"], to=7), helper.make_node("Cast", ["i"], ["y"], to=1)]
    _, tensors = Gradients(net(flat, {"x": (2, 3)}, {}), ["x"], output_distance).run(
        {"x": apart(2, 3)}, np.ones((2, 3))
    )
    assert not tensors["x"][1].any()


def test_cast_like() -> None:
    check("CastLike", [(2, 3)], [np.float32(0)])


def test_clip() -> None:
    check("Clip", [X], opset=7, min=LOW, max=HIGH)
    check("Clip", [X], opset=7, max=HIGH)
    check("Clip", [X], [np.float32(LOW), np.float32(HIGH)])
    check("Clip", [X], [None, np.float32(HIGH)])
    check("Clip", [X])


def test_prelu() -> None:
    check("PRelu", [(2, 3, 2, 2)], [weight(3, 1, 1)])
    check("PRelu", [(2, 3, 2, 2), (3, 1, 1)])
    check("PRelu", [(2, 3)], [np.float32(-0.4)])


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((2, 1, 4), (2, 3, 1))])
def test_arithmetic(op: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    positive = {"shift": 1.2} if op in ("Div", "Pow") else {}
    check(op, shapes, **positive)


def test_arithmetic_with_constants_and_many_inputs() -> None:
    check("Pow", [(2, 3)], [np.int64(2)])
    check("Pow", [(2, 3)], [np.float32(3)])
    check("Mul", [(2, 3)], [weight(3)])
    for op in ("Sum", "Mean", "Max", "Min"):
        check(op, [(2, 3), (2, 1), (3,)], spacing=0.062)


def test_maxima_that_tie_share_the_gradient() -> None:
    model = net([helper.make_node("Max", ["x", "c"], ["y"])], {"x": (1, 2)}, {"c": np.float32([[1, 3]])})
    _, tensors = Gradients(model, ["x"], output_distance).run({"x": np.float32([[1, 1]])}, np.zeros((1, 2)))
    np.testing.assert_allclose(tensors["x"][1], [[1, 0]])


def test_where() -> None:
    nodes = [helper.make_node("Greater", ["c", "zero"], ["cond"]), helper.make_node("Where", ["cond", "a", "b"], ["y"])]
    inputs = {"c": (2, 3), "a": (2, 3), "b": (3,)}
    feeds = {name: apart(*shape, seed=i) for i, (name, shape) in enumerate(inputs.items())}
    check_against_differences(net(nodes, inputs, {"zero": np.float32(0)}), feeds)


def test_operators_that_onnxruntime_kept() -> None:
    check("Affine", [(1, 2, 3)], opset=7, alpha=0.3, beta=2.0)
    check("ImageScaler", [(1, 2, 3, 2)], opset=7, scale=0.3, bias=[1.0, 2.0])
    check("Crop", [(1, 2, 6, 5)], opset=7, border=[1, 2, 0, 1])
    check("Crop", [(1, 2, 6, 5)], opset=7, border=[1, 2, 0, 0], scale=[3, 2])


# --- pooling and resizing --------------------------------------------------------------------------------------------

POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 2, 6, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2]}),
    ((1, 2, 5, 6), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ((1, 2, 5, 6), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [0, 1, 1, 0]}),
    ((1, 2, 6, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 1, 7, 8), {"kernel_shape": [3, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 0, 1, 1]}),
    ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 7, 6), {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ((1, 1, 4, 3, 4), {"kernel_shape": [2, 2, 3], "strides": [1, 2, 1]}),
]


@pytest.mark.parametrize(("x", "attributes"), POOLS)
def test_max_pool(x: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check("MaxPool", [x], **attributes)


def test_max_pool_in_other_versions() -> None:
    check("MaxPool", [(1, 2, 7, 7)], kernel_shape=[3, 3], dilations=[2, 1], strides=[2, 2])
    check("MaxPool", [(1, 2, 7, 6)], opset=7, kernel_shape=[3, 3], strides=[2, 2])
    check("MaxPool", [(1, 2, 6, 6)], opset=22, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1, 1, 1, 1])


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(("x", "attributes"), POOLS)
def test_average_pool(x: tuple[int, ...], attributes: dict[str, Any], include: int) -> None:
    check("AveragePool", [x], count_include_pad=include, **attributes)


def test_average_pool_in_other_versions() -> None:
    check("AveragePool", [(1, 2, 7, 7)], opset=19, kernel_shape=[3, 2], dilations=[2, 3], strides=[2, 1])
    check("AveragePool", [(1, 2, 7, 6)], opset=7, kernel_shape=[3, 3], pads=[1, 1, 0, 0])
    check("AveragePool", [(1, 2, 6, 6)], opset=22, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)


def test_global_pools() -> None:
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        check(op, [(2, 3, 4, 5)])


@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 1.5, 2.4), (1, 1, 0.6, 0.5), (1, 1, 3, 1)])
@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "nearest"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "cubic"},
    ],
)
def test_resize_by_scales(attributes: dict[str, Any], scales: tuple[float, ...]) -> None:
    check("Resize", [(2, 2, 5, 6)], [None, np.float32(scales)], **attributes)


def test_resize_by_sizes_and_in_other_versions() -> None:
    for mode in ("nearest", "linear"):
        check("Resize", [(1, 2, 5, 4)], [None, None, np.array([1, 2, 8, 7])], mode=mode)
        check("Resize", [(1, 2, 5, 4)], [None, None, np.array([8, 7])], mode=mode, axes=[2, 3], opset=18)
        check("Resize", [(1, 2, 5, 4)], [np.float32([1, 1, 2, 1.5])], mode=mode, opset=10)
        none = np.zeros(0, np.float32)
        check("Resize", [(1, 2, 5, 4)], [none, np.float32([1, 1, 2, 1.5])], mode=mode, opset=11)
        check("Resize", [(1, 2, 5, 4)], [none, none, np.array([1, 2, 8, 7])], mode=mode, opset=11)
        check("Upsample", [(1, 2, 3, 4)], opset=7, mode=mode, scales=[1.0, 1.0, 2.0, 3.0])
        check("Upsample", [(1, 2, 3, 4)], [np.float32([1, 1, 2, 3])], opset=9, mode=mode)
    check("Resize", [(1, 2, 6, 8)], [None, np.float32([1, 1, 0.5, 0.5])], mode="linear", antialias=1, opset=18)
    check("Resize", [(2, 3, 5)], [None, np.float32([1, 1, 2])], mode="nearest")
    check("Resize", [(1, 2, 3, 3, 3)], [None, np.float32([1, 1, 2, 1, 2])], mode="nearest")


# --- normalization and reduction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 9, 15])
def test_batch_normalization(opset: int) -> None:
    constants = [weight(3), weight(3) + 1, weight(3) - 1, np.abs(weight(3)) + 0.1]
    check("BatchNormalization", [(2, 3, 2, 2)], constants, opset=opset, epsilon=0.01)
    check("BatchNormalization", [(2, 3)], constants, opset=opset)


@pytest.mark.parametrize(("opset", "attributes"), [(7, {}), (13, {}), (14, {"training_mode": 1})])
def test_batch_normalization_in_training_is_refused(opset: int, attributes: dict[str, int]) -> None:
    """Below opset 14 the outputs for statistics say so, whether anything reads them or not."""
    outputs = ["y", *("m1 v1 m2 v2" if opset < 14 else "m1 v1").split()]
    nodes = [helper.make_node("BatchNormalization", ["x", *"sbmv"], outputs, name="bn", **attributes)]
    model = net(nodes, {"x": (4, 3)}, {name: np.ones(3, np.float32) for name in "sbmv"}, opset=opset)
    with pytest.raises(PerfonnxError, match=r"node 'bn' \(BatchNormalization\): .*as in training"):
        Gradients(model, ["x"], output_distance).run({"x": apart(4, 3)}, np.zeros((4, 3)))


def test_instance_and_layer_normalization() -> None:
    check("InstanceNormalization", [(2, 3, 3, 4)], [weight(3), weight(3) + 1], epsilon=0.01, tolerance=5e-3)
    check("LayerNormalization", [(2, 3, 4)], [weight(4), weight(4) + 1], tolerance=5e-3)
    check("LayerNormalization", [(2, 3, 4)], [weight(3, 4)], axis=1, tolerance=5e-3)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(size: int) -> None:
    check("LRN", [(2, 6, 2, 2)], size=size, alpha=0.9, beta=0.6, bias=1.5)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(op: str, keepdims: int) -> None:
    check(op, [(2, 3, 4)], opset=11, axes=[-1, 1], keepdims=keepdims)
    check(op, [(2, 3, 4)], [np.array([1, -1])], opset=18, keepdims=keepdims)
    if keepdims:
        check(op, [(2, 3, 4)], opset=18)
        check(op, [(2, 3, 4)], opset=18, noop_with_empty_axes=1) if op == "ReduceSum" else None


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(op: str) -> None:
    check(op, [(2, 3, 4)], opset=11)
    check(op, [(2, 3, 4)], opset=11, axis=2)
    check(op, [(2, 3, 4)], opset=13)
    check(op, [(2, 3, 4)], opset=13, axis=1)


# --- moving values ---------------------------------------------------------------------------------------------------


def test_shapes() -> None:
    check("Reshape", [(2, 3, 4)], [np.array([0, -1])])
    check("Flatten", [(2, 3, 4)], axis=2)
    check("Squeeze", [(2, 1, 4)], [np.array([1])])
    check("Squeeze", [(2, 1, 4)], opset=11, axes=[1])
    check("Unsqueeze", [(2, 4)], [np.array([0, 2])])
    check("Unsqueeze", [(2, 4)], opset=11, axes=[0, 2])
    check("Transpose", [(2, 3, 4)])
    check("Transpose", [(2, 3, 4, 1)], perm=[2, 0, 3, 1])
    check("Expand", [(2, 1, 4)], [np.array([3, 2, 5, 4])])
    check("Tile", [(2, 3, 1)], [np.array([1, 2, 3])])


def test_reshape_to_a_shape_that_the_model_computes() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    model = net(nodes, {"x": ("N", 3, 4)}, {"zero": np.array([0]), "rest": np.array([-1])})
    check_against_differences(model, {"x": apart(2, 3, 4)})


def test_concat_and_split() -> None:
    check("Concat", [(2, 3, 2), (2, 1, 2), (2, 2, 2)], axis=1)
    check("Concat", [(2, 3), (2, 1)], axis=-1)
    check("Split", [(2, 6)], [np.array([1, 3, 2])], outputs=3, axis=1)
    check("Split", [(2, 6)], opset=11, outputs=3, axis=-1, split=[1, 3, 2])
    nodes = [helper.make_node("Split", ["x"], ["y", "unused"], axis=1)]
    check_against_differences(net(nodes, {"x": (2, 4)}, {}), {"x": apart(2, 4)})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    check("DepthToSpace", [(2, 8, 2, 3)], blocksize=2, mode=mode)


def test_space_to_depth() -> None:
    check("SpaceToDepth", [(2, 2, 4, 6)], blocksize=2)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [3], [1], [1]),
        ([0, -3], [2**62, -1], [0, 2], [1, 1]),
        ([0], [2**62], [1], [2]),
        ([-1], [-(2**62)], [2], [-1]),
        ([4, 3], [0, -(2**62)], [1, 2], [-2, -3]),
        ([99], [-99], [1], [-3]),
    ],
)
def test_slice(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> None:
    check("Slice", [(2, 5, 6)], [np.array(v) for v in (starts, ends, axes, steps)])


def test_slice_in_other_versions() -> None:
    check("Slice", [(2, 5, 6)], opset=7, starts=[1, -4], ends=[2**31, -1], axes=[1, 2])
    check("Slice", [(2, 5)], [np.array([0, 1]), np.array([2, 4])])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str) -> None:
    opset = 19 if mode == "wrap" else 13
    check("Pad", [(1, 2, 4, 5)], [np.array([0, 0, 2, 1, 0, 0, 1, 3])], mode=mode, opset=opset)


def test_pad_in_other_versions() -> None:
    check("Pad", [(1, 2, 4, 5)], [np.array([0, 0, -1, 1, 0, 1, 1, -2]), np.float32(3)])
    check("Pad", [(1, 2, 4, 5)], opset=7, pads=[0, 0, 2, 1, 0, 0, 1, 3], mode="reflect")
    check("Pad", [(1, 2, 4)], [np.array([1, 2]), None, np.array([-1])], opset=18, mode="edge")


def test_gather() -> None:
    check("Gather", [(2, 5, 3)], [np.array([3, 0, -1])], axis=1)
    check("Gather", [(2, 5, 3)], [np.array([[3, 0, 3], [3, 1, -5]])], axis=1)
    check("Gather", [(4, 3)], [np.array([2, 2, 0])])
    check("Gather", [(2, 5)], [np.array([1], np.int32)], axis=-1)


def test_gather_by_indices_that_the_model_computes() -> None:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
        helper.make_node("Gather", ["x", "i"], ["y"], axis=1),
    ]
    check_against_differences(net(nodes, {"x": (2, 5)}, {}), {"x": apart(2, 5)})


def calls(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The arguments of every call of a parametrized test."""
    choices = []
    for mark in getattr(test, "pytestmark", ()):
        names, values = mark.args
        given = [names] if isinstance(names, str) else names
        choices.append([dict(zip(given, [v] if isinstance(names, str) else v, strict=True)) for v in values])
    for parts in product(*choices):
        yield {name: value for part in parts for name, value in part.items()}


def test_every_rule_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a rule is held against differences by a test of this file, whichever process runs that."""
    tested: set[str] = set()

    def note(model: ModelProto, *_: Any, **__: Any) -> None:
        tested.update(node.op_type for node in model.graph.node)

    tests = [value for name, value in globals().items() if name.startswith("test_")]
    monkeypatch.setitem(globals(), "check_against_differences", note)
    for test in tests:
        if {"check", "check_against_differences"} & set(test.__code__.co_names):
            for arguments in calls(test):
                test(**arguments)
    assert set(RULES) - tested == set()


def test_flat_operators_have_no_rule() -> None:
    assert not FLAT & set(RULES)


def test_an_operator_without_a_rule_is_named() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Det", ["r"], ["y"], name="odd")]
    model = net(nodes, {"x": (2, 3, 3)}, {})
    with pytest.raises(PerfonnxError, match=r"node 'odd' \(Det\): this operator has no gradient rule; choose"):
        Gradients(model, ["x"], output_distance).run({"x": apart(2, 3, 3)}, np.zeros(2))


def test_an_operator_without_a_rule_off_the_path_does_not_matter() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("Exp", ["f"], ["y"]),
    ]
    model = net(nodes, {"x": (2, 3, 3)}, {"shape": np.array([-1, 1])})
    _, tensors = Gradients(model, ["e"], output_distance).run({"x": apart(2, 3, 3)}, np.zeros((2, 1)))
    assert tensors["e"][1].shape == (2, 1)


def test_a_node_with_a_body_is_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["o"])], "body", [], [helper.make_tensor_value_info("o", 1, [1, 3])]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], name="choice", then_branch=body, else_branch=body)]
    model = net(nodes, {"x": (1, 3)}, {"c": np.array(True)})
    with pytest.raises(PerfonnxError, match=r"node 'choice' \(If\): reads 'x' in its body"):
        Gradients(model, ["x"], output_distance).run({"x": apart(1, 3)}, np.zeros((1, 3)))
