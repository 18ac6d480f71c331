"""Saved runs as releases: found where they lie, and refused in a sentence where they are no repeats or no runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.studies.releases import invalid_runs, read_releases, read_samples
from sut.errors import ConfigError, SetupError
from tests.harness.studies.made_runs import columns, run, save, save_release


def names(*places: str) -> list[str]:
    return [release.name for release in read_releases(places)]


def test_a_run_a_study_and_any_parent_are_releases(tmp_path: Path) -> None:
    alone = save(tmp_path / "alone", 1)
    repeats = save_release(tmp_path / "repeats", [1, 2, 3])
    study = save_release(tmp_path / "study" / "points", [1, 2]).parent
    found = read_releases([str(alone), str(repeats), str(study)])
    assert [(release.name, len(release.runs)) for release in found] == [("alone", 1), ("repeats", 3), ("study", 2)]


def test_a_release_has_the_name_that_it_is_given_or_enough_of_its_path(tmp_path: Path) -> None:
    old, new = (str(save(tmp_path / side / "Server", 1)) for side in ("old", "new"))
    assert names(old, new) == ["old/Server", "new/Server"]
    assert names(f"v1={old}", f"v2={new}") == ["v1", "v2"]
    assert names(old, old) == ["Server (1)", "Server (2)"]


def test_two_releases_of_one_name_are_refused(tmp_path: Path) -> None:
    old, new = (str(save(tmp_path / side, 1)) for side in ("old", "new"))
    with pytest.raises(ConfigError, match="two releases have one name"):
        read_releases([f"v={old}", f"v={new}"])


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path) -> None:
    assert names(str(save(tmp_path / "max_num_seqs=16", 1))) == ["max_num_seqs=16"]


def test_what_an_interrupted_run_has_left_is_no_repeat(tmp_path: Path) -> None:
    place = save_release(tmp_path / "a", [1, 2])
    save(place / "run-1.interrupted-1", 7)
    (place / "run-3").mkdir()
    (place / "run-3" / "mlperf_log_detail.txt").write_text("")
    release = read_releases([str(place)])[0]
    assert len(release.runs) == 2
    assert release.notes == [f"{place / 'run-3'} never came to its end and is left out"]


def test_what_an_engine_found_room_for_may_differ_among_repeats(tmp_path: Path) -> None:
    place = save_release(tmp_path / "a", [1, 2])
    save(place / "run-3", 3, environment={"engines": {"vllm-0": {"max_num_seqs": 17, "dtype": "bfloat16"}}})
    assert len(read_releases([str(place)])[0].runs) == 3


def nothing(folder: Path) -> None:
    folder.mkdir()


def cut(folder: Path) -> None:
    nothing(folder)
    (folder / "result.json").write_text('{"format_version": 1, ')


def writes(content: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        nothing(folder)
        (folder / "result.json").write_text(json.dumps(content))

    return write


def stopped(folder: Path) -> None:
    save(folder, 1, status="interrupted", valid=False)


def half(folder: Path) -> None:
    nothing(folder)
    (folder / "mlperf_log_detail.txt").write_text("")


def unlike(folder: Path) -> None:
    save_release(folder, [1, 2])
    save(folder / "other", 3, config={"replicas": 2})


def two_versions(folder: Path) -> None:
    save(folder / "x", 1)
    save(folder / "y", 2, environment={"packages": {"vllm": "0.12"}})


def copied(folder: Path) -> None:
    save(folder / "x", 1, files={"mlperf_log_detail.txt": "sha"})
    shutil.copytree(folder / "x", folder / "y")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "is no folder"),
        (lambda folder: folder.write_text("a file"), "is no folder"),
        (nothing, r"holds no finished run: there is no result.json"),
        (half, "holds no finished run: .* never came to its end"),
        (writes({"format_version": 1, "valid": True}), "is no run's result: it has no 'status'"),
        (stopped, "was interrupted: it has no figures"),
        (unlike, "are no repeats of one another: replicas is 1 in run-1 and 2 in other|replicas is 2 in other"),
        (two_versions, r"no repeats of one another: environment.packages.vllm is 0.11 in x and 0.12 in y"),
        (copied, "are the same run: a copy is no repeat"),
    ],
    ids=["missing", "a file", "empty", "half a run", "no run", "interrupted", "a sweep", "two versions", "a copy"],
)
def test_what_is_no_release_is_refused_in_a_sentence(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "a")
    with pytest.raises(ConfigError, match=said) as refused:
        read_releases([str(tmp_path / "a")])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (cut, "is not valid JSON"),
        (writes([]), "does not hold a JSON object"),
        (writes({"format_version": 2}), "has format 2"),
        (writes({"hello": 1}), "has format None"),
        (writes({"format_version": 1, "valid": "yes"}), "is damaged"),
    ],
    ids=["cut", "a list", "another format", "another's", "odd"],
)
def test_a_damaged_result_is_no_slip_of_the_person(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "a")
    with pytest.raises(SetupError, match=said):
        read_releases([str(tmp_path / "a")])


def test_runs_that_are_not_valid_are_found(tmp_path: Path) -> None:
    place = save_release(tmp_path / "a", [1])
    bad = save(place / "bad", 2, valid=False, invalid_reasons=["3 of 64 queries failed"])
    assert [run.result.folder for run in invalid_runs(read_releases([str(place)]))] == [bad]


@pytest.mark.parametrize("value", [None, float("nan"), "fast", True, 0.0, -1.0])
def test_a_figure_that_is_no_positive_number_is_none(value: Any) -> None:
    content = dict(run(1).result.content)
    content["metrics"] = dict(content["metrics"]) | {"tokens_per_second": value, "ttft_s": {"p50": value, "p99": 0.2}}
    figures = type(run(1))(type(run(1).result)(content, Path("made"))).figures
    assert "tokens_per_second" not in figures and "ttft_s.p50" not in figures
    assert figures["ttft_s.p99"] == 0.2


def test_an_accuracy_run_has_its_scores_and_no_times() -> None:
    scores = {"rouge1": 88.2, "rouge2": 83.0, "tokens_per_sample": 30.7, "passed": True}
    assert run(1, config={"mode": "accuracy"}, accuracy=scores).figures == {"rouge1": 88.2, "rouge2": 83.0}


@pytest.mark.parametrize(
    ("telemetry", "figure"), [({"energy_j_per_token": 1.5}, 1.5), ({"energy_j_per_token": None}, None), (None, None)]
)
def test_energy_is_a_figure_where_it_is_known(telemetry: Any, figure: float | None) -> None:
    assert run(1, telemetry=telemetry).figures.get("energy_j_per_token") == figure


# -- samples.parquet --------------------------------------------------------------------------------------------------


def write(path: Path, **changes: Any) -> Path:
    table = columns(1) | changes
    arrays = {name: pa.array(values, from_pandas=True) for name, values in table.items() if values is not None}
    pq.write_table(pa.table(arrays), path)
    return path


def test_failures_and_rows_without_a_time_are_left_out(tmp_path: Path) -> None:
    late = columns(1)["latency_s"]
    late[3] = np.nan
    path = write(tmp_path / "samples.parquet", error=["Timed out"] + [None] * 399, latency_s=late)
    assert len(read_samples(path)["latency_s"]) == 398


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "samples.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SetupError, match=r"cannot read .* as parquet"):
        read_samples(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latency_s": None}, "has no column 'latency_s'"),
        ({"error": None}, "has no column 'error'"),
        ({"latency_s": ["slow"] * 400}, "the column 'latency_s' is of type string"),
    ],
)
def test_a_table_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SetupError, match=said):
        read_samples(write(tmp_path / "samples.parquet", **changes))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"has no samples\.parquet"):
        read_samples(tmp_path / "samples.parquet")
