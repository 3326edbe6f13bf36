"""From a model and data to the rewritten, fine-tuned model, measured on samples that took no part in the training."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from perfonnx.comparing.metrics import joined
from perfonnx.data.samples import FeedsOf, Samples
from perfonnx.errors import PerfonnxError
from perfonnx.masks import ImpactMaps, load_impact_maps
from perfonnx.methods import SAMPLING
from perfonnx.model.atomic import check_target
from perfonnx.model.files import LoadedModel, ModelSource
from perfonnx.model.signature import load_fixed
from perfonnx.passes import Options, Skip
from perfonnx.plan import Plan
from perfonnx.rewriting import Rewritten, folded, rewrite
from perfonnx.running.opened import open_model
from perfonnx.search import Metric, Progress, Quality
from perfonnx.search.evaluate import check_same_interface, find_metric
from perfonnx.search.state import fingerprint
from perfonnx.subject import Subject
from perfonnx.torch.applying import apply, export, trained_corrections
from perfonnx.torch.batches import Batches
from perfonnx.torch.checkpoints import Checkpoint
from perfonnx.torch.importing import OnnxModule, from_onnx
from perfonnx.torch.modules import RadiusAdaptiveConv2d
from perfonnx.torch.radius import OpenShareBudget, start_gates
from perfonnx.torch.sparsity import TRAINED_DENSE_UNTIL, TRAINED_FROZEN_FROM, SparsitySchedule, propagated_layers
from perfonnx.torch.training import History, Objective, Schedule, Settings, finetune, split

FORMAT = 1

SCORED = 512
"""Samples by which masks of sparse layers are chosen, at most."""

FITTED = 1000
"""Samples by which layers are fitted that train what they were fitted with, at most."""

GATED = 256
"""Samples by which new gates are turned, at most."""


@dataclass
class Finetuned:
    """What `finetune_model` made.

    Attributes:
        result: The rewritten model with its trained weights.
        metric: What was measured on the held-out samples.
        before: The model rewritten by the same plan with the weights that it came with, against the original.
        after: The result against the original.
        rounds: How training went, round by round.
        images: How many, by part.
        dense: The model that came, not rewritten, with the trained weights.
        aside: Whether the plan, with what is saved beside it, makes the result of the model that came.
    """

    result: Rewritten
    metric: Metric
    before: Quality
    after: Quality
    rounds: list[History]
    images: dict[str, int]
    dense: onnx.ModelProto
    aside: bool

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "perfonnx_finetune": FORMAT,
            "metric": self.metric.to_json(),
            "images": self.images,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "rounds": [history.to_json() for history in self.rounds],
            "rewrite": self.result.report.to_json(),
            "plan": self.result.plan.to_json(),
        }


def finetune_model(
    model: ModelSource,
    output: str | os.PathLike[str] | None,
    samples: Samples,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    options: Options | None = None,
    settings: Settings | None = None,
    rounds: int = 1,
    original: ModelSource | None = None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    freeze_weights: bool = False,
    impact_maps: ImpactMaps | str | os.PathLike[str] | None = None,
    fallback: bool = True,
    layout: str | None = None,
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Finetuned:
    """Rewrite a model and train it to do what it did before.

    Where all layers of the plan train what they were fitted with, as those on sublattices and low-rank ones do, or
    lose nothing, the rest of the network stays as it is: the plan saved from the result makes the same of the same
    model.

    Args:
        model: As for `perfonnx.rewrite`.
        output: Where the result goes; None: nowhere.
        samples: What it learns from; a part is held out to compare epochs by and to measure on.
        plan: What is done with the layers, or the path of a plan. Its repairs are left out, training does their work;
            shares of open pixels become a budget. Layers that go on from a fit start from what was saved with the
            plan; where nothing was, they are fitted on samples first.
        options: Without a plan: how layers are chosen.
        settings: How it is trained.
        rounds: Rates rise to the plan's in this number of equal steps, with a training of all epochs after each.
        original: What it learns from and is compared with, of the same inputs and outputs; None: the model.
        input_shapes: As for `perfonnx.rewrite`.
        freeze_weights: As for `perfonnx.rewrite`.
        impact_maps: As for `perfonnx.rewrite`.
        fallback: As for `perfonnx.rewrite`.
        layout: As for `perfonnx.rewrite`.
        threads: Threads of the training and of the measurements; None: all cores.
        checkpoint: File to go on from; with several rounds, one each, with the round's number behind the name.
        resume: Go on from the checkpoints that are there.
        progress: Called now and then.

    Raises:
        PerfonnxError: Bad usage or input, or the training diverges. Nothing but checkpoints has been written then.
        KeyboardInterrupt: Interrupted; checkpoints have been written, if asked for.
    """
    settings = settings or Settings()
    if freeze_weights:
        model = load_fixed(model, None, freeze=True)
    if threads is not None:
        torch.set_num_threads(threads)
    if rounds < 1:
        raise PerfonnxError(f"{rounds} rounds: give 1 or more")
    if output is not None:
        check_target(output)
    files = [file_of_round(checkpoint, number, rounds) for number in range(1, rounds + 1)]
    for file in files:
        Checkpoint(file, resume).check()
    training, held_out = measurable_split(samples, settings)
    if impact_maps is not None and not isinstance(impact_maps, Mapping):
        impact_maps = load_impact_maps(impact_maps)
    same: dict[str, Any] = {"input_shapes": input_shapes, "impact_maps": impact_maps, "layout": layout}
    fitted = FeedsOf(training.shuffled(settings.seed).take(FITTED))
    if plan is None:
        options = options or Options(SAMPLING)
        budget = options.example.open_budget
        share = 1.0 if budget is None else budget
        new = options.example.trains_correction
        untrained = rewrite(model, options=options.trained(), fallback=False, samples=fitted if new else None, **same)
        trainable, _ = _trainable(untrained.plan)
        if trainable.layers != untrained.plan.layers:
            untrained = rewrite(model, plan=trainable, corrections=untrained.corrections, fallback=False, **same)
    else:
        plan, share = _trainable(plan if isinstance(plan, Plan) else Plan.load(plan))
        new = plan.corrections is None and any(step.trains_correction for step in plan.steps())
        untrained = rewrite(model, plan=plan, fallback=False, samples=fitted if new else None, **same)
    if not untrained.report.layers:
        raise PerfonnxError(f"{untrained.report.model}: no layer is rewritten, so there is nothing to train")
    plan = untrained.plan if plan is None else _fitted(plan, untrained)
    shapes = untrained.plan.input_shapes
    plan = replace(plan, input_shapes=shapes)
    subject = Subject(model if original is None else original, shapes)
    check_same_interface(subject, Subject(model, shapes))
    metric, _ = find_metric(None, subject, held_out, threads=threads)
    settings = replace(settings, loss=_loss(metric, subject) if settings.loss == "auto" else settings.loss)

    names = [n for n, method in untrained.plan.layers.items() if any(s.trains_correction for s in method.steps)]
    student, teacher = (_module(source, names, shapes) for source in (model, subject.source))
    aside = bool(names) and all(name in names or m.lossless for name, m in untrained.plan.layers.items())
    if aside:
        student.requires_grad_(False)
        settings = replace(settings, batch_norm="frozen")
    about = {"model": fingerprint(Subject(model, shapes).serialized()), "rounds": rounds}
    if original is not None:
        about["original"] = fingerprint(subject.serialized())
    histories = []
    for number, file in enumerate(files, 1):
        step = _scaled(plan, number / rounds)
        apply(student, step, impact_maps=impact_maps, corrections=untrained.corrections)
        histories.append(
            finetune(
                student,
                training,
                teacher=teacher,
                held_out=held_out,
                schedules=_schedules(student, teacher, share, training, settings),
                settings=settings,
                checkpoint=file,
                resume=resume,
                about={**about, "plan": fingerprint(str(step.content()))},
                progress=progress,
            )
        )
    student.cpu()
    if _has_gates(student):  # how much gates open is known from a forward pass
        with torch.no_grad():
            student.eval()(*_inputs(_some(held_out, GATED, settings)))
    form: dict[str, Any] = {"fallback": fallback, "layout": layout or plan.layout, "input_shapes": shapes}
    if aside:
        trained = trained_corrections(student, {**student.layers, **student.products})
        result = rewrite(model, plan=untrained.plan, corrections=trained, impact_maps=impact_maps, **form)
    else:
        result = export(student, **form)
    result.plan.notes = {**untrained.plan.notes, **plan.notes}
    result.report.skips = [Skip(layer, reason) for layer, reason in result.plan.notes.items()]
    measure = partial(_measure, metric, subject, held_out, threads)
    finetuned = Finetuned(
        result,
        metric,
        measure(untrained.model),
        measure(result.model),
        histories,
        {"training": len(training), "held out": len(held_out)},
        student.to_onnx(),
        aside,
    )
    if output is not None:
        result.save(output)
    return finetuned


def _module(
    source: ModelSource, fitted: Collection[str], shapes: Mapping[str, Sequence[int | str | None]]
) -> OnnxModule:
    """A model as a module; layers that were fitted have in their weights what was folded into these then."""
    return from_onnx(folded(source, fitted, input_shapes=shapes) if fitted else source, input_shapes=shapes)


def measurable_split(samples: Samples, settings: Settings) -> tuple[Samples, Samples]:
    """The samples to learn from, and those to measure on.

    Raises:
        PerfonnxError: The latter are none.
    """
    training, held_out = split(samples, settings)
    if held_out is None:
        raise PerfonnxError(f"{settings.validate:.0%} of {len(samples)} samples is none to measure on: hold out more")
    return training, held_out


def file_of_round(checkpoint: str | os.PathLike[str] | None, number: int, rounds: int) -> Path | None:
    """The checkpoint of one of several rounds."""
    if checkpoint is None:
        return None
    return Path(checkpoint) if rounds == 1 else Path(f"{os.fspath(checkpoint)}.{number}")


def _trainable(plan: Plan) -> tuple[Plan, float]:
    """The plan without what is trained instead of fitted, and the share of pixels that radius-adaptive layers keep."""
    shares = [share for step in plan.steps() if (share := step.open_budget) is not None]
    layers = {name: method.trained for name, method in plan.layers.items()}
    if not any(step.trains_correction for step in plan.steps()):
        plan = replace(plan, corrections=None)
    return replace(plan, layers=layers), sum(shares) / len(shares) if shares else 1.0


def _fitted(plan: Plan, untrained: Rewritten) -> Plan:
    """The plan without the layers that a fit left as they were."""
    layers = {n: m for n, m in plan.layers.items() if n in untrained.plan.layers or not m.trains_correction}
    return replace(plan, layers=layers)


def _scaled(plan: Plan, part: float) -> Plan:
    """The plan at a part of its rates; masks from files stay."""
    return replace(plan, layers={name: method.scaled(part) for name, method in plan.layers.items()})


def _loss(metric: Metric, subject: Subject) -> str:
    if not metric.of_classes or len(subject.original().proto.graph.output) > 1:
        return "squared-error"
    return "probabilities" if metric.probabilities else "logits"


def _schedules(
    student: nn.Module, teacher: nn.Module, share: float, samples: Samples, settings: Settings
) -> list[Schedule]:
    """What the plan's methods need while they are trained."""
    schedules: list[Schedule] = []
    if propagated_layers(student):
        objective = Objective(student, teacher, replace(settings, intermediate=0.0))
        scored = _some(samples, SCORED, settings)
        schedules.append(
            SparsitySchedule(
                student,
                lambda: objective.mean(scored),
                seed=settings.seed,
                dense_until=TRAINED_DENSE_UNTIL,
                frozen_from=TRAINED_FROZEN_FROM,
            )
        )
    if _has_gates(student):
        start_gates(student, *_inputs(_some(samples, GATED, settings)))
        schedules.append(OpenShareBudget(student, share))
    return schedules


def _has_gates(student: nn.Module) -> bool:
    return any(isinstance(module, RadiusAdaptiveConv2d) for module in student.modules())


def _some(samples: Samples, count: int, settings: Settings) -> Batches:
    """Samples from all over the set, which may be in the order of its classes."""
    return Batches(samples.shuffled(settings.seed).take(count))


def _inputs(batches: Batches) -> list[torch.Tensor]:
    return batches.pick(np.arange(len(batches)))[0]


def _measure(
    metric: Metric, subject: Subject, samples: Samples, threads: int | None, candidate: LoadedModel
) -> Quality:
    """A model against the original, in onnxruntime."""
    original, other = (open_model(loaded, threads=threads) for loaded in (subject.original(), candidate))
    scores = []
    for batch in samples:
        expected, actual = (opened.run(opened.adapt(batch.feeds)) for opened in (original, other))
        scores.append(metric.scores(expected, actual, batch.labels))
    return metric.quality(joined(scores))
