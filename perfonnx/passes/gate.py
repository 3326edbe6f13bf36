"""Gates of radius-adaptive layers: trained, or fitted without training so that they open an asked share of the pixels.

To be fitted, layers are done front to back like those that are repaired: inputs come from the network rewritten so far,
targets from the original one. See `perfonnx.gating` for what is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction, Gate, TrainedGate, digest
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import RIDGE
from perfonnx.gating import GateFit, GateSolution, PixelSample
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import ConvAttributes
from perfonnx.ops.radius_adaptive_conv import under_centre
from perfonnx.passes.base import Change, Decision, Pass, PassResult, State
from perfonnx.passes.convert import add_table
from perfonnx.passes.repair import MEMORY, Feeds, Targets


@dataclass
class TrainedGates(Pass):
    """Gives the layers whose gate was trained that gate.

    Attributes:
        gates: From training, by layer name.
        corrections: Those of an earlier run, for layers that are not in `gates`.
    """

    gates: Mapping[str, TrainedGate] = field(default_factory=dict)
    corrections: Mapping[str, Correction] = field(default_factory=dict)

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Change the layers."""
        changes = []
        for name, decision in state.decisions.items():
            if not decision.plan.trained_gate:
                continue
            layer = _Layer.of(workspace, name, state.rewritten[name], decision)
            trained = self.gates.get(name)
            correction = self._known(name) if trained is None else layer.of_training(trained, decision)
            layer.apply(correction)
            state.corrections[name] = correction
            assert correction.gate is not None
            changes.append(Change(name, f"trained gate: {correction.gate.share:.1%} open"))
        return PassResult(bool(changes), changes)

    def _known(self, name: str) -> Correction:
        correction = self.corrections.get(name)
        if correction is None or correction.gate is None:
            raise PerfonnxError(
                f"layer {name!r}: its gate was trained and is not here; take the plan that was saved with its "
                "corrections, or in Python rewrite(gates=...)"
            )
        return correction


@dataclass
class FitGates(Pass):
    """Gives gates to the radius-adaptive layers whose plan asks for an open share below 1.

    Attributes:
        batches: Calibration data, which is iterated again and again; None: `corrections` are applied.
        corrections: Found before, by layer name.
        ridge: Strength of regularization.
        memory: See `perfonnx.passes.repair.MEMORY`.
        progress: Called with the layers done and their number.
    """

    batches: Feeds | None = None
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    ridge: float = RIDGE
    memory: int = MEMORY
    progress: Callable[[int, int], None] | None = None

    def requires(self, workspace: Workspace, state: State) -> None:
        """Refuse a plan with gates when neither data nor gates found before are there."""
        for name in self._wanted(state):
            known = self.corrections.get(name)
            if self.batches is None and (known is None or known.gate is None):
                raise PerfonnxError(
                    f"layer {name!r} is to get a gate, but there is no calibration data; give --data, or a plan saved "
                    "after gates were fitted"
                )

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Fit where there is data, then change the layers."""
        wanted = self._wanted(state)
        if not wanted:
            return PassResult(modified=False)
        targets = None
        if self.batches is not None:
            targets = Targets(workspace, {name: state.rewritten[name] for name in wanted}, self.batches, self.memory)
        changes = []
        for number, (name, decision) in enumerate(wanted.items()):
            if self.progress is not None:
                self.progress(number, len(wanted))
            layer = _Layer.of(workspace, name, state.rewritten[name], decision)
            if targets is None:
                correction, what = self.corrections[name], "gate as before"
            else:
                correction, what = layer.fit(targets, decision.plan.open_share, self.ridge)
            layer.apply(correction)
            state.corrections[name] = correction
            assert correction.gate is not None
            changes.append(Change(name, f"{what}: {correction.gate.share:.1%} open"))
        return PassResult(bool(changes), changes)

    @staticmethod
    def _wanted(state: State) -> dict[str, Decision]:
        return {name: d for name, d in state.decisions.items() if d.plan.open_share != 1 and not d.plan.trained_gate}


@dataclass(frozen=True)
class _Layer:
    """A layer just made a RadiusAdaptiveConv, with a gate that is open everywhere."""

    workspace: Workspace
    name: str
    node: gs.Node
    attributes: ConvAttributes
    weight: NDArray[Any]
    bias: NDArray[Any]
    trained: bool

    @classmethod
    def of(cls, workspace: Workspace, name: str, node: gs.Node, decision: Decision) -> _Layer:
        assert decision.layer.attributes is not None
        weight, bias = workspace.constant(node.inputs[1]), workspace.constant(node.inputs[2])
        assert weight is not None
        assert bias is not None
        return cls(workspace, name, node, decision.layer.attributes, weight, bias, decision.plan.trained_gate)

    def fit(self, targets: Targets, share: float, ridge: float) -> tuple[Correction, str]:
        """The gate, and a few words on it."""
        goal = targets.goal(self.name)
        sample = PixelSample()
        try:
            for x, result, target, other in targets.values(self.name, settled=True):
                sample.add(under_centre(x, self.attributes), result, target, *([] if other is None else [other]))
            columns = sample.columns()
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {self.name!r}: {error}") from error
        fit = GateFit(
            columns[0],
            columns[1],
            columns[2],
            columns[3] if len(columns) > 3 else None,
            self.weight[:, :, 1, 1].astype(np.float64),
            self.bias.astype(np.float64),
            groups=self.attributes.group,
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
            digest(self.weight),
            None if s.centre is None else s.centre.astype(np.float32),
            None,
            s.before,
            s.after,
            Gate(s.weight.astype(np.float32), s.bias, ring_bias, s.gain, s.share),
        )

    def of_training(self, gate: TrainedGate, decision: Decision) -> Correction:
        """A trained gate as a correction of the layer, which is folded by now."""
        outputs, channels = len(self.bias), self.weight.shape[1] * self.attributes.group
        ring_bias = np.zeros(outputs) if gate.ring_bias is None else np.asarray(gate.ring_bias, np.float64)
        weight = np.asarray(gate.weight)
        if weight.shape != (channels,) or ring_bias.shape != (outputs,):
            raise PerfonnxError(
                f"layer {self.name!r}: its gate has a weight of shape {list(weight.shape)} and a ring bias of shape "
                f"{list(ring_bias.shape)}; the layer takes {channels} channels and gives {outputs}"
            )
        if not np.isfinite([*weight, gate.bias, *ring_bias]).all():
            raise PerfonnxError(f"layer {self.name!r}: its gate holds values that are not finite")
        if decision.folded is not None:
            ring_bias = ring_bias * decision.folded.scale
        return Correction(
            np.zeros(outputs, np.float32),
            np.zeros((0, 0), bool),
            "",
            digest(self.weight),
            gate=Gate(
                weight.astype(np.float32),
                float(gate.bias),
                ring_bias.astype(np.float32),
                float(decision.plan.center_gain),
                float(gate.open_share),
            ),
        )

    def apply(self, correction: Correction) -> None:
        """Change the node's constants.

        Raises:
            PerfonnxError: The correction was found for something else, or the type of the weights is too narrow.
        """
        gate, dtype, name = correction.gate, self.weight.dtype, self.node.inputs[1].name
        assert gate is not None
        outputs, inputs = self.weight.shape[:2]
        shapes = (correction.bias.shape, gate.ring_bias.shape, gate.weight.shape)
        fits = shapes == ((outputs,), (outputs,), (inputs * self.attributes.group,))
        fits &= correction.predictor is None or correction.predictor.shape == (outputs, inputs)
        if not fits or correction.weights != digest(self.weight):
            again = "train it again" if self.trained else "fit it again with --data"
            raise PerfonnxError(f"layer {self.name!r}: its gate was found for other weights; {again}")
        with np.errstate(over="ignore"):
            weight = self.weight.astype(np.float64)
            if not self.trained:
                weight[:, :, 1, 1] /= 1 + gate.gain
            if correction.predictor is not None:
                weight[:, :, 1, 1] += correction.predictor
            changed = weight.astype(dtype)
            bias = (self.bias.astype(np.float64) + correction.bias).astype(dtype)
            tables = [
                gate.weight.reshape(1, -1, 1, 1).astype(dtype),
                np.array([gate.bias]).astype(dtype),
                gate.ring_bias.astype(dtype),
            ]
        if not all(np.isfinite(values).all() for values in (changed, bias, *tables)):
            raise PerfonnxError(
                f"layer {self.name!r}: its gate is too large for the type of its weights; leave it out with --skip"
            )
        workspace, node = self.workspace, self.node
        kinds = ("gate", "gate_bias", "ring_bias")
        node.inputs = [
            node.inputs[0],
            workspace.add_constant(f"{name}.gated", changed),
            workspace.add_constant(f"{name}.gated_bias", bias),
            *(add_table(workspace, kind, values) for kind, values in zip(kinds, tables, strict=True)),
        ]
        node.attrs["center_gain"] = float(gate.gain)
