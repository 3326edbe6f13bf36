"""Column sparsity: convolutions with zeros in blocks, which the library leaves out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import perfonnx
from perfonnx import PerfonnxError
from perfonnx.methods import METHODS, Chain
from perfonnx.methods.exact import Exact
from perfonnx.methods.lowrank.column_sparse import ColumnSparse
from perfonnx.methods.perforate import Perforate
from tests.methods.lowrank import chains
from tests.methods.lowrank.test_lowrank import batches, difference, network
from tests.passes import nets
from tests.processes import run_python

ROOT = str(Path(__file__).resolve().parents[3])

WIDE = nets.values(40, 8, 3, 3)


def weight_of(model: ModelProto, layer: str = "conv2") -> np.ndarray:
    """Of the layer that stands in a layer's place."""
    (node,) = (n for n in model.graph.node if n.name.startswith(f"{layer}.sparse"))
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == node.input[1])


def columns_left(weight: np.ndarray, block: int) -> list[int]:
    """Of each block of outputs."""
    flat = weight.reshape(len(weight), -1)
    return [int((flat[first : first + block] != 0).any(axis=0).sum()) for first in range(0, len(flat), block)]


def test_multiplies_are_those_of_the_columns_that_are_left() -> None:
    form = chains.form(8, 6, chains.AWKWARD)
    assert chains.counted(ColumnSparse(), form, 9) == 36 / 9


@pytest.mark.parametrize("data", [False, True], ids=["plain", "data"])
@pytest.mark.parametrize(("block", "counts"), [(16, [24, 24, 24]), (0, [24])])
def test_blocks_of_outputs_read_columns_of_their_own(block: int, counts: list[int], data: bool) -> None:
    model = network(WIDE)
    samples = batches() if data else None
    result = perfonnx.rewrite(model, method="column-sparse", rank=24, block=block, only="conv2", samples=samples)
    nets.check(result.proto)
    assert columns_left(weight_of(result.proto), block or 40) == counts
    (layer,) = result.report.layers
    assert layer.multiplies[1] * 72 == layer.multiplies[0] * 24
    assert result.report.multiplies[0] - result.report.multiplies[1] == layer.multiplies[0] - layer.multiplies[1]
    assert layer.plan == Chain((ColumnSparse(rank=24, block=block), Exact()))
    assert perfonnx.inspect(result.proto).multiplies == result.report.multiplies[1]


def test_blocks_lose_less_than_columns_of_all() -> None:
    """Where each block has columns of its own that count."""
    counts = np.repeat(np.random.default_rng(1).choice([0.1, 1.0], (3, 72)), 16, axis=0)[:40]
    model = network((WIDE.reshape(40, 72) * counts).reshape(WIDE.shape).astype(np.float32))
    blocks, together = (
        perfonnx.rewrite(model, method="column-sparse", save=0.6, block=block, only="conv2", samples=batches()).proto
        for block in (16, 0)
    )
    assert difference(model, blocks) < 0.9 * difference(model, together)


@pytest.mark.parametrize("attributes", [{"strides": [2, 1], "pads": [2, 0, 0, 1]}, {"group": 2}], ids=str)
def test_columns_that_were_zero_are_found(attributes: dict[str, Any]) -> None:
    groups = attributes.get("group", 1)
    weight = nets.values(32, 8, 3, 3).reshape(32, 72)
    rng = np.random.default_rng(1)
    for first in range(0, 32, 16):
        weight[first : first + 16, rng.permutation(72)[:36]] = 0
    model = network(weight.reshape(32, 8, 3, 3), **attributes)
    result = perfonnx.rewrite(model, method="column-sparse", error=1e-6, only="conv2", samples=batches(), ridge=1e-7)
    nets.check(result.proto)
    assert groups == 2 or result.report.layers[0].notes[-1].startswith("rank 36 of 72")
    assert difference(model, result.proto) < 1e-5


def test_the_library_leaves_zeros_out_and_gives_what_the_body_gives() -> None:
    """Lists of columns are taken where they cost least: of a 5x5 layer, with a fifth of its weights left."""
    code = """
import numpy as np
from perfonnx import rewrite, runtime
from tests.passes import nets
weights = {"w": (nets.values(64, 64, 5, 5) / 40).astype(np.float32)}
conv = nets.conv("x", "y", "w", name="conv", kernel_shape=[5, 5], pads=[2, 2, 2, 2])
model = nets.model([conv], weights, inputs={"x": (1, 64, 14, 14)}, outputs={"y": (1, 64, 14, 14)})
feeds = nets.feed(1, 64, 14, 14)
result = rewrite(model, method="column-sparse", save=0.8).to_bytes()
(expected,), (given,) = nets.run(result, feeds), runtime.session(result).run(None, feeds)
assert np.abs(given - expected).max() <= 1e-4 * np.abs(expected).max()
"""
    said = run_python(code, check=True, PERFONNX_VERBOSE="1", PYTHONPATH=ROOT).stderr
    assert re.search(r"PerforatedConv node '[^']+': (\w+)", said)[1] == "columns"  # type: ignore[index]


def test_a_saved_plan_makes_the_same_model(tmp_path: Path) -> None:
    model = network(WIDE)
    result = perfonnx.rewrite(model, method="column-sparse", save=0.5, samples=batches())
    result.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    assert again.to_bytes() == result.to_bytes()
    steps = json.loads((tmp_path / "plan.json").read_text())["layers"]["conv2"]
    assert [step["method"] for step in steps] == ["column-sparse", "exact"]


def test_sites_of_what_is_left_can_be_perforated() -> None:
    model = network(WIDE)
    plan = perfonnx.Plan({"conv2": Chain((ColumnSparse(rank=36), Perforate(rate=0.5)))})
    (layer,) = perfonnx.rewrite(model, plan=plan).report.layers
    assert layer.multiplies[1] == pytest.approx(layer.multiplies[0] / 4, rel=0.05)
    plain = perfonnx.Plan({"conv2": Chain((ColumnSparse(rank=36),))})
    assert perfonnx.rewrite(model, plan=plain).report.layers[0].plan == Chain((ColumnSparse(rank=36), Exact()))


@pytest.mark.parametrize("block", [8, -16, 1.5, True])
def test_blocks_of_other_sizes_are_refused(block: Any) -> None:
    with pytest.raises(PerfonnxError, match="block"):
        perfonnx.rewrite(network(WIDE), method="column-sparse", block=block)


def test_depthwise_layers_are_refused() -> None:
    model = network(nets.values(8, 1, 3, 3), group=8)
    (skip,) = (
        s for s in perfonnx.rewrite(model, method="column-sparse", only=["."]).report.skips if s.layer == "conv2"
    )
    assert skip.reason == "depthwise: the library reads all of its taps"


def test_products_are_left_to_others() -> None:
    model = nets.model(
        [nets.node("MatMul", ["x", "w"], ["y"], name="fc")],
        {"w": nets.values(20, 12)},
        inputs={"x": ("N", 20)},
        outputs={"y": (None, 12)},
    )
    assert not perfonnx.rewrite(model, method="column-sparse").report.layers
    assert {"MatMul"} <= METHODS["prune"].REPLACES
