"""Layers on lattices in their own coordinates: each site reads the same rows with the same weights as before."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

import perfonnx
from perfonnx.methods import Method
from perfonnx.methods.perforate import Perforate
from perfonnx.ops.common import ConvAttributes
from perfonnx.passes.rules.lattices import Reading, on_own_grid
from perfonnx.plan import Plan
from perfonnx.sampling import QUINCUNX, SQUARE, Sublattice
from tests.passes import nets

EVERYWHERE = Sublattice(((1, 0), (0, 1)))
TURNED = [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (2, 0), (-2, 0), (0, 2), (0, -2)]
SPACED = [(2 * y, 2 * x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
CROSS = [(1, 0), (-1, 0), (0, 1), (0, -1)]


def reading(
    shape: tuple[int, int],
    taps: list[tuple[int, int]],
    sites: Sublattice,
    *,
    strides: tuple[int, int] = (1, 1),
    dilation: int = 1,
    seed: int = 0,
) -> Reading:
    """A layer of 3 groups around each output position, whose weights are zero but for `taps`, [dy, dx] in pixels."""
    rng = np.random.default_rng(seed)
    reach = max([1, *(abs(v) for tap in taps for v in tap)])
    edge = 2 * (reach // dilation) + 1
    weight = np.zeros((6, 2, edge, edge), np.float32)
    for y, x in taps:
        weight[:, :, (y + reach) // dilation, (x + reach) // dilation] = rng.standard_normal((6, 2))
    attributes = ConvAttributes((edge, edge), strides, (reach,) * 4, (dilation, dilation), 3)
    mask = sites.mask(attributes.output_shape(*shape))
    source = rng.integers(-1, 50, math.prod(shape)).astype(np.int32)
    return Reading(weight, attributes, source, shape, np.flatnonzero(mask).astype(np.int32))


def read_rows(layer: Reading) -> list[Counter[tuple[int, bytes]]]:
    """For each site the rows that it reads, each with its weights; not those of zeros."""
    a = layer.attributes
    height, width = layer.shape
    columns = a.output_shape(*layer.shape)[1]
    found = []
    for site in layer.sites:
        rows: Counter[tuple[int, bytes]] = Counter()
        for i, j in np.ndindex(*a.kernel_shape):
            y = site // columns * a.strides[0] - a.pads[0] + i * a.dilations[0]
            x = site % columns * a.strides[1] - a.pads[1] + j * a.dilations[1]
            row = layer.source[y * width + x] if 0 <= y < height and 0 <= x < width else -1
            weight = layer.weight[:, :, i, j]
            if row >= 0 and weight.any():
                rows[int(row), weight.tobytes()] += 1
        found.append(rows)
    return found


SHAPES = [(8, 8), (7, 9), (5, 1), (1, 6), (1, 1), (2, 3), (12, 4)]
LAYERS = {
    "turned taps": (TURNED, QUINCUNX, (1, 1), (3, 3)),
    "own taps": (TURNED[:5], QUINCUNX, (1, 1), (3, 3)),
    "turned taps, the other coset": (TURNED, QUINCUNX.at((0, 1)), (1, 1), (3, 3)),
    "between the positions of a quincunx": (CROSS, QUINCUNX.at((1, 0)), (1, 1), (2, 2)),
    "taps two apart": (SPACED, SQUARE, (1, 1), (3, 3)),
    "taps two apart, another coset": (SPACED, SQUARE.at((1, 1)), (1, 1), (3, 3)),
    "between the columns of a square lattice": ([(0, -1), (0, 1)], SQUARE.at((0, 1)), (1, 1), (1, 2)),
    "in the middle of its squares": ([(1, 1), (1, -1), (-1, 1), (-1, -1)], SQUARE.at((1, 1)), (1, 1), (2, 2)),
    "turned taps, a stride of 2": (TURNED, EVERYWHERE, (2, 2), (3, 3)),
    "taps two apart, a stride of 2": (SPACED, EVERYWHERE, (2, 2), (3, 3)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_reads_the_same_in_its_own_coordinates(name: str, shape: tuple[int, int]) -> None:
    taps, sites, strides, kernel = LAYERS[name]
    layer = reading(shape, taps, sites, strides=strides)
    found = on_own_grid(layer)
    if not layer.sites.size:
        assert found is None
        return
    assert found is not None
    assert found.attributes == ConvAttributes(kernel, group=3)
    assert found.sites.dtype == found.source.dtype == np.int32
    assert read_rows(found) == read_rows(layer)


def test_dilated_taps_are_neighbours_on_a_lattice() -> None:
    found = on_own_grid(reading((9, 8), SPACED, SQUARE.at((0, 1)), dilation=2))
    assert found is not None
    assert found.attributes == ConvAttributes((3, 3), group=3)


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_zero_taps_at_the_borders_of_a_kernel_are_cut_off(strides: tuple[int, int], dilation: int) -> None:
    taps = [(dilation * y, dilation * x) for y in (-1, 0) for x in (-1, 0, 1)] + [(-2 * dilation, 0)]
    layer = reading((9, 8), taps, EVERYWHERE, strides=strides, dilation=dilation)
    found = on_own_grid(layer)
    assert found is not None
    assert found.attributes.kernel_shape == (3, 3)
    assert found.attributes.strides == strides
    assert np.array_equal(found.sites, layer.sites)
    assert read_rows(found) == read_rows(layer)


def test_a_layer_that_gains_nothing_is_left_alone() -> None:
    full = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    assert on_own_grid(reading((8, 8), full, QUINCUNX)) is None
    assert on_own_grid(reading((8, 8), TURNED, EVERYWHERE)) is None
    assert on_own_grid(reading((8, 8), [], QUINCUNX)) is None
    assert on_own_grid(replace(reading((8, 8), TURNED, QUINCUNX), sites=np.zeros(0, np.int32))) is None
    behind = reading((8, 8), [(1, 0), (2, 0)], EVERYWHERE)  # its first tap reads the map's second row
    assert on_own_grid(behind) is None


@pytest.mark.parametrize(("size", "tiles"), [(8, 4), (13, 10), (16, 12), (28, 32), (56, 112)])
def test_few_tiles_hold_sites(size: int, tiles: int) -> None:
    found = on_own_grid(reading((size, size), TURNED, QUINCUNX))
    assert found is not None
    y, x = np.divmod(found.sites, found.attributes.output_shape(*found.shape)[1])
    assert len({*zip((y // 4).tolist(), (x // 4).tolist(), strict=True)}) == tiles


def test_a_map_that_is_mostly_holes_is_left_alone() -> None:
    """In the basis of the quincunx a line of positions is the diagonal of a square."""
    assert on_own_grid(reading((2, 200), TURNED, QUINCUNX)) is None


# --- in networks -----------------------------------------------------------------------------------------------------


def weights(taps: list[tuple[int, int]], outputs: int, inputs: int, edge: int = 5, seed: int = 0) -> np.ndarray:
    """[outputs, inputs, edge, edge], zero but for `taps`."""
    result = np.zeros((outputs, inputs, edge, edge), np.float32)
    values = nets.values(outputs, inputs * len(taps), seed=seed).reshape(outputs, inputs, len(taps))
    for number, (y, x) in enumerate(taps):
        result[:, :, y + edge // 2, x + edge // 2] = values[:, :, number]
    return result


def network(size: tuple[int, int], strides: int, group: int, dtype: type = np.float32) -> onnx.ModelProto:
    """Onto a lattice, two layers within it with a residual, one of a stride, and off it."""
    wide = {"pads": [2, 2, 2, 2], "kernel_shape": [5, 5]}
    nodes = [
        nets.conv("x", "a", "w0", "b", name="enter"),
        nets.node("Relu", ["a"], ["ar"]),
        nets.conv("ar", "c", "w1", "b", name="inside", **wide),
        nets.node("Relu", ["c"], ["cr"]),
        nets.conv("cr", "d", "w2", name="residual", group=group, **wide),
        nets.node("Add", ["d", "ar"], ["s"]),
        nets.node("Relu", ["s"], ["sr"]),
        nets.conv("sr", "e", "w3", name="strided", strides=[strides, strides], **wide),
        nets.conv("e", "y", "w4", name="off"),
    ]
    tensors = {
        "w0": nets.values(16, 3, 3, 3),
        "b": nets.values(16),
        "w1": weights(TURNED, 16, 16),
        "w2": weights(TURNED, 16, 16 // group, seed=1),
        "w3": weights(TURNED, 16, 16, seed=2),
        "w4": nets.values(4, 16, 3, 3),
    }
    tensors = {name: values.astype(dtype) for name, values in tensors.items()}
    return nets.model(
        nodes,
        tensors,
        inputs={"x": ("N", 3, *size)},
        outputs={"y": ("N", 4, None, None)},
        dtype=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    )


def kernels(model: onnx.ModelProto) -> dict[str, tuple[list[int], list[int]]]:
    """Kernel and strides of the layers on rows, by name."""
    convs = [node for node in model.graph.node if node.op_type == "SampledConv"]
    return {n.name: (nets.attribute(n, "kernel_shape"), nets.attribute(n, "strides")) for n in convs}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [(12, 14), (13, 9), (6, 6), (3, 2)], ids=str)
def test_a_network_on_a_lattice_gives_what_it_gives_on_maps(
    size: tuple[int, int], strides: int, group: int, dtype: type
) -> None:
    model = network(size, strides, group, dtype)
    reduced = tuple(-(-edge // strides) for edge in size)
    masks = {name: QUINCUNX.mask(size) for name in ("enter", "inside", "residual")}
    masks["strided"] = np.ones(reduced, bool) if strides == 2 else QUINCUNX.mask(size)
    steps = {name: Perforate(0.5) for name in masks}
    maps, rows = (perfonnx.rewrite(model, plan=Plan(steps, layout=layout), masks=masks) for layout in ("nchw", "rows"))
    nets.check(rows.proto)
    found = kernels(rows.proto)
    assert all(found[name] == ([3, 3], [1, 1]) for name in ("inside", "residual", "strided")), found
    assert {"w1", "w2", "w3"}.isdisjoint(t.name for t in rows.proto.graph.initializer), "wide weights are not needed"
    feeds = nets.feed(2, 3, *size, dtype=dtype)
    (expected,) = perfonnx.session(maps.proto, library=False).run(None, feeds)
    for library in (True, False):
        (actual,) = perfonnx.session(rows.proto, library=library, threads=1).run(None, feeds)
        assert actual.dtype == dtype
        tolerance = (2e-5 if dtype == np.float32 else 2e-2) * float(np.abs(expected).max())
        np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=0, atol=tolerance)


# --- off a lattice ---------------------------------------------------------------------------------------------------


def leaving(size: tuple[int, int], op: str, tail: str, group: int = 1) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A quincunx and behind it a layer in two parts, one for each class of positions; and the layers' masks."""
    even, odd = QUINCUNX.mask(size), ~QUINCUNX.mask(size)
    nodes = [
        nets.conv("x", "a", "w0", "b", name="enter"),
        nets.node("Relu", ["a"], ["ar"]),
        nets.conv("ar", "c", "w1", "b", name="even", pads=[2, 2, 2, 2], kernel_shape=[5, 5], group=group),
        nets.conv("ar", "d", "w2", "b2", name="odd", group=group),
        nets.node(op, ["c", "d"], ["s"]),
    ]
    tensors = {
        "w0": nets.values(16, 3, 3, 3),
        "b": nets.values(16),
        "b2": nets.values(16, seed=1),
        "w1": weights(TURNED, 16, 16 // group),
        "w2": weights(CROSS, 16, 16 // group, edge=3),
        "w3": nets.values(4, 16, 3, 3),
        "slope": nets.values(16, 1, 1),
    }
    match tail:
        case "activation":
            nodes += [nets.node("PRelu", ["s", "slope"], ["t"])]
        case "residual":
            nodes += [nets.node("Add", ["ar", "s"], ["u"]), nets.node("Relu", ["u"], ["t"])]
        case "pool":
            nodes += [nets.node("MaxPool", ["s"], ["t"], kernel_shape=[2, 2])]
        case "read twice":
            nodes += [nets.node("Sigmoid", ["s"], ["u"]), nets.node("Mul", ["u", "s"], ["t"])]
        case "read beside":
            nodes += [nets.node("Add", ["s", "d"], ["t"])]
    nodes.append(nets.conv("t", "y", "w3", name="last"))
    model = nets.model(nodes, tensors, inputs={"x": ("N", 3, *size)}, outputs={"y": ("N", 4, None, None)})
    return model, {"enter": even, "even": even, "odd": odd}


@pytest.mark.parametrize("size", [(12, 14), (7, 5), (2, 3)], ids=str)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("op", ["Add", "Sum"])
@pytest.mark.parametrize("tail", ["activation", "residual", "pool", "read twice", "read beside"])
def test_a_layer_off_a_lattice_in_parts(size: tuple[int, int], group: int, op: str, tail: str) -> None:
    model, masks = leaving(size, op, tail, group)
    steps = {name: Perforate(0.5, interpolation="nearest" if name == "enter" else "zero") for name in masks}
    maps, rows = (perfonnx.rewrite(model, plan=Plan(steps, layout=layout), masks=masks) for layout in ("nchw", "rows"))
    nets.check(rows.proto)
    found = kernels(rows.proto)
    assert found["even"] == ([3, 3], [1, 1])
    assert found["odd"] == ([2, 2], [1, 1])
    left = Counter(node.op_type for node in rows.proto.graph.node)
    if tail in ("activation", "residual"):  # both parts take it up
        assert left["Concat"] == 1
        assert {"Add", "Sum", "Relu", "PRelu"}.isdisjoint(left)
    feeds = nets.feed(2, 3, *size)
    (expected,) = perfonnx.session(maps.proto, library=False).run(None, feeds)
    for library in (True, False):
        (actual,) = perfonnx.session(rows.proto, library=library, threads=1).run(None, feeds)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("tail", ["Relu", "Tanh", "read beside"])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 2)], ids=str)
def test_a_layer_off_a_square_lattice_in_four_parts(size: tuple[int, int], tail: str) -> None:
    """Added one after the other; their rows are put together once, unless a sum in between is read."""
    cosets = {f"part{y}{x}": (y, x) for y in (0, 1) for x in (0, 1)}
    nodes = [nets.conv("x", "a", "w0", name="enter")]
    tensors = {"w0": nets.values(16, 3, 3, 3), "w5": nets.values(4, 16, 3, 3)}
    total = ""
    for i, (name, (y, x)) in enumerate(cosets.items()):
        taps = [(a, b) for a in (-2, -1, 0, 1, 2) for b in (-2, -1, 0, 1, 2) if (a + y) % 2 == (b + x) % 2 == 0]
        tensors[name] = weights(taps, 16, 16, seed=i)
        nodes.append(nets.conv("a", f"c{i}", name, name=name, kernel_shape=[5, 5], pads=[2, 2, 2, 2]))
        if total:
            nodes.append(nets.node("Add", [total, f"c{i}"], [f"s{i}"]))
        total = f"s{i}" if total else f"c{i}"
    if tail == "read beside":
        nodes += [nets.node("Sigmoid", ["s2"], ["u"]), nets.node("Mul", ["u", total], ["t"])]
    else:
        nodes.append(nets.node(tail, [total], ["t"]))
    model = nets.model(
        [*nodes, nets.conv("t", "y", "w5", name="last")],
        tensors,
        inputs={"x": ("N", 3, *size)},
        outputs={"y": ("N", 4, None, None)},
    )
    masks = {"enter": SQUARE.mask(size)} | {name: SQUARE.at(offset).mask(size) for name, offset in cosets.items()}
    steps: dict[str, Method] = {n: Perforate(0.75, interpolation="zero") for n in masks}
    steps["enter"] = Perforate(0.75)
    maps, rows = (perfonnx.rewrite(model, plan=Plan(steps, layout=layout), masks=masks) for layout in ("nchw", "rows"))
    nets.check(rows.proto)
    kinds = Counter(node.op_type for node in rows.proto.graph.node)
    assert kinds["Add"] == 0
    assert kinds["Concat"] == (2 if tail == "read beside" else 1)
    assert kinds["Relu"] == 0
    assert kernels(rows.proto)["part01"] == ([3, 2], [1, 1])
    feeds = nets.feed(2, 3, *size)
    (expected,) = perfonnx.session(maps.proto, library=False).run(None, feeds)
    for library in (True, False):
        (actual,) = perfonnx.session(rows.proto, library=library, threads=1).run(None, feeds)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()))
