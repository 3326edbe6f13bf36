"""Nodes of the domain that another program, or somebody with an editor, has written wrongly: one line, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import perfonnx
from perfonnx.cli import main
from perfonnx.errors import PerfonnxError
from tests.passes import nets


def _chain(method: str, layout: str) -> ModelProto:
    """Three sampled layers and a pool, on rows or on maps."""
    nodes = [
        nets.conv("x", "a", "v", name="first"),
        nets.conv("a", "b", "w", name="second"),
        nets.node("MaxPool", ["b"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        nets.conv("p", "y", "w", name="third"),
    ]
    weights = {"v": nets.values(4, 3, 3, 3), "w": nets.values(4, 4, 3, 3)}
    rate = {} if method == "radius-adaptive" else {"rate": 0.5}
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 10)}, outputs={"y": ("N", 4, 6, 5)})
    return perfonnx.rewrite(model, layout=layout, method=method, **rate).proto


VARIANTS = [(m, layout) for m in ("perforate", "sparse", "radius-adaptive") for layout in ("rows", "nchw")]
Change = Callable[[np.ndarray], np.ndarray]
TABLES: dict[str, Change] = {
    "longer": lambda t: np.append(t, t.flat[:1]),
    "empty": lambda t: t[:0],
    "rank": lambda t: t[None],
    "scalar": lambda t: np.array(0, t.dtype),
    "type": lambda t: t.astype(np.float64),
    "large": lambda t: np.full_like(t, 2**30) if t.dtype != bool else ~t,
    "negative": lambda t: np.full_like(t, -2) if t.dtype != bool else t.T,
}
ATTRIBUTES: dict[str, object] = {
    "one": [1],
    "none": [],
    "zero": [0, 0, 0, 0],
    "negative": [-1, -1],
    "huge": [2**62, 2**62],
    "integer": 1,
    "text": "abc",
    "real": 1.5,
    "group": 2**62,
}


def _ends_well(model: ModelProto, directory: Path) -> None:
    """Every command takes it or says in a line why not."""
    path = directory / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for line in (["inspect", str(path)], ["rewrite", str(path), str(directory / "out.onnx"), "--rate", ".25", "-q"]):
        assert main(line) in (0, 2)


def _broken(model: ModelProto) -> list[ModelProto]:
    found = []
    for index, node in enumerate(model.graph.node):
        if node.domain != "ai.perfonnx":
            continue
        for position, name in enumerate(node.input):
            table = next((t for t in model.graph.initializer if t.name == name), None)
            for change in TABLES.values() if table is not None else ():
                copy = ModelProto()
                copy.CopyFrom(model)
                copy.graph.node[index].input[position] = "changed"
                value = change(numpy_helper.to_array(table))
                copy.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), "changed"))
                found.append(copy)
            copy = ModelProto()
            copy.CopyFrom(model)
            copy.graph.node[index].input[position] = ""
            found.append(copy)
        for place, attribute in enumerate(node.attribute):
            for value in ATTRIBUTES.values():
                copy = ModelProto()
                copy.CopyFrom(model)
                copy.graph.node[index].attribute[place].CopyFrom(
                    helper.make_attribute(attribute.name, value, attr_type=7 if value == [] else None)
                )
                found.append(copy)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("method", "layout"), VARIANTS)
def test_whatever_a_node_says_ends_in_a_line(method: str, layout: str, tmp_path: Path) -> None:
    for model in _broken(_chain(method, layout)):
        _ends_well(model, tmp_path)


@pytest.mark.parametrize(("method", "layout"), VARIANTS)
def test_some_of_what_a_node_may_say_ends_in_a_line(method: str, layout: str, tmp_path: Path) -> None:
    broken = _broken(_chain(method, layout))
    for i in np.random.default_rng(0).choice(len(broken), 12, replace=False):
        _ends_well(broken[i], tmp_path)


@pytest.mark.parametrize("values", [[12], [12, 10, 1], [], [-12, -10], [2**62, 2**62]])
def test_sizes_that_are_none(values: list[int]) -> None:
    model = _chain("perforate", "rows")
    node = next(n for n in model.graph.node if n.op_type == "SampledConv")
    node.input[4] = "changed"
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), "changed"))
    for command in (perfonnx.inspect, perfonnx.rewrite):
        with pytest.raises(PerfonnxError, match="SampledConv node 'first': input in_shape"):
            command(model)


def test_models_of_ours_are_taken() -> None:
    for variant in VARIANTS:
        model = _chain(*variant)
        onnx.checker.check_model(model, full_check=True)
        assert all(conv.reason == "already rewritten" for conv in perfonnx.inspect(model).convs)
