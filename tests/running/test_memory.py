"""What activations need in memory: counted against sums by hand, measured against what is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import perfonnx
from perfonnx.errors import PerfonnxError
from perfonnx.running.bench import bench, render_bench
from perfonnx.running.memory import activation_memory, live_bytes, measured_peak
from tests.passes import nets
from tests.passes.nets import node

MAP = 4 * 12 * 10
"""Bytes of one channel of the small networks' maps."""


@pytest.mark.parametrize(
    ("nodes", "channels"),
    [
        # c of 8 channels is written over by Relu, then read for d of 4
        ([nets.conv(), node("Relu", ["c"], ["r"]), nets.conv("r", "y", "v", name="second")], 12),
        # c is read later, so Relu needs a map of its own: c, r, d
        (
            [
                nets.conv(),
                node("Relu", ["c"], ["r"]),
                nets.conv("r", "d", "v", name="second"),
                nets.conv("c", "e", "v", name="third"),
                node("Add", ["d", "e"], ["y"]),
            ],
            20,
        ),
        # nobody reads c any more when Concat makes 12 channels of d and d3 that have 4 and 8
        (
            [
                nets.conv(),
                nets.conv("c", "d", "v", name="second"),
                nets.conv("x", "d3", name="third"),
                node("Concat", ["d", "d3"], ["y"], axis=1),
            ],
            24,
        ),
    ],
)
def test_live_tensors_are_those_made_and_still_read(nodes: list[onnx.NodeProto], channels: int) -> None:
    model = nets.model(nodes, {"w": nets.values(8, 3, 3, 3), "v": nets.values(4, 8, 3, 3)})
    assert live_bytes(model) == channels * MAP
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    assert live_bytes(model, {"x": (5, 3, 12, 10)}) == 5 * channels * MAP


def large() -> onnx.ModelProto:
    """Maps of 8 and 32 channels: 8 and 32 MiB."""
    nodes = [
        nets.conv(name="first"),
        nets.conv("c", "d", "v", name="second"),
        node("GlobalAveragePool", ["d"], ["y"]),
    ]
    weights = {"w": nets.values(8, 3, 3, 3), "v": nets.values(32, 8, 3, 3)}
    return nets.model(nodes, weights, inputs={"x": (1, 3, 512, 512)})


def test_measured_is_what_is_counted(tmp_path: Path) -> None:
    feed = nets.feed(1, 3, 512, 512)
    model = large()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    needs = activation_memory(path, feed, threads=1)
    assert needs.live == 40 << 20
    assert needs.peak == pytest.approx(needs.live, rel=0.05)

    rewritten = perfonnx.rewrite(model, rate=0.75, only=[""]).proto
    report = bench([path, rewritten], threads=1, runs=1, memory=True, feed=feed)
    assert report.memory is not None
    before, after = report.memory
    assert before.peak == pytest.approx(needs.peak, rel=0.05)
    assert after.peak < before.peak / 2
    entries = report.to_json()["memory"]
    assert entries[1]["ratio"] == before.peak / after.peak
    assert render_bench(report)


def test_a_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.onnx"
    with pytest.raises(PerfonnxError, match=r"gone\.onnx"):
        measured_peak(path, {"x": np.zeros(1)})
