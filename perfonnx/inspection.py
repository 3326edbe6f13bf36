"""`inspect`: what convolutions a model has, what they cost, and which can be rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from perfonnx.model.files import ModelSource
from perfonnx.model.layers import (
    conv_layers,
    following_pool,
    layer_output,
    rewritten_nodes,
    unreachable_convs,
)
from perfonnx.model.shapes import contradiction_note, infer_types
from perfonnx.model.signature import load_fixed
from perfonnx.model.validity import check_input
from perfonnx.model.workspace import Workspace
from perfonnx.multiplies import conv_multiplies, not_counted, other_multiplies
from perfonnx.ops.common import conv_attributes
from perfonnx.passes import negligible
from perfonnx.rewriting import LITTLE_TO_GAIN, missing_flags, multiplies_of_rewritten

DONE = "already rewritten"


@dataclass(frozen=True)
class ConvInfo:
    """One convolution.

    Attributes:
        name: Layer name, as --only, --skip and plans take it.
        op: Conv, or the operator that it was rewritten to.
        weight: [M, C/group, kh, kw]; empty where unknown.
        strides: Along height and width; empty where unknown.
        group: Number of groups.
        output: (OH, OW); None where unknown.
        multiplies: Per image; None where unknown.
        share: Part of the model's multiplies.
        pool: A pooling layer follows.
        reason: Why it is left alone by default; None where it is rewritten.
    """

    name: str
    op: str
    weight: tuple[int, ...]
    strides: tuple[int, ...]
    group: int
    output: tuple[int, int] | None
    multiplies: int | None
    share: float
    pool: bool
    reason: str | None


@dataclass
class Inspection:
    """All convolutions of a model.

    Attributes:
        model: Its name.
        opset: Of the default domain.
        convs: In graph order; those that rewriting does not go into come last.
        multiplies: The whole model's, per image.
        not_counted: Layers that are not in it, such as `2 LSTM of unknown shape`.
        missing: Flags without which layers could not be looked at, each with the number of these layers.
        notes: What else there is to say of the model as a whole.
    """

    model: str
    opset: int
    convs: list[ConvInfo] = field(default_factory=list)
    multiplies: int = 0
    not_counted: list[str] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def eligible_share(self) -> float:
        """Part of the multiplies in layers that are rewritten by default."""
        return sum(c.share for c in self.convs if c.reason is None)

    @property
    def little_to_gain(self) -> bool:
        """Whether rewriting this model can hardly make it faster; False where a flag is missing to tell."""
        return self.multiplies > 0 and self.eligible_share < LITTLE_TO_GAIN and not self.missing

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "eligible_share": self.eligible_share, "little_to_gain": self.little_to_gain}


def inspect(
    model: ModelSource,
    *,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    freeze_weights: bool = False,
) -> Inspection:
    """List a model's convolutions.

    Args:
        model: As for `perfonnx.rewrite`.
        input_shapes: Sizes for symbolic dimensions, by input name.
        freeze_weights: Look at the model with initializers constant that are also graph inputs.

    Raises:
        PerfonnxError: Not a model that can be read.
    """
    loaded = load_fixed(model, input_shapes, freeze=freeze_weights)
    workspace = Workspace.open(loaded)
    check_input(workspace)
    infer_types(workspace)
    layers = {id(layer.node): layer for layer in conv_layers(workspace)}
    multiplies = dict(zip(layers, conv_multiplies(workspace, list(layers.values())), strict=True))
    ours = {id(node): node for node in rewritten_nodes(workspace)}
    found: list[ConvInfo] = []
    for node in workspace.graph.nodes:
        if id(node) in layers:
            layer = layers[id(node)]
            geometry = layer.attributes
            found.append(
                ConvInfo(
                    layer.name,
                    "Conv",
                    layer.w_shape,
                    geometry.strides if geometry else (),
                    geometry.group if geometry else 1,
                    layer.output_shape,
                    multiplies[id(node)],
                    0.0,
                    following_pool(workspace, layer) is not None,
                    layer.obstacle or layer.reservation,
                )
            )
        elif id(node) in ours:
            found.append(_rewritten(workspace, node))
    total = sum(c.multiplies or 0 for c in found) + other_multiplies(workspace)
    small = negligible([c.multiplies or 0 for c in found if c.reason in (None, DONE)], total)
    convs = []
    for conv in found:
        share = (conv.multiplies or 0) / max(total, 1)
        reason = conv.reason
        if reason is None and (conv.multiplies or 0) <= small:
            reason = f"carries only {share:.1%} of the multiplies"
        convs.append(ConvInfo(**{**vars(conv), "share": share, "reason": reason}))
    convs += [
        ConvInfo(u.name, "Conv", (), (), 1, None, None, 0.0, False, u.reason) for u in unreachable_convs(workspace)
    ]
    note = contradiction_note(workspace)
    return Inspection(
        loaded.name,
        workspace.opset,
        convs,
        total,
        not_counted(workspace),
        missing_flags(workspace, list(layers.values())),
        [note] if note else [],
    )


def _rewritten(workspace: Workspace, node: Any) -> ConvInfo:
    w = workspace.constant(node.inputs[1])
    shape = () if w is None else w.shape
    geometry = None if w is None else conv_attributes(w, node.attrs)
    return ConvInfo(
        node.name,
        node.op,
        shape,
        geometry.strides if geometry else (),
        geometry.group if geometry else 1,
        layer_output(workspace, node),
        multiplies_of_rewritten(workspace, node),
        0.0,
        False,
        DONE,
    )
