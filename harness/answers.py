"""LoadGen's accuracy log, mlperf_log_accuracy.json: which sample was answered with which bytes.

One object per answer: `qsl_idx` is the sample, `data` the answer's bytes in hexadecimal; where token latencies are on,
`token_count` is the number of tokens that the SUT claimed, and outside Offline `token_data` are the bytes that were
reported with the first token (loadgen/logging.cc of mlcommons/inference).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from sut.errors import SetupError


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer: the sample, its bytes, how many tokens the SUT said they are, the bytes of its first token."""

    index: int
    data: bytes
    count: int | None
    head: bytes


class _Line(msgspec.Struct):
    qsl_idx: int
    data: str
    token_count: int | None = None
    token_data: str = ""


def read_entries(path: Path) -> list[Entry]:
    """All answers, in the order logged, repetitions included. Raises SetupError for what is no whole accuracy log."""
    try:
        lines = msgspec.json.decode(path.read_bytes(), type=list[_Line])
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}.") from error
    except msgspec.ValidationError as error:
        raise SetupError(f"{path} is not an accuracy log of LoadGen's: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is cut off or not LoadGen's: {error}.") from error
    return [
        Entry(line.qsl_idx, _bytes(line.data, path), line.token_count, _bytes(line.token_data, path)) for line in lines
    ]


def _bytes(text: str, path: Path) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise SetupError(f"{path}: an answer is not hexadecimal: {error}.") from error
