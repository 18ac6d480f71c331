"""`compare`: is this release slower than the last? From results on disk, as text, a table and a picture.

    python -m harness compare results/old results/new --gate ttft_s.p99:5%

Differences of configuration and environment are said first, since a figure of an unlike run says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import exp
from typing import Any

from harness.studies import findings, forest, gate
from harness.studies.change import ALPHA, BETTER, CANNOT_TELL, MOST_REPEATS, SAME, WORSE, own_noise
from harness.studies.comparison import SCORE_MARGIN, Comparison, Row, scale_of
from harness.studies.findings import Column, Findings
from harness.studies.gate import Judgement
from harness.studies.releases import Release, invalid_runs
from harness.studies.unlike import shown

NOT_JUDGED = "not judged"

FOLD = 2.0
"""From three times as much on, a change is told as a multiple."""


def as_text(found: Comparison, told: Findings) -> str:
    """Whom it is about, what differs, what has changed, the gates."""
    lines = [title(found), "", *release_lines(found.releases), "", *difference_lines(found), "", findings.as_text(told)]
    if found.gates:
        lines += ["", *(gate_line(judgement) for judgement in found.gates)]
    return "\n".join(lines)


def as_findings(found: Comparison) -> Findings:
    """The comparison as one sentence, a table and a figure."""
    history, ratio = len(found.releases) > 2, scale_of(found.rows[0].figure).ratio
    rows = [as_row(row) for row in found.rows]
    if history:
        rows = history_rows(found)
        spec = forest.trend(points(found), "Releases in order", title(found), found.asked.margin)
    else:
        judged = [row for row in rows if row["judged"]]
        names = f"{found.releases[1].name} against {found.releases[0].name}"
        spec = forest.changes(judged, names, title(found), found.asked.margin)
    return Findings(
        study="compare",
        headline=headline(found),
        columns=history_columns(ratio) if history else pair_columns(found.releases, ratio),
        rows=rows,
        notes=notes(found),
        figure=spec,
        extra={
            "baseline": found.releases[0].name,
            "margin": found.asked.margin,
            "alpha": ALPHA,
            "releases": [as_release(release) for release in found.releases],
            "differences": [
                {"key": one.key, "kind": one.kind.value, "on_axis": one.named, "values": dict(one.values)}
                for one in found.differences
            ],
            "steps": [as_row(row) for row in found.steps],
            "gates": [asdict(judgement) | {"gate": judgement.gate.text} for judgement in found.gates],
            "exit_code": found.exit_code,
        },
    )


def as_row(row: Row) -> dict[str, Any]:
    change = asdict(row.change)
    return {
        "figure": row.figure,
        "release": row.now.name,
        "against": row.before.name,
        **change,
        "interval": [change["low"], change["high"]],
        "verdict": row.change.verdict if row.judged else NOT_JUDGED,
        "judged": row.judged,
        "ratio": scale_of(row.figure).ratio,
        "runs_before": row.before.values(row.figure),
        "runs_now": row.now.values(row.figure),
    }


def history_rows(found: Comparison) -> list[dict[str, Any]]:
    """The judged figures, each release by release; the baseline has its value alone."""
    first = found.releases[0]
    rows = []
    for figure in dict.fromkeys(row.figure for row in found.rows if row.judged):
        value = own_interval(first, figure)["value"]
        rows.append({"figure": figure, "release": first.name, "now": value, "verdict": forest.BASELINE, "judged": True})
        told = [as_row(row) for row in found.rows if row.figure == figure]
        rows += [row | since_last(row, found.steps) for row in told]
    return rows


def since_last(row: Mapping[str, Any], steps: Sequence[Row]) -> dict[str, Any]:
    """What a row of a history says besides: the change since the release before."""
    step = next((as_row(s) for s in steps if (s.figure, s.now.name) == (row["figure"], row["release"])), row)
    return {f"last_{key}": step[key] for key in ("change", "low", "high", "interval", "verdict")}


def as_release(release: Release) -> dict[str, Any]:
    return {
        "name": release.name,
        "runs": [str(run.result.folder) for run in release.runs],
        "valid": not invalid_runs([release]),
        "figures": {figure: release.values(figure) for figure in release.runs[0].figures},
    }


# -- words ------------------------------------------------------------------------------------------------------------


def title(found: Comparison) -> str:
    result = found.releases[0].runs[0].result
    return f"compare · {result['benchmark']} · {result['scenario']} · {result['mode']}"


def release_lines(releases: Sequence[Release]) -> list[str]:
    """Each release, its runs, and loudly those that are not valid."""
    width = max(len(release.name) for release in releases)
    lines = []
    for place, release in enumerate(releases):
        count = len(release.runs)
        queries = sum(int(run.result.content.get("queries") or 0) for run in release.runs)
        baseline = "   the baseline" if place == 0 else ""
        lines.append(f"  {release.name:<{width}}   {count} run{'s' * (count > 1)}, {queries:,} queries{baseline}")
        lines += [f"    NOT VALID: {run.result.folder}: {first_reason(run.result)}" for run in invalid_runs([release])]
    return lines


def first_reason(result: Any) -> str:
    reasons = result.content.get("invalid_reasons") or ["no reason given"]
    return str(reasons[0])


def difference_lines(found: Comparison) -> list[str]:
    """What differs, the axis first."""
    if not found.differences:
        return ["  no difference in configuration or environment is recorded"]
    rows = []
    for one in sorted(found.differences, key=lambda one: not one.named):
        values = [shown(value) for value in one.values.values()]
        # A long history says each value once, where it changes.
        changes = [value for place, value in enumerate(values) if place == 0 or value != values[place - 1]]
        rows.append((one.key, " → ".join(changes), "the axis" if one.named else ""))
    width = max(len(key) for key, _, _ in rows)
    return ["  differences", *(f"    {key:<{width}}   {change}   {note}".rstrip() for key, change, note in rows)]


def headline(found: Comparison) -> str:
    """The last release against the first, in a sentence."""
    last, first = found.releases[-1], found.releases[0]
    rows = [row for row in found.rows if row.judged and row.now is last]
    parts = []
    for word in (WORSE, BETTER):
        named = [
            f"{row.figure} ({amount(row.change.change, scale_of(row.figure).ratio)})"
            for row in rows
            if row.change.verdict == word
        ]
        if named:
            parts.append(f"{word} in {', '.join(named)}")
    for word, text in ((SAME, "the same in"), (CANNOT_TELL, "cannot tell of")):
        count = [row.figure for row in rows if row.change.verdict == word]
        if count:
            parts.append(f"{text} {', '.join(count)}")
    return f"{last.name} against {first.name}: {'; '.join(parts) or 'nothing was judged'}."


def notes(found: Comparison) -> list[str]:
    """How to read it, and what to do where nothing can be told."""
    judged = {row.figure for row in found.rows if row.judged}
    ratio = scale_of(found.rows[0].figure).ratio
    within = f"{found.asked.margin:.1%}" if ratio else f"{SCORE_MARGIN} points"
    together = f"intervals, true of all {len(judged)} judged figures together" if len(judged) > 1 else "interval"
    lines = [
        f"95 % {together}; `same` is surely within {within}; `visible`: the smallest change that would have been found "
        "9 times in 10."
    ]
    if len(found.releases) > 2:
        lines.append("The 5 % of false alarms are those of each comparison of two releases, not of the whole history.")
    last = [row for row in found.rows if row.judged and row.now is found.releases[-1]]
    open_rows = [row for row in last if row.change.verdict == CANNOT_TELL]
    if unknown := next((row.change.why for row in open_rows if row.change.why.startswith("one run each")), None):
        lines.append(f"Cannot tell: {unknown}, and these intervals are of the samples within two runs. Repeat both.")
    needed = [f"{row.figure} {row.change.repeats}" for row in open_rows if row.change.repeats]
    if needed:
        lines.append(f"Repeats of each that would tell, if change and noise stay what they are: {', '.join(needed)}.")
    alone = [release.name for release in found.releases if len(release.runs) == 1]
    if alone and unknown is None and any(scale_of(row.figure).repeats for row in last):
        lines.append(f"{', '.join(alone)}: a single run, taken to be as noisy as those it is compared with.")
    for release in found.releases:
        lines += [f"{release.name}: {note}." for note in release.notes]
    return lines


def gate_line(judgement: Judgement) -> str:
    """A gate's state and why."""
    ratio = judgement.gate.ratio

    def worse(value: float) -> str:
        size = f"{abs(value):.1%}" if ratio else f"{abs(value):.3f} points"
        return f"{'worse' if value >= 0 else 'better'} by {size}"

    words = {gate.PASSED: "passed", gate.BROKEN: "BROKEN", gate.UNDECIDED: "CANNOT BE DECIDED"}[judgement.state]
    line = f"  gate {judgement.gate.text} {words}: {worse(judgement.worsening)}"
    if judgement.low is None or judgement.high is None:
        return f"{line}, and how much runs differ by themselves is not known: repeat both releases"
    if judgement.state == gate.PASSED:
        return f"{line}, surely not beyond {worse(judgement.high)}"
    if judgement.state == gate.BROKEN:
        return f"{line}, surely at least {worse(judgement.low)}"
    many = f"about {judgement.repeats}" if judgement.repeats else f"more than {MOST_REPEATS:,}"
    return f"{line}, between {worse(judgement.low)} and {worse(judgement.high)}; {many} repeats of each would decide it"


# -- tables and what the pictures show --------------------------------------------------------------------------------


def interval(ratio: bool) -> Callable[[Any], str]:
    """How an interval is written; half of one is none."""

    def write(bounds: Sequence[float | None]) -> str:
        low, high = bounds
        return "–" if low is None or high is None else f"{amount(low, ratio)} to {amount(high, ratio)}"

    return write


def amount(change: float, ratio: bool) -> str:
    if ratio and change >= FOLD:
        return f"{change + 1:,.0f}-fold" if change < 1e6 else "anything"
    text = format(change, "+.1%" if ratio else "+.3f")
    return text if text.strip("+-0.%") else text[1:]


def pair_columns(releases: Sequence[Release], ratio: bool) -> list[Column]:
    before, now = releases
    return [
        Column("figure", "figure"),
        Column("before", before.name, ",.5g"),
        Column("now", now.name, ",.5g"),
        *change_columns("", ratio),
        Column("effect", "effect", "+.1f"),
        Column("visible", "visible", lambda value: amount(value, ratio).lstrip("+")),
    ]


def history_columns(ratio: bool) -> list[Column]:
    return [
        Column("figure", "figure"),
        Column("release", "release"),
        Column("now", "value", ",.5g"),
        *change_columns("", ratio, "since the first"),
        *change_columns("last_", ratio, "since the last"),
    ]


def change_columns(prefix: str, ratio: bool, heading: str = "change") -> list[Column]:
    return [
        Column(f"{prefix}change", heading, lambda value: amount(value, ratio)),
        Column(f"{prefix}interval", "95 % interval", interval(ratio)),
        Column(f"{prefix}verdict", "verdict"),
    ]


def points(found: Comparison) -> list[dict[str, Any]]:
    """Each judged figure of each release, with the interval of its own runs and the verdict against the first."""
    judged = list(dict.fromkeys(row.figure for row in found.rows if row.judged))
    verdicts = {(row.figure, row.now.name): row.change.verdict for row in found.rows}
    return [
        {
            "figure": figure,
            "release": release.name,
            "verdict": verdicts.get((figure, release.name), forest.BASELINE),
            **own_interval(release, figure),
        }
        for figure in judged
        for release in found.releases
    ]


def own_interval(release: Release, figure: str) -> dict[str, float | None]:
    """A release's value with the 95 % interval of its own repeats; of a single run there is none."""
    scale, values = scale_of(figure), release.values(figure) or []
    inner = [scale.inner(value) for value in values]
    middle = sum(inner) / len(inner)
    spread = own_noise(inner)
    half = None if spread is None else spread.half(ALPHA)
    back = exp if scale.ratio else float
    return {
        "value": back(middle),
        "low": None if half is None else back(middle - half),
        "high": None if half is None else back(middle + half),
    }
