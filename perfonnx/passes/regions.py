"""Where rows may flow: which nodes can work on them, and which dense convolutions lie between sampled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from perfonnx.model.workspace import Workspace
from perfonnx.passes.rules import joins, rule_of, works_on_rows


@dataclass
class Regions:
    """Where rows may flow. Tensors are named; a convolution that is to be sampled counts as sampled already.

    Attributes:
        sampled: The nodes that start regions, by id, and the share of positions that each computes.
        dense: ids of the Conv nodes that may join.
        folded: ids of the nodes that vanish into those convolutions.
        pointwise: ids of those convolutions that need be computed once per row.
        kept: Nodes that stay on maps, by id.
        share: Tensors that come from a sampled layer through nodes that work on rows, and how many rows they have per
            position: an estimate where samplings meet.
        wanted: Tensors that reach a sampled layer through such nodes.
    """

    workspace: Workspace
    sampled: Mapping[int, float]
    dense: set[int]
    folded: set[int] = field(default_factory=set)
    pointwise: set[int] = field(default_factory=set)
    kept: Mapping[int, gs.Node] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        nodes = [node for node in self.workspace.graph.nodes if node.outputs]
        for node in nodes:
            output = node.outputs[0].name
            if id(node) in self.sampled:
                self.share[output] = self.sampled[id(node)]
            elif self.passes(node):
                shares = [self.share.get(name) for name in self.maps(node)]
                if any(share is not None for share in shares):
                    rule = rule_of(node)
                    keeps = id(node) in self.folded | self.pointwise or (rule is not None and rule.keeps_rows)
                    self.share[output] = max(1.0 if share is None or not keeps else share for share in shares)
        for node in reversed(nodes):
            if id(node) in self.sampled or (self.passes(node) and node.outputs[0].name in self.wanted):
                self.wanted.update(self.maps(node))

    def passes(self, node: gs.Node) -> bool:
        """Whether a node that is not sampled can take rows and give rows."""
        if id(node) in self.kept:
            return False
        return id(node) in self.dense or id(node) in self.folded or works_on_rows(self.workspace, node)

    def maps(self, node: gs.Node) -> list[str]:
        """The maps that such a node reads."""
        if id(node) in self.folded:
            return [t.name for t in node.inputs if self.workspace.constant_proto(t) is None]
        return [t.name for t in (node.inputs if joins(node) else node.inputs[:1])]
