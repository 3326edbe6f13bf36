"""Normalize: types and shapes of everything, before anything is decided."""

from __future__ import annotations

from perfonnx.constants import read_directly
from perfonnx.inference import infer_types
from perfonnx.io import Workspace
from perfonnx.passes.base import Pass, PassResult, State
from perfonnx.passes.positions import MOVES_POSITIONS
from perfonnx.validity import check_input


class Normalize(Pass):
    """Shape inference. `auto_pad` is resolved in the view of each layer, so that untouched layers stay as they are."""

    def requires(self, workspace: Workspace, state: State) -> None:
        """Refuse a model that is no valid ONNX."""
        state.strict = check_input(workspace)

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Fill `workspace.types`, and let go of maps of which only the size is read, where that is known.

        A Resize to a computed size would else read its input's map twice, the second time for its size.
        """
        infer_types(workspace)
        moving = [node for node in workspace.graph.nodes if node.op in MOVES_POSITIONS]
        read_directly(workspace, [node for node in moving if any(t.name in workspace.folded for t in node.inputs)])
        return PassResult(modified=False)
