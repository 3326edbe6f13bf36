"""The gradient of each operator, one short rule each. A new one is its function; importing this package knows all."""

from perfonnx.gradients.rules import elementwise, linear, moving, normalization, pooling, reduction, resize
from perfonnx.gradients.rules.registry import FLAT, RULES, Rule, gradient

__all__ = [
    "FLAT",
    "RULES",
    "Rule",
    "elementwise",
    "gradient",
    "linear",
    "moving",
    "normalization",
    "pooling",
    "reduction",
    "resize",
]
