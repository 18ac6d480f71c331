"""An accuracy log is read strictly, and what its bytes are is found from them or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.answers import DTYPES, Entry, find_dtype, read_entries, strangers, token_ids
from sut.errors import SetupError
from sut.query import as_tokens

VOCABULARY = 32_000
PATH = Path("log.json")
ANSWERS = [[5, 31_999, 7, 2], [260, 2], [1, 0, 0, 29_871, 2]] * 5


def entries(answers: Sequence[Sequence[float]], dtype: str, counted: bool = False) -> list[Entry]:
    return [
        Entry(index, np.array(ids, DTYPES[dtype]).tobytes(), len(ids) if counted else None, b"")
        for index, ids in enumerate(answers)
    ]


def line(index: int, data: Any, **more: Any) -> dict[str, Any]:
    return {"seq_id": 0, "qsl_idx": index, "data": data, **more}


# -- reading ---------------------------------------------------------------------------------------------------


def test_entries_come_in_the_order_logged_repetitions_included(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps([line(3, "0500", token_count=1, token_data="05"), line(0, ""), line(3, "ff")], indent=1))
    assert read_entries(path) == [
        Entry(3, b"\x05\x00", 1, b"\x05"),
        Entry(0, b"", None, b""),
        Entry(3, b"\xff", None, b""),
    ]


def test_a_log_may_be_any_form_of_json(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(
        ' \r\n[ {\t"data" :  "05FF"  , "qsl_idx"\n:\n3 , "more": {"a": [1, 2]}, "token_data" :\n"05"}\n'
        '\n,{"qsl_idx":4,"data":""}]\n\n'
    )
    assert read_entries(path) == [Entry(3, b"\x05\xff", None, b"\x05"), Entry(4, b"", None, b"")]


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "mlperf_log_accuracy.json"
    os.mkfifo(pipe)
    for path in (Path("/dev/null"), tmp_path, pipe):
        with pytest.raises(SetupError) as refused:
            read_entries(path)
        assert str(refused.value).startswith(f"{path} is no regular file: ")


def test_a_log_without_answers_has_no_entries(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text("[\n]\n")
    assert read_entries(path) == []


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (
            line(4, "05000"),
            "{}: the answer to sample 4 has 5 hexadecimal digits, an odd number: half a byte is ",
        ),
        (
            line(4, "0500000G"),
            "{}: the answer to sample 4 is not hexadecimal: non-hexadecimal number found in fromhex() arg at ",
        ),
        (line(4, None), "{} is not an accuracy log of LoadGen's: the data of sample 4 is no text."),
        (line(4, "05", token_data="0"), "{}: the answer to sample 4 has 1 hexadecimal digits, an odd number: "),
        ({"seq_id": 0, "qsl_idx": 4}, "{} is not an accuracy log of LoadGen's: "),
        (line("4", "05"), "{} is not an accuracy log of LoadGen's: "),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_is_no_bytes_is_named(tmp_path: Path, bad: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps([line(0, "0500"), bad]))
    with pytest.raises(SetupError) as refused:
        read_entries(path)
    assert str(refused.value).startswith(sentence.format(path))


def test_a_log_truncated_for_a_submission_is_told_from_one_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    whole = json.dumps([line(index, "05000000" * 300) for index in range(10)])
    path.write_text(f"{whole[:4096]}\n\n...\n\n{whole[-4096:]}")  # as truncate_accuracy_log.py leaves it
    with pytest.raises(SetupError) as refused:
        read_entries(path)
    assert str(refused.value) == (
        f"{path} has been truncated to its first and last 4,096 bytes for a submission: score the original, which "
        "truncate_accuracy_log.py left in its --backup folder (its SHA-256 stands in accuracy.txt)."
    )
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(SetupError, match="is cut off or not LoadGen's: "):
        read_entries(path)


# -- what the bytes are ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counted", [True, False], ids=["with counts", "without"])
def test_the_format_is_found_from_the_data(dtype: str, counted: bool) -> None:
    assert find_dtype(entries(ANSWERS, dtype, counted), VOCABULARY, PATH) == dtype


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_few_ids_that_are_none_do_not_hide_the_format(dtype: str) -> None:
    padded = [[*ids, -1, 70_000] for ids in ANSWERS]
    assert find_dtype(entries(padded, dtype), VOCABULARY, PATH) == dtype


def test_one_answer_of_an_odd_length_does_not_hide_int64() -> None:
    found = [*entries(ANSWERS, "int64"), Entry(99, b"\x05\x00\x00\x00", None, b"")]
    assert find_dtype(found, VOCABULARY, PATH) == "int64"


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        # nothing at all, and nothing but the id that is the same in all formats
        (entries([[], []], "int32"), "too few token ids"),
        (entries([[0, 0, 0, 0]] * 20, "int32"), "too few token ids"),
        # 7 and 0 as int32, or 7 as int64: without a count, nobody knows
        (entries([[7, 0]], "int32"), "too few token ids"),
        (entries([[7]], "int64"), "too few token ids"),
        # another model's ids, and numbers that are no ids in any format
        (entries([[128_009, 90_000, 70_000]] * 9, "int32"), "most numbers are no token ids of a vocabulary of 32000"),
        (entries([[0.25, 3.5, 17.125]] * 9, "float32"), "most numbers are no token ids of a vocabulary of 32000"),
    ],
)
def test_what_could_be_either_or_is_neither_is_refused(found: list[Entry], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence) as refused:
        find_dtype(found, VOCABULARY, PATH)
    assert "--dtype" in str(refused.value)


def test_the_log_of_a_performance_run_is_called_so() -> None:
    with pytest.raises(SetupError, match="holds no answers, as that of a performance run does"):
        find_dtype([], VOCABULARY, PATH)


def test_a_count_tells_what_two_numbers_alone_do_not() -> None:
    assert find_dtype(entries([[7, 0]], "int32", counted=True), VOCABULARY, PATH) == "int32"
    assert find_dtype(entries([[7]], "int64", counted=True), VOCABULARY, PATH) == "int64"


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_are_int32_whatever_they_were(dtype: str) -> None:
    ids = token_ids(np.array([5, 0, 31_999], DTYPES[dtype]).tobytes(), dtype, "here")
    assert ids.dtype == np.int32
    assert ids.tolist() == [5, 0, 31_999]


@pytest.mark.parametrize(
    ("data", "dtype", "sentence"),
    [
        (b"\x05\x00\x00", "int32", "here has 3 bytes, which are no row of int32 token ids."),
        (b"\x05\x00\x00\x00", "int64", "here has 4 bytes, which are no row of int64 token ids."),
        (np.array([5.5], "<f4").tobytes(), "float32", "here holds 5.5 (read as float32), which is no token id."),
        (np.array([np.nan], "<f4").tobytes(), "float32", "here holds nan (read as float32), which is no token id."),
        (np.array([2**40], "<i8").tobytes(), "int64", "here holds 1.09951e+12 (read as int64), which is no token id."),
    ],
)
def test_bytes_that_are_no_ids_are_refused(data: bytes, dtype: str, sentence: str) -> None:
    with pytest.raises(SetupError) as refused:
        token_ids(data, dtype, "here")
    assert str(refused.value) == sentence


def test_strangers_are_the_first_ids_that_no_vocabulary_of_this_size_has() -> None:
    answers = {0: as_tokens([5, 31_999]), 1: as_tokens([5, -1, -2]), 2: as_tokens([]), 3: as_tokens([32_000])}
    assert list(strangers(iter(answers.items()), VOCABULARY)) == [(1, -1), (3, 32_000)]
