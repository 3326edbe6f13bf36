"""The library takes what the schemas say: the same inputs and attributes, and the same defaults."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.defs import OpSchema

import perfonnx
from perfonnx import _engine, ops
from tests.ops.cases import assert_close

LIBRARY = _engine.operators()


def test_library_and_schemas_know_the_same_operators() -> None:
    assert sorted(LIBRARY) == sorted(ops.OPERATORS)
    ours = [s.name for s in onnx.defs.get_all_schemas() if s.domain == ops.DOMAIN]
    assert sorted(ours) == sorted(ops.OPERATORS)


@pytest.mark.parametrize("name", ops.OPERATORS)
def test_library_takes_what_the_schema_says(name: str) -> None:
    schema = onnx.defs.get_schema(name, ops.DOMAIN)
    optional = OpSchema.FormalParameterOption.Optional
    assert [(i.name, i.type_str, i.option == optional) for i in schema.inputs] == LIBRARY[name]["inputs"]
    attributes = [(a.name, a.type.name, a.required) for a in schema.attributes.values()]
    assert sorted(attributes) == sorted(LIBRARY[name]["attributes"])


@pytest.mark.parametrize("name", [name for name, operator in ops.OPERATORS.items() if operator.attributes])
def test_what_a_node_does_not_say_is_the_default(name: str) -> None:
    """In the kernel as in the reference, whether it says the defaults, or nothing."""
    rng = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {
        "X": rng.standard_normal((1, 3, 6, 5), np.float32),
        "S": rng.standard_normal((1, 30, 3), np.float32),
        "W": rng.standard_normal((4, 3, 3, 3), np.float32),
        "W_alpha": rng.standard_normal((1, 3, 1, 1), np.float32),
        "mask": np.ones((4, 3), bool),
        "source": np.arange(12, dtype=np.int32).reshape(-1, 1),
        "in_shape": np.array([6, 5], np.int64),
    }
    operator = ops.OPERATORS[name]
    inputs = {i.name: values[i.name] for i in operator.inputs if not i.optional}
    needed: dict[str, Any] = {a.name: [3, 3] for a in operator.attributes if a.required}
    defaults = {a.name: a.default for a in operator.attributes if a.default not in (None, "")}
    expected = operator.reference(*(inputs.get(i.name) for i in operator.inputs), **needed)
    for attributes in (needed, {**needed, **defaults}):
        node = helper.make_node(
            name,
            [i.name if i.name in inputs else "" for i in operator.inputs],
            ["Y"],
            domain=ops.DOMAIN,
            **attributes,
        )
        assert {a.name: a.type for a in node.attribute}.items() <= {a.name: a.type for a in operator.attributes}.items()
        first, *others = inputs
        graph = helper.make_graph(
            [node],
            "defaults",
            [helper.make_tensor_value_info(first, TensorProto.FLOAT, inputs[first].shape)],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * expected.ndim)],
            [numpy_helper.from_array(inputs[other], other) for other in others],
        )
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        assert_close(perfonnx.session(model).run(None, {first: inputs[first]})[0], expected)
