"""Apply: the operator of a layer's method stands for the layer; then what was fitted or trained changes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx import ops
from perfonnx.methods import Context, Decision, KeepingMethod, Needs, SampledMethod, Spot
from perfonnx.methods.masked import sampling_operands
from perfonnx.model.layers import CONV, constant_input, numpy_type
from perfonnx.model.proto import TensorType
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import Activation, ConvAttributes
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.passes.base import Change, Pass, State
from perfonnx.passes.regions import Regions
from perfonnx.passes.rules import is_sampled
from perfonnx.passes.targets import NetworkTargets, with_mirrored
from perfonnx.sampling import interpolate


class Apply(Pass):
    """Puts the operator of each layer's method in the layer's place."""

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Replace the layers that were decided on."""
        changes = []
        for name, decision in state.decisions.items():
            inputs, attributes, what = decision.step.operands(workspace, decision)
            layer = decision.layer
            assert layer.attributes is not None
            shared = {**layer.attributes.attributes(), **Activation().attributes()}
            new = gs.Node(decision.step.OPERATOR, name, {**shared, **attributes}, domain=ops.DOMAIN)
            _take_place(workspace, new, decision, inputs)
            state.rewritten[name] = new
            changes.append(Change(name, what))
        return changes


def _take_place(workspace: Workspace, new: gs.Node, decision: Decision, inputs: list[gs.Constant]) -> None:
    layer = decision.layer
    old = layer.node
    assert layer.output_shape is not None
    bias = old.inputs[2] if len(old.inputs) > 2 and old.inputs[2].name else None
    if bias is None:
        bias = workspace.add_table("zeros", np.zeros(layer.w_shape[0], numpy_type(layer.elem_type)))
    new.inputs = [old.inputs[0], old.inputs[1], bias, *inputs]
    output = old.outputs[0]
    workspace.inherit(new, old)
    workspace.replace(old, new)
    new.outputs = [output]
    batch = layer.input_shape[0] if layer.input_shape else None
    workspace.types[output.name] = TensorType(layer.elem_type, (batch, layer.w_shape[0], *layer.output_shape))


@dataclass
class Fit(Pass):
    """Changes the constants of layers by what was trained, and by what is fitted on calibration data, front to back.

    Attributes:
        context: What there is to fit with, and what was found before.
        rows: Whether the model is lowered to rows.
        progress: Called with the layers done and their number.
    """

    context: Context
    rows: bool = True
    progress: Callable[[int, int], None] | None = None

    def requires(self, workspace: Workspace, state: State) -> None:
        """Refuse a plan whose layers want what is not there."""
        for name, decision in state.decisions.items():
            decision.step.check_data(name, self.context)
        for name, keeping in state.keeping.items():
            keeping.step.check_data(name, self.context)

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Fit where there is data, then change the layers."""
        steps: dict[str, SampledMethod | KeepingMethod] = {}
        spots: dict[str, Spot] = {}
        for name, d in state.decisions.items():
            if d.step.is_corrected:
                steps[name] = d.step
                spots[name] = Spot(self.context, name, state.rewritten[name], d.layer, d.mask, d.folded)
        for name, keeping in state.keeping.items():
            steps[name], spots[name] = keeping.step, Spot(self.context, name, keeping.layer.node, keeping.layer)
        known = self.context.corrections
        places = {id(node): place for place, node in enumerate(workspace.graph.nodes)}
        in_order = sorted(steps, key=lambda name: places[id(spots[name].node)])
        fitted = [name for name in in_order if steps[name].needs is Needs.TARGETS and name not in known]
        targets = None
        if fitted and self.context.feeds is not None:
            nodes, feeds = {name: spots[name].node for name in fitted}, self.context.feeds
            if any(steps[name].mirrors for name in fitted):
                feeds = with_mirrored(workspace, feeds)
            targets = NetworkTargets(workspace, nodes, feeds)
        changes: list[Change] = []
        beside: list[gs.Node] = []
        order = [*(name for name in in_order if name not in fitted), *fitted]  # what is known, before what is run
        for number, name in enumerate(order):
            if self.progress is not None:
                self.progress(number, len(order))
            spot = replace(spots[name], targets=targets) if name in fitted else spots[name]
            result = steps[name].corrected(spot)
            if result.correction is not None:
                state.corrections[name] = result.correction
            beside += result.nodes
            changes.append(Change(name, result.note))
            node = state.rewritten.get(name) if name in state.placement.dense else None
            mask = None if node is None else constant_input(workspace, node, "mask")
            if node is not None and mask is not None and mask.all():
                state.rewritten[name] = _as_conv(workspace, node)
                changes.append(Change(name, "a Conv, which costs less by estimate"))
        if self.rows:
            _join(workspace, state, beside)
        return changes


def _as_conv(workspace: Workspace, node: gs.Node) -> gs.Node:
    """A `Conv` in the place of a layer of ours that computes every position, and has no activation yet."""
    geometry = {name: node.attrs[name] for name in ConvAttributes((1, 1)).attributes()}
    new = gs.Node(CONV, node.name, geometry, list(node.inputs[:3]))
    output = node.outputs[0]
    workspace.inherit(new, node)
    workspace.replace(node, new)
    new.outputs = [output]
    return new


def _join(workspace: Workspace, state: State, predictors: list[gs.Node]) -> None:
    """Make 1x1 layers that stand beside layers on rows, and are added to them, sampled: every position is a site."""
    nodes = list(workspace.graph.nodes)
    on_maps = {id(node) for name, node in state.rewritten.items() if name in state.placement.on_maps}
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
        bias = workspace.add_table("zeros", np.zeros(channels, numpy_type(known.elem_type)))
        tables, attributes = sampling_operands(workspace, interpolate(np.ones((height, width), bool)))
        new = gs.Node(
            PERFORATED_CONV.name,
            conv.name,
            {**conv.attrs, **Activation().attributes(), **attributes},
            [*conv.inputs[:2], bias, *tables],
            [],
            domain=ops.DOMAIN,
        )
        output = conv.outputs[0]
        workspace.replace(conv, new)
        new.outputs = [output]
