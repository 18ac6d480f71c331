"""What is said of a provenance.json that calls its runs unfit, or that the files belie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.submission.check import check
from tests.harness.submission.made_package import SYSTEM
from tests.harness.submission.spoil import (
    ANSWERS,
    DETAIL,
    Spoil,
    said,
    written,
)


def provenance(**changes: Any) -> Spoil:
    run = {"valid": True, "accuracy_passed": True, "failures": 0, "retries": 0, "resumed": 0, "client_limited": False}
    content = {
        "benchmark": "deepseek-r1",
        "scenario": "Server",
        "system": SYSTEM,
        "rehearsal": False,
        "submission_ready": True,
        "not_ready_reasons": [],
        "runs": {"performance": run | changes.pop("run", {}), "accuracy": run | changes.pop("accuracy", {})},
    }
    return written("Server/provenance.json", json.dumps(content | changes))


@pytest.mark.parametrize(
    ("meaning", "spoil", "words"),
    [
        ("it is not fit", provenance(submission_ready=False, not_ready_reasons=["prefix caching"]), "prefix caching"),
        ("fit, and a reason against", provenance(not_ready_reasons=["retried"]), "gives a reason against"),
        ("a rehearsal", provenance(rehearsal=True), "this is a rehearsal"),
        ("of another scenario", provenance(scenario="Offline"), "scenario is 'Offline', and the directory says Server"),
        ("of another system", provenance(system="other"), "system is 'other'"),
        ("a run that was not valid", provenance(run={"valid": False}), "does not call it valid"),
        ("a run with failures", provenance(run={"failures": 3}), "it has failed queries (3)"),
        ("a run with retries", provenance(run={"retries": 1}), "it has retried queries (1)"),
        ("answers of an interrupted run", provenance(accuracy={"resumed": 5}), "answers of an earlier run (5)"),
        ("accuracy not met", provenance(accuracy={"accuracy_passed": None}), "not say that the accuracy is met"),
        ("the harness was the limit", provenance(run={"client_limited": True}), "the harness itself was the limit"),
        ("two datasets", provenance(run={"dataset_sha256": "a"}, accuracy={"dataset_sha256": "b"}), "accuracy on 'b'"),
        ("a log that was edited", provenance(run={"files": {DETAIL: "0" * 64}}), "not as the performance run left it"),
        ("a hash of another log", provenance(accuracy={"files": {ANSWERS: "0" * 64}}), "not that of the accuracy log"),
        ("no JSON", written("Server/provenance.json", "{"), "provenance.json is not JSON"),
        ("no runs", provenance(runs=[]), "it does not say which runs were packed"),
    ],
)  # fmt: skip
def test_provenance_must_agree_with_the_package(meaning: str, spoil: Spoil, words: str, package: Path) -> None:
    spoil(package)
    assert any(words in what for what in said(check(package))), (meaning, said(check(package)))


def test_a_provenance_that_agrees_says_nothing(package: Path) -> None:
    provenance()(package)
    assert check(package).passed
