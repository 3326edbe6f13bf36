"""Positions that nobody reads are not computed, and what is computed stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import perfonnx
from perfonnx.methods import Method
from perfonnx.methods.perforate import Perforate
from perfonnx.model import files
from perfonnx.model.shapes import infer_types
from perfonnx.model.workspace import Workspace
from perfonnx.passes.needed import needed_positions
from perfonnx.plan import Plan
from perfonnx.sampling import QUINCUNX, SQUARE
from tests.passes import nets
from tests.passes.nets import node
from tests.passes.test_lattices import TURNED, kernels, weights

SIZE = (11, 8)
EVERY_SECOND = {"kernel_shape": [1, 1], "strides": [2, 2], "pads": [0, 0, 0, 0]}


def model(nodes: list[onnx.NodeProto], opset: int = 17, dtype: Any = np.float32, **more: np.ndarray) -> onnx.ModelProto:
    """A layer `first` from x to a, and nodes behind it that end in y."""
    tensors = {"w0": nets.values(8, 3, 3, 3), "w": nets.values(8, 8, 3, 3), "k": nets.values(8, 8, 1, 1), **more}
    used = {name for each in nodes for name in each.input} | {"w0"}
    cast = {n: v.astype(dtype) if v.dtype == np.float32 else v for n, v in tensors.items() if n in used}
    return nets.model(
        [nets.conv("x", "a", "w0", name="first"), *nodes],
        cast,
        inputs={"x": ("N", 3, *SIZE)},
        outputs={"y": ("N", 8, None, None)},
        opset=opset,
        dtype=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    )


def rewritten(source: onnx.ModelProto, masks: dict[str, np.ndarray], **zero: bool) -> onnx.ModelProto:
    """On rows, with masks; kernels, function bodies and both layouts agree."""
    steps: dict[str, Method] = {n: Perforate(0.5, interpolation="zero" if n in zero else "nearest") for n in masks}
    maps, rows = (
        perfonnx.rewrite(source, plan=Plan(steps, layout=layout), masks=masks).proto for layout in ("nchw", "rows")
    )
    nets.check(rows)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(source.graph.input[0].type.tensor_type.elem_type)
    feeds = nets.feed(2, 3, *SIZE, dtype=dtype)
    (expected,) = perfonnx.session(maps, library=False).run(None, feeds)
    for library in (True, False):
        (found,) = perfonnx.session(rows, library=library, threads=1).run(None, feeds)
        atol = (2e-5 if dtype == np.float32 else 2e-2) * float(np.abs(expected).max())
        np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=atol)
    return rows


def computed(proto: onnx.ModelProto) -> dict[str, int]:
    """How many rows the lowered nodes give, by name."""
    counts = {}
    for each in proto.graph.node:
        position = {"Compact": 1, "SampledConv": 5, "SampledMaxPool": 3, "SampledAveragePool": 3}.get(each.op_type)
        if position is not None:
            counts[each.name] = nets.constant(proto, each.input[position]).size
    return counts


EVERYWHERE = np.ones(SIZE, bool)


def test_a_layer_of_a_stride_reads_some_positions() -> None:
    nodes = [node("Relu", ["a"], ["r"]), nets.conv("r", "y", "k", name="last", **EVERY_SECOND)]
    counts = computed(rewritten(model(nodes), {"first": EVERYWHERE, "last": np.ones((6, 4), bool)}))
    assert counts["first"] == counts["last"] == 24


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("lattice", [QUINCUNX, QUINCUNX.at((0, 1)), SQUARE.at((1, 1))], ids=str)
def test_pools_compute_what_a_lattice_reads(lattice: Any, op: str, dtype: type) -> None:
    taps = TURNED if lattice.index == 2 else [(2 * y, 2 * x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    wide = {"pads": [2, 2, 2, 2], "kernel_shape": [5, 5]}
    nodes = [
        node(op, ["a"], ["p"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="pool"),
        nets.conv("p", "c", "w1", name="second", **wide),
        nets.conv("c", "y", "w2", name="third", **wide),
    ]
    more = {"w1": weights(taps, 8, 8), "w2": weights(taps, 8, 8, seed=1)}
    mask = lattice.mask(SIZE)
    proto = rewritten(model(nodes, dtype=dtype, **more), {"first": EVERYWHERE, "second": mask, "third": mask})
    counts = computed(proto)
    assert counts["pool"] == counts["second"] == mask.sum()
    assert counts["first"] <= EVERYWHERE.sum()


def test_sites_that_are_shown_nowhere_are_not_computed() -> None:
    """A position needs the site that it shows, not its own."""
    mask = QUINCUNX.at((0, 1)).mask(SIZE)
    nodes = [nets.conv("a", "y", "k", name="last", **EVERY_SECOND)]
    proto = rewritten(model(nodes), {"first": mask, "last": np.ones((6, 4), bool)})
    counts = computed(proto)
    assert counts["first"] <= 24
    proto = rewritten(model(nodes), {"first": mask, "last": np.ones((6, 4), bool)}, first=True)
    assert computed(proto)["first"] == 1, "all that is read is zero"


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_shortcut_of_fewer_positions_and_more_channels(opset: int, dtype: type) -> None:
    """As in residual networks for small images: every second position, and channels of zeros."""
    numbers: dict[str, np.ndarray] = {}
    if opset < 10:
        slicing = node("Slice", ["a"], ["s"], starts=[0, 0], ends=[11, 8], axes=[2, 3])
        padding = node("Pad", ["s"], ["p"], pads=[0, 1, 0, 0, 0, 2, 0, 0])
    else:
        numbers = {
            "zero": np.array([0, 0]),
            "end": np.array([99, 99]),
            "axes": np.array([2, 3]),
            "steps": np.array([2, 2]),
            "around": np.array([0, 1, 0, 0, 0, 2, 0, 0]),
        }
        slicing = node("Slice", ["a", "zero", "end", "axes", "steps"], ["s"])
        padding = node("Pad", ["s", "around"], ["p"])
        if opset >= 18:
            numbers |= {"around": np.array([1, 2]), "channels": np.array([-3])}
            padding = node("Pad", ["s", "around", "", "channels"], ["p"])
    stride = 1 if opset < 10 else 2
    nodes = [
        nets.conv("a", "c", "down", name="second", strides=[stride, stride]),
        slicing,
        padding,
        node("Add", ["c", "p"], ["d"]),
        nets.conv("d", "y", "last", name="third"),
    ]
    down, last = nets.values(11, 8, 3, 3), nets.values(8, 11, 3, 3)
    proto = model(nodes, opset, dtype, down=down, last=last, **numbers)
    inner = tuple(-(-edge // stride) for edge in SIZE)
    mask = QUINCUNX.mask(inner)
    found = rewritten(proto, {"first": QUINCUNX.mask(SIZE), "second": mask, "third": mask})
    kinds = nets.op_types(found)
    assert "Slice" not in kinds
    assert kinds.count("Pad") == 1
    (padded,) = (each.input[0] for each in found.graph.node if each.op_type == "Pad")
    picked = [each.op_type for each in found.graph.node if padded in each.output] == ["Gather"]
    assert picked == (stride > 1), "few rows are picked before they are padded"
    assert kinds.count("ExpandRows") == 1


PADS = {
    "not zeros": ({}, [0, 1, 0, 0, 0, 2, 0, 0], 1.0),
    "channels that are cut off": ({}, [0, -1, 0, 0, 0, 2, 0, 0], 0.0),
    "positions too": ({}, [0, 1, 1, 0, 0, 2, 0, 0], 0.0),
    "channels reflected": ({"mode": "reflect"}, [0, 1, 0, 0, 0, 2, 0, 0], 0.0),
}


@pytest.mark.parametrize("name", PADS)
def test_other_pads_stay_on_maps(name: str) -> None:
    attributes, around, value = PADS[name]
    channels = 8 + around[1] + around[5]
    nodes = [
        node("Pad", ["a", "around", "value"], ["p"], **attributes),
        nets.conv("p", "y", "v", name="last"),
    ]
    more = {"around": np.array(around), "value": np.array(value, np.float32), "v": nets.values(8, channels, 3, 3)}
    out = tuple(np.add(SIZE, [around[2], 0]))
    found = rewritten(model(nodes, **more), {"first": EVERYWHERE, "last": np.ones(out, bool)})
    assert "Pad" in nets.op_types(found)
    assert not kernels(found)


def needed(nodes: list[onnx.NodeProto], **more: np.ndarray) -> dict[str, np.ndarray]:
    workspace = Workspace.open(files.load(model(nodes, **more)))
    infer_types(workspace)
    return needed_positions(workspace)


def test_what_is_read_whole_is_not_listed() -> None:
    assert needed([nets.conv("a", "y", "w", name="last")]) == {}
    assert needed([node("Softmax", ["a"], ["y"], axis=1)]) == {}
    assert needed([node("Relu", ["a"], ["y"])]) == {}


def test_what_readers_read_is_added_up() -> None:
    """Some positions for a pool of every second one, others for a crop."""
    pool = node("MaxPool", ["a"], ["p"], kernel_shape=[1, 1], strides=[3, 3])
    crop = node("Slice", ["a", "from", "to", "axes"], ["c"])
    numbers = {"from": np.array([1, 1]), "to": np.array([5, 4]), "axes": np.array([2, 3])}
    found = needed([pool, crop, node("Add", ["p", "c"], ["y"])], **numbers)
    assert list(found) == ["a"]
    expected = np.zeros(SIZE, bool)
    expected[::3, ::3] = expected[1:5, 1:4] = True
    np.testing.assert_array_equal(found["a"], expected)
    assert needed([pool, crop, node("Tanh", ["a"], ["y"])], **numbers) == {}, "Tanh reads all"
