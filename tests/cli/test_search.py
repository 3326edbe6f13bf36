"""`perfonnx tune` and `perfonnx sensitivity`: one line for every mistake, files only where all went well."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from rich.console import Console

from perfonnx.cli import main, output
from tests.models import small
from tests.search.test_tune import network, samples

FAST = ("--max-time", "5", "--masks", "lattice", "--rates", ".75", "--repair", "bias", "--threads", "1", "--no-cache")


def run(*arguments: Any) -> int:
    """The exit status, however it is reached."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a model and data."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=samples(24).images, labels=np.arange(24) % 5)
    return tmp_path


def test_tune_writes_a_model_a_plan_and_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--plan-out", "plan.json", "--report-json", "report.json", "--state", "state")
    assert run("tune", "m.onnx", "out.onnx", "--data", "data.npz", "--max-drop", "50%", *files, *FAST) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    report = json.loads((here / "report.json").read_text())
    assert report["message"] in " ".join(shown.out.split())
    assert report["metric"]["name"] == "top1"
    assert report["target"] == {"max_drop": 0.5, "speedup": None}
    assert run("rewrite", "m.onnx", "again.onnx", "--plan", "plan.json", "--quiet") == 0
    onnx.checker.check_model(onnx.load("out.onnx"))
    before = len((here / "state").read_text().splitlines())
    assert run("tune", "m.onnx", "out2.onnx", "--data", "data.npz", "--max-drop", "50%", *files[4:], *FAST, "-q") == 0
    assert len((here / "state").read_text().splitlines()) == before  # nothing was measured again
    assert onnx.load("out2.onnx") == onnx.load("out.onnx")
    assert capsys.readouterr().out == ""


def test_each_network_is_a_line_on_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    monkeypatch.setattr(output, "stderr", lambda _: Console(file=shown, force_terminal=True, width=200))
    arguments = ("--data", "data.npz", "--max-drop", "50%", "--report-json", "report.json", *FAST, "--no-cache")
    assert run("tune", "m.onnx", "out.onnx", *arguments) == 0
    report = json.loads((here / "report.json").read_text())
    lines = [line for line in shown.getvalue().splitlines() if " s left: " in line]
    assert len(lines) >= len(report["trials"]) >= 1
    assert f"x, top1 loses {100 * report['trials'][0]['choosing']['drop']:.2f} points" in lines[0]


def test_tune_without_gain_leaves_the_model_alone_and_succeeds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--data", "data.npz", "--metric", "distance", "--max-drop", "0", *FAST, "--json")
    assert run("tune", "m.onnx", "out.onnx", *arguments) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["best"] is None
    assert "the model is left alone" in data["message"]
    assert data["plan"]["layers"] == {}
    assert onnx.load("out.onnx") == onnx.load("m.onnx")


def test_sensitivity_prints_a_table_or_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--data", "data.npz", "--samples", "8", "--rates", ".25,.5", "--masks", "uniform", "--repair", "none")
    assert run("sensitivity", "m.onnx", *arguments) == 0
    assert "conv3" in capsys.readouterr().out
    assert run("sensitivity", "m.onnx", *arguments, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["images"] == 8
    assert {(row["layer"], row["choice"]["rate"]) for row in data["layers"]} == {
        (f"conv{i}", rate) for i in (1, 2, 3, 4) for rate in (0.25, 0.5)
    }


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
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    before = sorted(here.iterdir())
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
    assert sorted(here.iterdir()) == before


def test_outputs_that_are_no_numbers_are_left_out_with_a_note(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(small.odd_outputs(), here / "odd.onnx")
    np.save(here / "x.npy", np.random.default_rng(0).standard_normal((24, 3, 12, 10)).astype(np.float32))
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


def test_check_repeats_what_tune_judged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On pictures that need their preset, size, crop, order of colours and labels."""
    random = np.random.default_rng(0)
    for number, pixels in enumerate(random.integers(0, 256, (30, 40, 30, 3), dtype=np.uint8)):
        Image.fromarray(pixels).resize((60, 80), Image.Resampling.BICUBIC).save(here / f"{number % 5}_{number}.png")
    flags = ("--data", ".", "--preset", "imagenet", "--size", "20", "--crop", "16x16", "--channels", "bgr")
    flags += ("--labels", "prefix", "--samples", "26", "--seed", "3", "--input-shape", "x:N,3,16,16")
    onnx.save(small.pictures_classifier(), "p.onnx")
    tuning = ("--rates", ".75", "--masks", "uniform", "--repair", "none", "--threads", "1", "--no-cache")
    tuning += ("--max-drop", "100%", "--max-time", "3", "--report-json", "report.json")
    assert run("tune", "p.onnx", "out.onnx", *flags, *tuning, "-q") == 0
    report = json.loads((here / "report.json").read_text())
    assert report["metric"]["name"] == "top1"
    assert report["best"] is not None
    capsys.readouterr()
    assert run("check", "p.onnx", "out.onnx", *flags, "--held-back", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == report["metric"]
    for key, value in report["trials"][report["best"]]["held_back"].items():
        assert found["quality"][key] == pytest.approx(value, rel=1e-4, abs=1e-7), key
    assert run("check", "p.onnx", "out.onnx", *flags, "--json", "--metric", "distance", "--max-drop", "0") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["quality"]["images"] == 26
    assert "distance loses" in shown.err


COMMANDS = ("rewrite", "impact", "alphas", "check", "bench", "tune", "finetune", "sensitivity")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_feeds_a_model_has_the_same_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "data: " in text
    for flag in ("data PATH", "labels PATH|folders", "preset NAME|FILE", "size N|HxW", "crop HxW", "scale SCALE"):
        assert f"--{flag}" in text
    for flag in ("mean M[,M,M]", "std S[,S,S]", "channels {rgb,bgr,gray}", "image-layout", "samples N", "library FILE"):
        assert f"--{flag}" in text
    assert "--bgr" not in text


def test_earlier_spellings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(here / "a.png")
    onnx.save(small.pictures_classifier(), "p.onnx")
    results = []
    how = ("--input-shape", "x:1,3,10,10", "--metric", "loss", "--json")
    for spelling in (("-n", "1", "--bgr"), ("--samples", "1", "--channels", "bgr"), ("--samples", "1")):
        assert run("check", "p.onnx", "p.onnx", "--data", ".", *how, *spelling) == 0
        results.append(json.loads(capsys.readouterr().out)["quality"]["reference"])
        assert run("check", "m.onnx", "m.onnx", *spelling[:2], "--json") == 0
        assert json.loads(capsys.readouterr().out)["samples"] == 1
    assert results[0] == results[1] != results[2]


def test_sensitivity_of_weights_that_are_inputs_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save_model(model, here / "open.onnx", save_as_external_data=True, size_threshold=0)
    few = ("--data", "data.npz", "--masks", "lattice", "--rates", ".5", "--repair", "none")
    assert run("sensitivity", "open.onnx", *few) == 2
    assert "want --freeze-weights" in capsys.readouterr().err
    assert run("sensitivity", "open.onnx", *few, "--freeze-weights") == 0


def test_impact_takes_the_output_of_class_scores(here: Path) -> None:
    onnx.save(small.odd_outputs(), here / "odd.onnx")
    np.save(here / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 12, 10)).astype(np.float32))
    assert run("impact", "odd.onnx", "maps.npz", "--data", "x.npy") == 0
    with np.load(here / "maps.npz") as maps:
        assert set(maps) == {"conv1", "conv2"}


def test_bench_runs_on_the_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [onnx.helper.make_node("Gather", ["table", "x"], ["y"])]
    model = small.make(nodes, {"table": np.zeros(9, np.float32)}, input_shape=["N"], output_shape=["N"])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, here / "g.onnx")
    np.save(here / "inside.npy", np.array([8, 3]))
    np.save(here / "outside.npy", np.array([9, 3]))
    assert run("bench", "g.onnx", "--runs", "1", "--data", "inside.npy") == 0
    assert run("bench", "g.onnx", "--runs", "1", "--data", "outside.npy") == 2
    assert "onnxruntime cannot run it" in capsys.readouterr().err
