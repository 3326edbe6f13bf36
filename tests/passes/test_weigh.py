"""What is given up, what joins and what stays on maps follows from the costs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import perfonnx
from perfonnx.methods import METHODS
from perfonnx.model import layers
from perfonnx.passes import weigh
from perfonnx.passes.estimates import KINDS, Costs, Price
from perfonnx.plan import Plan
from tests.passes import nets
from tests.passes.nets import node

EVEN = dict.fromkeys(KINDS, Price(10.0))
FAIR = Costs(dense=EVEN, rows=EVEN, compact=700.0, expand=700.0, canonical=700.0)
FREE_TURNS = Costs(compact=0.0, expand=0.0, canonical=1e6)
DEAR_TURNS = Costs(compact=1e6, expand=1e6, canonical=0.0)


def chain(channels: int, kernels: tuple[int | tuple[int, int], ...] = (3, 3, 3), size: int = 16) -> onnx.ModelProto:
    """Convolutions c0, c1, ... of as many channels in as out, with Relu between them."""
    nodes, weights, x = [], {}, "x"
    for i, kernel in enumerate(kernels):
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        size_of = {"kernel_shape": [height, width], "pads": [height // 2, width // 2] * 2}
        nodes += [nets.conv(x, f"v{i}", f"w{i}", name=f"c{i}", **size_of), node("Relu", [f"v{i}"], [f"r{i}"])]
        weights[f"w{i}"] = nets.values(channels, channels, height, width, seed=i)
        x = f"r{i}"
    nodes[-1].output[0] = "y"
    shape = ("N", channels, size, size)
    return nets.model(nodes, weights, inputs={"x": shape}, outputs={"y": shape})


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def rewrite_by(
    monkeypatch: pytest.MonkeyPatch, prices: Costs, model: onnx.ModelProto, **options: object
) -> Counter[str]:
    monkeypatch.setattr(weigh, "DEFAULT_COSTS", prices)
    return operators(perfonnx.rewrite(model, **options).proto)  # type: ignore[arg-type]


def test_layers_are_priced_by_the_tiles_that_may_be_used() -> None:
    """Without them a layer of 3x3 is as fast on rows as onnxruntime's; with small ones it is somewhat faster."""
    model = chain(64, size=56)
    assert [len(perfonnx.rewrite(model, largest_tile=edge).report.layers) for edge in (4, 2, 0)] == [3, 3, 0]


def test_small_layers_are_given_up_and_large_ones_are_not() -> None:
    small, large = perfonnx.rewrite(chain(4)), perfonnx.rewrite(chain(128))
    assert [layer.name for layer in large.report.layers] == ["c0", "c1", "c2"]
    assert small.report.layers == []
    assert small.plan.layers == {}
    assert set(operators(small.proto)) == {"Conv", "Relu"}
    assert [s.layer for s in small.report.skips if "--only" in s.reason] == ["c0", "c1", "c2"]


def test_what_is_given_up_is_listed_in_the_order_of_the_graph() -> None:
    """In each process alike: the list goes into the model's metadata."""
    kernels = (9,) * 12  # of three channels: slower on rows at this rate, whatever stands around them
    skips = perfonnx.rewrite(chain(3, kernels)).report.skips
    assert [s.layer for s in skips if "--only" in s.reason] == [f"c{i}" for i in range(len(kernels))]


@pytest.mark.parametrize("asked", [{"rate": 0.25}, {"only": ["c"]}])
def test_what_is_asked_for_is_done(asked: dict[str, object]) -> None:
    assert len(perfonnx.rewrite(chain(4), **asked).report.layers) == 3  # type: ignore[arg-type]


def test_a_plan_is_followed() -> None:
    plan = perfonnx.rewrite(chain(4), rate=0.25).plan
    assert len(perfonnx.rewrite(chain(4), plan=plan).report.layers) == 3


SLOW_ROWS = replace(FAIR, rows={**EVEN, "full": Price(12.0)}, tiles=Price(1e6))


@pytest.mark.parametrize("costs", [Costs(), FAIR, FREE_TURNS, DEAR_TURNS, SLOW_ROWS])
def test_a_saved_plan_decides_nothing_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, costs: Costs) -> None:
    """Whatever things cost then: what joins, what stays on maps, what a Conv does, and what was given up."""
    model = chain(32, (3, 1, 5, 3, 1, 3), size=12)
    model.graph.node.insert(4, node("MaxPool", ["r1"], ["p"], kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4))
    model.graph.node[5].input[0] = "p"
    options = {"method": "sublattice", "lattice": "quincunx", "at": "12x12", "skip": "c1|c3", "taps": "own"}
    samples = [nets.feed(8, 32, 12, 12)]
    given: list[dict[str, object]] = [{}, {"rate": 0.5, "skip": "c1|c3"}, {**options, "samples": samples}]
    given += [{"method": "sublattice", "lattice": "dense", "samples": samples}]
    for number, each in enumerate(given):
        monkeypatch.setattr(weigh, "DEFAULT_COSTS", costs)
        result = perfonnx.rewrite(model, **each)  # type: ignore[arg-type]
        result.save_plan(tmp_path / f"{number}.json")
        for other in (Costs(), FAIR, FREE_TURNS, DEAR_TURNS, SLOW_ROWS):
            monkeypatch.setattr(weigh, "DEFAULT_COSTS", other)
            again = perfonnx.rewrite(model, plan=tmp_path / f"{number}.json")
            assert again.to_bytes() == result.to_bytes()
            assert again.plan.notes == result.plan.notes


def test_a_plan_that_was_changed_is_weighed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is old: nothing is said there of what joins."""
    monkeypatch.setattr(weigh, "DEFAULT_COSTS", DEAR_TURNS)
    plan = perfonnx.rewrite(chain(8), rate=0.5).plan
    monkeypatch.setattr(weigh, "DEFAULT_COSTS", FREE_TURNS)
    found = {"as it was": plan, "old": replace(plan, placement=None), "changed": replace(plan, seed=1)}
    sampled = {name: operators(perfonnx.rewrite(chain(8), plan=each).proto) for name, each in found.items()}
    assert {name: each["SampledConv"] for name, each in sampled.items()} == {"as it was": 0, "old": 3, "changed": 3}
    anew = operators(perfonnx.rewrite(chain(8), plan=plan, largest_tile=0).proto)
    assert anew["SampledConv"] == 3


@pytest.mark.parametrize("method", ["perforate", "sparse"])
def test_a_placement_that_was_edited_changes_no_result(method: str) -> None:
    """Whatever names it holds: what becomes of the plan's layers, the plan says. Fills depend on what is folded."""
    nodes = [nets.conv("x", "v", "w0", name="c0", kernel_shape=[3, 3], pads=[1] * 4)]
    nodes += [node("BatchNormalization", ["v", *"1234"], ["n"]), node("Relu", ["n"], ["r"])]
    nodes += [nets.conv("r", "y", "w1", name="c1", kernel_shape=[3, 3], pads=[1] * 4)]
    weights = {"w0": nets.values(8, 8, 3, 3), "w1": nets.values(8, 8, 3, 3, seed=1)}
    weights |= {name: nets.values(8, seed=7) ** 2 for name in "1234"}
    shape = ("N", 8, 12, 12)
    model = nets.model(nodes, weights, inputs={"x": shape}, outputs={"y": shape})
    fill = {"fill": "before-normalization"} if method == "sparse" else {}
    plan = perfonnx.rewrite(model, method=method, rate=0.5, only=["c"], **fill).plan  # type: ignore[arg-type]
    assert plan.placement is not None
    x = nets.feed(2, 8, 12, 12)
    (expected,) = perfonnx.session(perfonnx.rewrite(model, plan=plan).to_bytes()).run(None, x)
    for field in ("joined", "on_maps", "dense", "kept", "folded"):
        edited = replace(plan, placement=replace(plan.placement, **{field: ("c0", "c1", "v", "r", "c7", "")}))
        (result,) = perfonnx.session(perfonnx.rewrite(model, plan=edited).to_bytes()).run(None, x)
        np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max(), err_msg=field)


def test_a_placement_may_name_layers_that_keep_their_operator() -> None:
    """Fully connected layers are no convolutions, whatever stands among those for which a Conv is faster."""
    nodes = [nets.conv("x", "v", "w", name="c", pads=[0] * 4), node("Flatten", ["v"], ["f"])]
    nodes += [node("Gemm", ["f", "u"], ["y"], name="fc")]
    weights = {"w": nets.values(8, 3, 3, 3), "u": nets.values(8 * 8 * 8, 5, seed=1)}
    model = nets.model(nodes, weights, inputs={"x": (1, 3, 10, 10)}, outputs={"y": (1, 5)})
    samples = [nets.feed(1, 3, 10, 10, seed=seed) for seed in range(6)]
    steps = {"c": METHODS["perforate"](rate=0.5), "fc": METHODS["refit"]()}
    result = perfonnx.rewrite(model, plan=Plan(steps), samples=samples)
    assert result.plan.placement is not None
    edited = replace(result.plan, placement=replace(result.plan.placement, dense=("fc", "c")))
    again = perfonnx.rewrite(model, plan=edited, corrections=result.corrections)
    assert operators(again.proto) == operators(result.proto)


def test_a_region_works_on_rows_where_turning_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = rewrite_by(monkeypatch, FREE_TURNS, chain(8), rate=0.5)
    dear = rewrite_by(monkeypatch, DEAR_TURNS, chain(8), rate=0.5)
    assert (cheap["SampledConv"], cheap["PerforatedConv"]) == (3, 0)
    assert (dear["SampledConv"], dear["PerforatedConv"]) == (0, 3)


def test_a_node_alone_stays_on_maps_where_its_inputs_are_needed_as_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Concat of outputs: on rows, its own map would be one more to write; all layers keep their rows."""
    nodes = [
        nets.conv("x", "c0", "w0", name="c0"),
        nets.conv("c0", "a", "w1", name="c1"),
        nets.conv("c0", "b", "w2", name="c2"),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    weights = {"w0": nets.values(32, 3, 3, 3), "w1": nets.values(32, 32, 3, 3), "w2": nets.values(32, 32, 3, 3)}
    outputs = {"y": (1, 64, 24, 24), "a": (1, 32, 24, 24), "b": (1, 32, 24, 24)}
    model = nets.model(nodes, weights, inputs={"x": (1, 3, 24, 24)}, outputs=outputs)
    prices = Costs(compact=10.0, expand=10.0, canonical=1e6)
    found = rewrite_by(monkeypatch, prices, model, rate=0.75, only=["c"])
    assert found["SampledConv"] == 3
    assert found["ExpandRows"] == 2


def test_a_dense_layer_between_joins_where_that_saves_more_than_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_rows = replace(FAIR, rows={**EVEN, "full": Price(12.0)}, tiles=Price(1e6))
    uniform = {"rate": 0.5, "mask": "uniform", "skip": "c1"}
    joined = rewrite_by(monkeypatch, FAIR, chain(32), **uniform)
    alone = rewrite_by(monkeypatch, slow_rows, chain(128), **uniform)
    assert (joined["SampledConv"], joined["Conv"]) == (3, 0)
    assert alone["Conv"] == 1


def test_what_needs_too_large_tables_on_rows_stays_on_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense layer and a pool between sampled layers read their taps at every position."""
    model = chain(32, (3, 5, 3))
    pool = node("MaxPool", ["r0"], ["p"], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4)
    model.graph.node.insert(2, pool)
    model.graph.node[3].input[0] = "p"
    fits = rewrite_by(monkeypatch, FAIR, model, rate=0.5, skip="c1")
    monkeypatch.setattr(layers, "MAX_ENTRIES", 16 * 16 * 25 - 1)
    too_large = rewrite_by(monkeypatch, FAIR, model, rate=0.5, skip="c1")
    assert (fits["Conv"], fits["MaxPool"]) == (0, 0)
    assert (too_large["Conv"], too_large["MaxPool"]) == (1, 1)


def test_a_pointwise_layer_joins_for_the_positions_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the last sampled layer: at a quarter of the positions it is cheaper on rows, at all of them it is not."""
    dearer = replace(FAIR, rows={**EVEN, "pointwise": Price(11.0)})
    few, many = (rewrite_by(monkeypatch, dearer, chain(128, (3, 3, 1)), rate=r, skip="c2") for r in (0.75, 0.0))
    assert few["Conv"] == 0
    assert many["Conv"] == 1


def test_a_first_layer_joins_where_its_input_is_smaller_than_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    for channels, joins in ((64, True), (2, False)):
        weights = {"w": nets.values(channels, 4, 3, 3), "v": nets.values(64, channels, 3, 3)}
        nodes = [
            nets.conv("x", "a", "w", name="first", pads=[1] * 4),
            node("Relu", ["a"], ["r"]),
            nets.conv("r", "b", "v", name="second", pads=[1] * 4),
            node("Relu", ["b"], ["y"]),
        ]
        model = nets.model(nodes, weights, inputs={"x": (1, 4, 16, 16)}, outputs={"y": (1, 64, 16, 16)})
        found = rewrite_by(monkeypatch, FAIR, model, rate=0.5, only="second", layout="rows")
        assert (found["Conv"] == 0) == joins


def test_layers_without_a_form_on_rows_are_weighed_alone() -> None:
    result = perfonnx.rewrite(chain(128), interpolation="barycentric", mask="grid")
    assert len(result.report.layers) == 3
    assert operators(result.proto)["PerforatedConv"] == 3
    assert perfonnx.rewrite(chain(4), interpolation="barycentric", mask="grid").report.layers == []
    assert len(perfonnx.rewrite(chain(128), layout="nchw").report.layers) == 3


def rates_on_rows(model: onnx.ModelProto, layer: str, **options: object) -> dict[float, str]:
    """What the layer is at three rates, by its operator."""
    found = {}
    for rate in (0.0, 0.5, 0.75):
        result = perfonnx.rewrite(model, rate=rate, **options).proto  # type: ignore[arg-type]
        found[rate] = next(n.op_type for n in result.graph.node if n.name == layer)
    return found


def separable(channels: int, size: int, blocks: int) -> onnx.ModelProto:
    """A 3x3 convolution, then depthwise and 1x1 ones in turn, on large maps."""
    nodes, x = [nets.conv("x", "a", "first", name="first"), node("Relu", ["a"], ["x0"])], "x0"
    for i in range(blocks):
        nodes += [
            nets.conv(x, f"d{i}", "depthwise", name=f"depthwise{i}", group=channels),
            node("Relu", [f"d{i}"], [f"e{i}"]),
            nets.conv(f"e{i}", f"p{i}", "pointwise", name=f"pointwise{i}", kernel_shape=[1, 1], pads=[0] * 4),
            node("Relu", [f"p{i}"], [f"x{i + 1}"]),
        ]
        x = f"x{i + 1}"
    nodes += [nets.conv(x, "y", "last", name="last")]
    weights = {
        "first": nets.values(channels, 3, 3, 3),
        "depthwise": nets.values(channels, 1, 3, 3),
        "pointwise": nets.values(channels, channels, 1, 1),
        "last": nets.values(channels, channels, 3, 3),
    }
    return nets.model(nodes, weights, inputs={"x": (1, 3, size, size)})


@pytest.mark.parametrize(("channels", "size"), [(16, 480), (32, 240), (64, 128)])
def test_runs_of_layers_that_rows_make_slower_stay_on_maps(channels: int, size: int) -> None:
    """Though each of them, seen alone between others on rows, would save two turns."""
    model = separable(channels, size, blocks=4)
    for layer in ("depthwise1", "pointwise1", "depthwise3"):
        assert set(rates_on_rows(model, layer).values()) == {"Conv"}


def test_a_depthwise_layer_cuts_a_region_where_it_costs_more_than_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = separable(32, 16, blocks=1)
    slow = replace(FAIR, rows={**EVEN, "depthwise": Price(15.0)})
    assert rewrite_by(monkeypatch, slow, model, rate=0.75)["Conv"] == 0
    slower = replace(FAIR, rows={**EVEN, "depthwise": Price(5000.0)})
    assert rewrite_by(monkeypatch, slower, model, rate=0.75)["Conv"] == 1


@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (1, 5), (3, 3)])
def test_a_first_layer_of_few_channels_is_not_made_slower(channels: int, kernel: int) -> None:
    """Behind it lies a layer that rows gain nothing for either: at rate 0, 7x7 kernels cost the same multiplies."""
    weights = {"w": nets.values(16, channels, kernel, kernel), "v": nets.values(16, 16, 7, 7)}
    first = nets.conv("x", "a", "w", name="first", kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)
    second = nets.conv("r", "y", "v", name="second", kernel_shape=[7, 7], pads=[3] * 4)
    nodes = [first, node("Relu", ["a"], ["r"]), second]
    model = nets.model(nodes, weights, inputs={"x": (1, channels, 256, 256)})
    assert rates_on_rows(model, "first")[0.0] == "Conv"
    reasons = {skip.layer: skip.reason for skip in perfonnx.rewrite(model, rate=0.0).report.skips}
    assert re.search(r"at rate 0 it would be slower, est\. [\d.]+ ms against [\d.]+; --only", reasons["first"])
    assert len(perfonnx.rewrite(model, rate=0.0, only=["."]).report.layers) == 2


def test_a_large_kernel_of_few_outputs_is_left_alone_at_a_small_rate() -> None:
    """Finding its taps at scattered sites costs what the skipped positions save; measured, it was 0.93x."""
    weights = {"w": nets.values(3, 16, 9, 9)}
    model = nets.model(
        [nets.conv("x", "y", "w", kernel_shape=[9, 9], pads=[4] * 4)], weights, inputs={"x": (1, 16, 256, 256)}
    )
    assert perfonnx.rewrite(model).report.layers == []
    assert len(perfonnx.rewrite(model, rate=0.5).report.layers) == 1


def test_layers_that_tiles_make_faster_are_computed_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kernels of stride 1, in float32: by Winograd's algorithm they are faster at rate 0 too."""
    for kernels in ((3, 3, 3), (5, 5, 5), ((3, 1), (1, 5), (7, 1))):
        assert operators(perfonnx.rewrite(chain(64, kernels, size=56), rate=0.0).proto)["SampledConv"] == 3
    alone = operators(perfonnx.rewrite(chain(64, (3,), size=56), rate=0.0).proto)
    assert alone["PerforatedConv"] == 1
    assert operators(perfonnx.rewrite(chain(64, (7, (9, 1)), size=56), rate=0.0).proto)["Conv"] == 2
    half = chain(64, size=56)
    for tensor in half.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    assert operators(perfonnx.rewrite(half, rate=0.0).proto)["Conv"] == 3
    dear = rewrite_by(monkeypatch, replace(Costs(), tiles=Price(1e6)), chain(64, size=56), rate=0.0)
    assert dear["Conv"] == 3


@pytest.mark.parametrize(("channels", "faster"), [(96, True), (64, True), (48, False)])
def test_groups_of_whole_pieces_of_channels_are_computed_by_tiles(channels: int, faster: bool) -> None:
    """Of two groups each: pieces are of 16 channels, and a group of 24 is not made of them."""
    weights = {"w": nets.values(channels, channels // 2, 3, 3)}
    model = nets.model([nets.conv("x", "y", "w", group=2)], weights, inputs={"x": (1, channels, 56, 56)})
    assert (operators(perfonnx.rewrite(model).proto)["Conv"] == 0) == faster


def test_a_pool_reads_the_rows_that_there_are() -> None:
    """A map that only a pool reads is not written out, however dear that would be."""
    model = chain(8, (3, 3), 256)
    model.graph.node[-1].output[0] = "last"
    model.graph.node.append(node("GlobalAveragePool", ["last"], ["y"]))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", 1, ["N", 8, 1, 1]))
    assert operators(perfonnx.rewrite(model, rate=0.75).proto) == {
        "Compact": 1,
        "SampledConv": 2,
        "SampledAveragePool": 1,
        "ExpandRows": 1,
    }


def test_what_was_asked_for_is_left_alone_only_where_that_is_noticed() -> None:
    small, large = (chain(8, (1, 3, 3), size) for size in (8, 256))
    assert len(perfonnx.rewrite(small, rate=0.0).report.layers) == 2
    assert perfonnx.rewrite(large, rate=0.0).report.layers == []


def test_layers_of_one_region_are_weighed_one_by_one() -> None:
    """The wide ones on rows gain what the first of one channel would lose."""
    wide = {f"w{i}": nets.values(64, 64, 3, 3, seed=i) for i in range(2)}
    nodes = [
        nets.conv("x", "a", "v", name="first"),
        node("Relu", ["a"], ["r"]),
        nets.conv("r", "b", "w0", name="second"),
        node("Relu", ["b"], ["s"]),
        nets.conv("s", "y", "w1", name="third"),
    ]
    model = nets.model(nodes, {"v": nets.values(64, 1, 3, 3), **wide}, inputs={"x": (1, 1, 128, 128)})
    result = perfonnx.rewrite(model, rate=0.75)
    assert {layer.name for layer in result.report.layers} >= {"second", "third"}
    assert operators(result.proto)["SampledConv"] >= 2


def test_pools_and_sums_stay_where_their_neighbours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two layers that stay on maps nothing is turned to rows, though a region lies around them."""
    x, nodes, weights = "x", [], {}
    for i, kernel in enumerate((3, 3, 1, 1, 3, 3)):
        pads = [kernel // 2] * 4
        nodes += [nets.conv(x, f"a{i}", f"w{i}", name=f"c{i}", kernel_shape=[kernel] * 2, pads=pads)]
        nodes += [node("Relu", [f"a{i}"], [f"r{i}"])]
        weights[f"w{i}"] = nets.values(32, 32, kernel, kernel, seed=i)
        x = f"r{i}"
        if i == 2:
            nodes.append(node("MaxPool", [x], ["pooled"], kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4))
            x = "pooled"
    model = nets.model(nodes, weights, inputs={"x": (1, 32, 16, 16)}, outputs={x: (None,) * 4})
    prices = Costs(dense=EVEN, rows={**EVEN, "pointwise": Price(1e4)}, compact=1.0, expand=1.0, canonical=1e4)
    monkeypatch.setattr(weigh, "DEFAULT_COSTS", prices)
    result = perfonnx.rewrite(model, rate=0.5).proto
    found = operators(result)
    assert (found["SampledConv"], found["Conv"]) == (4, 2)
    assert found["MaxPool"] == 1
    assert (found["Compact"], found["ExpandRows"]) == (2, 2)
    nets.check(result)


def test_a_normalization_cuts_a_region_where_all_its_positions_have_rows() -> None:
    """It takes several operators there."""
    x, nodes, weights = "x", [], {"one": np.ones(64, np.float32)}
    for i in range(4):
        nodes += [
            nets.conv(x, f"a{i}", f"w{i}", name=f"c{i}"),
            node("InstanceNormalization", [f"a{i}", "one", "one"], [f"n{i}"]),
        ]
        weights[f"w{i}"] = nets.values(64, 64, 3, 3, seed=i)
        x = f"n{i}"
    model = nets.model(nodes, weights, inputs={"x": (1, 64, 64, 64)}, outputs={x: (None,) * 4})
    many, few = (operators(perfonnx.rewrite(model, rate=r, only=["."]).proto) for r in (0.0, 0.75))
    assert many["InstanceNormalization"] == 4
    assert few["InstanceNormalization"] < 4


@pytest.mark.parametrize(
    ("options", "rows"), [({"method": "sublattice"}, True), ({"mask": "lattice", "rate": 0.5}, False)]
)
def test_tiles_of_a_lattice_hold_sites_alone(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], rows: bool
) -> None:
    """Half of them, which pays for turning the map; where all have to be computed, maps cost as much."""
    model = chain(64, size=40)
    samples = [nets.feed(2, 64, 40, 40, seed=i) for i in range(2)]
    prices = replace(Costs(), canonical=0.0, compact=800.0, expand=800.0)
    if "rate" not in options:
        options = {**options, "samples": samples}
    found = rewrite_by(monkeypatch, prices, model, **options)
    assert (found["SampledConv"], found["PerforatedConv"]) == ((3, 0) if rows else (0, 3))
