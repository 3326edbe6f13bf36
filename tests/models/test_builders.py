"""The built-in networks: published shapes and multiply counts, valid models, sane activations, one seed one model."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import models
import perfonnx
from perfonnx.errors import PerfonnxError

ALEXNET = {
    "conv1": 105_415_200,  # 55*55 * 96 * 3*11*11
    "conv2": 223_948_800,  # 27*27 * 256 * 48*5*5
    "conv3": 149_520_384,  # 13*13 * 384 * 256*3*3
    "conv4": 112_140_288,  # 13*13 * 384 * 192*3*3
    "conv5": 74_760_192,  # 13*13 * 256 * 192*3*3
    "fc6": 37_748_736,  # 4096 * 9216
    "fc7": 16_777_216,  # 4096 * 4096
    "fc8": 4_096_000,  # 1000 * 4096
}
VGG16 = {
    "conv1_1": 86_704_128,  # 224*224 * 64 * 3*9
    "conv1_2": 1_849_688_064,  # 224*224 * 64 * 64*9
    "conv2_1": 924_844_032,  # 112*112 * 128 * 64*9
    "conv2_2": 1_849_688_064,  # 112*112 * 128 * 128*9
    "conv3_1": 924_844_032,  # 56*56 * 256 * 128*9
    "conv3_2": 1_849_688_064,  # 56*56 * 256 * 256*9
    "conv3_3": 1_849_688_064,
    "conv4_1": 924_844_032,  # 28*28 * 512 * 256*9
    "conv4_2": 1_849_688_064,  # 28*28 * 512 * 512*9
    "conv4_3": 1_849_688_064,
    "conv5_1": 462_422_016,  # 14*14 * 512 * 512*9
    "conv5_2": 462_422_016,
    "conv5_3": 462_422_016,
    "fc6": 102_760_448,  # 4096 * 25088
    "fc7": 16_777_216,
    "fc8": 4_096_000,
}
NIN = {
    "conv1": 14_745_600,  # 32*32 * 192 * 3*25
    "cccp1": 31_457_280,  # 32*32 * 160 * 192
    "cccp2": 15_728_640,  # 32*32 * 96 * 160
    "conv2": 117_964_800,  # 16*16 * 192 * 96*25
    "cccp3": 9_437_184,  # 16*16 * 192 * 192
    "cccp4": 9_437_184,
    "conv3": 21_233_664,  # 8*8 * 192 * 192*9
    "cccp5": 2_359_296,  # 8*8 * 192 * 192
    "cccp6": 122_880,  # 8*8 * 10 * 192
}


def _resnet50() -> dict[str, int]:
    """ResNet-50 v1.5 block by block, as (name, multiplies), from the widths of He et al. (2016), table 1."""
    # Every 1x1 and 3x3 at its stage's own resolution costs one of these few values.
    layers = {"conv1": 118_013_952}  # 112*112 * 64 * 3*49
    first = {  # conv1 at the input's resolution, conv2 (with the stride), conv3, shortcut
        2: (12_845_056, 115_605_504, 51_380_224, 51_380_224),
        3: (102_760_448, 115_605_504, 51_380_224, 102_760_448),
        4: (102_760_448, 115_605_504, 51_380_224, 102_760_448),
        5: (102_760_448, 115_605_504, 51_380_224, 102_760_448),
    }
    for stage, blocks in {2: 3, 3: 4, 4: 6, 5: 3}.items():
        for block in range(1, blocks + 1):
            costs = first[stage] if block == 1 else (51_380_224, 115_605_504, 51_380_224)
            for part, cost in zip(("conv1", "conv2", "conv3", "shortcut"), costs, strict=False):
                layers[f"stage{stage}_block{block}_{part}"] = cost
    return layers | {"fc": 2_048_000}


PUBLISHED = {"alexnet": ALEXNET, "vgg16": VGG16, "nin": NIN, "resnet50": _resnet50()}
ADAPTIVE_LAYERS = {  # input channels: what a gate reads
    "vgg16-racnn": dict(
        zip(
            ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
            (3, 64, 64, 128, 128, 256, 256),
            strict=True,
        )
    ),
    "resnet50-racnn": {
        f"stage{stage}_block{block}_conv2": 64 * 2 ** (stage - 2)
        for stage, blocks in {2: 3, 3: 4, 4: 6, 5: 3}.items()
        for block in range(1, blocks + 1)
    },
}
TOTALS = {  # convolutions, fully connected layers
    "alexnet": (665_784_864, 58_621_952),
    "vgg16": (15_346_630_656, 123_633_664),
    "nin": (222_486_528, 0),
    "resnet50": (4_087_136_256, 2_048_000),
}
PARAMETERS = {
    "alexnet": 60_965_224,
    "vgg16": 138_357_544,
    "nin": 966_986,
    "resnet50": 25_557_032 + 2 * 26_560,  # as usually counted, plus the running statistics
}


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = model.graph
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in [*graph.input, *graph.value_info, *graph.output]
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _multiplies(model: onnx.ModelProto, kind: str) -> dict[str, int]:
    """Output elements times the weights that each of them reads."""
    shapes = _shapes(model)
    return {
        node.name: math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        for node in model.graph.node
        if node.op_type == kind
    }


@pytest.mark.parametrize("name", models.NAMES)
def test_multiplies_are_the_published_ones(name: str) -> None:
    model = models.build(name, weights=False)
    adaptive = _multiplies(model, "RadiusAdaptiveConv")  # with every pixel open, and without the gate
    assert set(adaptive) == set(ADAPTIVE_LAYERS.get(name, ()))
    conv, gemm, base = _multiplies(model, "Conv") | adaptive, _multiplies(model, "Gemm"), name.removesuffix("-racnn")
    assert conv | gemm == PUBLISHED[base]
    assert (sum(conv.values()), sum(gemm.values())) == TOTALS[base]


@pytest.mark.parametrize("name", models.NAMES)
def test_parameters_are_the_published_ones(name: str) -> None:
    model = models.build(name, weights=False)
    shapes = _shapes(model)
    filters = {node.name: shapes[node.input[1]][0] for node in model.graph.node if node.op_type == "RadiusAdaptiveConv"}
    # A gate's weights and bias, and a bias of the ring; next to a normalization also one of the convolution.
    biases = 2 if name.startswith("resnet") else 1
    gates = sum(channels + 1 + biases * filters[n] for n, channels in ADAPTIVE_LAYERS.get(name, {}).items())
    parameters = sum(math.prod(shapes[info.name]) for info in model.graph.input[1:])
    assert parameters == PARAMETERS[name.removesuffix("-racnn")] + gates


@pytest.mark.parametrize("opset", [models.OPSETS[0], 13, 17, models.OPSETS[-1]])
@pytest.mark.parametrize("name", models.NAMES)
def test_structure_is_valid_at_every_opset(name: str, opset: int) -> None:
    model = models.build(name, opset=opset, batch="N", weights=False)
    onnx.checker.check_model(model, full_check=True)
    known = {info.name for info in [*model.graph.value_info, *model.graph.output]}
    assert {output for node in model.graph.node for output in node.output} == known
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_caffe_pooling_rounds_up() -> None:
    shapes = _shapes(models.build("nin", weights=False))
    assert shapes["pool1.out"][2:] == [16, 16]
    assert shapes["pool2.out"][2:] == [8, 8]


def _activations(model: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every ReLU's output and the logits."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inner = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(None, {"image": image})
    return dict(zip(["logits", *inner], (np.asarray(value) for value in values), strict=True))


@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [
        ("nin", 32, 2),
        ("resnet50", 224, 1),
        ("alexnet", 227, 1),
        pytest.param("vgg16", 224, 1, marks=pytest.mark.slow),
        pytest.param("resnet50-racnn", 224, 1, marks=pytest.mark.slow),
        pytest.param("vgg16-racnn", 224, 1, marks=pytest.mark.slow),
    ],
)
def test_runs_with_activations_of_order_one(name: str, size: int, batch: int) -> None:
    model = models.build(name, batch=batch)
    onnx.checker.check_model(model, full_check=True)
    assert not set(_shapes(models.build(name, weights=False))) - set(_shapes(model))
    image = np.random.default_rng(1).standard_normal((batch, 3, size, size), dtype=np.float32)
    for tensor, value in _activations(model, image).items():
        assert np.isfinite(value).all(), tensor
        assert 0.2 < value.std() < 10, tensor


def test_folding_normalization_keeps_the_function() -> None:
    image = np.random.default_rng(2).standard_normal((1, 3, 224, 224), dtype=np.float32)
    apart, folded = (models.build("resnet50", fold_bn=fold) for fold in (False, True))
    assert sum(node.op_type == "BatchNormalization" for node in apart.graph.node) == 53
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    expected = _activations(apart, image)["logits"]
    np.testing.assert_allclose(_activations(folded, image)["logits"], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fold_bn", "share"),
    [("vgg16-racnn", False, 0.7), ("resnet50-racnn", True, 0.2), ("resnet50-racnn", False, 0.6)],
)
def test_gates_open_the_asked_share_and_our_library_runs_them(name: str, fold_bn: bool, share: float) -> None:
    """On noise of another kind than that which set the gates: nearly the share in each layer, and less off in all."""
    model = models.build(name, open_share=share, fold_bn=fold_bn, batch=2)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    adaptive = [node for node in model.graph.node if node.op_type == "RadiusAdaptiveConv"]
    inputs = [node.input[0] for node in adaptive if node.input[0] != "image"]
    image = np.random.default_rng(3).standard_normal((2, 3, 224, 224), dtype=np.float32)
    stock = _activations(model, image)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tensor) for tensor in inputs)
    ours = dict(zip(["logits", *inputs], perfonnx.session(probe).run(None, {"image": image}), strict=True))
    np.testing.assert_allclose(ours["logits"], stock["logits"], atol=1e-3 * np.abs(stock["logits"]).max())
    opened = []
    for node in adaptive:
        x = ({"image": image} | ours)[node.input[0]]
        score = np.einsum("nchw,c->nhw", x, values[node.input[3]].reshape(-1)) + values[node.input[4]]
        opened.append(float((score > 0).mean()))
        assert opened[-1] == pytest.approx(share, abs=0.15), node.name
    assert np.mean(opened) == pytest.approx(share, abs=0.05)


def _digest(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def test_one_seed_one_model() -> None:
    first, again, other = (models.build("nin", seed=seed) for seed in (5, 5, 6))
    assert _digest(first) == _digest(again)
    assert _digest(first) != _digest(other)


def test_weights_have_hes_variance() -> None:
    model = models.build("nin")
    weight = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "conv2.weight")
    assert weight.var() == pytest.approx(2 / (96 * 25), rel=0.01)
    assert abs(weight.mean()) < 5 * weight.std() / math.sqrt(weight.size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lenet"}, "unknown network 'lenet': choose one of alexnet"),
        ({"name": "nin", "seed": -1}, "seed -1"),
        ({"name": "nin", "batch": -2}, "batch -2"),
        ({"name": "nin", "batch": "two words"}, "batch 'two words'"),
        ({"name": "nin", "opset": 7}, "opset 7: must be between"),
        ({"name": "nin", "fold_bn": True}, "nin has no BatchNormalization"),
        ({"name": "vgg16-racnn", "fold_bn": True}, "vgg16-racnn has no BatchNormalization"),
        ({"name": "vgg16", "open_share": 0.5}, "vgg16 has no gates to open"),
        ({"name": "vgg16-racnn", "open_share": 1.5}, "open share 1.5: must be between"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        models.build(**arguments)  # type: ignore[arg-type]
