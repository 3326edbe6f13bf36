"""Ways to look at a network: what is worth a change, and the line of the best selections."""

from __future__ import annotations

import itertools

import pytest

from perfonnx.methods import Method
from perfonnx.methods.perforate import Perforate
from perfonnx.search.costs import LayerCosts
from perfonnx.search.groups import alone
from perfonnx.search.ways import CLOSE, Way

HALF, MOST = (Perforate(rate, "grid") for rate in (0.5, 0.75))
ERRORS = {"a": {HALF: 0.1, MOST: 0.4}, "b": {HALF: 0.001}, "c": {HALF: 0.2, MOST: 0.9}}


def _way(base: dict[str, Method] | None = None) -> Way:
    """Layers a, b and c take 0.4, 0.02 and 0.4 of the time, everything else 0.18; sampled, what their rates leave."""
    dense = {"a": 0.4, "b": 0.02, "c": 0.4}
    sampled = {choice: {name: time * (1 - choice.rate) for name, time in dense.items()} for choice in (HALF, MOST)}
    return Way("maps", "nchw", alone("abc"), LayerCosts(dense, sampled=sampled, rest=0.18), base or {})


def test_the_line_goes_from_the_mildest_that_is_worth_it_to_the_boldest() -> None:
    line = _way().line(ERRORS)
    assert line[0].choices == {"a": HALF, "b": HALF} or line[0].choices == {"a": HALF}  # b alone gains 1 %
    assert line[-1].choices == {"a": MOST, "b": HALF, "c": MOST}
    assert line[-1].time == pytest.approx(0.18 + 0.1 + 0.01 + 0.1)
    for milder, bolder in itertools.pairwise(line):
        assert milder.error < bolder.error
        assert bolder.time <= milder.time - CLOSE or bolder is line[-1]


def test_where_nothing_is_worth_it_the_boldest_is_all_there_is() -> None:
    (only,) = _way().line({"b": {HALF: 0.001}})
    assert only.choices == {"b": HALF}
    assert _way().line({}) == []


def test_single_layers_are_those_worth_it_by_growing_error() -> None:
    found = [(dict(single.choices), single.error) for single in _way().single(ERRORS)]
    assert found == [({"a": HALF}, 0.1), ({"c": HALF}, 0.2), ({"a": MOST}, 0.4), ({"c": MOST}, 0.9)]


def test_only_what_goes_beyond_the_start_is_further() -> None:
    way = _way({"a": HALF})
    assert way.is_further("a", MOST)
    assert not way.is_further("a", HALF)
    assert way.is_further("b", HALF)
    assert not _way().is_further("d", HALF)
    assert way.stay("a").time == pytest.approx(0.2)


def test_masks_of_other_kinds_are_left_out() -> None:
    other = Perforate(0.5, "uniform")
    way = _way()
    way.costs.sampled[other] = {"a": 0.1}
    errors = {"a": {HALF: 0.1, other: 0.05}}
    assert way.line(errors)[0].choices == {"a": other}
    assert way.line(errors, ["grid"])[0].choices == {"a": HALF}
