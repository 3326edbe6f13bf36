"""Tuning, and then training what was found: a bolder network is chosen, and learns back what it lost."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from perfonnx.comparing.metrics import Quality, joined
from perfonnx.data.samples import Samples
from perfonnx.model.atomic import check_target
from perfonnx.model.files import ModelSource
from perfonnx.running.opened import open_model
from perfonnx.search.error_maps import error_maps
from perfonnx.search.evaluate import find_metric, first_images
from perfonnx.search.pace import FINAL_SECONDS
from perfonnx.search.pictures import output_pictures
from perfonnx.search.result import Progress, Target, Training, Tuned
from perfonnx.search.timing import models_speed
from perfonnx.search.tune import divided, tune
from perfonnx.subject import Subject
from perfonnx.torch.finetuning import Finetuned, finetune_model
from perfonnx.torch.training import Settings

RECOVERED = 4.0
"""What a network may lose before it is trained, against what it may lose in the end: a few epochs of ResNet-20 with all
layers on the quincunx bring back three quarters and more."""


def tune_trained(
    model: ModelSource,
    output: str | os.PathLike[str] | None,
    samples: Samples,
    training: Samples | None = None,
    *,
    max_drop: float | str | None = None,
    metric: str | None = None,
    settings: Settings | None = None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    freeze_weights: bool = False,
    fallback: bool = True,
    threads: int | None = None,
    seed: int = 0,
    state: str | os.PathLike[str] | None = None,
    pictures: bool = True,
    progress: Callable[[Progress], None] | None = None,
    **tuning: Any,
) -> Tuned:
    """Find a network that loses a few times too much, and train it until it does not.

    Where it still loses too much on the images that neither choice nor training saw, the best of the networks that
    were measured on the way and need no training is taken instead.

    Args:
        model: As for `perfonnx.search.tune`.
        output: As there.
        samples: As there.
        training: What it learns from, without labels; None: the samples that are not held back.
        max_drop: The largest loss after training.
        metric: As for `perfonnx.search.tune`.
        settings: How it is trained.
        input_shapes: As for `perfonnx.search.tune`.
        freeze_weights: As there.
        fallback: As there.
        threads: As there; of the training too.
        seed: As there; of the training too.
        state: As there.
        pictures: As there.
        progress: As there.
        **tuning: Other arguments of `perfonnx.search.tune`.

    Raises:
        PerfonnxError: As for `perfonnx.search.tune` and `finetune_model`.
    """
    if output is not None:
        check_target(output)
    first, second = divided(samples, seed)
    subject = Subject(model, dict(input_shapes or {}), freeze_weights)
    found, _ = find_metric(metric, subject, first, threads=threads)
    bound = found.parse_drop(max_drop) if isinstance(max_drop, str) else max_drop
    bound = found.default_drop if bound is None else bound
    same: dict[str, Any] = {
        "metric": metric,
        "input_shapes": input_shapes,
        "freeze_weights": freeze_weights,
        "fallback": fallback,
        "threads": threads,
        "seed": seed,
        "pictures": pictures,
        "progress": progress,
        **tuning,
    }
    settings = replace(settings or Settings(epochs=3), seed=seed)
    with tempfile.TemporaryDirectory(prefix="perfonnx-tune-") as directory:
        same["state"] = state or Path(directory) / "state"
        tuned = tune(model, None, samples, max_drop=found.relaxed(bound, RECOVERED), **same)
        if tuned.best is None or tuned.best.held_back is None:
            tuned.target = Target(bound, tuned.target.speedup, tuned.target.minimised)
            if output is not None:
                tuned.result.save(output)
            return tuned
        tuned.save_plan(Path(directory) / "plan.json")
        start = time.perf_counter()
        finetuned = finetune_model(
            model,
            None,
            cast("Samples", first) if training is None else training,
            plan=Path(directory) / "plan.json",
            settings=settings,
            input_shapes=input_shapes,
            freeze_weights=freeze_weights,
            impact_maps=tuned.impact_maps,
            fallback=fallback,
            threads=threads,
            progress=progress,
        )
        seconds = time.perf_counter() - start
        held_back = second.take(tuned.best.held_back.images)
        trained = _trained(tuned, finetuned, subject, held_back, threads, seconds)
        if trained.after.drop > bound:
            milder = tune(model, output, samples, max_drop=bound, **same)
            milder.training = trained
            milder.warnings += (
                f"after training, {found.lost(trained.after.drop)}: too much, so a network is taken that needs none",
            )
            return milder
    tuned.result, tuned.training, tuned.reached = finetuned.result, trained, True
    if pictures:
        tuned.pictures = output_pictures(subject, tuned.result, held_back, found, threads=threads)
        tuned.error_maps = error_maps(subject, tuned.result, held_back, layers=finetuned.aside, threads=threads)
    tuned.target = Target(bound, tuned.target.speedup, tuned.target.minimised)
    tuned.message = (
        f"{tuned.result.report.model}: {trained.speed.ratio:.2f}x faster, {found.lost(trained.after.drop)} after "
        f"training, {found.lost(trained.before.drop)} before it, on {trained.after.images} images that took no part"
    )
    if output is not None:
        tuned.result.save(output)
    return tuned


def _trained(
    tuned: Tuned,
    finetuned: Finetuned,
    subject: Subject,
    held_back: Samples,
    threads: int | None,
    seconds: float,
) -> Training:
    """What training brought, on images that neither the choice nor the training saw."""
    assert tuned.best is not None
    assert tuned.best.held_back is not None
    loaded = subject.original()
    original, candidate = (open_model(each, threads=threads) for each in (loaded, finetuned.result.model))
    scores = []
    for batch in held_back:
        expected, actual = (each.run(each.adapt(batch.feeds)) for each in (original, candidate))
        scores.append(tuned.metric.scores(expected, actual, batch.labels))
    after: Quality = tuned.metric.quality(joined(scores))
    feed = first_images(loaded, next(iter(held_back)).feeds, 1)
    return Training(
        tuned.best.held_back,
        after,
        models_speed(loaded, finetuned.result.model, feed, threads=threads, seconds=FINAL_SECONDS),
        tuple(e.held_out for history in finetuned.rounds for e in history.epochs if e.held_out is not None),
        finetuned.images["training"],
        seconds,
    )
