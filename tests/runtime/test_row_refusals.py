"""What a model says wrongly of the operators on rows is refused in one line that names the node and the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfonnx.errors import PerfonnxError
from perfonnx.runtime import session

Inputs = dict[str, Any]

W = np.ones((4, 2, 3, 3), np.float32)
SHAPE = np.array([6, 5], np.int64)
SOURCE = np.arange(30, dtype=np.int32) % 7  # the rows 0 to 6
CONV: dict[str, Any] = {
    "kernel_shape": [3, 3],
    "strides": [1, 1],
    "pads": [1, 1, 1, 1],
    "dilations": [1, 1],
    "group": 1,
}
POOL: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "ceil_mode": 0}


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def _with(table: np.ndarray, value: int) -> np.ndarray:
    changed: np.ndarray = table.copy()
    changed[3] = value
    return changed


def _compact(**changes: Any) -> Inputs:
    return {"sites": _ints(0, 3, 29), **changes}


def _expand(**changes: Any) -> Inputs:
    return {"source": SOURCE[:, None], "shape": SHAPE, "weight": np.ones((30, 1), np.float32), **changes}


def _conv(**changes: Any) -> Inputs:
    base: Inputs = {"W": W, "B": np.zeros(4, np.float32), "in_source": SOURCE, "in_shape": SHAPE}
    base.update(sites=_ints(0, 7, 29), Z=np.ones((1, 5, 4), np.float32), z_source=_ints(0, -1, 4))
    base.update(slope=np.ones(4, np.float32))
    return {**base, **changes}


def _radius(**changes: Any) -> Inputs:
    base: Inputs = {"W": W, "B": np.zeros(4, np.float32), "W_alpha": np.ones((1, 2, 1, 1), np.float32)}
    base.update(B_alpha=np.zeros(1, np.float32), B_ring=np.zeros(4, np.float32))
    base.update(in_source=SOURCE, in_shape=SHAPE, sites=_ints(0, 7, 29))
    base.update(slope=np.ones(4, np.float32))
    return {**base, **changes}


def _pool(**changes: Any) -> Inputs:
    return {"in_source": SOURCE, "in_shape": SHAPE, "sites": _ints(0, 5), **changes}


def _model(
    op: str, inputs: Inputs, attributes: dict[str, Any], *, fed: str = "", element: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    first = "X" if op == "Compact" else "S"
    names = [first, *(name if value is not None else "" for name, value in inputs.items())]
    while not names[-1]:
        names.pop()
    node = helper.make_node(op, names, ["R"], name="block3/rows", domain="ai.perfonnx", **attributes)
    tensors = {name: numpy_helper.from_array(value, name) for name, value in inputs.items() if value is not None}
    values = [helper.make_tensor_value_info(first, element, None)]
    if fed:
        values.append(helper.make_tensor_value_info(fed, tensors[fed].data_type, None))
    output = helper.make_tensor_value_info("R", element, None)
    constants = [tensor for name, tensor in tensors.items() if name != fed]
    graph = helper.make_graph([node], "graph", values, [output], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.perfonnx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


RADIUS = "SampledRadiusAdaptiveConv"
HUGE = np.array([2**31 - 1, 1], np.int64)
WRONG: dict[str, tuple[str, Inputs, dict[str, Any], str]] = {
    "sites below 0": ("Compact", _compact(sites=_ints(0, -1)), {}, "'sites': [1] = -1"),
    "sites of rank 2": ("Compact", _compact(sites=_ints(0, 1)[None]), {}, "'sites'"),
    "source below -1": ("ExpandRows", _expand(source=_with(SOURCE, -2)[:, None]), {}, "'source': [3, 0] = -2"),
    "source too short": ("ExpandRows", _expand(source=SOURCE[:-1, None]), {}, "'source'"),
    "source of rank 1": ("ExpandRows", _expand(source=SOURCE), {}, "'source'"),
    "shape of three": ("ExpandRows", _expand(shape=np.array([1, 6, 5])), {}, "'shape'"),
    "shape of rank 0": ("ExpandRows", _expand(shape=np.array(6)), {}, "'shape'"),
    "shape negative": ("ExpandRows", _expand(shape=np.array([-6, -5])), {}, "'shape'"),
    "shape too large": ("ExpandRows", _expand(shape=np.array([2**62, 4])), {}, "'shape'"),
    "weight of another shape": ("ExpandRows", _expand(weight=np.ones((30, 2), np.float32)), {}, "'weight'"),
    "weight is NaN": ("ExpandRows", _expand(weight=np.full((30, 1), np.nan, np.float32)), {}, "'weight': [0, 0]"),
    "conv in_source below -1": ("SampledConv", _conv(in_source=_with(SOURCE, -2)), CONV, "'in_source': [3] = -2"),
    "conv in_source too long": ("SampledConv", _conv(in_source=np.append(SOURCE, _ints(0))), CONV, "'in_source'"),
    "conv in_source of rank 2": ("SampledConv", _conv(in_source=SOURCE[:, None]), CONV, "'in_source'"),
    "conv in_shape too large": ("SampledConv", _conv(in_shape=np.array([2**40, 2**40])), CONV, "'in_shape'"),
    "conv in_shape negative": ("SampledConv", _conv(in_shape=np.array([-1, 5])), CONV, "'in_shape'"),
    "conv in_shape of one": ("SampledConv", _conv(in_shape=np.array([30])), CONV, "'in_shape'"),
    "conv site too large": ("SampledConv", _conv(sites=_ints(0, 7, 30)), CONV, "'sites': [2] = 30"),
    "conv site far too large": ("SampledConv", _conv(sites=_ints(0, 7, 2**31 - 1)), CONV, "'sites'"),
    "conv site below 0": ("SampledConv", _conv(sites=_ints(0, 7, -1)), CONV, "'sites': [2] = -1"),
    "conv site of no output": ("SampledConv", _conv(in_shape=np.array([0, 0]), in_source=SOURCE[:0]), CONV, "'sites'"),
    "conv of too many sites": ("SampledConv", _conv(in_shape=HUGE, in_source=None, sites=None), CONV, "'in_shape'"),
    "conv of too many positions": ("SampledConv", _conv(), {**CONV, "pads": [2**31 - 1] * 4}, "'in_shape'"),
    "conv B too short": ("SampledConv", _conv(B=np.zeros(3, np.float32)), CONV, "'B'"),
    "conv W of rank 3": ("SampledConv", _conv(W=W[0]), CONV, "'W'"),
    "conv W empty": ("SampledConv", _conv(W=W[:, :0]), CONV, "'W'"),
    "conv group does not divide": ("SampledConv", _conv(), {**CONV, "group": 3}, "'group'"),
    "conv stride of zero": ("SampledConv", _conv(), {**CONV, "strides": [0, 1]}, "'strides'"),
    "z_source below -1": ("SampledConv", _conv(z_source=_ints(0, -2, 4)), CONV, "'z_source': [1] = -2"),
    "z_source too short": ("SampledConv", _conv(z_source=_ints(0, 1)), CONV, "'z_source'"),
    "z_source without Z": ("SampledConv", _conv(Z=None), CONV, "'z_source'"),
    "zeros of other channels": ("SampledConv", _conv(Z=np.zeros((1, 5, 3), np.float32)), CONV, "'Z'"),
    "zeros of too few rows": ("SampledConv", _conv(Z=np.zeros((1, 4, 4), np.float32)), CONV, "'Z'"),
    "zeros of rank 2": ("SampledConv", _conv(Z=np.zeros((5, 4), np.float32)), CONV, "'Z'"),
    "conv slopes too few": ("SampledConv", _conv(slope=np.ones(3, np.float32)), CONV, "'slope': shape [3]"),
    "conv slope is NaN": ("SampledConv", _conv(slope=np.full(4, np.nan, np.float32)), CONV, "'slope'"),
    "radius slopes too few": (RADIUS, _radius(slope=np.ones(3, np.float32)), CONV, "'slope': shape [3]"),
    "radius in_source below -1": (RADIUS, _radius(in_source=_with(SOURCE, -2)), CONV, "'in_source': [3] = -2"),
    "radius in_source too long": (RADIUS, _radius(in_source=np.append(SOURCE, _ints(0))), CONV, "'in_source'"),
    "radius in_shape too large": (RADIUS, _radius(in_shape=np.array([2**40, 2**40])), CONV, "'in_shape'"),
    "radius in_shape negative": (RADIUS, _radius(in_shape=np.array([-1, 5])), CONV, "'in_shape'"),
    "radius site too large": (RADIUS, _radius(sites=_ints(0, 7, 30)), CONV, "'sites': [2] = 30"),
    "radius site below 0": (RADIUS, _radius(sites=_ints(0, 7, -1)), CONV, "'sites': [2] = -1"),
    "radius of too many sites": (RADIUS, _radius(in_shape=HUGE, in_source=None, sites=None), CONV, "'in_shape'"),
    "radius of too many positions": (RADIUS, _radius(), {**CONV, "pads": [2**31 - 1] * 4}, "'in_shape'"),
    "radius stride of zero": (RADIUS, _radius(), {**CONV, "strides": [0, 1]}, "'strides'"),
    "radius kernel of 1x1": (RADIUS, _radius(W=W[..., :1, :1]), {**CONV, "kernel_shape": [1, 1]}, "3 x 3"),
    "radius group does not divide": (RADIUS, _radius(), {**CONV, "group": 3}, "'group': 3"),
    "radius B too short": (RADIUS, _radius(B=np.zeros(3, np.float32)), CONV, "'B'"),
    "W_alpha too short": (RADIUS, _radius(W_alpha=np.ones((1, 1, 1, 1), np.float32)), CONV, "'W_alpha'"),
    "W_alpha of rank 1": (RADIUS, _radius(W_alpha=np.ones(2, np.float32)), CONV, "'W_alpha'"),
    "B_alpha too long": (RADIUS, _radius(B_alpha=np.ones(2, np.float32)), CONV, "'B_alpha'"),
    "B_ring too short": (RADIUS, _radius(B_ring=np.ones(3, np.float32)), CONV, "'B_ring'"),
    "center_gain is NaN": (RADIUS, _radius(), {**CONV, "center_gain": float("nan")}, "'center_gain'"),
    "pool in_source below -1": ("SampledMaxPool", _pool(in_source=_with(SOURCE, -9)), POOL, "'in_source': [3] = -9"),
    "pool in_source too short": ("SampledMaxPool", _pool(in_source=SOURCE[1:]), POOL, "'in_source'"),
    "pool site too large": ("SampledMaxPool", _pool(sites=_ints(0, 6)), POOL, "'sites': [1] = 6"),
    "pool site below 0": ("SampledAveragePool", _pool(sites=_ints(0, -1)), POOL, "'sites': [1] = -1"),
    "pool in_shape negative": ("SampledAveragePool", _pool(in_shape=np.array([6, -5])), POOL, "'in_shape'"),
    "pool window too large": ("SampledMaxPool", _pool(), {**POOL, "kernel_shape": [7, 2]}, "'kernel_shape'"),
    "pool window far too large": (
        "SampledMaxPool",
        _pool(),
        {**POOL, "kernel_shape": [2**31 - 1, 1], "dilations": [2**31 - 1, 1]},
        "'kernel_shape'",
    ),
    "pool window of zero": ("SampledMaxPool", _pool(), {**POOL, "kernel_shape": [0, 2]}, "'kernel_shape'"),
    "pool without a window": ("SampledAveragePool", _pool(), {}, "'kernel_shape'"),
    "pool stride of zero": ("SampledAveragePool", _pool(), {**POOL, "strides": [1, 0]}, "'strides'"),
    "pool pads of two": ("SampledAveragePool", _pool(), {**POOL, "pads": [0, 0]}, "'pads'"),
    "pool negative pad": ("SampledAveragePool", _pool(), {**POOL, "pads": [0, 0, 0, -1]}, "'pads'"),
    "pool pads beyond any map": ("SampledMaxPool", _pool(sites=None), {**POOL, "pads": [2**31 - 1] * 4}, "'in_shape'"),
    "pool of too many sites": (
        "SampledMaxPool",
        _pool(sites=None, in_shape=HUGE, in_source=None),
        {"kernel_shape": [1, 1]},
        "'in_shape'",
    ),
    "pool windows too many": (
        "SampledAveragePool",
        _pool(sites=None, in_shape=np.array([999, 999]), in_source=None),
        {"kernel_shape": [999, 999], "pads": [998] * 4},
        "'kernel_shape'",
    ),
    "pool ceil_mode": ("SampledMaxPool", _pool(), {**POOL, "ceil_mode": 2}, "'ceil_mode'"),
    "pool count_include_pad": ("SampledAveragePool", _pool(), {**POOL, "count_include_pad": -1}, "'count_include_pad'"),
}


def _refusal(candidate: onnx.ModelProto) -> str:
    with pytest.raises(PerfonnxError) as caught:
        session(candidate)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", WRONG)
def test_wrong_constants_and_attributes(case: str) -> None:
    op, inputs, attributes, wanted = WRONG[case]
    message = _refusal(_model(op, inputs, attributes))
    assert wanted in message
    assert f"{op} node 'block3/rows'" in message


GIVEN: dict[str, tuple[Inputs, dict[str, Any]]] = {
    "Compact": (_compact(), {}),
    "ExpandRows": (_expand(), {}),
    "SampledConv": (_conv(), CONV),
    RADIUS: (_radius(), CONV),
    "SampledMaxPool": (_pool(), POOL),
    "SampledAveragePool": (_pool(), POOL),
}
CONSTANTS = [(op, name) for op, (inputs, _) in GIVEN.items() for name in inputs if name != "Z"]


@pytest.mark.parametrize(("op", "name"), CONSTANTS)
def test_constants_that_are_fed_are_refused(op: str, name: str) -> None:
    message = _refusal(_model(op, *GIVEN[op], fed=name))
    assert f"{op} node 'block3/rows': input '{name}'" in message
    assert "constant" in message


@pytest.mark.parametrize(("op", "name"), CONSTANTS)
def test_constants_of_another_type_are_refused(op: str, name: str) -> None:
    inputs, attributes = GIVEN[op]
    assert _refusal(_model(op, {**inputs, name: np.asarray(inputs[name]).astype(np.float64)}, attributes))


@pytest.mark.parametrize("op", GIVEN)
def test_the_given_models_are_good(op: str) -> None:
    x = np.ones((2, 2, 6, 5) if op == "Compact" else (2, 7, 2), np.float32)
    name = "X" if op == "Compact" else "S"
    for images in (2, 0):
        assert session(_model(op, *GIVEN[op])).run(None, {name: x[:images]})[0].shape[0] == images


MISFITS: dict[str, tuple[str, Inputs, tuple[int, ...], str]] = {
    "map smaller than its sites": ("Compact", _compact(), (1, 2, 29, 1), "'X': shape [1, 2, 29, 1].*position 29"),
    "map of rank 3": ("Compact", _compact(), (2, 6, 5), "'X'"),
    "empty map": ("Compact", _compact(), (1, 2, 0, 5), "'X'"),
    "rows of an expanded map": ("ExpandRows", _expand(), (1, 6, 2), "'S': shape [1, 6, 2].*row 6"),
    "rows of rank 4": ("ExpandRows", _expand(), (1, 7, 2, 1), "'S'"),
    "too few rows": ("SampledConv", _conv(), (1, 6, 2), "'S': shape [1, 6, 2].*row 6"),
    "no rows": ("SampledConv", _conv(), (1, 0, 2), "'S'"),
    "rows and no table": ("SampledConv", _conv(in_source=None), (1, 31, 2), "'S'.*31 rows.*30"),
    "channels": ("SampledConv", _conv(), (1, 7, 3), "'S': shape [1, 7, 3].*3 channels.*2"),
    "images of Z": ("SampledConv", _conv(Z=np.ones((3, 5, 4), np.float32)), (2, 7, 2), "'Z': 3 images.*2"),
    "images of zeros": ("SampledConv", _conv(Z=np.zeros((3, 5, 4), np.float32)), (2, 7, 2), "'Z': 3 images.*2"),
    "channels of Z": ("SampledConv", _conv(Z=np.ones((1, 5, 3), np.float32)), (2, 7, 2), "'Z': shape [1, 5, 3]"),
    "rows of Z": ("SampledConv", _conv(Z=np.ones((1, 4, 4), np.float32)), (2, 7, 2), "'Z'.*4 rows.*row 4"),
    "rows of Z and no table": ("SampledConv", _conv(z_source=None), (2, 7, 2), "'Z'.*5 rows.*3"),
    "too few rows to adapt": (RADIUS, _radius(), (1, 6, 2), "'S': shape [1, 6, 2].*row 6"),
    "rows to adapt and no table": (RADIUS, _radius(in_source=None), (1, 31, 2), "'S'.*31 rows.*30"),
    "channels to adapt": (RADIUS, _radius(), (1, 7, 3), "'S': shape [1, 7, 3].*3 channels.*2"),
    "rows to adapt of rank 2": (RADIUS, _radius(), (7, 2), "'S'"),
    "pooled rows": ("SampledMaxPool", _pool(), (1, 6, 2), "'S'.*row 6"),
    "pooled rows and no table": ("SampledAveragePool", _pool(in_source=None), (1, 7, 2), "'S'.*7 rows.*30"),
    "pooled rows of rank 2": ("SampledAveragePool", _pool(), (7, 2), "'S'"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_do_not_fit_are_refused_by_name(case: str) -> None:
    op, inputs, shape, wanted = MISFITS[case]
    running = session(_model(op, inputs, GIVEN[op][1]))
    pattern = f"{op} node 'block3/rows': input {wanted}".replace("[", r"\[")
    with pytest.raises(Exception, match=pattern):
        running.run(None, {"X" if op == "Compact" else "S": np.ones(shape, np.float32)})
