"""What holds of every model: at rate 0 it is the original; sampled, kernels, function bodies and both layouts agree."""

from __future__ import annotations

import os

import numpy as np
import pytest
from onnx import ModelProto

import perfonnx
from tests.properties.graphs import Drawn, draw, session

Arrays = list[np.ndarray]

TOLERANCE = 1e-4
"""Largest difference over the largest value."""

FIRST = int(os.environ.get("PERFONNX_FIRST_SEED", "0"))
"""Where the seeds begin: another number draws other graphs."""

QUICK, SLOW, BLOCK = 40, 2000, 50


def run(model: ModelProto, drawn: Drawn, *, library: bool) -> list[Arrays]:
    """The outputs for each of the feeds."""
    ran = perfonnx.session(model, threads=1) if library else session(model)
    return [ran.run(None, feed) for feed in drawn.feeds]


def difference(actual: list[Arrays], expected: list[Arrays]) -> float:
    """The largest of all outputs; infinite where shapes differ or a value is not finite."""
    worst = 0.0
    pairs = [pair for run in zip(actual, expected, strict=True) for pair in zip(*run, strict=True)]
    for a, e in pairs:
        if a.shape != e.shape or a.dtype != e.dtype or not np.isfinite(a.astype(np.float64)).all():
            return float("inf")
        a, e = a.astype(np.float64), e.astype(np.float64)
        worst = max(worst, float(np.abs(a - e).max() / max(float(np.abs(e).max()), 1e-3)))
    return worst


def faults(seed: int) -> list[str]:
    """What is wrong with the graph of this seed; nothing where onnxruntime refuses it."""
    drawn = draw(seed)
    if drawn is None:
        return []
    rng = np.random.default_rng([seed, 2023])
    method = str(rng.choice(["perforate", "perforate", "perforate", "sparse", "radius-adaptive"]))
    mask = str(rng.choice(["grid", "uniform", "lattice", "stripes-rows", "stripes-columns", "grid-square", "blocks"]))
    interpolation = str(rng.choice(["nearest", "nearest", "barycentric", "zero"]))
    rate = float(rng.choice([0.25, 0.5, 0.75]))
    found = []

    def compare(what: str, actual: list[Arrays], expected: list[Arrays]) -> None:
        error = difference(actual, expected)
        if error > TOLERANCE:
            found.append(f"{drawn.what}: {what} differ by {error:.2g} ({method}, {mask}, {interpolation}, {rate})")

    try:
        exact = perfonnx.rewrite(drawn.model, method=method if method != "sparse" else "perforate", rate=0, only=["."])
        original = run(drawn.model, drawn, library=False)
        compare("rate 0 and original", run(exact.proto, drawn, library=True), original)
        choices = {"mask": mask, "interpolation": interpolation} if method == "perforate" else {}
        by_layout = {}
        for layout in ("rows", "nchw"):
            sampled = perfonnx.rewrite(drawn.model, method=method, rate=rate, only=["."], layout=layout, **choices)
            by_layout[layout] = run(sampled.proto, drawn, library=True)
            bodies = run(sampled.proto, drawn, library=False)
            compare(f"kernels and bodies ({layout})", by_layout[layout], bodies)
        compare("rows and maps", by_layout["rows"], by_layout["nchw"])
    except Exception as error:
        if "matches no convolution" not in str(error):
            found.append(f"{drawn.what}: {type(error).__name__}: {error} ({method}, {mask}, {interpolation}, {rate})")
    return found


def check_block(first: int, count: int) -> None:
    found = [fault for seed in range(first, first + count) for fault in faults(FIRST + seed)]
    assert not found, "\n".join(found)


def test_most_graphs_are_drawn() -> None:
    assert sum(draw(seed) is not None for seed in range(QUICK)) > 0.7 * QUICK


@pytest.mark.parametrize("first", range(0, QUICK, 10))
def test_random_graphs(first: int) -> None:
    check_block(first, 10)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, SLOW, BLOCK))
def test_many_random_graphs(first: int) -> None:
    check_block(first, min(BLOCK, SLOW - first))
