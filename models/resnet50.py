"""ResNet-50: He et al. (2016), table 1, in the "v1.5" form: the stride of a stage sits in its first 3x3 convolution.

Every convolution is followed by a BatchNormalization node of its own, as trained models come, unless they are folded.
"""

from __future__ import annotations

import onnx

from models.builder import Net

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Blocks in the stage, and the filters of their 3x3 convolution."""

BRANCH_GAIN = 0.25
"""Scale of a block's last normalization: small, so that the sum over 16 blocks stays of order one."""


def build(
    *,
    seed: int,
    batch: int | str,
    opset: int,
    weights: bool = True,
    fold_bn: bool = False,
    adaptive: bool = False,
) -> onnx.ModelProto:
    """[N, 3, 224, 224] to [N, 1000] logits; see `models.build`.

    `adaptive` makes all 16 3x3 convolutions radius-adaptive: ResNet-50-RACNN (Rakhshanfar).
    """
    graph = "resnet50-racnn" if adaptive else "resnet50"
    net = Net(graph, channels=3, size=224, batch=batch, seed=seed, opset=opset, weights=weights)
    # The image is taken to have second moment one, so the first convolution's output has twice that (He's gain).
    x = net.conv_bn(net.input, "conv1", 64, 7, gain=0.7, stride=2, pad=3, fold=fold_bn)
    x = net.max_pool(net.relu(x, "relu1"), "pool1", 3, 2, pad=1)
    for stage, (blocks, filters) in enumerate(STAGES, start=2):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            name = f"stage{stage}_block{block}"
            y = net.conv_bn(x, f"{name}_conv1", filters, 1, gain=1.0, fold=fold_bn)
            y = net.relu(y, f"{name}_relu1")
            y = net.conv_bn(
                y, f"{name}_conv2", filters, 3, gain=1.0, stride=stride, pad=1, fold=fold_bn, adaptive=adaptive
            )
            y = net.relu(y, f"{name}_relu2")
            y = net.conv_bn(y, f"{name}_conv3", 4 * filters, 1, gain=BRANCH_GAIN, fold=fold_bn)
            if block == 1:
                x = net.conv_bn(x, f"{name}_shortcut", 4 * filters, 1, gain=0.7, stride=stride, fold=fold_bn)
            x = net.relu(net.add(y, x, f"{name}_add"), f"{name}_relu3")
    x = net.flatten(net.global_average_pool(x, "pool5"), "flatten")
    return net.model(net.dense(x, "fc", 1000, 2048, last=True), 1000)
