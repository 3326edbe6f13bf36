"""Runs of layers of one resolution, and their regions."""

from __future__ import annotations

from onnx import ModelProto

from perfonnx.model import files
from perfonnx.rewriting import opened
from perfonnx.search.regions import Run, regions, resolution_runs
from tests.passes import nets
from tests.search.test_groups import fire, pointwise, residual
from tests.search.test_tune import LAYERS, network


def runs(model: ModelProto, *, without: tuple[str, ...] = ()) -> list[Run]:
    workspace = opened(files.load(model))
    names = {node.name for node in model.graph.node if node.op_type == "Conv"}
    return resolution_runs(workspace, names - set(without))


def test_layers_that_meet_or_follow_each_other_are_a_run() -> None:
    first, second = runs(fire())
    assert (first.name, first.blocks) == ("16x14", (("squeeze", "expand1", "expand3"),))
    assert (second.name, second.blocks) == ("8x7", (("last",),))
    assert first.pooled == {"expand1", "expand3"}
    assert [region.layers for region in regions(first)] == [("squeeze", "expand1", "expand3"), ("squeeze",)]
    assert [region.name for region in regions(first)] == ["16x14", "16x14 but in front of the pool"]
    assert not second.pooled


def test_residual_blocks_are_blocks() -> None:
    (run,) = runs(residual())
    assert run.blocks == (("first", "1a", "1b"), ("2a", "2b"), ("last",))
    assert [region.level for region in regions(run)] == [0, 3, 3, 3]


def test_where_nothing_meets_each_layer_is_a_block() -> None:
    (run,) = runs(network())
    assert run.blocks == tuple((name,) for name in LAYERS)
    found = {region.name: region.layers for region in regions(run)}
    assert found["16x14, first half"] == LAYERS[:2]
    assert found["16x14, second half"] == LAYERS[2:]
    assert found["16x14, block 4 of 4"] == LAYERS[3:]
    assert len(found) == 7


def test_layers_that_cannot_be_replaced_are_in_no_region() -> None:
    (run,) = runs(network(), without=("conv2", "head"))
    assert run.layers == ("conv1", "conv3", "conv4")


def test_long_runs_are_cut_into_few_parts_of_like_work() -> None:
    work = {f"l{i}": 10 if i else 100 for i in range(31)}
    run = Run("8x8", tuple((name,) for name in work), frozenset(), work)
    blocks = [region for region in regions(run) if region.level == 3]
    assert sum((region.layers for region in blocks), ()) == run.layers
    sums = [sum(work[name] for name in region.layers) for region in blocks]
    assert sums == [100, 30, 70, 70, 60, 70]


def test_a_stride_ends_a_run_and_a_missing_pad_does_not() -> None:
    nodes = [
        nets.conv("x", "a", "w", name="same"),
        nets.conv("a", "b", "w", name="valid", pads=[0] * 4),
        nets.conv("b", "c", "w", name="strided", strides=[2, 2]),
        nets.conv("c", "d", "w", name="small"),
        pointwise("d", "y", "p", "mixing"),
    ]
    model = nets.model(nodes, {"w": nets.values(3, 3, 3, 3), "p": nets.values(3, 3, 1, 1)})
    assert [run.layers for run in runs(model)] == [("same", "valid"), ("strided", "small", "mixing")]


def test_runs_of_one_size_have_names_of_their_own() -> None:
    nodes = [
        nets.conv("x", "a", "w", name="left"),
        nets.conv("x", "b", "w", name="right"),
    ]
    model = nets.model(nodes, {"w": nets.values(3, 3, 3, 3)}, outputs={"a": None, "b": None})
    first, second = runs(model)
    assert second.name == f"{first.name} (2)"
