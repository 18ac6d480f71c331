"""The sample table: rows as they were measured, gaps as gaps, words once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.page import listing as listing_module
from harness.page.listing import listing
from harness.page.source import Run, read
from tests.harness.page.made_results import make_accuracy_run, make_run, write_samples


def listed(folder: Path) -> dict[str, Any]:
    run = read(folder)
    assert isinstance(run, Run)
    table = listing(run)
    assert table is not None
    return table


def column(table: dict[str, Any], name: str) -> dict[str, Any]:
    return next(column for column in table["columns"] if column["name"] == name)


def test_the_columns_are_those_of_the_samples_in_units_that_are_read(tmp_path: Path) -> None:
    table = listed(make_run(tmp_path / "one"))
    assert [column["title"] for column in table["columns"]] == [
        *("sample", "replica", "input tokens", "output tokens", "issued, s", "TTFT, ms", "TPOT, ms", "latency, ms"),
        "attempts",
    ]
    assert column(table, "latency_s")["values"][:2] == [400.0, 450.0]
    assert column(table, "tpot_s")["values"][0] == 75.0  # 300 ms for 4 tokens after the first
    assert column(table, "replica")["words"] == ["echo-0", "echo-1"]
    assert column(table, "replica")["values"][:3] == [0, 1, 0]


def test_what_is_not_known_is_a_gap_and_a_column_of_gaps_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    write_samples(folder, ttft_s=[float("nan")] * 60, latency_s=[float("inf"), float("nan"), *[0.5] * 58])
    table = listed(folder)
    assert not {"ttft_s", "tpot_s"} & {column["name"] for column in table["columns"]}
    assert column(table, "latency_s")["values"][:3] == [None, None, 500.0]


def test_scores_stand_beside_their_samples_whatever_the_order(tmp_path: Path) -> None:
    folder = make_accuracy_run(tmp_path / "one", ["yes", "no", "maybe"])
    write_samples(folder, sample_index=[2, 0, 1, *range(3, 60)])
    table = listed(folder)
    assert [column["name"] for column in table["columns"]][:2] == ["sample_index", "id"]
    assert column(table, "rouge1")["values"][:4] == [50.0, 100.0, 75.0, None]
    named = column(table, "id")
    assert [named["words"][number] for number in named["values"][:4]] == ["q.2", "q.0", "q.1", None]


def test_of_too_many_rows_the_failed_ones_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "MOST", 3)
    folder = make_run(tmp_path / "one")
    write_samples(folder, error=["boom" if n == 50 else None for n in range(60)])
    table = listed(folder)
    assert (table["rows"], table["of"]) == (3, 60)
    assert column(table, "sample_index")["values"] == [0, 1, 50]
