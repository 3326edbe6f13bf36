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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx import ops
from perfonnx.corrections import Correction, digest
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import RIDGE, Goal, Neighbours, Residual, Solution
from perfonnx.model.layers import activation_of, numpy_type, only_consumer
from perfonnx.model.proto import TensorType, is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import Activation, ConvAttributes
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.passes.base import Change, Decision, Pass, PassResult, State
from perfonnx.passes.convert import add_table
from perfonnx.passes.regions import Regions
from perfonnx.passes.rules import is_sampled
from perfonnx.plan import NO_REPAIR, PREDICTING
from perfonnx.replay import Replay, ancestors
from perfonnx.sampling import Sampling, interpolate

MEMORY = 1 << 30
"""Bytes of intermediate values that are kept while layers are repaired; the more, the less is computed again."""

WORTH = 0.9
"""A learned interpolation, which keeps a layer off rows, has to bring the squared error down to this share of what the
rest of the repair brings it down to."""

Feeds = Iterable[Mapping[str, NDArray[Any]]]


@dataclass
class Repair(Pass):
    """Corrects the perforated layers whose plan asks for it.

    Attributes:
        batches: Calibration data, which is iterated again and again; None: `corrections` are applied.
        corrections: Found before, by layer name.
        rows: Whether the model is lowered to rows.
        ridge: Strength of regularization, see `perfonnx.fitting`.
        memory: See `MEMORY`.
        progress: Called with the layers done and their number.
    """

    batches: Feeds | None = None
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    rows: bool = True
    ridge: float = RIDGE
    memory: int = MEMORY
    progress: Callable[[int, int], None] | None = None

    def requires(self, workspace: Workspace, state: State) -> None:
        """Refuse a plan with repaired layers when neither data nor corrections are there."""
        for name in self._wanted(state):
            if self.batches is None and name not in self.corrections:
                raise PerfonnxError(
                    f"layer {name!r} is to be repaired, but there is no calibration data; give --data, or a plan saved "
                    "after a repair"
                )

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Fit where there is data, then change the layers."""
        wanted = self._wanted(state)
        if not wanted:
            return PassResult(modified=False)
        fitter = None
        if self.batches is not None:
            layers = {name: state.rewritten[name] for name in wanted}
            fitter = _Fitter(workspace, layers, self.batches, self.ridge, self.memory)
        changes, predictors = [], []
        for number, (name, decision) in enumerate(wanted.items()):
            if self.progress is not None:
                self.progress(number, len(wanted))
            layer = _Layer.of(workspace, name, state.rewritten[name], decision)
            if fitter is None:
                correction = self.corrections[name]
                layer.check(correction)
                what = "repaired as before"
            else:
                correction, what = fitter.fit(layer)
            predictor = layer.apply(correction)
            if predictor is not None:
                predictors.append(predictor)
            state.corrections[name] = correction
            changes.append(Change(name, what))
        if self.rows:
            _join(workspace, state, predictors)
        return PassResult(bool(changes), changes)

    @staticmethod
    def _wanted(state: State) -> dict[str, Decision]:
        return {name: d for name, d in state.decisions.items() if d.plan.repair != NO_REPAIR and not d.joined}


@dataclass(frozen=True)
class _Layer:
    """A layer just made a PerforatedConv: x -> y."""

    workspace: Workspace
    name: str
    node: gs.Node
    kind: str
    sampling: Sampling
    attributes: ConvAttributes
    weight: NDArray[Any]
    bias: NDArray[Any]

    @classmethod
    def of(cls, workspace: Workspace, name: str, node: gs.Node, decision: Decision) -> _Layer:
        assert decision.mask is not None
        assert decision.layer.attributes is not None
        weight, bias = workspace.constant(node.inputs[1]), workspace.constant(node.inputs[2])
        assert weight is not None
        assert bias is not None
        sampling = interpolate(decision.mask, decision.plan.interpolation)
        return cls(workspace, name, node, decision.plan.repair, sampling, decision.layer.attributes, weight, bias)

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

    def apply(self, correction: Correction) -> gs.Node | None:
        """Change the node's constants; with a predictor, return its Conv, whose output is added to the node's."""
        workspace, node = self.workspace, self.node
        weight, bias, predictor = self.corrected(correction)
        node.inputs[2] = workspace.add_constant(f"{node.inputs[1].name}.repaired_bias", bias)
        if correction.learned is not None:
            learned = correction.learned
            assert learned.weight is not None
            tables = [add_table(workspace, "source", learned.source), add_table(workspace, "weight", learned.weight)]
            node.inputs = [*node.inputs[:4], *tables]
            node.attrs["interpolation"] = learned.interpolation
        if predictor is None:
            return None
        name = node.inputs[1].name
        node.inputs[1] = workspace.add_constant(f"{name}.repaired", weight)
        total = node.outputs[0]
        known = workspace.types[total.name]
        at_sites, everywhere = (self._variable(f"{total.name}.{part}", known) for part in ("sampled", "predicted"))
        pointwise = gs.Node(
            "Conv",
            _unique(workspace, f"{self.name}.predictor"),
            {**ConvAttributes((1, 1), self.attributes.strides, group=self.attributes.group).attributes()},
            [node.inputs[0], workspace.add_constant(f"{name}.predictor", predictor)],
            [everywhere],
        )
        node.outputs = [at_sites]
        added = gs.Node("Add", _unique(workspace, f"{self.name}.repaired"), {}, [at_sites, everywhere], [total])
        index = next(i for i, other in enumerate(workspace.graph.nodes) if other is node)
        workspace.graph.nodes[index + 1 : index + 1] = [pointwise, added]
        return pointwise

    def _variable(self, name: str, known: TensorType) -> gs.Variable:
        while name in self.workspace.types or name in self.workspace.graph.tensors():
            name += "_"
        self.workspace.types[name] = known
        return gs.Variable(name)


@dataclass(frozen=True)
class _Question:
    """The tensors from which a layer's correction is found.

    A layer whose result is added to another tensor, as at the end of a residual block, is fitted so that the sum comes
    out right: what went wrong on the way around the layer is corrected too.

    Attributes:
        x: The layer's input.
        y: Its output.
        other: What is added to it, or None.
        total: The sum, or `y`.
        goal: What the total is for.
    """

    x: str
    y: str
    other: str | None
    total: str
    goal: Goal

    @classmethod
    def of(cls, workspace: Workspace, node: gs.Node, unsettled: set[str]) -> _Question:
        """`unsettled` are the outputs of the layers that are not repaired yet, the node's own among them."""
        x, y = node.inputs[0], node.outputs[0]
        goal = _goal(workspace, y)
        follower = only_consumer(workspace, y)
        if follower is not None and is_standard(follower) and follower.op == "Add":
            (other,) = (tensor for tensor in follower.inputs if tensor is not y)
            result = follower.outputs[0]
            same = workspace.types.get(other.name) == workspace.types[y.name] == workspace.types.get(result.name)
            if same and not unsettled & ancestors(workspace.node_protos(), [other.name]):
                return cls(x.name, y.name, other.name, result.name, _goal(workspace, result))
        return cls(x.name, y.name, None, y.name, goal)


def _goal(workspace: Workspace, tensor: gs.Tensor) -> Goal:
    follower = only_consumer(workspace, tensor)
    activation = None if follower is None else activation_of(workspace, follower)
    return Goal() if activation is None else Goal.of(activation)


class Targets:
    """What layers give in the network rewritten so far, and what they should give; asked for front to back.

    Args:
        workspace: The network that is being rewritten.
        layers: The nodes of the layers that will be asked about, in topological order, by layer name.
        batches: Calibration data.
        memory: See `MEMORY`.
    """

    def __init__(self, workspace: Workspace, layers: Mapping[str, gs.Node], batches: Feeds, memory: int) -> None:
        share = memory // 4  # two networks, and while a new set of values is kept, the old one is still read
        model = workspace.model
        original = list(model.proto.graph.node)
        self.original = Replay(model, lambda: original, {}, batches, share)
        self.rewritten = Replay(model, workspace.node_protos, workspace.added, batches, share)
        self.questions: dict[str, _Question] = {}
        unsettled = {node.outputs[0].name for node in layers.values()}
        for name, node in layers.items():
            self.questions[name] = _Question.of(workspace, node, unsettled)
            unsettled.remove(node.outputs[0].name)

    def goal(self, name: str) -> Goal:
        """What a layer's output is for."""
        return self.questions[name].goal

    def values(
        self, name: str, *, settled: bool
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]]:
        """Input and output of a layer in the network rewritten so far, the target, and what is added to the output.

        With `settled` it is the last time that this layer is asked about.
        """
        now = self.questions[name]
        if settled:
            del self.questions[name]
        before = [now.x] if now.other is None else [now.x, now.other]
        later = list(self.questions.values())
        wanted = [name for q in later for name in (q.x, q.y, q.other) if name is not None]
        rewritten = self.rewritten.ask([*before, now.y], settled=before if settled else [], later=wanted)
        original = self.original.ask(
            [now.total], settled=[now.total] if settled else [], later=[q.total for q in later]
        )
        for ours, theirs in zip(rewritten, original, strict=True):
            yield ours[now.x], ours[now.y], theirs[now.total], None if now.other is None else ours[now.other]


class _Fitter:
    """Finds corrections, front to back."""

    def __init__(
        self, workspace: Workspace, layers: Mapping[str, gs.Node], batches: Feeds, ridge: float, memory: int
    ) -> None:
        self.ridge = ridge
        self.targets = Targets(workspace, layers, batches, memory)

    def fit(self, layer: _Layer) -> tuple[Correction, str]:
        """The correction, and a few words on it."""
        wishes, note = layer.kind, ""
        obstacle = layer.obstacle
        if wishes in PREDICTING and obstacle is not None:
            note = f" (no predictor: {obstacle})"
        with_predictor = wishes in PREDICTING and obstacle is None
        learned: Sampling | None = None
        try:
            if wishes in ("interpolation", "full") and not layer.sampling.mask.all():
                learned = self._interpolation(layer)
            samplings = [layer.sampling, *([learned] if learned is not None else [])]
            solutions = self._residuals(layer, samplings, with_predictor=with_predictor)
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {layer.name!r}: {error}") from error
        solution = solutions[0]
        if learned is not None:
            if solutions[1].after <= WORTH * solution.after:
                solution = Solution(solutions[1].bias, solutions[1].predictor, solution.before, solutions[1].after)
            else:
                learned, note = None, f"{note} (learned interpolation: gains too little)"
        correction = self._correction(layer, solution, learned)
        if not layer.is_finite(correction):
            raise PerfonnxError(
                f"layer {layer.name!r}: its correction is too large for the type of its weights; leave it out with "
                "--skip, or use --repair none"
            )
        parts = ["bias", *(["predictor"] if solution.predictor is not None else [])]
        parts += ["learned interpolation"] if learned is not None else []
        what = f"repaired by {', '.join(parts)}{note}: error {solution.before:.2%} -> {solution.after:.2%}"
        return correction, what

    @staticmethod
    def _correction(layer: _Layer, solution: Solution, learned: Sampling | None) -> Correction:
        predictor = solution.predictor
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

    def _interpolation(self, layer: _Layer) -> Sampling:
        neighbours = Neighbours(layer.sampling.mask, self.targets.goal(layer.name))
        for _, result, target, other in self.targets.values(layer.name, settled=False):
            neighbours.add(result, target, other)
        return neighbours.solve(self.ridge)

    def _residuals(self, layer: _Layer, samplings: list[Sampling], *, with_predictor: bool) -> list[Solution]:
        goal = self.targets.goal(layer.name)
        residuals = [Residual(sampling, layer.attributes.group, goal) for sampling in samplings]
        for x, result, target, other in self.targets.values(layer.name, settled=True):
            for residual in residuals:
                residual.add(result, target, other, layer.at_outputs(x) if with_predictor else None)
        return [residual.solve(self.ridge) for residual in residuals]


def _unique(workspace: Workspace, name: str) -> str:
    names = {node.name for node in workspace.graph.nodes}
    while name in names:
        name += "_"
    return name


def _join(workspace: Workspace, state: State, predictors: list[gs.Node]) -> None:
    """Make the predictors of layers that will work on rows sampled layers with every position a site."""
    nodes = list(workspace.graph.nodes)
    on_maps = {id(state.rewritten[name]) for name in state.on_maps}
    sampled = {id(n) for n in nodes if id(n) not in on_maps and is_sampled(workspace, n)}
    regions = Regions(workspace, dict.fromkeys(sampled, 1.0), {id(p) for p in predictors}, kept=state.kept)
    for conv in predictors:
        total = conv.outputs[0].outputs[0].outputs[0]
        mine = next(t for t in conv.outputs[0].outputs[0].inputs if t is not conv.outputs[0]).inputs[0]
        if id(mine) not in sampled:
            continue
        if conv.inputs[0].name not in regions.share and total.name not in regions.wanted:
            continue
        known = workspace.types[conv.outputs[0].name]
        assert known.shape is not None
        channels, height, width = (int(d) for d in known.shape[1:])  # type: ignore[arg-type]
        everywhere = np.ones((height, width), bool)
        new = gs.Node(
            PERFORATED_CONV.name,
            conv.name,
            {**conv.attrs, **Activation().attributes(), "interpolation": "nearest"},
            [
                *conv.inputs[:2],
                add_table(workspace, "zeros", np.zeros(channels, numpy_type(known.elem_type))),
                add_table(workspace, "mask", everywhere),
                add_table(workspace, "source", interpolate(everywhere).source),
            ],
            [],
            domain=ops.DOMAIN,
        )
        output = conv.outputs[0]
        workspace.replace(conv, new)
        new.outputs = [output]
