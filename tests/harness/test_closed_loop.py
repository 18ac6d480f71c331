"""`run --concurrency`: real LoadGen issues all at once, and so many queries are in flight, whatever the replicas do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from tests.stub_replica import Script, Stub

CLOSED = ["--scenario", "Offline", "--samples", "64", "--min-queries", "150", "--concurrency", "4"]
TIMES = ["--engine-arg", "ttft=0.004", "--engine-arg", "tpot=0.0005", "--engine-arg", "tokens=8-24"]

STALL = ["--engine-arg", "fault=stall-before", "--engine-arg", "fault_every=40"]
FAILING_ONE = ["--engine-arg", "fault=error", "--engine-arg", "fault_replica=0"]

RUNS: dict[str, Sequence[str]] = {
    "good": [*TIMES],
    "two": [*TIMES, "--replicas", "2", "--engine-arg", "slowdown=3"],
    "pull": [*TIMES, "--engine-arg", "slots=1", "--dispatch", "pull"],
    "error": ["--engine-arg", "fault=error"],
    "stall": [*TIMES, *STALL, "--first-token-timeout", "0.5"],
    "resilient": [*TIMES, *FAILING_ONE, "--replicas", "2", "--failure-policy", "resilient"],
    "accuracy": ["--mode", "accuracy", "--engine-arg", "tokens=4"],
}


@pytest.fixture(scope="module")
def closed(many: Callable[[Mapping[Any, Sequence[str]]], dict[Any, Any]]) -> dict[str, Any]:
    return many({name: [*CLOSED, *options] for name, options in RUNS.items()})


def most_in_flight(run: Any) -> int:
    """At most so many queries between their release and their end, by the run's own rows."""
    rows = parquet.read_table(run.folder / "samples.parquet").to_pydict()
    began = np.array(rows["issued_s"])
    moments = [(at, +1) for at in began] + [(at, -1) for at in began + np.array(rows["latency_s"])]
    # The end of one query is the release of the next: an end that is as late by rounding goes first.
    return int(np.cumsum([step for _, step in sorted((round(at, 7), step) for at, step in moments)]).max())


@pytest.mark.parametrize("name", ["good", "two", "pull", "resilient"])
def test_a_closed_loop_is_valid_keeps_to_its_cap_and_says_what_it_is(closed: dict[str, Any], name: str) -> None:
    run, result = closed[name], closed[name].result
    assert run.code == 0, run.err + run.out
    assert run.error_lines == []
    assert (result["valid"], result["loadgen"]["verdict"], result["queries"]) == (True, "VALID", 150)
    assert most_in_flight(run) == 4
    assert run.out.startswith("demo · Offline · performance · closed loop of 4: VALID\n")
    assert result["submission_ready"] is False
    reason = "it is a closed loop: at most 4 queries in flight, latencies from each query's release"
    assert reason in result["not_ready_reasons"]


def test_latencies_count_from_the_release_and_have_a_first_token(closed: dict[str, Any]) -> None:
    run, metrics = closed["good"], closed["good"].result["metrics"]
    assert metrics["source"] == "harness"
    assert 0.004 <= metrics["ttft_s"]["p50"] < metrics["latency_s"]["p50"]
    assert metrics["tpot_s"]["p50"] > 0
    assert metrics["latency_s"]["mean"] < run.logged["result_mean_latency_ns"] / 1e9, (
        "LoadGen counts from the moment at which it issued all queries at once"
    )
    assert run.result["overhead"]["schedule_lag_s"] is None, "there is no schedule to lag behind"
    assert "result_first_token_mean_latency_ns" not in run.logged, "LoadGen heard of no first token in Offline"


def test_the_next_query_goes_where_fewest_are(closed: dict[str, Any]) -> None:
    fast, slow = (replica["queries"] for replica in closed["two"].result["replicas"])
    assert fast + slow == 150
    assert fast > 1.2 * slow


def test_a_retry_keeps_its_place(closed: dict[str, Any]) -> None:
    result = closed["resilient"].result
    assert result["failures"]["count"] == 0
    assert result["retries"] >= 1


@pytest.mark.parametrize(("name", "kind", "count"), [("error", "backend_error", 15), ("stall", "first_token_late", 3)])
def test_a_failed_query_frees_its_place_and_the_run_is_not_valid(
    closed: dict[str, Any], name: str, kind: str, count: int
) -> None:
    run = closed[name]
    assert run.code == 4
    assert run.result["failures"]["by_kind"] == {kind: count}
    assert run.result["queries"] == 150
    assert most_in_flight(run) <= 4
    assert not any("twice" in str(error) for error in run.error_lines)


def test_accuracy_mode_asks_each_sample_once_under_the_cap(closed: dict[str, Any]) -> None:
    run = closed["accuracy"]
    assert run.result["valid"] is True
    assert run.result["queries"] == 64
    assert most_in_flight(run) <= 4


def test_remote_replicas_stream_in_a_closed_loop(harness: Callable[..., Any]) -> None:
    script = Script(tokens=16, tpot=0.002)
    with Stub(script) as one, Stub(script) as other:
        run = harness(*CLOSED, "--stream-interval", "1", "--endpoint", one.url, "--endpoint", other.url)
    assert run.code == 0, run.err + run.out
    metrics = run.result["metrics"]
    assert most_in_flight(run) == 4
    assert metrics["ttft_s"]["p50"] < metrics["latency_s"]["p50"] / 2
    assert metrics["tpot_s"]["p50"] > 0
    assert "itl_s" not in metrics, "their frames are gathered: when each token came is not known"
