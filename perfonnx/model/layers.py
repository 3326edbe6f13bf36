"""Read-only views of a graph: what a convolution is, what surrounds it, and why it can or cannot be rewritten."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper

from perfonnx import ops
from perfonnx.errors import PerfonnxError
from perfonnx.masks import PoolWindow
from perfonnx.model.constants import why_not_constant
from perfonnx.model.proto import is_standard, subgraphs, value_type
from perfonnx.model.workspace import Workspace
from perfonnx.names import unique
from perfonnx.ops.common import Activation, ConvAttributes, conv_attributes, dense_multiplies

CONV = "Conv"
PRODUCTS = frozenset({"Gemm", "MatMul"})

MAX_POSITIONS = 1 << 25
"""Positions of a map, at most: one of 7680 x 4320 fits. A layer's tables grow with it, to hundreds of megabytes."""

MAX_ENTRIES = 1 << 28
"""Entries of a table, at most: the engine (`kMostEntries` in plan.h) refuses layers and pools with larger ones."""

LONG = 8
"""Positions of a map of one line from which a layer is worth a look."""

_ACTIVATIONS = frozenset(
    "Relu LeakyRelu PRelu Clip Sigmoid Tanh Elu Selu HardSigmoid HardSwish Softplus Softsign ThresholdedRelu Celu "  # noqa: SIM905
    "Mish Gelu Erf Abs Neg Sqrt Exp Log Dropout Identity Cast".split()
)
POSITION_WISE = _ACTIVATIONS | {"LRN", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Sum"}
"""Operators between a convolution and a pool through which positions stay what they are."""


@dataclass(frozen=True)
class Layer:
    """A convolution of the model, or a matrix product with a constant weight, seen for rewriting.

    Attributes:
        name: The layer's name: its node's name where that is unique, else the name of its output, with underscores
            behind it where a node has that name. onnxruntime refuses models in which two nodes have one name.
        node: The node.
        attributes: Geometry with `auto_pad` resolved; None where it cannot be read, and for products.
        w_shape: [M, C/group, kh, kw], of products [M, K]; empty where unknown.
        elem_type: onnx element type of the weights, 0 where unknown.
        input_shape: Shape of X; None where unknown.
        output_shape: (OH, OW); None where unknown, and for products.
        obstacle: Why it cannot be rewritten; None where it can.
        reservation: Why rewriting it gains nothing, although it can be done; None where it may gain.
        origin: The layer and the method, as layer/method, that it comes from; None where it came with the model.
    """

    name: str
    node: gs.Node
    attributes: ConvAttributes | None
    w_shape: tuple[int, ...]
    elem_type: int
    input_shape: tuple[int | str | None, ...] | None
    output_shape: tuple[int, int] | None
    obstacle: str | None
    reservation: str | None
    origin: str | None = None

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return bool(self.node.op == CONV)

    @property
    def multiplies(self) -> int | None:
        """Multiplies per image, None where the shape is unknown."""
        if not self.is_conv:
            rows = None if self.input_shape is None else self.input_shape[1:-1]
            return None if rows is None else math.prod([*self.w_shape, *(d for d in rows if isinstance(d, int))])
        if self.output_shape is None or not self.w_shape:
            return None
        return dense_multiplies(self.w_shape, self.output_shape[0] * self.output_shape[1])

    @property
    def output(self) -> gs.Tensor:
        """The node's output tensor."""
        return self.node.outputs[0]


@dataclass(frozen=True)
class Unreachable:
    """A convolution that rewriting does not go into: in the body of a control-flow node or of a function."""

    name: str
    reason: str


def conv_layers(workspace: Workspace) -> list[Layer]:
    """All `Conv` nodes of the main graph, in graph order."""
    return [layer for layer in all_layers(workspace) if layer.is_conv]


def all_layers(workspace: Workspace) -> list[Layer]:
    """All `Conv` nodes of the main graph, and all matrix products with a constant weight, in graph order."""
    names = Counter(node.name for node in workspace.graph.nodes)
    taken = set(names)
    result = []
    for node in workspace.graph.nodes:
        is_product = node.op in PRODUCTS and _product_weight(workspace, node) is not None
        if not (node.op == CONV or is_product) or not is_standard(node) or not node.outputs or not node.outputs[0].name:
            continue
        name = str(node.name)
        if not name or names[name] > 1:  # the output's name is unique among tensors, and now among nodes
            name = unique(str(node.outputs[0].name), taken)
            taken.add(name)
        result.append(_product(workspace, node, name) if is_product else _layer(workspace, node, name))
    return result


def _product_weight(workspace: Workspace, node: gs.Node) -> TensorProto | None:
    """The weight of a matrix product, [K, M] or turned, where it is constant."""
    weight = workspace.constant_proto(node.inputs[1]) if len(node.inputs) > 1 else None
    return weight if weight is not None and len(weight.dims) == 2 else None


def _product(workspace: Workspace, node: gs.Node, name: str) -> Layer:
    weight, x = _product_weight(workspace, node), workspace.types.get(node.inputs[0].name)
    assert weight is not None
    inner, outputs = weight.dims[::-1] if node.attrs.get("transB", 0) else weight.dims
    attributes = {name: node.attrs.get(name, default) for name, default in (("transA", 0), ("alpha", 1), ("beta", 1))}
    obstacle = None
    if attributes != {"transA": 0, "alpha": 1, "beta": 1}:
        obstacle = "a Gemm that turns its input or scales; only plain ones are rewritten"
    elif len(node.inputs) > 2 and node.inputs[2].name and workspace.constant_proto(node.inputs[2]) is None:
        obstacle = why_not_constant(workspace, node.inputs[2], "bias")
    elif weight.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        obstacle = f"weights of type {_type_name(weight.data_type)}; float and float16 are rewritten"
    shape, origin = x.shape if x is not None else None, workspace.origin_of(node)
    return Layer(name, node, None, (outputs, inner), weight.data_type, shape, None, obstacle, None, origin)


def table_obstacle(positions: int, kernel: Sequence[int]) -> str | None:
    """Why a window's table, with an entry for each tap at each of the positions, cannot be made; None where it can."""
    if positions * math.prod(kernel) <= MAX_ENTRIES:
        return None
    return f"its {'x'.join(map(str, kernel))} kernel at {positions} positions needs a table too large for the engine"


def own_nodes(workspace: Workspace) -> list[gs.Node]:
    """The nodes of our own domain."""
    return [n for n in workspace.graph.nodes if n.domain == ops.DOMAIN and n.op in ops.OPERATORS]


def rewritten_nodes(workspace: Workspace) -> list[gs.Node]:
    """Those of them that stand for a convolution of the model as it was."""
    return [n for n in own_nodes(workspace) if ops.OPERATORS[n.op].is_layer]


def input_of(node: gs.Node, name: str) -> gs.Tensor | None:
    """What one of our nodes reads as the input that its operator gives this name; None where it is left out."""
    position = ops.OPERATORS[node.op].position(name)
    return node.inputs[position] if position < len(node.inputs) and node.inputs[position].name else None


def set_input(node: gs.Node, name: str, tensor: gs.Tensor) -> None:
    """Let one of our nodes read a tensor as the input of this name, whether or not it had it."""
    position = ops.OPERATORS[node.op].position(name)
    while len(node.inputs) <= position:
        node.inputs.append(gs.Variable.empty())
    node.inputs[position] = tensor


def constant_input(workspace: Workspace, node: gs.Node, name: str) -> NDArray[Any] | None:
    """The value of that input; None where it is left out or not constant."""
    tensor = input_of(node, name)
    return None if tensor is None else workspace.constant(tensor)


def unreachable_convs(workspace: Workspace) -> list[Unreachable]:
    """Convolutions inside the bodies of If, Loop and Scan, and inside model-local functions."""
    found = []
    for node in workspace.proto.graph.node:
        for graph in subgraphs(node):
            place = f"inside the body of {node.op_type} {node.name or node.output[0]!r}"
            found += [Unreachable(c.name or c.output[0], place) for c in _convs(graph)]
    for function in workspace.proto.functions:
        if function.domain != ops.DOMAIN:
            place = f"inside the function {function.domain}.{function.name}"
            found += [Unreachable(c.name or c.output[0], place) for c in function.node if c.op_type == CONV]
    return found


def _convs(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        if node.op_type == CONV:
            yield node
        for inner in subgraphs(node):
            yield from _convs(inner)


def _layer(workspace: Workspace, node: gs.Node, name: str) -> Layer:
    x_type = workspace.types.get(node.inputs[0].name) if node.inputs else None
    input_shape = x_type.shape if x_type else None
    weight = workspace.constant_proto(node.inputs[1]) if len(node.inputs) > 1 else None
    declared = workspace.types.get(node.inputs[1].name) if len(node.inputs) > 1 else None
    w_shape: tuple[int, ...] = ()
    if weight is not None:
        w_shape = tuple(weight.dims)
    elif declared is not None and declared.shape and all(isinstance(d, int) for d in declared.shape):
        w_shape = tuple(int(d) for d in declared.shape if isinstance(d, int))
    elem_type = weight.data_type if weight is not None else (declared.elem_type if declared else 0)
    attributes, output_shape, obstacle = None, None, None
    try:
        attributes, output_shape = _geometry(node, w_shape, input_shape)
    except ValueError as error:
        obstacle = str(error)
    obstacle = obstacle or _obstacle(workspace, node, w_shape, elem_type, input_shape, output_shape)
    reservation = None
    if attributes is not None and output_shape is not None:
        reservation = _reservation(attributes, w_shape, output_shape)
    origin = workspace.origin_of(node)
    return Layer(name, node, attributes, w_shape, elem_type, input_shape, output_shape, obstacle, reservation, origin)


def _geometry(
    node: gs.Node, w_shape: tuple[int, ...], input_shape: tuple[int | str | None, ...] | None
) -> tuple[ConvAttributes | None, tuple[int, int] | None]:
    """Attributes with pads made explicit, and the output size where it is known.

    Raises:
        ValueError: The node is no convolution that the operators can express; the text is the reason.
    """
    rank = len(w_shape) or (len(input_shape) if input_shape else 0)
    if rank and rank != 4:
        raise ValueError(f"{rank - 2}-D convolution; only 2-D ones are rewritten" if rank > 2 else "weight of low rank")
    if not rank:
        return None, None
    kernel = _ints(node, "kernel_shape", w_shape[2:], 2)
    if kernel is None:
        return None, None
    if w_shape and tuple(kernel) != w_shape[2:]:
        raise ValueError(f"kernel_shape {kernel} disagrees with the weight's {list(w_shape[2:])}")
    strides = _ints(node, "strides", (1, 1), 2) or [1, 1]
    dilations = _ints(node, "dilations", (1, 1), 2) or [1, 1]
    pads = _ints(node, "pads", (0, 0, 0, 0), 4) or [0, 0, 0, 0]
    group = int(node.attrs.get("group", 1))
    sizes = input_shape[2:] if input_shape is not None and len(input_shape) == 4 else (None, None)
    auto_pad = node.attrs.get("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        pads = [0, 0, 0, 0]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        same = same_pads(auto_pad, sizes, kernel, strides, dilations)
        if same is None:
            if all(isinstance(size, int) for size in sizes):
                raise ValueError(
                    f"{auto_pad} with a stride longer than its kernel: onnxruntime's versions differ there"
                )
            return None, None
        pads = same
    elif auto_pad != "NOTSET":
        raise ValueError(f"auto_pad {auto_pad!r} is unknown")
    if group < 1 or any(v < 1 for v in (*kernel, *strides, *dilations)) or any(p < 0 for p in pads):
        raise ValueError("negative pads, or a stride, dilation, kernel size or group below 1")
    if w_shape and w_shape[0] % group:
        raise ValueError(f"group {group} does not divide the {w_shape[0]} output channels")
    attributes = ConvAttributes(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        (dilations[0], dilations[1]),
        group,
    )
    height, width = sizes
    if not isinstance(height, int) or not isinstance(width, int):
        return attributes, None
    if input_shape is not None and w_shape and isinstance(input_shape[1], int) and input_shape[1] != w_shape[1] * group:
        raise ValueError(f"the weight is for {w_shape[1] * group} channels, the input has {input_shape[1]}")
    out = attributes.output_shape(height, width)
    if min(out) < 1:
        raise ValueError(f"the kernel does not fit into the {height}x{width} input")
    return attributes, out


def _ints(node: gs.Node, name: str, default: tuple[int, ...], length: int) -> list[int] | None:
    value = node.attrs.get(name)
    if value is None or len(value) == 0:
        value = default
    if not value:
        return None
    if len(value) != length:
        raise ValueError(f"attribute {name} has {len(value)} values, a 2-D convolution needs {length}")
    return [int(v) for v in value]


def same_pads(
    auto_pad: str, sizes: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int] | None:
    """The pads, first those before the map, that SAME_UPPER or SAME_LOWER stands for.

    None where sizes that are not known decide, and where a stride that is longer than the kernel makes them less than
    -1 (which is none): versions of onnxruntime differ there.
    """
    before, after = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        extent = dilation * (k - 1) + 1
        if isinstance(size, int):
            total = (-(-size // stride) - 1) * stride + extent - size
            if total < -1:
                return None
            total = max(0, total)
        elif stride == 1:
            total = extent - 1
        else:
            return None
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before + after


def _obstacle(
    workspace: Workspace,
    node: gs.Node,
    w_shape: tuple[int, ...],
    elem_type: int,
    input_shape: tuple[int | str | None, ...] | None,
    output_shape: tuple[int, int] | None,
) -> str | None:
    if len(node.inputs) < 2:
        return "it has no weight"
    for position, what in ((1, "weight"), (2, "bias")):
        if len(node.inputs) <= position or not node.inputs[position].name:
            continue
        tensor = node.inputs[position]
        passed_on = workspace.behind_identities(tensor)
        if passed_on.name in workspace.overridable():
            return f"its {what} {passed_on.name!r} is also a graph input; --freeze-weights makes it constant"
        if workspace.constant_proto(tensor) is None:
            return why_not_constant(workspace, tensor, what)
    if elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return f"weights of type {_type_name(elem_type)}; float and float16 are rewritten"
    if not w_shape or 0 in w_shape:
        return "the weight's shape is empty"
    if output_shape is None:
        if node.inputs[0].name in workspace.doubts:
            return workspace.doubts[node.inputs[0].name]
        if input_shape is None:
            known = {info.name: value_type(info) for info in workspace.proto.graph.input}
            bare = [name for name, kind in known.items() if kind is not None and kind.shape is None]
            if bare:
                return f"the input {bare[0]!r} has no shape; give --input-shape"
            return "shape inference does not reach its input"
        if not all(isinstance(d, int) for d in input_shape[2:]) and _has_open_sizes(workspace):
            return "its height and width are symbolic; give --input-shape"
        return "its output size is unknown"
    if output_shape == (1, 1):
        return "a single output position: nothing to skip"
    height, width = (d for d in (input_shape or ())[2:] if isinstance(d, int))
    if max(math.prod(output_shape), height * width) > MAX_POSITIONS:
        return f"its map of {height}x{width} is too large for tables of positions"
    return None


def _has_open_sizes(workspace: Workspace) -> bool:
    """Whether an input has open sizes beside its batch."""
    known = (workspace.types.get(tensor.name) for tensor in workspace.graph.inputs)
    return any(size in workspace.symbols for k in known if k is not None and k.shape for size in k.shape[1:])


def _type_name(elem_type: int) -> str:
    return TensorProto.DataType.Name(elem_type).lower() if elem_type in TensorProto.DataType.values() else "unknown"


def _reservation(attributes: ConvAttributes, w_shape: tuple[int, ...], output: tuple[int, int]) -> str | None:
    if w_shape and w_shape[1] == 1 and attributes.group > 1:
        return "depthwise: bound by memory, nothing to gain"
    if attributes.kernel_shape == (1, 1):
        return "1x1 kernel: little work per value, nothing to gain"
    if min(output) < 2 and max(output) < LONG:
        return f"its output is only {output[0]}x{output[1]}"
    return None


# --- surroundings ----------------------------------------------------------------------------------------------------


def only_consumer(workspace: Workspace, tensor: gs.Tensor) -> gs.Node | None:
    """The one node that reads a tensor; None where several do, none does, or it is a graph output or read in a body."""
    consumers = list(tensor.outputs)
    if len(consumers) != 1 or tensor.name in workspace.captured:
        return None
    if any(tensor is o or tensor.name == o.name for o in workspace.graph.outputs):
        return None
    consumer = consumers[0]
    if not any(consumer is node for node in workspace.graph.nodes):  # it lies in a subgraph
        return None
    if sum(i is tensor for i in consumer.inputs) != 1:
        return None
    return consumer


def scalar(workspace: Workspace, tensor: gs.Tensor) -> float | None:
    """The value of a constant with one element, else None."""
    values = workspace.constant(tensor)
    return float(values.reshape(())) if values is not None and values.size == 1 else None


def slope_of(workspace: Workspace, node: gs.Node) -> NDArray[Any] | None:
    """The constant slopes [M] or [1] of a PRelu of maps [N, M, H, W]; None where they differ within a channel.

    They broadcast to the map from the right, so that M of them in one dimension would be one for each column.
    """
    slope, known = workspace.constant(node.inputs[1]), workspace.types.get(node.inputs[0].name)
    if slope is None or slope.size == 0 or slope.ndim > 4:
        return None
    if slope.size > 1:
        if known is None or known.shape is None or len(known.shape) != 4:
            return None
        if slope.shape not in ((known.shape[1], 1, 1), (1, known.shape[1], 1, 1)):
            return None
    return slope.reshape(-1)


def activation_of(workspace: Workspace, node: gs.Node) -> Activation | None:
    """The node as an `Activation`; None where it is another function or its numbers are not constant."""
    if not is_standard(node):
        return None
    if node.op == "Relu":
        return Activation(clip_min=0.0)  # not a slope of 0, which makes NaN of minus infinity in a function body
    if node.op == "LeakyRelu":
        return Activation(negative_slope=float(node.attrs.get("alpha", 0.01)))
    if node.op == "PRelu":
        slope = slope_of(workspace, node)
        if slope is None or not np.isfinite(slope).all():
            return None
        return Activation(slopes=tuple(slope.tolist())) if slope.size > 1 else Activation(float(slope[0]))
    if node.op == "Clip":
        bounds = [float(node.attrs["min"]) if "min" in node.attrs else None]
        bounds.append(float(node.attrs["max"]) if "max" in node.attrs else None)
        for i, tensor in enumerate(node.inputs[1:3]):
            if tensor.name:
                bounds[i] = scalar(workspace, tensor)
                if bounds[i] is None:
                    return None
        identity = Activation()
        low, high = (identity.clip_min if bounds[0] is None else bounds[0]), bounds[1]
        high = identity.clip_max if high is None else high
        return Activation(1.0, low, high) if low <= high and low < np.inf and high > -np.inf else None
    return None


def following_pool(workspace: Workspace, layer: Layer) -> PoolWindow | None:
    """The window of the next pooling layer, through layers that work position by position.

    Activations, LRN, BatchNormalization, elementwise arithmetic, concatenation over channels and 1x1 convolutions may
    lie between (Figurnov et al., section 3.2).
    """
    tensor = layer.output
    while True:
        consumers = [n for n in tensor.outputs if any(n is m for m in workspace.graph.nodes)]
        if len(consumers) != 1:
            return None
        node = consumers[0]
        if node.op in ("MaxPool", "AveragePool"):
            return pool_window(workspace, node)
        if not _keeps_positions(workspace, node, tensor):
            return None
        tensor = node.outputs[0]


def _keeps_positions(workspace: Workspace, node: gs.Node, tensor: gs.Tensor) -> bool:
    if not node.outputs or not is_standard(node):
        return False
    before, after = workspace.types.get(tensor.name), workspace.types.get(node.outputs[0].name)
    same_map = before and after and before.shape and after.shape and before.shape[2:] == after.shape[2:]
    if not same_map:
        return False
    if node.op == "Concat":
        return int(node.attrs.get("axis", 1)) in (1, -3)
    if node.op == CONV:
        kernel = node.attrs.get("kernel_shape")
        return kernel is not None and list(kernel) == [1, 1] and set(node.attrs.get("strides", [1, 1])) == {1}
    return node.op in POSITION_WISE


def pool_window(workspace: Workspace, node: gs.Node) -> PoolWindow | None:
    """The window of a 2-D pooling node, `auto_pad` resolved.

    None where it cannot be read, does not fit its map, or is not the same in onnx and in all versions of onnxruntime.
    """
    kernel = [int(v) for v in node.attrs.get("kernel_shape", [])]
    if len(kernel) != 2:
        return None
    known = workspace.types.get(node.inputs[0].name)
    sizes = known.shape[2:] if known and known.shape and len(known.shape) == 4 else (None, None)
    strides = [int(v) for v in node.attrs.get("strides", [1, 1])]
    dilations = [int(v) for v in node.attrs.get("dilations", [1, 1])]
    pads: list[int] | None = [int(v) for v in node.attrs.get("pads", [0, 0, 0, 0])]
    auto_pad, ceil_mode = node.attrs.get("auto_pad", "NOTSET"), bool(node.attrs.get("ceil_mode", 0))
    if auto_pad == "VALID":
        pads = [0, 0, 0, 0]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        if set(dilations) != {1}:  # onnxruntime leaves them out where it counts
            return None
        pads, ceil_mode = same_pads(auto_pad, sizes, kernel, strides, dilations), False
    if pads is None or len(pads) != 4 or len(strides) != 2 or len(dilations) != 2:
        return None
    try:
        window = PoolWindow(
            (kernel[0], kernel[1]),
            (strides[0], strides[1]),
            (pads[0], pads[1], pads[2], pads[3]),
            (dilations[0], dilations[1]),
            ceil_mode,
        )
        height, width = sizes
        if isinstance(height, int) and isinstance(width, int):
            window.output_shape((height, width))
        return window
    except PerfonnxError:
        return None


def unique_name(workspace: Workspace, name: str) -> str:
    """The name, or with underscores behind it where a node has it."""
    return unique(name, {node.name for node in workspace.graph.nodes})


# --- totals ----------------------------------------------------------------------------------------------------------


def dense_multiplies_of(workspace: Workspace, node: gs.Node) -> int:
    """Multiplies per image of the dense convolution that one of our operators stands for; 0 where unknown."""
    w, size = workspace.types.get(node.inputs[1].name), layer_output(workspace, node)
    dims = [d for d in w.shape if isinstance(d, int)] if w and w.shape else []
    return math.prod([*dims, *size]) if len(dims) == 4 and size else 0


def layer_output(workspace: Workspace, node: gs.Node) -> tuple[int, int] | None:
    """Height and width of the map that one of our layers gives, or that its rows stand for; None where unknown."""
    if ops.OPERATORS[node.op].lowered:
        w, shape = (constant_input(workspace, node, name) for name in ("W", "in_shape"))
        if w is None or shape is None:
            return None
        return conv_attributes(w, node.attrs).output_shape(int(shape[0]), int(shape[1]))
    y = workspace.types.get(node.outputs[0].name)
    sizes = [d for d in y.shape[2:] if isinstance(d, int)] if y is not None and y.shape else []
    return (sizes[0], sizes[1]) if len(sizes) == 2 else None


def activation_bytes(workspace: Workspace) -> int:
    """Bytes of all values that nodes of the main graph produce, with a symbolic batch taken as 1."""
    sizes = []
    for node in workspace.graph.nodes:
        if node.op == "Constant":
            continue
        known = (workspace.types.get(output.name) for output in node.outputs)
        sizes += [k.byte_size or 0 for k in known if k is not None]
    return sum(sizes)


def numpy_type(elem_type: int) -> Any:
    """The numpy type of an onnx element type."""
    return helper.tensor_dtype_to_np_dtype(elem_type)
