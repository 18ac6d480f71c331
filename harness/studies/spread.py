"""How far repeated runs lie apart, and what of a difference that leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import NamedTuple

from harness.studies.change import t_quantile


def t_95(freedom: int) -> float:
    """Student's t for a two-sided interval of 95 %."""
    return t_quantile(0.975, freedom)


class Ratio(NamedTuple):
    """A ratio and its 95 % interval; the interval is None where there are too few rounds for one."""

    value: float
    low: float | None
    high: float | None


def paired_ratio(now: Sequence[float | None], before: Sequence[float | None]) -> Ratio | None:
    """How many times as large a figure is, over rounds in which both were measured: the geometric mean, with an
    interval by Student's t on the logarithms from three rounds on (of two it is 13 deviations wide). None where no
    round has both."""
    logs = [log(a / b) for a, b in zip(now, before, strict=True) if a and b]
    if not logs:
        return None
    middle = sum(logs) / len(logs)
    if len(logs) < 3:
        return Ratio(exp(middle), None, None)
    deviation = sqrt(sum((value - middle) ** 2 for value in logs) / (len(logs) - 1))
    half = t_95(len(logs) - 1) * deviation / sqrt(len(logs))
    return Ratio(exp(middle), exp(middle - half), exp(middle + half))


@dataclass(frozen=True)
class Noise:
    """How far apart, on a logarithmic scale, runs of one and the same thing lie: a standard deviation with its degrees
    of freedom, or, with none, a difference that is simply assumed to be chance."""

    deviation: float
    freedom: int

    def margin(self, one: int, other: int) -> float:
        """The logarithm of the ratio that two means, of so many runs each, must exceed to differ."""
        if not self.freedom:
            return self.deviation
        return t_95(self.freedom) * self.deviation * sqrt(1 / one + 1 / other)


def pooled(groups: Mapping[str, Sequence[float]], assumed: float) -> Noise:
    """The noise that all groups of repeated runs show together, taken to be the same share for each; without a repeat
    anywhere, the share `assumed`."""
    squares, freedom = 0.0, 0
    for values in groups.values():
        logs = [log(value) for value in values]
        middle = sum(logs) / max(1, len(logs))
        squares += sum((value - middle) ** 2 for value in logs)
        freedom += max(0, len(logs) - 1)
    return Noise(sqrt(squares / freedom), freedom) if freedom else Noise(log(1 + assumed), 0)
