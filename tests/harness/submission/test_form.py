"""What is said of logs that are not LoadGen's own, whole, error-free and of the round, or of a summary that departs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.submission.check import check
from harness.submission.form import check_summary, open_log
from harness.submission.logs import DetailLog
from harness.submission.tree import LONGEST, truncated
from tests.harness.submission.made_package import line
from tests.harness.submission.spoil import (
    ANSWERS,
    DETAIL,
    RUN,
    SUMMARY,
    TEST06,
    Spoil,
    added,
    copied,
    cut,
    gone,
    logged,
    replaced,
    results,
    said,
    spoiled_all,
    written,
)


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        (
            "an error line in a VALID performance log",
            added(line("error_runtime", "n_tokens", 7e5, is_error=True)),
            "LoadGen logged 1 errors",
        ),
        (
            "an error line that is no JSON, as LoadGen does not escape",
            added(':::MLLOG {"key": "e", "value": "a "b"", "metadata": {"is_error": true}}'),
            "LoadGen logged 1 errors",
        ),
        (
            "an error line in the accuracy log",
            added(line("error_runtime", "n_tokens", 7e5, is_error=True), "Server/accuracy"),
            "LoadGen logged 1 errors",
        ),
        ("errors counted and none shown", logged("num_errors", 3), "num_errors is 3"),
        ("the summary is missing", gone(f"{RUN}/{SUMMARY}"), "the summary is missing"),
        ("the summary of accuracy is missing", gone(f"Server/accuracy/{SUMMARY}"), "the summary is missing"),
        (
            "a summary that was edited",
            replaced(f"{RUN}/{SUMMARY}", "target_qps : 40", "target_qps : 80"),
            "'target_qps' is 80",
        ),
        (
            "a summary with another verdict",
            replaced(f"{RUN}/{SUMMARY}", ": VALID", ": INVALID"),
            "'Result is' is INVALID",
        ),
        (
            "a summary of another test",
            copied(f"Offline/performance/run_1/{SUMMARY}", f"{RUN}/{SUMMARY}"),
            "the summary departs",
        ),
        (
            "a performance summary for accuracy",
            copied(f"{RUN}/{SUMMARY}", f"Server/accuracy/{SUMMARY}"),
            "accuracy mode leaves no verdict",
        ),
        ("no line of LoadGen's", written(f"{RUN}/{DETAIL}", "hello\n"), "holds no line of LoadGen's"),
        ("a log cut in half", cut(f"{RUN}/{DETAIL}", 0.5), "no power_end"),
        ("a log without its last newline", cut(f"{RUN}/{DETAIL}", 0.9999), "the last line is cut off"),
        (
            "a log without its head",
            lambda root: (results(root) / RUN / DETAIL).write_text(
                (results(root) / RUN / DETAIL).read_text().split("\n", 3)[3]
            ),
            "does not begin with loadgen_version",
        ),
        ("two logs in one", lambda root: added((results(root) / RUN / DETAIL).read_text())(root), "it holds two tests"),
        ("a line that is not LoadGen's", added("edited by hand"), "1 lines are not as LoadGen writes them"),
        (
            "a line put in later",
            added(line("result_samples_per_second", 99.0, 0.5)),
            "is earlier than the line before it",
        ),
        (
            "seeds of another round",
            logged("effective_qsl_rng_seed", 1780908523862526354),
            "the seeds are not those of round v6.1",
        ),
        (
            "seeds of another round in the accuracy log",
            logged("requested_schedule_rng_seed", 1, "Server/accuracy"),
            "the seeds are not those",
        ),
        ("a LoadGen of another round", logged("loadgen_version", "5.1.0 @ 091d51f041"), "older than the round's"),
        ("a LoadGen that says no version", logged("loadgen_version", None), "loadgen_version is null"),
        (
            "accuracy by another LoadGen",
            logged("loadgen_version", "6.0.17 @ 0000000000", "Server/accuracy"),
            "this test ran with LoadGen 6.0.17 @ 0000000000",
        ),
        (
            "a LoadGen of other files",
            logged("loadgen_file_sha1", {"/loadgen.cc": "other"}, "Server/accuracy"),
            "built from other files",
        ),
        (
            "a LoadGen with local changes",
            logged("loadgen_git_status_message", "M loadgen.cc"),
            "changes that were not committed",
        ),
    ],
)
def test_a_log_that_is_not_loadgens_own_and_whole_is_said(
    meaning: str, spoil: Spoil, words: str, package: Path
) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        (
            "a newer LoadGen",
            spoiled_all(*(logged("loadgen_version", "6.0.18 @ 1", each) for each in (RUN, "Server/accuracy", TEST06))),
            "newer than the round's",
        ),
    ],
)
def test_a_newer_loadgen_is_a_warning(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    report = check(package)
    assert report.passed, (meaning, said(report))
    assert any(words in what for what in said(report, "warning")), (meaning, said(report, "warning"))


@pytest.mark.parametrize(
    ("meaning", "spoil"),
    [
        (
            "a warning of LoadGen's",
            added(line("warning_generic_message", "Logging allocation detected", 7e5, is_warning=True)),
        ),
    ],
)
def test_what_loadgen_may_write_is_right(meaning: str, spoil: Spoil, package: Path) -> None:
    spoil(package)
    report = check(package)
    assert not said(report) and not said(report, "warning"), (meaning, report.text())


@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_an_accuracy_log_that_loadgen_wrote_is_whole(scenario: str, runs: dict[Any, Any]) -> None:
    folder = runs[scenario, "accuracy"].folder
    found = list(open_log(folder))
    assert len(found) == 1
    assert isinstance(found[0], DetailLog)
    assert list(check_summary(found[0], folder, performance=False)) == []
    assert len(truncated((folder / ANSWERS).read_bytes())) < LONGEST
