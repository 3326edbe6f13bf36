"""Where the error lies: the maps against errors that are known, or computed by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import perfonnx
from perfonnx.methods.perforate import Perforate
from perfonnx.methods.sublattice import Sublattice, lattice_mask
from perfonnx.plan import Plan
from perfonnx.rewriting import Rewritten, rewrite
from perfonnx.search import error_maps as module
from perfonnx.search.error_maps import IMAGES, ErrorMap, error_maps
from perfonnx.subject import Subject
from tests.passes import nets
from tests.search.arrays import Arrays

SIZE = (12, 10)


def network(last: str = "r2") -> ModelProto:
    """A layer, two of which the second is added to what goes around them, and one behind."""
    nodes = [
        nets.conv("x", "c0", "w0", name="enter"),
        nets.node("Relu", ["c0"], ["r0"]),
        nets.conv("r0", "c1", "w1", name="inside"),
        nets.node("Relu", ["c1"], ["r1"]),
        nets.conv("r1", "c2", "w2", name="added"),
        nets.node("Add", ["c2", "r0"], ["s"]),
        nets.node("Relu", ["s"], ["r2"]),
    ]
    weights = {f"w{i}": 2 * nets.values(16, 16 if i else 3, 3, 3, seed=i) for i in range(3)}
    shape = ("N", 16, *SIZE)
    return nets.model(nodes, weights, inputs={"x": ("N", 3, *SIZE)}, outputs={last: shape})


def data(count: int = IMAGES, batch: int = 8) -> Arrays:
    return Arrays("x", np.random.default_rng(0).standard_normal((count, 3, *SIZE), dtype=np.float32), batch=batch)


def responses(model: ModelProto, names: list[str], images: np.ndarray) -> dict[str, np.ndarray]:
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n != "r2")
    session = perfonnx.session(model, threads=1)
    return dict(zip(names, session.run(names, {"x": images}), strict=True))


def perforated(layout: str = "rows") -> tuple[Subject, Rewritten]:
    plan = Plan({"enter": Perforate(0.5, "lattice"), "inside": Perforate(0.75, "grid")}, layout=layout)
    subject = Subject(network())
    return subject, subject.rewrite(plan)


def by_name(found: list[ErrorMap]) -> dict[str, ErrorMap]:
    assert len({each.name for each in found}) == len(found)
    return {each.name: each for each in found}


@pytest.mark.parametrize("layout", ["rows", "nchw"])
def test_maps_are_the_differences_of_responses(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 1)  # one response at a time
    subject, result = perforated(layout)
    found = by_name(error_maps(subject, result, data(), threads=1))
    assert list(found) == ["enter", "inside", "r2"]
    assert [each.is_output for each in found.values()] == [False, False, True]
    names = ["r0", "r1", "r2"]
    images = data().images
    expected = responses(network(), names, images)
    on_maps = rewrite(network(), plan=result.plan, layout="nchw").proto
    for each, actual in zip(found.values(), responses(on_maps, names, images).values(), strict=True):
        right = expected[names[list(found).index(each.name)]]
        np.testing.assert_allclose(each.error, np.abs(actual - right).mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)
        assert each.relative == pytest.approx(np.abs(actual - right).mean() / np.abs(right).mean(), rel=1e-4)
        assert each.images == len(images)
    mask = result.masks["enter"]
    error = found["enter"].error
    assert error[mask].max() < 1e-5 < 1e-2 < error[~mask].min(), "sites are exact, and nothing else is"


def test_an_error_lies_where_it_was_planted() -> None:
    where = np.ones(SIZE, bool)
    where[7, 3] = False
    plan = Plan({"enter": Perforate(0.01, "given")})
    subject = Subject(network("r2"))
    result = rewrite(network(), plan=plan, masks={"enter": where}, layout="nchw")
    error = by_name(error_maps(subject, result, data(4), threads=1))["enter"].error
    np.testing.assert_array_equal(error > 1e-5, ~where)


def test_positions_of_no_site_have_no_value_on_a_lattice() -> None:
    plan = Plan({name: Sublattice() for name in ("enter", "inside", "added")})
    subject = Subject(network(), calibration=data(64))
    result = subject.rewrite(plan)
    found = by_name(error_maps(subject, result, data(40), threads=1))
    mask = lattice_mask("quincunx", SIZE)
    for name in ("enter", "inside", "added"):
        np.testing.assert_array_equal(np.isfinite(found[name].error), mask)
        assert found[name].images == IMAGES, "a few say enough"
    assert found["enter"].relative < 1e-5 < 1e-2 < found["inside"].relative < 1
    assert not np.isnan(found["r2"].error).any()


def test_a_layer_is_looked_at_behind_what_is_added_to_it() -> None:
    subject = Subject(network())
    result = subject.rewrite(Plan({"added": Perforate(0.5, "lattice")}))
    found = by_name(error_maps(subject, result, data(8), threads=1))
    np.testing.assert_allclose(found["added"].error, found["r2"].error, rtol=1e-4, atol=1e-5)
    assert found["r2"].error.max() > 1e-2


@pytest.mark.parametrize("layers", [True, False])
def test_of_a_network_with_other_weights_only_outputs_are_looked_at(layers: bool) -> None:
    _, result = perforated()
    other = network()
    for tensor in other.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, "w2"))
    found = error_maps(Subject(other), result, data(8), layers=layers, threads=1)
    assert [(each.name, each.is_output) for each in found] == [("r2", True)]


def test_outputs_are_maps_also_with_channels_last() -> None:
    model = network("c2")
    model.graph.node.append(nets.node("Transpose", ["r2"], ["t"], perm=[0, 2, 3, 1]))
    model.graph.node.append(nets.node("Slice", ["t", "zero", "two", "three"], ["y"]))
    model.graph.node.append(nets.node("GlobalAveragePool", ["r2"], ["pooled"]))
    for name, value in {"zero": 0, "two": 2, "three": 3}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    del model.graph.output[:]
    for name, shape in {"y": ("N", *SIZE, 2), "pooled": ("N", 16, 1, 1)}.items():
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, shape))
    subject = Subject(model)
    result = subject.rewrite(Plan({"added": Perforate(0.5, "lattice")}))
    found = by_name(error_maps(subject, result, data(8), threads=1))
    assert list(found) == ["added", "y"]
    assert found["y"].error.shape == SIZE
    mask = result.masks["added"]
    assert found["y"].error[mask].max() < 1e-5 < found["y"].error[~mask].max()


def test_what_is_no_number_says_nothing() -> None:
    each = ErrorMap("a", np.zeros((2, 2)), float("nan"), 1)
    assert each.to_json() == {"name": "a", "relative": None, "images": 1, "is_output": False}
