"""Targets: what layers give in the network rewritten so far, and what they should give, by running both networks.

Layers are fitted front to back: the input of a layer comes from the network rewritten and fitted up to it, the target
from the original network. So a layer makes up for what went wrong in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx import ops
from perfonnx.data.samples import Mirrored, count_of
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Goal
from perfonnx.methods import Feeds
from perfonnx.model.layers import POSITION_WISE, activation_of, all_layers, only_consumer
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.replay import Replay, ancestors

MEMORY = 1 << 30
"""Bytes of intermediate values that are kept while layers are fitted; the more, the less is computed again."""


@dataclass(frozen=True)
class _Question:
    """The tensors from which a layer's correction is found.

    A layer whose result is added to another tensor, as at the end of a residual block, is fitted so that the sum comes
    out right: what went wrong on the way around the layer is corrected too.

    Attributes:
        x: The layer's input.
        y: Its output.
        other: What is added to it, or None.
        total: The sum, or `y`.
        goal: What the total is for.
    """

    x: str
    y: str
    other: str | None
    total: str
    goal: Goal

    @classmethod
    def of(cls, workspace: Workspace, node: gs.Node, unsettled: set[str]) -> _Question:
        """`unsettled` are the outputs of the layers that are not fitted yet, the node's own among them."""
        x, y = node.inputs[0], node.outputs[0]
        goal = _goal(workspace, y)
        follower = only_consumer(workspace, y)
        if follower is not None and is_standard(follower) and follower.op == "Add":
            (other,) = (tensor for tensor in follower.inputs if tensor is not y)
            result = follower.outputs[0]
            same = workspace.types.get(other.name) == workspace.types[y.name] == workspace.types.get(result.name)
            if (
                same
                and workspace.constant_proto(other) is None
                and not unsettled & ancestors(workspace.node_protos(), [other.name])
            ):
                return cls(x.name, y.name, other.name, result.name, _goal(workspace, result))
        return cls(x.name, y.name, None, y.name, goal)


def _goal(workspace: Workspace, tensor: gs.Tensor) -> Goal:
    follower = only_consumer(workspace, tensor)
    activation = None if follower is None else activation_of(workspace, follower)
    return Goal() if activation is None else Goal.of(activation)


def influences(workspace: Workspace) -> dict[str, frozenset[str]]:
    """For each layer those that have an influence on its fit: in front of it, or of what its output is added to."""
    layers = {id(layer.node): layer.name for layer in all_layers(workspace)}
    behind: dict[str, frozenset[str]] = {}  # tensor -> the layers in front of it
    none: frozenset[str] = frozenset()
    for node in workspace.graph.nodes:
        found = none.union(*(behind.get(tensor.name, none) for tensor in node.inputs))
        own = frozenset({layers[id(node)]} if id(node) in layers else ())
        behind.update((tensor.name, found | own) for tensor in node.outputs)
    influence = {}
    for layer in all_layers(workspace):
        tensor = layer.node.outputs[0]
        while (
            (follower := only_consumer(workspace, tensor)) is not None
            and id(follower) not in layers
            and follower.outputs
        ):
            tensor = follower.outputs[0]
        influence[layer.name] = behind[tensor.name] - {layer.name}
    return influence


def with_mirrored(workspace: Workspace, feeds: Feeds) -> Feeds:
    """Calibration data, and its mirror images from left to right.

    Raises:
        PerfonnxError: No input of the network is certain to be an image.
    """
    images = []
    for tensor in workspace.graph.inputs:
        known = workspace.types.get(tensor.name)
        is_map = all(node.domain == ops.DOMAIN or node.op in _READS_MAPS for node in tensor.outputs)
        if known is not None and known.shape is not None and len(known.shape) == 4 and is_map:
            images.append(str(tensor.name))
    if not images:
        raise PerfonnxError(
            f"{workspace.model.name}: no input is certain to be an image of [N, C, H, W], so it cannot be mirrored; "
            "leave out --flips"
        )
    return Mirrored(feeds, images)


_READS_MAPS = POSITION_WISE | {"Conv", "MaxPool", "AveragePool", "InstanceNormalization"}


class NetworkTargets:
    """`perfonnx.methods.Targets`, from calibration data.

    Args:
        workspace: The network that is being rewritten.
        layers: The nodes of the layers that will be asked about, in topological order, by layer name.
        batches: Calibration data.
    """

    def __init__(self, workspace: Workspace, layers: Mapping[str, gs.Node], batches: Feeds) -> None:
        self.batches = batches
        share = MEMORY // 4  # two networks, and while a new set of values is kept, the old one is still read
        model = workspace.model
        original = list(model.proto.graph.node)
        self.original = Replay(model, lambda: original, {}, batches, share)
        self.rewritten = Replay(model, workspace.node_protos, workspace.added, batches, share)
        self.questions: dict[str, _Question] = {}
        unsettled = {node.outputs[0].name for node in layers.values()}
        for name, node in layers.items():
            self.questions[name] = _Question.of(workspace, node, unsettled)
            unsettled.remove(node.outputs[0].name)

    @cached_property
    def images(self) -> int:
        """How many there are."""
        return count_of(self.batches)

    def goal(self, name: str) -> Goal:
        """What a layer's output is for."""
        return self.questions[name].goal

    def values(
        self, name: str, *, settled: bool
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]]:
        """Input and output of a layer in the network rewritten so far, the target, and what is added to the output.

        With `settled` it is the last time that this layer is asked about.
        """
        now = self.questions[name]
        if settled:
            del self.questions[name]
        before = [now.x] if now.other is None else [now.x, now.other]
        later = list(self.questions.values())
        wanted = [name for q in later for name in (q.x, q.y, q.other) if name is not None]
        rewritten = self.rewritten.ask([*before, now.y], settled=before if settled else [], later=wanted)
        original = self.original.ask(
            [now.total], settled=[now.total] if settled else [], later=[q.total for q in later]
        )
        for ours, theirs in zip(rewritten, original, strict=True):
            yield ours[now.x], ours[now.y], theirs[now.total], None if now.other is None else ours[now.other]
