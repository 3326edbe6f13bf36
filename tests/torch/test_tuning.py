"""Tuning and training in one go: a bolder network is chosen, and the bound holds after training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.extras import needs

torch = needs("torch")

import perfonnx  # noqa: E402
from perfonnx.comparing.metrics import Metric  # noqa: E402
from perfonnx.data.inputs import model_inputs  # noqa: E402
from perfonnx.data.samples import Samples  # noqa: E402
from perfonnx.methods.sublattice import Sublattice  # noqa: E402
from perfonnx.report import html_report  # noqa: E402
from perfonnx.search import Space, Tuned  # noqa: E402
from perfonnx.search.error_maps import error_maps  # noqa: E402
from perfonnx.search.tune import divided  # noqa: E402
from perfonnx.subject import Subject  # noqa: E402
from perfonnx.torch import Settings  # noqa: E402
from perfonnx.torch.tuning import RECOVERED, tune_trained  # noqa: E402
from tests.cli.running import run  # noqa: E402
from tests.search.test_regional import Invented, network  # noqa: E402
from tests.torch.test_finetuning import data  # noqa: E402

torch.set_num_threads(1)

SPACE = Space(rates=(0.5, 0.75), methods=("exact", "sublattice"))
QUICK = Settings(epochs=6, batch=16, lr=0.001, validate=0.1)


def others() -> Samples:
    """Images that are not among those to choose by."""
    everything = np.concatenate([batch.feeds["x"] for batch in data(464)])
    return Samples.load(everything[64:], model_inputs(network()))


def trained(max_drop: float, output: Path | None = None, settings: Settings = QUICK) -> Tuned:
    return tune_trained(
        network(),
        output,
        data(),
        others(),
        max_drop=max_drop,
        settings=settings,
        space=SPACE,
        timer=Invented(),
        threads=1,
    )


def test_a_network_learns_back_what_it_lost(tmp_path: Path) -> None:
    tuned = trained(0.3, tmp_path / "fast.onnx")
    training = tuned.training
    assert training is not None
    assert training.after.guide < training.before.guide
    assert training.after.drop <= 0.3 == tuned.target.max_drop
    assert tuned.best is not None
    assert training.before == tuned.best.held_back
    assert any(isinstance(method, Sublattice) for method in tuned.plan.layers.values())
    assert len(training.held_out) == 6
    assert "after training" in tuned.message
    # what was measured is what was written, and what the plan makes again without data
    tuned.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(network(), plan=tmp_path / "plan.json")
    assert again.to_bytes() == (tmp_path / "fast.onnx").read_bytes()
    assert json.loads(json.dumps(tuned.to_json()))["training"]["after"] == training.after.to_json()
    assert "loss before and after" in html_report(tuned)
    # and so is what its report shows
    held_back = divided(data(), 0)[1].take(training.after.images)
    shown = error_maps(Subject(network()), again, held_back, threads=1)
    assert [each.name for each in shown] == [layer.name for layer in again.report.layers if layer.name != "head"]
    for each, now in zip(tuned.error_maps, shown, strict=True):
        np.testing.assert_allclose(each.error, now.error, rtol=1e-4, atol=1e-6)


def test_where_training_does_not_do_the_milder_network_is_taken(tmp_path: Path) -> None:
    tuned = trained(0.0, tmp_path / "fast.onnx", settings=Settings(epochs=1, batch=8, lr=1.0, validate=0.25))
    assert tuned.training is not None or tuned.best is None
    assert tuned.target.max_drop == 0.0
    if tuned.best is not None:
        assert tuned.best.held_back is not None
        assert tuned.best.held_back.drop <= 0.0
    assert onnx.load(tmp_path / "fast.onnx").graph == tuned.result.proto.graph


@pytest.mark.parametrize("name", ["top1", "psnr", "distance", "ssim"])
def test_a_relaxed_bound_is_so_many_times_as_large(name: str) -> None:
    metric = Metric(name, ("y",))
    drop = metric.default_drop
    assert metric.size(metric.relaxed(drop, RECOVERED)) == pytest.approx(RECOVERED * metric.size(drop))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "m.onnx")
    images = np.concatenate([batch.feeds["x"] for batch in data()])
    np.savez("data.npz", x=images[:40])
    np.savez("train.npz", x=images)
    return tmp_path


COMMAND = ("tune", "m.onnx", "out.onnx", "--data", "data.npz")


def test_the_command_does_both_with_one_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--methods", "sublattice", "--max-time", "10", "--threads", "1", "--no-cache", "--max-drop", "60%")
    flags = ("--finetune", "--train-data", "train.npz", "--train-samples", "60", "--epochs", "2")
    flags += ("--report", "report.html")
    assert run(*COMMAND, *quick, *flags) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    report: dict[str, Any] = json.loads((here / "report.json").read_text())
    assert report["target"]["max_drop"] == 0.6
    if report["best"] is not None:
        assert report["training"]["images"] == 57
        assert "loss before and after" in (here / "report.html").read_text()
    onnx.checker.check_model(onnx.load("out.onnx"))


@pytest.mark.parametrize(
    "flag", [("--epochs", "2"), ("--train-data", "train.npz"), ("--augment", "flip"), ("--train-samples", "5")]
)
def test_flags_of_training_want_training(here: Path, capsys: pytest.CaptureFixture[str], flag: tuple[str, str]) -> None:
    assert run(*COMMAND, *flag) == 2
    assert f"{flag[0]}: has a meaning with --finetune only" in capsys.readouterr().err


def test_without_pytorch_it_is_said_before_anything_is_measured(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("perfonnx.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(*COMMAND, "--finetune", "--cache-dir", "cache") == 2
    assert 'training needs PyTorch; install it with pip install "perfonnx[train]"' in capsys.readouterr().err
    assert not list(here.glob("cache/**/*.state"))
    assert not (here / "out.onnx").exists()
