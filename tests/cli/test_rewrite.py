"""`perfonnx rewrite`: every flag, and what is refused."""

from __future__ import annotations

import io as text_io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import perfonnx
from perfonnx.cli import main
from tests.cli.running import network, refused, run
from tests.model.chains import listing
from tests.passes import nets
from tests.passes.nets import node


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
    def layers(*flags: str) -> list[Any]:
        rate = () if "radius-adaptive" in flags else ("--rate", "0.25")
        assert run("rewrite", "m.onnx", "out.onnx", *rate, "--save-plan", "p.json", *flags) == 0, flags
        return list(perfonnx.Plan.load("p.json").layers.values())

    assert [p.NAME for p in layers("--method", "sparse")] == ["sparse"] * 2
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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], None),
        (["--exactness", "rounding"], None),
        (["--memory", "fast"], None),
        (["--memory", "small"], 2),
        (["--exactness", "strict"], 0),
        (["--exactness", "strict", "--memory", "small"], 0),
        (["--exactness", "rounding", "--memory", "small"], 2),
    ],
)
def test_what_may_be_used_of_tiles(flags: list[str], expected: int | None, here: Path) -> None:
    assert run("rewrite", "m.onnx", "out.onnx", "--rate", "0.25", "--save-plan", "p.json", *flags) == 0
    assert json.loads((here / "p.json").read_text()).get("largest_tile") == expected
    assert run("rewrite", "m.onnx", "again.onnx", "--plan", "p.json") == 0
    assert (here / "again.onnx").read_bytes() == (here / "out.onnx").read_bytes()
    assert run("rewrite", "m.onnx", "other.onnx", "--plan", "p.json", "--memory", "fast", "--save-plan", "q.json") == 0
    assert "largest_tile" not in json.loads((here / "q.json").read_text())


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
    assert "--open-share 0.5: has no meaning without its --method: radius-adaptive" in refused(
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
    assert "--data is for --repair, --open-share and methods" in refused(capfd, *rewrite, "--data", "d.npy")
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


def test_rewrite_and_check_are_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(
        nets.model([nets.conv(y="y", pads=[1, 1, 1, 1])], {"w": nets.values(4, 3, 3, 3)}).SerializeToString()
    )
    assert main(["rewrite", str(path), str(tmp_path / "o.onnx"), "--rate", "0.5", "--json", "--check", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["layers"]
    assert data["check"]["passed"] is True


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
        (["--center-gain", "1"], "--center-gain 1.0: has no meaning without its --method: radius-adaptive"),
        (
            ["--fill", "before-normalization"],
            "--fill before-normalization: has no meaning without its --method: sparse",
        ),
        (["--flips"], "--flips: has no meaning without its --method: sublattice"),
        (["--block", "16"], "--block 16: has no meaning without its --method: column-sparse"),
        (["--save", "0.5"], "--save 0.5: has no meaning without its --method: monochromatic, "),
        (["--method", "svd", "--save", "0"], "save 0 says nothing"),
        (["--method", "svd", "--error", "0"], "error 0 says nothing"),
        (["--method", "svd", "--rank", "0"], "rank 0 says nothing"),
        (["--method", "svd", "--rank", "2", "--save", "0.5"], "rank and save both say how large factors are"),
        (["--method", "sublattice", "--at", ""], "at is ''; give sizes of maps, as 56x56,28x28"),
        (["--method", "sublattice", "--lattice", "dense", "--at", "12x10"], "at says which maps are put on a lattice"),
        (["--method", "sublattice", "--at", " ,"], "at is ' ,'; give sizes of maps, as 56x56,28x28"),
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
