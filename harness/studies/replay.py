"""What one probe tells about a rate and a length that was not tried: the schedule is replayed on a model of the server.

A server that batches continuously takes a query into one of its slots, and each decodes the slower the more do: a step
takes so long alone and so much longer per query that runs. Both follow from a probe's queries, and so does each one's
work, in steps. LoadGen's schedule is known, so the model gives the latencies of every query of a test of full length at
any rate, bursts in its later part and the load that builds up over minutes included, which a short probe never meets.

Where waits decide, a factor on the work makes the model show the very one that decided the probe, whatever it is that
the model lacks. The result is still a guess: it says where to probe next, and LoadGen says what is VALID.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from harness.schedule import Times

STEPS = 11
"""Halvings of an interval of ratios: from 16 to a part in 700."""

FEW = 32
"""Answers of which nothing is read."""

SLOTS_IN_USE = 0.01
"""The share of the time for which a number of queries must run to count: first tokens do not tell to the millisecond
when a query was begun."""


@dataclass(frozen=True)
class Batch:
    """A server as a probe showed it: a step takes `alone` + n × `each` seconds while n queries run, and `slots` are the
    most that do. Per query, in the order of arrival: `work` in steps, first token included, and `tokens` after the
    first, which comes `base` seconds after its begin."""

    alone: float
    each: float
    slots: float
    base: float
    work: Times
    tokens: Times

    def serve(self, arrivals: Times, factor: float = 1.0) -> tuple[Times, Times]:
        """Each query's wait and its time per token. All that run do so at one speed, so `clock` counts
        the steps that each has made."""
        work = (np.resize(self.work, len(arrivals)) * factor).tolist()
        begins, ends = [0.0] * len(arrivals), [0.0] * len(arrivals)
        running: list[tuple[float, int]] = []
        came = begun = 0
        now = clock = 0.0
        step = self.alone
        for arrival in [*arrivals.tolist(), inf]:
            while running and (end := now + (running[0][0] - clock) * step) <= arrival:
                clock, query = heapq.heappop(running)
                ends[query] = now = end
                if begun < came:
                    begins[begun] = now
                    heapq.heappush(running, (clock + work[begun], begun))
                    begun += 1
                step = self.alone + self.each * len(running)
            if came < len(ends):
                clock += (arrival - now) / step
                now = arrival
                if len(running) < self.slots:
                    begins[begun] = now
                    heapq.heappush(running, (clock + work[begun], begun))
                    begun += 1
                    step = self.alone + self.each * len(running)
                came += 1
        starts = np.array(begins)
        return starts - arrivals, (np.array(ends) - starts - self.base) / np.resize(self.tokens, len(arrivals))


def read(firsts: Times, ends: Times, tokens: Times, base: float) -> Batch | None:
    """The server that gave first tokens and last ones at these seconds, in the order of arrival; an answer that was not
    over when the probe was ended has inf. None if too few are to tell."""
    done = np.isfinite(ends)
    if done.sum() < FEW:
        return None
    begins = firsts - base
    ended = np.where(done, ends, max(firsts.max(), ends[done].max()))
    times, running = _running(begins, ended)
    queries = _integral(times, running)
    load = _between(times, queries, begins, ended)[done] / (ended - begins)[done]
    alone, each = _line(load, ((ends - firsts) / tokens)[done])
    clock = _integral(times, 1 / (alone + each * np.maximum(running, 1)))
    work = _between(times, clock, begins, ended)
    if not done.all():
        # Such an answer is longer than what was seen of it; how long, those tell that were begun before all such.
        early = work[begins < begins[~done].min()]
        drawn = np.resize(early if len(early) else work[done], len(work))
        work = np.where(done, work, np.maximum(work, drawn))
        tokens = np.where(done, tokens, work * (tokens[done].sum() / work[done].sum()))
    return Batch(alone, each, _most(times, running), base, work, tokens)


def highest_but(values: Times, over: int) -> float:
    """The value that `over` others exceed."""
    place = max(0, len(values) - 1 - max(0, over))
    return float(np.partition(values, place)[place])


def edge(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Up to where something holds that holds at `low` and not at `high`, on a scale of ratios."""
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _running(begins: Times, ends: Times) -> tuple[Times, Times]:
    """How many queries run from each of the times on."""
    times = np.concatenate((ends, begins))
    order = np.argsort(times, kind="stable")
    change = np.concatenate((np.full(len(ends), -1.0), np.ones(len(begins))))
    return times[order], np.cumsum(change[order])


def _integral(times: Times, values: Times) -> Times:
    """Up to each of the times, of what holds from each on."""
    return np.concatenate(([0.0], np.cumsum(values[:-1] * np.diff(times))))


def _between(times: Times, integral: Times, begins: Times, ends: Times) -> Times:
    found: Times = np.interp(ends, times, integral) - np.interp(begins, times, integral)
    return found


def _line(load: Times, pace: Times) -> tuple[float, float]:
    """Seconds per token of a query alone, and more for each that runs. Each query counts by the share it is off."""
    if np.ptp(load) < 1:
        return float(pace.mean()), 0.0
    each, alone = np.polyfit(load, pace, 1, w=1 / np.maximum(pace, 1e-9))
    if each < 0:
        return float(pace.mean()), 0.0
    if alone <= 0:
        return 1e-9, float((pace / load).mean())
    return float(alone), float(each)


def _most(times: Times, running: Times) -> int:
    """The most queries that ran for more than a moment."""
    order = np.argsort(running[:-1])
    share = np.cumsum(np.diff(times)[order]) / (times[-1] - times[0])
    return int(running[:-1][order][np.searchsorted(share, 1 - SLOTS_IN_USE)])
