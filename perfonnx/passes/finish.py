"""Finish: what makes the graph a model again: function bodies, value_info, versions, stamps, a last check."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, TensorProto, helper

from perfonnx import ops
from perfonnx.model.constants import read_directly
from perfonnx.model.layers import input_of, numpy_type, own_nodes, set_input
from perfonnx.model.shapes import contradictions, infer_types, known_infos
from perfonnx.model.signature import fed_inputs
from perfonnx.model.validity import check_output
from perfonnx.model.workspace import Workspace
from perfonnx.ops.base import Known
from perfonnx.ops.common import LARGEST_TILE
from perfonnx.passes.base import Change, Pass, State
from perfonnx.plan import Plan

SHARED_SIZE = 8
"""Equal constants of as many elements or less become one in onnxruntime."""

FUNCTION_IR_VERSION = 8
"""The first IR version with model-local functions."""

INITIALIZER_IR_VERSION = 4
"""The first one where initializers need not be inputs; before it they could not be overridden by a caller either."""

PLAN_KEY = "perfonnx.plan"
"""Start of the metadata key of the plan that made a model. A digest of the plan follows, so that models can be merged:
onnx merges no two that differ in what one key says."""


@dataclass
class Finish(Pass):
    """Commits the graph and completes the model.

    With `fallback` every operator used gets a function body, so that the model also runs without the library.
    """

    plan: Plan
    fallback: bool = True

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Write everything into the message."""
        if not state.rewritten and not state.rebuilt:  # the model stays as it came, to the byte
            return []
        read_directly(workspace, own_nodes(workspace))
        nodes = own_nodes(workspace)  # without those that only sizes were taken from
        if self.plan.largest_tile != LARGEST_TILE:
            _say_largest_tile(nodes, self.plan.largest_tile)
        if self.fallback:
            _complete_inputs(workspace, nodes)
        _give_own_constants(workspace, nodes)
        proto = workspace.proto
        functions = _function_bodies(workspace, nodes) if self.fallback else []
        workspace.commit()
        if self.fallback:
            _complete_attributes(workspace)
        _stamp(workspace, state)
        if nodes:
            _raise_ir_version(proto, FUNCTION_IR_VERSION)
            if all(imported.domain != ops.DOMAIN for imported in proto.opset_import):
                proto.opset_import.append(helper.make_opsetid(ops.DOMAIN, ops.VERSION))
        elif state.rebuilt:
            _raise_ir_version(proto, INITIALIZER_IR_VERSION)
        kept = [f for f in proto.functions if f.domain != ops.DOMAIN or f.name not in ops.OPERATORS]
        del proto.functions[:]
        proto.functions.extend([*kept, *functions])
        infer_types(workspace)
        _write_value_info(workspace, nodes)
        _write_metadata(workspace, self.plan)
        return []

    def ensures(self, workspace: Workspace, state: State) -> None:
        """The model passes onnx's checker, strict shape inference included, if the original did."""
        if state.rewritten or state.rebuilt:
            check_output(workspace, strict=state.strict)


def _complete_attributes(workspace: Workspace) -> None:
    """Write the attributes that a foreign tool left to the schema: a function body's attributes have no defaults."""
    for node in workspace.proto.graph.node:
        if node.domain != ops.DOMAIN or node.op_type not in ops.OPERATORS:
            continue
        present = {attribute.name for attribute in node.attribute}
        for known in sorted(ops.OPERATORS[node.op_type].attributes, key=lambda attribute: attribute.name):
            if known.name in present:
                continue
            if known.default is not None:
                node.attribute.append(known.proto())
            elif known.name == "kernel_shape":
                w = workspace.types.get(node.input[1])
                if w is not None and w.shape is not None and all(isinstance(d, int) for d in w.shape):
                    node.attribute.append(helper.make_attribute(known.name, w.shape[2:]))


def _say_largest_tile(nodes: list[gs.Node], largest_tile: int) -> None:
    """What kernels may use of Winograd's algorithm, in all nodes that could."""
    for node in nodes:
        if any(known.name == "largest_tile" for known in ops.OPERATORS[node.op].attributes):
            node.attrs["largest_tile"] = largest_tile


def _complete_inputs(workspace: Workspace, nodes: list[gs.Node]) -> None:
    """Give every node all optional inputs: a function body cannot ask which are there."""
    given = _given_by_model(nodes)
    for node in nodes:
        for known in ops.OPERATORS[node.op].inputs:
            left_out = known.by_model and known.name not in given[node.op]
            if known.default is None or left_out or input_of(node, known.name) is not None:
                continue
            values = known.default.make(_known_inputs(workspace, node))
            set_input(node, known.name, workspace.add_table(known.default.kind, values))


def _known_inputs(workspace: Workspace, node: gs.Node) -> Known:
    """What is known of a node's inputs, by name."""

    def known(name: str) -> tuple[np.dtype[Any], Sequence[int | None]]:
        position = ops.OPERATORS[node.op].position(name)
        found = workspace.types.get(node.inputs[position].name)
        if found is None or found.shape is None:
            return np.dtype(np.float32), (None,) * 4
        sizes = [size if isinstance(size, int) else None for size in found.shape]
        return np.dtype(numpy_type(found.elem_type)), sizes

    return known


def _given_by_model(nodes: list[gs.Node]) -> dict[str, set[str]]:
    """For each operator, which inputs that all of a model's nodes have or none some node has."""
    given: dict[str, set[str]] = {node.op: set() for node in nodes}
    for node in nodes:
        given[node.op] |= {name for name in ops.OPERATORS[node.op].by_model if input_of(node, name) is not None}
    return given


def _give_own_constants(workspace: Workspace, nodes: list[gs.Node]) -> None:
    """Give each of our float16 layers constants that nobody else reads.

    Between nodes without a kernel for float16, onnxruntime runs ours in float32 too and casts what they read. It folds
    the cast of a constant that has one reader; that of a shared one is left in the graph, and our kernels refuse what
    is not constant. Small constants that are equal it makes one beforehand: so they come to differ by their rounding.
    """
    readers = Counter(tensor.name for node in workspace.graph.nodes for tensor in node.inputs)
    ours = {id(node) for node in nodes}
    others = (t for node in workspace.graph.nodes if id(node) not in ours for t in node.inputs)
    seen = {_content(v) for tensor in others if (v := _small_half(workspace, tensor)) is not None}
    for node in nodes:
        for i, tensor in enumerate(node.inputs):
            proto = workspace.constant_proto(tensor) if tensor.name else None
            if proto is None or proto.data_type != TensorProto.FLOAT16:
                continue
            shared = readers[tensor.name] > 1 or tensor.name in workspace.captured
            values = given = _small_half(workspace, tensor)
            while values is not None and _content(values) in seen and np.isfinite(_next_larger(values)).all():
                values = _next_larger(values)
            if values is not None:
                seen.add(_content(values))
            if not shared and values is given:
                continue
            if values is None:
                values = workspace.constant(tensor)
            assert values is not None
            name = workspace.free_name(f"{tensor.name}.own")
            node.inputs[i] = workspace.add_constant(name, values)
            readers[tensor.name] -= 1


def _small_half(workspace: Workspace, tensor: gs.Tensor) -> NDArray[Any] | None:
    """The values of a float16 constant that onnxruntime may share with an equal one; None where it is none."""
    proto = workspace.constant_proto(tensor) if tensor.name else None
    if proto is None or proto.data_type != TensorProto.FLOAT16 or not 0 < math.prod(proto.dims) <= SHARED_SIZE:
        return None
    return workspace.constant(tensor)


def _content(values: NDArray[Any]) -> tuple[tuple[int, ...], bytes]:
    return values.shape, values.tobytes()


def _next_larger(values: NDArray[Any]) -> NDArray[Any]:
    """The first number one rounding farther from zero: a gate that is open or closed for good stays so."""
    result = values.reshape(-1).copy()
    result[0] = np.nextafter(result[0], np.copysign(np.float16(np.inf), result[0]))
    return result.reshape(values.shape)


def _function_bodies(workspace: Workspace, nodes: list[gs.Node]) -> list[FunctionProto]:
    bodies = []
    given = _given_by_model(nodes)
    for name, operator in ops.OPERATORS.items():
        used = [n for n in nodes if n.op == name]
        if not used:
            continue
        known = workspace.types.get(used[0].inputs[0].name)
        elem_type = known.elem_type if known else TensorProto.FLOAT
        bodies.append(operator.function_body(workspace.opset, elem_type, given[name]))
    return bodies


def _stamp(workspace: Workspace, state: State) -> None:
    """Say in the doc string of each new node what made it, unless it inherited a doc string."""
    for node in workspace.proto.graph.node:
        if node.domain == ops.DOMAIN and node.name in state.rewritten and not node.doc_string:
            node.doc_string = f"perfonnx: {state.decisions[node.name].step.stamp}"


def _raise_ir_version(proto: ModelProto, least: int) -> None:
    if proto.ir_version < INITIALIZER_IR_VERSION:
        feeds = fed_inputs(proto.graph)
        del proto.graph.input[:]
        proto.graph.input.extend(feeds)
    proto.ir_version = max(proto.ir_version, least)


def _write_value_info(workspace: Workspace, nodes: list[gs.Node]) -> None:
    """Declare the outputs of our nodes: onnxruntime has no other way to know the shapes of custom operators.

    For the same reason it would believe what the file says wrongly of those and of others, so that is mended.
    """
    graph = workspace.proto.graph
    wrong = {found.name: found.certain for found in contradictions(workspace)}
    declared = {o.name: o for o in graph.output}
    ours = [n.outputs[0].name for n in nodes]
    stale = [i for i, v in enumerate(graph.value_info) if v.name in wrong or v.name in set(ours)]
    for i in reversed(stale):
        del graph.value_info[i]
    for info in known_infos(workspace, dict.fromkeys([*ours, *(name for name in wrong if name in declared)])):
        name = info.name
        if name not in declared:
            graph.value_info.append(info)
        elif wrong.get(name, False):
            declared[name].type.CopyFrom(info.type)


def _write_metadata(workspace: Workspace, plan: Plan) -> None:
    """Keep the plan in the model's metadata, joined with that of an earlier run."""
    metadata = workspace.proto.metadata_props
    merged = plan.content()  # the model has in its constants what lies beside the plan
    if plan.placement is not None:
        merged["placement"] = plan.placement.to_json()
    for index in reversed(range(len(metadata))):
        if metadata[index].key != PLAN_KEY and not metadata[index].key.startswith(f"{PLAN_KEY}."):
            continue
        try:
            earlier = json.loads(metadata[index].value)
            for key in ("layers", "input_shapes"):
                if key in earlier:
                    merged[key] = {**earlier[key], **merged.get(key, {})}
                    merged.pop("placement", None)  # of the second run alone
        except (ValueError, KeyError, TypeError):
            pass  # somebody else's text under our key: replaced
        del metadata[index]
    text = json.dumps(merged, separators=(",", ":"))
    metadata.add(key=f"{PLAN_KEY}.{hashlib.sha256(text.encode()).hexdigest()[:12]}", value=text)
