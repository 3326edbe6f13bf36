"""Walking along a line of networks to where the bound is met."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx.search.walk import Seen, nearest, walk

LINE = [0.01 * 1.05**i for i in range(150)]  # 0.01 to 14


def _measure(bound: float, loss: Callable[[float], float], tried: list[int]) -> Callable[[int], Seen]:
    def attempt(place: int) -> Seen:
        tried.append(place)
        found = loss(LINE[place])
        return Seen(found > bound, found / bound)

    return attempt


@pytest.mark.parametrize("bound", [0.012, 0.05, 1.0, 9.0])
@pytest.mark.parametrize(
    "loss",
    [lambda x: x, lambda x: x**2, lambda x: 20 * x, lambda x: x**0.5 / 10],
    ids=["linear", "square", "steep", "root"],
)
@pytest.mark.parametrize("start", [None, 0.05])
def test_the_bound_is_found_in_few_steps(bound: float, loss: Callable[[float], float], start: float | None) -> None:
    tried: list[int] = []
    low, high = walk(LINE, _measure(bound, loss, tried), start=start, safe=0)
    assert high == low + 1
    assert high == sum(loss(x) <= bound for x in LINE)
    assert len(tried) <= 10
    assert len(set(tried)) == len(tried)


@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=40).map(sorted),
    st.lists(st.builds(Seen, st.booleans(), st.none() | st.floats(-2, 1e9)), min_size=1),
    st.none() | st.floats(0, 1e4),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_every_walk_ends_and_tries_nothing_twice(
    line: list[float], answers: list[Seen], start: float | None, last: bool
) -> None:
    tried: list[int] = []
    cycle = itertools.cycle(answers)

    def attempt(place: int) -> Seen:
        tried.append(place)
        return next(cycle)

    low, high = walk(line, attempt, start=start, safe=0, last=lambda: last)
    assert len(set(tried)) == len(tried)
    assert high == low + 1


def test_a_miss_by_far_is_followed_by_a_far_milder_one() -> None:
    tried: list[int] = []
    walk(LINE, _measure(0.03, lambda x: x, tried), start=1e9, safe=0)
    assert tried[0] == len(LINE) - 1
    assert LINE[tried[1]] < LINE[tried[0]] / 10


def test_without_a_start_the_middle_is_tried_first() -> None:
    tried: list[int] = []
    walk(LINE, _measure(0.03, lambda x: x, tried), start=None, safe=0)
    assert LINE[tried[0]] == pytest.approx((LINE[0] * LINE[-1]) ** 0.5, rel=0.05)


def test_what_was_measured_before_bounds_the_walk() -> None:
    tried: list[int] = []
    known = {100: Seen(True, 9.0), 30: Seen(False, 0.4), 120: Seen(False, None), 10: Seen(False, 0.1)}
    low, high = walk(LINE, _measure(0.1, lambda x: x, tried), start=1e9, safe=0, known=known)
    assert (low, high) == (47, 48)
    assert all(30 < place < 100 for place in tried)
    assert walk(LINE, lambda _: pytest.fail("tried"), start=None, safe=0, known={0: Seen(True, 3.0)}) == (-1, 0)


def test_where_everything_misses_the_mildest_was_tried() -> None:
    tried: list[int] = []
    assert walk(LINE, _measure(0.001, lambda x: x, tried), start=None, safe=0) == (-1, 0)
    assert tried[-1] == 0


@pytest.mark.parametrize(("safe", "start", "bound"), [(0, LINE[-1], 0.001), (len(LINE) - 1, LINE[0], 1e4)])
def test_the_last_attempts_are_cautious(safe: int, start: float, bound: float) -> None:
    free: list[int] = []
    walk(LINE, _measure(bound, lambda x: x, free), start=start, safe=safe)
    tried: list[int] = []
    left = iter([False, True, True])
    walk(LINE, _measure(bound, lambda x: x, tried), start=start, safe=safe, last=lambda: next(left))
    assert tried[0] == free[0]
    assert abs(tried[1] - safe) < abs(free[1] - safe)
    assert tried[2] == safe


def test_nothing_is_tried_without_time() -> None:
    assert walk(LINE, lambda _: pytest.fail("tried"), start=None, safe=0, go_on=lambda: False) == (-1, len(LINE))


def test_the_nearest_place_is_logarithmic_and_strictly_between() -> None:
    line = [0.0, 1.0, 10.0, 100.0]
    assert nearest(line, 20.0) == 2
    assert nearest(line, 40.0) == 3
    assert nearest(line, 1e9, 0, 2) == 1
    assert nearest(line, 0.0) == 0
