"""Greedy rounds: rates rise on trained weights, losses stay those against the original, and a training can go on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.extras import needs

torch = needs("torch")

import perfonnx  # noqa: E402
from perfonnx.errors import PerfonnxError  # noqa: E402
from perfonnx.plan import Plan  # noqa: E402
from perfonnx.search import Space, Speed, Task, tune  # noqa: E402
from perfonnx.search.evaluate import CHOOSING, PlanEvaluator  # noqa: E402
from perfonnx.subject import Subject  # noqa: E402
from perfonnx.torch import Round, Settings, finetune_rounds, rounds  # noqa: E402
from tests.cli.running import run  # noqa: E402
from tests.search.test_tune import SPACE, Invented, network  # noqa: E402
from tests.torch.test_finetuning import data  # noqa: E402

torch.set_num_threads(1)

QUICK = Settings(epochs=3, batch=8, lr=0.003, validate=0.25)


def trained(
    monkeypatch: pytest.MonkeyPatch, timer: Invented, output: Path | None = None, **options: Any
) -> list[Round]:
    """Two rounds to 1.7x, with times by a formula."""
    monkeypatch.setattr(rounds, "tune", partial(tune, timer=timer))
    given: dict[str, Any] = {"speedup": 1.7, "rounds": 2, "space": SPACE, "settings": QUICK, "threads": 1, **options}
    return finetune_rounds(network(), output, data(), **given)


def test_each_round_goes_further_on_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = trained(monkeypatch, Invented(), tmp_path / "fast.onnx")
    assert first.speedup == pytest.approx(1.7**0.5)
    for done in (first, last):
        assert done.speed.ratio >= done.speedup
        assert done.finetuned.after.guide < done.finetuned.before.guide
    before, after = first.finetuned.result.plan.layers, last.finetuned.result.plan.layers
    assert all(after[name].rate >= choice.rate for name, choice in before.items())
    assert sum(choice.rate for choice in after.values()) > sum(choice.rate for choice in before.values())

    held_out = data().split(48, 16, 0)[1]
    original, written = perfonnx.session(network()), perfonnx.session(tmp_path / "fast.onnx")
    answers = [
        np.concatenate([session.run(None, batch.feeds)[0].reshape(-1, 5).argmax(1) for batch in held_out])
        for session in (original, written)
    ]
    assert last.finetuned.metric.name == "agreement"
    assert last.finetuned.after.value == pytest.approx((answers[0] == answers[1]).mean())


def test_the_second_round_starts_from_the_weights_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = trained(monkeypatch, Invented())
    plan = Plan({name: replace(c, mask="grid") for name, c in last.finetuned.result.plan.layers.items()})
    held_out = data().split(48, 16, 0)[1]
    guides = []
    for source in (first.finetuned.dense, network()):
        measure = PlanEvaluator(
            Subject(source), {CHOOSING: held_out}, last.finetuned.metric, reference=Subject(network())
        )
        guides.append(measure(Task(plan, CHOOSING, 16)).quality.guide)
    assert last.finetuned.before.guide == pytest.approx(guides[0], rel=1e-4)
    assert last.finetuned.before.guide != pytest.approx(guides[1], rel=1e-2)


def test_what_was_interrupted_goes_on_to_the_same_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Invented()
    once = trained(monkeypatch, whole)
    with pytest.raises(KeyboardInterrupt):  # in the second search
        trained(monkeypatch, Invented(fail_after=len(whole.calls) - 2), checkpoint=tmp_path / "state")
    with pytest.raises(PerfonnxError, match="is there already"):
        trained(monkeypatch, Invented(), checkpoint=tmp_path / "state")
    timer = Invented()
    again = trained(monkeypatch, timer, checkpoint=tmp_path / "state", resume=True)
    assert len(timer.calls) == 2
    for one, other in zip(once, again, strict=True):
        assert one.finetuned.result.to_bytes() == other.finetuned.result.to_bytes()


def test_a_speed_that_is_not_reached_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds, "tune", partial(tune, timer=Invented()))
    np.savez(tmp_path / "data.npz", x=data().pick(range(64)).feeds["x"])
    onnx.save(network(), tmp_path / "net.onnx")
    files = tmp_path / "net.onnx", tmp_path / "out.onnx"
    wanted = ("--speedup", 9, "--rounds", 2, "--epochs", 1, "--batch", 8, "--validate", 0.25, "--threads", 1)
    told = ("--report-json", tmp_path / "report.json", "--save-plan", tmp_path / "plan.json")
    assert run("finetune", *files, "--data", tmp_path / "data.npz", *wanted, *told) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "round 1: 3.00x wanted, 2.50x faster, measured (2.50-2.50); that is not reached for certain" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert [done["reached"] for done in report["rounds"]] == [False, False]
    assert report["rounds"][1]["finetuned"]["plan"]["layers"]["conv1"]["rate"] == 0.75
    again = perfonnx.rewrite(tmp_path / "net.onnx", plan=tmp_path / "plan.json")
    assert (
        again.report.multiplies
        == perfonnx.rewrite(network(), rate=0.75, mask="lattice", only=["conv."]).report.multiplies
    )


def test_what_cannot_become_faster_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Invented):
        def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
            return Speed(0.9, 0.89, 0.91, 11.0, 10.0, 9)

    with pytest.raises(PerfonnxError, match="nothing is faster"):
        trained(monkeypatch, Slow(), tmp_path / "fast.onnx")
    assert not list(tmp_path.iterdir())


def test_masks_of_impacts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PerfonnxError, match="measured on one network"):
        trained(monkeypatch, Invented(), space=Space(masks=("impact",), repairs=("none",)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--speedup", "1.5", "--rate", "0.5"), "--speedup chooses everything; it does not go with --rate"),
        (("--speedup", "1.5", "--only", "conv1"), "it does not go with --only"),
        (("--speedup", "0.5"), "speed-up 0.5"),
        (("--speedup", "-2", "--rounds", "2"), "speed-up -2"),
        (("--speedup", "1.05", "--rounds", "3"), "give fewer rounds"),
        (("--speedup", "1.5", "--search-time", "0"), "search time 0"),
        (("--speedup", "1.5", "--validate", "0"), "hold out more"),
        (("--rate", "0.5", "--search-time", "5"), "--search-time: has a meaning with --speedup only"),
    ],
)
def test_commands_say_what_does_not_go_together(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x=data().pick(range(64)).feeds["x"])
    onnx.save(network(), tmp_path / "net.onnx")
    files = tmp_path / "net.onnx", tmp_path / "out.onnx"
    assert run("finetune", *files, "--data", tmp_path / "data.npz", "--validate", "0.25", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
