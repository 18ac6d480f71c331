"""`report` as a person meets it: one file, one line, and for what is no result one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import call
from tests.harness.page.made_results import make_accuracy_run, make_run, make_study


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_one_file_is_written_from_several_results(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(make_run(tmp_path / "one")), str(make_study(tmp_path / "sweep"))]
    assert call(words) == 0
    assert capsys.readouterr().out.startswith("Wrote report.html (")
    assert [path.name for path in here.iterdir()] == ["report.html"]
    assert call(words) == 0  # an earlier report is written over


def test_texts_that_cannot_be_had_are_no_error_and_can_be_left_out(tmp_path: Path, here: Path) -> None:
    folder = make_accuracy_run(tmp_path / "one", ["yes", "no"])
    (tmp_path / "questions.jsonl").unlink()
    assert call(["report", str(folder)]) == 0
    assert "name its file with --dataset" in (here / "report.html").read_text()
    assert call(["report", str(folder), "--no-texts"]) == 0
    assert "--dataset" not in (here / "report.html").read_text()


def spoil(folder: Path) -> Path:
    (folder / "result.json").write_text('{"format_version": 2}')
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda path: path, 2, "does not exist"),
        (empty, 2, "holds no result"),
        (lambda path: spoil(make_run(path)), 3, "has format 2, and this harness reads 1"),
    ],
    ids=["no folder", "no result", "another format"],
)
def test_what_is_no_result_is_one_sentence(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], code: int, said: str
) -> None:
    assert call(["report", str(make(tmp_path / "one"))]) == code
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (here / "report.html").exists()


def test_a_file_of_a_person_is_not_written_over(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "report.html").write_text("mine")
    assert call(["report", str(make_run(tmp_path / "one"))]) == 2
    assert (here / "report.html").read_text() == "mine"
    assert "choose another --output" in capsys.readouterr().err


def test_charts_are_written_beside(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["report", str(make_study(tmp_path / "sweep")), "--figures", "plates"]) == 0
    assert capsys.readouterr().out.splitlines()[:1] == ["Wrote plates/figure.svg"]
    assert (here / "plates" / "figure.svg").read_text().startswith("<svg")


def test_a_real_run_is_reported(here: Path, runs: dict[Any, Any]) -> None:
    parts = [str(runs["Server", "performance"].folder), str(runs["Offline", "accuracy"].folder)]
    assert call(["report", *parts]) == 0
    page = (here / "report.html").read_text()
    assert page.count('<section class="card run"') == 2
    assert 'id="texts-0-of-result-2"' in page
