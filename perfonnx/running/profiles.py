"""onnxruntime's profiles: sessions that write them, and the layer behind each event."""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import onnx
import onnxruntime as ort

from perfonnx.model.files import LoadedModel
from perfonnx.model.layers import PRODUCTS
from perfonnx.model.proto import is_standard, node_name
from perfonnx.ops import DOMAIN
from perfonnx.running.opened import OpenModel, open_model
from perfonnx.runtime import timed_options

CONVERSIONS = "(layout and type changes)"
"""Row of the copies and casts that onnxruntime inserts around its blocked and its float32 kernels."""


def open_profiled(loaded: LoadedModel, directory: str, *, threads: int | None = None) -> OpenModel:
    """A session that writes a profile into a directory.

    Nodes without a name get one in a copy of the model: a profile knows nodes by name only.
    """
    options = timed_options()
    options.enable_profiling = True
    options.profile_file_prefix = tempfile.mkdtemp(dir=directory) + "/profile"
    if not all(node.name for node in loaded.proto.graph.node):
        loaded = LoadedModel(copy.deepcopy(loaded.proto), loaded.directory, loaded.name)
        for node in loaded.proto.graph.node:
            node.name = node_name(node)
    return open_model(loaded, threads=threads, options=options)


def read_profile(model: OpenModel) -> list[dict[str, Any]]:
    """The events of all runs of a model that `open_profiled` gave; later runs are not profiled."""
    path = Path(cast(ort.InferenceSession, model.session).end_profiling())
    events: list[dict[str, Any]] = json.loads(path.read_bytes())
    return events


def layer_times(events: Sequence[Mapping[str, Any]], names: Names, runs: int) -> dict[str, tuple[str, float]]:
    """Reads onnxruntime's profile.

    Args:
        events: The profile's records.
        names: Finds the node behind an event.
        runs: How many runs count; the last ones, earlier ones being warm-up.

    Returns:
        For each layer, in running order, the operator that ran and the median milliseconds per run.
    """
    return {key: (operator, statistics.median(series)) for key, (operator, series) in layer_runs(events, names, runs)}


def layer_runs(
    events: Sequence[Mapping[str, Any]], names: Names, runs: int
) -> Iterator[tuple[str, tuple[str, list[float]]]]:
    """For each layer, in running order, its operator and its milliseconds in each run; see `layer_times`."""
    spans = sorted(
        (int(event["ts"]), int(event["ts"]) + int(event["dur"])) for event in events if event.get("name") == "model_run"
    )[-runs:]
    kernels = sorted(
        (event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")),
        key=lambda event: int(event["ts"]),
    )
    keys = names.keys((event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]) for event in kernels)
    sums: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in kernels:
        start = int(event["ts"])
        run = next((index for index, (first, last) in enumerate(spans) if first <= start <= last), None)
        if run is None:
            continue
        key = keys[event["name"].removesuffix("_kernel_time")]
        operators.setdefault(key, event["args"]["op_name"])
        sums.setdefault(key, [0.0] * len(spans))[run] += int(event["dur"]) / 1e3
    return ((key, (operators[key], series)) for key, series in sums.items())


_ABSORBED = {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "Add", "Sum", "Mul", "BatchNormalization"}
"""Operators that onnxruntime fuses into the convolution before them."""

_CAST = "InsertedPrecisionFreeCast_"


class Names:
    """Finds the layer behind a name in onnxruntime's profile.

    Optimized graphs rename nodes: a convolution in the blocked layout is called after the last tensor of what was
    fused into it, with `_nchwc` behind; a fused MatMul gets `/MatMulAddFusion`; float16 graphs run in float32
    get `InsertedPrecisionFreeCast_` in front of tensors.

    Args:
        model: The model, with a name on every node.
        base: The names of the model to compare with: layers are called as there, found by their own name or else by
            the tensor they compute.
    """

    def __init__(self, model: onnx.ModelProto, base: Names | None = None) -> None:
        self._order = {node_name(node): index for index, node in enumerate(model.graph.node)}
        self._nodes: dict[str, onnx.NodeProto] = {node_name(node): node for node in model.graph.node}
        self._producers: dict[str, onnx.NodeProto] = {
            name: node for node in model.graph.node for name in node.output if name
        }
        self._base = base

    def keys(self, events: Iterator[tuple[str, str]]) -> dict[str, str]:
        """For each (event name, operator), the name of its layer; the event's own name where none is found."""
        keys: dict[str, str] = {}
        claimed: set[str] = set()
        fused: dict[str, onnx.NodeProto] = {}
        for event, operator in dict(events).items():
            node = self._node(event)
            if operator.startswith("Reorder") or (operator == "Cast" and event.startswith(_CAST)):
                keys[event] = CONVERSIONS
            elif node is None:
                keys[event] = event
            elif "Conv" in operator and not is_conv(node):
                fused[event] = node
            else:
                claimed.add(node_name(node))
                keys[event] = self._key(node)
        # Convolutions that carry their own name are settled: what was fused belongs to one of the others.
        for event, node in sorted(fused.items(), key=lambda item: self._order[node_name(item[1])]):
            conv = self._conv_before(node, claimed)
            claimed.add(node_name(conv or node))
            keys[event] = self._key(conv or node)
        return keys

    def _node(self, event: str) -> onnx.NodeProto | None:
        event = event.removeprefix(_CAST).removeprefix("fused ")
        if event.endswith("_nchwc"):
            # Always called after a tensor; a node may have the same name.
            tensor = event.removesuffix("_nchwc")
            if tensor in self._producers:
                return self._producers[tensor]
        for name in (event, event.rpartition("/")[0]):
            if name in self._nodes:
                return self._nodes[name]
        return self._producers.get(event)

    def _conv_before(self, node: onnx.NodeProto, claimed: set[str]) -> onnx.NodeProto | None:
        """The nearest convolution, not yet claimed, whose result reaches `node` through operators that fuse."""
        level = [node]
        while level:
            nearest = [item for item in level if is_conv(item) and node_name(item) not in claimed]
            if nearest:
                return max(nearest, key=lambda item: self._order[node_name(item)])
            level = [
                self._producers[name]
                for item in level
                if item.op_type in _ABSORBED and not is_conv(item)
                for name in item.input
                if name in self._producers
            ]
        return None

    def _key(self, node: onnx.NodeProto) -> str:
        name = node_name(node)
        if self._base is None or name in self._base._nodes:
            return name
        for tensor in node.output:
            twin = self._base._producers.get(tensor)
            if twin is not None and is_conv(node) and not is_conv(twin):
                # The rewritten layer absorbed what followed the convolution.
                twin = self._base._conv_before(twin, set()) or twin
            if twin is not None:
                return node_name(twin)
        return name


def is_conv(node: onnx.NodeProto) -> bool:
    """True for convolutions, ours among them."""
    return "Conv" in node.op_type and (is_standard(node) or node.domain == DOMAIN)


def is_product(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    """True for matrix products with one of these constants for a weight."""
    return is_standard(node) and node.op_type in PRODUCTS and len(node.input) > 1 and node.input[1] in constants
