"""What is given up, what joins and what stays on maps follows from the costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import onnx
import pytest

import perfonnx
from perfonnx.costs import Costs
from perfonnx.passes import weigh
from tests.passes import nets
from tests.passes.nets import node

EVEN = {"wide": 10.0, "narrow": 10.0, "narrow, large": 10.0, "pointwise": 10.0, "depthwise": 10.0}
FAIR = Costs(dense=EVEN, rows=EVEN, compact=700.0, expand=700.0, canonical=700.0)
FREE_TURNS = Costs(compact=0.0, expand=0.0, canonical=1e6)
DEAR_TURNS = Costs(compact=1e6, expand=1e6, canonical=0.0)


def chain(channels: int, kernels: tuple[int, ...] = (3, 3, 3), size: int = 16) -> onnx.ModelProto:
    """Convolutions c0, c1, ... of as many channels in as out, with Relu between them."""
    nodes, weights, x = [], {}, "x"
    for i, kernel in enumerate(kernels):
        size_of = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}
        nodes += [nets.conv(x, f"v{i}", f"w{i}", name=f"c{i}", **size_of), node("Relu", [f"v{i}"], [f"r{i}"])]
        weights[f"w{i}"] = nets.values(channels, channels, kernel, kernel, seed=i)
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


def test_small_layers_are_given_up_and_large_ones_are_not() -> None:
    small, large = perfonnx.rewrite(chain(4)), perfonnx.rewrite(chain(128))
    assert [layer.name for layer in large.report.layers] == ["c0", "c1", "c2"]
    assert small.report.layers == []
    assert small.plan.layers == {}
    assert set(operators(small.proto)) == {"Conv", "Relu"}
    assert [s.layer for s in small.report.skips if "--rate" in s.reason] == ["c0", "c1", "c2"]


def test_what_is_given_up_is_listed_in_the_order_of_the_graph() -> None:
    """In each process alike: the list goes into the model's metadata."""
    kernels = (9,) * 12  # of three channels: slower on rows at this rate, whatever stands around them
    skips = perfonnx.rewrite(chain(3, kernels)).report.skips
    assert [s.layer for s in skips if "--rate" in s.reason] == [f"c{i}" for i in range(len(kernels))]


@pytest.mark.parametrize("asked", [{"rate": 0.25}, {"only": ["c"]}])
def test_what_is_asked_for_is_done(asked: dict[str, object]) -> None:
    assert len(perfonnx.rewrite(chain(4), **asked).report.layers) == 3  # type: ignore[arg-type]


def test_a_plan_is_followed() -> None:
    plan = perfonnx.rewrite(chain(4), rate=0.25).plan
    assert len(perfonnx.rewrite(chain(4), plan=plan).report.layers) == 3


def test_a_region_works_on_rows_where_turning_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = rewrite_by(monkeypatch, FREE_TURNS, chain(8), rate=0.5)
    dear = rewrite_by(monkeypatch, DEAR_TURNS, chain(8), rate=0.5)
    assert (cheap["SampledConv"], cheap["PerforatedConv"]) == (3, 0)
    assert (dear["SampledConv"], dear["PerforatedConv"]) == (0, 3)


def test_a_dense_layer_between_joins_where_that_saves_more_than_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_rows = replace(FAIR, rows={**EVEN, "wide": 12.0})
    joined = rewrite_by(monkeypatch, FAIR, chain(32), rate=0.5, skip="c1")
    alone = rewrite_by(monkeypatch, slow_rows, chain(128), rate=0.5, skip="c1")
    assert (joined["SampledConv"], joined["Conv"]) == (3, 0)
    assert alone["Conv"] == 1


def test_a_pointwise_layer_joins_for_the_positions_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the last sampled layer: at a quarter of the positions it is cheaper on rows, at all of them it is not."""
    few, many = (rewrite_by(monkeypatch, FAIR, chain(128, (3, 3, 1)), rate=r, skip="c2") for r in (0.75, 0.0))
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
