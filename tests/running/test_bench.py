"""Timing: bookkeeping of the runs, and the layers of several models side by side."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from perfonnx import runtime
from perfonnx.errors import PerfonnxError
from perfonnx.running.bench import BenchReport, ModelTiming, _merged, bench, render_bench
from perfonnx.running.profiles import Names
from tests import real_models
from tests.models import small
from tests.passes import nets

IMAGE = {"x": (1, 3, 12, 10)}


def _shown(report: BenchReport) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_bench(report))
    return console.export_text()


def _timing(*times: float) -> ModelTiming:
    return ModelTiming("m", times, 1.0, 1.0)


def test_statistics_of_the_runs() -> None:
    timing = _timing(4, 1, 2, 3, 10)
    assert (timing.median, timing.minimum, timing.spread) == (3, 1, 2)
    assert _timing(5).spread == 0


def test_every_model_is_timed_and_the_first_is_the_reference() -> None:
    steps: list[tuple[int, int]] = []
    model = small.classifier()
    report = bench([model, model, model], threads=1, runs=4, warmup=2, progress=lambda *step: steps.append(step))
    assert [timing.name for timing in report.models] == ["small", "small (2)", "small (3)"]
    assert all(len(timing.times) == 4 and min(timing.times) > 0 for timing in report.models)
    first = report.models[0]
    assert (first.ratio, first.paired_ratio) == (1, 1)
    for timing in report.models:
        assert timing.ratio == pytest.approx(first.median / timing.median)
        rounds = sorted(a / b for a, b in zip(first.times, timing.times, strict=True))
        assert timing.paired_ratio == pytest.approx((rounds[1] + rounds[2]) / 2)
    assert steps == [(done, 6) for done in range(1, 7)]
    assert report.layers is None


def test_rounds_start_with_another_model_each(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = runtime.session

    class Recorder:
        def __init__(self, session: object, name: str) -> None:
            self.session, self.name = session, name

        def __getattr__(self, attribute: str) -> object:
            if attribute == "run":
                calls.append(self.name)
            return getattr(self.session, attribute)

    names = iter("abc")
    monkeypatch.setattr(runtime, "session", lambda *a, **k: Recorder(original(*a, **k), next(names)))
    bench([small.elementwise()] * 3, threads=1, runs=4, warmup=0)
    # In the first round every model runs once more, untimed.
    assert "".join(calls) == "aabbcc" + "bca" + "cab" + "abc"


def test_models_of_other_precision_share_the_input() -> None:
    report = bench([small.classifier(), small.classifier(half=True)], names=["full", "half"], threads=1, runs=1)
    assert [timing.name for timing in report.models] == ["full", "half"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, "no model to time"),
        ({"models": [small.classifier()], "runs": 0}, "runs 0"),
        ({"models": [small.classifier()], "warmup": -1}, "warm-up -1"),
        ({"models": [small.classifier()], "threads": 0}, "threads 0"),
        ({"models": [small.classifier(), small.dense()]}, "input 'x' has shape"),
        ({"models": [small.elementwise(shape=["N", "L"])]}, "--input-shape x:1,224"),
        ({"models": [b"no model"]}, "not an ONNX model"),
    ],
)
def test_mistakes(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        bench(**arguments)  # type: ignore[arg-type]


# --- layers ----------------------------------------------------------------------------------------------------------


def test_layers_of_fused_convolutions_keep_their_names() -> None:
    # conv1 + relu1 and conv2 + sum2 + relu2 are fused, and called after the tensors r1 and r2.
    report = bench([small.classifier(), small.classifier()], threads=1, runs=3, per_layer=True)
    assert report.layers is not None
    layers = {layer.name: layer for layer in report.layers}
    assert {"conv1", "conv2", "fc"} <= set(layers)
    assert not any(name.endswith("_nchwc") for name in layers)
    assert all(None not in layer.times for layer in report.layers)


def test_layers_of_unnamed_nodes_are_called_after_their_output() -> None:
    report = bench([small.classifier(named=False)], threads=1, runs=2, per_layer=True)
    assert report.layers is not None
    assert {"c1", "c2", "y"} <= {layer.name for layer in report.layers}


def test_layers_are_found_by_the_tensor_they_compute() -> None:
    """An unnamed convolution with its Relu, against one node that absorbed both."""
    base = small.classifier(named=False)
    for node in base.graph.node:
        node.name = node.output[0]
    other = small.classifier(named=False)
    first, relu, *rest = other.graph.node
    first.output[0], first.name = relu.output[0], "renamed"
    first.domain, first.op_type = "ai.perfonnx", "SparseConv"
    del other.graph.node[:]
    other.graph.node.extend([first, *rest])
    assert Names(other, Names(base)).keys(iter([("renamed", "SparseConv")])) == {"renamed": "c1"}


def test_layers_that_only_another_model_has_stand_where_it_runs_them() -> None:
    assert _merged([["a", "b", "c"], ["a", "new", "also", "b", "c", "last"]]) == ["a", "new", "also", "b", "c", "last"]
    assert _merged([["a", "b"], ["first", "b", "a"]]) == ["first", "a", "b"]


def test_a_rewritten_layer_stands_beside_its_original() -> None:
    small.need_library()
    report = bench([small.dense(), small.sampled()], threads=1, runs=2, per_layer=True)
    assert report.layers is not None
    layer = next(layer for layer in report.layers if layer.name == "conv")
    assert layer.operators == ("Conv", "SparseConv")
    assert None not in layer.times


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("imagenet_squeezenet_winml_fp32", (1, 3, 224, 224)),
        ("extra/imagenet_squeezenet_winml_fp16_raw", (1, 3, 224, 224)),
        ("cifar10_resnet20_bn", (1, 3, 32, 32)),
        ("cifar10_resnet32", (1, 3, 32, 32)),
        ("denoise_dncnn25_gray", (1, 1, 32, 32)),
        ("face_rfb320_nopost", (1, 3, 240, 320)),
        ("mnist_cntk8", (1, 1, 28, 28)),
        ("sr2x_waifu2x_upconv7_photo", (1, 3, 40, 40)),
        ("sr3x_espcn_bsd300", (1, 1, 224, 224)),
        ("extra/coco_fastestdet", (1, 3, 352, 352)),
        ("extra/cifar10_winml_tutorial5x5", (1, 3, 32, 32)),
    ],
)
def test_every_convolution_of_a_real_model_has_its_row(name: str, shape: tuple[int, ...]) -> None:
    path = real_models.path(name)
    (value,) = runtime.session(path, threads=1, library=False).get_inputs()
    report = bench([path], threads=1, runs=1, warmup=0, shapes={value.name: shape}, per_layer=True)
    assert report.layers is not None
    graph = onnx.load(path, load_external_data=False).graph
    convolutions = {node.name or node.output[0] for node in graph.node if node.op_type == "Conv"}
    rows = {layer.name for layer in report.layers if "Conv" in (layer.operators[0] or "")}
    assert convolutions <= rows


def test_external_data_is_found_when_nodes_get_names(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = small.classifier(named=False)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").stat().st_size > 0
    report = bench([path], threads=1, runs=1, shapes=IMAGE, per_layer=True)
    assert report.layers is not None
    assert "c1" in {layer.name for layer in report.layers}


# --- showing ---------------------------------------------------------------------------------------------------------


def test_rendering_and_json() -> None:
    model = small.classifier()
    report = bench([model, model], names=["one", "two [b]"], threads=1, runs=2, per_layer=True)
    shown = _shown(report)
    for part in (
        "2 interleaved runs, 1 thread",
        "one",
        "two [b]",
        "median",
        "speed-up",
        "1.00x",
        "conv1",
        "all layers",
    ):
        assert part in shown
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [item["name"] for item in plain["models"]] == ["one", "two [b]"]
    assert plain["models"][0]["median_ms"] == pytest.approx(np.median(plain["models"][0]["times_ms"]))
    assert all(len(layer["times_ms"]) == 2 for layer in plain["layers"])
    alone = _shown(bench([model], threads=1, runs=1))
    assert "speed-up" not in alone


def test_the_first_model_is_timed_with_the_weights_frozen_that_another_has_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant weights make onnxruntime faster by themselves: that is no gain of what was rewritten."""
    weights = {"w1": nets.values(64, 3, 3, 3), "w2": nets.values(4, 64, 3, 3), "unread": nets.values(3)}
    nodes = [nets.conv("x", "c", "w1", name="first"), nets.conv("c", "y", "w2", name="second")]
    original = nets.model(nodes, weights, inputs_too=["w1", "w2", "unread"])
    path, fast = tmp_path / "m.onnx", tmp_path / "fast.onnx"
    onnx.save_model(original, path, save_as_external_data=True, size_threshold=0)
    nets.rewrite(path, rate=0, freeze_weights=True).save(fast)
    timed: list[list[str]] = []
    module = importlib.import_module("perfonnx.running.bench")
    run = module._rounds

    def rounds(models: Any, *rest: Any) -> Any:
        timed.extend([info.name for info in model.proto.graph.input] for model in models)
        return run(models, *rest)

    monkeypatch.setattr(module, "_rounds", rounds)
    report = bench([path, fast], threads=1, runs=2, per_layer=True)
    assert timed[:2] == [["x"], ["x"]]
    assert [model.name for model in report.models] == ["m.onnx (weights frozen)", "fast.onnx"]
    assert report.frozen == ("unread", "w1", "w2")
    text = _shown(report)
    assert "The first model is timed with 3 weights as constants" in text
    assert report.to_json()["frozen"] == ["unread", "w1", "w2"]
    alone = bench([path, path], threads=1, runs=1)
    assert alone.frozen == ()
    assert alone.models[0].name == "m.onnx"
