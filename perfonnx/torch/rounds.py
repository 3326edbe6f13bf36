"""Greedy rounds of perforation and training: rates are chosen by measured time and loss, and the network is trained.

The first round chooses among all layers of the original network. Each further one goes on from there, layer by layer,
on the weights as they are then, so that layers that training made up for are sampled further.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from perfonnx.methods import SAMPLING
from perfonnx.methods.perforate import NO_REPAIR
from perfonnx.model.atomic import check_target
from perfonnx.model.files import ModelSource
from perfonnx.model.signature import load_fixed
from perfonnx.plan import Plan
from perfonnx.search import Progress, Space, Speed, tune
from perfonnx.search.impacts import IMPACT
from perfonnx.search.result import MIN_SPEEDUP, Target
from perfonnx.torch.checkpoints import Checkpoint
from perfonnx.torch.finetuning import Finetuned, file_of_round, finetune_model, measurable_split
from perfonnx.torch.training import Settings

FORMAT = 1

SEARCH_TIME = 300.0
"""Seconds of measuring in each round."""

SEARCHED = 500
"""Samples that rates are chosen by, at most."""

SPACE = Space(masks=("lattice",), repairs=(NO_REPAIR,), methods=(SAMPLING,))
"""What layers are chosen from: the masks that training makes the most of, and no repairs, whose work it does."""


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        speedup: What was wanted of it.
        speed: What its plan gives, measured before its training.
        reached: Whether that is enough beyond doubt.
        warnings: What the search has to say.
        finetuned: What its training gave.
    """

    speedup: float
    speed: Speed
    reached: bool
    warnings: tuple[str, ...]
    finetuned: Finetuned

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "speedup": self.speedup,
            "speed": self.speed.to_json(),
            "reached": self.reached,
            "warnings": list(self.warnings),
            "finetuned": self.finetuned.to_json(),
        }


def finetune_rounds(
    model: ModelSource,
    output: str | os.PathLike[str] | None,
    samples: Samples,
    *,
    speedup: float,
    rounds: int = 1,
    search_time: float = SEARCH_TIME,
    space: Space = SPACE,
    settings: Settings | None = None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    freeze_weights: bool = False,
    fallback: bool = True,
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> list[Round]:
    """Make a model faster in rounds: choose rates by measured time and loss, train, choose further.

    Args:
        model: As for `perfonnx.rewrite`.
        output: Where the result of the last round goes; None: nowhere.
        samples: As for `finetune_model`; rates are chosen by some of those that are trained on.
        speedup: How many times faster the model should become, measured here. Each round brings an equal factor.
        rounds: How many.
        search_time: Seconds of measuring in each round.
        space: What may be done with a layer; no masks of impacts.
        settings: How each round is trained.
        input_shapes: As for `perfonnx.rewrite`.
        freeze_weights: As for `perfonnx.rewrite`.
        fallback: As for `perfonnx.rewrite`.
        threads: Threads of the trainings and of the measurements; None: all cores.
        checkpoint: As for `finetune_model`; beside it `.search` files keep what the searches measured.
        resume: As for `finetune_model`; with the same search time.
        progress: Called now and then.

    Returns:
        The rounds. Where a search does not reach its speed, its round trains the fastest that it found.

    Raises:
        PerfonnxError: As for `tune` and `finetune_model`, or nothing is faster than the original at all.
    """
    if rounds < 1:
        raise PerfonnxError(f"{rounds} rounds: give 1 or more")
    Target(speedup=speedup)
    if speedup ** (1 / rounds) < MIN_SPEEDUP:
        raise PerfonnxError(
            f"a speed-up of {speedup:g} in {rounds} rounds is less than {MIN_SPEEDUP:g}x each; give fewer rounds"
        )
    if not 0 < search_time < math.inf:
        raise PerfonnxError(f"search time {search_time:g}: give the seconds that each round may measure, above 0")
    if IMPACT in space.masks:
        raise PerfonnxError(f"the mask {IMPACT} is measured on one network and not kept between rounds; take others")
    if output is not None:
        check_target(output)
    settings = settings or Settings()
    if freeze_weights:
        model = load_fixed(model, None, freeze=True)
    files = [file_of_round(checkpoint, number, rounds) for number in range(1, rounds + 1)]
    searches = [None if file is None else Path(f"{file}.search") for file in files]
    for kept in (*files, *searches):
        Checkpoint(kept, resume).check()
    training, _ = measurable_split(samples, settings)
    some = training.shuffled(settings.seed).take(SEARCHED)
    done: list[Round] = []
    plan: Plan | None = None
    current = model
    for number, (file, search) in enumerate(zip(files, searches, strict=True), 1):
        wanted = speedup ** (number / rounds)
        step = partial(_tell, progress, f"round {number} of {rounds}: ") if progress and rounds > 1 else progress
        tuned = tune(
            current,
            None,
            some,
            speedup=wanted,
            space=space,
            start=plan,
            reference=None if plan is None else model,
            max_time=search_time,
            threads=threads,
            input_shapes=input_shapes,
            seed=settings.seed,
            state=search,
            sweep=False,
            progress=step,
        )
        if tuned.best is None:
            raise PerfonnxError(tuned.message)
        plan = replace(tuned.plan, corrections=None)
        finetuned = finetune_model(
            current,
            output if number == rounds else None,
            samples,
            plan=plan,
            settings=settings,
            original=model,
            input_shapes=input_shapes,
            fallback=fallback,
            threads=threads,
            checkpoint=file,
            resume=resume,
            progress=step,
        )
        done.append(Round(wanted, tuned.best.speed, tuned.reached, tuned.warnings, finetuned))
        current = finetuned.dense
    return done


def _tell(progress: Callable[[Progress], None], what: str, step: Progress) -> None:
    progress(replace(step, phase=what + step.phase))


def rounds_to_json(rounds: Sequence[Round]) -> dict[str, Any]:
    """The rounds as plain data, for a report."""
    return {"perfonnx_finetune_rounds": FORMAT, "rounds": [done.to_json() for done in rounds]}
