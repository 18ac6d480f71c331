"""Charts of timeline.parquet: what replicas, devices and the client said of themselves, a strip for each metric.

The file is in long form (harness/telemetry.py). What it has is drawn: metrics that are unknown here as they are, and
not those that samples.parquet tells more exactly, nor one that is nought throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from harness.figures import COLOURS, Spec, colour, line
from harness.page.charts import MIDDLE, NARROW, WIDE, Chart, charts, natural, spans, strip, timeline_of
from harness.page.source import Numbers, Run, Table


class Metric(NamedTuple):
    """How a metric is drawn: its title, a factor, and whether it is a counter, whose growth per second is drawn."""

    title: str
    factor: float = 1.0
    counter: bool = False


KNOWN = {
    ("replica", "running"): Metric("requests running"),
    ("replica", "waiting"): Metric("requests waiting"),
    ("replica", "kv_cache_usage"): Metric("KV cache in use, %", 100),
    ("replica", "preemptions"): Metric("preemptions per second", counter=True),
    ("replica", "prompt_tokens"): Metric("prompt tokens per second", counter=True),
    ("replica", "generation_tokens"): Metric("generated tokens per second", counter=True),
    ("gpu", "utilisation"): Metric("device busy, %", 100),
    ("gpu", "memory_bytes"): Metric("device memory, GB", 1e-9),
    ("gpu", "power_w"): Metric("device power, W"),
    ("gpu", "clock_mhz"): Metric("device clock, MHz"),
    ("gpu", "temperature_c"): Metric("device temperature, °C"),
    ("client", "cpu"): Metric("harness CPU, cores"),
    ("client", "loop_cpu"): Metric("harness loop CPU, cores (of 1)"),
    ("client", "loop_lag_s"): Metric("harness loop late by, ms", 1e3),
    ("host", "cpu"): Metric("machine CPU busy, %", 100),
}
"""In the order in which they are drawn."""

_TOLD = {"in_flight", "held", "completed", "failures", "answer_tokens", "serving", "queued", "issued", "energy_j"}
_TOLD |= {"memory_utilisation", "memory_clock_mhz"}

_MOST = 24
"""Strips, at most."""


def pictures(run: Run) -> list[Chart]:
    """All charts of a run: of its samples, and of its telemetry where there is any."""
    return charts(run) + ([] if run.telemetry is None else gauges(run.telemetry))


def gauges(table: Table) -> list[Chart]:
    """One chart of all strips; none where there is nothing to draw."""
    panels = list(panels_of(table))[:_MOST]
    if not panels:
        return []
    return [Chart("telemetry", *(timeline_of(panels, width, "Telemetry") for width in (WIDE, NARROW)))]


def kind_of(source: str) -> str:
    """replica, gpu, client or host."""
    return "gpu" if source.startswith("gpu-") else source if source in ("client", "host") else "replica"


def panels_of(table: Table) -> Iterator[tuple[str, list[dict[str, Any]], list[Spec]]]:
    """(title, rows, layers) of each strip."""
    times, values = table.numbers["time_s"], table.numbers["value"]
    right = np.isfinite(times) & np.isfinite(values)
    if not right.any():
        return
    edges = spans(max(0.0, float(times[right].max())))
    places: dict[tuple[str, str], dict[str, list[int]]] = {}
    for place in np.flatnonzero(right).tolist():
        source, metric = table.words["source"][place] or "", table.words["metric"][place] or ""
        places.setdefault((kind_of(source), metric), {}).setdefault(source, []).append(place)
    order = [key for key in KNOWN if key in places]
    order += [key for key in places if key not in KNOWN and key[1] not in _TOLD]
    for key in order:
        how = KNOWN.get(key) or Metric(f"{key[0]} {key[1].replace('_', ' ')}")
        series = {name: (times[own], values[own] * how.factor) for name, own in places[key].items()}
        if how.counter:
            series = {name: growth(*points) for name, points in series.items()}
        if any(points[1].any() for points in series.values()):
            yield panel_of(how.title, series, edges)


def panel_of(
    title: str, series: dict[str, tuple[Numbers, Numbers]], edges: Numbers
) -> tuple[str, list[dict[str, Any]], list[Spec]]:
    """A line for each source; of more than there are colours, their mean."""
    names = sorted(series, key=natural)
    if len(names) > len(COLOURS):
        both = [np.concatenate([series[name][part] for name in names]) for part in (0, 1)]
        names, series = [f"mean of {len(names)}"], {f"mean of {len(names)}": (both[0], both[1])}
    rows = [{"source": name, "from": at, "value": value} for name in names for at, value in means(*series[name], edges)]
    said = title if names in (["client"], ["host"]) else f"{title} ({', '.join(names)})"
    ink = colour("source", "", legend=None, scale={"domain": names, "range": list(COLOURS[: len(names)])})
    return said, rows, [line(MIDDLE, strip("value"), ink, points=False, strokeWidth=1.5)]


def growth(times: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """A counter's growth per second, at the end of each interval; one that falls has been started anew."""
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    steps = np.diff(times)
    right = steps > 0
    return times[1:][right], np.maximum(np.diff(values)[right], 0) / steps[right]


def means(times: Numbers, values: Numbers, edges: Numbers) -> Sequence[tuple[float, float]]:
    """(beginning, mean) of each span that has a value."""
    counts, sums = np.histogram(times, edges)[0], np.histogram(times, edges, weights=values)[0]
    return [(at, total / count) for at, total, count in zip(edges.tolist(), sums, counts, strict=False) if count]
