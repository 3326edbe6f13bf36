"""Activation sparsity in training (Grimaldi et al.): dense, then random masks that grow, then one mask for good.

All layers take their masks from one random map, so that they are aligned through the network. At first no position is
masked; then each step draws a new map, and the share of masked positions grows as s * (1 - (1 - p)^2) with p the
progress of this stage; the rest of the training has the mask that stays.

That one is chosen among candidates by their scores on a fixed set, all at the final sparsity. (The authors take the
mask with the lowest loss of a single batch in the second stage, which favours early masks with few masked positions.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from perfonnx.errors import PerfonnxError
from perfonnx.masks import Mask, propagated_mask, propagated_scores
from perfonnx.methods.sparse import Sparse
from perfonnx.torch.applying import sampled_modules
from perfonnx.torch.modules import SparseConv2d

DENSE_UNTIL, FROZEN_FROM = 0.1, 0.9
"""The stages' borders in a training from scratch, as shares of it."""

TRAINED_DENSE_UNTIL, TRAINED_FROZEN_FROM = 0.0, 0.1
"""Those for a network that was trained before: it has had its dense stage, and a short training has no time to become
good at every mask. A ResNet-20 on CIFAR-10 at a rate of 0.2 came to 76.8 % in one epoch with the borders above, to
77.3 % with 0 and 0.4, and to 78.2 % with these."""

PROPAGATED = "propagated"
"""The mask that is drawn anew in each step."""

CANDIDATES = 16
"""Masks among which the last one is chosen."""


def propagated_layers(model: nn.Module) -> dict[SparseConv2d, float]:
    """The sparse layers whose masks may change in training, with their final rates."""
    sparse = {m: m.planned for m in sampled_modules(model).values() if isinstance(m, SparseConv2d)}
    return {m: p.rate for m, p in sparse.items() if isinstance(p, Sparse) and p.mask == PROPAGATED}


class SparsitySchedule:
    """Sets the masks of a network's sparse layers while it trains; masks other than `propagated` stay.

    Args:
        model: The network; `perfonnx.torch.apply` made its layers, whose plans say the final rates.
        score: The network's loss on a fixed set as it is now; the mask with the smallest stays. None: the first.
        seed: Seed of all maps.
        candidates: How many masks are scored.
        dense_until: Share of the training at which masked positions begin.
        frozen_from: Share of the training at which the mask that stays is chosen.

    Raises:
        PerfonnxError: There are no sparse layers whose masks may change, or the borders are in no order.
    """

    def __init__(
        self,
        model: nn.Module,
        score: Callable[[], float] | None = None,
        *,
        seed: int = 0,
        candidates: int = CANDIDATES,
        dense_until: float = DENSE_UNTIL,
        frozen_from: float = FROZEN_FROM,
    ) -> None:
        if not 0 <= dense_until <= frozen_from <= 1:
            raise PerfonnxError(f"stages up to {dense_until:g} and {frozen_from:g}: give shares in order, from 0 to 1")
        self.layers = propagated_layers(model)
        if not self.layers:
            raise PerfonnxError(
                f"the network has no sparse layers with the mask {PROPAGATED}; apply a plan with such layers first"
            )
        self.borders = dense_until, frozen_from
        self.score = score
        self.seed = seed
        self.candidates = candidates if score is not None else 1
        self.size = max((m.mask.shape for m in self.layers), key=lambda shape: shape[0] * shape[1])
        self.step = 0
        self.chosen: int | None = None

    def before_step(self, progress: float) -> None:
        """Set the masks for a step; `progress` is the share of the training that is over, in [0, 1)."""
        if self.settled:
            return
        start, end = self.borders
        if progress < start:
            self._draw(0, 0.0)
        elif progress < end:
            p = (progress - start) / (end - start)
            self._draw(self.step, 1 - (1 - p) ** 2)
        else:
            self.freeze()
        self.step += 1

    def loss(self) -> Tensor | None:
        """Nothing is added to the loss."""
        return None

    def freeze(self) -> None:
        """Choose the masks that stay; a second call does nothing."""
        if self.settled:
            return
        scores = []
        for candidate in range(self.candidates):
            self._draw(-1 - candidate, 1.0)
            scores.append(0.0 if self.score is None else self.score())
        self._choose(-1 - int(np.nanargmin(scores)))

    @property
    def settled(self) -> bool:
        """Whether the masks are those that stay."""
        return self.chosen is not None

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        return {"step": self.step, "chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step = state["step"]
        if state["chosen"] is not None:
            self._choose(state["chosen"])

    def _choose(self, number: int) -> None:
        self._draw(number, 1.0)
        self.chosen = number

    def _draw(self, number: int, share: float) -> None:
        """Set the masks that the map of this number gives at a share of the final rates."""
        rng = np.random.default_rng([self.seed, number % (1 << 32)])
        scores = propagated_scores((int(self.size[0]), int(self.size[1])), rng)
        drawn: dict[tuple[tuple[int, int], float], Mask] = {}
        for layer, rate in self.layers.items():
            height, width = layer.mask.shape
            key = (height, width), rate * share
            if key not in drawn:
                drawn[key] = propagated_mask(scores, *key)
            layer.keep_mask(drawn[key])
