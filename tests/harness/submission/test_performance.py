"""What is said of a performance run with other settings, another verdict, or figures that do not fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.submission.check import check
from harness.submission.claim import claimed
from harness.submission.figures import contradictions
from harness.submission.form import check_summary, check_whole, open_log
from harness.submission.logs import DetailLog
from harness.submission.tree import Scenario, Submitter
from tests.harness.submission.made_package import AUDITED, line
from tests.harness.submission.spoil import (
    ANSWERS,
    DETAIL,
    RUN,
    SUMMARY,
    Spoil,
    added,
    copied,
    gone,
    logged,
    replaced,
    said,
    spoiled_all,
)


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        ("LoadGen says INVALID", logged("result_validity", "INVALID"), "LoadGen says 'INVALID'"),
        (
            "an audit's settings in a real run",
            added(line("warning_generic_message", AUDITED, 7e5, is_warning=True)),
            "found an audit.config",
        ),
        ("an audit's sampling in a real run", logged("effective_accuracy_log_sampling_target", 100), "as in an audit"),
        (
            "the log of accuracy in performance",
            copied(f"Server/accuracy/{DETAIL}", f"{RUN}/{DETAIL}"),
            "is of mode 'AccuracyOnly'",
        ),
        (
            "the log of performance in accuracy",
            copied(f"{RUN}/{DETAIL}", f"Server/accuracy/{DETAIL}"),
            "is of mode 'PerformanceOnly'",
        ),
        (
            "the log of another scenario",
            copied(f"Offline/performance/run_1/{DETAIL}", f"{RUN}/{DETAIL}"),
            "is of scenario 'Offline'",
        ),
        ("token latencies off", logged("requested_use_token_latencies", False), "token latencies are not on"),
        (
            "samples not issued equally often",
            logged("effective_sample_concatenate_permutation", False),
            "sample_concatenate_permutation is off",
        ),
        (
            "a number of queries that is no whole pass",
            spoiled_all(logged("generated_query_count", 4000), logged("result_query_count", 4000)),
            "no multiple of the dataset's 4388",
        ),
        ("queries that were lost", logged("result_query_count", 4000), "4388 queries were generated and 4000"),
        ("fewer samples loaded", logged("loaded_qsl_set", [1, 2, 3]), "loaded_qsl_set is not a set"),
        ("another dataset", logged("qsl_reported_total_count", 99_999), "the sample library has 99999 samples"),
        (
            "fewer performance samples",
            logged("effective_performance_sample_count", 1024),
            "effective_performance_sample_count is 1024",
        ),
        (
            "fewer Offline samples",
            logged("effective_samples_per_query", 1000, "Offline/performance/run_1"),
            "effective_samples_per_query is 1000",
        ),
        ("a shorter duration asked", logged("effective_min_duration_ms", 60_000), "effective_min_duration_ms is 60000"),
        (
            "a shorter duration measured",
            logged("result_max_latency_ns", 300 * 10**9, "Offline/performance/run_1"),
            "the test lasted 300.0 s",
        ),
        ("early stopping not met", logged("early_stopping_met", False), "early_stopping_met is false"),
        (
            "constraints not met in a VALID log",
            logged("result_perf_constraints_met", False),
            "result_perf_constraints_met is false",
        ),
        (
            "a target latency of 30 s",
            logged("effective_target_latency_ns", 30 * 10**9),
            "effective_target_latency_ns is 30000000000",
        ),
        ("another percentile", logged("effective_target_latency_percentile", 0.9), "the percentile judged by is 0.9"),
        (
            "a limit of TTFT that is not Server's",
            logged("requested_server_ttft_latency", 5 * 10**9),
            "LoadGen judged TTFT by 5000000000 ns",
        ),
        (
            "TTFT above the limit",
            logged("result_first_token_99.00_percentile_latency_ns", 2 * 10**9),
            "the 99th percentile of TTFT is 2000000000 ns",
        ),
        (
            "TPOT above the limit",
            logged("result_time_per_output_token_99.00_percentile_ns", 100_000_000),
            "the 99th percentile of TPOT is 100000000 ns",
        ),
        (
            "TTFT is no number",
            logged("result_first_token_99.00_percentile_latency_ns", "low"),
            "the 99th percentile of TTFT is 'low' ns",
        ),
        (
            "a SUT behind a network in closed",
            logged("sut_name", "Network SUT of ours"),
            "not described as behind a network",
        ),
    ],
)
def test_a_performance_run_of_no_value_is_said(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        (
            "percentiles that fall",
            logged("result_99.00_percentile_latency_ns", 5),
            "result_97.00_percentile_latency_ns is above",
        ),
        ("a mean outside of its samples", logged("result_mean_latency_ns", 5), "result_mean_latency_ns is not between"),
        (
            "more tokens per second than samples have",
            logged("result_completed_tokens_per_second", 999.0),
            "tell of different numbers of tokens",
        ),
        (
            "twice the samples per second Offline",
            logged("result_samples_per_second", 41.775, "Offline/performance/run_1"),
            "is not the number of samples",
        ),
        (
            "more tokens than an answer can have Offline",
            logged("result_tokens_per_second", 9e5, "Offline/performance/run_1"),
            "tokens on average, and 1 to 20000 can be",
        ),
        (
            "more completed than scheduled",
            logged("result_completed_samples_per_sec", 50.0),
            "more samples were completed per second",
        ),
        (
            "a test shorter by the wall clock",
            logged("power_end", "11-01-2026 12:01:00.000"),
            "640.0 s were measured in a test that took 60.0 s",
        ),
        ("no wall clock", logged("power_end", "yesterday"), "power_begin and power_end are no times"),
    ],
)
def test_figures_that_contradict_each_other_are_said(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


@pytest.mark.parametrize(
    ("meaning", "spoil"),
    [
        ("its accuracy log is empty and need not be packed", gone(f"{RUN}/{ANSWERS}")),
        (
            "more Offline samples than are needed",
            spoiled_all(
                logged("effective_samples_per_query", 5000, "Offline/performance/run_1"),
                replaced(
                    f"Offline/performance/run_1/{SUMMARY}", "samples_per_query : 4388", "samples_per_query : 5000"
                ),
            ),
        ),
    ],
)
def test_what_the_rules_allow_is_right(meaning: str, spoil: Spoil, package: Path) -> None:
    spoil(package)
    report = check(package)
    assert not said(report) and not said(report, "warning"), (meaning, report.text())


@pytest.mark.parametrize("scenario", ["Offline", "Server", "SingleStream", "Interactive"])
def test_logs_that_loadgen_wrote_are_whole_and_fit_themselves(scenario: str, runs: dict[Any, Any]) -> None:
    folder = runs[scenario, "performance"].folder
    found = list(open_log(folder))
    assert [each for each in found if not isinstance(each, DetailLog)] == []
    log = found[-1]
    assert isinstance(log, DetailLog)
    assert list(check_whole(log)) == []
    assert list(check_summary(log, folder, performance=True)) == []
    as_demo = claimed(Scenario(Submitter(folder, "closed", "x"), "x", "demo", scenario), "demo", scenario)
    assert list(contradictions(log, as_demo)) == []
