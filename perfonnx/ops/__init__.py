"""The operators of domain `ai.perfonnx`. Importing this package makes them known to onnx's checker and inference."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import onnx

from perfonnx.ops import (
    compact,
    expand,
    perforated_conv,
    radius_adaptive_conv,
    sampled_conv,
    sampled_pool,
    sampled_radius_adaptive_conv,
    sparse_conv,
)
from perfonnx.ops.common import DOMAIN, VERSION

__all__ = [
    "CONVS_ON_ROWS",
    "DOMAIN",
    "LOWERED",
    "OPERATORS",
    "REFERENCE_OPS",
    "VERSION",
    "compact",
    "expand",
    "perforated_conv",
    "radius_adaptive_conv",
    "sampled_conv",
    "sampled_pool",
    "sampled_radius_adaptive_conv",
    "sparse_conv",
]

OPERATORS: dict[str, ModuleType] = {
    module.NAME: module for module in (perforated_conv, sparse_conv, radius_adaptive_conv)
}
"""The canonical operators, NCHW in and out."""

LOWERED: dict[str, ModuleType | SimpleNamespace] = {
    module.NAME: module
    for module in (
        compact,
        expand,
        sampled_conv,
        sampled_radius_adaptive_conv,
        sampled_pool.max_pool,
        sampled_pool.average_pool,
    )
}
"""The operators on rows."""

CONVS_ON_ROWS: dict[str, ModuleType] = {module.NAME: module for module in (sampled_conv, sampled_radius_adaptive_conv)}
"""Those of them that stand for a convolution; `SHAPE_INPUT` and `SITES_INPUT` say where they have these inputs."""

REFERENCE_OPS = [module.Reference for module in (*OPERATORS.values(), *LOWERED.values())]
"""For `onnx.reference.ReferenceEvaluator(model, new_ops=REFERENCE_OPS)`."""


def _register_schemas() -> None:
    for module in (*OPERATORS.values(), *LOWERED.values()):
        if not onnx.defs.has(module.NAME, DOMAIN):
            onnx.defs.register_schema(module.schema())


_register_schemas()
