"""The operators of domain `ai.perfonnx`. Importing this package makes them known to onnx's checker and inference.

Each is described in a module of its own, and found there: a new operator is its module, its kernel and its test.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import onnx

from perfonnx.ops.base import DOMAIN, VERSION, Operator

__all__ = ["CANONICAL", "DOMAIN", "LOWERED", "OPERATORS", "REFERENCE_OPS", "VERSION", "Operator"]

_FIRST = (
    "PerforatedConv",
    "SparseConv",
    "RadiusAdaptiveConv",
    "Compact",
    "ExpandRows",
    "SampledConv",
    "SampledRadiusAdaptiveConv",
    "SampledMaxPool",
    "SampledAveragePool",
)
"""Function bodies are written in the order of `OPERATORS`; this one keeps models what they are, to the byte."""


def _described() -> Iterator[Operator]:
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        yield from (value for value in vars(module).values() if isinstance(value, Operator))


def _in_order() -> dict[str, Operator]:
    found = {operator.name: operator for operator in _described()}
    return {name: found[name] for name in (*_FIRST, *sorted(found.keys() - set(_FIRST)))}


OPERATORS: dict[str, Operator] = _in_order()
"""All of them, by name."""

CANONICAL = {name: operator for name, operator in OPERATORS.items() if not operator.lowered}
"""Those from map to map."""

LOWERED = {name: operator for name, operator in OPERATORS.items() if operator.lowered}
"""Those on rows."""

REFERENCE_OPS = [operator.evaluator() for operator in OPERATORS.values()]
"""For `onnx.reference.ReferenceEvaluator(model, new_ops=REFERENCE_OPS)`."""

for _operator in OPERATORS.values():
    if not onnx.defs.has(_operator.name, DOMAIN):
        onnx.defs.register_schema(_operator.schema())
