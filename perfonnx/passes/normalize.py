"""Normalize: types and shapes of everything, before anything is decided."""

from __future__ import annotations

from perfonnx.inference import infer_types
from perfonnx.io import Workspace
from perfonnx.passes.base import Pass, PassResult, State


class Normalize(Pass):
    """Shape inference. `auto_pad` is resolved in the view of each layer, so that untouched layers stay as they are."""

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Fill `workspace.types`."""
        infer_types(workspace)
        return PassResult(modified=False)
