"""What a command writes is never what it reads; what it reads is a file; and what it prints arrives or is missed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from perfonnx.cli import main
from tests.passes import nets


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of everything that commands read."""
    monkeypatch.chdir(tmp_path)
    model = nets.model([nets.conv(y="y")], {"w": nets.values(8, 3, 3, 3)}, outputs={"y": (1, 8, 12, 10)})
    onnx.save_model(model, "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert main(["rewrite", "m.onnx", "--dry-run", "-q", "--save-plan", "p.json"]) == 0
    plan = (tmp_path / "p.json").read_text().replace('"layers"', '"corrections": "c.npz", "masks": "k.npz", "layers"')
    (tmp_path / "named.json").write_text(plan)
    for name in ("c.npz", "k.npz", "i.npz", "mask.npy", "labels.csv", "preset.json", "lib.so"):
        Path(name).write_bytes(b"precious")
    np.savez("data.npz", x=np.zeros((4, 3, 12, 10), np.float32))
    Path("photos").mkdir()
    Image.new("RGB", (12, 12)).save("photos/a.png")
    os.symlink("m.onnx", "link.onnx")
    os.link("w.bin", "hard.bin")
    return tmp_path


def _content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


REWRITE = ("rewrite", "m.onnx", "out.onnx")
TUNE = ("tune", "m.onnx", "out.onnx", "--data", "data.npz", "--max-drop", "5%")
TRAIN = ("finetune", "m.onnx", "out.onnx", "--data", "data.npz", "--plan", "p.json")
LOST = [
    "rewrite m.onnx m.onnx",
    "rewrite m.onnx ./m.onnx",
    "rewrite m.onnx link.onnx",
    "rewrite link.onnx m.onnx",
    "rewrite m.onnx w.bin",
    "rewrite m.onnx hard.bin",
    "rewrite link.onnx w.bin",
    "rewrite m.onnx out.onnx --save-plan w.bin",
    "rewrite m.onnx out.onnx --save-plan m.onnx",
    "rewrite m.onnx out.onnx --plan p.json --save-plan p.json",
    "rewrite m.onnx p.json --plan p.json",
    "rewrite m.onnx c.npz --plan named.json",
    "rewrite m.onnx k.npz --plan named.json",
    "rewrite m.onnx mask.npy --mask mask.npy",
    "rewrite m.onnx i.npz --mask impact --impact-maps i.npz",
    "rewrite m.onnx data.npz --repair bias --data data.npz",
    "rewrite m.onnx photos/a.png --repair bias --data photos",
    "rewrite m.onnx preset.json --repair bias --data photos --preset preset.json",
    "rewrite m.onnx lib.so --library lib.so",
    "impact m.onnx w.bin --data data.npz",
    "impact m.onnx data.npz --data data.npz",
    "alphas m.onnx --images w.bin --data data.npz",
    "alphas m.onnx --images photos/a.png --data photos",
    "impact m.onnx labels.csv --data data.npz --labels labels.csv",
    *(
        f"{' '.join(TUNE)} {flag} {lost}"
        for flag in ("--plan-out", "--report", "--report-json", "--state")
        for lost in ("m.onnx", "w.bin", "data.npz")
    ),
    *(
        f"{' '.join(TRAIN)} {flag} {lost}"
        for flag in ("--save-plan", "--report-json", "--checkpoint")
        for lost in ("m.onnx", "w.bin", "data.npz", "p.json")
    ),
]


@pytest.mark.parametrize("line", LOST)
def test_what_is_read_is_not_written(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _content(place)
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "that is" in error
    assert _content(place) == before


@pytest.mark.parametrize(
    "line",
    [
        "rewrite m.onnx out.onnx --save-plan out.onnx",
        "rewrite m.onnx plan.corrections.npz --save-plan plan.json",
        "rewrite m.onnx plan.masks.npz --save-plan ./plan.json",
        "rewrite m.onnx plan.impact.npz --save-plan plan.json",
        "tune m.onnx out.onnx --data data.npz --max-drop 5% --report r.html --state r.json",
        "tune m.onnx out.onnx --data data.npz --max-drop 5% --plan-out r.json --report-json r.json",
    ],
)
def test_two_things_written_are_two_files(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _content(place)
    assert main(line.split()) == 2
    assert "that is" in capsys.readouterr().err
    assert _content(place) == before


def test_a_plan_does_not_overwrite_what_is_read_with_what_goes_with_it(place: Path) -> None:
    """The corrections of plan.json go to plan.corrections.npz."""
    (place / "c.npz").rename("plan.corrections.npz")
    before = _content(place)
    assert main(["rewrite", "m.onnx", "out.onnx", "--mask", "plan.corrections.npz", "--save-plan", "plan.json"]) == 2
    assert _content(place) == before


def test_what_is_written_again_may_be_there(place: Path) -> None:
    for _ in range(2):
        assert main([*REWRITE, "-q", "--save-plan", "plan.json"]) == 0
    assert main(["rewrite", "m.onnx", "m.onnx", "--dry-run", "-q"]) == 0  # is not written


@pytest.mark.parametrize("what", ["device", "pipe"])
@pytest.mark.parametrize(
    "line",
    [
        "inspect ODD",
        "rewrite ODD out.onnx",
        "rewrite m.onnx out.onnx --plan ODD",
        "rewrite m.onnx out.onnx --mask ODD",
        "check m.onnx ODD",
        "bench m.onnx ODD",
        "impact m.onnx i.npz --data ODD",
        "check m.onnx m.onnx --data photos --labels ODD",
        "tune m.onnx out.onnx --data data.npz --max-drop 5% --state ODD",
    ],
)
def test_devices_and_pipes_are_refused_at_once(
    line: str, what: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    assert main(line.replace("ODD", "/dev/zero" if what == "device" else "pipe").split()) == 2
    assert "is not a regular file" in capsys.readouterr().err


def _run(*arguments: str, stdout: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "perfonnx.cli", *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)  # type: ignore[call-overload]
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("inspect", "m.onnx"), ("inspect", "m.onnx", "--json"), ("--help",), ("lib",)])
def test_a_full_disk_behind_the_output_is_one_line(arguments: tuple[str, ...], place: Path) -> None:
    with Path("/dev/full").open("w") as full:
        status, error = _run(*arguments, stdout=full)
    assert (status, error) == (3, "perfonnx: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("arguments", [("inspect", "m.onnx", "--json"), ("--help",)])
def test_a_reader_that_has_gone_is_no_error(arguments: tuple[str, ...], place: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert _run(*arguments, stdout=writing) == (0, "")
    finally:
        os.close(writing)


@pytest.mark.parametrize(
    ("model", "plan", "said"),
    [
        ("m.onnx", '{"perfonnx_plan": 1, "layers": {}, "corrections": "%s"}' % ("c" * 5000), "cannot be read"),
        ("m.onnx", "[" * 100_000, "p.json: not a plan"),
        ("m" * 5000, "", "m: "),
    ],
)
def test_names_that_no_file_can_have_are_a_line(
    place: Path, capsys: pytest.CaptureFixture[str], model: str, plan: str, said: str
) -> None:
    """Also where the output is there already, so that it is compared with all that is read."""
    (place / "out.onnx").write_bytes(b"precious")
    (place / "p.json").write_text(plan)
    assert main(["rewrite", model, "out.onnx", *(["--plan", "p.json"] if plan else [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert (place / "out.onnx").read_bytes() == b"precious"
