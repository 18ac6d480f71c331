"""Reading files that anybody may have written: whole, bounded, and refused with a reason.

A package comes from a stranger: what should be a file may be a directory, a link, a pipe, gigabytes, or bytes that are
neither text nor JSON. Everything here ends in a value or in Unreadable.
"""

from __future__ import annotations

import json
import os
import stat
from math import isfinite
from pathlib import Path
from typing import Any

from harness.answers import Entry, read_entries
from sut.errors import SetupError

LARGEST = 50 * 2**20  # bytes; repository_checks.sh of mlcommons/inference
_DEEPEST = 20
_LARGEST_NUMBER = 1e18 * 20  # LoadGen's whole numbers have 64 bits


class Unreadable(Exception):
    """Why a file cannot be used, to be said after its name; `missing`: because it is not there."""

    def __init__(self, why: str, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


def size_of(path: Path) -> int:
    """Bytes of a plain file. Raises Unreadable for whatever else is there."""
    try:
        facts = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable("is missing", missing=True) from None
    except OSError as error:
        raise Unreadable(f"cannot be looked at ({error.strerror})") from error
    if stat.S_ISREG(facts.st_mode):
        return facts.st_size
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISLNK, "a link"))
    kind = next((name for test, name in kinds if test(facts.st_mode)), "a special file")
    raise Unreadable(f"is {kind} and must be a file")


def read_bytes(path: Path) -> bytes:
    """A plain file of at most LARGEST bytes. Raises Unreadable."""
    if size_of(path) > LARGEST:
        raise Unreadable(f"is larger than {LARGEST // 2**20} MiB, and was not read")
    try:
        with path.open("rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """A file of UTF-8. Raises Unreadable."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not text (byte {error.start} is not UTF-8)") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises Unreadable."""
    content = parse_json(read_text(path))
    if not isinstance(content, dict):
        raise Unreadable("does not hold a JSON object")
    return content


def parse_json(text: str) -> Any:
    """Raises Unreadable for what is no JSON, or nested beyond all sense."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise Unreadable(f"is not JSON ({error})") from error
    except RecursionError as error:
        raise Unreadable("is JSON nested too deeply") from error
    if _is_deep(content):
        raise Unreadable("is JSON nested too deeply")
    return content


def _is_deep(content: object) -> bool:
    """Deeper than any file of a package; comparing or printing such values could exhaust the stack."""
    level = [content]
    for _ in range(_DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def read_answers(path: Path) -> list[Entry]:
    """The answers of a whole accuracy log, which may be larger than what a package carries. Raises Unreadable."""
    size_of(path)
    try:
        return read_entries(path)
    except SetupError as error:
        raise Unreadable(f"cannot be used: {str(error).removeprefix(f'{path}').lstrip(': ').rstrip('.')}") from error
    except RecursionError as error:
        raise Unreadable("is JSON nested too deeply") from error


def number(value: object) -> int | float | None:
    """A finite number that fits LoadGen's 64 bits, or None; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if (isinstance(value, int) or isfinite(value)) and abs(value) <= _LARGEST_NUMBER else None
