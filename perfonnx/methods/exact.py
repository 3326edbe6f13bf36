"""Exact layers: every position is computed, by the library's kernels, where these are faster than onnxruntime's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.corrections import Correction
from perfonnx.masks import Mask
from perfonnx.methods.base import GAINING, Context, Decision, Method, SampledMethod, Space
from perfonnx.methods.masked import sampling_operands
from perfonnx.model.layers import Layer
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.sampling import interpolate

if TYPE_CHECKING:
    from torch import nn

    from perfonnx.model.workspace import Workspace
    from perfonnx.torch.modules import SampledConv2d


@dataclass(frozen=True)
class Exact(SampledMethod):
    """Every position is a site: what the layer gives is what it gave, up to rounding.

    Layers of stride 1 with kernels of 3x3, 5x5, or 3, 5 or 7 taps in a line are computed by Winograd's algorithm (Lavin
    and Gray, arXiv 1509.09308), which onnxruntime does not have on CPUs.
    """

    NAME = "exact"
    ADJECTIVE = "exact"
    SUMMARY = (
        "computes every position, 3x3 and 5x5 layers by Winograd's algorithm; the outputs are the same up to rounding"
    )
    PLACE = 0
    OPERATOR = PERFORATED_CONV.name

    @property
    def lossless(self) -> bool:
        """See `Method.lossless`."""
        return True

    @classmethod
    def candidates(cls, space: Space) -> Sequence[Method]:
        """See `Method.candidates`."""
        return [cls()]

    @property
    def shareable(self) -> bool:
        """See `Method.shareable`."""
        return True

    @property
    def goes_further(self) -> bool:
        """See `Method.goes_further`."""
        return True

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """See `Method.trainable`."""
        from perfonnx.torch.modules import ExactConv2d, plain

        return ExactConv2d(plain(module))

    @property
    def detail(self) -> str:
        """See `Method.detail`."""
        return "every position"

    def worth(self, settings: Mapping[str, Any]) -> float | None:
        """See `Method.worth`."""
        return GAINING

    def drawn(self, layer: Layer, context: Context) -> tuple[Exact, Mask | None]:
        """See `SampledMethod.drawn`."""
        assert layer.output_shape is not None
        return self, np.ones(layer.output_shape, bool)

    def operands(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], dict[str, Any], str]:
        """A mask of all positions, and the table that says so."""
        assert decision.mask is not None
        return *sampling_operands(workspace, interpolate(decision.mask)), "computed everywhere"
