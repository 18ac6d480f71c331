"""How sure the samples of runs make a figure: a bootstrap over blocks of time.

Queries that are served together wait together, so they are no independent draws: a bootstrap over single samples is too
sure of itself. A run is cut into 30 blocks of consecutive queries and whole blocks are drawn (Künsch, Annals of
Statistics 17:1217, 1989; that more than 30 batches gain little: Schmeiser, Operations Research 30:556, 1982). LoadGen
issues the same samples at the same moments in every run with the same seeds; where both releases were asked the same,
the same blocks are drawn of all runs, and what a hard moment of the schedule does to both cancels out.

A rate has no such interval: a run has one, which LoadGen's schedule and the slowest end decide, and only repeats show
its noise.

A draw is a count per block, so all figures of all draws are products of one small matrix with sums, or with histograms,
per block: nothing is sorted twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.studies.change import Sampled

BLOCKS = 30
DRAWS = 400
"""They give a standard error to 1/√(2·400), 3.5 % of itself."""

LEAST = 4
"""Queries that a block has at least: a run of fewer than 30 such blocks has fewer blocks."""

FINE = 256
"""Steps of a histogram over all ranks, and again over the upper tenth, in which the 99th percentile lies."""

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
ENOUGH = 10
"""Samples that must lie above a percentile for a bootstrap to know its noise."""

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """One run's good rows in the order issued, in Offline in that of completion. `asked`: sample indices; `times`:
    ttft_s, tpot_s and latency_s, NaN where there is no such time."""

    asked: npt.NDArray[np.int64]
    times: Mapping[str, Floats]

    @classmethod
    def of(cls, columns: Mapping[str, npt.NDArray[Any]], offline: bool) -> Samples:
        """From the columns of samples.parquet. Offline issues all at once: there the order is that of completion."""
        issued, latency, ttft = (np.asarray(columns[name], np.float64) for name in ("issued_s", "latency_s", "ttft_s"))
        gaps = np.maximum(np.asarray(columns["output_tokens"], np.float64) - 1, 1)
        order = np.argsort(issued + latency if offline else issued, kind="stable")
        times = {"ttft_s": ttft, "tpot_s": (latency - ttft) / gaps, "latency_s": latency}
        return cls(
            asked=np.asarray(columns["sample_index"], np.int64)[order],
            times={name: values[order] for name, values in times.items()},
        )

    @property
    def blocks(self) -> int:
        return min(BLOCKS, len(self.asked) // LEAST)


Drawn = Mapping[str, Floats]
"""The logarithm of each figure of one run in each draw of blocks."""


def change_error(
    before: Sequence[Drawn], now: Sequence[Drawn], figure: str, blocks: int, paired: bool
) -> Sampled | None:
    """What the samples say of the noise of a change in the mean logarithm of a figure, such as `ttft_s.p99`; None if
    they say nothing of it."""
    if not all(figure in drawn for drawn in (*before, *now)):
        return None
    signed = [-drawn[figure] / len(before) for drawn in before] + [drawn[figure] / len(now) for drawn in now]
    together = np.sum(signed, axis=0).var(ddof=1) if paired else sum(values.var(ddof=1) for values in signed)
    return Sampled(float(together) ** 0.5, blocks)


def are_paired(runs: Sequence[Samples], offline: bool) -> bool:
    """Whether all runs were asked the same in the same order; in Offline the order of completion cannot be the same,
    and the same number is enough: its blocks are shares of the work."""
    first = runs[0].asked
    return all(len(run.asked) == len(first) and (offline or np.array_equal(run.asked, first)) for run in runs)


def replicates(run: Samples) -> Drawn:
    """Every figure that these samples have, in each draw of blocks."""
    if run.blocks < 2:
        return {}
    found: dict[str, Floats] = {}
    for name, values in run.times.items():
        known = np.isfinite(values)
        place = block_of(len(values), run.blocks)[known]
        if not known.any():
            continue
        found[f"{name}.mean"] = means(values[known], place, run.blocks)
        found |= {f"{name}.{share}": drawn for share, drawn in percentiles(values[known], place, run.blocks).items()}
    return {figure: np.log(values) for figure, values in found.items() if (values > 0).all()}


@lru_cache(maxsize=64)
def draws(blocks: int) -> Floats:
    """How often each block is drawn, draw by draw: the same for every run of so many blocks, and in every process."""
    chance = np.random.default_rng(20_240_817)
    return chance.multinomial(blocks, np.full(blocks, 1 / blocks), size=DRAWS).astype(np.float64)


def block_of(count: int, blocks: int) -> npt.NDArray[np.int64]:
    """Which block each of `count` consecutive queries is in."""
    return np.arange(count) * blocks // count


def means(values: Floats, place: Places, blocks: int) -> Floats:
    sums, counts = np.bincount(place, values, blocks), np.bincount(place, minlength=blocks)
    return np.asarray(draws(blocks) @ sums / np.maximum(draws(blocks) @ counts, 1))


def percentiles(values: Floats, place: Places, blocks: int) -> dict[str, Floats]:
    """Percentiles in each draw, by a histogram per block over the run's own ranks; within a step, by a straight line.
    Those above which too few samples lie are left out."""
    count = len(values)
    order = np.argsort(values, kind="stable")
    values = values[order]
    ranks = np.concatenate([np.linspace(0, count, FINE + 1), np.linspace(0.9 * count, count, FINE + 1)])
    edges = np.unique(ranks.astype(int))
    steps = len(edges) - 1
    step = np.searchsorted(edges, np.arange(count), side="right") - 1
    table = np.bincount(place[order] * steps + step, minlength=blocks * steps).reshape(blocks, steps)
    held = np.cumsum(draws(blocks) @ table, axis=1)
    low, high = values[edges[:-1]], values[edges[1:] - 1]
    found = {}
    for name, share in SHARES.items():
        if count * (1 - share) < ENOUGH:
            continue
        need = share * held[:, -1:]
        at = np.minimum((held < need).sum(axis=1, keepdims=True), steps - 1)
        top = np.take_along_axis(held, at, 1)
        below = np.where(at > 0, np.take_along_axis(held, np.maximum(at - 1, 0), 1), 0.0)
        within = np.clip((need - below) / np.maximum(top - below, 1e-12), 0, 1)
        found[name] = (low[at] + within * (high[at] - low[at]))[:, 0]
    return found
