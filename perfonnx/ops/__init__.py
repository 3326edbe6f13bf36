"""The operators of domain `ai.perfonnx`. Importing this package makes them known to onnx's checker and inference."""

from __future__ import annotations

from types import ModuleType

import onnx

from perfonnx.ops import perforated_conv, radius_adaptive_conv, sparse_conv
from perfonnx.ops.common import DOMAIN, VERSION

__all__ = ["DOMAIN", "OPERATORS", "REFERENCE_OPS", "VERSION", "perforated_conv", "radius_adaptive_conv", "sparse_conv"]

OPERATORS: dict[str, ModuleType] = {
    module.NAME: module for module in (perforated_conv, sparse_conv, radius_adaptive_conv)
}

REFERENCE_OPS = [module.Reference for module in OPERATORS.values()]
"""For `onnx.reference.ReferenceEvaluator(model, new_ops=REFERENCE_OPS)`."""


def _register_schemas() -> None:
    for module in OPERATORS.values():
        if not onnx.defs.has(module.NAME, DOMAIN):
            onnx.defs.register_schema(module.schema())


_register_schemas()
