"""How throughput and latency go with the load: rates that LoadGen offers (an open loop: Server, Interactive), or
queries in flight (a closed loop: Offline with a cap), from calm to saturated, on one SUT.

The knee is the point with the most throughput per latency, Kleinrock's power ("Power and deterministic rules of thumb
for probabilistic problems in computer communications", ICC 1979; Jain, The Art of Computer Systems Performance
Analysis, 1991, 3.3): up to it a further percent of throughput costs less than a percent of latency, beyond it more. It
needs no scale and no smoothing, so a few points do, and a point deep in saturation does not move it, as it does
Kneedle's (which divides by the range that was measured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Any

import numpy as np

from harness.benchmarks import Number
from harness.conf import round_settings
from harness.config import RunConfig, resolve_settings
from harness.figures import LIMIT, Spec, colour, dots, limit, line, panel, stack, x, y
from harness.progress import Progress, clock
from harness.report import readable
from harness.results import RunResult, summarise
from harness.studies.findings import Column, Findings
from harness.studies.rig import Rig
from harness.tables import parquet_columns
from sut.errors import ConfigError

Row = dict[str, Any]

LONGEST = 60.0
"""Seconds of a point by default, where the benchmark's own tests last longer: a curve is no submission."""

RATE_QUERIES = 512
"""Queries of a rate by default: of fewer than 459, LoadGen calls none VALID (loadgen/early_stopping.cc, 99 %)."""

LOOP_SECONDS, LOOP_QUERIES, PER_PLACE = 30.0, 64, 10
"""A closed loop by default: the seconds aimed at, the queries at least, and at least so many for each one in flight:
its beginning and its end, with fewer in flight, then weigh little."""

MOST_QUERIES = 5_000_000
"""LoadGen makes all queries of a test beforehand, some 200 bytes each."""

MOST_POINTS, USUAL_POINTS, STEP, DOWN = 16, 10, 2.0, 4.0
"""`auto`: at most so many points, each twice the load of the last; where the first is too much, a quarter of it."""

FEWEST = 3
"""Points that a knee needs."""

GROWTH, SLOWER = 1.15, 2.0
"""Beyond saturation: four times the load brings less than this times the throughput, and takes longer than this."""


@dataclass(frozen=True)
class Sweep:
    """What is asked. `loads`: queries/s, or queries in flight where `closed`; None to find them, from `start` on.
    A point has `queries` at least and lasts `seconds`: at least where rates are offered, about where the loop is
    closed."""

    closed: bool
    loads: tuple[float, ...] | None
    start: float
    seconds: float
    queries: int

    @property
    def question(self) -> dict[str, Any]:
        loads = "auto" if self.loads is None else list(self.loads)
        return {self.axis: loads, "seconds": self.seconds, "queries": self.queries}

    @property
    def axis(self) -> str:
        return "concurrency" if self.closed else "rates"

    @property
    def unit(self) -> str:
        return "in flight" if self.closed else "queries/s"

    def name(self, load: float) -> str:
        """A point's name, and its folder's."""
        return f"{'concurrency' if self.closed else 'rate'}-{load:.12g}"


def plan(
    config: RunConfig, loads: Sequence[float] | None, seconds: float | None, queries: int | None
) -> tuple[Sweep, RunConfig]:
    """The sweep of a configuration that is resolved, and the configuration that all its points share: they set the same
    keys, and ask as many queries as they are told instead of whole passes over the samples.

    Raises ConfigError for a load that nobody could offer.
    """
    closed = config.concurrency is not None
    own = {**round_settings(config.loadgen_model, config.loadgen_scenario), **config.settings}
    usual = LOOP_SECONDS if closed else min(LONGEST, own.get("min_duration", 10_000) / 1000)
    asked = Sweep(
        closed=closed,
        loads=None if loads is None else tuple(sorted(loads)),
        start=1.0 if closed else max(own.get("target_qps", 4.0) / 4, 0.01),
        seconds=usual if seconds is None else seconds,
        queries=(LOOP_QUERIES if closed else RATE_QUERIES) if queries is None else queries,
    )
    for load in asked.loads or ():
        if load * (PER_PLACE if closed else asked.seconds) > MOST_QUERIES:
            raise ConfigError(f"{load:g} {asked.unit} would be more than {MOST_QUERIES:,} queries: ask for less.")
    fixed: dict[str, Number] = {
        "min_duration": 0 if closed else round(asked.seconds * 1000),
        "min_query_count": asked.queries,
        "sample_concatenate_permutation": 0,
    }
    if not closed:
        fixed["target_qps"] = asked.loads[0] if asked.loads else asked.start
    return asked, replace(config, settings={**config.settings, **fixed})


def announce(asked: Sweep) -> str:
    """What will be done, and how long it will take as far as it is known."""
    if asked.loads is None:
        loads = [asked.start * STEP**step for step in range(USUAL_POINTS)]
        whole = sum(asked.seconds if asked.closed else max(asked.seconds, asked.queries / load) for load in loads)
        return (
            f"Points from {asked.start:g} {asked.unit} on, each twice the last, until throughput no longer grows: "
            f"{clock(asked.seconds)} each or more; if it takes {USUAL_POINTS}, about {clock(whole)} in all."
        )
    points = f"{len(asked.loads)} point{'s' * (len(asked.loads) > 1)}"
    if asked.closed:
        return f"{points}, about {clock(asked.seconds)} each: about {clock(len(asked.loads) * asked.seconds)}."
    shortest = sum(max(asked.seconds, asked.queries / rate) for rate in asked.loads)
    return f"{points}: {clock(shortest)}, and longer by what queues up beyond saturation."


def run_sweep(asked: Sweep, config: RunConfig, rig: Rig, progress: Progress) -> Findings:
    """Run all points, or take up those that are done. Raises KeyboardInterrupt, ConfigError and SetupError as the rig
    does."""
    rows: list[Row] = []
    while (load := next_load(asked, rows)) is not None:
        progress.say(f"{load:g} {asked.unit} …")
        settings, changes = changes_of(asked, load, rows)
        result = rig.point(asked.name(load), settings, **changes)
        row = row_of(result, asked.name(load), load)
        rows = sorted([*rows, row], key=lambda other: float(other["load"]))
        progress.say(f"{load:g} {asked.unit}: {summary(row)}")
    return find(asked, config, rows)


def changes_of(asked: Sweep, load: float, rows: Sequence[Row]) -> tuple[dict[str, Number], dict[str, Any]]:
    """What one point has of its own: LoadGen's keys, and other fields of its configuration."""
    if asked.closed:
        return {"min_query_count": loop_queries(asked, load, rows)}, {"concurrency": int(load)}
    return {"target_qps": load}, {}


def loop_queries(asked: Sweep, load: float, rows: Sequence[Row]) -> int:
    """How many queries last the seconds asked with so many in flight: as many as if throughput grew with the load from
    the point below, so at least that long; twice as long where it no longer grows."""
    least = max(asked.queries, ceil(PER_PLACE * load))
    below = [row for row in rows if row["measured"] and row["load"] < load]
    if not below:
        return least
    rate: float = below[-1]["samples_per_second"] * load / below[-1]["load"]
    return max(least, min(MOST_QUERIES, ceil(rate * asked.seconds)))


# -- which points -----------------------------------------------------------------------------------------------------


def next_load(asked: Sweep, rows: Sequence[Row]) -> float | None:
    """The next point, by what is known of others (in order of load); None when there is none."""
    if asked.loads is not None:
        return asked.loads[len(rows)] if len(rows) < len(asked.loads) else None
    if not rows:
        return asked.start
    if len(rows) >= MOST_POINTS or not any(row["measured"] for row in rows):
        return None
    lowest, highest = rows[0], rows[-1]
    if not asked.closed and overloaded(lowest) and lowest["load"] > asked.start / DOWN**3:
        return float(lowest["load"] / DOWN)
    if not saturated(rows, asked.closed):
        return float(highest["load"] * STEP)
    found = between(asked, rows)
    few = sum(row["measured"] for row in rows) < FEWEST and highest["measured"]
    return float(highest["load"] * STEP) if found is None and few else found


def overloaded(row: Row) -> bool:
    """Whether a rate is more than what was served, also when the time of the last answers is allowed for."""
    if not row["measured"]:
        return False
    served = row["queries"] / (row["issue_span_s"] + row["latency_mean_s"])
    return bool(row["samples_per_second"] < 0.9 * served)


def saturated(rows: Sequence[Row], closed: bool) -> bool:
    """Whether the highest point lies beyond saturation, or so far that queries fail: two steps have brought hardly more
    and taken longer, or both rates were more than what was served. One step may be a dip of a noisy machine."""
    last = rows[-1]
    if not last["measured"]:
        return True
    one = [row for row in rows if row["measured"] and row["load"] <= last["load"] / STEP * 1.01]
    two = [row for row in one if row["load"] <= last["load"] / STEP**2 * 1.01]
    if one and not closed and overloaded(one[-1]) and overloaded(last):
        return True
    if not two:
        return False
    before = max(row["samples_per_second"] for row in two)
    reached = max(last["samples_per_second"], one[-1]["samples_per_second"])
    return bool(reached < GROWTH * before and last["latency_mean_s"] > SLOWER * two[-1]["latency_mean_s"])


def between(asked: Sweep, rows: Sequence[Row]) -> float | None:
    """A point half-way (in ratio) to a neighbour of the knee that is still far from it; without a knee, below the
    highest."""
    best = knee(rows)
    place = rows.index(best) if best is not None else len(rows) - 1
    for low, high in ((place - 1, place), (place, place + 1)):
        if low >= 0 and high < len(rows) and rows[high]["load"] > 1.5 * rows[low]["load"]:
            middle = sqrt(rows[low]["load"] * rows[high]["load"])
            middle = float(round(middle)) if asked.closed else float(f"{middle:.3g}")
            if rows[low]["load"] < middle < rows[high]["load"]:
                return middle
    return None


def knee(rows: Sequence[Row]) -> Row | None:
    """The point with the most throughput per latency; None of fewer than three. What the harness itself has slowed
    down is no point of the system's."""
    fit = [row for row in rows if row["power"] is not None and not row["client_limited"]]
    return max(fit, key=lambda row: float(row["power"])) if len(fit) >= FEWEST else None


# -- what a point came to ---------------------------------------------------------------------------------------------


def row_of(result: RunResult, point: str, load: float) -> Row:
    """One point: rates per second and minute, seconds. `measured` says whether its figures mean anything: a test that
    came to its end, without a failed query or an error of LoadGen's."""
    failures = result["failures"]["count"]
    measured = result["status"] == "complete" and not failures and not result["loadgen"]["errors"]
    metrics = result["metrics"] if measured else {}  # of what is not measured, no figure is shown
    rate = metrics.get("samples_per_second")
    row: Row = {
        "point": point,
        "load": load,
        "measured": measured,
        "loadgen": result["loadgen"]["verdict"] or "–",
        "valid": result["valid"],
        "client_limited": result["client_limited"],
        "why": " ".join("; ".join(result["invalid_reasons"]).split()),
        "queries": result["queries"],
        "failures": failures,
        "duration_s": result["duration_s"],
        "source": metrics.get("source"),
        "samples_per_second": rate,
        "requests_per_minute": None if rate is None else 60 * rate,
        "tokens_per_second": metrics.get("tokens_per_second"),
    }
    for name in ("ttft", "tpot", "itl", "latency"):
        values = metrics.get(f"{name}_s") or {}
        row |= {f"{name}_{key}_s": values.get(key) for key in ("mean", "p50", "p90", "p99")}
    row["itl_known_share"] = metrics.get("itl_known_share")
    row |= normalised(result) if measured else dict.fromkeys(NORMALISED)
    latency = row["latency_mean_s"]
    row["power"] = rate / latency if rate is not None and latency else None
    return row


NORMALISED = (
    "per_output_token_mean_s",
    "per_output_token_p99_s",
    "per_token_mean_s",
    "per_token_p99_s",
    "total_tokens_per_second",
    "issue_span_s",
)


def normalised(result: RunResult) -> Row:
    """What the run's own rows say, one for each query: normalised latency both ways in use, over the output tokens
    (Orca, OSDI 2022; vLLM, SOSP 2023) and over input and output tokens, as in vLLM's first measurements; the rate of
    both kinds of tokens; and how long queries were issued. Raises SetupError for rows that are damaged."""
    names = ("issued_s", "latency_s", "input_tokens", "output_tokens")
    table = parquet_columns(result.folder / "samples.parquet", names)
    issued, latency, given, output = (table[name].to_numpy() for name in names)
    tokens = given + output
    over_output, over_all = summarise(latency / np.maximum(output, 1)), summarise(latency / np.maximum(tokens, 1))
    share = float(tokens.sum() / output.sum()) if output.sum() else 0.0
    values = (
        *(over_output.get("mean"), over_output.get("p99"), over_all.get("mean"), over_all.get("p99")),
        *(share * result["metrics"]["tokens_per_second"], float(issued.max())),
    )
    return dict(zip(NORMALISED, values, strict=True))


def summary(row: Row) -> str:
    if not row["measured"]:
        return f"not measured: {row['why']}"
    return f"{row['samples_per_second']:,.1f} samples/s, latency {readable(row['latency_mean_s'])}, {row['loadgen']}"


# -- what was found ---------------------------------------------------------------------------------------------------


def find(asked: Sweep, config: RunConfig, rows: Sequence[Row]) -> Findings:
    best = knee(rows)
    marked = [{**row, "mark": mark(row, best, disturbed(row, rows))} for row in rows]
    bounds = limits(config)
    return Findings(
        "sweep",
        headline(asked, rows, best),
        columns(asked, rows),
        marked,
        notes(asked, rows, bounds),
        draw(asked, config, rows, best, bounds) if any(row["measured"] for row in rows) else None,
        {"axis": asked.axis, "knee": None if best is None else best["load"], "limits": bounds},
    )


def disturbed(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a point took at least twice as long as one of a higher load: it was not the load."""
    return bool(row["measured"]) and any(
        other["measured"] and other["load"] > row["load"] and row["latency_mean_s"] > 2 * other["latency_mean_s"]
        for other in rows
    )


def mark(row: Row, best: Row | None, odd: bool) -> str:
    """What the table says beside a point."""
    words = ["knee"] if row is best else []
    words += ["client-limited"] if row["client_limited"] else []
    words += ["disturbed"] if odd else []
    return ", ".join(words + ([] if row["measured"] else ["not measured"]))


def limits(config: RunConfig) -> dict[str, float]:
    """The 99th percentiles that LoadGen allows, in seconds, as far as the benchmark has such limits; a closed loop is
    looked at beside those of Server, since Offline has none."""
    if config.concurrency is None:
        known = {**round_settings(config.loadgen_model, "Server"), **config.settings}
    else:
        key = config.row.model_key("Server")
        known = round_settings(key, "Server") | resolve_settings(config.row, "Server", {}, {})
    return {name: known[f"{name}_latency"] / 1000 for name in ("ttft", "tpot") if known.get(f"{name}_latency")}


def headline(asked: Sweep, rows: Sequence[Row], best: Row | None) -> str:
    fit = [row for row in rows if row["measured"]]
    if not fit:
        return "No point could be measured."
    if best is None:
        said = "Too few points for a knee."
    else:
        edge = " or below" if best is fit[0] else " or above" if best is fit[-1] else ""
        said = f"The knee lies at{edge} {best['load']:g} {asked.unit}: {figures(best)}."
    most = max(fit, key=lambda row: float(row["samples_per_second"]))
    said += f" Most: {most['samples_per_second']:,.1f} samples/s, at {most['load']:g} {asked.unit}."
    if asked.closed:
        return said
    highest = max((row["load"] for row in rows if row["valid"]), default=None)
    if highest is None:
        return f"{said} LoadGen calls none VALID."
    gaps = any(row["load"] < highest and not row["valid"] for row in rows)
    return f"{said} LoadGen calls {highest:g} VALID, and nothing above{', but not all below' * gaps}."


def figures(row: Row) -> str:
    text = f"{row['samples_per_second']:,.1f} samples/s, {row['tokens_per_second']:,.0f} tokens/s"
    return text + (f", TTFT p99 {readable(row['ttft_p99_s'])}" if row["ttft_p99_s"] is not None else "")


def notes(asked: Sweep, rows: Sequence[Row], bounds: Mapping[str, float]) -> list[str]:
    """What a reader must know beside the table."""
    said = ["knee: the most throughput per latency; per token: mean latency of a query over its output / all tokens."]
    if not any(row["itl_p99_s"] for row in rows):
        said.append(
            "TPOT is a query's mean time per token after the first. The time between two tokens is not known: "
            "--stream-interval 1 measures it on engines in this process."
        )
    elif (share := min(row["itl_known_share"] or 1.0 for row in rows)) < 0.99:
        said.append(f"Inter-token latency is known for {share:.0%} of the tokens or more: others shared a frame.")
    if asked.closed:
        said.append(
            "A closed loop: figures by the harness, from each query's release; LoadGen's VALID has no limits here"
            + (f" (Server's: {shown(bounds)})." if bounds else ".")
        )
    elif bounds:
        said.append(f"LoadGen's limits at p99: {shown(bounds)}.")
    if any(row["client_limited"] for row in rows):
        said.append("client-limited: the harness itself was in the way there, so its figures are not the system's.")
    if any(disturbed(row, rows) for row in rows):
        said.append(
            "disturbed: twice as slow as a higher load or worse, so it was not the load. Without its folder, the same "
            "command measures it again."
        )
    bad = [row for row in rows if not row["valid"]]
    said += [f"{row['load']:g} {asked.unit}: {row['why']}" for row in bad[:2]]
    if len(bad) > 2:
        said.append(f"{len(bad) - 2} more points are not VALID: findings.json says why of each.")
    return said


def shown(bounds: Mapping[str, float]) -> str:
    return ", ".join(f"{name.upper()} {readable(value)}" for name, value in bounds.items())


def columns(asked: Sweep, rows: Sequence[Row]) -> list[Column]:
    itl = [Column("itl_p50_s", "ITL p50", readable), Column("itl_p99_s", "p99", readable)]
    return [
        Column("load", asked.unit, ",g"),
        Column("samples_per_second", "samples/s", ",.2f"),
        Column("requests_per_minute", "per min", ",.0f"),
        Column("tokens_per_second", "tokens/s", ",.0f"),
        Column("ttft_p50_s", "TTFT p50", readable),
        Column("ttft_p99_s", "p99", readable),
        Column("tpot_p50_s", "TPOT p50", readable),
        Column("tpot_p99_s", "p99", readable),
        *(itl if any(row["itl_p99_s"] for row in rows) else []),
        Column("latency_mean_s", "latency", readable),
        Column("per_output_token_mean_s", "per token: output", readable),
        Column("per_token_mean_s", "all", readable),
        Column("loadgen", "LoadGen"),
        Column("mark", ""),
    ]


# -- the figure -------------------------------------------------------------------------------------------------------

STATES = {"VALID": "circle", "INVALID": "cross", "client-limited": "triangle-up", "disturbed": "diamond"}

Series = Sequence[tuple[str, str]]
"""Lines of a panel: what each is called, and the rows' key."""


def draw(asked: Sweep, config: RunConfig, rows: Sequence[Row], best: Row | None, bounds: Mapping[str, float]) -> Spec:
    """TTFT, TPOT, normalised latency and throughput over the load; then latency over throughput both ways."""
    fit = [{**row, "state": state(row, rows)} for row in rows if row["measured"]]
    offered = "queries in flight" if asked.closed else "offered load, queries/s"
    at = [] if best is None else limit(best["load"], "knee", "x")
    itl: Series = [("ITL p99", "itl_p99_s")] if any(row["itl_p99_s"] for row in fit) else []
    ttft: Series = [("TTFT p50", "ttft_p50_s"), ("TTFT p99", "ttft_p99_s")]
    tpot: Series = [("TPOT p50", "tpot_p50_s"), ("TPOT p99", "tpot_p99_s")]
    over: Series = [("over output tokens", "per_output_token_mean_s"), ("over all tokens", "per_token_mean_s")]
    curve: Series = [("TTFT p99", "ttft_p99_s"), ("TPOT p99", "tpot_p99_s"), *over]
    reach: Series = [("samples/s", "samples_per_second")]
    whose = "Server's limit" if asked.closed else "limit"

    def bound(name: str) -> list[Spec]:
        return limit(bounds[name], f"{whose}, p99") if name in bounds else []

    panels = [
        one_panel(fit, "load", offered, ttft, "Time to first token, s", [*bound("ttft"), *at]),
        one_panel(fit, "load", offered, [*tpot, *itl], "Time per output token, s", [*bound("tpot"), *at]),
        one_panel(fit, "load", offered, over, "Normalised latency, mean, s per token", at),
        one_panel(fit, "load", offered, reach, "Throughput, samples/s", at),
        one_panel(fit, "requests_per_minute", "requests/min", curve, "Latency over throughput, s", [], "linear"),
        one_panel(fit, "tokens_per_second", "tokens/s", curve, "Latency over throughput, s", [], "linear"),
    ]
    kind = "closed loop" if asked.closed else "open loop"
    subtitle = f"{config.benchmark}, {config.scenario} ({kind}), {config.replicas} × {config.backend}"
    return stack(panels, "Throughput and latency by load", subtitle, columns=2)


def state(row: Row, rows: Sequence[Row]) -> str:
    """What a point's shape says: LoadGen's verdict, unless its figures are not the system's."""
    if row["client_limited"]:
        return "client-limited"
    return "disturbed" if disturbed(row, rows) else str(row["loadgen"])


def one_panel(
    rows: Sequence[Row], across: str, title: str, series: Series, name: str, more: Sequence[Spec], scale: str = "log"
) -> Spec:
    """Lines over one key of the rows, each point shaped by its state. Logarithmic, since loads are geometric
    and latencies explode; over throughput the first line's points say their load."""
    long = [
        {"x": row[across], "y": row[key], "line": label, "state": row["state"], "load": row["load"]}
        for row in rows
        for label, key in series
        if row[key]
    ]
    shapes = {"domain": list(STATES), "range": list(STATES.values())}
    channels = [
        x("x", title, scale={"type": scale, "nice": False, "zero": False, "padding": 16}),
        y("y", "", scale={"type": "log"}, axis={"title": None}),
        {"order": {"field": "load"}},
    ]
    if len(series) > 1:  # all panels share one legend, of as many lines as there are colours
        channels.append(colour("line", legend={"title": None, "orient": "bottom"}))
    shape = {"shape": {"field": "state", "type": "nominal", "scale": shapes, "legend": {"title": None}}}
    layers = [line(*channels, points=False), dots(*channels, shape, size=70), *more]
    if scale == "linear":
        text = {"text": {"field": "load", "type": "quantitative", "format": "~g"}}
        own = {"data": {"values": [row for row in long if row["line"] == series[0][0]]}}
        mark = {"type": "text", "dx": -5, "dy": -8, "align": "right", "fontSize": 10, "color": LIMIT}
        layers.append(own | {"mark": mark, "encoding": channels[0] | channels[1] | text})
    return panel(long, layers, name, width=430, height=240)
