"""`sweep` on the echo simulator and real LoadGen: one SUT for all points, its files, its exit codes, and kill -9."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.cli import call

Run = Callable[..., Any]

SLOW = ["--engine-arg", "slots=4", "--engine-arg", "ttft=0.004", "--engine-arg", "tpot=0.001"]
SHORT = ["--min-duration", "0.3", "--min-queries", "60", "--samples", "64"]
RATES = ["sweep", *SLOW, *SHORT, "--rates", "400,50,100"]
"""Four slots and 36 ms a query: 110 queries/s."""
DYING = [*SHORT, *SLOW, "--concurrency", "1,2", "--engine-arg", "fault=die"]


@pytest.fixture(scope="module")
def sweeps(many: Callable[[Mapping[Any, Sequence[str]]], dict[Any, Any]]) -> dict[str, Any]:
    quick = ["--min-duration", "0.2", "--min-queries", "20", "--samples", "64", "--engine-arg", "slots=2"]
    return many(
        {
            "rates": [*RATES, "--json"],
            "auto": ["sweep", *SLOW[2:], *quick, "--concurrency", "auto"],
            "failing": ["sweep", *SHORT, "--rates", "300,600", "--engine-arg", "fault=error"],
            "dying": ["sweep", *DYING],
        }
    )


def found(done: Any) -> dict[str, Any]:
    return json.loads((done.folder / "findings.json").read_text())


def test_rates_come_in_order_on_one_sut_and_overload_is_no_error(sweeps: dict[str, Any]) -> None:
    done = sweeps["rates"]
    assert done.code == 0, done.err
    rows = found(done)["rows"]
    assert [row["load"] for row in rows] == [50, 100, 400]
    assert all(row["measured"] for row in rows)
    assert done.err.count("Starting 1 echo replica") == 1, "one SUT for all points"
    assert done.err.startswith("3 points: 2 s, and longer by what queues up"), "what it will take is said beforehand"
    assert rows[2]["samples_per_second"] < 200 < rows[2]["load"], "beyond what it can serve"
    assert rows[2]["ttft_p99_s"] > 5 * rows[0]["ttft_p50_s"]
    assert all(0 < row["per_token_mean_s"] < row["per_output_token_mean_s"] for row in rows)
    assert all(row["total_tokens_per_second"] > row["tokens_per_second"] for row in rows)
    line = json.loads(done.out.splitlines()[-1])
    assert line == found(done)
    assert {path.name for path in done.folder.iterdir()} >= {"table.csv", "figure.svg", "figure.json", "study.json"}
    assert (done.folder / "points" / "rate-400" / "mlperf_log_summary.txt").exists()


def test_a_point_asks_what_it_is_told_and_not_whole_passes(sweeps: dict[str, Any]) -> None:
    for rate, queries in ((50, 60), (400, 120)):
        result = json.loads((sweeps["rates"].folder / "points" / f"rate-{rate}" / "result.json").read_text())
        assert queries * 0.7 <= result["queries"] <= queries * 1.4, "64 samples are loaded"
        assert result["config"]["target_qps"] == rate


def test_a_closed_loop_finds_its_knee_by_itself(sweeps: dict[str, Any]) -> None:
    done = sweeps["auto"]
    assert done.code == 0, done.err
    findings = found(done)
    loads = [row["load"] for row in findings["rows"]]
    assert loads[0] == 1 and loads[-1] >= 4
    assert 1 <= findings["knee"] <= 4, "two slots"
    result = json.loads((done.folder / "points" / "concurrency-2" / "result.json").read_text())
    assert (result["config"]["concurrency"], result["scenario"], result["valid"]) == (2, "Offline", True)
    assert result["submission_ready"] is False


def test_where_no_point_can_be_measured_the_exit_code_says_so(sweeps: dict[str, Any]) -> None:
    done = sweeps["failing"]
    assert done.code == 4
    assert done.out.startswith("No point could be measured.\n")
    assert "queries failed (backend_error" in done.out
    assert len(found(done)["rows"]) == 2, "the second was tried all the same"


def test_after_an_abort_the_next_point_has_new_replicas(sweeps: dict[str, Any], harness: Run) -> None:
    done = sweeps["dying"]
    assert done.code == 4
    assert done.err.count("Starting 1 echo replica") == 2
    assert [row["why"].startswith("the test was aborted: no replica is left") for row in found(done)["rows"]] == [
        True
    ] * 2
    again = harness("sweep", *DYING, "--backend", "echo", "--output-dir", str(done.folder))
    assert again.code == 4
    assert sorted(path.name for path in (done.folder / "points").iterdir()) == [
        *("concurrency-1", "concurrency-1.interrupted-1", "concurrency-2", "concurrency-2.interrupted-1")
    ], "the replicas may be better now: both are run again, and what they left is kept"


def test_a_point_whose_rows_are_damaged_is_named_in_a_sentence(
    sweeps: dict[str, Any], harness: Run, tmp_path: Path
) -> None:
    shutil.copytree(sweeps["rates"].folder, tmp_path / "copy")
    path = tmp_path / "copy" / "points" / "rate-100" / "samples.parquet"
    path.write_bytes(path.read_bytes()[:200])
    done = harness(*RATES, "--backend", "echo", "--quiet", "--output-dir", str(tmp_path / "copy"))
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert done.err.startswith(f"error: cannot read {path} as parquet (")


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no number": (["--rates", "1,fast"], "'1,fast' is not a list of numbers such as 1,2,4"),
    "zero": (["--rates", "0,1"], "'0,1': each number must be positive"),
    "negative": (["--rates", "-1"], "'-1': each number must be positive"),
    "nan": (["--rates", "nan"], "'nan': each number must be positive"),
    "infinite": (["--rates", "inf"], "'inf': each number must be positive"),
    "nothing": (["--rates", ""], "'' is not a list of numbers"),
    "twice": (["--rates", "1,2,1.0"], "'1,2,1.0' names a number twice: each once"),
    "half a query": (["--concurrency", "1.5"], "'1.5' is not a list of numbers"),
    "too much": (["--rates", "1e9"], "1e+09 queries/s would be more than 5,000,000 queries: ask for less."),
    "two kinds": (
        ["--rates", "1", "--concurrency", "1"],
        "--rates and --concurrency are two kinds of load: choose one.",
    ),
    "an open loop": (
        ["--concurrency", "1", "--scenario", "Server"],
        "--concurrency is a closed loop, which is Offline",
    ),
    "no rates": (["--scenario", "Offline"], "rates are offered in Server or Interactive, and --scenario says Offline"),
    "more than fits": (["--concurrency", "1,9", "--max-in-flight", "4"], "--max-in-flight lets 4 queries together"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.signals.raise_on_signals", lambda: None)
    words, sentence = MISTAKES[what]
    assert call(["sweep", "--backend", "echo", *words, "--output-dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_sweep_is_refused(sweeps: dict[str, Any], harness: Run) -> None:
    folder = sweeps["rates"].folder
    done = harness(*RATES[:-1], "50,100", "--backend", "echo", "--output-dir", str(folder))
    assert done.code == 2
    assert "holds a sweep with another rates" in done.err


def digests(folder: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def test_a_sweep_that_was_killed_goes_on_with_the_points_that_are_left(tmp_path: Path, harness: Run) -> None:
    folder = tmp_path / "out"
    words = [*RATES[:-1], "100,50,60", "--backend", "echo"]
    process = subprocess.Popen([sys.executable, "-m", "harness", *words, "--output-dir", folder], cwd=tmp_path)
    deadline = time.monotonic() + 40
    while not (folder / "points" / "rate-60" / "user.conf").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "findings.json").exists()
    before = digests(folder / "points" / "rate-50")
    assert any(name.endswith("result.json") for name in before)
    done = harness(*words, "--output-dir", str(folder))
    assert done.code == 0, done.err
    assert digests(folder / "points" / "rate-50") == before, "finished points keep time and hash"
    assert [row["load"] for row in found(done)["rows"]] == [50, 60, 100]
    again = digests(folder / "points")
    assert harness(*words, "--output-dir", str(folder)).code == 0
    assert digests(folder / "points") == again, "all done: nothing is run"
