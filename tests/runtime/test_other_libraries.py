"""Models that also use operators of another custom library: every command can be pointed at it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import perfonnx
from perfonnx import cli, runtime
from perfonnx.errors import PerfonnxError
from tests.extras import needs

DOMAIN = "ai.onnx.contrib"


@pytest.fixture(scope="module")
def library() -> str:
    extensions = needs("onnxruntime_extensions")
    return str(extensions.get_library_path())


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A classifier whose convolutions stand behind an operator that onnx knows nothing of."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((8, 3, 3, 3)),
        "w2": random.standard_normal((8, 8, 3, 3)) / 6,
        "w3": random.standard_normal((8, 5)),
    }
    nodes = [
        helper.make_node("NegPos", ["x"], ["negative", "positive"], name="halves", domain=DOMAIN),
        helper.make_node("Conv", ["positive", "w1"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="mean"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("MatMul", ["e", "w3"], ["y"], name="classes"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    np.save(tmp_path / "x.npy", random.standard_normal((24, 3, 12, 12)).astype(np.float32))
    return str(path)


def _run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_inspect_measures_shapes_behind_the_operator(
    model: str, library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("inspect", model, "--json") == 0
    unreached = json.loads(capsys.readouterr().out)["convs"]
    assert [conv["output"] for conv in unreached] == [None, None]
    assert _run("inspect", model, "--json", "--library", library) == 0
    convs = json.loads(capsys.readouterr().out)["convs"]
    assert [(conv["name"], conv["output"]) for conv in convs] == [("first", [12, 12]), ("second", [12, 12])]


def test_every_command_that_runs_a_model(
    model: str, library: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast, data = tmp_path / "fast.onnx", ["--data", tmp_path / "x.npy"]
    named = ["--library", library]
    assert _run("rewrite", model, fast, "--rate", 0.5, "--check", 1, *named) == 0
    assert "2 layers rewritten" in capsys.readouterr().out
    assert _run("check", model, fast, *data, *named) == 0
    assert _run("bench", model, fast, "--runs", 1, "--per-layer", "--memory", "--threads", 1, *named) == 0
    repaired = tmp_path / "repaired.onnx"
    assert _run("rewrite", model, repaired, "--rate", 0.5, "--repair", "bias", *data, *named) == 0
    adaptive = tmp_path / "adaptive.onnx"
    assert _run("rewrite", model, adaptive, "--method", "radius-adaptive", *named) == 0
    assert _run("alphas", adaptive, *data, *named) == 0
    assert _run("impact", model, tmp_path / "maps.npz", *data, *named) == 0
    choices = ["--rates", ".5", "--masks", "lattice", "--repair", "none", "--threads", 1]
    assert _run("sensitivity", model, *choices, *data, *named) == 0
    tuned = tmp_path / "tuned.onnx"
    assert _run("tune", model, tuned, *choices, "--max-time", 1, "--no-cache", *data, *named) == 0


def test_without_the_library_the_message_names_the_flag(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("check", model, model) == cli.ExitStatus.BAD_INPUT
    error = capsys.readouterr().err
    assert "NegPos" in error
    assert "--library" in error


def test_from_python(model: str, library: str) -> None:
    x = np.ones((1, 3, 12, 12), np.float32)
    expected = runtime.session(model, libraries=[library]).run(None, {"x": x})[0]
    with perfonnx.with_libraries([library]):
        result = perfonnx.rewrite(model, rate=0)
        actual = perfonnx.session(result.proto).run(None, {"x": x})[0]
    assert runtime.other_libraries() == ()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_named_twice_or_our_own_it_is_registered_once(model: str, library: str) -> None:
    with runtime.with_libraries([library, perfonnx.get_library_path()]):
        runtime.session(model, libraries=[library, library])


def test_a_library_that_is_not_there_or_is_none(model: str, tmp_path: Path) -> None:
    with pytest.raises(PerfonnxError, match="no such file"), runtime.with_libraries([tmp_path / "gone.so"]):
        pass
    empty = tmp_path / "empty.so"
    empty.write_bytes(b"not a library")
    with pytest.raises(PerfonnxError, match=r"cannot load .*empty\.so"):
        runtime.session(model, libraries=[empty])
