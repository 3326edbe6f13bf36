"""ONNX graphs as PyTorch modules: they compute what onnxruntime computes, train, and go back to ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import perfonnx
from perfonnx import feeds
from tests import real_models
from tests.passes.nets import conv, model, node, run, values
from tests.test_real_models import largest_relative_error, tolerance

torch = pytest.importorskip("torch")

from perfonnx.torch import from_onnx  # noqa: E402
from perfonnx.torch.modules import Conv2d  # noqa: E402

FAST = ("cifar10_resnet20_bn", "cifar10_winml_tutorial5x5", "coco_fastestdet", "face_rfb320_nopost", "mnist_cntk8")
"""Real models that take little time; the others are slow tests."""


def real(names: Sequence[str]) -> list[Any]:
    """Real models as parameters, slow but for a few."""
    return [n if Path(n).name in FAST else pytest.param(n, marks=pytest.mark.slow) for n in names]


def results(network: Any, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of a module in evaluation mode."""
    network.eval()
    with torch.no_grad():
        outputs = network(**{name: torch.from_numpy(value) for name, value in feed.items()})
    return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


def imported(source: onnx.ModelProto, feed: Mapping[str, np.ndarray] | None = None, limit: float = 1e-5) -> Any:
    """The module for a model, which gives what onnxruntime gives."""
    feed = feed or {"x": np.random.default_rng(0).standard_normal((1, 3, 12, 10)).astype(np.float32)}
    network = from_onnx(source)
    expected = run(source, feed)
    actual = results(network, feed)
    assert [y.dtype for y in actual] == [y.dtype for y in expected]
    assert largest_relative_error(actual, expected) < limit
    return network


def one(op: str, constants: Mapping[str, Any] | None = None, **options: Any) -> onnx.ModelProto:
    """A model of one node that reads x [1, 3, 12, 10] and then the constants; of options, others than of `model`."""
    constants = {name: np.asarray(value) for name, value in (constants or {}).items()}
    outputs = options.pop("outputs", {"y": None})
    chosen = {name: options.pop(name) for name in ("opset", "inputs") if name in options}
    nodes = [
        node(op, ["x", *("" if c.dtype == object else name for name, c in constants.items())], [*outputs], **options)
    ]
    return model(nodes, {n: c for n, c in constants.items() if c.dtype != object}, outputs=outputs, **chosen)


# --- real models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", real(real_models.names()))
def test_real_models_give_what_onnxruntime_gives(name: str) -> None:
    path = real_models.path(name)
    network = from_onnx(path)
    session = perfonnx.session(str(path), library=False)
    feed = next(feeds.random_feeds(session, n=1, shapes=real_models.SHAPES.get(path.stem)))
    feed = real_models.suited(path.stem, feed)
    source = onnx.load(path)
    assert largest_relative_error(results(network, feed), session.run(None, feed)) < tolerance(source)
    assert network.to_onnx() == source
    assert list(network.layers) == [conv.name for conv in perfonnx.inspect(path).convs]
    assert all(isinstance(network.get_submodule(path), Conv2d) for path in network.layers.values())


@pytest.mark.parametrize("name", real(real_models.names()))
def test_real_models_train(name: str) -> None:
    """At a batch of 2, whatever the model's is: each image's result is its own, and every weight has a gradient."""
    path = real_models.path(name)
    network = from_onnx(path).eval()
    session = perfonnx.session(str(path), library=False)
    shapes = real_models.SHAPES.get(path.stem)
    single = [real_models.suited(path.stem, f) for f in feeds.random_feeds(session, n=2, shapes=shapes)]
    (input_name,) = network.input_names
    x = [torch.from_numpy(f[input_name]) for f in single]
    both = network(torch.cat(x))
    both = both if isinstance(both, tuple) else (both,)
    for i, image in enumerate(x):
        with torch.no_grad():
            alone = network(image)
        alone = alone if isinstance(alone, tuple) else (alone,)
        part = [y[i : i + 1].detach().numpy() for y in both]
        assert largest_relative_error(part, [y.numpy() for y in alone]) < 1e-4
    sum(y.square().sum() for y in both).backward()
    without = [key for key, value in network.named_parameters() if value.grad is None]
    assert not without


# --- awkward attributes ----------------------------------------------------------------------------------------------

X5 = {"x": (1, 3, 7, 5)}


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolutions_resolve_auto_pad(auto_pad: str, stride: int) -> None:
    w = {"w": values(4, 3, 4, 3), "b": values(4)}
    nodes = [conv(y="y", b="b", auto_pad=auto_pad, strides=[stride, stride], kernel_shape=[4, 3])]
    assert imported(model(nodes, w)).layers == {"conv": "nodes.conv"}
    free = model(nodes, w, inputs={"x": ("N", 3, "H", "W")})
    network = imported(free)
    assert bool(network.layers) == (stride == 1 or auto_pad == "VALID")  # else pads depend on the size
    assert from_onnx(free, input_shapes={"x": (None, 3, 12, 10)}).layers


def test_convolutions_with_uneven_pads_groups_and_dilations() -> None:
    attributes = {"pads": [0, 1, 2, 3], "dilations": [2, 1], "strides": [1, 2], "group": 3}
    network = imported(model([conv(y="y", **attributes)], {"w": values(6, 1, 3, 3)}))
    assert network.nodes.conv.pads == (0, 1, 2, 3)
    assert network.nodes.conv.groups == 3


def test_a_convolution_in_one_dimension_is_no_layer() -> None:
    w = {"w": values(4, 3, 3), "b": values(4)}
    nodes = [node("Conv", ["x", "w", "b"], ["y"], pads=[1, 0], strides=[2])]
    network = imported(model(nodes, w, inputs={"x": (1, 3, 9)}, outputs={"y": (None,) * 3}), {"x": values(1, 3, 9)})
    assert not network.layers
    assert set(network.state_dict()) == {"weights.w", "weights.b"}


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [0, 1, 2, 1], "strides": [2, 1]},
        {"strides": [2, 2], "output_padding": [1, 0]},
        {"strides": [2, 2], "auto_pad": "VALID", "output_shape": [16, 12]},
        {"strides": [2, 2], "output_shape": [12, 10]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER", "output_shape": [12, 8]},
        {"dilations": [2, 1], "pads": [1, 0, 1, 0]},
    ],
)
def test_transposed_convolutions(attributes: dict[str, Any]) -> None:
    constants = {"w": values(3, 4, 3, 4), "b": values(4)}
    imported(one("ConvTranspose", constants, inputs=X5, **attributes), {"x": values(1, 3, 7, 5)})


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2]},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [0, 1, 1, 0]},
        {"pads": [0, 0, 2, 1], "strides": [2, 3]},
        {"pads": [2, 2, 2, 2]},
        {"strides": [2, 2], "ceil_mode": 1},
        {"strides": [3, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {"strides": [2, 3], "ceil_mode": 1, "pads": [1, 0, 0, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
    ],
)
def test_pools(op: str, attributes: dict[str, Any]) -> None:
    feed = {"x": values(1, 3, 12, 9) - 2}
    for include in (0, 1)[: 1 if op == "MaxPool" else 2]:
        counted = {"count_include_pad": 1} if include else {}
        shape = {"x": (1, 3, 12, 9)}
        imported(one(op, inputs=shape, kernel_shape=[3, 3], **attributes, **counted), feed)


def test_a_pool_with_dilations() -> None:
    imported(one("MaxPool", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 1, 2]))


@pytest.mark.parametrize(
    ("op", "constants", "options"),
    [
        ("Clip", {}, {"opset": 7, "min": 0.0, "max": 0.5}),
        ("Clip", {"low": np.float32(-0.5)}, {}),
        ("Clip", {"low": None, "high": np.float32(0.5)}, {}),
        ("Dropout", {}, {"opset": 7, "ratio": 0.3}),
        ("Dropout", {"ratio": np.float32(0.3)}, {}),
        ("Elu", {}, {"alpha": 0.7}),
        ("Gather", {"i": np.int64(-1)}, {"axis": 2}),
        ("Gather", {"i": [[0, -1], [3, 2]]}, {"axis": 3}),
        ("HardSigmoid", {}, {"alpha": 0.3}),
        ("HardSwish", {}, {}),
        ("LRN", {}, {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0}),
        ("LeakyRelu", {}, {"alpha": 0.2}),
        ("LogSoftmax", {}, {"axis": -2}),
        ("LogSoftmax", {}, {"opset": 12, "axis": 2}),
        ("Softmax", {}, {"opset": 11}),
        ("Softmax", {}, {}),
        ("PRelu", {"slope": np.float32([[[0.1]], [[0.2]], [[0.3]]])}, {}),
        ("PRelu", {"slope": np.float32([0.1])}, {}),
        ("PRelu", {"slope": values(12, 10)}, {}),
        ("Pad", {}, {"opset": 7, "pads": [0, 1, 2, 3, 0, 0, 1, -1], "value": 0.5}),
        ("Pad", {"pads": [1, 0, 2, 3, 0, 0, 1, -1], "value": np.float32(0.5)}, {}),
        ("Pad", {"pads": [2, 1], "value": None, "axes": [-1]}, {"opset": 18}),
        ("Pad", {"pads": [0, 0, 2, 3, 0, 0, 1, 4]}, {"mode": "reflect"}),
        ("Pad", {"pads": [0, 0, 2, 3, 0, 0, 1, 4]}, {"mode": "edge"}),
        ("ReduceMean", {}, {"axes": [2, 3], "keepdims": 0}),
        ("ReduceMean", {"axes": [-1]}, {"opset": 18}),
        ("ReduceSum", {"axes": [1, 3]}, {}),
        ("ReduceSum", {}, {"keepdims": 0}),
        ("Reshape", {"shape": [0, -1, 5]}, {}),
        ("Flatten", {}, {"axis": 2}),
        ("Slice", {}, {"opset": 7, "starts": [1, -3], "ends": [100, -1], "axes": [2, 3]}),
        ("Slice", {"starts": [10, 1], "ends": [-100, 9], "axes": [2, 3], "steps": [-3, 2]}, {}),
        ("Squeeze", {}, {"opset": 12, "axes": [0]}),
        ("Squeeze", {"axes": [0]}, {}),
        ("Unsqueeze", {}, {"opset": 12, "axes": [0, 3]}),
        ("Unsqueeze", {"axes": [-1, 2]}, {}),
        ("Split", {}, {"axis": 3, "outputs": {"y": None, "z": None}}),
        ("Split", {"split": [1, 2]}, {"axis": 1, "outputs": {"y": None, "z": None}}),
        ("Split", {}, {"opset": 18, "axis": 1, "num_outputs": 2, "outputs": {"y": None, "z": None}}),
        ("Split", {}, {"opset": 12, "axis": 2, "split": [5, 7], "outputs": {"y": None, "z": None}}),
        ("Tile", {"repeats": [1, 2, 1, 3]}, {}),
        ("Transpose", {}, {}),
        ("Expand", {"shape": [2, 1, 1, 12, 1]}, {}),
        ("SpaceToDepth", {}, {"blocksize": 2}),
        ("GlobalMaxPool", {}, {}),
        ("GlobalAveragePool", {}, {}),
        ("Selu", {}, {}),
        ("Gelu", {}, {"opset": 20, "approximate": "tanh"}),
        ("Pow", {"e": np.float32(2.0)}, {}),
        ("LayerNormalization", {"s": values(12, 10), "b": values(12, 10)}, {"axis": 2}),
        ("InstanceNormalization", {"s": values(3), "b": values(3)}, {"epsilon": 0.01}),
    ],
)
def test_operators_in_their_versions(op: str, constants: dict[str, Any], options: dict[str, Any]) -> None:
    imported(one(op, constants, **options))


@pytest.mark.parametrize("op", ["Sum", "Max", "Min", "Mean"])
def test_operators_of_any_number_of_inputs(op: str) -> None:
    imported(model([node(op, ["x", "a", "b"], ["y"])], {"a": values(3, 1, 1), "b": values(12, 1)}))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    source = one("DepthToSpace", inputs={"x": (1, 12, 4, 5)}, blocksize=2, mode=mode)
    imported(source, {"x": values(1, 12, 4, 5)})


@pytest.mark.parametrize("attributes", [{}, {"transA": 1, "transB": 1}, {"transB": 1, "alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("shape", [(4,), (6, 4), (1, 4), None])
def test_gemm(attributes: dict[str, Any], shape: tuple[int, ...] | None) -> None:
    constants = {"b": values(4, 5) if attributes.get("transB") else values(5, 4)}
    constants |= {} if shape is None else {"c": values(*shape)}
    x = values(5, 6) if attributes.get("transA") else values(6, 5)
    outputs: dict[str, Any] = {"y": None}
    nodes = [node("Gemm", ["x", *constants], ["y"], **attributes)]
    imported(model(nodes, constants, inputs={"x": x.shape}, outputs=outputs), {"x": x})


@pytest.mark.parametrize("coordinates", ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("to", [(24, 30), (1, 7), (17, 10)])
def test_resize_to_sizes(coordinates: str, mode: str, to: tuple[int, int]) -> None:
    constants = {"roi": None, "scales": None, "sizes": [1, 3, *to]}
    imported(one("Resize", constants, coordinate_transformation_mode=coordinates, mode=mode))


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("scale", [2.0, 0.7, 1.3])
def test_resize_by_scales(rounding: str, scale: float) -> None:
    imported(one("Resize", {"roi": None, "scales": np.float32([1, 1, scale, 3])}, nearest_mode=rounding))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_predecessors_of_resize(mode: str) -> None:
    scales = np.float32([1, 1, 2.5, 3])
    imported(one("Upsample", {}, opset=7, mode=mode, scales=scales.tolist()))
    imported(one("Upsample", {"scales": scales}, opset=9, mode=mode))
    imported(one("Resize", {"scales": scales}, opset=10, mode=mode))


def test_sizes_computed_from_the_input_follow_it() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "first"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("ConstantOfShape", ["target2"], ["ones"], value=numpy_helper.from_array(np.float32([1]))),
        node("Add", ["r", "ones"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "first": np.int64([0]), "rest": np.int64([-1, 6]), "target2": np.int64([6])}
    source = model(nodes, constants, inputs={"x": ("N", 3, 4, 5)}, outputs={"y": ("N", None, 6)})
    imported(source, {"x": values(3, 3, 4, 5)})
