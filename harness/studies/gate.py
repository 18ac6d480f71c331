"""A gate: the change for the worse that a release may have, and whether it has it.

    ttft_s.p99:5%           at most 5 % more
    tokens_per_second:3%    at most 3 % less
    rouge1:0.1              at most 0.1 points less

A gate is passed when the change is surely within the limit and broken when it is surely beyond; everything between is
undecided, since neither answer would be true. Surely is 95 % on one side, shared among the gates of one command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from harness.studies.change import ALPHA, Sampled, Scale, repeats_needed, run_noise, sources
from sut.errors import ConfigError

PASSED, BROKEN, UNDECIDED = "passed", "broken", "undecided"


@dataclass(frozen=True)
class Gate:
    """`limit`: 0.05 for 5 % where `ratio`, else points."""

    figure: str
    limit: float
    ratio: bool

    @property
    def text(self) -> str:
        return f"{self.figure}:{self.limit * 100:g}%" if self.ratio else f"{self.figure}:{self.limit:g}"


@dataclass(frozen=True)
class Judgement:
    """`worsening` and the bounds that it is surely between, each as the limit is given; None where unknown. `repeats`:
    as many of each release would decide, if change and noise stay what they are."""

    gate: Gate
    state: str
    worsening: float
    low: float | None
    high: float | None
    repeats: int | None


def parse(text: str) -> Gate:
    """Raises ConfigError for what is no gate."""
    figure, colon, limit = text.rpartition(":")
    ratio = limit.endswith("%")
    try:
        number = float(limit.removesuffix("%")) / (100 if ratio else 1)
    except ValueError:
        number = -1.0
    if not colon or not figure or not isfinite(number) or number < 0:
        raise ConfigError(f"the gate {text!r} is not of the form FIGURE:LIMIT, such as ttft_s.p99:5% or rouge1:0.1.")
    if ratio and number >= 1:
        raise ConfigError(f"the gate {text!r} lets a figure get worse by 100 % or more: nothing would break it.")
    return Gate(figure, number, ratio)


def refuse_odd_limit(gate: Gate, scale: Scale) -> None:
    """Raises ConfigError for a limit of another kind than its figure."""
    if gate.ratio != scale.ratio:
        kind = "a percentage, such as 5%" if scale.ratio else "in points, such as 0.1"
        raise ConfigError(f"the limit of the gate {gate.text} must be {kind}.")


def judge(
    gate: Gate, before: Sequence[float], now: Sequence[float], sampled: Sampled | None, scale: Scale, gates: int = 1
) -> Judgement:
    """Whether a gate holds, being one of so many."""
    a, b = ([scale.inner(value) for value in values] for values in (before, now))
    worse = (sum(b) / len(b) - sum(a) / len(a)) * -scale.better
    limit = abs(scale.inner_change(gate.limit * -scale.better))
    alpha = 2 * ALPHA / gates  # a half-width is that of two sides, and a gate has one
    half = max((noise.half(alpha) for noise in sources(a, b, sampled)), default=None)
    if half is None or (scale.repeats and run_noise(a, b) is None):
        return Judgement(gate, UNDECIDED, _outer(worse, scale), None, None, None)
    state = PASSED if worse + half <= limit else BROKEN if worse - half > limit else UNDECIDED
    needed = repeats_needed(a, b, sampled, abs(worse - limit), alpha) if state == UNDECIDED else None
    low, high = (_outer(bound, scale) for bound in (worse - half, worse + half))
    return Judgement(gate, state, _outer(worse, scale), low, high, needed)


def _outer(worse: float, scale: Scale) -> float:
    """A change for the worse on the inner scale, as a limit is given."""
    return scale.outer(-scale.better * worse) * -scale.better
