"""Every real model, at every rate, with every mask: it is rewritten or the reason is named, and it runs both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import perfonnx
from perfonnx.data.feeds import random_feeds
from perfonnx.data.inputs import Feed
from perfonnx.masks import MASKS
from perfonnx.masks.blocks import EDGE
from perfonnx.methods import METHODS
from perfonnx.methods.base import Needs, SampledMethod
from perfonnx.methods.exact import Exact
from tests import real_models

NAMES = real_models.names()
RATES = (0.0, 0.25, 0.5, 0.75)
OTHER_METHODS = [
    *(name for name, m in METHODS.items() if issubclass(m, SampledMethod) and name != "perforate"),
    "zhang",
]
"""Those of our own operators, and one that gives standard layers, which have tests of their own."""
EXPERIMENTAL = "style_candy_raw_winml"  # uses operators that onnx has dropped; no checker knows them

pytestmark = pytest.mark.skipif(not NAMES, reason="the real models are not here: set PERFONNX_TEST_DATA")


def tolerance(model: onnx.ModelProto) -> float:
    """float16 models are compared at float16's precision."""
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    return 1e-2 if half else 1e-4


def outputs(model: onnx.ModelProto | str, feed: Feed, *, library: bool) -> list[np.ndarray]:
    """All outputs of one run."""
    return perfonnx.session(model, library=library).run(None, feed)


def largest_relative_error(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference over the largest value, over all outputs."""
    errors = []
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        a, e = a.astype(np.float64), e.astype(np.float64)
        errors.append(float(np.abs(a - e).max() / max(float(np.abs(e).max()), 1e-30)))
    return max(errors)


def check_one(name: str, *, model: onnx.ModelProto | str | None = None, **choices: object) -> perfonnx.Rewritten:
    """Rewrite, check, run with the library and by function bodies; at rate 0 also against the original.

    The model is the one that is quick to run, unless another is given.
    """
    model = real_models.model(name) if model is None else model
    stem = name.rsplit("/")[-1]
    result = perfonnx.rewrite(model, input_shapes=real_models.SHAPES.get(stem), freeze_weights=True, **choices)
    report, proto = result.report, result.proto
    assert len(report.layers) + len(report.skips) >= 1
    assert all(skip.reason for skip in report.skips)
    if stem != EXPERIMENTAL:
        onnx.checker.check_model(proto, full_check=True)
    session = perfonnx.session(proto)
    feed = real_models.suited(stem, next(random_feeds(session, n=1)))
    by_kernel = session.run(None, feed)
    if any(isinstance(step, SampledMethod) for layer in report.layers for step in layer.plan.steps):
        assert {n.domain for n in proto.graph.node} >= {"ai.perfonnx"}
        by_function = outputs(proto, feed, library=False)
        assert largest_relative_error(by_kernel, by_function) < tolerance(proto)
    exact = not choices or choices.get("method") in ("exact", "radius-adaptive")
    if exact or choices.get("rate") == 0:
        original = outputs(model, feed, library=False)
        assert largest_relative_error(by_kernel, original) < tolerance(proto)
    return result


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_with_the_default_masks(name: str, rate: float) -> None:
    check_one(name, rate=rate)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [name for name in MASKS if name != "impact"])  # that one needs images
@pytest.mark.parametrize("name", NAMES)
def test_every_model_at_every_rate_with_every_mask(name: str, mask: str) -> None:
    for rate in RATES:
        result = check_one(name, rate=rate, mask=mask)
        for layer in result.report.layers:
            positions = layer.output_shape[0] * layer.output_shape[1]
            coarse = EDGE**2 / positions / 2 if mask == "blocks" else 0.0  # half a block, more or less
            assert abs(layer.rate - rate) < max(0.25, coarse + 1e-6), (layer.name, layer.rate)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [
        *({"rate": rate} for rate in RATES),
        {"rate": 0.5, "mask": "lattice"},
        {"rate": 0.75, "mask": "uniform"},
        {"rate": 0.5, "mask": "grid", "interpolation": "barycentric"},
        {"rate": 0.5, "method": "sparse"},
        {"method": "radius-adaptive"},
    ],
    ids=str,
)
def test_large_maps(choices: dict[str, Any]) -> None:
    """A style network at the size it was made for."""
    check_one("style_candy", model=str(real_models.path("style_candy")), **choices)


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHER_METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_model_with_every_other_method(name: str, method: str) -> None:
    data: dict[str, Any] = {}
    if METHODS[method]().needs is Needs.TARGETS and issubclass(METHODS[method], SampledMethod):
        settings: dict[str, Any] = {
            "input_shapes": real_models.SHAPES.get(name.rsplit("/")[-1]),
            "freeze_weights": True,
        }
        session = perfonnx.session(perfonnx.rewrite(real_models.model(name), **settings).proto)
        data["samples"] = [real_models.suited(name.rsplit("/")[-1], feed) for feed in random_feeds(session, n=2)]
    for gain in (0.0, 1.0):
        result = check_one(name, method=method, center_gain=gain, **data)
        mended = {"refit"} if method == "sublattice" else set()  # products behind
        assert {layer.plan.NAME for layer in result.report.layers} <= {method} | mended


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["zero", "barycentric"])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_with_every_other_interpolation(name: str, interpolation: str) -> None:
    # a triangulation of irregular sites on a large map takes seconds per layer
    mask = "uniform" if name.startswith(("cifar10", "mnist", "imagenet")) else "grid"
    check_one(name, rate=0.5, mask=mask, interpolation=interpolation)


@pytest.mark.parametrize("name", ["extra/coco_fastestdet", "extra/portrait_deeplab513"])
def test_models_with_little_to_gain_say_so(name: str) -> None:
    report = perfonnx.rewrite(real_models.path(name), freeze_weights=True).report
    assert report.little_to_gain is not None
    assert "little to gain" in report.little_to_gain


@pytest.mark.parametrize("name", ["cifar10_resnet20", "imagenet_squeezenet_winml_fp32", "style_candy"])
def test_models_with_much_to_gain_do_not(name: str) -> None:
    report = perfonnx.rewrite(real_models.path(name), method="perforate").report
    assert report.little_to_gain is None
    assert report.reduction > 1.1
    report = perfonnx.rewrite(real_models.path(name)).report
    assert report.little_to_gain is None
    assert {layer.plan for layer in report.layers} == {Exact()}


@pytest.mark.parametrize("name", NAMES)
def test_what_nobody_asks_for_changes_no_output(name: str) -> None:
    check_one(name)


def test_a_folded_and_an_unfolded_network_come_to_the_same() -> None:
    """ResNet-20 with and without BatchNormalization nodes, even where skipped positions are zero."""
    results = [
        perfonnx.rewrite(real_models.path(name), rate=0.5, interpolation="zero").proto
        for name in ("cifar10_resnet20", "cifar10_resnet20_bn")
    ]
    feed = next(random_feeds(perfonnx.session(results[0]), n=4, shapes={"input": (4, 3, 32, 32)}))
    folded, unfolded = (outputs(proto, feed, library=True) for proto in results)
    assert largest_relative_error(unfolded, folded) < 1e-4


def test_tables_keep_a_small_network_on_large_maps_small() -> None:
    model = onnx.load(real_models.path("face_rfb320_nopost"))
    for axis, size in ((2, 960), (3, 1280)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    result = perfonnx.rewrite(model, rate=0.75, freeze_weights=True)
    assert result.report.layers
    assert result.proto.ByteSize() < 2 * model.ByteSize()
