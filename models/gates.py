"""Gates of the built-in radius-adaptive networks: their biases, so that an asked share of the pixels is open.

Gates draw their weights with the others. What share of pixels is open depends on the inputs of each layer, so that the
biases are set front to back on one seeded image of noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV


def set_open_share(model: onnx.ModelProto, share: float, seed: int) -> None:
    """Set the gates' biases in place.

    Args:
        model: With function bodies, so that onnxruntime alone can run it.
        share: Share of the pixels with alpha > 0, in [0, 1].
        seed: Seed of the image.
    """
    (image,) = model.graph.input
    size = [d.dim_value for d in image.type.tensor_type.shape.dim[1:]]
    noise = np.random.Generator(np.random.PCG64([seed, 1])).random((1, *size), dtype=np.float32)
    noise = (noise - np.float32(0.5)) * np.float32(np.sqrt(12))  # of second moment 1
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for position, node in enumerate(model.graph.node):
        if node.op_type != RADIUS_ADAPTIVE_CONV.name:
            continue
        x = _value(model, position, node.input[0], noise)
        gate = numpy_helper.to_array(tensors[node.input[3]]).reshape(-1)
        stride = int(next(a.ints[0] for a in node.attribute if a.name == "strides"))
        score = np.tensordot(gate, x[0, :, ::stride, ::stride], axes=1)
        border = np.round(np.quantile(score, 1 - share), 3)  # the same on machines that round otherwise
        bias = np.array([-border], np.float32)
        tensors[node.input[4]].CopyFrom(numpy_helper.from_array(bias, node.input[4]))


def _value(model: onnx.ModelProto, count: int, name: str, image: NDArray[np.float32]) -> NDArray[Any]:
    """What the first `count` nodes make of an image, in the tensor `name`."""
    (given,) = model.graph.input
    if name == given.name:
        return image
    nodes = model.graph.node[:count]
    read = {tensor for node in nodes for tensor in node.input}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        [helper.make_tensor_value_info(given.name, TensorProto.FLOAT, image.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    first = helper.make_model(
        graph, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version
    )
    session = ort.InferenceSession(first.SerializeToString(), providers=["CPUExecutionProvider"])
    (value,) = session.run([name], {given.name: image})
    return np.asarray(value)
