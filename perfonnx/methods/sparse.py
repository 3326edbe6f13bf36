"""Semi-structured activation sparsity (Grimaldi et al.): masked positions are not computed, and hold a constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction
from perfonnx.errors import PerfonnxError
from perfonnx.masks import Mask
from perfonnx.methods.base import Context, Decision, setting
from perfonnx.methods.masked import MaskedMethod
from perfonnx.model.layers import Layer, constant_input, numpy_type, set_input
from perfonnx.ops.common import Activation
from perfonnx.ops.sparse_conv import SPARSE_CONV

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

    from perfonnx.model.workspace import Workspace
    from perfonnx.torch.modules import SampledConv2d

ZERO, BEFORE_NORMALIZATION = FILLS = ("zero", "before-normalization")
"""What masked positions hold: 0 in what the layer gives; or what the BatchNormalization that is folded into the layer,
and its activation, make of a convolution that gives 0 there, as training does (Grimaldi et al.)."""


@dataclass(frozen=True)
class Sparse(MaskedMethod):
    """Computed at the sites, a constant elsewhere.

    Attributes:
        fill: One of `FILLS`.
    """

    NAME = "sparse"
    ADJECTIVE = "sparse"
    SUMMARY = "computes the sites of a mask; all other positions hold a constant"
    OPERATOR = SPARSE_CONV.name

    fill: str = setting(
        ZERO,
        "what masked positions hold: zero (default), or before-normalization, for layers trained with masks in front "
        "of BatchNormalization; sparse only",
        "KIND",
        said="have a fill",
    )

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        if not isinstance(self.fill, str) or self.fill not in FILLS:
            raise PerfonnxError(f"{where}: unknown fill {self.fill!r}; choose from {', '.join(FILLS)}")

    def source(self, mask: Mask) -> NDArray[np.int32] | None:
        """See `SampledMethod.source`."""
        return np.where(mask.reshape(-1), np.arange(mask.size, dtype=np.int32), -1).astype(np.int32)

    @classmethod
    def chosen(cls, settings: Mapping[str, Any], layer: Layer, context: Context) -> Self:
        """With masks that are one, scaled, where none is named: what a sparse layer masks, the next one reads as 0."""
        return cls(**{**settings, "mask": settings.get("mask") or "propagated"})

    def operands(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], dict[str, Any], str]:
        """`mask`, and a `fill`: zeros, or what folding made of them."""
        assert decision.mask is not None
        kind, fill = "zeros", np.zeros(decision.layer.w_shape[0])
        if self.fill == BEFORE_NORMALIZATION and decision.folded is not None:
            kind, fill = "fill", decision.folded.shift  # `absorbed` takes it through the activation
        values = fill.astype(numpy_type(decision.layer.elem_type))
        inputs = [workspace.add_table("mask", decision.mask), workspace.add_table(kind, values)]
        return inputs, {}, f"{self.mask}, {1 - decision.mask.mean():.1%} masked"

    def absorbed(self, workspace: Workspace, node: gs.Node, activation: Activation) -> None:
        """The operator writes `fill` after its activation: what training put before it has to pass it here."""
        if self.fill != BEFORE_NORMALIZATION:
            return
        fill = constant_input(workspace, node, "fill")
        assert fill is not None
        set_input(node, "fill", workspace.add_table("fill", activation(fill).astype(fill.dtype)))

    def has_rows(self, layer: Layer, *, folds: bool) -> bool:
        """With what is folded comes a fill other than zero, which rows do not have."""
        return self.fill == ZERO or not folds

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """See `Method.trainable`."""
        from perfonnx.torch.modules import SparseConv2d, plain

        assert mask is not None
        return SparseConv2d(plain(module), mask)
