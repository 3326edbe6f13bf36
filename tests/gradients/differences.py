"""Central differences, which gradients are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

import perfonnx
from perfonnx.gradients import Gradients, output_distance

STEP = 1e-2


def apart(*shape: int, seed: int = 0, spacing: float = 0.031, offset: float = 0.013) -> NDArray[np.float32]:
    """Distinct numbers around zero, in random order, further apart than two steps and further than one from zero."""
    size = int(np.prod(shape))
    order = np.random.default_rng([seed, *shape]).permutation(size)
    return ((order - size // 2) * spacing + offset).reshape(shape).astype(np.float32)


def net(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    constants: Mapping[str, NDArray[Any]],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model from float inputs to outputs of any shape."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _framed(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """The model with everything in one image: its inputs and outputs get a first axis of length 1."""
    framed = onnx.ModelProto()
    framed.CopyFrom(model)
    graph = framed.graph
    front, back, constants = [], [], {"frame": np.array([1, -1])}
    for name, x in feeds.items():
        constants[f"frame/{name}"] = np.array(x.shape, np.int64)
        front.append(helper.make_node("Reshape", [f"one/{name}", f"frame/{name}"], [name]))
    outputs = [o.name for o in graph.output]
    back = [helper.make_node("Reshape", [name, "frame"], [f"one/{name}"]) for name in outputs]
    nodes = [*front, *graph.node, *back]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    for name, x in feeds.items():
        graph.input.append(helper.make_tensor_value_info(f"one/{name}", TensorProto.FLOAT, (1, *x.shape)))
    graph.output.extend(helper.make_empty_tensor_value_info(f"one/{name}") for name in outputs)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return framed


def check_against_differences(
    model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.float32]], *, tolerance: float = 2e-3
) -> None:
    """All inputs' gradients of a random weighting of all outputs, element by element."""
    model = _framed(model, feeds)
    feeds = {f"one/{name}": x[None] for name, x in feeds.items()}
    session = perfonnx.session(model, threads=1, library=False)
    names = [o.name for o in session.get_outputs()]
    values = dict(zip(names, session.run(None, dict(feeds)), strict=True))
    rng = np.random.default_rng(5)
    weights = {name: rng.standard_normal(value.shape) for name, value in values.items()}
    targets = {name: values[name] - weights[name] / 2 for name in names}  # so that 2 * (y - target) is the weighting
    _, tensors = Gradients(model, list(feeds), output_distance, threads=1).run(dict(feeds), targets)

    def weighted(changed: str, array: NDArray[np.float32]) -> float:
        outputs = session.run(None, {**feeds, changed: array})
        return sum(float((weights[n] * y.astype(np.float64)).sum()) for n, y in zip(names, outputs, strict=True))

    for name, x in feeds.items():
        expected = np.zeros(x.shape)
        for index in np.ndindex(*x.shape):
            sides = []
            for sign in (1, -1):
                moved = x.copy()
                moved[index] += sign * STEP
                sides.append((weighted(name, moved), float(moved[index])))
            (up, high), (down, low) = sides
            expected[index] = (up - down) / (high - low)
        value, actual = tensors[name]
        np.testing.assert_array_equal(value, x)
        assert actual.shape == x.shape
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)
