"""Builders of the networks that the papers on sampled convolutions measure, with seeded weights.

    import models
    model = models.build("alexnet", seed=0, batch=1)

Their shapes, parameters and multiply counts are the published ones; their weights are random, so they serve for timing
and for exercising a rewriting, not for accuracy. They end in logits, and leave out what only training uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from models import alexnet, nin, resnet50, vgg16
from models.gates import set_open_share
from perfonnx.errors import PerfonnxError

ADAPTIVE = ("vgg16-racnn", "resnet50-racnn")
"""Those with radius-adaptive convolutions."""

NAMES = ("alexnet", "vgg16", "nin", "resnet50", *ADAPTIVE)
"""The networks that `build` knows."""

OPSETS = range(10, min(onnx.defs.onnx_opset_version(), 22) + 1)
"""Operator set versions that `build` writes. `ceil_mode` of pooling came with 10."""

_BUILDERS: dict[str, Callable[..., onnx.ModelProto]] = {
    "alexnet": alexnet.build,
    "vgg16": vgg16.build,
    "nin": nin.build,
    "resnet50": resnet50.build,
}


OPEN_SHARE = 0.5
"""Share of open pixels, where nobody says one."""


def build(
    name: str,
    *,
    seed: int = 0,
    batch: int | str = 1,
    opset: int = 17,
    weights: bool = True,
    fold_bn: bool = False,
    open_share: float | None = None,
) -> onnx.ModelProto:
    """Builds one network.

    Args:
        name: One of `NAMES`.
        seed: Seed of the weights, 0 or more. The same seed gives the same model, byte for byte.
        batch: Batch size, 0 or more, or the name of a symbolic batch dimension.
        opset: Version of the default operator set, one of `OPSETS`.
        weights: False leaves the weights out: they become graph inputs of the same name and shape. For looking at
            the structure without spending half a gigabyte.
        fold_bn: `resnet50` and `resnet50-racnn` only: BatchNormalization is folded into the convolutions. The function
            stays the same.
        open_share: Networks in `ADAPTIVE` only: roughly the share of pixels, of an image of noise, that each gate
            opens; None: `OPEN_SHARE`.

    Returns:
        A model with one input, `image` [batch, 3, size, size], and one output, `logits` [batch, classes], whose
        intermediate shapes are all written down. Weights are initializers, and no inputs.

    Raises:
        PerfonnxError: An argument is out of its range.
    """
    if name not in NAMES:
        raise PerfonnxError(f"unknown network '{name}': choose one of {', '.join(NAMES)}")
    if seed < 0:
        raise PerfonnxError(f"seed {seed}: must be 0 or more")
    if isinstance(batch, int) and batch < 0:
        raise PerfonnxError(f"batch {batch}: must be 0 or more, or a name for a symbolic batch")
    if isinstance(batch, str) and not batch.isidentifier():
        raise PerfonnxError(f"batch '{batch}': must be a number, or a name such as N for a symbolic batch")
    if opset not in OPSETS:
        raise PerfonnxError(f"opset {opset}: must be between {OPSETS[0]} and {OPSETS[-1]}")
    if open_share is not None and name not in ADAPTIVE:
        raise PerfonnxError(f"{name} has no gates to open: leave --open-share out, or choose {' or '.join(ADAPTIVE)}")
    if open_share is not None and not 0 <= open_share <= 1:
        raise PerfonnxError(f"open share {open_share}: must be between 0 and 1")
    common: dict[str, Any] = {"seed": seed, "batch": batch, "opset": opset, "weights": weights}
    base = name.removesuffix("-racnn")
    if name in ADAPTIVE:
        common["adaptive"] = True
    if base == "resnet50":
        common["fold_bn"] = fold_bn
    elif fold_bn:
        raise PerfonnxError(f"{name} has no BatchNormalization to fold: leave --fold-bn out")
    model = _BUILDERS[base](**common)
    if name in ADAPTIVE and weights:
        set_open_share(model, OPEN_SHARE if open_share is None else open_share, seed)
    return model


__all__ = ["ADAPTIVE", "NAMES", "OPEN_SHARE", "OPSETS", "build"]
