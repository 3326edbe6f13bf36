"""VGG-16: Simonyan and Zisserman (2015), table 1, configuration D, with its three fully connected layers.

Dropout is training only and left out.
"""

from __future__ import annotations

import onnx

from models.builder import Net

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
"""Convolutions in the stage, and their filters."""

ADAPTIVE = 7
"""So many convolutions are radius-adaptive in VGG-16-RACNN (Rakhshanfar): the first ones."""


def build(*, seed: int, batch: int | str, opset: int, weights: bool = True, adaptive: bool = False) -> onnx.ModelProto:
    """[N, 3, 224, 224] to [N, 1000] logits; see `models.build`. `adaptive` makes the first convolutions so."""
    name = "vgg16-racnn" if adaptive else "vgg16"
    net = Net(name, channels=3, size=224, batch=batch, seed=seed, opset=opset, weights=weights)
    x, left = net.input, ADAPTIVE if adaptive else 0
    for stage, (layers, filters) in enumerate(STAGES, start=1):
        for layer in range(1, layers + 1):
            x = net.conv(x, f"conv{stage}_{layer}", filters, 3, pad=1, adaptive=left > 0)
            x, left = net.relu(x, f"relu{stage}_{layer}"), left - 1
        x = net.max_pool(x, f"pool{stage}", 2, 2)
    x = net.flatten(x, "flatten")
    x = net.relu(net.dense(x, "fc6", 4096, 512 * 7 * 7), "relu6")
    x = net.relu(net.dense(x, "fc7", 4096, 4096), "relu7")
    return net.model(net.dense(x, "fc8", 1000, 4096, last=True), 1000)
