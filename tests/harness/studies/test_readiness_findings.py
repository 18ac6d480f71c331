"""What is right, and what the table, the figure and the sentences then say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.figures import as_svg
from harness.studies.findings import as_text
from harness.studies.readiness_findings import conclude_readiness, draw, judged, references, spread
from harness.studies.study import Study

GOOD, BAD, OTHER = [1, 2, 3], [9, 9, 9], [8, 8]


def row(index: int, said: Any = GOOD, **changes: Any) -> dict[str, Any]:
    validation = [] if said is None else [{"question": 0, "said": said, "seconds": 0.1}]
    return {
        "index": index,
        "name": f"replica-{index}",
        "group": 1,
        "url": f"http://r{index}",
        "began_s": 0.0,
        "created_s": 0.5,
        "healthy_s": 1.0 + index,
        "healthy_within_s": 0.01,
        "looks": 5,
        "answer_s": 1.5 + index,
        "validated_s": 2.0 + index,
        "said": said,
        "validation": validation,
        "failure": None,
    } | changes


def never(index: int) -> dict[str, Any]:
    return row(index, None, healthy_s=None, answer_s=None, validated_s=None, failure="no answer within 5 s")


@pytest.mark.parametrize(
    ("said", "right", "doubted"),
    [
        ([GOOD, GOOD, GOOD], GOOD, False),
        ([BAD, GOOD, GOOD], GOOD, False),
        ([GOOD, BAD], GOOD, True),
        ([BAD, GOOD, OTHER, GOOD], GOOD, True),
        (["a text", "a text", "another"], "a text", False),
        ([None, GOOD, GOOD], GOOD, False),
    ],
    ids=[
        "all agree",
        "the first one is wrong",
        "two disagree: the earliest, and it is said",
        "no majority: the most frequent, and it is said",
        "answers in text",
        "one has never answered",
    ],
)
def test_what_most_replicas_say_is_right(said: list[Any], right: Any, doubted: bool) -> None:
    found, doubts = references([row(index, each) for index, each in enumerate(said)], {})
    assert found == {0: right}
    assert bool(doubts) == doubted


def test_a_replica_has_one_vote_however_often_it_is_asked() -> None:
    many = row(0, BAD, validation=[{"question": 0, "said": BAD}] * 9)
    assert references([many, row(1), row(2)], {})[0] == {0: GOOD}


def test_a_question_that_was_answered_at_the_end_only_has_a_right_answer_too() -> None:
    first = {"validation": [{"question": 1, "failure": "no answer in time"}]}
    final = [{"index": i, "validation": [{"question": 1, "said": said}]} for i, said in enumerate((GOOD, GOOD, BAD))]
    found = conclude([row(i, **first) for i in range(3)], final)
    assert found.extra["right_answers"][1] == GOOD
    assert [each["at_the_end"] for each in found.rows] == ["1 of 1", "1 of 1", "0 of 1"]


def test_of_a_single_replica_nobody_knows_whether_it_is_right() -> None:
    right, doubts = references([row(0)], {})
    assert right == {0: GOOD} and "agree with nobody else's" in doubts[0]


@pytest.mark.parametrize(
    ("changes", "final", "failure", "answer"),
    [
        ({}, [{"question": 0, "said": GOOD}], None, 1.5),
        ({"said": BAD}, [], "a wrong first answer: 9 9 9, and most say 1 2 3", None),
        ({"validation": [{"question": 0, "said": BAD}]}, [], "when validated: question 0: 9 9 9", 1.5),
        ({"validation": [{"question": 0, "failure": "HTTP 500"}]}, [], "when validated: question 0: HTTP 500", 1.5),
        ({}, [{"question": 0, "failure": "it died"}], "at the end: question 0: it died", 1.5),
        ({"failure": "never", "said": None, "answer_s": None, "validation": []}, [], "never", None),
    ],
    ids=["right", "wrong at first", "wrong when validated", "fails when validated", "fails at the end", "never up"],
)
def test_the_first_thing_that_went_wrong_is_a_replicas_failure(
    changes: dict[str, Any], final: list[dict[str, Any]], failure: str | None, answer: float | None
) -> None:
    found = judged(row(0, **changes), {"validation": final}, {0: GOOD})
    assert found["answer_s"] == answer
    if failure is None:
        assert found["failure"] is None
    else:
        assert found["failure"].startswith(failure)


def test_one_that_did_not_come_up_again_keeps_its_first_time() -> None:
    found = judged(row(0), {"failure": "it did not come up again"}, {0: GOOD})
    assert found["failure"] == "it did not come up again" and found["answer_s"] == 1.5 and found["at_the_end"] is None


@pytest.mark.parametrize(
    ("values", "median", "ratio"),
    [([2.0], 2.0, 1.0), ([1.0, 4.0], 2.5, 4.0), ([4.0, 1.0, 2.0, 3.0, 5.0], 3.0, 5.0)],
    ids=["one", "two", "five, unsorted"],
)
def test_quartiles(values: list[float], median: float, ratio: float) -> None:
    found = spread(values)
    assert found is not None and (found["median"], found["slowest_over_fastest"]) == (median, ratio)
    assert found["min"] <= found["q1"] <= found["median"] <= found["q3"] <= found["max"]


def test_without_any_there_are_none() -> None:
    assert spread([]) is None


def conclude(rows: list[dict[str, Any]], final: list[dict[str, Any]], troubles: list[str] | None = None) -> Any:
    study = Study("readiness", Path("nowhere"))
    return conclude_readiness(study, [{"replicas": rows}], {"replicas": final}, troubles or [])


def test_the_findings_as_a_person_reads_them() -> None:
    rows = [row(0), row(1), never(2)]
    final = [{"index": i, "validation": [{"question": 0, "said": GOOD}]} for i in range(2)]
    found = conclude(rows, final, ["replica-1 may still be there: the command 'x' exited with code 1."])
    assert as_text(found).splitlines() == [
        "2 of 3 replicas came up and stayed right: the median first right answer came 2.000 s after creation, and the "
        "slowest took 1.67 times as long as the fastest.",
        "",
        "  replica     group   asked at, s   created, s   healthy, s   known to, s   first right answer, s   validated"
        "   at the end",
        "  replica-0       1         0.000        0.500        1.000         0.010                   1.500   1 of 1   "
        "   1 of 1",
        "  replica-1       1         0.000        0.500        2.000         0.010                   2.500   1 of 1   "
        "   1 of 1",
        "  replica-2       1         0.000        0.500            –         0.010                       –   –        "
        "   –",
        "",
        "  Until healthy: min 1.000, q1 1.250, median 1.500, q3 1.750, max 2.000 s; slowest over fastest 2.00.",
        "  Until the first right answer: min 1.500, q1 1.750, median 2.000, q3 2.250, max 2.500 s; slowest over "
        "fastest 1.67.",
        "  replica-2: no answer within 5 s.",
        "  replica-1 may still be there: the command 'x' exited with code 1.",
    ]
    assert found.extra["right_answers"] == {0: GOOD}


def test_many_failures_are_counted_rather_than_listed() -> None:
    found = conclude([never(index) for index in range(20)], [])
    assert found.headline == "0 of 20 replicas came up and stayed right: none gave a right answer."
    assert found.notes[-1] == "… and 12 more, in findings.json." and len(found.rows) == 20


def test_the_figure_counts_what_was_created_and_what_was_ready() -> None:
    rows = [dict(judged(each, {}, {0: GOOD})) for each in (row(0), row(1), never(2))]
    steps = draw(rows)["concat"][0]["data"]["values"]
    assert [(step["t"], step["count"]) for step in steps if step["what"] == "created"][-1] == (2.5, 3)
    ready = [(step["t"], step["count"]) for step in steps if step["what"] == "first right answer"]
    assert ready == [(0.0, 0), (1.5, 1), (2.5, 2), (2.5, 2)]


@pytest.mark.parametrize("rows", [[row(0)], [never(0)], [row(i) for i in range(60)]], ids=["one", "none up", "many"])
def test_a_figure_can_be_drawn_of_anything(rows: list[dict[str, Any]]) -> None:
    found = conclude(rows, [])
    assert found.figure is not None and as_svg(found.figure).startswith("<svg")
    json.dumps(found.figure)
