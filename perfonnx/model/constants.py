"""What depends on constants alone, and on sizes that are fixed, computed once and kept beside the model.

The model itself stays as it is. `Workspace.constant` finds the values, shape inference sees them in place of the nodes
that compute them, and what is rewritten reads them as initializers. onnxruntime computes them, so that they are the
numbers that a run would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from perfonnx import runtime
from perfonnx.model.files import model_bytes
from perfonnx.model.proto import TensorType, is_standard, used_names, value_type
from perfonnx.model.tensors import dense_tensor, is_external, tensor_bytes, to_array
from perfonnx.model.workspace import Workspace

_RANDOM = frozenset(
    "Bernoulli Dropout Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()  # noqa: SIM905
)
_QUANTIZING = frozenset(["DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"])
_LAYERS = frozenset(
    "AveragePool Conv ConvInteger ConvTranspose DeformConv GRU LSTM LpPool MaxPool QLinearConv RNN".split()  # noqa: SIM905
)
_LEFT_ALONE = _RANDOM | _QUANTIZING | _LAYERS | {"Constant"}
_CONVOLUTIONS = ("Conv", "ConvTranspose")

_ABOUT_SHAPES = ("Shape", "Size")

_SMALL = 1 << 20
"""Bytes of a result that may be larger than what it is made from."""

_GROWTH = 4
"""A result may be so much larger than what it is made from, as where a cast makes floats of bytes."""

_LARGEST_MADE = 1 << 28
"""Bytes of all results together, beside `_GROWTH` times the model's own data."""

_MOST_SIZES = 1024
"""Elements of a tensor of which some may be open; larger tensors are fed, not written into the models that are run."""

_MOVING = {"Concat": slice(None)} | dict.fromkeys(
    ("Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"), slice(1)
)
"""Operators that only move elements, and which of their inputs these are; an open one stays open where it goes."""

_ELEMENTWISE = frozenset("Abs Add Cast Ceil Div Floor Max Min Mod Mul Neg Pow Round Sqrt Sub".split())  # noqa: SIM905

_FEEDABLE = frozenset(
    TensorProto.DataType.Value(name)
    for name in "BOOL DOUBLE FLOAT FLOAT16 INT16 INT32 INT64 INT8 UINT16 UINT32 UINT64 UINT8".split()  # noqa: SIM905
)

_Inputs: TypeAlias = "dict[str, NDArray[Any] | TensorProto]"
_Results: TypeAlias = "list[NDArray[Any]] | None"


def fold_constants(workspace: Workspace) -> bool:
    """Compute what can be computed beforehand, and keep it in `workspace.folded`.

    That is what depends on constants, and on sizes that `workspace.types` knows. Left are the results of random and
    quantizing operators, of layers and of nodes with bodies, and what would take much more memory than what it is made
    from, unless it is a weight.

    Returns:
        Whether there is something new. More shapes may be known then, and with them more be computable.
    """
    before = len(workspace.folded)
    folding = _Folding(workspace)
    while folding.step():
        pass
    return len(workspace.folded) > before


def read_directly(workspace: Workspace, nodes: Sequence[gs.Node]) -> None:
    """Let these nodes read initializers, not what nodes make of them; take out what nothing reads any more then.

    Kernels want initializers. onnxruntime computes constants beforehand too, but not with its optimizations off.
    """
    for node in nodes:
        for position, tensor in enumerate(node.inputs):
            source = workspace.behind_identities(tensor)
            if workspace.constant_proto(tensor) is None:
                continue
            if source.name in workspace.folded:
                values = workspace.constant(source)
                assert values is not None
                source = workspace.add_constant(f"{source.name}.constant", values)
            node.inputs[position] = source
    _drop_unread(workspace)


def _drop_unread(workspace: Workspace) -> None:
    """Take out the nodes whose results nothing reads, though something did in the model as it came.

    Convolutions stay, in whatever form: they are layers, which plans and reports know.
    """
    kept = {tensor.name for tensor in workspace.graph.outputs} | workspace.captured
    lost = set(used_names(workspace.proto.graph.node)) - kept
    for node in reversed(list(workspace.graph.nodes)):
        names = [tensor.name for tensor in node.outputs if tensor.name]
        read = any(tensor.outputs for tensor in node.outputs)
        if names and lost.issuperset(names) and not read and "Conv" not in node.op:
            workspace.remove(node)


def why_not_constant(workspace: Workspace, tensor: gs.Tensor, what: str) -> str:
    """Why a tensor has no constant values, as a person says it; `what` it is for the layer."""
    origin = workspace.behind_identities(tensor)
    producers = list(origin.inputs)
    if not producers:
        return f"its {what} is not constant (an input of the graph)"
    reached = list(_origins(origin))
    overridable = sorted(workspace.overridable() & {t.name for t in reached})
    fed = {i.name for i in workspace.graph.inputs} - set(overridable)
    if not fed & {t.name for t in reached}:
        quantizing = [node.op for t in reached for node in t.inputs if node.op in _QUANTIZING]
        if quantizing:
            return f"quantized {what}s ({quantizing[0]})" if what == "weight" else f"quantized {what} ({quantizing[0]})"
        if overridable:
            return (
                f"its {what} is computed from {overridable[0]!r}, which is also a graph input; --freeze-weights makes "
                "it constant"
            )
    return f"its {what} is not constant (computed by {producers[0].op})"


def _origins(tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """A tensor and all that it is computed from."""
    seen, todo = {tensor.name}, [tensor]
    while todo:
        current = todo.pop()
        yield current
        for read in (t for node in current.inputs for t in node.inputs):
            if read.name and read.name not in seen:
                seen.add(read.name)
                todo.append(read)


@dataclass(frozen=True)
class _Sizes:
    """A small tensor of which some elements are open: those hold 1, and are false in `known`."""

    values: NDArray[Any]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class _Job:
    """A node to be run; `inputs` by name."""

    node: NodeProto
    inputs: _Inputs


class _Folding:
    """Goes through a graph again and again until nothing more can be computed."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.folded = workspace.folded
        self.sizes: dict[str, _Sizes] = {}
        self.weights = _names_of_weights(workspace)
        self.room = _LARGEST_MADE + _GROWTH * model_bytes(workspace.model)
        self.room -= sum(tensor_bytes(tensor) for tensor in self.folded.values())
        for sparse in workspace.sparse_initializers():
            tensor = None if sparse.values.name in self.folded else dense_tensor(sparse)
            if tensor is not None:
                self._keep(sparse.values.name, tensor)
        nodes = zip(workspace.graph.nodes, workspace.node_protos(), strict=True)
        self.todo = [(node, proto) for node, proto in nodes if self._may_fold(node)]

    def _may_fold(self, node: gs.Node) -> bool:
        if not is_standard(node) or node.op in _LEFT_ALONE or not node.outputs:
            return False
        has_body = any(isinstance(value, gs.Graph) for value in node.attrs.values())
        return not has_body and not all(t.name in self.folded for t in node.outputs if t.name)

    def step(self) -> bool:
        """Compute the nodes whose inputs are there; whether there were any."""
        constant, partial, rest = [], [], []
        for node, proto in self.todo:
            inputs = [tensor for tensor in node.inputs if tensor.name]
            if node.op in _ABOUT_SHAPES and self._shape_of(node) is not None:
                self._measure(node, proto)
            elif all(self.workspace.constant_proto(tensor) is not None for tensor in inputs):
                constant += [(node, proto)] * (node.op != "Identity")  # which is seen through
            elif self._passes_sizes(node, inputs):
                partial.append((node, proto))
            else:
                rest.append((node, proto))
        done = len(rest) < len(self.todo)
        self.todo = rest
        self._compute(constant)
        self._compute_sizes(partial)
        return done

    def _keep(self, name: str, tensor: TensorProto) -> None:
        tensor.name = name
        self.folded[name] = tensor
        self.room -= tensor_bytes(tensor)
        self.workspace.types[name] = TensorType(tensor.data_type, tuple(tensor.dims))

    # --- constants ---

    def _compute(self, nodes: Sequence[tuple[gs.Node, NodeProto]]) -> None:
        jobs = [_Job(proto, {t.name: self._proto(t) for t in node.inputs if t.name}) for node, proto in nodes]
        sizes = _sizes_of_results(jobs, self.workspace)
        wanted = []
        for job, size in zip(jobs, sizes, strict=True):
            given = sum(tensor_bytes(t) for t in job.inputs.values() if isinstance(t, TensorProto))
            if size is not None and self._is_worth_it(job, size, given):
                self.room -= size  # now, so that all of them together do not take more
                wanted.append((job, size))
        results = _results([job for job, _ in wanted], self.workspace)
        for (job, size), arrays in zip(wanted, results, strict=True):
            self.room += size
            for name, array in zip(filter(None, job.node.output), arrays or (), strict=False):
                self._keep(name, numpy_helper.from_array(array))

    def _proto(self, tensor: gs.Tensor) -> TensorProto:
        proto = self.workspace.constant_proto(tensor)
        assert proto is not None
        if is_external(proto) and not _is_fed(proto):
            return numpy_helper.from_array(to_array(proto, self.workspace.model.directory))
        return proto

    def _is_worth_it(self, job: _Job, size: int, given: int) -> bool:
        grows = size > max(_SMALL, _GROWTH * given)
        return size <= self.room and (not grows or any(name in self.weights for name in job.node.output))

    # --- sizes of which some are open ---

    def _shape_of(self, node: gs.Node) -> tuple[int | str | None, ...] | None:
        known = self.workspace.types.get(node.inputs[0].name) if node.inputs else None
        return None if known is None else known.shape

    def _measure(self, node: gs.Node, proto: NodeProto) -> None:
        shape = self._shape_of(node)
        assert shape is not None
        values = np.array([d if isinstance(d, int) else 1 for d in shape], np.int64)
        known = np.array([isinstance(d, int) for d in shape], bool)
        if node.op == "Size":
            values, known = np.asarray(values.prod(dtype=np.int64)), np.asarray(known.all())
        else:
            ends = {attribute.name: attribute.i for attribute in proto.attribute}
            part = slice(ends.get("start"), ends.get("end"))
            values, known = values[part], known[part]
        self._keep_sizes(node.outputs[0].name, values, known)

    def _keep_sizes(self, name: str, values: NDArray[Any], known: NDArray[np.bool_]) -> None:
        if known.all():
            self._keep(name, numpy_helper.from_array(values))
        elif known.any():
            self.sizes[name] = _Sizes(values, known)

    def _passes_sizes(self, node: gs.Node, inputs: Sequence[gs.Tensor]) -> bool:
        """Whether all inputs are there, some with open elements, and it shows where these end up in the output."""
        if node.op not in _MOVING and node.op not in _ELEMENTWISE:
            return False
        for tensor in inputs:
            proto = self.workspace.constant_proto(tensor)
            if proto is None and tensor.name not in self.sizes:
                return False
            if proto is not None and math.prod(proto.dims) > _MOST_SIZES:
                return False
        settings = node.inputs[1:] if _MOVING.get(node.op) == slice(1) else []
        return not any(tensor.name in self.sizes for tensor in settings)

    def _compute_sizes(self, nodes: Sequence[tuple[gs.Node, NodeProto]]) -> None:
        """Values are computed with 1 for those that are open; what moves them moves the flags as well."""
        given = [{t.name: self._sizes_of(t) for t in node.inputs if t.name} for node, _ in nodes]
        jobs = [_Job(p, {name: s.values for name, s in g.items()}) for (_, p), g in zip(nodes, given, strict=True)]
        flags = []
        for (node, proto), sizes in zip(nodes, given, strict=True):
            moved = {t.name for t in node.inputs[_MOVING.get(node.op, slice(0))]}
            arrays: _Inputs = {n: s.known.astype(s.values.dtype) if n in moved else s.values for n, s in sizes.items()}
            flags.append(_Job(proto, arrays))
        results = _results([*jobs, *flags], self.workspace)
        for i, (node, proto) in enumerate(nodes):
            values, known = results[i], results[len(nodes) + i]
            for k, name in enumerate(filter(None, proto.output)):
                if values is None or known is None or values[k].size > _MOST_SIZES:
                    continue
                flag = known[k] != 0
                if node.op in _ELEMENTWISE:
                    flag = np.logical_and.reduce(np.broadcast_arrays(*(s.known for s in given[i].values())))
                self._keep_sizes(name, values[k], flag.reshape(values[k].shape))

    def _sizes_of(self, tensor: gs.Tensor) -> _Sizes:
        if tensor.name in self.sizes:
            return self.sizes[tensor.name]
        values = to_array(self._proto(tensor), self.workspace.model.directory)
        return _Sizes(values, np.ones(values.shape, bool))


def _names_of_weights(workspace: Workspace) -> set[str]:
    """The names of layers' weights and biases, and of what they are computed from."""
    names: set[str] = set()
    for node in reversed(workspace.graph.nodes):
        if node.op in _CONVOLUTIONS:
            names.update(t.name for t in node.inputs[1:])
        elif any(t.name in names for t in node.outputs):
            names.update(t.name for t in node.inputs)
    return names


# --- running ---------------------------------------------------------------------------------------------------------


def _results(jobs: Sequence[_Job], workspace: Workspace) -> list[_Results]:
    """The outputs of each node; None for those that cannot be run. All are run as one model while that works."""
    if not jobs:
        return []
    feeds: dict[str, NDArray[Any]] = {}
    try:
        if any(_would_trap(job, workspace) for job in jobs):
            raise ZeroDivisionError  # found below, by halves
        model = _model_of(jobs, workspace)
        for info in model.graph.input:
            number, _, name = info.name.partition(".")
            feeds[info.name] = _array(jobs[int(number)].inputs[name], workspace)
        session = runtime.session(model, threads=1, library=False, options=runtime.quiet_options(optimized=False))
        values = session.run(None, feeds)
    except Exception:  # onnxruntime raises types of its own that it does not export
        half = len(jobs) // 2
        return [None] if not half else _results(jobs[:half], workspace) + _results(jobs[half:], workspace)
    results: list[_Results] = []
    for job in jobs:
        count = sum(1 for name in job.node.output if name)
        mine, values = values[:count], values[count:]
        usable = all(isinstance(v, np.ndarray) and v.dtype != object for v in mine)
        results.append(mine if usable else None)
    return results


def _array(value: NDArray[Any] | TensorProto, workspace: Workspace) -> NDArray[Any]:
    return to_array(value, workspace.model.directory) if isinstance(value, TensorProto) else value


def _would_trap(job: _Job, workspace: Workspace) -> bool:
    """Whether the processor refuses: onnxruntime does not look before it divides whole numbers."""
    if job.node.op_type not in ("Div", "Mod"):
        return False
    divisor = _array(job.inputs[job.node.input[1]], workspace)
    return bool(divisor.dtype.kind in "iu" and np.isin(divisor, (0, -1)).any())


def _sizes_of_results(jobs: Sequence[_Job], workspace: Workspace) -> list[int | None]:
    """Bytes of the outputs of each node; None where onnx does not know before it is run."""
    if not jobs:
        return []
    try:
        inferred = onnx.shape_inference.infer_shapes(_model_of(jobs, workspace))
    except Exception:  # the C++ side throws several kinds
        return [None] * len(jobs)
    sizes: list[int | None] = [0] * len(jobs)
    for info in inferred.graph.output:
        number = int(info.name.partition(".")[0])
        known, size = value_type(info), sizes[number]
        fixed = known is not None and known.shape is not None and all(isinstance(d, int) for d in known.shape)
        one = known.byte_size if known is not None and fixed else None
        sizes[number] = None if size is None or one is None else size + one
    return sizes


def _model_of(jobs: Sequence[_Job], workspace: Workspace) -> onnx.ModelProto:
    """The nodes side by side, tensor t of node i as `i.t`; large inputs are the model's, small ones lie in it."""
    graph = onnx.GraphProto(name="constants")
    for i, job in enumerate(jobs):
        node = graph.node.add()
        node.CopyFrom(job.node)
        node.name, node.domain = "", ""
        node.input[:] = [f"{i}.{name}" if name else "" for name in job.node.input]
        node.output[:] = [f"{i}.{name}" if name else "" for name in job.node.output]
        for name, value in job.inputs.items():
            tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(value)
            if _is_fed(tensor):
                graph.input.append(helper.make_tensor_value_info(f"{i}.{name}", tensor.data_type, tensor.dims))
            else:
                graph.initializer.add().CopyFrom(tensor)
                graph.initializer[-1].name = f"{i}.{name}"
        graph.output.extend(helper.make_empty_tensor_value_info(name) for name in node.output if name)
    imports = [helper.make_opsetid("", workspace.opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=max(8, workspace.proto.ir_version))


def _is_fed(tensor: TensorProto) -> bool:
    return tensor.data_type in _FEEDABLE and math.prod(tensor.dims) > _MOST_SIZES
