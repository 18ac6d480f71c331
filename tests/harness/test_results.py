"""What a test came to, decided by pure functions from LoadGen's log and the SUT's books, and saved whole or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import results
from harness.conf import reported_differences
from harness.config import RunConfig, resolve
from harness.recorder import Recorder
from harness.results import Facts, Log, RunResult
from sut.errors import SetupError, Stalled
from sut.query import Outcome, Query, as_tokens

FACTS = Facts(
    status="complete",
    stopped_by=None,
    issued=1024,
    completed=1024,
    failures={},
    first_failure=None,
    failed_on={},
    retries={},
    first_retry=None,
    duration=10.0,
    replicas=[],
    loop_cpu=1.0,
    process_cpu=2.0,
)


def line(key: str, value: Any, is_error: bool = False) -> str:
    metadata = {"is_error": is_error, "is_warning": False, "file": "loadgen.cc", "line_no": 1, "pid": 1, "tid": 1}
    return ":::MLLOG " + json.dumps({"key": key, "value": value, "time_ms": 0.1, "metadata": metadata})


def config(scenario: str = "Server", **options: Any) -> RunConfig:
    return resolve(scenario=scenario, backend=options.pop("backend", "vllm"), **options)


def as_the_demo_asks() -> dict[str, Any]:
    """What LoadGen reports of a Server test of the demo that has the benchmark's own settings and the round's seeds."""
    return {
        "result_validity": "VALID",
        "effective_qsl_rng_seed": 2085463073848966840,
        "effective_sample_index_rng_seed": 2747215439041700203,
        "effective_schedule_rng_seed": 16159082839903944936,
        "effective_min_duration_ms": 10_000,
        "effective_max_duration_ms": 0,
        "requested_min_query_count": 512,
        "effective_performance_sample_count": 512,
        "effective_sample_concatenate_permutation": True,
        "requested_use_token_latencies": True,
        "effective_target_qps": 20,
        "effective_target_latency_ns": 0,
        "effective_target_latency_percentile": 0.99,
        "requested_server_ttft_latency": 2_000_000_000,
        "requested_server_tpot_latency": 200_000_000,
    }


# -- LoadGen's log ---------------------------------------------------------------------------------------------


def test_the_last_value_of_a_key_counts_and_every_error_is_kept(tmp_path: Path) -> None:
    path = tmp_path / results.DETAIL
    path.write_text(
        "\n".join(
            [
                line("result_validity", "INVALID"),
                "something else that was printed",
                line("error_runtime", "a sample was completed twice", is_error=True),
                line("result_validity", "VALID"),
                line("error_runtime", "and another", is_error=True),
            ]
        )
    )
    log = results.read_detail(path)
    assert log.verdict == "VALID"
    assert log.errors == ("error_runtime: a sample was completed twice", "error_runtime: and another")


def test_an_error_line_that_is_no_json_counts_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / results.DETAIL
    broken = ':::MLLOG {"key": "error_runtime", "value": "cannot open "x"", "metadata": {"is_error": true}}'
    harmless = ':::MLLOG {"key": "generic_message", "value": "a "word"", "metadata": {"is_error": false}}'
    path.write_text("\n".join([line("result_validity", "VALID"), harmless, broken]))
    log = results.read_detail(path)
    assert (log.verdict, log.errors) == ("VALID", (broken,))


def test_a_log_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / results.DETAIL
    path.write_text(line("effective_target_qps", 20) + "\n" + line("result_validity", "VALID")[:40])
    log = results.read_detail(path)
    assert (log.values, log.errors, log.verdict) == ({"effective_target_qps": 20}, (), None)


def test_a_test_that_never_began_has_no_log(tmp_path: Path) -> None:
    assert results.read_detail(tmp_path / "missing.txt") == Log()


# -- valid or not ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "log", "reasons"),
    [
        ({}, {}, []),
        (
            {"status": "aborted", "stopped_by": "no replica is left", "failures": {"abandoned": 3, "stalled": 1},
             "first_failure": "sample 7: it stalled"},
            {},
            ["the test was aborted: no replica is left",
             "4 of 1024 queries failed (abandoned 3, stalled 1); the first: sample 7: it stalled"],
        ),
        # interrupted: LoadGen never came to a verdict, and is not asked for one
        ({"status": "interrupted", "stopped_by": "Ctrl-C"}, {"result_validity": None},
         ["the test was interrupted: Ctrl-C"]),
        # one failed query is enough, whatever LoadGen says
        ({"failures": {"stalled": 1}, "first_failure": "sample 7: it stalled"}, {},
         ["1 of 1024 queries failed (stalled 1); the first: sample 7: it stalled"]),
        ({"retries": {"replica_died": 2}}, {}, ["2 queries were retried, and the failure policy is strict"]),
        ({}, {"result_validity": "INVALID", "result_invalid_reason": "Min duration not met.\nTry more.\n"},
         ["LoadGen says INVALID: Min duration not met. Try more."]),
        ({}, {"result_validity": None}, ["LoadGen says nothing"]),
        ({}, {"effective_min_duration_ms": 0},
         ["asked: min_duration is 10000 and LoadGen ran with effective_min_duration_ms = 0"]),
    ],
)  # fmt: skip
def test_invalid_reasons_of_a_performance_test(facts: dict[str, Any], log: dict[str, Any], reasons: list[str]) -> None:
    values = {key: value for key, value in (as_the_demo_asks() | log).items() if value is not None}
    assert results.invalid_reasons(config(), replace(FACTS, **facts), Log(values), None, 1024) == reasons


def test_an_error_line_makes_a_test_invalid_that_loadgen_calls_valid() -> None:
    log = Log(as_the_demo_asks(), ("error_runtime: first", "error_runtime: second"))
    assert results.invalid_reasons(config(), FACTS, log, None, 1024) == [
        "LoadGen logged 2 errors; the first: error_runtime: first"
    ]


def test_a_resilient_test_may_retry() -> None:
    resilient = config(failure_policy="resilient")
    assert (
        results.invalid_reasons(
            resilient, replace(FACTS, retries={"replica_died": 2}), Log(as_the_demo_asks()), None, 1024
        )
        == []
    )


@pytest.mark.parametrize(
    ("answered", "reasons"),
    [
        ([2, 0, 1], []),
        ([2, 0], ["1 of 3 samples have no answer in LoadGen's log (first: 1)"]),
        ([2, 0, 1, 2], ["1 samples have more than one answer in LoadGen's log (first: 2)"]),
        (
            [2, 2],
            [
                "2 of 3 samples have no answer in LoadGen's log (first: 0)",
                "1 samples have more than one answer in LoadGen's log (first: 2)",
            ],
        ),
        (None, ["3 of 3 samples have no answer in LoadGen's log (first: 0)"]),
    ],
)
def test_in_accuracy_mode_each_sample_is_answered_once(answered: list[int] | None, reasons: list[str]) -> None:
    log = Log({**as_the_demo_asks(), "result_validity": None})
    assert results.invalid_reasons(config(mode="accuracy"), FACTS, log, answered, 3) == reasons


# -- for a submission or not -----------------------------------------------------------------------------------

# The demo is never for a submission; whatever else is wrong comes beside this.
NEVER = "demo is no benchmark of MLCommons"


@pytest.mark.parametrize(
    ("options", "facts", "log", "how", "reason"),
    [
        ({}, {}, {}, {}, None),
        ({}, {}, {}, {"valid": False}, "the result is not valid"),
        ({}, {}, {}, {"passed": False}, "accuracy is below its target"),
        ({}, {}, {}, {"passed": None}, "this run does not show that accuracy is met"),
        ({}, {}, {}, {"total": 64}, "the samples are not the benchmark's own 1024"),
        ({"dataset": "/mine.jsonl"}, {}, {}, {}, "the samples are not the benchmark's own 1024"),
        ({"model": "/mine"}, {}, {}, {}, "the model is /mine, not the benchmark's {model}"),
        ({}, {}, {"effective_min_duration_ms": 300}, {},
         "the benchmark's min_duration is 10000 and LoadGen ran with effective_min_duration_ms = 300"),
        ({}, {}, {"effective_schedule_rng_seed": 16159082839903944937}, {},
         "the benchmark's schedule_rng_seed is 16159082839903944936 and LoadGen ran with effective_schedule_rng_seed = "
         "16159082839903944937"),
        ({}, {}, {"requested_server_ttft_latency": 3_000_000_000}, {},
         "the benchmark's ttft_latency is 2000 and LoadGen ran with requested_server_ttft_latency = 3000000000"),
        # the rate is the submitter's own choice
        ({"target_qps": 3.0}, {}, {"effective_target_qps": 3}, {}, None),
        ({"engine_arg": {"enable_prefix_caching": True}}, {}, {}, {}, "prefix caching is on"),
        ({"engine_arg": {"enable_prefix_caching": False}}, {}, {}, {}, None),
        ({}, {"retries": {"replica_died": 2}}, {}, {}, "2 queries were retried"),
        ({}, {}, {}, {"stray_audit": True}, "an audit.config lies in the working directory (it was not used)"),
        ({"backend": "echo"}, {}, {}, {}, "the echo backend is a rehearsal: no model answered"),
    ],
)  # fmt: skip
def test_not_ready_reasons(
    options: dict[str, Any], facts: dict[str, Any], log: dict[str, Any], how: dict[str, Any], reason: str | None
) -> None:
    resolved = config(**options)
    said = {"valid": True, "passed": True, "total": 1024, "stray_audit": False, "engines": {}} | how
    found = results.not_ready_reasons(resolved, replace(FACTS, **facts), Log(as_the_demo_asks() | log), **said)
    assert found == [NEVER] if reason is None else found == [NEVER, reason.format(model=resolved.row.model)]


def test_a_shortened_answer_is_not_for_a_submission() -> None:
    shorter = replace(config(), generation=replace(config().generation, max_tokens=16))
    found = results.not_ready_reasons(shorter, FACTS, Log(as_the_demo_asks()), True, True, 1024, False, {})
    assert found == [NEVER, "answers are not made as the benchmark asks"]


def test_sampling_is_for_a_submission_where_the_benchmark_asks_for_it() -> None:
    asked = config(benchmark="gpt-oss-120b", dataset="rows.parquet", mode="accuracy")
    greedy = replace(asked, generation=replace(asked.generation, temperature=0.0))
    for resolved, said in ((asked, False), (greedy, True)):
        found = results.not_ready_reasons(resolved, FACTS, Log(), True, True, 4395, False, {})
        assert ("answers are not made as the benchmark asks" in found) == said
        assert not any(reason.startswith("the samples are not") for reason in found)


# -- figures ---------------------------------------------------------------------------------------------------


def recorded(*rows: tuple[float, float, int, bool]) -> Recorder:
    """Rows of (seconds to the first token, latency, tokens, failed)."""
    recorder = Recorder(["echo-0"])
    for index, (first, last, tokens, failed) in enumerate(rows):
        query = Query(index, index, as_tokens([1]), bool(first), 8, 100.0)
        failure = Stalled("it stalled") if failed else None
        moments = {"first_token": 100.0 + first if first else 0.0, "last_byte": 100.0 + last}
        recorder.add([(query, Outcome(as_tokens(range(tokens)), "stop", failure, "echo-0", **moments))])
    return recorder


def test_own_figures_count_good_answers_alone_where_loadgen_has_none() -> None:
    recorder = recorded((1.0, 2.0, 11, False), (3.0, 4.0, 3, False), (0.5, 99.0, 7, True))
    figures = results.metrics(Log(), recorder, 4.0)
    assert figures["source"] == "harness"
    assert figures["samples_per_second"] == 0.5
    assert figures["tokens_per_second"] == 3.5
    assert figures["ttft_s"] == {"mean": 2.0, "p50": 3.0, "p90": 3.0, "p99": 3.0, "p99_9": 3.0, "max": 3.0}
    assert figures["tpot_s"]["mean"] == pytest.approx(0.3)
    assert figures["latency_s"]["max"] == 4.0


def test_own_figures_of_offline_have_no_first_token() -> None:
    figures = results.metrics(Log(), recorded((0.0, 2.0, 11, False)), 4.0)
    assert (figures["ttft_s"], figures["tpot_s"]) == ({}, {})
    assert figures["latency_s"]["mean"] == 2.0


def test_figures_of_a_closed_loop_are_the_harnesss_own() -> None:
    log = Log({"result_mean_latency_ns": 9e9, "result_samples_per_second": 7.0})
    recorder = recorded((1.0, 2.0, 11, False))
    figures = results.metrics(log, recorder, 4.0, closed=True)
    assert (figures["source"], figures["latency_s"]["mean"], figures["samples_per_second"]) == ("harness", 2.0, 0.25)
    assert results.overhead(log, recorder, FACTS, scheduled=False)["schedule_lag_s"] is None


@pytest.mark.parametrize(
    ("gaps", "known"),
    [
        (None, None),  # frames may hold several tokens
        ([], None),  # a backend without frames
        ([0.1, 0.3], None),  # of 8 gaps in 9 tokens, too few; the failed answer counts for nothing
        ([0.1, 0.1, 0.3, 0.1, 0.1, 0.1], 0.75),
        ([0.1] * 9, 1.0),  # those of a failed answer are among them
    ],
)
def test_inter_token_latency_says_of_how_many_tokens_it_is_known(gaps: list[float] | None, known: float | None) -> None:
    figures = results.inter_token(recorded((1.0, 2.0, 9, False), (1.0, 2.0, 7, True)), gaps)
    assert figures.get("itl_known_share") == known
    if gaps and known:
        assert figures["itl_s"]["mean"] == pytest.approx(sum(gaps) / len(gaps))


def test_a_test_without_an_answer_has_no_figures() -> None:
    figures = results.metrics(Log(), Recorder([]), 0.0)
    assert figures["samples_per_second"] == figures["tokens_per_second"] == 0.0
    assert figures["latency_s"] == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {}),
        ([float("nan")], {}),
        ([1.0, float("nan"), 3.0], {"mean": 2.0, "p50": 3.0, "p90": 3.0, "p99": 3.0, "p99_9": 3.0, "max": 3.0}),
    ],
)
def test_summarise(values: list[float], expected: dict[str, float]) -> None:
    assert results.summarise(np.array(values)) == expected


@pytest.mark.parametrize("scenario", ["Offline", "Server", "SingleStream", "MultiStream"])
def test_figures_are_loadgens_own_where_it_has_them(runs: dict[Any, Any], scenario: str) -> None:
    run = runs[scenario, "performance"]
    log, figures, told = results.read_detail(run.folder / results.DETAIL), run.result["metrics"], run.logged
    assert log.errors == ()
    assert figures["source"] == "loadgen"
    assert figures["latency_s"]["mean"] == told["result_mean_latency_ns"] / 1e9
    assert figures["latency_s"]["p99_9"] == told["result_99.90_percentile_latency_ns"] / 1e9
    if scenario == "Offline":
        assert figures["samples_per_second"] == told["result_samples_per_second"]
        assert figures["tokens_per_second"] == told["result_tokens_per_second"]
        assert (figures["ttft_s"], figures["tpot_s"]) == ({}, {})
        return
    assert figures["ttft_s"]["p99"] == told["result_first_token_99.00_percentile_latency_ns"] / 1e9
    assert figures["tpot_s"]["p99"] == told["result_time_per_output_token_99.00_percentile_ns"] / 1e9
    assert list(figures["tpot_s"]) == ["mean", "p50", "p90", "p99", "p99_9", "max"]
    if scenario == "Server":
        assert figures["samples_per_second"] == told["result_completed_samples_per_sec"]
        assert figures["tokens_per_second"] == told["result_completed_tokens_per_second"]
    assert figures["samples_per_second"] > 0


@pytest.mark.parametrize(
    ("lag", "busy", "figures", "limited"),
    [
        (0.004, 0.1, {"ttft_s": {"mean": 0.1}, "latency_s": {"mean": 1.0}}, False),
        # of the time to the first token, where there is one
        (0.006, 0.1, {"ttft_s": {"mean": 0.1}, "latency_s": {"mean": 1.0}}, True),
        (0.006, 0.1, {"ttft_s": {}, "latency_s": {"mean": 1.0}}, False),
        (0.06, 0.1, {"ttft_s": {}, "latency_s": {"mean": 1.0}}, True),
        (None, 0.89, {"ttft_s": {}, "latency_s": {}}, False),
        (None, 0.91, {"ttft_s": {}, "latency_s": {}}, True),
        (0.5, 0.1, {"ttft_s": {}, "latency_s": {}}, False),
    ],
)
def test_client_limited(lag: float | None, busy: float, figures: dict[str, Any], limited: bool) -> None:
    cost = {"schedule_lag_s": lag, "loop_busy_share": busy, "cpu_s_per_1000_queries": 1.0}
    assert results.is_client_limited(cost, figures) is limited


def test_schedule_lag_is_the_difference_of_the_means() -> None:
    log = Log({"result_first_token_mean_latency_ns": 2.5e9, "result_mean_latency_ns": 9e9})
    cost = results.overhead(log, recorded((1.0, 2.0, 5, False), (3.0, 4.0, 5, False)), FACTS)
    assert cost["schedule_lag_s"] == pytest.approx(0.5)
    assert cost["loop_busy_share"] == 0.1
    assert cost["cpu_s_per_1000_queries"] == pytest.approx(1000 * 2.0 / 1024)
    offline = results.overhead(Log({"result_mean_latency_ns": 2.25e9}), recorded((0.0, 2.0, 5, False)), FACTS)
    assert offline["schedule_lag_s"] == pytest.approx(0.25)
    assert results.overhead(Log(), Recorder([]), FACTS)["schedule_lag_s"] is None


# -- result.json -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "valid", "passed", "code"),
    [
        ("complete", True, None, 0),
        ("complete", True, True, 0),
        ("complete", True, False, 5),
        ("complete", False, False, 4),  # not valid wins over below target
        ("complete", False, True, 4),
        ("aborted", False, None, 4),
        ("interrupted", False, None, 130),
    ],
)
def test_exit_codes(status: str, valid: bool, passed: bool | None, code: int) -> None:
    content = {"status": status, "valid": valid, "accuracy": {"passed": passed}}
    assert RunResult(content, Path()).exit_code == code


@pytest.mark.parametrize(
    ("mode", "accuracy", "compliance", "code"),
    [
        ("accuracy", {"passed": None, "targets": {"rougeLsum": {}}}, None, 3),  # a target that cannot be decided here
        ("accuracy", {"passed": None, "targets": {}}, None, 0),  # no target for this dataset
        ("performance", {"passed": None}, {"passed": True}, 0),
        ("performance", {"passed": None}, {"passed": False}, 5),
        ("performance", {"passed": None}, {"passed": None}, 3),
        ("performance", {"passed": False}, {"passed": None}, 5),  # below target wins over undecided
    ],
)
def test_exit_codes_of_verdicts(mode: str, accuracy: Any, compliance: Any, code: int) -> None:
    content = {"status": "complete", "valid": True, "mode": mode, "accuracy": accuracy, "compliance": compliance}
    assert RunResult(content, Path()).exit_code == code


def test_a_result_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        RunResult({"format_version": 1, "lag": object()}, tmp_path).save()
    assert not (tmp_path / results.RESULT).exists()
    good = RunResult({"format_version": 1, "lag": 0.5}, tmp_path)
    good.save()
    assert results.load(tmp_path) == good
    assert [path.name for path in tmp_path.iterdir()] == [results.RESULT]


def test_what_json_cannot_hold_costs_no_result(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    RunResult({"format_version": 1, "lag": nan, "deep": [{"rate": inf}, (1, -inf)], "good": 0.5}, tmp_path).save()
    assert results.load(tmp_path).content == {
        "format_version": 1,
        "lag": None,
        "deep": [{"rate": None}, [1, None]],
        "good": 0.5,
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "{folder} holds no finished result: cannot read result.json: No such file or directory."),
        ('{"format_version": 1', "{folder}/result.json is not valid JSON: "),
        ('{"format_version": 99}', "{folder}/result.json has format 99, and this harness reads 1."),
        ("{}", "{folder}/result.json has format None, and this harness reads 1."),
        ("[]", "{folder}/result.json"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / results.RESULT).write_text(text)
    with pytest.raises(SetupError) as refused:
        results.load(tmp_path)
    assert str(refused.value).startswith(sentence.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"status": None}, "$.status"),
        ({"valid": "yes"}, "$.valid"),
        ({"scenario": 4}, "$.scenario"),
        ({"mode": []}, "$.mode"),
        ({"benchmark": None}, "$.benchmark"),
        ({"invalid_reasons": "one"}, "$.invalid_reasons"),
        ({"not_ready_reasons": [1]}, "$.not_ready_reasons[0]"),
        ({"replicas": {}}, "$.replicas"),
        ({"accuracy": None}, "$.accuracy"),
        ({"environment": []}, "$.environment"),
        ({"environment": {"dataset_sha256": 7}}, "$.environment.dataset_sha256"),
        ({"config": None}, "$.config"),
        ({"config": {"samples": "all"}}, "$.config.samples"),
        ({"config": {"dataset": None}}, "$.config.dataset"),
    ],
)
def test_a_result_with_a_value_of_another_type_is_refused(changes: Any, place: str, tmp_path: Path) -> None:
    path = tmp_path / results.RESULT
    path.write_text(json.dumps({"format_version": 1, **changes}))
    for read in (results.load, results.find):
        with pytest.raises(SetupError) as refused:
            read(tmp_path)
        assert str(refused.value).startswith(f"{path} is damaged: Expected `")
        assert str(refused.value).endswith(f" - at `{place}`.")


def test_every_kind_of_run_leaves_a_result_that_can_be_read(runs: dict[Any, Any]) -> None:
    for run in runs.values():
        assert results.load(run.folder).content == run.result
        assert results.find(run.folder) == results.load(run.folder)


@pytest.mark.parametrize("text", [None, "{}", "[]", "7", '{"config": null, "version": 3}'])
def test_another_harness_result_is_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / results.RESULT).write_text(text)
    assert results.find(tmp_path) is None


def test_the_settings_that_a_run_was_held_to_are_those_loadgen_reports(runs: dict[Any, Any]) -> None:
    for (scenario, _), run in runs.items():
        loadgen_scenario = "Server" if scenario == "Interactive" else scenario
        assert reported_differences(run.result["config"]["settings"], loadgen_scenario, run.logged) == []


def test_interactive_has_limits_of_its_own(runs: dict[Any, Any]) -> None:
    reasons = " ".join(runs["Interactive", "performance"].result["not_ready_reasons"])
    assert "ttft_latency" not in reasons


@pytest.mark.parametrize(
    ("line", "errors"),
    [
        (':::MLLOG {"key": "a"', 0),  # cut off
        (":::MLLOG [1, 2]", 0),
        (":::MLLOG null", 0),
        (':::MLLOG {"value": 1, "metadata": {"is_error": false}}', 0),
        (':::MLLOG {"key": "a", "value": 1}', 0),
        (':::MLLOG {"key": "a", "value": "said "so"", "metadata": {"is_error": true}}', 1),  # not escaped
        (':::MLLOG {"value": 1, "metadata": {"is_error": true}}', 1),
    ],
)
def test_a_line_that_loadgen_would_not_write_ends_nothing(line: str, errors: int, tmp_path: Path) -> None:
    right = ':::MLLOG {"key": "b", "value": 2, "metadata": {"is_error": false}}'
    (tmp_path / "detail.txt").write_text(f"{line}\n{right}\n")
    log = results.read_detail(tmp_path / "detail.txt")
    assert (dict(log.values), len(log.errors)) == ({"b": 2}, errors)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"result_invalid_reason": " Increase expected QPS\nso it runs longer."},
         "Increase expected QPS (--target-qps) so it runs longer."),
        ({"result_perf_constraints_met": False, "early_stopping_met": True}, "the latency limits are missed"),
        ({"result_min_duration_met": False, "result_min_queries_met": False},
         "the test is shorter than min_duration; it has fewer queries than min_query_count"),
        ({"early_stopping_met": False, "early_stopping_ttft_result": "* Run 299 more.\n"},
         "early stopping is not satisfied; Run 299 more."),
        ({}, ""),
    ],
)  # fmt: skip
def test_why_loadgen_says_invalid(values: dict[str, Any], why: str) -> None:
    assert results.why_invalid(values) == why
