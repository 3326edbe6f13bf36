"""Losses, batches, and whole networks: the interface of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import perfonnx
from perfonnx.data.feeds import random_feeds
from perfonnx.errors import PerfonnxError
from perfonnx.gradients import Gradients, LogLoss, Loss, Network, OutputDistance, log_loss, output_distance
from tests import real_models
from tests.gradients.differences import apart, net
from tests.test_real_models import NAMES


def logits(*, batch: int | str = "N", softmax: bool = False, opset: int = 17, spread: bool = False) -> onnx.ModelProto:
    """A classifier of three classes: Gemm, with a Softmax and a Reshape behind it where asked for."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["scores"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], ["p"], axis=1))
        nodes.append(helper.make_node("Reshape", ["p", "shape"], ["y"]))
    else:
        nodes[0].output[0] = "y"
    constants = {"w": apart(4, 3, spacing=0.3), "shape": np.array([-1, 3, 1, 1])}
    return net(nodes, {"x": (batch, 4)}, constants, opset=opset)


def log_losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(scores)), labels]


X = apart(5, 4, spacing=0.2)
LABELS = np.array([0, 2, 1, 1, 0])


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("batch", [1, 5, "N"])
def test_log_loss(softmax: bool, opset: int, batch: int | str) -> None:
    model = logits(batch=batch, softmax=softmax, opset=opset)
    losses, tensors = Gradients(model, ["x"], log_loss).run({"x": X}, LABELS)
    w = apart(4, 3, spacing=0.3).astype(np.float64)
    np.testing.assert_allclose(losses, log_losses(X @ w, LABELS), rtol=1e-5)
    p = np.exp(X @ w) / np.exp(X @ w).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(tensors["x"][1], (p - np.eye(3)[LABELS]) @ w.T, atol=1e-5)


def test_without_labels_the_own_choice_is_the_label() -> None:
    gradients = Gradients(logits(softmax=True), ["x"], log_loss)
    own = (X @ apart(4, 3, spacing=0.3)).argmax(axis=1)
    np.testing.assert_array_equal(gradients.run({"x": X})[0], gradients.run({"x": X}, own)[0])


def test_an_image_does_not_depend_on_its_batch() -> None:
    gradients = Gradients(logits(), ["x", "y"], log_loss)
    together = gradients.run({"x": X}, LABELS)
    for i in range(len(X)):
        losses, tensors = gradients.run({"x": X[i : i + 1]}, LABELS[i : i + 1])
        np.testing.assert_allclose(losses, together[0][i : i + 1], rtol=1e-6)
        for name in ("x", "y"):
            np.testing.assert_allclose(tensors[name][1], together[1][name][1][i : i + 1], atol=1e-6)


def test_a_sure_classifier_has_an_exact_loss() -> None:
    """Through probabilities that round to 0 and 1 it would be infinite, and its gradient 0."""
    losses, tensors = Gradients(logits(softmax=True), ["x"], log_loss).run({"x": X * 1000}, LABELS)
    np.testing.assert_allclose(losses, log_losses(1000 * X @ apart(4, 3, spacing=0.3), LABELS), rtol=1e-4)
    assert np.isfinite(tensors["x"][1]).all()


def test_a_classifier_of_every_position() -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    model = net(nodes, {"x": (2, 3, 2, 2)}, {})
    x, labels = apart(2, 3, 2, 2), np.arange(8).reshape(2, 2, 2) % 3
    losses, tensors = Gradients(model, ["x"], log_loss).run({"x": x}, labels)
    rows = x.transpose(0, 2, 3, 1).reshape(8, 3)
    np.testing.assert_allclose(losses, log_losses(rows, labels.ravel()).reshape(2, 4).mean(axis=1), rtol=1e-5)
    p = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True) - np.eye(3)[labels.ravel()]
    np.testing.assert_allclose(tensors["x"][1], p.reshape(2, 2, 2, 3).transpose(0, 3, 1, 2) / 4, atol=1e-6)


def test_below_opset_13_softmax_joins_the_axes_behind() -> None:
    model = net([helper.make_node("Softmax", ["x"], ["y"])], {"x": (2, 3, 2)}, {}, opset=11)
    x, labels = apart(2, 3, 2), np.array([5, 0])
    losses, _ = Gradients(model, ["x"], log_loss).run({"x": x}, labels)
    np.testing.assert_allclose(losses, log_losses(x.reshape(2, 6), labels), rtol=1e-5)


def two_heads() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Softmax", ["r"], ["classes"], axis=1),
        helper.make_node("Tanh", ["r"], ["boxes"]),
        helper.make_node("Softmax", ["boxes"], ["others"], axis=1),
    ]
    return net(nodes, {"x": (2, 3)}, {}, ["classes", "boxes", "others"])


def test_the_output_to_judge_is_named_where_it_is_not_clear() -> None:
    with pytest.raises(PerfonnxError, match="name one of classes, boxes, others"):
        Gradients(two_heads(), ["x"], log_loss)
    losses, _ = Gradients(two_heads(), ["x"], LogLoss("classes")).run({"x": apart(2, 3)})
    assert losses.shape == (2,)
    for loss in (LogLoss("nobody"), OutputDistance(["nobody"])):
        with pytest.raises(PerfonnxError, match="no output 'nobody'"):
            Gradients(two_heads(), ["x"], loss)


def test_distance_of_some_outputs() -> None:
    x = apart(2, 3)
    loss = OutputDistance(["boxes"])
    losses, tensors = Gradients(two_heads(), ["x", "others"], loss).run({"x": x}, {"boxes": np.zeros((2, 3))})
    y = np.tanh(np.maximum(x, 0))
    np.testing.assert_allclose(losses, (y**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(tensors["x"][1], 2 * y * (1 - y * y) * (x > 0), atol=1e-6)
    assert not tensors["others"][1].any()  # the loss does not depend on it


@pytest.mark.parametrize(
    ("loss", "labels", "match"),
    [
        (log_loss, np.array([0, 1]), "2 labels or targets for 5 images"),
        (log_loss, np.array([0, 1, 2, 3, 0]), "labels from 0 to 3: net has 3 classes"),
        (log_loss, np.array([0, 1, 2, -1, 0]), "labels from -1"),
        (log_loss, np.zeros(5), "needs one integer for each"),
        (log_loss, np.zeros((5, 2), int), "needs one integer for each"),
        (output_distance, None, "needs target outputs for y"),
        (output_distance, np.zeros((5, 2)), r"target of output 'y' has shape \[5, 2\], the output \[5, 3\]"),
        (output_distance, {"z": np.zeros((5, 3))}, "no target for output 'y'"),
    ],
)
def test_labels_that_do_not_fit(loss: Loss, labels: Any, match: str) -> None:
    with pytest.raises(PerfonnxError, match=match):
        Gradients(logits(), ["x"], loss).run({"x": X}, labels)


@pytest.mark.parametrize(
    ("feed", "match"),
    [
        ({}, "has the inputs x, but is given"),
        ({"x": X, "z": X}, "has the inputs x, but is given x, z"),
        ({"x": X[:3]}, "batches of 2"),
        ({"x": X[:0]}, "batches of 2"),
        ({"x": X[:2, :3]}, "onnxruntime cannot run it"),
        ({"x": X[:2].astype(np.float64)}, "onnxruntime cannot run it"),
    ],
)
def test_feeds_that_do_not_fit(feed: dict[str, Any], match: str) -> None:
    with pytest.raises(PerfonnxError, match=match):
        Gradients(logits(batch=2), ["x"], log_loss).run(feed)


def test_tensors_that_have_no_gradient() -> None:
    for name in ("nobody", "w"):
        with pytest.raises(PerfonnxError, match=f"no tensor '{name}'"):
            Gradients(logits(), [name], log_loss)


def test_outputs_that_are_no_classes() -> None:
    model = net([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 2, 3, 3)}, {})
    with pytest.raises(PerfonnxError, match="has no class scores"):
        Gradients(model, ["x"], log_loss).run({"x": apart(1, 2, 3, 3)})
    model = net([helper.make_node("Sigmoid", ["x"], ["y"], name="s")], {"x": (1, 2)}, {})
    with pytest.raises(PerfonnxError, match="comes out of Sigmoid 's'"):
        Gradients(model, ["x"], log_loss)


def test_nodes_out_of_order() -> None:
    model = net([helper.make_node("Relu", ["r"], ["y"]), helper.make_node("Exp", ["x"], ["r"])], {"x": (1, 2)}, {})
    x = apart(1, 2)
    _, tensors = Gradients(model, ["x"], output_distance).run({"x": x}, np.zeros((1, 2)))
    np.testing.assert_allclose(tensors["x"][1], 2 * np.exp(2 * x), rtol=1e-5)


def test_a_tensor_with_several_readers_gets_the_sum() -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Mul", ["e", "e"], ["m"]),
        helper.make_node("Add", ["m", "e"], ["a"]),
        helper.make_node("Concat", ["a", "e", "x"], ["y"], axis=1),
    ]
    x = apart(2, 2)
    _, tensors = Gradients(net(nodes, {"x": (2, 2)}, {}), ["x", "e"], output_distance).run({"x": x}, np.zeros((2, 6)))
    e = np.exp(x.astype(np.float64))
    by_e = 2 * (e * e + e) * (2 * e + 1) + 2 * e
    np.testing.assert_allclose(tensors["e"][1], by_e, rtol=1e-5)
    np.testing.assert_allclose(tensors["x"][1], by_e * e + 2 * x, rtol=1e-5)


def test_functions_of_others_are_inlined() -> None:
    body = [helper.make_node("Mul", ["a", "a"], ["s"]), helper.make_node("Neg", ["s"], ["b"])]
    function = helper.make_function("my", "MinusSquare", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = net([helper.make_node("MinusSquare", ["x"], ["y"], domain="my")], {"x": (1, 3)}, {})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("my", 1))
    x = apart(1, 3)
    _, tensors = Gradients(model, ["x"], output_distance).run({"x": x}, np.zeros((1, 3)))
    np.testing.assert_allclose(tensors["x"][1], 4 * x.astype(np.float64) ** 3, rtol=1e-5)


def test_external_weights(tmp_path: Any) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(logits(), path, save_as_external_data=True, size_threshold=0)
    expected = Gradients(logits(), ["x"], log_loss).run({"x": X}, LABELS)
    actual = Gradients(path, ["x"], log_loss).run({"x": X}, LABELS)
    np.testing.assert_array_equal(actual[1]["x"][1], expected[1]["x"][1])


# --- perfonnx's own operators ----------------------------------------------------------------------------------------


def convs(*, slopes: Sequence[float] = ()) -> onnx.ModelProto:
    """Two layers, a Relu behind each; with `slopes` a PRelu behind the first."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("PRelu", ["a", "s"], ["r"]) if slopes else helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = {
        "w1": rng.standard_normal((4, 3, 3, 3)) / 3,
        "b1": rng.standard_normal(4),
        "w2": rng.standard_normal((2, 4, 3, 3)) / 3,
        "b2": rng.standard_normal(2),
    }
    if slopes:
        weights["s"] = np.reshape(slopes, (-1, 1, 1))
    return net(nodes, {"x": (2, 3, 6, 7)}, {k: v.astype(np.float32) for k, v in weights.items()})


@pytest.mark.parametrize("layout", ["rows", "nchw"])
@pytest.mark.parametrize(
    "choices",
    [
        {"rate": 0.5},
        {"rate": 0.6, "mask": "uniform", "interpolation": "barycentric"},
        {"rate": 0.5, "interpolation": "zero"},
        {"rate": 0.5, "method": "sparse"},
        {"method": "radius-adaptive", "center_gain": 1.0},
    ],
    ids=lambda c: " ".join(map(str, c.values())),
)
def test_rewritten_networks_against_differences(choices: dict[str, Any], layout: str) -> None:
    """The loss's derivative in random directions, through the library's kernels."""
    model = perfonnx.rewrite(convs(), only=".", layout=layout, **choices).proto
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 7)).astype(np.float32)
    session = perfonnx.session(model)
    check_directions(model, session, {"x": x}, output_distance, np.zeros(session.run(None, {"x": x})[0].shape))


@pytest.mark.parametrize("layout", ["rows", "nchw"])
@pytest.mark.parametrize("method", ["perforate", "sparse", "radius-adaptive"])
def test_slopes_of_rewritten_networks_against_differences(method: str, layout: str) -> None:
    model = perfonnx.rewrite(convs(slopes=[0.25, -0.5, 2, 0]), only=".", layout=layout, method=method, rate=0.5).proto
    assert all(node.op_type != "PRelu" for node in model.graph.node)
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 7)).astype(np.float32)
    session = perfonnx.session(model)
    check_directions(model, session, {"x": x}, output_distance, np.zeros(session.run(None, {"x": x})[0].shape))


def check_directions(
    model: Any, session: Any, feed: dict[str, np.ndarray], loss: Loss, labels: Any, *, step: float = 1e-2
) -> None:
    """The gradient with respect to the only input, along itself and along noise, against central differences."""
    (name, x), *_ = feed.items()
    _, tensors = Gradients(model, [name], loss).run(feed, labels)
    gradient = tensors[name][1].astype(np.float64)
    names = [o.name for o in session.get_outputs()]
    forward = Gradients(model, [], loss)

    def value(moved: np.ndarray) -> float:
        if isinstance(loss, LogLoss):
            return float(forward.run({name: moved}, labels)[0].sum())
        outputs = dict(zip(names, session.run(None, {name: moved}), strict=True))
        targets = labels if isinstance(labels, dict) else {names[0]: labels}
        return sum(float(((outputs[n].astype(np.float64) - t) ** 2).sum()) for n, t in targets.items())

    for seed in range(3):
        noise = np.random.default_rng(seed).standard_normal(x.shape)
        direction = noise / np.linalg.norm(noise) + gradient / np.linalg.norm(gradient)
        up, down = ((x + sign * step * direction).astype(np.float32) for sign in (1, -1))
        expected = (value(up) - value(down)) / (2 * step)
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=2e-2)


def test_gradients_add_up_at_sites_and_skipped_positions_get_none() -> None:
    mask = np.zeros((6, 7), bool)
    mask[::2, ::3] = True
    model = convs()
    plan = perfonnx.Plan({"one": perfonnx.Perforate(0.5, "uniform")}, seed=4)
    proto = perfonnx.rewrite(model, plan=plan, layout="nchw").proto
    network = Network(proto)
    conv = next(n.output[0] for n in network.nodes if n.op_type == "Conv")
    own = next(n for n in proto.graph.node if n.op_type == "PerforatedConv")
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 7)).astype(np.float32)
    target = np.zeros((2, 2, 6, 7))
    _, tensors = Gradients(network, [conv, own.output[0]], output_distance).run({"x": x}, target)
    tables = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    sites, source = tables[own.input[3]].ravel(), tables[own.input[4]].ravel()
    assert 0 < sites.sum() < sites.size
    after = (tensors[own.output[0]][0] > 0) * tensors[own.output[0]][1]  # through the Relu that the layer absorbed
    expected = np.zeros((2, 4, 42))
    np.add.at(expected, (slice(None), slice(None), source), after.reshape(2, 4, 42))
    actual = tensors[conv][1].reshape(2, 4, 42)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert not actual[..., ~sites].any()
    assert actual[..., sites].any()


def test_a_model_without_function_bodies_is_refused() -> None:
    proto = perfonnx.rewrite(convs(), only="two", fallback=False, layout="nchw").proto
    with pytest.raises(PerfonnxError, match=r"PerforatedConv 'two' has no function body.*--no-fallback"):
        Gradients(proto, ["x"], output_distance)


# --- real models -----------------------------------------------------------------------------------------------------


def real(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    model, stem = real_models.model(name), name.rsplit("/")[-1]
    session = perfonnx.session(model)
    shapes = {
        key: tuple(2 if size == "N" else size for size in shape)
        for key, shape in real_models.SHAPES.get(stem, {}).items()
    }
    return model, session, real_models.suited(stem, next(random_feeds(session, n=1, shapes=shapes)))


def loss_for(model: Any, session: Any, feed: dict[str, np.ndarray]) -> tuple[Loss, Any]:
    """The log-loss for a classifier; else the distance to outputs that are smaller by a tenth."""
    try:
        Gradients(model, list(feed), log_loss).run(feed)
    except PerfonnxError:
        outputs = zip(session.get_outputs(), session.run(None, feed), strict=True)
        return output_distance, {o.name: np.float32(0.9) * y for o, y in outputs}
    return log_loss, None


def check_all_convolutions(name: str) -> None:
    model, session, feed = real(name)
    network = Network(model)
    wanted = [n.output[0] for n in network.nodes if n.op_type == "Conv"]
    loss, labels = loss_for(model, session, feed)
    losses, tensors = Gradients(network, wanted, loss).run(feed, labels)
    assert np.isfinite(losses).all()
    assert all(np.isfinite(gradient).all() for _, gradient in tensors.values())
    assert sum(bool(gradient.any()) for _, gradient in tensors.values()) > len(wanted) / 2


QUICK = ("cifar10_resnet20_bn", "cifar10_winml_tutorial5x5", "mnist_cntk8")


@pytest.mark.parametrize("name", [n for n in NAMES if n.rsplit("/")[-1] in QUICK])
def test_every_convolution_of_a_real_model(name: str) -> None:
    check_all_convolutions(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n.rsplit("/")[-1] not in QUICK])
def test_every_convolution_of_every_other_real_model(name: str) -> None:
    check_all_convolutions(name)


def image_noise(shape: tuple[int, ...]) -> np.ndarray:
    """Random images, coarse and fine, about 0 to 1. Without the fine part equal neighbours would tie in max pools."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.random((*shape[:2], 4, 4)), np.ones((1, 1, -(-shape[2] // 4), -(-shape[3] // 4))))
    return coarse[..., : shape[2], : shape[3]] + 0.2 * rng.standard_normal(shape)


REAL: dict[str, tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray], float]] = {
    "mnist_cntk8": ((1, 1, 28, 28), lambda x: 255 * x, 0.1),
    "cifar10_resnet20": ((2, 3, 32, 32), lambda x: 4 * x - 2, 1e-2),
    "cifar10_resnet20_bn": ((2, 3, 32, 32), lambda x: 4 * x - 2, 1e-2),
    "imagenet_squeezenet_winml_fp32": ((1, 3, 224, 224), lambda x: 255 * x - 115, 0.1),
}


@pytest.mark.parametrize("name", REAL)
def test_real_models_against_differences(name: str) -> None:
    shape, scale, step = REAL[name]
    path = real_models.path(name)
    session = perfonnx.session(str(path))
    feed = {session.get_inputs()[0].name: scale(image_noise(shape)).astype(np.float32)}
    check_directions(path, session, feed, log_loss, np.full(shape[0], 3), step=step)


@pytest.mark.slow
def test_a_real_detector_against_differences() -> None:
    """Made smooth: in thousands of softmaxes behind ReLUs, differences find a kink at every step."""
    model = onnx.load(real_models.path("face_rfb320_nopost"))
    for node in model.graph.node:
        node.op_type = "Softplus" if node.op_type == "Relu" else node.op_type
    feed = {"input": (2 * image_noise((1, 3, 240, 320)) - 1).astype(np.float32)}
    labels = np.arange(4420)[None] % 2
    check_directions(model, perfonnx.session(model), feed, LogLoss("scores"), labels, step=0.2)


@pytest.mark.slow
def test_style_transfer_against_differences() -> None:
    path = real_models.path("style_candy")
    session = perfonnx.session(str(path))
    x = (255 * image_noise((1, 3, 720, 720))).astype(np.float32)
    labels = np.full((1, 3, 720, 720), 128.0)
    check_directions(path, session, {session.get_inputs()[0].name: x}, output_distance, labels, step=10.0)
