"""How much of each layer is saved, where one method is to save a part of a network's time, or multiplies: its ranks.

Each layer is approximated by itself at a few savings. Of those, one is taken for each layer so that all together save
enough and what it costs is least: by *sensitivity*, what the network's output was measured to lose; or by *energy*, the
product of the shares of the responses' energy that layers keep (Zhang et al., arXiv 1505.06798, section 3.3). Neither
is always the better one. Multiplies are not time: by time, ranks that only save multiplies are no choice, and exact
layers, which lose nothing, are one beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perfonnx.errors import PerfonnxError
from perfonnx.methods import Method
from perfonnx.methods.base import GAINING
from perfonnx.model.layers import all_layers
from perfonnx.plan import Plan
from perfonnx.rewriting import opened
from perfonnx.search.costs import layer_times
from perfonnx.search.evaluate import CHOOSING, PlanEvaluator, Task, find_metric
from perfonnx.search.timing import LayerTimes
from perfonnx.subject import SamplesLike, Subject

SENSITIVITY, ENERGY = "sensitivity", "energy"
OBJECTIVES = (SENSITIVITY, ENERGY)

LOSSLESS = 1e-9
"""Errors and losses are no smaller: what a layer loses is a positive number."""


@dataclass(frozen=True)
class Rung:
    """One layer, approximated by itself.

    Attributes:
        choice: How.
        saved: Multiplies; or time, as a part of the original network's.
        error: Relative squared error of its output.
        guide: What the network's output loses.
    """

    choice: Method
    saved: float
    error: float
    guide: float

    def lost(self, objective: str) -> float:
        """What adds up over layers: the guide, or minus the logarithm of the energy that is kept."""
        if objective == SENSITIVITY:
            return max(self.guide, LOSSLESS)
        return -math.log(min(max(1 - self.error, LOSSLESS), 1 - LOSSLESS))


def measured_rungs(
    subject: Subject,
    samples: SamplesLike,
    choices: Sequence[Method],
    *,
    timer: LayerTimes | None = None,
    seed: int = 0,
    metric: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Rung]]:
    """Every layer at every choice that can be had there.

    Args:
        subject: The model, with what layers are fitted by.
        samples: What its output is measured on.
        choices: The method at several savings; before them, by time, what loses nothing.
        timer: Measures what is saved; rungs that do not make a layer faster than it was, and than what loses nothing,
            are left out. None: multiplies are counted.
        seed: Of random choices.
        metric: Name in `perfonnx.comparing.metrics.METRICS`; None: by the model's outputs.
        progress: Called with each layer.
    """
    names = [layer.name for layer in all_layers(opened(subject.original())) if not layer.obstacle]
    found, _ = find_metric(metric, subject, samples)
    evaluator = PlanEvaluator(subject, {CHOOSING: samples}, found)
    images = len(subject.calibration) if subject.calibration is not None else 0
    rungs: dict[str, list[Rung]] = {}
    for choice in choices:
        able = subject.able(names, choice, seed)
        faster = None if timer is None else _saved_times(timer, able, choice, seed)
        for name in able if faster is None else faster:
            if faster is not None and choice.lossless:
                rungs.setdefault(name, []).append(Rung(choice, faster[name], 0.0, 0.0))
                continue
            if faster is not None and any(r.choice.lossless and r.saved >= faster[name] for r in rungs.get(name, ())):
                continue
            progress(f"{name}: {choice.label}")
            plan = Plan({name: choice}, seed, layout="nchw")
            rewritten = subject.rewrite(plan, images=images)
            if not rewritten.report.layers:
                continue
            quality = evaluator(Task(plan, CHOOSING, len(samples), "nchw", images)).quality
            before, after = rewritten.report.layers[0].multiplies
            saved = before - after if faster is None else faster[name]
            correction = rewritten.corrections.get(name)
            error = 0.0 if correction is None else correction.after
            rungs.setdefault(name, []).append(Rung(choice, saved, error, quality.guide))
    return rungs


def _saved_times(timer: LayerTimes, names: Sequence[str], choice: Method, seed: int) -> dict[str, float]:
    """What a choice saves in each layer that it makes faster, where all layers have it that can."""
    original = timer.layers(Plan(seed=seed))
    rewritten = timer.layers(Plan(dict.fromkeys(names, choice.timed), seed)) if names else original
    times = {name: time for name, time in layer_times(original, rewritten).items() if name in names}
    return {name: before - after for name, (before, after) in times.items() if before >= GAINING * after}


def allocated(rungs: Mapping[str, Sequence[Rung]], saved: float, objective: str) -> dict[str, Method]:
    """One rung for each layer, or none, so that so much is saved at the least loss.

    From nothing, the step is taken again and again that loses least for what it saves; steps skip rungs that lose more
    for it than those behind them.

    Raises:
        PerfonnxError: That much cannot be saved, or the objective is unknown.
    """
    if objective not in OBJECTIVES:
        raise PerfonnxError(f"unknown objective {objective!r}; choose from {', '.join(OBJECTIVES)}")
    most = sum(max((rung.saved for rung in of_layer), default=0) for of_layer in rungs.values())
    if most < saved:
        raise PerfonnxError(f"{most:.4g} can be saved, not {saved:.4g}")
    now: dict[str, Rung] = {}
    while sum(rung.saved for rung in now.values()) < saved:
        steps = [
            ((rung.lost(objective) - lost) / (rung.saved - had), name, rung)
            for name, of_layer in rungs.items()
            for had, lost in [(now[name].saved, now[name].lost(objective)) if name in now else (0, 0.0)]
            for rung in of_layer
            if rung.saved > had
        ]
        _, name, rung = min(steps, key=lambda step: step[0])
        now[name] = rung
    return {name: rung.choice for name, rung in now.items()}
