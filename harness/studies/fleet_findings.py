"""What a fleet's rounds say: what each member loses when all work at once, and how the work went over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.figures import Spec, colour, line, panel, stack, x, y
from harness.report import readable
from harness.results import RunResult
from harness.studies.findings import Column, Findings
from harness.studies.front import mean
from harness.studies.spread import Ratio, paired_ratio
from harness.studies.variants import Variant
from harness.tables import parquet_columns

FIGURES = {
    "samples_per_second": ("samples_per_second", None),
    "tokens_per_second": ("tokens_per_second", None),
    "ttft_p50_s": ("ttft_s", "p50"),
    "ttft_p99_s": ("ttft_s", "p99"),
    "tpot_p50_s": ("tpot_s", "p50"),
    "tpot_p99_s": ("tpot_s", "p99"),
    "latency_p50_s": ("latency_s", "p50"),
    "latency_p99_s": ("latency_s", "p99"),
}
"""A row's key -> where a result has it."""

BINS = 60
"""Points of a timeline, about."""

FULL = 0.9
"""Below this share of a test in which all were at work, a reader is told."""


@dataclass
class Measured:
    """A member's results by round, None where a round has none, and why it was lost."""

    member: Variant
    together: list[RunResult | None] = field(default_factory=list)
    alone: list[RunResult | None] = field(default_factory=list)
    trouble: str | None = None

    @property
    def runs(self) -> list[RunResult]:
        return [run for run in (*self.together, *self.alone) if run is not None]


def conclude(measured: Sequence[Measured]) -> Findings:
    """The table, the notes and the timeline."""
    rows = [make_row(own, overlaps(measured)) for own in measured]
    return Findings(
        study="fleet",
        headline=headline(rows),
        columns=columns(rows),
        rows=rows,
        notes=notes(measured, rows),
        figure=draw(measured),
        extra={"start_skew_s": start_skew(measured)},
    )


def figure_of(run: RunResult | None, key: str) -> float | None:
    """A figure of a test that came to its end with an answer to each query: that limits are missed beside others, and
    the test is not valid by that, is what a fleet is asked for."""
    if run is None or run["status"] != "complete" or run["failures"]["count"]:
        return None
    part, name = FIGURES[key]
    value = run["metrics"].get(part)
    value = value.get(name) if name is not None and value else value
    return float(value) if value else None


def make_row(own: Measured, shared: Mapping[str, float]) -> dict[str, Any]:
    """A member's row: each figure together, alone, and how it changes, with an interval where there are rounds."""
    row: dict[str, Any] = {"member": own.member.name, **own.member.shown}
    for key in FIGURES:
        together, alone = ([figure_of(run, key) for run in runs] for runs in (own.together, own.alone))
        for name, values in (("together", together), ("alone", alone)):
            known = [value for value in values if value]
            row[f"{name}_{key}"] = mean(known) if known else None
        change = paired_ratio(together, alone)
        row[f"{key}_change"] = None if change is None else change.value - 1
        row[f"{key}_change_low"] = None if change is None or change.low is None else change.low - 1
        row[f"{key}_change_high"] = None if change is None or change.high is None else change.high - 1
        row[f"{key}_change_said"] = None if change is None else said(change)
    row["all_at_work_share"] = shared.get(own.member.name)
    row["valid"] = all(any(run and run["valid"] for run in runs) for runs in (own.together, own.alone))
    row["why"] = why(own)
    return row


def said(change: Ratio) -> str:
    """−37.1 %, or −37.1 % (−40.0 to −34.0)."""
    text = f"{change.value - 1:+.1%}"
    return (
        text
        if change.low is None or change.high is None
        else f"{text} ({change.low - 1:+.1%} to {change.high - 1:+.1%})"
    )


def why(own: Measured) -> str | None:
    """Why a member's figures are missing or not valid."""
    if own.trouble is not None:
        return own.trouble
    bad = [run for run in own.runs if not run["valid"]]
    return f"{len(bad)} of {len(own.runs)} tests not valid: {bad[0]['invalid_reasons'][0]}" if bad else None


# -- time -------------------------------------------------------------------------------------------------------------


def completions(run: RunResult) -> npt.NDArray[np.float64]:
    """When each answer was complete, in Unix seconds, in order. Raises SetupError for rows that are damaged."""
    if run["started_at"] is None:
        return np.empty(0)
    table = parquet_columns(run.folder / "samples.parquet", ["issued_s", "latency_s"], ["error"])
    times = run["started_at"] + table["issued_s"].to_numpy() + table["latency_s"].to_numpy()
    good = table["error"].is_null().to_numpy()
    return np.sort(times[good & np.isfinite(times)])


def whole_rounds(measured: Sequence[Measured]) -> list[list[RunResult]]:
    """The rounds together in which every member has a result."""
    rounds = zip(*(own.together for own in measured), strict=True)
    return [[run for run in runs if run is not None] for runs in rounds if None not in runs]


def overlaps(measured: Sequence[Measured]) -> dict[str, float]:
    """By member, the smallest share of a test together in which all members were at work."""
    shares: dict[str, float] = {}
    for runs in whole_rounds(measured):
        if any(run["started_at"] is None for run in runs):
            continue
        began = max(run["started_at"] for run in runs)
        ended = min(run["started_at"] + run["duration_s"] for run in runs)
        for own, run in zip(measured, runs, strict=True):
            share = max(0.0, ended - began) / run["duration_s"] if run["duration_s"] else 0.0
            shares[own.member.name] = min(share, shares.get(own.member.name, 1.0))
    return shares


def start_skew(measured: Sequence[Measured]) -> float | None:
    """Seconds between the first and the last clock to start, at most over the rounds."""
    starts = [[run["started_at"] for run in runs] for runs in whole_rounds(measured)]
    return max((max(row) - min(row) for row in starts if None not in row), default=None)


def timeline(runs: Mapping[str, RunResult], in_turn: bool = False) -> list[dict[str, Any]]:
    """Samples/s over time by member, in steps of equal width: from the first clock's start, or, where they ran in turn,
    one behind the other without the pauses between."""
    known = {name: run for name, run in runs.items() if run["started_at"] is not None}
    done = {name: completions(run) - run["started_at"] for name, run in known.items()}
    lengths = {name: float(times[-1]) for name, times in done.items() if len(times)}
    if not lengths:
        return []
    first = min(run["started_at"] for run in known.values())
    offsets, end = {}, 0.0
    for name, length in lengths.items():
        offsets[name] = end if in_turn else known[name]["started_at"] - first
        end = max(end, offsets[name] + length)
    width = nice_width(end / BINS)
    return [
        {"member": name, "t": offsets[name] + step * width, "rate": count / width}
        for name, length in lengths.items()
        for step, count in enumerate(np.bincount((done[name] / width).astype(int)).tolist())
        if step * width <= length
    ]


def nice_width(least: float) -> float:
    """The smallest of 0.1, 0.2, 0.5, 1, 2, 5, 10 … seconds that is not below."""
    steps = (scale * step for scale in (10.0**power for power in range(-1, 6)) for step in (1, 2, 5))
    return next(step for step in steps if step >= least)


# -- words and pictures -----------------------------------------------------------------------------------------------


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    changes = [(row["member"], row["samples_per_second_change"]) for row in rows]
    known = [f"{name} {change:+.1%}" for name, change in changes if change is not None]
    if not known:
        return f"None of {len(rows)} members could be measured both together and alone."
    return f"Samples/s of each with all {len(rows)} at once, against alone: {', '.join(known)}."


def columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The table's columns: rates, and latencies as fine as there are."""
    shown: list[tuple[str, str, str | Callable[[float], str]]] = [("samples_per_second", "samples/s", ",.2f")]
    if any(row["alone_ttft_p99_s"] or row["together_ttft_p99_s"] for row in rows):
        shown += [("ttft_p99_s", "TTFT p99", readable), ("tpot_p99_s", "TPOT p99", readable)]
    else:
        shown += [("latency_p99_s", "latency p99", readable)]
    named = [Column("member", "member")]
    for key, title, form in shown:
        named += [Column(f"alone_{key}", f"{title} alone", form), Column(f"together_{key}", "together", form)]
        named += [Column(f"{key}_change_said", "change")]
    return named


def notes(measured: Sequence[Measured], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"{row['member']}: {row['why']}" for row in rows if row["why"]]
    shares = {row["member"]: row["all_at_work_share"] for row in rows if row["all_at_work_share"] is not None}
    lines += [
        f"{name}: all were at work during {share:.0%} of its test together; a common --min-duration evens them."
        for name, share in shares.items()
        if share < FULL
    ]
    skew = start_skew(measured)
    if skew is not None:
        lines.append(f"The clocks of a round started within {skew * 1000:,.0f} ms.")
    if len(measured[0].together) < 3:
        lines.append("Fewer than three rounds: how much of a change is chance is not known (--repeats 3).")
    if any(run["client_limited"] for own in measured for run in own.runs):
        names = [own.member.name for own in measured if any(run["client_limited"] for run in own.runs)]
        lines.append(f"The harness itself was the limit in tests of: {', '.join(names)} (client_limited).")
    return lines


def draw(measured: Sequence[Measured]) -> Spec | None:
    """The first round over time, all at once and one after another."""
    panels = []
    together = {own.member.name: first for own in measured if (first := first_of(own.together))}
    alone = {own.member.name: first for own in measured if (first := first_of(own.alone))}
    for title, rows in (("all at once", timeline(together)), ("one after another", timeline(alone, in_turn=True))):
        if rows:
            paint = colour("member", "model", sort=[own.member.name for own in measured])
            mark = line(
                x("t", "time, s"),
                y("rate", "samples completed per second"),
                paint,
                points=False,
                interpolate="step-after",
            )
            panels.append(panel(rows, [mark], title, height=200))
    return stack(panels, "Fleet: completed samples over time") if panels else None


def first_of(runs: Sequence[RunResult | None]) -> RunResult | None:
    return next((run for run in runs if run is not None), None)
