"""`doctor` as a person meets it: its lines, its last line, its exit code; and that nothing is changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import doctor
from harness.cli import call
from harness.doctor import NOTE, OK, PROBLEM, Finding

ROOT = Path(__file__).parent.parent.parent.parent


def examined(*findings: Finding) -> object:
    def examine(folder: Path, endpoints: object) -> Iterator[Finding]:
        yield from findings

    return examine


def test_nothing_in_the_way_is_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(Finding(OK, "cores", "2 of 2"), Finding(NOTE, "load", "much", "wait"))
    monkeypatch.setattr(doctor, "examine", found)
    assert call(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "ok       cores      2 of 2\nnote     load       much → wait\nNothing in the way, 1 to note.\n"
    )


def test_a_problem_is_3_and_json_is_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", examined(Finding(PROBLEM, "memory", "none", "free some")))
    assert call(["doctor", "--json"]) == 3
    *told, last = capsys.readouterr().out.splitlines()
    assert told == ["problem  memory     none → free some", "1 in the way, 0 to note."]
    assert json.loads(last) == {
        "ready": False,
        "findings": [{"mark": "problem", "about": "memory", "says": "none", "then": "free some"}],
    }


def test_a_reader_that_goes_away_changes_no_exit_code() -> None:
    program = (
        "from harness import cli, doctor\n"
        "doctor.examine = lambda *_: (doctor.Finding('problem', 'x', 'y') for _ in range(100))\n"
        "cli.main(['doctor'])"
    )
    command = [sys.executable, "-B", "-c", program]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(30) == 3


def test_an_unknown_option_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor", "--frobnicate"]) == 2


def examine_here(work: Path, doubles: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, for which the packages in `doubles` go before any other."""
    environment = {"PYTHONPATH": f"{doubles}:{ROOT}", "LOADGEN_HARNESS_API_KEY": "s3cret", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-B", "-m", "harness", "doctor", "--json"]
    return subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120, env=environment)


def test_a_package_that_kills_who_imports_it_ends_no_examination(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("import os; os.kill(os.getpid(), 11)")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("raise ImportError")
    done = examine_here(tmp_path, tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    said = {finding["about"]: finding["says"] for finding in json.loads(done.stdout.splitlines()[-1])["findings"]}
    assert "its process has died: Segmentation fault" in said["LoadGen"]
    assert {"cores", "results", "devices"} <= set(said)


def test_a_real_machine_is_examined_and_left_as_it_was(tmp_path: Path) -> None:
    """In the place of vLLM, a package that cannot be imported; the key is in no line."""
    (tmp_path / "doubles/vllm").mkdir(parents=True)
    (tmp_path / "doubles/vllm/__init__.py").write_text("raise ImportError('libcudart.so.13 is not there')")
    (tmp_path / "doubles/vllm-9.9.dist-info").mkdir()
    (tmp_path / "doubles/vllm-9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9\n")
    work = tmp_path / "work"
    work.mkdir()
    (work / "audit.config").write_text("")
    before = sorted(tmp_path.rglob("*"))
    done = examine_here(work, tmp_path / "doubles")
    assert (done.returncode, done.stderr) == (3, "")
    findings = json.loads(done.stdout.splitlines()[-1])["findings"]
    problems = {finding["about"] for finding in findings if finding["mark"] == "problem"}
    assert {"audit.config", "vLLM"} <= problems
    assert "LoadGen" in {finding["about"] for finding in findings if finding["mark"] == "ok"}
    assert "s3cret" not in done.stdout
    assert sorted(tmp_path.rglob("*")) == before
