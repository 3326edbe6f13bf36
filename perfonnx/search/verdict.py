"""What came of a search, in words a person understands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from perfonnx.plan import Plan
from perfonnx.rewriting import Rewritten
from perfonnx.search.costs import layer_times, profile
from perfonnx.search.evaluate import CHOOSING, FITTING, HELD_BACK
from perfonnx.search.result import MIN_SPEEDUP, Trial, Tuned
from perfonnx.search.search import Search

POOR = 0.2
"""An original that is right on fewer images than this was given the wrong labels or pixels, most likely."""

NAMED = 2
"""Layers that are named, at most."""


def told(
    search: Search, result: Rewritten, best: Trial | None, threads: int | None, available: Mapping[str, int]
) -> Tuned:
    """Everything that a search found, with a message and warnings.

    Args:
        search: The search.
        result: The model that it ends with.
        best: The network that was taken, None where there is none.
        threads: Intra-op threads asked for.
        available: Images that there were, by part.
    """
    networks = search.networks
    target, records = networks.target, networks.tools.records
    reached = best is not None and target.allows(best.held_back) and target.met(best)
    times = {}
    if best is not None:
        timer = networks.tools.timer
        times = layer_times(*(profile(records, timer, plan) for plan in (Plan(seed=search.seed), best.plan)))
    images = {part: len(samples) for part, samples in networks.tools.parts.items()}
    return Tuned(
        result,
        best,
        _message(search, result, best, reached),
        tuple(_warnings(search, best, available)),
        reached,
        networks.tools.metric,
        target,
        list(networks.trials.values()),
        search.rows,
        {way.name: way.costs for way in search.ways},
        search.units,
        times,
        {**images, "screening": search.screened},
        threads,
        records.clock,
        obstacles=search.obstacles,
    )


def _message(search: Search, result: Rewritten, best: Trial | None, reached: bool) -> str:
    networks, name = search.networks, result.report.model
    metric, target = networks.tools.metric, networks.target
    bound = "" if target.max_drop is None else f" {metric.within(target.max_drop)}"
    if best is None:
        text = f"{name}: nothing{bound} {target.worth}; the model is left alone"
        reason = _nearest(search) or result.report.little_to_gain
        return f"{text} ({reason})" if reason else text
    assert best.held_back is not None
    text = (
        f"{name}: {target.gained(best)}, {metric.lost(best.held_back.drop)} on {best.held_back.images} images "
        "that took no part in the choice"
    )
    wanted = target.speedup or MIN_SPEEDUP
    return text if reached else f"{text}; {wanted:g}x is not reached for certain{bound}"


def _nearest(search: Search) -> str | None:
    """What the network does that came nearest; None where none was tried."""
    networks = search.networks
    tried = list(networks.trials.values())
    faster = [trial for trial in tried if networks.target.gain(trial) >= networks.target.least]
    if not tried:
        return None
    if not faster:
        number = "network" if len(tried) == 1 else f"fastest of {len(tried)} networks"
        return f"the {number} that was tried is {max(trial.speed.ratio for trial in tried):.2f}x"
    mildest = min(faster, key=lambda trial: trial.choosing.guide)
    layers = list(mildest.plan.layers)
    named = " and ".join(layers) if len(layers) <= NAMED else f"{len(layers)} layers"
    quality = mildest.held_back or mildest.choosing
    where = "held back" if mildest.held_back else "to choose by"
    return (
        f"even the mildest of {len(faster)} faster networks that were tried, with {named} sampled, "
        f"is {mildest.speed.ratio:.2f}x faster, but {networks.tools.metric.lost(quality.drop)} on {quality.images} "
        f"images {where}"
    )


def _warnings(search: Search, best: Trial | None, available: Mapping[str, int]) -> Iterator[str]:
    networks = search.networks
    metric, sizes, trials = networks.tools.metric, networks.sizes, list(networks.trials.values())
    yield from metric.left_out
    if metric.name == "top1" and trials and trials[0].choosing.reference < POOR:
        yield (
            f"the original itself is right on {trials[0].choosing.reference:.0%} of the images only: are the labels, "
            "and the numbers made of the pixels, those that it was trained for?"
        )
    yield from _uncertainty(search, best, available)
    if networks.cut_short:
        yield (
            f"the time was up after {len(search.rows)} measurements of layers and {len(trials)} networks; "
            "there may be better ones: give more time, fewer kinds of masks and repairs, or smaller inputs"
        )
    used = {CHOOSING: sizes.choosing, HELD_BACK: sizes.held_back}
    if any(used[part] < available[part] for part in used):
        yield (
            f"the time allowed for {used[CHOOSING]} of {available[CHOOSING]} images to choose by, and for "
            f"{used[HELD_BACK]} of {available[HELD_BACK]} held back"
        )
    if sizes.refitting < available.get(FITTING, 0):
        yield f"the time allowed for {sizes.refitting} of {available[FITTING]} images to refit regions by"
    if not sizes.repairing:
        yield "the time did not allow for repairs: layers are sampled as they are, and lose more than they must"
    failed = [t for t in trials if t.held_back is not None and not networks.target.allows(t.held_back)]
    looks = 1 + sum(best is not None and networks.merit(trial) < networks.merit(best) for trial in failed)
    if looks > 1:
        yield (
            f"{looks} models were looked at on the held-back images until one stayed within the bound, so its loss "
            "there is a little flattering"
        )


def _uncertainty(search: Search, best: Trial | None, available: Mapping[str, int]) -> Iterator[str]:
    """That the images are too few to tell, where they are."""
    metric, bound = search.networks.tools.metric, search.networks.target.max_drop
    quality = best.held_back if best else None
    if bound is None or quality is None or bound <= 0:
        return
    half = 1.96 * quality.drop_error
    if bound < half < math.inf:
        share = available[HELD_BACK] / sum(available.values())
        needed = math.ceil(quality.images * (half / bound) ** 2 / share / 50) * 50
        yield (
            f"{quality.images} images cannot tell a loss of {metric.show(bound)} from twice as much: the loss is known "
            f"to +-{metric.show(half)} (95 %); about {needed} images in all would do"
        )
