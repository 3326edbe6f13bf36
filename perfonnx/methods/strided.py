"""Perforation on regular lattices in standard operators: convolutions of a larger stride, and their results spread.

No library is needed, and whatever runtime has fast convolutions profits. Where kernels of ours are there, they take the
same lattices (mask `lattice`) through runs of layers without going back to whole maps in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import Context, Fitted, Method, Space, Spot, StandardMethod, setting
from perfonnx.model.layers import Layer, activation_of, only_consumer
from perfonnx.ops.common import ConvAttributes

SCALES = {"square": (2, 2), "quincunx": (2, 2), "rows": (2, 1), "columns": (1, 2)}
"""By lattice, of how many rows and columns one cell is. `rows` computes every second row, `columns` every second
column, `quincunx` the fields of one colour of a chessboard."""

OPSET = 11
"""The first with `Resize` as it is used."""
REGION_IS_OPTIONAL = 13
"""The first whose `Resize` may go without a region of interest, which only another mode of it reads."""


@dataclass(frozen=True)
class Strided(StandardMethod):
    """A regular lattice of positions is computed; the others take the value in their cell, or beside them in it.

    Attributes:
        lattice: One of `SCALES`.
    """

    NAME = "strided"
    ADJECTIVE = "strided"
    SUMMARY = "perforation on a regular lattice by convolutions of a larger stride: needs no library"
    PLACE = 40

    lattice: str = setting(
        "square", "square (default), quincunx, rows or columns: which positions are computed", "NAME"
    )

    def check(self, where: str) -> None:
        """See `Method.check`."""
        if self.lattice not in SCALES:
            raise PerfonnxError(f"{where}: unknown lattice {self.lattice!r}; choose from {', '.join(SCALES)}")

    @property
    def asked(self) -> str:
        """See `Method.asked`."""
        return f"rate {self.saving:g}"

    @property
    def saving(self) -> float:
        """The share of positions that is skipped."""
        return 0.75 if self.lattice == "square" else 0.5

    @classmethod
    def candidates(cls, space: Space) -> Sequence[Method]:
        """None: where the library is there, masks of the same lattices are the faster choice."""
        return ()

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """See `Method.obstacle`."""
        if context.workspace.opset < OPSET:
            return f"the model's opset is {context.workspace.opset}; strided layers need {OPSET} or later"
        size, attributes = layer.output_shape, layer.attributes
        if size is None or attributes is None:
            return "the size of its output is not known"
        if self.lattice == "quincunx":
            if size[0] % 2 or size[1] % 2:
                return f"its output of {size[0]}x{size[1]} does not divide into cells of 2x2"
            if any(pad < stride for pad, stride in zip(attributes.pads[:2], attributes.strides, strict=True)):
                return "its padding is smaller than its stride, so that the second lattice would begin inside the map"
        return None

    def replaced(self, spot: Spot) -> Fitted:
        """See `StandardMethod.replaced`; an activation behind the layer is applied before the values are spread."""
        follower = only_consumer(spot.workspace, spot.node.outputs[0])
        activation = None
        if follower is not None and follower.inputs[0] is spot.node.outputs[0]:
            activation = follower if activation_of(spot.workspace, follower) is not None else None
        parts = _Parts(spot, activation)
        scale = SCALES[self.lattice]
        stride = spot.attributes.strides
        geometry = replace(spot.attributes, strides=(stride[0] * scale[0], stride[1] * scale[1]))
        first = parts.conv("lattice", geometry)
        if self.lattice == "quincunx":
            top, left, bottom, right = geometry.pads
            moved = (top - stride[0], left - stride[1], bottom, right)
            second = parts.conv("lattice2", replace(geometry, pads=moved))
            parts.interleave([first, first, second, second])
        else:
            assert spot.layer.output_shape is not None
            parts.spread(first, scale, spot.layer.output_shape)
        if activation is not None:
            spot.workspace.bypass(spot.node, activation)
        note = f"computes {1 - self.saving:.0%} of its positions, {self.lattice}"
        return Fitted(None, note, parts.nodes)


class _Parts:
    """The nodes in a layer's place."""

    def __init__(self, spot: Spot, activation: gs.Node | None) -> None:
        self.spot = spot
        self.activation = activation
        self.nodes: list[gs.Node] = []

    def conv(self, part: str, attributes: ConvAttributes) -> gs.Tensor:
        """The layer's convolution with another geometry, and its activation."""
        node = self.spot.node
        result = self._add("Conv", part, attributes.attributes(), list(node.inputs))
        if self.activation is None:
            return result
        inputs = [result, *self.activation.inputs[1:]]
        return self._add(self.activation.op, f"{part}.activation", self.activation.attrs, inputs)

    def spread(self, x: gs.Tensor, scale: tuple[int, int], size: tuple[int, int]) -> None:
        """Each value stands for a cell of so many rows and columns; what lies outside is cut off."""
        name = f"{self.spot.name}.spread"
        constant = self.spot.workspace.add_constant
        scales = constant(f"{name}.scales", np.array([1, 1, *scale], np.float32))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        region: gs.Tensor = gs.Variable.empty()
        if self.spot.workspace.opset < REGION_IS_OPTIONAL:
            region = constant(f"{name}.region", np.zeros(0, np.float32))
        result = self._add("Resize", "spread", modes, [x, region, scales])
        if any(length % step for length, step in zip(size, scale, strict=True)):
            bounds = ([0, 0], list(size), [2, 3])
            cut = [constant(f"{name}.cut{i}", np.array(values, np.int64)) for i, values in enumerate(bounds)]
            self._add("Slice", "cut", {}, [result, *cut])

    def interleave(self, cell: list[gs.Tensor]) -> None:
        """The four values of each cell, row by row."""
        together = self._add("Concat", "cells", {"axis": 1}, cell)
        self._add("DepthToSpace", "spread", {"blocksize": 2, "mode": "DCR"}, [together])

    def _add(self, op: str, part: str, attributes: Mapping[str, Any], inputs: list[gs.Tensor]) -> gs.Tensor:
        name = self.spot.workspace.free_name(f"{self.spot.node.outputs[0].name}.{part}")
        self.nodes.append(gs.Node(op, f"{self.spot.name}.{part}", dict(attributes), inputs, [gs.Variable(name)]))
        return self.nodes[-1].outputs[0]
