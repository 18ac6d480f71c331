"""`peak` as a user meets it: by real LoadGen on the simulator, killed and taken up again, and refused in a sentence."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from tests.harness.conftest import ROOT, Done, call

ECHO = ["--backend", "echo", "--samples", "256", "--quiet"]
# Some 400 queries/s with a limit of 300 ms: a test of full length takes two seconds.
SERVER = [*ECHO, "--target-qps", "250", "--min-duration", "1", "--min-queries", "512"]
for pair in ("slots=32", "ttft=0.01", "tpot=0.002", "tokens=20-60"):
    SERVER += ["--engine-arg", pair]


def peak(tmp_path: Path, *options: str) -> Done:
    conf = tmp_path / "own.conf"
    conf.write_text("demo.Server.ttft_latency = 300\n")
    folder = tmp_path / "study"
    return call(
        ["-m", "harness", "peak", *options, "--user-conf", str(conf), "--output-dir", str(folder)], folder, ROOT
    )


def finished(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The files of the points that came to their end: time and content."""
    ends = sorted(path.parent for path in folder.glob("points/*/result.json"))
    files = (path for end in ends for path in end.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_search_that_is_killed_goes_on_and_finished_probes_stay_as_they_are(tmp_path: Path) -> None:
    options = [*SERVER, "--repeats", "1", "--confirm", "--json"]
    folder = tmp_path / "study"
    (tmp_path / "own.conf").write_text("demo.Server.ttft_latency = 300\n")
    words = [sys.executable, "-m", "harness", "peak", *options, "--user-conf", str(tmp_path / "own.conf")]
    with subprocess.Popen(
        [*words, "--output-dir", str(folder)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("points/*/result.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    before = finished(folder)
    assert before

    done = peak(tmp_path, *options)
    after = finished(folder)
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)

    found = json.loads(done.out.splitlines()[-1])
    saved = json.loads((folder / "findings.json").read_text())
    assert saved == found
    assert found["user_conf"] == f"demo.Server.target_qps = {found['peak_qps']:g}"
    assert f"For user.conf: {found['user_conf']}" in done.out
    assert found["valid_at_full_length"] is True
    assert done.code == (0 if found["confirmed"] else 4)
    assert done.out.startswith("PEAK " if found["confirmed"] else "NOT CONFIRMED")
    assert (folder / "figure.svg").read_text().startswith("<svg")
    assert len((folder / "table.csv").read_text().splitlines()) == 1 + len(found["rows"])
    check_verdicts(found)


def check_verdicts(found: dict[str, Any]) -> None:
    """LoadGen's own verdict on each probe that ran to its end is the one that follows from its decisive latencies."""
    limits = found["limits"]
    whole = [row for row in found["rows"] if row["verdict"] != "INVALID, stopped"]
    assert any(row["valid"] for row in whole)
    for row in whole:
        # LoadGen counts from the scheduled time, the harness from the callback: near the limit they may differ.
        if abs(row["ttft_decisive_s"] / limits["ttft_s"] - 1) > 0.1:
            within = row["ttft_decisive_s"] <= limits["ttft_s"] and row["tpot_decisive_s"] <= limits["tpot_s"]
            assert row["valid"] == within, row


def test_no_rate_is_valid_where_the_first_token_is_late_anyway(tmp_path: Path) -> None:
    done = peak(tmp_path, *ECHO, "--target-qps", "400", "--engine-arg", "ttft=0.5", "--min-duration", "1")
    assert done.code == 4
    assert done.out.startswith(
        "NO VALID RATE of demo Server was found: even a query that waits for nobody is over the limit"
    )
    assert json.loads((done.folder / "findings.json").read_text())["peak_qps"] is None


def test_a_replica_that_dies_ends_the_search(tmp_path: Path) -> None:
    options = [*SERVER, "--engine-arg", "fault=die", "--engine-arg", "fault_every=100"]
    done = peak(tmp_path, *options)
    assert done.code == 4
    assert done.out.startswith("NO VALID RATE of demo Server was found: the probe at 250 queries/s tells nothing: ")
    assert "the replica died" in done.out
    again = peak(tmp_path, *options)
    assert again.code == 4
    assert [path.name for path in (done.folder / "points").iterdir() if "interrupted" in path.name], (
        "the probe that was aborted is made anew, and what it left is kept"
    )


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--scenario", "Serve"], 2, "unknown scenario 'Serve' (nearest: Server)"),
        (["--scenario", "Offline"], 2, "Offline offers none: it takes what it gets."),
        (["--scenario", "SingleStream"], 2, "SingleStream offers none: it takes what it gets."),
        (["--target-qps", "fast"], 2, "'fast' is not a valid float"),
        (["--target-qps", "nan"], 2, "target_qps is nan: it must be a positive number."),
        (["--target-qps", "-1"], 2, "target_qps is -1.0: it must be a positive number."),
        (["--repeats", "0"], 2, "0 is not in the range"),
        (["--offline-result", "/nowhere"], 2, "'/nowhere' does not exist"),
        (["--offline-result", "/"], 3, "/ holds no finished result"),
        (["--mode", "accuracy"], 2, "No such option"),
        (["--benchmark", "llama3.1-8b-edge", "--dataset", "x"], 3, ""),
    ],
)
def test_what_cannot_be_honoured_is_said_in_a_sentence(
    options: list[str], code: int, says: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.signals.raise_on_signals", lambda: None)
    assert cli.call(["peak", "--backend", "echo", *options]) == code
    error = capfd.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("saved", "code", "says"),
    [
        ({"scenario": "Server", "valid": True}, 2, "is no valid Offline run"),
        ({"scenario": "Offline", "valid": False}, 2, "is no valid Offline run"),
        ({"scenario": "Offline", "valid": True, "benchmark": "llama2-70b-99.9"}, 2, "is a run of llama2-70b-99.9"),
        ({"scenario": "Offline", "valid": True, "benchmark": "demo", "metrics": {}}, 2, "says no samples per second"),
        ({"scenario": "Offline", "valid": "yes"}, 3, "is damaged"),
    ],
)
def test_only_an_offline_run_of_the_benchmark_tells_where_to_begin(
    saved: dict[str, Any],
    code: int,
    says: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.signals.raise_on_signals", lambda: None)
    (tmp_path / "result.json").write_text(json.dumps({"format_version": 1, **saved}))
    assert cli.call(["peak", "--backend", "echo", "--offline-result", str(tmp_path)]) == code
    assert says in capfd.readouterr().err


def test_a_dry_run_says_where_the_search_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.signals.raise_on_signals", lambda: None)
    good = {"scenario": "Offline", "valid": True, "benchmark": "demo", "metrics": {"samples_per_second": 50.0}}
    (tmp_path / "result.json").write_text(json.dumps({"format_version": 1, **good}))
    options = ["--offline-result", str(tmp_path), "--dry-run", "--output-dir", str(tmp_path / "study")]
    assert cli.call(["peak", "--backend", "echo", *options]) == 0
    assert json.loads(capfd.readouterr().out)["question"]["start"] == 45.0
    assert not (tmp_path / "study").exists()
