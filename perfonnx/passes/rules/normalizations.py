"""LRN and InstanceNormalization: standard operators on rows compute what they compute on the map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from perfonnx import ops
from perfonnx.ops.sampled_pool import SAMPLED_AVERAGE_POOL
from perfonnx.passes.base import Skip
from perfonnx.passes.rules.rule import NO_WORK_SAVED, Match, Rows, Rule, Table, skip

if TYPE_CHECKING:
    from perfonnx.passes.lower import Lowering


def _lrn(lowering: Lowering, node: gs.Node) -> Match | Skip:
    """Gives x / (bias + alpha * mean of x^2 over near channels) ^ beta; channels are the last axis of rows."""
    if not lowering.is_worth_it(node):
        return skip(node, NO_WORK_SAVED)
    rows, size = lowering.rows[node.inputs[0].name], int(node.attrs["size"])
    alpha, beta, bias = (float(node.attrs.get(k, v)) for k, v in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    before = (size - 1) // 2
    window = {"kernel_shape": [size], "pads": [before, size - 1 - before], "count_include_pad": 1}
    emit = _Formula(lowering, node, rows)
    x = emit.widened(rows.tensor)
    mean = emit("AveragePool", emit("Mul", x, x), **window)
    base = emit("Add", emit("Mul", mean, emit.number(alpha)), emit.number(bias))
    if beta == 0.75:  # onnxruntime's Pow takes several times as long as three square roots
        root = emit("Sqrt", base)
        power = emit("Mul", root, emit("Sqrt", root))
    else:
        power = emit("Pow", base, emit.number(beta))
    emit.finish("Div", x, power)
    return Match("on rows")


def _instance_normalization(lowering: Lowering, node: gs.Node) -> Match | Skip:
    """Mean and variance over the map that the rows stand for.

    A long sum in float32 rounds the mean. What is left of it is found where it is small, in the centred values: far
    from zero and close to each other, values would else be shifted by more than their own rounding.
    """
    rows = lowering.rows[node.inputs[0].name]
    if rows.has_fill:
        return skip(node, "positions without a row hold zeros, which it would count")
    if not lowering.is_worth_it(node):
        return skip(node, NO_WORK_SAVED)
    emit = _Formula(lowering, node, rows)
    x, scale, bias = (emit.widened(t) for t in (rows.tensor, node.inputs[1], node.inputs[2]))
    centred = emit("Sub", x, emit.mean(x))
    rest = emit.mean(centred)
    variance = emit("Sub", emit.mean(emit("Mul", centred, centred)), emit("Mul", rest, rest))
    deviation = emit("Sqrt", emit("Add", variance, emit.number(float(node.attrs.get("epsilon", 1e-5)))))
    factor = emit("Div", scale, deviation)
    emit.finish("Add", emit("Mul", centred, factor), emit("Sub", bias, emit("Mul", rest, factor)))
    return Match("on rows")


class _Formula:
    """Emits the standard operators that take the place of one node of a map; they keep its rows' sampling.

    They compute in float32: squares of float16 are infinite from 256 on, and a mean rounded to it shifts what is left.
    """

    def __init__(self, lowering: Lowering, node: gs.Node, rows: Rows) -> None:
        self.lowering = lowering
        self.node = node
        self.rows = rows
        self.count = 0

    def __call__(self, op: str, *inputs: gs.Tensor, **attributes: Any) -> gs.Tensor:
        """One step; its result."""
        self.count += 1
        name = self.lowering.workspace.free_name(f"{self.node.outputs[0].name}.step{self.count}")
        result = gs.Variable(name)
        domain = ops.DOMAIN if op in ops.LOWERED else None
        self.lowering.nodes.append(gs.Node(op, name, attributes, list(inputs), [result], domain=domain))
        return result

    @property
    def _is_wide(self) -> bool:
        return self.rows.elem_type == TensorProto.FLOAT

    def widened(self, tensor: gs.Tensor) -> gs.Tensor:
        """A tensor of the rows' type as float32."""
        return tensor if self._is_wide else self("Cast", tensor, to=TensorProto.FLOAT)

    def number(self, value: float) -> gs.Constant:
        """A constant."""
        return self.lowering.table("number", np.array(value, np.float32))

    def mean(self, x: gs.Tensor) -> gs.Tensor:
        """The mean [N, 1, C] over all positions; first along the map's lines, so that long sums stay exact."""
        height, width = self.rows.shape
        lines = self._average(x, self.rows.source, (height, width), (1, width))
        return self._average(lines, np.arange(height, dtype=np.int32), (height, 1), (height, 1))

    def _average(self, x: gs.Tensor, source: Table, shape: tuple[int, int], kernel: tuple[int, int]) -> gs.Tensor:
        """Averages over windows that lie side by side."""
        table = self.lowering.table
        sites = np.arange(shape[0] // kernel[0], dtype=np.int32)
        return self(
            SAMPLED_AVERAGE_POOL.name,
            x,
            table("index", source),
            table("shape", np.array(shape, np.int64)),
            table("index", sites),
            kernel_shape=list(kernel),
            strides=list(kernel),
            pads=[0] * 4,
            ceil_mode=0,
            count_include_pad=0,
        )

    def finish(self, op: str, *inputs: gs.Tensor) -> None:
        """The last step, which carries the node's name."""
        attributes: dict[str, Any] = {}
        if not self._is_wide:
            inputs, op, attributes = (self(op, *inputs),), "Cast", {"to": self.rows.elem_type}
        self.lowering.emit_standard(self.node, list(inputs), attributes, self.node.outputs[0], self.rows, op)


LRN = Rule(["LRN"], _lrn)
INSTANCE_NORMALIZATION = Rule(["InstanceNormalization"], _instance_normalization)
