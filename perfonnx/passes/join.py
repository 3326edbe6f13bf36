"""Join: dense convolutions between sampled ones are computed on rows too, where the region would else be cut in two.

They become sampled layers with every position a site, so that folding, absorbing and lowering treat them like the
others. Their results are those of the dense convolution.
"""

from __future__ import annotations

import numpy as np

from perfonnx.graph import conv_sites
from perfonnx.io import Workspace
from perfonnx.passes.base import Decision, Pass, PassResult, State
from perfonnx.passes.regions import Regions, is_map
from perfonnx.plan import LayerPlan


class Join(Pass):
    """Adds decisions, marked `joined`, for dense layers in the midst of a region."""

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Extend `state.decisions`."""
        sites = {id(site.node): site for site in conv_sites(workspace) if not site.obstacle}
        adaptive = {id(d.site.node) for d in state.decisions.values() if d.plan.method == "radius-adaptive"}
        chosen = adaptive | {
            id(d.site.node)
            for d in state.decisions.values()
            if d.plan.method == "sparse" or (d.plan.method == "perforate" and d.plan.interpolation != "barycentric")
        }
        taken = {id(d.site.node) for d in state.decisions.values()}
        dense = {i for i, s in sites.items() if i not in taken and is_map(workspace, s.output)}
        regions = Regions(workspace, chosen, dense, adaptive)
        for node in list(workspace.graph.nodes):
            if regions.joins(node):
                site = sites[id(node)]
                assert site.output_shape is not None
                everywhere = np.ones(site.output_shape, bool)
                state.decisions[site.name] = Decision(site, LayerPlan("perforate", 0.0), everywhere, joined=True)
        return PassResult(modified=False)
