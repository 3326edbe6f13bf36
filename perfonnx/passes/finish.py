"""Finish: what makes the graph a model again: function bodies, value_info, versions, stamps, a last check."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto, helper

from perfonnx import ops
from perfonnx.model.constants import read_directly
from perfonnx.model.layers import own_nodes
from perfonnx.model.shapes import contradictions, infer_types, known_infos
from perfonnx.model.signature import fed_inputs
from perfonnx.model.validity import check_output
from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Pass, PassResult, State
from perfonnx.passes.convert import add_table
from perfonnx.plan import Plan

SHARED_SIZE = 8
"""Equal constants of as many elements or less become one in onnxruntime."""

FUNCTION_IR_VERSION = 8
"""The first IR version with model-local functions."""

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

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Write everything into the message."""
        if not state.rewritten:  # the model stays as it came, to the byte
            return PassResult(modified=False)
        read_directly(workspace, own_nodes(workspace))
        nodes = own_nodes(workspace)  # without those that only sizes were taken from
        if self.fallback:
            _complete_inputs(workspace, nodes)
        _give_own_constants(workspace, nodes)
        proto = workspace.proto
        functions = _function_bodies(workspace, nodes) if self.fallback else []
        workspace.commit()
        if self.fallback:
            _complete_attributes(workspace)
        _stamp(workspace, state)
        _set_versions(workspace)
        known = {*ops.OPERATORS, *ops.LOWERED}
        kept = [f for f in proto.functions if f.domain != ops.DOMAIN or f.name not in known]
        del proto.functions[:]
        proto.functions.extend([*kept, *functions])
        infer_types(workspace)
        _write_value_info(workspace, nodes)
        _write_metadata(workspace, self.plan)
        return PassResult(modified=True)

    def ensures(self, workspace: Workspace, state: State) -> None:
        """The model passes onnx's checker, strict shape inference included, if the original did."""
        if state.rewritten:
            check_output(workspace, strict=state.strict)


def _complete_attributes(workspace: Workspace) -> None:
    """Write the attributes that a foreign tool left to the schema: a function body's attributes have no defaults."""
    for node in workspace.proto.graph.node:
        if node.domain != ops.DOMAIN or not (node.op_type in ops.OPERATORS or node.op_type in ops.LOWERED):
            continue
        present = {attribute.name for attribute in node.attribute}
        for name, attribute in sorted(onnx.defs.get_schema(node.op_type, ops.DOMAIN).attributes.items()):
            if name in present:
                continue
            if attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
                node.attribute.append(attribute.default_value)
            elif name == "kernel_shape":
                w = workspace.types.get(node.input[1])
                if w is not None and w.shape is not None and all(isinstance(d, int) for d in w.shape):
                    node.attribute.append(helper.make_attribute(name, w.shape[2:]))


BY_MODEL = ("weight", "slope")
"""Optional inputs that all of a model's nodes of one operator have, or none: they cost something to compute with."""


def _complete_inputs(workspace: Workspace, nodes: list[gs.Node]) -> None:
    """Give every node all optional inputs: a function body cannot ask which are there."""
    given = {name: _ops_with(nodes, name) for name in BY_MODEL}
    for node in nodes:
        while node.inputs and not node.inputs[-1].name:
            del node.inputs[-1]
        if node.op == ops.compact.NAME and len(node.inputs) == 2:  # from a version that did not ask for the size
            node.inputs.append(add_table(workspace, "shape", _map_size(workspace, node.inputs[0])))
        if node.op not in ops.OPERATORS and node.op not in ops.CONVS_ON_ROWS:
            continue
        names = (ops.OPERATORS.get(node.op) or ops.CONVS_ON_ROWS[node.op]).INPUTS
        for position, name in enumerate(names):
            present = position < len(node.inputs) and node.inputs[position].name
            if present or (name in BY_MODEL and node.op not in given[name]):
                continue
            if node.op in ops.CONVS_ON_ROWS and name not in BY_MODEL:
                continue  # the lowering writes all others
            default = _default_input(workspace, node, name)
            while len(node.inputs) <= position:
                node.inputs.append(gs.Variable.empty())
            node.inputs[position] = default


def _ops_with(nodes: list[gs.Node], name: str) -> set[str]:
    """The operators of which some node has an input of this name."""
    found = set()
    for node in nodes:
        module = ops.OPERATORS.get(node.op) or ops.LOWERED.get(node.op)
        position = module.INPUTS.index(name) if module is not None and name in module.INPUTS else len(node.inputs)
        if position < len(node.inputs) and node.inputs[position].name:
            found.add(node.op)
    return found


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
            name = f"{tensor.name}.own"
            while workspace.is_taken(name):
                name += "_"
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


def _map_size(workspace: Workspace, x: gs.Tensor) -> NDArray[np.int64]:
    """Height and width of a map; 0 where they are not known."""
    known = workspace.types.get(x.name)
    sizes = (None, None) if known is None or known.shape is None else known.shape[2:]
    return np.array([size if isinstance(size, int) else 0 for size in sizes], np.int64)


def _default_input(workspace: Workspace, node: gs.Node, name: str) -> gs.Constant:
    w_type = workspace.types[node.inputs[1].name]
    dtype = helper.tensor_dtype_to_np_dtype(w_type.elem_type)
    if name == "weight":
        source = workspace.types[node.inputs[4].name].shape
        assert source is not None
        return add_table(workspace, "weight", np.ones(source, np.float32))  # type: ignore[arg-type]
    assert w_type.shape is not None
    assert isinstance(w_type.shape[0], int)
    if name == "slope":
        return add_table(workspace, "slope", np.ones(w_type.shape[0], dtype))
    return add_table(workspace, "zeros", np.zeros(1 if name == "B_alpha" else w_type.shape[0], dtype))


def _function_bodies(workspace: Workspace, nodes: list[gs.Node]) -> list[FunctionProto]:
    bodies = []
    weighted, sloped = (_ops_with(nodes, name) for name in BY_MODEL)
    for name, module in (*ops.OPERATORS.items(), *ops.LOWERED.items()):
        used = [n for n in nodes if n.op == name]
        if not used:
            continue
        known = workspace.types.get(used[0].inputs[0].name)
        elem_type = known.elem_type if known else TensorProto.FLOAT
        given: dict[str, bool] = {}
        if name in ops.OPERATORS or name in ops.CONVS_ON_ROWS:
            given["sloped"] = name in sloped
        if name == ops.perforated_conv.NAME:
            given["weighted"] = name in weighted
        elif name == ops.expand.NAME:
            given["weighted"] = False
        bodies.append(module.function_body(workspace.opset, elem_type, **given))
    return bodies


def _stamp(workspace: Workspace, state: State) -> None:
    """Say in the doc string of each new node what made it, unless it inherited a doc string."""
    for node in workspace.proto.graph.node:
        if node.domain == ops.DOMAIN and node.name in state.rewritten and not node.doc_string:
            plan = state.decisions[node.name].plan
            masked = f", mask {plan.mask}, rate {plan.rate:g}" if plan.mask else ""
            gated = f"{', trained gate' if plan.trained_gate else ''}, open share {plan.open_share:g}"
            node.doc_string = f"perfonnx: {plan.method}" + (gated if plan.method == "radius-adaptive" else masked)


def _set_versions(workspace: Workspace) -> None:
    proto = workspace.proto
    if proto.ir_version < FUNCTION_IR_VERSION:
        if proto.ir_version < 4:  # there, initializers had to be inputs and could not be overridden
            feeds = fed_inputs(proto.graph)
            del proto.graph.input[:]
            proto.graph.input.extend(feeds)
        proto.ir_version = FUNCTION_IR_VERSION
    if all(imported.domain != ops.DOMAIN for imported in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(ops.DOMAIN, ops.VERSION))


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
    merged = plan.to_json()
    merged.pop("notes", None)
    for file in ("corrections", "masks", "digests"):  # beside the plan; the model has in its constants what is in them
        merged.pop(file, None)
    for index in reversed(range(len(metadata))):
        if metadata[index].key != PLAN_KEY and not metadata[index].key.startswith(f"{PLAN_KEY}."):
            continue
        try:
            earlier = json.loads(metadata[index].value)
            for key in ("layers", "input_shapes"):
                if key in earlier:
                    merged[key] = {**earlier[key], **merged.get(key, {})}
        except (ValueError, KeyError, TypeError):
            pass  # somebody else's text under our key: replaced
        del metadata[index]
    text = json.dumps(merged, separators=(",", ":"))
    metadata.add(key=f"{PLAN_KEY}.{hashlib.sha256(text.encode()).hexdigest()[:12]}", value=text)
