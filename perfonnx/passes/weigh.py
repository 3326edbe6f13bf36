"""Weigh: which layers gain at all, which regions work on rows, and which dense layers join them.

By estimates (`perfonnx.costs`), since a rewrite must give the same model on every machine; `perfonnx bench` measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from perfonnx.costs import DEFAULT_COSTS, Costs
from perfonnx.graph import ConvSite, conv_sites
from perfonnx.io import Workspace
from perfonnx.passes.base import Decision, Pass, PassResult, Skip, State
from perfonnx.passes.fold import foldable
from perfonnx.passes.regions import Regions, is_map
from perfonnx.plan import ZERO, LayerPlan

WORTH = 1.05
"""Where nobody asked, a region is rewritten only if that is estimated to make it so many times faster."""


@dataclass
class Weigh(Pass):
    """Gives up tentative decisions, adds decisions marked `joined`, fills `state.on_maps`.

    Joined layers become sampled layers with every position a site, so that folding, absorbing and lowering treat them
    like the others. Their results are those of the dense convolution.

    Attributes:
        rows: Whether layers may exchange rows.
        costs: What things cost.
    """

    rows: bool = True
    costs: Costs = field(default_factory=lambda: DEFAULT_COSTS)

    def call(self, workspace: Workspace, state: State) -> PassResult:
        """Change `state`."""
        tentative = {name: decision for name, decision in state.decisions.items() if decision.tentative}
        for name, decision in tentative.items():  # in order: what is given up is written into the model
            if self.costs.of_rows(decision.site, _share(decision)) >= self.costs.of_dense(decision.site):
                _give_up(state, name)
        for region in _Layout(workspace, state, self.costs, self.rows).regions():
            if region.dense <= WORTH * min(region.on_rows, region.on_maps) and tentative.keys() >= set(region.sampled):
                for name in region.sampled:
                    _give_up(state, name)
            elif region.on_rows <= region.on_maps:
                for site in region.joined:
                    assert site.output_shape is not None
                    everywhere = np.ones(site.output_shape, bool)
                    state.decisions[site.name] = Decision(site, LayerPlan("perforate", 0.0), everywhere, joined=True)
            else:
                state.on_maps.update(region.sampled)
        return PassResult(modified=False)


def _is_pointwise(site: ConvSite) -> bool:
    """Whether each output reads the input at its own position."""
    a = site.attributes
    return a is not None and a.kernel_shape == a.strides == (1, 1) and not any(a.pads)


def _share(decision: Decision) -> float:
    """The share of positions that are computed."""
    return 1.0 if decision.mask is None else float(decision.mask.mean())


def _has_rows(workspace: Workspace, decision: Decision) -> bool:
    """Whether the layer has a form on rows, as far as that is known before anything is folded."""
    if decision.plan.method == "sparse":
        site = decision.site  # with what is folded comes a fill other than zero
        return decision.plan.fill == ZERO or not foldable(workspace, site.node, site.w_shape[0])
    return decision.plan.interpolation != "barycentric"


def _give_up(state: State, name: str) -> None:
    rate = state.decisions.pop(name).plan.rate
    state.skips.append(Skip(name, f"at rate {rate:g} it would hardly be faster; --rate rewrites it all the same"))


@dataclass
class _Region:
    """Layers between which rows may flow, and what they cost in each form, in nanoseconds."""

    sampled: list[str] = field(default_factory=list)
    joined: list[ConvSite] = field(default_factory=list)
    dense: float = 0.0
    on_maps: float = 0.0
    on_rows: float = 0.0


class _Layout:
    """Where rows would flow, by `Regions` and the costs."""

    def __init__(self, workspace: Workspace, state: State, costs: Costs, rows: bool) -> None:
        self.workspace = workspace
        self.state = state
        self.costs = costs
        self.sites = {id(site.node): site for site in conv_sites(workspace) if not site.obstacle}
        self.chosen = {id(d.site.node): name for name, d in state.decisions.items()}
        on_rows = {i: n for i, n in self.chosen.items() if rows and _has_rows(workspace, state.decisions[n])}
        self.shares = {i: _share(state.decisions[name]) for i, name in on_rows.items()}
        taken = self.chosen.keys()
        self.joined = {i for i, s in self.sites.items() if rows and i not in taken and is_map(workspace, s.output)}
        self.pointwise = {i for i, site in self.sites.items() if _is_pointwise(site)}
        while True:
            self.flow = Regions(workspace, self.shares, self.joined, self._folded(), self.pointwise)
            gaining = {i for i in self.joined if self._gains(self.sites[i])}
            if gaining == self.joined:
                break
            self.joined = gaining
        joined = {i: self._joined_share(self.sites[i]) for i in self.joined}
        self.flow = Regions(workspace, self.shares | joined, set(), self._folded())  # now they start rows as well

    def regions(self) -> list[_Region]:
        """The regions with their costs; a layer that has no form on rows is one by itself."""
        members = {id(n): n for n in self.workspace.graph.nodes if self._is_member(n)}
        producers = {t.name: i for i, node in members.items() for t in node.outputs[:1]}
        root = {i: i for i in members}

        def find(i: int) -> int:
            while root[i] != i:
                root[i] = i = root[root[i]]
            return i

        entering: dict[str, list[int]] = {}
        for i, node in members.items():
            for name in self.flow.maps(node):
                if name in producers:
                    root[find(i)] = find(producers[name])
                else:
                    entering.setdefault(name, []).append(i)
        result: dict[int, _Region] = {}
        for i in members:
            region = result.setdefault(find(i), _Region())
            if i in self.sites:
                self._count_layer(region, i)
        for name, readers in entering.items():
            for reader in {find(i) for i in readers}:
                result[reader].on_rows += self.costs.compact * self._size(name)
        for name, i in producers.items():
            if self._leaves(members[i].outputs[0], members):
                result[find(i)].on_rows += self.costs.expand * self._size(name)
        alone = [self._alone(i) for i in self.chosen if i not in members]
        return [region for region in (*result.values(), *alone) if region.sampled]

    def _count_layer(self, region: _Region, i: int) -> None:
        site = self.sites[i]
        dense = self.costs.of_dense(site)
        region.dense += dense
        if i in self.shares:
            region.sampled.append(self.chosen[i])
            region.on_rows += self.costs.of_rows(site, self.shares[i])
            region.on_maps += self.costs.of_canonical(site, self.shares[i])
        else:
            region.joined.append(site)
            region.on_rows += self.costs.of_rows(site, self._joined_share(site))
            region.on_maps += dense

    def _alone(self, i: int) -> _Region:
        site, name = self.sites[i], self.chosen[i]
        on_maps = self.costs.of_canonical(site, _share(self.state.decisions[name]))
        return _Region([name], [], self.costs.of_dense(site), on_maps, math.inf)

    def _gains(self, site: ConvSite) -> bool:
        """Whether a dense layer is better computed on rows, by the turns it saves and those it needs."""
        x, y = site.node.inputs[0].name, site.output.name
        comes, goes = x in self.flow.share, y in self.flow.wanted
        if not comes and not goes:
            return False
        turn_in, turn_out = self._size(x), self._size(y)
        dense = self.costs.of_dense(site) + self.costs.expand * turn_in * comes + self.costs.compact * turn_out * goes
        rows = self.costs.of_rows(site, self._joined_share(site))
        rows += self.costs.compact * turn_in * (not comes) + self.costs.expand * turn_out * (not goes)
        return rows < dense

    def _joined_share(self, site: ConvSite) -> float:
        return self.flow.share.get(site.node.inputs[0].name, 1.0) if id(site.node) in self.pointwise else 1.0

    def _is_member(self, node: gs.Node) -> bool:
        if id(node) in self.shares or id(node) in self.joined:
            return True
        if not node.outputs or not self.flow.passes(node):
            return False
        output = node.outputs[0].name
        return output in self.flow.share and (output in self.flow.wanted or self.flow.share[output] < 1)

    def _leaves(self, tensor: gs.Tensor, members: dict[int, gs.Node]) -> bool:
        outside = any(id(reader) not in members for reader in tensor.outputs)
        return outside or any(o.name == tensor.name for o in self.workspace.graph.outputs)

    def _folded(self) -> set[int]:
        sites = [self.sites[i] for i in (*self.joined, *self.shares)]
        return {id(node) for site in sites for node in foldable(self.workspace, site.node, site.w_shape[0])}

    def _size(self, name: str) -> float:
        """Thousands of values of a map, per image."""
        known = self.workspace.types[name].shape
        return math.prod(d for d in (known or ())[1:] if isinstance(d, int)) / 1000
