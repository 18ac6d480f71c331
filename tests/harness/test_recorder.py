"""One row per query, however many there are, in the columns that readers rely on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pyarrow import parquet

from harness.recorder import Recorder
from sut.errors import QueryFailed, Stalled
from sut.query import Outcome, Query, as_tokens

COLUMNS = [
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


def answered(
    index: int,
    issued: float = 100.0,
    first: float = 0.5,
    last: float = 2.0,
    replica: str = "echo-0",
    tokens: int = 3,
    failure: QueryFailed | None = None,
) -> tuple[Query, Outcome]:
    """A query of 4 prompt tokens and its outcome; moments count from its issue, 0.0 is unknown."""
    query = Query(index + 1000, index, as_tokens([1, 2, 3, 4]), True, 8, issued)
    moments = {"first_token": issued + first if first else 0.0, "last_byte": issued + last if last else 0.0}
    return query, Outcome(as_tokens(range(tokens)), "stop", failure, replica, **moments)


def test_columns_grow() -> None:
    recorder = Recorder(["echo-0"])
    recorder.add([answered(0)])
    recorder.add([answered(index) for index in range(1, 10)])
    recorder.add([])
    assert len(recorder) == 10
    assert recorder.column("sample_index").tolist() == list(range(10))
    assert recorder.column("latency_s").tolist() == [2.0] * 10


def test_issued_counts_from_the_tests_first_callback_and_the_rest_from_the_querys_own() -> None:
    recorder = Recorder(["echo-0"])
    recorder.add([answered(0, issued=101.0), answered(1, issued=100.0)])
    recorder.add([answered(2, issued=104.0)])
    assert recorder.column("issued_s").tolist() == [1.0, 0.0, 4.0]
    assert recorder.column("ttft_s").tolist() == [0.5] * 3


def test_in_a_closed_loop_all_counts_from_the_release() -> None:
    recorder = Recorder(["echo-0"])
    for index, released in enumerate((100.0, 107.0)):
        query, outcome = answered(index, issued=100.0, first=8.0, last=9.0)
        query.released = released
        recorder.add([(query, outcome)])
    assert recorder.column("issued_s").tolist() == [0.0, 7.0]
    assert recorder.column("ttft_s").tolist() == [8.0, 1.0]
    assert recorder.column("latency_s").tolist() == [9.0, 2.0]


def test_issued_is_never_negative() -> None:
    recorder = Recorder(["echo-0"])
    recorder.add([answered(0, issued=101.0)])
    recorder.add([answered(1, issued=100.0)])  # issued earlier, answered later
    assert recorder.column("issued_s").tolist() == [1.0, 0.0]


def test_a_failure_is_no_good_row() -> None:
    recorder = Recorder(["echo-0"])
    recorder.add([answered(0), answered(1, failure=Stalled("no further token")), answered(2)])
    assert recorder.good().tolist() == [True, False, True]


def test_the_file_has_the_documented_columns_in_order(tmp_path: Path) -> None:
    recorder = Recorder(["echo-0", "echo-1"])
    recorder.add(
        [
            answered(5, replica="echo-1"),
            answered(6, first=0.0, last=0.0, tokens=0, failure=Stalled("no further token for 1 s")),
            answered(7, replica=""),  # ended in the queue, on no replica
        ]
    )
    recorder.save(tmp_path / "samples.parquet")
    table = parquet.read_table(tmp_path / "samples.parquet")
    assert table.column_names == COLUMNS
    assert table.to_pylist() == [
        dict(zip(COLUMNS, [5, "echo-1", 4, 3, 0.0, 0.5, 2.0, 1, None], strict=True)),
        # what never came is null, and a failure has its kind and sentence
        dict(zip(COLUMNS, [6, "echo-0", 4, 0, 0.0, None, None, 1, "stalled: no further token for 1 s"], strict=True)),
        dict(zip(COLUMNS, [7, None, 4, 3, 0.0, 0.5, 2.0, 1, None], strict=True)),
    ]


def test_an_empty_test_leaves_an_empty_table(tmp_path: Path) -> None:
    Recorder(["echo-0"]).save(tmp_path / "samples.parquet")
    table = parquet.read_table(tmp_path / "samples.parquet")
    assert (table.column_names, table.num_rows) == (COLUMNS, 0)


def test_what_never_came_is_no_number() -> None:
    recorder = Recorder(["echo-0"])
    recorder.add([answered(0, first=0.0)])
    assert np.isnan(recorder.column("ttft_s")[0])
