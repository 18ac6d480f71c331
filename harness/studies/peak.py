"""The highest Server (or Interactive) rate that LoadGen itself calls VALID.

The search is a pure function of the probes so far (search.py); here they are run, each a complete LoadGen test, all on
one SUT, and told. What is searched is the peak on LoadGen's own schedule: its seeds are the round's, so a submission
meets the same arrivals, and not the mean over all that a Poisson process might do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from harness import benchmarks, results
from harness.benchmarks import Number
from harness.conf import round_settings
from harness.config import RunConfig, one_of
from harness.early_stopping import allowed_over
from harness.figures import BAD, GOOD, Spec, colour, dots, limit, panel, stack, x, y
from harness.results import RunResult
from harness.studies import replay
from harness.studies.findings import Column, Findings
from harness.studies.replay import Batch, highest_but
from harness.studies.rig import Rig
from harness.studies.search import Answer, Ask, Limits, Probe, Terms, next_step
from harness.tables import parquet_columns
from harness.tally import Tally
from sut.errors import ConfigError

SCENARIOS = ("Server", "Interactive")

CONFIRMATION = "confirmation"

TIMES, LONG = 3, 120.0
"""Tests at the best rate where nobody says how many, unless a test lasts so many seconds: then one."""


@dataclass(frozen=True)
class Made:
    """A probe that was made, its result, and its name in the study's folder."""

    name: str
    ask: Ask
    result: RunResult
    probe: Probe | None
    """None for a probe that tells nothing: aborted, or with queries that failed."""


# -- what is asked ----------------------------------------------------------------------------------------------------


def refuse_scenario(scenario: str) -> None:
    """Raises ConfigError for a scenario that offers no rate, or is none."""
    one_of(scenario, benchmarks.SCENARIOS, "scenario")
    if scenario not in SCENARIOS:
        raise ConfigError(
            f"peak searches the highest rate of Server or Interactive; {scenario} offers none: it takes what it gets."
        )


def make_terms(
    config: RunConfig, samples: int, start: float | None, repeats: int | None, quick: bool, longest_answer: int
) -> Terms:
    """The test whose peak is searched. Raises ConfigError for a benchmark without limits on tokens."""
    settings = effective(config)
    if not settings.get("use_token_latencies") or not settings.get("ttft_latency") or not settings.get("tpot_latency"):
        raise ConfigError(f"{config.benchmark} has no limits on first and further tokens in {config.scenario}.")
    limits = Limits(
        float(settings["ttft_latency"]) / 1000,
        float(settings["tpot_latency"]) / 1000,
        float(settings.get("target_latency_percentile", 99)) / 100,
    )
    loaded = min(samples, int(settings.get("performance_sample_count_override", config.row.performance_samples)))
    seconds = float(settings.get("min_duration", 10_000)) / 1000
    return Terms(
        limits=limits,
        seconds=seconds,
        queries=int(settings.get("min_query_count", 100)),
        whole=loaded if settings.get("sample_concatenate_permutation") else 1,
        seed=int(settings.get("schedule_rng_seed", 0)),
        start=start or float(settings.get("target_qps", 1.0)),
        longest=limits.ttft + limits.tpot * longest_answer,
        times=repeats or (1 if seconds >= LONG and not quick else TIMES),
        quick=quick,
    )


def effective(config: RunConfig) -> dict[str, Number]:
    """What LoadGen runs with: the round's mlperf.conf and the run's own settings over it."""
    return {**round_settings(config.loadgen_model, config.loadgen_scenario), **config.settings}


def start_from(folder: Path, config: RunConfig) -> float:
    """The rate of the first probe from a saved Offline run: what it reached, and a little less. Raises SetupError for
    a folder without a result, ConfigError for one of another kind."""
    saved = results.load(folder)
    if saved.content.get("scenario") != "Offline" or not saved.content.get("valid"):
        raise ConfigError(f"{folder} is no valid Offline run: give --target-qps to begin the search there instead.")
    if saved.content.get("benchmark") != config.benchmark:
        raise ConfigError(f"{folder} is a run of {saved.content.get('benchmark')}, and not of {config.benchmark}.")
    rate = saved["metrics"].get("samples_per_second")
    if not isinstance(rate, int | float) or not rate > 0:
        raise ConfigError(f"{folder} says no samples per second: give --target-qps to begin the search there instead.")
    return 0.9 * float(rate)


# -- the search -------------------------------------------------------------------------------------------------------


def search(rig: Rig, terms: Terms) -> tuple[list[Made], Answer]:
    """Probe until the answer is known. What is saved decides what comes next, so an interrupted search goes on where it
    was. Raises as Rig.point does."""
    made: list[Made] = []
    step = next_step(terms, [])
    while isinstance(step, Ask):
        made.append(make_probe(rig, terms, step, f"{len(made) + 1:02}-{step.level}-{step.rate:g}"))
        if made[-1].probe is None:
            return made, Answer(
                None, note=f"the probe at {step.rate:g} queries/s tells nothing: {why(made[-1].result)}"
            )
        step = next_step(terms, [one.probe for one in made if one.probe is not None])
    return made, step


def make_probe(rig: Rig, terms: Terms, ask: Ask, name: str, to_the_end: bool = False) -> Made:
    saved = rig.study.result(name)
    over = allowed_over(terms.count(ask.rate, ask.seconds, ask.queries, terms.whole if ask.full else 1))
    limits = terms.limits
    tally = None if to_the_end else Tally(limits.ttft, limits.tpot, over)
    if saved is None:
        rig.progress.say(f"{name}: {ask.rate:g} queries/s, at least {ask.seconds:g} s …")
    result = rig.point(name, settings_of(ask, terms, to_the_end), tally=tally)
    return Made(name, ask, result, read_probe(result, ask, over, terms))


def settings_of(ask: Ask, terms: Terms, to_the_end: bool) -> dict[str, Number]:
    """LoadGen's keys for a probe, the same for all."""
    return {
        "target_qps": ask.rate,
        "min_duration": round(1000 * ask.seconds),
        "min_query_count": ask.queries,
        "max_async_queries": 0 if to_the_end else ask.in_flight,
        "sample_concatenate_permutation": int(ask.full and terms.whole > 1),
    }


def read_probe(result: RunResult, ask: Ask, over: int, terms: Terms) -> Probe | None:
    """What a probe tells; None if it is no measurement of the rate."""
    kinds = set(result["failures"]["by_kind"]) - {"abandoned"}
    if result["status"] != "complete" or kinds:
        return None
    rows = read_rows(result.folder)
    began = np.isfinite(rows["ttft_s"])
    done = rows["good"] & (rows["output_tokens"] > 1)
    if not began.any():
        return None
    ttft, latency = rows["ttft_s"][began], rows["latency_s"][done]
    tpot = (latency - rows["ttft_s"][done]) / (rows["output_tokens"][done] - 1)
    base = float(np.quantile(ttft, 0.02))
    return Probe(
        level=ask.level,
        full=ask.full,
        rate=ask.rate,
        valid=bool(result["valid"]),
        seen=int(began.sum()),
        over=max(0, over),
        ttft=highest_but(ttft, over),
        tpot=highest_but(tpot, over) if done.any() else 0.0,
        base=base,
        latency=float(np.quantile(latency, terms.limits.percentile)) if done.any() else 0.0,
        cut=is_cut(result),
        crowded=ask.in_flight if is_crowded(result) else 0,
        client_limited=bool(result["client_limited"]),
        batch=read_batch(rows, base),
    )


def read_batch(rows: Mapping[str, Any], base: float) -> Batch | None:
    """The server that the rows show."""
    issued = rows["issued_s"]
    order = np.argsort(issued, kind="stable")
    order = order[np.isfinite(rows["ttft_s"][order])]
    ends = np.where(rows["good"], issued + rows["latency_s"], inf)
    tokens = np.maximum(1, rows["output_tokens"] - 1).astype(float)
    return replay.read((issued + rows["ttft_s"])[order], ends[order], tokens[order], base)


def read_rows(folder: Path) -> dict[str, Any]:
    """Columns of samples.parquet; `good` are answers and not failures. Raises SetupError for a damaged file."""
    names = ["issued_s", "ttft_s", "latency_s", "output_tokens"]
    table = parquet_columns(folder / "samples.parquet", names, ["error"])
    columns = {name: table[name].to_numpy() for name in names}
    return columns | {"good": table["error"].is_null().to_numpy()}


def is_cut(result: RunResult) -> bool:
    """Whether a test was brought to an end because it was hopeless."""
    return "abandoned" in result["failures"]["by_kind"]


def is_crowded(result: RunResult) -> bool:
    """Whether LoadGen itself ended a test that nobody had called hopeless."""
    errors = results.read_detail(result.folder / results.DETAIL).errors
    return not is_cut(result) and any("Too many outstanding queries" in error for error in errors)


def why(result: RunResult) -> str:
    """Why a test is not valid, in a few words."""
    if is_crowded(result):
        return "no verdict: more queries were outstanding than expected"
    first = str(result["failures"]["first"] or "")
    if result["status"] == "complete" and "the test was hopeless: " in first:
        return first.split("the test was hopeless: ")[1]
    reasons = [str(reason) for reason in result["invalid_reasons"]]
    return (
        " ".join(reasons[0].removeprefix("LoadGen says INVALID: ").replace(" * ", " ").split()).rstrip(".")
        if reasons
        else ""
    )


# -- what was found ---------------------------------------------------------------------------------------------------

COLUMNS = (
    Column("rate", "queries/s", "g"),
    Column("stage", "stage"),
    Column("seconds", "s", ",.0f"),
    Column("queries", "queries", ","),
    Column("verdict", "LoadGen"),
    Column("ttft_p99_s", "TTFT p99, s", ".3f"),
    Column("tpot_p99_s", "TPOT p99, s", ".4f"),
    Column("why", "why not"),
)


def conclude(
    config: RunConfig, terms: Terms, made: Sequence[Made], answer: Answer, confirmation: Made | None = None
) -> Findings:
    """The answer, the probes by rate, and what must be known beside them."""
    shown = [*made, *([confirmation] if confirmation else [])]
    rows = sorted((row_of(one) for one in shown), key=lambda row: float(row["rate"]))
    return Findings(
        study="peak",
        headline=headline(config, terms, answer, confirmation),
        columns=COLUMNS,
        rows=rows,
        notes=notes(config, made, answer, confirmation),
        figure=draw(rows, terms, answer, config),
        extra={
            "peak_qps": answer.rate,
            "valid_at_full_length": answer.confirmed,
            "confirmed": None if confirmation is None else bool(confirmation.result["valid"]),
            "user_conf": conf_line(config, answer.rate) if answer.rate is not None else None,
            "limits": {"ttft_s": terms.limits.ttft, "tpot_s": terms.limits.tpot},
            "full_length": {"seconds": terms.seconds, "queries": terms.queries},
        },
    )


def row_of(made: Made) -> dict[str, Any]:
    result, probe = made.result, made.probe
    rows = read_rows(result.folder)
    good = rows["good"]
    began = rows["ttft_s"][np.isfinite(rows["ttft_s"])]
    pace = (rows["latency_s"] - rows["ttft_s"])[good] / np.maximum(1, rows["output_tokens"][good] - 1)
    cut = is_cut(result)
    verdict = "VALID" if result["valid"] else "INVALID, stopped" if cut else "INVALID"
    return {
        "rate": made.ask.rate,
        "stage": CONFIRMATION if made.name == CONFIRMATION else "full length" if made.ask.full else made.ask.level,
        "seconds": result.content.get("duration_s"),
        "queries": int(result["queries"]),
        "verdict": verdict,
        "valid": bool(result["valid"]),
        "ttft_p99_s": float(np.quantile(began, 0.99)) if len(began) else None,
        "tpot_p99_s": float(np.quantile(pace, 0.99)) if len(pace) else None,
        "ttft_decisive_s": probe.ttft if probe else None,
        "tpot_decisive_s": probe.tpot if probe else None,
        "client_limited": bool(result["client_limited"]),
        "why": None if result["valid"] else why(result),
        "folder": made.name,
    }


def headline(config: RunConfig, terms: Terms, answer: Answer, confirmation: Made | None) -> str:
    what = f"{config.benchmark} {config.scenario}"
    if answer.rate is None:
        return f"NO VALID RATE of {what} was found: {answer.note}."
    if confirmation is not None and not confirmation.result["valid"]:
        return (
            f"NOT CONFIRMED: {what} at {answer.rate:g} queries/s is INVALID at full length: {why(confirmation.result)}."
        )
    if confirmation is not None:
        return f"PEAK {answer.rate:g} queries/s of {what}, confirmed at full length."
    if answer.confirmed:
        return f"PEAK {answer.rate:g} queries/s of {what}: LoadGen calls it VALID at full length."
    return f"PEAK about {answer.rate:g} queries/s of {what}: an estimate, no test of full length was run."


def notes(config: RunConfig, made: Sequence[Made], answer: Answer, confirmation: Made | None) -> list[str]:
    said = []
    if answer.rate is not None:
        said.append(f"For user.conf: {conf_line(config, answer.rate)}")
        said += neighbours([one for one in made if one.ask.full], answer.rate)
        if answer.note:
            said.append(f"{answer.note[0].upper()}{answer.note[1:]}.")
        if not answer.confirmed and confirmation is None:
            said.append("What short probes point to may be off by 10 % and more: leave --quick out, or add --confirm.")
    if limited := [f"{one.ask.rate:g}" for one in made if one.result["client_limited"]]:
        said.append(f"Client-limited, the harness itself was in the way: at {', '.join(limited)} queries/s.")
    return said


def neighbours(full: Sequence[Made], peak: float) -> list[str]:
    """What the tests of full length say at the peak and around it."""
    said = []
    tried = [bool(one.result["valid"]) for one in full if one.ask.rate == peak]
    if len(tried) > 1:
        said.append(f"VALID in {sum(tried)} of {len(tried)} tests at that rate.")
    bad = sorted({one.ask.rate for one in full if not one.result["valid"]})
    if above := [rate for rate in bad if rate > peak]:
        said.append(f"The next rate above it that was tried, {above[0]:g}, is INVALID.")
    if below := ", ".join(f"{rate:g}" for rate in bad if rate < peak):
        said.append(f"Lower rates were INVALID too ({below}): runs differ here by more than the answer's precision.")
    return said


def conf_line(config: RunConfig, rate: float) -> str:
    """The line for user.conf."""
    return f"{config.loadgen_model}.{config.loadgen_scenario}.target_qps = {rate:g}"


def draw(rows: Sequence[Mapping[str, Any]], terms: Terms, answer: Answer, config: RunConfig) -> Spec | None:
    """p99 of both latencies by rate with their limits, valid and invalid probes told apart, the peak marked."""
    shown = [row for row in rows if row["ttft_p99_s"] is not None and isfinite(row["rate"])]
    if not shown:
        return None
    scale = {"domain": ["VALID", "INVALID", "INVALID, stopped"], "range": [GOOD, BAD, BAD]}
    marks = {"shape": {"field": "verdict", "type": "nominal", "scale": {
        "domain": scale["domain"], "range": ["circle", "cross", "triangle-up"]}, "title": "LoadGen"}}  # fmt: skip
    found = limit(answer.rate, f"peak {answer.rate:g}", axis="x") if answer.rate is not None else []

    def one(field: str, title: str, most: float) -> Spec:
        points = dots(
            x("rate", "rate, queries/s", scale={"zero": False}),
            y(field, title, scale={"type": "log"}),
            colour("verdict", "LoadGen", scale=scale),
            marks,
            size=70,
        )
        kept = [row for row in shown if row[field] is not None and row[field] > 0]
        return panel(kept, [points, *limit(most, f"limit {most:g} s"), *found], width=420, height=260)

    panels = [
        one("ttft_p99_s", "time to first token, p99, s", terms.limits.ttft),
        one("tpot_p99_s", "time per output token, p99, s", terms.limits.tpot),
    ]
    subtitle = f"{config.benchmark}, {config.backend}, {config.replicas} replica{'s' * (config.replicas > 1)}"
    return stack(panels, f"Peak of {config.scenario}: latency by rate", subtitle, columns=2)
