"""Trainable counterparts of low-rank layers: chains of convolutions, whose weights are the factors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perfonnx.corrections import Correction
from perfonnx.methods.lowrank.base import LowRank, known_factors
from perfonnx.methods.lowrank.form import Form, Part
from perfonnx.ops.common import ConvAttributes
from perfonnx.torch.modules import Conv2d, FittedConv2d, Product, fitted_weight


class FactoredConv2d(FittedConv2d):
    """A layer as the chain of smaller ones that stand in its place, see `perfonnx.methods.lowrank`.

    Args:
        dense: The layer whose place it takes.
        method: What made the factors.
        correction: The factors.

    Attributes:
        factors: One module for each piece of the method's form.
        shift: [M], what is added to the last one's output: the bias, in the order of the layer's outputs.
    """

    def __init__(self, dense: nn.Conv2d, method: LowRank, correction: Correction) -> None:
        self.take_over(dense)
        self.correction = correction
        groups, (height, width) = self.groups, cast("tuple[int, int]", self.kernel_size)
        strides, dilations = cast("tuple[int, int]", self.stride), cast("tuple[int, int]", self.dilation)
        one = ConvAttributes((height, width), strides, self.pads, dilations)
        form = Form(self.out_channels // groups, self.in_channels // groups, one, groups, (0, 0))
        arrays = known_factors(method, form, fitted_weight(dense, correction), correction)
        self.factors = nn.ModuleList()
        for piece, array in zip(method.pieces(form, int(correction.arrays["rank"][0])), arrays, strict=True):
            if isinstance(piece, Part):
                kind = _SparseFactor if piece.columns else _Factor
                attributes = replace(piece.attributes, group=piece.attributes.group * groups)
                self.factors.append(kind(self._tensor(array), attributes))
            else:
                self.factors.append(_Order(self._tensor(array)))
        self.shift = nn.Parameter(self._tensor(correction.arrays["bias"]))

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW]."""
        for factor in self.factors:
            x = factor(x)
        return x + self.shift[:, None, None]

    def trained(self) -> Correction:
        """See `SampledConv2d.trained`."""
        tensors = {
            f"factor{i}": factor.values() for i, factor in enumerate(self.factors) if isinstance(factor, _Factor)
        }
        tensors["bias"] = self.shift
        found = {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}
        return replace(self.correction, arrays={**self.correction.arrays, **found}, before=0.0, after=0.0)


class FactoredProduct(FactoredConv2d, Product):
    """A matrix product as the chain of smaller ones that stand in its place.

    Args:
        dense: The product whose place it takes.
        method: What made the factors.
        correction: The factors.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Input [..., K], output [..., M]."""
        rows = super().forward(x.reshape(-1, self.in_channels, 1, 1))
        return rows.reshape(*x.shape[:-1], self.out_channels)


class _Factor(Conv2d):
    """One convolution of the chain, of all groups together."""

    def __init__(self, weight: Tensor, attributes: ConvAttributes) -> None:
        kernel, strides, pads, dilations = (
            attributes.kernel_shape,
            attributes.strides,
            attributes.pads,
            attributes.dilations,
        )
        inputs = weight.shape[1] * attributes.group
        super().__init__(
            inputs, len(weight), kernel, strides, pads, dilations, attributes.group, bias=False, device="meta"
        )
        self.weight = nn.Parameter(weight)

    def values(self) -> Tensor:
        """The weight that it is computed with."""
        return self.weight


class _SparseFactor(_Factor):
    """One whose zeros stay."""

    kept: Tensor

    def __init__(self, weight: Tensor, attributes: ConvAttributes) -> None:
        super().__init__(weight, attributes)
        self.register_buffer("kept", weight != 0, persistent=False)

    def values(self) -> Tensor:
        """See `_Factor.values`."""
        return torch.where(self.kept, self.weight, self.weight.new_zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW]."""
        return self.convolve(x, self.values(), None)


class _Order(nn.Module):
    """Channels in another order, or some of them."""

    channels: Tensor

    def __init__(self, channels: Tensor) -> None:
        super().__init__()
        self.register_buffer("channels", channels.long(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, taken, H, W]."""
        return x.index_select(1, self.channels)
