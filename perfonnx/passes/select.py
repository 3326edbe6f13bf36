"""Select: one decision per layer, from a plan or from options, each with its mask or the reason against it."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np

from perfonnx.errors import PerfonnxError
from perfonnx.masks import (
    ANY_LAYER,
    ImpactMaps,
    Mask,
    MaskRequest,
    load_masks,
    make_mask,
    mask_from_file,
    propagated_scores,
)
from perfonnx.model.layers import (
    Layer,
    conv_layers,
    dense_multiplies_of,
    following_pool,
    rewritten_nodes,
    table_obstacle,
    unreachable_convs,
)
from perfonnx.model.shapes import symbolic_input_flag
from perfonnx.model.workspace import Workspace
from perfonnx.multiplies import conv_multiplies, other_multiplies
from perfonnx.passes.base import Decision, Pass, PassResult, Skip, State
from perfonnx.plan import DENSE, GIVEN, NO_REPAIR, PREDICTING, ZERO, LayerPlan, Plan, is_mask_file, is_own_mask

CAREFUL_RATE = 0.25
"""Where nobody says a rate."""

GAINING = 1.05
"""Where nobody asked, a layer is rewritten only if that is estimated to make it so many times faster."""

NOT_SLOWER = 0.97
"""Where a rate was given, a layer is rewritten unless that is estimated to make it slower than this."""

MIN_SHARE = 0.01
"""Layers that carry, with all that are smaller, less of the model's multiplies are left alone unless they are named."""


def negligible(layers: Iterable[int], total: int) -> int:
    """The multiplies of the largest layer that is left alone for its smallness; -1 where none is.

    Where many small layers make up a network none of them is.

    Args:
        layers: Multiplies of the layers that can be rewritten.
        total: Multiplies of the whole model.
    """
    found, sum_so_far = -1, 0
    for size, alike in sorted(Counter(layers).items()):
        sum_so_far += size * alike
        if sum_so_far >= MIN_SHARE * total:
            break
        found = size
    return found


@dataclass(frozen=True)
class Options:
    """What is to be rewritten, and how, where no plan says it.

    Attributes:
        method: One of `perfonnx.plan.METHODS`.
        rate: Fraction of positions to skip; None: `CAREFUL_RATE`, and layers that would hardly gain are left alone.
        mask: Mask name or file; None: pooling-structure where a pool follows, else grid; for sparse layers propagated.
        interpolation: How perforated layers fill skipped positions.
        center_gain: Form of the radius-adaptive sum.
        only: Regular expressions; a layer whose name none of them finds is left alone. Layers found are rewritten even
            where little is gained.
        skip: Regular expressions; a layer whose name one of them finds is left alone.
        repair: How perforated layers are repaired on calibration data, one of `perfonnx.plan.REPAIRS`.
        seed: Seed of all random choices.
        open_share: Share of the pixels where radius-adaptive layers compute their ring.
        fill: What masked positions of sparse layers hold, one of `perfonnx.plan.FILLS`.
    """

    method: str = "perforate"
    rate: float | None = None
    mask: str | None = None
    interpolation: str = "nearest"
    center_gain: float = 0.0
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    seed: int = 0
    repair: str = NO_REPAIR
    open_share: float = 1.0
    fill: str = ZERO

    @property
    def given_rate(self) -> float:
        """The rate that holds."""
        return CAREFUL_RATE if self.rate is None else self.rate

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool) or self.seed < 0:
            raise PerfonnxError(f"seed {self.seed!r} is not a whole number from 0 up")
        object.__setattr__(self, "seed", int(self.seed))
        for name in ("only", "skip"):  # one expression instead of a list is clear enough
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))


@dataclass
class Select(Pass):
    """Decides. With a plan, exactly what it says; else by `Options`, carefully.

    `masks` are those of the layers whose mask is `perfonnx.plan.GIVEN`.
    """

    options: Options = field(default_factory=Options)
    plan: Plan | None = None
    fallback: bool = True
    impact_maps: ImpactMaps | None = None
    masks: Mapping[str, Mask] = field(default_factory=dict)

    def requires(self, workspace: Workspace, state: State) -> None:
        """Check options and plan against each other and against the model."""
        sample = LayerPlan(
            self.options.method,
            self.options.given_rate,
            self.options.mask or "grid",
            self.options.interpolation,
            self.options.center_gain,
            self.options.repair,
            self.options.open_share,
            self.options.fill,
        )
        sample.check("options")
        if self.plan is not None:
            names = {s.name for s in conv_layers(workspace)} | {n.name for n in rewritten_nodes(workspace)}
            for name, step in self.plan.layers.items():
                step.check(f"plan, layer {name!r}")
                if name not in names:
                    raise PerfonnxError(
                        f"the plan names layer {name!r}, which the model does not have; see perfonnx inspect"
                    )
        self._check_impact_maps(workspace)
        flag = symbolic_input_flag(workspace)
        if flag is not None and any(s.output_shape is None for s in conv_layers(workspace)):
            raise PerfonnxError(
                f"{workspace.model.name}: height and width are not fixed, but a mask is made for one size; add {flag} "
                "(with your size)"
            )

    def _check_impact_maps(self, workspace: Workspace) -> None:
        wanted = [self.options.mask] if self.plan is None else [step.mask for step in self.plan.layers.values()]
        if self.impact_maps is None and "impact" in wanted:
            raise PerfonnxError(
                f"{workspace.model.name}: the mask impact needs maps of impacts, computed from images: perfonnx impact "
                "MODEL maps.npz --data DIR, then --impact-maps maps.npz; in Python perfonnx.impact.impact_maps"
            )

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Fill `state.decisions` and `state.skips`."""
        layers = conv_layers(workspace)
        done = {n.name for n in rewritten_nodes(workspace)}
        state.skips += [Skip(name, "already rewritten") for name in sorted(done)]
        if self.plan is not None:
            wanted = self._by_plan(layers, state, self.plan)
        else:
            wanted = self._by_options(workspace, layers, state)
        self._make_masks(workspace, wanted, state)
        state.skips += [Skip(u.name, u.reason) for u in unreachable_convs(workspace)]
        return PassResult(modified=False)

    def _by_plan(self, layers: list[Layer], state: State, plan: Plan) -> list[tuple[Layer, LayerPlan]]:
        wanted = []
        for layer in layers:
            step = plan.layers.get(layer.name)
            if step is None or step.method == DENSE:
                state.skips.append(Skip(layer.name, "not in the plan" if step is None else "dense in the plan"))
            elif layer.obstacle:
                state.skips.append(Skip(layer.name, layer.obstacle))
            else:
                wanted.append((layer, step))
        return wanted

    def _by_options(self, workspace: Workspace, layers: list[Layer], state: State) -> list[tuple[Layer, LayerPlan]]:
        options = self.options
        only, skip = _patterns("--only", options.only), _patterns("--skip", options.skip)
        done = rewritten_nodes(workspace)
        # Rewritten layers count as what they were: else layers that were too small before would pass in the next run.
        before = [dense_multiplies_of(workspace, n) for n in done]
        total = sum(m or 0 for m in conv_multiplies(workspace, layers)) + sum(before) + other_multiplies(workspace)
        can_be = [s.multiplies or 0 for s in layers if not s.obstacle and not s.reservation]
        small = negligible([*can_be, *before], total)
        names = [*(s.name for s in layers), *(n.name for n in done)]
        if only and not any(p.search(name) for p in only for name in names):
            raise PerfonnxError(f"--only {' '.join(options.only)} matches no convolution; see perfonnx inspect")
        wanted = []
        for layer in layers:
            reason = layer.obstacle
            if any(p.search(layer.name) for p in skip):
                reason = "excluded by --skip"
            elif only and not any(p.search(layer.name) for p in only):
                reason = "not selected by --only"
            elif not reason and not only:
                reason = layer.reservation
                if not reason and (layer.multiplies or 0) <= small:
                    reason = f"carries only {(layer.multiplies or 0) / max(total, 1):.1%} of the multiplies"
            if reason:
                state.skips.append(Skip(layer.name, reason))
            else:
                wanted.append((layer, self._layer_plan(workspace, layer)))
        return wanted

    def _layer_plan(self, workspace: Workspace, layer: Layer) -> LayerPlan:
        options = self.options
        mask = options.mask
        if mask is None and options.method == "sparse":
            mask = "propagated"
        elif mask is None:
            mask = "grid" if following_pool(workspace, layer) is None else "pooling-structure"
        return LayerPlan(
            options.method,
            options.given_rate,
            mask,
            options.interpolation,
            options.center_gain,
            options.repair,
            options.open_share,
            options.fill,
        )

    def _make_masks(self, workspace: Workspace, wanted: list[tuple[Layer, LayerPlan]], state: State) -> None:
        seed = self.plan.seed if self.plan is not None else self.options.seed
        masks = _MaskMaker(workspace, seed, self.impact_maps or {}, self.masks)
        first_type = self._type_of_rewritten(workspace)
        for layer, step in wanted:
            reason = None
            if step.method == "radius-adaptive" and layer.w_shape[2:] != (3, 3):
                reason = f"{layer.w_shape[2]}x{layer.w_shape[3]} kernel; radius-adaptive layers have a 3x3 kernel"
            elif self.fallback and workspace.opset < 15 and first_type not in (None, layer.elem_type):
                reason = "of another float type than the layers before; below opset 15 use --no-fallback to mix them"
            elif not _is_finite(workspace, layer):
                reason = "its weight or bias has values that are not finite"
            elif step.method != "radius-adaptive":
                reason = masks.reason_against(layer, step)
            mask = masks.make(layer, step) if reason is None and step.method != "radius-adaptive" else None
            if reason is None:
                assert layer.output_shape is not None
                computed = math.prod(layer.output_shape) if mask is None else int(mask.sum())
                reason = table_obstacle(computed, layer.w_shape[2:])
            if reason:
                state.skips.append(Skip(layer.name, reason))
                continue
            first_type = layer.elem_type
            if mask is not None and is_own_mask(step.mask):
                step = replace(step, rate=float(1 - mask.mean()))
            by_name = self.plan is not None or bool(self.options.only)
            worth: float | None = GAINING if self.options.rate is None else NOT_SLOWER
            if by_name or mask is None or is_own_mask(step.mask):
                worth = None
            state.decisions[layer.name] = Decision(layer, step, mask, worth=worth)
        masks.check_used()

    @staticmethod
    def _type_of_rewritten(workspace: Workspace) -> int | None:
        """Element type of the layers that an earlier run rewrote: their function bodies are written anew."""
        for node in rewritten_nodes(workspace):
            known = workspace.types.get(node.inputs[1].name)
            if known is not None:
                return known.elem_type
        return None


class _MaskMaker:
    """Makes the layers' masks; files are read once, the propagated map is drawn once."""

    def __init__(self, workspace: Workspace, seed: int, impact_maps: ImpactMaps, given: Mapping[str, Mask]) -> None:
        self.workspace = workspace
        self.seed = seed
        self.impact_maps = impact_maps
        self.given = given
        self.files: dict[str, dict[str, Mask]] = {}
        self.used_files: set[str] = set()
        self.scores: np.ndarray | None = None

    def reason_against(self, layer: Layer, step: LayerPlan) -> str | None:
        """Why this mask cannot be made for this layer, though another layer may have it."""
        assert layer.output_shape is not None
        if step.mask == "pooling-structure" and following_pool(self.workspace, layer) is None:
            return "no pooling layer follows; the pooling-structure mask needs one"
        if step.mask == "grid-square" and layer.output_shape[0] != layer.output_shape[1]:
            return (
                f"its map is {layer.output_shape[0]}x{layer.output_shape[1]}; the grid-square mask needs a square one"
            )
        if step.mask == "impact" and layer.name not in self.impact_maps:
            return "there is no map of impacts for it"
        if is_mask_file(step.mask):
            masks = self._file(step.mask)
            if layer.name not in masks and ANY_LAYER not in masks:
                return f"{step.mask} has no mask for it"
            if layer.name not in masks and masks[ANY_LAYER].shape != layer.output_shape:
                return f"the mask is {_size(masks[ANY_LAYER].shape)}, its map {_size(layer.output_shape)}"
        return None

    def make(self, layer: Layer, step: LayerPlan) -> Mask:
        """The mask; its random generator depends on the map's size alone, not on which other layers are rewritten.

        Layers with maps of one size so share what is random in their masks. Residual adds between them then stay on
        rows, and nothing is lost: on ResNet-20 (CIFAR-10, all layers, no training, four seeds) shared grid masks keep
        as much accuracy as independent ones, and shared uniform masks 4 to 5 points more.

        Not so layers that get a predictor: it makes a skipped position from what the layers before computed there, so
        they had better not all skip the same.
        """
        assert layer.output_shape is not None
        if is_mask_file(step.mask):
            self.used_files.add(step.mask)
            return mask_from_file(self._file(step.mask), layer.name, layer.output_shape)
        if step.mask == GIVEN:
            if layer.name not in self.given:
                raise PerfonnxError(
                    f"layer {layer.name!r}: its mask was given and is not here; take the plan that was saved with its "
                    "masks, or in Python rewrite(masks=...)"
                )
            return mask_from_file(self.given, layer.name, layer.output_shape)
        own = [zlib.crc32(layer.name.encode())] if step.repair in PREDICTING else []
        rng = np.random.default_rng([self.seed, *layer.output_shape, *own])
        scores = self._scores() if step.mask == "propagated" else None
        pool = following_pool(self.workspace, layer)
        impact = self.impact_maps[layer.name] if step.mask == "impact" else None
        request = MaskRequest(layer.output_shape, step.rate, rng, pool, scores, impact)
        try:
            return make_mask(step.mask, request)
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {layer.name!r}: {error}") from error

    def check_used(self) -> None:
        """A mask file that fits no layer is a mistake."""
        for path in self.files:
            if path not in self.used_files:
                raise PerfonnxError(
                    f"{path}: fits no layer that was to be rewritten; perfonnx inspect shows their sizes"
                )

    def _file(self, path: str) -> dict[str, Mask]:
        if path not in self.files:
            self.files[path] = load_masks(path)
        return self.files[path]

    def _scores(self) -> np.ndarray:
        if self.scores is None:
            layers = [s for s in conv_layers(self.workspace) if not s.obstacle]
            sizes = [s.input_shape[2:] for s in layers if s.input_shape]
            known = [(h, w) for h, w in sizes if isinstance(h, int) and isinstance(w, int)]
            shape = max(known, key=lambda size: size[0] * size[1])
            self.scores = propagated_scores(shape, np.random.default_rng(self.seed))
        return self.scores


def _is_finite(workspace: Workspace, layer: Layer) -> bool:
    given = [t for t in layer.node.inputs[1:3] if t.name]
    return all((values := workspace.constant(t)) is not None and bool(np.isfinite(values).all()) for t in given)


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


def _patterns(flag: str, expressions: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(e) for e in expressions]
    except re.error as error:
        raise PerfonnxError(f"{flag}: {error.pattern!r} is not a regular expression ({error.msg})") from error
