"""`fleet` from the command line: its members are real processes, each with the real LoadGen."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.harness.conftest import Harness, Here
from tests.harness.studies.killed import below, end, marks, started, wait_for

SERVER = ["--backend", "echo", "--samples", "32", "--scenario", "Server", "--target-qps", "500", "--min-queries", "500",
          "--min-duration", "1", "--engine-arg", "ttft=0.01"]  # fmt: skip
TWO = ["--member", "small:", "--member", "large: engine_arg.tpot=0.001"]


def members_of(pid: int) -> dict[str, psutil.Process]:
    """The members' processes by name."""
    found = {}
    for process in below(pid):
        words = process.cmdline()
        if "fleet-member" in words:
            found[Path(words[words.index("--output-dir") + 1]).name] = process
    return found


def test_a_killed_fleet_goes_on_with_whole_rounds(tmp_path: Path, harness: Harness) -> None:
    """Killed while the second member is alone: what was done stays as it is, and only that one is started again."""
    words = ["fleet", *SERVER, *TWO, "--output-dir", str(tmp_path / "out")]
    points = tmp_path / "out" / "points"
    with started(words, tmp_path) as process:
        wait_for((points / "alone-1-large" / "large" / "user.conf").exists)
        assert end(process, signal.SIGKILL) == -signal.SIGKILL
    assert not (points / "alone-1-large" / "point.json").exists()
    before = {name: marks(points / name) for name in ("together-1", "alone-1-small")}

    done = harness(*words, "--json")
    assert done.code == 0, done.err
    assert {name: marks(points / name) for name in before} == before
    assert "Starting large …" in done.err and "small" not in done.err
    found = json.loads(done.out.splitlines()[-1])
    assert [row["member"] for row in found["rows"]] == ["small", "large"]
    for row in found["rows"]:
        assert row["valid"] and row["together_ttft_p99_s"] > 0 and row["alone_ttft_p99_s"] > 0
    clocks = [json.loads((points / "together-1" / name / "result.json").read_text()) for name in ("small", "large")]
    starts, ends = zip(*((run["started_at"], run["started_at"] + run["duration_s"]) for run in clocks), strict=True)
    assert found["start_skew_s"] == pytest.approx(max(starts) - min(starts), abs=1e-6)
    both = max(0.0, min(ends) - max(starts))
    assert [row["all_at_work_share"] for row in found["rows"]] == pytest.approx(
        [both / run["duration_s"] for run in clocks], abs=1e-6
    )
    assert "all at once" in (tmp_path / "out" / "figure.svg").read_text()


def test_a_member_that_dies_does_not_keep_the_others_waiting(tmp_path: Path, harness: Harness) -> None:
    words = ["fleet", *SERVER, *TWO, "--output-dir", str(tmp_path / "out")]
    points = tmp_path / "out" / "points"
    with started(words, tmp_path) as process:
        wait_for((points / "together-1" / "large" / "mlperf_log_detail.txt").exists)
        members_of(process.pid)["large"].kill()
        assert process.wait(40) == 4
        assert process.stdout is not None
        said = process.stdout.read()
    assert "large: its process was ended by signal 9" in said
    assert (points / "alone-1-small" / "point.json").exists(), "who is left is measured alone"
    assert not (points / "together-1" / "point.json").exists(), "a round without a member is none"
    kept = marks(points / "alone-1-small")
    assert harness(*words).code == 0
    assert marks(points / "alone-1-small") == kept and (points / "together-1.interrupted-1").exists()


def test_a_member_that_loses_its_replicas_ends_its_round_too(harness: Harness) -> None:
    """Its process still tells so: what the other one did meanwhile is no figure of both together."""
    done = harness("fleet", *SERVER, "--member", "small:", "--member", "large: engine_arg.fault=die", "--json")
    assert done.code == 4, done.err
    small, large = json.loads(done.out.splitlines()[-1])["rows"]
    assert small["together_samples_per_second"] is None and small["alone_samples_per_second"] > 0
    assert large["why"].startswith("together-1: the test was aborted: no replica is left")
    assert (done.folder / "points" / "alone-1-small" / "point.json").exists()
    assert not (done.folder / "points" / "together-1" / "point.json").exists(), "the same command runs it again"


def test_interrupted_it_leaves_nothing_behind(tmp_path: Path) -> None:
    words = ["fleet", "--backend", "echo", "--samples", "32", "--engine-arg", "ttft=300", *TWO,
             "--output-dir", str(tmp_path / "out")]  # fmt: skip
    with started(words, tmp_path) as process:
        wait_for((tmp_path / "out" / "points" / "together-1" / "small" / "mlperf_log_detail.txt").exists)
        assert end(process, signal.SIGINT) == 130
        assert process.stdout is not None
        assert "the same command with --output-dir" in process.stdout.read()


def test_virtual_users_for_a_time_on_a_few_prompts(harness: Harness) -> None:
    """A trial finds how many samples a closed loop needs to last."""
    done = harness("fleet", "--backend", "echo", "--engine-arg", "ttft=0.02", *TWO, "--concurrency", "16",
                   "--min-duration", "2", "--samples", "32", "--json")  # fmt: skip
    assert done.code == 0, done.err
    for row in json.loads(done.out.splitlines()[-1])["rows"]:
        assert row["valid"] and row["together_ttft_p99_s"] >= 0.02
    for point in ("together-1/small", "together-1/large", "alone-1-small/small", "alone-1-large/large"):
        result = json.loads((done.folder / "points" / point / "result.json").read_text())
        assert result["duration_s"] >= 2 and result["config"]["concurrency"] == 16


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--member", "a:"], 2, "at least two members"),
        (["--member", "a:", "--member", "A:"], 2, "the same name"),
        (["--member", "a:", "--member", "b: scenario=Sever"], 2, "b: unknown scenario 'Sever' (nearest: Server)"),
        (["--member", "a:", "--member", "b: endpoint=http://h:1 replicas=2"], 2, "b: 1 endpoints are 1 replicas"),
        (["--member", "a:", "--member", "b: model=/nowhere"], 3, "/nowhere"),
    ],
    ids=["one", "one name", "a wrong value", "options that contradict", "no such model"],
)
def test_errors_are_one_sentence(here: Here, words: list[str], code: int, said: str) -> None:
    found, err = here("fleet", "--samples", "16", *words)
    assert (found, len(err.splitlines())) == (code, 1) and err.startswith("error: ") and said in err


def test_a_member_that_does_not_come_up_ends_the_fleet(harness: Harness) -> None:
    words = ("--member", "a:", "--member", "b: engine_arg.colour=red")
    done = harness("fleet", "--backend", "echo", "--samples", "16", "--quiet", *words)
    assert done.code == 3 and done.err.startswith("error: b did not come up: unknown engine argument")


def test_dry_run_lists_the_rounds(harness: Harness) -> None:
    done = harness("fleet", "--backend", "echo", *TWO, "--dry-run", "--json")
    assert done.code == 0 and not done.folder.exists()
    assert json.loads(done.out)["points"] == ["together-1", "alone-1-small", "alone-1-large"]
