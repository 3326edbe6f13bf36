"""What fine-tuning minimizes: the distance to a teacher's outputs, in and between its layers, or to labels."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfonnx.errors import PerfonnxError
from perfonnx.torch.modules import SampledConv2d

LOSSES = ("auto", "logits", "probabilities", "squared-error")

_TINY = 1e-7  # probabilities below this count as this, variances likewise


def tensors(result: Any) -> list[Tensor]:
    """The outputs of a module that returns one tensor, a sequence or a mapping of them."""
    if isinstance(result, Tensor):
        return [result]
    values = list(result.values() if isinstance(result, Mapping) else result)
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise PerfonnxError(f"a network that returns {type(result).__name__} cannot be trained; return tensors")
    return values


def find_loss(outputs: list[Tensor]) -> str:
    """What suits some outputs: the name of a loss, one of `LOSSES` but `auto`.

    One output [N, classes] is a classifier's: its probabilities, where rows add up to 1, or its logits.
    """
    if len(outputs) != 1 or not _is_class_scores(outputs[0]):
        return "squared-error"
    scores = outputs[0].detach().float().flatten(1)
    sums = scores.sum(dim=1)
    sure = bool((scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)
    return "probabilities" if sure else "logits"


def _is_class_scores(output: Tensor) -> bool:
    flat = output.ndim == 2 or (output.ndim == 4 and output.shape[2:] == (1, 1))
    return flat and output.shape[1] > 1 and output.is_floating_point()


def class_scores(outputs: list[Tensor], loss: str) -> Tensor:
    """Logits [N, classes] of a classifier's outputs, float32.

    Raises:
        PerfonnxError: The network is no classifier.
    """
    if loss == "squared-error" or not _is_class_scores(outputs[0]):
        raise PerfonnxError("labels train a classifier, whose first output is [N, classes]; leave the labels out")
    scores = outputs[0].float().flatten(1)
    return scores.clamp_min(_TINY).log() if loss == "probabilities" else scores


def distillation(student: list[Tensor], teacher: list[Tensor], loss: str, temperature: float) -> Tensor:
    """How far outputs are from the teacher's.

    Of classifiers: the Kullback-Leibler divergence of the class probabilities at a temperature, times its square, so
    that gradients do not shrink with it (Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015).
    Of others: the sum over the outputs of the mean squared error, in units of the teacher's variance.
    """
    if loss == "squared-error":
        pairs = [(s, t) for s, t in zip(student, teacher, strict=True) if t.is_floating_point()]
        if not pairs:
            raise PerfonnxError(
                "the model gives whole numbers alone, from which nothing is learned; cut it before them"
            )
        return torch.stack([relative_error(s, t) for s, t in pairs]).sum()
    a, b = (functional.log_softmax(class_scores(x, loss) / temperature, dim=1) for x in (teacher, student))
    return functional.kl_div(b, a, reduction="batchmean", log_target=True) * temperature**2


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error in units of the teacher's variance."""
    target = teacher.float()
    return functional.mse_loss(student.float(), target) / target.var(correction=0).clamp_min(_TINY)


class Intermediate:
    """Context: compares the layers that were replaced in a student with those of the same name in its teacher.

    The student's outputs are compared while it is in training mode, with what is the goal of their layers; the teacher
    runs first.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        originals = dict(teacher.named_modules())
        self.pairs = [
            (name, layer, originals[name])
            for name, layer in student.named_modules()
            if isinstance(layer, nn.Conv2d)
            and isinstance(originals.get(name), nn.Conv2d)
            and type(layer) is not type(originals[name])
        ]
        self._student = student
        self._targets: dict[str, Tensor] = {}
        self._terms: list[Tensor] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Intermediate:
        for name, layer, original in self.pairs:
            self._handles.append(original.register_forward_hook(self._keep(name)))
            self._handles.append(layer.register_forward_hook(self._compare(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._targets[name] = output

        return hook

    def _compare(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self._student.training and name in self._targets:
                target = self._targets[name]
                goal = module.goal(target) if isinstance(module, SampledConv2d) else target
                self._terms.append(relative_error(output, goal))

        return hook

    def take(self) -> Tensor | None:
        """The mean of the layers' errors since the last call; None where no layer was compared."""
        terms, self._terms = self._terms, []
        self._targets.clear()
        return torch.stack(terms).mean() if terms else None
