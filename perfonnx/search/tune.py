"""From a model and unlabeled inputs to the fastest model within the accuracy asked, measured on this machine.

Where a method is for runs of layers of one resolution, regions come first: each by itself, then combinations of them,
all of them refitted and measured whole, see `perfonnx.search.regional`. Then, and without such a method at once:

1. Profile: every choice (mask kind and rate) in all layers at once; one profile per choice gives the time of every
   layer under it, among neighbours that work on rows. Once layer by layer, and once for groups of layers whose outputs
   meet, which then share a mask.
2. Screen: the error of every choice in every unit, a layer or a group, that it makes faster, one unit at a time, on
   part of the images.
3. Choose: times and errors add up, roughly; the best selections under that model form a line from the mildest to the
   boldest.
4. Search: selections of that line are rewritten, run on the images to choose by, and timed against the original. Each
   measurement says how far the predictions are off and where to look next, down to the mildest selection and single
   layers where all others lose too much; then single layers are changed where that promises most.
5. Verify: the fastest one is run on images that took no part in the choice. Where it loses too much there, the search
   goes on from it towards milder ones.

What is fastest may as well be what has the fewest multiplies, or the smallest file: `Target.minimised`. All networks
that were measured are kept in the state file: another target is answered from them, without measuring anything.

Each has its part of the time, and what comes after it keeps enough to end with a network that was verified. Where the
time is short, the choices that matter most are looked at, on fewer images: see `perfonnx.search.pace`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from perfonnx import corrections
from perfonnx.comparing.metrics import Metric
from perfonnx.errors import PerfonnxError
from perfonnx.model.atomic import check_target
from perfonnx.model.files import ModelSource
from perfonnx.model.signature import fed_shapes, fixed_batch
from perfonnx.plan import Plan
from perfonnx.rewriting import Rewritten
from perfonnx.runtime import chosen_provider
from perfonnx.search.costs import profile
from perfonnx.search.counts import Counts
from perfonnx.search.error_maps import error_maps
from perfonnx.search.evaluate import (
    CHOOSING,
    FITTING,
    HELD_BACK,
    Evaluator,
    Joined,
    PlanEvaluator,
    SerialExecutor,
    check_same_interface,
    find_metric,
    first_images,
    hold,
)
from perfonnx.search.groups import meeting_layers, together
from perfonnx.search.impacts import IMPACT, with_impacts
from perfonnx.search.networks import Networks, Tools
from perfonnx.search.pace import PROFILE, REFIT_IMAGES, Pace, Sizes
from perfonnx.search.pictures import output_pictures
from perfonnx.search.result import MULTIPLIES, TIME, Progress, Target, Trial, Tuned
from perfonnx.search.search import Search
from perfonnx.search.sensitivity import Space, eligible, plan_key, reducible
from perfonnx.search.state import SUFFIX, Records, fingerprint, fits_of, trim
from perfonnx.search.timing import PairedTimer, Timer, TimingCache, machine
from perfonnx.search.verdict import told
from perfonnx.subject import SamplesLike, Subject

SEARCHES = ("budget", "greedy")

MIN_IMAGES = 8
HELD_BACK_SHARE = 0.4
"""Part of the images that the choice does not see."""

FITTING_SHARE = 0.5
"""Part of the others that weights are refitted by, where they are: what is chosen by is to be new to them."""

IMPACT_SHARE = 0.2
"""Part of the time after which no more impacts are measured."""

KEPT_BYTES = 2 << 30
"""Size of the corrections that are kept beside a state; networks whose corrections are not kept are repaired again."""

KEPT_IN_ALL = 4 << 30
"""Size of all that a directory of states holds; what was used longest ago goes."""


def tune(
    model: ModelSource,
    output: str | os.PathLike[str] | None,
    samples: SamplesLike,
    *,
    max_drop: float | str | None = None,
    target: str = TIME,
    speedup: float | None = None,
    metric: str | None = None,
    space: Space | None = None,
    search: str = "budget",
    start: Plan | None = None,
    reference: ModelSource | None = None,
    max_time: float = 900.0,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    freeze_weights: bool = False,
    fallback: bool = True,
    seed: int = 0,
    state: str | os.PathLike[str] | None = None,
    sweep: bool = True,
    pictures: bool = True,
    cache: TimingCache | None = None,
    executor: Executor | None = None,
    evaluator: Evaluator | None = None,
    timer: Timer | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Tuned:
    """Find the fastest model within a loss, or the model with the smallest loss at a speed.

    Args:
        model: As for `perfonnx.rewrite`.
        output: Where the model goes; None: nowhere. Where nothing is found, the original goes there.
        samples: Images, a few hundred; labels are used where they have some. Part of them takes no part in the choice;
            where regions are refitted, another part is for that alone.
        max_drop: The largest loss, a number or a text such as "1%", in the metric's terms; None: the metric's default,
            unless a speed is asked for.
        target: What is minimised, one of `perfonnx.search.result.TARGETS`: time, multiplies, or size.
        speedup: How many times faster the model should become; with `max_drop` too, the smallest loss at that speed,
            or the fastest model within the loss.
        metric: Name in `METRICS`; None: by the model's outputs and labels.
        space: What may be done with a layer.
        search: "budget", or "greedy" for the perforation paper's search.
        start: A plan for this model to start from: its layers, perforated, only go further, one by one. None: all
            layers are dense at first. For the search "budget".
        reference: The model whose outputs count as right, of the same inputs and outputs; None: the model itself, which
            speeds are always related to. For the search "budget".
        max_time: Seconds of measuring, roughly. Where they are few, fewer choices and images are looked at.
        threads: Intra-op threads, None for all cores.
        input_shapes: Sizes for symbolic dimensions; timings are made at them.
        freeze_weights: As for `perfonnx.rewrite`.
        fallback: As for `perfonnx.rewrite`.
        seed: Seed of the split of the images and of the masks.
        state: File in which measurements are kept, or a directory for such files, one for each search, of which the
            latest are kept; a tuning that was interrupted goes on from there. One with another target, and no more
            time, is answered from there.
        sweep: With a state, measure in the end what another target may choose of.
        pictures: Run the network that was taken once more for what a report shows: its outputs, and where its error
            lies.
        cache: Where timings are kept between tunings; None: nowhere.
        executor: Does the screening of layers; None: this thread.
        evaluator: Measures losses; None: on onnxruntime.
        timer: Measures times; None: on onnxruntime.
        progress: Called now and then.

    Returns:
        The model, its plan, and everything that was measured.

    Raises:
        PerfonnxError: Bad usage or input. Nothing has been written then, but the state.
    """
    if search not in SEARCHES:
        raise PerfonnxError(f"unknown search {search!r}; choose from {', '.join(SEARCHES)}")
    if not 0 < max_time < math.inf:
        raise PerfonnxError(f"time {max_time:g}: give the seconds that tuning may take, above 0")
    if start is None and reference is not None:
        start = Plan(seed=seed)  # loses something already
    if start is not None and search != "budget":
        raise PerfonnxError(f"the search {search!r} takes neither a start nor a reference; take budget")
    if output is not None:
        check_target(output)
    space = space or Space()
    subject = Subject(model, dict(input_shapes or {}), freeze_weights)
    right = subject if reference is None else replace(subject, source=reference)
    check_same_interface(right, subject)
    if start is not None:
        _check_start(start, subject, seed)
    first, second = divided(samples, seed)
    found, seconds = find_metric(metric, right, first, threads=threads)
    bound = found.parse_drop(max_drop) if isinstance(max_drop, str) else max_drop
    if bound is None and speedup is None:
        bound = found.default_drop
    wanted = Target(bound, speedup, target)
    feed = next(iter(first)).feeds
    data = f"{len(samples)} images, {fingerprint(*(array.tobytes() for _, array in sorted(feed.items())))}"
    about = _fingerprint(subject, right, data, found, space, search, start, threads, fallback, seed)
    records = Records.open(_file(state, about), about)
    retargeted = _is_known(records, wanted, max_time)
    seconds = records.ask("seconds per image", lambda: seconds)
    inspection = subject.inspect()
    layers = len(eligible(inspection)) + len(reducible(subject, inspection))
    batch = fixed_batch(fed_shapes(subject.original().proto.graph)) or 1
    available = {CHOOSING: first, HELD_BACK: second}
    choices = [c for c in space.choices() if not c.regional or (search == "budget" and start is None)]
    if any(choice.regional for choice in choices):
        fitting = round(len(first) * FITTING_SHARE)
        available[FITTING], available[CHOOSING] = first.split(fitting, len(first) - fitting, seed)
    convs = len(inspection.convs)
    numbers = {part.replace(" ", "_"): len(images) for part, images in available.items()}
    sizes = Sizes.within(max_time, seconds, layers=layers, convs=convs, batch=batch, **numbers)
    taken = {
        FITTING: REFIT_IMAGES // batch * batch if sizes.refitting else max(sizes.repairing, batch),
        CHOOSING: sizes.choosing,
        HELD_BACK: sizes.held_back,
    }
    parts = {part: hold(images.take(taken[part])) for part, images in available.items()}
    chosen_by = parts[CHOOSING]
    subject = replace(subject, calibration=Joined(parts[FITTING], chosen_by) if FITTING in parts else chosen_by)
    tell = progress or (lambda _: None)
    if IMPACT in space.masks:
        subject = _with_impacts(subject, parts[CHOOSING], found, space, records, max_time, threads, tell)
    if timer is None:
        timer = PairedTimer(subject, first_images(subject.original(), feed, 1), threads, cache)
    evaluator = evaluator or PlanEvaluator(subject, parts, found, threads, right)
    counts = Counts(subject, MULTIPLIES if target == TIME else target, fallback)
    tools = Tools(parts, found, evaluator, timer, counts, executor or SerialExecutor(), records, tell)
    pace = Pace.start(records, max_time, seconds, layers=layers, sizes=sizes, convs=convs)
    networks = Networks(tools, wanted, pace, sizes)
    if not sizes.repairing:
        choices = list(dict.fromkeys(choice.trained for choice in choices))
    run = Search(subject, networks, choices, seed, seconds, batch, start)
    best = run.known(inspection) if retargeted else networks.finish(run.find(search, inspection))
    result = _rewritten(subject, best, fallback, seed, records)
    if sweep and records.path is not None and not retargeted:
        _keep(run, subject, records, wanted, max_time)
    if records.path is not None and state is not None and Path(state).is_dir():
        trim(records.path.parent, KEPT_IN_ALL)
    tuned = told(run, result, best, threads, {part: len(images) for part, images in available.items()})
    if not records.measured and records.path is not None:
        tuned.warnings += (_said_before(records.path, retargeted),)
    tuned.impact_maps = subject.impact_maps
    if best is not None and pictures:
        tuned.pictures = output_pictures(subject, tuned.result, parts[HELD_BACK], found, threads=threads)
        tuned.error_maps = error_maps(subject, tuned.result, parts[HELD_BACK], threads=threads)
    if output is not None:
        tuned.result.save(output)
    return tuned


def divided(samples: SamplesLike, seed: int) -> tuple[SamplesLike, SamplesLike]:
    """The samples that a tuning chooses by, and those that it holds back to verify on.

    Both are shuffled, since files often come class by class, and a part of them may be all that there is time for.

    Raises:
        PerfonnxError: They are too few.
    """
    if len(samples) < MIN_IMAGES:
        raise PerfonnxError(
            f"{len(samples)} images are too few to choose by some and verify on others; give {MIN_IMAGES} or more, "
            "better a few hundred"
        )
    held = max(MIN_IMAGES // 2, round(len(samples) * HELD_BACK_SHARE))
    first, second = (part.shuffled(seed) for part in samples.split(len(samples) - held, held, seed))
    return first, second


def _check_start(start: Plan, subject: Subject, seed: int) -> None:
    """Raise `PerfonnxError` where a plan cannot be searched further."""
    layers = eligible(subject.inspect())
    for name, choice in start.layers.items():
        if name not in layers:
            raise PerfonnxError(f"layer {name!r} of the start: the model has no such layer that can be perforated")
        if not choice.goes_further:
            raise PerfonnxError(
                f"layer {name!r} of the start: only perforated layers whose masks have rates go further"
            )
    if start.seed != seed:
        raise PerfonnxError(f"the start's masks are drawn with the seed {start.seed}, not {seed}; give the same seed")


def _with_impacts(
    subject: Subject,
    samples: SamplesLike,
    metric: Metric,
    space: Space,
    records: Records,
    max_time: float,
    threads: int | None,
    tell: Callable[[Progress], None],
) -> Subject:
    """The subject with maps of impacts; a layer of a group shares the group's, also where it is sampled alone."""
    inspection = subject.inspect()
    groups = meeting_layers(subject.original())
    order = [conv.name for conv in inspection.convs]

    def progress(done: int, total: int) -> None:
        tell(Progress("measuring impacts", done, total, max(max_time - records.clock, 0.0), ""))

    return with_impacts(
        subject,
        samples,
        metric,
        together(eligible(inspection), groups, order),
        rate=max(space.rates),
        records=records,
        threads=threads,
        go_on=lambda: records.clock < IMPACT_SHARE * max_time,
        progress=progress,
    )


def _file(state: str | os.PathLike[str] | None, about: Mapping[str, Any]) -> Path | None:
    """Where a search's measurements are kept."""
    if state is None or not Path(state).is_dir():
        return None if state is None else Path(state)
    return Path(state) / f"{fingerprint(json.dumps(about, sort_keys=True))}{SUFFIX}"


def _said_before(path: Path, retargeted: bool) -> str:
    """Where the numbers come from, where none is new."""
    more = "; more time than that search had looks for better ones" if retargeted else ""
    what = "the networks that were measured for another target" if retargeted else "what was measured before"
    return f"nothing was measured anew: this is answered from {what}, as kept in {path}{more}"


def _finished(target: Target) -> str:
    """The key of a search that came to its end."""
    return f"finished {json.dumps(asdict(target))}"


def _is_known(records: Records, target: Target, max_time: float) -> bool:
    """Whether networks were measured for another target, in no less time: then they have to do for this one."""
    times = {key: value[0] for key, value in records.known.items() if key.startswith("finished ")}
    return _finished(target) not in times and any(time >= max_time for time in times.values())


def _rewritten(subject: Subject, best: Trial | None, fallback: bool, seed: int, records: Records) -> Rewritten:
    """The network that was found, repaired as it was when it was measured; the original where nothing was."""
    plan, images = (best.plan, best.repaired_by) if best else (Plan(seed=seed), 1)
    if records.path is not None and plan.needs_targets:
        file = _corrections_file(records.path, plan, images)
        if file.exists():
            subject.remember(plan, images, corrections.load(file))
    return subject.rewrite(plan, fallback=fallback, images=images)


def _corrections_file(state: Path, plan: Plan, images: int) -> Path:
    return fits_of(state) / f"{plan_key(plan)}.{images}.npz"


def _keep(run: Search, subject: Subject, records: Records, target: Target, max_time: float) -> None:
    """Keeps what another target may choose of: the best trades, their times layer by layer, and their corrections."""
    assert records.path is not None
    trades = run.networks.look_ahead()
    kept, size = set(), 0
    for trial in trades:
        if run.networks.affords(PROFILE):
            profile(records, run.networks.tools.timer, trial.plan)
        found = subject.corrections(trial.plan, trial.repaired_by)
        size += sum(each.nbytes for each in found.values())
        if found and size <= KEPT_BYTES:
            file = _corrections_file(records.path, trial.plan, trial.repaired_by)
            file.parent.mkdir(exist_ok=True)
            corrections.save(found, file)
            kept.add(file)
    for file in fits_of(records.path).glob("*.npz"):
        if file not in kept:
            file.unlink(missing_ok=True)
    if records.known.get(_finished(target), (0.0, 0.0))[0] < max_time:
        records.put(_finished(target), max_time, 0.0)


def _fingerprint(
    subject: Subject,
    reference: Subject,
    data: str,
    metric: Metric,
    space: Space,
    search: str,
    start: Plan | None,
    threads: int | None,
    fallback: bool,
    seed: int,
) -> dict[str, Any]:
    """What a state file is about; another target or time limit is no other search."""
    return {
        "model": fingerprint(subject.serialized()),
        "data": data,
        "metric": metric.name,
        "choices": [choice.to_json() for choice in space.choices()],
        "search": search,
        "threads": threads,
        "fallback": fallback,
        "seed": seed,
        "machine": fingerprint(machine()),
        **({} if chosen_provider() == "cpu" else {"provider": chosen_provider()}),
        **({} if start is None else {"start": plan_key(start), "reference": fingerprint(reference.serialized())}),
    }
