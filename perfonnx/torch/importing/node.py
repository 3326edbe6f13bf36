"""A node of the graph as the operators' functions see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx import AttributeProto, NodeProto, helper
from torch import Tensor

from perfonnx.errors import PerfonnxError


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        op: The operator.
        name: The node's name, or that of its output.
        inputs: Names of the inputs; empty for one that is left out.
        outputs: Names of the outputs; empty for one that is left out.
        attributes: Values by name, text as `str`.
        opset: Version of the standard operators.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    @classmethod
    def of(cls, proto: NodeProto, opset: int) -> Node:
        """The view of a message."""
        name = proto.name or next(iter(proto.output), "")
        attributes = {a.name: _value(a) for a in proto.attribute}
        return cls(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes, opset)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return self.attributes.get(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """The value of an attribute that is 0 or 1."""
        return bool(self.attributes.get(name, default))

    def setting(self, name: str, given: Tensor | None) -> list[int] | None:
        """Whole numbers that older versions of an operator have as an attribute and newer ones as an input."""
        if given is not None:
            return [int(v) for v in given.flatten().tolist()]
        values = self.attributes.get(name)
        return None if values is None else [int(v) for v in values]

    def refuse(self, why: str) -> PerfonnxError:
        """The error of a node that is not supported; `why` goes on after its name."""
        return PerfonnxError(f"node {self.name!r} ({self.op}): {why}")


def _value(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value
