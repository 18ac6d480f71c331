"""Releases against one another: which figures are judged, what the samples add, histories, and equals never apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.results import RunResult
from harness.studies.change import BETTER, CANNOT_TELL, SAME, WORSE
from harness.studies.comparison import Asked, Comparison, Row, compare_releases, score_error
from harness.studies.gate import BROKEN, PASSED, UNDECIDED, parse
from harness.studies.releases import Release, Run
from sut.errors import ConfigError
from tests.harness.studies.made_runs import columns, content, release

HEADLINE = ["tokens_per_second", "ttft_s.p50", "ttft_s.p99", "tpot_s.p50", "tpot_s.p99", "latency_s.p50"]
HEADLINE.append("latency_s.p99")


def verdict(found: Comparison, figure: str) -> str:
    return next(row for row in found.rows if row.figure == figure).change.verdict


def judged(rows: list[Row] | Any) -> list[str]:
    return [row.figure for row in rows if row.judged]


OLD = release("old", range(5))
SLOW = release("slow", range(10, 15), slower=1.1)
EQUAL = release("equal", range(20, 25))


def test_a_slower_release_is_worse_and_an_equal_one_is_not() -> None:
    slow, equal = compare_releases([OLD, SLOW], Asked()), compare_releases([OLD, EQUAL], Asked())
    assert verdict(slow, "tpot_s.p50") == WORSE
    assert verdict(slow, "latency_s.p50") == WORSE
    assert {row.change.verdict for row in equal.rows if row.judged} <= {SAME, CANNOT_TELL}
    assert verdict(compare_releases([SLOW, OLD], Asked()), "tpot_s.p50") == BETTER


def test_a_release_is_the_same_as_itself() -> None:
    found = compare_releases([OLD, Release("again", OLD.runs)], Asked())
    assert all(row.change.change == 0 and row.change.verdict in (SAME, CANNOT_TELL) for row in found.rows if row.judged)
    assert verdict(found, "tpot_s.p50") == SAME


def test_the_usual_figures_are_judged_and_the_others_shown() -> None:
    found = compare_releases([OLD, SLOW], Asked())
    assert judged(found.rows) == HEADLINE
    assert {"ttft_s.mean", "ttft_s.p90", "samples_per_second"} <= {row.figure for row in found.rows}


def test_offline_judges_throughput_alone() -> None:
    sides = [release(name, seeds, offline=True) for name, seeds in (("a", [1, 2]), ("b", [3, 4]))]
    assert judged(compare_releases(sides, Asked()).rows) == ["tokens_per_second"]


def test_a_closed_loop_has_latencies_of_its_own() -> None:
    config = {"scenario": "Offline", "concurrency": 8}
    sides = [release(name, seeds, config=config) for name, seeds in (("a", [1, 2]), ("b", [3, 4]))]
    assert judged(compare_releases(sides, Asked()).rows) == HEADLINE


def test_fewer_figures_see_smaller_changes() -> None:
    """All figures share one error: naming one narrows its interval."""

    def visible(*figures: str) -> float:
        found = compare_releases([OLD, SLOW], Asked(figures=figures))
        change = next(row.change for row in found.rows if row.figure == "ttft_s.p50")
        assert change.visible is not None
        return change.visible

    assert visible("ttft_s.p50") < visible() < visible("all")


def test_one_run_each_tells_nothing_of_releases() -> None:
    found = compare_releases([release("a", [1]), release("b", [2], slower=2.0)], Asked())
    assert {row.change.verdict for row in found.rows if row.judged} == {CANNOT_TELL}


def test_a_gate_has_three_answers() -> None:
    gates = [parse("tpot_s.p50:50%"), parse("tpot_s.p50:5%"), parse("tpot_s.p50:10%")]
    found = compare_releases([OLD, SLOW], Asked(gates=gates))
    assert [judgement.state for judgement in found.gates] == [PASSED, BROKEN, UNDECIDED]
    codes = [compare_releases([OLD, SLOW], Asked(gates=[one])).exit_code for one in gates]
    assert codes == [0, 5, 3]
    assert found.exit_code == 5


def test_a_history_is_told_against_the_first_and_step_by_step() -> None:
    middle = release("middle", range(30, 35), slower=1.1)
    found = compare_releases([OLD, middle, SLOW], Asked(figures=["tpot_s.p50"], gates=[parse("tpot_s.p50:5%")]))
    told = [(row.before.name, row.now.name, row.change.verdict) for row in found.rows if row.judged]
    assert told == [("old", "middle", WORSE), ("old", "slow", WORSE)]
    steps = [(row.before.name, row.now.name) for row in found.steps if row.judged]
    assert steps == [("middle", "slow")]
    assert verdict_of(found.steps) != WORSE
    assert found.gates[0].state == BROKEN


def verdict_of(rows: Any) -> str:
    return next(str(row.change.verdict) for row in rows if row.judged)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(figures=["ttft"]), r"no figure 'ttft': choose among .*ttft_s.p50"),
        (Asked(gates=[parse("rouge1:0.1")]), "no figure 'rouge1'"),
        (Asked(gates=[parse("ttft_s.p50:0.1")]), "must be a percentage"),
        (Asked(axes=["nonsense"]), "no result has such a key"),
    ],
)
def test_what_cannot_be_answered_is_refused(asked: Asked, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compare_releases([OLD, SLOW], asked)


def test_one_release_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match="takes two releases"):
        compare_releases([OLD], Asked())


def test_unlike_releases_are_refused_until_the_axis_is_named() -> None:
    other = release("other", [50, 51], config={"engine_arg": {"max_num_seqs": 64}})
    with pytest.raises(ConfigError, match=r"max_num_seqs is 16 in old and 64 in other"):
        compare_releases([OLD, other], Asked())
    assert compare_releases([OLD, other], Asked(axes=["engine_arg.max_num_seqs"])).differences[0].named


def test_results_without_a_common_figure_are_refused() -> None:
    scored = release("b", [1], config={"mode": "accuracy"}, accuracy={"rouge1": 88.0})
    with pytest.raises(ConfigError, match="no figure in common"):
        compare_releases([OLD, scored], Asked(axes=["mode"]))


# -- scores -----------------------------------------------------------------------------------------------------------


def scored(folder: Path, scores: Any, rows: bool = True) -> Run:
    """An accuracy run with its scores by sample."""
    folder.mkdir(parents=True)
    if rows:
        count = len(scores)
        table = {
            "sample_index": pa.array(range(count), pa.int32()),
            "id": pa.array([f"q{i}" for i in range(count)]),
            "output_tokens": pa.array([10] * count),
            "crc32": pa.array([0] * count),
            "rouge1": pa.array(np.asarray(scores, float)),
        }
        pq.write_table(pa.table(table), folder / "accuracy_samples.parquet")
    result = content(columns(1), config={"mode": "accuracy"}, accuracy={"rouge1": float(np.mean(scores))})
    return Run(RunResult(result, folder))


def test_scores_are_compared_sample_by_sample(tmp_path: Path) -> None:
    """One run each is enough: what a question's answer scores scatters far more than the answers change."""
    chance = np.random.default_rng(1)
    hard = chance.uniform(0, 100, 500)
    old = Release("old", [scored(tmp_path / "a", hard)])
    lost = Release("lost", [scored(tmp_path / "b", hard - (chance.random(500) < 0.2) * 5)])
    found = compare_releases([old, lost], Asked(gates=[parse("rouge1:0.1")]))
    assert [(row.figure, row.judged, row.change.verdict) for row in found.rows] == [("rouge1", True, WORSE)]
    assert found.rows[0].change.change == pytest.approx(-1, abs=0.3)
    assert found.gates[0].state == BROKEN
    again = compare_releases([old, Release("again", [scored(tmp_path / "c", hard)])], Asked())
    assert again.rows[0].change.verdict == SAME


def test_scores_without_their_samples_have_no_interval(tmp_path: Path) -> None:
    sides = [Release(name, [scored(tmp_path / name, [80.0, 90.0], rows=False)]) for name in "ab"]
    change = compare_releases(sides, Asked()).rows[0].change
    assert (change.low, change.verdict) == (None, CANNOT_TELL)


def test_scores_of_other_samples_are_not_paired(tmp_path: Path) -> None:
    sides = [Release(name, [scored(tmp_path / name, [80.0] * count)]) for name, count in (("a", 4), ("b", 5))]
    assert score_error(sides[0], sides[1], "rouge1") is None
