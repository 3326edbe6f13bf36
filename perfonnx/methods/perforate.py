"""Perforated convolution (Figurnov et al., arXiv 1504.08362): computed at the sites, interpolated elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction
from perfonnx.errors import PerfonnxError
from perfonnx.masks import Mask
from perfonnx.methods import repair
from perfonnx.methods.base import Context, Decision, Fitted, Method, Needs, Space, Spot, setting
from perfonnx.methods.masked import MaskedMethod, is_mask_file, is_own_mask, sampling_operands
from perfonnx.methods.refit import SiteClass, own_taps, refitted
from perfonnx.model.layers import Layer
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.sampling import INTERPOLATIONS, interpolate

if TYPE_CHECKING:
    from torch import nn

    from perfonnx.model.workspace import Workspace
    from perfonnx.torch.modules import SampledConv2d

NO_REPAIR = "none"
BIAS, WEIGHTS, PREDICTOR = "bias", "weights", "predictor"
REPAIRS = (NO_REPAIR, BIAS, WEIGHTS, "interpolation", PREDICTOR, "full")
"""What perforated layers are repaired with: a bias; all weights, refitted to what reads interpolated positions, see
`perfonnx.methods.refit`; or, see `perfonnx.methods.repair`, a learned interpolation or a predictor beside a bias; or
these three."""


@dataclass(frozen=True)
class Perforate(MaskedMethod):
    """Computed at the sites; a skipped position gets the value of sites near it.

    Attributes:
        interpolation: Name in `perfonnx.sampling.INTERPOLATIONS`.
        repair: One of `REPAIRS`.
    """

    NAME = "perforate"
    ADJECTIVE = "perforated"
    SUMMARY = "computes the sites of a mask; all other positions are interpolated from them"
    OPERATOR = PERFORATED_CONV.name

    interpolation: str = setting(
        "nearest", "nearest (default), zero or barycentric; perforate only", "NAME", written=True
    )
    repair: str = setting(
        NO_REPAIR,
        "correct perforated layers by least squares on --data, without training: none (default), bias (free), weights "
        "(free: all of them refitted), predictor (a bias, and a 1x1 convolution beside each layer), interpolation (a "
        "bias, and learned weights of sites) or full (predictor and interpolation)",
        "KIND",
        said="can be repaired",
    )

    def check(self, where: str) -> None:
        """See `Method.check`."""
        super().check(where)
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise PerfonnxError(
                f"{where}: unknown interpolation {self.interpolation!r}; choose from {', '.join(INTERPOLATIONS)}"
            )
        if not isinstance(self.repair, str) or self.repair not in REPAIRS:
            raise PerfonnxError(f"{where}: unknown repair {self.repair!r}; choose from {', '.join(REPAIRS)}")

    @property
    def needs(self) -> Needs:
        """See `Method.needs`."""
        return Needs.NOTHING if self.repair == NO_REPAIR else Needs.TARGETS

    @property
    def own_randomness(self) -> bool:
        """A predictor makes a skipped position from what the layers before computed there.

        So they had better not all skip the same.
        """
        return self.repair in repair.PREDICTING

    def check_data(self, name: str, context: Context) -> None:
        """See `Method.check_data`."""
        if self.needs is Needs.TARGETS and context.feeds is None and name not in context.corrections:
            raise PerfonnxError(
                f"layer {name!r} is to be repaired, but there is no calibration data; give --data, or a plan saved "
                "after a repair"
            )

    def operands(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], dict[str, Any], str]:
        """`mask`, and the table of `source` positions that the interpolation gives."""
        assert decision.mask is not None
        sampling = interpolate(decision.mask, self.interpolation)
        what = f"{self.mask}, {sampling.interpolation}, {sampling.rate:.1%} skipped"
        return *sampling_operands(workspace, sampling), what

    def source(self, mask: Mask) -> NDArray[np.int32] | None:
        """See `SampledMethod.source`."""
        sampling = interpolate(mask, self.interpolation)
        return sampling.source[:, 0] if sampling.weight is None else None

    def has_rows(self, layer: Layer, *, folds: bool) -> bool:
        """Rows have one site for each position."""
        return self.interpolation != "barycentric"

    def corrected(self, spot: Spot) -> Fitted:
        """See `SampledMethod.corrected`."""
        assert spot.mask is not None
        if self.repair == WEIGHTS:
            only = SiteClass(spot.mask, own_taps(spot.attributes))
            return refitted(spot, lambda: [only], ridge=spot.context.ridge)
        return repair.repaired(spot, interpolate(spot.mask, self.interpolation), self.repair)

    def multiplies(self, layer: Layer, mask: Mask | None, correction: Correction | None) -> int:
        """Those of a predictor at every position too."""
        predictor = 0 if correction is None or correction.predictor is None else correction.predictor.size
        return super().multiplies(layer, mask, correction) + predictor * (0 if mask is None else mask.size)

    @classmethod
    def candidates(cls, space: Space) -> Sequence[Method]:
        """Every mask at every rate with every interpolation and repair. A file of masks has its own rate."""
        rates = space.savings
        return [
            cls(rate, mask, interpolation, repair)
            for repair in space.of("repair")
            for mask in space.of("mask")
            for interpolation in space.of("interpolation")
            for rate in (rates[:1] if is_mask_file(mask) else rates)
        ]

    @property
    def kind(self) -> Method:
        """See `Method.kind`."""
        return replace(self, rate=0.0)

    @property
    def family(self) -> str:
        """See `Method.family`."""
        return self.mask

    @property
    def timed(self) -> Method:
        """Other constants take no time."""
        return replace(self, repair=NO_REPAIR) if self.repair in (BIAS, WEIGHTS) else self

    @property
    def shareable(self) -> bool:
        """Whether layers have one mask, and what they give may stay on rows."""
        return self.interpolation == "nearest" and not self.own_randomness and not is_mask_file(self.mask)

    @property
    def goes_further(self) -> bool:
        """To higher rates, where the mask is not a user's own."""
        return not is_own_mask(self.mask)

    @property
    def label(self) -> str:
        """See `Method.label`."""
        interpolation = "" if self.interpolation == "nearest" else f" {self.interpolation}"
        return f"{super().label}{interpolation}{'' if self.repair == NO_REPAIR else f' +{self.repair}'}"

    @property
    def detail(self) -> str:
        """See `Method.detail`."""
        return f"{self.mask}, {self.interpolation}"

    def training_obstacle(self, *, normalized: bool, shared: bool) -> str | None:
        """See `Method.training_obstacle`."""
        if self.interpolation == "zero" and normalized:
            return (
                "it is normalized behind, so zeros would not stay zeros; interpolate nearest, or use the method sparse"
            )
        return None

    @property
    def trained(self) -> Method:
        """See `Method.trained`."""
        return replace(self, repair=NO_REPAIR)

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """See `Method.trainable`."""
        from perfonnx.torch.modules import PerforatedConv2d, plain

        assert mask is not None
        return PerforatedConv2d(plain(module), interpolate(mask, self.interpolation))
