"""The frontier against every selection there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.search.choose import UNCHANGED, Layer, Option, Selection, frontier, pareto, total_time

numbers = st.integers(0, 20).map(float)
options = st.builds(Option, numbers, numbers)
layers = st.builds(Layer, numbers, numbers, st.lists(options, max_size=3).map(tuple), numbers, numbers)
chains = st.lists(layers, max_size=4).map(lambda found: {f"l{i}": layer for i, layer in enumerate(found)})


def _all(chain: dict[str, Layer]) -> list[tuple[float, float]]:
    """(error, time) of every selection, by the definition."""
    found = []
    for picks in itertools.product(*(range(-1, len(layer.options)) for layer in chain.values())):
        chosen = dict(zip(chain, picks, strict=True))
        error = sum(chain[n].options[p].error for n, p in chosen.items() if p != UNCHANGED)
        found.append((error, total_time(chain, chosen)))
    return found


def _unbeaten(found: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return sorted({(e, t) for e, t in found if not any(a <= e and b <= t and (a, b) != (e, t) for a, b in found)})


@given(chains)
@settings(max_examples=200, deadline=None)
def test_frontier_is_what_brute_force_finds(chain: dict[str, Layer]) -> None:
    line = frontier(chain)
    assert [(s.error, s.time) for s in line] == _unbeaten(_all(chain))
    for selection in line:
        assert selection.time == total_time(chain, selection.picks)
        assert list(selection.picks) == list(chain)


@given(st.lists(options, max_size=6))
def test_pareto_leaves_out_what_is_beaten(found: list[Option]) -> None:
    kept = pareto(found)
    assert sorted((found[i].error, found[i].time) for i in kept) == _unbeaten([(o.error, o.time) for o in found])


def test_total_time_knows_the_region() -> None:
    option = (Option(1.0, 0.5),)
    chain = {name: Layer(10.0, 20.0, option, 3.0, 4.0) for name in "abcd"}
    picks = dict.fromkeys("abcd", UNCHANGED)
    assert total_time(chain, picks) == 40
    assert total_time(chain, {**picks, "b": 0}) == 10 + (1 + 3 + 4) + 10 + 10
    assert total_time(chain, {**picks, "a": 0, "d": 0}) == (1 + 3) + 20 + 20 + (1 + 4)


def test_sampling_a_few_layers_far_apart_may_not_pay() -> None:
    option = (Option(5.0, 1.0),)
    chain = {"first": Layer(10, 10, option), "middle": Layer(10, 30), "last": Layer(10, 10, option)}
    dense, sampled = frontier(chain)
    assert (dense.time, sampled.time) == (30, 25)  # both would be 5 + 30 + 5
    assert sorted(sampled.picks.values()) == [UNCHANGED, UNCHANGED, 0]


@pytest.mark.parametrize("cap", [8, 64])
def test_a_capped_frontier_stays_close(cap: int) -> None:
    random = np.random.default_rng(0)
    chain = {f"l{i}": Layer(1.0, 1.0, tuple(Option(*random.random(2)) for _ in range(4)), 0.0, 0.0) for i in range(12)}
    exact, capped = frontier(chain, cap=1 << 20), frontier(chain, cap=cap)
    assert len(capped) <= cap < len(exact)
    span = exact[0].time - exact[-1].time
    for selection in capped:
        best = _fastest(exact, selection.error)
        assert selection.time <= best + len(chain) * span / (cap - 1)
    assert (capped[-1].time, capped[0].error) == (exact[-1].time, 0.0)


def _fastest(line: list[Selection], error: float) -> float:
    return min(s.time for s in line if s.error <= error + 1e-12)
