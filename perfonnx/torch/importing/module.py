"""An ONNX graph as a module, run node by node with torch functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from perfonnx.errors import PerfonnxError
from perfonnx.model import files
from perfonnx.model.constants import fold_constants, read_directly
from perfonnx.model.files import LoadedModel, ModelSource, take_in_data
from perfonnx.model.layers import all_layers, conv_layers
from perfonnx.model.proto import tidy, value_type
from perfonnx.model.shapes import infer_types
from perfonnx.model.signature import fix_input_shapes
from perfonnx.model.tensors import constant_value
from perfonnx.model.validity import check_input
from perfonnx.model.workspace import Workspace
from perfonnx.torch.importing.children import Nursery
from perfonnx.torch.importing.node import Node
from perfonnx.torch.importing.operators import OPERATORS, SETTINGS
from perfonnx.torch.importing.steps import Step, agreed_batch, check_supported, pruned, scaled_steps, scaled_target
from perfonnx.torch.importing.tensors import FLOATS, HALF, constants_of, to_torch, write
from perfonnx.torch.importing.weights import trainable
from perfonnx.torch.modules import Product

_LAYERS = ("Conv", "BatchNormalization")


def from_onnx(
    source: ModelSource, *, input_shapes: Mapping[str, Sequence[int | str | None]] | None = None
) -> OnnxModule:
    """A module that computes what an ONNX model computes, and can be trained.

    Args:
        source: As for `perfonnx.rewrite`. External data are read into memory.
        input_shapes: Sizes for symbolic dimensions, by input name. They are needed only where the pads of a
            convolution depend on them (`auto_pad` with strides): without them, it is no module of its own.

    Raises:
        PerfonnxError: Not a model that can be read, or an operator that has no counterpart here.
    """
    loaded = files.load(source)
    take_in_data(loaded)
    tidy(loaded.proto)
    _compute_weights(loaded)
    check_supported(loaded.proto)
    sized = ModelProto()
    sized.CopyFrom(loaded.proto)
    view = LoadedModel(sized, None, loaded.name)
    fix_input_shapes(view, input_shapes or {})
    workspace = Workspace.open(view)
    check_input(workspace)
    infer_types(workspace)
    return OnnxModule(loaded.proto, workspace)


def _compute_weights(loaded: LoadedModel) -> None:
    """Give weights that are written in another form, or computed from constants, the form in which they are saved."""
    for node in loaded.proto.graph.node:
        if node.op_type == "Constant" and (value := constant_value(node)) is not None:
            node.attribute[0].CopyFrom(helper.make_attribute("value", value))
    workspace = Workspace.open(loaded)
    if fold_constants(workspace):
        layers = [node for node in workspace.graph.nodes if node.op in _LAYERS]
        if any(workspace.behind_identities(t).name in workspace.folded for node in layers for t in node.inputs[1:]):
            read_directly(workspace, layers)
            workspace.commit()


class OnnxModule(nn.Module):
    """An ONNX graph as a module; `from_onnx` makes it.

    Every 2-D convolution with constant weights is a `perfonnx.torch.modules.Conv2d`, every batch normalization with
    constant statistics an `nn.BatchNorm2d`, every dropout an `nn.Dropout`: children of `nodes`, named after their ONNX
    nodes. Other weights are parameters of `weights`, named after their tensors; what else is constant is not
    trained and no part of the state dict. Half precision is computed, and trained, in float32.

    Where the model fixes its batch, others work as far as the graph allows it: a Reshape to constant sizes, of a value
    whose first axis goes with the batch, has its first size scaled from the model's batch to the one at hand.

    Args:
        proto: The model, its data in it.
        workspace: The same model with the types of its tensors; read only here.

    Attributes:
        input_names: Inputs, without those that have a value in the model.
        output_names: Outputs.
        layers: Paths of the convolutions' modules by the names of layers, which are those in plans.
        products: Paths, by the names of layers, at which modules take the places of matrix products with a weight;
            where there is none, the product is computed from `weights`.
    """

    def __init__(self, proto: ModelProto, workspace: Workspace) -> None:
        super().__init__()
        self._proto = proto
        self.nodes, self.weights, self.factored = nn.Module(), nn.Module(), nn.Module()
        self.layers: dict[str, str] = {}
        self._trained: list[tuple[str, str]] = []  # tensor and path, of parameters and statistics
        constants = constants_of(proto)
        inputs = [i for i in proto.graph.input if i.name not in constants]
        self.input_names = tuple(i.name for i in inputs)
        self.output_names = tuple(o.name for o in proto.graph.output)
        self._half = {i.name for i in inputs if i.type.tensor_type.elem_type in HALF}
        self._batch = agreed_batch(value_type(i) for i in inputs)
        nodes = [Node.of(n, workspace.opset) for n in proto.graph.node if n.op_type != "Constant"]
        weights = {name: nn.Parameter(to_torch(constants[name])) for name in trainable(nodes, constants)}
        steps = self._with_modules(nodes, Nursery(nodes, constants, weights, conv_layers(workspace)))
        if self._batch is not None:
            steps = scaled_steps(steps, constants, workspace.types, self._batch)
        self._steps = pruned(steps, self.output_names)
        self._paths: dict[str, str] = {}  # of the constants that functions read
        self._numbers: dict[str, Tensor] = {}  # those that stay on the CPU
        self._averaged: dict[str, Tensor] = {}  # positions of maps, by the names of their averages
        self._keep_constants(constants, weights)
        self.products: dict[str, str] = {}
        self._factors: dict[str, str] = {}  # children of `factored` by the names of products' results
        self._products: dict[str, tuple[str, bool]] = {}  # by name, path of the weight, and whether that is [M, K]
        self._find_products(workspace)

    def _find_products(self, workspace: Workspace) -> None:
        for layer in all_layers(workspace):
            path = None if layer.is_conv or layer.obstacle else self._paths.get(layer.node.inputs[1].name)
            if path is not None:
                child = f"product{len(self.products)}"
                self.products[layer.name], self._factors[layer.output.name] = f"factored.{child}", child
                self._products[layer.name] = path, bool(layer.node.attrs.get("transB", 0))

    def _with_modules(self, nodes: Iterable[Node], nursery: Nursery) -> list[Step]:
        steps = []
        for node in nodes:
            child = nursery.child(node)
            if child is None:
                steps.append(Step(node))
                continue
            name = _free_name(self.nodes, child.name)
            self.nodes.add_module(name, child.module)
            path = f"nodes.{name}"
            if node.op == "Conv":
                self.layers[child.name] = path
            self._trained += [(tensor, f"{path}.{attribute}") for attribute, tensor in child.tensors.items()]
            steps.append(Step(node, path))
        return steps

    def _keep_constants(self, constants: Mapping[str, TensorProto], weights: Mapping[str, nn.Parameter]) -> None:
        """Keep what functions read: weights as parameters, other floats as buffers, and numbers as they are."""
        read, computed_with = set(self.output_names), set(self.output_names)
        for step in self._steps:
            read.update(step.reads)
            computed_with.update(name for i, name in enumerate(step.node.inputs) if not _is_setting(step.node, i))
        in_modules = dict(reversed(self._trained))
        for name in (name for name in constants if name in read):
            if name in in_modules:
                self._paths[name] = in_modules[name]
            elif name in weights:
                self._paths[name] = self._keep(name, weights[name])
                self._trained.append((name, self._paths[name]))
            elif constants[name].data_type in FLOATS and name in computed_with:
                self._paths[name] = self._keep(name, to_torch(constants[name]))
            else:
                self._numbers[name] = to_torch(constants[name])

    def _keep(self, name: str, values: Tensor) -> str:
        """Make a constant a parameter or buffer; its path."""
        attribute = _free_name(self.weights, name)
        if isinstance(values, nn.Parameter):
            self.weights.register_parameter(attribute, values)
        else:
            self.weights.register_buffer(attribute, values, persistent=False)
        return f"weights.{attribute}"

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the graph.

        Args:
            inputs: The first inputs, in the model's order.
            named: Others by their ONNX names.

        Returns:
            The output; a tuple where there are several.

        Raises:
            PerfonnxError: An input is missing or unknown, or an operator cannot do what it is asked for.
        """
        values = self._fed(inputs, named)
        batch = values[self.input_names[0]].shape[:1] if self.input_names else ()
        values |= self._numbers
        values |= {name: attrgetter(path)(self) for name, path in self._paths.items()}
        for step in self._steps:
            results = self._run(step, values, batch)
            values.update(zip(step.node.outputs, results, strict=False))
            for name in step.done:
                values.pop(name, None)
        outputs = tuple(values[name] for name in self.output_names)
        return outputs[0] if len(outputs) == 1 else outputs

    def _fed(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if len(inputs) > len(self.input_names):
            raise PerfonnxError(f"{len(inputs)} inputs given, the model has {len(self.input_names)}")
        fed = {**dict(zip(self.input_names, inputs, strict=False)), **named}
        if fed.keys() != set(self.input_names) or len(fed) < len(inputs) + len(named):
            raise PerfonnxError(f"give each input of the model once: {', '.join(self.input_names)}")
        return {name: value.float() if name in self._half else value for name, value in fed.items()}

    def _run(self, step: Step, values: Mapping[str, Tensor], batch: Sequence[int]) -> Sequence[Tensor]:
        node = step.node
        if step.module is not None:
            return (attrgetter(step.module)(self)(values[node.inputs[0]]),)
        factored = getattr(self.factored, self._factors.get(node.outputs[0], ""), None)
        if factored is not None:
            return (factored(values[node.inputs[0]]),)
        inputs = [values[name] if name else None for name in node.inputs]
        device = next((x.device for x in inputs if x is not None and x.device.type != "cpu"), None)
        if device is not None:
            inputs = [x if x is None or _is_setting(node, i) else x.to(device) for i, x in enumerate(inputs)]
        if step.leading is not None and self._batch is not None:
            x, target = values[node.inputs[0]], values[node.inputs[1]]
            inputs[1] = scaled_target(target, x, step.leading, (batch[0], self._batch))
        if node.outputs[0] in self._averaged and inputs[0] is not None:
            inputs[0] = _averaged(inputs[0], self._averaged[node.outputs[0]])
        try:
            result = OPERATORS[node.op](node, *inputs)
        except RuntimeError as error:
            if node.op != "Reshape":
                raise
            if step.leading is not None and batch[0] != self._batch:
                raise node.refuse(f"the graph is tied to a batch of {self._batch}") from error
            raise node.refuse("its sizes do not fit; feed inputs of the size that the model is made for") from error
        return result if isinstance(result, tuple) else (result,)

    def product(self, name: str) -> Product:
        """One of `products` as the 1x1 convolution of its rows, with its weight; a new module, which is not in this."""
        path, turned = self._products[name]
        weight = attrgetter(path)(self).detach()
        return Product(weight if turned else weight.t())

    def average(self, positions: Mapping[str, NDArray[np.int64]]) -> None:
        """Let averages over whole maps take these flat positions, by the names of results, and the others all."""
        self._averaged = {name: torch.from_numpy(taken) for name, taken in positions.items()}

    def to_onnx(self) -> ModelProto:
        """The model that it was made from, with the weights and statistics as they are now; a copy."""
        model = ModelProto()
        model.CopyFrom(self._proto)
        constants = constants_of(model)
        for tensor, path in self._trained:
            write(constants[tensor], attrgetter(path)(self))
        return model


def _averaged(x: Tensor, positions: Tensor) -> Tensor:
    """A map [N, C, H, W] that holds the mean of some of its positions everywhere."""
    taken = x.flatten(2).index_select(2, positions.to(x.device))
    return taken.mean(dim=2)[:, :, None, None].expand_as(x)


def _is_setting(node: Node, position: int) -> bool:
    return position in SETTINGS.get(node.op, ())


def _free_name(module: nn.Module, name: str) -> str:
    """The name as torch allows it, free in `module`."""
    result = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "unnamed"
    while hasattr(module, result):
        result += "_"
    return result
