"""What can be counted of a network instead of measured: its multiplies, and the bytes of its file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto

from perfonnx.model.files import LoadedModel, has_external_data, model_bytes
from perfonnx.model.proto import node_name
from perfonnx.model.tensors import tensor_bytes
from perfonnx.plan import Plan
from perfonnx.search.result import MULTIPLIES, SIZE
from perfonnx.search.timing import OTHER, owning_layers
from perfonnx.subject import Subject


@dataclass(frozen=True)
class Counts:
    """Counts what plans make of a network, exactly.

    Attributes:
        subject: The model.
        kind: What `layers` counts: `MULTIPLIES` or `SIZE`.
        fallback: Whether operators get function bodies, which are part of the file.
    """

    subject: Subject
    kind: str = MULTIPLIES
    fallback: bool = True

    def network(self, plan: Plan) -> dict[str, tuple[int, int]]:
        """Multiplies per image and bytes of the file, of the original and of the network rewritten by a plan."""
        rewritten = self.subject.shaped(plan, fallback=self.fallback)
        return {
            MULTIPLIES: rewritten.report.multiplies,
            SIZE: (_file_bytes(self.subject.original()), _file_bytes(rewritten.model)),
        }

    def layers(self, plan: Plan) -> dict[str, float]:
        """See `Timer.layers`: each layer's count in the network rewritten by a plan, as a part of the original's."""
        if self.kind == SIZE:
            model = self.subject.shaped(plan).model if plan.layers else self.subject.original()
            return _bytes_by_layer(model.proto, _file_bytes(model), _file_bytes(self.subject.original()))
        counts = dict(self._multiplies)
        whole = total = sum(counts.values())
        if plan.layers:
            report = self.subject.shaped(plan).report
            total = report.multiplies[1]
            counts |= {layer.name: layer.multiplies[1] for layer in report.layers}
        counts[OTHER] += total - sum(counts.values())
        return {name: count / max(whole, 1) for name, count in counts.items()}

    @cached_property
    def _multiplies(self) -> dict[str, int]:
        """The original's, by layer."""
        inspection = self.subject.inspect()
        known = {conv.name: conv.multiplies or 0 for conv in inspection.convs}
        known |= {layer.name: layer.multiplies or 0 for layer in self.subject.layers()}
        return {**known, OTHER: inspection.multiplies - sum(known.values())}


def _file_bytes(model: LoadedModel) -> int:
    return model.proto.ByteSize() + (model_bytes(model) if has_external_data(model) else 0)


def _bytes_by_layer(proto: ModelProto, total: int, whole: int) -> dict[str, float]:
    """Bytes of each layer's constants, as parts of the original's file; a tensor belongs to the first that reads it."""
    owners = owning_layers(proto)
    sizes = {tensor.name: tensor_bytes(tensor) for tensor in proto.graph.initializer}
    found = dict.fromkeys([name for name in owners if owners[name] == name], 0)
    for node in proto.graph.node:
        owner = owners.get(node_name(node), OTHER)
        found[owner] = found.get(owner, 0) + sum(sizes.pop(name, 0) for name in node.input)
    found[OTHER] = found.get(OTHER, 0) + total - sum(found.values())
    return {name: size / max(whole, 1) for name, size in found.items()}
