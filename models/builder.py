"""A very small network builder on `onnx.helper`: layers in, a checked `ModelProto` out.

Every layer method takes the name of a tensor, appends one node named after the layer, and returns the name of the
node's output. Shapes are never computed here: onnx's own shape inference does it when the model is finished.

Weights are drawn uniformly with the variance of He et al., "Delving Deep into Rectifiers" (2015), section 2.2, which
keeps the second moment of the activations constant through convolution + ReLU, so activations stay of order one at
any depth. A uniform draw is used because it is a fixed function of the generator's bit stream, while numpy reserves the
right to change its normal sampler between releases: the same seed has to give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from perfonnx import ops
from perfonnx.ops.common import Activation
from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV
from perfonnx.passes.finish import FUNCTION_IR_VERSION

Array = NDArray[np.float32]

GATE_SLOPE = 4.0
"""Standard deviation of a gate's score on inputs of second moment 1: most pixels are open or closed, some between."""

CENTRE, RING = 0.75, 0.5
"""What centre and ring of a radius-adaptive convolution contribute to the second moment of its output, in terms of He's
whole: between 0.75 and 1.25 of it remain, whatever share of pixels is open."""


class Net:
    """Collects the nodes and weights of one network.

    Args:
        name: Name of the graph.
        channels: Channels of the input image.
        size: Height and width of the input image, in pixels.
        batch: Batch size, or the name of a symbolic batch dimension.
        seed: Seed of every random number in the model.
        opset: Version of the default operator set.
        weights: False makes every weight a graph input of the right shape and draws no number at all.
    """

    def __init__(
        self, name: str, *, channels: int, size: int, batch: int | str, seed: int, opset: int, weights: bool = True
    ) -> None:
        self.name = name
        self.opset = opset
        self.input = "image"
        self._channels = {self.input: channels}
        self._image = [batch, channels, size, size]
        self._weights = weights
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._weight_infos: list[onnx.ValueInfoProto] = []

    def conv(
        self,
        x: str,
        name: str,
        filters: int,
        kernel: int,
        *,
        stride: int = 1,
        pad: int = 0,
        group: int = 1,
        adaptive: bool = False,
    ) -> str:
        """A square convolution; `pad` on all four sides. `adaptive` makes it radius-adaptive; it is 3x3 then."""
        shape = (filters, self._channels[x] // group, kernel, kernel)
        inputs = [x, self._weight(f"{name}.weight", shape, gain=2.0, adaptive=adaptive)]
        inputs.append(self._bias(f"{name}.bias", filters))
        window = {**_window(kernel, stride, pad), "dilations": [1, 1], "group": group}
        return self._convolution(name, inputs, filters, window, adaptive)

    def conv_bn(
        self,
        x: str,
        name: str,
        filters: int,
        kernel: int,
        *,
        gain: float,
        stride: int = 1,
        pad: int = 0,
        fold: bool,
        adaptive: bool = False,
    ) -> str:
        """A convolution without bias and its BatchNormalization, as two nodes or, with `fold`, as one convolution.

        `adaptive` makes it radius-adaptive; it is 3x3 then.

        The running statistics are seeded too: mean and shift uniform in +-0.1, variance in [0.5, 1.5], scale in
        [0.8, 1.2] times `gain`. Folding changes no function: W' = W * scale / sqrt(variance + epsilon).
        """
        shape = (filters, self._channels[x], kernel, kernel)
        epsilon = 1e-5
        attributes = {**_window(kernel, stride, pad), "dilations": [1, 1], "group": 1}
        weight, bias = f"{name}.weight", f"{name}.bias"
        norm = f"{name}_bn"
        statistics = [f"{norm}.{part}" for part in ("scale", "shift", "mean", "variance")]
        if not self._weights:
            self._declare(weight, shape)
            for tensor in [bias] if fold else statistics:
                self._declare(tensor, (filters,))
        else:
            w = self._draw(shape, math.sqrt(6.0 / math.prod(shape[1:])))
            if adaptive:
                w *= _centre_and_ring()
            scale, shift, mean, variance = (
                np.float32(middle) + self._draw((filters,), spread)
                for middle, spread in ((gain, 0.2 * gain), (0.0, 0.1), (0.0, 0.1), (1.0, 0.5))
            )
            if fold:
                factor = scale / np.sqrt(variance + np.float32(epsilon))
                self._add(weight, w * factor[:, None, None, None])
                self._add(bias, shift - mean * factor)
            else:
                self._add(weight, w)
                for tensor, value in zip(statistics, (scale, shift, mean, variance), strict=True):
                    self._add(tensor, value)
        if fold:
            return self._convolution(name, [x, weight, bias], filters, attributes, adaptive)
        y = self._convolution(name, [x, weight], filters, attributes, adaptive)
        return self._node("BatchNormalization", norm, [y, *statistics], filters, epsilon=epsilon)

    def dense(self, x: str, name: str, outputs: int, inputs: int, *, last: bool = False) -> str:
        """A fully connected layer on [N, inputs]; `last` means that no ReLU follows."""
        weight = self._weight(f"{name}.weight", (outputs, inputs), gain=1.0 if last else 2.0)
        return self._node("Gemm", name, [x, weight, self._bias(f"{name}.bias", outputs)], outputs, transB=1)

    def relu(self, x: str, name: str) -> str:
        """max(x, 0)."""
        return self._node("Relu", name, [x], self._channels[x])

    def add(self, x: str, y: str, name: str) -> str:
        """The residual sum."""
        return self._node("Add", name, [x, y], self._channels[x])

    def max_pool(self, x: str, name: str, kernel: int, stride: int, *, pad: int = 0, ceil: bool = False) -> str:
        """Maximum pooling; `ceil` rounds the output size up, as Caffe does."""
        return self._pool("MaxPool", x, name, kernel, stride, pad, ceil)

    def average_pool(self, x: str, name: str, kernel: int, stride: int, *, pad: int = 0, ceil: bool = False) -> str:
        """Average pooling over the part of each window that lies inside the map."""
        return self._pool("AveragePool", x, name, kernel, stride, pad, ceil)

    def _pool(self, kind: str, x: str, name: str, kernel: int, stride: int, pad: int, ceil: bool) -> str:
        ceil_mode = {"ceil_mode": 1} if ceil else {}
        return self._node(kind, name, [x], self._channels[x], **_window(kernel, stride, pad), **ceil_mode)

    def global_average_pool(self, x: str, name: str) -> str:
        """[N, C, H, W] to [N, C, 1, 1]."""
        return self._node("GlobalAveragePool", name, [x], self._channels[x])

    def lrn(self, x: str, name: str) -> str:
        """Local response normalization across 5 channels (Krizhevsky et al. 2012, section 3.3), with Caffe's k = 1."""
        return self._node("LRN", name, [x], self._channels[x], size=5, alpha=1e-4, beta=0.75, bias=1.0)

    def flatten(self, x: str, name: str) -> str:
        """[N, ...] to [N, features]."""
        return self._node("Flatten", name, [x], self._channels[x], axis=1)

    def model(self, output: str, classes: int) -> onnx.ModelProto:
        """The finished model, whose only output, `logits`, is `output` under that name.

        Returns:
            A model with value_info for every intermediate tensor.
        """
        for node in self._nodes:
            node.output[:] = ["logits" if name == output else name for name in node.output]
        batch = self._image[0]
        graph = helper.make_graph(
            self._nodes,
            self.name,
            # Shapes do not depend on the weights' values: inference runs on declarations, not on hundreds of megabytes.
            [helper.make_tensor_value_info(self.input, TensorProto.FLOAT, self._image), *self._weight_infos],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        )
        standard = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[standard], producer_name="perfonnx-models")
        model.ir_version = helper.find_min_ir_version_for([standard])
        if any(node.op_type == RADIUS_ADAPTIVE_CONV.name for node in self._nodes):
            model.opset_import.append(helper.make_opsetid(ops.DOMAIN, ops.VERSION))
            model.functions.append(RADIUS_ADAPTIVE_CONV.function_body(self.opset, TensorProto.FLOAT))
            model.ir_version = max(model.ir_version, FUNCTION_IR_VERSION)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        if self._weights:
            del model.graph.input[1:]
            model.graph.initializer.extend(self._initializers)
        return model

    def _convolution(
        self, name: str, inputs: list[str], filters: int, attributes: dict[str, Any], adaptive: bool
    ) -> str:
        """A Conv node, or a radius-adaptive one with all that its function body needs."""
        if not adaptive:
            return self._node("Conv", name, inputs, filters, **attributes)
        channels = self._channels[inputs[0]]
        if len(inputs) < 3:
            inputs.append(self._zeros(f"{name}.bias", filters))
        inputs.append(self._gate(f"{name}.gate", channels))
        inputs += [self._zeros(f"{name}.gate_bias", 1), self._zeros(f"{name}.ring_bias", filters)]
        attributes = {**attributes, **Activation().attributes(), "center_gain": 0.0}
        return self._node(RADIUS_ADAPTIVE_CONV.name, name, inputs, filters, domain=ops.DOMAIN, **attributes)

    def _gate(self, name: str, channels: int) -> str:
        shape = (1, channels, 1, 1)
        if self._weights:
            self._add(name, self._draw(shape, GATE_SLOPE * math.sqrt(3.0 / channels)))
        else:
            self._declare(name, shape)
        return name

    def _zeros(self, name: str, size: int) -> str:
        if self._weights:
            self._add(name, np.zeros(size, np.float32))
        else:
            self._declare(name, (size,))
        return name

    def _node(
        self,
        kind: str,
        name: str,
        inputs: Sequence[str],
        channels: int,
        *,
        domain: str | None = None,
        **attributes: Any,
    ) -> str:
        output = f"{name}.out"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=name, domain=domain, **attributes))
        self._channels[output] = channels
        return output

    def _weight(self, name: str, shape: tuple[int, ...], *, gain: float, adaptive: bool = False) -> str:
        if self._weights:
            # A uniform draw in +-b has variance b^2 / 3; He's variance is gain / fan_in.
            w = self._draw(shape, math.sqrt(3.0 * gain / math.prod(shape[1:])))
            self._add(name, w * _centre_and_ring() if adaptive else w)
        else:
            self._declare(name, shape)
        return name

    def _bias(self, name: str, size: int) -> str:
        if self._weights:
            self._add(name, self._draw((size,), 0.1))
        else:
            self._declare(name, (size,))
        return name

    def _draw(self, shape: tuple[int, ...], bound: float) -> Array:
        values = self._random.random(shape, dtype=np.float32)
        values -= np.float32(0.5)
        values *= np.float32(2.0 * bound)
        return values

    def _declare(self, name: str, shape: tuple[int, ...]) -> None:
        self._weight_infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def _add(self, name: str, value: Array) -> None:
        self._declare(name, value.shape)
        self._initializers.append(numpy_helper.from_array(value, name))


def _window(kernel: int, stride: int, pad: int) -> dict[str, Any]:
    """The attributes that convolution and pooling share, for a square window."""
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}


def _centre_and_ring() -> Array:
    """Factors of the taps of a radius-adaptive convolution, [3, 3]."""
    factors = np.full((3, 3), math.sqrt(RING * 9 / 8), np.float32)
    factors[1, 1] = math.sqrt(CENTRE * 9)
    return factors
