"""Radius-adaptive convolution (Rakhshanfar): per pixel, alpha decides whether the 3x3 ring is added to the centre."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.corrections import Correction, TrainedGate
from perfonnx.errors import PerfonnxError
from perfonnx.masks import Mask
from perfonnx.methods import gate
from perfonnx.methods.base import Context, Decision, Fitted, Method, Needs, SampledMethod, Spot, setting
from perfonnx.model.layers import Layer, numpy_type
from perfonnx.ops.radius_adaptive_conv import RADIUS_ADAPTIVE_CONV

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

    from perfonnx.model.workspace import Workspace
    from perfonnx.torch.modules import SampledConv2d

EXACT_ALPHA = 1.0
"""Gate bias of a new radius-adaptive layer: with a zero gate weight, alpha is 1 everywhere and the layer is dense."""


@dataclass(frozen=True)
class RadiusAdaptive(SampledMethod):
    """The centre everywhere, the ring where a gate opens.

    Attributes:
        center_gain: 0 or 1, the two published forms of the sum.
        open_share: Share of the pixels where the layer computes its ring, in [0, 1]; below 1 a gate is fitted on
            calibration data, see `perfonnx.methods.gate`. With a trained gate: what it opened in training.
        trained_gate: Whether the gate comes from training, with the layer's weights. It is kept in the plan's
            corrections.
    """

    NAME = "radius-adaptive"
    ADJECTIVE = "radius-adaptive"
    SUMMARY = "adds the ring of a 3x3 kernel to its centre where a gate opens, pixel by pixel, at run time"
    OPERATOR = RADIUS_ADAPTIVE_CONV.name

    center_gain: float = setting(0.0, "0 (default) or 1; radius-adaptive only", "G", written=True)
    open_share: float = setting(
        1.0,
        "share of pixels where radius-adaptive layers compute their 3x3 ring (default 1); below 1 gates are fitted by "
        "least squares on --data, without training",
        "P",
        said="have an open_share",
    )
    trained_gate: bool = setting(False, said="have a trained_gate")

    def check(self, where: str) -> None:
        """See `Method.check`."""
        if self.center_gain not in (0, 1):
            raise PerfonnxError(f"{where}: center_gain {self.center_gain!r} is not one of the published forms, 0 and 1")
        if not isinstance(self.open_share, (int, float)) or isinstance(self.open_share, bool):
            raise PerfonnxError(f"{where}: open_share {self.open_share!r} is not a number")
        if not 0 <= self.open_share <= 1:
            raise PerfonnxError(
                f"{where}: open_share {self.open_share!r} is not in [0, 1]; it is the share of pixels that keep their "
                "ring"
            )
        if self.open_share != 1 and self.center_gain and not self.trained_gate:
            raise PerfonnxError(f"{where}: with an open_share the gain of the centre is fitted; leave out center_gain")
        if not isinstance(self.trained_gate, bool):
            raise PerfonnxError(f"{where}: trained_gate {self.trained_gate!r} is neither true nor false")

    @property
    def needs(self) -> Needs:
        """See `Method.needs`."""
        return Needs.NOTHING if self.open_share == 1 or self.trained_gate else Needs.TARGETS

    @property
    def is_trained(self) -> bool:
        """See `Method.is_trained`."""
        return self.trained_gate

    def check_data(self, name: str, context: Context) -> None:
        """See `Method.check_data`."""
        known = context.corrections.get(name)
        if self.needs is Needs.TARGETS and context.feeds is None and (known is None or known.gate is None):
            raise PerfonnxError(
                f"layer {name!r} is to get a gate, but there is no calibration data; give --data, or a plan saved "
                "after gates were fitted"
            )

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """See `Method.obstacle`."""
        if layer.w_shape[2:] != (3, 3):
            return f"{layer.w_shape[2]}x{layer.w_shape[3]} kernel; radius-adaptive layers have a 3x3 kernel"
        return None

    def operands(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], dict[str, Any], str]:
        """A gate that is open everywhere: the dense layer, ready for a gate, which `corrected` brings.

        A layer whose gate was trained has its centre tap from training too.
        """
        layer, gain = decision.layer, self.center_gain
        assert layer.attributes is not None
        if gain and not self.trained_gate:
            _share_centre(workspace, layer.node, gain)
        dtype = numpy_type(layer.elem_type)
        channels = layer.w_shape[1] * layer.attributes.group
        inputs = [
            workspace.add_table("gate", np.zeros((1, channels, 1, 1), dtype)),
            workspace.add_table("gate_bias", np.full(1, EXACT_ALPHA, dtype)),
            workspace.add_table("zeros", np.zeros(layer.w_shape[0], dtype)),
        ]
        is_open = self.open_share == 1 and not self.trained_gate
        what = f"centre gain {gain:g}, gate open everywhere" if is_open else "radius-adaptive"
        return inputs, {"center_gain": float(gain)}, what

    def corrected(self, spot: Spot) -> Fitted:
        """See `SampledMethod.corrected`."""
        if self.trained_gate:
            return gate.trained(spot, self.center_gain)
        return gate.gated(spot, self.open_share)

    def given_gate(self, gate: TrainedGate) -> Self | None:
        """See `Method.given_gate`."""
        return replace(self, trained_gate=True, open_share=gate.open_share)

    def skipped(self, mask: Mask | None, correction: Correction | None) -> float:
        """The share of the calibration data's pixels that skip their ring."""
        return 0.0 if correction is None or correction.gate is None else 1 - correction.gate.share

    def multiplies(self, layer: Layer, mask: Mask | None, correction: Correction | None) -> int:
        """Those of the centre, of the ring where it is computed, and of the gate."""
        assert layer.output_shape is not None
        assert layer.attributes is not None
        gate = layer.output_shape[0] * layer.output_shape[1] * layer.w_shape[1] * layer.attributes.group
        dense = layer.multiplies or 0
        return dense // 9 + round(dense * 8 / 9 * (1 - self.skipped(mask, correction))) + gate

    @property
    def label(self) -> str:
        """See `Method.label`."""
        return f"{self.NAME}{'' if self.open_share == 1 else f' {self.open_share:g}'}"

    @property
    def detail(self) -> str:
        """See `Method.detail`."""
        return ""

    @property
    def asked(self) -> str:
        """See `Method.asked`."""
        return "" if self.open_share == 1 else f"open share {self.open_share:g}"

    @property
    def saving(self) -> float:
        """See `Method.saving`: the ring is 8 of 9 taps, but the table counts pixels."""
        return 1 - self.open_share

    @property
    def stamp(self) -> str:
        """See `Method.stamp`."""
        return f"{self.NAME}{', trained gate' if self.trained_gate else ''}, open share {self.open_share:g}"

    def training_obstacle(self, *, normalized: bool, shared: bool) -> str | None:
        """See `Method.training_obstacle`."""
        if self.center_gain and shared:
            return "it shares its weight with another layer, which a center_gain would change; give 0"
        return None

    @property
    def trained(self) -> Method:
        """See `Method.trained`."""
        return replace(self, open_share=1.0, trained_gate=False)

    @property
    def open_budget(self) -> float | None:
        """See `Method.open_budget`."""
        return self.open_share

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """The module itself where it is of this form already: it keeps its gate."""
        from perfonnx.torch.modules import RadiusAdaptiveConv2d, plain

        if isinstance(module, RadiusAdaptiveConv2d) and module.center_gain == self.center_gain:
            return module
        return RadiusAdaptiveConv2d(plain(module), self.center_gain)


def _share_centre(workspace: Workspace, node: gs.Node, gain: float) -> None:
    """Divide the centre tap by 1 + gain, its factor where alpha is 1: the open gate then gives the dense layer."""
    weight = workspace.constant(node.inputs[1])
    assert weight is not None
    shared = weight.copy()
    shared[:, :, 1, 1] /= 1 + gain
    node.inputs[1] = workspace.add_constant(f"{node.inputs[1].name}.centred", shared)
