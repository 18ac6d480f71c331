"""One row per query, column by column, written as samples.parquet."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sut.query import Outcome, Query

Column = npt.NDArray[Any]

_NUMBERS = {
    "sample_index": "i",
    "replica": "h",
    "input_tokens": "i",
    "output_tokens": "i",
    "attempts": "i",
    "issued_s": "d",
    "ttft_s": "d",
    "latency_s": "d",
}
"""Columns with their typecodes: an array's append is the cheapest way to keep a number."""


class Recorder:
    """Rows in order of completion. `issued_s` counts from the first callback of the test, the rest from the query's
    own; in a closed loop, each from the query's release. `texts` are right answers that came as text, each with the
    replica's count of its tokens.

    LoadGen's clock starts at the scheduled time, which a SUT cannot see: the official metrics are LoadGen's.
    """

    def __init__(self, replicas: Sequence[str]) -> None:
        self._names = list(replicas)
        self._number = {name: index for index, name in enumerate(replicas)}
        self._columns: dict[str, array[Any]] = {name: array(code) for name, code in _NUMBERS.items()}
        self._append = [column.append for column in self._columns.values()]
        self._errors: dict[int, str] = {}
        self.texts: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return len(self._columns["replica"])

    def add(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        """Record queries that ended together."""
        sample, replica, inputs, outputs, attempts, issued, ttft, latency = self._append
        for query, outcome in finished:
            if outcome.failure is not None:
                self._errors[len(self)] = f"{outcome.failure.kind}: {outcome.failure}"
            elif outcome.text is not None:
                self.texts.append((outcome.text, outcome.said))
            began = query.released or query.issued
            sample(query.index)
            replica(self._number.get(outcome.replica, -1))
            inputs(len(query.prompt))
            outputs(outcome.count)
            attempts(outcome.attempts)
            issued(began)
            ttft(outcome.first_token - began if outcome.first_token else nan)
            latency(outcome.last_byte - began if outcome.last_byte else nan)

    def column(self, name: str) -> Column:
        """One column, as a copy."""
        values = np.array(self._columns[name], _NUMBERS[name])
        return values - values.min() if name == "issued_s" and len(values) else values

    def good(self) -> npt.NDArray[np.bool_]:
        """Which rows are answers and not failures."""
        mask = np.ones(len(self), bool)
        mask[list(self._errors)] = False
        return mask

    def save(self, path: Path) -> None:
        """Write samples.parquet."""
        import pyarrow as pa
        from pyarrow import parquet

        table = {name: self.column(name) for name in _NUMBERS if name != "replica"}
        names = [self._names[number] if number >= 0 else None for number in self.column("replica").tolist()]
        errors = [self._errors.get(row) for row in range(len(self))]
        order = [
            "sample_index",
            "replica",
            "input_tokens",
            "output_tokens",
            "issued_s",
            "ttft_s",
            "latency_s",
            "attempts",
            "error",
        ]
        arrays = {name: pa.array(values, from_pandas=True) for name, values in table.items()}
        arrays |= {"replica": pa.array(names, pa.string()), "error": pa.array(errors, pa.string())}
        parquet.write_table(pa.table({name: arrays[name] for name in order}), path)
