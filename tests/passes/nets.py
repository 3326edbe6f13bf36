"""Small networks around one or a few convolutions, and what is asserted of a rewritten model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import perfonnx
from perfonnx import ops

Shape = Sequence[int | str | None]


def values(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Normal random numbers, scaled so that sums over all but the first axis stay near 1."""
    scale = np.sqrt(max(1, int(np.prod(shape[1:])))) if len(shape) > 1 else 1.0
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) / scale).astype(dtype)


def model(
    nodes: Sequence[NodeProto],
    initializers: Mapping[str, np.ndarray | TensorProto],
    *,
    inputs: Mapping[str, Shape] | None = None,
    outputs: Mapping[str, Shape] | None = None,
    opset: int = 17,
    ir: int = 8,
    dtype: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
    inputs_too: Sequence[str] = (),
) -> ModelProto:
    """A model from `x` [1, 3, 12, 10] to `y`. `inputs_too` are initializers that are also listed as graph inputs."""
    inputs = {"x": (1, 3, 12, 10)} if inputs is None else inputs
    outputs = {"y": (None,) * 4} if outputs is None else outputs
    tensors = []
    for name, value in initializers.items():
        tensors.append(value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name))
    listed = [t.name for t in tensors] if ir < 4 else list(inputs_too)
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(n, dtype, shape) for n, shape in inputs.items()]
        + [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors if t.name in listed],
        [helper.make_tensor_value_info(n, dtype, shape) for n, shape in outputs.items()],
        tensors,
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    result = helper.make_model(graph, opset_imports=imports, producer_name="nets")
    result.ir_version = ir
    return result


def conv(
    x: str = "x", y: str = "c", w: str = "w", b: str | None = None, *, name: str = "conv", **attributes: Any
) -> NodeProto:
    """A Conv node; 3x3 with pads of 1 unless told."""
    defaults: dict[str, Any] = {"kernel_shape": [3, 3]}
    if "auto_pad" not in attributes:
        defaults["pads"] = [1, 1, 1, 1]
    return helper.make_node("Conv", [x, w, *([b] if b else [])], [y], name=name, **{**defaults, **attributes})


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    """Like `onnx.helper.make_node`, named after its first output."""
    attributes.setdefault("name", f"{op}_{outputs[0]}")
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def single(*, y: Shape = (1, 8, 12, 10), bias: bool = True, opset: int = 17, ir: int = 8) -> ModelProto:
    """One convolution from x [1, 3, 12, 10] to y."""
    weights = {"w": values(8, 3, 3, 3)} | ({"b": values(8)} if bias else {})
    return model([conv(y="y", b="b" if bias else None)], weights, outputs={"y": y}, opset=opset, ir=ir)


def followed_by(
    tail: Sequence[NodeProto],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    dtype: Any = np.float32,
    **options: Any,
) -> ModelProto:
    """A convolution x -> c of 8 channels with `tail` behind it, which ends in y."""
    weights = {"w": values(8, 3, 3, 3, dtype=dtype), "b": values(8, dtype=dtype), **(constants or {})}
    options.setdefault("dtype", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return model([conv(b="b"), *tail], weights, **options)


def rewrite(source: Any, output: Any = None, **options: Any) -> perfonnx.Rewritten:
    """`perfonnx.rewrite` without lowering, for tests of what one layer becomes."""
    return perfonnx.rewrite(source, output, layout="nchw", **options)


def run(source: ModelProto | bytes, feeds: Mapping[str, np.ndarray], *, optimize: bool = True) -> list[np.ndarray]:
    """In stock onnxruntime, without the operator library."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = source if isinstance(source, bytes) else source.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def feed(*shape: int, dtype: Any = np.float32, seed: int = 1) -> dict[str, np.ndarray]:
    """An input `x`."""
    return {"x": np.random.default_rng(seed).standard_normal(shape or (1, 3, 12, 10)).astype(dtype)}


def assert_same_results(
    a: ModelProto, b: ModelProto, feeds: Mapping[str, np.ndarray] | None = None, tolerance: float = 1e-4
) -> None:
    """Both models give the same outputs, relative to the largest value of each."""
    feeds = feed() if feeds is None else feeds
    for x, y in zip(run(a, feeds), run(b, feeds), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        scale = float(np.abs(x.astype(np.float64)).max(initial=0)) or 1.0
        np.testing.assert_allclose(y.astype(np.float64), x.astype(np.float64), rtol=0, atol=tolerance * scale)


def ours(source: ModelProto) -> list[NodeProto]:
    """The nodes of the operators' domain."""
    return [n for n in source.graph.node if n.domain == ops.DOMAIN]


def plan_in(source: ModelProto) -> dict[str, Any]:
    """The plan in a rewritten model's metadata."""
    (text,) = (p.value for p in source.metadata_props if p.key.startswith("perfonnx.plan"))
    return json.loads(text)


def op_types(source: ModelProto) -> list[str]:
    return [n.op_type for n in source.graph.node]


def constant(source: ModelProto, name: str) -> np.ndarray:
    (tensor,) = (t for t in source.graph.initializer if t.name == name)
    return numpy_helper.to_array(tensor)


def attribute(of: NodeProto, name: str) -> Any:
    (found,) = (a for a in of.attribute if a.name == name)
    return helper.get_attribute_value(found)


def check(source: ModelProto) -> None:
    """onnx accepts the model, strict shape inference included."""
    onnx.checker.check_model(source, full_check=True)
