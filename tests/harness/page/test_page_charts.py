"""What the charts hold: counts that add up, levels that were reached, no more values than can be seen."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.page import charts as charts_module
from harness.page.charts import charts, distribution, in_flight, over_time, short, spans, unit_of
from harness.page.gauges import gauges, growth, panels_of
from harness.page.source import Run, Table, read
from tests.harness.page.made_results import make_run, write_samples


@pytest.fixture
def samples(tmp_path: Path) -> Table:
    found = read(make_run(tmp_path / "one"))
    assert isinstance(found, Run)
    assert found.samples is not None
    return found.samples


def read_run(folder: Path) -> Run:
    found = read(folder)
    assert isinstance(found, Run)
    return found


def test_a_run_of_two_replicas_has_all_charts(tmp_path: Path) -> None:
    names = [chart.name for chart in charts(read_run(make_run(tmp_path / "one")))]
    assert names == [
        *("timeline", "replicas", "replica-times"),
        *("ttft", "tpot", "latency", "output-tokens", "input-tokens"),
    ]


def test_one_replica_alone_is_not_compared(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    write_samples(folder, replica=["vllm-0"] * 60)
    assert not {"replicas", "replica-times"} & {chart.name for chart in charts(read_run(folder))}


def test_answers_that_were_taken_over_have_no_times(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    write_samples(folder, attempts=np.zeros(60, np.int32))
    assert charts(read_run(folder)) == []


def test_a_histogram_holds_every_query_once() -> None:
    values = np.random.default_rng(0).lognormal(3, 1, 24_576).astype(np.int64)
    chart = distribution("x", "X", "tokens", values, 1.0, None)
    assert chart is not None
    rows = chart.spec["data"]["values"]
    assert sum(row["queries"] for row in rows) == 24_576
    assert len(rows) <= 60


def test_what_is_always_the_same_needs_no_histogram() -> None:
    assert distribution("x", "X", "tokens", np.full(10, 7), 1.0, None) is None


@pytest.mark.parametrize(
    ("bound", "drawn", "said"),
    [(0.05, True, "limit 50"), (2.0, False, "limit 2,000")],
    ids=["within the bars", "far above them"],
)
def test_a_limit_is_drawn_where_it_can_be_and_said_in_any_case(bound: float, drawn: bool, said: str) -> None:
    chart = distribution("x", "X", "ms", np.arange(1, 101) * 1_000_000, 1e6, bound)
    assert chart is not None
    assert said in chart.spec["title"]["subtitle"]
    assert any(layer["mark"].get("type") == "text" for layer in chart.spec["layer"]) is drawn


def test_spans_hold_all_of_a_test_and_are_few() -> None:
    for end in (0.0, 1e-4, 0.999, 1.0, 61.12, 600.0, 7 * 86_400.0):
        edges = spans(end)
        assert edges[0] == 0
        assert edges[-1] > end
        assert len(edges) <= charts_module.SPANS + 2


def brute_force(issued: Any, done: Any, low: float, high: float) -> int:
    """The most at once, by looking at every moment at which something begins, and at the span's own beginning."""
    moments = [low, *(time for time in issued if low <= time < high)]
    return max(sum(begin <= at < end for begin, end in zip(issued, done, strict=True)) for at in moments)


def test_in_flight_is_the_most_at_once_in_each_span() -> None:
    random = np.random.default_rng(3)
    issued = np.sort(random.uniform(0, 10, 300))
    done = issued + random.exponential(0.7, 300)
    edges = spans(float(done.max()), 40)
    expected = [brute_force(issued, done, low, high) for low, high in pairwise(edges.tolist())]
    assert in_flight(issued, done, edges).tolist() == expected


def test_strips_add_up_to_all_queries(samples: Table) -> None:
    rows = over_time(samples)
    step = rows[0]["to"] - rows[0]["from"]
    assert sum(row["issued"] for row in rows) * step == pytest.approx(60)
    assert sum(row["completed"] for row in rows) * step == pytest.approx(60)
    assert sum(row["tokens"] for row in rows) * step == pytest.approx(samples.numbers["output_tokens"].sum())


def test_failures_have_a_strip_and_count_nowhere_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    write_samples(folder, error=["boom" if n % 3 == 0 else None for n in range(60)])
    run = read_run(folder)
    assert run.samples is not None
    rows = over_time(run.samples)
    step = rows[0]["to"] - rows[0]["from"]
    assert sum(row["failed"] for row in rows) == 20
    assert sum(row["completed"] for row in rows) * step == pytest.approx(40)
    timeline = charts(run)[0].spec["vconcat"]
    assert timeline[-1]["title"]["text"] == "failures by time of issue"


def test_a_query_without_an_end_is_in_flight_until_the_last_one_ends(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    lost = [float("nan") if n < 5 else 0.5 for n in range(60)]
    write_samples(folder, latency_s=lost, error=["abandoned" if n < 5 else None for n in range(60)])
    samples = read_run(folder).samples
    assert samples is not None
    assert over_time(samples)[-1]["flight"] >= 5


def test_many_replicas_are_drawn_with_few_cells(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    write_samples(folder, replica=[f"r-{n}" for n in range(60)])
    found = {chart.name: chart for chart in charts(read_run(folder))}
    assert len(found["replicas"].spec["data"]["values"]) <= charts_module._CELLS + 60
    assert "replica-times" not in found


@pytest.mark.parametrize(
    ("seconds", "unit"), [(12.0, "s"), (0.5, "ms"), (2e-5, "µs"), (0.0, "µs")], ids=["s", "ms", "µs", "nothing"]
)
def test_times_are_told_in_the_unit_they_are_read_in(seconds: float, unit: str) -> None:
    assert unit_of(seconds)[0] == unit


def test_figures_are_short() -> None:
    assert [short(value) for value in (0.012345, 1.2345, 123.45, 12345.6)] == ["0.0123", "1.23", "123", "12,346"]


# -- telemetry --------------------------------------------------------------------------------------------------------


def telemetry(rows: list[tuple[float, str | None, str | None, float]]) -> Table:
    times, sources, metrics, values = zip(*rows, strict=True)
    return Table({"time_s": np.array(times), "value": np.array(values)}, {"source": [*sources], "metric": [*metrics]})


def test_telemetry_is_drawn_by_kind_of_source_and_metric() -> None:
    rows: list[tuple[float, str | None, str | None, float]] = []
    for second in range(5):
        rows += [(second, f"vllm-{n}", "running", 3 + n) for n in range(2)]
        rows += [(second, "client", "loop_lag_s", 0.001), (second, "vllm-0", "preemptions", 0)]
        rows += [(second, "vllm-0", "in_flight", 5), (second, "vllm-0", "made_up", 1), (second, None, None, 1)]
    titles = [title for title, _, _ in panels_of(telemetry(rows))]
    assert titles == [
        *("requests running (vllm-0, vllm-1)", "harness loop late by, ms", "replica made up (vllm-0)"),
        "replica  ()",
    ]
    assert [chart.name for chart in gauges(telemetry(rows))] == ["telemetry"]


def test_a_counter_is_drawn_as_its_growth_and_may_start_anew() -> None:
    times, rates = growth(np.array([0.0, 2.0, 1.0, 3.0]), np.array([0.0, 30.0, 10.0, 5.0]))
    assert times.tolist() == [1.0, 2.0, 3.0]
    assert rates.tolist() == [10.0, 20.0, 0.0]


def test_more_sources_than_colours_are_told_by_their_mean() -> None:
    rows = [(float(second), f"vllm-{n}", "running", float(n)) for second in range(3) for n in range(9)]
    ((title, values, _),) = panels_of(telemetry([*rows]))
    assert title == "requests running (mean of 9)"
    assert {row["value"] for row in values} == {4.0}


def test_telemetry_without_a_number_draws_nothing() -> None:
    assert gauges(telemetry([(0.0, "vllm-0", "running", float("nan"))])) == []
