"""Random graphs of convolutions and what stands between them, from a seed.

Every operator is tried alone in onnxruntime before it is taken into the graph: its result is the truth about shapes, so
that a graph can be given right, missing and stale value_info.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

LARGEST = 60_000  # elements of a tensor
OPSETS = range(7, 23)


def run_alone(node: NodeProto, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray], opset: int) -> Any:
    """All outputs of one node."""
    graph = helper.make_graph(
        [node],
        "alone",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return session(model).run(None, feeds)


def session(model: ModelProto) -> ort.InferenceSession:
    """A quiet session of one thread without the library."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@dataclass
class Drawn:
    """A random model with feeds of two batch sizes where its batch is free, and what it is made of."""

    model: ModelProto
    feeds: list[dict[str, np.ndarray]]
    what: str


@dataclass
class Graph:
    """A graph being drawn.

    `values` are the results of one run, `constants` the initializers, `made` what nodes make of initializers alone.
    """

    rng: np.random.Generator
    opset: int
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    made: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    maps: list[str] = field(default_factory=list)

    def one_of(self, choices: Sequence[Any]) -> Any:
        """One of them, as it is (numpy would make an array of it)."""
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, share: float) -> bool:
        """True in this share of the cases."""
        return bool(self.rng.random() < share)

    def weights(self, *shape: int) -> np.ndarray:
        """Normal numbers that keep the scale of what they multiply."""
        scale = np.sqrt(max(1, int(np.prod(shape[1:]))))
        return (self.rng.standard_normal(shape) / scale).astype(np.float32)

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A new initializer."""
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(values, dtype)
        return name

    def indirect(self, name: str) -> str:
        """A constant as exporters hide it: behind nodes that depend on nothing else."""
        made = f"{name}_made"
        values = self.constants[name]
        form = self.one_of(["Constant", "Identity", "Transpose", "Cast"])
        if form == "Constant":
            del self.constants[name]
            self.nodes.append(helper.make_node("Constant", [], [made], value=numpy_helper.from_array(values)))
        elif form == "Identity":
            self.nodes.append(helper.make_node("Identity", [name], [made]))
        elif form == "Transpose":
            order = list(range(values.ndim))[::-1]
            self.constants[name] = np.ascontiguousarray(values.transpose(order))
            self.nodes.append(helper.make_node("Transpose", [name], [made], perm=order))
        else:
            self.constants[name] = values.astype(np.float64)
            self.nodes.append(helper.make_node("Cast", [name], [made], to=TensorProto.FLOAT))
        self.made[made] = values
        return made

    def emit(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str] | None:
        """Add a node where onnxruntime runs it and its results are of a bearable size."""
        names = [f"t{len(self.values)}_{i}" for i in range(outputs)]
        label = f"{op}_{len(self.nodes)}" if self.chance(0.8) else ""
        node = helper.make_node(op, list(inputs), names, name=label, **attributes)
        read = {name: self.values[name] for name in inputs if name in self.values}
        known = {**self.constants, **self.made}
        constants = {name: known[name] for name in inputs if name in known}
        try:
            results = run_alone(node, read, constants, self.opset)
        except Exception:  # this draw asks for what does not exist
            return None
        if any(r.size == 0 or r.size > LARGEST or not np.isfinite(r).all() for r in results):
            return None
        self.nodes.append(node)
        for name, result in zip(names, results, strict=True):
            self.values[name] = result
            if result.ndim == 4:
                self.maps.append(name)
        return names


def _of_this_opset(graph: Graph, op: str, x: str, since: int, **given: Any) -> list[str] | None:
    """Emit an operator whose arguments are attributes up to an opset and inputs from it on, in this order."""
    if graph.opset < since:
        return graph.emit(op, [x], **{k: v for k, v in given.items() if v is not None})
    inputs = [x]
    for value in given.values():
        if value is None:
            inputs.append("")
        else:
            inputs.append(graph.constant(value, np.float32 if np.asarray(value).dtype.kind == "f" else np.int64))
    return graph.emit(op, inputs)


# --- the operators ---------------------------------------------------------------------------------------------------


def window(graph: Graph, largest: int = 5) -> dict[str, Any]:
    """Kernel, strides, and pads or auto_pad."""
    kernel = [int(graph.rng.integers(1, largest + 1)) for _ in range(2)]
    if graph.chance(0.5):
        kernel = [graph.one_of([1, 2, 3, 3, 3])] * 2
    found: dict[str, Any] = {"kernel_shape": kernel}
    if graph.chance(0.3):
        found["strides"] = [int(graph.rng.integers(1, 4)), int(graph.rng.integers(1, 3))]
    if graph.chance(0.25):
        found["auto_pad"] = graph.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif graph.chance(0.7):
        found["pads"] = [int(graph.rng.integers(0, max(1, k))) for k in (*kernel, *kernel)]
        if graph.chance(0.6):
            found["pads"] = [k // 2 for k in kernel] * 2
    return found


def convolution(graph: Graph, x: str) -> Any:
    channels = graph.values[x].shape[1]
    found = window(graph)
    if graph.chance(0.6):
        found = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    if graph.chance(0.15):
        found["dilations"] = [int(graph.rng.integers(1, 3)), int(graph.rng.integers(1, 4))]
    group = 1
    if graph.chance(0.25):
        group = graph.one_of([g for g in (1, 2, 3, 4, channels) if channels % g == 0])
    outputs = group * int(graph.rng.integers(1, 7))
    if graph.chance(0.3):
        outputs = group * max(1, 8 // group)
    found["group"] = group
    inputs = [x, graph.constant(graph.weights(outputs, channels // group, *found["kernel_shape"]))]
    if graph.chance(0.6):
        inputs.append(graph.constant(graph.weights(outputs)))
    if graph.chance(0.1):
        which = int(graph.rng.integers(1, len(inputs)))
        inputs[which] = graph.indirect(inputs[which])
    if graph.chance(0.3):
        del found["kernel_shape"]
    return graph.emit("Conv", inputs, **found)


def transposed(graph: Graph, x: str) -> Any:
    channels = graph.values[x].shape[1]
    size = graph.one_of([2, 3, 4])
    w = graph.constant(graph.weights(channels, int(graph.rng.integers(1, 6)), size, size) / 2)
    return graph.emit("ConvTranspose", [x, w], strides=[2, 2], pads=[graph.one_of([0, 1])] * 4)


def pool(graph: Graph, x: str) -> Any:
    op = graph.one_of(["MaxPool", "AveragePool"])
    found = window(graph, 4)
    if graph.chance(0.5):
        found = {"kernel_shape": [2, 2], "strides": [2, 2]}
    if graph.opset >= 10 and graph.chance(0.3):
        found["ceil_mode"] = 1
    if op == "AveragePool" and graph.chance(0.4):
        found["count_include_pad"] = 1
    if op == "MaxPool" and graph.opset >= 10 and graph.chance(0.1):
        found["dilations"] = [2, 2]
    return graph.emit(op, [x], **found)


def global_pool(graph: Graph, x: str) -> Any:
    return graph.emit(graph.one_of(["GlobalAveragePool", "GlobalMaxPool"]), [x])


def resize(graph: Graph, x: str) -> Any:
    mode = graph.one_of(["nearest", "nearest", "linear"])
    scales = graph.one_of([[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 1.5, 2], [1, 1, 0.5, 0.5], [1, 1, 3, 1]])
    if graph.opset < 9:
        return graph.emit("Upsample", [x], mode=mode, scales=[float(s) for s in scales])
    if graph.opset < 11:
        op = "Upsample" if graph.opset == 9 else "Resize"
        return graph.emit(op, [x, graph.constant(scales)], mode=mode)
    more: dict[str, Any] = {"mode": mode}
    if graph.chance(0.5):
        more["coordinate_transformation_mode"] = graph.one_of(["asymmetric", "align_corners", "pytorch_half_pixel"])
    if mode == "nearest" and graph.chance(0.5):
        more["nearest_mode"] = graph.one_of(["floor", "ceil", "round_prefer_ceil"])
    none = [graph.constant([]), graph.constant([])] if graph.opset < 13 else ["", ""]
    if graph.chance(0.3):
        shape = graph.values[x].shape
        sizes = [*shape[:2], *(max(1, int(d * s)) for d, s in zip(shape[2:], scales[2:], strict=True))]
        return graph.emit("Resize", [x, *none, graph.constant(sizes, np.int64)], **more)
    return graph.emit("Resize", [x, none[0], graph.constant(scales)], **more)


def pad(graph: Graph, x: str) -> Any:
    low, high = (-1, 3) if graph.chance(0.2) else (0, 3)
    pads = [0, 0, *(int(graph.rng.integers(low, high)) for _ in range(2))] * 2
    if graph.chance(0.5):
        pads[6:] = [int(graph.rng.integers(low, high)) for _ in range(2)]
    mode = graph.one_of(["constant", "constant", "reflect", "edge"])
    fill = graph.one_of([0.0, 0.0, 1.0, -0.5])
    if graph.opset < 11:
        return graph.emit("Pad", [x], pads=pads, mode=mode, value=fill)
    inputs = [x, graph.constant(pads, np.int64)]
    return graph.emit("Pad", [*inputs, graph.constant(fill)] if fill else inputs, mode=mode)


def crop(graph: Graph, x: str) -> Any:
    shape = graph.values[x].shape
    axes = graph.one_of([[2, 3], [2], [3], [1], [-1, -2]])
    starts = [int(graph.rng.integers(0, max(1, shape[a] // 3))) for a in axes]
    ends = [int(graph.one_of([shape[a], shape[a] - 1, -1, 2**31 - 1])) for a in axes]
    if graph.opset >= 10:
        steps = [graph.one_of([1, 1, 2]) for _ in axes]
        if graph.chance(0.1):
            starts, ends, steps = [-1 for _ in axes], [-(2**31) for _ in axes], [-1 for _ in axes]
        return _of_this_opset(graph, "Slice", x, 10, starts=starts, ends=ends, axes=axes, steps=steps)
    return _of_this_opset(graph, "Slice", x, 10, starts=starts, ends=ends, axes=axes)


def concatenation(graph: Graph, x: str) -> Any:
    axis = graph.one_of([1, 1, 1, 2, 3, -3])
    others = [n for n in graph.maps if _fits(graph, n, x, {axis % 4})]
    names = [x, *(graph.one_of(others) for _ in range(int(graph.rng.integers(1, 3))))]
    return graph.emit("Concat", names if graph.chance(0.5) else names[::-1], axis=axis)


def _fits(graph: Graph, one: str, other: str, but: set[int]) -> bool:
    a, b = graph.values[one].shape, graph.values[other].shape
    return all(a[i] == b[i] for i in range(4) if i not in but)


def arithmetic(graph: Graph, x: str) -> Any:
    op = graph.one_of(["Add", "Add", "Mul", "Sub", "Max", "Min"])
    channels, height, width = graph.values[x].shape[1:]
    if graph.chance(0.5):
        shape = graph.one_of([(channels, 1, 1), (1, channels, 1, 1), (), (1,), (height, width), (1, 1, 1, width)])
        other = graph.constant(graph.rng.uniform(0.5, 1.5, shape))
        if graph.chance(0.2):  # never by a map, which may be zero
            return graph.emit("Div", [x, other])
    else:
        other = graph.one_of([n for n in graph.maps if _fits(graph, n, x, set())])
    if op in ("Max", "Min") and graph.opset < 8:
        return None
    return graph.emit(op, [x, other] if graph.chance(0.7) else [other, x])


def activation(graph: Graph, x: str) -> Any:
    op = graph.one_of(
        ["Relu", "Relu", "Relu", "LeakyRelu", "Clip", "PRelu", "Sigmoid", "Tanh", "Elu", "Abs", "Neg", "Exp",
         "HardSigmoid", "HardSwish", "Softplus", "Selu", "Erf", "Gelu", "Identity", "Dropout", "Softmax"]
    )  # fmt: skip
    channels = graph.values[x].shape[1]
    if op == "Clip":
        return _of_this_opset(graph, "Clip", x, 11, min=graph.one_of([0.0, -0.5, 0.1]), max=graph.one_of([1.0, 6.0]))
    if op == "PRelu":
        shape = graph.one_of([(channels, 1, 1), (1, 1, 1), (1,), (1, channels, 1, 1)])
        return graph.emit("PRelu", [x, graph.constant(graph.rng.uniform(0, 0.5, shape))])
    if op == "Softmax":
        return graph.emit("Softmax", [x], axis=1)
    if op == "LeakyRelu":
        return graph.emit("LeakyRelu", [x], alpha=0.2)
    return graph.emit(op, [x])


def swish(graph: Graph, x: str) -> Any:
    gate = graph.emit("Sigmoid", [x])
    return graph.emit("Mul", [x, gate[0]]) if gate else None


def squeeze_excite(graph: Graph, x: str) -> Any:
    channels = graph.values[x].shape[1]
    pooled = graph.emit("GlobalAveragePool", [x])
    mixed = graph.emit("Conv", [pooled[0], graph.constant(graph.weights(channels, channels, 1, 1))]) if pooled else None
    gate = graph.emit("Sigmoid", mixed) if mixed else None
    return graph.emit("Mul", [x, gate[0]]) if gate else None


def normalization(graph: Graph, x: str) -> Any:
    channels = graph.values[x].shape[1]
    op = graph.one_of(["BatchNormalization", "BatchNormalization", "InstanceNormalization", "LRN"])
    if op == "LRN":
        return graph.emit("LRN", [x], size=graph.one_of([1, 3, 5]), alpha=0.1, beta=graph.one_of([0.75, 0.5]))
    scale, shift = graph.constant(graph.rng.uniform(0.5, 1.5, channels)), graph.constant(graph.weights(channels))
    if op == "InstanceNormalization":
        return graph.emit(op, [x, scale, shift], epsilon=0.05)
    mean, variance = graph.constant(graph.weights(channels)), graph.constant(graph.rng.uniform(0.5, 1.5, channels))
    named = 5 if graph.opset < 14 and graph.chance(0.2) else 1  # with all outputs named it normalizes by the batch
    return graph.emit(op, [x, scale, shift, mean, variance], named)


def rearrangement(graph: Graph, x: str) -> Any:
    channels, height, width = graph.values[x].shape[1:]
    op = graph.one_of(["DepthToSpace", "SpaceToDepth", "Transpose", "Split", "Reshape"])
    if op == "Transpose":
        return graph.emit(op, [x], perm=graph.one_of([[0, 1, 3, 2], [0, 2, 3, 1]]))
    if op == "Split":
        if graph.opset >= 18 or channels % 2:
            return None
        return graph.emit(op, [x], 2, axis=1)
    if op == "Reshape":
        return graph.emit(op, [x, graph.constant([0, -1, width, height], np.int64)])
    return graph.emit(op, [x], blocksize=2)


def reduction(graph: Graph, x: str) -> Any:
    if graph.opset >= 18:
        return graph.emit("ReduceMean", [x, graph.constant([2, 3], np.int64)], keepdims=1)
    return graph.emit("ReduceMean", [x], axes=[2, 3], keepdims=1)


def computed_resize(graph: Graph, x: str) -> Any:
    """Twice the size, where the size is computed from the map's own shape."""
    if graph.opset < 13:
        return None
    shape = graph.emit("Shape", [x])
    doubled = graph.emit("Mul", [shape[0], graph.constant([1, 1, 2, 2], np.int64)]) if shape else None
    if not doubled:
        return None
    return graph.emit("Resize", [x, "", "", doubled[0]], mode="nearest", coordinate_transformation_mode="asymmetric")


DRAWS: list[tuple[float, Callable[[Graph, str], Any]]] = [
    (8, convolution),
    (0.4, transposed),
    (2, pool),
    (0.3, global_pool),
    (1.2, resize),
    (1, pad),
    (1, crop),
    (1.5, concatenation),
    (2, arithmetic),
    (4, activation),
    (0.4, swish),
    (0.4, squeeze_excite),
    (1.5, normalization),
    (0.6, rearrangement),
    (0.2, reduction),
    (0.3, computed_resize),
]


# --- a model of it ---------------------------------------------------------------------------------------------------


def _head(graph: Graph, x: str) -> str:
    """Flatten and a fully connected layer."""
    flat = graph.emit("Flatten", [x])
    if not flat:
        return x
    columns = graph.values[flat[0]].shape[1]
    out = graph.emit("Gemm", [flat[0], graph.constant(graph.weights(columns, 5)), graph.constant(graph.weights(5))])
    return out[0] if out else x


def _declared(graph: Graph, name: str, batch: int, free: bool) -> list[int | str | None]:
    shape: list[int | str | None] = list(graph.values[name].shape)
    if free and shape and shape[0] == batch:
        shape[0] = "N"
    return shape


def _value_info(graph: Graph, batch: int, free: bool, kind: str) -> list[ValueInfoProto]:
    """value_info as files bring it: none, right, in part, of another input size, with unknown sizes, twice."""
    found = []
    for name, value in graph.values.items():
        if name == "x" or value.dtype != np.float32 or kind == "none" or (kind == "part" and graph.chance(0.5)):
            continue
        shape = _declared(graph, name, batch, free)
        if kind == "stale" and len(shape) == 4:
            shape[2:] = [max(1, int(d) // 2) for d in shape[2:] if isinstance(d, int)]
        elif kind == "unknown":
            shape = [graph.one_of([d, d, -1, f"d{graph.rng.integers(9)}"]) for d in shape]
        elif kind == "batch of 1" and shape:
            shape[0] = 1
        found.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        if kind == "twice":
            other = [d if isinstance(d, int) else f"other_{i}" for i, d in enumerate(shape)]
            found.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, other))
    return found


def draw(seed: int) -> Drawn | None:
    """The graph of a seed; None where onnxruntime refuses it."""
    rng = np.random.default_rng([seed, 2016])
    graph = Graph(rng, int(rng.choice(OPSETS)))
    free = graph.chance(0.5)
    batch = 2 if free or graph.chance(0.3) else 1
    channels = graph.one_of([1, 3, 3, 4, 8])
    shape = (batch, channels, int(rng.integers(6, 21)), int(rng.integers(6, 21)))
    graph.values["x"] = rng.standard_normal(shape).astype(np.float32)
    graph.maps.append("x")
    wanted, tries = int(rng.integers(5, 16)), 0
    shares = np.array([share for share, _ in DRAWS])
    while len(graph.nodes) < wanted and tries < 60:
        tries += 1
        x = graph.maps[-1] if graph.chance(0.7) else graph.one_of(graph.maps)
        _, make = DRAWS[int(rng.choice(len(DRAWS), p=shares / shares.sum()))]
        if len(graph.nodes) == 0:
            make = convolution
        make(graph, x)
    last = graph.maps[-1]
    outputs = [_head(graph, last) if graph.chance(0.3) and graph.values[last].size // batch < 3000 else last]
    if graph.chance(0.3):
        outputs.append(graph.one_of([n for n in graph.values if n not in (*outputs, "x")] or outputs))
    outputs = [n for i, n in enumerate(outputs) if n != "x" and n not in outputs[:i]]
    if not outputs:
        return None
    kind = graph.one_of(["none", "none", "right", "part", "stale", "unknown", "batch of 1", "twice"])
    if kind in ("stale", "unknown") and any(node.op_type == "Slice" for node in graph.nodes):
        kind = "right"  # with sizes below zero, found or declared, Slice's inference ends onnxruntime's process
    what = f"seed {seed}: opset {graph.opset}, value_info {kind}, {' '.join(n.op_type for n in graph.nodes)}"
    model = _model(graph, outputs, batch, free, kind)
    feeds = [{"x": graph.values["x"]}]
    if free:
        feeds.append({"x": rng.standard_normal((3, *shape[1:])).astype(np.float32)})
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    try:
        session(bare)  # some pools' sizes onnxruntime gets wrong where nothing tells it
        ran = session(model)
        for i, feed in enumerate(feeds):
            results = ran.run(None, feed)
            if not all(np.isfinite(y).all() for y in results):
                return None
            if i == 0 and [y.shape for y in results] != [graph.values[name].shape for name in outputs]:
                return None  # onnxruntime believes value_info where a Shape reads it
    except Exception:
        return None
    return Drawn(model, feeds, what)


def _model(graph: Graph, outputs: Sequence[str], batch: int, free: bool, kind: str) -> ModelProto:
    ir = graph.one_of([4, 6, 8, 8])
    declared = []
    for name in outputs:
        dtype = helper.np_dtype_to_tensor_dtype(graph.values[name].dtype)
        shape = _declared(graph, name, batch, free) if graph.chance(0.6) else [None] * graph.values[name].ndim
        declared.append(helper.make_tensor_value_info(name, dtype, shape))
    read = {name for node in graph.nodes for name in node.input}
    constants = [numpy_helper.from_array(v, n) for n, v in graph.constants.items() if n in read]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, _declared(graph, "x", batch, free))
    taken = set(outputs)
    infos = [i for i in _value_info(graph, batch, free, kind) if i.name not in taken]
    nodes = list(graph.nodes)
    if graph.chance(0.05):
        nodes.reverse()
    made = helper.make_graph(nodes, "random", [x], declared, constants, value_info=infos)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=ir)
