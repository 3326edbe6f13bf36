"""`rewrite`: from a model to a faster model, with a report of what was done and what was not."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto

from perfonnx import corrections as correction_files
from perfonnx import ops
from perfonnx.corrections import Corrections, TrainedGate
from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import RIDGE
from perfonnx.masks import ImpactMaps, Mask, as_mask, load_impact_maps, load_masks, save_arrays
from perfonnx.methods import Chain, Context, Decision, Method, chained
from perfonnx.model import files
from perfonnx.model.atomic import check_target, digest
from perfonnx.model.files import LoadedModel, ModelSource, has_external_data, model_bytes
from perfonnx.model.layers import (
    Layer,
    activation_bytes,
    all_layers,
    constant_input,
    conv_layers,
    layer_output,
    rewritten_nodes,
)
from perfonnx.model.proto import value_type
from perfonnx.model.shapes import symbolic_input_flag
from perfonnx.model.signature import fix_input_shapes, load_fixed
from perfonnx.model.workspace import Workspace
from perfonnx.multiplies import conv_multiplies, not_counted, other_multiplies
from perfonnx.ops.common import LARGEST_TILE, TILE_SIZES, dense_multiplies, listed_columns
from perfonnx.passes import (
    Absorb,
    Apply,
    Change,
    Finish,
    Fit,
    Fold,
    Lower,
    Means,
    Normalize,
    Options,
    Pass,
    PassManager,
    Rebuild,
    Select,
    Skip,
    State,
    Weigh,
)
from perfonnx.passes.fold import fold, foldable
from perfonnx.passes.means import averaged_sites
from perfonnx.passes.select import decide_on
from perfonnx.plan import FILES, LAYOUTS, MEANS, Plan

LITTLE_TO_GAIN = 0.20
"""Where eligible layers carry a smaller part of the multiplies than this, there is little to gain: skipping three of
four positions in all of them makes a model at most 1 / (1 - 0.75 * 0.20) = 1.18 times faster."""


@dataclass(frozen=True)
class LayerReport:
    """One rewritten layer.

    Attributes:
        name: Layer name.
        plan: What was asked.
        rate: Share of its work that is really left out: of the positions; in radius-adaptive layers, of the calibration
            data's pixels, which skip their ring; of the multiplies where standard layers stand in its place.
        output_shape: (OH, OW).
        multiplies: Per image, before and after.
        notes: What passes did to it.
    """

    name: str
    plan: Method
    rate: float
    output_shape: tuple[int, int]
    multiplies: tuple[int, int]
    notes: tuple[str, ...]


@dataclass
class Report:
    """What a rewrite did. Pairs are (before, after), per image; `activations` in bytes.

    `left_on_maps` says of the nodes that stay on maps, though rows reach them, why they do.
    `not_counted` names the layers whose multiplies are in no total, such as `2 LSTM of unknown shape`; `missing` the
    flags without which layers could not be looked at, each with the number of these layers; `notes` say what else there
    is to say of the model as a whole.
    """

    model: str
    layers: list[LayerReport] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    left_on_maps: list[Skip] = field(default_factory=list)
    multiplies: tuple[int, int] = (0, 0)
    conv_multiplies: tuple[int, int] = (0, 0)
    activations: tuple[int, int] = (0, 0)
    eligible_share: float = 0.0
    not_counted: list[str] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def reduction(self) -> float:
        """Multiplies before over multiplies after, whole model; at most that, where layers are not counted."""
        return self.multiplies[0] / max(self.multiplies[1], 1)

    @property
    def little_to_gain(self) -> str | None:
        """Why this model can hardly become faster this way; None where it can, or where a flag is missing to tell."""
        if self.eligible_share >= LITTLE_TO_GAIN or self.missing:
            return None
        return (
            f"there is little to gain: layers that can be rewritten with profit carry {self.eligible_share:.1%} of the "
            "model's multiplies"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        layers = [
            {
                "name": layer.name,
                "plan": layer.plan.to_json(),
                "rate": layer.rate,
                "output_shape": layer.output_shape,
                "multiplies": layer.multiplies,
                "notes": layer.notes,
            }
            for layer in self.layers
        ]
        data = asdict(replace(self, layers=[]))
        return {**data, "layers": layers, "reduction": self.reduction, "little_to_gain": self.little_to_gain}


@dataclass
class Rewritten:
    """The result of `rewrite`. The model itself comes out in the form that the caller likes.

    Attributes:
        model: The rewritten model.
        report: What was done.
        plan: What makes it again.
        corrections: By layer, where layers were repaired.
        masks: By layer, bool [OH, OW], true where the layer is computed; radius-adaptive layers have none.
        impact_maps: By layer, where masks were made from them.
    """

    model: LoadedModel
    report: Report
    plan: Plan
    corrections: Corrections = field(default_factory=dict)
    masks: dict[str, Mask] = field(default_factory=dict)
    impact_maps: ImpactMaps = field(default_factory=dict)

    @property
    def proto(self) -> ModelProto:
        """The model as a message. Initializers that came as external data are still external."""
        return self.model.proto

    def to_bytes(self) -> bytes:
        """The model serialized.

        Raises:
            PerfonnxError: It has external data, or is over 2 GB: `save` it instead.
        """
        if has_external_data(self.model) or model_bytes(self.model) > files.MAX_MESSAGE:
            raise PerfonnxError(
                f"{self.model.name}: over 2 GB or with external data, so it has no bytes; save it to a path"
            )
        return bytes(self.model.proto.SerializeToString(deterministic=True))

    def to_graph(self) -> gs.Graph:
        """The model as a graphsurgeon graph."""
        return gs.import_onnx(self.model.proto)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, atomically."""
        files.save(self.model, path)

    def save_plan(self, path: str | os.PathLike[str]) -> None:
        """Write the plan and beside it what its layers need, so that it takes nothing else; atomically each.

        The corrections of `plan.json` go into `plan.corrections.npz`, masks that were given into `plan.masks.npz`, and
        maps of impacts into `plan.impact.npz`.
        """
        given = {name: self.masks[name] for name in _with_given_mask(self.plan)}
        writers = {
            "corrections": partial(correction_files.save, self.corrections) if self.corrections else None,
            "masks": partial(save_arrays, arrays=given) if given else None,
            "impact": partial(save_arrays, arrays=self.impact_maps) if self.impact_maps else None,
        }
        saved = replace(self.plan, corrections=None, masks=None, impact=None, digests={})
        for kind, write in writers.items():
            if write is not None:
                file = Path(path).with_suffix(FILES[kind])
                write(path=file)
                setattr(saved, kind, file.name)
                saved.digests[kind] = digest(file.read_bytes())
        saved.save(path)


def rewrite(
    model: ModelSource,
    output: str | os.PathLike[str] | None = None,
    *,
    options: Options | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    fallback: bool = True,
    layout: str | None = None,
    largest_tile: int | None = None,
    freeze_weights: bool = False,
    samples: Iterable[Mapping[str, NDArray[Any]]] | Samples | None = None,
    corrections: Corrections | None = None,
    ridge: float = RIDGE,
    impact_maps: ImpactMaps | str | os.PathLike[str] | None = None,
    masks: Mapping[str, Mask] | None = None,
    gates: Mapping[str, TrainedGate] | None = None,
    progress: Callable[[str], None] | None = None,
    **choices: Any,
) -> Rewritten:
    """Rewrite the convolutions of a model.

    Args:
        model: A path, bytes, a `ModelProto` (left as it is) or an `onnx_graphsurgeon.Graph`.
        output: Where to write the result; None: nowhere.
        options: How to choose layers; its fields may also be given as keywords (`rate=0.5, mask="grid"`).
        plan: A plan, or the path of one, instead of options.
        input_shapes: Sizes for symbolic dimensions, by input name, as [N, C, H, W]; those that a plan was made for
            need not be given again.
        fallback: Give each operator a function body, so that the model also runs without the library.
        layout: "rows" lets neighbouring sampled layers exchange rows; "nchw" keeps every layer on maps. None: what the
            plan says, "rows" without one.
        largest_tile: Kernels use Winograd's algorithm with tiles of at most so many outputs along an edge: 4, 2 (less
            memory: weights grow 1.8 times instead of 4 times), or 0 (none: sums in the order of a direct convolution).
            None: what the plan says, 4 without one.
        freeze_weights: Make initializers that are also graph inputs constant.
        samples: Calibration data for layers that are to be repaired or get a gate: `perfonnx.data.samples.Samples`, or
            feeds, one per batch, that can be iterated again and again. None: the corrections given or saved with the
            plan are applied.
        corrections: With a plan: what an earlier rewrite by it found, in place of what was saved with it; with samples,
            layers that have none are fitted.
        ridge: Strength of regularization in repair.
        impact_maps: What the mask `impact` is made from: maps by layer name, as `perfonnx.impact.impact_maps` gives
            them, or the path of a .npz file with them.
        masks: With a plan: masks by layer name, bool [OH, OW], that take the place of those it would draw.
        gates: With a plan: gates of radius-adaptive layers as training found them, by layer name. The model's weights
            are then those of the trained layers.
        progress: Called with a few words before each step.
        **choices: Fields of `Options`.

    Returns:
        The rewritten model, its report and the plan that makes it again.

    Raises:
        PerfonnxError: Bad input or usage. Nothing has been written then.
    """
    if options is not None and choices:
        raise PerfonnxError(f"give options or keywords, not both ({', '.join(choices)})")
    if plan is not None and (options is not None or choices):
        raise PerfonnxError("a plan says everything; give it alone, without options")
    chosen = options or Options(**choices)
    if plan is not None and not isinstance(plan, Plan):
        plan = Plan.load(plan)
    masks, gates = masks or {}, gates or {}
    if plan is not None:
        plan = _with_trained(plan, masks, gates)
    elif masks or gates:
        raise PerfonnxError("masks and gates need a plan, which says what is done with their layers")
    layout = layout or (plan.layout if plan else LAYOUTS[0])
    if layout not in LAYOUTS:
        raise PerfonnxError(f"unknown layout {layout!r}; choose from {', '.join(LAYOUTS)}")
    if largest_tile is None:
        largest_tile = plan.largest_tile if plan else LARGEST_TILE
    if largest_tile not in TILE_SIZES:
        raise PerfonnxError(f"largest_tile is {largest_tile!r}; choose from {', '.join(map(str, TILE_SIZES))}")
    if plan is not None:
        plan = replace(plan, layout=layout, largest_tile=largest_tile)
    tell = progress or (lambda _: None)

    impact_maps = _impact_maps(plan, impact_maps)

    if output is not None:
        check_target(output)
    tell("reading")
    loaded = _load(model, plan, input_shapes, freeze_weights)
    workspace = Workspace.open(loaded)
    state = State()
    feeds, known = _data_to_fit(plan, samples, corrections)
    seed = plan.seed if plan else chosen.seed
    context = Context(workspace, seed, impact_maps, _all_masks(plan, masks), gates, feeds, known, ridge)
    shapes = _shapes(loaded, [*(plan.input_shapes if plan else ()), *(input_shapes or ())])

    tell("choosing layers")
    rows = layout == "rows"
    PassManager([Normalize(), Select(context, chosen, plan, fallback)]).run(workspace, state)
    report = _before(workspace, state)
    fitting = lambda done, count: tell(f"fitting layer {done + 1} of {count}")  # noqa: E731
    before = plan.own_placement if plan else None
    rebuild = Rebuild(context, fallback, fitting, before.folded if before else ())
    PassManager([rebuild, Weigh(rows, largest_tile, placement=before)]).run(workspace, state)
    report.skips, report.notes = list(state.skips), list(state.notes)
    means = plan.means if plan else MEANS[0]
    notes = {skip.layer: skip.reason for skip in state.skips}
    used = Plan(_used(state), seed, notes, shapes, layout, largest_tile, means)
    placement = replace(state.placement, folded=tuple(state.folded))
    used = used.placed(placement if state.decisions or state.folded else None)

    tell("rewriting")
    passes: list[Pass] = [
        Fold(),
        Apply(),
        *([Means()] if means == MEANS[0] else []),
        Fit(context, rows, progress=fitting),
        Absorb(),
        *([Lower()] if rows else []),
        Finish(used, fallback),
    ]
    changes = PassManager(passes).run(workspace, state)
    _after(workspace, state, changes, report)
    made = {n: d.mask for n, d in state.decisions.items() if d.mask is not None and not d.joined}
    read = [n for n, method in used.layers.items() if any(step.reads_impact for step in method.steps)]
    impact = {name: impact_maps[name] for name in read if name in impact_maps} if impact_maps else {}
    result = Rewritten(loaded, report, used, state.corrections, made, impact)
    if output is not None:
        tell("writing")
        result.save(output)
    return result


@dataclass(frozen=True)
class Choice:
    """What `rewrite` would do with one layer.

    Attributes:
        plan: What becomes of it.
        mask: Its mask, bool [OH, OW]; None where its method has none.
        folds_normalization: Whether a BatchNormalization behind it would be folded into it.
    """

    plan: Method
    mask: Mask | None
    folds_normalization: bool


class Decided(NamedTuple):
    """What `rewrite` would do.

    Attributes:
        choices: By layer name.
        skips: The layers that the plan wants to change but that cannot be, with the reasons.
        averaged: The flat positions, int64 [P], that averages over whole maps take, by the names of their results;
            those that take all are left out.
    """

    choices: dict[str, Choice]
    skips: list[Skip]
    averaged: dict[str, NDArray[np.int64]]


def decide(
    model: ModelSource,
    plan: Plan | str | os.PathLike[str],
    *,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    impact_maps: ImpactMaps | str | os.PathLike[str] | None = None,
    masks: Mapping[str, Mask] | None = None,
) -> Decided:
    """What `rewrite` would do with the layers of a plan; for training, which needs the same masks.

    Args:
        model: As for `rewrite`; it is not changed.
        plan: The plan, or its path.
        input_shapes: As for `rewrite`.
        impact_maps: As for `rewrite`.
        masks: As for `rewrite`.

    Raises:
        PerfonnxError: Bad input or usage.
    """
    masks = masks or {}
    plan = _with_trained(plan if isinstance(plan, Plan) else Plan.load(plan), masks, {})
    impact_maps = _impact_maps(plan, impact_maps)
    workspace = Workspace.open(_load(model, plan, input_shapes))
    state = State()
    context = Context(workspace, plan.seed, impact_maps, _all_masks(plan, masks))
    PassManager([Normalize(), Select(context, plan=plan)]).run(workspace, state)
    choices = {}
    for name, decision in state.decisions.items():
        choices[name] = Choice(decision.step, decision.mask, _normalized(workspace, decision.layer))
    for name, rebuilt in state.rebuilt.items():
        choices[name] = Choice(chained(rebuilt.steps), None, _normalized(workspace, rebuilt.layer))
    wanted = {name for name, method in plan.layers.items() if method.steps}
    skips = [skip for skip in state.skips if skip.layer in wanted]
    skips += [Skip(name, "it is trained from its own weights") for name in state.keeping]
    averaged: dict[str, NDArray[np.int64]] = {}
    if plan.means == MEANS[0] and any(d.step.reads_sites for d in state.decisions.values()):
        PassManager([Fold(), Apply()]).run(workspace, state)
        averaged = {node.outputs[0].name: sites for node, sites in averaged_sites(workspace, state)}
    return Decided(choices, skips, averaged)


def _normalized(workspace: Workspace, layer: Layer) -> bool:
    behind = foldable(workspace, layer.node, layer.w_shape[0]) if layer.is_conv else []
    return any(node.op == "BatchNormalization" for node in behind)


def folded(
    model: ModelSource,
    layers: Collection[str],
    *,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
) -> ModelProto:
    """The model with what `rewrite` would fold into convolutions folded into them, and otherwise as it was.

    Args:
        model: As for `rewrite`; it is not changed.
        layers: The convolutions; they keep their names. Others of these names are left alone.
        input_shapes: As for `rewrite`.
    """
    workspace = opened(_load(model, None, input_shapes))
    named = {}
    for layer in conv_layers(workspace):
        if layer.name in layers and not layer.obstacle:
            fold(workspace, layer)
            named[layer.output.name] = layer.name
    workspace.commit()
    for node in workspace.proto.graph.node:  # a layer without a name of its own goes by its output's, which is new
        if node.output[0] in named:
            node.name = named[node.output[0]]
    return workspace.proto


def opened(model: LoadedModel) -> Workspace:
    """A model as `rewrite` sees it before anything is decided."""
    workspace = Workspace.open(model)
    PassManager([Normalize()]).run(workspace, State())
    return workspace


def able(context: Context, names: Collection[str], method: Method) -> list[Layer]:
    """Those of the layers of these names that a method can replace, without doing it."""
    layers = [layer for layer in all_layers(context.workspace) if layer.name in names and not layer.obstacle]
    return [layer for layer in layers if decide_on(context, State(), layer, method.steps, fallback=False) is None]


def _used(state: State) -> dict[str, Method]:
    """What happens to all layers that are rewritten, in the order of the graph."""
    made = {id(node) for rebuilt in state.rebuilt.values() for node in rebuilt.nodes}
    sampled = {n: d.step for n, d in state.decisions.items() if not d.joined and id(d.layer.node) not in made}
    kept = {name: keeping.step for name, keeping in state.keeping.items()}
    return {**sampled, **kept, **{name: chained(rebuilt.steps) for name, rebuilt in state.rebuilt.items()}}


def _with_trained(plan: Plan, masks: Mapping[str, Mask], gates: Mapping[str, TrainedGate]) -> Plan:
    """The plan, saying of the layers that have them that mask or gate were found elsewhere."""
    layers = dict(plan.layers)
    for name in masks:
        masked = layers.get(name, Chain()).given_mask()
        if masked is None:
            raise PerfonnxError(
                f"there is a mask for {name!r}, but the plan has no perforated or sparse layer {name!r}"
            )
        layers[name] = masked
    for name, gate in gates.items():
        gated = layers.get(name, Chain()).given_gate(gate)
        if gated is None:
            raise PerfonnxError(f"there is a gate for {name!r}, but the plan has no radius-adaptive layer {name!r}")
        layers[name] = gated
    return replace(plan, layers=layers)


def _with_given_mask(plan: Plan) -> list[str]:
    """The layers whose mask nothing can draw again."""
    return [name for name, method in plan.layers.items() if method == method.given_mask()]


def _impact_maps(plan: Plan | None, given: ImpactMaps | str | os.PathLike[str] | None) -> ImpactMaps | None:
    """Those that are given, or those of the plan's file, if a layer needs them."""
    if given is None and plan is not None and plan.impact is not None and any(s.reads_impact for s in plan.steps()):
        given = plan.file("impact")
    return given if given is None or isinstance(given, Mapping) else load_impact_maps(given)


def _all_masks(plan: Plan | None, masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """Those of the plan's file, if a layer needs one of them, and those given now."""
    checked = {name: as_mask(mask, f"mask of layer {name!r}") for name, mask in masks.items()}
    if plan is None or plan.masks is None:
        return checked
    needed = any(name not in masks for name in _with_given_mask(plan))
    return {**load_masks(plan.file("masks")), **checked} if needed else checked


def _load(
    model: ModelSource,
    plan: Plan | None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None,
    freeze_weights: bool = False,
) -> LoadedModel:
    """The model with the sizes that are given or planned."""
    loaded = load_fixed(model, None, freeze=freeze_weights)
    fix_input_shapes(loaded, {**(_planned_shapes(loaded, plan) if plan else {}), **(input_shapes or {})})
    if plan:
        _check_shapes(loaded, plan)
    return loaded


def _shapes(loaded: LoadedModel, names: Iterable[str]) -> dict[str, tuple[int | str | None, ...]]:
    """The declared shapes of inputs, as far as they are there and have a rank."""
    known = {info.name: value_type(info) for info in loaded.proto.graph.input}
    found = ((name, known.get(name)) for name in dict.fromkeys(names))
    return {name: value.shape for name, value in found if value is not None and value.shape is not None}


def _planned_shapes(loaded: LoadedModel, plan: Plan) -> dict[str, tuple[int | str | None, ...]]:
    """The plan's sizes for the dimensions that the model leaves open."""
    planned = {}
    for name, shape in _shapes(loaded, plan.input_shapes).items():
        wanted = plan.input_shapes[name]
        if len(wanted) == len(shape):
            planned[name] = tuple(None if isinstance(d, int) else w for d, w in zip(shape, wanted, strict=True))
    return planned


def _check_shapes(loaded: LoadedModel, plan: Plan) -> None:
    """A plan's masks are for one size; the batch size does not matter to them."""
    shapes = _shapes(loaded, plan.input_shapes)
    for name, wanted in plan.input_shapes.items():
        shape = shapes.get(name)
        if shape is None:
            raise PerfonnxError(f"the plan was made for an input {name!r}, which {loaded.name} does not have")
        differs = any(isinstance(w, int) and w != d for w, d in zip(wanted[1:], shape[1:], strict=False))
        if differs or len(wanted) != len(shape):
            ours, theirs = (",".join(str(d) for d in s) for s in (shape, wanted))
            raise PerfonnxError(
                f"the plan was made for input {name}:{theirs}, but here it is {name}:{ours}; give that --input-shape, "
                "or take input_shapes out of the plan if its masks fit other sizes"
            )


def _data_to_fit(
    plan: Plan | None,
    samples: Iterable[Mapping[str, NDArray[Any]]] | Samples | None,
    corrections: Corrections | None,
) -> tuple[Iterable[Mapping[str, NDArray[Any]]] | None, Corrections]:
    """Feeds to fit layers with, and what a plan names of before: where there are no feeds, or training found it."""
    feeds = samples.feeds() if isinstance(samples, Samples) else samples
    if corrections is not None:
        return feeds, corrections
    if plan is None or plan.corrections is None:
        return feeds, {}
    if feeds is None:
        return None, correction_files.load(plan.file("corrections"))
    trained = {name for name, method in plan.layers.items() if any(step.is_trained for step in method.steps)}
    found = correction_files.load(plan.file("corrections")) if trained else {}
    return feeds, {name: correction for name, correction in found.items() if name in trained}


def _before(workspace: Workspace, state: State) -> Report:
    layers = conv_layers(workspace)
    convs = sum(m or 0 for m in conv_multiplies(workspace, layers)) + _rewritten_multiplies(workspace)
    total = convs + other_multiplies(workspace)
    eligible = sum(s.multiplies or 0 for s in layers if not s.obstacle and not s.reservation)
    return Report(
        workspace.model.name,
        skips=list(state.skips),
        multiplies=(total, total),
        conv_multiplies=(convs, convs),
        activations=(activation_bytes(workspace),) * 2,
        eligible_share=eligible / max(total, 1),
        not_counted=not_counted(workspace),
        missing=missing_flags(workspace, layers),
        notes=list(state.notes),
    )


def missing_flags(workspace: Workspace, layers: Sequence[Layer]) -> dict[str, int]:
    """The flags that would let convolutions be looked at, each with the number of these."""
    overridable = workspace.overridable()
    frozen = unsized = 0
    for layer in layers:
        fed = {workspace.behind_identities(tensor).name for tensor in layer.node.inputs[1:]}
        frozen += bool(fed & overridable)
        unsized += layer.obstacle is not None and layer.output_shape is None and len(layer.w_shape) in (0, 4)
    shape = symbolic_input_flag(workspace)
    found = {"--freeze-weights": frozen, **({} if shape is None else {shape: unsized})}
    return {flag: number for flag, number in found.items() if number}


def _after(workspace: Workspace, state: State, changes: list[Change], report: Report) -> None:
    saved = {name: _saved(workspace, state, decision) for name, decision in state.decisions.items()}
    owners = {id(node): name for name, rebuilt in state.rebuilt.items() for node in rebuilt.nodes}
    within: dict[str, int] = {}  # what is saved in the layers that stand in the place of another
    for name, decision in state.decisions.items():
        owner = owners.get(id(decision.layer.node))
        if owner is not None:
            within[owner] = within.get(owner, 0) + saved[name]
        elif not decision.joined:
            layer, step = decision.layer, decision.step
            rate = step.skipped(decision.mask, state.corrections.get(name))
            report.layers.append(_layer_report(layer, step, rate, saved[name], _notes(changes, name)))
    for name, keeping in state.keeping.items():
        report.layers.append(_layer_report(keeping.layer, keeping.step, 0.0, 0, _notes(changes, name)))
    for name, rebuilt in state.rebuilt.items():
        saved[name] = rebuilt.saved
        layer, less = rebuilt.layer, rebuilt.saved + within.get(name, 0)
        rate = less / max(layer.multiplies or 0, 1)
        report.layers.append(_layer_report(layer, chained(rebuilt.steps), rate, less, tuple(rebuilt.notes)))
    total = sum(saved.values()) + state.saved_behind
    report.multiplies = (report.multiplies[0], report.multiplies[0] - total)
    report.conv_multiplies = (report.conv_multiplies[0], report.conv_multiplies[0] - total)
    report.left_on_maps = list(state.left_on_maps)
    report.activations = (report.activations[0], activation_bytes(workspace))


def _saved(workspace: Workspace, state: State, decision: Decision) -> int:
    """The multiplies that are saved in a sampled layer."""
    name, layer, before = decision.layer.name, decision.layer, decision.layer.multiplies or 0
    if decision.joined:  # computed once for positions that read the same row
        positions = positions_computed(workspace, state.rewritten[name])
        assert positions is not None
        return before - dense_multiplies(layer.w_shape, positions)
    after = decision.step.multiplies(layer, decision.mask, state.corrections.get(name))
    weight = workspace.constant(state.rewritten[name].inputs[1])
    if weight is not None and layer.attributes is not None and not decision.step.is_corrected:
        after = round(after * listed_columns(weight, layer.attributes.group))
    return before - after


def _layer_report(layer: Layer, plan: Method, rate: float, saved: int, notes: tuple[str, ...]) -> LayerReport:
    before = layer.multiplies or 0
    return LayerReport(layer.name, plan, rate, layer.output_shape or (1, 1), (before, before - saved), notes)


def _notes(changes: Sequence[Change], name: str) -> tuple[str, ...]:
    return tuple(change.what for change in changes if change.layer == name)


def _rewritten_multiplies(workspace: Workspace) -> int:
    """Multiplies of layers rewritten by an earlier run."""
    return sum(multiplies_of_rewritten(workspace, node) or 0 for node in rewritten_nodes(workspace))


def multiplies_of_rewritten(workspace: Workspace, node: gs.Node) -> int | None:
    """Of one of our layers, per image, without columns of its weights that are left out; None where unknown."""
    w, positions = workspace.constant(node.inputs[1]), positions_computed(workspace, node)
    group = node.attrs.get("group", 1)  # the model may say anything
    if w is None or positions is None or w.ndim != 4 or not isinstance(group, int) or group < 1:
        return None
    if not w.size or len(w) % group:
        return None
    return round(dense_multiplies(w.shape, positions) * listed_columns(w, group))


def positions_computed(workspace: Workspace, node: gs.Node) -> int | None:
    """How many output positions one of our layers computes per image; None where unknown."""
    count = ops.OPERATORS[node.op].positions
    assert count is not None
    return count(lambda name: constant_input(workspace, node, name), layer_output(workspace, node))
