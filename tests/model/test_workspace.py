"""What survives a rewrite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from tests.model.chains import as_bytes, chain, rewrite_second
from tests.passes import nets
from tests.passes.nets import node


def untouched(model: ModelProto) -> list[bytes]:
    """Nodes that have nothing to do with the second layer."""
    return [as_bytes(n) for n in model.graph.node if not {"c1", "r1"} & {*n.output}]


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
