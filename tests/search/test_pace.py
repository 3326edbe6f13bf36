"""Dividing the time: images by what one takes, and what is expected of a measurement by what the last ones took."""

from __future__ import annotations

import pytest

from perfonnx.search.pace import FINAL_SECONDS, PROFILE, TRIAL, VERIFICATION, Pace, Sizes
from perfonnx.search.state import Records


def _sizes(max_time: float, seconds: float, *, layers: int = 16, batch: int = 1) -> Sizes:
    return Sizes.within(max_time, seconds, layers=layers, choosing=300, held_back=200, batch=batch)


def test_with_time_enough_all_images_are_looked_at() -> None:
    assert _sizes(900.0, 0.005) == Sizes(300, 200, 200)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("max_time", [60.0, 300.0])
def test_networks_and_a_verification_fit_into_the_time(seconds: float, max_time: float) -> None:
    sizes = _sizes(max_time, seconds)
    network = seconds * (sizes.choosing + 16 * sizes.repairing)
    fewest = seconds * (8 + 16)  # what cannot be done without
    assert network <= max(max_time / 16, fewest)
    assert 2 * seconds * sizes.held_back <= max(max_time / 12, 2 * 4 * seconds)


def test_less_time_is_fewer_images_down_to_a_few() -> None:
    found = [_sizes(t, 0.5) for t in (2000.0, 400.0, 100.0, 20.0)]
    for name in ("choosing", "held_back", "repairing"):
        numbers = [getattr(sizes, name) for sizes in found]
        assert numbers == sorted(numbers, reverse=True)
    assert found[-1] == Sizes(8, 4, 0)  # and no repairs


def test_sizes_are_whole_batches() -> None:
    sizes = _sizes(300.0, 0.5, batch=4)
    assert (sizes.choosing % 4, sizes.held_back % 4, sizes.repairing % 4) == (0, 0, 0)


def _pace(records: Records) -> Pace:
    return Pace.start(records, 100.0, 0.01, layers=10, sizes=Sizes(100, 50, 20))


def test_the_longer_one_of_the_last_two_is_expected() -> None:
    records = Records()
    pace = _pace(records)
    first = pace.expected[TRIAL]
    assert first == pytest.approx(0.01 * (2 * 100 + 10 * 20) + 2.0)
    for took, expected in ((9.0, 9.0), (3.0, 9.0), (2.0, 3.0), (8.0, 8.0)):
        with pace.measuring(TRIAL):
            records.clock += took
        assert pace.expected[TRIAL] == expected


def test_what_was_not_made_yet_may_be_foreseen() -> None:
    pace = _pace(Records())
    pace.foresee(VERIFICATION, 30.0)
    pace.foresee(VERIFICATION, 1.0)
    assert pace.expected[VERIFICATION] == 30.0
    pace.took(VERIFICATION, FINAL_SECONDS)
    pace.foresee(VERIFICATION, 40.0)
    assert pace.expected[VERIFICATION] == FINAL_SECONDS


def test_time_is_enough_or_not() -> None:
    records = Records()
    pace = _pace(records)
    pace.expected.update({TRIAL: 30.0, VERIFICATION: 20.0, PROFILE: 5.0})
    assert pace.affords(TRIAL, TRIAL, VERIFICATION)
    records.clock = 30.0
    assert not pace.affords(TRIAL, TRIAL, VERIFICATION)
    assert pace.affords(TRIAL, VERIFICATION)
    assert not pace.affords(PROFILE, until=0.34)
    assert pace.left == 70.0
    records.clock = 130.0
    assert pace.left == 0.0


def test_layers_are_screened_by_as_many_images_as_there_is_time_for() -> None:
    pace = Pace(Records(), 100.0, {})
    assert pace.screening(10, 30, 0.001, 300) == 128
    assert pace.screening(10, 30, 0.02, 300) == 29  # all that is useful
    assert pace.screening(10, 30, 0.05, 300) == 12  # enough, where what is useful would get too few
    assert pace.screening(10, 30, 0.3, 300) == 5  # what is needed at least
    assert pace.screening(10, 30, 5.0, 300) == 4
    assert pace.screening(10, 30, 0.3, 300, batch=8) == 8
    assert pace.screening(10, 30, 0.001, 50) == 50
