"""What a page says of each result: plain values for the template, written as a person reads them.

Any value of a result.json may be another's making: what is no number where one is due is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from harness import report
from harness.page.source import Run, Study, Submission
from harness.results import RunResult
from harness.studies.findings import is_plain

_LATENCIES = (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("latency_s", "latency"))
_NAMES = ("mean", "p50", "p90", "p99", "p99_9", "max")
_TONES = {0: "good", 3: "unsure"}
_WORDS = {True: "passed", False: "FAILED", None: "not decided"}

_DEEPEST = 8

ROWS = 2000
"""Rows of a table of facts or findings, at most."""


def number(value: Any) -> float | None:
    """A finite number, or None for what is none."""
    right = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return value if right else None


def amount(value: Any, form: str = ",.2f", unit: str = "") -> str:
    found = number(value)
    return "–" if found is None else f"{found:{form}}{unit}"


def seconds(value: Any) -> str:
    return report.readable(number(value))


def strings(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


# -- runs -------------------------------------------------------------------------------------------------------------


def of_run(run: Run) -> dict[str, Any]:
    result = run.result
    return {
        "kind": "run",
        "name": run.name,
        **headline(result),
        "reasons": result["invalid_reasons"],
        "unready": [] if result["submission_ready"] else result["not_ready_reasons"],
        "ready": result["submission_ready"],
        "remarks": [remark.removeprefix("! ") for remark in report.remarks(result)],
        "notes": run.notes,
        "tiles": tiles(result, run.limits),
        "source": result["metrics"].get("source", "harness"),
        "latencies": latencies(result["metrics"]),
        "accuracy": accuracy(result["accuracy"]),
        "compliance": compliance(result.content.get("compliance")),
        "failures": failures(result),
        "replicas": [replica(row) for row in objects(result["replicas"])[:ROWS]],
        "facts": facts(result),
    }


def headline(result: RunResult) -> dict[str, Any]:
    """What was run, the verdict's word, and whether it is good news."""
    code = result.exit_code
    return {
        "title": report.what(result),
        "verdict": report.verdict(result),
        "tone": _TONES.get(code, "bad"),
        "folder": str(result.folder),
    }


def tiles(result: RunResult, limits: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """(label, figure, what stands below it) of the figures that are looked at first."""
    metrics, asked = result["metrics"], number(result["queries"])
    count = number(result["failures"].get("count")) or 0
    found = [
        ("samples/s", amount(metrics.get("samples_per_second")), ""),
        ("tokens/s", amount(metrics.get("tokens_per_second"), ",.0f"), ""),
    ]
    for key, title in _LATENCIES:
        values = mapping(metrics.get(key))
        bound = f"limit {seconds(limits[key])}" if key in limits else f"p50 {seconds(values.get('p50'))}"
        if values:
            found.append((f"{title} p99", seconds(values.get("p99")), bound))
    found.append(("failed", amount(count, ",.0f"), f"of {amount(asked, ',.0f')} queries"))
    found.append(("duration", seconds(result["duration_s"]), ""))
    return found


def latencies(metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    table = [(title, mapping(metrics.get(key))) for key, title in _LATENCIES]
    return [(title, [seconds(values.get(name)) for name in _NAMES]) for title, values in table if values]


def accuracy(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores beside their targets; None where nothing was scored."""
    if "samples" not in found:
        return None
    targets = mapping(found.get("targets"))
    names = [name for name in found if name.startswith("rouge") or name in ("gen_len", "tokens_per_sample")]
    return {
        "verdict": _WORDS.get(found.get("passed"), "not decided"),
        "why": found.get("why") or "",
        "rows": [score(name, found[name], mapping(targets.get(name))) for name in names],
        "notes": strings(found.get("notes")),
    }


def score(name: str, value: Any, target: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """A score, what it must be, and whether it is."""
    own, low, high = number(value), number(target.get("low")), number(target.get("high"))
    wanted = [f"{word} {bound:,.4f}" for word, bound in (("at least", low), ("at most", high)) if bound is not None]
    met = ""
    if own is not None and wanted:
        met = "missed" if (low is not None and own < low) or (high is not None and own > high) else "met"
    return name, "–" if own is None else report.figure(own), ", ".join(wanted), met


def compliance(found: Any) -> dict[str, Any] | None:
    if not isinstance(found, dict):
        return None
    return {
        "verdict": f"{found.get('test')} {_WORDS.get(found.get('passed'), 'not decided')}",
        "why": strings(found.get("why")),
    }


def failures(result: RunResult) -> list[tuple[str, str]]:
    """How many of each kind."""
    kinds = mapping(result["failures"].get("by_kind"))
    return [(kind, amount(count, ",.0f")) for kind, count in kinds.items()]


def replica(row: Mapping[str, Any]) -> list[str]:
    ejected = number(row.get("ejected_s"))
    return [
        str(row.get("name")),
        amount(row.get("queries"), ",.0f"),
        amount(row.get("tokens"), ",.0f"),
        amount(row.get("failures"), ",.0f"),
        amount(row.get("busy_share"), ".0%"),
        amount(row.get("tail_idle_s"), ".2f", " s"),
        "" if ejected is None else f"after {ejected:.1f} s",
    ]


def facts(result: RunResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """Configuration, environment and the rest of result.json, each as rows of path and value."""
    content = result.content
    titles = {"config": "Configuration", "environment": "Environment", "overhead": "What the harness cost"}
    titles |= {"loadgen": "LoadGen", "files": "SHA-256 of the run's files"}
    found = [(title, list(flat(content[key]))[:ROWS]) for key, title in titles.items() if content.get(key)]
    return [(title, rows) for title, rows in found if rows]


def flat(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every leaf of a JSON value by its path; nulls and what is empty are left out."""
    if isinstance(value, dict) and depth < _DEEPEST:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value) and depth < _DEEPEST:
        for place, inner in enumerate(value):
            yield from flat(inner, f"{path}[{place}]", depth + 1)
    elif isinstance(value, dict | list):
        if value:
            yield path, "…" if depth == _DEEPEST else ", ".join(map(str, value))
    elif value is not None and value != "":
        yield path, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


# -- submissions and studies ------------------------------------------------------------------------------------------


def of_submission(found: Submission) -> dict[str, Any]:
    content = found.content
    ready = content.get("submission_ready") is True
    status = str(content.get("status"))
    return {
        "kind": "submission",
        "name": found.name,
        "title": f"{content.get('benchmark')} · {content.get('scenario')} · submission",
        "verdict": "READY FOR A SUBMISSION" if ready else "NOT FOR A SUBMISSION",
        "tone": "good" if ready else "bad" if status != "complete" else "unsure",
        "reasons": [] if status == "complete" else [f"the runs were {status}"],
        "unready": [] if ready else strings(content.get("not_ready_reasons")),
        "notes": found.notes,
    }


def of_study(found: Study) -> dict[str, Any]:
    told = mapping(found.found)
    name = str(found.asked.get("study"))
    return {
        "kind": "study",
        "name": found.name,
        "title": f"{name} · {mapping(found.asked.get('options')).get('benchmark', '')}".rstrip(" ·"),
        "verdict": "" if found.found is not None else "NOT FINISHED",
        "tone": "plain" if found.found is not None else "unsure",
        "headline": str(told.get("headline", "")),
        "remarks": strings(told.get("notes")),
        "notes": found.notes,
        "table": findings_table(objects(told.get("rows"))),
        "points": [point(name, result) for name, result in found.points],
        "facts": [
            (title, rows)
            for title, key in (("What was asked", "question"), ("Options", "options"))
            if (rows := list(flat(found.asked.get(key)))[:ROWS])
        ],
    }


def findings_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """All plain keys of a study's rows, as table.csv has them."""
    names = list(dict.fromkeys(key for row in rows for key, value in row.items() if is_plain(value)))
    if not names:
        return None
    cells = [[cell(row.get(name)) for name in names] for row in rows[:ROWS]]
    return {"names": names, "rows": cells}


def cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"
    return "–" if value is None else str(value) if is_plain(value) else "…"


def point(name: str, result: RunResult) -> dict[str, Any]:
    """A run in a line: its verdict and first reason, and the figures of overview()."""
    return {"name": name, **headline(result), "reason": next(iter(result["invalid_reasons"]), ""), **overview(result)}


def overview(result: RunResult) -> dict[str, str]:
    metrics = result["metrics"]
    return {
        "samples": amount(metrics.get("samples_per_second")),
        "tokens": amount(metrics.get("tokens_per_second"), ",.0f"),
        **{key.removesuffix("_s"): seconds(mapping(metrics.get(key)).get("p99")) for key, _ in _LATENCIES},
    }
