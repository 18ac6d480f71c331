"""LoadGen's accuracy log, mlperf_log_accuracy.json: which sample was answered with which token ids.

One object per answer: `qsl_idx` is the sample, `data` the answer's bytes in hexadecimal; where token latencies are on,
`token_count` is the number of tokens that the SUT claimed, and outside Offline `token_data` are the bytes that were
reported with the first token (loadgen/logging.cc of mlcommons/inference). What the bytes are is nowhere said: this
harness writes int32, the reference implementations also int64 or float32 (their evaluate-accuracy.py asks for it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sut.errors import SetupError
from sut.query import TOKEN_DTYPE, Tokens

DTYPES: dict[str, np.dtype[Any]] = {"int32": np.dtype("<i4"), "int64": np.dtype("<i8"), "float32": np.dtype("<f4")}

GAP = b"\n\n...\n\n"
"""What tools/submission/truncate_accuracy_log.py of mlcommons/inference puts in the place of all but both ends."""

_PAIRS = 16
"""Two int32 ids of which the second is 0 read as one int64; so many in a row are no chance."""

_ENOUGH = 1000
"""Answers that tell the format of all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer: the sample, its bytes, how many tokens the SUT said they are, the bytes of its first token."""

    index: int
    data: bytes
    count: int | None
    head: bytes


class _Line(msgspec.Struct):
    """Raw: a view of the file's bytes, so that hexadecimal digits never stand in memory twice."""

    qsl_idx: int
    data: msgspec.Raw
    token_count: int | None = None
    token_data: msgspec.Raw = msgspec.Raw(b'""')


def read_entries(path: Path) -> list[Entry]:
    """All answers, in the order logged, repetitions included. Raises SetupError for what is no whole accuracy log."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise SetupError(f"{path} is no regular file: name the accuracy log itself, or the folder that holds it.")
    try:
        content = path.read_bytes()
        lines = msgspec.json.decode(content, type=list[_Line])
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}.") from error
    except msgspec.ValidationError as error:
        raise SetupError(f"{path} is not an accuracy log of LoadGen's: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if GAP in content:
            raise SetupError(
                f"{path} has been truncated to its first and last 4,096 bytes for a submission: score the original, "
                "which truncate_accuracy_log.py left in its --backup folder (its SHA-256 stands in accuracy.txt)."
            ) from error
        raise SetupError(f"{path} is cut off or not LoadGen's: {error}.") from error
    return [
        Entry(line.qsl_idx, _bytes(line.data, line, path), line.token_count, _bytes(line.token_data, line, path))
        for line in lines
    ]


def _bytes(digits: msgspec.Raw, line: _Line, path: Path) -> bytes:
    where, text = f"{path}: the answer to sample {line.qsl_idx}", bytes(digits)
    if text[:1] != b'"':
        raise SetupError(f"{path} is not an accuracy log of LoadGen's: the data of sample {line.qsl_idx} is no text.")
    text = text[1:-1]
    if len(text) % 2:
        raise SetupError(f"{where} has {len(text)} hexadecimal digits, an odd number: half a byte is missing.")
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError as error:
        raise SetupError(f"{where} is not hexadecimal: {error}.") from error


# -- what the bytes are -----------------------------------------------------------------------------------------------


def find_dtype(entries: Sequence[Entry], vocabulary: int, path: Path) -> str:
    """The name of the number format, one of DTYPES, of a log whose ids lie below `vocabulary`.

    Told by the number of bytes per token where the log has token counts, else by what most of the numbers are. Raises
    SetupError where they could be either or are neither.
    """
    if not entries:
        raise SetupError(f"{path} holds no answers, as that of a performance run does: name an accuracy run's.")
    entries = entries[:: max(1, len(entries) // _ENOUGH)]
    words = np.frombuffer(b"".join(entry.data for entry in entries if len(entry.data) % 4 == 0), "<i4")
    words = words[words != 0]  # 0 is the same in all formats
    width, pairs = _bytes_per_token(entries), _as_pairs(entries)
    fit = len(pairs) > 0 and bool(np.array_equal(pairs, pairs.astype(np.int32)))
    if not len(words) or (width is None and fit and len(pairs) < _PAIRS):
        raise SetupError(f"{path} holds too few token ids to tell their format from: name it with --dtype.")
    if width == 8 or (width is None and fit):
        return "int64"
    floats = words.view("<f4")
    with np.errstate(invalid="ignore"):
        whole = int(np.count_nonzero((floats >= 1) & (floats < vocabulary) & (floats == np.floor(floats))))
    inside = int(np.count_nonzero((words > 0) & (words < vocabulary)))
    if max(inside, whole) * 2 <= len(words):
        raise SetupError(
            f"{path}: read as int32, int64 or float32, most numbers are no token ids of a vocabulary of {vocabulary}: "
            "name the model that answered with --model, or the format with --dtype."
        )
    return "int32" if inside > whole else "float32"


def _bytes_per_token(entries: Sequence[Entry]) -> int | None:
    """As most answers have it, 4 or 8; None for a log without token counts, or with counts of something else."""
    widths = Counter(len(entry.data) / entry.count for entry in entries if entry.count and entry.data)
    width = widths.most_common(1)[0][0] if widths else None
    return int(width) if width in (4, 8) else None


def _as_pairs(entries: Sequence[Entry]) -> npt.NDArray[np.int64]:
    """The bytes as int64, shape (words,); empty if more than a few answers have a length that rules that out."""
    even = [entry.data for entry in entries if len(entry.data) % 8 == 0]
    return np.frombuffer(b"".join(even) if len(even) >= 0.9 * len(entries) else b"", "<i8")


def token_ids(data: bytes, dtype: str, where: str) -> Tokens:
    """The ids that an answer's bytes are, as int32, shape (tokens,). Raises SetupError, naming `where`."""
    kind = DTYPES[dtype]
    if len(data) % kind.itemsize:
        raise SetupError(f"{where} has {len(data)} bytes, which are no row of {dtype} token ids.")
    numbers: npt.NDArray[Any] = np.frombuffer(data, kind)
    if kind == TOKEN_DTYPE:
        return numbers  # a view of the bytes
    with np.errstate(invalid="ignore"):
        ids = numbers.astype(TOKEN_DTYPE)
    if len(odd := numbers[ids != numbers]):
        raise SetupError(f"{where} holds {odd[0]:g} (read as {dtype}), which is no token id.")
    return ids


def strangers(answers: Iterator[tuple[int, Tokens]], vocabulary: int) -> Iterator[tuple[int, int]]:
    """(sample, id) of the first id of each answer that no vocabulary of this size has."""
    for index, ids in answers:
        outside = ids[(ids < 0) | (ids >= vocabulary)]
        if len(outside):
            yield index, int(outside[0])
