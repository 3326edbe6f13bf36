"""Rewritten models with anything changed in them: they run, or are refused in a line; under a sanitizer, above all."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import perfonnx
from perfonnx.errors import PerfonnxError
from tests.passes import nets

VARIANTS = [(m, layout) for m in ("perforate", "sparse", "radius-adaptive") for layout in ("rows", "nchw")]
NUMBERS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 13, 64, 255, 1000, 2**15, 2**31, 2**62, 2**63 - 1]
SIZES = [0, 1, 2, 3, 4, 5, 8, 10, 12, 13, 31]
TYPES = [np.float32, np.float16, np.float64, np.int32, np.int64, np.uint8, np.bool_]


@cache
def _base(method: str, layout: str) -> bytes:
    """Convolutions of all kinds, pools and a sum."""
    nodes = [
        nets.conv("x", "a", "v", "b", name="first"),
        nets.node("Relu", ["a"], ["r"]),
        nets.conv("r", "c", "w", name="second", group=2),
        nets.node("Add", ["c", "r"], ["s"]),
        nets.node("MaxPool", ["s"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        nets.conv("p", "d", "u", name="third", dilations=[2, 1], pads=[2, 1, 2, 1]),
        nets.node("AveragePool", ["d"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        nets.conv("q", "y", "u", name="fourth"),
    ]
    weights = {
        "v": nets.values(4, 3, 3, 3),
        "b": nets.values(4),
        "w": nets.values(4, 2, 3, 3),
        "u": nets.values(4, 4, 3, 3),
    }
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)}, outputs={"y": (None,) * 4})
    rate = {} if method == "radius-adaptive" else {"rate": 0.5, "mask": "uniform"}
    proto = perfonnx.rewrite(model, method=method, layout=layout, fallback=False, **rate).proto
    for value in (*proto.graph.input, *proto.graph.value_info):  # onnxruntime would refuse what contradicts it
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString())


def _mutate_attribute(node: NodeProto, rng: np.random.Generator) -> None:
    if not node.attribute:
        return
    attribute: AttributeProto = node.attribute[rng.integers(len(node.attribute))]
    number = int(rng.choice(np.array(NUMBERS, object)))
    match rng.integers(6):
        case 0 | 1 | 2 if attribute.ints:
            attribute.ints[rng.integers(len(attribute.ints))] = number
        case 4 if attribute.ints:
            attribute.ints.append(number)
        case 3:
            node.attribute.remove(attribute)
        case _:
            value = [number, float(number), [number] * int(rng.integers(1, 5)), float("nan"), "text"][rng.integers(5)]
            attribute.CopyFrom(helper.make_attribute(attribute.name, value))


def _mutate_table(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    match rng.integers(24):
        case 0:
            return value.astype(TYPES[rng.integers(len(TYPES))])
        case 1:
            return value[: rng.integers(len(value) + 1)] if value.ndim else value[None]
        case 2:
            return value[None] if rng.integers(2) else value.reshape(-1)
        case 3:
            return np.zeros((0, *value.shape[1:]), value.dtype)
        case 4:
            return np.concatenate([value, value]) if value.ndim else value
        case 5:
            return np.swapaxes(value, 0, -1) if value.ndim else value
        case _:
            changed = value.copy()
            for _ in range(int(rng.integers(1, 4))) if changed.size else ():
                limits = np.iinfo(value.dtype) if value.dtype.kind in "iu" else None
                number = int(rng.choice(np.array(NUMBERS, object)))
                number = number if limits is None else min(max(number, limits.min), limits.max)
                changed.flat[rng.integers(changed.size)] = number
            return changed


def _mutated(model: ModelProto, rng: np.random.Generator) -> ModelProto:
    ours = [node for node in model.graph.node if node.domain == "ai.perfonnx"]
    for step in range(int(rng.integers(1, 3))):
        node = ours[rng.integers(len(ours))]
        place = int(rng.integers(1, len(node.input)))
        tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        name, kind = node.input[place], rng.integers(10)
        if kind < 4:
            _mutate_attribute(node, rng)
        elif kind == 4:
            node.input[place] = ""
        elif name in tensors and kind == 5:
            alike = [t.name for t in tensors.values() if t.data_type == tensors[name].data_type]
            node.input[place] = alike[rng.integers(len(alike))]
        elif name in tensors:
            value = _mutate_table(numpy_helper.to_array(tensors[name]), rng)
            node.input[place] = f"changed.{step}"
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), node.input[place]))
    return model


def _try(method: str, layout: str, seed: int) -> bool:
    """Whether the model that a seed makes ran."""
    rng = np.random.default_rng([seed, VARIANTS.index((method, layout))])
    model = _mutated(onnx.load_from_string(_base(method, layout)), rng)
    try:
        running = perfonnx.session(model, threads=1)
    except PerfonnxError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return False
    ran = False
    for _ in range(2):
        shape = [1, 3, 12, 10] if rng.integers(2) else [int(rng.choice(SIZES)) for _ in range(4)]
        feed = {"x": rng.standard_normal(shape, np.float32)}
        try:
            running.run(None, feed)
            ran = True
        except Exception as error:  # onnxruntime's own kinds
            assert "perfonnx: " in str(error) or "ONNXRuntimeError" in str(error)  # noqa: PT017
    return ran


@pytest.mark.parametrize(("method", "layout"), VARIANTS)
def test_anything_changed(method: str, layout: str) -> None:
    ran = [_try(method, layout, seed) for seed in range(25)]
    assert any(ran)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 1100, 100))
@pytest.mark.parametrize(("method", "layout"), VARIANTS)
def test_anything_changed_often(method: str, layout: str, seed: int) -> None:
    ran = [_try(method, layout, number) for number in range(seed, seed + 100)]
    assert any(ran)
