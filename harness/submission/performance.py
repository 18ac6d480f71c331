"""Does the performance run show what it claims: the round's settings, a valid result, figures that fit each other?

Sources: [checker] submission_checker/checks/performance_check.py and LLM_LATENCY_LIMITS, [loadgen]
loadgen/{loadgen,results,early_stopping}.cc, [conf] loadgen/mlperf.conf, all of mlcommons/inference; [rules]
inference_rules.adoc of mlcommons/inference_policies. What the checker of v6.1 lets through is said in each rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from harness.benchmarks import Number
from harness.conf import lookup, read_conf, refuse_key, reported_differences
from harness.submission.claim import Claim
from harness.submission.contents import Unreadable, number, read_text
from harness.submission.fields import NETWORK_SUT
from harness.submission.form import AGAIN, WHOLE, check_errors, check_seeds, check_version, says_audit
from harness.submission.logs import DetailLog
from harness.submission.problem import Problem, clean, error, graded, warning
from sut.errors import ConfigError

CONF = "loadgen/mlperf.conf: the settings of the round"
CHECKER = "submission_checker, performance_check.py"
PASSED_OVER = "the checker of v6.1 passes it over"
NS = 1e9

# Results of one scenario that an edge system may give for another ([checker] inferred_check).
INFERRED = (("SingleStream", "MultiStream"), ("MultiStream", "Offline"), ("SingleStream", "Offline"))

PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")
LATENCY = ("result_{}_latency_ns", "result_{}_percentile_latency_ns")
FIRST_TOKEN = ("result_first_token_{}_latency_ns", "result_first_token_{}_percentile_latency_ns")
PER_TOKEN = ("result_time_to_output_token_{}", "result_time_per_output_token_{}_percentile_ns")

# Settings of audits and experiments; a real run has none of them.
_PLAIN = {
    "effective_accuracy_log_probability": 0,
    "effective_accuracy_log_sampling_target": 0,
    "effective_performance_issue_unique": False,
    "effective_performance_issue_same": False,
}


def check_performance(log: DetailLog, claim: Claim, network: bool) -> Iterator[Problem]:
    """Everything about a performance log by itself; `network`: the system is described as one behind a network."""
    yield from check_identity(log, claim, "PerformanceOnly", network)
    yield from _check_real(log)
    yield from _check_settings(log, claim)
    if "power_end" not in log.values:
        return  # a log without its end has no result; check_whole says so
    yield from _check_verdict(log, claim)
    yield from _check_duration(log, claim)
    yield from _check_count(log, claim)
    yield from _check_limits(log, claim)
    yield from _check_figures(log, claim)


def check_identity(log: DetailLog, claim: Claim, mode: str, network: bool) -> Iterator[Problem]:
    """What any log of a result must be: the round's LoadGen and seeds, its scenario and mode, no error, the SUT."""
    yield from check_version(log)
    yield from check_errors(log)
    yield from check_seeds(log, claim.limits)
    for key, expected in (("test_mode", mode), ("scenario", claim.loadgen_scenario)):
        if log.values.get(f"effective_{key}") != expected:
            what = f"the log is of {key.removeprefix('test_')} {log.show(f'effective_{key}')}, and not of {expected}"
            yield error(log.path, what, CHECKER, f"put the log of a test in {expected} here")
    if log.values.get("requested_use_token_latencies") is not True:
        yield error(log.path, "token latencies are not on", f"{CHECKER} llm_check", _RERUN)
    if network and NETWORK_SUT not in log.text("sut_name"):
        what = f"the SUT is called {log.show('sut_name')}, and over a network its name has {NETWORK_SUT!r} in it"
        yield error(
            log.path, what, f"{CHECKER} network_check; inference_rules.adoc, QDL", "name the SUT so in ConstructQDL"
        )
    if not network and NETWORK_SUT in log.text("sut_name"):
        what = f"the SUT is called {log.show('sut_name')}, and the system is not described as behind a network"
        yield error(
            log.path,
            what,
            "inference_rules.adoc, network division",
            "move to the network division and describe the network",
        )


_RERUN = "run again with the benchmark's own settings"


def _check_real(log: DetailLog) -> Iterator[Problem]:
    if says_audit(log):
        what = "LoadGen found an audit.config and ran with its settings: this is an audit's log"
        rule = f"compliance/README.md: remove audit.config afterwards; {PASSED_OVER}"
        yield error(log.path, what, rule, "remove audit.config from the working directory and run again")
    for key, plain in _PLAIN.items():
        if log.values.get(key, plain) != plain:
            what = f"{key} is {log.show(key)}, as in an audit or an experiment"
            yield error(log.path, what, f"loadgen/mlperf.conf leaves it at {plain}; {PASSED_OVER}", _RERUN)


# -- settings ---------------------------------------------------------------------------------------------------------


def _check_settings(log: DetailLog, claim: Claim) -> Iterator[Problem]:
    limits, row = claim.limits, claim.row
    yield from _at_least(log, "effective_min_duration_ms", limits.get("min_duration", 0), "ms", True)
    yield from _at_least(log, "effective_performance_sample_count", row.performance_samples, "samples", True)
    if claim.scenario == "Offline":
        least = row.offline_min_samples
        yield from _at_least(log, "effective_samples_per_query", least, "samples", claim.strict)
    if log.values.get("effective_sample_concatenate_permutation") is not True and claim.strict:
        what = "sample_concatenate_permutation is off: samples need not be issued equally often"
        yield error(log.path, what, f"{CONF}; {PASSED_OVER}", _RERUN)
    total = log.number("qsl_reported_total_count")
    if total != row.samples and claim.strict:
        what = f"the sample library has {log.show('qsl_reported_total_count')} samples, and the dataset {row.samples}"
        yield error(
            log.path, what, f"inference_rules.adoc, the benchmark's dataset; {PASSED_OVER}", "run on the whole dataset"
        )
    if claim.loadgen_scenario == "Server":
        yield from _check_server_settings(log, claim)


def _at_least(log: DetailLog, key: str, least: Number, unit: str, strict: bool) -> Iterator[Problem]:
    value = log.number(key)
    if value is None or value < least:
        what = f"{key} is {log.show(key)}, and at least {least} {unit} are needed"
        yield graded(strict, log.path, what, f"{CONF}; {CHECKER}", _RERUN)


def _check_server_settings(log: DetailLog, claim: Claim) -> Iterator[Problem]:
    """The latencies that LoadGen judged by; Interactive's are its own, which the checker does not know."""
    for name in ("ttft", "tpot"):
        limit, key = claim.limits[f"{name}_latency"] * 1_000_000, f"requested_server_{name}_latency"
        used = log.number(key)
        if used is None or used > limit:
            what = f"LoadGen judged {name.upper()} by {log.show(key)} ns, and {claim.scenario} allows {limit} ns"
            rule = f"{CONF} ({claim.model_key}); the checker of v6.1 does not look"
            yield error(log.path, what, rule, f"run as {claim.scenario}, with the model key {claim.model_key}")
    least = claim.limits["target_latency_percentile"] / 100
    percentile = log.number("effective_target_latency_percentile")
    if percentile is None or percentile < least:
        shown = log.show("effective_target_latency_percentile")
        yield error(log.path, f"the percentile judged by is {shown}, and not {least}", CONF, _RERUN)
    target = claim.limits.get("target_latency", 0) * 1_000_000
    used = log.number("effective_target_latency_ns")
    if used is None or used > max(target, 0):
        what = f"effective_target_latency_ns is {log.show('effective_target_latency_ns')}, and the round sets {target}"
        yield graded(claim.strict, log.path, what, f"{CONF}; {CHECKER} latency_check", _RERUN)


# -- the verdict ------------------------------------------------------------------------------------------------------


def _check_verdict(log: DetailLog, claim: Claim) -> Iterator[Problem]:
    verdict = log.values.get("result_validity")
    if verdict != "VALID":
        reason, said = log.text("result_invalid_reason").strip(), "result_validity" in log.values
        what = f"LoadGen says {log.show('result_validity')}" if said else "the log holds no verdict of LoadGen's"
        what += f": {clean(reason, 200)}" if reason else ""
        rule = f"inference_rules.adoc, a result is VALID; {PASSED_OVER}"
        yield error(log.path, what, rule, "tune the load or the system and run the test again")
    met = ["result_min_duration_met", "result_min_queries_met", "early_stopping_met"]
    met += ["result_perf_constraints_met"] if claim.loadgen_scenario == "Server" else []
    for key in met:
        if log.values.get(key) is not True:
            rule = f"{CHECKER} latency_check" if key == "early_stopping_met" else f"loadgen/results.cc; {PASSED_OVER}"
            why = clean(f"{log.text('early_stopping_ttft_result')} {log.text('early_stopping_tpot_result')}".strip())
            what = f"{key} is {log.show(key)}" + (f" ({why})" if key == "early_stopping_met" and why else "")
            yield error(log.path, what, rule, "tune the load or the system and run the test again")


def _check_limits(log: DetailLog, claim: Claim) -> Iterator[Problem]:
    if claim.loadgen_scenario != "Server":
        return
    for name, pattern in (("ttft", FIRST_TOKEN[1]), ("tpot", PER_TOKEN[1])):
        limit, key = claim.limits[f"{name}_latency"] * 1_000_000, pattern.format("99.00")
        value = log.number(key)
        if value is None or value >= limit:
            what = (
                f"the 99th percentile of {name.upper()} is {log.show(key)} ns, and {claim.scenario} allows {limit} ns"
            )
            rule = f"{CHECKER} llm_check, which takes Server's limits for Interactive"
            yield error(log.path, what, rule, "lower the load, or speed the system up, and run again")


def _check_duration(log: DetailLog, claim: Claim) -> Iterator[Problem]:
    """The test as measured lasted as long as the round asks, whatever its settings were."""
    seconds, least = _measured(log, claim), claim.limits.get("min_duration", 0) / 1000
    if seconds is not None and seconds < least:
        what = f"the test lasted {seconds:.1f} s, and at least {least:g} s are needed"
        yield error(log.path, what, f"{CONF}; {PASSED_OVER}", "raise target_qps, from which LoadGen derives the length")


def _measured(log: DetailLog, claim: Claim) -> float | None:
    """Seconds that LoadGen counts: up to the last answer (Offline), the last schedule (Server), the last issue."""
    if claim.scenario == "Offline":
        longest = log.number("result_max_latency_ns")
        return None if longest is None else longest / NS
    key = "result_scheduled_samples_per_sec" if claim.loadgen_scenario == "Server" else _QPS
    rate, count = log.number(key), log.number("result_query_count")
    return None if not rate or count is None else (count - 1) / rate


_QPS = "result_qps_with_loadgen_overhead"


def samples_of(log: DetailLog) -> Number | None:
    """How many samples a performance test issued."""
    queries, each = log.number("generated_query_count"), log.number("generated_samples_per_query")
    return None if queries is None or each is None else queries * each


def _check_count(log: DetailLog, claim: Claim) -> Iterator[Problem]:
    """Every sample of the dataset issued equally often, and every query that was generated measured."""
    issued, loaded = samples_of(log), log.values.get("loaded_qsl_set")
    rule = f"loadgen/loadgen.cc, sample_concatenate_permutation; {PASSED_OVER}"
    if issued is None or issued <= 0:
        yield error(log.path, "the log does not say how many queries were generated", WHOLE, AGAIN)
        return
    if issued % claim.row.performance_samples and claim.strict and claim.scenario != "SingleStream":
        what = f"{issued} samples were issued, which is no multiple of the dataset's {claim.row.performance_samples}"
        yield error(log.path, what, rule, _RERUN)
    if not _is_set(loaded, log.number("effective_performance_sample_count")):
        yield error(log.path, "loaded_qsl_set is not a set of as many samples as the test says", WHOLE, AGAIN)
    generated, done = log.number("generated_query_count"), log.number("result_query_count")
    if claim.scenario != "SingleStream" and generated != done:
        what = f"{generated} queries were generated and {log.show('result_query_count')} are in the result"
        yield error(log.path, what, WHOLE, AGAIN)


def _is_set(loaded: object, count: Number | None) -> bool:
    if not isinstance(loaded, list) or not all(isinstance(each, int) for each in loaded):
        return False
    return len(loaded) == len(set(loaded)) == count


# -- figures that fit each other --------------------------------------------------------------------------------------


def _check_figures(log: DetailLog, claim: Claim) -> Iterator[Problem]:
    said = list(_contradictions(log, claim))
    if said:
        more = f" (and {len(said) - 1} more contradictions)" if len(said) > 1 else ""
        rule = f"loadgen/results.cc computes all figures from the same samples; {PASSED_OVER}"
        yield error(log.path, f"the log contradicts itself: {said[0]}{more}", rule, AGAIN)


def _contradictions(log: DetailLog, claim: Claim) -> Iterator[str]:
    families = [LATENCY] + ([FIRST_TOKEN, PER_TOKEN] if claim.scenario != "Offline" else [])
    for family in families:
        yield from _disorder(log, *family)
    if claim.scenario != "Offline":
        for name in PERCENTILES:
            first, whole = FIRST_TOKEN[1].format(name), LATENCY[1].format(name)
            if _above(log.number(first), log.number(whole)):
                yield f"{first} is above {whole}"
    yield from _disagreeing_rates(log, claim)
    yield from _disagreeing_clocks(log, claim)


def _disorder(log: DetailLog, plain: str, percentile: str) -> Iterator[str]:
    """Minimum, percentiles and maximum rise, and the mean lies between the ends."""
    keys = [plain.format("min"), *(percentile.format(name) for name in PERCENTILES), plain.format("max")]
    if gone := [key for key in (*keys, plain.format("mean")) if log.number(key) is None]:
        yield f"{gone[0]} is {log.show(gone[0])}"
        return
    for lower, higher in pairwise(keys):
        if _above(log.number(lower), log.number(higher)):
            yield f"{lower} is above {higher}"
    mean = plain.format("mean")
    if _above(log.number(keys[0]), log.number(mean)) or _above(log.number(mean), log.number(keys[-1])):
        yield f"{mean} is not between {keys[0]} and {keys[-1]}"


def _above(lower: Number | None, higher: Number | None) -> bool:
    return lower is not None and higher is not None and lower > higher


def _near(one: float, other: float, share: float) -> bool:
    return abs(one - other) <= share * max(abs(one), abs(other))


def _disagreeing_rates(log: DetailLog, claim: Claim) -> Iterator[str]:
    """Samples and tokens per second, times the time they are of, give the counts; LoadGen logs six digits."""
    issued, tokens = samples_of(log), tokens_per_sample(log, claim)
    if claim.scenario == "Offline":
        rate, longest = log.number("result_samples_per_second"), log.number("result_max_latency_ns")
        if rate is None or longest is None or issued is None or not _near(rate * longest / NS, issued, 1e-4):
            yield "result_samples_per_second times result_max_latency_ns is not the number of samples"
    if claim.loadgen_scenario == "Server":
        scheduled, done = log.number("result_scheduled_samples_per_sec"), log.number("result_completed_samples_per_sec")
        planned = log.number("generated_query_duration")
        if not scheduled or not done or issued is None or planned is None:
            yield "the rates of samples are missing"
            return
        if not _near((issued - 1) / scheduled, planned / NS, 0.01):
            yield "result_scheduled_samples_per_sec does not fit generated_query_duration"
        if done > scheduled * 1.0001:
            yield "more samples were completed per second than were scheduled"
        yield from _disagreeing_tokens(log, tokens)
    most = claim.row.generation.max_tokens
    if claim.scenario != "SingleStream" and (tokens is None or not 1 <= tokens <= most + 1):
        yield f"answers have {'no' if tokens is None else f'{tokens:.1f}'} tokens on average, and 1 to {most} can be"


def _disagreeing_tokens(log: DetailLog, tokens: float | None) -> Iterator[str]:
    """LoadGen also logs tokens by the sum of latencies (in tokens per nanosecond)."""
    other, mean = log.number("result_token_throughput"), log.number("result_mean_latency_ns")
    if tokens is not None and other and mean and not _near(other * mean, tokens, 1e-3):
        yield "result_completed_tokens_per_second and result_token_throughput tell of different numbers of tokens"


def tokens_per_sample(log: DetailLog, claim: Claim) -> float | None:
    """Mean tokens of an answer, out of the rates; None where LoadGen logs none."""
    if claim.scenario == "Offline":
        tokens, samples = log.number("result_tokens_per_second"), log.number("result_samples_per_second")
        return tokens / samples if tokens is not None and samples else None
    tokens, samples = log.number("result_completed_tokens_per_second"), log.number("result_completed_samples_per_sec")
    count = log.number("result_query_count")
    return tokens / samples * (count - 1) / count if tokens is not None and samples and count else None


def _disagreeing_clocks(log: DetailLog, claim: Claim) -> Iterator[str]:
    """The wall clock, the log's own clock and the measured time are of one test."""
    wall = wall_seconds(log)
    if wall is None:
        yield "power_begin and power_end are no times"
        return
    end = next((line.time_ms / 1000 for line in log.lines if line.key == "power_end"), 0.0)
    if wall > 1.01 * end + 1:
        yield f"the test took {wall:.1f} s by the wall clock, and the log ended after {end:.1f} s"
    measured = _measured(log, claim)
    if measured is not None and measured > 1.01 * wall + 1:
        yield f"{measured:.1f} s were measured in a test that took {wall:.1f} s"


def wall_seconds(log: DetailLog) -> float | None:
    """From power_begin to power_end, which LoadGen writes as local times."""
    begin, end = (_when(log.text(key)) for key in ("power_begin", "power_end"))
    return None if begin is None or end is None else (end - begin).total_seconds()


def _when(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%m-%d-%Y %H:%M:%S.%f")
    except ValueError:
        return None


# -- user.conf --------------------------------------------------------------------------------------------------------


def check_user_conf(log: DetailLog | None, claim: Claim) -> Iterator[Problem]:
    """user.conf is there, and with the round's mlperf.conf explains the settings that the log reports."""
    path = claim.place.user_conf
    rule = "submission_checker, measurements_checks.py"
    try:
        text = read_text(path)
    except Unreadable as fault:
        yield error(path, f"user.conf {fault}", rule, "put the user.conf that LoadGen read")
        return
    if not text.strip():
        yield error(path, "user.conf is empty", rule, "put the user.conf that LoadGen read")
        return
    try:
        conf = read_conf(path, refuse=False)
    except ConfigError as fault:
        what = clean(str(fault).rstrip(".").removeprefix(f"{path}, "))
        yield error(path, what, "loadgen/test_settings_internal.cc would skip or misread it", "mend the line")
        return
    for (model, scenario, key), _ in sorted(conf.items()):
        if model in ("*", claim.model_key):
            yield from _refused(path, model, scenario, key)
    if log is not None:
        asked = _asked(conf, claim)
        reported = {key: value for key in log.values if (value := _plain(log.values[key])) is not None}
        for difference in reported_differences(asked, claim.loadgen_scenario, reported):
            rule = "submission_structure.md: the user.conf of this result; the checker of v6.1 does not compare"
            yield error(
                path, f"with the round's mlperf.conf, {difference}", rule, "put the user.conf that this run read"
            )


def _refused(path: Path, model: str, scenario: str, key: str) -> Iterator[Problem]:
    try:
        refuse_key(model, scenario, key, clean(f"{model}.{scenario}.{key}"))
    except ConfigError as fault:
        rule = "loadgen/test_settings_internal.cc skips it without a word"
        yield warning(path, clean(str(fault).rstrip(".")), rule, "remove the line")


def _plain(value: object) -> Number | None:
    return value if isinstance(value, bool) else number(value)


def _asked(conf: Mapping[tuple[str, str, str], Number], claim: Claim) -> dict[str, Number]:
    """What LoadGen runs with: user.conf before the round's settings; without a target_qps it takes 1."""
    keys = {key for _, _, key in conf} | set(claim.limits)
    own = {key: lookup(dict(conf), claim.model_key, claim.loadgen_scenario, key) for key in keys}
    asked = dict(claim.limits) | {key: value for key, value in own.items() if value is not None}
    return {key: value for key, value in asked.items() if key not in _UNREPORTED} | {
        "target_qps": asked.get("target_qps", 1.0)
    }


# LoadGen reports the seeds apart (check_seeds).
_UNREPORTED = frozenset({"qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"})
