"""Normalize: types and shapes of everything, before anything is decided."""

from __future__ import annotations

from perfonnx.inference import infer_types
from perfonnx.io import Workspace
from perfonnx.passes.base import Pass, PassResult, State
from perfonnx.validity import check_input


class Normalize(Pass):
    """Shape inference. `auto_pad` is resolved in the view of each layer, so that untouched layers stay as they are."""

    def requires(self, workspace: Workspace, state: State) -> None:
        """Refuse a model that is no valid ONNX."""
        state.strict = check_input(workspace)

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Fill `workspace.types`."""
        infer_types(workspace)
        return PassResult(modified=False)
