"""What stands in a layer's place: a chain of convolutions and orders of channels, and how many multiplies it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from perfonnx.model.layers import Layer
from perfonnx.ops.common import ConvAttributes

POINTWISE = ConvAttributes((1, 1))


@dataclass(frozen=True)
class Form:
    """A layer, or one of its groups, as low-rank methods see it. A matrix product is a 1x1 convolution of its rows.

    Attributes:
        outputs: Output channels M of one group.
        inputs: Input channels C of one group.
        attributes: The geometry of one group.
        groups: How many there are.
        size: Height and width of the input; of a product (1, rows).
    """

    outputs: int
    inputs: int
    attributes: ConvAttributes
    groups: int
    size: tuple[int, int]

    @classmethod
    def of(cls, layer: Layer) -> Form:
        """Of a layer whose shapes are known."""
        if not layer.is_conv:
            rows = math.prod(d for d in (layer.input_shape or ())[1:-1] if isinstance(d, int))
            return cls(layer.w_shape[0], layer.w_shape[1], POINTWISE, 1, (1, rows))
        assert layer.attributes is not None
        assert layer.input_shape is not None
        groups = layer.attributes.group
        height, width = (d for d in layer.input_shape[2:] if isinstance(d, int))
        one = replace(layer.attributes, group=1)
        return cls(layer.w_shape[0] // groups, layer.w_shape[1], one, groups, (height, width))

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return self.attributes.kernel_shape

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return math.prod(self.kernel)

    @property
    def whole(self) -> Part:
        """One group as it is."""
        return Part("whole", (self.outputs, self.inputs, *self.kernel), self.attributes)

    def multiplies(self, parts: Sequence[Piece]) -> int:
        """Of a chain in the layer's place, all groups together, per image."""
        size, total = self.size, 0
        for part in parts:
            if isinstance(part, Part):
                size = part.attributes.output_shape(*size)
                total += part.multiplies * math.prod(size)
        return total * self.groups

    def vertical(self) -> ConvAttributes:
        """The part of the geometry along the height, of a kernel kh x 1."""
        a = self.attributes
        top, _, bottom, _ = a.pads
        return ConvAttributes((a.kernel_shape[0], 1), (a.strides[0], 1), (top, 0, bottom, 0), (a.dilations[0], 1))

    def horizontal(self) -> ConvAttributes:
        """The part of the geometry along the width, of a kernel 1 x kw."""
        a = self.attributes
        _, left, _, right = a.pads
        return ConvAttributes((1, a.kernel_shape[1]), (1, a.strides[1]), (0, left, 0, right), (1, a.dilations[1]))


@dataclass(frozen=True)
class Part:
    """A convolution in the place of one group of a layer.

    Attributes:
        name: What tells it from the layer's others.
        shape: Of its weight, [M, C/group, kh, kw].
        attributes: Its geometry; its `group` is that within the group of the layer.
        columns: How many taps of inputs each output reads, where others are zero; 0: all.
    """

    name: str
    shape: tuple[int, int, int, int]
    attributes: ConvAttributes = POINTWISE
    columns: int = 0

    @property
    def multiplies(self) -> int:
        """For each position."""
        return self.shape[0] * (self.columns or math.prod(self.shape[1:]))


@dataclass(frozen=True)
class Order:
    """An order in which channels are taken, some maybe not at all, in the place of one group of a layer.

    Attributes:
        name: What tells it from the layer's others.
        channels: How many go in.
        taken: How many come out.
    """

    name: str
    channels: int
    taken: int


Piece: TypeAlias = "Part | Order"


def pointwise(name: str, outputs: int, inputs: int, group: int = 1) -> Part:
    """A 1x1 convolution."""
    return Part(name, (outputs, inputs // group, 1, 1), replace(POINTWISE, group=group))
