"""A new operator is a file: schema, reference and function body are made of what it describes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from perfonnx import ops

INVENTED = """
from perfonnx.ops.base import Attribute, Input, Operator

OPERATOR = Operator(
    name="Invented",
    doc="X times factor.",
    inputs=(Input("X", "T", "Map [N, C, H, W]."),),
    output=Input("Y", "T", "Map of the same shape."),
    attributes=(Attribute("factor", "What X is multiplied by.", 2.0),),
    infer=lambda node: node.give(node.dims("X")),
    compute=lambda given: given["X"] * given.attributes["factor"],
    body=lambda f, given: f.add("Mul", "X", f.float_attribute("factor", "X")),
)
"""


def test_an_operator_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "invented.py").write_text(INVENTED)
    monkeypatch.setattr(ops, "__path__", [*ops.__path__, str(tmp_path)])
    found = ops._in_order()
    monkeypatch.delitem(sys.modules, "perfonnx.ops.invented")
    assert list(found) == [*ops.OPERATORS, "Invented"]
    invented = found["Invented"]
    assert [i.name for i in invented.schema().inputs] == ["X"]
    assert list(invented.schema().attributes) == ["factor"]
    np.testing.assert_array_equal(invented.reference(np.ones(3)), np.full(3, 2.0))
    np.testing.assert_array_equal(invented.reference(np.ones(3), factor=3.0), np.full(3, 3.0))
    body = invented.function_body(17, 1)
    assert (list(body.input), list(body.attribute), body.node[-1].output) == (["X"], ["factor"], ["Y"])
