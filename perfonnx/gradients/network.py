"""The model as gradients see it: standard operators only, with the shapes and constants of one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter
from onnx import ModelProto, NodeProto, helper, numpy_helper

from perfonnx import ops, runtime
from perfonnx.data.inputs import Array, Feed
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model import files
from perfonnx.model.files import LoadedModel, ModelSource, take_in_data
from perfonnx.model.proto import default_opset, node_name, operator_name, subgraphs, tidy, value_type
from perfonnx.model.signature import fed_inputs

_RANDOM = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Multinomial Bernoulli".split()  # noqa: SIM905
)
_ABOUT_SHAPES = ("Shape", "Size")
_PREFIX = "perfonnx.shape."


@dataclass(frozen=True)
class Node:
    """A node with the shapes and constants of one batch.

    Attributes:
        proto: The node.
        opset: Version of the standard operators.
        shapes: Shape of each tensor by name.
        constants: Values of the tensors that are the same for all batches of these shapes.
        active: Names of the tensors whose gradient is asked for, or leads to one.
    """

    proto: NodeProto
    opset: int
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Array]
    active: frozenset[str]

    @property
    def op(self) -> str:
        """The operator's name, behind its domain where that is not the standard one."""
        return operator_name(self.proto)

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the inputs; empty for one that is left out."""
        return self.proto.input

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        return self.proto.output

    def has(self, position: int) -> bool:
        """Whether an input is there."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def wants(self, position: int) -> bool:
        """Whether the gradient of an input is needed."""
        return self.has(position) and self.inputs[position] in self.active

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of an input."""
        return self.shapes[self.inputs[position]]

    def output_shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of an output."""
        return self.shapes[self.outputs[position]]

    def constant(self, position: int) -> Array | None:
        """The values of an input that is constant, else None."""
        return self.constants.get(self.inputs[position]) if self.has(position) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; text as `str`."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front."""
        return int(self.attribute("axis", default)) % (len(self.shape()) if rank is None else rank)

    def refuse(self, why: str) -> PerfonnxError:
        """The error of a node that has no gradient; `why` goes on after its name."""
        return PerfonnxError(f"node {node_name(self.proto)!r} ({self.op}): {why}")


def inputs_of(proto: NodeProto) -> Iterator[str]:
    """The tensors whose values a node depends on, those that its bodies read included."""
    if proto.op_type in _ABOUT_SHAPES:
        return
    yield from (name for name in proto.input[: 1 if proto.op_type == "CastLike" else None] if name)
    for graph in subgraphs(proto):
        for node in graph.node:
            yield from (name for name in node.input if name)
            yield from inputs_of(node)
        yield from (output.name for output in graph.output)


class Network:
    """A model ready for gradients: weights in memory, functions inlined.

    Attributes:
        name: Name for messages.
        proto: The model, made of operators only. Names of tensors outside of functions are those of the model.
        opset: Version of the standard operators.
    """

    def __init__(self, model: ModelSource) -> None:
        loaded = files.load(model)
        self.name = loaded.name
        take_in_data(loaded)
        tidy(loaded.proto)
        self.proto = _inlined(loaded)
        self.opset = default_opset(self.proto) or 0
        self.initializers = {t.name: t for t in self.proto.graph.initializer}
        self.feeds = [info.name for info in fed_inputs(self.proto.graph)]
        self.tensors = frozenset([*self.feeds, *self.initializers, *(o for n in self.nodes for o in n.output if o)])
        self.producers = {name: node for node in self.nodes for name in node.output if name}

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """The nodes of the main graph, in order."""
        return self.proto.graph.node

    @property
    def output_names(self) -> list[str]:
        """Names of the model's outputs."""
        return [o.name for o in self.proto.graph.output]

    def batch(self) -> int | None:
        """The number of samples that the model's first input is made for; None where it is open."""
        for info in self.proto.graph.input:
            if info.name in self.feeds:
                known = value_type(info)
                first = known.shape[0] if known and known.shape else None
                return first if isinstance(first, int) and first > 0 else None
        return None

    def session(self, outputs: Iterable[str], threads: int | None) -> Any:
        """A session whose outputs include the given tensors."""
        proto = self._with_outputs([name for name in outputs if name not in self.output_names])
        return runtime.session(proto, threads=threads, library=False)

    def measure(
        self, tensors: Iterable[str], nodes: Sequence[NodeProto], feeds: Feed
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, Array]]:
        """Runs the model once, for the shapes of some tensors and for the constants that some nodes read.

        Returns:
            Shapes by name, for `tensors`; values by name. What only depends on shapes is constant.
        """
        fixed = self._constants()
        known = {name: numpy_helper.to_array(t) for name, t in self.initializers.items()}
        computed = {name for node in nodes for name in node.input if name in fixed and name not in known}
        names = list(dict.fromkeys(tensors))
        proto = self._with_outputs([name for name in sorted(computed) if name not in self.output_names])
        for index, name in enumerate(names):
            proto.graph.node.append(helper.make_node("Shape", [name], [f"{_PREFIX}{index}"]))
            proto.graph.output.append(helper.make_empty_tensor_value_info(f"{_PREFIX}{index}"))
        # Optimized, Shape would be what onnx infers, which for some pools is not what onnxruntime computes.
        options = runtime.quiet_options(optimized=False)
        session = runtime.session(proto, library=False, options=options)
        wanted = [*(f"{_PREFIX}{index}" for index in range(len(names))), *sorted(computed)]
        results = runtime.run(session, wanted, feeds, self.name) if wanted else []
        shapes = {name: tuple(int(d) for d in shape) for name, shape in zip(names, results, strict=False)}
        values = dict(zip(sorted(computed), results[len(names) :], strict=True))
        return shapes, {**known, **values}

    def _constants(self) -> frozenset[str]:
        """The tensors that do not change while the shapes of the inputs stay as they are."""
        fixed = set(self.initializers)  # those that are inputs too keep their values: nothing else is ever fed
        for node in self.nodes:
            if node.op_type not in _RANDOM and all(name in fixed for name in inputs_of(node)):
                fixed.update(node.output)
        return frozenset(fixed)

    def _with_outputs(self, names: Sequence[str]) -> ModelProto:
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
        return proto


def _inlined(loaded: LoadedModel) -> ModelProto:
    """The model with the calls of its functions replaced by their bodies."""
    proto = loaded.proto
    bodies = {function.name for function in proto.functions if function.domain == ops.DOMAIN}
    bare = [n for n in proto.graph.node if n.domain == ops.DOMAIN and n.op_type not in bodies]
    if bare:
        raise PerfonnxError(
            f"{loaded.name}: {bare[0].op_type} {node_name(bare[0])!r} has no function body, which its gradient is made "
            "from; rewrite the model without --no-fallback"
        )
    if not proto.functions:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:  # the C++ side throws several kinds
        raise PerfonnxError(f"{loaded.name}: its functions cannot be inlined: {one_line(error)}") from error
