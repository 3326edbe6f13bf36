"""Flatten in front of a Gemm: positions of one row share one column of the matrix, whose weights are added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.model.layers import numpy_type, only_consumer
from perfonnx.model.proto import TensorType, is_standard
from perfonnx.passes.base import Skip
from perfonnx.passes.rules.rule import Match, Rule, skip

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering


NO_PRODUCT = "what reads it is not one Gemm or MatMul with a matrix for it"


def flatten(lowering: Lowering, node: gs.Node) -> Match | Skip:
    """Positions of one row share one column of the matrix that reads them: their weights are added up.

    Only where there are fewer rows than positions: else the weights, mostly a network's largest, would be rewritten
    to save the turn of a small map.
    """
    rows, output = lowering.rows[node.inputs[0].name], node.outputs[0]
    flat, reader = lowering.workspace.types.get(output.name), only_consumer(lowering.workspace, output)
    columns = rows.channels * rows.source.size
    if rows.count == rows.source.size == 1 and flat is not None and flat.shape == (rows.batch, columns):
        new = gs.Node("Flatten", node.name, {"axis": 1}, [rows.tensor], [output])
        lowering.nodes.append(new)
        lowering.workspace.inherit(new, node)
        return Match("on rows")
    if rows.count >= rows.source.size:
        return skip(node, "there are as many rows as positions, so that no weights can be added up")
    if flat is None or flat.shape is None or len(flat.shape) != 2 or flat.shape[1] != columns:
        return skip(node, "it gives no line for each image")
    if reader is None or not is_standard(reader) or reader.inputs[0] is not output:
        return skip(node, NO_PRODUCT)
    if reader.op not in ("Gemm", "MatMul") or reader.attrs.get("transA", 0):
        return skip(node, NO_PRODUCT)
    weight = lowering.workspace.constant(reader.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != numpy_type(rows.elem_type):
        return skip(node, "the matrix that reads it is not constant")
    turned = bool(reader.attrs.get("transB", 0))
    matrix = weight.T if turned else weight
    if len(matrix) != columns:
        return skip(node, NO_PRODUCT)
    by_position = matrix.reshape(rows.channels, rows.source.size, -1).swapaxes(0, 1)
    present = rows.source >= 0  # positions of zeros add nothing
    by_row = np.zeros((rows.count, *by_position.shape[1:]), np.float32)
    np.add.at(by_row, rows.source[present], by_position[present])
    summed = by_row.reshape(rows.count * rows.channels, -1).astype(weight.dtype)
    reader.inputs[1] = lowering.workspace.add_constant(
        f"{reader.inputs[1].name}.summed", summed.T if turned else summed
    )
    name = lowering.workspace.free_name(f"{output.name}.rows")
    result = gs.Variable(name)
    new = gs.Node("Flatten", node.name, {"axis": 1}, [rows.tensor], [result])
    lowering.nodes.append(new)
    lowering.workspace.inherit(new, node)
    lowering.workspace.types[name] = TensorType(rows.elem_type, (rows.batch, rows.count * rows.channels))
    reader.inputs[0] = result
    return Match("on rows")


FLATTEN = Rule(["Flatten"], flatten, ends=lambda _workspace, _node: True)
