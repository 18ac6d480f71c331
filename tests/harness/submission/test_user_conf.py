"""What is said of a user.conf that does not explain its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.submission.check import check
from tests.harness.submission.spoil import (
    RUN,
    SUMMARY,
    Spoil,
    added,
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
        ("no user.conf", gone("Server/user.conf"), "user.conf is missing"),
        ("an empty user.conf", written("Server/user.conf", ""), "user.conf is empty"),
        (
            "a user.conf of another run",
            replaced("Server/user.conf", "= 40", "= 11.45"),
            "target_qps is 11.45 and LoadGen ran with effective_target_qps = 40",
        ),
        (
            "a user.conf for a name that LoadGen does not know",
            replaced("Server/user.conf", "deepseek-r1", "deepseek"),
            "target_qps is 1.0 and LoadGen",
        ),
        ("a line that LoadGen would skip", added("*.*.min_duration=5", "Server", "user.conf"), "is not of the form"),
        (
            "a number that LoadGen would cut",
            added("*.*.min_duration = 1e3", "Server", "user.conf"),
            "not a whole number",
        ),
        (
            "user.conf is binary",
            lambda root: (results(root) / "Server/user.conf").write_bytes(b"\xff\xfe\x00"),
            "is not text",
        ),
    ],
)
def test_a_user_conf_of_no_use_is_said(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        (
            "a key that LoadGen does not know",
            added("*.*.target_qsp = 3", "Server", "user.conf"),
            "LoadGen knows no key 'target_qsp'",
        ),
    ],
)
def test_what_loadgen_skips_is_a_warning(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    report = check(package)
    assert report.passed, (meaning, said(report))
    assert any(words in what for what in said(report, "warning")), (meaning, said(report, "warning"))


@pytest.mark.parametrize(
    ("meaning", "spoil"),
    [
        (
            "a longer duration",
            spoiled_all(
                logged("requested_min_duration_ms", 630_000),
                logged("effective_min_duration_ms", 630_000),
                replaced(f"{RUN}/{SUMMARY}", "min_duration (ms) : 600000", "min_duration (ms) : 630000"),
                added("*.*.min_duration = 630000", "Server", "user.conf"),
            ),
        ),
        ("lines for other models", added("resnet50.Server.target_qps = 3", "Server", "user.conf")),
    ],
)
def test_what_loadgen_reads_as_the_log_says_is_right(meaning: str, spoil: Spoil, package: Path) -> None:
    spoil(package)
    report = check(package)
    assert not said(report) and not said(report, "warning"), (meaning, report.text())
