"""What one probe tells about a rate and a length that was not tried: its schedule is replayed on a single queue.

A server that batches continuously behaves near its limit as one queue that is served at a constant rate, its capacity:
the wait of query i is what is left of the work of those before it (Lindley). LoadGen's schedule is known, so from one
wait that was seen the capacity follows, and from the capacity the wait of every query of a test of full length at any
rate, bursts in its later part included, which a short probe never meets. Where a server behaves otherwise the result is
a guess: it says where to probe next, and LoadGen says what is VALID.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.schedule import Times

STEPS = 18
"""Halvings of an interval of ratios: to a part in 50,000."""


def waits(schedule: Times, load: float) -> Times:
    """Each query's wait, in service times, where a unit schedule is offered at this share of the capacity."""
    ahead: Times = np.arange(len(schedule)) - schedule / load
    behind: Times = ahead - np.minimum.accumulate(ahead)
    return behind


def highest_but(values: Times, over: int) -> float:
    """The value that `over` others exceed."""
    place = max(0, len(values) - 1 - max(0, over))
    return float(np.partition(values, place)[place])


def capacity(schedule: Times, rate: float, wait: float, over: int) -> float:
    """The capacity, in queries/s, at which all but `over` of the queries wait no longer than `wait` seconds."""

    def too_slow(served: float) -> bool:
        return highest_but(waits(schedule, rate / served), over) / served > wait

    return _edge(too_slow, rate / 10, rate * 10)


def peak(served: float, wait: float, test: Callable[[float], tuple[Times, int]]) -> float:
    """The highest rate at which a server of this capacity keeps all but the allowed queries' waits within `wait`
    seconds; `test` gives the unit schedule of a test at a rate, and how many of its queries may be over."""

    def in_time(rate: float) -> bool:
        schedule, over = test(rate)
        return over >= 0 and highest_but(waits(schedule, rate / served), over) / served <= wait

    return _edge(in_time, served / 10, served * 2)


def _edge(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Up to where something holds that holds at `low` and not at `high`, on a scale of ratios."""
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
