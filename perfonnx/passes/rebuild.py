"""Rebuild: layers whose method gives standard operators are replaced, front to back; what follows works on the result.

A plan may go on from there: the next step of such a layer is taken with every new layer that it can be taken with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_graphsurgeon as gs

from perfonnx.errors import PerfonnxError
from perfonnx.methods import Affine, Context, Method, Needs, Spot, StandardMethod
from perfonnx.model.layers import Layer, all_layers, unique_name
from perfonnx.model.shapes import infer_types
from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Change, Pass, Rebuilt, Skip, State
from perfonnx.passes.fold import fold
from perfonnx.passes.select import decide_on, obstacle
from perfonnx.passes.targets import NetworkTargets

_Task: TypeAlias = tuple[Rebuilt, Layer, tuple[Method, ...]]
"""A layer as it came, one in its place, and the steps that are left for it."""
_Fold: TypeAlias = tuple["Affine | None", list[str]]
"""What was folded into a layer, and the operators that are gone."""


@dataclass
class Rebuild(Pass):
    """Puts standard operators in the places of layers, as far as their plans begin with such steps.

    Attributes:
        context: What there is to fit with, and what was found before.
        fallback: Whether operators get function bodies.
        progress: Called with the layers done and their number.
        folded: Layers that are left alone, into which what follows them is to be folded all the same.
    """

    context: Context
    fallback: bool = True
    progress: Callable[[int, int], None] | None = None
    folded: Sequence[str] = ()

    def requires(self, workspace: Workspace, state: State) -> None:
        """Refuse a plan whose layers want what is not there."""
        for name, rebuilt in state.rebuilt.items():
            for step in rebuilt.steps:
                step.check_data(name, self.context)

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Replace the layers; then decide on the new ones, where plans go on."""
        taken = state.decisions.keys() | state.rebuilt.keys()
        state.folded = [name for name in self.folded if name not in taken]
        if not state.rebuilt:
            self._fold(workspace, [], state.folded)
            return []
        changes: list[Change] = []
        others = self._others(workspace, state)
        todo = [(rebuilt, rebuilt.layer, rebuilt.steps) for rebuilt in state.rebuilt.values()]
        also: Sequence[str] = tuple(state.folded)
        while todo:
            changes += self._replaced(workspace, state, todo, also)
            also = ()
            infer_types(workspace)
            layers = {id(layer.node): layer for layer in all_layers(workspace)}
            for rebuilt, _, _ in todo:
                after = (layers[id(node)].multiplies or 0 for node in rebuilt.nodes if id(node) in layers)
                rebuilt.saved = (rebuilt.layer.multiplies or 0) - sum(after)
            todo = [
                (rebuilt, layers[id(node)], steps[1:])
                for rebuilt, _, steps in todo
                for node in rebuilt.nodes
                if id(node) in layers and len(steps) > 1
            ]
            todo = [task for task in todo if self._goes_on(state, *task)]
        self.context.close({skip.layer: skip.reason for skip in state.skips})
        if not all(step.keeps_size for step in self._standard(state)):
            state.saved_behind = sum(others.values()) - sum(self._others(workspace, state).values())
            _check_sizes(workspace, state)
        return changes

    @staticmethod
    def _standard(state: State) -> Iterator[StandardMethod]:
        """The steps of layers that are replaced by standard operators."""
        for rebuilt in state.rebuilt.values():
            yield from (step for step in rebuilt.steps if isinstance(step, StandardMethod))

    @staticmethod
    def _others(workspace: Workspace, state: State) -> dict[str, int]:
        """Multiplies of the layers that stay."""
        replaced = {id(node) for rebuilt in state.rebuilt.values() for node in (rebuilt.layer.node, *rebuilt.nodes)}
        return {layer.name: layer.multiplies or 0 for layer in all_layers(workspace) if id(layer.node) not in replaced}

    @staticmethod
    def _fold(workspace: Workspace, layers: list[Layer], also: Sequence[str]) -> dict[str, _Fold]:
        """What is folded into each of the layers, and of those with the names `also`, in the order of the graph."""
        nodes = {id(layer.node) for layer in layers}
        chosen = [layer for layer in all_layers(workspace) if id(layer.node) in nodes or layer.name in also]
        return {layer.name: fold(workspace, layer) if layer.is_conv else (None, []) for layer in chosen}

    def _replaced(self, workspace: Workspace, state: State, todo: list[_Task], also: Sequence[str]) -> list[Change]:
        changes = []
        folded = self._fold(workspace, [layer for _, layer, _ in todo], also)
        known = self.context.corrections
        fitted = {
            layer.name: layer.node
            for _, layer, steps in todo
            if steps[0].needs is Needs.TARGETS and layer.name not in known
        }
        targets = None
        if fitted and self.context.feeds is not None:
            targets = NetworkTargets(workspace, fitted, self.context.feeds)
        for number, (rebuilt, layer, steps) in enumerate(todo):
            if self.progress is not None:
                self.progress(number, len(todo))
            step, (affine, names) = steps[0], folded[layer.name]
            assert isinstance(step, StandardMethod)
            if not all(done[2][0].keeps_size for done in todo[:number] if isinstance(done[2][0], StandardMethod)):
                infer_types(workspace)
                layer = next(fresh for fresh in all_layers(workspace) if fresh.node is layer.node)
                reason = layer.obstacle or obstacle(self.context, state, layer, step, fallback=self.fallback)
                if reason is not None:
                    self._left(state, rebuilt, layer, reason, names)
                    continue
            given = targets if layer.name in fitted else None
            result = step.replaced(Spot(self.context, layer.name, layer.node, layer, None, affine, given))
            inside = rebuilt.layer.node is not layer.node
            if result.correction is not None and (result.nodes or inside):
                state.corrections[layer.name] = result.correction
            if not result.nodes:
                self._left(state, rebuilt, layer, result.note, names)
                continue
            for node in result.nodes:
                node.name = unique_name(workspace, str(node.name))
            self._put(workspace, rebuilt, layer.node, list(result.nodes), f"{layer.name}/{step.NAME}")
            notes = [*([f"folded {', '.join(names)}"] if names else []), result.note]
            rebuilt.notes += notes
            changes += [Change(rebuilt.layer.name, note) for note in notes]
        return changes

    @staticmethod
    def _left(state: State, rebuilt: Rebuilt, layer: Layer, reason: str, folded: list[str]) -> None:
        """A layer stays as it is, and what its plan goes on with is not done."""
        state.skips.append(Skip(layer.name, reason))
        if rebuilt.layer.node is layer.node:
            del state.rebuilt[layer.name]
            state.folded += [layer.name] if folded else []

    @staticmethod
    def _put(workspace: Workspace, rebuilt: Rebuilt, old: gs.Node, nodes: list[gs.Node], origin: str) -> None:
        place = next((i for i, node in enumerate(rebuilt.nodes) if node is old), 0)
        rebuilt.nodes[place : place + 1] = nodes
        workspace.replace_by_several(old, nodes, origin)

    def _goes_on(self, state: State, rebuilt: Rebuilt, layer: Layer, steps: tuple[Method, ...]) -> bool:
        """Whether the next step replaces the new layer too; one that samples it is decided on here."""
        step, reason = steps[0], layer.obstacle
        if isinstance(step, StandardMethod):
            reason = reason or obstacle(self.context, state, layer, step, fallback=self.fallback)
        else:
            reason = reason or decide_on(self.context, state, layer, steps, fallback=self.fallback)
        if reason:
            state.skips.append(Skip(layer.name, reason))
        return isinstance(step, StandardMethod) and not reason


def _check_sizes(workspace: Workspace, state: State) -> None:
    """Refuse a plan with a mask for a map that is smaller now."""
    for name, decision in state.decisions.items():
        known = workspace.types.get(decision.layer.output.name)
        if known is None or known.shape is None or known.shape[2:] != decision.layer.output_shape:
            raise PerfonnxError(
                f"layer {name!r}: its map is smaller behind a layer that is shrunk and not restored; rewrite the one "
                "first, and then the result"
            )
