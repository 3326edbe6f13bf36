"""Radius-adaptive training (Rakhshanfar): a budget on the pixels that compute their ring.

Training starts at the dense network, where alpha is 1 everywhere. The budget falls from all pixels to the asked share,
and what is open beyond it costs. A gate whose weight is 0 would close at all pixels alike; `start_gates` turns gates
first so that those close last where the ring adds much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from perfonnx.errors import PerfonnxError
from perfonnx.fitting import RIDGE
from perfonnx.torch.applying import sampled_modules
from perfonnx.torch.modules import STEEPNESS, RadiusAdaptiveConv2d

REACHED_AT = 0.35
"""Share of the training after which the budget has come down to what was asked."""

PRICE = 4.0
"""Loss per unit of share over the budget, at first."""

RISE = 1.0
"""What the price rises by in a step, per unit of share over the budget; it falls where the budget is kept."""

SPREAD = 4.0
"""Interquartile range of a new gate's score over pixels: where it closes half of them, few are half open."""

MARGIN = 1.1 / STEEPNESS
"""The smallest score of a new gate: alpha is 1 there, whatever rounding does."""

QUANTILES_OF = 1 << 20
"""Pixels that the range is taken of, at most."""


class OpenShareBudget:
    """The part of the loss that closes gates: a price on what is open beyond the budget, which rises until it is kept.

    Args:
        model: The network; `perfonnx.torch.apply` made its layers.
        share: Share of the ring multiplies of all radius-adaptive layers that the network may keep, in [0, 1].

    Raises:
        PerfonnxError: There are no radius-adaptive layers, or the share is out of range.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.layers = [m for m in sampled_modules(model).values() if isinstance(m, RadiusAdaptiveConv2d)]
        if not self.layers:
            raise PerfonnxError("the network has no radius-adaptive layers; apply a plan with that method first")
        if not 0 <= share <= 1:
            raise PerfonnxError(f"open share {share}: it is a share of pixels, in [0, 1]")
        self.share = share
        self.budget = 1.0
        self.price = PRICE

    def before_step(self, progress: float) -> None:
        """Lower the budget; `progress` is the share of the training that is over, in [0, 1)."""
        left = max(1 - progress / REACHED_AT, 0.0)
        self.budget = self.share + (1 - self.share) * left

    def loss(self) -> Tensor | None:
        """What the last forward pass cost beyond the budget; in training it moves the price too."""
        excess = open_share(self.layers) - self.budget
        if self.layers[0].training:
            self.price = max(PRICE, self.price + RISE * float(excess.detach()))
        return self.price * torch.relu(excess)

    def freeze(self) -> None:
        """From now on the whole budget holds."""
        self.budget = self.share

    @property
    def settled(self) -> bool:
        """Whether the budget has come down to what was asked."""
        return self.budget == self.share

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {"budget": self.budget, "price": self.price}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.budget, self.price = state["budget"], state["price"]


def start_gates(model: nn.Module, *inputs: Tensor) -> None:
    """Turn new gates, without closing any: alpha stays 1 at all pixels of a batch.

    A gate's weight is fitted by least squares to the root mean square, over the output channels, of what the ring adds.
    Gates that have weights already are left as they are.

    Args:
        model: The network; `perfonnx.torch.apply` made its layers.
        inputs: A batch of each of its inputs.
    """
    layers = [m for m in sampled_modules(model).values() if isinstance(m, RadiusAdaptiveConv2d) and not m.gate.any()]
    if not layers:
        return
    hooks = [layer.register_forward_pre_hook(_start_gate) for layer in layers]
    training = [m for m in model.modules() if m.training]
    try:
        with torch.no_grad():
            model.eval()(*(x.to(layers[0].weight.device) for x in inputs))
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()


def _start_gate(layer: nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(layer, RadiusAdaptiveConv2d)
    (x,) = inputs
    down, across = layer.stride
    pixels = layer.under_centre(x)[:, :, ::down, ::across].permute(0, 2, 3, 1).flatten(0, 2).double()
    added = layer.of_ring(x).double().square().mean(dim=1).sqrt().flatten()
    pixels = pixels - pixels.mean(dim=0)
    gram = pixels.T @ pixels
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + ridge, pixels.T @ (added - added.mean()))
    low, high = torch.quantile((pixels @ weight)[:QUANTILES_OF], gram.new_tensor([0.25, 0.75]))
    spread = (high - low).clamp_min(1e-12)
    layer.gate.copy_((weight * (SPREAD / spread)).reshape(layer.gate.shape))
    score = torch.nn.functional.conv2d(layer.under_centre(x), layer.gate, None, layer.stride)
    layer.gate_bias.fill_(MARGIN - float(score.min()))


def open_share(layers: list[RadiusAdaptiveConv2d]) -> Tensor:
    """Share of the ring multiplies that the last forward pass computed.

    Its gradient goes to the biases of gates alone, as if each unit of bias opened all pixels: it says how much is open.
    Which pixels are open is for the weights of gates, and those learn it from the rest of the loss.
    """
    total = sum(layer.ring_multiplies for layer in layers)
    shares = []
    for layer in layers:
        assert layer.alpha is not None
        share = (layer.alpha > 0).float().mean()
        shares.append((share + layer.gate_bias - layer.gate_bias.detach()) * (layer.ring_multiplies / total))
    return torch.cat(shares).sum()
