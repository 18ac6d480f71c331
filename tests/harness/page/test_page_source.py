"""What lies in a folder: results are read, what is damaged beside them is a note, what is no result is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from harness.page.source import Run, Study, Submission, read
from sut.errors import ConfigError, SetupError
from tests.harness.page.made_results import make_accuracy_run, make_run, make_study, make_submission, write_samples


def run(folder: Path) -> Run:
    found = read(folder)
    assert isinstance(found, Run)
    return found


def test_a_run_is_read_with_its_samples(tmp_path: Path) -> None:
    found = run(make_run(tmp_path / "one"))
    assert found.samples is not None
    assert len(found.samples) == 60
    assert found.notes == ()


def test_an_accuracy_run_has_its_scores(tmp_path: Path) -> None:
    found = run(make_accuracy_run(tmp_path / "one", ["yes", "no"]))
    assert found.scores is not None
    assert found.scores.numbers["rouge1"].tolist() == [100.0, 50.0]


def test_the_limits_are_those_that_loadgen_judged_by(tmp_path: Path) -> None:
    entry = {"key": "requested_server_ttft_latency", "value": 2_000_000_000, "metadata": {"is_error": False}}
    folder = make_run(tmp_path / "one")
    (folder / "mlperf_log_detail.txt").write_text(f":::MLLOG {json.dumps(entry)}\n")
    assert run(folder).limits == {"ttft_s": 2.0}


def cut(folder: Path) -> None:
    path = folder / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def drop(folder: Path) -> None:
    (folder / "samples.parquet").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (drop, "samples.parquet is not there"),
        (cut, "samples.parquet as parquet"),
        (lambda folder: (folder / "samples.parquet").write_bytes(b""), "samples.parquet as parquet"),
        (lambda folder: write_samples(folder, latency_s=["long"] * 60), "'latency_s' is of type string"),
        (lambda folder: write_samples(folder, error=[3] * 60), "'error' is of type int64"),
        (lambda folder: (folder / "timeline.parquet").write_text("no parquet"), "timeline.parquet as parquet"),
    ],
    ids=["missing", "cut off", "empty", "words for numbers", "numbers for words", "telemetry of another kind"],
)
def test_what_is_damaged_beside_a_result_is_a_note(tmp_path: Path, spoil: Any, said: str) -> None:
    folder = make_run(tmp_path / "one")
    spoil(folder)
    found = run(folder)
    assert [note for note in found.notes if said in note], found.notes


def test_a_run_that_no_query_of_came_to_an_end_is_told_without_charts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "samples.parquet")
    pq.write_table(table.slice(0, 0), folder / "samples.parquet")
    found = run(folder)
    assert found.samples is None
    assert "has no rows" in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 2}, "has format 2, and this harness reads 1"),
        ({"metrics": "fast"}, "is damaged"),
        ({"accuracy": {}}, "its accuracy has no passed"),
        ({"compliance": {"test": "TEST06"}}, "its compliance has no passed"),
    ],
    ids=["another format", "a word for an object", "no verdict on accuracy", "no verdict on compliance"],
)
def test_a_result_that_is_damaged_itself_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SetupError, match=said):
        read(make_run(tmp_path / "one", **changes))


def test_a_result_that_lacks_what_every_result_has_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    content = json.loads((folder / "result.json").read_text())
    del content["metrics"]
    (folder / "result.json").write_text(json.dumps(content))
    with pytest.raises(SetupError, match="it has no metrics"):
        read(folder)


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no result: name folders with a result\.json"):
        read(tmp_path)


def test_a_run_that_never_came_to_an_end_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "user.conf").write_text("")
    with pytest.raises(ConfigError, match="never came to an end"):
        read(tmp_path)


def test_a_submission_is_told_without_the_part_that_is_not_there(tmp_path: Path) -> None:
    found = read(make_submission(tmp_path / "sub"))
    assert isinstance(found, Submission)
    assert [part.name for part in found.runs] == ["performance"]
    assert "accuracy cannot be shown" in found.notes[0]


def test_parts_are_looked_for_in_the_submissions_own_folder_only(tmp_path: Path) -> None:
    make_run(tmp_path / "outside")
    folder = make_submission(tmp_path / "sub")
    (folder / "submission.json").write_text('{"format_version": 1, "runs": {"../outside": "../outside"}}')
    found = read(folder)
    assert isinstance(found, Submission)
    assert found.runs == []


def test_a_study_is_read_with_its_points(tmp_path: Path) -> None:
    found = read(make_study(tmp_path / "sweep"))
    assert isinstance(found, Study)
    assert sorted(name for name, _ in found.points) == ["rate-10", "rate-20"]
    assert found.figure is not None


def test_a_study_that_is_not_finished_is_told_as_far_as_it_went(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", finished=False)
    make_run(folder / "points" / "rate-30.interrupted-1", samples=False)
    (make_run(folder / "points" / "rate-40", samples=False) / "result.json").write_text("{")
    found = read(folder)
    assert isinstance(found, Study)
    assert len(found.points) == 2
    assert "has not come to its end" in found.notes[0]
    assert "rate-40 cannot be shown" in found.notes[1]


@pytest.mark.parametrize("name", ["study.json", "findings.json"])
def test_a_study_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_study(tmp_path / "sweep")
    (folder / name).write_text('{"format_version": 9}')
    with pytest.raises(SetupError, match="has format 9, and this harness reads 1"):
        read(folder)


def test_gaps_are_kept(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    write_samples(folder, ttft_s=pa.array([None] * 60, pa.float64()), replica=pa.array([None] * 60, pa.string()))
    samples = run(folder).samples
    assert samples is not None
    assert samples.words["replica"] == [None] * 60
    assert samples.numbers["ttft_s"].tolist()[0] != samples.numbers["ttft_s"].tolist()[0]
