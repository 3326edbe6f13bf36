"""Evaluating: repairs are found once, few images tell the metric, parts are decoded once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import perfonnx
from perfonnx import subject as subjects
from perfonnx.methods.perforate import Perforate
from perfonnx.model.signature import fed_shapes, fixed_batch
from perfonnx.passes.targets import NetworkTargets, influences
from perfonnx.plan import Plan
from perfonnx.rewriting import opened
from perfonnx.running.opened import OpenModel
from perfonnx.search import Task
from perfonnx.search.evaluate import CHOOSING, PlanEvaluator, find_metric, first_images, hold
from perfonnx.subject import Subject
from tests.passes import nets
from tests.search.arrays import Batch
from tests.search.test_tune import network, samples

REPAIRED = Plan({"conv2": Perforate(0.5, "uniform", repair="predictor")})


class Counted:
    """Samples that count how often they are gone through."""

    def __init__(self) -> None:
        self.samples, self.passes = samples(), 0

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, n: int) -> Counted:
        return self


def test_a_plan_is_repaired_once() -> None:
    data = Counted()
    subject = Subject(network(), calibration=data)  # type: ignore[arg-type]
    first = subject.rewrite(REPAIRED, images=40)
    passes = data.passes
    again = subject.rewrite(REPAIRED, images=40, fallback=True)
    assert data.passes == passes > 0
    feed = {"x": samples(4).images}
    results = [perfonnx.session(rewritten.model.proto).run(None, feed)[0] for rewritten in (first, again)]
    np.testing.assert_array_equal(*results)
    subject.rewrite(REPAIRED, images=8)  # by others it is another repair
    assert data.passes > passes


def test_layers_in_front_of_what_changes_are_repaired_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[list[str]] = []
    start = NetworkTargets.__init__

    def counted(self: NetworkTargets, workspace: Any, layers: Any, batches: Any) -> None:
        fitted.append(list(layers))
        start(self, workspace, layers, batches)

    monkeypatch.setattr(NetworkTargets, "__init__", counted)
    half, quarter = (Perforate(rate, "uniform", repair="predictor") for rate in (0.5, 0.25))
    subject = Subject(network(), calibration=samples())
    subject.rewrite(Plan({"conv2": half, "conv3": half}), images=40)
    last = Plan({"conv2": half, "conv3": half, "conv4": half}, layout="nchw")
    kept = subject.rewrite(last, images=40)
    subject.rewrite(Plan({"conv2": half, "conv3": quarter, "conv4": half}), images=40)
    subject.rewrite(Plan({"conv1": half, "conv2": half}), images=40)
    assert fitted == [["conv2", "conv3"], ["conv4"], ["conv3", "conv4"], ["conv1", "conv2"]]
    anew = Subject(network(), calibration=samples()).rewrite(last, images=40)
    feed = {"x": samples(4).images}
    results = [perfonnx.session(rewritten.model.proto).run(None, feed)[0] for rewritten in (kept, anew)]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


def test_what_an_output_is_added_to_has_an_influence() -> None:
    nodes = [
        nets.conv("x", "a", "w", name="first"),
        nets.conv("a", "b", "w", name="main"),
        nets.conv("x", "c", "w", name="shortcut"),
        nets.node("BatchNormalization", ["b", "s", "s", "s", "s"], ["n"]),
        nets.node("Add", ["n", "c"], ["t"]),
        nets.conv("t", "y", "w", name="last"),
    ]
    model = nets.model(nodes, {"w": nets.values(3, 3, 3, 3), "s": np.ones(3, np.float32)})
    found = influences(opened(Subject(model).original()))
    assert found == {
        "first": frozenset(),
        "main": {"first", "shortcut"},
        "shortcut": {"first", "main"},
        "last": {"first", "main", "shortcut"},
    }


def test_few_repairs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Counted()
    subject = Subject(network(), calibration=data)  # type: ignore[arg-type]
    size = sum(correction.nbytes for correction in subject.rewrite(REPAIRED, images=1).corrections.values())
    monkeypatch.setattr(subjects, "KEPT_BYTES", 3 * size)
    for images in range(2, 5):
        subject.rewrite(REPAIRED, images=images)
    passes = data.passes
    for images in (2, 3, 4):
        subject.rewrite(REPAIRED, images=images)
    assert data.passes == passes
    subject.rewrite(REPAIRED, images=1)
    assert data.passes > passes


def test_the_metric_is_found_by_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = OpenModel.run
    monkeypatch.setattr(OpenModel, "run", lambda self, feed: sizes.append(len(feed["x"])) or run(self, feed))  # type: ignore[func-returns-value]
    find_metric(None, Subject(network()), samples(24, batch=24))
    assert set(sizes) == {2}
    sizes.clear()
    find_metric(None, Subject(network(batch=4)), samples(8, batch=4))
    assert set(sizes) == {4}


def test_first_images_leave_alone_what_is_no_image() -> None:
    loaded = Subject(network()).original()
    feed = {"x": np.zeros((8, 3, 16, 14), np.float32), "sizes": np.arange(2)}
    assert {name: array.shape for name, array in first_images(loaded, feed, 3).items()} == {
        "x": (3, 3, 16, 14),
        "sizes": (2,),
    }


@pytest.mark.parametrize(("declared", "batch"), [(4, 4), (0, None), (-1, None), ("N", None)])
def test_a_batch_below_one_is_open(declared: int | str, batch: int | None) -> None:
    """Exporters write it where they know none."""
    loaded = Subject(network(batch="N")).original()
    dimension = loaded.proto.graph.input[0].type.tensor_type.shape.dim[0]
    if isinstance(declared, int):
        dimension.dim_value = declared
    feed = {"x": np.zeros((8, 3, 16, 14), np.float32)}
    assert fixed_batch(fed_shapes(loaded.proto.graph)) == batch
    assert len(first_images(loaded, feed, 3)["x"]) == (batch or 3)


def test_the_first_images_of_a_part_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = hold(samples())
    subject = Subject(network())
    metric, _ = find_metric(None, subject, data)
    evaluator = PlanEvaluator(subject, {CHOOSING: data}, metric)
    before = evaluator(Task(Plan(), CHOOSING, 11))
    monkeypatch.setattr(type(data), "take", lambda *_: pytest.fail("read again"))
    assert evaluator(Task(Plan(), CHOOSING, 11)).quality == before.quality


def test_a_subject_that_was_asked_about_can_be_sent_to_a_process() -> None:
    subject = Subject(network())
    method = Perforate(0.5, "uniform")
    able = subject.able(["conv1", "conv2"], method, 0)
    assert able
    assert pickle.loads(pickle.dumps(subject)).able(["conv1", "conv2"], method, 0) == able
