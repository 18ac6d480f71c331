"""How many samples a fleet's tests are given, and what is made of its rounds. Results are made up; processes are in
tests/harness/cli/test_cli_fleet.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.config import resolve
from harness.progress import Progress
from harness.results import RunResult
from harness.studies import fleet, fleet_findings
from harness.studies.findings import as_text
from harness.studies.fleet import Crew, Plan, Trial, full_load_rates, round_names, sized, trial_settings
from harness.studies.fleet_findings import Measured, completions, conclude, nice_width, overlaps, start_skew, timeline
from harness.studies.study import Study
from harness.studies.variants import Variant, resolve_variant

A, B = Variant("a", {}), Variant("b", {"replicas": 2})


# -- how many samples -------------------------------------------------------------------------------------------------


def trial(rate: float, users: int, rounds: int = 6, began: float = 1000.0) -> Trial:
    """A trial in which the users' queries end in waves."""
    ends = np.repeat(np.arange(1, rounds + 1) * users / rate, users)
    return Trial(began, began + ends, users)


def test_a_rate_is_that_of_full_load_without_the_idle_end() -> None:
    straggler = Trial(0.0, np.array([1.0] * 4 + [2.0] * 4 + [3.0] * 3 + [60.0]), users=4)
    assert full_load_rates({"a": straggler})["a"] == pytest.approx(4.0)
    assert full_load_rates({"a": trial(100, 16)})["a"] == pytest.approx(100)


def test_members_are_rated_while_all_are_busy() -> None:
    """The slow one doubles its rate once the quick one is done: what it then does says nothing of being together."""
    slow = Trial(0.0, np.concatenate([np.arange(1, 81) / 10, 8 + np.arange(1, 41) / 20]), users=1)
    quick = Trial(0.0, np.arange(1, 101) / 12.5, users=1)
    assert full_load_rates({"slow": slow, "quick": quick}) == pytest.approx({"slow": 10.0, "quick": 12.5}, rel=0.02)


def test_a_trial_that_has_hardly_begun_when_another_ends_is_taken_by_itself() -> None:
    rates = full_load_rates({"slow": trial(10, 16), "quick": trial(1000, 16)})
    assert rates == pytest.approx({"slow": 10.0, "quick": 1000.0})


@pytest.mark.parametrize("done", [[], [5.0]], ids=["no answer", "one answer"])
def test_a_trial_without_answers_gives_some_rate(done: list[float]) -> None:
    assert full_load_rates({"a": Trial(5.0, np.array(done), 1)})["a"] == 1.0


def test_a_test_is_sized_so_that_it_lasts() -> None:
    config = resolve(scenario="Offline", backend="echo", concurrency=16, min_duration=600, samples=32, min_queries=32)
    assert trial_settings(config) == {"target_qps": 1.0, "min_duration": 0, "min_query_count": 96}
    settings = sized(config, 10.0)
    assert settings == {"target_qps": pytest.approx(10.5), "min_duration": 600_000, "min_query_count": 32}
    assert settings.keys() == trial_settings(config).keys(), "LoadGen reads the keys once"


@pytest.mark.parametrize(
    ("options", "unsized"),
    [
        ({"scenario": "Offline", "min_duration": 600.0, "target_qps": None}, True),
        ({"scenario": "Offline", "min_duration": 600.0, "target_qps": 5.0}, False),
        ({"scenario": "Offline", "min_duration": 0.0, "target_qps": None}, False),
        ({"scenario": "Server", "min_duration": 600.0, "target_qps": None}, False),
    ],
    ids=["a duration alone", "a rate too", "no duration", "Server issues for a time by itself"],
)
def test_who_needs_a_trial(options: dict[str, Any], unsized: bool) -> None:
    common = {"backend": "echo", **options}
    plan = Plan([A], {"a": resolve_variant(common, A)}, common, 1)
    assert plan.unsized == ({"a"} if unsized else set())


@pytest.mark.parametrize(
    ("rates", "points", "sizes"),
    [
        ([10.0, 10.0], ["alone-1-a", "trial-alone-a-1"], [10.5]),
        ([5.0, 10.0, 10.0], ["alone-1-a", "trial-alone-a-1", "trial-alone-a-2"], [5.25, 10.5]),
        ([5.0, 10.0, 20.0, 40.0],
         ["alone-1-a", "trial-alone-a-1", "trial-alone-a-2", "trial-alone-a-3"], [5.25, 10.5, 21.0]),
    ],
    ids=["it lasts", "too short once", "too short each time"],
)  # fmt: skip
def test_a_test_that_is_too_short_is_one_more_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: list[float], points: list[str], sizes: list[float]
) -> None:
    """`rates`: what the trial and then each test reach, of which a test's size was worked out from the one before."""
    common = {"scenario": "Offline", "backend": "echo", "min_duration": 60.0, "samples": 32}
    plan = Plan([A], {"a": resolve_variant(common, A)}, common, 1)
    study, told = Study("fleet", tmp_path), []

    def test_at_once(study: Study, crew: Crew, point: str, settings: dict[str, Any]) -> dict[str, RunResult]:
        expected, rate = settings["a"]["target_qps"], rates[len(told)]
        told.append(expected)
        seconds = 10.0 if expected == 1.0 else 1.1 * 60 * expected / rate
        result = made_up(study.path(point) / "a", rate, seconds=seconds, format_version=1)
        result.save()
        study.keep(point, {})
        return {"a": result}

    monkeypatch.setattr(fleet, "test_at_once", test_at_once)
    with Progress(quiet=True) as progress, Crew(plan, tmp_path, progress) as crew:
        found = fleet.run_round(study, crew, "alone-1-a", "trial-alone-a", ["a"])
        assert told == [1.0, *(pytest.approx(size, rel=0.01) for size in sizes)]
        assert sorted(path.name for path in (tmp_path / "points").iterdir()) == points
        assert found["a"]["duration_s"] == pytest.approx(1.1 * 60 * told[-1] / rates[-1])
        monkeypatch.setattr(fleet, "test_at_once", None)  # what is done is not run again
        again = fleet.run_round(study, crew, "alone-1-a", "trial-alone-a", ["a"])["a"]
        assert again["duration_s"] == found["a"]["duration_s"]


def test_rounds_are_all_at_once_then_each_alone() -> None:
    assert round_names([A, B], 2) == [
        "together-1", "alone-1-a", "alone-1-b", "together-2", "alone-2-a", "alone-2-b",
    ]  # fmt: skip


# -- what was found ---------------------------------------------------------------------------------------------------


def made_up(
    folder: Path, rate: float, began: float = 0.0, seconds: float = 10.0, *, ttft: float | None = None, **more: Any
) -> RunResult:
    """A run that answers evenly; `issued_s` counts from its beginning."""
    folder.mkdir(parents=True)
    ends = np.arange(1, int(rate * seconds) + 1) / rate
    columns = {"issued_s": ends - 0.5, "latency_s": np.full(len(ends), 0.5), "error": [None] * len(ends)}
    columns["error"] = pa.array([None] * (len(ends) - 1) + ["stalled: no token"], pa.string())
    pq.write_table(pa.table(columns), folder / "samples.parquet")
    latencies = {} if ttft is None else {"p50": ttft / 2, "p99": ttft}
    content = {
        "status": "complete", "valid": True, "invalid_reasons": [], "failures": {"count": 0}, "client_limited": False,
        "started_at": began, "duration_s": seconds,
        "metrics": {"samples_per_second": rate, "tokens_per_second": 30 * rate, "ttft_s": latencies, "tpot_s": {},
                    "latency_s": {"p50": 0.5, "p99": 0.5}},
    }  # fmt: skip
    return RunResult({**content, **more}, folder)


def member(
    variant: Variant,
    together: Sequence[RunResult | None],
    alone: Sequence[RunResult | None],
    trouble: str | None = None,
) -> Measured:
    return Measured(variant, list(together), list(alone), trouble)


def test_what_a_member_loses_is_a_ratio_by_rounds(tmp_path: Path) -> None:
    def run(rate: float, ttft: float) -> RunResult:
        return made_up(tmp_path / f"{rate}-{ttft}", rate, ttft=ttft)

    own = member(A, [run(50, 0.4), run(40, 0.4), run(45, 0.4)], [run(100, 0.1), run(80, 0.1), run(90, 0.1)])
    row = conclude([own]).rows[0]
    assert row["samples_per_second_change"] == pytest.approx(-0.5)
    assert row["ttft_p99_s_change"] == pytest.approx(3.0)
    assert row["samples_per_second_change_said"] == "-50.0% (-50.0% to -50.0%)"
    assert row["valid"] and row["tpot_p99_s_change"] is None


def test_one_round_has_no_interval_and_says_so(tmp_path: Path) -> None:
    found = conclude([member(A, [made_up(tmp_path / "t", 50)], [made_up(tmp_path / "a", 100)])])
    assert found.rows[0]["samples_per_second_change_said"] == "-50.0%"
    assert any("--repeats" in note for note in found.notes)
    assert found.headline == "Samples/s of each with all 1 at once, against alone: a -50.0%."


def test_a_test_that_missed_its_limits_beside_others_has_figures_one_with_failures_has_none(tmp_path: Path) -> None:
    late = made_up(tmp_path / "late", 50, valid=False, invalid_reasons=["the latency limits are missed"])
    failed = made_up(tmp_path / "failed", 50, valid=False, invalid_reasons=["3 failed"], failures={"count": 3})
    alone = made_up(tmp_path / "alone", 100)
    first, second = conclude([member(A, [late], [alone]), member(B, [failed], [alone])]).rows
    assert first["samples_per_second_change"] == pytest.approx(-0.5) and not first["valid"]
    assert second["samples_per_second_change"] is None
    assert second["why"] == "1 of 2 tests not valid: 3 failed"


def test_a_lost_member_is_a_row_with_its_reason(tmp_path: Path) -> None:
    found = conclude(
        [member(A, [None], [made_up(tmp_path / "a", 100)]), member(B, [None], [None], "its process was ended")]
    )
    assert found.headline == "None of 2 members could be measured both together and alone."
    assert "b: its process was ended" in as_text(found)
    assert found.rows[0]["alone_samples_per_second"] == pytest.approx(100)
    assert found.figure is not None and len(found.figure["concat"]) == 1


def test_how_long_all_were_at_work_is_said(tmp_path: Path) -> None:
    short = member(A, [made_up(tmp_path / "s", 10, 100.0, 4.0)], [None])
    long = member(B, [made_up(tmp_path / "l", 10, 101.0, 10.0)], [None])
    assert overlaps([short, long]) == pytest.approx({"a": 0.75, "b": 0.3})
    assert start_skew([short, long]) == 1.0
    said = as_text(conclude([short, long]))
    assert "b: all were at work during 30% of its test" in said and "within 1,000 ms" in said


# -- the timeline -----------------------------------------------------------------------------------------------------


def test_a_timeline_counts_right_answers_from_the_first_clock_on(tmp_path: Path) -> None:
    first = made_up(tmp_path / "1", 10, began=1000.0, seconds=10)
    second = made_up(tmp_path / "2", 5, began=1002.0, seconds=10)
    done = completions(first)
    assert len(done) == 99, "the failed one is none"
    assert done[0] == pytest.approx(1000.1)
    rows = timeline({"a": first, "b": second})
    assert {row["member"] for row in rows} == {"a", "b"}
    width = rows[1]["t"] - rows[0]["t"]
    assert sum(row["rate"] * width for row in rows if row["member"] == "a") == pytest.approx(99)
    assert min(row["t"] for row in rows if row["member"] == "b") == pytest.approx(2.0)


def test_tests_in_turn_are_drawn_without_the_pause_of_hours_between(tmp_path: Path) -> None:
    first = made_up(tmp_path / "1", 10, began=1000.0, seconds=10)
    second = made_up(tmp_path / "2", 5, began=90_000.0, seconds=10)
    rows = timeline({"a": first, "b": second}, in_turn=True)
    assert min(row["t"] for row in rows if row["member"] == "b") == pytest.approx(9.9)
    assert max(row["t"] for row in rows) < 20


def test_a_run_that_never_began_has_no_timeline(tmp_path: Path) -> None:
    never = made_up(tmp_path / "n", 1, seconds=1, started_at=None)
    assert timeline({"a": never}) == [] and fleet_findings.draw([member(A, [never], [None])]) is None


@pytest.mark.parametrize(("least", "width"), [(0.01, 0.1), (0.15, 0.2), (1.0, 1.0), (3.0, 5.0), (70, 100)])
def test_a_timelines_steps_are_round(least: float, width: float) -> None:
    assert nice_width(least) == pytest.approx(width)
