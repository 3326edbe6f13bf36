"""onnx's own tools: the version converter, and the merging of models."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import compose, version_converter

import perfonnx
from tests.neighbours import nets
from tests.passes.nets import conv, model, node, values


@nets.forms
def test_a_rewritten_model_is_converted_upwards(form: str) -> None:
    """The converter drops all functions of a model: it then needs the library."""
    source = nets.rewritten(form)
    nets.assert_needs_library(version_converter.convert_version(source, 21), nets.run(source, library=False))


def test_a_rewritten_model_is_not_converted_downwards() -> None:
    with pytest.raises(RuntimeError, match="No Adapter From Version"):  # as for the original
        version_converter.convert_version(nets.network(), 13)
    with pytest.raises(RuntimeError, match="No Adapter From Version"):
        version_converter.convert_version(nets.rewritten("maps"), 13)


@pytest.mark.parametrize("opset", [13, 21])
def test_a_converted_model_is_rewritten(opset: int) -> None:
    nets.assert_can_be_rewritten(version_converter.convert_version(nets.network(9), opset))


def _second() -> onnx.ModelProto:
    """What may stand behind the network."""
    nodes = [conv("y", "a", "v1", name="conv4"), node("Relu", ["a"], ["r"]), conv("r", "z", "v2", name="conv5")]
    weights = {"v1": values(8, 8, 3, 3, seed=5), "v2": values(4, 8, 3, 3, seed=6)}
    return model(nodes, weights, inputs={"y": (1, 8, 6, 5)}, outputs={"z": (1, 4, 6, 5)})


def _pair(form: str, *, fallback: bool = True) -> tuple[onnx.ModelProto, onnx.ModelProto, np.ndarray]:
    """Two rewritten models, and what they give one after the other."""
    first, second = (
        perfonnx.rewrite(source, only=[""], fallback=fallback, **nets.FORMS[form]).proto
        for source in (nets.network(), _second())
    )
    between = perfonnx.session(first).run(None, nets.feed())[0]
    return first, second, perfonnx.session(second).run(None, {"y": between})[0]


@nets.forms
def test_rewritten_models_are_merged(form: str) -> None:
    """With a prefix onnx renames the operators that have a body: the result is right, but runs by the bodies."""
    first, second, expected = _pair(form)
    merged = compose.merge_models(first, second, [("y", "y")], prefix1="one/", prefix2="two/")
    nets.assert_runs(merged, expected)
    assert {f.name.split("/")[0] for f in merged.functions} == {"one", "two"}
    plans = [json.loads(p.value) for p in merged.metadata_props if p.key.startswith("perfonnx.plan.")]
    assert [name for plan in plans for name in plan["layers"]] == ["conv1", "conv2", "conv3", "conv4", "conv5"]


@nets.forms
def test_rewritten_models_without_bodies_are_merged(form: str) -> None:
    first, second, expected = _pair(form, fallback=False)
    merged = compose.merge_models(first, second, [("y", "y")], prefix1="one/", prefix2="two/")
    assert nets.operators(merged) == nets.operators(first) + nets.operators(second)
    nets.assert_needs_library(merged, expected)


def test_merged_models_are_rewritten() -> None:
    merged = compose.merge_models(nets.network(), _second(), [("y", "y")], prefix1="one/", prefix2="two/")
    nets.assert_can_be_rewritten(merged, layers=5)
