"""Pools whose windows reach behind the map: what is rewritten gives what onnxruntime gives, and runs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import perfonnx
from perfonnx.masks import PoolWindow
from tests.passes import nets
from tests.passes.nets import node

SIZE = (7, 10)
OUTER: dict[str, dict[str, Any]] = {
    "no pads": {},
    "valid": {"auto_pad": "VALID"},
    "upper": {"auto_pad": "SAME_UPPER"},
    "lower": {"auto_pad": "SAME_LOWER"},
    "pads": {"pads": [1, 1, 1, 1]},
    "pads behind": {"pads": [0, 0, 1, 1]},
}
INNER: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 2], "strides": [2, 3]},
    {"kernel_shape": [2, 2], "strides": [3, 3]},
    {"kernel_shape": [2, 3], "strides": [4, 4]},
    {"kernel_shape": [2, 2], "strides": [3, 2], "dilations": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "dilations": [2, 1]},
]


def between_layers(op: str, opset: int, **attributes: Any) -> Any:
    nodes = [nets.conv(), node(op, ["c"], ["p"], **attributes), nets.conv("p", "d", "v", name="second")]
    return nets.model(
        [*nodes, node("Relu", ["d"], ["y"])],
        {"w": nets.values(4, 3, 3, 3), "v": nets.values(4, 4, 3, 3)},
        inputs={"x": (1, 3, *SIZE)},
        opset=opset,
    )


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
@pytest.mark.parametrize(("op", "opset"), [("MaxPool", 11), ("MaxPool", 22), ("AveragePool", 11), ("AveragePool", 22)])
def test_windows_that_reach_behind_the_map(op: str, opset: int, outer: dict[str, Any], ceil: int) -> None:
    ran = 0
    for inner, counted in itertools.product(INNER, (0, 1)):
        if op == "AveragePool" and opset < 19 and "dilations" in inner:
            continue
        if op == "MaxPool" and (counted or ("dilations" in inner and 1 in inner["dilations"])):
            continue  # onnxruntime divides by zero in some of these: a signal, not an error
        attributes = {**inner, **outer, "ceil_mode": ceil} | ({"count_include_pad": 1} if counted else {})
        model, feeds = between_layers(op, opset, **attributes), nets.feed(1, 3, *SIZE)
        try:
            (expected,) = nets.run(model, feeds)
        except Exception:  # onnxruntime refuses some pads
            continue
        ran += 1
        result = perfonnx.rewrite(model, rate=0.0, only=["."])
        for library in (True, False):
            (found,) = perfonnx.session(result.to_bytes(), library=library).run(None, feeds)
            assert found.shape == expected.shape, attributes
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4, err_msg=str(attributes))
        assert len(result.report.layers) == 2 or "disagree about the size" in result.report.skips[0].reason
    assert ran, "nothing was tried"


def test_pools_on_rows_leave_no_rounding_to_the_runtime() -> None:
    model = between_layers("MaxPool", 11, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    proto = perfonnx.rewrite(model, rate=0.5, only=["."]).proto
    (pool,) = (n for n in proto.graph.node if n.op_type == "SampledMaxPool")
    assert nets.attribute(pool, "ceil_mode") == 0
    assert nets.attribute(pool, "pads") == [0, 0, 0, 1]
    kernels, bodies = (
        perfonnx.session(proto, library=library).run(None, nets.feed(1, 3, *SIZE)) for library in (True, False)
    )
    np.testing.assert_allclose(bodies[0], kernels[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", range(1, 4))
@pytest.mark.parametrize("stride", range(1, 6))
def test_rounding_up_is_rounding_down_with_more_pads(kernel: int, stride: int) -> None:
    for size, before, after, dilation in itertools.product(range(4, 10), range(kernel), range(kernel), (1, 2)):
        geometry = (kernel, kernel), (stride, stride), (before, before, after, after), (dilation, dilation)
        if (kernel - 1) * dilation + 1 > size:
            continue
        up = PoolWindow(*geometry, ceil_mode=True)
        down = up.rounded_down((size, size))
        assert not down.ceil_mode
        assert down.output_shape((size, size)) == up.output_shape((size, size))
        assert down.pads[:2] == up.pads[:2]


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_a_convolution_with_negative_pads_is_left_alone(auto_pad: str) -> None:
    """A stride longer than the kernel: versions of onnxruntime crop differently."""
    first = nets.conv(w="k", kernel_shape=[1, 1], strides=[5, 5], auto_pad=auto_pad)
    nodes = [first, nets.conv("c", "y", "v", name="second")]
    weights = {"k": nets.values(4, 3, 1, 1), "v": nets.values(4, 4, 3, 3)}
    model = nets.model(nodes, weights, inputs={"x": (1, 3, 13, 15)})
    result = perfonnx.rewrite(model, rate=0.0, only=["."])
    assert [(skip.layer, skip.reason.split(":")[0]) for skip in result.report.skips] == [
        ("conv", f"{auto_pad} with a stride longer than its kernel")
    ]
    nets.assert_same_results(model, result.proto, nets.feed(1, 3, 13, 15))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [(12, 10), (11, 9), (12, 9)])
def test_every_second_position_of_a_map_of_even_size(auto_pad: str, size: tuple[int, int]) -> None:
    """As in the shortcuts of residual networks: one pad too few is none."""
    first = nets.conv(w="k", kernel_shape=[1, 1], strides=[2, 2], auto_pad=auto_pad)
    nodes = [first, nets.conv("c", "y", "v", name="second")]
    weights = {"k": nets.values(4, 3, 1, 1), "v": nets.values(4, 4, 3, 3)}
    model = nets.model(nodes, weights, inputs={"x": (1, 3, *size)})
    result = perfonnx.rewrite(model, rate=0.0, only=["."])
    assert len(result.report.layers) == 2
    nets.assert_same_results(model, result.proto, nets.feed(1, 3, *size))
