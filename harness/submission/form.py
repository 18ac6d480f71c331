"""Is a log LoadGen's own and whole, of the round's LoadGen, and does it agree with its summary?

Sources: [loadgen] loadgen/{loadgen,logging,results,version}.cc of mlcommons/inference at 6.0.17, [checker]
submission_checker/checks/performance_check.py and parsers/loadgen_parser.py, [conf] loadgen/mlperf.conf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.benchmarks import Number
from harness.results import DETAIL
from harness.submission.claim import LOADGEN, ROUND
from harness.submission.contents import Unreadable
from harness.submission.logs import DetailLog, read_detail_log, read_summary
from harness.submission.problem import Problem, clean, error, warning
from harness.submission.tree import SUMMARY

WHOLE = "loadgen/logging.cc: a log is LoadGen's lines alone, from loadgen_version to power_end"
AGAIN = "put the log as LoadGen wrote it, or run the test again"
SEEDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")

# Keys that a test logs once; twice means two tests in one log, of which readers see one or the other.
_ONCE = ("loadgen_version", "test_datetime", "effective_scenario", "effective_test_mode", "result_validity")

# What LoadGen writes into every log, and every performance log of a model with token latencies.
_ASKED = (
    *("scenario", "test_mode", "min_duration_ms", "max_duration_ms", "min_query_count", "max_query_count", *SEEDS),
    *("accuracy_log_rng_seed", "accuracy_log_probability", "accuracy_log_sampling_target", "print_timestamps"),
    *("performance_issue_unique", "performance_issue_same", "performance_issue_same_index"),
    "sample_concatenate_permutation",
)
_USED = (
    *("samples_per_query", "target_qps", "target_latency_ns", "target_latency_percentile", "max_async_queries"),
    *("target_duration_ms", "min_sample_count", "performance_sample_count"),
)
_ALWAYS = (
    *("loadgen_version", "loadgen_git_status_message", "loadgen_file_sha1", "test_datetime", "sut_name", "qsl_name"),
    *("qsl_reported_total_count", "qsl_reported_performance_count", "requested_performance_sample_count_override"),
    *(f"requested_{name}" for name in _ASKED),
    *(f"effective_{name}" for name in (*_ASKED, *_USED)),
    *("loaded_qsl_set", "generated_query_count", "generated_samples_per_query", "generated_query_duration"),
    "power_begin",
)
# LoadGen takes these as they were asked for (loadgen/test_settings_internal.cc); others it adapts to the scenario.
_KEPT = tuple(name for name in _ASKED if name != "min_query_count")
_RESULT = (
    "result_validity",
    "result_query_count",
    "early_stopping_ttft_result",
    "early_stopping_tpot_result",
    "num_errors",
)
_RESULT_IN = {
    "Offline": ("result_samples_per_second", "result_tokens_per_second"),
    "Server": (
        *("result_scheduled_samples_per_sec", "result_completed_samples_per_sec"),
        *("result_completed_tokens_per_second", "result_token_throughput"),
    ),
    "SingleStream": (
        *("result_qps_with_loadgen_overhead", "result_qps_without_loadgen_overhead"),
        *("early_stopping_latency_ss", "early_stopping_latency_ms"),
    ),
}


def open_log(folder: Path) -> Iterator[Problem | DetailLog]:
    """The detail log of a folder, after what is wrong with its form; no log if it cannot be read."""
    path = folder / DETAIL
    try:
        log = read_detail_log(path)
    except Unreadable as fault:
        yield error(path, f"the detail log {fault}", WHOLE, AGAIN)
        return
    if not log.lines:
        yield error(path, "the detail log holds no line of LoadGen's", WHOLE, AGAIN)
        return
    yield from check_whole(log)
    yield log


def check_whole(log: DetailLog) -> Iterator[Problem]:
    """Whether lines are missing, foreign, from two tests, or out of order."""
    said = []
    if log.damaged:
        said.append(f"{len(log.damaged)} lines are not as LoadGen writes them, the first is line {log.damaged[0]}")
    if log.lines[0].key != "loadgen_version" and not log.lines[0].error:
        said.append("the log does not begin with loadgen_version")
    if not log.ended:
        said.append("the last line is cut off")
    if "power_end" not in log.values:
        said.append("the log has no power_end, with which a test ends")
    elif lacking := _lacking(log):
        said.append(f"the log lacks {len(lacking)} lines that LoadGen always writes, the first is {lacking[0]}")
    for name in _KEPT:
        asked, used = f"requested_{name}", f"effective_{name}"
        if asked in log.values and used in log.values and log.values[asked] != log.values[used]:
            said.append(f"{asked} is {log.show(asked)} and {used} is {log.show(used)}")
    if twice := [key for key in _ONCE if log.times.get(key, 0) > 1]:
        said.append(f"{', '.join(twice)} stand in the log more than once: it holds two tests")
    if len({line.process for line in log.lines}) > 1:
        said.append("the log has lines of several processes")
    if (late := _out_of_order(log)) is not None:
        said.append(f"line {late} is earlier than the line before it of the same thread")
    for what in said:
        yield error(log.path, what, WHOLE, AGAIN)


def _lacking(log: DetailLog) -> list[str]:
    needed = _ALWAYS
    if log.values.get("effective_test_mode") == "PerformanceOnly":
        needed += _RESULT + _RESULT_IN.get(log.text("effective_scenario"), ())
    return [key for key in needed if key not in log.values]


def _out_of_order(log: DetailLog) -> int | None:
    """The first line whose time runs backwards; errors of the time before the test carry a time of no meaning."""
    last: dict[int, float] = {}
    for line in log.lines:
        if line.error:
            continue
        if line.time_ms < last.get(line.thread, 0.0):
            return line.number
        last[line.thread] = line.time_ms
    return None


def check_version(log: DetailLog) -> Iterator[Problem]:
    """The round's LoadGen, unchanged."""
    rule = f"the round {ROUND} is run with its own LoadGen, {'.'.join(map(str, LOADGEN))}"
    fix = f"run again with mlcommons-loadgen {'.'.join(map(str, LOADGEN))}"
    found = re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})\b", log.version)
    if found is None:
        yield error(log.path, f"loadgen_version is {log.show('loadgen_version')}", rule, fix)
    elif (version := tuple(map(int, found.groups()))) < LOADGEN:
        yield error(log.path, f"LoadGen is {clean(log.version)}, older than the round's", rule, fix)
    elif version > LOADGEN:
        yield warning(log.path, f"LoadGen is {clean(log.version)}, newer than the round's", rule, fix)
    if log.values.get("loadgen_git_status_message", "") != "":
        what = "LoadGen was built with changes that were not committed"
        yield error(log.path, what, "loadgen/version.cc", fix)


def check_errors(log: DetailLog) -> Iterator[Problem]:
    """No line is an error; VALID does not say so."""
    rule = "LoadGen's errors make a result invalid (inference_rules.adoc); the checker of v6.1 passes them over"
    fix = "mend what LoadGen complains of and run the test again"
    if log.errors:
        what = f"LoadGen logged {len(log.errors)} errors, the first: {clean(log.errors[0], 200)}"
        yield error(log.path, what, rule, fix)
    elif (count := log.number("num_errors")) or ("num_errors" in log.values and count is None):
        yield error(log.path, f"num_errors is {log.show('num_errors')}, and no line is an error", WHOLE, AGAIN)


def check_seeds(log: DetailLog, limits: Mapping[str, Number]) -> Iterator[Problem]:
    """The round's three seeds, as asked and as used."""
    keys = [f"{kind}_{name}" for name in SEEDS for kind in ("effective", "requested")]
    wrong = [key for key in keys if log.number(key) != limits[key.partition("_")[2]]]
    if wrong:
        said = f"{wrong[0]} is {log.show(wrong[0])}, and the round's is {limits[wrong[0].partition('_')[2]]}"
        what = f"the seeds are not those of round {ROUND}: {said}"
        yield error(
            log.path, what, "loadgen/mlperf.conf; submission_checker, seeds_check", "run again with the round's LoadGen"
        )


def says_audit(log: DetailLog) -> bool:
    """Whether LoadGen found an audit file and let it change the settings."""
    return any(isinstance(line.value, str) and "Found Audit Config file" in line.value for line in log.lines)


# -- the summary ------------------------------------------------------------------------------------------------------

# The summary's label -> the detail log's key.
FIGURES = {
    "Completed samples per second": "result_completed_samples_per_sec",
    "Completed tokens per second": "result_completed_tokens_per_second",
    "Samples per second": "result_samples_per_second",
    "Tokens per second": "result_tokens_per_second",
    "Scheduled samples per second": "result_scheduled_samples_per_sec",
    "QPS w/ loadgen overhead": "result_qps_with_loadgen_overhead",
    "QPS w/o loadgen overhead": "result_qps_without_loadgen_overhead",
    "Min latency (ns)": "result_min_latency_ns",
    "Max latency (ns)": "result_max_latency_ns",
    "Mean latency (ns)": "result_mean_latency_ns",
    "Min First Token latency (ns)": "result_first_token_min_latency_ns",
    "Max First Token latency (ns)": "result_first_token_max_latency_ns",
    "Mean First Token latency (ns)": "result_first_token_mean_latency_ns",
    "Min Time per Output Token (ns)": "result_time_to_output_token_min",
    "Max Time per Output Token (ns)": "result_time_to_output_token_max",
    "Mean Time per Output Token (ns)": "result_time_to_output_token_mean",
    "samples_per_query": "effective_samples_per_query",
    "target_qps": "effective_target_qps",
    "min_duration (ms)": "effective_min_duration_ms",
    "max_duration (ms)": "effective_max_duration_ms",
    "min_query_count": "effective_min_query_count",
    "max_query_count": "effective_max_query_count",
    "performance_sample_count": "effective_performance_sample_count",
    "accuracy_sample_count": "effective_accuracy_sample_count",
    "accuracy_log_sampling_target": "effective_accuracy_log_sampling_target",
    **{name: f"effective_{name}" for name in SEEDS},
}
_PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")
FIGURES |= {f"{p} percentile latency (ns)": f"result_{p}_percentile_latency_ns" for p in _PERCENTILES}
FIGURES |= {
    f"{p} percentile first token latency (ns)": f"result_first_token_{p}_percentile_latency_ns" for p in _PERCENTILES
}
FIGURES |= {
    f"{p} percentile time to output token (ns)": f"result_time_per_output_token_{p}_percentile_ns" for p in _PERCENTILES
}
_WORDS = {
    "SUT name": "sut_name",
    "Scenario": "effective_scenario",
    "Mode": "effective_test_mode",
    "Result is": "result_validity",
}
_VERDICTS = {
    "Performance constraints satisfied": "result_perf_constraints_met",
    "Min duration satisfied": "result_min_duration_met",
    "Min queries satisfied": "result_min_queries_met",
    "Early stopping satisfied": "early_stopping_met",
}


def check_summary(log: DetailLog, folder: Path, performance: bool) -> Iterator[Problem]:
    """mlperf_log_summary.txt is there and says what the detail log says; in accuracy mode it only counts errors."""
    path = folder / SUMMARY
    rule = "loadgen/results.cc writes both logs from the same figures; the checker of v6.1 does not look"
    try:
        said = read_summary(path)
    except Unreadable as fault:
        yield error(path, f"the summary {fault}", "submission_structure.md; the checker of v6.1 does not look", AGAIN)
        return
    if "power_end" not in log.values:
        return  # there is nothing to compare with; check_whole says so
    if performance and "Result is" not in said:
        yield error(path, "the summary holds no verdict", rule, AGAIN)
        return
    if not performance and "Result is" in said:
        what = f"the summary is of a test in mode {clean(said.get('Mode', '?'))}, and accuracy mode leaves no verdict"
        yield error(path, what, rule, "put the summary that belongs to the accuracy run")
        return
    differing = list(_differences(said, log))
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        yield error(path, f"the summary departs from the detail log: {differing[0]}{more}", rule, AGAIN)


def _differences(said: Mapping[str, str], log: DetailLog) -> Iterator[str]:
    for label, key in _WORDS.items():
        if label in said and said[label].replace(" ", "") != log.text(key).replace(" ", ""):
            yield f"{label!r} is {clean(said[label])} and {key} is {log.show(key)}"
    for label, key in _VERDICTS.items():
        if label in said and (said[label] == "Yes") is not (log.values.get(key) is True):
            yield f"{label!r} is {clean(said[label])} and {key} is {log.show(key)}"
    # SingleStream's summary has the tokens per second by other names.
    needed = (label for label, key in FIGURES.items() if key in log.values and label != "Completed tokens per second")
    if "Result is" in said and (lacking := [label for label in needed if label not in said]):
        yield f"it lacks {len(lacking)} figures that the other has, the first is {lacking[0]!r}"
    for label, key in FIGURES.items():
        if label in said and not _same(said[label], log.number(key)):
            yield f"{label!r} is {clean(said[label])} and {key} is {log.show(key)}"


def _same(text: str, logged: int | float | None) -> bool:
    """Whether a figure of the summary (whole, or with two decimals) is the one of the detail log (six digits)."""
    if logged is None:
        return False
    if re.fullmatch(r"\d{1,20}", text) and isinstance(logged, int):
        return int(text) == logged
    try:
        figure = float(text)
    except ValueError:
        return False
    return abs(figure - logged) <= 0.00501 + 1e-5 * abs(logged)


def same_loadgen(logs: Mapping[str, DetailLog]) -> Iterator[Problem]:
    """The tests of one scenario ran with one LoadGen, built from the same files."""
    names = list(logs)
    for name in names[1:]:
        one, other = logs[names[0]], logs[name]
        files = (one.values.get("loadgen_file_sha1"), other.values.get("loadgen_file_sha1"))
        if one.version != other.version:
            what = f"this test ran with LoadGen {clean(other.version)}, the {names[0]} test with {clean(one.version)}"
        elif files[0] != files[1]:
            what = f"this LoadGen is built from other files than the {names[0]} test's of the same version"
        else:
            continue
        rule = "inference_rules.adoc: one system under test, and LoadGen as released"
        yield error(other.path, what, rule, "run all tests of a scenario with the same LoadGen")
