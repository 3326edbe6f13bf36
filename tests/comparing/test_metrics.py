"""What is lost: values by hand, on a few images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from perfonnx.comparing.metrics import METRICS, Metric, Quality, Scores, choose_metric, joined
from perfonnx.errors import PerfonnxError

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]]))
OTHER = np.log(np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.3, 0.6, 0.1]]))
LABELS = np.array([0, 1, 0, 1])


def measure(metric: Metric, a: Any, b: Any, labels: Any = None) -> Quality:
    return metric.quality(metric.scores({"y": a}, {"y": b}, labels))


@pytest.mark.parametrize("probabilities", [False, True])
def test_top1_counts_points_and_pairs_images(probabilities: bool) -> None:
    a, b = (np.exp(LOGITS), np.exp(OTHER)) if probabilities else (LOGITS + 3, OTHER)
    quality = measure(Metric("top1", ("y",), probabilities), a, b, LABELS)
    # right before: 0, 1; right after: 0, 3
    assert (quality.reference, quality.value, quality.drop) == (0.5, 0.5, 0.0)
    assert quality.drop_error == pytest.approx(np.std([0, 1, 0, -1], ddof=1) / 2)
    kl = (np.exp(LOGITS) * (LOGITS - OTHER)).sum(axis=1)
    assert quality.guide == pytest.approx(kl.mean())


def test_agreement_needs_no_labels_and_ignores_them() -> None:
    metric = Metric("agreement", ("y",))
    assert measure(metric, LOGITS, OTHER).drop == 0.5
    assert measure(metric, LOGITS, OTHER, LABELS).drop == 0.5


def test_loss_is_that_of_the_label_or_of_the_original_class() -> None:
    metric = Metric("loss", ("y",))
    labelled = measure(metric, LOGITS, OTHER, LABELS)
    assert labelled.reference == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.3]).mean())
    assert labelled.drop == pytest.approx(np.log(np.array([0.7, 0.8, 0.3, 0.3]) / [0.6, 0.4, 0.3, 0.6]).mean())
    assert measure(metric, LOGITS, OTHER).value == pytest.approx(-np.log([0.6, 0.4, 0.4, 0.3]).mean())
    with pytest.raises(PerfonnxError, match="label 7: the model has the classes 0 to 2"):
        measure(metric, LOGITS, OTHER, np.array([7, 0, 0, 0]))


def test_equal_outputs_lose_nothing_and_a_few_images_do_not_prove_it() -> None:
    for name in METRICS:
        a = LOGITS if name in ("top1", "agreement", "loss") else np.random.default_rng(0).random((4, 1, 20, 20))
        quality = measure(Metric(name, ("y",)), a, a, LABELS)
        assert quality.guide == 0
        assert quality.drop == (-100 if name == "psnr" else pytest.approx(0))
        assert quality.drop_error == (0.25 if name in ("top1", "agreement") else pytest.approx(0))


def test_distance_is_relative_and_averages_outputs() -> None:
    a = {"y": np.array([[3.0, 4.0]]), "z": np.array([[2.0]])}
    b = {"y": np.array([[3.0, 3.0]]), "z": np.array([[1.0]])}
    scores = Metric("distance", ("y", "z")).scores(a, b)
    assert scores.value == pytest.approx([(0.2 + 0.5) / 2])
    assert scores.guide == pytest.approx([0.35**2])


def test_psnr_and_ssim_by_their_definitions() -> None:
    a = np.random.default_rng(0).random((2, 3, 24, 24))
    a[:, 0, 0, :2] = [0, 1]
    noisy = a + 0.1 * np.where(np.indices(a.shape).sum(axis=0) % 2, 1, -1)
    quality = measure(Metric("psnr", ("y",)), a, noisy)
    assert quality.value == pytest.approx(20)
    assert quality.drop == pytest.approx(-20)
    similar, other = measure(Metric("ssim", ("y",)), a, noisy), measure(Metric("ssim", ("y",)), a, 1 - a)
    assert 0 < similar.drop < 0.2
    assert other.drop > 1
    # constant images: only the luminance term is left
    dark, bright = np.full((1, 1, 20, 20), 0.4), np.full((1, 1, 20, 20), 0.8)
    expected = (2 * 0.4 * 0.8 + 1e-4) / (0.4**2 + 0.8**2 + 1e-4)
    assert measure(Metric("ssim", ("y",)), dark, bright).value == pytest.approx(expected)


def test_values_that_are_not_finite_are_a_loss_and_not_nan() -> None:
    broken = LOGITS.copy()
    broken[0] = np.nan
    broken[1] = np.inf
    for name in ("top1", "agreement", "loss", "distance"):
        quality = measure(Metric(name, ("y",)), LOGITS, broken, LABELS)
        assert all(math.isfinite(v) for v in quality.to_json().values())
        assert quality.guide > 0


def test_other_shapes_are_named() -> None:
    with pytest.raises(PerfonnxError, match=r"output 'y' has shape \[4, 3\] in the original and \[4, 2\]"):
        measure(Metric("agreement", ("y",)), LOGITS, LOGITS[:, :2])


def test_batches_are_joined() -> None:
    one = Scores(np.array([1.0]), np.array([0.0]), np.array([0.5]))
    quality = Metric("agreement", ("y",)).quality(joined([one, one, one]))
    assert (quality.images, quality.drop, quality.guide) == (3, 1.0, 0.5)


@pytest.mark.parametrize(
    ("shape", "labelled", "expected"),
    [
        ((4, 10), True, "top1"),
        ((4, 10), False, "agreement"),
        ((4, 10, 1, 1), False, "agreement"),
        ((4, 3, 32, 32), False, "ssim"),
        ((4, 3, 5, 5), True, "distance"),
        ((4, 1), True, "distance"),
    ],
)
def test_the_metric_follows_the_output(shape: tuple[int, ...], labelled: bool, expected: str) -> None:
    outputs = {"y": np.random.default_rng(0).random(shape, dtype=np.float32)}
    assert choose_metric(None, outputs, images=4, classifiers={"y"}, labelled=labelled).name == expected


def test_probabilities_are_recognized() -> None:
    for values, expected in ((np.exp(LOGITS), True), (LOGITS, False), (np.exp(LOGITS) * 2, False)):
        metric = choose_metric("agreement", {"y": values}, images=4, classifiers={"y"}, labelled=False)
        assert metric.probabilities is expected


def test_what_cannot_be_compared_is_left_out_and_named() -> None:
    outputs = {
        "y": np.zeros((4, 3, 5, 5), np.float32),
        "names": np.array(["a"] * 4, object),
        "boxes": np.zeros((4, 7), np.float32),
    }
    settings = {"images": 4, "classifiers": {"y"}, "labelled": False}
    metric = choose_metric(None, outputs, left_out={"map": "it is a map"}, varying={"boxes"}, **settings)  # type: ignore[arg-type]
    assert metric.outputs == ("y",)
    assert metric.left_out == (
        "output 'map' does not count: it is a map",
        "output 'names' does not count: it holds strings",
        "output 'boxes' does not count: its size depends on the values that are fed",
    )
    alone = choose_metric(None, {"boxes": outputs["boxes"]}, varying={"boxes"}, **settings)  # type: ignore[arg-type]
    assert (alone.outputs, alone.left_out) == (("boxes",), ())
    with pytest.raises(PerfonnxError, match="no output can be compared; output 'names' does not count: it holds str"):
        choose_metric(None, {"names": outputs["names"]}, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("top-1", (4, 10), "unknown metric 'top-1'; choose from top1"),
        ("top1", (4, 10), "metric top1 needs labels"),
        ("agreement", (4, 3, 5, 5), "no output is a classifier's"),
        ("ssim", (4, 10), "no output is an image"),
        ("distance", (), "no output has one entry per image"),
    ],
)
def test_metrics_that_do_not_suit_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    outputs = {"y": np.zeros(shape, np.float32)}
    with pytest.raises(PerfonnxError, match=message):
        choose_metric(name, outputs, images=4, classifiers={"y"}, labelled=False)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("top1", "1%", 0.01),
        ("agreement", " 0.5 ", 0.5),
        ("ssim", "0.02", 0.02),
        ("loss", "1.5", 1.5),
        ("psnr", "35dB", -35),
        ("psnr", "30", -30),
        ("distance", "5 %", 0.05),
    ],
)
def test_bounds_are_read(name: str, text: str, value: float) -> None:
    assert Metric(name, ("y",)).parse_drop(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("top1", "many"), ("top1", "2"), ("top1", "-1%"), ("loss", "-1"), ("psnr", "1%"), ("psnr", "0"), ("ssim", "nan")],
)
def test_bounds_without_meaning_are_refused(name: str, text: str) -> None:
    with pytest.raises(PerfonnxError, match=f"drop '{text}'"):
        Metric(name, ("y",)).parse_drop(text)


def test_losses_are_told_in_the_metrics_terms() -> None:
    top1, psnr = Metric("top1", ("y",)), Metric("psnr", ("y",))
    assert (top1.within(0.01), top1.lost(0.005)) == ("within 1.00 points of loss", "top1 loses 0.50 points")
    assert (psnr.within(-35), psnr.lost(-36.04)) == ("above 35.0 dB", "psnr is 36.0 dB")


@pytest.mark.parametrize(
    ("name", "drop", "size"),
    [("top1", 0.03, 0.03), ("top1", -0.02, 0.0), ("psnr", -30.0, 1e-3), ("distance", 0.1, 0.01), ("ssim", 0.2, 0.2)],
)
def test_sizes_of_losses_grow_as_the_guide(name: str, drop: float, size: float) -> None:
    assert Metric(name, ("y",)).size(drop) == pytest.approx(size)
