"""Answers on disk: what was written whole is read again, and nothing else ever is."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.journal import Journal, recall
from sut.errors import ConfigError, Disconnected, SetupError
from sut.query import Outcome, Query, as_tokens

ABOUT = {"model": "a/model", "samples": 5, "generation": {"temperature": 0.0}}


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


def go_on(path: Path) -> Journal:
    """A journal that is closed again, for what it has found."""
    journal = Journal(path, ABOUT)
    journal.close()
    return journal


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
        ({"samples": 6}, "another samples"),
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


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second one would cut off what the first is writing."""
    first = Journal(tmp_path / "j", ABOUT)
    first.add([answered(0, 5)])
    with pytest.raises(ConfigError, match="a test still runs in"):
        Journal(tmp_path / "j", ABOUT)
    first.close()
    assert list(go_on(tmp_path / "j").known) == [0]


def test_going_on_cuts_off_what_is_not_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "j", answered(0, 5, 6), answered(1, 7, 8))
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert list(go_on(path).known) == [0]
    written(path, answered(2, 9))
    assert plain(path) == {0: [5, 6], 2: [9]}


@pytest.mark.parametrize("place", range(-20, 0))
def test_no_byte_of_a_record_may_differ(place: int, tmp_path: Path) -> None:
    """Its twenty: index, count, checksum and two tokens. Another index would be an answer to another sample."""
    path = written(tmp_path / "j", answered(0, 5, 6), answered(1, 7, 8))
    data = bytearray(path.read_bytes())
    data[place] ^= 2
    path.write_bytes(data)
    assert plain(path) == {0: [5, 6]}


def test_zeros_at_the_end_are_no_answer(tmp_path: Path) -> None:
    """A file system may leave them after a loss of power."""
    path = written(tmp_path / "j", answered(3, 5, 6))
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert plain(path) == {3: [5, 6]}


def test_a_sample_that_is_not_asked_is_left_out(tmp_path: Path) -> None:
    assert plain(written(tmp_path / "j", answered(7, 5, 6), answered(4, 8))) == {4: [8]}
