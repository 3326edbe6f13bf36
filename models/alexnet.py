"""AlexNet: Krizhevsky, Sutskever and Hinton (2012), in the form of Caffe's bvlc_alexnet definition.

227x227 input, two-group conv2, conv4 and conv5, normalization before pooling. Dropout is training only and left out.
"""

from __future__ import annotations

import onnx

from models.builder import Net


def build(*, seed: int, batch: int | str, opset: int, weights: bool = True) -> onnx.ModelProto:
    """[N, 3, 227, 227] to [N, 1000] logits; see `models.build`."""
    net = Net("alexnet", channels=3, size=227, batch=batch, seed=seed, opset=opset, weights=weights)
    x = net.relu(net.conv(net.input, "conv1", 96, 11, stride=4), "relu1")
    x = net.max_pool(net.lrn(x, "norm1"), "pool1", 3, 2)
    x = net.relu(net.conv(x, "conv2", 256, 5, pad=2, group=2), "relu2")
    x = net.max_pool(net.lrn(x, "norm2"), "pool2", 3, 2)
    x = net.relu(net.conv(x, "conv3", 384, 3, pad=1), "relu3")
    x = net.relu(net.conv(x, "conv4", 384, 3, pad=1, group=2), "relu4")
    x = net.relu(net.conv(x, "conv5", 256, 3, pad=1, group=2), "relu5")
    x = net.flatten(net.max_pool(x, "pool5", 3, 2), "flatten")
    x = net.relu(net.dense(x, "fc6", 4096, 256 * 6 * 6), "relu6")
    x = net.relu(net.dense(x, "fc7", 4096, 4096), "relu7")
    return net.model(net.dense(x, "fc8", 1000, 4096, last=True), 1000)
