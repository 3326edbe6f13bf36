"""Fully connected layers and 1x1 convolutions by singular values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import perfonnx
from perfonnx.methods.lowrank.svd import Svd
from perfonnx.search.sensitivity import reducible
from perfonnx.subject import Subject
from tests.methods.lowrank import chains
from tests.passes import nets
from tests.passes.nets import node


def low(outputs: int, inputs: int, rank: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    return (rng.standard_normal((outputs, rank)) @ rng.standard_normal((rank, inputs)) / 10).astype(np.float32)


def connected(kind: str, w: np.ndarray) -> ModelProto:
    """x [N, 20] through a product with a weight [12, 20]."""
    weights = {"w": w if kind == "turned" else np.ascontiguousarray(w.T), "b": nets.values(12)}
    last = {
        "turned": [node("Gemm", ["x", "w", "b"], ["y"], name="fc", transB=1)],
        "gemm": [node("Gemm", ["x", "w", "b"], ["y"], name="fc")],
        "bare": [node("Gemm", ["x", "w"], ["y"], name="fc")],
        "matmul": [node("MatMul", ["x", "w"], ["p"], name="fc"), node("Add", ["p", "b"], ["y"])],
    }[kind]
    used = {name: value for name, value in weights.items() if any(name in n.input for n in last)}
    return nets.model(last, used, inputs={"x": ("N", 20)}, outputs={"y": (None, 12)})


@pytest.mark.parametrize("data", [False, True], ids=["plain", "data"])
@pytest.mark.parametrize("kind", ["turned", "gemm", "bare", "matmul"])
def test_a_product_of_low_rank_becomes_two(kind: str, data: bool) -> None:
    model = connected(kind, low(12, 20, 3))
    samples = [{"x": np.random.default_rng(s).standard_normal((9, 20)).astype(np.float32)} for s in range(4)]
    result = perfonnx.rewrite(model, method="svd", rank=3, samples=samples if data else None)
    nets.check(result.proto)
    (layer,) = result.report.layers
    assert layer.multiplies == (12 * 20, 3 * (12 + 20))
    nets.assert_same_results(model, result.proto, samples[0])


def test_more_inputs_than_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is too wide for normal matrices of its width is fitted as well, by those of its samples."""
    from perfonnx.methods.lowrank import metric, rows

    model = connected("gemm", nets.values(12, 20))
    samples = [{"x": np.random.default_rng(0).standard_normal((15, 20)).astype(np.float32)}]
    options: dict[str, Any] = {"method": "svd", "rank": 4, "samples": samples}
    usual = perfonnx.rewrite(model, **options)
    monkeypatch.setattr(rows, "DIRECT", 10)
    monkeypatch.setattr(metric, "DIRECT", 10)
    nets.assert_same_results(usual.proto, perfonnx.rewrite(model, **options).proto, samples[0])


def test_data_counts_what_occurs() -> None:
    """Inputs that hardly occur cost nothing: the rank goes to the others."""
    model = connected("gemm", nets.values(12, 20))
    rng, scale = np.random.default_rng(0), np.where(np.arange(20) < 6, 1, 0.01)
    samples = [{"x": (rng.standard_normal((200, 20)) * scale).astype(np.float32)}]
    fitted, plain = (perfonnx.rewrite(model, method="svd", rank=6, samples=s) for s in (samples, None))
    (expected,) = nets.run(model, samples[0])
    errors = [np.square(nets.run(each.proto, samples[0])[0] - expected).mean() for each in (fitted, plain)]
    assert errors[0] < 0.01 * errors[1]


def test_pointwise_layers_are_taken_without_being_named() -> None:
    w = low(16, 12, 3)[:, :, None, None]
    nodes = [
        nets.conv("x", "a", "w1", name="conv1"),
        nets.conv("a", "y", "w", name="conv2", kernel_shape=[1, 1], pads=[0] * 4),
    ]
    model = nets.model(nodes, {"w1": nets.values(12, 3, 3, 3), "w": w})
    result = perfonnx.rewrite(model, method="svd", rank=3)
    assert [layer.name for layer in result.report.layers] == ["conv2"]
    assert [s.reason for s in result.report.skips if s.layer == "conv1"] == ["its kernel is 3x3; zhang is for those"]
    nets.assert_same_results(model, result.proto)


def test_a_strided_layer_is_made_smaller_first() -> None:
    form = chains.form(8, 6, chains.ConvAttributes((1, 1), (2, 2)), (10, 8))
    assert form.multiplies(Svd().pieces(form, 3)) == 20 * 3 * (6 + 8)
    weight = chains.weight(form)
    found = Svd().factors(chains.plain(weight), form, 6)
    x = np.random.default_rng(0).standard_normal((1, 6, 10, 8))
    expected = chains.convolve(x, weight, None, form.attributes)
    np.testing.assert_allclose(chains.run(Svd().pieces(form, 6), found.arrays, x), expected, atol=1e-9)


def test_products_count_by_their_weights_where_reading_these_takes_longer() -> None:
    """Beside a convolution of 220 M multiplies, 1.9 M read from memory are no trifle; 1 M from the cache are."""
    weights = {"w": nets.values(64, 3, 3, 3), "large": nets.values(64, 30000), "small": nets.values(30000, 32)}
    nodes = [
        nets.conv("x", "a", "w", name="conv"),
        nets.node("GlobalAveragePool", ["a"], ["p"]),
        nets.node("Flatten", ["p"], ["f"]),
        nets.node("Gemm", ["f", "large"], ["g"], name="large"),
        nets.node("Gemm", ["g", "small"], ["y"], name="small"),
    ]
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 360, 360)}, outputs={"y": ("N", 32)})
    result = perfonnx.rewrite(model, method="svd", metric="arbitrary")
    assert [layer.name for layer in result.report.layers] == ["large"]
    assert "carries only 0.4%" in {skip.layer: skip.reason for skip in result.report.skips}["small"]
    subject = Subject(model)
    assert reducible(subject, subject.inspect()) == ["large"]
