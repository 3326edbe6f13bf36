"""What masks called `impact` are made from, measured on images, one unit after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from perfonnx.comparing.metrics import Metric
from perfonnx.errors import PerfonnxError
from perfonnx.impact import ranked_impact
from perfonnx.search.groups import Units
from perfonnx.search.state import Records
from perfonnx.subject import SamplesLike, Subject

IMPACT = "impact"
"""The mask that needs maps of impacts."""

IMAGES = 100
"""Images that impacts are measured on, at most: they are means over images."""


def with_impacts(
    subject: Subject,
    samples: SamplesLike,
    metric: Metric,
    units: Units,
    *,
    rate: float,
    records: Records,
    threads: int | None = None,
    go_on: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Subject:
    """The subject with iterative impact's maps; layers of a unit share one.

    Args:
        subject: The model.
        samples: The images to choose by.
        metric: What is measured of them.
        units: Layers that share a mask. A layer is in one of them at most.
        rate: The highest rate that masks will have.
        records: What is known already.
        threads: Intra-op threads.
        go_on: Asked before each unit; units that are left out get no map, and no such mask.
        progress: Called with the units done and their total.

    Raises:
        PerfonnxError: The model is no classifier, or an operator of it has no gradient.
    """
    if not metric.of_classes:
        raise PerfonnxError(f"mask impact follows the log-loss of a classifier, not {metric.name}; leave it out")
    used = samples.take(min(IMAGES, len(samples)))
    proto = subject.original().proto
    maps = {}
    for done, layers in enumerate(units.values()):
        if not go_on():
            break
        progress(done, len(units))
        ranks = records.ask(
            f"impact {rate:g} {' '.join(layers)}",
            lambda layers=layers: ranked_impact(proto, used, layers, rate=rate, threads=threads).tolist(),  # type: ignore[misc]
        )
        maps.update(dict.fromkeys(layers, np.array(ranks)))
    return replace(subject, impact_maps=maps)
