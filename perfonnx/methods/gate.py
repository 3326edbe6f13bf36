"""Gates of radius-adaptive layers: trained, or fitted without training so that they open an asked share of the pixels.

To be fitted, layers are done front to back like those that are repaired: inputs come from the network rewritten so far,
targets from the original one. See `perfonnx.methods.gate_fit` for what is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfonnx.corrections import Correction, Gate, TrainedGate, digest
from perfonnx.errors import PerfonnxError
from perfonnx.methods.base import Fitted, Spot, Targets
from perfonnx.methods.gate_fit import GateFit, GateSolution, PixelSample
from perfonnx.ops.radius_adaptive_conv import under_centre


def trained(spot: Spot, center_gain: float) -> Fitted:
    """Give a layer whose gate was trained that gate."""
    layer, given = _Layer(spot, is_trained=True), spot.context.gates.get(spot.name)
    if given is not None:
        return layer.changed(layer.of_training(given, center_gain), "trained gate")
    correction = spot.context.corrections.get(spot.name)
    if correction is None or correction.gate is None:
        raise PerfonnxError(
            f"layer {spot.name!r}: its gate was trained and is not here; take the plan that was saved with its "
            "corrections, or in Python rewrite(gates=...)"
        )
    return layer.changed(correction, "trained gate")


def gated(spot: Spot, open_share: float) -> Fitted:
    """Fit a gate that opens this share of the pixels, where there are targets, else give the layer the one it had."""
    layer = _Layer(spot, is_trained=False)
    if spot.targets is None:
        return layer.changed(spot.context.corrections[spot.name], "gate as before")
    return layer.changed(*layer.fit(spot.targets, open_share, spot.context.ridge))


@dataclass(frozen=True)
class _Layer:
    """A layer just made a RadiusAdaptiveConv, with a gate that is open everywhere."""

    spot: Spot
    is_trained: bool

    def fit(self, targets: Targets, share: float, ridge: float) -> tuple[Correction, str]:
        """The gate, and a few words on it."""
        goal = targets.goal(self.spot.name)
        sample = PixelSample()
        try:
            for x, result, target, other in targets.values(self.spot.name, settled=True):
                sample.add(under_centre(x, self.spot.attributes), result, target, *([] if other is None else [other]))
            columns = sample.columns()
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {self.spot.name!r}: {error}") from error
        fit = GateFit(
            columns[0],
            columns[1],
            columns[2],
            columns[3] if len(columns) > 3 else None,
            self.spot.weight[:, :, 1, 1].astype(np.float64),
            self.spot.bias.astype(np.float64),
            groups=self.spot.attributes.group,
            goal=goal,
            ridge=ridge,
        )
        solution = fit.solve(share)
        what = f"gate fitted with {solution.form}, error {solution.before:.2%} (closed) -> {solution.after:.2%}"
        return self._correction(solution), what

    def _correction(self, s: GateSolution) -> Correction:
        ring_bias = (s.open_bias - s.closed_bias).astype(np.float32)
        return Correction(
            s.closed_bias.astype(np.float32),
            np.zeros((0, 0), bool),
            "",
            digest(self.spot.weight),
            None if s.centre is None else s.centre.astype(np.float32),
            None,
            s.before,
            s.after,
            Gate(s.weight.astype(np.float32), s.bias, ring_bias, s.gain, s.share),
        )

    def of_training(self, gate: TrainedGate, center_gain: float) -> Correction:
        """A trained gate as a correction of the layer, which is folded by now."""
        outputs, channels = len(self.spot.bias), self.spot.weight.shape[1] * self.spot.attributes.group
        ring_bias = np.zeros(outputs) if gate.ring_bias is None else np.asarray(gate.ring_bias, np.float64)
        weight = np.asarray(gate.weight)
        if weight.shape != (channels,) or ring_bias.shape != (outputs,):
            raise PerfonnxError(
                f"layer {self.spot.name!r}: its gate has a weight of shape {list(weight.shape)} and a ring bias of "
                f"shape {list(ring_bias.shape)}; the layer takes {channels} channels and gives {outputs}"
            )
        if not np.isfinite([*weight, gate.bias, *ring_bias]).all():
            raise PerfonnxError(f"layer {self.spot.name!r}: its gate holds values that are not finite")
        if self.spot.folded is not None:
            ring_bias = ring_bias * self.spot.folded.scale
        return Correction(
            np.zeros(outputs, np.float32),
            np.zeros((0, 0), bool),
            "",
            digest(self.spot.weight),
            gate=Gate(
                weight.astype(np.float32),
                float(gate.bias),
                ring_bias.astype(np.float32),
                float(center_gain),
                float(gate.open_share),
            ),
        )

    def changed(self, correction: Correction, what: str) -> Fitted:
        """Change the node's constants.

        Raises:
            PerfonnxError: The correction was found for something else, or the type of the weights is too narrow.
        """
        workspace, node = self.spot.workspace, self.spot.node
        gate, dtype, name = correction.gate, self.spot.weight.dtype, node.inputs[1].name
        assert gate is not None
        outputs, inputs = self.spot.weight.shape[:2]
        shapes = (correction.bias.shape, gate.ring_bias.shape, gate.weight.shape)
        fits = shapes == ((outputs,), (outputs,), (inputs * self.spot.attributes.group,))
        fits &= correction.predictor is None or correction.predictor.shape == (outputs, inputs)
        if not fits or correction.weights != digest(self.spot.weight):
            again = "train it again" if self.is_trained else "fit it again with --data"
            raise PerfonnxError(f"layer {self.spot.name!r}: its gate was found for other weights; {again}")
        with np.errstate(over="ignore"):
            weight = self.spot.weight.astype(np.float64)
            if not self.is_trained:
                weight[:, :, 1, 1] /= 1 + gate.gain
            if correction.predictor is not None:
                weight[:, :, 1, 1] += correction.predictor
            changed = weight.astype(dtype)
            bias = (self.spot.bias.astype(np.float64) + correction.bias).astype(dtype)
            tables = [
                gate.weight.reshape(1, -1, 1, 1).astype(dtype),
                np.array([gate.bias]).astype(dtype),
                gate.ring_bias.astype(dtype),
            ]
        if not all(np.isfinite(values).all() for values in (changed, bias, *tables)):
            raise PerfonnxError(
                f"layer {self.spot.name!r}: its gate is too large for the type of its weights; leave it out with --skip"
            )
        kinds = ("gate", "gate_bias", "ring_bias")
        node.inputs = [
            node.inputs[0],
            workspace.add_constant(f"{name}.gated", changed),
            workspace.add_constant(f"{name}.gated_bias", bias),
            *(workspace.add_table(kind, values) for kind, values in zip(kinds, tables, strict=True)),
        ]
        node.attrs["center_gain"] = float(gate.gain)
        return Fitted(correction, f"{what}: {gate.share:.1%} open")
