"""Select: one decision per layer, from a plan or from options, each with its mask or the reason against it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from perfonnx.errors import PerfonnxError
from perfonnx.methods import (
    DEFAULT,
    SAMPLING,
    Context,
    Decision,
    KeepingMethod,
    Method,
    SampledMethod,
    StandardMethod,
    find_method,
    own_settings,
    owners,
)
from perfonnx.model.layers import (
    Layer,
    all_layers,
    conv_layers,
    dense_multiplies_of,
    rewritten_nodes,
    table_obstacle,
    unreachable_convs,
)
from perfonnx.model.shapes import symbolic_input_flag
from perfonnx.model.workspace import Workspace
from perfonnx.multiplies import conv_multiplies, other_multiplies
from perfonnx.passes.base import Change, Keeping, Pass, Rebuilt, Skip, State
from perfonnx.passes.estimates import work_of
from perfonnx.plan import Plan

MIN_SHARE = 0.01
"""Layers that carry, with all that are smaller, less of the model's multiplies are left alone unless they are named."""


def negligible(layers: Iterable[float], total: int) -> float:
    """The multiplies of the largest layer that is left alone for its smallness; -1 where none is.

    Where many small layers make up a network none of them is.

    Args:
        layers: Multiplies of the layers that can be rewritten.
        total: Multiplies of the whole model.
    """
    found, sum_so_far = -1.0, 0.0
    for size, alike in sorted(Counter(layers).items()):
        sum_so_far += size * alike
        if sum_so_far >= MIN_SHARE * total:
            break
        found = size
    return found


class Options:
    """What is to be rewritten, and how, where no plan says it.

    Args:
        method: A name in `perfonnx.methods.METHODS`. None: `DEFAULT`, or `SAMPLING` where there are settings.
        only: Regular expressions; a layer whose name none of them finds is left alone. Layers found are rewritten even
            where little is gained.
        skip: Regular expressions; a layer whose name one of them finds is left alone.
        seed: Seed of all random choices.
        **settings: Of the method, such as `rate=0.5` and `mask="grid"`; see its class. None is as if it were not given.

    Raises:
        PerfonnxError: The method is unknown, or a setting or the seed has no meaning.
    """

    def __init__(
        self,
        method: str | None = None,
        *,
        only: Sequence[str] | str = (),
        skip: Sequence[str] | str = (),
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
            raise PerfonnxError(f"seed {seed!r} is not a whole number from 0 up")
        given = {name: value for name, value in settings.items() if value is not None}
        self.method: type[Method] = find_method(method or (SAMPLING if given else DEFAULT), "options")
        self.seed: int = int(seed)
        # one expression instead of a list is clear enough
        self.only: Sequence[str] = (only,) if isinstance(only, str) else only
        self.skip: Sequence[str] = (skip,) if isinstance(skip, str) else skip
        unknown = [name for name in settings if not owners(name)]
        if unknown:
            known = ", ".join(self.method.settings())
            raise PerfonnxError(f"unknown option: {unknown[0]!r}; {self.method.NAME} has {known}")
        self.settings: dict[str, Any] = own_settings(self.method, given, "options")
        self.example.check("options")
        self.method.check_asked(self.settings, "options")

    @property
    def example(self) -> Method:
        """The step for a layer that nothing is known of."""
        return self.method(**self.settings)

    def trained(self) -> Options:
        """The same without what is fitted, which training finds by itself."""
        step = self.example.trained
        settings = {name: getattr(step, name) for name in self.settings}
        return Options(self.method.NAME, only=self.only, skip=self.skip, seed=self.seed, **settings)

    def step(self, layer: Layer, context: Context) -> Method:
        """The step for a layer."""
        return self.method.chosen(self.settings, layer, context)


@dataclass
class Select(Pass):
    """Decides. With a plan, exactly what it says; else by `Options`, carefully.

    `context` is what methods may draw on; `fallback` says whether operators get function bodies.
    """

    context: Context
    options: Options = field(default_factory=Options)
    plan: Plan | None = None
    fallback: bool = True

    def requires(self, workspace: Workspace, state: State) -> None:
        """Check the plan against the model, and whether there is what the methods draw on."""
        layers = all_layers(workspace)
        if self.plan is not None:
            names = {layer.name for layer in layers} | {n.name for n in rewritten_nodes(workspace)}
            for name, method in self.plan.layers.items():
                method.check(f"plan, layer {name!r}")
                if name not in names:
                    raise PerfonnxError(
                        f"the plan names layer {name!r}, which the model does not have; see perfonnx inspect"
                    )
        for step in [self.options.example] if self.plan is None else self.plan.steps():
            step.check_sources(self.context)
        flag = symbolic_input_flag(workspace)
        if flag is not None and any(layer.is_conv and layer.output_shape is None for layer in layers):
            raise PerfonnxError(
                f"{workspace.model.name}: height and width are not fixed, but a mask is made for one size; add {flag} "
                "(with your size)"
            )

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Fill `state.decisions`, `state.rebuilt` and `state.skips`."""
        done = {n.name for n in rewritten_nodes(workspace)}
        state.skips += [Skip(name, "already rewritten") for name in sorted(done)]
        if self.plan is not None:
            wanted = self._by_plan(all_layers(workspace), state, self.plan)
        else:
            of = self.options.method.REPLACES | self.options.method.MENDING
            layers = [layer for layer in all_layers(workspace) if layer.node.op in of]
            wanted = self._by_options(workspace, layers, state)
        for layer, method in wanted:
            asked = None if self.plan is not None or self.options.only else self.options.settings
            reason = decide_on(self.context, state, layer, method.steps, fallback=self.fallback, asked=asked)
            if reason:
                state.skips.append(Skip(layer.name, reason))
        if not state.rebuilt:
            self.context.close({skip.layer: skip.reason for skip in state.skips})
        state.skips += [Skip(u.name, u.reason) for u in unreachable_convs(workspace)]
        return []

    def _by_plan(self, layers: list[Layer], state: State, plan: Plan) -> list[tuple[Layer, Method]]:
        wanted = []
        for layer in layers:
            method = plan.layers.get(layer.name)
            if method is None:
                if layer.is_conv or layer.name in plan.notes:
                    state.skips.append(Skip(layer.name, plan.notes.get(layer.name, "not in the plan")))
            elif not method.steps:
                state.skips.append(Skip(layer.name, "dense in the plan"))
            elif layer.obstacle:
                state.skips.append(Skip(layer.name, layer.obstacle))
            else:
                wanted.append((layer, method))
        return wanted

    def _by_options(self, workspace: Workspace, layers: list[Layer], state: State) -> list[tuple[Layer, Method]]:
        options = self.options
        only, skip = _patterns("--only", options.only), _patterns("--skip", options.skip)
        done = rewritten_nodes(workspace)
        # Rewritten layers count as what they were: else layers that were too small before would pass in the next run.
        before = [dense_multiplies_of(workspace, n) for n in done]
        convs = conv_layers(workspace)
        total = sum(m or 0 for m in conv_multiplies(workspace, convs)) + sum(before) + other_multiplies(workspace)
        own = [layer for layer in layers if layer.node.op in options.method.REPLACES]
        can_be = [work_of(layer) for layer in own if not layer.obstacle and not layer.reservation]
        small = negligible([*can_be, *before], total)
        names = [*(layer.name for layer in layers), *(n.name for n in done)]
        if only and not any(p.search(name) for p in only for name in names):
            raise PerfonnxError(f"--only {' '.join(options.only)} matches no convolution; see perfonnx inspect")
        wanted: list[tuple[Layer, Method]] = []
        for layer in layers:
            reason = layer.obstacle
            if any(p.search(layer.name) for p in skip):
                reason = "excluded by --skip"
            elif only and not any(p.search(layer.name) for p in only):
                reason = "not selected by --only"
            elif not reason and not only:
                reason = layer.reservation if options.example.heeds_reservation else None
                if layer.origin is not None:
                    reason = f"already rewritten: it comes from {layer.origin}"
                elif not reason and layer.node.op in options.method.REPLACES and work_of(layer) <= small:
                    reason = f"carries only {(layer.multiplies or 0) / max(total, 1):.1%} of the multiplies"
            if reason:
                state.skips.append(Skip(layer.name, reason))
            else:
                wanted.append((layer, options.step(layer, self.context)))
        return wanted


def decide_on(
    context: Context,
    state: State,
    layer: Layer,
    steps: Sequence[Method],
    *,
    fallback: bool,
    asked: Mapping[str, Any] | None = None,
) -> str | None:
    """Decide on a layer, or say why not.

    Args:
        context: What methods may draw on.
        state: Takes the decision.
        layer: The layer, which has no obstacle of its own.
        steps: What is to happen to it.
        fallback: Whether operators get function bodies.
        asked: The settings that were asked for, where nobody named the layer.
    """
    step = steps[0]
    reason = obstacle(context, state, layer, step, fallback=fallback)
    if reason is not None:
        return reason
    if isinstance(step, StandardMethod):
        state.rebuilt[layer.name] = Rebuilt(layer, tuple(steps))
        return None
    if isinstance(step, KeepingMethod):
        state.keeping[layer.name] = Keeping(layer, step)
        return None
    assert isinstance(step, SampledMethod)
    assert layer.output_shape is not None
    step, mask = step.drawn(layer, context)
    reason = table_obstacle(math.prod(layer.output_shape) if mask is None else int(mask.sum()), layer.w_shape[2:])
    if reason is None:
        worth = None if asked is None else step.worth(asked)
        state.decisions[layer.name] = Decision(layer, step, mask, worth=worth)
    return reason


def obstacle(context: Context, state: State, layer: Layer, step: Method, *, fallback: bool) -> str | None:
    """Why a step cannot be taken with a layer that has no obstacle of its own; None where it can."""
    workspace = context.workspace
    if layer.node.op not in step.REPLACES:
        return f"it is a {layer.node.op}; {step.ADJECTIVE} layers are {' or '.join(sorted(step.REPLACES))}"
    earlier = _type_of_rewritten(workspace, state)
    if isinstance(step, SampledMethod) and fallback and workspace.opset < 15 and earlier not in (None, layer.elem_type):
        return "of another float type than the layers before; below opset 15 use --no-fallback to mix them"
    if not _is_finite(workspace, layer):
        return "its weight or bias has values that are not finite"
    return step.obstacle(layer, context)


def _type_of_rewritten(workspace: Workspace, state: State) -> int | None:
    """Element type of the layers that are rewritten, now or by an earlier run: they have function bodies in common."""
    for decision in state.decisions.values():
        return decision.layer.elem_type
    for node in rewritten_nodes(workspace):
        known = workspace.types.get(node.inputs[1].name)
        if known is not None:
            return known.elem_type
    return None


def _is_finite(workspace: Workspace, layer: Layer) -> bool:
    given = [t for t in layer.node.inputs[1:3] if t.name]
    return all((values := workspace.constant(t)) is not None and bool(np.isfinite(values).all()) for t in given)


def _patterns(flag: str, expressions: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(e) for e in expressions]
    except re.error as error:
        raise PerfonnxError(f"{flag}: {error.pattern!r} is not a regular expression ({error.msg})") from error
