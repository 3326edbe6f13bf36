"""Network in Network for CIFAR-10: Lin, Chen and Yan (2014), in the form of the authors' Caffe definition.

Caffe rounds pooling sizes up, 32 -> 16 -> 8, hence `ceil_mode`. Dropout is training only and left out.
"""

from __future__ import annotations

import onnx

from models.builder import Net


def build(*, seed: int, batch: int | str, opset: int, weights: bool = True) -> onnx.ModelProto:
    """[N, 3, 32, 32] to [N, 10] logits; see `models.build`."""
    net = Net("nin", channels=3, size=32, batch=batch, seed=seed, opset=opset, weights=weights)

    def layer(x: str, name: str, filters: int, kernel: int = 1, pad: int = 0) -> str:
        return net.relu(net.conv(x, name, filters, kernel, pad=pad), f"relu_{name}")

    x = layer(net.input, "conv1", 192, kernel=5, pad=2)
    x = layer(layer(x, "cccp1", 160), "cccp2", 96)
    x = net.max_pool(x, "pool1", 3, 2, ceil=True)
    x = layer(x, "conv2", 192, kernel=5, pad=2)
    x = layer(layer(x, "cccp3", 192), "cccp4", 192)
    x = net.average_pool(x, "pool2", 3, 2, ceil=True)
    x = layer(x, "conv3", 192, kernel=3, pad=1)
    x = layer(layer(x, "cccp5", 192), "cccp6", 10)
    return net.model(net.flatten(net.global_average_pool(x, "pool3"), "flatten"), 10)
