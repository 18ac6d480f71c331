"""The sample table: a row per query, as columns that the page's script sorts, searches and pages."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from harness.page.charts import failed, tpot
from harness.page.source import Numbers, Run, Table

Columns = list[dict[str, Any] | None]

MOST = 200_000
"""Rows that a page holds; of more, the failed ones come first."""

_TITLES = {
    "sample_index": ("sample", 1.0, 0),
    "replica": ("replica", 0.0, 0),
    "input_tokens": ("input tokens", 1.0, 0),
    "output_tokens": ("output tokens", 1.0, 0),
    "issued_s": ("issued, s", 1.0, 3),
    "ttft_s": ("TTFT, ms", 1e3, 3),
    "tpot_s": ("TPOT, ms", 1e3, 3),
    "latency_s": ("latency, ms", 1e3, 2),
    "attempts": ("attempts", 1.0, 0),
    "error": ("error", 0.0, 0),
}
"""Heading, factor and decimals by column, in their order."""


def listing(run: Run) -> dict[str, Any] | None:
    """What the page's script reads: `columns`, each with `values` or, of words, `words` and a number for each row."""
    if run.samples is None:
        return None
    samples = Table({**run.samples.numbers, "tpot_s": tpot(run.samples)}, run.samples.words)
    places = chosen(samples)
    columns: Columns = []
    for name, (title, factor, decimals) in _TITLES.items():
        if name in samples.words:
            columns.append(words_column(name, title, [samples.words[name][place] for place in places]))
        else:
            columns.append(numbers_column(name, title, samples.numbers[name][places] * factor, decimals))
    named, measured = scores_columns(run.scores, samples.numbers["sample_index"][places])
    kept = [column for column in [columns[0], *named, *columns[1:], *measured] if column is not None]
    return {"rows": len(places), "of": len(samples), "columns": kept}


def chosen(samples: Table) -> Any:
    """The places of the rows that are shown, in order; shape (rows,)."""
    if len(samples) <= MOST:
        return np.arange(len(samples))
    first = np.argsort(~failed(samples), kind="stable")[:MOST]
    return np.sort(first)


def numbers_column(name: str, title: str, values: Numbers, decimals: int) -> dict[str, Any] | None:
    """None for a column without any number. A gap is null."""
    if not np.isfinite(values).any():
        return None
    rounded = np.round(values, decimals)
    plain = [value if isfinite(value) else None for value in rounded.tolist()]
    if decimals == 0:
        plain = [None if value is None else int(value) for value in plain]
    return {"name": name, "title": title, "values": plain, "decimals": decimals}


def words_column(name: str, title: str, values: Sequence[str | None]) -> dict[str, Any] | None:
    if not any(values):
        return None
    number = {word: place for place, word in enumerate(dict.fromkeys(values))}
    return {"name": name, "title": title, "words": list(number), "values": [number[word] for word in values]}


def scores_columns(scores: Table | None, indices: Numbers) -> tuple[Columns, Columns]:
    """The id of each row's sample, where it is more than its number, and its scores."""
    if scores is None:
        return [], []
    place = {index: row for row, index in enumerate(scores.numbers["sample_index"].tolist())}
    rows = np.array([place.get(index, -1) for index in indices.tolist()], np.int64)
    known = rows >= 0
    measured: Columns = [
        numbers_column(name, name, np.where(known, values[rows], np.nan), 2)
        for name, values in scores.numbers.items()
        if name != "sample_index"
    ]
    ids = scores.words["id"]
    named = [ids[row] if row >= 0 else None for row in rows.tolist()]
    told = any(name not in (None, f"{index:.0f}") for name, index in zip(named, indices.tolist(), strict=True))
    return [words_column("id", "id", named)] if told else [], measured
