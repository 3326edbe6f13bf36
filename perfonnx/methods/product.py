"""Refitted products: a fully connected layer makes up for what changed in front of it, by other weights.

Where a map is flattened for it, a layer reads every position apart, those too that show what is computed at a site
beside them: its weights take in how these are to be interpolated. Samples are its rows, so there are few of them: some
are left out of a first fit and have to agree that it gains. (Behind a global pool it hardly does: what is left there is
not linear in what is known.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction, digest
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Refit, fit_obstacle
from perfonnx.methods.base import Context, Fitted, KeepingMethod, Needs, Spot
from perfonnx.methods.refit import NEGLIGIBLE
from perfonnx.model.layers import Layer, only_consumer
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace

RIDGE = 0.05
"""Strength of the pull towards the original weights. On a network of two layers for MNIST, on sublattices, 300 images
lose with .002 and gain with this; 1000 gain as much with both."""
WORTH = 0.9
"""What a fit leaves of the error of samples that it has not seen, at most, to be worth it."""
PARTS = 4
"""One sample of so many is left out of the first fit."""


@dataclass(frozen=True)
class RefitProduct(KeepingMethod):
    """Weights and bias fitted to the original responses."""

    NAME = "refit"
    ADJECTIVE = "refitted"
    SUMMARY = "fully connected layers behind others that changed: weights refitted on --data, where unseen samples gain"
    PLACE = 15
    REPLACES = frozenset({"Gemm", "MatMul"})

    @property
    def needs(self) -> Needs:
        """See `Method.needs`."""
        return Needs.TARGETS

    def check_data(self, name: str, context: Context) -> None:
        """See `Method.check_data`."""
        if context.feeds is None and name not in context.corrections:
            raise PerfonnxError(
                f"layer {name!r} is to be refitted, but there is no calibration data; give --data, or a plan saved "
                "after a fit"
            )

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """See `Method.obstacle`."""
        if layer.input_shape is None or len(layer.input_shape) != 2:
            return "its input is not certain to be a row for each sample"
        if _bias_of(context.workspace, layer.node) is None:
            return "no bias of its own is certain"
        return fit_obstacle(layer.input_shape[1]) if isinstance(layer.input_shape[1], int) else None

    def corrected(self, spot: Spot) -> Fitted:
        """See `KeepingMethod.corrected`."""
        try:
            return _Product.of(spot).done()
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {spot.name!r}: {error}") from error


def _bias_of(workspace: Workspace, node: gs.Node) -> tuple[gs.Node, int] | None:
    """The node that adds a bias of one value for each output, and the number of the input that it is, new or there."""
    if node.op == "Gemm":
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return node, 2
        adding, place = node, 2
    else:
        follower = only_consumer(workspace, node.outputs[0])
        if follower is None or not is_standard(follower) or follower.op != "Add":
            return None
        adding, place = follower, 1 if follower.inputs[0] is node.outputs[0] else 0
    values, weight = workspace.constant(adding.inputs[place]), workspace.constant(node.inputs[1])
    assert weight is not None
    outputs = weight.shape[0 if node.attrs.get("transB", 0) else 1]
    one_each = values is not None and values.ndim <= 2 and values.shape[-1:] == (outputs,) and values.size == outputs
    return (adding, place) if one_each else None


@dataclass
class _Product:
    """One layer.

    Attributes:
        spot: What it is.
        weight: [M, K].
        adding: The node that adds its bias.
        place: Which of that node's inputs it is.
        bias: [M].
    """

    spot: Spot
    weight: NDArray[np.floating]
    adding: gs.Node
    place: int
    bias: NDArray[np.floating] = field(init=False)

    @classmethod
    def of(cls, spot: Spot) -> _Product:
        """The layer of a spot."""
        found = _bias_of(spot.workspace, spot.node)
        assert found is not None
        turned = spot.node.attrs.get("transB", 0)
        return cls(spot, spot.weight if turned else spot.weight.T, *found)

    def __post_init__(self) -> None:
        self.bias = np.zeros(len(self.weight))
        if len(self.adding.inputs) > self.place and self.adding.inputs[self.place].name:
            values = self.spot.workspace.constant(self.adding.inputs[self.place])
            assert values is not None
            self.bias = values.reshape(-1)

    def done(self) -> Fitted:
        """As before, where that is known; else by fitting."""
        spot = self.spot
        if spot.targets is None:
            correction, note = spot.context.corrections[spot.name], "refitted as before"
            self._check(correction)
        else:
            correction, note = self._fitted()
        if correction.arrays:
            self._apply(correction)
        return Fitted(correction, note)

    def _check(self, correction: Correction) -> None:
        found = correction.arrays
        if correction.weights != digest(self.spot.weight) or correction.bias.size:
            raise PerfonnxError("its weights were fitted for others; fit again with --data")
        shapes = {name: array.shape for name, array in found.items()}
        if found and shapes != {"weight": self.weight.shape, "bias": self.bias.shape}:
            raise PerfonnxError("its weights are of another form; fit again with --data")

    def _fitted(self) -> tuple[Correction, str]:
        targets, name = self.spot.targets, self.spot.name
        assert targets is not None
        inputs = self.weight.shape[1]
        if targets.images < inputs:
            next(targets.values(name, settled=True), None)  # nobody asks again
            return self._left(0.0, f"left as it was: {targets.images} samples are too few for its {inputs} inputs")
        fit, part, as_it_was = self._refit(), self._refit(), self._refit()
        for x, target, other, unseen in self._rows(settled=False):
            fit.add(x, target, other)
            _add(part, x, target, other, ~unseen)
            _add(as_it_was, x, target, other, unseen, only_error=True)
        before = as_it_was.error
        solution = fit.solve(RIDGE)
        part.again(*part.solve(RIDGE))
        for x, target, other, unseen in self._rows(settled=True):
            _add(part, x, target, other, unseen, only_error=True)
        after = part.error
        if before < NEGLIGIBLE:
            return self._left(before, "as it was: what has changed hardly reaches it")
        errors = f"error of unseen samples {before:.2%} -> {after:.2%}"
        if after > WORTH * before:
            return self._left(before, f"left as it was: a fit gains too little, {errors}")
        weight, bias = solution
        if self.adding is not self.spot.node:  # the target is what comes before the bias
            bias = bias + self.bias
        arrays = {"weight": weight[:, :, 0].astype(np.float32), "bias": bias.astype(np.float32)}
        return Correction.of(self.spot.weight, arrays, before, after), f"refitted: {errors}"

    def _left(self, error: float, note: str) -> tuple[Correction, str]:
        return Correction.of(self.spot.weight, {}, error, error), note

    def _refit(self) -> Refit:
        assert self.spot.targets is not None
        own = self.bias if self.adding is self.spot.node else np.zeros_like(self.bias)
        weight = self.weight.astype(np.float64)[:, :, None]
        goal = self.spot.targets.goal(self.spot.name)
        return Refit(np.ones((1, 1), bool), np.zeros((1, 2), np.int64), (1, 1), weight, own, goal, 1)

    def _rows(self, *, settled: bool) -> Iterator[_Rows]:
        """Input, target and what is added to the output, as maps of one position, and which samples are left out."""
        assert self.spot.targets is not None
        count = 0
        for x, _, target, other in self.spot.targets.values(self.spot.name, settled=settled):
            unseen = np.arange(count, count + len(x)) % PARTS == PARTS - 1
            count += len(x)
            yield _map(x), _map(target), None if other is None else _map(other), unseen

    def _apply(self, correction: Correction) -> None:
        spot, dtype = self.spot, self.spot.weight.dtype
        weight, bias = correction.arrays["weight"], correction.arrays["bias"]
        with np.errstate(over="ignore"):
            values = (weight if spot.node.attrs.get("transB", 0) else weight.T).astype(dtype), bias.astype(dtype)
        if not all(np.isfinite(array).all() for array in values):
            raise PerfonnxError("its weights are too large for their type; leave it out with --skip")
        spot.node.inputs[1] = spot.workspace.add_constant(f"{spot.name}.refitted.weight", values[0])
        while len(self.adding.inputs) <= self.place:
            self.adding.inputs.append(gs.Variable.empty())
        self.adding.inputs[self.place] = spot.workspace.add_constant(f"{spot.name}.refitted.bias", values[1])


_Map: TypeAlias = NDArray[Any]
_Rows: TypeAlias = tuple[_Map, _Map, "_Map | None", NDArray[np.bool_]]


def _map(rows: NDArray[Any]) -> _Map:
    """[N, C] as [N, C, 1, 1]."""
    return rows[:, :, None, None]


def _add(
    fit: Refit, x: _Map, target: _Map, other: _Map | None, chosen: NDArray[np.bool_], *, only_error: bool = False
) -> None:
    """Count some samples of a batch."""
    if chosen.any():
        fit.add(x[chosen], target[chosen], None if other is None else other[chosen], only_error=only_error)
