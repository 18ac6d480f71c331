"""A study's folder: whose it is, which of its points are done, and what is written at the end."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from harness.config import RunConfig, resolve
from harness.figures import figure, line, x, y
from harness.results import RESULT, SUBMISSION, RunResult
from harness.studies.findings import Column, Findings, Table, as_csv, as_text
from harness.studies.study import FINDINGS, STUDY, Study, open_study
from sut.errors import ConfigError, SetupError


def config(folder: Path, **options: object) -> RunConfig:
    return resolve(scenario="Server", backend="echo", output_dir=folder, **options)  # type: ignore[arg-type]


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    with open_study("sweep", config(tmp_path), {}) as opened:
        yield opened


def finish(folder: Path, status: str = "complete") -> None:
    folder.mkdir(parents=True)
    RunResult({"format_version": 1, "status": status, "valid": True}, folder).save()


def test_a_folder_is_made_and_taken_up_again_with_the_same_question(tmp_path: Path) -> None:
    for _ in range(2):
        with open_study("sweep", config(tmp_path / "s"), {"rates": (1.0, 2.0)}) as study:
            assert study.folder == tmp_path / "s"


@pytest.mark.parametrize(
    ("name", "options", "question", "said"),
    [
        ("peak", {}, {"rates": [1]}, "holds a sweep and not a peak"),
        ("sweep", {}, {"rates": [1, 2]}, "with another rates"),
        ("sweep", {"replicas": 2}, {"rates": [1]}, "with another replicas"),
    ],
    ids=["another study", "another question", "another option of run"],
)
def test_a_folder_of_another_study_is_refused(
    tmp_path: Path, name: str, options: dict[str, object], question: dict[str, object], said: str
) -> None:
    with open_study("sweep", config(tmp_path), {"rates": [1]}):
        pass
    with pytest.raises(ConfigError, match=said), open_study(name, config(tmp_path, **options), question):
        pass


@pytest.mark.parametrize("name", [RESULT, SUBMISSION, FINDINGS], ids=["a run's", "a submission's", "a comparison's"])
def test_a_folder_of_other_results_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="holds other results"), open_study("sweep", config(tmp_path), {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format_version": 7, "study": "sweep"}'])
def test_a_damaged_or_foreign_study_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / STUDY).write_text(text)
    with pytest.raises((ConfigError, SetupError), match=r"study\.json"), open_study("sweep", config(tmp_path), {}):
        pass


def test_two_processes_never_work_in_one_folder(tmp_path: Path) -> None:
    own = config(tmp_path)
    with (
        open_study("sweep", own, {}),
        pytest.raises(ConfigError, match="another process"),
        open_study("sweep", own, {}),
    ):
        pass


def test_a_file_system_that_cannot_lock_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: IO[str], how: int) -> None:
        assert file.writable(), "NFS has no exclusive lock for a file that is only read"
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("harness.studies.study.fcntl.flock", refuse)
    with pytest.raises(SetupError, match="No locks"), open_study("sweep", config(tmp_path), {}):
        pass


def test_a_point_is_done_when_its_test_came_to_its_end(study: Study) -> None:
    finish(study.path("done"))
    finish(study.path("stopped"), "interrupted")
    finish(study.path("lost"), "aborted")
    study.path("killed").mkdir()
    assert study.result("done") is not None
    assert [study.result(name) for name in ("stopped", "lost", "killed", "never")] == [None] * 4


def test_what_a_point_that_was_not_done_has_left_is_moved_aside(tmp_path: Path, study: Study) -> None:
    for _ in range(2):
        path = study.fresh("p")
        path.mkdir()
        (path / "log").write_text("half")
    study.fresh("p")
    names = sorted(path.name for path in (tmp_path / "points").iterdir())
    assert names == ["p.interrupted-1", "p.interrupted-2"]


def test_a_point_that_is_no_run_is_kept_whole(study: Study) -> None:
    assert study.saved("group-1") is None
    study.keep("group-1", {"ready_s": 1.5, "odd": float("nan")})
    assert study.saved("group-1") == {"ready_s": 1.5, "odd": None}
    (study.path("group-1") / "point.json").write_text("{")
    with pytest.raises(SetupError, match="cannot be read"):
        study.saved("group-1")


ROWS = [{"rate": 1.0, "p99": 0.25, "name": "a", "more": [1]}, {"rate": 20.0, "p99": None, "name": "bcd", "more": [2]}]
FOUND = Findings(
    "sweep",
    "The knee lies at 1 query/s.",
    [
        Column("name", "point"),
        Column("rate", "queries/s", ",.1f"),
        Column("p99", "p99", lambda s: f"{s * 1000:.0f} ms"),
    ],
    ROWS,
    ["a note"],
    figure(ROWS, [line(x("rate", "rate"), y("p99", "p99"))], "A title"),
    {"knee": 1.0},
)


def test_findings_are_written_as_text_csv_json_and_a_drawing(tmp_path: Path, study: Study) -> None:
    study.conclude(FOUND)
    assert as_text(FOUND).splitlines() == [
        "The knee lies at 1 query/s.",
        "",
        "  point   queries/s      p99",
        "  a             1.0   250 ms",
        "  bcd          20.0        –",
        "",
        "  a note",
    ]
    assert as_csv(FOUND) == "rate,p99,name\n1.0,0.25,a\n20.0,,bcd\n"
    assert (tmp_path / "table.csv").read_text() == as_csv(FOUND)
    written = json.loads((tmp_path / FINDINGS).read_text())
    assert written["knee"] == 1.0 and written["rows"] == ROWS and written["study"] == "sweep"
    svg = (tmp_path / "figure.svg").read_text()
    assert svg.startswith("<svg") and "A title" in svg
    assert json.loads((tmp_path / "figure.json").read_text())["layer"]


def test_a_summary_stands_before_the_table(tmp_path: Path, study: Study) -> None:
    found = replace(FOUND, summary=Table([Column("best", "best")], [{"best": "bcd", "more": 1}]))
    assert as_text(found).splitlines()[:6] == [
        FOUND.headline,
        "",
        "  best",
        "  bcd",
        "",
        "  point   queries/s      p99",
    ]
    study.conclude(found)
    assert json.loads((tmp_path / FINDINGS).read_text())["summary"] == [{"best": "bcd", "more": 1}]


def test_a_result_that_cannot_be_read_stops_a_study(study: Study) -> None:
    study.path("p").mkdir()
    (study.path("p") / RESULT).write_text("{")
    with pytest.raises(SetupError):
        study.result("p")
