"""`rewrite`: from a model to a faster model, with a report of what was done and what was not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto

from perfonnx import corrections as correction_files
from perfonnx import ops
from perfonnx.corrections import Correction, Corrections, TrainedGate
from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import RIDGE
from perfonnx.masks import ImpactMaps, Mask, as_mask, load_impact_maps, load_masks, save_arrays
from perfonnx.model import files
from perfonnx.model.atomic import check_target, digest
from perfonnx.model.files import LoadedModel, ModelSource, has_external_data, model_bytes
from perfonnx.model.layers import Layer, activation_bytes, constant_input, conv_layers, layer_output, rewritten_nodes
from perfonnx.model.proto import value_type
from perfonnx.model.shapes import symbolic_input_flag
from perfonnx.model.signature import fix_input_shapes, load_fixed
from perfonnx.model.workspace import Workspace
from perfonnx.multiplies import conv_multiplies, not_counted, other_multiplies
from perfonnx.ops.common import dense_multiplies
from perfonnx.passes import (
    Absorb,
    Change,
    Decision,
    Finish,
    FitGates,
    Fold,
    Lower,
    Normalize,
    Options,
    Pass,
    PassManager,
    Perforate,
    RadiusAdaptive,
    Repair,
    Select,
    Skip,
    Sparsify,
    State,
    TrainedGates,
    Weigh,
)
from perfonnx.passes.fold import foldable
from perfonnx.plan import DENSE, GIVEN, LAYOUTS, ZERO, LayerPlan, Plan
from perfonnx.sampling import Sampling, interpolate

LITTLE_TO_GAIN = 0.20
"""Where eligible layers carry a smaller part of the multiplies than this, there is little to gain: skipping three of
four positions in all of them makes a model at most 1 / (1 - 0.75 * 0.20) = 1.18 times faster."""


@dataclass(frozen=True)
class LayerReport:
    """One rewritten layer.

    Attributes:
        name: Layer name.
        plan: What was asked.
        rate: Fraction of positions really skipped; for radius-adaptive layers, of the calibration data's pixels that
            skip their ring.
        output_shape: (OH, OW).
        multiplies: Per image, before and after.
        notes: What passes did to it.
    """

    name: str
    plan: LayerPlan
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
        return {**asdict(self), "reduction": self.reduction, "little_to_gain": self.little_to_gain}


@dataclass
class Rewritten:
    """The result of `rewrite`. The model itself comes out in the form that the caller likes.

    Attributes:
        model: The rewritten model.
        report: What was done.
        plan: What makes it again.
        corrections: By layer, where layers were repaired.
        masks: By layer, bool [OH, OW], true where the layer is computed; radius-adaptive layers have none.
    """

    model: LoadedModel
    report: Report
    plan: Plan
    corrections: Corrections = field(default_factory=dict)
    masks: dict[str, Mask] = field(default_factory=dict)

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
        """Write the plan and beside it, where layers have them, corrections and masks that were given; atomically each.

        The corrections of `plan.json` go into `plan.corrections.npz`, the masks into `plan.masks.npz`.
        """
        saved = replace(self.plan, corrections=None, masks=None, digests={})
        if self.corrections:
            file = Path(path).with_suffix(".corrections.npz")
            correction_files.save(self.corrections, file)
            saved.corrections, saved.digests["corrections"] = file.name, digest(file.read_bytes())
        given = {name: mask for name, mask in self.masks.items() if self.plan.layers[name].mask == GIVEN}
        if given:
            file = Path(path).with_suffix(".masks.npz")
            save_arrays(file, given)
            saved.masks, saved.digests["masks"] = file.name, digest(file.read_bytes())
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
        freeze_weights: Make initializers that are also graph inputs constant.
        samples: Calibration data for layers that are to be repaired or get a gate: `perfonnx.data.samples.Samples`, or
            feeds, one per batch, that can be iterated again and again. None: the corrections given or saved with the
            plan are applied.
        corrections: With a plan: what an earlier rewrite by it found, in place of what was saved with it.
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
    try:
        chosen = options or Options(**choices)
    except TypeError as error:
        raise PerfonnxError(f"unknown option: {error}") from error
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
    tell = progress or (lambda _: None)

    if impact_maps is not None and not isinstance(impact_maps, Mapping):
        impact_maps = load_impact_maps(impact_maps)

    if output is not None:
        check_target(output)
    tell("reading")
    loaded = _load(model, plan, input_shapes, freeze_weights)
    workspace = Workspace.open(loaded)
    state = State()
    feeds, known = _repair_sources(plan, samples, corrections)
    used = Plan(
        seed=plan.seed if plan else chosen.seed,
        layout=layout,
        input_shapes=_shapes(loaded, [*(plan.input_shapes if plan else ()), *(input_shapes or ())]),
    )

    tell("choosing layers")
    rows = layout == "rows"
    select = Select(chosen, plan, fallback, impact_maps, _all_masks(plan, masks))
    PassManager([Normalize(), select, Weigh(rows)]).run(workspace, state)
    report = _before(workspace, state)
    used.layers = {name: decision.plan for name, decision in state.decisions.items() if not decision.joined}
    used.notes = {skip.layer: skip.reason for skip in state.skips}

    tell("rewriting")
    steps: list[Pass] = [
        Fold(),
        Perforate(),
        Sparsify(),
        RadiusAdaptive(),
        TrainedGates(gates, known),
        Repair(feeds, known, rows, ridge, progress=lambda done, count: tell(f"repairing layer {done + 1} of {count}")),
        FitGates(feeds, known, ridge, progress=lambda done, count: tell(f"gate {done + 1} of {count}")),
        Absorb(),
        *([Lower()] if rows else []),
        Finish(used, fallback),
    ]
    changes = PassManager(steps).run(workspace, state)
    _after(workspace, state, changes, report)
    made = {n: d.mask for n, d in state.decisions.items() if d.mask is not None and not d.joined}
    result = Rewritten(loaded, report, used, state.corrections, made)
    if output is not None:
        tell("writing")
        result.save(output)
    return result


@dataclass(frozen=True)
class Choice:
    """What `rewrite` would do with one layer.

    Attributes:
        plan: What it becomes.
        sampling: Its mask with its interpolation; None for radius-adaptive layers.
        folds_normalization: Whether a BatchNormalization behind it would be folded into it.
    """

    plan: LayerPlan
    sampling: Sampling | None
    folds_normalization: bool


def decide(
    model: ModelSource,
    plan: Plan | str | os.PathLike[str],
    *,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    impact_maps: ImpactMaps | str | os.PathLike[str] | None = None,
    masks: Mapping[str, Mask] | None = None,
) -> tuple[dict[str, Choice], list[Skip]]:
    """What `rewrite` would do with the layers of a plan; for training, which needs the same masks.

    Args:
        model: As for `rewrite`; it is not changed.
        plan: The plan, or its path.
        input_shapes: As for `rewrite`.
        impact_maps: As for `rewrite`.
        masks: As for `rewrite`.

    Returns:
        The choices by layer name, and the layers that the plan wants to change but that cannot be, with the reasons.

    Raises:
        PerfonnxError: Bad input or usage.
    """
    masks = masks or {}
    plan = _with_trained(plan if isinstance(plan, Plan) else Plan.load(plan), masks, {})
    if impact_maps is not None and not isinstance(impact_maps, Mapping):
        impact_maps = load_impact_maps(impact_maps)
    workspace = Workspace.open(_load(model, plan, input_shapes))
    state = State()
    select = Select(plan=plan, impact_maps=impact_maps, masks=_all_masks(plan, masks))
    PassManager([Normalize(), select]).run(workspace, state)
    choices = {}
    for name, decision in state.decisions.items():
        kind = ZERO if decision.plan.method == "sparse" else decision.plan.interpolation
        behind = foldable(workspace, decision.layer.node, decision.layer.w_shape[0])
        choices[name] = Choice(
            decision.plan,
            None if decision.mask is None else interpolate(decision.mask, kind),
            any(node.op == "BatchNormalization" for node in behind),
        )
    wanted = {name for name, layer in plan.layers.items() if layer.method != DENSE}
    return choices, [skip for skip in state.skips if skip.layer in wanted]


def _with_trained(plan: Plan, masks: Mapping[str, Mask], gates: Mapping[str, TrainedGate]) -> Plan:
    """The plan, saying of the layers that have them that mask or gate were found elsewhere."""
    layers = dict(plan.layers)
    for name in masks:
        if name not in layers or layers[name].method not in ("perforate", "sparse"):
            raise PerfonnxError(
                f"there is a mask for {name!r}, but the plan has no perforated or sparse layer {name!r}"
            )
        layers[name] = replace(layers[name], mask=GIVEN)
    for name, gate in gates.items():
        if name not in layers or layers[name].method != "radius-adaptive":
            raise PerfonnxError(f"there is a gate for {name!r}, but the plan has no radius-adaptive layer {name!r}")
        layers[name] = replace(layers[name], trained_gate=True, open_share=gate.open_share)
    return replace(plan, layers=layers)


def _all_masks(plan: Plan | None, masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """Those of the plan's file, if a layer needs one of them, and those given now."""
    checked = {name: as_mask(mask, f"mask of layer {name!r}") for name, mask in masks.items()}
    if plan is None or plan.masks is None:
        return checked
    needed = any(layer.mask == GIVEN and name not in masks for name, layer in plan.layers.items())
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


def _repair_sources(
    plan: Plan | None,
    samples: Iterable[Mapping[str, NDArray[Any]]] | Samples | None,
    corrections: Corrections | None,
) -> tuple[Iterable[Mapping[str, NDArray[Any]]] | None, Corrections]:
    """Feeds to repair with, and the corrections that a plan names, where there are no feeds or training found them."""
    feeds = samples.feeds() if isinstance(samples, Samples) else samples
    if corrections is not None:
        return feeds, corrections
    if plan is None or plan.corrections is None:
        return feeds, {}
    trained = any(layer.trained_gate for layer in plan.layers.values())
    return feeds, correction_files.load(plan.file("corrections")) if feeds is None or trained else {}


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
    saved = 0
    for name, decision in state.decisions.items():
        before = decision.layer.multiplies or 0
        if decision.joined:  # computed once for positions that read the same row
            positions = positions_computed(workspace, state.rewritten[name])
            assert positions is not None
            saved += before - dense_multiplies(decision.layer.w_shape, positions)
            continue
        correction = state.corrections.get(name)
        after = _layer_multiplies(decision, correction)
        saved += before - after
        rate = 0.0 if decision.mask is None else float(1 - decision.mask.mean())
        if correction is not None and correction.gate is not None:
            rate = 1 - correction.gate.share
        notes = tuple(change.what for change in changes if change.layer == name)
        assert decision.layer.output_shape is not None
        report.layers.append(
            LayerReport(name, decision.plan, rate, decision.layer.output_shape, (before, after), notes)
        )
    report.multiplies = (report.multiplies[0], report.multiplies[0] - saved)
    report.conv_multiplies = (report.conv_multiplies[0], report.conv_multiplies[0] - saved)
    report.left_on_maps = list(state.left_on_maps)
    report.activations = (report.activations[0], activation_bytes(workspace))


def _layer_multiplies(decision: Decision, correction: Correction | None) -> int:
    layer = decision.layer
    assert layer.output_shape is not None
    assert layer.attributes is not None
    if decision.mask is not None:
        predictor = 0 if correction is None or correction.predictor is None else correction.predictor.size
        return dense_multiplies(layer.w_shape, int(decision.mask.sum())) + predictor * decision.mask.size
    gate = layer.output_shape[0] * layer.output_shape[1] * layer.w_shape[1] * layer.attributes.group
    share = 1.0 if correction is None or correction.gate is None else correction.gate.share
    dense = layer.multiplies or 0
    return dense // 9 + round(dense * 8 / 9 * share) + gate  # centre, ring, gate


def _rewritten_multiplies(workspace: Workspace) -> int:
    """Multiplies of layers rewritten by an earlier run."""
    total = 0
    for node in rewritten_nodes(workspace):
        w, positions = workspace.types.get(node.inputs[1].name), positions_computed(workspace, node)
        if w is not None and w.shape and positions is not None:
            total += dense_multiplies([d for d in w.shape if isinstance(d, int)], positions)
    return total


def positions_computed(workspace: Workspace, node: gs.Node) -> int | None:
    """How many output positions one of our layers computes per image; None where unknown."""
    count = ops.OPERATORS[node.op].positions
    assert count is not None
    return count(lambda name: constant_input(workspace, node, name), layer_output(workspace, node))
