"""`context` as a user meets it, on the simulator: the answer, its files, a kill -9 in between, wrong options."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cli import call

ECHO = ["context", "--backend", "echo", "--engine-arg", "tpot=0.0005"]
LIMITED = [*ECHO, "--engine-arg", "max_model_len=5000"]


def words(*options: str) -> list[str]:
    return [sys.executable, "-m", "harness", *options]


def test_configurations_are_explored_on_loadgens_clock(tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = [
        "--configuration",
        "short: max_model_len=1500",
        "--configuration",
        "long: max-model-len=3000, prefill=1e-6",
    ]
    done = subprocess.run(
        words(*ECHO, *table, "--repeats", "2", "--output-dir", str(out), "--json", "--quiet"),
        capture_output=True, text=True, timeout=100, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["headline"] == "Longest prompt in tokens, beside 32 of its answer: short 1,468, long 2,968."
    assert [(row["exact"], row["edge"], row["context_said"]) for row in found["summary"]] == [
        (True, "refused", 1500),
        (True, "refused", 3000),
    ]
    measured = [(row["configuration"], row["prompt_tokens"]) for row in found["rows"] if row.get("ttft_s")]
    assert measured == [("short", 1024), ("short", 1468), ("long", 1024), ("long", 2048), ("long", 2968)]
    assert {row["source"] for row in found["rows"] if row.get("ttft_s")} == {"loadgen"}
    assert {row["repeats"] for row in found["rows"] if row.get("ttft_s")} == {2}
    for name in ("findings.json", "table.csv", "figure.svg", "figure.json", "study.json"):
        assert (out / name).stat().st_size > 0
    log = (out / "points" / "long-2968" / "mlperf_log_detail.txt").read_text()
    assert '"is_error": true' not in log


def test_a_study_killed_in_between_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = words(*LIMITED, "--engine-arg", "ttft=0.1", "--repeats", "1", "--output-dir", str(out), "--quiet")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (out / "points" / "echo-2048" / "result.json").exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [out / "points" / name for name in ("echo-1024", "echo-2048", "echo-asks-1024", "echo-asks-2048")]
    before = fingerprints(done)
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=100).returncode == 0
    assert fingerprints(done) == before
    found = json.loads((out / "findings.json").read_text())
    assert (found["summary"][0]["prompt_tokens"], found["summary"][0]["exact"]) == (4968, True)
    third = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert third.returncode == 0 and fingerprints(done) == before
    assert json.loads((out / "findings.json").read_text()) == found, "a study that is done says the same again"


def fingerprints(folders: list[Path]) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


BAD: dict[str, tuple[list[str], int, str]] = {
    "lengths that are no numbers": (["--lengths", "1k,2k"], 2, "'1k,2k' is not a list of numbers such as 1,2,4"),
    "a length of nothing": (["--lengths", "0,10"], 2, "each number must be positive"),
    "a factor of one": (["--factor", "1"], 2, "1.0 is not in the range x>1"),
    "one token of answer": (["--output-tokens", "1"], 2, "1 is not in the range x>=2"),
    "a configuration without a name": (["--configuration", "slots=3"], 2, "is not of the form NAME: KEY=VALUE"),
    "a configuration without a value": (["--configuration", "a: slots"], 2, "is not of the form NAME: KEY=VALUE"),
    "a name twice": (["--configuration", "a: slots=1", "--configuration", "a: slots=2"], 2, "'a' stands twice"),
    "an option that the study decides": (["--dataset", "x"], 2, "No such option '--dataset'"),
    "an engine argument that is unknown": (["--configuration", "a: slotz=1"], 2, "did you mean 'slots'?"),
    "endpoints of one name": (
        ["--endpoint", "http://h:1", "--endpoint", "https://h:1"], 2, "two endpoints would be the row h-1",
    ),
    "an endpoint's own configuration": (
        ["--endpoint", "http://h", "--configuration", "a: slots=1"], 2, "an endpoint has its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    options, code, sentence = BAD[case]
    monkeypatch.setattr("harness.signals.raise_on_signals", lambda: None)
    monkeypatch.chdir(tmp_path)
    backend = [] if "--endpoint" in options else ["--backend", "echo"]
    assert call(["context", *backend, *options, "--output-dir", "out", "--quiet"]) == code
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_dry_run_shows_the_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.signals.raise_on_signals", lambda: None)
    monkeypatch.chdir(tmp_path)
    two = ["--endpoint", "http://gpu-1:8000/v1", "--endpoint", "gpu-2:8000"]
    assert call(["context", *two, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["points"] == ["gpu-1-8000-v1", "gpu-2-8000"]
    assert list(tmp_path.iterdir()) == []


def test_another_question_is_refused_in_the_same_folder(tmp_path: Path) -> None:
    first = [*LIMITED, "--lengths", "100", "--repeats", "1", "--output-dir", "out", "--quiet"]
    assert subprocess.run(words(*first), cwd=tmp_path, capture_output=True, timeout=100).returncode == 0
    again = subprocess.run(
        words(*first, "--output-tokens", "64"), cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert again.returncode == 2
    assert "holds a context with another generation" in again.stderr
