"""What bringing replicas up has shown: which answers were right, quartiles, a table and a figure.

Greedy decoding gives every replica of a model the same answer to the same question. So an answer is right if it is one
at all (HTTP 200, finish reason `stop` or `length`, as many tokens as were counted) and is what most replicas said; of
answers equally frequent, the earliest. One replica that is wrong then spoils no other, not even as the first.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness import figures
from harness.studies.findings import Column, Findings
from harness.studies.study import Study

NAMED = 8
"""Failures that are told with their reasons; findings.json has all."""

PHASES = ["create command", "then until healthy", "then until the first right answer"]
BARS = "#9ecae1", figures.GOOD, figures.COLOURS[2]

Row = Mapping[str, Any]


def seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.2f}"


COLUMNS = [
    Column("replica", "replica"),
    Column("group", "group"),
    Column("began_s", "asked at, s", seconds),
    Column("created_s", "created, s", seconds),
    Column("healthy_s", "healthy, s", seconds),
    Column("healthy_within_s", "known to, s", seconds),
    Column("answer_s", "first right answer, s", seconds),
    Column("validated", "validated"),
    Column("at_the_end", "at the end"),
]


def conclude_readiness(study: Study, groups: Sequence[Mapping[str, Any]], final: Mapping[str, Any],
                       troubles: Sequence[str]) -> Findings:  # fmt: skip
    """The findings of a study whose points are all there."""
    measured = [row for group in groups for row in group["replicas"]]
    last = {row["index"]: row for row in final["replicas"]}
    right, doubts = references(measured, last)
    rows = [judged(row, last.get(row["index"], {}), right) for row in measured]
    summary = {key: spread([row[key] for row in rows if row[key] is not None]) for key in ("healthy_s", "answer_s")}
    return Findings(
        study.name,
        headline(rows, summary["answer_s"]),
        COLUMNS,
        rows,
        [*summary_lines(summary), *doubts, *failure_lines(rows), *troubles],
        draw(rows),
        {"summary": summary, "right_answers": right, "not_removed": list(troubles)},
    )


# -- what is right ----------------------------------------------------------------------------------------------------


def references(rows: Sequence[Row], last: Mapping[int, Row]) -> tuple[dict[int, Any], list[str]]:
    """The right answer to each question by its number, and what must be said of how sure that is. A replica has one
    vote per question, its first answer to it, be it at the end (`last`, by index)."""
    votes: dict[int, list[Any]] = {}
    for row in sorted(rows, key=lambda row: (row["began_s"] or 0.0) + (row["answer_s"] or 0.0)):
        own: dict[int, Any] = {} if row["said"] is None else {0: row["said"]}
        for entry in [*row["validation"], *last.get(row["index"], {}).get("validation", [])]:
            if "said" in entry:
                own.setdefault(entry["question"], entry["said"])
        for question, said in own.items():
            votes.setdefault(question, []).append(said)
    right, doubts = {}, []
    for question, answers in sorted(votes.items()):
        counted = Counter(map(key_of, answers)).most_common()
        right[question] = next(answer for answer in answers if key_of(answer) == counted[0][0])
        if len(counted) > 1 and counted[0][1] <= len(answers) / 2:
            doubts.append(
                f"Nobody has a majority on question {question}: {counted[0][1]} of {len(answers)} replicas agree, and "
                "the earliest of the most frequent answers is taken as right."
            )
    if len(rows) == 1 and right:
        doubts.append("There is one replica only: its answers are complete, and agree with nobody else's.")
    return right, doubts


def key_of(said: Any) -> Any:
    return tuple(said) if isinstance(said, list) else said


def judged(row: Row, last: Row, right: Mapping[int, Any]) -> dict[str, Any]:
    """A replica's row of the table; `last` is what the final validation says of it."""
    first = row["failure"]
    if first is None and row["said"] != right[0]:
        first = f"a wrong first answer: {excerpt(row['said'])}, and most say {excerpt(right[0])}"
    now, end = wrong_in(row["validation"], right), wrong_in(last.get("validation", []), right)
    failure = first or (now and f"when validated: {now}") or last.get("failure") or (end and f"at the end: {end}")
    made = {key: row[key] for key in ("group", "url", "began_s", "created_s", "healthy_s", "healthy_within_s")}
    return {
        "replica": row["name"],
        **made,
        "answer_s": row["answer_s"] if first is None else None,
        "validated_s": row["validated_s"],
        "validated": share_right(row["validation"], right),
        "at_the_end": share_right(last.get("validation", []), right),
        "looks": row["looks"],
        "failure": failure,
    }


def is_right(entry: Row, right: Mapping[int, Any]) -> bool:
    return "said" in entry and entry["said"] == right[entry["question"]]


def share_right(entries: Sequence[Row], right: Mapping[int, Any]) -> str | None:
    return f"{sum(is_right(entry, right) for entry in entries)} of {len(entries)}" if entries else None


def wrong_in(entries: Sequence[Row], right: Mapping[int, Any]) -> str | None:
    """The first thing that is wrong with these answers, or None."""
    for entry in entries:
        if not is_right(entry, right):
            question = entry["question"]
            if "failure" in entry:
                return f"question {question}: {entry['failure']}"
            return f"question {question}: {excerpt(entry['said'])}, and most say {excerpt(right[question])}"
    return None


def excerpt(said: Any) -> str:
    """The beginning of an answer."""
    if isinstance(said, str):
        return repr(said if len(said) <= 40 else f"{said[:39]}…")
    return " ".join(map(str, said[:8])) + (" …" if len(said) > 8 else "")


# -- figures ----------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, quartiles (inclusive method) and greatest, and greatest over least; None without values."""
    if not values:
        return None
    if len(values) == 1:
        first = middle = third = values[0]
    else:
        first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    low, high = min(values), max(values)
    cut = {"min": low, "q1": first, "median": middle, "q3": third, "max": high}
    return cut | {"slowest_over_fastest": high / low if low > 0 else float("nan")}


def headline(rows: Sequence[Row], answers: Mapping[str, float] | None) -> str:
    good = sum(row["failure"] is None for row in rows)
    many = f"{good} of {len(rows)} replica{'s' * (len(rows) > 1)} came up and stayed right"
    if answers is None:
        return f"{many}: none gave a right answer."
    middle = f"the median first right answer came {seconds(answers['median'])} s after creation"
    if len(rows) == 1:
        return f"{many}: its first right answer came {seconds(answers['median'])} s after creation."
    return f"{many}: {middle}, and the slowest took {answers['slowest_over_fastest']:.2f} times as long as the fastest."


def summary_lines(summary: Mapping[str, Mapping[str, float] | None]) -> list[str]:
    names = {"healthy_s": "Until healthy", "answer_s": "Until the first right answer"}
    return [
        f"{names[key]}: {', '.join(f'{name} {seconds(found[name])}' for name in ('min', 'q1', 'median', 'q3', 'max'))}"
        f" s; slowest over fastest {found['slowest_over_fastest']:.2f}."
        for key, found in summary.items()
        if found is not None
    ]


def failure_lines(rows: Sequence[Row]) -> list[str]:
    failed = [row for row in rows if row["failure"] is not None]
    lines = [f"{row['replica']}: {row['failure']}." for row in failed[:NAMED]]
    return [*lines, f"… and {len(failed) - NAMED} more, in findings.json."] if len(failed) > NAMED else lines


def draw(rows: Sequence[Row]) -> figures.Spec:
    """Created and ready over time, as steps; below, each replica's way to its first right answer."""
    good = sum(row["answer_s"] is not None for row in rows)
    panels = [over_time(rows), each_replica(rows)]
    said = f"{good} of {len(rows)} replicas gave one"
    own_colours = {"resolve": {"scale": {"color": "independent"}}}
    return figures.stack(panels, "From creation to the first right answer", said) | own_colours


def over_time(rows: Sequence[Row]) -> figures.Spec:
    moments = {
        "created": sorted(row["began_s"] for row in rows if row["began_s"] is not None),
        "first right answer": sorted(row["began_s"] + row["answer_s"] for row in rows if row["answer_s"] is not None),
    }
    end = max((times[-1] for times in moments.values() if times), default=0.0)
    steps = [
        {"t": t, "count": count, "what": what}
        for what, times in moments.items()
        for t, count in [(0.0, 0), *zip(times, range(1, len(times) + 1), strict=True), (end, len(times))]
    ]
    layer = figures.line(
        figures.x("t", "seconds since the first creation"),
        figures.y("count", "replicas", axis={"tickMinStep": 1}),
        figures.colour("what", scale={"domain": list(moments), "range": list(figures.COLOURS[:2])}),
        points=False,
        interpolate="step-after",
    )
    return figures.panel(steps, [layer], "Created and ready over time")


def each_replica(rows: Sequence[Row]) -> figures.Spec:
    failed = [
        {"replica": row["replica"], "number": number, "why": row["failure"], "zero": 0}
        for number, row in enumerate(rows)
        if row["failure"] is not None
    ]
    few = len(rows) <= 24
    axis = {"labels": few, "ticks": few, "labelAngle": 0, "grid": False}
    along = figures.x("replica", "", "ordinal", sort={"field": "number"}, axis=axis)
    bars = figures.bars(
        along,
        figures.y("from", "seconds since its creation"),
        {"y2": {"field": "to"}},
        figures.colour("phase", scale={"domain": PHASES, "range": list(BARS)}),
    )
    crosses = figures.dots(along, figures.y("zero", ""), shape="cross", color=figures.BAD, angle=45, size=80)
    crosses["data"] = {"values": failed}
    layers = [bars, crosses] if failed else [bars]
    return figures.panel(phases_of(rows), layers, "Each replica (a cross: it failed)", height=220)


def phases_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The parts of each replica's way; a create command that outlasts the coming up is a part up to health."""
    parts = []
    for number, row in enumerate(rows):
        if row["healthy_s"] is None or row["answer_s"] is None:
            continue
        ends = [0.0, min(row["created_s"] or 0.0, row["healthy_s"]), row["healthy_s"], row["answer_s"]]
        for phase, begin, end in zip(PHASES, ends, ends[1:], strict=False):
            parts.append({"replica": row["replica"], "number": number, "phase": phase, "from": begin, "to": end})
    return parts
