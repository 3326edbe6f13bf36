"""Which operator has which rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from perfonnx.gradients.builder import Builder, Value
from perfonnx.gradients.network import Node

Rule: TypeAlias = Callable[[Builder, Node, Sequence["Value | None"]], Sequence["Value | None"]]
"""From the gradients of a node's outputs (None: the loss does not depend on it) to those of its inputs (None: there is
no rule for this one), each of the shape of its tensor. What nobody needs may be built: it is dropped in the end."""

SimpleRule: TypeAlias = Callable[[Builder, Node, Value], Sequence["Value | None"]]

RULES: dict[str, Rule] = {}
"""Rules by operator, as `Node.op` names it."""

FLAT = frozenset(
    "Shape Size ArgMax ArgMin Equal Greater GreaterOrEqual Less LessOrEqual Not And Or Xor IsNaN IsInf Floor Ceil "  # noqa: SIM905
    "Round Sign NonZero ConstantOfShape EyeLike Range NonMaxSuppression OneHot RandomNormalLike RandomUniformLike "
    "Bernoulli Multinomial".split()
)
"""Operators whose output is constant wherever it has a derivative: gradients end here and are 0."""


def gradient(*operators: str) -> Callable[[SimpleRule], SimpleRule]:
    """Registers a rule for the gradient of the first output."""

    def register(rule: SimpleRule) -> SimpleRule:
        def first(g: Builder, node: Node, dys: Sequence[Value | None]) -> Sequence[Value | None]:
            others = [name for name, dy in zip(node.outputs[1:], dys[1:], strict=True) if dy is not None]
            if others or dys[0] is None:
                raise node.refuse(f"only its first output has a gradient, but {others[0]!r} is used")
            return rule(g, node, dys[0])

        RULES.update(dict.fromkeys(operators, first))
        return rule

    return register


def gradient_of_all(*operators: str) -> Callable[[Rule], Rule]:
    """Registers a rule that takes the gradients of all outputs."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register
