#!/usr/bin/env python3
"""Measure what layers and turns cost on this machine: the figures of `perfonnx.passes.estimates.Costs`, as JSON.

Each layer of `benchmark.py kernels`, dense inside onnxruntime's blocked layout and on rows with every position a site;
the prices of a kind are those that explain its layers best, each in proportion. One thread.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from benchmark import KERNELS, _machine, _model, kernel_times, median_times, runner
from onnx import TensorProto
from scipy.optimize import nnls

from perfonnx import ops
from perfonnx.model.layers import Layer
from perfonnx.ops.common import Activation, ConvAttributes
from perfonnx.passes.estimates import KINDS, Costs, Price, kind_of
from perfonnx.sampling import interpolate

BLOCK = 16
"""Output channels that are computed together."""


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21, metavar="N", help="timed runs of each (default 21)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="at most so long per layer (default 20)")
    options = parser.parse_args()
    times: dict[str, list[tuple[Layer, list[float]]]] = {kind: [] for kind in KINDS}
    for shape in KERNELS.values():
        layer = layer_of(shape)
        times[kind_of(layer)].append((layer, kernel_times(shape, 1, 1, options)))
    costs: dict[str, object] = {"machine": _machine()}
    for form, name in enumerate(("dense", "rows")):
        costs[name] = {
            kind: prices(kind, [layer for layer, _ in found], [both[form] * 1e6 for _, both in found], tap=form == 1)
            for kind, found in times.items()
        }
    compact, expand = turn_times(64, 112, options)
    costs["compact"], costs["expand"] = (round(ms * 1e6 / (64 * 112**2 / 1000), 1) for ms in (compact, expand))
    costs["canonical"] = round(canonical_time(128, 56, options) * 1e6 / (2 * 128 * 56**2 / 1000), 1)
    print(json.dumps(costs, indent=2))


def layer_of(shape: tuple[int, int, int, int, int, int, int]) -> Layer:
    """The layer as costs see it."""
    channels, outputs, group, kernel, stride, height, width = shape
    geometry = ConvAttributes((kernel, kernel), (stride, stride), (kernel // 2,) * 4, (1, 1), group)  # type: ignore[arg-type]
    weight = (outputs, channels // group, kernel, kernel)
    size = geometry.output_shape(height, width)
    return Layer("", None, geometry, weight, TensorProto.FLOAT, (1, channels, height, width), size, None, None)


def prices(kind: str, layers: list[Layer], nanoseconds: list[float], *, tap: bool) -> dict[str, float]:
    """The `Price` of a kind: least squares of relative errors, none of its parts negative."""

    def works(*price: float) -> list[float]:
        costs = Costs(dense={kind: Price(*price, block=BLOCK)})
        return [costs.of_dense(layer) for layer in layers]

    multiplies, with_a_tap, values = works(1.0, 0.0, 0.0), works(1.0, 0.0, 1.0), works(0.0, 1.0, 0.0)
    taps = np.subtract(with_a_tap, multiplies) if tap and kind == "full" else np.zeros(len(layers))
    parts = np.stack([multiplies, taps, values], axis=1) / np.array(nanoseconds)[:, None]
    multiply, one_tap, value = nnls(parts, np.ones(len(layers)))[0]
    found = {"multiply": multiply, "value": value, "tap": one_tap / multiply if multiply else 0.0}
    return {name: round(float(number), 2) for name, number in found.items()} | {"block": BLOCK}


def canonical_time(channels: int, size: int, options: argparse.Namespace) -> float:
    """Milliseconds that a layer takes from map to map beyond those on rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, channels, size, size), dtype=np.float32)
    constants = {"W": rng.standard_normal((channels, channels, 3, 3), dtype=np.float32), "B": np.zeros(channels)}
    constants["B"] = constants["B"].astype(np.float32)
    attributes = {**ConvAttributes((3, 3), pads=(1, 1, 1, 1)).attributes(), **Activation().attributes()}
    mask = np.ones((size, size), bool)
    positions = np.arange(size * size, dtype=np.int32)
    on_rows = {**constants, "in_source": positions, "in_shape": np.array([size, size]), "sites": positions}
    canonical = {**constants, "mask": mask, "source": interpolate(mask).source}
    s = np.ascontiguousarray(x.reshape(1, channels, -1).transpose(0, 2, 1))
    runners = [
        runner(_model("SampledConv", ops.DOMAIN, {"S": s}, on_rows, attributes, 3), {"S": s}, 1, library=True),
        runner(_model("PerforatedConv", ops.DOMAIN, {"X": x}, canonical, attributes, 4), {"X": x}, 1, library=True),
    ]
    rows, maps = median_times(runners, options)
    return max(maps - rows, 0.0)


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
