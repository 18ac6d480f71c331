"""LoadGen's two texts, mlperf_log_detail.txt and mlperf_log_summary.txt, read without trusting them.

The form of the detail log is that of loadgen/logging.cc: lines `:::MLLOG {json}` with key, value, time_ms, event_type
and metadata. The first value of a key counts, as in submission_checker/parsers/loadgen_parser.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.submission.contents import Unreadable, number, parse_json, read_text
from harness.submission.problem import shown

MARK = ":::MLLOG "


@dataclass(frozen=True, slots=True)
class Line:
    """One line: where it stands, what it says, when (milliseconds from the start) and by which thread."""

    number: int
    key: str
    value: Any
    time_ms: float
    process: int
    thread: int
    error: bool
    warning: bool


@dataclass(frozen=True)
class DetailLog:
    """A detail log. `damaged`: numbers of lines that LoadGen cannot have written; `ended`: the last one is whole."""

    path: Path
    lines: tuple[Line, ...]
    damaged: tuple[int, ...]
    errors: tuple[str, ...]
    ended: bool
    values: Mapping[str, Any]
    times: Mapping[str, int]

    def number(self, key: str) -> int | float | None:
        return number(self.values.get(key))

    def text(self, key: str) -> str:
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def show(self, key: str) -> str:
        """A value as it is quoted in a sentence; `missing` without one."""
        return shown(self.values[key]) if key in self.values else "missing"

    @property
    def version(self) -> str:
        """LoadGen's version, "6.0.17 @ d6147c7eb7"."""
        return self.text("loadgen_version")


def read_detail_log(path: Path) -> DetailLog:
    """Raises Unreadable for a file that is not even text."""
    text = read_text(path)
    lines: list[Line] = []
    damaged: list[int] = []
    errors: list[str] = []
    for index, row in enumerate(text.removesuffix("\n").split("\n"), 1):
        line = _line(index, row)
        if line is None:
            damaged.append(index)
            # LoadGen does not escape its messages; an error must count all the same.
            if re.search(r'"is_error":\s*true', row):
                errors.append(row[:200])
            continue
        lines.append(line)
        if line.error:
            errors.append(f"{line.key}: {shown(line.value)}")
    values: dict[str, Any] = {}
    for line in lines:
        values.setdefault(line.key, line.value)
    times = Counter(line.key for line in lines)
    return DetailLog(path, tuple(lines), tuple(damaged), tuple(errors), text.endswith("\n"), values, times)


def _line(index: int, row: str) -> Line | None:
    if not row.startswith(MARK):
        return None
    try:
        entry = parse_json(row.removeprefix(MARK))
    except Unreadable:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("metadata"), dict) or "value" not in entry:
        return None
    facts = entry["metadata"]
    when, process, thread = number(entry.get("time_ms")), number(facts.get("pid")), number(facts.get("tid"))
    flags = facts.get("is_error"), facts.get("is_warning")
    if not isinstance(entry.get("key"), str) or not all(isinstance(flag, bool) for flag in flags):
        return None
    if when is None or process is None or thread is None:
        return None
    return Line(index, entry["key"], entry["value"], float(when), int(process), int(thread), *map(bool, flags))


def read_summary(path: Path) -> dict[str, str]:
    """What the summary says, label -> value; the first of a label counts. Raises Unreadable."""
    said: dict[str, str] = {}
    for row in read_text(path).splitlines():
        label, colon, value = row.partition(":")
        if colon:
            # Before round v6.0 it was called so in half of the lines.
            label = label.strip().replace("Time to Output Token", "Time per Output Token")
            said.setdefault(label, value.strip())
    return said
