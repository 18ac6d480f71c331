"""A server that batches continuously, and LoadGen's Server test of it, in virtual time: ten minutes of a test take some
milliseconds, so that a search can be tried on hundreds of them.

A query waits for one of `slots`, gives its first token after `ttft` seconds and each further one after `tpot`, which
grows with the slots in use (`load`, to the power `bend`); with `stall` first tokens are made one by one, in so many
seconds, and nothing else meanwhile. The search's own model (harness/studies/replay.py) knows neither of the latter two.
The schedule is LoadGen's (harness/schedule.py), and so is the verdict.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.early_stopping import allowed_over
from harness.schedule import Times, count_queries
from harness.studies import replay
from harness.studies.replay import highest_but
from harness.studies.search import FULL, Ask, Probe, Terms

LENGTH = 400_000
"""Queries that a schedule is made of, more than any test here has."""


@dataclass(frozen=True)
class VirtualServer:
    """Times in seconds; answers of `tokens` (lowest, highest) tokens. All that is random comes from `seed`: the lengths
    of answers, the pace of each query (`jitter`) and, with `noise`, that of each test."""

    slots: int = 64
    ttft: float = 0.05
    tpot: float = 0.02
    load: float = 0.0
    bend: float = 1.0
    stall: float = 0.0
    tokens: tuple[int, int] = (32, 256)
    samples: int = 1024
    jitter: float = 0.1
    noise: float = 0.0
    seed: int = 0

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        low, high = self.tokens
        return np.random.default_rng(self.seed).integers(low, high + 1, self.samples)

    @property
    def capacity(self) -> float:
        """Queries/s with all slots in use, or as many as get their first token."""
        own = float(self.slots / (self.ttft + self.tpot * (1 + self.load) * (self.lengths.mean() - 1)))
        return min(own, 1 / self.stall) if self.stall else own

    def serve(self, arrivals: Times, test: int = 0) -> tuple[Times, Times]:
        """When each query has its first token and its last, in the `test`-th test."""
        rng = np.random.default_rng((self.seed, 1))
        passes = -(-len(arrivals) // self.samples)
        order = np.concatenate([rng.permutation(self.samples) for _ in range(passes)])[: len(arrivals)]
        pace = 1 + self.jitter * (2 * rng.random(self.samples) - 1)[order]
        if self.noise:
            drift = np.random.default_rng((self.seed, 2, test))
            pace = pace * (1 + self.noise * (2 * drift.random() - 1)) * (1 + self.noise * drift.normal(size=len(pace)))
        return self._play(arrivals.tolist(), (self.lengths[order] * pace).tolist(), pace.tolist())

    def _play(self, arrivals: list[float], work: list[float], pace: list[float]) -> tuple[Times, Times]:
        """Event by event. All that decode do so at one speed, so `clock` counts what each has decoded."""
        firsts, ends = [0.0] * len(arrivals), [0.0] * len(arrivals)
        prefilling: list[tuple[float, int]] = []
        decoding: list[tuple[float, int]] = []
        came = begun = running = 0
        now = clock = 0.0
        stalled = 0.0  # until then nothing is decoded
        step = self.tpot
        while True:
            arrival = arrivals[came] if came < len(arrivals) else inf
            first = prefilling[0][0] if prefilling else inf
            end = max(now, stalled) + (decoding[0][0] - clock) * step if decoding else inf
            then = min(arrival, first, end)
            if then == inf:
                return np.array(firsts), np.array(ends)
            if step:
                clock += max(0.0, then - max(now, stalled)) / step
            now = then
            if end <= now:
                clock, query = heapq.heappop(decoding)
                ends[query] = now
                running -= 1
            elif first <= now:
                query = heapq.heappop(prefilling)[1]
                firsts[query] = now
                heapq.heappush(decoding, (clock + work[query], query))
            else:
                came += 1
            while running < self.slots and begun < came:
                stalled = max(now, stalled) + self.stall * pace[begun]
                heapq.heappush(prefilling, (max(now + self.ttft * pace[begun], stalled), begun))
                begun += 1
                running += 1
            step = self.tpot * (1 + self.load * (running / self.slots) ** self.bend)


@dataclass
class VirtualLoadGen:
    """LoadGen's tests of a server, one after the other; `spent` is the seconds that they took. A test in which more
    queries are over a limit than LoadGen allows is brought to an end, unless `to_the_end`."""

    server: VirtualServer
    terms: Terms
    to_the_end: bool = False
    spent: float = 0.0
    tests: int = 0

    def test(self, ask: Ask) -> Probe:
        limits, whole = self.terms.limits, self.terms.whole if ask.full else 1
        schedule = self.terms.arrivals(LENGTH)
        queries = count_queries(schedule, ask.rate, ask.seconds, ask.queries, whole)
        arrivals = schedule[:queries] / ask.rate
        firsts, ends = self.server.serve(arrivals, self.tests)
        ttft, tpot = firsts - arrivals, (ends - firsts) / (self._lengths(queries) - 1)
        over = allowed_over(queries, limits.percentile)
        late = np.sort(np.concatenate((firsts[ttft > limits.ttft], ends[tpot > limits.tpot])))
        valid = highest_but(ttft, over) <= limits.ttft and highest_but(tpot, over) <= limits.tpot and over >= 0
        stop = inf if valid or self.to_the_end or len(late) <= over else late[max(0, over)]
        crowd = arrivals[np.arange(1, queries + 1) - np.searchsorted(np.sort(ends), arrivals) > ask.in_flight]
        crowded = not self.to_the_end and len(crowd) > 0 and crowd[0] < stop
        stop = float(crowd[0]) if crowded else stop
        seen = firsts <= stop
        self.spent += self._length(ask, arrivals, ends, stop)
        self.tests += 1
        done = ends <= stop
        base = float(np.quantile(ttft[seen], 0.02))
        over_at, tokens = np.where(done, ends, inf)[seen], self._lengths(queries)[seen] - 1
        return Probe(
            level=ask.level,
            full=ask.full,
            rate=ask.rate,
            valid=bool(valid) and not crowded,
            seen=int(seen.sum()),
            over=max(0, over),
            ttft=highest_but(ttft[seen], over),
            tpot=highest_but(tpot[done], over) if done.any() else 0.0,
            base=base,
            cut=stop < inf and not crowded,
            crowded=ask.in_flight if crowded else 0,
            latency=float(np.quantile((ends - arrivals)[done], 0.99)) if done.any() else 0.0,
            batch=replay.read(firsts[seen], over_at, tokens, base),
        )

    def _lengths(self, queries: int) -> Any:
        rng = np.random.default_rng((self.server.seed, 1))
        passes = -(-queries // self.server.samples)
        order = np.concatenate([rng.permutation(self.server.samples) for _ in range(passes)])[:queries]
        return self.server.lengths[order]

    def _length(self, ask: Ask, arrivals: Times, ends: Times, stop: float) -> float:
        """Seconds that a test takes; a hopeless one until LoadGen has issued as many as it lets be outstanding."""
        if stop == inf:
            return float(ends.max())
        outstanding = int((arrivals <= stop).sum() - (ends <= stop).sum())
        held = stop + max(0, ask.in_flight - outstanding) / ask.rate
        return float(min(held, max(arrivals[-1], stop)))


def find_truth(server: VirtualServer, terms: Terms, precision: float = 0.0005) -> float:
    """The highest rate that is valid at full length, by bisection to the end."""
    loadgen = VirtualLoadGen(server, terms, to_the_end=True)
    low, high = server.capacity / 8, server.capacity * 1.5
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        valid = loadgen.test(Ask(FULL, True, middle, terms.seconds, terms.queries, 0)).valid
        low, high = (middle, high) if valid else (low, middle)
    return low
