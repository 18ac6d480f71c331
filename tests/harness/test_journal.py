"""Answers on disk: what was written whole is read again, and nothing else ever is."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.journal import Journal, recall
from sut.errors import ConfigError, Disconnected, SetupError
from sut.query import Outcome, Query, as_tokens

ABOUT = {"model": "a/model", "samples": 3, "generation": {"temperature": 0.0}}


def answered(index: int, *ids: int, **how: object) -> tuple[Query, Outcome]:
    return Query(index, index, as_tokens([1]), False, 8, 0.0), Outcome(as_tokens(ids), "stop", **how)  # type: ignore[arg-type]


def written(path: Path, *finished: tuple[Query, Outcome]) -> Path:
    journal = Journal(path, ABOUT)
    journal.add(finished)
    journal.close()
    assert journal.trouble is None
    return path


def plain(path: Path) -> dict[int, list[int]]:
    return {index: tokens.tolist() for index, tokens in recall(path, ABOUT)[0].items()}


def test_answers_come_back(tmp_path: Path) -> None:
    path = written(tmp_path / "j", answered(2, 5, 6, 2), answered(0, 7), answered(1, *range(5000)))
    assert plain(path) == {2: [5, 6, 2], 0: [7], 1: list(range(5000))}
    written(path, answered(4, 9))  # going on with it
    assert plain(path)[4] == [9]


def test_failures_and_answers_that_came_from_the_file_are_not_written(tmp_path: Path) -> None:
    path = written(tmp_path / "j", answered(0, 1, failure=Disconnected("cut")), answered(1, 5, 2, attempts=0))
    assert plain(path) == {}


def test_a_file_that_is_cut_anywhere_gives_whole_answers_only(tmp_path: Path) -> None:
    path = written(tmp_path / "j", answered(0, 5, 6), answered(1, 7, 8, 9), answered(2, 1, 2))
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    everything = plain(path)
    for length in range(head, len(whole)):
        path.write_bytes(whole[:length])
        answers, size = recall(path, ABOUT)
        assert {index: tokens.tolist() for index, tokens in answers.items()}.items() <= everything.items()
        assert head <= size <= length
        path.write_bytes(whole[:size])
        assert plain(path).keys() == answers.keys(), "what is cut off to go on is no answer"


def test_a_damaged_answer_ends_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "j", answered(0, 5, 6), answered(1, 7, 8))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert plain(path) == {0: [5, 6]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "b/model"}, "another model"),
        ({"samples": 4}, "another samples"),
        ({"generation": {"temperature": 1.0}}, "another generation"),
        ({"dtype": "float32"}, "another dtype"),  # a field that the file does not have
    ],
)
def test_another_test_does_not_go_on_with_it(change: dict[str, object], says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "j", answered(0, 5))
    with pytest.raises(ConfigError, match=says):
        recall(path, ABOUT | change)


@pytest.mark.parametrize("content", [b"", b"no json\n", b"[1]\n", b'{"model": "a/model"'])
def test_what_is_no_journal_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(SetupError, match="is no journal of answers"):
        recall(path, ABOUT)


def test_a_full_disk_ends_the_journal_and_not_the_test(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", ABOUT)
    journal._file.close()
    journal._file = Path("/dev/full").open("ab", buffering=1 << 20)  # noqa: SIM115
    journal._flushed = 0.0  # a while ago
    journal.add([answered(0, 5)])
    assert journal.trouble is not None and "No space left" in journal.trouble
    journal.add([answered(1, 5)])
    journal.close()
