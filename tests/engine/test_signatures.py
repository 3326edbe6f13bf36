"""What the engine says about the operators that the library registers."""

from __future__ import annotations

import pytest

from perfonnx import _engine

OPERATORS = _engine.operators()


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_name_is_said_once(name: str) -> None:
    for part in ("inputs", "attributes"):
        names = [name for name, _, _ in OPERATORS[name][part]]
        assert len(set(names)) == len(names)


def test_inputs_and_attributes_of_a_convolution_on_rows() -> None:
    inputs, attributes = OPERATORS["SampledConv"]["inputs"], OPERATORS["SampledConv"]["attributes"]
    names = ["S", "W", "B", "in_source", "in_shape", "sites", "Z", "z_source", "slope"]
    assert [name for name, _, _ in inputs] == names
    assert ("W", "T", False) in inputs
    assert ("z_source", "tensor(int32)", True) in inputs
    assert ("pads", "INTS", False) in attributes
    assert ("kernel_shape", "INTS", True) in OPERATORS["SampledMaxPool"]["attributes"]
