"""scripts/package_submission.sh: from runs to a checked package, on a harness that only notes what it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Notes its words, and ends with the code that the file codes/<command> holds; a run leaves submission.json.
HARNESS = """\
#!/usr/bin/env bash
here=$(cd "$(dirname "$0")/.." && pwd)
echo "$*" >>"$here/calls"
while [ $# -gt 0 ]; do
  case $1 in run | pack | check) command=$1 ;; --output-dir) folder=$2 ;; esac
  shift
done
code=$(cat "$here/codes/$command" 2>/dev/null || echo 0)
if [ "$command" = run ] && [ "$code" != 4 ]; then
  mkdir -p "$folder"; echo '{"status": "complete"}' >"$folder/submission.json"
fi
exit "$code"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (tmp_path / "codes").mkdir()
    shutil.copy(ROOT / "scripts/package_submission.sh", folder)
    (folder / "run.sh").write_text(HARNESS)
    (folder / "run.sh").chmod(0o755)
    return tmp_path


def package(project: Path, *words: str, **environment: str) -> tuple[int, list[str], list[str]]:
    """The exit code, what was said, and what the harness was told."""
    done = subprocess.run(
        ["scripts/package_submission.sh", *words],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": os.environ["PATH"], "SUBMITTER": "Acme", "OUTPUT": "out", **environment},
    )
    calls = project / "calls"
    return done.returncode, done.stderr.splitlines(), calls.read_text().splitlines() if calls.exists() else []


def test_it_runs_packs_and_checks_and_prints_each_command(project: Path) -> None:
    more = {"SERVER_OPTIONS": "--target-qps 40", "PACK_OPTIONS": "--system-name box", "DIVISION": "open"}
    code, said, calls = package(project, "--model", "a b", "--replicas", "2", **more)
    assert code == 0
    run = "run --mode submission --benchmark llama2-70b-99.9 --scenario"
    assert calls == [
        f"{run} Offline --output-dir out/Offline --model a b --replicas 2",
        f"{run} Server --output-dir out/Server --model a b --replicas 2 --target-qps 40",
        "submission pack out/Offline out/Server --submitter Acme --division open --output out/package "
        "--system-name box",
        "submission check out/package --originals out/package-originals",
    ]
    assert f"$ python -m harness {run} Offline --output-dir out/Offline --model a\\ b --replicas 2" in said
    assert said[-1] == "out/package is ready."


def test_it_stops_at_the_first_failure_and_goes_on_from_there(project: Path) -> None:
    (project / "codes/run").write_text("4")
    code, said, calls = package(project)
    assert (code, len(calls)) == (4, 1)
    assert said[-1].startswith(
        "error: Offline ended with code 4, so nothing was packed: mend what it says, remove out/"
    )
    (project / "codes/run").unlink()
    (project / "codes/pack").write_text("5")
    code, said, calls = package(project)
    assert (code, len(calls)) == (5, 4)
    assert said[-1].startswith("error: nothing was packed (code 5)")
    (project / "codes/pack").unlink()
    code, said, calls = package(project)
    assert (code, len(calls)) == (0, 6), "finished scenarios are not run again"
    assert "out/Server is finished: not run again." in said


def test_runs_that_were_interrupted_are_not_taken_for_finished(project: Path) -> None:
    (project / "out/Offline").mkdir(parents=True)
    (project / "out/Offline/submission.json").write_text('{"status": "interrupted"}')
    code, said, calls = package(project)
    assert (code, calls) == (2, [])
    assert said[-1] == (
        "error: out/Offline holds runs that did not come to their end: remove it, or choose another OUTPUT."
    )


def test_a_rehearsal_goes_on_below_the_target_and_ends_as_the_check_does(project: Path) -> None:
    (project / "codes/run").write_text("5")
    assert package(project)[0] == 5
    shutil.rmtree(project / "out")
    (project / "codes/check").write_text("5")
    code, said, calls = package(project, "--backend", "echo")
    assert (code, len(calls)) == (5, 1 + 4)
    assert "This is a rehearsal: its package says so itself, and cannot be submitted." in said
    assert said[-1].startswith("error: out/package is a rehearsal, so the check refuses it")


def test_the_open_division_goes_on_below_the_target(project: Path) -> None:
    (project / "codes/run").write_text("5")
    code, said, calls = package(project, DIVISION="open")
    assert (code, len(calls)) == (0, 4)
    assert "Something is below its target, as in the open division it may be." in said
    shutil.rmtree(project / "out")
    assert package(project, DIVISION="network")[0] == 5


def test_what_a_grader_decides_is_left_to_packing_and_a_set_up_that_failed_is_not(project: Path) -> None:
    """Code 3 has two meanings: submission.json is there where all runs came to their end."""
    (project / "codes/run").write_text("3")
    (project / "codes/pack").write_text("5")
    code, said, calls = package(project)
    assert (code, len(calls)) == (5, 3)
    assert "Not all is decided yet: packing says what is missing." in said
    assert said[-1].startswith("error: nothing was packed (code 5)")
    harness = project / "scripts/run.sh"
    harness.write_text(harness.read_text().replace("!= 4 ]", "= 0 ]"))
    code, said, calls = package(project, OUTPUT="again")
    assert (code, len(calls)) == (3, 4)
    assert said[-1].startswith("error: Offline ended with code 3, so nothing was packed")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"SUBMITTER": ""},
            "error: nobody submits: name the submitter, SUBMITTER=Acme scripts/package_submission.sh …",
        ),
        ({}, "error: out/package is there already, and nothing is overwritten: choose another OUTPUT."),
    ],
)
def test_what_it_refuses_at_once(environment: dict[str, str], sentence: str, project: Path) -> None:
    (project / "out/package").mkdir(parents=True)
    code, said, calls = package(project, **environment)
    assert (code, said, calls) == (2, [sentence], [])
