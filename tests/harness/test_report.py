"""What a person reads: the verdict and its reasons first, then the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import report
from harness.results import RunResult


def replica(name: str, ejected: float | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "queries": 512,
        "tokens": 16_384,
        "failures": 3 if ejected else 0,
        "busy_share": 0.975,
        "tail_idle_s": 0.25,
        "ejected_s": ejected,
    }


GOOD: dict[str, Any] = {
    "status": "complete",
    "valid": True,
    "invalid_reasons": [],
    "submission_ready": True,
    "not_ready_reasons": [],
    "client_limited": False,
    "scenario": "Server",
    "mode": "performance",
    "benchmark": "demo",
    "queries": 1024,
    "duration_s": 51.25,
    "metrics": {
        "source": "loadgen",
        "samples_per_second": 19.984,
        "tokens_per_second": 1639.5,
        "ttft_s": {"mean": 0.0205, "p50": 0.02, "p90": 0.025, "p99": 0.05, "p99_9": 0.9996, "max": 1.5},
        "tpot_s": {"mean": 0.002, "max": 0.003},
        "latency_s": {"mean": 0.5, "p50": 0.5, "p90": 0.6, "p99": 0.7, "p99_9": 0.8, "max": 834.5},
    },
    "accuracy": {"passed": None, "why": "accuracy is scored in accuracy mode"},
    "replicas": [replica("echo-0")],
    "failures": {"count": 0},
    "retries": 0,
}

GOOD_TEXT = """\
demo · Server · performance: VALID

  19.98 samples/s   1,639.5 tokens/s   (1,024 answered in 51.2 s; figures by loadgen)
                                mean       p50       p90       p99     p99.9       max
  time to first token        20.5 ms   20.0 ms   25.0 ms   50.0 ms  999.6 ms    1.50 s
  time per output token       2.0 ms         –         –         –         –    3.0 ms
  latency                   500.0 ms  500.0 ms  600.0 ms  700.0 ms  800.0 ms  834.50 s

Ready for a submission.
Files: results/one/"""

FAILED = GOOD | {
    "status": "aborted",
    "valid": False,
    "invalid_reasons": ["the test was aborted: no replica is left", "3 of 1024 queries failed (replica_died 3)"],
    "submission_ready": False,
    "not_ready_reasons": ["the result is not valid", "prefix caching is on"],
    "client_limited": True,
    "mode": "accuracy",
    "metrics": {
        "source": "harness",
        "samples_per_second": 0.0,
        "tokens_per_second": 0.0,
        "ttft_s": {},
        "tpot_s": {},
        "latency_s": {},
    },
    "accuracy": {
        "rouge1": 39.5,
        "tokens_per_sample": 30.0,
        "samples": 1024,
        "targets": {"rouge1": {"low": 40.0, "high": None}, "tokens_per_sample": {"low": 27.0, "high": 33.0}},
        "passed": False,
        "why": "rouge1 is 39.5, below 40",
    },
    "replicas": [replica("echo-0"), replica("echo-1", ejected=12.34)],
    "failures": {"count": 3},
    "retries": 2,
}

FAILED_TEXT = """\
demo · Server · accuracy: NOT VALID (aborted)
  ✗ the test was aborted: no replica is left
  ✗ 3 of 1024 queries failed (replica_died 3)

  0.00 samples/s   0.0 tokens/s   (1,021 answered in 51.2 s; figures by harness)

  accuracy FAILED: rouge1 is 39.5, below 40
  rouge1                 39.5000   at least 40.0000                            missed
  tokens_per_sample      30.0000   at least 27.0000, at most 33.0000           met

  replica         queries     tokens  failures    busy  idle at end
  echo-0              512     16,384         0     98%       0.25 s
  echo-1              512     16,384         3     98%       0.25 s   ejected after 12.3 s
  2 queries were served again elsewhere after a failure
  ! the harness itself was in the way (client_limited): give it a core, or fewer queries

Not for a submission: the result is not valid; prefix caching is on.
Files: results/one/"""


def test_a_good_result() -> None:
    assert report.as_text(RunResult(GOOD, Path("results/one"))) == GOOD_TEXT


def test_a_failed_result_shows_its_reasons_first() -> None:
    assert report.as_text(RunResult(FAILED, Path("results/one"))) == FAILED_TEXT


QUICK = {
    "rouge1": 44.0,
    "gen_len": 8_167_644,
    "tokens_per_sample": 300.0,
    "samples": 200,
    "targets": {},
    "passed": None,
    "why": "a smoke test",
    "notes": ["2 answers repeat a sample"],
    "quick": {
        "samples": 200,
        "of": 24_576,
        "method": "normal approximation on per-sample scores",
        "scores": {
            "rouge1": {
                "estimate": 44.0,
                "interval": [42.0, 46.0],
                "target": {"low": 44.3868, "high": None},
                "verdict": {"low": "undecided"},
            },
            "tokens_per_sample": {
                "estimate": 300.0,
                "interval": [290.0, 310.0],
                "target": {"low": 265.005, "high": 323.895},
                "verdict": {"low": "above", "high": "below"},
            },
        },
    },
}

QUICK_TEXT = """\

  accuracy not decided: a smoke test
  rouge1                 44.0000
  gen_len              8,167,644
  tokens_per_sample     300.0000
  if the other 24,376 samples were like these (normal approximation on per-sample scores, 95 %):
  rouge1                 44.0000   42.0000 to 46.0000: undecided against 44.3868
  tokens_per_sample     300.0000   290.0000 to 310.0000: above 265.0050, below 323.8950
  note: 2 answers repeat a sample"""


def test_the_first_samples_of_a_dataset_are_told_as_what_they_let_expect() -> None:
    assert "\n".join(report.accuracy_lines(QUICK)) == QUICK_TEXT


def test_what_was_not_scored_has_no_table() -> None:
    assert report.accuracy_lines({"passed": None, "why": "accuracy is scored in accuracy mode"}) == []


def test_one_line_of_json_is_the_whole_result() -> None:
    line = report.as_json_line(RunResult(FAILED, Path("results/one")))
    assert "\n" not in line
    assert json.loads(line) == FAILED


def test_the_line_is_what_the_file_holds_also_for_what_is_no_number() -> None:
    assert report.as_json_line(RunResult({"lag": float("nan")}, Path())) == '{"lag": null}'


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({"mode": "accuracy", "accuracy": {"passed": False}}, "demo · Server · accuracy: VALID, accuracy FAILED"),
        ({"mode": "accuracy", "accuracy": {"passed": None}}, "demo · Server · accuracy: VALID"),
        ({"accuracy": {"passed": False}}, "demo · Server · performance: VALID"),  # shown by another run
        (
            {"audit": "TEST06", "compliance": {"test": "TEST06", "passed": False}},
            "demo · Server · TEST06: VALID, TEST06 FAILED",
        ),
        ({"mode": "accuracy", "accuracy": {"passed": False}, "valid": False}, "demo · Server · accuracy: NOT VALID"),
    ],
)
def test_the_first_line_is_the_verdict(changes: dict[str, Any], headline: str) -> None:
    content = {"benchmark": "demo", "scenario": "Server", "mode": "performance", "status": "complete", "valid": True}
    assert report.headline(RunResult(content | {"accuracy": {"passed": None}} | changes, Path())) == headline
