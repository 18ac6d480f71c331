"""A run from start to finish, and however it ends: faults, signals, and what stands in its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.audits import AUDITS
from harness.config import resolve
from harness.run import describe_dialects, expected_queries
from sut.backends.echo import FAULTS

Run = Any
Many = Callable[[Mapping[Any, Sequence[str]]], dict[Any, Run]]

# -- faults ----------------------------------------------------------------------------------------------------

# LoadGen's early stopping needs 459 queries in Server; every tenth is struck.
FAULTY = {
    "Offline": ["--samples", "64", "--min-queries", "64"],
    "Server": ["--samples", "64", "--target-qps", "2000", "--min-duration", "0", "--min-queries", "512"],
}

STRIKES = {"Offline": 64 // 10, "Server": 512 // 10}

# (fault, scenario) -> status, the kinds of failure (None: as many as were struck), how the first reason begins.
STALLED = "the test was aborted: no query has moved for 1 s; the oldest is sample "
DEAD = "the test was aborted: no replica is left; the last to go was echo-0: a scripted fault: the replica died"
EXPECTED: dict[tuple[str, str], tuple[str, set[str], str]] = {
    ("error", "Offline"): ("complete", {"backend_error"}, "6 of 64 queries failed (backend_error 6); the first: "),
    ("error", "Server"): ("complete", {"backend_error"}, "51 of 512 queries failed (backend_error 51); the first: "),
    ("die", "Offline"): ("aborted", {"replica_died", "abandoned"}, DEAD),
    ("die", "Server"): ("aborted", {"replica_died", "abandoned"}, DEAD),
    ("stall-before", "Offline"): ("aborted", {"abandoned"}, STALLED),
    ("stall-before", "Server"): ("aborted", {"abandoned"}, STALLED),
    ("stall-after", "Server"): ("complete", {"stalled"}, "51 of 512 queries failed (stalled 51); the first: "),
    ("stall-after", "Offline"): ("aborted", {"abandoned"}, STALLED),
    ("one-token", "Offline"): ("complete", {"one_token"}, "6 of 64 queries failed (one_token 6); the first: "),
    ("one-token", "Server"): ("complete", {"one_token"}, "51 of 512 queries failed (one_token 51); the first: "),
    ("no-tokens", "Offline"): ("complete", {"no_tokens"}, "6 of 64 queries failed (no_tokens 6); the first: "),
    ("no-tokens", "Server"): ("complete", {"no_tokens"}, "51 of 512 queries failed (no_tokens 51); the first: "),
    ("abort", "Offline"): ("complete", {"bad_finish"}, "6 of 64 queries failed (bad_finish 6); the first: "),
    ("abort", "Server"): ("complete", {"bad_finish"}, "51 of 512 queries failed (bad_finish 51); the first: "),
    ("other-head", "Server"): ("complete", {"miscounted"}, "51 of 512 queries failed (miscounted 51); the first: "),
}

# What is no fault where nothing is streamed, or is put right: the second end of a query is dropped.
HARMLESS = [("other-head", "Offline"), ("twice", "Offline"), ("twice", "Server")]

# submit raises: a fault of the backend that must come out as a run that is not valid.
RAISES = [("raise", "Offline"), ("raise", "Server")]


@pytest.fixture(scope="module")
def faulty(many: Many) -> dict[Any, Run]:
    """A run with every fault in both kinds of scenario."""
    return many(
        {
            (fault, scenario): [
                *("--scenario", scenario, *FAULTY[scenario]),
                *("--engine-arg", f"fault={fault}", "--engine-arg", "ttft=0.001", "--stall-timeout", "1"),
            ]
            for fault in FAULTS
            for scenario in FAULTY
        }
    )


def test_every_fault_has_its_row() -> None:
    assert {*EXPECTED, *HARMLESS, *RAISES} == {(fault, scenario) for fault in FAULTS for scenario in FAULTY}


@pytest.mark.parametrize(("fault", "scenario"), EXPECTED)
def test_a_fault_makes_a_run_not_valid_and_says_why(faulty: dict[Any, Run], fault: str, scenario: str) -> None:
    run, (status, kinds, reason) = faulty[fault, scenario], EXPECTED[fault, scenario]
    assert run.code == 4, run.err
    result = run.result
    assert (result["status"], result["valid"]) == (status, False)
    assert result["invalid_reasons"][0].startswith(reason)
    failures = result["failures"]
    assert set(failures["by_kind"]) <= kinds
    assert failures["count"] == sum(failures["by_kind"].values()) >= STRIKES[scenario]
    assert failures["first"].startswith("sample ")
    assert " on replica echo-0: " in failures["first"]
    # LoadGen heard of every query exactly once, and of no token that was not there
    assert result["queries"] == {"Offline": 64, "Server": 512}[scenario]
    assert not any("twice" in str(error) for error in run.error_lines)
    if status == "complete":
        assert failures["count"] == STRIKES[scenario]
        assert failures["by_replica"] == {"echo-0": failures["count"]}
    first_lines = run.out.splitlines()[:2]
    assert first_lines[0].startswith(f"demo · {scenario} · performance: NOT VALID")
    assert first_lines[1] == f"  ✗ {result['invalid_reasons'][0]}"


@pytest.mark.parametrize(("fault", "scenario"), HARMLESS)
def test_what_a_scenario_does_not_see_is_no_fault(faulty: dict[Any, Run], fault: str, scenario: str) -> None:
    run = faulty[fault, scenario]
    assert run.code == 0, run.out
    assert run.error_lines == []
    assert run.result["queries"] == {"Offline": 64, "Server": 512}[scenario]
    assert run.result["failures"]["count"] == 0


@pytest.mark.parametrize(("fault", "scenario"), RAISES)
def test_a_backend_that_raises_ends_in_a_result(faulty: dict[Any, Run], fault: str, scenario: str) -> None:
    run = faulty[fault, scenario]
    assert run.code == 4, run.err
    assert run.result["valid"] is False
    assert "a scripted fault: submit raises" in run.result["invalid_reasons"][0]
    assert run.result["queries"] == {"Offline": 64, "Server": 512}[scenario]


ACCURACY = ["--scenario", "Server", "--mode", "accuracy", "--samples", "64", "--target-qps", "2000"]
FAILED_BEFORE_FIRST_TOKEN = ["error", "no-tokens"]
FAILED_AFTER_FIRST_TOKEN = ["stall-after", "abort"]


@pytest.fixture(scope="module")
def faulty_accuracy(many: Many) -> dict[Any, Run]:
    """Accuracy runs of Server: LoadGen logs the first tokens of queries, also of those that fail."""
    return many(
        {
            fault: [*ACCURACY, "--engine-arg", f"fault={fault}", "--stall-timeout", "1"]
            for fault in FAILED_BEFORE_FIRST_TOKEN + FAILED_AFTER_FIRST_TOKEN
        }
    )


@pytest.mark.parametrize("fault", [*FAILED_BEFORE_FIRST_TOKEN, *FAILED_AFTER_FIRST_TOKEN])
def test_a_fault_in_accuracy_mode_makes_a_run_not_valid(faulty_accuracy: dict[Any, Run], fault: str) -> None:
    run = faulty_accuracy[fault]
    assert run.code == 4, (run.code, run.err)
    assert run.result["valid"] is False
    assert run.result["failures"]["count"] == 6


# -- replicas --------------------------------------------------------------------------------------------------


def test_a_replica_that_dies_is_ejected_and_a_resilient_run_goes_on(many: Many) -> None:
    fault = ["--engine-arg", "fault=die", "--engine-arg", "fault_replica=1", "--engine-arg", "ttft=0.005"]
    common = ["--scenario", "Offline", "--samples", "64", "--replicas", "2", *fault]
    runs = many({"strict": common, "resilient": [*common, "--failure-policy", "resilient"]})
    strict, resilient = runs["strict"].result, runs["resilient"].result
    assert (runs["strict"].code, strict["status"], strict["valid"]) == (4, "complete", False)
    assert strict["replicas"][1]["ejected_s"] is not None
    assert strict["replicas"][0]["ejected_s"] is None
    assert strict["failures"]["by_replica"] == {"echo-1": strict["failures"]["count"]}
    assert (runs["resilient"].code, resilient["valid"]) == (0, True)
    assert resilient["retries"] >= 1
    assert f"{resilient['retries']} queries were retried" in resilient["not_ready_reasons"]


# -- a stray audit.config --------------------------------------------------------------------------------------


def test_an_audit_config_in_the_working_directory_is_named_and_not_used(tmp_path: Path, harness: Run) -> None:
    (tmp_path / "audit.config").write_text("*.*.mode = 2\n*.*.min_query_count = 7\n*.*.accuracy_log_rng_seed = 5\n")
    run = harness("--scenario", "Offline", "--backend", "echo", "--samples", "64")
    assert run.code == 0, run.err
    assert "an audit.config lies in the working directory (it was not used)" in run.result["not_ready_reasons"]
    assert run.result["queries"] == 64
    assert run.logged["effective_accuracy_log_rng_seed"] == 0
    assert run.logged["effective_test_mode"] == "PerformanceOnly"


def test_an_audit_config_that_is_asked_for_is_used(tmp_path: Path, harness: Run) -> None:
    audit = tmp_path / "test06.config"
    audit.write_text("*.*.accuracy_log_rng_seed = 5\n*.*.accuracy_log_sampling_target = 100\n")
    run = harness("--scenario", "Offline", "--backend", "echo", "--samples", "64", "--audit-config", str(audit))
    assert run.code == 0, run.err
    assert run.logged["effective_accuracy_log_rng_seed"] == 5
    told = "an audit file that is no compliance test's changed LoadGen's settings"
    assert (run.result["audit"], run.result["compliance"]) == (None, None) and told in run.result["not_ready_reasons"]
    assert len(json.loads((run.folder / "mlperf_log_accuracy.json").read_text())) == 64


# -- signals ---------------------------------------------------------------------------------------------------


@contextmanager
def running(tmp_path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A run under way: LoadGen has begun to issue."""
    words = [sys.executable, "-m", "harness", *options, "--backend", "echo", "--output-dir", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        log = tmp_path / "out" / "mlperf_log_detail.txt"
        deadline = time.monotonic() + 20
        while not log.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)
        yield process
    finally:
        process.kill()
        process.communicate()


# LoadGen would go on for minutes: with new queries, or waiting for the answers of those it has issued.
LONG = {
    "issuing": ["--scenario", "Server", "--samples", "64", "--target-qps", "50", "--min-duration", "300"],
    "waiting": ["--scenario", "Offline", "--samples", "64", "--engine-arg", "ttft=300"],
    "one by one": ["--scenario", "SingleStream", "--samples", "64", "--engine-arg", "tpot=1"],
}


@pytest.mark.parametrize(
    ("number", "name", "how"),
    [
        (signal.SIGINT, "Ctrl-C", "issuing"),
        (signal.SIGTERM, "SIGTERM", "issuing"),
        (signal.SIGINT, "Ctrl-C", "waiting"),
        (signal.SIGTERM, "SIGTERM", "one by one"),
    ],
)
def test_an_interrupted_run_leaves_a_result_and_does_not_wait_for_loadgen(
    tmp_path: Path, number: signal.Signals, name: str, how: str
) -> None:
    with running(tmp_path, *LONG[how]) as process:
        sent = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        took = time.monotonic() - sent
    assert process.returncode == 130, err
    assert took < 5
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["status"], result["valid"]) == ("interrupted", False)
    assert result["invalid_reasons"][0] == f"the test was interrupted: {name}"
    assert out.startswith(f"demo · {LONG[how][1]} · performance: NOT VALID (interrupted)")
    assert "Traceback" not in err


def test_an_interrupted_accuracy_run_leaves_a_result(tmp_path: Path) -> None:
    options = ["--mode", "accuracy", "--engine-arg", "ttft=300", "--scenario", "Server", "--samples", "64"]
    with running(tmp_path, *options, "--target-qps", "2000") as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "interrupted"


def test_an_impatient_second_signal_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path, *LONG["issuing"]) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "interrupted"


def test_a_storm_of_signals_ends_it_as_one_does(tmp_path: Path) -> None:
    with running(tmp_path, *LONG["waiting"]) as process:
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.0005)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "interrupted"


WORST_PLACE = """
import os, signal, sys, threading
from pathlib import Path
from harness.cli import main

leave = threading.Condition.__exit__

def struck(condition, *reason):
    if threading.get_ident() == threading.main_thread().ident and Path("out/mlperf_log_detail.txt").exists():
        os.kill(os.getpid(), signal.SIGINT)
    return leave(condition, *reason)

threading.Condition.__exit__ = struck
main(sys.argv[1:])
"""
"""Ctrl-C between the taking of a lock, for which the loop or LoadGen's thread then waits, and its release."""


LATE = """
import os, signal, sys
from harness import results
from harness.cli import main

conclude = results.conclude

def conclude_late(*values, **named):
    os.kill(os.getpid(), signal.SIGINT)
    return conclude(*values, **named)

results.conclude = conclude_late
main(sys.argv[1:])
"""
"""Ctrl-C when the test has ended by itself, and its result is about to be saved."""


@pytest.mark.parametrize(("fault", "status"), [("error", "complete"), ("die", "aborted")])
def test_a_signal_that_comes_too_late_for_a_test_is_not_lost(fault: str, status: str, tmp_path: Path) -> None:
    """It means what may follow: a study's next points."""
    words = ["--scenario", "Offline", "--samples", "64", "--backend", "echo", "--engine-arg", f"fault={fault}"]
    words = [sys.executable, "-c", LATE, *words, "--output-dir", "out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert (done.returncode, "interrupted." in done.stderr) == (130, True), done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == status


def test_a_signal_between_a_lock_and_its_release_does_not_hang_the_run(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WORST_PLACE, *LONG["waiting"], "--backend", "echo", "--output-dir", "out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 130, done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_test_ends_it_with_a_sentence(tmp_path: Path, number: signal.Signals) -> None:
    """A dataset that is a pipe without a writer is waited for."""
    os.mkfifo(tmp_path / "pipe")
    words = [sys.executable, "-m", "harness", "--scenario", "Offline", "--backend", "echo", "--dataset", "pipe"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer = None
    try:
        while writer is None:  # opening for writing works once there is a reader
            time.sleep(0.05)
            try:
                writer = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                assert process.poll() is None
        time.sleep(0.3)  # Python heeds a signal within a read, but not one in the instant before it
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
        if writer is not None:
            os.close(writer)
    assert (process.returncode, out, err.strip()) == (130, "", "error: interrupted.")


# -- the output directory --------------------------------------------------------------------------------------


def test_a_directory_that_holds_a_result_is_left_as_it_is(tmp_path: Path, harness: Run) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "result.json").write_text("precious")
    run = harness("--scenario", "Offline", "--backend", "echo", "--samples", "64", "--quiet")
    assert (run.code, run.out) == (2, "")
    assert run.err == (
        f"error: {folder} already holds a run's result.json: choose another --output-dir, nothing is overwritten.\n"
    )
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("result.json", "precious")]


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path, harness: Run) -> None:
    (tmp_path / "file").write_text("precious")
    for place, why in (("file/out", "Not a directory"), ("file", "File exists")):
        run = harness("--scenario", "Offline", "--backend", "echo", "--output-dir", place, "--quiet")
        assert (run.code, run.out) == (3, "")
        assert run.err == f"error: cannot write to the output directory {place}: {why}.\n"
    assert (tmp_path / "file").read_text() == "precious"


# -- pure parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "options", "expected"),
    [
        ("Offline", {}, 1024),
        # whole passes over the 512 loaded samples
        ("Offline", {"min_queries": 513}, 1024),
        ("Offline", {"min_queries": 1}, 512),
        # or as many as asked in a closed loop
        ("Offline", {"min_queries": 1, "concurrency": 4}, 1),
        # 1.1 × duration × rate
        ("Offline", {"min_queries": 1, "min_duration": 100.0, "target_qps": 10.0}, 1536),
        # Server's count depends on its schedule
        ("Server", {}, None),
        ("SingleStream", {}, None),
    ],
)
def test_how_many_queries_a_performance_test_will_issue(
    scenario: str, options: dict[str, Any], expected: int | None
) -> None:
    assert expected_queries(resolve(scenario=scenario, backend="echo", **options), 1024) == expected


def test_an_accuracy_test_issues_each_sample_once() -> None:
    assert expected_queries(resolve(scenario="Server", backend="echo", mode="accuracy"), 64) == 64


# -- what must not cost a result ---------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_at_full_speed_leaves_a_result(tmp_path: Path) -> None:
    """LoadGen goes on issuing, and the SUT answering, while the result is being written."""
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        words = ["--scenario", "Server", "--target-qps", "5000", "--min-duration", "60", "--samples", "64"]
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", "--backend", "echo", "--output-dir", str(folder), "--quiet", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 20
        while not (folder / "mlperf_log_detail.txt").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, "")
        result = json.loads((folder / "result.json").read_text())
        assert result["status"] == "interrupted"
        assert result["queries"] > 1000


def test_the_audit_file_of_test06_changes_settings_and_nothing_else(tmp_path: Path, many: Many) -> None:
    audit = tmp_path / "audit.config"
    lines = {
        "mode": 2,
        "accuracy_log_rng_seed": 720381539243781796,
        "accuracy_log_sampling_target": 100,
        "min_query_count": 100,
        "min_duration": 0,
        "sample_concatenate_permutation": 0,
    }
    audit.write_text("".join(f"*.*.{key} = {value}\n" for key, value in lines.items()))
    run = many({"audit": ["--scenario", "Offline", "--audit-config", str(audit)]})["audit"]
    assert (run.code, run.result["valid"], run.result["queries"]) == (0, True, 100), run.out
    assert run.result["audit"] == "TEST06" and run.result["compliance"]["passed"] is True
    assert not any("audit" in reason for reason in run.result["not_ready_reasons"])


def test_nobody_reading_stderr_costs_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "harness", "--backend", "echo", "--scenario", "Offline", "--samples", "64"]
    process = subprocess.Popen(
        [*words, "--output-dir", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout is not None
    with process.stdout as out:
        assert "VALID" in out.read()
    assert process.wait(20) == 0


def test_how_remote_replicas_are_spoken_to_is_said_once_for_each_way() -> None:
    ids = {"dialect": "vllm", "route": "/v1/completions", "prompts": "token ids", "answers": "token ids"}
    text = {"dialect": "openai", "route": "/v1/completions", "prompts": "text", "answers": "text"}
    assert describe_dialects([ids, text, ids, {"max_num_seqs": 8}]) == [
        "2 replicas found: vllm (/v1/completions; token ids in, token ids out)",
        "1 replica found: openai (/v1/completions; text in, text out)",
    ]


# -- going on with an accuracy test -----------------------------------------------------------------------------------

SLOWLY = ("--scenario", "Server", "--mode", "accuracy", "--samples", "400", "--target-qps", "100", "--backend", "echo")


def answers_in(folder: Path) -> dict[int, tuple[str, int]]:
    log = json.loads((folder / "mlperf_log_accuracy.json").read_text())
    assert len({entry["qsl_idx"] for entry in log}) == len(log)
    return {entry["qsl_idx"]: (entry["data"], entry["token_count"]) for entry in log}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_accuracy_test_goes_on_where_it_was(
    tmp_path: Path, harness: Run, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "harness", *SLOWLY, "--output-dir", str(out), "--quiet"]
    stopped = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not (out / "answers.journal").exists() or (out / "answers.journal").stat().st_size < 20_000:
        assert time.monotonic() < end and stopped.poll() is None
        time.sleep(0.05)
    stopped.send_signal(number)
    assert stopped.wait(30) == (130 if number == signal.SIGINT else -9)
    assert harness(*SLOWLY).code == 2, "without --resume nothing is overwritten"

    run = harness(*SLOWLY, "--resume")
    assert run.code == 0, run.err
    assert run.result["valid"] and not run.result["submission_ready"] and run.error_lines == []
    resumed = run.result["resumed"]
    assert 100 <= resumed < 400
    assert run.result["replicas"][0]["queries"] == 400 - resumed, "nobody is asked twice"
    assert f"{resumed} answers were taken over from a test that was interrupted" in run.result["not_ready_reasons"]
    served = 400 - resumed
    assert run.result["metrics"]["samples_per_second"] == pytest.approx(served / run.result["duration_s"]), "its own"
    assert (out / "interrupted-1" / "mlperf_log_detail.txt").exists() and not (out / "answers.journal").exists()
    harness(*SLOWLY, "--output-dir", str(tmp_path / "whole"))
    assert answers_in(out) == answers_in(tmp_path / "whole")
    assert harness(*SLOWLY, "--resume").code == 2, "there is nothing to go on with"


def test_a_failed_query_is_asked_again_on_going_on(tmp_path: Path, harness: Run) -> None:
    """A test that came to its end with failures keeps its answers too."""
    words = ("--scenario", "Offline", "--mode", "accuracy", "--samples", "64", "--backend", "echo")
    assert harness(*words, "--engine-arg", "fault=error", "--engine-arg", "fault_every=8").code == 4
    run = harness(*words, "--resume")
    assert run.code == 0, run.err
    assert (run.result["resumed"], run.result["replicas"][0]["queries"]) == (56, 8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--resume", "--mode", "performance"], "a clock cannot be resumed"),
        (["--resume", "--mode", "submission"], "a clock cannot be resumed"),
    ],
)
def test_a_clock_cannot_be_resumed(options: list[str], says: str, harness: Run) -> None:
    run = harness("--scenario", "Offline", "--backend", "echo", *options)
    assert run.code == 2 and says in run.err


def test_a_test_that_still_runs_is_not_taken_up(tmp_path: Path, harness: Run) -> None:
    """Two in one folder would mix their logs, and the first would be valid with the answers of the second."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "harness", *SLOWLY, "--output-dir", str(out), "--quiet"]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not (out / "answers.journal").exists() or (out / "answers.journal").stat().st_size < 5_000:
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.05)
    second = harness(*SLOWLY, "--resume")
    assert second.code == 2 and "a test still runs in" in second.err
    assert first.wait(30) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["valid"] and result["resumed"] == 0 and not (out / "interrupted-1").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--engine-arg", "tokens=5"], "another engine arguments"),
        (["--scenario", "Server", "--target-qps", "1000"], "another scenario"),
        (["--samples", "32"], "another samples (64, now 32)"),
    ],
)
def test_answers_of_another_kind_are_not_taken_over(tmp_path: Path, harness: Run, change: list[str], says: str) -> None:
    words = ("--scenario", "Offline", "--mode", "accuracy", "--backend", "echo", "--samples", "64")
    assert harness(*words, "--engine-arg", "fault=error").code == 4
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    run = harness(*words, *change, "--resume")
    assert run.code == 2 and says in run.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept


@pytest.mark.parametrize(
    "name", ["user.conf", "accuracy.txt", "mlperf_log_accuracy.json", "mlperf_log_summary.txt", "accuracy.json"]
)
def test_a_persons_file_is_not_written_over(tmp_path: Path, harness: Run, name: str) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / name
    path.write_text("# mine\n")
    more = ["--user-conf", str(path)] if name == "user.conf" else []
    run = harness("--scenario", "Offline", "--backend", "echo", "--samples", "64", *more)
    assert run.code == 2 and f"already holds a run's {name}" in run.err
    assert path.read_text() == "# mine\n" and list((tmp_path / "out").iterdir()) == [path]


def test_an_audit_file_may_go_away_while_the_test_runs(tmp_path: Path) -> None:
    audit = tmp_path / "test06.config"
    audit.write_text(AUDITS["TEST06"].text())
    options = ("--scenario", "Server", "--backend", "echo", "--target-qps", "30", "--audit-config", str(audit))
    out = tmp_path / "out"
    words = [sys.executable, "-m", "harness", *options, "--output-dir", str(out), "--quiet"]
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not (out / "mlperf_log_detail.txt").exists():
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.02)
    audit.unlink()
    assert run.communicate(timeout=30)[1] == "" and run.returncode == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["audit"], result["compliance"]["passed"]) == ("TEST06", True)
