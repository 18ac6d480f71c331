"""Which points a sweep takes, where it sees the knee, and what it says: on systems whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import resolve
from harness.figures import as_svg
from harness.studies.findings import as_text
from harness.studies.sweep import (
    MOST_POINTS,
    Row,
    Sweep,
    announce,
    find,
    knee,
    limits,
    loop_queries,
    next_load,
    overloaded,
    plan,
    saturated,
)
from sut.errors import ConfigError

RATES = Sweep(closed=False, loads=None, start=5.0, seconds=10.0, queries=512)
LOOPS = Sweep(closed=True, loads=None, start=1.0, seconds=30.0, queries=64)


def row(load: float, rate: float, latency: float, **more: Any) -> Row:
    """A point that was measured: queries/s done and mean latency in seconds; 512 queries, issued as offered."""
    plain: Row = {
        "point": f"p-{load:g}",
        "load": load,
        "measured": True,
        "loadgen": "VALID",
        "valid": True,
        "client_limited": False,
        "why": "",
        "queries": 512,
        "failures": 0,
        "issue_span_s": 512 / load,
        "samples_per_second": rate,
        "requests_per_minute": 60 * rate,
        "tokens_per_second": 30 * rate,
        **{f"{name}_{key}_s": None for name in ("ttft", "tpot", "itl") for key in ("mean", "p50", "p90", "p99")},
        "latency_mean_s": latency,
        "power": rate / latency,
        "itl_known_share": None,
        "per_output_token_mean_s": latency / 30,
        "per_token_mean_s": latency / 60,
        **{f"ttft_{key}_s": share * latency for key, share in (("p50", 0.1), ("p99", 0.3))},
        **{f"tpot_{key}_s": share * latency for key, share in (("p50", 0.02), ("p99", 0.03))},
    }
    return plain | more


def failed(load: float, **more: Any) -> Row:
    why = "3 of 512 queries failed"
    return row(load, 1.0, 1.0, **{"measured": False, "valid": False, "why": why, "power": None, "failures": 3, **more})


class System:
    """Serves at most `most` queries/s, each in `base` seconds at a low load; an ideal queue beyond."""

    def __init__(self, most: float, base: float) -> None:
        self.most = most
        self.base = base

    def at_rate(self, rate: float) -> Row:
        span = max(10.0, 512 / rate)
        waits = self.base * (1 + 0.3 * min(rate / self.most, 1.0) ** 4) + max(0.0, span * (rate / self.most - 1) / 2)
        number = rate * span
        done = max(span, number / self.most) + self.base
        return row(rate, number / done, waits, queries=number, issue_span_s=span)

    def in_loop(self, places: float) -> Row:
        rate = min(places / self.base, self.most)
        return row(places, rate, places / rate)


def sweep_of(asked: Sweep, system: System) -> list[Row]:
    rows: list[Row] = []
    while (load := next_load(asked, rows)) is not None:
        assert load not in [one["load"] for one in rows], "no point twice"
        rows = sorted(
            [*rows, system.in_loop(load) if asked.closed else system.at_rate(load)], key=lambda one: float(one["load"])
        )
        assert len(rows) <= MOST_POINTS
    return rows


# -- which points -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0.7, 3.0, 25.0, 100.0, 900.0])
@pytest.mark.parametrize("base", [0.05, 1.0, 8.0])
def test_rates_are_found_from_calm_to_saturated(most: float, base: float) -> None:
    rows = sweep_of(RATES, System(most, base))
    assert rows[0]["load"] < most < rows[-1]["load"]
    assert not overloaded(rows[0]) and saturated(rows, closed=False)
    best = knee(rows)
    assert best is not None and 0.45 * most <= best["load"] <= 1.5 * most


@pytest.mark.parametrize(("most", "base"), [(10.0, 0.5), (100.0, 0.3), (40.0, 6.0), (2.0, 0.1)])
def test_a_closed_loop_is_swept_from_one_query_to_beyond_the_knee(most: float, base: float) -> None:
    rows = sweep_of(LOOPS, System(most, base))
    assert rows[0]["load"] == 1 and saturated(rows, closed=True)
    assert all(one["load"] == int(one["load"]) for one in rows)
    best = knee(rows)
    ideal = max(1.0, most * base)  # full, and nobody waits
    assert best is not None and ideal / 1.5 <= best["load"] <= ideal * 1.5


def test_a_list_is_gone_through_in_order_whatever_happens() -> None:
    asked = Sweep(False, (1.0, 2.0, 4.0), 1.0, 10.0, 512)
    rows: list[Row] = []
    for load in (1.0, 2.0, 4.0):
        assert next_load(asked, rows) == load
        rows.append(failed(load))
    assert next_load(asked, rows) is None


@pytest.mark.parametrize(
    ("rows", "after"),
    [
        ([], 5.0),  # where it begins
        ([row(5, 5, 1)], 10.0),  # calm: twice as much
        ([row(5, 2, 40)], 1.25),  # the first is too much: down
        ([failed(5)], None),  # nothing works: no use in going on
        ([row(5, 5, 1), failed(10)], 10.0 / 2**0.5),  # queries fail beyond: what lies between
        ([row(5, 5, 1), row(10, 5.1, 20), row(20, 5.1, 60)], 5 * 2**0.5),  # saturated: between knee and neighbour
    ],
)
def test_the_next_rate(rows: list[Row], after: float | None) -> None:
    found = next_load(RATES, rows)
    assert found == (pytest.approx(after, rel=0.01) if after is not None else None)


@pytest.mark.parametrize(
    ("rows", "beyond"),
    [
        ([row(4, 4, 1), row(8, 8, 1.1), row(16, 15, 1.2)], False),  # it still grows
        ([row(4, 4, 1), row(8, 4.3, 1.9), row(16, 4.4, 3.8)], True),  # as much, and slower
        ([row(4, 4, 1), row(8, 4.2, 1.9)], False),  # one step may be a dip of the machine
        ([row(4, 4, 1), row(8, 3.0, 2.6), row(16, 7, 2.2)], False),  # as here
        ([row(4, 4, 1), row(8, 7, 1.1), row(16, 4.2, 3.8)], False),  # or here
        ([row(4, 4, 1), row(8, 4.2, 1.0), row(16, 4.2, 1.1)], False),  # no slower: something else holds it up
        ([row(4, 4, 1), row(5, 4.1, 2.0)], False),  # too near to tell
        ([row(4, 4, 1), failed(8)], True),  # queries fail
        ([failed(4), row(8, 8, 1)], False),  # nothing to compare with
    ],
)
def test_saturation(rows: list[Row], beyond: bool) -> None:
    assert saturated(rows, closed=True) is beyond


def test_two_rates_that_were_too_much_are_enough_however_they_compare() -> None:
    """On a noisy machine, the second may look better than the first."""
    rows = [row(40, 38, 0.2), row(80, 50, 1.7, queries=800, issue_span_s=10.0)]
    assert overloaded(rows[1]) and not saturated(rows, closed=False)
    rows.append(row(160, 65, 7.5, queries=1600, issue_span_s=10.0))
    assert saturated(rows, closed=False) and not saturated(rows, closed=True)


def test_a_point_that_the_harness_slowed_down_is_no_knee() -> None:
    rows = [row(1, 1, 1), row(2, 2, 1), row(4, 4, 1, client_limited=True), row(8, 4, 3)]
    best = knee(rows)
    assert best is not None and best["load"] == 2
    assert knee(rows[:3]) is None, "two that count are too few"
    assert knee([]) is None


@pytest.mark.parametrize(
    ("rows", "load", "queries"),
    [
        ([], 1, 64),  # nothing is known
        ([], 100, 1000),  # ten for each place
        ([row(1, 4.0, 0.25)], 2, 240),  # 8 queries/s if it grows with the load: 30 s
        ([row(1, 4.0, 0.25), row(2, 40.0, 0.05)], 1.5, 180),  # by the point below, not above
        ([failed(1)], 2, 64),  # a point that failed says nothing
    ],
)
def test_a_closed_loop_lasts_about_the_seconds_asked(rows: list[Row], load: float, queries: int) -> None:
    assert loop_queries(LOOPS, load, rows) == queries


# -- what is asked ----------------------------------------------------------------------------------------------------


def echo(scenario: str = "Server", **options: Any) -> Any:
    return resolve(scenario=scenario, backend="echo", output_dir=Path("out"), **options)


@pytest.mark.parametrize(
    ("options", "given", "seconds", "queries", "start"),
    [
        ({}, (None, None), 10.0, 512, 5.0),  # the demo's own 10 s, and a quarter of its rate
        ({}, (3.0, 100), 3.0, 100, 5.0),  # what a person says
        ({"benchmark": "llama2-70b-99.9", "dataset": "rows"}, (None, None), 60.0, 512, 1.0),  # of 600 s, 60
        ({"scenario": "Offline", "concurrency": 8}, (None, None), 30.0, 64, 1.0),
    ],
)
def test_how_long_a_point_is(
    options: dict[str, Any], given: tuple[float | None, int | None], seconds: float, queries: int, start: float
) -> None:
    asked, config = plan(echo(**options), None, *given)
    assert (asked.seconds, asked.queries, asked.start) == (seconds, queries, start)
    assert config.settings["min_query_count"] == queries
    assert config.settings["min_duration"] == (0 if asked.closed else 1000 * seconds)
    assert config.settings["sample_concatenate_permutation"] == 0
    assert ("target_qps" in config.settings) or asked.closed


def test_more_queries_than_can_be_made_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1e\+06 queries/s would be more than 5,000,000 queries"):
        plan(echo(), (1.0, 1e6), None, None)
    with pytest.raises(ConfigError, match=r"1e\+06 in flight would be more than"):
        plan(echo("Offline", concurrency=1), (1.0, 1e6), None, None)


def test_what_it_will_take_is_said_beforehand() -> None:
    asked, _ = plan(echo(), (4.0, 1.0), 10.0, 40)
    assert asked.loads == (1.0, 4.0)
    assert announce(asked) == "2 points: 50 s, and longer by what queues up beyond saturation."
    asked, _ = plan(echo("Offline", concurrency=4), (1.0, 4.0), None, None)
    assert announce(asked) == "2 points, about 30 s each: about 1:00."
    asked, _ = plan(echo(), None, None, None)
    assert announce(asked) == (
        "Points from 5 queries/s on, each twice the last, until throughput no longer grows: 10 s each or more; if "
        "it takes 10, about 4:12 in all."
    )


def test_the_limits_are_those_of_the_benchmark() -> None:
    assert limits(echo()) == {"ttft": 2.0, "tpot": 0.2}
    assert limits(echo("Interactive")) == {"ttft": 0.45, "tpot": 0.04}
    assert limits(echo("Offline", concurrency=4)) == {"ttft": 2.0, "tpot": 0.2}, "Server's, beside a closed loop"
    own = {"benchmark": "llama2-70b-99.9", "dataset": "rows"}
    assert limits(echo(**own)) == {"ttft": 2.0, "tpot": 0.2}
    assert limits(echo("Interactive", **own)) == {"ttft": 0.45, "tpot": 0.04}


# -- what is said -----------------------------------------------------------------------------------------------------

CURVE = [
    row(1, 1, 1.0),
    row(2, 2, 1.0, client_limited=True),
    row(4, 4, 1.1),
    row(8, 6, 2.5, loadgen="INVALID", valid=False, why="LoadGen says INVALID: the latency limits are missed"),
    failed(16),
]


def test_the_findings_name_the_knee_the_most_and_the_highest_valid() -> None:
    found = find(RATES, echo(), CURVE)
    assert found.headline == (
        "The knee lies at 4 queries/s: 4.0 samples/s, 120 tokens/s, TTFT p99 330.0 ms. Most: 6.0 samples/s, at 8 "
        "queries/s. LoadGen calls 4 VALID, and nothing above."
    )
    text = as_text(found)
    assert "client-limited: the harness itself was in the way there" in text
    assert "8 queries/s: LoadGen says INVALID: the latency limits are missed" in text
    assert "16 queries/s: 3 of 512 queries failed" in text
    assert "The time between two tokens is not known" in text
    assert [one["mark"] for one in found.rows] == ["", "client-limited", "knee", "", "not measured"]
    assert found.extra == {"axis": "rates", "knee": 4, "limits": {"ttft": 2.0, "tpot": 0.2}}


def test_a_point_that_was_disturbed_is_said_to_be() -> None:
    bad = {"valid": False, "loadgen": "INVALID", "why": "LoadGen says INVALID"}
    found = find(RATES, echo(), [row(10, 10, 0.2), row(20, 9, 5.0, **bad), row(40, 38, 0.3), row(80, 45, 9.0, **bad)])
    assert [one["mark"] for one in found.rows] == ["", "disturbed", "knee", ""], "80 is beyond what can be served"
    assert any(note.startswith("disturbed: twice as slow as a higher load or worse") for note in found.notes)
    assert found.headline.endswith("LoadGen calls 40 VALID, and nothing above, but not all below.")


def test_a_closed_loop_has_no_verdict_on_latency() -> None:
    found = find(LOOPS, echo("Offline", concurrency=1), [row(1, 1, 1), row(2, 2, 1), row(4, 2.1, 1.9)])
    assert found.headline.startswith("The knee lies at 2 in flight: ")
    assert "VALID" not in found.headline
    assert any(
        "LoadGen's VALID has no limits here (Server's: TTFT 2.00 s, TPOT 200.0 ms)" in note for note in found.notes
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(1, 1, 2), row(2, 1.1, 4), row(4, 1.1, 8)], "The knee lies at or below 1 queries/s"),
        ([row(1, 1, 1), row(2, 2, 1), row(4, 4, 1)], "The knee lies at or above 4 queries/s"),
        ([row(1, 1, 1), row(2, 2, 1)], "Too few points for a knee. Most: 2.0 samples/s"),
        ([failed(1), failed(2)], "No point could be measured."),
        ([], "No point could be measured."),
    ],
)
def test_a_knee_at_the_edge_or_none_is_said_so(rows: list[Row], said: str) -> None:
    assert find(RATES, echo(), rows).headline.startswith(said)


def test_inter_token_latency_is_shown_where_it_is_known() -> None:
    known = {"itl_p50_s": 0.01, "itl_p99_s": 0.05, "itl_known_share": 0.97}
    found = find(RATES, echo(), [row(1, 1, 1, **known), row(2, 2, 1, **known), row(4, 4, 1)])
    assert [column.title for column in found.columns].count("ITL p50") == 1
    assert any("known for 97% of the tokens or more" in note for note in found.notes)


def test_the_figure_can_be_drawn_with_limits_knee_and_every_kind_of_point() -> None:
    svg = as_svg(find(RATES, echo(), CURVE).figure or {})
    for text in ("Time to first token, s", "limit, p99", "knee", "client-limited", "INVALID", "requests/min"):
        assert text in svg, text
    assert find(RATES, echo(), [failed(1)]).figure is None, "nothing to draw"
