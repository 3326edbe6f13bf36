"""The baselines with smaller maps: their values, their multiplies, and where the rest of a network takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import perfonnx
from perfonnx import PerfonnxError, Plan
from perfonnx.masks.grid import grid_size
from perfonnx.methods import find_method
from tests.passes import nets
from tests.passes.nets import node

METHODS = ("stride", "fractional-stride", "resize")


def padded(**attributes: Any) -> ModelProto:
    """One layer with uneven pads, x [1, 3, 12, 10] to y."""
    weights = {"w": nets.values(8, 3, 3, 3), "b": nets.values(8)}
    return nets.model([nets.conv(y="y", b="b", **attributes)], weights)


def reason(result: perfonnx.Rewritten, layer: str = "conv") -> str:
    return next(skip.reason for skip in result.report.skips if skip.layer == layer)


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize(
    "attributes", [{}, {"pads": [2, 0, 1, 1], "strides": [1, 2], "dilations": [2, 1]}, {"pads": [0] * 4}], ids=str
)
@pytest.mark.parametrize("method", METHODS[:2])
def test_sites_keep_their_values(method: str, attributes: dict[str, Any], opset: int) -> None:
    """Every value is one of the original's, and as many as are computed are where they were."""
    weights = {"w": nets.values(8, 3, 3, 3), "b": nets.values(8)}
    model = nets.model([nets.conv(y="y", b="b", **attributes)], weights, opset=opset)
    result = perfonnx.rewrite(model, method=method, only="conv")
    nets.check(result.proto)
    (expected,), (given,) = (nets.run(each, nets.feed()) for each in (model, result.proto))
    assert given.shape == expected.shape
    (layer,) = result.report.layers
    same = np.isclose(given, expected, atol=1e-5).all(axis=(0, 1))
    assert same.sum() >= layer.multiplies[1] / layer.multiplies[0] * same.size
    assert not same.all()
    rows, columns = same.any(axis=1), same.any(axis=0)
    assert same[np.ix_(rows, columns)].all()


def test_a_longer_stride_takes_every_second_position() -> None:
    model = padded()
    result = perfonnx.rewrite(model, method="stride", only="conv")
    (expected,), (given,) = (nets.run(each, nets.feed()) for each in (model, result.proto))
    np.testing.assert_allclose(given, expected[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3), atol=1e-5)
    (layer,) = result.report.layers
    assert layer.multiplies[0] == 4 * layer.multiplies[1]
    assert layer.notes == ("a map of 6x5, restored",)


def test_fractions_are_met_as_by_a_grid() -> None:
    result = perfonnx.rewrite(padded(), method="fractional-stride", shrink=1.4, only="conv")
    rows, columns = grid_size((12, 10), 1 - 1 / 1.4**2)
    (layer,) = result.report.layers
    assert layer.multiplies[1] == 8 * 3 * 9 * rows * columns


def test_a_smaller_input_is_the_layer_on_means() -> None:
    model = padded()
    result = perfonnx.rewrite(model, method="resize", only="conv")
    x = nets.feed()["x"]
    means = x.reshape(1, 3, 6, 2, 5, 2).mean(axis=(3, 5))
    free = nets.model(
        [nets.conv(y="y", b="b")], {"w": nets.values(8, 3, 3, 3), "b": nets.values(8)}, inputs={"x": (1, 3, 6, 5)}
    )
    (small,), (given,) = nets.run(free, {"x": means}), nets.run(result.proto, {"x": x})
    np.testing.assert_allclose(given, small.repeat(2, axis=2).repeat(2, axis=3), atol=1e-5)


def pooled(*tail: Any, constants: dict[str, np.ndarray] | None = None) -> ModelProto:
    weights = {"w2": nets.values(4, 8, 3, 3), **(constants or {})}
    nodes = [node("Relu", ["c"], ["r"]), nets.conv("r", "d", "w2", name="second"), *tail]
    return nets.followed_by(nodes, weights)


@pytest.mark.parametrize("method", METHODS)
def test_smaller_maps_go_on_to_a_global_pool(method: str) -> None:
    model = pooled(node("GlobalAveragePool", ["d"], ["y"]))
    result = perfonnx.rewrite(model, method=method, restore="none", only="^conv$")
    nets.check(result.proto)
    (given,) = nets.run(result.proto, nets.feed())
    assert given.shape == (1, 4, 1, 1)
    assert result.report.multiplies[1] < 0.5 * result.report.multiplies[0]


def test_what_follows_a_smaller_map_is_seen_as_it_is_now() -> None:
    """The second layer is shrunk from what the first one left; and no mask is made for a size that is gone."""
    model = pooled(node("GlobalAveragePool", ["d"], ["y"]))
    shrunk = find_method("fractional-stride", "test")(restore="none")
    result = perfonnx.rewrite(model, plan=Plan({"conv": shrunk, "second": shrunk}))
    nets.run(result.proto, nets.feed())
    before, after = result.report.layers[1].multiplies
    assert after < before / 12
    plan = Plan({"conv": shrunk, "second": find_method("perforate", "test")(rate=0.5, mask="uniform")})
    with pytest.raises(PerfonnxError, match="layer 'second': its map is smaller behind a layer that is shrunk"):
        perfonnx.rewrite(model, plan=plan)


@pytest.mark.parametrize(
    ("tail", "constants", "why"),
    [
        ([node("Identity", ["d"], ["y"])], {}, "'y' behind it is an output, and would be smaller"),
        ([node("Flatten", ["d"], ["y"])], {}, "Flatten 'Flatten_y' behind it may want maps of its size"),
        (
            [node("AveragePool", ["d"], ["p"], kernel_shape=[12, 10]), node("GlobalMaxPool", ["p"], ["y"])],
            {},
            "AveragePool 'AveragePool_p' behind it may want maps of its size",
        ),
        (
            [node("Mul", ["d", "m"], ["p"]), node("GlobalMaxPool", ["p"], ["y"])],
            {"m": np.ones((4, 12, 10), np.float32)},
            "Mul 'Mul_p' behind it takes another map too, which keeps its size",
        ),
        (
            [
                nets.conv("x", "s", "w3", name="side"),
                node("Add", ["d", "s"], ["p"]),
                node("GlobalMaxPool", ["p"], ["y"]),
            ],
            {"w3": nets.values(4, 3, 3, 3)},
            "Add 'Add_p' behind it takes another map too, which keeps its size",
        ),
    ],
    ids=["output", "flatten", "pool", "constant", "branch"],
)
def test_where_the_size_counts_it_is_kept(tail: list[Any], constants: dict[str, np.ndarray], why: str) -> None:
    model = pooled(*tail, constants=constants)
    result = perfonnx.rewrite(model, method="stride", restore="none", only="^conv$")
    assert reason(result) == why
    assert nets.op_types(perfonnx.rewrite(model, method="stride", only="^conv$").proto) != nets.op_types(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "stride", "shrink": 1.5}, "a stride grows a whole number of times, not 1.5"),
        ({"method": "resize", "shrink": 2.5}, "squares have whole sides, not 2.5"),
        ({"method": "stride", "shrink": 1}, "shrink 1 is not a number above 1"),
        ({"method": "stride", "restore": "linear"}, "unknown restore 'linear'; choose from nearest, none"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PerfonnxError, match=message):
        perfonnx.rewrite(padded(), **settings)


def test_maps_that_are_too_small_are_refused() -> None:
    result = perfonnx.rewrite(padded(), method="stride", shrink=11, only="conv")
    assert reason(result) == "its map of 12x10 is too small to be shrunk"
    result = perfonnx.rewrite(padded(pads=[0] * 4), method="resize", shrink=5, only="conv")
    assert reason(result) == "its kernel does not fit into the smaller input"
