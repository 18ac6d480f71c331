"""Layouts: the same work on the same devices in different shapes, each a run in a process of its own.

Each layout is asked in Offline for its throughput and, where another scenario is asked for, in that one for its
latencies under load; with `accuracy` also for its answers. Repeats alternate (A B A B): what drifts on a machine then
hits all alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from harness import accuracy, drift
from harness.benchmarks import find
from harness.figures import COLOURS, Spec, bars, colour, dots, figure, line, x, y
from harness.progress import Progress
from harness.report import readable
from harness.results import RunResult
from harness.studies.findings import Column, Findings
from harness.studies.front import DOMINATED, FRONT, NEAR, Aim, Standing, mean, stand
from harness.studies.rig import run_apart
from harness.studies.study import Study
from harness.studies.variants import Variant, device_count, merge, resolve_variant
from sut.errors import SetupError
from sut.guard import Guard

WORK = (
    "scenario",
    "benchmark",
    "dataset",
    "samples",
    "user_conf",
    "target_qps",
    "min_duration",
    "min_queries",
    "concurrency",
)
"""Options that say what the work is: the same for all layouts."""

OFFLINE, ACCURACY = "Offline", "accuracy"


@dataclass(frozen=True)
class Plan:
    """What is asked. `tests` are the options of each kind of run by its name, `noise` the share by which single runs
    differ by chance."""

    layouts: Sequence[Variant]
    tests: Mapping[str, Mapping[str, Any]]
    scenario: str
    repeats: int
    noise: float


class Point(NamedTuple):
    """One run: a layout, a kind of test, which repeat."""

    layout: Variant
    test: str
    repeat: int

    @property
    def name(self) -> str:
        return f"{self.layout.slug}-{self.test.lower()}-{self.repeat}"


@dataclass
class Measured:
    """What a layout's runs came to, by kind of test, and why there are no more of them."""

    layout: Variant
    devices: int
    runs: dict[str, list[RunResult]] = field(default_factory=dict)
    trouble: str | None = None

    def good(self, test: str) -> list[RunResult]:
        """The valid runs of a kind; if there is none, those that came to their end all the same."""
        runs = self.runs.get(test, [])
        return [run for run in runs if run["valid"]] or [run for run in runs if run["status"] == "complete"]

    def valid(self, tests: Sequence[str]) -> bool:
        """Whether each kind of test has a valid run."""
        return all(any(run["valid"] for run in self.runs.get(test, [])) for test in tests)


# -- what is to be run ------------------------------------------------------------------------------------------------


def plan_tests(
    common: Mapping[str, Any], offline: bool, with_accuracy: bool, offline_qps: float | None
) -> dict[str, dict[str, Any]]:
    """The options of each kind of run. Rates and durations are the scenario's; Offline beside it has its own rate, and
    accuracy asks each sample once."""
    scenario = common["scenario"]
    tests = {scenario: dict(common)}
    plain = {key: value for key, value in common.items() if key not in ("target_qps", "min_duration", "min_queries")}
    plain |= {"scenario": OFFLINE}
    if offline and scenario != OFFLINE:
        tests = {OFFLINE: plain | {"target_qps": offline_qps}, **tests}
    elif offline_qps is not None and scenario == OFFLINE:
        tests[scenario]["target_qps"] = offline_qps
    return tests | ({ACCURACY: plain | {"mode": "accuracy"}} if with_accuracy else {})


def leave_out(layouts: Sequence[Variant], common: Mapping[str, Any], devices: int | None) -> list[Variant]:
    """The layouts, with a reason for those that do not take the devices that are to be compared. Raises ConfigError for
    options that cannot be honoured."""
    judged = []
    for layout in layouts:
        taken = device_count(resolve_variant(common, layout))
        odd = devices is not None and taken != devices
        judged.append(
            replace(layout, reason=f"takes {taken} device{'s' * (taken > 1)}, not {devices}" if odd else None)
        )
    return judged


def schedule(plan: Plan) -> list[Point]:
    """All runs in order: kinds and layouts in turn within a repeat; accuracy, which repeats say nothing of, last."""
    layouts = [layout for layout in plan.layouts if layout.reason is None]
    timed = [test for test in plan.tests if test != ACCURACY]
    points = [Point(layout, t, number + 1) for number in range(plan.repeats) for t in timed for layout in layouts]
    return points + [Point(layout, ACCURACY, 1) for layout in layouts if ACCURACY in plan.tests]


# -- running ----------------------------------------------------------------------------------------------------------


def run_layouts(study: Study, plan: Plan, progress: Progress) -> Findings:
    """Run what is not run yet. Raises KeyboardInterrupt."""
    common = plan.tests[plan.scenario]
    measured = {
        layout.name: Measured(layout, device_count(resolve_variant(common, layout)), trouble=layout.reason)
        for layout in plan.layouts
    }
    with closing(Guard()):  # a run's process does not outlive the study, however that ends
        for point in schedule(plan):
            own = measured[point.layout.name]
            if own.trouble is None:
                run_point(study, point, plan, own, progress)
    return conclude(plan, list(measured.values()))


def run_point(study: Study, point: Point, plan: Plan, own: Measured, progress: Progress) -> None:
    """One run of a layout; one that cannot start is not tried again in this study."""
    options = merge(plan.tests[point.test], point.layout.options)
    apart = run_apart(study, point.name, options, progress, point.layout.environment)
    if apart.result is None:
        killed = f"its process was ended by signal {-apart.code}" if apart.code < 0 else f"exit code {apart.code}"
        own.trouble = apart.said or killed
        return
    own.runs.setdefault(point.test, []).append(apart.result)


# -- what was found ---------------------------------------------------------------------------------------------------


def aims_of(plan: Plan, measured: Sequence[Measured]) -> list[Aim]:
    """What a layout is good at: tokens/s, and where a latency means something, the 99th percentile of the TTFT, or of
    the whole latency where there is no first token. In plain Offline, latency is the place in the queue."""
    aims = [Aim("tokens_per_second", True)]
    test = plan.tests[plan.scenario]
    if plan.scenario == OFFLINE and test.get("concurrency") is None:
        return aims
    streamed = any(run["metrics"]["ttft_s"] for own in measured for run in own.good(plan.scenario))
    return [*aims, Aim("ttft_p99_s" if streamed else "latency_p99_s", False)]


def figures_of(own: Measured, plan: Plan) -> dict[str, list[float]]:
    """A layout's figures, one value for each of its runs."""
    rates = own.good(OFFLINE if OFFLINE in plan.tests else plan.scenario)
    loaded = own.good(plan.scenario)
    figures = {
        "samples_per_second": [run["metrics"]["samples_per_second"] for run in rates],
        "tokens_per_second": [run["metrics"]["tokens_per_second"] for run in rates],
    }
    for name, part in (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("latency", "latency_s")):
        for percentile in ("p50", "p99"):
            figures[f"{name}_{percentile}_s"] = [run["metrics"][part].get(percentile) for run in loaded]
    return {key: [value for value in values if value] for key, values in figures.items()}


def accuracy_of(own: Measured, first: Measured | None) -> dict[str, Any]:
    """A layout's scores, and how they differ from the first one's, sample by sample, with an interval of 95 %."""
    runs = own.runs.get(ACCURACY)
    if not runs:
        return {}
    said = runs[0]["accuracy"]
    row: dict[str, Any] = {"accuracy_passed": said["passed"], "accuracy_valid": runs[0]["valid"]}
    row |= {name: said[name] for name in find(runs[0]["benchmark"]).targets if isinstance(said.get(name), int | float)}
    if first is None or first is own:
        return row
    try:
        before, now = (drift.read_rows(run.folder / accuracy.ROWS) for run in (first.runs[ACCURACY][0], runs[0]))
        changes = drift.compare(before, now, 0)
    except SetupError as error:
        return row | {"accuracy_why": str(error)}
    row |= {"answers_changed": changes["changed"], "answers_compared": changes["samples"]}
    for name, change in changes["metrics"].items():
        row[f"{name}_change"] = change["difference"]
        row[f"{name}_change_low"], row[f"{name}_change_high"] = change["interval"]
    return row


def make_row(own: Measured, plan: Plan, standing: Standing | None, first: Measured | None) -> dict[str, Any]:
    """A layout's row: means over its runs, with the lowest and highest where there are several."""
    row: dict[str, Any] = {"layout": own.layout.name, **own.layout.shown, "devices": own.devices}
    for key, values in figures_of(own, plan).items():
        row[key] = mean(values) if values else None
        if len(values) > 1:
            row[f"{key}_low"], row[f"{key}_high"] = min(values), max(values)
    row |= accuracy_of(own, first)
    row["runs"] = max((len(runs) for test, runs in own.runs.items() if test != ACCURACY), default=0)
    row["valid"] = own.valid(list(plan.tests))
    row["standing"] = standing.where if standing else state(own)
    row["dominated_by"] = standing.by if standing and standing.where == DOMINATED else None
    row["why"] = why(own)
    return row


def state(own: Measured) -> str:
    """Why a layout stands nowhere."""
    if own.layout.reason is not None:
        return "left out"
    return "not valid" if any(own.runs.values()) else "did not start"


def why(own: Measured) -> str | None:
    """Why a layout's figures are missing or not valid."""
    if own.trouble is not None:
        return own.trouble
    for test, runs in own.runs.items():
        bad = [run for run in runs if not run["valid"]]
        if bad:
            return f"{len(bad)} of {len(runs)} {test} runs not valid: {bad[0]['invalid_reasons'][0]}"
    return None


def conclude(plan: Plan, measured: Sequence[Measured]) -> Findings:
    """The table, the front and the figure."""
    aims = aims_of(plan, measured)
    timed = [test for test in plan.tests if test != ACCURACY]
    sound = {own.layout.name: figures_of(own, plan) for own in measured if own.valid(timed)}
    standings = stand(sound, aims, plan.noise)
    first = next((own for own in measured if own.runs.get(ACCURACY)), None)
    rows = [make_row(own, plan, standings.get(own.layout.name), first) for own in measured]
    return Findings(
        study="layouts",
        headline=headline(rows, aims),
        columns=columns(plan, rows),
        rows=rows,
        notes=notes(plan, rows, first, measured),
        figure=draw(plan, rows, aims) if standings else None,
        extra={"front": [name for name, own in standings.items() if own.where == FRONT]},
    )


def headline(rows: Sequence[Mapping[str, Any]], aims: Sequence[Aim]) -> str:
    standing = [row for row in rows if row["standing"] in (FRONT, NEAR, DOMINATED)]
    if not standing:
        return f"None of {len(rows)} layouts could be measured."
    best = max(standing, key=lambda row: float(row["tokens_per_second"]))
    text = f"{best['layout']} has the highest throughput: {best['tokens_per_second']:,.1f} tokens/s"
    if len(aims) > 1:
        key = aims[1].key
        quick = min(standing, key=lambda row: float(row[key]))
        who = " and" if quick is best else f"; {quick['layout']} has"
        text += f"{who} the lowest {'TTFT' if key.startswith('ttft') else 'latency'} p99: {readable(quick[key])}"
    rivals = [row["layout"] for row in standing if row["standing"] == NEAR]
    return text + (f" ({', '.join(rivals)}: not told apart from the best by these runs)." if rivals else ".")


def columns(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The table's columns; one without a value anywhere is left out."""
    named = [Column("layout", "layout"), Column("devices", "devices")]
    named += [Column("samples_per_second", "samples/s", ",.2f"), Column("tokens_per_second", "tokens/s", ",.1f")]
    if plan.repeats > 1:
        named += [Column(f"tokens_per_second_{end}", name, ",.1f") for end, name in (("low", "from"), ("high", "to"))]
    if plan.scenario != OFFLINE or plan.tests[plan.scenario].get("concurrency") is not None:
        named += [Column("ttft_p50_s", "TTFT p50", readable), Column("ttft_p99_s", "TTFT p99", readable)]
        named += [Column("tpot_p99_s", "TPOT p99", readable), Column("latency_p99_s", "latency p99", readable)]
    named += [Column("rouge1", "rouge1", ".3f"), Column("rouge1_change", "change", "+.3f")]
    named += [Column("rouge1_change_low", "from", "+.3f"), Column("rouge1_change_high", "to", "+.3f")]
    named += [Column("answers_changed", "answers changed", ","), Column("standing", "Pareto")]
    return [column for column in named if any(row.get(column.key) is not None for row in rows)]


def notes(
    plan: Plan, rows: Sequence[Mapping[str, Any]], first: Measured | None, measured: Sequence[Measured]
) -> list[str]:
    said = [f"{row['layout']}: {row['why']}" for row in rows if row["why"]]
    if plan.repeats == 1:
        said.append(
            f"One run each: differences below {plan.noise:.0%} are taken for noise (--noise); --repeats measures it."
        )
    if first is not None:
        said.append(f"Changes in accuracy are against {first.layout.name}, paired by sample, with their 95 % interval.")
        said += [
            f"{row['layout']}: accuracy is below its target." for row in rows if row.get("accuracy_passed") is False
        ]
        said += [f"{row['layout']}: not compared: {row['accuracy_why']}" for row in rows if row.get("accuracy_why")]
    limited = [own.layout.name for own in measured if any(r["client_limited"] for rs in own.runs.values() for r in rs)]
    if limited:
        said.append(f"The harness itself was the limit in: {', '.join(limited)} (client_limited).")
    return said


def draw(plan: Plan, rows: Sequence[Mapping[str, Any]], aims: Sequence[Aim]) -> Spec:
    """Throughput against latency with the front drawn, or bars where there is throughput alone."""
    shown = [dict(row) for row in rows if row["standing"] in (FRONT, NEAR, DOMINATED)]
    scale = {"domain": [FRONT, NEAR, DOMINATED], "range": [COLOURS[0], COLOURS[5], COLOURS[6]]}
    paint = colour("standing", "Pareto front", scale=scale)
    if len(aims) == 1:
        return draw_bars(shown, paint)
    key = aims[1].key
    across = x(key, f"{'TTFT' if key.startswith('ttft') else 'latency'} p99, s")
    up = y("tokens_per_second", "throughput, tokens/s")
    best = sorted((row for row in shown if row["standing"] == FRONT), key=lambda row: float(row[key]))
    layers = [
        {**line(across, up, points=False, color=COLOURS[0], strokeDash=[4, 3]), "data": {"values": best}},
        *(spread_rule(across, up, axis, several) for axis, several in spreads(shown, key).items()),
        dots(across, up, paint, size=80),
        *labels(shown, across, up, key),
    ]
    offline = f"tokens/s in Offline, latency in {plan.scenario}" if plan.scenario != OFFLINE else "closed loop"
    return figure(shown, layers, "Layouts: throughput against latency", f"{offline}; lines show the lowest and highest")


def labels(rows: Sequence[Mapping[str, Any]], across: Spec, up: Spec, key: str) -> list[Spec]:
    """Names beside the dots, on the side where there is room."""
    middle = max(float(row[key]) for row in rows) / 2
    sides = {"left": [row for row in rows if row[key] <= middle], "right": [row for row in rows if row[key] > middle]}
    return [
        {
            "data": {"values": [dict(row) for row in some]},
            "mark": {"type": "text", "align": side, "dx": 8 if side == "left" else -8, "dy": -6, "fontSize": 11},
            "encoding": {**across, **up, "text": {"field": "layout"}},
        }
        for side, some in sides.items()
    ]


def spreads(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    """The rows with a lowest and highest value, for either axis."""
    names = {"x": key, "y": "tokens_per_second"}
    return {axis: [row for row in rows if f"{name}_low" in row] for axis, name in names.items()}


def spread_rule(across: Spec, up: Spec, axis: str, rows: Sequence[Mapping[str, Any]]) -> Spec:
    """A line from the lowest to the highest run of each row."""
    channel = (across if axis == "x" else up)[axis]
    low = {axis: {**channel, "field": f"{channel['field']}_low"}, f"{axis}2": {"field": f"{channel['field']}_high"}}
    other = up if axis == "x" else across
    return {
        "data": {"values": [dict(row) for row in rows]},
        "mark": {"type": "rule", "color": "#999999"},
        "encoding": low | other,
    }


def draw_bars(rows: Sequence[Mapping[str, Any]], paint: Spec) -> Spec:
    up = y("layout", "", "nominal", sort="-x")
    across = x("tokens_per_second", "throughput, tokens/s")
    repeated = [row for row in rows if "tokens_per_second_low" in row]
    layers = [bars(across, up, paint), spread_rule(across, up, "x", repeated)]
    subtitle = "lines show the lowest and highest run"
    return figure(rows, layers, "Layouts: throughput in Offline", subtitle, height={"step": 26})
