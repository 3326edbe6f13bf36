"""What survives a rewrite, forms of input, external data, atomic writing."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import perfonnx
from perfonnx import PerfonnxError, io
from perfonnx.bench import bench
from perfonnx.check import open_loaded
from perfonnx.gradients.network import Network
from tests.passes import nets
from tests.passes.nets import node

LAYERS = ("first", "second", "third")


def chain(**options: Any) -> ModelProto:
    """Three convolutions with Relu behind them."""
    nodes: list[NodeProto] = []
    for i, name in enumerate(LAYERS):
        nodes.append(nets.conv("x" if i == 0 else f"r{i - 1}", f"c{i}", f"w{i}", name=name))
        nodes.append(node("Relu", [f"c{i}"], ["y" if i == 2 else f"r{i}"]))
    weights = {f"w{i}": nets.values(8, 3 if i == 0 else 8, 3, 3, seed=i) for i in range(3)}
    return nets.model(nodes, weights, **options)


def rewrite_second(model: ModelProto, **options: Any) -> ModelProto:
    return nets.rewrite(model, rate=0.5, only=["^second$"], **options).proto


def as_bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def untouched(model: ModelProto) -> list[bytes]:
    """Nodes that have nothing to do with the second layer."""
    return [as_bytes(n) for n in model.graph.node if not {"c1", "r1"} & {*n.output}]


def listing(directory: Path) -> dict[str, tuple[int, bytes]]:
    """All files below a directory, by name, with mode and content."""
    return {
        str(p.relative_to(directory)): (p.stat().st_mode, p.read_bytes() if p.is_file() else b"")
        for p in sorted(directory.rglob("*"))
    }


# --- what survives ---------------------------------------------------------------------------------------------------


def test_model_and_graph_fields_survive() -> None:
    model = chain(domains=["z.last", "a.first"])
    model.doc_string, model.domain, model.model_version = "a model", "org.example", 7
    model.producer_name, model.producer_version = "maker", "1.2"
    model.metadata_props.add(key="author", value="somebody")
    model.metadata_props.add(key="empty", value="")
    model.graph.name, model.graph.doc_string = "the graph", "about the graph"
    model.graph.metadata_props.add(key="g", value="1")
    annotation = model.graph.quantization_annotation.add(tensor_name="w0")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    training = model.training_info.add()
    training.algorithm.name = "step"
    training.algorithm.node.append(node("Identity", ["w0"], ["w0_next"]))
    training.update_binding.add(key="w0", value="w0_next")
    model.configuration.add(name="two", num_devices=2)
    model.ir_version = onnx.IR_VERSION
    proto = rewrite_second(model)
    for field in ("doc_string", "domain", "model_version", "producer_name", "producer_version", "ir_version"):
        assert getattr(proto, field) == getattr(model, field), field
    assert list(proto.metadata_props)[:2] == list(model.metadata_props)
    assert [p.key.rpartition(".")[0] for p in proto.metadata_props][2:] == ["perfonnx.plan"]
    assert list(proto.training_info) == list(model.training_info)
    assert list(proto.configuration) == list(model.configuration)
    assert list(proto.opset_import)[:-1] == list(model.opset_import)
    assert [(o.domain, o.version) for o in proto.opset_import][-1] == ("ai.perfonnx", 1)
    for field in ("name", "doc_string"):
        assert getattr(proto.graph, field) == getattr(model.graph, field), field
    for field in ("metadata_props", "quantization_annotation"):
        assert list(getattr(proto.graph, field)) == list(getattr(model.graph, field)), field


def test_inputs_outputs_and_value_info_survive() -> None:
    model = chain(inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 8, 12, 10)})
    for info in (model.graph.input[0], model.graph.output[0]):
        info.doc_string = f"about {info.name}"
        info.type.denotation = "IMAGE"
        info.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
        info.metadata_props.add(key="k", value=info.name)
    kept = helper.make_tensor_value_info("r0", TensorProto.FLOAT, ["N", 8, 12, 10], doc_string="kept")
    model.graph.value_info.append(kept)
    model.graph.value_info.append(helper.make_tensor_value_info("c1", TensorProto.FLOAT, ["N", 8, 12, 10]))
    proto = rewrite_second(model)
    assert list(proto.graph.input) == list(model.graph.input)
    assert list(proto.graph.output) == list(model.graph.output)
    infos = {v.name: v for v in proto.graph.value_info}
    assert infos["r0"] == kept
    assert "c1" not in infos, "the tensor between the layer and its activation is gone"
    assert [d.dim_param or d.dim_value for d in infos["r1"].type.tensor_type.shape.dim] == ["N", 8, 12, 10]


def test_untouched_nodes_survive_to_the_byte() -> None:
    model = chain()
    for n in model.graph.node:
        n.doc_string = f"about {n.name}"
        n.metadata_props.add(key="scope", value=n.name)
    model.graph.node[0].attribute.add(name="auto_pad", type=AttributeProto.STRING, s=b"NOTSET", doc_string="d")
    model.graph.node[4].domain = "ai.onnx"
    proto = rewrite_second(model)
    assert untouched(proto)[0:2] == untouched(model)[0:2]
    assert untouched(proto)[-2:] == untouched(model)[-2:]
    (new,) = nets.ours(proto)
    assert (new.name, new.doc_string) == ("second", "about second")
    assert [(p.key, p.value) for p in new.metadata_props] == [("scope", "second")]


@pytest.mark.parametrize("imported", ["", "ai.onnx"])
def test_the_long_name_of_the_default_domain(imported: str) -> None:
    model = chain()
    model.opset_import[0].domain = imported
    for n in model.graph.node:
        n.domain = "ai.onnx"
    result = nets.rewrite(model, rate=0.0)
    assert len(result.report.layers) == 3
    assert result.proto.opset_import[0] == model.opset_import[0]
    nets.assert_same_results(model, result.proto)


def strange_attributes() -> Iterator[AttributeProto]:
    yield helper.make_attribute("type", helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    yield helper.make_attribute("sparse", helper.make_sparse_tensor(values, indices, [4]))
    yield AttributeProto(name="blob", type=AttributeProto.STRING, s=b"\xff\xfe\x00")
    yield AttributeProto(name="blobs", type=AttributeProto.STRINGS, strings=[b"text", b"\x80"])
    yield AttributeProto(name="tensors", type=AttributeProto.TENSORS, tensors=[values, indices])
    body = helper.make_graph(
        [node("Relu", ["r0"], ["inner"])], "body", [], [helper.make_empty_tensor_value_info("inner")]
    )
    yield AttributeProto(name="bodies", type=AttributeProto.GRAPHS, graphs=[body, body])


@pytest.mark.parametrize("attribute", list(strange_attributes()), ids=lambda a: a.name)
def test_attributes_that_graphsurgeon_cannot_import_survive(attribute: AttributeProto) -> None:
    model = chain(domains=["foreign"])
    foreign = helper.make_node("Foreign", ["r0"], ["f"], name="foreign", domain="foreign")
    foreign.attribute.append(attribute)
    model.graph.node.insert(2, foreign)
    model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, [1]))
    proto = rewrite_second(model)
    assert as_bytes(proto.graph.node[2]) == as_bytes(foreign)


def test_a_body_in_a_list_of_bodies_keeps_what_it_reads() -> None:
    """graphsurgeon does not see that the foreign operator's bodies read c1."""
    model = chain(domains=["foreign"])
    body = helper.make_graph(
        [node("Neg", ["c1"], ["inner"])], "body", [], [helper.make_empty_tensor_value_info("inner")]
    )
    foreign = helper.make_node("Foreign", ["r0"], ["f"], name="foreign", domain="foreign")
    foreign.attribute.append(AttributeProto(name="bodies", type=AttributeProto.GRAPHS, graphs=[body]))
    model.graph.node.insert(4, foreign)
    proto = rewrite_second(model)
    (new,) = nets.ours(proto)
    assert list(new.output) == ["c1"], "nothing may be absorbed past c1"


def test_unusual_initializers_survive() -> None:
    model = chain()
    extra = [
        helper.make_tensor(f"unused_{name}", getattr(TensorProto, name), [3], [1, 0, 1])
        for name in (
            "BFLOAT16",
            "FLOAT8E4M3FN",
            "FLOAT8E5M2",
            "INT4",
            "UINT4",
            "DOUBLE",
            "BOOL",
            "COMPLEX64",
            "FLOAT4E2M1",
        )
    ]
    extra += [
        TensorProto(name="words", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"\xff"]),
        helper.make_tensor("scalar", TensorProto.INT64, [], [4]),
        helper.make_tensor("empty", TensorProto.FLOAT, [0, 3], []),
        numpy_helper.from_array(np.array([1, 2], np.float32), "raw"),
        helper.make_tensor("raw16", TensorProto.BFLOAT16, [2], b"\0\1\2\3", raw=True),
        helper.make_tensor("raw4", TensorProto.INT4, [3], b"\x12\x03", raw=True),
    ]
    extra[0].doc_string = "kept"
    extra[0].metadata_props.add(key="k", value="v")
    model.graph.initializer.extend(extra)
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    model.ir_version = onnx.IR_VERSION
    proto = rewrite_second(model)
    kept = {t.name: as_bytes(t) for t in proto.graph.initializer}
    assert all(kept[t.name] == as_bytes(t) for t in extra)
    assert list(proto.graph.sparse_initializer) == list(model.graph.sparse_initializer)
    assert kept["w0"] == as_bytes(model.graph.initializer[0])
    assert nets.constant(proto, "w1").tobytes() == nets.constant(model, "w1").tobytes()


def test_functions_of_other_domains_survive() -> None:
    model = chain(domains=["local"])
    body = [node("Mul", ["a", "a"], ["z"])]
    function = helper.make_function("local", "Square", ["a"], ["z"], body, [helper.make_opsetid("", 17)])
    function.doc_string = "squares"
    model.functions.append(function)
    model.graph.node.append(helper.make_node("Square", ["y"], ["out"], domain="local"))
    model.graph.output[0].name = "out"
    proto = rewrite_second(model)
    assert as_bytes(proto.functions[0]) == as_bytes(function)
    assert [f.name for f in proto.functions] == ["Square", "PerforatedConv"]
    nets.check(proto)
    assert len(rewrite_second(model, fallback=False).functions) == 1
    nets.run(proto, nets.feed())


def test_a_model_in_which_nothing_is_rewritten_stays_as_it_came() -> None:
    model = nets.model([node("Relu", ["x"], ["y"])], {"unused": nets.values(3)})
    model.metadata_props.add(key="a", value="b")
    assert as_bytes(nets.rewrite(model).proto) == as_bytes(model)


def test_tensors_of_the_message_are_written_as_they_came(tmp_path: Path) -> None:
    """Typed fields stay typed fields; raw data stay raw data."""
    model = nets.model([nets.conv(y="y")], {"w": helper.make_tensor("w", 1, [8, 3, 3, 3], nets.values(216).tolist())})
    nets.rewrite(model, tmp_path / "out.onnx", rate=0.5)
    (w,) = (t for t in onnx.load(tmp_path / "out.onnx").graph.initializer if t.name == "w")
    assert len(w.float_data) == 216


# --- forms of input --------------------------------------------------------------------------------------------------


def test_every_form_of_input_gives_the_same_model(tmp_path: Path) -> None:
    model = chain()
    before = as_bytes(model)
    (tmp_path / "m.onnx").write_bytes(before)
    results = [
        nets.rewrite(source, rate=0.5).to_bytes()
        for source in (model, before, tmp_path / "m.onnx", str(tmp_path / "m.onnx"))
    ]
    assert len(set(results)) == 1
    assert as_bytes(model) == before, "a ModelProto is left as it is"
    assert (tmp_path / "m.onnx").read_bytes() == before


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


def external(directory: Path, name: str = "m.onnx", location: str = "weights/all.bin") -> tuple[Path, ModelProto]:
    """A model on disk with external data, and the same model whole."""
    model = chain()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / location).parent.mkdir(exist_ok=True)
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, directory / name, save_as_external_data=True, location=location, size_threshold=0)
    assert all(io.is_external(t) for t in onnx.load(directory / name, load_external_data=False).graph.initializer)
    return directory / name, model


def whole(path: Path) -> ModelProto:
    """A model from disk with its data, after onnx has checked the files."""
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path)


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
    assert io.is_external(w)


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
    ("location", "files", "accepted"),
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
    tmp_path: Path, location: str, files: dict[str, bytes | str], accepted: bool
) -> None:
    source, whole_model = external(tmp_path / "source", location="d.bin")
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = location
    contents = {b"model": proto.SerializeToString(), b"data": (tmp_path / "source/d.bin").read_bytes()}
    for name, content in files.items():
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
    opened = open_loaded(io.load(path))
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
        io.load(tmp_path / "m.onnx")


def test_models_are_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(PerfonnxError, match="is not a regular file"):
            io.load(path)


@pytest.mark.slow
def test_models_over_two_gigabytes(tmp_path: Path) -> None:
    """A sparse file of zeros is the weight of a layer that is not rewritten."""
    path, _ = external(tmp_path / "in", location="d.bin")
    proto = onnx.load(path, load_external_data=False)
    channels = 2**31 // (8 * 9 * 4) + 64
    big = proto.graph.initializer.add(name="big", data_type=TensorProto.FLOAT, dims=[channels, 8, 3, 3])
    size = io.tensor_bytes(big)
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


# --- atomic writing --------------------------------------------------------------------------------------------------


class DiskFullError(OSError):
    def __init__(self) -> None:
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize(
    ("data", "failing"),
    [*((False, i) for i in range(2)), *((True, i) for i in range(7))],  # all that is put on disk, in turn
)
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bool, failing: int
) -> None:
    path = external(tmp_path / "in")[0] if data else tmp_path / "in.onnx"
    if not data:
        path.write_bytes(as_bytes(chain()))
    out = tmp_path / "out"
    out.mkdir()
    old = "m.onnx.0123456789abcdef.data"
    (out / "m.onnx").write_bytes(b"old model of " + old.encode())
    (out / old).write_bytes(b"old")
    before = listing(tmp_path)
    result = nets.rewrite(path, rate=0.5)
    calls = 0

    def fails(real: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise DiskFullError
            return real(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(Path, "write_bytes", fails(Path.write_bytes))
    monkeypatch.setattr(os, "replace", fails(os.replace))
    monkeypatch.setattr(io, "_copy_data", fails(io._copy_data))
    monkeypatch.setattr(io, "_write_message", fails(io._write_message))
    with pytest.raises(PerfonnxError, match=r"m\.onnx: cannot be written: No space left on device"):
        result.save(out / "m.onnx")
    monkeypatch.undo()
    assert listing(tmp_path) == before


@pytest.mark.parametrize("existed", [True, False])
def test_data_are_put_back_when_the_model_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    path, _ = external(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    if existed:
        old = "m.onnx.0123456789abcdef.data"
        (out / "m.onnx").write_bytes(b"old model of " + old.encode())
        (out / old).write_bytes(b"old data")
    before = listing(out)
    result = nets.rewrite(path, rate=0.5)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "m.onnx":
            raise DiskFullError
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PerfonnxError, match="No space left"):
        result.save(out / "m.onnx")
    assert listing(out) == before


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    result = nets.rewrite(chain(), rate=0.5)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "m.onnx")
    assert listing(tmp_path) == {}


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before any work: the model is not even read."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(p.name for p in tmp_path.iterdir())
    for place, match in (
        ("dir", "is a directory"),
        ("pipe", "is not a regular file"),
        ("none/m.onnx", "there is no directory"),
        ("file/m.onnx", "there is no directory|Not a directory"),
        ("x" * 300, "cannot be written: File name too long"),
        ("a\0b", "has a NUL in it"),
    ):
        with pytest.raises(PerfonnxError, match=match):
            nets.rewrite("not there.onnx" if place != "file" else "x", tmp_path / place)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PerfonnxError, match="no permission to write"):
        nets.rewrite("not there.onnx", tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_modes(tmp_path: Path) -> None:
    """A new file gets the mode that the process gives new files; a replaced one keeps its own."""
    mask = os.umask(0o027)
    try:
        nets.rewrite(chain(), tmp_path / "new.onnx")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o640
    (tmp_path / "new.onnx").chmod(0o604)
    nets.rewrite(chain(), tmp_path / "new.onnx")
    assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o604


def test_relative_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nets.rewrite(chain(), "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


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


def test_experimental_and_deprecated_operators_are_let_pass(capfd: pytest.CaptureFixture[str]) -> None:
    """onnx's checker prints a line about the first on stdout, which would spoil JSON there."""
    model = chain()
    model.graph.node.insert(0, node("ImageScaler", ["x"], ["scaled"], scale=0.5, bias=[0.0, 0.0, 0.0]))
    model.graph.node[1].input[0] = "scaled"
    model.opset_import[0].version = 7
    proto = rewrite_second(model)
    assert proto.graph.node[0].op_type == "ImageScaler"
    model = chain(opset=10)
    model.graph.node.append(node("Upsample", ["y", "scales"], ["out"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    model.graph.output[0].name = "out"
    assert nets.op_types(rewrite_second(model))[-1] == "Upsample"
    assert capfd.readouterr() == ("", "")


def test_outputs_without_shape_are_let_pass() -> None:
    """onnx's checker wants one; exporters leave it out, and every runtime accepts that."""
    model = chain()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    proto = rewrite_second(model)
    assert proto.graph.output[0] == model.graph.output[0]
    nets.run(proto, nets.feed())


def test_models_that_fail_strict_inference_only_are_let_pass() -> None:
    """A wrong value_info: the checker passes it, strict shape inference does not, onnxruntime warns."""
    model = chain()
    model.graph.node.append(node("Reshape", ["y", "shape"], ["out"]))
    model.graph.initializer.append(
        numpy_helper.from_array(np.array([1, -1, 7], np.int64), "shape")
    )  # 960 is no multiple of 7
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", 1, [None, None, None]))
    onnx.checker.check_model(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError:
        pass
    else:
        pytest.skip("this onnx infers less strictly")
    assert len(nets.ours(rewrite_second(model))) == 1


# --- input shapes ----------------------------------------------------------------------------------------------------


def test_input_shapes() -> None:
    model = chain(inputs={"x": ("N", 3, "H", "W")})
    proto = nets.rewrite(model, input_shapes={"x": ["N", 3, np.int64(12), 10]}, rate=0.5).proto
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 3, 12, 10]
    for shapes, match in (
        ({"z": [1]}, r"the model has no such input; its inputs are x"),
        ({"w0": [1]}, r"the model has no such input"),
        ({"x": [1, 3, 12]}, r"has 3 dimensions, the model's input has 4"),
        ({"x": [1, 4, 12, 10]}, r"fixes this dimension at 3, not 4"),
        ({"x": [1, 3, -12, 10]}, r"-12 is no size"),
    ):
        with pytest.raises(PerfonnxError, match=match):
            nets.rewrite(model, input_shapes=shapes)


def test_large_models_are_written_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written so is the message, whatever is streamed."""
    model = nets.model([nets.conv(y="y", b="b")], {"w": nets.values(4, 3, 3, 3), "b": nets.values(4)})
    model.metadata_props.add(key="k", value="v")
    loaded = io.load(model)
    io.save(loaded, tmp_path / "whole.onnx")
    monkeypatch.setattr(io, "_STREAMED", 100)  # the weight is larger, the bias smaller
    io.save(loaded, tmp_path / "streamed.onnx")
    assert onnx.load(tmp_path / "streamed.onnx") == onnx.load(tmp_path / "whole.onnx") == model
