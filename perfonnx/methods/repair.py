"""Repair: perforated layers come closer to what they were, by least squares on calibration data, without training.

Layers are repaired front to back: the input of a layer comes from the network rewritten and repaired up to it, the
target from the original network. A layer can get

- a *bias*: the mean error of each channel is added to it, at no cost;
- a *predictor*: a 1x1 convolution A, computed everywhere, with y = A x + Interp(conv(x) - A x) + b. It is exact at the
  sites up to b, and needs no new operator: conv(x) - A x is the convolution with A taken off the tap that reads the
  position itself;
- a *learned interpolation*: weights of the nearest sites, one set per position for all channels.

The error is that of the tensor behind the layer that its activation reads: the sum at the end of a residual block, and
counted only where the activation lets it through. Without that, SqueezeNet (ImageNet, half of all positions skipped in
its 3x3 layers) loses 22 points of top-1 by the bias, with it it gains 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction, digest
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Neighbours, Residual, Solution
from perfonnx.methods.base import Fitted, Spot, Targets
from perfonnx.model.layers import unique_name
from perfonnx.model.proto import TensorType
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import ConvAttributes
from perfonnx.sampling import Sampling

WORTH = 0.9
"""A learned interpolation, which keeps a layer off rows, has to bring the squared error down to this share of what the
rest of the repair brings it down to."""

PREDICTING = ("predictor", "full")
"""The repairs with a predictor."""


def repaired(spot: Spot, sampling: Sampling, kind: str) -> Fitted:
    """Correct a layer, by fitting where there are targets, else as before.

    Args:
        spot: The layer, just made a PerforatedConv.
        sampling: Its mask with its interpolation.
        kind: One of "bias", "interpolation", "predictor" and "full".
    """
    layer = _Layer.of(spot, sampling)
    if spot.targets is None:
        correction, note = spot.context.corrections[spot.name], "repaired as before"
        layer.check(correction)
    else:
        correction, note = _Fitter(layer, spot.targets, spot.context.ridge).fit(kind)
    return Fitted(correction, note, layer.apply(correction))


@dataclass(frozen=True)
class _Layer:
    """A layer just made a PerforatedConv: x -> y."""

    workspace: Workspace
    name: str
    node: gs.Node
    sampling: Sampling
    attributes: ConvAttributes
    weight: NDArray[Any]
    bias: NDArray[Any]

    @classmethod
    def of(cls, spot: Spot, sampling: Sampling) -> _Layer:
        return cls(spot.workspace, spot.name, spot.node, sampling, spot.attributes, spot.weight, spot.bias)

    @property
    def input_size(self) -> tuple[int, int]:
        shape = self.workspace.types[self.node.inputs[0].name].shape
        assert shape is not None
        height, width = (d for d in shape[2:] if isinstance(d, int))
        return height, width

    @property
    def tap(self) -> tuple[int, int]:
        """The tap that reads position stride * p for output position p; it lies in the kernel unless `obstacle`."""
        a = self.attributes
        return a.pads[0] // a.dilations[0], a.pads[1] // a.dilations[1]

    @property
    def obstacle(self) -> str | None:
        """Why the layer cannot have a predictor, or would gain nothing by it."""
        a, kernel = self.attributes, self.attributes.kernel_shape
        aligned = a.pads[0] % a.dilations[0] == 0 and a.pads[1] % a.dilations[1] == 0
        within = self.tap[0] < kernel[0] and self.tap[1] < kernel[1]
        pointwise = ConvAttributes((1, 1), a.strides)
        if not aligned or not within or pointwise.output_shape(*self.input_size) != self.sampling.shape:
            return "no tap of its kernel reads the position itself"
        if self.sampling.rate * kernel[0] * kernel[1] <= 1:
            return "it would cost what skipping saves"
        return None

    def at_outputs(self, x: NDArray[Any]) -> NDArray[Any]:
        """The input [N, C, OH, OW] that the aligned tap reads."""
        height, width = self.sampling.shape
        step_y, step_x = self.attributes.strides
        return x[:, :, ::step_y, ::step_x][:, :, :height, :width]

    def check(self, correction: Correction) -> None:
        """Refuse a correction that was found for something else."""
        c, where = correction, f"layer {self.name!r}"
        again = "repair again with --data"
        if not np.array_equal(c.mask, self.sampling.mask) or c.interpolation != self.sampling.interpolation:
            raise PerfonnxError(f"{where}: its correction was found for another mask or interpolation; {again}")
        shape = (self.weight.shape[0], self.weight.shape[1])
        wrong = c.bias.shape != shape[:1] or (c.predictor is not None and c.predictor.shape != shape)
        if wrong or c.weights != digest(self.weight) or (c.predictor is not None and self.obstacle is not None):
            raise PerfonnxError(f"{where}: its correction was found for other weights; {again}")
        if not self.is_finite(c):
            raise PerfonnxError(f"{where}: its correction is too large for the type of its weights; {again}")

    def corrected(self, correction: Correction) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """Weight, bias and the predictor's weight [M, C/group, 1, 1]."""
        dtype = self.weight.dtype
        weight = self.weight
        predictor = None
        with np.errstate(over="ignore"):
            if correction.predictor is not None:
                predictor = correction.predictor.astype(dtype)
                weight = weight.astype(np.float64)
                weight[:, :, self.tap[0], self.tap[1]] -= predictor
                weight, predictor = weight.astype(dtype), predictor[:, :, None, None]
            bias = (self.bias.astype(np.float64) + correction.bias).astype(dtype)
        return weight, bias, predictor

    def is_finite(self, correction: Correction) -> bool:
        """False where float16 is too narrow for the correction."""
        return all(values is None or bool(np.isfinite(values).all()) for values in self.corrected(correction))

    def apply(self, correction: Correction) -> list[gs.Node]:
        """Change the node's constants; with a predictor, return its Conv, whose output is added to the node's."""
        workspace, node = self.workspace, self.node
        weight, bias, predictor = self.corrected(correction)
        node.inputs[2] = workspace.add_constant(f"{node.inputs[1].name}.repaired_bias", bias)
        if correction.learned is not None:
            learned = correction.learned
            assert learned.weight is not None
            tables = [workspace.add_table("source", learned.source), workspace.add_table("weight", learned.weight)]
            node.inputs = [*node.inputs[:4], *tables]
            node.attrs["interpolation"] = learned.interpolation
        if predictor is None:
            return []
        name = node.inputs[1].name
        node.inputs[1] = workspace.add_constant(f"{name}.repaired", weight)
        total = node.outputs[0]
        known = workspace.types[total.name]
        at_sites, everywhere = (self._variable(f"{total.name}.{part}", known) for part in ("sampled", "predicted"))
        pointwise = gs.Node(
            "Conv",
            unique_name(workspace, f"{self.name}.predictor"),
            {**ConvAttributes((1, 1), self.attributes.strides, group=self.attributes.group).attributes()},
            [node.inputs[0], workspace.add_constant(f"{name}.predictor", predictor)],
            [everywhere],
        )
        node.outputs = [at_sites]
        added = gs.Node("Add", unique_name(workspace, f"{self.name}.repaired"), {}, [at_sites, everywhere], [total])
        index = next(i for i, other in enumerate(workspace.graph.nodes) if other is node)
        workspace.graph.nodes[index + 1 : index + 1] = [pointwise, added]
        return [pointwise]

    def _variable(self, name: str, known: TensorType) -> gs.Variable:
        name = self.workspace.free_name(name)
        self.workspace.types[name] = known
        return gs.Variable(name)


class _Fitter:
    """Finds a layer's correction."""

    def __init__(self, layer: _Layer, targets: Targets, ridge: float) -> None:
        self.layer = layer
        self.targets = targets
        self.ridge = ridge

    def fit(self, wishes: str) -> tuple[Correction, str]:
        """The correction, and a few words on it."""
        layer, note = self.layer, ""
        obstacle = layer.obstacle
        if wishes in PREDICTING and obstacle is not None:
            note = f" (no predictor: {obstacle})"
        with_predictor = wishes in PREDICTING and obstacle is None
        learned: Sampling | None = None
        try:
            if wishes in ("interpolation", "full") and not layer.sampling.mask.all():
                learned = self._interpolation()
            samplings = [layer.sampling, *([learned] if learned is not None else [])]
            solutions = self._residuals(samplings, with_predictor=with_predictor)
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {layer.name!r}: {error}") from error
        solution = solutions[0]
        if learned is not None:
            if solutions[1].after <= WORTH * solution.after:
                solution = Solution(solutions[1].bias, solutions[1].predictor, solution.before, solutions[1].after)
            else:
                learned, note = None, f"{note} (learned interpolation: gains too little)"
        correction = self._correction(solution, learned)
        if not layer.is_finite(correction):
            raise PerfonnxError(
                f"layer {layer.name!r}: its correction is too large for the type of its weights; leave it out with "
                "--skip, or use --repair none"
            )
        parts = ["bias", *(["predictor"] if solution.predictor is not None else [])]
        parts += ["learned interpolation"] if learned is not None else []
        what = f"repaired by {', '.join(parts)}{note}: error {solution.before:.2%} -> {solution.after:.2%}"
        return correction, what

    def _correction(self, solution: Solution, learned: Sampling | None) -> Correction:
        layer, predictor = self.layer, solution.predictor
        return Correction(
            solution.bias.astype(np.float32),
            layer.sampling.mask,
            layer.sampling.interpolation,
            digest(layer.weight),
            None if predictor is None else predictor.astype(np.float32),
            learned,
            solution.before,
            solution.after,
        )

    def _interpolation(self) -> Sampling:
        layer = self.layer
        neighbours = Neighbours(layer.sampling.mask, self.targets.goal(layer.name))
        for _, result, target, other in self.targets.values(layer.name, settled=False):
            neighbours.add(result, target, other)
        return neighbours.solve(self.ridge)

    def _residuals(self, samplings: list[Sampling], *, with_predictor: bool) -> list[Solution]:
        layer = self.layer
        goal = self.targets.goal(layer.name)
        residuals = [Residual(sampling, layer.attributes.group, goal) for sampling in samplings]
        for x, result, target, other in self.targets.values(layer.name, settled=True):
            for residual in residuals:
                residual.add(result, target, other, layer.at_outputs(x) if with_predictor else None)
        return [residual.solve(self.ridge) for residual in residuals]
