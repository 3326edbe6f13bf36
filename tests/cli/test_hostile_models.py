"""Files that are no models, or damaged ones: one line, and nothing written."""

from __future__ import annotations

import functools
import io as text_io
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
from tests import real_models
from tests.cli.running import network, refused, run
from tests.passes import nets
from tests.passes.nets import node


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
