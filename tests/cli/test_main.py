"""The command line: exit statuses, one line for every mistake, nothing written by a run that fails."""

from __future__ import annotations

import functools
import io as text_io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

import perfonnx
from perfonnx.cli import main
from perfonnx.errors import PerfonnxError
from tests import real_models
from tests.model.chains import listing
from tests.passes import nets
from tests.passes.nets import node

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("inspect", "rewrite", "impact", "alphas", "check", "bench", "tune", "sensitivity", "lib")


def network() -> ModelProto:
    nodes = [
        nets.conv("x", "a", "w1", name="conv1"),
        node("Relu", ["a"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        nets.conv("p", "y", "w2", name="conv2"),
    ]
    return nets.model(nodes, {"w1": nets.values(8, 3, 3, 3), "w2": nets.values(8, 8, 3, 3)})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(network().SerializeToString())
    return tmp_path


def run(*arguments: Any) -> int:
    """The exit status, however it is reached."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capfd: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Runs a command that must fail as promised, and returns its one line."""
    capfd.readouterr()
    before = listing(Path.cwd())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(*arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("perfonnx")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert len(err) < 1000
    assert "Traceback" not in err
    assert listing(Path.cwd()) == before
    return err


# --- what works ------------------------------------------------------------------------------------------------------


def test_inspect(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "m.onnx") == 0
    out, err = capfd.readouterr()
    assert err == ""
    for text in ("m.onnx, opset 17", "conv1", "conv2", "8x3x3x3", "12x10", "25.9 k", "2 convolutions, 2 eligible"):
        assert text in out
    assert run("inspect", "m.onnx", "--json") == 0
    assert json.loads(capfd.readouterr().out) == perfonnx.inspect("m.onnx").to_json() | {
        "convs": json.loads(json.dumps(perfonnx.inspect("m.onnx").to_json()["convs"]))
    }


def test_rewrite(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (here / "m.onnx").read_bytes()
    assert run("rewrite", "m.onnx", "out.onnx", "--rate", "0.5", "--mask", "uniform") == 0
    out, err = capfd.readouterr()
    assert err == ""
    for text in ("2 layers rewritten", "conv1", "perforate", "uniform, nearest", "0.500", "before / after", "2.00x"):
        assert text in out
    assert "Accuracy was not measured" in out
    assert "perfonnx check m.onnx out.onnx --data" in out
    assert (here / "m.onnx").read_bytes() == before
    assert sorted(listing(here)) == ["m.onnx", "out.onnx"]
    expected = perfonnx.rewrite("m.onnx", rate=0.5, mask="uniform")
    assert (here / "out.onnx").read_bytes() == expected.to_bytes()
    nets.check(onnx.load(here / "out.onnx"))


def test_without_options_it_is_careful(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """These layers are so small that turning their maps would take longer than what is saved."""
    assert run("rewrite", "m.onnx", "out.onnx", "--json") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["layers"] == []
    reasons = {s["layer"]: s["reason"] for s in report["skips"]}
    assert "be slower, est. " in reasons["conv1"]
    assert run("rewrite", "m.onnx", "out.onnx", "--json", "--rate", "0.25") == 0
    report = json.loads(capfd.readouterr().out)
    assert [(r["name"], r["plan"]["mask"], r["plan"]["rate"]) for r in report["layers"]] == [
        ("conv1", "pooling-structure", 0.25),
        ("conv2", "grid", 0.25),
    ]


def test_every_flag_of_rewrite_reaches_the_model(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def layers(*flags: str) -> list[perfonnx.LayerPlan]:
        rate = () if "radius-adaptive" in flags else ("--rate", "0.25")
        assert run("rewrite", "m.onnx", "out.onnx", *rate, "--save-plan", "p.json", *flags) == 0, flags
        return list(perfonnx.Plan.load("p.json").layers.values())

    assert [p.method for p in layers("--method", "sparse")] == ["sparse"] * 2
    assert [p.center_gain for p in layers("--method", "radius-adaptive", "--center-gain", "1")] == [1.0] * 2
    assert [p.interpolation for p in layers("--interpolation", "barycentric", "--mask", "grid")] == ["barycentric"] * 2
    assert len(layers("--only", "1$", "--only", "nothing")) == 1
    assert len(layers("--skip", "1$", "--skip", "2$")) == 0
    assert "Nothing was rewritten" in capfd.readouterr().out
    layers("--seed", "7", "--mask", "uniform")
    assert perfonnx.Plan.load("p.json").seed == 7
    layers("--no-fallback")
    assert not onnx.load("out.onnx").functions
    np.save("mask.npy", np.indices((12, 10)).sum(0) % 2 == 0)
    assert [p.mask for p in layers("--mask", "mask.npy")] == ["mask.npy"]
    layers("--freeze-weights", "--input-shape", "x:1,3,12,10", "--check", "0")
    capfd.readouterr()
    assert run("rewrite", "m.onnx", "out.onnx", "-q") == 0
    assert capfd.readouterr() == ("", "")
    assert run("rewrite", "m.onnx", "out.onnx", "--skip", "conv1", "-v") == 0
    assert "excluded by --skip" in capfd.readouterr().out


def test_dry_run_writes_the_plan_alone(here: Path) -> None:
    assert run("rewrite", "m.onnx", "--dry-run", "--save-plan", "p.json") == 0
    assert sorted(listing(here)) == ["m.onnx", "p.json"]
    assert run("rewrite", "m.onnx", "out.onnx", "--dry-run") == 0
    assert sorted(listing(here)) == ["m.onnx", "p.json"]


def test_a_saved_plan_makes_the_same_bytes(here: Path) -> None:
    assert (
        run("rewrite", "m.onnx", "a.onnx", "--rate", "0.4", "--mask", "uniform", "--seed", "3", "--save-plan", "p") == 0
    )
    assert run("rewrite", "m.onnx", "b.onnx", "--plan", "p", "--save-plan", "q") == 0
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()
    assert (here / "p").read_bytes() == (here / "q").read_bytes()


def test_repair(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = np.random.default_rng(0).random((20, 3, 12, 10)).astype(np.float32)
    np.save("d.npy", data)
    flags = [
        "--rate",
        "0.5",
        "--only",
        "conv",
        "--repair",
        "predictor",
        "--data",
        "d.npy",
        "--samples",
        "16",
        "--seed",
        3,
    ]
    assert run("rewrite", "m.onnx", "a.onnx", *flags, "--save-plan", "p.json", "--json") == 0
    notes = [note for layer in json.loads(capfd.readouterr().out)["layers"] for note in layer["notes"]]
    assert sum("repaired by bias, predictor: error" in note for note in notes) == 2
    Path("d.npy").unlink()
    assert run("rewrite", "m.onnx", "b.onnx", "--plan", "p.json") == 0
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()
    assert run("check", "a.onnx", "b.onnx") == 0


def test_open_share(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.save("d.npy", np.random.default_rng(0).random((20, 3, 12, 10)).astype(np.float32))
    flags = ["--only", "conv", "--method", "radius-adaptive", "--open-share", "0.5"]
    assert run("rewrite", "m.onnx", "a.onnx", *flags, "--data", "d.npy", "--save-plan", "p.json", "--json") == 0
    layers = json.loads(capfd.readouterr().out)["layers"]
    assert [layer["rate"] for layer in layers] == [pytest.approx(0.5, abs=0.05)] * 2
    assert run("rewrite", "m.onnx", "b.onnx", "--plan", "p.json") == 0
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()
    assert "0.500" in capfd.readouterr().out
    assert "give --data" in refused(capfd, "rewrite", "m.onnx", "o.onnx", *flags)
    assert "--open-share 0.5: has no meaning with --method perforate" in refused(
        capfd, "rewrite", "m.onnx", "o.onnx", "--open-share", "0.5"
    )
    assert "open_share 2.0 is not in [0, 1]" in refused(capfd, "rewrite", "m.onnx", "o.onnx", *flags[:-1], "2")


def test_fill(here: Path) -> None:
    """A plan keeps how masked positions are filled."""
    tail = [node("Add", ["c", "shift"], ["d"]), node("Relu", ["d"], ["y"])]
    model = nets.followed_by(tail, {"shift": np.linspace(-1, 1, 8, dtype=np.float32)[:, None, None]})
    (here / "m.onnx").write_bytes(model.SerializeToString())
    flags = ["--method", "sparse", "--rate", "0.5", "--fill", "before-normalization"]
    assert run("rewrite", "m.onnx", "a.onnx", *flags, "--save-plan", "p.json") == 0
    assert json.loads((here / "p.json").read_text())["layers"]["conv"]["fill"] == "before-normalization"
    assert run("rewrite", "m.onnx", "b.onnx", "--plan", "p.json") == 0
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()
    proto = onnx.load(here / "a.onnx")
    fill = nets.constant(proto, nets.ours(proto)[0].input[4])
    np.testing.assert_array_equal(fill, np.maximum(np.linspace(-1, 1, 8, dtype=np.float32), 0))


def test_repair_of_bad_data(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.save("d.npy", np.zeros((4, 3, 9, 9), np.float32))
    rewrite = ("rewrite", "m.onnx", "o.onnx", "--only", "conv")
    assert "no calibration data; give --data" in refused(capfd, *rewrite, "--repair", "bias")
    assert "d.npy has shape [4, 3, 9, 9]" in refused(capfd, *rewrite, "--repair", "bias", "--data", "d.npy")
    assert "--data is for --repair" in refused(capfd, *rewrite, "--data", "d.npy")
    assert "give --data" in refused(capfd, *rewrite, "--repair", "bias", "--preset", "unit")
    assert "unknown repair 'tape'" in refused(capfd, *rewrite, "--repair", "tape")


def test_a_rewritten_model_is_rewritten_once(here: Path) -> None:
    assert run("rewrite", "m.onnx", "once.onnx", "--rate", "0.5") == 0
    assert [c.reason for c in perfonnx.inspect("once.onnx").convs] == ["already rewritten"] * 2
    assert run("rewrite", "once.onnx", "twice.onnx") == 0
    assert (here / "twice.onnx").read_bytes() == (here / "once.onnx").read_bytes()


def test_symbolic_sizes(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = network()
    for i in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[i].dim_param = "hw"[i - 2]
    (here / "s.onnx").write_bytes(model.SerializeToString())
    line = refused(capfd, "rewrite", "s.onnx", "out.onnx")
    flag = line[line.index("--input-shape") :].split("(")[0].split()
    assert run("rewrite", "s.onnx", "out.onnx", *flag) == 0, "the flag of the message can be typed as it stands"
    assert run("inspect", "s.onnx") == 0
    assert run("inspect", "s.onnx", *flag) == 0


def test_names_with_brackets_are_no_markup(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.graph.node[0].name = "[/red]"
    Path("[red]m.onnx").write_bytes(model.SerializeToString())
    for command in (("inspect", "[red]m.onnx"), ("rewrite", "[red]m.onnx", "[b]out.onnx", "--rate", "0.5")):
        assert run(*command) == 0
        out, err = capfd.readouterr()
        assert "[red]m.onnx" in out
        assert "[/red]" in out
    assert "[b]out.onnx" in out
    assert err == ""
    assert "not there[/b]" in refused(capfd, "inspect", "not there[/b]")


def test_names_with_newlines(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.graph.name = "a\nb"
    model.graph.node[0].name = "conv\n1"
    model.graph.initializer[1].raw_data = b"short"
    model.graph.initializer[1].name = "w\n2"
    (here / "a\nb.onnx").write_bytes(model.SerializeToString())
    refused(capfd, "inspect", "a\nb.onnx")
    refused(capfd, "inspect", "a\nb\nc.onnx")
    refused(capfd, "rewrite", "m.onnx", "out.onnx", "--only", "a\n(")
    refused(capfd, "rewrite", "m.onnx", "no\nsuch/out.onnx")


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)], ids=" ".join)
def test_help(command: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    out, err = capfd.readouterr()
    assert "example" in out
    assert err == ""


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capfd.readouterr().out.startswith("perfonnx ")


def test_as_a_program(here: Path) -> None:
    """In its own process: the statuses, and standard output that goes nowhere."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "perfonnx.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)

    done = program("rewrite", "m.onnx", "out.onnx", "--rate", "0.5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["layers"]) == 2
    done = program("inspect", "gone.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "perfonnx: gone.onnx: No such file or directory; give the path of an ONNX file\n"
    assert program().returncode == 2
    with subprocess.Popen(
        [sys.executable, "-m", "perfonnx.cli", "inspect", "m.onnx"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as piped:
        assert piped.stdout is not None
        assert piped.stderr is not None
        piped.stdout.close()  # the reader has gone before anything is written
        assert b"Traceback" not in piped.stderr.read()


# --- bad files -------------------------------------------------------------------------------------------------------


def image() -> bytes:
    stream = text_io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def archive() -> bytes:
    stream = text_io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("model.onnx", network().SerializeToString())
    return stream.getvalue()


BAD_FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "zero": lambda: b"\0" * 100,
    "text": lambda: b"ir_version: 8\nopset_import { version: 17 }\n",
    "html": lambda: b"<!DOCTYPE html><html><body>Not Found</body></html>",
    "pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "jpeg": image,
    "zip": archive,
    "tensor": lambda: numpy_helper.from_array(nets.values(8, 3, 3, 3), "w").SerializeToString(),
    "node": lambda: nets.conv().SerializeToString(),
    "graph": lambda: network().graph.SerializeToString(),
    "function": lambda: helper.make_function("d", "n", ["x"], ["y"], [], []).SerializeToString(),
    "input list": lambda: onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=1)).SerializeToString(),
    "half": lambda: network().SerializeToString()[:1500],
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_are_no_models(kind: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "bad.onnx").write_bytes(BAD_FILES[kind]())
    for command in (("inspect", "bad.onnx"), ("rewrite", "bad.onnx", "out.onnx"), ("rewrite", "bad.onnx", "m.onnx")):
        assert "bad.onnx" in refused(capfd, *command)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed: int, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "bad.onnx").write_bytes(np.random.default_rng(seed).bytes(10 + seed * 50))
    refused(capfd, "rewrite", "bad.onnx", "out.onnx")


def test_paths_that_are_no_files(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "dir").mkdir()
    for path in ("gone.onnx", "dir", "dir/gone.onnx", "m.onnx/gone.onnx", "x" * 300, "", "."):
        refused(capfd, "inspect", path)
        refused(capfd, "rewrite", path, "out.onnx")
    for out in ("dir", "gone/out.onnx", "m.onnx/out.onnx", ".", "", "x" * 300):
        refused(capfd, "rewrite", "m.onnx", out)


def test_every_cut_of_a_small_model(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = (here / "m.onnx").read_bytes()
    for length in sorted({*range(60), *range(60, len(data), 37), len(data) - 1}):
        (here / "cut.onnx").write_bytes(data[:length])
        refused(capfd, "rewrite", "cut.onnx", "out.onnx")


@pytest.mark.skipif(not real_models.names(), reason="the real models are not here: set PERFONNX_TEST_DATA")
def test_cuts_of_a_real_model(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = real_models.path("mnist_cntk8").read_bytes()
    rng = np.random.default_rng(0)
    for length in sorted(rng.integers(0, len(data) - 1, 60)):
        (here / "cut.onnx").write_bytes(data[:length])
        refused(capfd, "inspect", "cut.onnx")
        refused(capfd, "rewrite", "cut.onnx", "out.onnx")


def changed(change: Callable[[ModelProto], object]) -> bytes:
    model = network()
    change(model)
    return bytes(model.SerializeToString())


BAD_MODELS: dict[str, Callable[[ModelProto], object]] = {
    "undefined": lambda m: m.graph.node[2].input.__setitem__(0, "ghost"),
    "cycle": lambda m: m.graph.node[0].input.__setitem__(0, "p"),
    "foreign": lambda m: setattr(m.graph.node[1], "op_type", "NoSuchOperator"),
    "type": lambda m: setattr(m.graph.initializer[0], "data_type", 77),
    "rank": lambda m: m.graph.initializer[0].dims.__setitem__(slice(0, 2), [24, 1]),
    "no weight": lambda m: m.graph.node[0].input.pop(),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_models_that_contradict_themselves(kind: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "bad.onnx").write_bytes(changed(BAD_MODELS[kind]))
    if kind == "rank":  # a valid file whose layer fits nothing: said, and left alone
        assert run("rewrite", "bad.onnx", "out.onnx", "--only", "conv1", "-v") in (0, 2)
        return
    refused(capfd, "inspect", "bad.onnx")
    refused(capfd, "rewrite", "bad.onnx", "out.onnx")


def test_absurd_dimensions(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for height in (2**31, 2**40, 2**62):
        model = network()
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = height
        (here / "bad.onnx").write_bytes(model.SerializeToString())
        assert run("inspect", "bad.onnx") == 0
        assert run("rewrite", "bad.onnx", "out.onnx", "-v") == 0
        out, err = capfd.readouterr()
        assert "too large" in out or "does not fit" in out
        assert err == ""
    refused(capfd, "inspect", "m.onnx", "--input-shape", f"x:1,3,12,{2**70}")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"
    (here / "bad.onnx").write_bytes(model.SerializeToString())
    refused(capfd, "rewrite", "bad.onnx", "out.onnx", "--input-shape", f"x:1,3,{2**70},10")


# --- bad flags -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--rate", "1"], "rate 1"),
        (["--rate", "1.0"], "rate 1"),
        (["--rate", "-0.5"], "rate"),
        (["--rate=-0.5"], "rate -0.5"),
        (["--rate", "nan"], "rate nan"),
        (["--rate", "inf"], "rate inf"),
        (["--rate", "half"], "half"),
        (["--rate", ""], "rate"),
        (["--rate"], "rate"),
        (["--method", "magic"], "magic"),
        (["--mask", "magic"], "magic"),
        (["--mask", ""], "mask"),
        (["--mask", "gone.npy"], "gone.npy"),
        (["--interpolation", "cubic"], "cubic"),
        (["--center-gain", "0.5"], "0.5"),
        (["--center-gain", "nan"], "nan"),
        (["--method", "radius-adaptive", "--rate", "0.5"], "--rate 0.5: has no meaning with --method radius-adaptive"),
        (["--method", "radius-adaptive", "--mask", "grid"], "--mask grid"),
        (["--method", "sparse", "--interpolation", "nearest"], "--interpolation nearest"),
        (["--center-gain", "1"], "--center-gain 1.0: has no meaning with --method perforate"),
        (["--fill", "before-normalization"], "--fill before-normalization: has no meaning with --method perforate"),
        (["--method", "sparse", "--fill", "one"], "unknown fill 'one'; choose from zero, before-normalization"),
        (["--seed", "-1"], "seed"),
        (["--seed", "1.5"], "seed"),
        (["--seed", "1e3"], "seed"),
        (["--only", "("], "'('"),
        (["--skip", "*"], "'*'"),
        (["--only", "[z-a]"], "[z-a]"),
        (["--only", "zzz"], "zzz"),
        (["--check", "-1"], "--check -1"),
        (["--check", "many"], "many"),
        (["--plan", "gone.json"], "gone.json"),
        (["--plan", "m.onnx"], "m.onnx"),
        (["--plan", "p.json", "--rate", "0.5"], "--rate"),
        (["--plan", "p.json", "--only", "conv1"], "--only"),
        (["--plan", "p.json", "--center-gain", "0"], "--center-gain"),
        (["--save-plan", "gone/p.json"], "gone"),
        (["--save-plan", "."], "directory"),
        (["--save-plan", "m.onnx"], "--save-plan m.onnx: that is IN"),
        (["--save-plan", "out.onnx"], "--save-plan out.onnx: that is OUT"),
        (["--save-plan", "./out.onnx"], "--save-plan out.onnx: that is OUT"),
        (["--input-shape", "x"], "NAME:1,3,224,224"),
        (["--input-shape", "x:"], "NAME:1,3,224,224"),
        (["--input-shape", ":1,3"], "NAME:1,3,224,224"),
        (["--input-shape", "x:1,3,-12,10"], "NAME:1,3,224,224"),
        (["--input-shape", "x:1,3,12.5,10"], "NAME:1,3,224,224"),
        (["--input-shape", "x:1,3,12"], "dimensions"),
        (["--input-shape", "x:1,3,13,10"], "12"),
        (["--input-shape", "y:1,3,12,10"], "no such input"),
        (["--input-shape", "x:1,3,12,10", "--input-shape", "x:1,3,12,10"], "twice"),
        (["--nonsense"], "--nonsense"),
        (["extra.onnx"], "extra.onnx"),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else "",
)
def test_bad_flags(flags: list[str], match: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "p.json").write_text('{"perfonnx_plan": 1, "layers": {}}')
    assert match in refused(capfd, "rewrite", "m.onnx", "out.onnx", *flags)


@pytest.mark.parametrize(
    "arguments",
    [(), ("magic",), ("inspect",), ("rewrite",), ("rewrite", "m.onnx"), ("check", "m.onnx"), ("bench",), ("lib", "x")],
    ids=" ".join,
)
def test_bad_commands(arguments: tuple[str, ...], here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(capfd, *arguments)


def test_check_and_bench_of_bad_files(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "bad.onnx").write_bytes(b"nonsense")
    for other in ("gone.onnx", "bad.onnx", "."):
        for arguments in (
            ("check", "m.onnx", other),
            ("check", other, "m.onnx"),
            ("bench", other),
            ("bench", "m.onnx", other),
        ):
            refused(capfd, *arguments)


# --- bad masks -------------------------------------------------------------------------------------------------------


def saved(array: Any, **options: Any) -> bytes:
    stream = text_io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def archived(**arrays: Any) -> bytes:
    stream = text_io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


GOOD = np.indices((12, 10)).sum(0) % 2 == 0
BAD_MASKS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "of another size.npy": ("fits no layer", lambda: saved(GOOD[:5])),
    "transposed.npy": ("fits no layer", lambda: saved(GOOD.T)),
    "nan.npy": ("0 and 1", lambda: saved(np.full((12, 10), np.nan))),
    "grey.npy": ("0 and 1", lambda: saved(GOOD * 0.5)),
    "pickled.npy": ("not a readable", lambda: saved(np.array([{"a": 1}], object), allow_pickle=True)),
    "rank 3.npy": ("a mask is [H, W]", lambda: saved(GOOD[None])),
    "rank 0.npy": ("a mask is [H, W]", lambda: saved(np.array(True))),
    "empty.npy": ("a mask is [H, W]", lambda: saved(np.zeros((0, 10), bool))),
    "words.npy": ("0 and 1", lambda: saved(np.full((12, 10), "yes"))),
    "without sites.npy": ("no site", lambda: saved(np.zeros((12, 10), bool))),
    "cut.npy": ("not a readable", lambda: saved(GOOD)[:-5]),
    "head.npy": ("not a readable", lambda: saved(GOOD)[:20]),
    "nothing.npy": ("not a readable", lambda: b""),
    "no mask.npy": ("not a readable", lambda: b"hello world"),
    "cut.npz": ("not a readable", lambda: archived(conv1=GOOD)[:-30]),
    "nothing.npz": ("no array", lambda: archived()),
    "wrong size.npz": ("5x10", lambda: archived(conv1=GOOD[:5])),
    "strangers.npz": ("fits no layer", lambda: archived(conv9=GOOD)),
    "one bad.npz": ("conv2", lambda: archived(conv1=GOOD, conv2=GOOD.astype(float) + 3)),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks(name: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    match, content = BAD_MASKS[name]
    (here / name).write_bytes(content())
    line = refused(capfd, "rewrite", "m.onnx", "out.onnx", "--mask", name)
    assert match in line
    plan = {"perfonnx_plan": 1, "layers": {"conv1": {"method": "sparse", "mask": name}}}
    (here / "p.json").write_text(json.dumps(plan))
    refused(capfd, "rewrite", "m.onnx", "out.onnx", "--plan", "p.json")


# --- damaged models --------------------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@functools.cache
def small() -> bytes:
    """A model whose bytes are mostly structure."""
    info = helper.make_tensor_value_info
    branch = helper.make_graph([node("Neg", ["d"], ["t"])], "then", [], [info("t", TensorProto.FLOAT, [1, 2, 4, 4])])
    other = helper.make_graph([node("Abs", ["d"], ["e"])], "else", [], [info("e", TensorProto.FLOAT, [1, 2, 4, 4])])
    nodes = [
        nets.conv("x", "a", "w", name="one", strides=[1, 1], dilations=[1, 1], group=1),
        node("BatchNormalization", ["a", "s", "s", "s", "s"], ["n"], epsilon=1e-3),
        node("Clip", ["n", "low", "high"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        nets.conv("c", "d", "w", name="two", auto_pad="SAME_UPPER"),
        node("If", ["flag"], ["y"], then_branch=branch, else_branch=other),
    ]
    weights = {
        "w": nets.values(2, 2, 3, 3),
        "s": np.array([1, 2], np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
    }
    model = nets.model(nodes, weights, inputs={"x": (1, 2, 8, 8)})
    model.graph.input.append(info("flag", TensorProto.BOOL, []))
    model.metadata_props.add(key="author", value="somebody")
    return bytes(model.SerializeToString())


@functools.cache
def rewritten(layout: str = "rows") -> bytes:
    """A model in which three of four layers are rewritten, by each of the methods."""
    weights = {f"w{i}": nets.values(2, 2, 3, 3, seed=i) for i in range(4)}
    nodes = [nets.conv("xabc"[i], "abcy"[i], f"w{i}", name=f"conv{i}") for i in range(4)]
    model: Any = nets.model(nodes, weights, inputs={"x": (1, 2, 6, 6)})
    for layer, method in (("0", "perforate"), ("1", "sparse"), ("2", "radius-adaptive")):
        model = perfonnx.rewrite(model, method=method, only=layer, rate=0.5, layout=layout).proto
    return bytes(model.SerializeToString())


def canonical() -> bytes:
    return rewritten("nchw")


def survives(data: bytes, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the bytes: status 0, or 2 with one line and nothing written."""
    (here / "f.onnx").write_bytes(data)
    for command in (("inspect", "f.onnx"), ("rewrite", "f.onnx", "out.onnx", "--only", ".", "--rate", "0.5")):
        capfd.readouterr()
        status = run(*command)
        err = capfd.readouterr().err
        assert status in (0, 2), err
        assert err.count("\n") == (1 if status else 0), err
        if status:
            assert not (here / "out.onnx").exists()
    if status == 0:
        perfonnx.inspect("out.onnx")
        (here / "out.onnx").unlink()


@FUZZ
@given(
    st.sampled_from([small, rewritten, canonical]),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_changed_bytes(
    here: Path, capfd: pytest.CaptureFixture[str], base: Callable[[], bytes], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(base())
    for position, value in changes:
        data[position % len(data)] = value
    survives(bytes(data), here, capfd)


@FUZZ
@given(st.integers(0, 2**16), st.integers(0, 40), st.binary(max_size=8))
def test_replaced_stretches(
    here: Path, capfd: pytest.CaptureFixture[str], position: int, length: int, instead: bytes
) -> None:
    data = small()
    start = position % len(data)
    survives(data[:start] + instead + data[start + length :], here, capfd)


@st.composite
def damaged_models(draw: st.DrawFn) -> bytes:
    """Fields taken out, doubled, or given other values: damage that byte flips rarely make."""
    bases: list[Callable[[], bytes]] = [small, rewritten, canonical]
    model = ModelProto.FromString(draw(st.sampled_from(bases))())
    for _ in range(draw(st.integers(1, 3))):
        message: Any = model
        while True:
            fields = message.ListFields()
            if not fields:
                break
            descriptor, value = draw(st.sampled_from(fields))
            is_list = not isinstance(value, (str, bytes, int, float)) and not hasattr(value, "ListFields")
            if descriptor.message_type is not None and draw(st.integers(0, 5)):
                message = draw(st.sampled_from(list(value))) if is_list else value
                continue
            action = draw(st.sampled_from(["clear", "change", "change", "double"]))
            if action == "clear":
                message.ClearField(descriptor.name)
            elif is_list:
                if action == "double" or descriptor.message_type is not None:
                    value.extend(list(value)[: draw(st.integers(0, 3))])
                else:
                    index = draw(st.integers(0, len(value) - 1))
                    value[index] = draw(_other(value[index]))
            elif descriptor.message_type is None:
                try:
                    setattr(message, descriptor.name, draw(_other(value)))
                except (TypeError, ValueError):  # an enumerator or a range that protobuf knows
                    message.ClearField(descriptor.name)
            break
    return bytes(model.SerializeToString())


def _other(value: Any) -> st.SearchStrategy[Any]:
    if isinstance(value, str):
        return st.sampled_from(["", "x", "y", "a", "w", "Conv", "Relu", "PRelu", "Clip", "Foo", "ai.onnx", "If", "é\n"])
    if isinstance(value, bytes):
        return st.binary(max_size=16)
    if isinstance(value, float):
        return st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 3e38])
    return st.sampled_from([0, 1, -1, 2, 3, 7, 10, 11, 16, 2**31 - 1, 2**31, 2**62, -(2**62)])


@FUZZ
@given(damaged_models())
def test_damaged_models(here: Path, capfd: pytest.CaptureFixture[str], data: bytes) -> None:
    survives(data, here, capfd)


def test_errors_of_our_own_are_not_swallowed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `PerfonnxError` becomes one line: a mistake in the program shows as what it is."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("perfonnx.model.files.load", broken)
    with pytest.raises(ZeroDivisionError):
        run("inspect", "m.onnx")
    monkeypatch.undo()
    assert issubclass(PerfonnxError, Exception)


def test_rewrite_and_check_are_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(
        nets.model([nets.conv(y="y", pads=[1, 1, 1, 1])], {"w": nets.values(4, 3, 3, 3)}).SerializeToString()
    )
    assert main(["rewrite", str(path), str(tmp_path / "o.onnx"), "--rate", "0.5", "--json", "--check", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["layers"]
    assert data["check"]["passed"] is True


@pytest.mark.parametrize("layout", ["rows", "nchw"])
def test_layouts(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        nets.conv(y="c", name="one", pads=[1, 1, 1, 1]),
        nets.conv("c", "y", "v", name="two", pads=[1, 1, 1, 1]),
    ]
    weights = {"w": nets.values(4, 3, 3, 3), "v": nets.values(4, 4, 3, 3)}
    path.write_bytes(nets.model(nodes, weights).SerializeToString())
    flags = ["--rate", "0.5", "--layout", layout, "-q", "--check", "1"]
    assert main(["rewrite", str(path), str(tmp_path / "o.onnx"), *flags]) == 0
    found = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert ("SampledConv" in found) == (layout == "rows")


def test_an_input_without_shape_is_given_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the flag, or by the rewritten model beside it; where neither says it, the flag is named."""
    model = network()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    (here / "m.onnx").write_bytes(model.SerializeToString())
    np.savez(here / "d.npz", x=nets.values(2, 3, 12, 10))
    shape = ("--input-shape", "x:1,3,12,10")
    assert run("rewrite", "m.onnx", "o.onnx", "--rate", 0, *shape) == 0
    assert run("check", "m.onnx", "o.onnx", "--tolerance", 1e-4) == 0
    assert run("check", "m.onnx", "o.onnx", "--tolerance", 1e-4, "--data", "d.npz") == 0
    assert run("bench", "m.onnx", "o.onnx", "--runs", 1) == 0
    assert run("bench", "m.onnx", "--runs", 1, *shape) == 0
    capsys.readouterr()
    for command in (
        ("bench", "m.onnx"),
        ("check", "m.onnx", "m.onnx"),
        ("check", "m.onnx", "m.onnx", "--data", "d.npz"),
    ):
        assert run(*command) == 2
        assert "input 'x' has no shape: add --input-shape x:1,3,224,224" in capsys.readouterr().err
    assert run("check", "m.onnx", "o.onnx", "--input-shape", "x:1,3,14,10") == 2
    assert run("inspect", "m.onnx") == 0
    assert "no shape; give --input-shape" in " ".join(capsys.readouterr().out.split())
