"""Does the performance run show what it claims: the round's settings, a valid result, figures that fit each other?

Sources: [checker] submission_checker/checks/performance_check.py and LLM_LATENCY_LIMITS, [loadgen]
loadgen/{loadgen,results,early_stopping}.cc, [conf] loadgen/mlperf.conf, all of mlcommons/inference; [rules]
inference_rules.adoc of mlcommons/inference_policies. What the checker of v6.1 lets through is said in each rule.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.benchmarks import Number
from harness.submission.claim import Claim
from harness.submission.fields import NETWORK_SUT
from harness.submission.figures import FIRST_TOKEN, PER_TOKEN, contradictions, measured_seconds, samples_of
from harness.submission.form import AGAIN, WHOLE, check_errors, check_seeds, check_version, says_audit
from harness.submission.logs import DetailLog
from harness.submission.problem import Problem, clean, error, graded

CONF = "loadgen/mlperf.conf: the settings of the round"
CHECKER = "submission_checker, performance_check.py"
PASSED_OVER = "the checker of v6.1 passes it over"

# Results of one scenario that an edge system may give for another ([checker] inferred_check).
INFERRED = (("SingleStream", "MultiStream"), ("MultiStream", "Offline"), ("SingleStream", "Offline"))

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
        yield from _at_least(log, "effective_min_query_count", 1, "query", True)
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
    seconds, least = measured_seconds(log, claim), claim.limits.get("min_duration", 0) / 1000
    if seconds is not None and seconds < least:
        what = f"the test lasted {seconds:.1f} s, and at least {least:g} s are needed"
        offline = claim.scenario == "Offline"
        fix = "raise target_qps, from which LoadGen derives the length" if offline else "run again at its full length"
        yield error(log.path, what, f"{CONF}; {PASSED_OVER}", fix)


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


def _check_figures(log: DetailLog, claim: Claim) -> Iterator[Problem]:
    said = list(contradictions(log, claim))
    if said:
        more = f" (and {len(said) - 1} more contradictions)" if len(said) > 1 else ""
        rule = f"loadgen/results.cc computes all figures from the same samples; {PASSED_OVER}"
        yield error(log.path, f"the log contradicts itself: {said[0]}{more}", rule, AGAIN)
