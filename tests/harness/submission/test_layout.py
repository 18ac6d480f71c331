"""What is said of a package whose tree is wrong: names, divisions, systems, source, calibration, scenarios."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness.submission.check import check
from tests.harness.submission.made_package import SUBMITTER
from tests.harness.submission.spoil import (
    DETAIL,
    HOME,
    RUN,
    SYSTEM_FILE,
    Spoil,
    field,
    gone,
    moved,
    results,
    said,
    written,
)


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        ("no division is there", moved(HOME, SUBMITTER, base=""), "there is no result"),
        ("a division is misspelt", moved("closed", "Closed", base=""), "is no division as MLCommons spells it"),
        ("another directory beside the divisions", written("measurements/x.md", "x", base=""), "is no division"),
        ("a file beside the divisions", written("package.tar", "x", base=""), "outside the divisions"),
        ("a file beside the submitters", written("closed/notes.txt", "x", base=""), "outside the submitters"),
        ("a name with a blank", written("Server/my notes.txt", "x"), "a blank in it"),
        ("a file that a finder left", written("Server/.DS_Store", "x"), "begins with a dot"),
        ("a link", lambda root: (results(root) / "link").symlink_to("/etc/hostname"), "it is a link"),
        ("a pipe", lambda root: os.mkfifo(results(root) / "pipe"), "neither a file nor a directory"),
        (
            "51 MiB in one file",
            lambda root: os.truncate(shutil.copy(root / SYSTEM_FILE, results(root) / "big"), 51 * 2**20),
            "51.0 MiB, and 50 are allowed",
        ),
        ("results without a description", gone(SYSTEM_FILE, base=""), "the system's description is missing"),
        ("a description without results", written(f"{HOME}/systems/old.json", "{}", base=""), "has no result"),
        ("an empty system", lambda root: (results(root)).parent.with_name("new").mkdir(), "holds no result"),
        ("no source", gone(f"{HOME}/src", base=""), "source directory is missing"),
        ("the source where the text has it, not the checker", moved("src", "code", base=HOME), "source"),
        ("no calibration", gone(f"{HOME}/documentation", base=""), "calibration is missing"),
        ("an empty calibration", written(f"{HOME}/documentation/calibration.md", "", base=""), "is empty"),
        ("a benchmark that the round dropped", moved("", "../llama2-70b-99"), "has no benchmark of this name any more"),
        ("a benchmark that never was", moved("", "../llama-7b"), "has no benchmark of this name"),
        ("the demo", moved("", "../demo"), "has no benchmark of this name"),
        ("a benchmark of other systems", field("system_type", "edge"), "is no benchmark of edge systems"),
        ("a scenario in lower case", moved("Server", "server"), "the scenario is spelt Server"),
        ("a scenario that never was", moved("Server", "Serving"), "named after no scenario"),
        ("a scenario of another benchmark", moved("Server", "SingleStream"), "has no scenario SingleStream"),
        ("Offline is missing", gone("Offline"), "the scenario Offline is missing"),
        ("neither Server nor Interactive", gone("Server"), "the scenario Server or Interactive is missing"),
        (
            "a directory where a log should be",
            lambda root: gone(f"{RUN}/{DETAIL}")(root) or (results(root) / RUN / DETAIL).mkdir(),
            "is a directory",
        ),
        ("run_1 is missing", moved(RUN, "Server/performance/run_2"), "the detail log is missing"),
    ],
)
def test_each_thing_out_of_place_is_said(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        ("a benchmark without source of its own", moved("src/deepseek-r1", "src/other", base=HOME), "has no directory"),
        (
            "a second run, of which nobody takes notice",
            written("Server/performance/run_2/x.txt", "x"),
            "only run_1 counts",
        ),
        ("an audit's settings left behind", written("Server/audit.config", "x"), "lie beside a result"),
        (
            "the mlperf.conf of another round",
            written("Server/mlperf.conf", "*.*.qsl_rng_seed = 3\n"),
            "of another round",
        ),
    ],
)
def test_what_nobody_asked_for_is_a_warning(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    report = check(package)
    assert report.passed, (meaning, said(report))
    assert any(words in what for what in said(report, "warning")), (meaning, said(report, "warning"))
