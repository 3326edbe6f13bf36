"""The greedy search: what may be taken, what is taken, where it ends."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from perfonnx.search.greedy import Measured, Step, admissible, greedy, pick

START = Measured(1.0, 0.0, 0.0)


def test_a_candidate_that_is_not_faster_is_inadmissible() -> None:
    assert not admissible(Measured(1.0, 0.0, -5.0), START)
    assert not admissible(Measured(1.2, 0.0, -5.0), START)
    assert admissible(Measured(0.9, 0.0, 5.0), START)


def test_a_gain_within_the_noise_is_no_gain() -> None:
    assert not admissible(Measured(0.98, 0.03, 0.0), START)
    assert not admissible(Measured(0.79, 0.02, 0.0), Measured(0.8, 0.0, 1.0))
    assert pick({"noise": Measured(0.98, 0.03, -9.0)}, START) is None


def test_a_loss_that_shrank_does_not_rank_small_gains_first() -> None:
    # (L - L0) / (t0 - t) is -100 for the small gain and -10 for the large one
    candidates = {"small": Measured(0.99, 0.0, -1.0), "large": Measured(0.9, 0.0, -1.0)}
    assert pick(candidates, START) == "large"
    assert pick({**candidates, "costly": Measured(0.1, 0.0, 0.01)}, START) == "large"


def test_the_smallest_loss_per_gain_against_the_original_is_taken() -> None:
    candidates = {"a": Measured(0.9, 0.0, 0.2), "b": Measured(0.7, 0.0, 0.3)}
    assert pick(candidates, START) == "b"


def test_costs_that_cannot_be_told_apart_are_told_apart_by_loss() -> None:
    candidates = {"fast": Measured(0.68, 0.05, 0.31), "safe": Measured(0.72, 0.05, 0.29)}
    assert candidates["fast"].cost < candidates["safe"].cost
    assert pick(candidates, START) == "safe"
    certain = {name: Measured(m.time, 0.0, m.loss) for name, m in candidates.items()}
    assert pick(certain, START) == "fast"


TIMES = {"a": {1: 0.1, 2: 0.2}, "b": {1: 0.0, 2: 0.3}}
LOSSES = {"a": {1: 0.01, 2: 0.1}, "b": {1: 0.0, 2: 0.9}}


def _measure(choices: Mapping[str, int]) -> Measured:
    time = 1 - sum(TIMES[layer][rung] for layer, rung in choices.items())
    return Measured(time, 0.001, sum(LOSSES[layer][rung] for layer, rung in choices.items()))


def _walk(max_loss: float = 9.0) -> list[Step[int]]:
    return list(greedy({"a": [[1], [2]], "b": [[1], [2]]}, _measure, max_loss=max_loss))


def test_walk_passes_over_rungs_that_gain_nothing() -> None:
    steps = _walk()
    assert [(step.layer, dict(step.choices)) for step in steps] == [
        ("a", {"a": 1}),
        ("a", {"a": 2}),
        ("b", {"a": 2, "b": 2}),
    ]
    assert [step.measured.time for step in steps] == pytest.approx([0.9, 0.8, 0.5])


def test_walk_ends_at_the_bound() -> None:
    assert [dict(step.choices) for step in _walk(max_loss=0.2)] == [{"a": 1}, {"a": 2}]
    assert _walk(max_loss=0.0) == []


def test_walk_asks_before_each_step() -> None:
    answers = iter([True, False])
    steps = list(greedy({"a": [[1], [2]]}, _measure, max_loss=9.0, go_on=lambda: next(answers)))
    assert len(steps) == 1


def test_each_rung_may_offer_several_choices() -> None:
    losses = {1: 0.5, 2: 0.1}
    steps = list(
        greedy({"x/1 2": [[1, 2]]}, lambda choices: Measured(0.9, 0.001, losses[choices["x/1 2"]]), max_loss=9.0)
    )
    assert [step.choices for step in steps] == [{"x/1 2": 2}]
