"""Types and shapes of a workspace's tensors: what follows from the inputs, whatever a file says about itself."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from perfonnx import ops  # noqa: F401  (its import makes the operators known to shape inference)
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.constants import fold_constants
from perfonnx.model.layers import pool_window
from perfonnx.model.proto import TensorType, is_fixed, is_standard, shape_text, subgraphs, used_names, value_type
from perfonnx.model.signature import fed_inputs
from perfonnx.model.workspace import Workspace
from perfonnx.names import unique
from perfonnx.replay import Replay, Values, ancestors

Shape = tuple[int | str | None, ...]
_Types = dict[str, TensorType]

_LARGEST_PROBE = 1 << 26
"""Elements of a tensor that a node is run on to learn shapes; with larger ones it is not tried."""

_PROBE_BLOCK = 9973
"""Different values in such a tensor: a prime, so that lines of a map differ."""

_PROBE_BATCHES = ((2, 3), (1, 1))
"""Open batch sizes of the two runs that measure shapes; the second pair is for nodes that take single images only."""

_SIZED_BY_VALUES = frozenset(
    "Compress ConcatFromSequence If Loop NonMaxSuppression NonZero OptionalGetElement SequenceAt "  # noqa: SIM905
    "SplitToSequence StringSplit Unique".split()
)
"""Operators whose results have sizes that depend on what is in their inputs."""

_SIZED_BY_FIRST = frozenset(["ConstantOfShape", "Range"])
_SIZED_BY_FLOATS = frozenset(["Resize", "Upsample"])


def infer_types(workspace: Workspace) -> None:
    """Fill `workspace.types` from the inputs and the operators; what the file declares of other tensors has no say.

    Where onnx's shape inference knows an operator not, and it can matter to a convolution, the size of what it gives is
    measured by running it on two different inputs. What differs between them, or follows from values, stays unknown,
    and `workspace.doubts` says why.

    What constants and fixed sizes decide is computed on the way, see `perfonnx.model.constants`.

    Raises:
        PerfonnxError: The model contradicts itself.
    """
    earlier = {name: _without_others(known, workspace.symbols) for name, known in workspace.types.items()}
    measured, differing = _Types(), dict[str, str]()
    fold_constants(workspace)
    while True:
        skeleton = _undeclared(workspace, folded=True)
        workspace.symbols = _name_open_dimensions(skeleton.graph.input)
        skeleton.graph.value_info.extend(_infos(measured, workspace.symbols))
        _infer(workspace, skeleton, earlier)
        misjudged = _forget_misjudged(workspace)
        if fold_constants(workspace):
            continue
        workspace.doubts, free = _doubts(workspace, misjudged | differing)
        new, found = _measured(workspace, free)
        if not new.keys() - measured.keys() and not found.keys() - differing.keys():
            break
        measured, differing = measured | new, differing | found


def _infer(workspace: Workspace, skeleton: ModelProto, earlier: Mapping[str, TensorType]) -> None:
    """Run onnx's shape inference; a tensor keeps what was known `earlier` through rewriting, reached again or not."""
    try:
        found = _inferred(skeleton)
    except Exception as error:  # the C++ side throws several kinds
        raise PerfonnxError(f"{workspace.model.name}: shape inference fails: {one_line(error)}") from error
    types = workspace.types
    types.clear()
    for tensor in workspace.held():
        types[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims))
    for node in workspace.graph.nodes:
        if node.op == "Constant" and node.outputs:
            values = workspace.constant_proto(node.outputs[0])
            if values is not None:
                types[node.outputs[0].name] = TensorType(values.data_type, tuple(values.dims))
    for name, known in found.items():
        types.setdefault(name, known)
    for name, known in earlier.items():
        types[name] = _completed(types.get(name), known)


def _inferred(model: ModelProto) -> _Types:
    """What onnx's shape inference says of all tensors of a model; it throws several kinds of errors."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True).graph
    found = _Types()
    for info in (*graph.input, *graph.value_info, *graph.output):
        known = value_type(info)
        if known is not None:
            found.setdefault(info.name, known)
    return found


def types_of_one_image(workspace: Workspace) -> dict[str, TensorType]:
    """The types that tensors have where the inputs' open batch is 1; none where shape inference fails."""
    model = _undeclared(workspace, folded=False)
    fed = {info.name for info in fed_inputs(workspace.proto.graph)}
    for info in model.graph.input:
        dims = info.type.tensor_type.shape.dim
        if info.name in fed and dims and not is_fixed(dims[0]):
            dims[0].dim_value = 1
    try:
        return _inferred(model)
    except Exception:  # what is not known is then not counted
        return {}


# --- what a file declares --------------------------------------------------------------------------------------------


def _undeclared(workspace: Workspace, *, folded: bool) -> ModelProto:
    """The skeleton without what the file says about tensors that nodes compute, in bodies and functions too."""
    model = workspace.skeleton(folded=folded)
    _drop_declarations(model.graph)
    for function in model.functions:
        del function.value_info[:]
        _drop_inner_declarations(function.node)
    held = {tensor.name: tensor for tensor in workspace.held()}
    for info in model.graph.input:
        if info.name in held:  # the value decides, whatever else is said
            tensor = held[info.name]
            info.CopyFrom(helper.make_tensor_value_info(info.name, tensor.data_type, tensor.dims))
    return model


def _drop_declarations(graph: GraphProto) -> None:
    del graph.value_info[:]
    for output in graph.output:
        _drop_shape(output)
    _drop_inner_declarations(graph.node)


def _drop_inner_declarations(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for body in subgraphs(node):
            _drop_declarations(body)
            for info in body.input:
                _drop_shape(info)


def _drop_shape(info: ValueInfoProto) -> None:
    if info.type.HasField("tensor_type"):
        info.type.tensor_type.ClearField("shape")


def _name_open_dimensions(inputs: Iterable[ValueInfoProto]) -> frozenset[str]:
    """Give every open dimension of the inputs that has no name one of its own; equal names mean equal sizes.

    Returns:
        All names.
    """
    opened = [(i, axis, d) for i in inputs for axis, d in enumerate(i.type.tensor_type.shape.dim) if not is_fixed(d)]
    names = {d.dim_param for _, _, d in opened}
    for info, axis, dimension in opened:
        if not dimension.dim_param:
            dimension.dim_param = unique(f"{info.name}.{axis}", names)
            names.add(dimension.dim_param)
    return frozenset(names)


def known_infos(workspace: Workspace, names: Iterable[str]) -> list[ValueInfoProto]:
    """Declarations of those tensors whose type and rank are known, with the file's own symbols only."""
    types = {name: workspace.types[name] for name in names if name in workspace.types}
    graph = workspace.proto.graph
    return _infos(types, {d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim})


def _infos(types: Mapping[str, TensorType], symbols: Collection[str]) -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, known.elem_type, _without_others(known, symbols).shape)
        for name, known in types.items()
        if known.shape is not None and known.elem_type
    ]


def typed_skeleton(workspace: Workspace) -> ModelProto:
    """The skeleton in which all declarations say what `workspace.types` knows."""
    model = _undeclared(workspace, folded=False)
    _name_open_dimensions(model.graph.input)
    given = {i.name for i in model.graph.input} | {t.name for t in model.graph.initializer}
    outputs = {o.name: o for o in model.graph.output}
    for info in _infos({n: k for n, k in workspace.types.items() if n not in given}, workspace.symbols):
        if info.name in outputs:
            outputs[info.name].CopyFrom(info)
        else:
            model.graph.value_info.append(info)
    return model


@dataclass(frozen=True)
class Contradiction:
    """A tensor whose declared shape is not what follows from the inputs.

    Attributes:
        name: Its name.
        declared: What the file says.
        true: What follows, with the inputs' symbols; None where that is open for another reason.
        certain: Whether the file is wrong for some input; else it knows more than follows, and may be right.
    """

    name: str
    declared: Shape
    true: Shape
    certain: bool


def contradictions(workspace: Workspace) -> list[Contradiction]:
    """The declarations of a file, value_info and outputs, that do not follow from its inputs.

    They say another size than that, or one where it is open.
    """
    found: dict[str, Contradiction] = {}
    for info in (*workspace.proto.graph.value_info, *workspace.proto.graph.output):
        declared, known = value_type(info), workspace.types.get(info.name)
        if declared is None or known is None or declared.shape is None or known.shape is None:
            continue
        if _contradicts(declared.shape, known.shape):
            true = _without_others(known, workspace.symbols).shape
            assert true is not None
            certain = _contradicts(declared.shape, true)
            found.setdefault(info.name, Contradiction(info.name, declared.shape, true, certain))
    return list(found.values())


def contradiction_note(workspace: Workspace) -> str | None:
    """What a person is told about those that are certain, on one line; None where there are none."""
    found = [contradiction for contradiction in contradictions(workspace) if contradiction.certain]
    if not found:
        return None
    first, count = found[0], f"{len(found)} tensor{'s' * (len(found) > 1)}"
    return (
        f"the file's value_info contradicts its inputs at {count} (first: {first.name!r} is {shape_text(first.true)}, "
        f"not {shape_text(first.declared)}); ignored"
    )


def _contradicts(declared: Shape, true: Shape) -> bool:
    """Whether they differ, or one is a size where the other one is open."""
    if len(declared) != len(true):
        return True
    return any(isinstance(d, int) and t is not None and d != t for d, t in zip(declared, true, strict=True))


def _without_others(known: TensorType, symbols: Collection[str]) -> TensorType:
    """Without symbols that onnx's inference made up: they mean something else in each of its runs."""
    if known.shape is None:
        return known
    return TensorType(known.elem_type, tuple(d if isinstance(d, int) or d in symbols else None for d in known.shape))


def _completed(known: TensorType | None, earlier: TensorType) -> TensorType:
    """What is known now, with sizes that were known earlier where it leaves them open."""
    if known is None or known.shape is None:
        return earlier
    if earlier.shape is None or len(earlier.shape) != len(known.shape):
        return known
    pairs = zip(known.shape, earlier.shape, strict=True)
    return TensorType(known.elem_type, tuple(e if e is not None and not isinstance(k, int) else k for k, e in pairs))


# --- sizes that depend on values -------------------------------------------------------------------------------------


def _doubts(workspace: Workspace, found: Mapping[str, str]) -> tuple[dict[str, str], Collection[str]]:
    """Tensors with sizes that can differ between inputs of one size, and why, as a person says it.

    Those that were `found` to differ are among them, and what follows from them.

    Returns:
        These, and the tensors whose values can differ between inputs of one size.
    """
    # What a run can change, and by which value that a caller may replace.
    free = {info.name: "" for info in fed_inputs(workspace.proto.graph)}
    free |= {name: name for name in workspace.overridable()}
    types, doubts = workspace.types, dict(found)
    for node in workspace.node_protos():
        reads = [name for name in used_names([node]) if name]
        origins = [free[name] for name in reads if name in free]
        if is_standard(node) and node.op_type in ("Shape", "Size"):
            origins = [""] if reads and reads[0] in doubts else []
        if not origins:
            continue
        free.update(dict.fromkeys(filter(None, node.output), min(origins)))
        sizing = min((free[name] for name in _sizing(node, types) if name in free), default=None)
        inherited = [doubts[name] for name in reads if name in doubts]
        if sizing:
            doubt = f"its size depends on {sizing!r}, which is also a graph input; --freeze-weights makes it constant"
        elif sizing is not None:
            doubt = f"its size depends on the values that {node.op_type} {node.name or node.output[0]!r} reads"
        elif inherited:
            doubt = inherited[0]
        else:
            continue
        doubts |= {name: doubt for name in node.output if name not in doubts and _is_open(workspace, name)}
    return doubts, free.keys()


def _sizing(node: NodeProto, types: dict[str, TensorType]) -> Iterator[str]:
    """The inputs whose values say how large a node's results are, as far as they can."""
    if is_standard(node) and node.op_type in _SIZED_BY_VALUES:
        yield from (node.input[:1] if node.op_type == "If" else used_names([node]))
        return
    by_first = is_standard(node) and node.op_type in _SIZED_BY_FIRST
    by_floats = is_standard(node) and node.op_type in _SIZED_BY_FLOATS
    for name in node.input[0 if by_first else 1 :]:
        known = types.get(name)
        if by_first or by_floats or (known and known.elem_type in (TensorProto.INT32, TensorProto.INT64)):
            yield name


def _is_open(workspace: Workspace, name: str) -> bool:
    """Whether a tensor's rank is unknown, or a size that is not one of the inputs' open sizes."""
    known = workspace.types.get(name)
    if known is None or known.shape is None:
        return True
    return not all(isinstance(d, int) or d in workspace.symbols for d in known.shape)


# --- measuring -------------------------------------------------------------------------------------------------------


def _measured(workspace: Workspace, free: Collection[str]) -> tuple[_Types, dict[str, str]]:
    """Types of what nodes give that onnx's inference does not know, though it knows what they read.

    Only of those on the way to convolutions. Each is run by itself, on random values of the sizes that it reads.

    Returns:
        The types, as far as two runs agree, and the doubts about those on which they do not.
    """
    gaps = [
        node.inputs[0].name
        for node in workspace.graph.nodes
        if node.op == "Conv" and node.inputs and _is_gap(workspace, node.inputs[0].name)
    ]
    nodes = workspace.node_protos() if gaps else []
    before = ancestors(nodes, gaps)
    measured, differing = _Types(), dict[str, str]()
    for node in nodes:
        wanted = [n for n in node.output if n in before and n not in workspace.doubts and _is_open(workspace, n)]
        if not wanted or any(_is_open(workspace, name) for name in used_names([node]) if name in before):
            continue
        batches = _PROBE_BATCHES if _open_batch(workspace) else _PROBE_BATCHES[1:]
        for pair in batches:
            runs = _runs(workspace, nodes, wanted, free, pair)
            if runs is not None:
                agreed, found = _agreed(_open_batch(workspace), runs, pair)
                measured |= agreed
                differing |= found
                break
    return measured, differing


def _is_gap(workspace: Workspace, name: str) -> bool:
    known = workspace.types.get(name)
    return known is None or known.shape is None or not all(isinstance(d, int) for d in known.shape[1:])


def _runs(
    workspace: Workspace,
    nodes: Sequence[NodeProto],
    wanted: Sequence[str],
    free: Collection[str],
    batches: tuple[int, int],
) -> list[_Types] | None:
    """The types of what one node gives in two runs with these batch sizes; None where it cannot be run."""
    (node,) = (node for node in nodes if wanted[0] in node.output)
    fed = _values_to_feed(nodes, node, free)
    feeds = [_probe_feeds(workspace, fed, batch, run) for run, batch in enumerate(batches)]
    given = [feed for feed in feeds if feed is not None]
    if len(given) < len(feeds):
        return None
    replay = Replay(workspace.model, lambda: nodes, workspace.added, given, memory=0)
    replay.kept = given  # as if it had come that far
    try:
        return [
            {
                name: TensorType(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in values.items()
                if isinstance(value, np.ndarray) and value.dtype != object
            }
            for values in replay.ask(wanted, settled=(), later=())
        ]
    except Exception:  # it was an attempt; the layers are then reported as out of reach
        return None


def _values_to_feed(nodes: Sequence[NodeProto], last: NodeProto, free: Collection[str]) -> list[str]:
    """The tensors from which a node's result follows by way of constants: what these are is not to be made up."""
    producer = {name: node for node in nodes for name in node.output if name}
    todo, fed = [last], dict[str, None]()
    seen = {id(last)}
    while todo:
        for name in used_names([todo.pop()]):
            if name in free:
                fed[name] = None
            elif name in producer and id(producer[name]) not in seen:
                seen.add(id(producer[name]))
                todo.append(producer[name])
    return list(fed)


def _agreed(symbols: Sequence[str], runs: Sequence[_Types], batches: tuple[int, int]) -> tuple[_Types, dict[str, str]]:
    """What both runs say. A size that goes with the batch is the batch; one that differs otherwise is open."""
    first, second = runs
    agreed, differing = {}, {}
    for name in (name for name in first if name in second):
        a, b = (tuple(d for d in run[name].shape or () if isinstance(d, int)) for run in runs)
        sizes: list[int | str | None] = []
        for axis, pair in enumerate(zip(a, b, strict=False)):
            if symbols and pair == batches and (axis == 0 or pair[0] != pair[1]):
                sizes.append(symbols[0] if len(symbols) == 1 else None)
            else:
                sizes.append(pair[0] if pair[0] == pair[1] else None)
        if len(a) == len(b):
            agreed[name] = TensorType(first[name].elem_type, tuple(sizes))
        with_batch = bool(symbols and a and b) and a[0] * batches[1] == b[0] * batches[0]
        if len(a) != len(b) or a[with_batch:] != b[with_batch:]:
            differing[name] = "its size differs from input to input"
    return agreed, differing


def _open_batch(workspace: Workspace) -> list[str]:
    """The names of the inputs' open first dimensions."""
    known = (workspace.types.get(info.name) for info in fed_inputs(workspace.proto.graph))
    return [k.shape[0] for k in known if k is not None and k.shape and isinstance(k.shape[0], str)]


def _probe_feeds(workspace: Workspace, names: Sequence[str], batch: int, run: int) -> Values | None:
    """Values of tensors in one run; None where their types are not known or their sizes too large."""
    feeds, batches = {}, _open_batch(workspace)
    for name in names:
        known = workspace.types.get(name)
        if known is None or known.shape is None or known.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
            return None
        dims = [batch if d in batches else d for d in known.shape]
        sizes = [d for d in dims if isinstance(d, int)]
        if len(sizes) < len(dims) or math.prod(sizes) > _LARGEST_PROBE:
            return None
        feeds[name] = _probe(helper.tensor_dtype_to_np_dtype(known.elem_type), sizes, run)
    return feeds


def _probe(dtype: Any, shape: Sequence[int], run: int) -> NDArray[Any]:
    """Random values of the first (0) or second (1) run, far enough apart to take the two ways at a condition.

    Those of the second are often equal, and sometimes zero. Integers are small: they are valid as indices and sizes in
    most models.
    """
    random, dtype, count = np.random.default_rng(run), np.dtype(dtype), math.prod(shape)
    block = min(count, _PROBE_BLOCK)
    if dtype.kind == "b":
        values = random.integers(0, 2, block) == 1 if count > 1 else np.full(block, run == 1)
    elif dtype.kind in "iu":
        low, different = (128 * run, 128) if dtype == np.uint8 else (run, 2)
        values = random.integers(low, low + different, block)
    else:
        values = random.standard_normal(block) - 1 if run == 0 else np.round(random.standard_normal(block)) + 2
    return np.resize(values.astype(dtype), shape)


# --- sizes that onnx tells wrongly -----------------------------------------------------------------------------------


def _forget_misjudged(workspace: Workspace) -> dict[str, str]:
    """Drop the shapes behind pools whose size onnx and onnxruntime, or versions of it, tell differently.

    With ceil_mode, below opset 22, onnx's inference counts a window that starts in the padding behind the map;
    onnxruntime leaves it out, from 1.20 on. With auto_pad SAME it does not look at dilations; and a stride longer than
    the kernel makes pads negative, which some versions refuse. A mask made for onnx's size would not run, and one of
    the true size not pass the checker.

    Returns:
        The tensors, and why.
    """
    doubts: dict[str, str] = {}
    for node in workspace.graph.nodes:
        doubt = next((doubts[t.name] for t in node.inputs if t.name in doubts), None)
        if doubt is None and _is_misjudged(workspace, node):
            name = node.name or node.outputs[0].name
            doubt = f"onnx and versions of onnxruntime disagree about the size that {node.op} {name!r} gives"
        if doubt is not None:
            doubts |= {t.name: doubt for t in node.outputs if t.name}
    for name in doubts.keys() & workspace.types.keys():
        workspace.types[name] = TensorType(workspace.types[name].elem_type, None)
    return doubts


def _is_misjudged(workspace: Workspace, node: gs.Node) -> bool:
    if node.op not in ("MaxPool", "AveragePool") or not node.inputs or not node.outputs:
        return False
    before, after = (workspace.types.get(t.name) for t in (node.inputs[0], node.outputs[0]))
    if before is None or after is None or not before.shape or not after.shape or len(before.shape) != 4:
        return False
    height, width = before.shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        return False
    window = pool_window(workspace, node)
    if window is None:
        return node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return window.output_shape((height, width)) != after.shape[2:]


# --- flags -----------------------------------------------------------------------------------------------------------


def symbolic_input_flag(workspace: Workspace) -> str | None:
    """The `--input-shape` flag to type for the first input whose shape (beyond the batch) is not fixed; else None."""
    for info in fed_inputs(workspace.proto.graph):
        known = value_type(info)
        if known is None:
            continue
        if known.shape is None:
            readers = (n for n in workspace.graph.nodes if n.op == "Conv" and n.inputs[0].name == info.name)
            weights = (workspace.constant_proto(n.inputs[1]) for n in readers if n.attrs.get("group", 1) == 1)
            channels = next((w.dims[1] for w in weights if w is not None and len(w.dims) == 4), 3)
            return f"--input-shape {shlex.quote(f'{info.name}:N,{channels},224,224')}"
        if all(isinstance(d, int) for d in known.shape[1:]):
            continue
        dims = [str(d) if isinstance(d, int) else "224" for d in known.shape]
        batch = known.shape[0]
        if not isinstance(batch, int):
            dims[0] = batch if batch is not None and batch.isidentifier() else "N"
        return f"--input-shape {shlex.quote(f'{info.name}:' + ','.join(dims))}"
    return None
