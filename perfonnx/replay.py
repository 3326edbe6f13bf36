"""Runs a network piece by piece over a set of inputs, keeping what the next piece needs where it fits into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from perfonnx import ops, runtime
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.files import LoadedModel
from perfonnx.model.proto import used_names
from perfonnx.model.signature import fed_inputs
from perfonnx.model.tensors import is_external, to_array

Values: TypeAlias = dict[str, NDArray[Any]]

_IR_VERSION = 8  # the first with model-local functions


class Replay:
    """Intermediate values of a network, asked for from front to back.

    Values on the way are kept for all batches, so that the next question starts there, where all of them together take
    no more than `memory` bytes; else it starts where the last one did, at worst at the inputs. One batch more than
    that is in memory at a time.

    Args:
        model: The message whose opset, functions and initializers count.
        nodes: Gives the nodes, in topological order. They may change between two questions behind what was asked for.
        added: Initializers beside the message's.
        batches: The inputs; iterated again where nothing is kept.
        memory: Bytes.
    """

    def __init__(
        self,
        model: LoadedModel,
        nodes: Callable[[], Sequence[NodeProto]],
        added: Mapping[str, TensorProto],
        batches: Iterable[Mapping[str, NDArray[Any]]],
        memory: int,
    ) -> None:
        self.model = model
        self.nodes = nodes
        self.added = added
        self.batches = batches
        self.memory = memory
        self.count = 0  # batches, known after the first question
        self.kept: list[Values] | None = None

    def ask(self, wanted: Sequence[str], *, settled: Sequence[str], later: Sequence[str]) -> Iterator[Values]:
        """The values of `wanted`, batch by batch.

        Args:
            wanted: Tensor names.
            settled: Those of them in front of which no node will change any more. What later questions need of the
                values up to there is kept.
            later: Tensors that later questions may ask for.

        Raises:
            PerfonnxError: onnxruntime cannot run the network on the inputs.
        """
        nodes = self.nodes()
        starts = self._starts()
        done, _ = _trace(nodes, settled, starts)
        computed = starts | {name for node in done for name in node.output}
        _, live = _trace(nodes, later, computed)
        part, feeds = _trace(nodes, [*wanted, *live], starts)
        run = self._runner(part, feeds, [n for n in {*wanted, *live} if n not in starts])
        source, self.kept = self.kept, self.kept
        kept: list[Values] | None = []
        for number, batch in enumerate(self.batches if source is None else source):
            for name in feeds - batch.keys():
                raise PerfonnxError(f"the calibration data has nothing for input '{name}'")
            values = {**{name: np.asarray(batch[name]) for name in feeds}, **run(batch)}
            if kept is not None:
                kept.append({name: values[name] for name in live})
                size = sum(array.nbytes for one in kept for array in one.values())
                if size / len(kept) * max(self.count, len(kept)) > self.memory:
                    kept = None
            yield {name: values[name] for name in wanted}
            self.count = max(self.count, number + 1)
        if kept is not None:
            self.kept = kept

    def _starts(self) -> set[str]:
        if self.kept:
            return set(self.kept[0])
        return {info.name for info in fed_inputs(self.model.proto.graph)}

    def _runner(
        self, nodes: Sequence[NodeProto], feeds: Collection[str], outputs: Sequence[str]
    ) -> Callable[[Mapping[str, NDArray[Any]]], Values]:
        """A function from a batch that holds `feeds` to the values of `outputs`; its session opens when first run."""
        session = None

        def run(batch: Mapping[str, NDArray[Any]]) -> Values:
            nonlocal session
            if not outputs:
                return {}
            feed = {name: batch[name] for name in feeds}
            if session is None:
                options = runtime.quiet_options()
                # threads that spin between two runs take the processor from the work that is done there
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantSharing")
                session = runtime.session(self._piece(nodes, feed, outputs), options=options)
            try:
                return dict(zip(outputs, session.run(outputs, feed), strict=True))
            except Exception as error:  # onnxruntime raises types of its own that it does not export
                raise PerfonnxError(
                    f"{self.model.name}: onnxruntime cannot run it on the calibration data: {one_line(error)}"
                ) from error

        return run

    def _piece(self, nodes: Sequence[NodeProto], feed: Values, outputs: Sequence[str]) -> ModelProto:
        source = self.model.proto
        piece = ModelProto(ir_version=max(source.ir_version, _IR_VERSION))
        piece.opset_import.extend(source.opset_import)
        if all(imported.domain != ops.DOMAIN for imported in piece.opset_import):
            piece.opset_import.append(helper.make_opsetid(ops.DOMAIN, ops.VERSION))
        piece.functions.extend(source.functions)
        graph = piece.graph
        graph.name = "piece"
        graph.node.extend(nodes)
        for name, values in feed.items():
            shape = [None, *values.shape[1:]] if values.ndim else []
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, shape))
        graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
        used = set(used_names(nodes)) - feed.keys()
        directory = self.model.directory
        graph.initializer.extend(_inside(t, directory) for t in source.graph.initializer if t.name in used)
        graph.initializer.extend(t for name, t in self.added.items() if name in used)
        _give_own_halves(graph)
        graph.sparse_initializer.extend(t for t in source.graph.sparse_initializer if t.values.name in used)
        return piece


def ancestors(nodes: Sequence[NodeProto], names: Sequence[str]) -> set[str]:
    """The tensors from which `names` are made, these included."""
    part, _ = _trace(nodes, names, ())
    return {name for node in part for name in node.output}.union(names)


def _trace(
    nodes: Sequence[NodeProto], wanted: Sequence[str], stop: Collection[str]
) -> tuple[list[NodeProto], set[str]]:
    """The nodes that make `wanted` from the tensors in `stop`, in order, and which of these they read."""
    producer = {name: node for node in nodes for name in node.output if name}
    todo, seen, reached, chosen = list(wanted), set(wanted), set(), set()
    while todo:
        name = todo.pop()
        if name in stop:
            reached.add(name)
            continue
        node = producer.get(name)
        if node is None or id(node) in chosen:
            continue
        chosen.add(id(node))
        for read in used_names([node]):
            if read not in seen:
                seen.add(read)
                todo.append(read)
    return [node for node in nodes if id(node) in chosen], reached


def _give_own_halves(graph: GraphProto) -> None:
    """Give each of our layers float16 constants that nobody else reads: onnxruntime folds no cast of shared ones."""
    halves = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    readers = Counter(name for name in used_names(graph.node) if name in halves) if halves else Counter[str]()
    for node in graph.node:
        for i, name in enumerate(node.input if node.domain == ops.DOMAIN else ()):
            if readers[name] > 1:
                readers[name] -= 1
                own = graph.initializer.add()
                own.CopyFrom(halves[name])
                own.name = node.input[i] = f"{name}.{node.name}.own"


def _inside(tensor: TensorProto, directory: Path | None) -> TensorProto:
    """A tensor with its data in it."""
    return numpy_helper.from_array(to_array(tensor, directory), tensor.name) if is_external(tensor) else tensor
