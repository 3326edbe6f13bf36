"""Small models around one operator, built with onnx.helper alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Constants = Mapping[str, np.ndarray | None]


def model(
    op: str,
    constants: Constants,
    *,
    domain: str = "ai.perfonnx",
    name: str = "layer",
    element: int = TensorProto.FLOAT,
    graph_inputs: Sequence[str] = (),
    x_shape: Sequence[int | str] = ("N", "C", "H", "W"),
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node: X is the graph's input, `constants` its initializers in order, None an omitted input.

    Constants named in graph_inputs are fed instead. Attributes are written as given.
    """
    inputs = ["X", *(key if value is not None else "" for key, value in constants.items())]
    while inputs[-1] == "":
        inputs.pop()
    node = helper.make_node(op, inputs, ["Y"], name=name, domain=domain, **attributes)
    given = {key: numpy_helper.from_array(value, key) for key, value in constants.items() if value is not None}
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info("X", element, list(x_shape)),
            *(helper.make_tensor_value_info(key, given[key].data_type, list(given[key].dims)) for key in graph_inputs),
        ],
        [helper.make_tensor_value_info("Y", element, None)],
        [tensor for key, tensor in given.items() if key not in graph_inputs],
    )
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
