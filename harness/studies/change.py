"""One figure of two releases: how much it has changed, how sure that is, and what may be said of it.

The unit is the run. What runs of one release differ by is what a change has to stand out from: Student's t over the
repeats (Welch's, so neither release need be as noisy as the other), on logarithms for times and rates, so that a change
is a ratio, is the same in any unit and is mirrored when the releases are swapped. The samples within the runs give a
second interval (blocks.py), and the wider of the two holds: repeats that agree by chance do not make a change certain.

A bootstrap over the repeats themselves is not used. With 3 to 5 of them its intervals are too narrow by √((n − 1)/n)
and lack the t's tails (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, §12.5; Davison & Hinkley, Bootstrap
Methods and their Application, 1997, §3.8): `scripts/bench_compare.py` prints how often it calls equals worse.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp as exponential
from math import expm1, inf, lgamma, log, log1p, pi, sqrt
from typing import NamedTuple

import numpy as np

ALPHA = 0.05
"""How often a comparison of equals may say better or worse in any of the figures that it judges."""

POWER = 0.90
"""How often a change must be found for it to count as one that could have been seen."""

MOST_REPEATS = 1000

WORDS = ("worse", "better", "same", "cannot tell")
WORSE, BETTER, SAME, CANNOT_TELL = WORDS


class Scale(NamedTuple):
    """How a figure is compared: as a ratio (times, rates) or as a difference (scores); `better` is +1 where more is.
    `repeats`: whether its noise can be seen in repeated runs only."""

    better: int
    ratio: bool = True
    repeats: bool = True

    def inner(self, value: float) -> float:
        return log(value) if self.ratio else value

    def outer(self, change: float) -> float:
        """A change on the inner scale as people say it: 0.05 is 5 % more, or 0.05 points."""
        return (expm1(change) if change < 700 else inf) if self.ratio else change

    def inner_change(self, change: float) -> float:
        """Raises ValueError for a fall by 100 % or more."""
        return log1p(change) if self.ratio else change


class Sampled(NamedTuple):
    """What the samples say of a change on the inner scale: its standard error, from so many independent blocks."""

    error: float
    blocks: int


class Noise(NamedTuple):
    """A standard error of a change with its degrees of freedom."""

    error: float
    freedom: float

    def half(self, alpha: float) -> float:
        """Half the width of the interval that misses the truth with probability `alpha`."""
        return t_quantile(1 - alpha / 2, self.freedom) * self.error if self.error else 0.0


@dataclass(frozen=True)
class Change:
    """`change`, `low`, `high` and `visible` as people say them (0.05: 5 % more); None where nothing can be said.

    `effect`: Hedges' g, the change in standard deviations of a run. `visible`: the smallest change that would have been
    found 9 times in 10. `repeats`: as many for each release would decide, if change and noise stay what they are.
    """

    before: float
    now: float
    change: float
    low: float | None
    high: float | None
    effect: float | None
    visible: float | None
    verdict: str
    why: str
    repeats: int | None


def compare(
    before: Sequence[float],
    now: Sequence[float],
    sampled: Sampled | None,
    scale: Scale,
    margin: float,
    alpha: float = ALPHA,
) -> Change:
    """What has changed between the runs of two releases; each value is one run's figure, positive on a ratio scale.

    `margin`: a change certainly smaller than this, either way, is none. `alpha`: how often the interval may miss.
    """
    a, b = ([scale.inner(value) for value in values] for values in (before, now))
    shift, edge = _mean(b) - _mean(a), scale.inner_change(margin)
    noises = sources(a, b, sampled)
    half = max((noise.half(alpha) for noise in noises), default=None)
    unknown = run_noise(a, b) is None and scale.repeats
    verdict = CANNOT_TELL if half is None or unknown else judge(shift, half, edge, scale.better)
    return Change(
        before=_outer_mean(a, scale),
        now=_outer_mean(b, scale),
        change=scale.outer(shift),
        low=None if half is None else scale.outer(shift - half),
        high=None if half is None else scale.outer(shift + half),
        effect=effect_size(a, b),
        visible=None if half is None or unknown else scale.outer(visible(noises, alpha)),
        verdict=verdict,
        why=_why(verdict, unknown, half),
        repeats=repeats_needed(a, b, sampled, max(abs(shift), edge - abs(shift)), alpha)
        if verdict == CANNOT_TELL
        else None,
    )


def judge(shift: float, half: float, edge: float, better: int) -> str:
    """A verdict from an interval alone: within the margin, clear of nothing, or neither."""
    if max(abs(shift - half), abs(shift + half)) <= edge:
        return SAME
    if abs(shift) <= half:
        return CANNOT_TELL
    return BETTER if shift * better > 0 else WORSE


def _why(verdict: str, unknown: bool, half: float | None) -> str:
    if verdict != CANNOT_TELL:
        return ""
    if unknown:
        return "one run each: how much runs differ by themselves is not known"
    return "nothing is known of its noise" if half is None else "the interval holds both no change and one that matters"


# -- noise ------------------------------------------------------------------------------------------------------------


def sources(a: Sequence[float], b: Sequence[float], sampled: Sampled | None) -> list[Noise]:
    """The noises of a change, each measured another way; the largest rules."""
    runs = run_noise(a, b)
    own = Noise(sampled.error, sampled.blocks - 1) if sampled and sampled.blocks > 1 else None
    return [noise for noise in (runs, own) if noise is not None]


def run_noise(a: Sequence[float], b: Sequence[float]) -> Noise | None:
    """What the repeats say (Welch 1947). A release with a single run is taken to be as noisy as the other; None for two
    single runs."""
    counts, variances = (len(a), len(b)), (_variance(a), _variance(b))
    if max(counts) < 2:
        return None
    if min(counts) < 2:
        return Noise(sqrt(max(variances) * (1 / counts[0] + 1 / counts[1])), max(counts) - 1)
    parts = [variance / count for variance, count in zip(variances, counts, strict=True)]
    if not sum(parts):
        return Noise(0.0, sum(counts) - 2)
    freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return Noise(sqrt(sum(parts)), freedom)


def own_noise(values: Sequence[float]) -> Noise | None:
    """What repeats say of the mean of one release; None for a single run."""
    return Noise(sqrt(_variance(values) / len(values)), len(values) - 1) if len(values) > 1 else None


def run_deviation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The standard deviation of one run, both releases together; None for two single runs."""
    freedom = len(a) + len(b) - 2
    if freedom < 1:
        return None
    return sqrt((_variance(a) * (len(a) - 1) + _variance(b) * (len(b) - 1)) / freedom)


def effect_size(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Hedges' g (1981), with its exact correction for few runs; None where runs do not differ, or are too few."""
    freedom, deviation = len(a) + len(b) - 2, run_deviation(a, b)
    if freedom < 2 or not deviation:
        return None
    correction = exponential(lgamma(freedom / 2) - lgamma((freedom - 1) / 2)) / sqrt(freedom / 2)
    return correction * (_mean(b) - _mean(a)) / deviation


def visible(noises: Sequence[Noise], alpha: float) -> float:
    """The smallest change, on the inner scale, that such an interval would have set apart from none 9 times in 10."""
    return max(noise.half(alpha) + (t_quantile(POWER, noise.freedom) * noise.error) for noise in noises)


def repeats_needed(
    a: Sequence[float], b: Sequence[float], sampled: Sampled | None, room: float, alpha: float
) -> int | None:
    """Repeats of each release after which half the interval would be below `room`, if the noise stays what it is; None
    if that takes more than a thousand, or if the noise of a run is not known."""
    deviation = run_deviation(a, b)
    if deviation is None or room <= 0:
        return None

    def enough(count: int) -> bool:
        noises = [Noise(deviation * sqrt(2 / count), 2 * count - 2)]
        if sampled is not None and sampled.blocks > 1:
            noises.append(Noise(sampled.error * sqrt(min(len(a), len(b)) / count), sampled.blocks - 1))
        return max(noise.half(alpha) for noise in noises) < room

    candidates = range(max(len(a), len(b)) + 1, MOST_REPEATS + 1)
    place = bisect_left(candidates, True, key=enough)
    return candidates[place] if place < len(candidates) else None


# -- Student's t ------------------------------------------------------------------------------------------------------

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def t_tail(t: float, freedom: float) -> float:
    """P(T > t) for t ≥ 0 and ν ≥ 1. With t = √ν·tan θ the density is cos^(ν−1) θ over a constant: smooth, for Gauss."""
    low = float(np.arctan(t / sqrt(freedom)))
    high = min(pi / 2, low + 12 / sqrt(freedom))
    angles = low + (high - low) * (_NODES + 1) / 2
    area = float(_WEIGHTS @ np.cos(angles) ** (freedom - 1)) * (high - low) / 2
    return area * exponential(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(pi)


@lru_cache(maxsize=4096)
def t_quantile(share: float, freedom: float) -> float:
    """Where `share` ≥ 0.5 of Student's t with so many degrees of freedom lies below."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - share else (low, middle)
    return high


# -- small things -----------------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1) if len(values) > 1 else 0.0


def _outer_mean(values: Sequence[float], scale: Scale) -> float:
    return exponential(_mean(values)) if scale.ratio else _mean(values)
