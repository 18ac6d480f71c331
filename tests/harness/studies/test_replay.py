"""A probe's schedule replayed on a single queue."""

from __future__ import annotations

import numpy as np
import pytest

from harness.schedule import Times, unit_schedule
from harness.studies.replay import capacity, highest_but, peak, waits

SCHEDULE = unit_schedule(11, 20_000)


def queue(arrivals: Times, served: float) -> Times:
    """Each query's wait, one after the other."""
    free, found = 0.0, []
    for arrival in arrivals:
        found.append(max(0.0, free - arrival))
        free = max(free, arrival) + 1 / served
    return np.array(found)


@pytest.mark.parametrize("load", [0.5, 0.9, 1.0, 1.3])
def test_waits_are_those_of_a_queue(load: float) -> None:
    arrivals = SCHEDULE[:2000] / 20.0
    served = 20.0 / load
    assert waits(SCHEDULE[:2000], load) / served == pytest.approx(queue(arrivals, served), abs=1e-6)


@pytest.mark.parametrize(("queries", "over"), [(700, 1), (2000, 10), (20_000, 150)])
def test_the_capacity_follows_from_one_wait(queries: int, over: int) -> None:
    seen = highest_but(queue(SCHEDULE[:queries] / 19.0, 20.0), over)
    assert capacity(SCHEDULE[:queries], 19.0, seen, over) == pytest.approx(20.0, rel=1e-3)


def test_the_peak_of_a_longer_test_follows_from_the_capacity() -> None:
    rate = peak(20.0, 1.5, lambda _: (SCHEDULE, 150))
    assert highest_but(queue(SCHEDULE / rate, 20.0), 150) <= 1.5
    assert highest_but(queue(SCHEDULE / (rate * 1.001), 20.0), 150) > 1.5


def test_a_test_too_short_for_a_verdict_has_no_peak() -> None:
    assert peak(20.0, 1.5, lambda _: (SCHEDULE[:100], -1)) <= 2.0


@pytest.mark.parametrize(("over", "value"), [(0, 9), (3, 6), (9, 0), (50, 0), (-1, 9)])
def test_the_highest_but_some(over: int, value: int) -> None:
    assert highest_but(np.random.default_rng(1).permutation(10).astype(float), over) == value
