"""One row per query, in preallocated columns, written as samples.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sut.query import Outcome, Query

Column = npt.NDArray[Any]

_NUMBERS: dict[str, type] = {
    "sample_index": np.int32,
    "replica": np.int16,
    "input_tokens": np.int32,
    "output_tokens": np.int32,
    "attempts": np.int16,
    "issued_s": np.float64,
    "ttft_s": np.float64,
    "latency_s": np.float64,
}


class Recorder:
    """Rows in order of completion. `issued_s` counts from the first callback of the test, the rest from the query's
    own. `texts` are right answers that came as text, each with the replica's count of its tokens.

    LoadGen's clock starts at the scheduled time, which a SUT cannot see: the official metrics are LoadGen's.
    """

    def __init__(self, replicas: Sequence[str], expected: int = 4096) -> None:
        self._names = list(replicas)
        self._number = {name: index for index, name in enumerate(replicas)}
        self._columns: dict[str, Column] = {name: np.zeros(max(1, expected), kind) for name, kind in _NUMBERS.items()}
        self._errors: dict[int, str] = {}
        self.texts: list[tuple[str, int]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        """Record queries that ended together."""
        while self._size + len(finished) > len(self._columns["replica"]):
            self._columns = {
                name: np.concatenate((column, np.zeros_like(column))) for name, column in self._columns.items()
            }
        columns = self._columns
        samples, replicas, inputs, outputs = (
            columns[k] for k in ("sample_index", "replica", "input_tokens", "output_tokens")
        )
        attempts, issued, ttft, latency = (columns[k] for k in ("attempts", "issued_s", "ttft_s", "latency_s"))
        for row, (query, outcome) in enumerate(finished, self._size):
            samples[row] = query.index
            replicas[row] = self._number.get(outcome.replica, -1)
            inputs[row] = len(query.prompt)
            outputs[row] = outcome.count
            attempts[row] = outcome.attempts
            issued[row] = query.issued
            ttft[row] = outcome.first_token - query.issued if outcome.first_token else np.nan
            latency[row] = outcome.last_byte - query.issued if outcome.last_byte else np.nan
            if outcome.failure is not None:
                self._errors[row] = f"{outcome.failure.kind}: {outcome.failure}"
            elif outcome.text is not None:
                self.texts.append((outcome.text, outcome.said))
        self._size += len(finished)

    def column(self, name: str) -> Column:
        """One column as far as it is filled."""
        values = self._columns[name][: self._size]
        return values - values.min() if name == "issued_s" and self._size else values

    def good(self) -> npt.NDArray[np.bool_]:
        """Which rows are answers and not failures."""
        mask = np.ones(self._size, bool)
        mask[list(self._errors)] = False
        return mask

    def save(self, path: Path) -> None:
        """Write samples.parquet."""
        import pyarrow as pa
        from pyarrow import parquet

        table = {name: self.column(name) for name in _NUMBERS if name != "replica"}
        names = [self._names[number] if number >= 0 else None for number in self.column("replica").tolist()]
        errors = [self._errors.get(row) for row in range(self._size)]
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
