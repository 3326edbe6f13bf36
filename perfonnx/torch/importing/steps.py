"""The nodes of a graph in the order in which they run, with what a run has to know about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from onnx import ModelProto, NodeProto
from torch import Tensor

from perfonnx import ops
from perfonnx.errors import PerfonnxError
from perfonnx.model.proto import TensorType, is_standard, node_name, operator_name
from perfonnx.torch.importing.node import Node
from perfonnx.torch.importing.operators import OPERATORS

_OTHERS = ("Constant", "Dropout")  # not in the table: a value, a module


@dataclass(frozen=True)
class Step:
    """A node to run.

    Attributes:
        node: The node.
        module: Path of the module that computes it; None where a function of the table does.
        leading: For a Reshape to constant sizes in a model of a fixed batch: the first of its input's sizes there.
        done: Names of values that no later node reads.
    """

    node: Node
    module: str | None = None
    leading: int | None = None
    done: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that it takes; a module holds its own weights."""
        return tuple(name for name in self.node.inputs[: 1 if self.module else None] if name)


def check_supported(proto: ModelProto) -> None:
    """Raise `PerfonnxError` for the first node that nothing here computes, or that reads what is not there."""
    known = {i.name for i in proto.graph.input} | {t.name for t in proto.graph.initializer} | {""}
    for node in proto.graph.node:
        reason = _obstacle(node)
        missing = [name for name in node.input if name not in known]
        if reason is None and missing:
            reason = f"it reads {missing[0]!r}, which nothing before it gives"
        if reason is not None:
            raise PerfonnxError(f"node {node_name(node)!r} ({operator_name(node)}): {reason}")
        known.update(node.output if node.op_type == "Split" else node.output[:1])
    for output in proto.graph.output:
        if output.name not in known:
            raise PerfonnxError(f"output {output.name!r}: no operator that can be trained gives it")


def _obstacle(node: NodeProto) -> str | None:
    if node.domain == ops.DOMAIN:
        return "train the original model, not the rewritten one"
    if not is_standard(node) or (node.op_type not in OPERATORS and node.op_type not in _OTHERS):
        return "this operator cannot be trained here"
    return None


def scaled_steps(
    steps: Iterable[Step], constants: Iterable[str], types: Mapping[str, TensorType], batch: int
) -> list[Step]:
    """Steps of a model of a fixed batch, with `leading` where a Reshape has constant sizes."""
    fixed = set(constants)
    result = []
    for step in steps:
        node = step.node
        if all(name in fixed for name in node.inputs if name):
            fixed.update(node.outputs)
        elif node.op == "Reshape" and node.inputs[1] in fixed:
            known = types.get(node.inputs[0])
            first = known.shape[0] if known and known.shape else None
            step = replace(step, leading=first if isinstance(first, int) else batch)
        result.append(step)
    return result


def scaled_target(target: Tensor, x: Tensor, leading: int, ratio: tuple[int, int]) -> Tensor:
    """The sizes of a Reshape for another batch than the model's.

    Args:
        target: Its sizes in the model.
        x: Its input.
        leading: First size of the input in the model.
        ratio: The batch at hand, and the model's.

    Returns:
        With the first size scaled, if the input's was, and if it is neither copied (0) nor left open (-1).
    """
    actual, batch = ratio
    if x.shape[0] * batch != leading * actual or target[0] <= 0:
        return target
    return torch.cat([target[:1] * actual // batch, target[1:]])


def pruned(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """The steps that the outputs depend on, each with the values that it reads last."""
    needed = set(outputs)
    result: list[Step] = []
    for step in reversed(steps):
        if needed.isdisjoint(step.node.outputs):
            continue
        done = tuple({*step.reads, *step.node.outputs} - needed - {""})
        needed.update(step.reads)
        result.append(replace(step, done=done))
    return result[::-1]


def agreed_batch(types: Iterable[TensorType | None]) -> int | None:
    """The batch that a model's inputs agree on; None where it is free, or they do not."""
    sizes = {known.shape[0] if known is not None and known.shape else None for known in types}
    (size,) = sizes if len(sizes) == 1 else (None,)
    return size if isinstance(size, int) else None
