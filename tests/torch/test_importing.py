"""ONNX graphs as PyTorch modules: they compute what onnxruntime computes, train, and go back to ONNX."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import perfonnx
from perfonnx.data.feeds import random_feeds
from perfonnx.errors import PerfonnxError
from tests import real_models
from tests.extras import needs
from tests.passes.nets import conv, model, node, run, values
from tests.test_real_models import largest_relative_error, tolerance

torch = needs("torch")

from perfonnx.torch import from_onnx  # noqa: E402
from perfonnx.torch.modules import Conv2d  # noqa: E402

FAST = ("cifar10_resnet20_bn", "cifar10_winml_tutorial5x5", "mnist_cntk8")
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
    model, stem = real_models.model(name), Path(name).name
    network = from_onnx(model)
    session = perfonnx.session(model, library=False)
    feed = next(random_feeds(session, n=1, shapes=real_models.SHAPES.get(stem)))
    feed = real_models.suited(stem, feed)
    source = onnx.load(model) if isinstance(model, str) else model
    assert largest_relative_error(results(network, feed), session.run(None, feed)) < tolerance(source)
    assert network.to_onnx() == source
    assert list(network.layers) == [conv.name for conv in perfonnx.inspect(model).convs]
    assert all(isinstance(network.get_submodule(path), Conv2d) for path in network.layers.values())


@pytest.mark.parametrize("name", real(real_models.names()))
def test_real_models_train(name: str) -> None:
    """At a batch of 2, whatever the model's is: each image's result is its own, and every weight has a gradient."""
    model, stem = real_models.model(name), Path(name).name
    network = from_onnx(model).eval()
    session = perfonnx.session(model, library=False)
    shapes = real_models.SHAPES.get(stem)
    single = [real_models.suited(stem, f) for f in random_feeds(session, n=2, shapes=shapes)]
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


@pytest.mark.parametrize("name", real(real_models.names()))
def test_real_models_move_to_another_device(name: str) -> None:
    """Nothing that is computed with stays behind: torch would refuse to mix devices."""
    model = real_models.model(name)
    network = from_onnx(model).to("meta")
    session = perfonnx.session(model, library=False)
    feed = next(random_feeds(session, n=1, shapes=real_models.SHAPES.get(Path(name).name)))
    outputs = network(**{key: torch.from_numpy(value).to("meta") for key, value in feed.items()})
    expected = session.run(None, feed)
    for y, known in zip(outputs if isinstance(outputs, tuple) else (outputs,), expected, strict=True):
        assert y.device.type == "meta"
        assert y.shape == known.shape


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
    imported(one("MaxPool", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 2, 1]))


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


# --- weights and training --------------------------------------------------------------------------------------------


def small(**options: Any) -> onnx.ModelProto:
    """A convolution, batch normalization, a pool and a classifier, of any batch."""
    constants = {
        "w": values(4, 3, 3, 3),
        "scale": values(4, seed=1),
        "shift": values(4, seed=2),
        "mean": values(4, seed=3),
        "var": np.abs(values(4, seed=4)) + 0.5,
        "fc.w": values(5, 4),
        "fc.b": values(5),
    }
    nodes = [
        conv(),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], momentum=0.8, name="bn"),
        node("Relu", ["n"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Dropout", ["f"], ["d"], name="drop"),
        node("Gemm", ["d", "fc.w", "fc.b"], ["y"], transB=1),
    ]
    return model(nodes, constants, inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 5)}, **options)


def images(n: int = 4) -> Any:
    return torch.from_numpy(values(n, 3, 12, 10, seed=9))


def trained(network: Any, steps: int = 3) -> Any:
    """The module after a few steps."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        network(images()).square().mean().backward()
        optimizer.step()
    return network


def initializers(source: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: t.SerializeToString() for t in source.graph.initializer}


def test_names_and_state() -> None:
    network = from_onnx(small())
    assert network.input_names == ("x",)
    assert network.output_names == ("y",)
    assert network.layers == {"conv": "nodes.conv"}
    assert list(network.state_dict()) == [
        "nodes.conv.weight",
        "nodes.bn.weight",
        "nodes.bn.bias",
        "nodes.bn.running_mean",
        "nodes.bn.running_var",
        "nodes.bn.num_batches_tracked",
        "weights.fc_w",
        "weights.fc_b",
    ]


def test_names_that_torch_has_no_room_for() -> None:
    nodes = [conv(y="a", name="/m.0/conv"), conv("a", "b", "v", name="m_0_conv"), conv("b", "y", "v", name="forward")]
    network = imported(model(nodes, {"w": values(4, 3, 3, 3), "v": values(4, 4, 3, 3)}))
    assert network.layers == {"/m.0/conv": "nodes.m_0_conv", "m_0_conv": "nodes.m_0_conv_", "forward": "nodes.forward_"}


def test_unnamed_layers_have_the_names_that_plans_use() -> None:
    nodes = [conv(y="first", name=""), conv("first", "y", "v", name="")]
    source = model(nodes, {"w": values(4, 3, 3, 3), "v": values(4, 4, 3, 3)})
    layers = from_onnx(source).layers
    assert layers == {"first": "nodes.first", "y": "nodes.y"}
    assert list(layers) == [c.name for c in perfonnx.inspect(source).convs]


def test_a_trained_module_goes_back_with_its_weights_and_statistics() -> None:
    source = small()
    source.metadata_props.add(key="who", value="me")
    network = trained(from_onnx(source))
    result = network.to_onnx()
    before, after = initializers(source), initializers(result)
    assert all(before[name] != after[name] for name in before)
    x = images().numpy()
    assert largest_relative_error(results(network, {"x": x}), run(result, {"x": x})) < 1e-5
    for name, changed in zip(source.graph.initializer, result.graph.initializer, strict=True):
        name.CopyFrom(changed)
    assert result == source  # nothing else


@pytest.mark.parametrize("ir", [3, 8])
def test_an_untrained_module_gives_the_model_back(ir: int) -> None:
    source = small(ir=ir)
    source.graph.initializer[0].CopyFrom(helper.make_tensor("w", 1, (4, 3, 3, 3), values(4, 3, 3, 3).flatten()))
    assert source.graph.initializer[0].float_data
    assert from_onnx(source).to_onnx() == source
    assert trained(from_onnx(source)).to_onnx() != source


def test_training_and_evaluation_differ_in_normalization_and_dropout() -> None:
    network = from_onnx(small())
    batch_norm, dropout = network.nodes.bn, network.nodes.drop
    assert isinstance(batch_norm, torch.nn.BatchNorm2d)
    assert batch_norm.momentum == pytest.approx(0.2)
    assert dropout.p == 0.5
    mean = batch_norm.running_mean.clone()
    network.eval()(images())
    assert torch.equal(batch_norm.running_mean, mean)
    with torch.no_grad():
        channel_means = network.train().nodes.conv(images()).mean((0, 2, 3))
        network(images())
    assert torch.allclose(batch_norm.running_mean, 0.8 * mean + 0.2 * channel_means, atol=1e-6)


def test_what_is_a_weight() -> None:
    """Not the mean of pixels before the first layer, no single number, no map; a reshaped weight is one."""
    constants = {
        "pixel": values(1, 3, 1, 1),
        "w": values(4, 3, 3, 3),
        "bias": values(4, 1, 1),
        "grid": values(1, 1, 12, 10),
        "two": np.float32(2),
        "flat": values(4, 10, 1),
        "shape": np.int64([10, 4]),
    }
    nodes = [
        node("Add", ["x", "pixel"], ["a"]),
        conv("a"),
        node("Add", ["c", "bias"], ["d"]),
        node("Add", ["d", "grid"], ["e"]),
        node("Mul", ["e", "two"], ["f"]),
        node("Reshape", ["flat", "shape"], ["matrix"]),
        node("MatMul", ["f", "matrix"], ["y"]),
    ]
    source = model(nodes, constants)
    network = imported(source)
    assert {name for name, _ in network.named_parameters()} == {"nodes.conv.weight", "weights.bias", "weights.flat"}
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    assert {name for name, _ in network.named_buffers()} == {"weights.pixel", "weights.grid", "weights.two"}
    changed = {
        name for name, data in initializers(trained(network).to_onnx()).items() if data != initializers(source)[name]
    }
    assert changed == {"w", "bias", "flat"}


def test_a_shared_weight_is_one_parameter() -> None:
    nodes = [
        conv(y="a", name="one"),
        conv("a", "b", name="two"),
        node("Transpose", ["w"], ["t"]),
        node("Add", ["b", "s"], ["y"]),
    ]
    nodes.insert(3, node("ReduceSum", ["t"], ["s"]))
    network = from_onnx(model(nodes, {"w": values(3, 3, 3, 3)}))
    assert network.nodes.one.weight is network.nodes.two.weight
    assert len(list(network.parameters())) == 1
    w = network.nodes.one.weight
    with torch.no_grad():
        w.zero_()
    assert not network(images(1)).any()  # the Transpose reads it too
    assert not numpy_helper.to_array(network.to_onnx().graph.initializer[0]).any()


def test_statistics_that_two_nodes_share_are_not_trained() -> None:
    constants = {"s": values(3), "t": values(3), "m": values(3), "v": np.ones(3, np.float32)}
    nodes = [
        node("BatchNormalization", ["x", "s", "s", "m", "v"], ["a"], name="one"),
        node("BatchNormalization", ["a", "t", "t", "m", "v"], ["y"], name="two"),
    ]
    source = model(nodes, constants)
    network = imported(source)
    assert [name for name, _ in network.nodes.named_children()] == ["one"]
    result = trained(network).to_onnx()
    x = images().numpy()[:1]
    assert largest_relative_error(results(network, {"x": x}), run(result, {"x": x})) < 1e-5


@pytest.mark.parametrize("through", ["Constant", "Identity"])
def test_weights_behind_nodes(through: str) -> None:
    w = values(4, 3, 3, 3)
    if through == "Constant":
        first = node("Constant", [], ["w"], value=numpy_helper.from_array(w))
        source = model([first, conv(y="y")], {})
    else:
        source = model([node("Identity", ["v"], ["w"]), conv(y="y")], {"v": w})
    network = imported(source)
    assert network.layers == {"conv": "nodes.conv"}
    assert network.to_onnx() == source
    result = trained(network).to_onnx()
    x = images().numpy()[:1]
    assert largest_relative_error(results(network, {"x": x}), run(result, {"x": x})) < 1e-5
    kept = result.graph.node[0].attribute[0].t if through == "Constant" else result.graph.initializer[0]
    assert not np.array_equal(numpy_helper.to_array(kept), w)


def test_constants_as_plain_numbers() -> None:
    nodes = [
        node("Constant", [], ["f"], value_float=0.5),
        node("Constant", [], ["i"], value_ints=[0, -1]),
        node("Mul", ["x", "f"], ["m"]),
        node("Reshape", ["m", "i"], ["y"]),
    ]
    imported(model(nodes, {}, outputs={"y": None}))


def test_bfloat16_is_written_back() -> None:
    w = helper.make_tensor("w", TensorProto.BFLOAT16, (4, 4), values(4, 4).flatten())
    nodes = [node("Cast", ["w"], ["v"], to=TensorProto.FLOAT), node("MatMul", ["x", "v"], ["y"])]
    source = model(nodes, {"w": w}, inputs={"x": (2, 4)}, outputs={"y": (2, 4)})
    network = imported(source, {"x": values(2, 4)})
    assert network.to_onnx() == source
    with torch.no_grad():
        network.weights.w.fill_(0.5)
    (after,) = network.to_onnx().graph.initializer
    assert after.data_type == TensorProto.BFLOAT16
    assert (numpy_helper.to_array(after).astype(np.float32) == 0.5).all()


def test_half_precision_is_trained_in_float32_and_written_back() -> None:
    w = values(4, 3, 3, 3, dtype=np.float16)
    source = model([conv(y="y")], {"w": w}, dtype=TensorProto.FLOAT16)
    network = from_onnx(source)
    assert network.to_onnx() == source
    assert network.nodes.conv.weight.dtype == torch.float32
    x = values(1, 3, 12, 10, dtype=np.float16)
    assert largest_relative_error(results(network, {"x": x}), run(source, {"x": x})) < 1e-2
    result = trained(network).to_onnx()
    (after,) = result.graph.initializer
    assert after.data_type == TensorProto.FLOAT16
    expected = network.nodes.conv.weight.detach().numpy().astype(np.float16)
    assert np.array_equal(numpy_helper.to_array(after), expected)
    assert not np.array_equal(expected, w)


def test_external_data_come_back_inside(tmp_path: Path) -> None:
    source, path = small(), tmp_path / "model.onnx"
    onnx.save(copy.deepcopy(source), path, save_as_external_data=True, size_threshold=0)
    result = from_onnx(path).to_onnx()
    for before, after in zip(source.graph.initializer, result.graph.initializer, strict=True):
        assert after.data_location == TensorProto.DEFAULT
        assert np.array_equal(numpy_helper.to_array(after), numpy_helper.to_array(before))


def test_initializers_that_are_inputs_too_are_weights() -> None:
    network = imported(model([conv(y="y")], {"w": values(4, 3, 3, 3)}, inputs_too=["w"]))
    assert network.input_names == ("x",)
    assert network.layers == {"conv": "nodes.conv"}


def test_a_module_can_be_copied_and_sent() -> None:
    network = from_onnx(small()).eval()
    twin = copy.deepcopy(network)
    assert torch.equal(twin(images()), network(images()))
    before = twin.to_onnx()
    trained(network)
    assert twin.to_onnx() == before != network.to_onnx()
    sent = pickle.loads(pickle.dumps(network.eval()))
    assert torch.equal(sent(images()), network(images()))
    twin.load_state_dict(dict(network.state_dict()))
    assert twin.to_onnx() == sent.to_onnx() == network.to_onnx()


def test_autocast() -> None:
    constants = {"w": values(4, 3, 3, 3), "b": values(4), "slope": values(4, 1, 1), "one": np.float32([[[1]]])}
    nodes = [
        conv(b="b"),
        node("PRelu", ["c", "slope"], ["p"]),
        node("InstanceNormalization", ["p", "b", "b"], ["i"]),
        node("Resize", ["i", "", "scales"], ["u"], mode="linear"),
        node("Concat", ["u", "u"], ["k"], axis=1),
        node("AveragePool", ["k"], ["q"], kernel_shape=[2, 2], pads=[0, 1, 1, 0]),
        node("Add", ["q", "one"], ["y"]),
    ]
    network = from_onnx(model(nodes, {**constants, "scales": np.float32([1, 1, 2, 2])}))
    exact = network(images())
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(images())
    assert rough.isfinite().all()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()
    rough.float().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_channels_last_stays() -> None:
    constants = {"w": values(4, 3, 3, 3), "v": values(4, 4, 3, 3), "bias": values(4, 1, 1)}
    nodes = [
        conv(pads=[0, 1, 1, 0]),
        node("Relu", ["c"], ["r"]),
        node("Add", ["r", "bias"], ["a"]),
        node("MaxPool", ["a"], ["m"], kernel_shape=[2, 2]),
        node("Concat", ["m", "m"], ["k"], axis=1),
        node("Slice", ["k"], ["s"], starts=[0], ends=[4], axes=[1]),
        conv("s", "y", "v", name="last"),
    ]
    source = model(nodes, constants, opset=9)
    network = from_onnx(source).to(memory_format=torch.channels_last)
    y = network(images().to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


# --- inputs and batches ----------------------------------------------------------------------------------------------


def test_inputs_by_place_and_by_name() -> None:
    nodes = [node("Sub", ["a.1", "b"], ["y"]), node("Neg", ["y"], ["z"])]
    network = from_onnx(model(nodes, {}, inputs={"a.1": (2,), "b": (2,)}, outputs={"y": (2,), "z": (2,)}))
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0])
    for y, z in (network(a, b), network(a, b=b), network(**{"b": b, "a.1": a})):
        assert y.tolist() == [-3.0, -6.0]
        assert z.tolist() == [3.0, 6.0]
    for args, named in (((a,), {}), ((a, b, b), {}), ((a, b), {"b": b}), ((a, b), {"c": b})):
        with pytest.raises(PerfonnxError, match="input"):
            network(*args, **named)


def fixed(*nodes: NodeProto, batch: int = 1, **constants: Any) -> Any:
    """A model that fixes its batch, from x [batch, 4, 6, 5]."""
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    source = model(list(nodes), arrays, inputs={"x": (batch, 4, 6, 5)}, outputs={"y": None})
    return imported(source, {"x": values(batch, 4, 6, 5)})


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("target", [[0, 120], [-1, 120], ["batch", 120], ["batch", -1], ["batch", 2, -1, 5]])
def test_a_fixed_batch_becomes_any(target: list[Any], batch: int) -> None:
    sizes = [batch if size == "batch" else size for size in target]
    network = fixed(node("Reshape", ["x", "t"], ["y"]), batch=batch, t=sizes)
    x = torch.from_numpy(values(6, 4, 6, 5))
    assert torch.equal(network(x), x.reshape(6, *sizes[1:]))


def test_a_channel_shuffle_that_takes_the_batch_into_its_channels() -> None:
    nodes = [
        node("Reshape", ["x", "pairs"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[1, 0, 2]),
        node("Reshape", ["t", "halves"], ["h"]),
        node("Gather", ["h", "one"], ["y"], axis=0),
    ]
    network = fixed(*nodes, pairs=[2, 2, 30], halves=[2, -1, 2, 6, 5], one=np.int64(1))
    x = torch.from_numpy(values(3, 4, 6, 5))
    assert torch.equal(network(x), x[:, 1::2])


def test_sizes_that_are_not_the_batch_stay() -> None:
    w = values(1, 20)
    nodes = [node("Reshape", ["w", "t"], ["v"]), node("Add", ["x", "v"], ["y"])]
    network = fixed(*nodes, w=w, t=[1, 4, 1, 5])
    x = torch.from_numpy(values(3, 4, 6, 5))
    assert torch.equal(network(x), x + torch.from_numpy(w.reshape(1, 4, 1, 5)))


def test_a_graph_tied_to_its_batch_says_so() -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]), node("Reshape", ["t", "s"], ["y"], name="tied")]
    network = fixed(*nodes, s=[4, 30])
    with pytest.raises(PerfonnxError, match=r"'tied' \(Reshape\): the graph is tied to a batch of 1"):
        network(torch.zeros(2, 4, 6, 5))
    with pytest.raises(PerfonnxError, match=r"'tied'.*feed inputs of the size that the model is made for"):
        network(torch.zeros(1, 4, 6, 6))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_rewritten_models_are_refused() -> None:
    rewritten = perfonnx.rewrite(model([conv(y="y")], {"w": values(8, 3, 3, 3)}), rate=0.5).proto
    with pytest.raises(PerfonnxError, match="train the original model, not the rewritten one"):
        from_onnx(rewritten)


def test_operators_that_are_not_supported_are_named() -> None:
    body = helper.make_graph([node("Relu", ["x"], ["z"])], "body", [], [helper.make_empty_tensor_value_info("z")])
    branch = node("If", ["c"], ["y"], then_branch=body, else_branch=body, name="branch")
    with pytest.raises(PerfonnxError, match=r"node 'branch' \(If\): this operator cannot be trained here"):
        from_onnx(model([branch], {"c": np.array(True)}))
    with pytest.raises(PerfonnxError, match=r"node 'mine' \(some.where.Relu\)"):
        from_onnx(model([node("Relu", ["x"], ["y"], domain="some.where", name="mine")], {}, domains=["some.where"]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (one("Resize", {"roi": None, "scales": np.float32([1, 1, 2, 2])}, mode="cubic"), "mode 'cubic'"),
        (
            one("Resize", {"roi": None, "scales": np.float32([1, 1, 2, 2])}, mode="linear", antialias=1, opset=18),
            "anti",
        ),
        (one("Pad", {"pads": [0, 1, 0, 0, 0, 0, 0, 0]}, mode="reflect"), "height and width only"),
        (one("Pad", {"pads": [0, 0, 1, 1, 0, 0, 0, 0]}, mode="wrap", opset=19), "mode 'wrap'"),
        (one("LRN", size=4), "even size"),
        (one("AveragePool", kernel_shape=[2, 2], dilations=[2, 2], opset=19), "dilations"),
        (one("MaxPool", kernel_shape=[1, 1], strides=[5, 5], auto_pad="SAME_UPPER"), "longer than its kernel"),
        (one("Cast", to=TensorProto.UINT32), "uint32"),
    ],
)
def test_forms_that_are_not_supported_are_named(source: onnx.ModelProto, message: str) -> None:
    network = from_onnx(source)
    with pytest.raises(PerfonnxError, match=message):
        network(images(1))


def test_models_exported_for_training_are_refused() -> None:
    constants = {name: np.ones(3, np.float32) for name in "sbmv"}
    nodes = [node("BatchNormalization", ["x", *"sbmv"], ["y", "n", "o"], training_mode=1, name="bn")]
    with pytest.raises(PerfonnxError, match=r"'bn'.*export the model in evaluation mode"):
        from_onnx(model(nodes, constants))
    ratio = node("Dropout", ["x", "r"], ["y"], name="drop")
    with pytest.raises(PerfonnxError, match=r"'drop'.*its ratio is not constant"):
        from_onnx(model([ratio], {}, inputs={"x": (1, 3, 12, 10), "r": ()}))
    indices = node("MaxPool", ["x"], ["m", "y"], kernel_shape=[2, 2])
    with pytest.raises(PerfonnxError, match="output 'y'"):
        from_onnx(model([indices], {}))
    masked = [node("Dropout", ["x"], ["d", "mask"]), node("Not", ["mask"], ["y"])]
    with pytest.raises(PerfonnxError, match="reads 'mask', which nothing before it gives"):
        from_onnx(model(masked, {}))


@pytest.mark.parametrize("form", ["Cast", "value_floats", "sparse_value"])
def test_weights_in_other_forms_are_trained_and_saved(form: str) -> None:
    w = values(8, 3, 3, 3)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.array([5])), w.shape
    )
    nodes = {
        "Cast": [node("Cast", ["v"], ["w"], to=TensorProto.FLOAT)],
        "value_floats": [node("Constant", [], ["v"], value_floats=w.ravel()), node("Reshape", ["v", "shape"], ["w"])],
        "sparse_value": [node("Constant", [], ["w"], sparse_value=sparse)],
    }
    constants = {"Cast": {"v": w.astype(np.float16)}, "value_floats": {"shape": np.array(w.shape)}, "sparse_value": {}}
    bias = node("Constant", [], ["b"], value_floats=[0.5] * 8)
    network = imported(model([bias, *nodes[form], conv(y="y", b="b")], constants[form]))
    assert list(network.layers) == ["conv"]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    feed = {"x": values(1, 3, 12, 10)}
    (expected,) = results(network, feed)
    np.testing.assert_allclose(run(network.to_onnx(), feed)[0], expected, rtol=0, atol=1e-5)
