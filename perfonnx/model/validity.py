"""Whether onnx accepts a model: before rewriting, so that no bad output is made of a bad input, and after it."""

from __future__ import annotations

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.proto import subgraphs
from perfonnx.model.shapes import typed_skeleton
from perfonnx.model.workspace import Workspace

EXPERIMENTAL = frozenset(
    (
        "ATen",
        "Affine",
        "ConstantFill",
        "Crop",
        "DynamicSlice",
        "GRUUnit",
        "GivenTensorFill",
        "ImageScaler",
        "ParametricSoftplus",
        "Scale",
        "ScaledTanh",
    )
)
"""Operators of the default domain without a schema, which onnx's checker lets pass (onnx/checker.cc)."""

_ELSEWHERE = "perfonnx.unchecked"


def check_input(workspace: Workspace) -> None:
    """Refuse a model that is no valid ONNX.

    Raises:
        PerfonnxError: onnx's checker refuses it.
    """
    found = _complaint(_checkable(workspace, workspace.skeleton()), full=False)
    if found is not None:
        raise PerfonnxError(f"{workspace.model.name}: not a valid ONNX model: {found}")


def passes_strictly(workspace: Workspace) -> bool:
    """Whether a model passes strict shape inference with what `infer_types` found; many that run do not.

    What the file declares does not count: it may be wrong, and onnx may see that only after rewriting, where its
    inference reaches further.
    """
    return _complaint(_checkable(workspace, typed_skeleton(workspace)), full=True) is None


def check_output(workspace: Workspace, *, strict: bool) -> None:
    """Raise `PerfonnxError` where onnx refuses the rewritten model; `strict` is what `passes_strictly` said before."""
    found = _complaint(_checkable(workspace, workspace.skeleton()), full=False)
    if found is None and strict:
        found = _complaint(_checkable(workspace, typed_skeleton(workspace)), full=True)
    if found is not None:
        raise PerfonnxError(f"{workspace.model.name}: onnx refuses the rewritten model: {found}")


def _complaint(model: ModelProto, *, full: bool) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=full)
    except Exception as error:  # ValidationError, InferenceError, and what protobuf raises on the way
        return one_line(error)
    return None


def _checkable(workspace: Workspace, model: ModelProto) -> ModelProto:
    """A skeleton, without what the checker minds and runtimes do not.

    Those are experimental operators (about which it also prints a line to stdout), deprecated ones, and graph inputs
    and outputs that say nothing of their shape, outputs that say nothing at all.
    """
    graph = model.graph
    moved = _move_unchecked(graph, workspace.opset)
    for output in [o for o in graph.output if not o.HasField("type") or _lacks_shape(o)]:
        graph.output.remove(output)
    constants = {tensor.name: tensor for tensor in workspace.proto.graph.initializer}
    for info in (i for i in graph.input if _lacks_shape(i) and i.name in constants):
        tensor = constants[info.name]
        info.CopyFrom(helper.make_tensor_value_info(info.name, tensor.data_type, tensor.dims))
    shapeless = [i for i in graph.input if _lacks_shape(i)]
    for info in shapeless:  # a node that nobody knows makes something of which nothing is known
        graph.input.remove(info)
        graph.node.insert(0, NodeProto(op_type="Input", domain=_ELSEWHERE, output=[info.name]))
    if moved or shapeless:
        model.opset_import.append(helper.make_opsetid(_ELSEWHERE, 1))
    return model


def _lacks_shape(info: ValueInfoProto) -> bool:
    return info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape")


def _move_unchecked(graph: GraphProto, opset: int) -> bool:
    moved = False
    for node in graph.node:
        if not node.domain:
            known = onnx.defs.has(node.op_type, opset, "")
            if known and onnx.defs.get_schema(node.op_type, opset, "").deprecated:
                known = False
            elif not known and node.op_type not in EXPERIMENTAL:
                continue  # the checker says so better
            if not known:
                node.domain = _ELSEWHERE
                moved = True
        for inner in subgraphs(node):
            moved |= _move_unchecked(inner, opset)
    return moved
