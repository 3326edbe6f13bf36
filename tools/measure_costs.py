#!/usr/bin/env python3
"""Measure what layers and turns cost on this machine: the figures of `perfonnx.costs.Costs`, as JSON.

One layer of each kind, dense in onnxruntime, on rows with every position a site, and as one operator from map to map;
one thread.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from benchmark import _machine, _model, median_times, runner

from perfonnx import ops
from perfonnx.ops.common import Activation
from perfonnx.sampling import interpolate

LAYERS = {  # kind: input channels, output channels, group, kernel, height and width
    "wide": (128, 128, 1, 3, 56),
    "narrow": (3, 64, 1, 3, 112),
    "narrow, large": (3, 32, 1, 9, 112),
    "pointwise": (256, 128, 1, 1, 28),
    "depthwise": (128, 128, 128, 3, 56),
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21, metavar="N", help="timed runs of each (default 21)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="at most so long per layer (default 20)")
    options = parser.parse_args()
    costs: dict[str, object] = {"machine": _machine(), "dense": {}, "rows": {}}
    for kind, (channels, outputs, group, kernel, size) in LAYERS.items():
        times = layer_times(channels, outputs, group, kernel, size, options)
        multiplies = outputs * (channels // group) * kernel**2 * size**2 / 1000
        costs["dense"][kind] = round(times[0] * 1e6 / multiplies, 2)  # type: ignore[index]
        costs["rows"][kind] = round(times[1] * 1e6 / multiplies, 2)  # type: ignore[index]
        if kind == "wide":
            costs["canonical"] = round((times[2] - times[1]) * 1e6 / ((channels + outputs) * size**2 / 1000), 1)
    for name, milliseconds in zip(("compact", "expand"), turn_times(64, 112, options), strict=True):
        costs[name] = round(milliseconds * 1e6 / (64 * 112**2 / 1000), 1)
    print(json.dumps(costs, indent=2))


def layer_times(
    channels: int, outputs: int, group: int, kernel: int, size: int, options: argparse.Namespace
) -> list[float]:
    """Milliseconds of a layer: dense, on rows, canonical."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, channels, size, size), dtype=np.float32)
    w = rng.standard_normal((outputs, channels // group, kernel, kernel), dtype=np.float32)
    b = np.zeros(outputs, np.float32)
    pads = [kernel // 2] * 4
    geometry = {
        "kernel_shape": [kernel] * 2,
        "strides": [1, 1],
        "pads": pads,
        "dilations": [1, 1],
        "group": group,
    }
    attributes = {**geometry, **Activation().attributes()}
    mask = np.ones((size, size), bool)
    positions = np.arange(size * size, dtype=np.int32)
    on_rows = {"W": w, "B": b, "in_source": positions, "in_shape": np.array([size, size]), "sites": positions}
    canonical = {"W": w, "B": b, "mask": mask, "source": interpolate(mask).source}
    s = np.ascontiguousarray(x.reshape(1, channels, -1).transpose(0, 2, 1))
    runners = [
        runner(_model("Conv", "", {"X": x}, {"W": w, "B": b}, geometry, 4), {"X": x}, 1, library=False),
        runner(_model("SampledConv", ops.DOMAIN, {"S": s}, on_rows, attributes, 3), {"S": s}, 1, library=True),
        runner(_model("PerforatedConv", ops.DOMAIN, {"X": x}, canonical, attributes, 4), {"X": x}, 1, library=True),
    ]
    return median_times(runners, options)


def turn_times(channels: int, size: int, options: argparse.Namespace) -> list[float]:
    """Milliseconds of Compact and ExpandRows of a whole map."""
    x = np.random.default_rng(0).standard_normal((1, channels, size, size), dtype=np.float32)
    s = np.ascontiguousarray(x.reshape(1, channels, -1).transpose(0, 2, 1))
    positions = np.arange(size * size, dtype=np.int32)
    source = {"source": positions.reshape(-1, 1), "shape": np.array([size, size])}
    runners = [
        runner(_model("Compact", ops.DOMAIN, {"X": x}, {"sites": positions}, {}, 3), {"X": x}, 1, library=True),
        runner(_model("ExpandRows", ops.DOMAIN, {"S": s}, source, {}, 4), {"S": s}, 1, library=True),
    ]
    return median_times(runners, options)


if __name__ == "__main__":
    main()
