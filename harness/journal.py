"""Answers on disk while an accuracy test runs, so that one that is stopped can go on where it was.

`answers.journal` is a line of JSON that says what was asked of whom, and then a record per answer: sample index, number
of tokens, CRC-32 of both and of the tokens, the tokens; all 32 bits in the machine's order. A record that is not whole
ends the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from sut.errors import ConfigError, SetupError
from sut.query import TOKEN_DTYPE, Outcome, Query, Tokens

JOURNAL = "answers.journal"

_FLUSH_INTERVAL = 1.0
"""Seconds of answers that a killed harness may lose."""

_HEAD = 3
"""Numbers before a record's tokens."""


class Journal:
    """A file that answers are appended to, by one process at a time; `known` are those that were there before.

    A disk that is full ends the journal, and not the test (`trouble`).
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Go on with a file, or begin it. Raises OSError, SetupError for a file that is no journal, and ConfigError for
        one that another process writes, or that is about another test."""
        self.trouble: str | None = None
        self.known: dict[int, Tokens] = {}
        self._path = path
        self._file = path.open("ab", buffering=1 << 20)
        self._flushed = monotonic()
        try:
            lock(self._file.fileno(), path)
            if path.stat().st_size:
                self.known, size = recall(path, about)
                os.truncate(path, size)
            else:
                self._file.write(json.dumps(about, sort_keys=True).encode() + b"\n")
                self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def add(self, finished: Iterable[tuple[Query, Outcome]]) -> None:
        if self.trouble is not None:
            return
        try:
            for query, outcome in finished:
                if outcome.failure is None and outcome.attempts:  # none: it comes out of this very file
                    self._file.write(record(query.index, outcome.tokens))
            if monotonic() - self._flushed > _FLUSH_INTERVAL:
                self._file.flush()
                self._flushed = monotonic()
        except OSError as error:
            self.trouble = f"{self._path} cannot be written any more ({error.strerror})"

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.trouble = f"{self._path} cannot be written any more ({error.strerror})"

    def remove(self) -> None:
        """The test has come to its end, and LoadGen's log holds all of it."""
        self._path.unlink(missing_ok=True)


def lock(number: int, path: Path) -> None:
    """Have a file to oneself until it is closed. Raises ConfigError if another process has it."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"a test still runs in {path.parent}: wait for it, or end it first.") from error


def record(index: int, tokens: Tokens) -> bytes:
    body = tokens.astype(TOKEN_DTYPE, copy=False).tobytes()
    return np.array([index, len(tokens), checksum(index, body)], np.uint32).tobytes() + body


def checksum(index: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(np.array([index, len(body)], np.uint32).tobytes()))


def recall(path: Path, about: Mapping[str, Any]) -> tuple[dict[int, Tokens], int]:
    """(answers by sample index, length of the whole records in bytes) of a journal about the very same test.

    Raises SetupError for a file that is none, ConfigError where something else was asked, or of another model.
    """
    try:
        line, newline, rest = path.read_bytes().partition(b"\n")
        said = json.loads(line)
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise SetupError(f"{path} is no journal of answers: {error}.") from error
    if not isinstance(said, dict) or not newline:
        raise SetupError(f"{path} is no journal of answers.")
    # What is compared went through JSON on its way to the file.
    now = json.loads(json.dumps(about))
    if differing := [key for key in sorted(now.keys() | said.keys()) if now.get(key) != said.get(key)]:
        key = differing[0]
        raise ConfigError(
            f"{path} was begun with another {key.replace('_', ' ')} ({said.get(key)}, now {now.get(key)}): resume with "
            "the same, or choose another --output-dir."
        )
    answers, size = records(rest)
    return {index: tokens for index, tokens in answers.items() if index < said["samples"]}, len(line) + 1 + size


def records(data: bytes) -> tuple[dict[int, Tokens], int]:
    """(answers by sample index, bytes that they take), up to the first record that is not whole; the first answer to a
    sample counts."""
    numbers = np.frombuffer(data, TOKEN_DTYPE, len(data) // TOKEN_DTYPE().itemsize)
    answers: dict[int, Tokens] = {}
    place = 0
    while place + _HEAD <= len(numbers):
        index, count, check = numbers[place : place + _HEAD].view(np.uint32).tolist()
        tokens = numbers[place + _HEAD : place + _HEAD + count]
        if not count or len(tokens) != count or checksum(index, tokens.tobytes()) != check:
            break
        answers.setdefault(index, tokens)
        place += _HEAD + count
    return answers, place * TOKEN_DTYPE().itemsize
