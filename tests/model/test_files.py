"""Forms of input, external data, damaged models."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.gradients.network import Network
from perfonnx.model import files
from perfonnx.model.tensors import is_external, tensor_bytes
from perfonnx.running.bench import bench
from perfonnx.running.opened import open_model
from tests.model.chains import as_bytes, chain, external, listing, whole
from tests.passes import nets
from tests.passes.nets import node

# --- forms of input --------------------------------------------------------------------------------------------------


def test_every_form_of_input_gives_the_same_model(tmp_path: Path) -> None:
    model = chain()
    before = as_bytes(model)
    (tmp_path / "m.onnx").write_bytes(before)
    results = [
        nets.rewrite(source, rate=0.5).to_bytes()
        for source in (model, before, tmp_path / "m.onnx", str(tmp_path / "m.onnx"), files.load(tmp_path / "m.onnx"))
    ]
    assert len(set(results)) == 1
    assert as_bytes(model) == before, "a ModelProto is left as it is"
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_a_loaded_model_is_left_as_it_is_and_keeps_its_place(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.bin")
    loaded = files.load(tmp_path / "m.onnx")
    before = as_bytes(loaded.proto)
    again = files.load(loaded)
    assert (again.directory, again.name) == (tmp_path, "m.onnx")
    result = nets.rewrite(loaded, rate=0.5)
    assert as_bytes(loaded.proto) == before
    result.save(tmp_path / "out.onnx")
    assert result.report.model == "m.onnx"


def test_graphsurgeon_graphs() -> None:
    model = chain()
    graph = gs.import_onnx(model)
    result = nets.rewrite(graph, rate=0.0)
    assert len(result.report.layers) == 3
    nets.assert_same_results(model, result.proto)
    assert [n.op for n in graph.nodes].count("Conv") == 3, "the graph given is left as it is"
    back = result.to_graph()
    assert isinstance(back, gs.Graph)
    assert [n.op for n in back.nodes] == ["PerforatedConv"] * 3
    broken = gs.Graph([gs.Node("Relu", inputs=[gs.Variable("x")], outputs=[gs.Variable("x")])])
    with pytest.raises(PerfonnxError):
        nets.rewrite(broken)


def test_what_is_no_path() -> None:
    with pytest.raises(PerfonnxError, match="embedded null byte"):
        nets.rewrite("no\0body.onnx")
    with pytest.raises(PerfonnxError, match=r"Is a directory"):
        nets.rewrite("/")


# --- external data ---------------------------------------------------------------------------------------------------


def data_file(path: Path) -> Path:
    """The one data file that was written with a model: NAME, a digest, `data`."""
    (found,) = (
        f for f in path.parent.iterdir() if re.fullmatch(re.escape(path.name) + r"\.[0-9a-f]{16}\.data", f.name)
    )
    return found


def test_external_data_into_another_directory(tmp_path: Path) -> None:
    path, model = external(tmp_path / "in")
    before = listing(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    nets.rewrite(path, out / "m.onnx", rate=0.5)
    assert listing(tmp_path / "in") == before
    assert sorted(listing(out)) == ["m.onnx", data_file(out / "m.onnx").name]
    shutil.rmtree(tmp_path / "in")
    proto = whole(out / "m.onnx")
    expected = nets.rewrite(model, rate=0.5).proto
    nets.assert_same_results(expected, proto)
    (w,) = (t for t in onnx.load(out / "m.onnx", load_external_data=False).graph.initializer if t.name == "w0")
    assert is_external(w)


def test_external_data_over_itself(tmp_path: Path) -> None:
    for location in ("weights.bin", "m.onnx.data"):
        path, model = external(tmp_path / location, location=location)
        result = nets.rewrite(path, path, rate=0.5, only=["first"])
        expected = nets.rewrite(model, rate=0.5, only=["first"]).proto
        nets.assert_same_results(expected, whole(path))
        # what the result still points to must be there, under offsets that are right
        result.save(tmp_path / location / "again.onnx")
        nets.assert_same_results(expected, whole(tmp_path / location / "again.onnx"))
        nets.rewrite(path, path, rate=0.5)
        assert len(nets.ours(whole(path))) == 3


def test_weights_of_the_input_are_not_overwritten(tmp_path: Path) -> None:
    path, _ = external(tmp_path, location="out.onnx.data")
    before = listing(tmp_path)
    with pytest.raises(PerfonnxError, match=r"holds the weights of m\.onnx; choose another name"):
        nets.rewrite(path, tmp_path / "out.onnx.data")
    assert listing(tmp_path) == before
    nets.rewrite(path, tmp_path / "out.onnx")
    assert before.items() <= listing(tmp_path).items()


def test_external_data_in_memory(tmp_path: Path) -> None:
    path, _ = external(tmp_path)
    for source in (onnx.load(path, load_external_data=False), path.read_bytes()):
        with pytest.raises(PerfonnxError, match=r"initializer 'w0' is external data; give the model's path"):
            nets.rewrite(source)
    with pytest.raises(PerfonnxError, match="save it to a path"):
        nets.rewrite(path).to_bytes()


def test_external_data_of_constant_nodes(tmp_path: Path) -> None:
    """Attributes may be external too; they are carried in the message."""
    w = nets.values(8, 3, 3, 3)
    model = nets.model([node("Constant", [], ["w"], value=numpy_helper.from_array(w, "w")), nets.conv(y="y")], {})
    whole_model = ModelProto()
    whole_model.CopyFrom(model)
    (tmp_path / "in").mkdir()
    onnx.save_model(
        model,
        tmp_path / "in/m.onnx",
        save_as_external_data=True,
        convert_attribute=True,
        size_threshold=0,
        location="d",
    )
    (tmp_path / "out").mkdir()
    nets.rewrite(tmp_path / "in/m.onnx", tmp_path / "out/m.onnx", rate=0.0)
    shutil.rmtree(tmp_path / "in")
    nets.assert_same_results(whole_model, whole(tmp_path / "out/m.onnx"))
    with pytest.raises(PerfonnxError, match="external data"):
        nets.rewrite(model)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("location", "../x.bin", "outside the model's directory"),
        ("location", "/etc/passwd", "outside the model's directory"),
        ("location", "gone.bin", "missing, too short"),
        ("location", "", "outside the model's directory"),
        ("location", ".", "missing, too short"),
        ("location", "a\0b", "NUL"),
        ("location", "x" * 5000, "w0"),
        ("offset", "-1", "negative"),
        ("offset", "many", "no number"),
        ("offset", "99999999999999999999", "too short"),
        ("length", "1", "another size"),
        ("length", "-4", "negative"),
        ("length", "1e3", "no number"),
    ],
)
def test_external_data_that_is_wrong(tmp_path: Path, key: str, value: str, match: str) -> None:
    path, _ = external(tmp_path, location="d.bin")
    proto = onnx.load(path, load_external_data=False)
    entries = {e.key: e for e in proto.graph.initializer[0].external_data}
    entries[key].value = value
    path.write_bytes(proto.SerializeToString())
    before = listing(tmp_path)
    with pytest.raises(PerfonnxError, match=match) as caught:
        nets.rewrite(path, tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == before


def place(path: Path, content: bytes | str) -> None:
    """A file, or a link to what the text says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.symlink_to(content)
    else:
        path.write_bytes(content)


HUB = {"snapshots/1/m.onnx": "../../blobs/a", "snapshots/1/d.bin": "../../blobs/b"}  # what model hubs' caches look like


@pytest.mark.parametrize(
    ("location", "placed", "accepted"),
    [
        pytest.param("d.bin", {**HUB, "blobs/a": b"model", "blobs/b": b"data"}, True, id="cache"),
        pytest.param("d.bin", {**HUB, "blobs/a": "c", "blobs/c": b"model", "blobs/b": b"data"}, True, id="two links"),
        pytest.param("d.bin", {**HUB, "blobs/a": b"model", "blobs/b": "c/d", "blobs/c/d": b"data"}, True, id="below"),
        pytest.param("d.bin", {**HUB, "blobs/a": b"model", "blobs/b": "../d", "d": b"data"}, False, id="above"),
        pytest.param(
            "d.bin", {**HUB, "blobs/a": "../other/c", "other/c": b"model", "blobs/b": b"data"}, False, id="on the way"
        ),
        pytest.param(
            "d.bin", {"snapshots/1/m.onnx": "../../blobs/a", "blobs/a": b"model", "snapshots/1/d.bin": b"data"}, True,
            id="beside the link",
        ),
        pytest.param(
            "d.bin", {"snapshots/1/m.onnx": "../../blobs/a", "blobs/a": b"model", "blobs/d.bin": b"data"}, False,
            id="beside what the link leads to",
        ),
        pytest.param(
            "d.bin", {"snapshots/1/m.onnx": b"model", "snapshots/1/d.bin": "../../d", "d": b"data"}, False,
            id="data elsewhere",
        ),
        pytest.param(
            "d.bin", {"snapshots/1/m.onnx": b"model", "snapshots/1/d.bin": "c", "snapshots/1/c": b"data"}, True,
            id="data beside it",
        ),
        pytest.param(
            "c/d.bin", {"snapshots/1/m.onnx": b"model", "snapshots/1/c": "../../c", "c/d.bin": b"data"}, False,
            id="directory elsewhere",
        ),
        pytest.param("d.bin", {"snapshots/1": "../c", "c/m.onnx": b"model", "c/d.bin": b"data"}, True, id="directory"),
        pytest.param(
            "../1/d.bin", {"snapshots/1/m.onnx": b"model", "snapshots/1/d.bin": b"data"}, True, id="out and in"
        ),
        pytest.param("../d.bin", {"snapshots/1/m.onnx": b"model", "snapshots/d.bin": b"data"}, False, id="out"),
        pytest.param(
            "c/../d.bin", {"snapshots/1/m.onnx": b"model", "snapshots/1/d.bin": b"data"}, False, id="through nothing"
        ),
        pytest.param("d.bin", {"snapshots/1/m.onnx": b"model", "snapshots/1/d.bin": "d.bin"}, False, id="circle"),
    ],
)  # fmt: skip
def test_links_are_followed_where_onnxruntime_follows_them(
    tmp_path: Path, location: str, placed: dict[str, bytes | str], accepted: bool
) -> None:
    source, whole_model = external(tmp_path / "source", location="d.bin")
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = location
    contents = {b"model": proto.SerializeToString(), b"data": (tmp_path / "source/d.bin").read_bytes()}
    for name, content in placed.items():
        place(tmp_path / "at" / name, content if isinstance(content, str) else contents[content])
    path = tmp_path / "at/snapshots/1/m.onnx"
    if not accepted:
        for session in (nets.rewrite, perfonnx.session):
            with pytest.raises(PerfonnxError, match=r"(?i)external data|: 2$"):
                session(path)
        return
    session = perfonnx.session(path, library=False)
    out = tmp_path / "out.onnx"
    result = nets.rewrite(path, out, rate=0.0)
    assert len(result.report.layers) == 3
    nets.assert_same_results(whole_model, whole(out))
    np.testing.assert_allclose(
        perfonnx.session(out).run(None, nets.feed())[0], session.run(None, nets.feed())[0], rtol=0, atol=1e-5
    )
    assert perfonnx.inspect(path).convs[0].reason is None


def test_data_that_links_lead_to_serve_every_command(tmp_path: Path) -> None:
    """onnx's own loader reads no link, onnxruntime none for a model in memory."""
    source, whole_model = external(tmp_path, location="d.bin")
    proto = onnx.load(source, load_external_data=False)
    for layer in proto.graph.node:  # the profile needs names, and so a model in memory
        layer.name = ""
    source.write_bytes(proto.SerializeToString())
    for name in ("m.onnx", "d.bin"):
        place(tmp_path / "cache" / name, f"../{name}")
    path = tmp_path / "cache/m.onnx"
    expected = nets.run(whole_model, nets.feed())[0]
    opened = open_model(files.load(path))
    np.testing.assert_allclose(opened.run(nets.feed())["y"], expected, rtol=0, atol=1e-6)
    report = bench([path], feed=nets.feed(), runs=1, warmup=0, per_layer=True, memory=True)
    assert len(report.models) == len(report.memory) == 1
    network = Network(path)
    np.testing.assert_array_equal(
        numpy_helper.to_array(network.initializers["w0"]), numpy_helper.to_array(whole_model.graph.initializer[0])
    )


@pytest.mark.parametrize(
    ("location", "entries"),
    [
        ("w.bin", {"length": "1" + "0" * 30}),
        ("w.bin", {"length": "9" * 5000}),
        ("w.bin", {"length": "16", "offset": "1" + "0" * 30}),
        ("w.bin", {"length": "12"}),
        ("w.bin", {"length": "-1"}),
        ("pipe", {}),
        ("/dev/zero", {}),
        ("zero", {}),
        (".", {}),
        ("missing", {}),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_external_data_of_attributes_are_checked_before_they_are_read(
    tmp_path: Path, inside: bool, location: str, entries: dict[str, str]
) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 64)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    held = node("Constant", [], ["t"])
    held.attribute.add(name="value", type=AttributeProto.TENSOR).t.CopyFrom(tensor)
    if inside:
        held = node("If", ["c"], ["t"])
        held.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g.initializer.add().CopyFrom(tensor)
    model = chain()
    model.graph.node.insert(0, held)
    (tmp_path / "m.onnx").write_bytes(as_bytes(model))
    with pytest.raises(PerfonnxError, match=r"external data|no number|negative"):
        files.load(tmp_path / "m.onnx")


def test_models_are_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(PerfonnxError, match="is not a regular file"):
            files.load(path)


@pytest.mark.slow
def test_models_over_two_gigabytes(tmp_path: Path) -> None:
    """A sparse file of zeros is the weight of a layer that is not rewritten."""
    path, _ = external(tmp_path / "in", location="d.bin")
    proto = onnx.load(path, load_external_data=False)
    channels = 2**31 // (8 * 9 * 4) + 64
    big = proto.graph.initializer.add(name="big", data_type=TensorProto.FLOAT, dims=[channels, 8, 3, 3])
    size = tensor_bytes(big)
    assert size > 2**31
    big.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "big.bin", "offset": "0", "length": str(size)}.items():
        big.external_data.add(key=key, value=value)
    with (tmp_path / "in/big.bin").open("wb") as stream:
        stream.truncate(size)
    proto.graph.node.append(nets.conv("r1", "z", "big", name="unused_branch"))
    path.write_bytes(proto.SerializeToString())
    (tmp_path / "out").mkdir()
    result = nets.rewrite(path, tmp_path / "out/m.onnx", rate=0.5, only=["^(first|second|third)$"])
    assert len(result.report.layers) == 3
    assert (tmp_path / "out/m.onnx").stat().st_size < 2**20
    assert data_file(tmp_path / "out/m.onnx").stat().st_size > size
    onnx.checker.check_model(tmp_path / "out/m.onnx")
    assert perfonnx.inspect(tmp_path / "out/m.onnx").convs[-1].name == "unused_branch"


# --- damaged models --------------------------------------------------------------------------------------------------


def damaged() -> Iterator[tuple[str, ModelProto, str]]:
    def made(change: Any) -> ModelProto:
        model = chain()
        change(model)
        return model

    def tensor(**fields: Any) -> Any:
        def change(model: ModelProto) -> None:
            target = model.graph.initializer[1]
            for name, value in fields.items():
                if name == "dims":
                    target.dims[:] = value
                else:
                    setattr(target, name, value)

        return change

    yield "short", made(tensor(raw_data=b"1234")), "holds 4 bytes, its shape needs 2304"
    yield "negative", made(tensor(dims=[-8, 8, 3, 3])), "negative dimension"
    yield "huge", made(tensor(dims=[2**62, 2**62])), "its shape needs"
    yield "type", made(tensor(data_type=99)), "unknown data type 99"
    yield "no type", made(tensor(data_type=0)), "unknown data type 0"
    typed = chain()
    typed.graph.initializer.append(TensorProto(name="t", data_type=1, dims=[3], float_data=[1, 2]))
    yield "typed", typed, "holds 2 values, its shape needs 3"
    yield "opset", made(lambda m: setattr(m.opset_import[0], "version", 6)), "opset 6 is not supported"
    yield "new opset", made(lambda m: setattr(m.opset_import[0], "version", 999)), "opset 999 is not supported"
    yield "no opset", made(lambda m: m.ClearField("opset_import")), "imports no version"
    yield "ir", made(lambda m: setattr(m, "ir_version", 999)), "IR version 999 is newer"
    yield "no ir", made(lambda m: m.ClearField("ir_version")), "not an ONNX model"
    yield "no graph", made(lambda m: m.ClearField("graph")), "not an ONNX model"
    yield "no nodes", made(lambda m: m.graph.ClearField("node")), "not an ONNX model"
    yield "undefined input", made(lambda m: m.graph.node[2].input.__setitem__(0, "ghost")), "ghost"
    yield "undefined output", made(lambda m: setattr(m.graph.output[0], "name", "ghost")), "ghost|output"
    yield "cycle", made(lambda m: m.graph.node[0].input.__setitem__(0, "r1")), "topologically sorted|r1"
    yield "twice", made(lambda m: m.graph.node[3].output.__setitem__(0, "r0")), "single static assignment"
    yield "operator", made(lambda m: setattr(m.graph.node[1], "op_type", "Foo")), "No Op registered for Foo"
    yield "attribute", made(lambda m: m.graph.node[1].attribute.add(name="bogus", type=2, i=1)), "bogus"
    yield "domain", made(lambda m: setattr(m.graph.node[1], "domain", "nowhere")), "nowhere"
    yield "no inputs", made(lambda m: m.graph.node[2].ClearField("input")), "input"
    yield "no outputs", made(lambda m: m.graph.node[2].ClearField("output")), "output"
    yield "no operator", made(lambda m: m.graph.node[2].ClearField("op_type")), "op_type"
    other = TensorProto(name="w0", data_type=TensorProto.FLOAT, dims=[2], raw_data=bytes(8))
    yield "names", made(lambda m: m.graph.initializer.append(other)), "'w0' is there twice, with different values"


@pytest.mark.parametrize(("model", "match"), [pytest.param(m, t, id=n) for n, m, t in damaged()])
def test_invalid_models_are_refused_with_one_line(
    model: ModelProto, match: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for call in (lambda: nets.rewrite(model, tmp_path / "out.onnx"), lambda: perfonnx.inspect(model)):
        with pytest.raises(PerfonnxError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert listing(tmp_path) == {}
    assert capfd.readouterr() == ("", "")


def test_names_that_are_not_text() -> None:
    data = as_bytes(chain())
    for name in (b"second", b"w1", b"nets"):
        assert name in data
        with pytest.raises(PerfonnxError, match=r"damaged: the \w+ of a \w+ is not UTF-8 text"):
            nets.rewrite(data.replace(name, b"\xff" * len(name)))
