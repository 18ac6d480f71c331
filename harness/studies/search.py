"""Which probe comes next: a pure function from the history of probes, so that a search can be tested in virtual time,
and goes on after a crash by itself.

Near its capacity a server's queue takes minutes to build up: a probe of T seconds misses an excess of rate below
limit / T. So a verdict holds for its own length only, and the search asks of each probe more than its verdict: its
decisive latency, which only as many queries exceed as LoadGen allows, and what that says about a test of full length
(replay.py). Two stages:

1. short probes, each at the rate that the one before it points to, until one points no further than it can tell;
2. tests of full length, until one is VALID and one at most TOLERANCE above it is not. One that is hopeless is soon over
   and one that is valid takes all of its time, so they come from where the short ones point to and not from below. Runs
   are noisy: of `times` tests at the best rate most must be valid.

A `quick` search has estimates for its stage 2: some longer probes at the edge, and the median of what they point to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import inf, sqrt
from statistics import median

import numpy as np

from harness.early_stopping import allowed_over, needed
from harness.schedule import Times, count_queries, unit_schedule
from harness.studies import replay

SHORT, EDGE, FULL = "short", "edge", "full"

TOLERANCE = 0.02
"""The share of the rate that the answer may be off."""

SETTLED = 0.15
"""A short probe tells of rates no further from its own: the load was too unlike there."""

TELLING = 0.25
"""A latency below this share of what is allowed tells nothing of where the limit is met."""

FAITHFUL = 0.25
"""A model that shows the decisive latency of its own probe off by more than this share is none of that server."""

OUTLIERS = {SHORT: 1, EDGE: 2}
"""Queries over the limit that a probe must bear: each asks for more queries (early_stopping.py)."""

SHARE = {SHORT: 0.1, EDGE: 0.2}
"""A probe's length as a share of the full test's min_duration."""

STRIDE = 0.04
"""The first step away from a test that does not tell where the peak is; each further one is twice as long."""

MOST_ARRIVALS = 500_000
"""Queries of a schedule that are computed: more are counted by their mean."""

MOST_PROBES, MOST_STEPS = 40, 8
"""Probes until a search is given up, and those of them until there is an edge to search for at all."""


@dataclass(frozen=True)
class Limits:
    """What LoadGen holds a Server test to; seconds."""

    ttft: float
    tpot: float
    percentile: float = 0.99


@dataclass(frozen=True)
class Terms:
    """The test whose peak is searched: `seconds` and `queries` at least, in passes of `whole` samples."""

    limits: Limits
    seconds: float
    queries: int
    whole: int
    seed: int
    start: float
    """Rate of the first probe."""
    longest: float
    """Seconds that an answer takes under the limits, until one is measured."""
    times: int = 1
    """Tests at the best rate, most of which must be valid; for a quick search, probes at the edge."""
    quick: bool = False
    schedule: list[Times] = field(default_factory=list, compare=False, repr=False)

    def arrivals(self, queries: int) -> Times:
        """The unit schedule's first queries, or as many of them as are computed."""
        queries = min(queries, MOST_ARRIVALS)
        if not self.schedule or len(self.schedule[-1]) < queries:
            self.schedule.append(unit_schedule(self.seed, max(65_536, 2 * queries)))
        return self.schedule[-1][:queries]

    def count(self, rate: float, seconds: float, queries: int, whole: int) -> int:
        """The queries of a test."""
        if rate * seconds > MOST_ARRIVALS / 2:
            return count_queries(np.empty(0), rate, seconds, max(queries, round(rate * seconds)), whole)
        schedule = self.arrivals(max(queries, int(1.5 * rate * seconds) + 1000))
        return count_queries(schedule, rate, seconds, queries, whole)

    def full(self, rate: float) -> int:
        """The queries of a test of full length."""
        return self.count(rate, self.seconds, self.queries, self.whole)


@dataclass(frozen=True)
class Ask:
    """A probe to be made: at least so many seconds and queries. `full` is the test itself, in whole passes over the
    samples. LoadGen ends a probe with more than `in_flight` queries outstanding."""

    level: str
    full: bool
    rate: float
    seconds: float
    queries: int
    in_flight: int


@dataclass(frozen=True)
class Probe:
    """A probe that was made. Latencies in seconds; `ttft` and `tpot` are the decisive ones: of `seen` queries, `over`
    have a higher one, the most that LoadGen allows the whole test. `base` is the time to first token of a query that
    waits for nobody, `latency` the 99th percentile."""

    level: str
    full: bool
    rate: float
    valid: bool
    seen: int
    over: int
    ttft: float
    tpot: float
    base: float
    latency: float
    cut: bool = False
    """Brought to an end because it was hopeless."""
    crowded: int = 0
    """How many queries outstanding ended the probe before it was known whether it was hopeless: no verdict."""
    client_limited: bool = False
    batch: replay.Batch | None = field(default=None, compare=False, repr=False)
    """The server as it showed itself."""


@dataclass(frozen=True)
class Answer:
    """The end of a search: the peak (None: no rate is valid), whether LoadGen called it VALID at full length, and what
    is to be said about it."""

    rate: float | None
    confirmed: bool = False
    note: str = ""


def next_step(terms: Terms, history: Sequence[Probe]) -> Ask | Answer:
    """The next probe, or the answer."""
    if history and history[-1].crowded:
        last = history[-1]
        return replace(_ask(terms, history, last.level, last.rate, last.full), in_flight=4 * last.crowded)
    history = [probe for probe in history if not probe.crowded]
    if len(history) >= MOST_PROBES:
        best, _ = _around_peak([probe for probe in history if probe.full])
        return Answer(best, best is not None, f"the search came to no end in {len(history)} probes")
    shorts = [probe for probe in history if probe.level == SHORT]
    if not shorts:
        return _ask(terms, history, SHORT, terms.start)
    if (end := _nowhere(terms, shorts)) is not None:
        return end
    pointed = _settled(terms, shorts)
    if pointed is None:
        return _ask(terms, history, SHORT, _toward(terms, shorts))
    if not terms.quick or _ask(terms, history, EDGE, pointed).full:
        return _at_full_length(terms, history, pointed)
    edges = [probe for probe in history if probe.level == EDGE]
    found = [(estimate(terms, probe), probe.rate) for probe in edges]
    estimates = [rate for rate, own in found if rate is not None and abs(rate / own - 1) <= SETTLED]
    rate = median(estimates) if estimates else pointed
    return _ask(terms, history, EDGE, rate) if len(edges) < terms.times else Answer(_rounded(rate))


# -- stage 1 ----------------------------------------------------------------------------------------------------------


def _nowhere(terms: Terms, shorts: Sequence[Probe]) -> Answer | None:
    """The end of a search that has no edge to find."""
    low, high = _bracket(shorts)
    if low is None:
        slowest = min(shorts, key=lambda probe: probe.rate)
        if slowest.base > terms.limits.ttft:
            return Answer(None, note="even a query that waits for nobody is over the limit on the first token")
        if len(shorts) >= MOST_STEPS:
            return Answer(None, note=f"not even {slowest.rate:g} queries/s are")
    elif high is None:
        fastest = max(shorts, key=lambda probe: probe.rate)
        if len(shorts) >= MOST_STEPS:
            mine = ", and it is the client that limits the fastest of them" if fastest.client_limited else ""
            return Answer(low, fastest.full, f"the limits are met at every rate that was tried{mine}")
    return None


def _bracket(probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """The highest valid rate, and the lowest above it that is not."""
    low = max((probe.rate for probe in probes if probe.valid), default=None)
    high = min((probe.rate for probe in probes if not probe.valid and probe.rate > (low or 0)), default=None)
    return low, high


def _settled(terms: Terms, shorts: Sequence[Probe]) -> float | None:
    """Where the short probes point to, once that is near enough. A valid one that points below itself is too short for
    the load to build up: its verdict bounds nothing."""
    last = shorts[-1]
    pointed = estimate(terms, last)
    if pointed is not None and (abs(pointed / last.rate - 1) <= SETTLED or (last.valid and pointed < last.rate)):
        return pointed
    low, high = _bracket(shorts)
    return sqrt(low * high) if low is not None and high is not None and high / low <= 1 + SETTLED else None


def _toward(terms: Terms, shorts: Sequence[Probe]) -> float:
    """The rate of the next short probe: where the last one points to, if that is between what is known."""
    low, high = _bracket(shorts)
    pointed = estimate(terms, shorts[-1])
    if low is None:
        least = min(probe.rate for probe in shorts)
        return max(least / 4, min(pointed or least / 2, 0.9 * least))
    if high is None:
        return low * min(1 + 0.125 * 2.0 ** len(shorts), 5.0, max((pointed or 5 * low) / low, 1.1))
    if pointed is not None and low < pointed < high:
        return pointed
    return sqrt(low * high)


# -- stage 2 ----------------------------------------------------------------------------------------------------------


def _at_full_length(terms: Terms, history: Sequence[Probe], pointed: float) -> Ask | Answer:
    """The next test of full length, or the answer; `pointed` is what the short probes say."""
    full = [probe for probe in history if probe.full]
    if not full:
        return _ask(terms, history, FULL, pointed)
    best, worst = _around_peak(full)
    if best is not None and worst is not None and worst <= best * (1 + TOLERANCE):
        enough = 2 * sum(probe.valid for probe in full if probe.rate == best) > terms.times
        return Answer(best, confirmed=True) if enough else _ask(terms, history, FULL, best)
    told = _told(terms, full, (best, worst))
    if told is None and worst is None:
        told = pointed  # those of full length were the first, slow ones of a test that is short itself
    return _ask(terms, history, FULL, _within(best, worst, told, _alike(full)))


def _within(best: float | None, worst: float | None, told: float | None, alike: int) -> float:
    """The rate at which the next test leaves least to be tried: where the tests point to, but at least a step from what
    is known. Where they mislead, which the last `alike` verdicts show, the interval is halved, or the way doubled."""
    step = 1 + 0.95 * TOLERANCE
    if told is not None and not (best or 0) / step < told < (worst or inf) * step:
        told = None  # the tests themselves say otherwise
    if best is not None and worst is not None:
        if worst / best <= step**2:
            return best * step  # rather than between them: a test that is INVALID is soon over
        return sqrt(best * worst) if told is None or alike > 2 else min(max(told, best * step), worst / step)
    if best is not None:
        return best * (1 + STRIDE * 2.0 ** (alike - 1)) if told is None else max(told, best * step)
    assert worst is not None
    if told is None:
        return worst * max(0.5, 1 - STRIDE * 2.0 ** (alike - 1))
    return min(told, worst / step) * max(0.5, 1 - (step - 1) * (2.0 ** max(0, alike - 3) - 1))


def _alike(full: Sequence[Probe]) -> int:
    """How many tests in a row, the last ones, have the same verdict."""
    return next((n for n, probe in enumerate(reversed(full)) if probe.valid != full[-1].valid), len(full))


def _told(terms: Terms, full: Sequence[Probe], rates: Sequence[float | None]) -> float | None:
    """What the tests of full length at these rates point to: the more of a test was seen the more it counts."""
    near = [probe for probe in full if probe.rate in rates]
    found = [(guess, probe.seen) for probe in near if (guess := estimate(terms, probe)) is not None]
    return sum(guess * seen for guess, seen in found) / sum(seen for _, seen in found) if found else None


def _around_peak(full: Sequence[Probe]) -> tuple[float | None, float | None]:
    """The highest rate whose tests are valid for half or more, and the lowest above it whose tests are not."""
    tried: dict[float, list[bool]] = {}
    for probe in full:
        tried.setdefault(probe.rate, []).append(probe.valid)
    good = {rate: 2 * sum(verdicts) >= len(verdicts) for rate, verdicts in tried.items()}
    best = max((rate for rate, valid in good.items() if valid), default=None)
    return best, min((rate for rate, valid in good.items() if not valid and rate > (best or 0)), default=None)


# -- what probes say --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def estimate(terms: Terms, probe: Probe) -> float | None:
    """The peak of a test of full length, as far as this probe tells it: where the server that it showed meets the
    limits on the full test's schedule. Where waits decide, its work is made to fit the decisive one; a pace is in the
    model as it was. None for a probe too far from both limits, or one that its model does not explain."""
    wait, pace = (probe.ttft - probe.base) / (terms.limits.ttft - probe.base), probe.tpot / terms.limits.tpot
    if probe.batch is None or probe.base >= terms.limits.ttft or max(wait, pace) < TELLING:
        return None
    # Where nobody waits for a slot it is not known how many there are.
    batch = probe.batch if wait >= TELLING else replace(probe.batch, slots=inf)

    def shares(queries: int, rate: float, over: int, factor: float) -> tuple[float, float]:
        """The decisive latencies, as shares of what is allowed."""
        waits, paces = batch.serve(terms.arrivals(queries) / rate, factor)
        allowed = terms.limits.ttft - probe.base
        return replay.highest_but(waits, over) / allowed, replay.highest_but(paces, over) / terms.limits.tpot

    def waits_less(factor: float) -> bool:
        return shares(probe.seen, probe.rate, probe.over, factor)[0] <= wait

    factor = replay.edge(waits_less, 1 / 4, 4.0) if wait >= max(pace, TELLING) else 1.0
    shown = max(shares(probe.seen, probe.rate, probe.over, factor))
    if abs(shown / max(wait, pace) - 1) > FAITHFUL:
        return None

    def valid(rate: float) -> bool:
        queries = terms.full(rate)
        over = allowed_over(queries, terms.limits.percentile)
        return over >= 0 and max(shares(queries, rate, over, factor)) <= 1

    found = replay.edge(valid, probe.rate / 4, probe.rate * 4)
    return found if probe.rate / 3.9 < found < probe.rate * 3.9 else None


def _ask(terms: Terms, history: Sequence[Probe], level: str, rate: float, full: bool = False) -> Ask:
    """A probe of a level at a rate; as long as the full test if that is no longer. By Little's law a test is crowded
    well below twice the queries that its rate brings while one is waited for and answered."""
    rate = _rounded(rate)
    known = [probe.latency for probe in history if probe.valid]
    in_flight = int(2 * rate * (terms.limits.ttft + (max(known) if known else terms.longest))) + 16
    if level != FULL and not full:
        queries = needed(OUTLIERS[level], terms.limits.percentile)
        seconds = SHARE[level] * terms.seconds
        if terms.count(rate, seconds, queries, 1) < terms.full(rate):
            return Ask(level, False, rate, seconds, queries, in_flight)
    return Ask(level, True, rate, terms.seconds, terms.queries, in_flight)


def _rounded(rate: float) -> float:
    """To what one writes into user.conf."""
    return float(f"{rate:.4g}")
