"""The pictures of a comparison: each figure's change with its interval, or a history release by release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from harness.figures import BAD, COLOURS, GOOD, LIMIT, Spec, colour, dots, figure, panel, stack, x, y
from harness.studies.change import BETTER, CANNOT_TELL, SAME, WORSE

Rows = Sequence[Mapping[str, Any]]

BASELINE = "the baseline"
VERDICTS = {BETTER: GOOD, WORSE: BAD, SAME: COLOURS[2], CANNOT_TELL: LIMIT, BASELINE: "#222222"}
WIDEST = 4
"""An interval is drawn up to this many times the usual one, so that one wide bar does not hide the others."""


def changes(rows: Rows, title: str, subtitle: str, margin: float) -> Spec:
    """A forest plot: a bar for each judged figure, the margin within which a change is none shaded."""
    ratio = all(row["ratio"] for row in rows)
    factor = 100 if ratio else 1
    bounds = [max(abs(row["low"]), abs(row["high"])) for row in rows if row["low"] is not None]
    reach = factor * min(max(bounds, default=1.0), WIDEST * median(bounds or [1.0])) or 1.0
    reach = max(reach, 1.2 * margin * factor) if ratio else reach
    drawn = [
        {
            "figure": row["figure"],
            "verdict": row["verdict"],
            "change": clip(row["change"] * factor, reach),
            **({} if row["low"] is None else {k: clip(row[k] * factor, reach) for k in ("low", "high")}),
        }
        for row in rows
    ]
    order: Spec = {"sort": None, "axis": {"labelLimit": 200}}
    axis = x("change", f"change, {'%' if ratio else 'points'}", scale={"domain": [-reach, reach]})
    heading = f"{subtitle}; 95 % intervals, true of all together"
    if max(bounds, default=0) * factor > reach:
        heading += "; bars that reach the edge go on"
    hue = colour("verdict", "", scale=hues(row["verdict"] for row in drawn))
    layers = [
        *([shade(margin * factor)] if ratio else []),
        {"data": {"values": [{}]}, "mark": {"type": "rule", "color": "#222222"}, "encoding": {"x": {"datum": 0}}},
        {"mark": {"type": "rule", "strokeWidth": 3}, "encoding": {**y("figure", "", "nominal", **order),
         **x("low", axis["x"]["title"], scale=axis["x"]["scale"]), "x2": {"field": "high"}, **hue}},
        dots(axis, y("figure", "", "nominal", **order), hue, size=90, opacity=1),
    ]  # fmt: skip
    return figure(drawn, layers, title, heading, height={"step": 30})


def shade(margin: float) -> Spec:
    return {
        "data": {"values": [{"from": -margin, "to": margin}]},
        "mark": {"type": "rect", "color": COLOURS[2], "opacity": 0.12},
        "encoding": {"x": {"field": "from", "type": "quantitative"}, "x2": {"field": "to"}},
    }


def trend(rows: Rows, title: str, subtitle: str, margin: float) -> Spec:
    """A panel for each figure: its value release by release with the interval of its repeats, coloured by the verdict
    against the first."""
    named = list(dict.fromkeys(row["figure"] for row in rows))
    hue = colour("verdict", "against the first", scale=hues(row["verdict"] for row in rows))
    order: Spec = {"sort": None, "axis": {"labelAngle": 0, "labelLimit": 120}}
    across = x("release", "", "ordinal", **order)
    panels = []
    for name in named:
        own = [row for row in rows if row["figure"] == name]
        up: Spec = {"scale": {"domain": span(own, margin), "nice": True}}
        way = {"mark": {"type": "line", "color": "#cccccc"}, "encoding": across | y("value", "", **up)}
        bars = {
            "transform": [{"filter": "isValid(datum.low)"}],
            "mark": {"type": "rule", "strokeWidth": 3},
            "encoding": across | y("low", "", **up) | {"y2": {"field": "high"}} | hue,
        }
        layers: list[Spec] = [way, bars, dots(across, y("value", "", **up), hue, size=90, opacity=1)]
        panels.append(panel(own, layers, name, width=340, height=170))
    return stack(
        panels, title, f"{subtitle}; 95 % intervals of each release's own repeats", columns=min(2, len(panels))
    )


def span(rows: Rows, margin: float) -> list[float]:
    """What a panel shows: all intervals, and at least twice the margin around the first value, so that nothing looks
    large because everything else stands still."""
    first = rows[0]["value"]
    values = [row[key] for row in rows for key in ("value", "low", "high") if row[key] is not None]
    return [min([*values, first - 2 * margin * abs(first)]), max([*values, first + 2 * margin * abs(first)])]


def hues(verdicts: Any) -> dict[str, list[str]]:
    """A colour scale of the verdicts that occur."""
    found = set(verdicts)
    return {"domain": [v for v in VERDICTS if v in found], "range": [VERDICTS[v] for v in VERDICTS if v in found]}


def clip(value: float, reach: float) -> float:
    return min(max(value, -reach), reach)
