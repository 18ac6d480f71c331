"""What a test came to: LoadGen's logs read, the verdict decided, result.json saved and loaded.

A result is decided from what LoadGen logged and what the SUT counted, by pure functions; `result.json` is written last
and atomically, so a directory without it never came to an end.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt

from harness.audits import AUDITS
from harness.conf import reported_differences, round_settings
from harness.config import RunConfig, as_json, asked_settings, resolve_settings
from harness.recorder import Recorder
from harness.tables import digest_of
from sut.errors import SetupError

# Format of result.json.
#   1   the first
FORMAT_VERSION = 1

DETAIL = "mlperf_log_detail.txt"
ACCURACY = "mlperf_log_accuracy.json"
RESULT = "result.json"
SUBMISSION = "submission.json"
"""What a run in submission mode came to (parts.py)."""

_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}

SERVED = {"generation_config", "override_generation_config", "hf_overrides", "quantization", "logits_processors"}
"""Engine arguments that change answers and stand in no other field."""

# Of so many tokens the time since the one before must be known to speak of inter-token latency.
_KNOWN_SHARE = 0.5

# Beyond these the harness itself is in the way.
_LAG_SHARE = 0.05
_BUSY_SHARE = 0.90


@dataclass(frozen=True)
class Log:
    """LoadGen's detail log: the last value of each key, and the text of every line that it marks as an error."""

    values: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[str, ...] = ()

    @property
    def verdict(self) -> str | None:
        """VALID, INVALID, or None in a log that never came to one."""
        value = self.values.get("result_validity")
        return str(value) if value is not None else None


@dataclass(frozen=True)
class Replica:
    """One replica's share of a test, as result.json has it."""

    name: str
    queries: int
    tokens: int
    failures: int
    busy_share: float
    tail_idle_s: float
    ejected_s: float | None


@dataclass(frozen=True)
class Facts:
    """What the SUT counted and the harness measured in one test; times in seconds.

    `started_at` is the first callback in Unix seconds, from which samples.parquet counts `issued_s`; None if LoadGen
    never called. By it the timelines of several processes can be joined.
    """

    status: str
    stopped_by: str | None
    issued: int
    completed: int
    failures: Mapping[str, int]
    first_failure: str | None
    failed_on: Mapping[str, int]
    retries: Mapping[str, int]
    first_retry: str | None
    duration: float
    replicas: Sequence[Replica]
    loop_cpu: float
    process_cpu: float
    late: int = 0
    loop_lags: Sequence[float] = ()
    respond_times: Sequence[float] = ()
    started_at: float | None = None
    gaps: Sequence[float] | None = None
    """Seconds between two tokens that came in frames of their own; None if frames may hold more of them."""


@dataclass(frozen=True)
class RunResult:
    """One test's result, as result.json holds it."""

    content: Mapping[str, Any]
    folder: Path

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    @property
    def exit_code(self) -> int:
        """0 all good, 4 not valid, 5 accuracy or compliance not met, 3 not to be decided here, 130 interrupted."""
        if self["status"] == "interrupted":
            return 130
        if not self["valid"]:
            return 4
        compliance = self.content.get("compliance") or {"passed": True}
        accuracy = self["accuracy"]
        if False in (accuracy["passed"], compliance["passed"]):
            return 5
        # There are targets only where the benchmark's own dataset was asked.
        undecided = self.content.get("mode") == "accuracy" and accuracy["passed"] is None and accuracy.get("targets")
        return 3 if undecided or compliance["passed"] is None else 0

    def save(self) -> None:
        """Write result.json, whole or not at all."""
        write_whole(self.folder / RESULT, json.dumps(finite(self.content), indent=1, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f"{path.name}.part")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def finite(value: Any) -> Any:
    """The same content with null for what JSON cannot hold: no number and no infinity may cost a whole result."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


class _Config(TypedDict, total=False):
    benchmark: str
    dataset: str
    model: str
    backend: str
    endpoint: list[str]
    samples: int | None


class _Environment(TypedDict, total=False):
    dataset_sha256: str | None
    engines: dict[str, Any]


class _Content(TypedDict, total=False):
    """The types of what readers of result.json take from it."""

    status: str
    valid: bool
    invalid_reasons: list[str]
    not_ready_reasons: list[str]
    client_limited: bool
    scenario: str
    mode: str
    benchmark: str
    metrics: dict[str, Any]
    accuracy: dict[str, Any]
    audit: str | None
    compliance: dict[str, Any] | None
    replicas: list[dict[str, Any]]
    failures: dict[str, Any]
    retries: int
    telemetry: dict[str, Any] | None
    loadgen: dict[str, Any]
    config: _Config
    environment: _Environment


def load(folder: Path) -> RunResult:
    """A saved result; which keys it has is the caller's to see to. Raises SetupError for a directory without one, for
    one of another format, and for a value that is none of what its key holds."""
    return _checked(_read(folder), folder)


def find(folder: Path) -> RunResult | None:
    """The result in a directory that may be another harness's, whose result.json has no format_version: then, and
    where there is none, None. Raises SetupError as `load` does."""
    if not (folder / RESULT).is_file():
        return None
    content = _read(folder)
    ours = isinstance(content, dict) and "format_version" in content
    return _checked(content, folder) if ours else None


def _read(folder: Path) -> Any:
    path = folder / RESULT
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise SetupError(f"{folder} holds no finished result: cannot read {path.name}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path} is not valid JSON: {error}.") from error


def _checked(content: Any, folder: Path) -> RunResult:
    path = folder / RESULT
    if not isinstance(content, dict):
        raise SetupError(f"{path} is no result: it does not hold a JSON object.")
    if content.get("format_version") != FORMAT_VERSION:
        raise SetupError(f"{path} has format {content.get('format_version')}, and this harness reads {FORMAT_VERSION}.")
    try:
        msgspec.convert(content, _Content)
    except msgspec.ValidationError as error:
        raise SetupError(f"{path} is damaged: {error}.") from error
    return RunResult(content, folder)


# -- LoadGen's log ----------------------------------------------------------------------------------------------------


def read_detail(path: Path) -> Log:
    """Read mlperf_log_detail.txt as far as it goes; a test that was stopped leaves it cut off, or leaves none."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return Log()
    for line in text.split("\n"):
        if not line.startswith(":::MLLOG "):
            continue
        try:
            entry = json.loads(line.removeprefix(":::MLLOG "))
            key, value, marked = str(entry["key"]), entry["value"], bool(entry["metadata"]["is_error"])
        except (ValueError, LookupError, TypeError):
            # LoadGen does not escape its messages; an error line must count all the same.
            if re.search(r'"is_error":\s*true', line):
                errors.append(line[:300])
            continue
        values[key] = value
        if marked:
            errors.append(f"{key}: {value}")
    return Log(values, tuple(errors))


# -- verdicts ---------------------------------------------------------------------------------------------------------


def invalid_reasons(config: RunConfig, facts: Facts, log: Log, answered: Sequence[int] | None, total: int) -> list[str]:
    """Why a test is not valid; empty if it is. `answered`: the sample indices in the accuracy log, if there is one."""
    reasons = []
    if facts.status != "complete":
        reasons.append(f"the test was {facts.status}: {facts.stopped_by}")
    if count := sum(facts.failures.values()):
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(facts.failures.items()))
        reasons.append(f"{count} of {facts.issued} queries failed ({kinds}); the first: {facts.first_failure}")
    if log.errors:
        reasons.append(f"LoadGen logged {len(log.errors)} errors; the first: {log.errors[0]}")
    if facts.retries and config.failure_policy == "strict":
        reasons.append(f"{sum(facts.retries.values())} queries were retried, and the failure policy is strict")
    if facts.status == "complete":
        reasons += _incomplete(config, log, answered, total)
    # A test that was stopped may have left LoadGen no time to report its settings.
    asked = asked_settings(config) if facts.status == "complete" else {}
    reasons += [f"asked: {text}" for text in reported_differences(asked, config.loadgen_scenario, log.values)]
    return reasons


def _incomplete(config: RunConfig, log: Log, answered: Sequence[int] | None, total: int) -> list[str]:
    """What a test that came to its end still lacks: LoadGen's VALID, or exactly one answer to each sample."""
    if config.mode == "performance":
        # A compliance run is too short for LoadGen's early stopping: its own verifier says what it is worth.
        if log.verdict == "VALID" or (config.audit is not None and log.verdict is not None):
            return []
        why = why_invalid(log.values)
        return [f"LoadGen says {log.verdict or 'nothing'}{': ' + why if why else ''}"]
    counts = Counter(answered or ())
    reasons = []
    if missing := [index for index in range(total) if index not in counts]:
        reasons.append(f"{len(missing)} of {total} samples have no answer in LoadGen's log (first: {missing[0]})")
    if twice := [index for index, count in counts.items() if count > 1]:
        reasons.append(f"{len(twice)} samples have more than one answer in LoadGen's log (first: {twice[0]})")
    return reasons


_UNMET = {
    "result_perf_constraints_met": "the latency limits are missed",
    "result_min_duration_met": "the test is shorter than min_duration",
    "result_min_queries_met": "it has fewer queries than min_query_count",
    "early_stopping_met": "early stopping is not satisfied",
}
"""LoadGen's verdicts in part, and what it means that one is false (loadgen/results.cc)."""


def why_invalid(values: Mapping[str, Any]) -> str:
    """Why LoadGen says INVALID: its reason, which it gives in Offline only, or which of its conditions are not met."""
    said = str(values.get("result_invalid_reason") or "").strip().replace("\n", " ")
    if said:
        return said.replace("Increase expected QPS", "Increase expected QPS (--target-qps)")
    unmet = [text for key, text in _UNMET.items() if values.get(key) is False]
    if values.get("early_stopping_met") is False:
        needs = (str(values.get(f"early_stopping_{kind}_result") or "").strip() for kind in ("ttft", "tpot"))
        unmet += [text.removeprefix("* ").replace("\n", " ") for text in needs if text]
    return "; ".join(unmet)


def not_ready_reasons(
    config: RunConfig,
    facts: Facts,
    log: Log,
    valid: bool,
    passed: bool | None,
    total: int,
    stray_audit: bool,
    engines: Mapping[str, Mapping[str, Any]],
    resumed: int = 0,
    compliance: Mapping[str, Any] | None = None,
) -> list[str]:
    """Why this result cannot go into a submission; empty if it can."""
    row, reasons = config.row, []
    if not row.submittable:
        reasons.append(f"{row.name} is no benchmark of MLCommons")
    if not valid:
        reasons.append("the result is not valid")
    if passed is not True:
        reasons.append(
            "accuracy is below its target" if passed is False else "this run does not show that accuracy is met"
        )
    if not config.has_own_dataset(total):
        reasons.append(f"the samples are not the benchmark's own {config.own_samples}")
    if config.model != row.model:
        reasons.append(f"the model is {config.model}, not the benchmark's {row.model}")
    model, scenario = config.loadgen_model, config.loadgen_scenario
    fixed = round_settings(model, scenario) | resolve_settings(row, config.scenario, {}, {})
    fixed = {key: value for key, value in fixed.items() if key != "target_qps"}
    if config.audit is not None:
        fixed |= config.audit.settings
        if config.audit.distinct:
            fixed["performance_sample_count_override"] = config.audit.samples
    reasons += [f"the benchmark's {text}" for text in reported_differences(fixed, scenario, log.values)]
    if config.concurrency is not None:
        reasons.append(
            f"it is a closed loop: at most {config.concurrency} queries in flight, latencies from each query's release"
        )
    if config.generation != row.generation_in(config.mode):
        reasons.append("answers are not made as the benchmark asks")
    if config.engine_arg.get("enable_prefix_caching"):
        reasons.append("prefix caching is on")
    reasons += [
        f"the engine argument {name} changes what is served" for name in sorted(SERVED & set(config.engine_arg))
    ]
    reasons += [f"{name} was set" for name in sorted(config.chosen - set(fixed) - {"target_qps"})]
    if not round_settings(model, scenario):
        reasons.append("the round's mlperf.conf is not there to compare with")
    if config.audit_config and config.audit is None:
        reasons.append("an audit file that is no compliance test's changed LoadGen's settings")
    if compliance is not None and compliance["passed"] is not True:
        reasons.append(f"{compliance['test']} has not passed: {'; '.join(compliance['why'])}")
    if resumed:
        reasons.append(f"{resumed} answers were taken over from a test that was interrupted")
    if retries := sum(facts.retries.values()):
        reasons.append(f"{retries} queries were retried")
    if stray_audit:
        reasons.append("an audit.config lies in the working directory (it was not used)")
    if config.backend == "echo":
        reasons.append("the echo backend is a rehearsal: no model answered")
    return reasons + remote_reasons(config, engines)


def remote_reasons(config: RunConfig, engines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What of remote replicas keeps a result out of a submission."""
    reasons = []
    if any(facts.get("answers") == "text" for facts in engines.values()):
        reasons.append("answers came as text, whose token ids nobody knows for sure")
    if untried := {str(facts["dialect"]) for facts in engines.values() if facts.get("tried") is False}:
        reasons.append(f"the dialect {', '.join(untried)} has never been tried on a real server")
    if any(facts.get("prefix_caching", False) is not False for facts in engines.values()):
        reasons.append("prefix caching is on at a replica, or a replica does not say that it is off")
    if elsewhere := [url for url in config.endpoint if not is_local(url)]:
        # inference_rules.adoc, Query Dispatch Library: a SUT behind a network is the network division's.
        reasons.append(f"{elsewhere[0]} is on another host, which only the network division allows")
        if config.offline_batch > 1:
            reasons.append("the network division allows no batching before the network (--offline-batch)")
    if config.insecure:
        reasons.append("certificates were not verified (--insecure)")
    return reasons


def is_local(url: str) -> bool:
    host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


# -- metrics ----------------------------------------------------------------------------------------------------------


def metrics(log: Log, recorder: Recorder, duration: float, closed: bool = False) -> dict[str, Any]:
    """LoadGen's official figures where its log has them, else the harness's own (`source` says which). Seconds.

    In a closed loop they are the harness's: LoadGen issues all queries at once, and counts from there.
    """
    own, values = _own_metrics(recorder, duration), log.values
    if closed:
        return own
    latency = _logged(values, "result_{}_latency_ns", "result_{:.2f}_percentile_latency_ns")
    if not latency:
        return own
    # SingleStream and MultiStream log no rate of samples; Offline's keys are named apart.
    rate = _either(values, "result_completed_samples_per_sec", "result_samples_per_second")
    tokens = _either(values, "result_completed_tokens_per_second", "result_tokens_per_second")
    return {
        "source": "loadgen",
        "samples_per_second": own["samples_per_second"] if rate is None else rate,
        "tokens_per_second": own["tokens_per_second"] if tokens is None else tokens,
        "ttft_s": _logged(
            values, "result_first_token_{}_latency_ns", "result_first_token_{:.2f}_percentile_latency_ns"
        ),
        "tpot_s": _logged(
            values, "result_time_to_output_token_{}", "result_time_per_output_token_{:.2f}_percentile_ns"
        ),
        "latency_s": latency,
    }


def _either(values: Mapping[str, Any], *names: str) -> float | None:
    return next((float(values[name]) for name in names if name in values), None)


def _logged(values: Mapping[str, Any], plain: str, percentile: str) -> dict[str, float]:
    """Mean, percentiles and maximum in seconds out of LoadGen's nanoseconds; empty where it has none."""
    names = {"mean": plain.format("mean"), "max": plain.format("max")}
    names |= {name: percentile.format(number) for name, number in _PERCENTILES.items()}
    if names["mean"] not in values:
        return {}
    order = ("mean", *_PERCENTILES, "max")
    return {name: float(values[names[name]]) / 1e9 for name in order if names[name] in values}


def _own_metrics(recorder: Recorder, duration: float) -> dict[str, Any]:
    good = recorder.good() & (recorder.column("attempts") > 0)  # what was taken over, nobody has measured
    latency, ttft = recorder.column("latency_s")[good], recorder.column("ttft_s")[good]
    tokens = recorder.column("output_tokens")[good]
    gaps = np.maximum(tokens - 1, 1)
    return {
        "source": "harness",
        "samples_per_second": len(latency) / duration if duration else 0.0,
        "tokens_per_second": float(tokens.sum()) / duration if duration else 0.0,
        "ttft_s": summarise(ttft),
        "tpot_s": summarise((latency - ttft) / gaps),
        "latency_s": summarise(latency),
    }


def summarise(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean, percentiles and maximum of what is a number; empty for nothing."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    percentiles = np.percentile(values, list(_PERCENTILES.values()), method="higher")
    named = dict(zip(_PERCENTILES, percentiles.tolist(), strict=True))
    return {"mean": float(values.mean()), **named, "max": float(values.max())}


def inter_token(recorder: Recorder, gaps: Sequence[float] | None) -> dict[str, Any]:
    """Time between two tokens of an answer, all answers together (`itl_s`), and of which share of them it is known:
    that of tokens whose frames held no other. Empty where it is known of few: the client of remote replicas gathers
    frames before it looks at them."""
    between = int(np.maximum(recorder.column("output_tokens")[recorder.good()] - 1, 0).sum())
    if not gaps or len(gaps) < _KNOWN_SHARE * between:
        return {}
    return {"itl_s": summarise(np.asarray(gaps)), "itl_known_share": min(1.0, len(gaps) / max(between, 1))}


def overhead(log: Log, recorder: Recorder, facts: Facts, scheduled: bool = True) -> dict[str, float | None]:
    """What the harness itself cost. `schedule_lag_s`: LoadGen counts from the scheduled time, we from its callback;
    in a closed loop there is no schedule."""
    lag = None
    for ours, theirs in (("ttft_s", "result_first_token_mean_latency_ns"), ("latency_s", "result_mean_latency_ns")):
        column = recorder.column(ours)
        column = column[np.isfinite(column)]
        if scheduled and theirs in log.values and len(column):
            lag = float(log.values[theirs]) / 1e9 - float(column.mean())
            break
    return {
        "schedule_lag_s": lag,
        "loop_lag_p99_s": _p99(facts.loop_lags),
        "respond_p99_s": _p99(facts.respond_times),
        "loop_busy_share": facts.loop_cpu / facts.duration if facts.duration else 0.0,
        "cpu_s_per_1000_queries": 1000 * facts.process_cpu / facts.completed if facts.completed else 0.0,
    }


def _p99(values: Sequence[float]) -> float | None:
    return float(np.percentile(values, 99)) if len(values) else None


def is_client_limited(cost: Mapping[str, float | None], figures: Mapping[str, Any]) -> bool:
    """Whether the harness got in the way: lag above 5 % of mean TTFT or latency, or its loop's core above 90 % busy."""
    lag = cost["schedule_lag_s"]
    reference = figures["ttft_s"].get("mean") or figures["latency_s"].get("mean")
    lagging = lag is not None and bool(reference) and lag > _LAG_SHARE * reference
    return lagging or (cost["loop_busy_share"] or 0.0) > _BUSY_SHARE


# -- the whole --------------------------------------------------------------------------------------------------------


LOGS = ("mlperf_log_summary.txt", DETAIL, ACCURACY, "user.conf")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of LoadGen's logs, the settings it read and what was found in them: a submission holds them as they were
    written."""
    names = (*LOGS, "accuracy.txt", *sorted({audit.verdict for audit in AUDITS.values()}))
    return {name: digest_of(folder / name) for name in names if (folder / name).exists()}


def conclude(
    config: RunConfig,
    facts: Facts,
    recorder: Recorder,
    *,
    total: int,
    answered: Sequence[int] | None,
    accuracy: Mapping[str, Any],
    environment: Mapping[str, Any],
    stray_audit: bool,
    texts: Mapping[str, float] | None = None,
    compliance: Mapping[str, Any] | None = None,
    resumed: int = 0,
    telemetry: Mapping[str, Any] | None = None,
) -> RunResult:
    """Bring everything known about a test to one result."""
    log = read_detail(config.output_dir / DETAIL)
    reasons = invalid_reasons(config, facts, log, answered, total)
    closed = config.concurrency is not None
    figures = metrics(log, recorder, facts.duration, closed) | inter_token(recorder, facts.gaps)
    if facts.failures and figures["source"] == "loadgen":
        figures["source"] = "loadgen, failed queries included"
    cost = overhead(log, recorder, facts, scheduled=not closed)
    limited = is_client_limited(cost, figures)
    engines = environment["engines"]
    unready = not_ready_reasons(
        config, facts, log, not reasons, accuracy["passed"], total, stray_audit, engines, resumed, compliance
    )
    if limited:
        unready.append("the harness itself was the limit (client_limited)")
    content = {
        "format_version": FORMAT_VERSION,
        "status": facts.status,
        "valid": not reasons,
        "invalid_reasons": reasons,
        "submission_ready": not unready,
        "not_ready_reasons": unready,
        "client_limited": limited,
        "scenario": config.scenario,
        "mode": config.mode,
        "benchmark": config.benchmark,
        "queries": facts.completed,
        "started_at": facts.started_at,
        "duration_s": facts.duration,
        "metrics": figures,
        "accuracy": accuracy,
        "audit": config.audit.name if config.audit else None,
        "compliance": compliance,
        "resumed": resumed,
        "replicas": [vars(replica) for replica in facts.replicas],
        "failures": {
            "count": sum(facts.failures.values()),
            "by_kind": dict(facts.failures),
            "by_replica": dict(facts.failed_on),
            "first": facts.first_failure,
        },
        "retries": sum(facts.retries.values()),
        "retries_by_kind": dict(facts.retries),
        "first_retry": facts.first_retry,
        "overhead": cost,
        "late_frames": facts.late,
        "telemetry": telemetry,
        **({"text_answers": dict(texts)} if texts else {}),
        "loadgen": {"version": log.values.get("loadgen_version"), "verdict": log.verdict, "errors": len(log.errors)},
        "config": as_json(config),
        "environment": environment,
        "files": digests(config.output_dir),
    }
    return RunResult(content, config.output_dir)
