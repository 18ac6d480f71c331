"""Releases held against one another: what differs between them, each figure's change, each gate.

The judged figures of two releases share one error: a pair of equals is called worse (or better) in any of them at most
once in twenty comparisons. Bonferroni shares it, which holds however figures depend on one another; so the intervals of
all judged figures are true together, and each verdict is read off its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from harness.accuracy import ROWS
from harness.drift import read_rows
from harness.studies import gate
from harness.studies.blocks import are_paired, change_error
from harness.studies.change import ALPHA, Change, Sampled, Scale, compare
from harness.studies.gate import Gate, Judgement
from harness.studies.releases import SCALES, SCORE, Release
from harness.studies.unlike import Difference, differences, refuse_unknown_axes, refuse_unlike
from sut.errors import ConfigError

MARGIN = 0.02
"""A change of a time or rate that is surely smaller than this, either way, is none."""

SCORE_MARGIN = 0.1
"""The same for a score, in points: the step between MLPerf's 99.9 % targets and their references."""

HEADLINE: Mapping[str, Sequence[str]] = {
    "Offline": ("tokens_per_second", "energy_j_per_token"),
    "": (
        "tokens_per_second",
        "ttft_s.p50",
        "ttft_s.p99",
        "tpot_s.p50",
        "tpot_s.p99",
        "latency_s.p50",
        "latency_s.p99",
        "energy_j_per_token",
    ),
}
"""What is judged unless other figures are named, by scenario. In Offline a latency is a place in the queue."""


@dataclass(frozen=True)
class Asked:
    """What a comparison is to find out. `figures`: those to judge, empty for the usual ones."""

    axes: Sequence[str] = ()
    figures: Sequence[str] = ()
    gates: Sequence[Gate] = ()
    margin: float = MARGIN


class Row(NamedTuple):
    """One figure of one release against an earlier one."""

    figure: str
    before: Release
    now: Release
    judged: bool
    change: Change


@dataclass(frozen=True)
class Comparison:
    """All that was found out; `rows` against the first release, `steps` each against the one before it."""

    releases: Sequence[Release]
    differences: Sequence[Difference]
    rows: Sequence[Row]
    steps: Sequence[Row]
    gates: Sequence[Judgement]
    asked: Asked

    @property
    def exit_code(self) -> int:
        """5 a gate is broken, 3 one cannot be decided, 0 otherwise."""
        states = {judgement.state for judgement in self.gates}
        return 5 if gate.BROKEN in states else 3 if gate.UNDECIDED in states else 0


def compare_releases(releases: Sequence[Release], asked: Asked) -> Comparison:
    """Compare releases in the order given, the first being the baseline. Raises ConfigError for unlike runs and for
    figures that they do not have, SetupError for damaged files."""
    if len(releases) < 2:
        raise ConfigError("a comparison takes two releases or more: name their folders, the baseline first.")
    refuse_unknown_axes(asked.axes, [release.flat for release in releases])
    found = differences({release.name: release.flat for release in releases}, asked.axes)
    refuse_unlike(found)
    shared = shared_figures(releases)
    judged = judged_figures(releases[0], shared, asked)
    scales = {figure: scale_of(figure) for figure in shared}
    for one in asked.gates:
        refuse_missing(one.figure, shared)
        gate.refuse_odd_limit(one, scales[one.figure])
    first, last = releases[0], releases[-1]
    rows = [row for now in releases[1:] for row in compare_pair(first, now, scales, judged, asked.margin)]
    steps = [
        row for before, now in pairwise(releases[1:]) for row in compare_pair(before, now, scales, judged, asked.margin)
    ]
    gates = [judge_gate(one, first, last, scales[one.figure], len(asked.gates)) for one in asked.gates]
    return Comparison(releases, found, rows, steps, gates, asked)


# -- figures ----------------------------------------------------------------------------------------------------------


def shared_figures(releases: Sequence[Release]) -> list[str]:
    """The figures that every run of every release has. Raises ConfigError if there is none."""
    runs = [run for release in releases for run in release.runs]
    shared = [figure for figure in runs[0].figures if all(figure in run.figures for run in runs)]
    if not shared:
        raise ConfigError("these results have no figure in common: there is nothing to compare.")
    return sorted(shared, key=lambda figure: list(SCALES).index(figure) if figure in SCALES else -1)


def judged_figures(release: Release, shared: Sequence[str], asked: Asked) -> list[str]:
    """Those asked for, else the usual ones. Raises ConfigError for one that is not there."""
    for figure in asked.figures:
        if figure != "all":
            refuse_missing(figure, shared)
    if "all" in asked.figures:
        return list(shared)
    usual = HEADLINE["Offline" if release.runs[0].offline else ""]
    return [
        figure
        for figure in shared
        if (figure in asked.figures if asked.figures else figure in usual or figure not in SCALES)
    ]


def refuse_missing(figure: str, shared: Sequence[str]) -> None:
    if figure not in shared:
        raise ConfigError(f"these runs have no figure {figure!r}: choose among {', '.join(shared)}.")


def scale_of(figure: str) -> Scale:
    return SCALES.get(figure, SCORE)


def compare_pair(
    before: Release, now: Release, scales: Mapping[str, Scale], judged: Sequence[str], margin: float
) -> list[Row]:
    """Every figure of two releases; the judged ones share the error, each of the others has it alone."""
    found = []
    for figure, scale in scales.items():
        alpha = ALPHA / len(judged) if figure in judged else ALPHA
        edge = margin if scale.ratio else SCORE_MARGIN
        a, b = before.values(figure), now.values(figure)
        assert a is not None and b is not None, "shared by all"
        change = compare(a, b, sampled(before, now, figure), scale, edge, alpha)
        found.append(Row(figure, before, now, figure in judged, change))
    return found


def judge_gate(one: Gate, before: Release, now: Release, scale: Scale, gates: int) -> Judgement:
    a, b = before.values(one.figure), now.values(one.figure)
    assert a is not None and b is not None, "shared by all"
    return gate.judge(one, a, b, sampled(before, now, one.figure), scale, gates)


def sampled(before: Release, now: Release, figure: str) -> Sampled | None:
    """What the samples of two releases say of the noise of a change. Raises SetupError for damaged files."""
    if figure not in SCALES:
        return score_error(before, now, figure)
    runs = [*before.runs, *now.runs]
    paired = are_paired([run.samples for run in runs], before.runs[0].offline)
    blocks = min(run.samples.blocks for run in runs)
    return change_error([run.drawn for run in before.runs], [run.drawn for run in now.runs], figure, blocks, paired)


def score_error(before: Release, now: Release, figure: str) -> Sampled | None:
    """By sample: questions are answered apart from each other, and how hard one is cancels out. None if a run has no
    scores by sample, or not of the same samples."""
    sides = []
    for release in (before, now):
        folders = [run.result.folder for run in release.runs]
        if not all((folder / ROWS).is_file() for folder in folders):
            return None
        tables = [read_rows(folder) for folder in folders]
        if not all(figure in table for table in tables):
            return None
        orders = [np.argsort(table["sample_index"], kind="stable") for table in tables]
        indices = [table["sample_index"][order] for table, order in zip(tables, orders, strict=True)]
        if not all(np.array_equal(index, indices[0]) for index in indices):
            return None
        scores = [np.asarray(table[figure], np.float64)[order] for table, order in zip(tables, orders, strict=True)]
        sides.append((indices[0], np.mean(scores, axis=0)))
    (asked, old), (again, new) = sides
    if not np.array_equal(asked, again) or len(asked) < 2:
        return None
    return Sampled(float((new - old).std(ddof=1)) / len(asked) ** 0.5, len(asked))
