from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from rich.console import Console

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.inspection import Inspection
from perfonnx.names import shortened
from perfonnx.render import byte_size, count, render_inspection, render_report
from tests.passes import nets
from tests.passes.nets import node


def network() -> ModelProto:
    nodes = [
        nets.conv("x", "a", "w1", name="first", strides=[2, 1]),
        node("Relu", ["a"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
        nets.conv("p", "b", "w2", name="point", kernel_shape=[1, 1], pads=[0] * 4),
        nets.conv("b", "c", "w3", name="depth", group=8),
        nets.conv("c", "y", "w4", name="[bold]last[/bold]", dilations=[2, 2], pads=[2] * 4, group=2),
    ]
    weights = {
        "w1": nets.values(16, 3, 3, 3),
        "w2": nets.values(8, 16, 1, 1),
        "w3": nets.values(8, 1, 3, 3),
        "w4": nets.values(32, 4, 3, 3),
    }
    return nets.model(nodes, weights)


def shown(renderable: Any) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_what_is_said_of_each_convolution() -> None:
    result = perfonnx.inspect(network())
    first, point, depth, last = result.convs
    assert (first.name, first.op, first.weight, first.strides) == ("first", "Conv", (16, 3, 3, 3), (2, 1))
    assert (first.output, first.multiplies, first.pool, first.reason) == ((6, 10), 60 * 16 * 27, True, None)
    assert (point.output, point.multiplies, point.pool) == ((5, 9), 45 * 128, False)
    assert point.reason == "1x1 kernel: little work per value, nothing to gain"
    assert depth.reason == "depthwise: bound by memory, nothing to gain"
    assert (depth.group, depth.multiplies) == (8, 45 * 72)
    assert (last.group, last.multiplies, last.reason) == (2, 45 * 32 * 36, None)
    assert result.multiplies == sum(c.multiplies or 0 for c in result.convs)
    assert sum(c.share for c in result.convs) == pytest.approx(1)
    assert result.eligible_share == pytest.approx(first.share + last.share)
    assert not result.little_to_gain
    assert result.opset == 17


def test_other_layers_count_in_the_shares() -> None:
    model = nets.followed_by(
        [node("Flatten", ["c"], ["f"]), node("Gemm", ["f", "k"], ["y"])], {"k": nets.values(960, 27)}
    )
    model.graph.output[0].type.tensor_type.shape.dim.pop()
    model.graph.output[0].type.tensor_type.shape.dim.pop()
    (conv,) = perfonnx.inspect(model).convs
    assert conv.share == 0.5
    model = nets.followed_by([node("ConvTranspose", ["c", "k"], ["y"], strides=[2, 2])], {"k": nets.values(8, 3, 1, 9)})
    assert perfonnx.inspect(model).multiplies == 120 * 8 * 27 + 120 * 8 * 27


def test_inspection_agrees_with_rewriting() -> None:
    model = network()
    report = nets.rewrite(model, rate=0.5).report
    result = perfonnx.inspect(model)
    assert report.multiplies[0] == result.multiplies
    assert report.eligible_share == pytest.approx(result.eligible_share)
    reasons = {s.layer: s.reason for s in report.skips}
    assert reasons == {c.name: c.reason for c in result.convs if c.reason}
    assert [layer.name for layer in report.layers] == [c.name for c in result.convs if c.reason is None]


@pytest.mark.parametrize("method", ["perforate", "sparse", "radius-adaptive"])
def test_rewritten_layers(method: str) -> None:
    rewritten = nets.rewrite(network(), rate=0.5, method=method, only=["first"])
    first = perfonnx.inspect(rewritten.proto).convs[0]
    assert first.name == "first"
    assert first.op == {"perforate": "PerforatedConv", "sparse": "SparseConv"}.get(method, "RadiusAdaptiveConv")
    assert (first.weight, first.strides, first.output) == ((16, 3, 3, 3), (2, 1), (6, 10))
    assert first.multiplies == (30 * 16 * 27 if method != "radius-adaptive" else 60 * 16 * 27)
    assert first.reason == "already rewritten"
    assert nets.rewrite(rewritten.proto).report.skips[0].reason == "already rewritten"


def test_unknown_shapes_are_said_to_be_unknown() -> None:
    model = nets.model([nets.conv(y="y")], {"w": nets.values(8, 3, 3, 3)}, inputs={"x": ("N", 3, "H", "W")})
    (conv,) = perfonnx.inspect(model).convs
    assert (conv.output, conv.multiplies, conv.weight) == (None, None, (8, 3, 3, 3))
    assert conv.reason == "its height and width are symbolic; give --input-shape"
    (known,) = perfonnx.inspect(model, input_shapes={"x": ("N", 3, 12, 10)}).convs
    assert (known.output, known.reason) == ((12, 10), None)
    assert "?" in shown(render_inspection(perfonnx.inspect(model)))


def test_a_model_without_convolutions() -> None:
    result = perfonnx.inspect(nets.model([node("Relu", ["x"], ["y"])], {}))
    assert (result.convs, result.multiplies, result.eligible_share) == ([], 0, 0)
    assert "0 convolutions" in shown(render_inspection(result))


def test_little_to_gain() -> None:
    model = nets.model([nets.conv(y="y", kernel_shape=[1, 1], pads=[0] * 4)], {"w": nets.values(8, 3, 1, 1)})
    result = perfonnx.inspect(model)
    assert result.little_to_gain
    assert "little to gain" in shown(render_inspection(result))


def test_little_to_gain_is_not_said_where_a_flag_is_missing() -> None:
    nodes = [nets.conv(), nets.conv("c", "y", "p", name="point", kernel_shape=[1, 1], pads=[0] * 4)]
    weights = {"w": nets.values(8, 3, 3, 3), "p": nets.values(8, 8, 1, 1)}
    model = nets.model(nodes, weights, inputs_too=["w"])
    result = perfonnx.inspect(model)
    assert result.missing == {"--freeze-weights": 1}
    assert not result.little_to_gain
    text = shown(render_inspection(result))
    assert "little to gain" not in text
    assert "1 convolution left as it is for want of --freeze-weights" in text
    report = nets.rewrite(model).report
    assert report.little_to_gain is None
    assert "for want of --freeze-weights" in shown(render_report(report))
    frozen = perfonnx.inspect(model, freeze_weights=True)
    assert (frozen.missing, frozen.convs[0].reason) == ({}, None)

    open_size = nets.model(nodes, weights, inputs={"x": ("N", 3, "H", "W")})
    result = perfonnx.inspect(open_size)
    assert result.missing == {"--input-shape x:N,3,224,224": 2}
    assert "2 convolutions left as they are for want of --input-shape x:N,3,224,224" in shown(render_inspection(result))
    assert perfonnx.inspect(open_size, input_shapes={"x": ("N", 3, 12, 10)}).missing == {}


def test_frozen_weights_that_nothing_reads_go() -> None:
    """onnxruntime warns of each of them whenever the model is loaded."""
    model = nets.model(
        [nets.conv(y="y")], {"w": nets.values(8, 3, 3, 3), "old": nets.values(4)}, inputs_too=["w", "old"]
    )
    result = nets.rewrite(model, rate=0.5, freeze_weights=True)
    assert "old" not in {tensor.name for tensor in result.proto.graph.initializer}
    assert [info.name for info in result.proto.graph.input] == ["x"]
    assert "old" in {tensor.name for tensor in nets.rewrite(model, rate=0.5).proto.graph.initializer}


def test_long_names_take_one_line_in_tables() -> None:
    name = "/backbone" * 44 + "/Conv_last"
    model = nets.model([nets.conv(y="y", name=name)], {"w": nets.values(8, 3, 3, 3)})
    result = perfonnx.inspect(model)
    lines = shown(render_inspection(result)).splitlines()
    assert sum("backbone" in line for line in lines) == 1
    assert any("…" in line and "/Conv_last" in line for line in lines)
    assert result.to_json()["convs"][0]["name"] == name
    report = nets.rewrite(model, rate=0.5).report
    assert sum("backbone" in line for line in shown(render_report(report)).splitlines()) == 1
    assert report.to_json()["layers"][0]["name"] == name
    assert shortened("ab" * 30) == "ab" * 30
    assert len(shortened("ab" * 31)) == 60


def test_tables_show_names_as_they_are() -> None:
    """Brackets in names are no markup, and long ones are folded, not cut."""
    model = network()
    text = shown(render_inspection(perfonnx.inspect(model)))
    assert "[bold]last[/bold]" in text
    assert "16x3x3x3" in text
    assert "8x1x3x3 /8" in text
    result = nets.rewrite(model, rate=0.5)
    text = shown(render_report(result.report, verbose=True))
    for name in ("first", "[bold]last[/bold]", "point", "depth"):
        assert name in text
    assert "depthwise: bound by memory" in text


def test_json() -> None:
    result = perfonnx.inspect(network())
    data = json.loads(json.dumps(result.to_json()))
    assert data["convs"][0]["name"] == "first"
    assert data["eligible_share"] == pytest.approx(result.eligible_share)
    assert data["little_to_gain"] is False


def test_inspection_changes_nothing() -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    assert isinstance(perfonnx.inspect(model, input_shapes={"x": (1, 3, 12, 10)}), Inspection)
    assert model.SerializeToString(deterministic=True) == before
    with pytest.raises(PerfonnxError):
        perfonnx.inspect(b"nothing")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (12345, "12.3 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (15_300_000_000, "15.3 G"),
        (10**13, "10 T"),
        (10**16, "10000 T"),
    ],
)
def test_counts(number: int, text: str) -> None:
    assert count(number) == text
    assert byte_size(1_500_000) == "1.50 MB"


def test_float16_counts_half() -> None:
    sizes = [
        nets.rewrite(nets.followed_by([node("Relu", ["c"], ["y"])], dtype=dtype)).report.activations
        for dtype in (np.float32, np.float16)
    ]
    assert sizes[0] == tuple(2 * size for size in sizes[1])
