"""`layouts` from the command line, each of its runs a real process with the real LoadGen."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.harness.conftest import Harness, Here
from tests.harness.studies.killed import end, marks, started, wait_for


def test_a_killed_study_goes_on_and_a_layout_that_cannot_start_is_a_row(tmp_path: Path, harness: Harness) -> None:
    """Three layouts with accuracy, killed in the first test of the third."""
    words = ["layouts", "--backend", "echo", "--samples", "32", "--scenario", "Offline", "--accuracy",
             "--engine-arg", "slots=16", "--output-dir", str(tmp_path / "out"), "--layout", "one:",
             "--layout", "odd: engine_arg.colour=red",
             "--layout", "two: replicas=2 engine_arg.tokens=4 engine_arg.tpot=0.3"]  # fmt: skip
    points = tmp_path / "out" / "points"
    with started(words, tmp_path) as process:
        wait_for((points / "two-offline-1" / "mlperf_log_detail.txt").exists)
        assert end(process, signal.SIGKILL) == -signal.SIGKILL
    before = marks(points / "one-offline-1")
    assert "result.json" in before and not (points / "two-offline-1" / "result.json").exists()

    done = harness(*words, "--json")
    assert done.code == 0, done.err
    assert marks(points / "one-offline-1") == before
    assert (points / "two-offline-1.interrupted-1").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"findings.json", "table.csv", "figure.svg"}
    one, odd, two = json.loads(done.out.splitlines()[-1])["rows"]
    assert (odd["standing"], odd["runs"]) == ("did not start", 0) and "'colour'" in odd["why"]
    assert (one["standing"], two["standing"]) == ("front", "dominated")
    assert "rouge1_change" not in one and (two["answers_changed"], two["answers_compared"]) == (32, 32)
    assert two["rouge1_change"] == pytest.approx(two["rouge1"] - one["rouge1"], abs=1e-3) and two["rouge1_change"] < 0
    assert two["rouge1_change_low"] <= two["rouge1_change"] <= two["rouge1_change_high"]

    after = marks(points)
    other = harness(*words, "--layout", "three: replicas=3")
    assert other.code == 2 and "another layouts" in other.err and marks(points) == after


def test_interrupted_it_leaves_nothing_behind_and_says_how_it_goes_on(tmp_path: Path) -> None:
    words = ["layouts", "--backend", "echo", "--samples", "32", "--engine-arg", "ttft=300", "--scenario", "Offline",
             "--vary", "replicas=1,2", "--output-dir", str(tmp_path / "out")]  # fmt: skip
    with started(words, tmp_path) as process:
        wait_for((tmp_path / "out" / "points" / "replicas_1-offline-1" / "mlperf_log_detail.txt").exists)
        assert end(process, signal.SIGINT) == 130
        assert process.stdout is not None
        assert "the same command with --output-dir" in process.stdout.read()
    assert not (tmp_path / "out" / "findings.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layout", "a:"], "at least two layouts"),
        (["--vary", "replcas=1,2"], "did you mean replicas?"),
        (["--vary", "scenario=Offline,Server"], "the same for all"),
        (["--vary", "replicas=1,2", "--layout", "replicas=1: replicas=1"], "not of the form"),
        (["--layout", "a b:", "--layout", "a_b: replicas=2"], "the same name"),
        (["--vary", "replicas=1,2", "--devices", "8"], "all 2 layouts are left out"),
        (["--vary", "dispatch=pull,shove"], "dispatch=shove: unknown dispatch policy"),
        (["--vary", "replicas=1,2", "--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_errors_are_one_sentence(here: Here, words: list[str], said: str) -> None:
    code, err = here("layouts", "--backend", "echo", *words)
    assert code in (2, 3) and said in err
    assert err.startswith("error: ") and len(err.splitlines()) == 1


def test_none_measured_is_exit_code_4(harness: Harness) -> None:
    done = harness("layouts", "--backend", "echo", "--scenario", "Offline", "--samples", "16",
                   "--vary", "engine_arg.colour=red,blue")  # fmt: skip
    assert done.code == 4 and done.out.startswith("None of 2 layouts could be measured.")


def test_a_closed_loop_is_offline_and_one_run_gives_throughput_and_latency(harness: Harness) -> None:
    done = harness(
        "layouts", "--backend", "echo", "--vary", "replicas=1,2", "--concurrency", "8", "--dry-run", "--json"
    )
    plan = json.loads(done.out)
    assert plan["points"] == ["replicas_1-offline-1", "replicas_2-offline-1"]
    assert (plan["config"]["scenario"], plan["config"]["concurrency"]) == ("Offline", 8)


def test_dry_run_lists_the_points(harness: Harness) -> None:
    done = harness("layouts", "--backend", "echo", "--vary", "replicas=1,2", "--accuracy", "--dry-run", "--json")
    assert done.code == 0 and not done.folder.exists()
    assert json.loads(done.out)["points"] == [
        "replicas_1-offline-1", "replicas_2-offline-1", "replicas_1-server-1", "replicas_2-server-1",
        "replicas_1-accuracy-1", "replicas_2-accuracy-1",
    ]  # fmt: skip
