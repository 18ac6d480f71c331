"""A problem of a package: where it is, what is wrong, by which rule, and what to do.

An error keeps a package from being accepted or makes it untrue; of a warning a reviewer will ask; a note says what was
not looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class Problem:
    """`what`, `rule` and `fix` are sentences without a full stop; `rule` names its source."""

    level: str
    path: Path
    what: str
    rule: str
    fix: str


def error(path: Path, what: str, rule: str, fix: str) -> Problem:
    return Problem("error", path, what, rule, fix)


def warning(path: Path, what: str, rule: str, fix: str) -> Problem:
    return Problem("warning", path, what, rule, fix)


def note(path: Path, what: str, rule: str, fix: str) -> Problem:
    return Problem("note", path, what, rule, fix)


def graded(strict: bool, path: Path, what: str, rule: str, fix: str) -> Problem:
    """An error where the rule holds, a warning where it only is good custom (as in the open division)."""
    return Problem("error" if strict else "warning", path, what, rule, fix)


def clean(text: str, longest: int = 400) -> str:
    """Text out of a package as one line that a terminal and JSON can take: no control characters, no surrogates."""
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[: longest + 1])
    return shown if len(shown) <= longest else shown[:longest] + "..."


def shown(value: object) -> str:
    """A JSON value as a sentence quotes it; what is nested is only named."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return clean(repr(value) if isinstance(value, str) else json.dumps(value))


def shown_place(path: Path, root: Path) -> str:
    """A path as it is shown: from the package's root on."""
    text = os.fspath(path.relative_to(root)) if path.is_relative_to(root) else os.fspath(path)
    return clean(text, longest=4096)


def as_json(problem: Problem, root: Path) -> dict[str, str]:
    return {
        "level": problem.level,
        "path": shown_place(problem.path, root),
        "what": clean(problem.what),
        "rule": clean(problem.rule),
        "fix": clean(problem.fix),
    }


def sorted_problems(problems: Iterable[Problem], root: Path) -> list[Problem]:
    """The graver first, then by place; the same said twice of one place is said once."""
    return sorted(set(problems), key=lambda each: (LEVELS.index(each.level), shown_place(each.path, root), each.what))


def counts(problems: Iterable[Problem]) -> dict[str, int]:
    levels = [problem.level for problem in problems]
    return {f"{level}s": levels.count(level) for level in LEVELS}


def problems_text(problems: Sequence[Problem], root: Path) -> str:
    """For a person: what is said of several places is written once, with the places under it."""
    said: dict[tuple[str, str, str, str], list[str]] = {}
    for problem in problems:
        key = (problem.level, clean(problem.what), clean(problem.rule), clean(problem.fix))
        said.setdefault(key, []).append(shown_place(problem.path, root))
    blocks = []
    for (level, what, rule, fix), where in said.items():
        lines = [f"{level}: {what}.", *(f"    {each}" for each in where)]
        lines += [f"  rule: {rule}.", f"  fix:  {fix}."]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)
