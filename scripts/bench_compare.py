"""How often `compare` is wrong, and how often it finds what is there, on simulated runs with a known answer.

    python scripts/bench_compare.py                      all settings, 200 pairs each; some 10 minutes on two cores
    python scripts/bench_compare.py --only usual --seeds 1 2 3
    python scripts/bench_compare.py --speed              5 against 5 runs of 24,576 samples

A run is a queue in virtual time: Poisson arrivals at about 70 % of what 16 slots serve, a time to first token and one
per token, answers as long as their sample asks, 5 % of jitter per query and a stall in one of a hundred. What makes
repeats differ: the speed of a whole run (`drift`), and a speed that wanders while it runs (`wander`, correlated over a
tenth of the run), so that neighbouring samples are alike. As in LoadGen, whose seeds are fixed, every run has the same
samples at the same moments, except in the setting `fresh`.

What run-to-run noise is real: six runs of the demo on the echo simulator differ by 0.1 to 0.5 % (standard deviation),
five of a real engine on a shared two-core machine by 6 % in throughput (docs/experiments.md). The settings span
that: `quiet`, `usual` and `noisy` have 0.3, 1 and 2 %, `shared` has 6 %.
"""

from __future__ import annotations

import argparse
import heapq
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.results import RunResult, summarise
from harness.studies.change import BETTER, WORSE
from harness.studies.comparison import HEADLINE, compare_pair, scale_of
from harness.studies.releases import Release, Run

Floats = npt.NDArray[np.float64]
Said = tuple[str, str, str]
"""A case, its repeats, what was said of it."""


REPEATS = {"1": (1, 1), "3": (3, 3), "5": (5, 5), "10": (10, 10), "5 and 1": (5, 1)}
"""Runs of the first release and of the second."""

SLOTS, FIRST, PER_TOKEN, LOAD = 16, 0.02, 0.01, 0.7
JITTER, STALLS, STALL = 0.05, 0.01, 0.1
"""Of a query's service: its scatter, how often it stalls, and for how many seconds on average."""


@dataclass(frozen=True)
class Setting:
    """What makes repeats of one release differ, as standard deviations of the speed."""

    name: str
    drift: float = 0.01
    wander: float = 0.01
    over: float = 0.1
    """How much of a run the wandering speed is correlated over."""
    fresh: bool = False
    offline: bool = False
    queries: int = 2000


SETTINGS = (
    Setting("usual"),
    Setting("quiet", drift=0.003, wander=0.003),
    Setting("noisy", drift=0.02, wander=0.02),
    Setting("wandering", drift=0.005, wander=0.03, over=0.3),
    Setting("fresh", fresh=True),
    Setting("offline", offline=True),
    Setting("shared", drift=0.06, wander=0.06),
)


# -- one simulated run ------------------------------------------------------------------------------------------------


def simulate(setting: Setting, slower: float, schedule: int, seed: Sequence[int]) -> Run:
    """One run of a release that is `slower` times as slow as the first; `schedule` seeds arrivals and samples."""
    plan, chance = np.random.default_rng(schedule), np.random.default_rng(seed)
    count = setting.queries
    tokens = np.clip(plan.lognormal(4.2, 0.6, count), 8, 512).astype(int)
    mean = FIRST + PER_TOKEN * tokens.mean() + STALLS * STALL
    arrivals = np.zeros(count) if setting.offline else np.cumsum(plan.exponential(mean / (SLOTS * LOAD), count))
    speed = slower * np.exp(chance.normal(0, setting.drift) + setting.wander * wander(count, setting.over, chance))
    first = FIRST * speed * chance.lognormal(0, JITTER, count)
    first = first + (chance.random(count) < STALLS) * chance.exponential(STALL, count)
    rest = PER_TOKEN * (tokens - 1) * speed * chance.lognormal(0, JITTER, count)
    started = serve(arrivals, first + rest)
    columns = {
        "sample_index": np.arange(count),
        "output_tokens": tokens,
        "issued_s": arrivals,
        "ttft_s": np.full(count, np.nan) if setting.offline else started + first - arrivals,
        "latency_s": started + first + rest - arrivals,
    }
    return Run(RunResult(content(columns, setting.offline), Path("/simulated")), columns)


def wander(count: int, over: float, chance: np.random.Generator) -> Floats:
    """A stationary first-order autoregression with unit variance, correlated over that share of the run."""
    keep = float(np.exp(-1 / (over * count)))
    steps = chance.normal(0, np.sqrt(1 - keep**2), count).tolist()
    value, walk = float(chance.normal()), []
    for step in steps:
        value = keep * value + step
        walk.append(value)
    return np.array(walk)


def serve(arrivals: Floats, services: Floats) -> Floats:
    """When each query gets a slot, first come first served."""
    free, started = [0.0] * SLOTS, []
    for arrival, service in zip(arrivals.tolist(), services.tolist(), strict=True):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + service)
        started.append(start)
    return np.array(started)


def content(columns: dict[str, Any], offline: bool) -> dict[str, Any]:
    """A result with the figures that a run takes from such samples."""
    ttft, latency, tokens = columns["ttft_s"], columns["latency_s"], columns["output_tokens"]
    duration = float((columns["issued_s"] + latency).max())
    metrics = {
        "samples_per_second": len(latency) / duration,
        "tokens_per_second": float(tokens.sum()) / duration,
        "ttft_s": summarise(ttft),
        "tpot_s": summarise((latency - ttft) / np.maximum(tokens - 1, 1)),
        "latency_s": summarise(latency),
    }
    return {"scenario": "Offline" if offline else "Server", "mode": "performance", "metrics": metrics}


# -- a pair of releases ------------------------------------------------------------------------------------------------


def examine(setting: Setting, seed: int, pair: int) -> Counter[Said]:
    """What is said of two equal releases, and of two 5 % apart, with each number of repeats."""

    def release(name: str, side: int, slower: float) -> Release:
        runs = []
        for number in range(10):
            own = (seed, pair, side, number)
            schedule = int(np.random.default_rng(own).integers(2**31)) if setting.fresh else seed * 1000 + pair
            runs.append(simulate(setting, slower, schedule, own))
        return Release(name, runs)

    before, equal, slower = release("a", 0, 1.0), release("b", 1, 1.0), release("c", 2, 1.05)
    said: Counter[Said] = Counter()
    for case, now in (("equal", equal), ("5 % slower", slower)):
        for repeats, (first, second) in REPEATS.items():
            pairs = replace(before, runs=before.runs[:first]), replace(now, runs=now.runs[:second])
            said.update((case, repeats, what) for what in verdicts(setting, *pairs))
    return said


def verdicts(setting: Setting, before: Release, now: Release) -> set[str]:
    """All that is said of one pair: by figure, and of any."""
    judged = [figure for figure in HEADLINE["Offline" if setting.offline else ""] if figure in before.runs[0].figures]
    scales = {figure: scale_of(figure) for figure in judged}
    rows = compare_pair(before, now, scales, judged, 0.02)
    found = {f"{row.change.verdict} {row.figure}" for row in rows}
    found |= {f"any {row.change.verdict}" for row in rows}
    # What two single runs would be called if the samples within them were all the noise there is.
    if any(row.change.low is not None and not row.change.low <= 0 <= (row.change.high or 0) for row in rows):
        found.add("an interval without zero")
    if any(naive(before, now, row.figure, row.change.change) for row in rows):
        found.add("naive")
    return found


def naive(before: Release, now: Release, figure: str, change: float) -> bool:
    """Whether the textbook's percentile bootstrap over runs and samples says that equals differ: each figure by
    itself, runs drawn with replacement, then the blocks within them."""
    chance = np.random.default_rng(5)

    def drawn(release: Release) -> Floats:
        own = np.array([run.drawn[figure] for run in release.runs])
        # The replicates scatter around each run's own figure.
        values = np.log([run.figures[figure] for run in release.runs])
        own = own - own.mean(axis=1, keepdims=True) + values[:, None]
        picks = chance.integers(len(own), size=own.shape)
        return np.asarray(np.take_along_axis(own, picks, axis=0).mean(axis=0))

    if any(figure not in run.drawn for run in (*before.runs, *now.runs)):
        return False
    low, high = np.percentile(drawn(now) - drawn(before), [2.5, 97.5])
    return not low <= 0 <= high


# -- what is printed --------------------------------------------------------------------------------------------------


def share(count: int, of: int) -> str:
    """A rate with Wilson's 95 % interval."""
    z = NormalDist().inv_cdf(0.975)
    rate = count / of
    middle = (rate + z * z / (2 * of)) / (1 + z * z / of)
    half = z * (rate * (1 - rate) / of + z * z / (4 * of * of)) ** 0.5 / (1 + z * z / of)
    return f"{rate:6.1%} ({max(middle - half, 0):.1%} to {min(middle + half, 1):.1%})"


def run_setting(setting: Setting, seed: int, pairs: int, pool: ProcessPoolExecutor) -> None:
    began = perf_counter()
    said: Counter[Said] = Counter()
    for one in pool.map(partial(examine, setting, seed), range(pairs), chunksize=5):
        said.update(one)
    print(
        f"\n{setting.name}: drift {setting.drift:.1%}, wander {setting.wander:.1%} over {setting.over:.0%} of a run of "
        f"{setting.queries:,} queries{', each with its own schedule' * setting.fresh}; seed {seed}, {pairs} pairs, "
        f"{perf_counter() - began:.0f} s"
    )
    print(f"  {'repeats':<9}{'equals called worse':<26}{'5 % slower found':<28}{'naive: equals differ':<26}")
    for repeats in REPEATS:
        cells = (("equal", f"any {WORSE}"), ("5 % slower", f"any {WORSE}"), ("equal", "naive"))
        texts = [share(said[case, repeats, what], pairs) for case, what in cells]
        if setting.offline:  # a rate has no samples to draw from
            texts[2] = "–"
        print(f"  {repeats:<9}{texts[0]:<26}{texts[1]:<28}{texts[2]:<26}")
    wrong = sum(said["equal", repeats, f"any {BETTER}"] for repeats in REPEATS)
    missed = sum(said["5 % slower", repeats, f"any {BETTER}"] for repeats in REPEATS)
    print(f"  called better: {wrong} of {len(REPEATS) * pairs} equals, {missed} of those that are slower")
    alone = said["equal", "1", "an interval without zero"]
    if not setting.offline:
        print(f"  one run each, were the samples all the noise there is: {share(alone, pairs)} of equals would differ")
    figures = [figure for figure in HEADLINE["Offline" if setting.offline else ""] if not figure.startswith("energy")]
    for figure in figures:
        found = [said["5 % slower", repeats, f"{WORSE} {figure}"] / pairs for repeats in ("3", "5", "10")]
        print(f"    {figure:<18} found with 3, 5, 10 repeats: {', '.join(f'{rate:.1%}' for rate in found)}")


def speed() -> None:
    """Seconds of a comparison of 5 against 5 runs of 24,576 samples that are in memory."""
    long = Setting("long", queries=24_576)
    sides = [Release(str(side), [simulate(long, 1.0, 1, (side, run)) for run in range(5)]) for side in range(2)]
    figures = list(sides[0].runs[0].figures)
    began = perf_counter()
    compare_pair(sides[0], sides[1], {name: scale_of(name) for name in figures}, figures, 0.02)
    print(f"5 against 5 runs of 24,576 samples, {len(figures)} figures: {perf_counter() - began:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", choices=[setting.name for setting in SETTINGS])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    if asked.speed:
        speed()
        return
    with ProcessPoolExecutor(asked.workers) as pool:
        for setting in SETTINGS:
            for seed in asked.seeds if asked.only in (None, setting.name) else ():
                run_setting(setting, seed, asked.pairs, pool)


if __name__ == "__main__":
    main()
