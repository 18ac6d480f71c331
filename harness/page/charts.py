"""The charts of a run as Vega-Lite specifications, aggregated before they are drawn: a chart of 24,576 samples holds
some forty bars, or a value for each of some hundred spans of time.

Times are the harness's own, from samples.parquet: they count from the moment at which LoadGen handed a query over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.figures import BAD, COLOURS, GOOD, LIMIT, Spec, bars, colour, dots, finish, limit, line, panel, x, y
from harness.histogram import histogram, nice_step
from harness.page.source import Numbers, Run, Table

WIDTH, HEIGHT = 296, 140
WIDE, NARROW, STRIP = 1060, 290, 74
"""Of a chart's plot in pixels; strips are drawn for a screen and for a phone."""

SPANS = 120
"""Spans of time in a strip, at most."""

_CELLS = 2400
"""Cells of the chart by replica, at most."""

_NAMED = 24
"""Replicas that still have their names in a chart."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chart:
    """`name` is that of its file; `narrow` is the same for a phone, where the wide one would be too small to read."""

    name: str
    spec: Spec
    narrow: Spec | None = None


def charts(run: Run) -> list[Chart]:
    """All that can be drawn of a run's samples."""
    served = None if run.samples is None else measured(run.samples)
    if not served:
        return []
    return [*timelines(served), *by_replica(served), *distributions(served, run.limits)]


def measured(samples: Table) -> Table:
    """The queries that this test has served: answers taken over from an interrupted one have no times."""
    return select(samples, samples.numbers["attempts"] > 0)


def select(table: Table, mask: Mask) -> Table:
    places = np.flatnonzero(mask).tolist()
    return Table(
        {name: column[mask] for name, column in table.numbers.items()},
        {name: [column[place] for place in places] for name, column in table.words.items()},
    )


def failed(samples: Table) -> Mask:
    return np.array([error is not None for error in samples.words["error"]], bool)


def tpot(samples: Table) -> Numbers:
    """Seconds per output token after the first; nan where an answer was not streamed or is one token."""
    own = samples.numbers
    gaps = np.where(own["output_tokens"] > 1, own["output_tokens"] - 1, np.nan)
    return np.asarray((own["latency_s"] - own["ttft_s"]) / gaps, np.float64)


# -- distributions ----------------------------------------------------------------------------------------------------


def distributions(samples: Table, limits: Mapping[str, float]) -> list[Chart]:
    """Histograms of what the answered queries took and how long they were."""
    good = select(samples, ~failed(samples))
    own = good.numbers
    seconds = {
        "ttft": ("Time to first token", own["ttft_s"], limits.get("ttft_s")),
        "tpot": ("Time per output token", tpot(good), limits.get("tpot_s")),
        "latency": ("Latency", own["latency_s"], None),
    }
    lengths = {"output": ("Output tokens", own["output_tokens"]), "input": ("Input tokens", own["input_tokens"])}
    found = [of_seconds(name, *what) for name, what in seconds.items()]
    found += [of_lengths(f"{name}-tokens", *what) for name, what in lengths.items()]
    return [chart for chart in found if chart is not None]


def of_seconds(name: str, title: str, values: Numbers, bound: float | None) -> Chart | None:
    values = values[np.isfinite(values) & (values >= 0)]
    if not len(values):
        return None
    unit, scale = unit_of(float(np.percentile(values, 99)))
    return distribution(name, title, unit, np.rint(values * 1e9).astype(np.int64), scale * 1e9, bound)


def of_lengths(name: str, title: str, values: Numbers) -> Chart | None:
    values = values[np.isfinite(values)]
    return distribution(name, title, "tokens", values.astype(np.int64), 1.0, None) if len(values) else None


def unit_of(seconds: float) -> tuple[str, float]:
    """The unit in which such a time is read best, and how many seconds it has."""
    return next(((unit, size) for unit, size in (("s", 1.0), ("ms", 1e-3)) if seconds >= size), ("µs", 1e-6))


def distribution(
    name: str, title: str, unit: str, whole: npt.NDArray[np.int64], scale: float, bound: float | None
) -> Chart | None:
    """A histogram of whole numbers, `scale` of which are a unit; None where all are the same. `bound` is in seconds."""
    if whole.min() == whole.max():
        return None
    found = histogram(whole, 40)
    rows = [
        {"from": low / scale, "to": high / scale, "queries": count}
        for (low, high), count in zip(pairwise(found.edges), found.counts, strict=True)
    ]
    p50, p90, p99 = np.percentile(whole, (50, 90, 99), method="higher") / scale
    said = " · ".join(f"{word} {short(at)}" for word, at in (("p50", p50), ("p90", p90), ("p99", p99)))
    said = f"{said} · max {short(whole.max() / scale)} {unit}"
    end = found.edges[-1] / scale
    below = f"{unit} (last bar: {short(found.edges[-2] / scale)} and more)" if found.open else unit
    layers = [
        bars(x("from", below, bin="binned"), {"x2": {"field": "to"}}, y("queries", "queries"), color=GOOD),
        *(marked(at, word, unit) for word, at in (("p50", p50), ("p90", p90), ("p99", p99)) if at < end),
    ]
    if bound is not None:
        at = bound * 1e9 / scale
        layers += limit(at, "limit", axis="x") if at <= end else []
        said += f" · limit {short(at)}"
    return Chart(name, finish(panel(rows, layers, width=WIDTH, height=HEIGHT), title, said))


def marked(at: float, name: str, unit: str) -> Spec:
    """A thin line at a percentile."""
    data = {"values": [{"at": at}]}
    mark = {"type": "rule", "color": LIMIT, "strokeDash": [2, 2], "description": f"{name}: {short(at)} {unit}"}
    return {"data": data, "mark": mark, "encoding": {"x": {"field": "at", "type": "quantitative"}}}


def short(value: float) -> str:
    """Three figures or all whole ones: 0.0123, 1.23, 123, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# -- time -------------------------------------------------------------------------------------------------------------


def ends(samples: Table) -> Numbers:
    """When each query ended, seconds from the first one's issue; one without an end was in flight until the last."""
    issued, latency = samples.numbers["issued_s"], samples.numbers["latency_s"]
    done = issued + latency
    last = max(float(np.nanmax(done, initial=0.0)), float(issued.max()))
    return np.asarray(np.where(np.isfinite(done), done, last), np.float64)


def spans(end: float, most: int = SPANS) -> Numbers:
    """Edges of spans of one nice length that hold 0 to `end`; shape (spans + 1,)."""
    step = nice_step(max(end, 1e-6) * 1e9 / most) / 1e9
    count = int(np.floor(end / step * (1 + 1e-12))) + 1
    return np.asarray(np.arange(count + 1) * step, np.float64)


def in_flight(issued: Numbers, done: Numbers, edges: Numbers) -> Numbers:
    """The most queries in flight at once in each span."""
    times = np.concatenate([issued, done])
    change = np.concatenate([np.ones(len(issued)), -np.ones(len(done))])
    order = np.lexsort((-change, times))  # at one moment, what begins before what ends
    times, level = times[order], np.concatenate([[0.0], np.cumsum(change[order])])
    first = np.searchsorted(times, edges[:-1], "left")
    last = np.searchsorted(times, edges[1:], "left")
    return np.array([level[low : high + 1].max() for low, high in zip(first, last, strict=True)])


def over_time(samples: Table, most: int = SPANS) -> list[dict[str, float | None]]:
    """A row per span: rates per second, queries in flight, percentiles of what was issued in it."""
    own = samples.numbers
    issued, done, bad = own["issued_s"], ends(samples), failed(samples)
    edges = spans(float(done.max()), most)
    step = edges[1] - edges[0]
    ended = np.isfinite(own["latency_s"]) & ~bad
    counts = {
        "issued": np.histogram(issued, edges)[0] / step,
        "completed": np.histogram(done[ended], edges)[0] / step,
        "tokens": np.histogram(done[ended], edges, weights=own["output_tokens"][ended])[0] / step,
        "failed": np.histogram(issued[bad], edges)[0],
        "flight": in_flight(issued, done, edges),
    }
    timed = "ttft_s" if np.isfinite(own["ttft_s"][~bad]).any() else "latency_s"
    lows, highs = percentiles(issued[~bad], own[timed][~bad], edges)
    table = {"from": edges[:-1], "to": edges[1:], **counts, "p50": lows, "p99": highs}
    columns = [[value if np.isfinite(value) else None for value in column.tolist()] for column in table.values()]
    return [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]


def percentiles(times: Numbers, values: Numbers, edges: Numbers) -> tuple[Numbers, Numbers]:
    """p50 and p99 of the values of each span; nan for a span without any."""
    right = np.isfinite(values)
    order = np.argsort(times[right], kind="stable")
    times, values = times[right][order], values[right][order]
    parts = np.split(values, np.searchsorted(times, edges[1:-1]))
    pairs = [np.percentile(part, (50, 99), method="higher") if len(part) else (np.nan, np.nan) for part in parts]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def timelines(samples: Table) -> list[Chart]:
    """What happened when, as strips over one axis."""
    rows = over_time(samples)
    if len(rows) < 3:
        return []
    streamed = bool(np.isfinite(samples.numbers["ttft_s"]).any())
    return [Chart("timeline", *(strips(rows, streamed, width) for width in (WIDE, NARROW)))]


def strips(rows: Sequence[Mapping[str, Any]], streamed: bool, width: int) -> Spec:
    high = max((row["p99"] or 0.0 for row in rows), default=0.0)
    unit, scale = unit_of(high)
    rows = [
        {**row, **{name: None if row[name] is None else row[name] / scale for name in ("p50", "p99")}} for row in rows
    ]
    at_once = sum(row["issued"] > 0 for row in rows) == 1
    what = "TTFT" if streamed else "latency"
    issued = [line(MIDDLE, strip("issued"), points=False, color=BAD, interpolate="step-after", strokeWidth=1.5)]
    panels = [
        (
            "completed per second" + (", all issued at the start" if at_once else " (bars), issued per second (line)"),
            [_columns("completed", GOOD), *([] if at_once else issued)],
        ),
        ("in flight, the most at once", [_columns("flight", COLOURS[4])]),
        ("output tokens per second, counted when an answer is complete", [_columns("tokens", COLOURS[2])]),
        (
            f"{what} in {unit} by time of issue: p50 and p99 (orange)",
            [_dotted("p99", COLOURS[5], f"p99, {unit}"), _dotted("p50", GOOD, f"p50, {unit}")],
        ),
    ]
    if any(row["failed"] for row in rows):
        panels.append(("failures by time of issue", [_columns("failed", BAD)]))
    return timeline_of([(title, rows, layers) for title, layers in panels], width, "Over time")


MIDDLE: Spec = {"x": {"field": "from", "type": "quantitative", "axis": None, "scale": {"nice": False}}}
"""The horizontal channel of a line in a strip."""


def timeline_of(panels: Sequence[tuple[str, Sequence[Mapping[str, Any]], list[Spec]]], width: int, title: str) -> Spec:
    """Strips one below the other; the last one has the axis of time."""
    made = []
    for place, (name, rows, layers) in enumerate(panels):
        ticks = {"title": "seconds", "grid": False, "tickCount": width // 80}
        axis = ticks if place == len(panels) - 1 else None
        across = [layer["encoding"] | {"x": layer["encoding"]["x"] | {"axis": axis}} for layer in layers]
        shown = [layer | {"encoding": encoding} for layer, encoding in zip(layers, across, strict=True)]
        part = panel(rows, shown, name, width=width, height=STRIP)
        part["title"] |= {"fontSize": 11, "fontWeight": "normal", "offset": 4}
        made.append(part)
    return finish({"vconcat": made, "spacing": 14, "resolve": {"scale": {"color": "independent"}}}, title)


def strip(name: str) -> Spec:
    """A strip's vertical channel; all axes are of one width, so that the strips stand in line."""
    axis = {"title": None, "tickCount": 3, "minExtent": 42, "maxExtent": 42, "format": "~s"}
    return {"y": {"field": name, "type": "quantitative", "axis": axis}}


def _columns(name: str, fill: str) -> Spec:
    span = {"x": {"field": "from", "type": "quantitative", "bin": "binned", "scale": {"nice": False}}}
    return bars(span, {"x2": {"field": "to"}}, strip(name), color=fill, binSpacing=0)


def _dotted(name: str, ink: str, said: str) -> Spec:
    up = strip(name)
    up["y"]["title"] = said
    return line(MIDDLE, up, color=ink, strokeWidth=1.5, point={"size": 12, "color": ink})


# -- replicas ---------------------------------------------------------------------------------------------------------


def by_replica(samples: Table) -> list[Chart]:
    """Who did how much when, and how quickly; nothing for one replica alone."""
    names = sorted({name for name in samples.words["replica"] if name is not None}, key=natural)
    if len(names) < 2:
        return []
    work = Chart("replicas", *(replica_map(samples, names, width) for width in (WIDE, NARROW)))
    return [work] + ([replica_times(samples, names)] if len(names) <= _NAMED else [])


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts vllm-2 before vllm-10."""
    words = "".join(char if char.isdigit() else f" {char} " for char in name).split()
    return [(int(word), "") if word.isdecimal() and word.isascii() else (-1, word) for word in words]


def replica_map(samples: Table, names: Sequence[str], width: int) -> Spec:
    """Tokens per second of each replica over time: one that idles, lags or dies is seen at once."""
    own, done = samples.numbers, ends(samples)
    edges = spans(float(done.max()), max(10, min(SPANS // 2, _CELLS // len(names))))
    step = edges[1] - edges[0]
    number = {name: place for place, name in enumerate(names)}
    places = np.array([number.get(name, -1) if name is not None else -1 for name in samples.words["replica"]])
    right = (places >= 0) & np.isfinite(own["latency_s"]) & ~failed(samples)
    table = np.histogram2d(
        places[right], done[right], [np.arange(len(names) + 1) - 0.5, edges], weights=own["output_tokens"][right]
    )[0]
    rows = [
        {"replica": name, "from": low, "to": high, "tokens": value / step}
        for name, values in zip(names, table.tolist(), strict=True)
        for (low, high), value in zip(pairwise(edges.tolist()), values, strict=True)
    ]
    few = len(names) <= _NAMED
    layer = bars(
        x("from", "seconds", bin="binned", scale={"nice": False}, axis={"grid": False, "tickCount": width // 80}),
        {"x2": {"field": "to"}},
        y("replica", "", "nominal", sort=list(names), axis={"labels": few, "ticks": few, "grid": False}),
        colour("tokens", "tokens/s", "quantitative", scale={"range": ["#edf2f6", GOOD], "domainMin": 0}),
        binSpacing=0,
    )
    height = max(60, min(360, 24 * len(names)))
    plot = panel(rows, [layer], width=width - 40, height=height)
    return finish(plot, "Work by replica", "output tokens per second, counted when an answer is complete")


def replica_times(samples: Table, names: Sequence[str]) -> Chart:
    """From p50 to p99 of each replica."""
    own, bad = samples.numbers, failed(samples)
    timed = "ttft_s" if np.isfinite(own["ttft_s"][~bad]).any() else "latency_s"
    column = np.where(bad, np.nan, own[timed])
    held = np.array([name or "" for name in samples.words["replica"]])
    found = {name: column[(held == name) & np.isfinite(column)] for name in names}
    unit, scale = unit_of(max((float(np.percentile(part, 99)) for part in found.values() if len(part)), default=0.0))
    rows = [
        dict(
            zip(
                ("replica", "p50", "p99"),
                (name, *(np.percentile(part, (50, 99), method="higher") / scale)),
                strict=True,
            )
        )
        for name, part in found.items()
        if len(part)
    ]
    along = y("replica", "", "nominal", sort=list(names), axis={"grid": False})
    between = {"mark": {"type": "rule", "strokeWidth": 3, "color": COLOURS[4]}, "encoding": {
        **x("p50", unit, scale={"zero": True}), "x2": {"field": "p99"}, **along}}  # fmt: skip
    layers = [
        between,
        dots(x("p50", unit), along, color=GOOD, size=60),
        dots(x("p99", unit), along, color=COLOURS[5], size=60),
    ]
    what = "Time to first token" if timed == "ttft_s" else "Latency"
    plot = panel(rows, layers, width=WIDTH - 30, height=max(60, 22 * len(names)))
    return Chart("replica-times", finish(plot, f"{what} by replica", f"p50 (blue) to p99 (orange), {unit}"))
