"""What has changed since an earlier run is told sample by sample, and noise is not taken for a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.drift import compare, read_rows
from sut.errors import SetupError


def rows(rouge: list[float], tokens: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    """The columns of a run whose answers differ where its scores do."""
    count = len(rouge)
    plain = {
        "sample_index": np.arange(count),
        "id": [f"q{number}" for number in range(count)],
        "rouge1": np.array(rouge),
        "output_tokens": np.array(tokens or [10] * count),
        "characters": np.full(count, 40),
        "crc32": np.array(rouge).astype(np.uint32),
    }
    return plain | changes


def test_differences_are_paired_so_that_what_both_share_cancels_out() -> None:
    draw = np.random.default_rng(7)
    hard = draw.uniform(0, 90, 500)  # how hard a question is varies far more than the answers do
    drop = draw.normal(-1, 2, 500)
    found = compare(rows(hard.tolist()), rows((hard + drop).tolist()), 5)["metrics"]["rouge1"]
    low, high = found["interval"]
    assert low < -1 < high < 0
    assert high - low == pytest.approx(2 * 1.959964 * drop.std(ddof=1) / 500**0.5)
    assert found["difference"] == pytest.approx(found["now"] - found["before"])


def test_the_same_answers_differ_in_nothing() -> None:
    found = compare(rows([10.0, 50.0]), rows([10.0, 50.0]), 5)
    assert (found["samples"], found["changed"], found["drops"]) == (2, 0, [])
    assert found["metrics"]["rouge1"]["interval"] == [0.0, 0.0]
    assert (found["output_tokens"]["ratio"], found["output_tokens"]["ratio_interval"]) == (1.0, [1.0, 1.0])


def test_the_largest_drops_come_first_and_gains_are_none() -> None:
    found = compare(rows([50.0, 60.0, 70.0, 80.0]), rows([50.0, 30.0, 90.0, 79.0]), 5)
    assert found["changed"] == 3
    assert found["drops"] == [
        {"sample_index": 1, "id": "q1", "before": 60.0, "now": 30.0},
        {"sample_index": 3, "id": "q3", "before": 80.0, "now": 79.0},
    ]
    assert len(compare(rows([50.0, 60.0]), rows([40.0, 20.0]), 1)["drops"]) == 1


def test_answers_that_grow_longer_show_as_a_ratio_with_an_interval() -> None:
    draw = np.random.default_rng(11)
    before = draw.integers(5, 500, 400)
    now = np.round(before * 1.1 + draw.normal(0, 5, 400)).astype(int)
    zeros = [0.0] * 400
    found = compare(rows(zeros, before.tolist()), rows(zeros, now.tolist()), 5)["output_tokens"]
    low, high = found["ratio_interval"]
    assert low < 1.1 < high
    assert high - low < 0.01
    assert found["ratio"] == pytest.approx(now.mean() / before.mean())


def test_runs_of_which_one_has_answered_more_are_compared_where_they_overlap() -> None:
    part = rows([10.0, 20.0], sample_index=np.array([5, 1]), id=["q5", "q1"])
    found = compare(part, rows([0.0, 25.0, 0.0]), 5)
    assert (found["samples"], found["only_before"], found["only_now"]) == (1, 1, 2)
    assert found["metrics"]["rouge1"]["before"] == 20.0
    assert found["metrics"]["rouge1"]["now"] == 25.0


def test_runs_without_rouge_are_compared_in_length() -> None:
    before, now = rows([0.0], [10]), rows([1.0], [12])
    del before["rouge1"], now["rouge1"]
    found = compare(before, now, 5)
    assert (found["metrics"], found["drops"], found["output_tokens"]["ratio"]) == ({}, [], 1.2)


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (rows([1.0], id=["other"]), "sample 0 is 'q0' in the earlier run and 'other' in this one: they were asked "),
        (rows([1.0], sample_index=np.array([7])), "the earlier run has answered none of these samples: "),
    ],
)
def test_runs_of_different_datasets_are_not_compared(now: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SetupError) as refused:
        compare(rows([1.0]), now, 5)
    assert str(refused.value).startswith(sentence)


def test_rows_are_read_from_a_run_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "accuracy" / "accuracy_samples.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table(rows([1.0, 2.0])), path)
    for place in (path.parent, path, tmp_path):  # the last as `--mode submission` leaves it
        found = read_rows(place)
        assert found["id"] == ["q0", "q1"]
        assert found["rouge1"].tolist() == [1.0, 2.0]


def test_a_run_without_rows_and_a_file_of_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as refused:
        read_rows(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}/accuracy_samples.parquet is not there: score that run first, with `accuracy {tmp_path} "
        "--output FOLDER`."
    )
    text, other = tmp_path / "text.parquet", tmp_path / "samples.parquet"
    text.write_text("no parquet")
    pq.write_table(pa.table({"sample_index": [0]}), other)
    with pytest.raises(SetupError, match=r"cannot read .*text\.parquet as parquet"):
        read_rows(text)
    with pytest.raises(SetupError, match=r"samples\.parquet has no column 'id'"):
        read_rows(other)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sample_index": ["0", "1"]}, "'sample_index' is of type string, and a whole number is due in each row: "),
        ({"sample_index": [0.0, 1.0]}, "'sample_index' is of type double, and a whole number is due in each row: "),
        (
            {"output_tokens": [7, None]},
            "'output_tokens' is of type int64 with gaps, and a whole number is due in each ",
        ),
        ({"crc32": [None, None]}, "'crc32' is of type null, and a whole number is due in each row: "),
        ({"rouge1": ["high", "low"]}, "'rouge1' is of type string, and a number is due in each row: "),
    ],
)
def test_a_column_of_something_else_is_named(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "accuracy_samples.parquet"
    pq.write_table(pa.table(rows([1.0, 2.0]) | changes), path)
    with pytest.raises(SetupError) as refused:
        read_rows(path)
    assert str(refused.value).startswith(f"{path}: the column {sentence}")


def test_columns_of_other_tools_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "accuracy_samples.parquet"
    pq.write_table(pa.table(rows([1.0, 2.0], remark=["fine", None], judge=[{"a": 1}, {"a": 2}])), path)
    assert compare(read_rows(path), rows([1.0, 2.0]), 5)["changed"] == 0
