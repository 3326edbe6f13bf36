"""Averages over maps of which a lattice is computed take its sites, whatever operator they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

import perfonnx
from perfonnx import Plan
from perfonnx.methods.sublattice import Sublattice, lattice_mask
from tests.passes import nets
from tests.passes.nets import node

SIZE = (7, 6)
AXES = np.array([2, -1], np.int64)
MEANS: dict[str, tuple[int, dict[str, Any], bool]] = {
    "GlobalAveragePool": (17, {}, False),
    "AveragePool": (17, {"kernel_shape": [*SIZE], "strides": [3, 1], "count_include_pad": 1}, False),
    "ReduceMean": (17, {"axes": AXES.tolist()}, False),
    "ReduceMean of two axes": (18, {"keepdims": 0}, True),
}


def network(mean: str, behind: list[Any] | None = None, batch: int | str = "N") -> ModelProto:
    """A residual block whose shortcut holds all positions, and a mean of its map."""
    opset, attributes, axes = MEANS[mean]
    nodes = [
        nets.conv("x", "a", "w0", name="first"),
        node("Relu", ["a"], ["ra"]),
        node("Concat", ["ra", "x"], ["s"], axis=1),
        nets.conv("ra", "b", "w1", name="second"),
        node("Add", ["b", "s"], ["t"]),
        node("Relu", ["t"], ["rt"]),
        node(mean.split(" ", maxsplit=1)[0], ["rt", *(["axes"] if axes else [])], ["m"], **attributes, name="mean"),
        *(behind or [node("Identity", ["m"], ["y"])]),
    ]
    weights = {"w0": nets.values(5, 3, 3, 3), "w1": nets.values(8, 5, 3, 3, seed=1), "w2": nets.values(8, 4, seed=2)}
    weights |= {"axes": AXES} if axes else {}
    outputs = {"y": (batch, 4)} if behind else {"y": (batch, 8) if axes else (batch, 8, 1, 1)}
    return nets.model(nodes, weights, inputs={"x": (batch, 3, *SIZE)}, outputs=outputs, opset=opset)


def samples(batch: int = 8) -> list[dict[str, np.ndarray]]:
    return [nets.feed(batch, 3, *SIZE, seed=i) for i in range(3)]


def plan(lattice: str) -> Plan:
    return Plan({"first": Sublattice(lattice), "second": Sublattice(lattice)})


def with_output(model: ModelProto, name: str) -> ModelProto:
    """The model, with one of its maps as a second output."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_tensor_value_info(name, 1, (None,) * 4))
    return copy


@pytest.mark.parametrize("layout", ["rows", "nchw"])
@pytest.mark.parametrize("lattice", ["quincunx", "square"])
@pytest.mark.parametrize("mean", MEANS)
def test_the_mean_is_that_of_the_sites(mean: str, lattice: str, layout: str) -> None:
    model = with_output(network(mean), "rt")
    result = perfonnx.rewrite(model, plan=plan(lattice), samples=samples(), layout=layout).proto
    nets.check(result)
    feed = nets.feed(4, 3, *SIZE, seed=9)
    got = perfonnx.session(result).run(None, feed)
    sites = lattice_mask(lattice, SIZE)
    expected = got[1][:, :, sites].mean(axis=2)
    assert got[0].shape == nets.run(model, feed)[0].shape
    np.testing.assert_allclose(got[0].reshape(4, 8), expected, atol=1e-6)
    assert np.abs(got[1].mean(axis=(2, 3)) - expected).max() > 1e-3
    for mine, stock in zip(got, nets.run(result, feed), strict=True):
        np.testing.assert_allclose(mine, stock, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, "N"])
@pytest.mark.parametrize("mean", ["GlobalAveragePool", "ReduceMean of two axes"])
def test_a_region_ends_on_rows(mean: str, batch: int | str) -> None:
    """Nothing is written out as a map, and the shortcut has rows for the sites alone."""
    flat = [] if "two" in mean else [node("Flatten", ["m"], ["f"], axis=1)]
    behind = [*flat, node("Gemm", [*("f" if flat else "m"), "w2"], ["y"])]
    count = 4 if batch == "N" else int(batch)
    data = samples(count)
    result = perfonnx.rewrite(network(mean, behind, batch), plan=plan("quincunx"), samples=data).proto
    nets.check(result)
    own, sites = nets.ours(result), lattice_mask("quincunx", SIZE).sum()
    assert "Expand" not in [n.op_type for n in own]
    assert not {"Reshape", "GlobalAveragePool", "Add", "Relu"} & set(nets.op_types(result))
    (pool,) = (n for n in own if n.op_type == "SampledAveragePool")
    assert nets.constant(result, pool.input[1]).size == sites
    (mine,), (stock,) = perfonnx.session(result).run(None, data[0]), nets.run(result, data[0])
    np.testing.assert_allclose(mine, stock, atol=1e-5)


def test_what_is_known_everywhere_is_averaged_everywhere() -> None:
    nodes = {"first": Sublattice("quincunx"), "second": Sublattice("dense")}
    result = perfonnx.rewrite(network("GlobalAveragePool"), plan=Plan(nodes), samples=samples(), layout="nchw").proto
    assert "Gather" not in nets.op_types(result)


def test_perforation_fills_what_is_averaged() -> None:
    masked = {name: perfonnx.Perforate(0.5, "lattice") for name in ("first", "second")}
    result = nets.rewrite(network("GlobalAveragePool"), plan=Plan(masked)).proto
    assert "Gather" not in nets.op_types(result)


def test_a_plan_can_say_that_maps_are_averaged() -> None:
    of_maps = Plan(plan("quincunx").layers, means="maps")
    result = perfonnx.rewrite(network("GlobalAveragePool"), plan=of_maps, samples=samples(), layout="nchw")
    assert "Gather" not in nets.op_types(result.proto)
    assert result.plan.means == "maps"
    assert Plan.from_json(result.plan.to_json()).means == "maps"


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("AveragePool", {"kernel_shape": [7, 5]}),
        ("AveragePool", {"kernel_shape": [9, 8], "pads": [1] * 4, "count_include_pad": 1}),
        ("ReduceMean", {"axes": [1, 2]}),
        ("ReduceMean", {}),
        ("ReduceSum", {}),
        ("GlobalMaxPool", {}),
    ],
)
def test_others_read_the_map(op: str, attributes: dict[str, Any]) -> None:
    nodes = [nets.conv("x", "c", "w", name="first"), node(op, ["c"], ["y"], **attributes)]
    model = nets.model(nodes, {"w": nets.values(5, 3, 3, 3)}, inputs={"x": ("N", 3, *SIZE)})
    result = perfonnx.rewrite(model, plan=Plan({"first": Sublattice()}), samples=samples(), layout="nchw").proto
    assert "Gather" not in nets.op_types(result)
