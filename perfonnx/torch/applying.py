"""Into training and out of it: a plan makes layers trainable counterparts, and `export` the rewritten model of them."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perfonnx import corrections as correction_files
from perfonnx.corrections import Correction, Corrections
from perfonnx.errors import PerfonnxError, one_line
from perfonnx.masks import ImpactMaps, Mask
from perfonnx.methods import SAMPLING
from perfonnx.methods.sparse import BEFORE_NORMALIZATION, Sparse
from perfonnx.passes import Skip
from perfonnx.plan import MEANS, Plan
from perfonnx.rewriting import Choice, Rewritten, decide, rewrite
from perfonnx.torch.modules import (
    Conv2d,
    MaskedConv2d,
    Product,
    RadiusAdaptiveConv2d,
    SampledConv2d,
    explicit_pads,
    plain,
)

NO_MODULE = "no convolution module of its own stands for it"
NOT_FITTED = "its training goes on from a fit, which is not here; take a plan saved after rewriting with data"

Example = Tensor | Sequence[Tensor]


@runtime_checkable
class OnnxBacked(Protocol):
    """A network that knows the ONNX model it stands for, see `perfonnx.torch.from_onnx`.

    Attributes:
        layers: Paths of modules by the names of layers.
        products: Paths at which modules may stand for matrix products.
    """

    layers: dict[str, str]
    products: dict[str, str]

    def product(self, name: str) -> Product:
        """One of them as the convolution of its rows."""
        ...

    def to_onnx(self) -> onnx.ModelProto:
        """The model with the weights as they are now."""
        ...

    def average(self, positions: Mapping[str, NDArray[np.int64]]) -> None:
        """Let averages over whole maps take these flat positions, by the names of results, and the others all."""
        ...


@dataclass
class Applied:
    """What `apply` did: paths of the modules by layer name, and the layers left alone, with reasons."""

    modules: dict[str, str] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)


def apply(
    model: nn.Module,
    plan: Plan | str | os.PathLike[str] | None = None,
    example: Example | None = None,
    *,
    masks: Mapping[str, Mask] | None = None,
    impact_maps: ImpactMaps | None = None,
    corrections: Corrections | None = None,
    **choices: Any,
) -> Applied:
    """Turn layers into their trainable counterparts, in place.

    Parameters keep their names and their identity, so that optimizers made before go on working. A plan may be applied
    to a network that has such layers already: all of them are chosen anew, and radius-adaptive ones keep their gates.
    Layers on sublattices and low-rank ones get new ones, what was fitted for them: make optimizers after that.

    Args:
        model: Any network that `torch.onnx.export` understands, or one from `from_onnx`.
        plan: A plan or the path of one, as for `perfonnx.rewrite`. Layers go by the paths of their modules
            (`layer1.0.conv1`), in a network from `from_onnx` by their names in the ONNX model.
        example: Inputs that the network can run with; their sizes decide the sizes of masks, their batch nothing. Not
            needed for a network from `from_onnx`, nor if the network was given to `apply` before.
        masks: Masks by layer name that take the place of the plan's.
        impact_maps: What the mask `impact` is made from.
        corrections: What layers were fitted with that train such results, in place of what was saved with the plan.
        **choices: Without a plan, the fields of `perfonnx.Options` (`rate=0.5, mask="grid"`).

    Returns:
        What was done.

    Raises:
        PerfonnxError: Bad input or usage. The network is as it was then.
    """
    if plan is not None and choices:
        raise PerfonnxError("a plan says everything; give it alone, without options")
    dense, modules = dense_onnx(model, example)
    skips: list[Skip] = []
    if plan is None:
        plan, skips = _planned(dense, modules, impact_maps, {"method": SAMPLING, **choices})
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    decided, refused, averaged = decide(dense, plan, masks=masks, impact_maps=impact_maps)
    if corrections is None:
        corrections = {} if plan.corrections is None else correction_files.load(plan.file("corrections"))
    layers = {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if isinstance(model, OnnxBacked):
        wanted = {path: name for name, path in model.products.items() if name in decided and path not in layers}
        layers |= {path: model.product(name) for path, name in wanted.items()}
    for name, choice in decided.items():  # all of them, before a weight is touched
        try:
            _check(layers, modules.get(name), choice)
            if choice.plan.trains_correction and name not in corrections:
                raise PerfonnxError(NOT_FITTED)
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {name!r}: {error}") from error
    new: dict[str, nn.Module] = {
        modules[n]: _counterpart(n, layers[modules[n]], choice, corrections.get(n)) for n, choice in decided.items()
    }
    for path, old in sampled_modules(model).items():
        if path in new:
            continue
        if isinstance(old, Product):
            parent, _, child = path.rpartition(".")
            delattr(model.get_submodule(parent), child)
        else:
            model.set_submodule(path, plain(old))
    for path, module in new.items():
        model.set_submodule(path, module)
    if isinstance(model, OnnxBacked):
        model.average(averaged)
    return Applied({name: modules[name] for name in decided}, skips + refused)


def _planned(
    dense: onnx.ModelProto, modules: Mapping[str, str], impact_maps: ImpactMaps | None, choices: Mapping[str, Any]
) -> tuple[Plan, list[Skip]]:
    """The plan that options make of the layers that have a module, and the other layers."""
    rewritten = rewrite(dense, fallback=False, impact_maps=impact_maps, **choices)
    layers = {name: layer for name, layer in rewritten.plan.layers.items() if name in modules}
    without = [Skip(name, NO_MODULE) for name in rewritten.plan.layers if name not in modules]
    return replace(rewritten.plan, layers=layers), rewritten.report.skips + without


def _check(layers: Mapping[str, nn.Conv2d], path: str | None, choice: Choice) -> None:
    """Raise `PerfonnxError` for what has no trainable counterpart."""
    if path is None:
        raise PerfonnxError(f"{NO_MODULE}; take it out of the plan")
    explicit_pads(layers[path])
    shared = sum(layer.weight is layers[path].weight for layer in layers.values()) > 1
    obstacle = choice.plan.training_obstacle(normalized=choice.folds_normalization, shared=shared)
    if obstacle is not None:
        raise PerfonnxError(obstacle)


def _counterpart(name: str, old: nn.Conv2d, choice: Choice, correction: Correction | None) -> SampledConv2d:
    try:
        module = choice.plan.trainable(old, choice.mask, correction)
    except PerfonnxError as error:
        raise PerfonnxError(f"layer {name!r}: {error}") from error
    if module is None:
        raise PerfonnxError(f"what {choice.plan.label} makes of a layer cannot be trained; take it out of the plan")
    module.planned = choice.plan
    return module


def sampled_modules(model: nn.Module) -> dict[str, SampledConv2d]:
    """The trainable counterparts in a network, by their paths."""
    return {path: module for path, module in model.named_modules() if isinstance(module, SampledConv2d)}


def export(
    model: nn.Module,
    output: str | os.PathLike[str] | None = None,
    example: Example | None = None,
    **options: Any,
) -> Rewritten:
    """The rewritten model of a network with trained layers: what `perfonnx.rewrite` makes of its dense twin.

    Args:
        model: The network; `apply` made its layers.
        output: Where to write the result; None: nowhere.
        example: See `apply`.
        **options: Further arguments of `perfonnx.rewrite`, such as `layout` and `fallback`.

    Raises:
        PerfonnxError: It cannot be exported, or `rewrite` refuses. Nothing has been written then.
    """
    dense, modules = dense_onnx(model, example)
    paths = {path: name for name, path in modules.items()}
    # In a network of PyTorch's own, averages read whole maps in training, so that they do in its model.
    plan, masks, gates = Plan(means=MEANS[0 if isinstance(model, OnnxBacked) else 1]), {}, {}
    corrections = trained_corrections(model, modules)
    for path, module in sampled_modules(model).items():
        name, planned = paths[path], module.planned
        if isinstance(module, MaskedConv2d):
            masks[name] = module.mask.cpu().numpy()
        if isinstance(module, RadiusAdaptiveConv2d):
            gates[name] = module.trained_gate()
        if isinstance(planned, Sparse):
            planned = replace(planned, fill=BEFORE_NORMALIZATION)
        plan.layers[name] = planned
    return rewrite(dense, output, plan=plan, masks=masks, gates=gates, corrections=corrections, **options)


def trained_corrections(model: nn.Module, modules: Mapping[str, str]) -> Corrections:
    """By layer name, what became of that with which layers were fitted; `modules` has the layers' paths."""
    sampled = sampled_modules(model)
    found = ((name, sampled[path].trained()) for name, path in modules.items() if path in sampled)
    return {name: correction for name, correction in found if correction is not None}


def dense_onnx(model: nn.Module, example: Example | None = None) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The dense twin of a network as an ONNX model, and the paths of its convolutions' modules by layer name.

    In a network that is not from ONNX layers are named by the paths of their modules.

    Raises:
        PerfonnxError: No example was ever given, or PyTorch cannot export the network.
    """
    if isinstance(model, OnnxBacked):
        return model.to_onnx(), {**model.layers, **model.products}
    inputs = _remembered(model, example)
    weights = {f"{path}.weight": path for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    with _dense_twin(model) as twin:
        proto = _exported(twin, inputs)
    convs = [node for node in proto.graph.node if node.op_type == "Conv" and node.input[1] in weights]
    uses = Counter(node.input[1] for node in convs)
    modules = {}
    for node in convs:
        if uses[node.input[1]] == 1:
            node.name = weights[node.input[1]]
            modules[node.name] = node.name
    return proto, modules


def _remembered(model: nn.Module, example: Example | None) -> tuple[Tensor, ...]:
    """The example, or that of an earlier call; a batch of one is doubled, since exporters take a 1 for a constant."""
    if example is not None:
        given = (example,) if isinstance(example, Tensor) else tuple(example)
        model._perfonnx_example = tuple(torch.cat([x, x]) if len(x) == 1 else x for x in given)  # type: ignore[assignment]
    if not hasattr(model, "_perfonnx_example"):
        raise PerfonnxError("give example inputs, such as torch.zeros(1, 3, 224, 224); they say how large the maps are")
    inputs: Any = model._perfonnx_example
    device = next((p.device for p in model.parameters()), None)
    return tuple(x.to(device) for x in inputs)


@contextmanager
def _dense_twin(model: nn.Module) -> Iterator[nn.Module]:
    """The network with plain convolutions, in evaluation mode; it is put back afterwards."""
    sampled, training = sampled_modules(model), [m for m in model.modules() if m.training]
    try:
        for path, module in sampled.items():
            model.set_submodule(path, Conv2d.like(module))
        yield model.eval()
    finally:
        for path, module in sampled.items():
            model.set_submodule(path, module)
        for m in training:
            m.training = True


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """What PyTorch's exporter makes of it, with a free batch and without the fusions that would hide normalization."""
    from onnxscript import optimizer

    free = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs)
    try:
        program = torch.onnx.export(model, inputs, dynamo=True, optimize=False, verbose=False, dynamic_shapes=free)
    except Exception as error:  # the exporter's errors are no closed set
        raise PerfonnxError(f"PyTorch cannot export the network: {one_line(error)}") from error
    assert program is not None
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    proto = copy.deepcopy(program.model_proto)
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces of the machine that trained
    return proto
