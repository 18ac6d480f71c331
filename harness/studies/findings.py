"""What a study found: one sentence, a table, a figure, and the text, CSV and JSON of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness.figures import Spec

FORMAT_VERSION = 1
"""Format of findings.json. 1: the first."""


class Column(NamedTuple):
    """A column of the printed table: the rows' key, its heading with the unit, and how a value is written (a format
    such as ",.1f", or a function)."""

    key: str
    title: str
    form: str | Callable[[Any], str] = ""

    def cell(self, value: Any) -> str:
        if value is None:
            return "–"
        return self.form(value) if callable(self.form) else format(value, self.form)


class Table(NamedTuple):
    """Rows and how they are shown; they may hold more keys than the columns show."""

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Findings:
    """`headline` answers the question in a sentence; `rows` hold more keys than the table's `columns` show; `notes`
    are what a reader must know beside them; `summary` is a short table before it, for an answer of several lines;
    `extra` is what else findings.json holds."""

    study: str
    headline: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    figure: Spec | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    summary: Table | None = None


def as_text(found: Findings) -> str:
    """The headline, the summary, the table, the notes."""
    lines = [found.headline, ""]
    if found.summary is not None:
        lines += [*table_lines(*found.summary), ""]
    lines += table_lines(found.columns, found.rows)
    if found.notes:
        lines += ["", *(f"  {note}" for note in found.notes)]
    return "\n".join(lines)


def table_lines(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Aligned columns, numbers to the right."""
    cells = [[column.cell(row.get(column.key)) for column in columns] for row in rows]
    widths = [max([len(column.title), *(len(row[place]) for row in cells)]) for place, column in enumerate(columns)]
    numeric = [any(isinstance(row.get(column.key), int | float) for row in rows) for column in columns]

    def line(words: Sequence[str]) -> str:
        aligned = (
            word.rjust(width) if right else word.ljust(width)
            for word, width, right in zip(words, widths, numeric, strict=True)
        )
        return f"  {'   '.join(aligned)}".rstrip()

    return [line([column.title for column in columns]), *(line(row) for row in cells)]


def as_csv(found: Findings) -> str:
    """All rows with all of their plain keys, for a spreadsheet."""
    names = list(dict.fromkeys(key for row in found.rows for key, value in row.items() if is_plain(value)))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.rows)
    return out.getvalue()


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def as_json(found: Findings) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "study": found.study,
        "headline": found.headline,
        **({"summary": [dict(row) for row in found.summary.rows]} if found.summary is not None else {}),
        "rows": [dict(row) for row in found.rows],
        "notes": list(found.notes),
        **found.extra,
    }
