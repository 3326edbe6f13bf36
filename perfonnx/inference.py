"""Types and shapes of a workspace's tensors."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import TensorProto, ValueInfoProto, helper

from perfonnx import ops, runtime  # noqa: F401  (its import makes the operators known to shape inference)
from perfonnx.constants import fold_constants
from perfonnx.errors import PerfonnxError
from perfonnx.graph import pool_window
from perfonnx.io import MAX_MESSAGE, TensorType, Workspace, has_external_data, model_bytes, one_line, value_type

_LARGEST_PROBE = 1 << 26
"""Elements of an input that a model is run on to learn shapes; with larger ones it is not tried."""


def infer_types(workspace: Workspace) -> None:
    """Fill `workspace.types` by onnx's shape inference; what it cannot reach is measured by running the model once.

    What constants and fixed sizes decide is computed on the way, see `perfonnx.constants`.

    Raises:
        PerfonnxError: The model contradicts itself.
    """
    fold_constants(workspace)
    _infer_types(workspace)
    while fold_constants(workspace):
        _infer_types(workspace)


def _infer_types(workspace: Workspace) -> None:
    skeleton = workspace.skeleton(folded=True)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=False, strict_mode=False, data_prop=True)
    except Exception as error:  # the C++ side throws several kinds
        raise PerfonnxError(f"{workspace.model.name}: shape inference fails: {one_line(error)}") from error
    symbols = _symbols(workspace)
    types, earlier = workspace.types, dict(workspace.types)
    types.clear()
    for tensor in workspace.held():
        types[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims))
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        known = _with_own_symbols(value_type(info), symbols)
        if known is not None and (info.name not in types or types[info.name].shape is None):
            types[info.name] = known
    for node in workspace.graph.nodes:
        if node.op == "Constant" and node.outputs and node.outputs[0].name not in types:
            values = workspace.constant_proto(node.outputs[0])
            if values is not None:
                types[node.outputs[0].name] = TensorType(values.data_type, tuple(values.dims))
    for name, known in earlier.items():  # a tensor keeps its type through rewriting, reached again or not
        if _rank_unknown(workspace, name):
            types[name] = known
    _measure_gaps(workspace)
    _forget_misjudged(workspace)


def _symbols(workspace: Workspace) -> set[str]:
    graph = workspace.proto.graph
    shapes = [known.shape or () for i in (*graph.input, *graph.value_info, *graph.output) if (known := value_type(i))]
    return {d for shape in shapes for d in shape if isinstance(d, str)}


def _with_own_symbols(known: TensorType | None, symbols: set[str]) -> TensorType | None:
    """Without symbols that inference made up: written into a model, they would count on from run to run."""
    if known is None or known.shape is None:
        return known
    return TensorType(
        known.elem_type, tuple(None if isinstance(d, str) and d not in symbols else d for d in known.shape)
    )


def _measure_gaps(workspace: Workspace) -> None:
    """Shapes behind operators that onnx cannot infer through, taken from one run in onnxruntime on zeros."""
    unknown = [
        node.inputs[0].name
        for node in workspace.graph.nodes
        if node.op == "Conv" and node.inputs and _rank_unknown(workspace, node.inputs[0].name)
    ]
    if not unknown or has_external_data(workspace.model) or model_bytes(workspace.model) > MAX_MESSAGE:
        return
    feeds = _zero_feeds(workspace)
    if feeds is None:
        return
    wanted = [t.name for n in workspace.graph.nodes for t in n.outputs if t.name and _rank_unknown(workspace, t.name)]
    probe = onnx.ModelProto()
    probe.CopyFrom(workspace.proto)
    outputs = {o.name for o in probe.graph.output}
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    runtime.register_others(options)
    try:
        session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(wanted, feeds)
    except Exception:  # it was an attempt; the layers are then reported as out of reach
        return
    fed = (value_type(info) for info in _feed_infos(workspace))
    batch_is_symbolic = any(t is not None and t.shape and not isinstance(t.shape[0], int) for t in fed)
    for name, value in zip(wanted, results, strict=True):
        if isinstance(value, np.ndarray) and value.dtype != object:
            shape: tuple[int | str | None, ...] = value.shape
            if batch_is_symbolic and shape and shape[0] == 1:
                shape = (None, *shape[1:])
            workspace.types[name] = TensorType(helper.np_dtype_to_tensor_dtype(value.dtype), shape)


def _forget_misjudged(workspace: Workspace) -> None:
    """Drop the shapes behind pools whose size onnx and onnxruntime tell differently.

    With ceil_mode, below opset 22, onnx's inference counts a window that starts in the padding behind the map;
    onnxruntime leaves it out. A mask made for onnx's size would not run, and one of the true size not pass the checker.
    """
    misjudged: set[str] = set()
    for node in workspace.graph.nodes:
        if any(t.name in misjudged for t in node.inputs) or _is_misjudged(workspace, node):
            misjudged.update(t.name for t in node.outputs if t.name)
    for name in misjudged & workspace.types.keys():
        workspace.types[name] = TensorType(workspace.types[name].elem_type, None)


def _is_misjudged(workspace: Workspace, node: gs.Node) -> bool:
    if node.op not in ("MaxPool", "AveragePool") or not node.attrs.get("ceil_mode", 0):
        return False
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or not node.inputs or not node.outputs:
        return False
    before, after = (workspace.types.get(t.name) for t in (node.inputs[0], node.outputs[0]))
    window = pool_window(workspace, node)
    if window is None or before is None or after is None or not before.shape or not after.shape:
        return False
    sizes = [d for d in before.shape[2:] if isinstance(d, int)]
    return len(sizes) == 2 and window.output_shape((sizes[0], sizes[1])) != after.shape[2:]


def _rank_unknown(workspace: Workspace, name: str) -> bool:
    known = workspace.types.get(name)
    return known is None or known.shape is None


def _feed_infos(workspace: Workspace) -> list[ValueInfoProto]:
    """The graph inputs that a caller must feed."""
    initializers = {t.name for t in workspace.proto.graph.initializer}
    return [i for i in workspace.proto.graph.input if i.name not in initializers]


def _zero_feeds(workspace: Workspace) -> dict[str, np.ndarray] | None:
    feeds = {}
    for info in _feed_infos(workspace):
        known = value_type(info)
        if known is None or known.shape is None or known.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
            return None
        symbolic_batch = bool(known.shape) and not isinstance(known.shape[0], int)
        dims = [1] * symbolic_batch + [d for d in known.shape if isinstance(d, int)]
        if len(dims) != len(known.shape) or min(dims, default=0) < 0 or math.prod(dims) > _LARGEST_PROBE:
            return None
        feeds[info.name] = np.zeros(dims, helper.tensor_dtype_to_np_dtype(known.elem_type))
    return feeds


def symbolic_input_flag(workspace: Workspace) -> str | None:
    """The `--input-shape` flag to type for the first input whose shape (beyond the batch) is not fixed; else None."""
    for info in _feed_infos(workspace):
        known = value_type(info)
        if known is None:
            continue
        if known.shape is None:
            readers = (n for n in workspace.graph.nodes if n.op == "Conv" and n.inputs[0].name == info.name)
            weights = (workspace.constant_proto(n.inputs[1]) for n in readers if n.attrs.get("group", 1) == 1)
            channels = next((w.dims[1] for w in weights if w is not None and len(w.dims) == 4), 3)
            return f"--input-shape {info.name}:N,{channels},224,224"
        if all(isinstance(d, int) for d in known.shape[1:]):
            continue
        dims = [str(d) if isinstance(d, int) else "224" for d in known.shape]
        if known.shape and not isinstance(known.shape[0], int):
            dims[0] = str(known.shape[0] or "N")
        return f"--input-shape {info.name}:{','.join(dims)}"
    return None
