"""Comparing models: every number of the report against a direct computation, and every way to fail."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from perfonnx import rewrite, runtime
from perfonnx.comparing.check import compare
from perfonnx.comparing.check_report import CheckReport, render_check
from perfonnx.data.feeds import random_feeds
from perfonnx.data.inputs import Feed, InputSpec
from perfonnx.errors import PerfonnxError
from tests import real_models
from tests.models import small


def _feeds(values: Sequence[object]) -> list[Feed]:
    return [{"x": np.asarray(value, np.float32)} for value in values]


def _images(n: int, batch: int = 1) -> list[Feed]:
    return list(random_feeds([InputSpec("x", (batch, 3, 12, 10), np.dtype(np.float32))], n=n, seed=1))


def _linear(factor: float, offset: float = 0.0, *, output: str = "y", size: int | str = 4) -> onnx.ModelProto:
    model = small.make(
        [helper.make_node("Mul", ["x", "f"], ["p"]), helper.make_node("Add", ["p", "o"], ["y"])],
        {"f": np.float32(factor).reshape(1), "o": np.float32(offset).reshape(1)},
        input_shape=["N", size],
        output_shape=["N", size],
    )
    if output != "y":
        model.graph.node[-1].output[0] = model.graph.output[0].name = output
    return model


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_every_number_of_an_output() -> None:
    feeds = _feeds([[[1, -2, 3, 4]], [[-8, 0, 5, 6]]])
    report = compare(_linear(1), _linear(1.5, 0.25), feeds, threads=1)
    a = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    b = 1.5 * a + 0.25
    (error,) = report.outputs
    assert (error.name, error.values, report.samples) == ("y", 8, 2)
    assert error.max_abs == pytest.approx(np.abs(b - a).max())
    assert error.max_rel == pytest.approx(np.abs(b - a).max() / 8)
    assert error.mean_abs == pytest.approx(np.abs(b - a).mean())
    assert error.cosine == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    assert error.snr_db == pytest.approx(10 * np.log10((a * a).sum() / ((b - a) ** 2).sum()))
    assert error.psnr_db == pytest.approx(10 * np.log10(14**2 / ((b - a) ** 2).mean()))
    assert report.top1 == ()
    assert report.passed


def test_a_model_equals_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small.classifier(), path)
    report = compare(path, path, _images(3), tolerance=0, max_drop=0, threads=1)
    (error,) = report.outputs
    assert (error.max_abs, error.max_rel, error.snr_db) == (0, 0, math.inf)
    assert error.cosine == pytest.approx(1)
    assert (report.a, report.b) == ("m.onnx (A)", "m.onnx (B)")
    assert report.passed


def test_zero_outputs() -> None:
    zero = _feeds([[[0, 0, 0, 0]]])
    assert compare(_linear(1), _linear(2), zero, threads=1).outputs[0].max_rel == 0
    assert compare(_linear(1), _linear(2), zero, threads=1).outputs[0].cosine == 1
    error = compare(_linear(1), _linear(1, 1), zero, tolerance=1e9, threads=1)
    assert error.outputs[0].max_rel == math.inf
    assert error.outputs[0].cosine == 0
    assert not error.passed


@pytest.mark.parametrize(("tolerance", "passes"), [(None, True), (0.51, True), (0.49, False)])
def test_tolerance_bounds_the_relative_error(tolerance: float | None, passes: bool) -> None:
    report = compare(_linear(1), _linear(1.5), _feeds([[[1, 2, 3, 4]]]), tolerance=tolerance, threads=1)
    assert report.passed is passes
    if not passes:
        assert report.failures == ("output 'y': relative error 0.5 is above the tolerance 0.49",)


def test_nan_and_infinity() -> None:
    # The logarithm is NaN below 0 and -infinity at 0; the identity is neither.
    log, same = small.elementwise("Log"), small.elementwise()
    feeds = _feeds([[[-1, 0, 1, 2]]])
    both = compare(log, log, feeds, threads=1)
    assert both.passed
    assert both.outputs[0].not_finite == 0
    one = compare(log, same, feeds, threads=1)
    assert one.outputs[0].not_finite == 2
    assert one.outputs[0].max_abs == pytest.approx(2 - math.log(2))
    assert one.failures == ("output 'y': 2 values are NaN or infinite in one model only",)


def test_half_precision_model_takes_the_same_feeds() -> None:
    report = compare(small.classifier(), small.classifier(half=True), _images(4), tolerance=0.02, threads=1)
    assert 0 < report.outputs[0].max_rel < 0.02
    assert report.passed


# --- classifiers -----------------------------------------------------------------------------------------------------


def test_top1_counts_and_paired_accuracies() -> None:
    base, shifted = small.classifier(batch=2), small.classifier(shift=0.5, batch=2)
    feeds = _images(40, batch=2)
    ours, theirs = (
        np.concatenate([runtime.session(m, threads=1, library=False).run(None, feed)[0] for feed in feeds]).argmax(1)
        for m in (base, shifted)
    )
    labels = np.where(np.arange(40) % 3 == 0, ours, theirs)
    report = compare(base, shifted, feeds, labels=labels, max_drop=0.01, threads=1)
    (top1,) = report.top1
    differ = int((ours != theirs).sum())
    assert 0 < differ < 40
    assert (top1.samples, top1.agree) == (40, 40 - differ)
    assert top1.disagreement == pytest.approx(differ / 40)
    assert (top1.correct_a, top1.correct_b) == ((ours == labels).sum(), (theirs == labels).sum())
    assert top1.only_a == ((ours == labels) & (theirs != labels)).sum()
    assert top1.only_b == ((ours != labels) & (theirs == labels)).sum()
    assert report.failures == ()  # by top-1, as there are labels: both models are right equally often, or nearly so
    assert report.quality is not None
    assert report.quality.drop == pytest.approx(((ours == labels).sum() - (theirs == labels).sum()) / 40)
    unlabelled = compare(base, shifted, feeds, max_drop=0.01, threads=1)
    text = f"output 'y': top-1 differs on {differ} of 40 samples ({differ / 40:.2%}), above 1.00%"
    assert unlabelled.failures == (text,)
    assert compare(base, shifted, feeds, max_drop=1, threads=1).passed


def test_a_bound_on_what_is_no_classifier_is_one_of_distance() -> None:
    feeds = _feeds([[[1, 2, 3, 4]], [[2, 2, 2, 2]]])
    report = compare(_linear(1), _linear(1.5), feeds, max_drop="40%", threads=1)
    assert report.metric is not None
    assert report.quality is not None
    assert (report.metric.name, report.quality.drop, report.max_drop) == ("distance", pytest.approx(0.5), 0.4)
    assert report.failures == ("distance loses 50.00% on 2 samples; wanted within 40.00% of loss",)
    assert compare(_linear(1), _linear(1.5), feeds, max_drop=0.6, threads=1).passed
    with pytest.raises(PerfonnxError, match="no output is an image"):
        compare(_linear(1), _linear(1), feeds, metric="ssim", threads=1)
    with pytest.raises(PerfonnxError, match="drop 'much'"):
        compare(_linear(1), _linear(1), feeds, max_drop="much", threads=1)


def test_where_no_metric_suits_the_report_says_so() -> None:
    total = small.make(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], {}, input_shape=["N", 4], output_shape=[]
    )
    report = compare(total, total, _feeds([[[1, 2, 3, 4]]]), judge=True, threads=1)
    assert report.quality is None
    assert report.not_judged == "metric distance: no output has one entry per image"
    assert report.passed
    assert "the loss was not measured: metric distance" in _shown(report)


def test_too_few_labels() -> None:
    with pytest.raises(PerfonnxError, match="labels: 2 are too few"):
        compare(small.classifier(), small.classifier(), _images(3), labels=[0, 1], threads=1)


# --- models that cannot be compared ----------------------------------------------------------------------------------


def test_mismatches_are_errors() -> None:
    feeds = _feeds([[[1, 2, 3, 4]]])
    summed = small.make(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)], {}, input_shape=["N", 4], output_shape=[None, None]
    )
    with pytest.raises(PerfonnxError, match=r"the models have other outputs: .* has y; .* has z"):
        compare(_linear(1), _linear(1, output="z"), feeds, threads=1)
    with pytest.raises(PerfonnxError, match=r"output 'y' has shape \[1, 4\] in one model and \[1, 1\] in the other"):
        compare(_linear(1), summed, feeds, threads=1)
    with pytest.raises(PerfonnxError, match=r"input 'x' has shape \['N', 5\], but is given \[1, 4\]"):
        compare(_linear(1), _linear(1, size=5), feeds, threads=1)
    renamed = _linear(1)
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "image"
    with pytest.raises(PerfonnxError, match="has the inputs image, but is given x"):
        compare(_linear(1), renamed, feeds, threads=1)
    with pytest.raises(PerfonnxError, match="input 'x' is float32, but is given int64"):
        compare(_linear(1), _linear(1), [{"x": np.zeros((1, 4), np.int64)}], threads=1)
    with pytest.raises(PerfonnxError, match="no sample"):
        compare(_linear(1), _linear(1), [], threads=1)


def test_a_run_that_fails_is_one_line() -> None:
    gather = small.make(
        [
            helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
            helper.make_node("Gather", ["t", "i"], ["y"]),
        ],
        {"t": np.zeros(3, np.float32)},
        input_shape=["N"],
        output_shape=["N"],
    )
    with pytest.raises(PerfonnxError, match="onnxruntime cannot run it") as caught:
        compare(gather, gather, _feeds([[7]]), threads=1)
    assert "\n" not in str(caught.value)


# --- outputs that cannot be compared ---------------------------------------------------------------------------------


def test_the_rest_is_compared_and_notes_say_why() -> None:
    odd, other = small.odd_outputs(), small.odd_outputs()
    (threshold,) = (t for t in other.graph.initializer if t.name == "half")
    threshold.CopyFrom(numpy_helper.from_array(np.float32(0.9), "half"))
    feeds = _images(2)
    report = compare(odd, other, feeds, threads=1)
    assert [error.name for error in report.outputs] == ["y"]
    assert report.passed
    assert report.skipped == {
        "words": "it holds strings",
        "chances": "it is a sequence",
        "parts": "it is a sequence",
        "places": report.skipped["places"],
    }
    assert report.skipped["places"].startswith("its size depends on the values fed, and is [4, ")
    assert "output 'words': not compared, it holds strings" in _shown(report)
    assert report.to_json()["skipped"]["parts"] == "it is a sequence"
    same = compare(odd, odd, feeds, threads=1)
    assert [error.name for error in same.outputs] == ["y", "places"]


def test_nothing_to_compare() -> None:
    words = small.make(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)], {}, input_shape=["N"], output_shape=["N"]
    )
    words.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(PerfonnxError, match="no output that can be compared: output 'y': it holds strings"):
        compare(words, words, _feeds([[1]]), threads=1)


# --- kernels and function bodies -------------------------------------------------------------------------------------


def _sampled_feeds(n: int = 3) -> list[Feed]:
    return list(random_feeds([InputSpec("x", (1, 2, 6, 6), np.dtype(np.float32))], n=n))


def test_a_plain_model_has_no_kernels_to_compare() -> None:
    report = compare(small.dense(), small.dense(), _sampled_feeds(), threads=1)
    assert report.kernel == ()
    assert report.kernel_skipped == "the model has no operator of ai.perfonnx"


def test_kernel_agrees_with_the_function_body() -> None:
    small.need_library()
    report = compare(small.dense(), small.sampled(), _sampled_feeds(), threads=1)
    (kernel,) = report.kernel
    assert report.kernel_skipped is None
    assert kernel.max_rel <= 1e-5
    assert report.outputs[0].max_rel > 0.1
    assert report.passed


def test_a_wrong_function_body_fails() -> None:
    small.need_library()
    report = compare(small.dense(), small.sampled(wrong_by=0.5), _sampled_feeds(), threads=1)
    assert report.kernel[0].max_abs == pytest.approx(0.5, rel=1e-3)
    assert len(report.failures) == 1
    assert "kernel and function body differ" in report.failures[0]


def _cancelling() -> onnx.ModelProto:
    """A map of probabilities around 1e-4, whose logits are small differences of large sums."""
    random = np.random.default_rng(3)
    half = random.standard_normal((16, 4, 3, 3))
    large = 300 * random.standard_normal((1, 16, 3, 3))
    rest = random.standard_normal((1, 16, 3, 3)) / 64
    weights = {
        "w1": np.concatenate([half, half]).astype(np.float32),
        "w2": np.concatenate([large, rest - large], axis=1).astype(np.float32),
        "b2": np.full(1, -9, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["l"], name="second", pads=[1] * 4),
        helper.make_node("Sigmoid", ["l"], ["y"], name="probability"),
    ]
    return small.make(nodes, weights, input_shape=[1, 4, 12, 12], output_shape=[1, 1, 12, 12])


def test_rounding_that_the_original_shows_too_is_no_failure() -> None:
    small.need_library()
    original = _cancelling()
    rewritten = rewrite(original, rate=0.5, only=["first", "second"]).proto
    feeds = list(random_feeds([InputSpec("x", (1, 4, 12, 12), np.dtype(np.float32))], n=3))
    report = compare(original, rewritten, feeds, threads=1)
    assert report.kernel[0].max_rel > report.kernel_bound
    assert report.noise["y"].original.max_rel > report.kernel_bound
    assert report.passed
    assert "no more than what onnxruntime's own optimizations change" in _shown(report)
    assert json.loads(json.dumps(report.to_json()))["kernel"]["noise"]["y"]["original"]["max_rel"] > 1e-4


def test_a_wrong_kernel_fails_beside_rounding() -> None:
    small.need_library()
    original = _cancelling()
    rewritten = rewrite(original, rate=0.5, only=["first", "second"]).proto
    (expand,) = (function for function in rewritten.functions if function.name == "ExpandRows")
    last = expand.node.pop()
    expand.node.append(helper.make_node("Constant", [], ["by"], value_floats=[1.01]))
    expand.node.append(helper.make_node("Mul", [last.input[0], "by"], list(last.output)))
    feeds = list(random_feeds([InputSpec("x", (1, 4, 12, 12), np.dtype(np.float32))], n=3))
    report = compare(original, rewritten, feeds, threads=1)
    assert report.noise["y"].original.max_rel > report.kernel_bound
    assert len(report.failures) == 1
    assert "kernel and function body differ" in report.failures[0]


def test_kernels_without_bodies_and_switched_off() -> None:
    small.need_library()
    report = compare(small.dense(), small.sampled(body=False), _sampled_feeds(), threads=1)
    assert report.kernel_skipped == "the model has no function body for SparseConv"
    report = compare(small.dense(), small.sampled(), _sampled_feeds(), fallback=False, threads=1)
    assert report.kernel_skipped == "switched off"


# --- showing ---------------------------------------------------------------------------------------------------------


def _shown(report: CheckReport) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_check(report))
    return console.export_text()


def test_rendering_and_json() -> None:
    report = compare(
        small.classifier(), small.classifier(shift=1.5), _images(20), tolerance=0.001, labels=[0] * 20, threads=1
    )
    shown = _shown(report)
    for part in ("20 samples", "max rel", "top-1 class", "A right", "not compared", "FAILED output 'y'"):
        assert part in shown
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["passed"] is False
    assert plain["outputs"][0]["max_abs"] == pytest.approx(1.5, rel=1e-3)
    assert plain["top1"][0]["samples"] == 20
    same = compare(_linear(1), _linear(1), _feeds([[[1, 2, 3, 4]]]), threads=1)
    assert json.loads(json.dumps(same.to_json(), allow_nan=False))["outputs"][0]["snr_db"] is None
    assert "no bound on the difference was given" in _shown(same)


def test_progress_and_streaming() -> None:
    seen: list[tuple[int, int]] = []
    feeds = random_feeds([InputSpec("x", (2, 3, 12, 10), np.dtype(np.float32))], n=6)
    compare(small.classifier(), small.classifier(), feeds, threads=1, progress=lambda *step: seen.append(step))
    assert seen == [(2, 6), (4, 6), (6, 6)]


# --- real models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "classifier"),
    [
        ("imagenet_squeezenet_winml_fp32", (1, 3, 224, 224), True),
        ("mnist_cntk8", (1, 1, 28, 28), True),
        ("cifar10_resnet20_bn", (1, 3, 32, 32), True),
        ("face_rfb320_nopost", (1, 3, 240, 320), False),
        ("sr2x_waifu2x_upconv7_photo", (1, 3, 40, 40), False),
    ],
)
def test_real_models_equal_themselves(name: str, shape: tuple[int, ...], classifier: bool) -> None:
    path = real_models.path(name)
    session = runtime.session(path, threads=1, library=False)
    feeds = random_feeds(session, n=2, shapes={session.get_inputs()[0].name: shape})
    report = compare(path, path, feeds, tolerance=1e-6, threads=1)
    assert report.passed
    assert [top1.agree for top1 in report.top1] == ([2] if classifier else [])


@pytest.mark.parametrize("tolerance", [float("nan"), -1.0])
def test_a_bound_without_meaning_is_refused(tolerance: float) -> None:
    with pytest.raises(PerfonnxError, match="give a number from 0 up"):
        compare(_linear(1), _linear(2), _feeds([[[1, 2, 3, 4]]]), tolerance=tolerance, threads=1)
