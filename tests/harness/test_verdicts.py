"""The verdict of a test in every case that goes wrong: fault × scenario × failure policy, on two echo replicas.

Each row is a real LoadGen test in a process of its own. Unless a row says otherwise the fault strikes every tenth query
of the second replica, and the first is sound.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Many = Callable[[Mapping[Any, Sequence[str]]], dict[Any, Any]]

SCENARIOS = {
    "Offline": ["--samples", "64", "--min-queries", "128"],
    "Server": ["--samples", "64", "--target-qps", "1000", "--min-duration", "0", "--min-queries", "512"],
}

POLICIES = ("strict", "resilient")

GOOD, BAD, ABORTED = ("complete", True), ("complete", False), ("aborted", False)


def struck(fault: str, *options: str, replica: int = 1) -> list[str]:
    return ["--engine-arg", f"fault={fault}", "--engine-arg", f"fault_replica={replica}", *options]


def always(verdict: tuple[str, bool]) -> dict[tuple[str, str], tuple[str, bool]]:
    return {(scenario, policy): verdict for scenario in SCENARIOS for policy in POLICIES}


def if_resilient(offline: tuple[str, bool], server: tuple[str, bool]) -> dict[tuple[str, str], tuple[str, bool]]:
    return always(BAD) | {("Offline", "resilient"): offline, ("Server", "resilient"): server}


# what happens -> (options, {(scenario, policy): (status, valid)})
ROWS: dict[str, tuple[list[str], dict[tuple[str, str], tuple[str, bool]]]] = {
    # an attempt that shows nothing of an answer is made again elsewhere, if that is allowed
    "every tenth query fails": (
        struck("error"),
        if_resilient(GOOD, GOOD),
    ),
    "a stall before the first token": (
        struck("stall-before", "--first-token-timeout", "0.4", "--request-timeout", "0.4"),
        if_resilient(GOOD, GOOD),
    ),
    # Offline has no first token to be seen, so there the whole answer can still come from elsewhere
    "a stall after the first token": (
        struck("stall-after", "--stall-timeout", "1", "--request-timeout", "0.4"),
        if_resilient(GOOD, BAD),
    ),
    "a replica dies": (
        struck("die"),
        if_resilient(GOOD, GOOD),
    ),
    "the backend raises": (
        struck("raise"),
        if_resilient(GOOD, GOOD),
    ),
    # a wrong answer is an answer: it is not tried again
    "answers of one token": (struck("one-token"), always(BAD)),
    "empty answers": (struck("no-tokens"), always(BAD)),
    "streams that end by abort": (struck("abort"), always(BAD)),
    # slow is not wrong
    "one replica is ten times as slow": (
        ["--engine-arg", "slowdown=10", "--engine-arg", "tpot=0.0001"],
        always(GOOD),
    ),
    "both replicas die": (
        struck("die", replica=-1),
        always(ABORTED),
    ),
    "nothing moves": (
        struck("stall-before", "--engine-arg", "fault_every=1", "--stall-timeout", "1", replica=-1),
        always(ABORTED),
    ),
}
CASES = [(what, scenario, policy) for what, (_, verdicts) in ROWS.items() for scenario, policy in verdicts]


@pytest.fixture(scope="module")
def runs(many: Many) -> dict[Any, Any]:
    return many(
        {
            (what, scenario, policy): [
                *("--scenario", scenario, *SCENARIOS[scenario], "--replicas", "2", "--failure-policy", policy),
                *("--engine-arg", "ttft=0.001", *ROWS[what][0]),
            ]
            for what, scenario, policy in CASES
        }
    )


@pytest.mark.parametrize(("what", "scenario", "policy"), CASES)
def test_the_verdict(runs: dict[Any, Any], what: str, scenario: str, policy: str) -> None:
    run = runs[what, scenario, policy]
    status, valid = ROWS[what][1][scenario, policy]
    result = run.result
    assert (result["status"], result["valid"], result["submission_ready"]) == (status, valid, False), run.out
    assert run.code == (0 if valid else 4)
    assert bool(result["invalid_reasons"]) is not valid
    if valid:
        assert (result["failures"]["count"], run.error_lines) == (0, [])
    else:
        assert result["failures"]["count"] > 0
    # what was tried again is said, and never fit for a submission
    retried = policy == "resilient" and valid and "slow" not in what
    assert (result["retries"] > 0) is retried or not valid
    assert any("retried" in reason for reason in result["not_ready_reasons"]) is (result["retries"] > 0)


# -- what a simulator cannot be told to do ----------------------------------------------------------------------------

DRIVER = """
import sys
{patch}
from harness.cli import main
main([*sys.argv[1:], "--quiet"])
"""


def patched(patch: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = ["--backend", "echo", "--replicas", "2", "--output-dir", str(folder), *options]
    return subprocess.run(
        [sys.executable, "-c", DRIVER.format(patch=patch), *words], capture_output=True, text=True, timeout=50
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_exception_behind_the_issue_callback_aborts(tmp_path: Path, scenario: str, policy: str) -> None:
    """It must not cross into LoadGen, where it is a segfault, nor leave queries unanswered, where LoadGen hangs."""
    patch = "from harness.dataset import Samples\nSamples.prompts = ()\nSamples.prompt = lambda *_: 1 / 0"
    done = patched(patch, tmp_path / "out", "--scenario", scenario, "--failure-policy", policy, *SCENARIOS[scenario])
    assert done.returncode == 4, done.stderr
    assert "NOT VALID (aborted)" in done.stdout
    assert "ZeroDivisionError" in done.stdout


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_full_disk_is_one_sentence(tmp_path: Path, scenario: str, policy: str) -> None:
    """A limit on the size of files stands for the disk: the write fails with an error of the operating system."""
    patch = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    done = patched(patch, tmp_path / "out", "--scenario", scenario, "--failure-policy", policy, *SCENARIOS[scenario])
    assert done.returncode == 3, done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert not (tmp_path / "out" / "result.json").exists(), "a directory without it never came to an end"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_error_lines_of_loadgen_make_a_run_not_valid(tmp_path: Path, scenario: str, policy: str) -> None:
    """Two settings that exclude each other: LoadGen logs an error, and would say VALID all the same."""
    conf = tmp_path / "user.conf"
    conf.write_text(f"demo.{scenario}.performance_issue_unique = 1\ndemo.{scenario}.performance_issue_same = 1\n")
    words = ["--scenario", scenario, *SCENARIOS[scenario], "--failure-policy", policy, "--user-conf", str(conf)]
    done = patched("", tmp_path / "out", *words)
    assert done.returncode == 4, (done.stdout, done.stderr)
    assert "LoadGen logged" in done.stdout


def test_a_late_issue_thread_shows_as_schedule_lag(tmp_path: Path) -> None:
    """LoadGen counts from the scheduled time; 20 ms lost before our callback are ours to own up to."""
    patch = (
        "import time\nfrom sut.sut import SUT\nissue = SUT.issue\n"
        "SUT.issue = lambda self, ids, indices: (time.sleep(0.02), issue(self, ids, indices))"
    )
    options = ["--scenario", "Server", "--samples", "64", "--target-qps", "20", "--min-duration", "3"]
    folder = tmp_path / "out"
    done = patched(patch, folder, *options, "--engine-arg", "ttft=0.05", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0.018 < result["overhead"]["schedule_lag_s"] < 0.06
    assert result["client_limited"], "20 ms are more than 5 % of a TTFT of 50 ms"


def test_a_slow_responder_shows_in_the_respond_times(tmp_path: Path) -> None:
    patch = (
        "import time\nfrom harness.loadgen import Bridge\ndone = Bridge.done\n"
        "Bridge.done = lambda self, finished: (time.sleep(0.01), done(self, finished))"
    )
    options = ["--scenario", "Server", "--samples", "64", "--target-qps", "40", "--min-duration", "2"]
    done = patched(patch, tmp_path / "out", *options, "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0.009 < result["overhead"]["respond_p99_s"] < 0.1
    assert result["overhead"]["loop_lag_p99_s"] > 0.004, "a loop that sleeps rings late"
