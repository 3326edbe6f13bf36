"""`repair`: what brings perforated layers closer to what they were, found on calibration data without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from perfonnx.corrections import Corrections
from perfonnx.data.samples import Samples
from perfonnx.fitting import RIDGE
from perfonnx.model.files import ModelSource
from perfonnx.plan import Plan
from perfonnx.rewriting import rewrite


def repair(
    model: ModelSource,
    plan: Plan,
    samples: Samples | Iterable[Mapping[str, NDArray[Any]]],
    kind: str,
    *,
    ridge: float = RIDGE,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Corrections:
    """Find the corrections of a plan's perforated layers, front to back; see `perfonnx.passes.repair`.

    `rewrite` does it too, and applies them; this is for those who want the numbers alone.

    Args:
        model: The original model.
        plan: What is done to it; it is not changed.
        samples: Calibration data: samples, or feeds that can be iterated again and again.
        kind: One of `perfonnx.plan.REPAIRS`.
        ridge: Strength of regularization, relative to the mean square of the regressors.
        input_shapes: Sizes for symbolic dimensions, by input name.
        progress: Called with a few words before each step.

    Returns:
        By layer name, for the perforated layers that could be rewritten.

    Raises:
        PerfonnxError: Bad input or usage.
    """
    layers = {
        name: replace(layer, repair=kind) if layer.method == "perforate" else layer
        for name, layer in plan.layers.items()
    }
    result = rewrite(
        model,
        plan=replace(plan, layers=layers),
        samples=samples,
        input_shapes=input_shapes,
        ridge=ridge,
        layout="nchw",
        fallback=False,
        progress=progress,
    )
    return result.corrections
