"""What is said of a result: verdict, reasons and figures, a dash for what is no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.page import view
from harness.page.source import Run, Study, Submission, read
from tests.harness.page.made_results import make_accuracy_run, make_run, make_study, make_submission


def told(folder: Path) -> dict[str, Any]:
    found = read(folder)
    assert isinstance(found, Run)
    return view.of_run(found)


@pytest.mark.parametrize(
    ("changes", "verdict", "tone"),
    [
        ({}, "VALID", "good"),
        ({"valid": False}, "NOT VALID", "bad"),
        ({"valid": False, "status": "aborted"}, "NOT VALID (aborted)", "bad"),
        ({"mode": "accuracy", "accuracy": {"passed": False}}, "VALID, accuracy FAILED", "bad"),
        ({"mode": "accuracy", "accuracy": {"passed": None, "targets": {"rouge1": {}}}}, "VALID", "unsure"),
        ({"compliance": {"test": "TEST06", "passed": None, "checks": {}, "why": []}}, "VALID", "unsure"),
    ],
    ids=["good", "not valid", "aborted", "accuracy below target", "accuracy undecided", "compliance undecided"],
)
def test_the_verdict_and_whether_it_is_good_news(tmp_path: Path, changes: Any, verdict: str, tone: str) -> None:
    section = told(make_run(tmp_path / "one", **changes))
    assert (section["verdict"], section["tone"]) == (verdict, tone)


def test_the_figures_that_are_looked_at_first(tmp_path: Path) -> None:
    assert told(make_run(tmp_path / "one"))["tiles"] == [
        ("samples/s", "10.00", ""),
        ("tokens/s", "123", ""),
        ("TTFT p99", "200.0 ms", "p50 100.0 ms"),
        ("latency p99", "700.0 ms", "p50 500.0 ms"),
        ("failed", "0", "of 60 queries"),
        ("duration", "6.00 s", ""),
    ]


def test_scores_stand_beside_what_they_must_be(tmp_path: Path) -> None:
    accuracy = told(make_accuracy_run(tmp_path / "one", ["yes", "no"]))["accuracy"]
    assert accuracy["verdict"] == "passed"
    assert accuracy["rows"] == [
        ("rouge1", "75.0000", "at least 70.0000", "met"),
        ("tokens_per_sample", "9.0000", "", ""),
    ]


WORD = "<b>much</b>"


def test_what_is_no_number_is_a_dash_and_no_error(tmp_path: Path) -> None:
    metrics = {"samples_per_second": WORD, "tokens_per_second": None, "ttft_s": {"p99": WORD}, "latency_s": [1]}
    section = told(
        make_run(
            tmp_path / "one",
            metrics=metrics,
            queries=WORD,
            duration_s=WORD,
            failures={"count": WORD, "by_kind": {"x": WORD}},
            replicas=[{"name": 3, "queries": WORD, "busy_share": None}],
            accuracy={"samples": WORD, "passed": None, "rouge1": WORD, "targets": {"rouge1": {"low": WORD}}},
        )
    )
    assert [figure for _, figure, _ in section["tiles"]] == ["–", "–", "–", "0", "–"]
    assert section["replicas"] == [["3", "–", "–", "–", "–", "–", ""]]
    assert section["accuracy"]["rows"] == [("rouge1", "–", "", "")]


def test_a_configuration_is_told_by_the_path_of_each_value() -> None:
    value = {"a": {"b": 1, "none": None}, "list": [1, 2], "deep": [{"c": True}], "empty": [], "word": ""}
    assert list(view.flat(value)) == [("a.b", "1"), ("list", "1, 2"), ("deep[0].c", "yes")]


def test_a_configuration_of_any_depth_ends() -> None:
    value: Any = 1
    for _ in range(500):
        value = {"a": [value]}
    assert len(list(view.flat(value))) == 1


def test_a_submission_says_what_is_against_it(tmp_path: Path) -> None:
    found = read(make_submission(tmp_path / "sub"))
    assert isinstance(found, Submission)
    section = view.of_submission(found)
    assert section["verdict"] == "NOT FOR A SUBMISSION"
    assert section["reasons"] == ["the runs were interrupted"]
    assert section["unready"] == ["accuracy was not run to its end"]


def test_a_study_answers_first(tmp_path: Path) -> None:
    found = read(make_study(tmp_path / "sweep"))
    assert isinstance(found, Study)
    section = view.of_study(found)
    assert section["headline"] == "The knee is at 10 queries/s."
    assert section["table"] == {"names": ["rate", "valid"], "rows": [["10", "yes"], ["20", "no"]]}
    points = {point["name"]: point for point in section["points"]}
    assert (points["rate-20"]["verdict"], points["rate-20"]["reason"]) == ("NOT VALID", "LoadGen says INVALID")


def test_findings_of_any_shape_are_told(tmp_path: Path) -> None:
    found = read(make_study(tmp_path / "sweep", headline=3, notes="none", rows=[{"a": [1]}, 5, {"b": None, "c": 2e9}]))
    assert isinstance(found, Study)
    assert view.of_study(found)["table"] == {"names": ["b", "c"], "rows": [["–", "–"], ["–", "2,000,000,000"]]}
