"""What a pass is, and how passes are run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from perfonnx.corrections import Corrections
from perfonnx.errors import PerfonnxError
from perfonnx.methods import Decision, KeepingMethod, Method
from perfonnx.model.layers import Layer
from perfonnx.model.workspace import Workspace
from perfonnx.plan import Placement


@dataclass(frozen=True)
class Change:
    """Something a pass did to a layer."""

    layer: str
    what: str


@dataclass(frozen=True)
class Skip:
    """A layer that is left as it is, or a node that stays on maps, and the reason, as a person says it."""

    layer: str
    reason: str


@dataclass
class Rebuilt:
    """A layer in whose place standard operators stand.

    Attributes:
        layer: The layer as it came.
        steps: All its steps.
        nodes: What stands in its place.
        notes: What was done to it.
        saved: Multiplies of the layer, less those of what stands in its place.
    """

    layer: Layer
    steps: tuple[Method, ...]
    nodes: list[gs.Node] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    saved: int = 0


@dataclass(frozen=True)
class Keeping:
    """A layer that stays the operator that it is, with other constants."""

    layer: Layer
    step: KeepingMethod


@dataclass
class State:
    """What passes hand on beside the graph: decisions by layer name, skips with reasons, and the new nodes.

    `keeping` are the layers that get other constants alone, by name. `rebuilt` are those in whose place standard
    operators stand, or will, by name; `saved_behind` is what layers behind them multiply less since maps are smaller.
    `folded` are those that stay after all, with what was folded into them.

    `placement` says which nodes work on rows; `kept` holds by id the others of them that stay on maps, `left_on_maps`
    says of all that rows reach why they stay there.
    `corrections` are what repair found or was given; `strict` says whether the model passed strict shape inference
    before; `notes` are about the model as a whole.
    """

    decisions: dict[str, Decision] = field(default_factory=dict)
    keeping: dict[str, Keeping] = field(default_factory=dict)
    rebuilt: dict[str, Rebuilt] = field(default_factory=dict)
    saved_behind: int = 0
    folded: list[str] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    rewritten: dict[str, gs.Node] = field(default_factory=dict)
    placement: Placement = field(default_factory=Placement)
    kept: dict[int, gs.Node] = field(default_factory=dict)
    left_on_maps: list[Skip] = field(default_factory=list)
    corrections: Corrections = field(default_factory=dict)
    strict: bool = False
    notes: list[str] = field(default_factory=list)


class Pass(ABC):
    """One step from a model to a faster model."""

    @property
    def name(self) -> str:
        """The pass's name in messages."""
        return type(self).__name__.lower()

    def requires(self, workspace: Workspace, state: State) -> None:  # noqa: B027
        """Raise `PerfonnxError` where the pass cannot start."""

    @abstractmethod
    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Do it, and tell what was changed."""

    def ensures(self, workspace: Workspace, state: State) -> None:  # noqa: B027
        """Raise where the result is not what the pass promises."""


class PassManager:
    """Runs passes in order; an unexpected error is reported with the pass's name and those that had run."""

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes = list(passes)

    def run(self, workspace: Workspace, state: State) -> list[Change]:
        """Run all passes and return everything they changed, in order."""
        changes: list[Change] = []
        done: list[str] = []
        for step in self.passes:
            try:
                step.requires(workspace, state)
                changes += step.call(workspace, state)
                step.ensures(workspace, state)
            except PerfonnxError:
                raise
            except Exception as error:
                ran = ", ".join(done) or "none"
                raise RuntimeError(f"pass {step.name} failed (passes done before: {ran}): {error}") from error
            done.append(step.name)
        return changes
