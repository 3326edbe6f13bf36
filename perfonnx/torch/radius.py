"""Radius-adaptive training (Rakhshanfar): a budget on the pixels that compute their ring.

Training starts at the dense network, where alpha is 1 everywhere. The budget falls from all pixels to the asked share,
and what is open beyond it costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from perfonnx.errors import PerfonnxError
from perfonnx.torch.applying import sampled_modules
from perfonnx.torch.modules import RadiusAdaptiveConv2d

REACHED_AT = 0.6
"""Share of the training after which the budget has come down to what was asked."""

STRENGTH = 4.0
"""Loss per unit of share over the budget."""


class OpenShareBudget:
    """The part of the loss that closes gates.

    Args:
        model: The network; `perfonnx.torch.apply` made its layers.
        share: Share of the ring multiplies of all radius-adaptive layers that the network may keep, in [0, 1].
        strength: Loss per unit of share over the budget.

    Raises:
        PerfonnxError: There are no radius-adaptive layers, or the share is out of range.
    """

    def __init__(self, model: nn.Module, share: float, *, strength: float = STRENGTH) -> None:
        self.layers = [m for m in sampled_modules(model).values() if isinstance(m, RadiusAdaptiveConv2d)]
        if not self.layers:
            raise PerfonnxError("the network has no radius-adaptive layers; apply a plan with that method first")
        if not 0 <= share <= 1:
            raise PerfonnxError(f"open share {share}: it is a share of pixels, in [0, 1]")
        self.share = share
        self.strength = strength
        self.budget = 1.0

    def before_step(self, progress: float) -> None:
        """Lower the budget; `progress` is the share of the training that is over, in [0, 1)."""
        left = max(1 - progress / REACHED_AT, 0.0)
        self.budget = self.share + (1 - self.share) * left

    def loss(self) -> Tensor | None:
        """What the last forward pass cost beyond the budget."""
        return self.strength * torch.relu(open_share(self.layers) - self.budget)

    def freeze(self) -> None:
        """From now on the whole budget holds."""
        self.budget = self.share

    @property
    def settled(self) -> bool:
        """Whether the budget has come down to what was asked."""
        return self.budget == self.share

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {"budget": self.budget}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.budget = state["budget"]


def open_share(layers: list[RadiusAdaptiveConv2d]) -> Tensor:
    """Share of the ring multiplies that the last forward pass computed; its gradient is that of the mean alpha."""
    total = sum(layer.ring_multiplies for layer in layers)
    shares = []
    for layer in layers:
        assert layer.alpha is not None
        alpha = layer.alpha.float()
        share = (alpha > 0).float().mean() + alpha.mean() - alpha.mean().detach()
        shares.append(share * (layer.ring_multiplies / total))
    return torch.stack(shares).sum()
