"""Nodes that become modules: convolutions, batch normalization, dropout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from onnx import TensorProto
from torch import Tensor, nn

from perfonnx.model.layers import Layer
from perfonnx.torch.importing.node import Node
from perfonnx.torch.importing.tensors import FLOATS, to_torch
from perfonnx.torch.modules import Conv2d


@dataclass(frozen=True)
class Child:
    """A module for a node.

    Attributes:
        module: The module; it computes the node's output from its first input.
        name: What it is named after.
        tensors: Names of the model's tensors behind its parameters and buffers.
    """

    module: nn.Module
    name: str
    tensors: Mapping[str, str] = field(default_factory=dict)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization of a value of any rank from 2 on."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class Nursery:
    """Makes the modules.

    Args:
        nodes: The graph.
        constants: Constant tensors by name.
        weights: Those of them that are trained.
        layers: The convolutions.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        constants: Mapping[str, TensorProto],
        weights: Mapping[str, nn.Parameter],
        layers: Sequence[Layer],
    ) -> None:
        self._constants = constants
        self._weights = weights
        self._layers = {layer.output.name: layer for layer in layers}
        self._aliases = {node.outputs[0]: node.inputs[0] for node in nodes if node.op == "Identity"}
        self._statistics: set[str] = set()

    def child(self, node: Node) -> Child | None:
        """The module for a node; None where a function is to compute it.

        Raises:
            PerfonnxError: The node asks for what cannot be done.
        """
        names = [self._origin(name) for name in node.inputs]
        if node.op == "Conv":
            return self._conv(self._layers[node.outputs[0]], names)
        if node.op == "BatchNormalization":
            return self._batch_norm(node, names)
        return self._dropout(node, names) if node.op == "Dropout" else None

    def _origin(self, name: str) -> str:
        """The tensor that Identity nodes pass on under this name."""
        while name in self._aliases:
            name = self._aliases[name]
        return name

    def _conv(self, layer: Layer, names: list[str]) -> Child | None:
        geometry = layer.attributes
        parameters = dict(zip(("weight", "bias"), (name for name in names[1:] if name), strict=False))
        if geometry is None or not all(name in self._weights for name in parameters.values()):
            return None
        module = Conv2d(
            layer.w_shape[1] * geometry.group,
            layer.w_shape[0],
            geometry.kernel_shape,
            geometry.strides,
            geometry.pads,
            geometry.dilations,
            geometry.group,
            "bias" in parameters,
            device="meta",
        )
        return self._with_weights(module, layer.name, parameters)

    def _batch_norm(self, node: Node, names: list[str]) -> Child | None:
        """Statistics that two nodes share are left as they are: training would mix them."""
        if node.flag("training_mode") or node.attribute("spatial", 1) != 1 or any(node.outputs[1:]):
            raise node.refuse("only the form for inference is supported; export the model in evaluation mode")
        scale, bias, mean, var = names[1:5]
        own = {mean, var} - self._statistics - self._weights.keys()
        tensors = [self._constants.get(name) for name in (mean, var)]
        if len(own) < 2 or not {scale, bias} <= self._weights.keys() or None in tensors:
            return None
        self._statistics |= own
        momentum = 1 - node.attribute("momentum", 0.9)
        channels = self._weights[scale].numel()
        module = BatchNorm(channels, node.attribute("epsilon", 1e-5), momentum, device="meta")
        module.running_mean, module.running_var = (to_torch(t) for t in tensors if t is not None)
        module.num_batches_tracked = torch.tensor(0)
        child = self._with_weights(module, node.name, {"weight": scale, "bias": bias})
        return Child(module, node.name, {**child.tensors, "running_mean": mean, "running_var": var})

    def _with_weights(self, module: nn.Module, name: str, parameters: dict[str, str]) -> Child:
        for attribute, tensor in parameters.items():
            setattr(module, attribute, self._weights[tensor])
        return Child(module, name, parameters)

    def _dropout(self, node: Node, names: list[str]) -> Child:
        """The ratio is an attribute before version 12, and an input from then on."""
        ratio = node.attribute("ratio", 0.5)
        if len(names) > 1 and names[1]:
            if names[1] not in self._constants or self._constants[names[1]].data_type not in FLOATS:
                raise node.refuse("its ratio is not constant")
            ratio = to_torch(self._constants[names[1]]).item()
        return Child(nn.Dropout(ratio), node.name)
