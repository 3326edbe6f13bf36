"""The loss to expect: between what was measured and what the guide says."""

from __future__ import annotations

import numpy as np
import pytest

from perfonnx.comparing.metrics import Quality
from perfonnx.search.credible import credible_drop


def quality(guide: float, drop: float, error: float = 0.02) -> Quality:
    return Quality(100, 1.0, 1 - drop, drop, error, guide)


LINE = [quality(g, 0.1 * g) for g in (0.2, 0.3, 0.4, 0.5, 0.6)]


def test_luck_is_drawn_towards_the_line() -> None:
    lucky = quality(0.4, -0.02)
    found = credible_drop(lucky, [*LINE, lucky])
    assert 0.02 < found < 0.04
    unlucky = quality(0.4, 0.10)
    assert 0.04 < credible_drop(unlucky, [*LINE, unlucky]) < 0.06


def test_what_is_certain_stands() -> None:
    sure = quality(0.4, 0.0, error=1e-6)
    assert credible_drop(sure, [*LINE, sure]) == pytest.approx(0.0, abs=1e-4)


def test_without_comparison_the_measured_number_stands() -> None:
    alone = quality(0.4, -0.02)
    assert credible_drop(alone, [alone]) == -0.02
    assert credible_drop(alone, [alone, *(quality(g, 0.5) for g in (5.0, 6.0, 7.0, 8.0))]) == -0.02
    assert credible_drop(quality(0.0, 0.0), LINE) == 0.0


def test_estimates_are_better_than_the_measured_numbers() -> None:
    random = np.random.default_rng(0)
    guides = random.uniform(0.2, 0.7, 40)
    truth = 0.1 * guides * random.normal(1, 0.2, 40)
    measured = [quality(g, d, 0.02) for g, d in zip(guides, truth + 0.02 * random.standard_normal(40), strict=True)]
    estimates = np.array([credible_drop(q, measured) for q in measured])
    raw = np.array([q.drop for q in measured])
    assert np.sqrt(np.mean((estimates - truth) ** 2)) < 0.6 * np.sqrt(np.mean((raw - truth) ** 2))
