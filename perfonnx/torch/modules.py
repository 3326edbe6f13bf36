"""Layers of a network that came from ONNX."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Pads = tuple[int, int, int, int]


class Conv2d(nn.Conv2d):
    """A convolution with the pads of ONNX, which need not be symmetric.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width.
        stride: Of both axes.
        pads: Top, left, bottom, right.
        dilation: Of both axes.
        groups: Groups of channels.
        bias: Whether there is one.
        device: Where the parameters are made.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        self.pads = pads
        self.symmetric = pads[:2] == pads[2:]
        padding = pads[:2] if self.symmetric else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, C, H, W], output [N, M, OH, OW]."""
        if not self.symmetric:
            top, left, bottom, right = self.pads
            x = functional.pad(x, (left, right, top, bottom))
        return super().forward(x)
