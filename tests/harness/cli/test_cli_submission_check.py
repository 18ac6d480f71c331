"""`submission check` as a user meets it: what is printed, the JSON line, the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cli import call
from tests.harness.submission.made_package import make_package
from tests.harness.submission.spoil import SYSTEM_FILE, field, results

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("made"))


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    package = make_package(tmp_path)
    field("cooling", "")(package)
    field("status", "soon")(package)
    return package


def test_a_package_that_is_right_leaves_with_0(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["submission", "check", str(package), "--submitter", "ACME", "--version", "v6.1"]) == 0
    out, err = capsys.readouterr()
    assert (
        out.splitlines()[-1] == "0 errors, 0 warnings, 2 notes in 2 results, of which 2 were checked: no error found."
    )
    assert err == ""


def test_originals_leave_nothing_unverified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = make_package(tmp_path, benchmark="llama3.1-8b")
    assert call(["submission", "check", str(package), "--originals", str(package.parent / "originals")]) == 0
    assert capsys.readouterr().out.startswith("0 errors, 0 warnings, 0 notes")


def test_each_problem_is_shown_with_its_place_its_rule_and_its_fix(
    spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["submission", "check", str(spoiled)]) == 5
    assert capsys.readouterr().out.startswith(f"""\
error: cooling is empty and needs a value.
    {SYSTEM_FILE}
  rule: submission_checker, system_check.py.
  fix:  fill in cooling.

error: status is 'soon', which is none of available, preview, rdi.
    {SYSTEM_FILE}
  rule: submission_checker, system_check.py.
  fix:  write one of available, preview, rdi.
""")


def test_the_last_line_is_one_json_document(spoiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["submission", "check", str(spoiled), "--json"]) == 5
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: report[key] for key in ("passed", "results", "checked", "errors", "warnings", "notes")} == {
        "passed": False,
        "results": 2,
        "checked": 2,
        "errors": 2,
        "warnings": 0,
        "notes": 2,
    }
    assert report["problems"][0] == {
        "level": "error",
        "path": SYSTEM_FILE,
        "what": "cooling is empty and needs a value",
        "rule": "submission_checker, system_check.py",
        "fix": "fill in cooling",
    }


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["nowhere"], 2, "nowhere is not a directory: name the one that holds closed, open or network."),
        ([], 2, "Missing argument 'PACKAGE'; --help lists the options."),
        (["PACKAGE", "--version", "v5.1"], 2, "the rules of round 'v5.1' are not known here: choose v6.1."),
        (["PACKAGE", "--submitter", "Nobody"], 2, "holds no submitter 'Nobody': there is ACME."),
        (["PACKAGE", "--originals", "nowhere"], 2, "nowhere is not a directory"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(
    words: list[str], code: int, sentence: str, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["submission", "check", *(str(package) if word == "PACKAGE" else word for word in words)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert sentence in err


def test_names_that_no_terminal_takes_are_shown_in_plain_letters(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    (results(package) / "Server" / "bell\x07\udcff\x1b[31m").touch()
    words = [sys.executable, "-m", "harness", "submission", "check", str(package)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=50, check=False)
    assert done.stdout.decode("ascii")
    assert rb"bell\x07\udcff\x1b[31m" in done.stdout
    assert done.returncode == 0


def test_help_answers_at_once_and_shows_a_command_to_try() -> None:
    start = time.monotonic()
    words = [sys.executable, "-X", "importtime", "-m", "harness", "submission", "check", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert time.monotonic() - start < 5
    assert "python -m harness submission check out/package" in done.stdout
    assert "numpy" not in done.stderr
