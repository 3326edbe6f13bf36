"""`perfonnx tune`: one line for every mistake, files only where all went well."""

from __future__ import annotations

import argparse
import json
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from perfonnx.cli import output
from perfonnx.cli.space import add_space, space_from
from tests.cli.running import FAST, run
from tests.models import small


def test_tune_writes_a_model_a_plan_and_a_report(with_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--plan-out", "plan.json", "--report-json", "report.json", "--state", "state")
    assert run("tune", "m.onnx", "out.onnx", "--data", "data.npz", "--max-drop", "50%", *files, *FAST) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    report = json.loads((with_data / "report.json").read_text())
    assert report["message"] in " ".join(shown.out.split())
    assert report["metric"]["name"] == "top1"
    assert report["target"] == {"max_drop": 0.5, "speedup": None, "minimised": "time"}
    assert run("rewrite", "m.onnx", "again.onnx", "--plan", "plan.json", "--quiet") == 0
    onnx.checker.check_model(onnx.load("out.onnx"))
    before = len((with_data / "state").read_text().splitlines())
    assert run("tune", "m.onnx", "out2.onnx", "--data", "data.npz", "--max-drop", "50%", *files[4:], *FAST, "-q") == 0
    assert len((with_data / "state").read_text().splitlines()) == before  # nothing was measured again
    assert onnx.load("out2.onnx") == onnx.load("out.onnx")
    assert capsys.readouterr().out == ""


def test_mirror_images_are_for_who_asks() -> None:
    parser = argparse.ArgumentParser()
    add_space(parser)
    assert {step.mirrors for step in space_from(parser.parse_args([])).choices()} == {False}
    regional = [step for step in space_from(parser.parse_args(["--flips"])).choices() if step.regional]
    assert regional
    assert all(step.mirrors and step.behind[0].mirrors for step in regional)


def test_another_bound_is_answered_at_once(with_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ("--data", "data.npz", *FAST[:-1], "--cache-dir", "cache")
    assert run("tune", "m.onnx", "out.onnx", *kept, "--max-drop", "50%", "-q") == 0
    (state,) = (with_data / "cache" / "searches").glob("*.state")
    before = state.read_bytes()
    assert run("tune", "m.onnx", "out2.onnx", *kept, "--max-drop", "40%", "--target", "multiplies", "--json") == 0
    assert state.read_bytes() == before
    data = json.loads(capsys.readouterr().out)
    assert data["target"] == {"max_drop": 0.4, "speedup": None, "minimised": "multiplies"}
    assert any("nothing was measured anew" in warning for warning in data["warnings"])
    assert run("tune", "m.onnx", "out3.onnx", *kept, "--max-drop", "50%", "-q") == 0
    assert onnx.load("out3.onnx") == onnx.load("out.onnx")
    assert state.read_bytes() == before


def test_each_network_is_a_line_on_a_terminal(with_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    monkeypatch.setattr(output, "stderr", lambda _: Console(file=shown, force_terminal=True, width=200))
    arguments = ("--data", "data.npz", "--max-drop", "50%", "--report-json", "report.json", *FAST, "--no-cache")
    assert run("tune", "m.onnx", "out.onnx", *arguments) == 0
    report = json.loads((with_data / "report.json").read_text())
    lines = [line for line in shown.getvalue().splitlines() if " s left: " in line]
    assert len(lines) >= len(report["trials"]) >= 1
    assert f"x, top1 loses {100 * report['trials'][0]['choosing']['drop']:.2f} points" in lines[0]


def test_tune_without_gain_leaves_the_model_alone_and_succeeds(
    with_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", "data.npz", "--metric", "distance", "--max-drop", "0", *FAST, "--json")
    assert run("tune", "m.onnx", "out.onnx", *arguments) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["best"] is None
    assert "the model is left alone" in data["message"]
    assert data["plan"]["layers"] == {}
    assert onnx.load("out.onnx") == onnx.load("m.onnx")


TUNE = ("tune", "m.onnx", "out.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TUNE,), "tune measures on your data: add --data"),
        (("sensitivity", "m.onnx"), "sensitivity measures on your data: add --data"),
        ((*TUNE, "--data", "none.npz"), "none.npz: no such file"),
        ((*TUNE, "--data", "data.npz", "--max-drop", "much"), "drop 'much': for top1, write a share"),
        ((*TUNE, "--data", "data.npz", "--metric", "psnr", "--max-drop", "1%"), "no output is an image"),
        ((*TUNE, "--data", "data.npz", "--metric", "bleu"), "unknown metric 'bleu'"),
        ((*TUNE, "--data", "data.npz", "--speedup", "1"), "give a number above 1"),
        ((*TUNE, "--data", "data.npz", "--speedup", "nan"), "give a number above 1"),
        ((*TUNE, "--data", "data.npz", "--masks", "fog"), "unknown mask 'fog'"),
        ((*TUNE, "--data", "data.npz", "--masks", ","), "no mask to choose from"),
        ((*TUNE, "--data", "data.npz", "--rates", "half"), "--rates half: give numbers"),
        ((*TUNE, "--data", "data.npz", "--rates", "2"), "rate 2.0 is not in"),
        ((*TUNE, "--data", "data.npz", "--repair", "glue"), "unknown repair 'glue'"),
        ((*TUNE, "--data", "data.npz", "--search", "luck"), "unknown search 'luck'"),
        ((*TUNE, "--data", "data.npz", "--target", "joy"), "unknown target 'joy'"),
        ((*TUNE, "--data", "data.npz", "--max-time", "-1"), "give the seconds"),
        ((*TUNE, "--data", "data.npz", "--threads", "0"), "--threads 0"),
        ((*TUNE, "--data", "data.npz", "--seed", "-1"), "--seed -1"),
        ((*TUNE, "--data", "data.npz", "--samples", "4"), "4 images are too few"),
        ((*TUNE, "--data", "data.npz", "--plan-out", "out.onnx"), "--plan-out out.onnx: that is OUT"),
        ((*TUNE, "--data", "data.npz", "--state", "m.onnx"), "--state m.onnx: that is IN"),
        ((*TUNE, "--data", "data.npz", "--report-json", "no/r.json"), "there is no directory"),
        (("tune", "none.onnx", "out.onnx", "--data", "data.npz"), "none.onnx"),
        (("tune", "data.npz", "out.onnx", "--data", "data.npz"), "not an ONNX model"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    with_data: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    before = sorted(with_data.iterdir())
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
    assert sorted(with_data.iterdir()) == before


def test_outputs_that_are_no_numbers_are_left_out_with_a_note(
    with_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(small.odd_outputs(), with_data / "odd.onnx")
    np.save(with_data / "x.npy", np.random.default_rng(0).standard_normal((24, 3, 12, 10)).astype(np.float32))
    assert run("tune", "odd.onnx", "out.onnx", "--data", "x.npy", *FAST) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "note: output 'words' does not count: it holds strings" in shown
    assert "output 'places' does not count: its size depends on the values" in shown
    measured = ("--masks", "lattice", "--rates", ".75", "--repair", "none", "--metric", "distance")
    assert run("sensitivity", "odd.onnx", "--data", "x.npy", *measured, "--json") == 0
    metric = json.loads(capsys.readouterr().out)["metric"]
    assert metric["outputs"] == ["y"]
    assert len(metric["left_out"]) == 4
    assert run("bench", "odd.onnx", "out.onnx", "--runs", "1") == 0
    assert run("rewrite", "odd.onnx", "out.onnx", "--rate", ".5", "--check", "1") == 0
    assert "output 'chances': not compared, it is a sequence" in capsys.readouterr().out
