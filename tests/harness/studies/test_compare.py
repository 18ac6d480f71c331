"""What `compare` says: the sentence, the table, the notes, the pictures, the JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.figures import as_svg
from harness.results import finite
from harness.studies import compare, findings, forest
from harness.studies.comparison import Asked, compare_releases
from harness.studies.gate import parse
from harness.studies.releases import Release
from tests.harness.studies.made_runs import release

OLD, SLOW = release("old", range(5)), release("slow", range(10, 15), slower=1.1)


def told(*releases: Release, **asked: Any) -> tuple[str, dict[str, Any]]:
    """The text, and what findings.json holds."""
    found = compare_releases(releases, Asked(**asked))
    found_too = compare.as_findings(found)
    return compare.as_text(found, found_too), findings.as_json(found_too)


def test_a_pair_is_told_from_what_differs_to_the_gate() -> None:
    new = release("new", range(10, 15), slower=1.1, environment={"packages": {"vllm": "0.12"}})
    text, _ = told(OLD, new, figures=["tpot_s.p50"], gates=[parse("tpot_s.p50:5%")])
    lines = text.splitlines()
    assert lines[0] == "compare · demo · Server · performance"
    assert lines[2:4] == ["  old   5 runs, 2,000 queries   the baseline", "  new   5 runs, 2,000 queries"]
    assert lines[6] == "    environment.packages.vllm   0.11 → 0.12"
    assert lines[8].startswith("new against old: worse in tpot_s.p50 (+")
    assert lines[-1].startswith("  gate tpot_s.p50:5% BROKEN: worse by ")


def test_what_is_not_valid_is_said_loudly() -> None:
    bad = release("bad", [1, 2], valid=False, invalid_reasons=["3 of 400 queries failed"])
    assert "    NOT VALID: /made/1: 3 of 400 queries failed" in told(OLD, bad)[0]


def test_the_axis_comes_first_among_the_differences() -> None:
    other = {"config": {"engine_arg": {"max_num_seqs": 64}}, "environment": {"commit": "def"}}
    text, content = told(OLD, release("b", range(5), **other), axes=["max_num_seqs"])
    place = text.splitlines().index("  differences")
    assert text.splitlines()[place + 1].split() == ["engine_arg.max_num_seqs", "16", "→", "64", "the", "axis"]
    assert [(one["key"], one["on_axis"]) for one in content["differences"]] == [
        ("engine_arg.max_num_seqs", True),
        ("environment.commit", False),
    ]


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([1], [2], "Cannot tell: one run each"),
        ([1, 2, 3, 4], [5], "b: a single run, taken to be as noisy as those it is compared with."),
        ([1, 2], [3, 4], "Repeats of each that would tell"),
    ],
)
def test_what_to_do_where_nothing_can_be_told(before: list[int], now: list[int], said: str) -> None:
    assert said in told(release("a", before), release("b", now))[0]


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("tpot_s.p50:50%", "passed: worse by"),
        ("tpot_s.p50:5%", "BROKEN: worse by"),
        ("tpot_s.p50:10%", "CANNOT BE DECIDED: worse by"),
    ],
)
def test_each_state_of_a_gate_has_its_words(limit: str, said: str) -> None:
    assert said in told(OLD, SLOW, gates=[parse(limit)])[0].splitlines()[-1]


def test_a_gate_between_two_single_runs_says_what_is_missing() -> None:
    last = told(release("a", [1]), release("b", [2]), gates=[parse("tpot_s.p50:5%")])[0].splitlines()[-1]
    assert last.endswith("how much runs differ by themselves is not known: repeat both releases")


def test_a_history_has_a_row_for_each_release_and_both_changes() -> None:
    text, content = told(OLD, release("middle", range(30, 35), slower=1.1), SLOW, figures=["tpot_s.p50"])
    assert [row["release"] for row in content["rows"]] == ["old", "middle", "slow"]
    assert [row["verdict"] for row in content["rows"]][:2] == ["the baseline", "worse"]
    assert content["rows"][2]["last_verdict"] in ("same", "cannot tell")
    assert "since the first" in text and "since the last" in text
    assert "5 % of false alarms" in text


def test_scores_are_told_in_points() -> None:
    scores = (("a", 88.0), ("b", 87.5))
    sides = [release(name, [1], config={"mode": "accuracy"}, accuracy={"rouge1": score}) for name, score in scores]
    text, _ = told(*sides, gates=[parse("rouge1:0.1")])
    assert "`same` is surely within 0.1 points" in text
    assert "cannot tell" in text and "-0.500" in text


def test_findings_are_json_and_name_every_run() -> None:
    _, content = told(OLD, SLOW, gates=[parse("tpot_s.p50:5%")])
    content = json.loads(json.dumps(finite(content), allow_nan=False))
    assert content["study"] == "compare"
    assert content["exit_code"] == 5
    assert content["gates"][0]["state"] == "broken"
    assert content["releases"][0]["runs"] == [f"/made/{seed}" for seed in range(5)]
    row = next(row for row in content["rows"] if row["figure"] == "tpot_s.p50")
    assert row["low"] < row["change"] < row["high"]
    assert len(row["runs_before"]) == 5


@pytest.mark.parametrize(
    ("change", "ratio", "text"),
    [
        (0.0521, True, "+5.2%"),
        (-0.0521, True, "-5.2%"),
        (-0.0001, True, "0.0%"),  # no sign for nothing
        (3.0, True, "4-fold"),
        (1e300, True, "anything"),
        (-0.1234, False, "-0.123"),
    ],
)
def test_a_change_is_written_as_people_say_it(change: float, ratio: bool, text: str) -> None:
    assert compare.amount(change, ratio) == text


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_a_pair_is_drawn_with_each_judged_figure_and_the_verdicts() -> None:
    spec = compare.as_findings(compare_releases([OLD, SLOW], Asked())).figure
    assert spec is not None
    svg = as_svg(spec)
    assert all(word in svg for word in ("slow against old", "tpot_s.p50", "worse", "change, %"))


def test_a_history_is_drawn_with_a_panel_for_each_figure() -> None:
    spec = compare.as_findings(compare_releases([OLD, SLOW, release("again", [7, 8])], Asked())).figure
    assert spec is not None
    assert len(spec["concat"]) == 7
    assert all(word in as_svg(spec) for word in ("the baseline", "again", "ttft_s.p99"))


def test_one_wide_interval_does_not_hide_the_others() -> None:
    def row(figure: str, high: float | None) -> dict[str, Any]:
        low = None if high is None else -high
        return {"figure": figure, "verdict": "cannot tell", "change": 0.0, "low": low, "high": high, "ratio": True}

    spec = forest.changes([row("a", 0.01), row("b", 0.02), row("c", 9.0), row("d", None)], "t", "s", 0.02)
    drawn = {one["figure"]: one.get("high") for one in spec["data"]["values"]}
    assert drawn["c"] == pytest.approx(8.0)  # four times the middle one
    assert drawn["d"] is None
    assert "go on" in spec["title"]["subtitle"]
    as_svg(spec)


def test_a_still_history_is_not_enlarged() -> None:
    rows = [{"value": 100.0, "low": 99.99, "high": 100.01}, {"value": 100.0, "low": None, "high": None}]
    assert forest.span(rows, 0.02) == [96.0, 104.0]
