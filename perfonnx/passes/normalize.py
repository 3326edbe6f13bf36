"""Normalize: types and shapes of everything, before anything is decided."""

from __future__ import annotations

from collections.abc import Sequence

from perfonnx.model.constants import read_directly
from perfonnx.model.shapes import contradiction_note, infer_types
from perfonnx.model.validity import check_input, passes_strictly
from perfonnx.model.workspace import Workspace
from perfonnx.passes.base import Change, Pass, State
from perfonnx.passes.positions import MOVES_POSITIONS


class Normalize(Pass):
    """Shape inference. `auto_pad` is resolved in the view of each layer, so that untouched layers stay as they are."""

    def requires(self, workspace: Workspace, state: State) -> None:
        """Refuse a model that is no valid ONNX."""
        check_input(workspace)

    def call(self, workspace: Workspace, state: State) -> Sequence[Change]:
        """Fill `workspace.types`, say where the file declares otherwise, and let go of maps read for their size alone.

        A Resize to a computed size would else read its input's map twice, the second time for its size.
        """
        infer_types(workspace)
        state.strict = passes_strictly(workspace)
        note = contradiction_note(workspace)
        state.notes += [note] if note else []
        moving = [node for node in workspace.graph.nodes if node.op in MOVES_POSITIONS]
        read_directly(workspace, [node for node in moving if any(t.name in workspace.folded for t in node.inputs)])
        return []
