"""What a study of layouts runs, in which order, and what it makes of the results. Results are made up; LoadGen and
processes are in tests/harness/cli/test_cli_layouts.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.results import RunResult
from harness.studies import layouts
from harness.studies.findings import as_text
from harness.studies.layouts import Measured, Plan, leave_out, plan_tests, schedule
from harness.studies.variants import Variant

COMMON = {"scenario": "Server", "benchmark": "demo", "backend": "echo", "target_qps": 20.0, "min_duration": 5.0}
A, B = Variant("a", {}), Variant("b", {"replicas": 2})


def made_up(rate: float = 100.0, ttft: float = 0.1, *, valid: bool = True, **more: Any) -> RunResult:
    latencies = {"p50": ttft / 2, "p99": ttft}
    content = {
        "status": "complete", "valid": valid, "invalid_reasons": [] if valid else ["LoadGen says INVALID"],
        "client_limited": False, "benchmark": "demo",
        "metrics": {"samples_per_second": rate / 30, "tokens_per_second": rate, "ttft_s": latencies,
                    "tpot_s": latencies, "latency_s": latencies},
    }  # fmt: skip
    return RunResult({**content, **more}, Path("nowhere"))


def plan(*layouts: Variant, tests: Mapping[str, Mapping[str, Any]] | None = None, repeats: int = 1) -> Plan:
    return Plan(layouts, tests or plan_tests(COMMON, True, False, None), "Server", repeats, 0.05)


def measured(variant: Variant, *results: tuple[str, RunResult], trouble: str | None = None) -> Measured:
    own = Measured(variant, 1, trouble=trouble)
    for test, result in results:
        own.runs.setdefault(test, []).append(result)
    return own


# -- what is to be run ------------------------------------------------------------------------------------------------


def test_offline_beside_a_scenario_has_a_rate_of_its_own() -> None:
    tests = plan_tests(COMMON, True, True, 90.0)
    assert list(tests) == ["Offline", "Server", "accuracy"]
    assert tests["Server"] == COMMON
    assert (tests["Offline"]["target_qps"], tests["Offline"].get("min_duration")) == (90.0, None)
    assert (tests["accuracy"]["mode"], tests["accuracy"]["scenario"]) == ("accuracy", "Offline")
    assert "target_qps" not in tests["accuracy"]


@pytest.mark.parametrize(("scenario", "offline"), [("Server", False), ("Offline", True)])
def test_one_scenario_alone(scenario: str, offline: bool) -> None:
    assert list(plan_tests({**COMMON, "scenario": scenario}, offline, False, None)) == [scenario]


def test_layouts_take_turns_and_accuracy_comes_once_at_the_end() -> None:
    tests = plan_tests(COMMON, True, True, None)
    names = [point.name for point in schedule(plan(A, B, tests=tests, repeats=2))]
    assert names == [
        "a-offline-1", "b-offline-1", "a-server-1", "b-server-1",
        "a-offline-2", "b-offline-2", "a-server-2", "b-server-2",
        "a-accuracy-1", "b-accuracy-1",
    ]  # fmt: skip


def test_unlike_numbers_of_devices_are_left_out_with_a_reason() -> None:
    four = [Variant(f"{r}x{t}", {"replicas": r, "engine_arg": {"tensor_parallel_size": t}})
            for r, t in ((4, 1), (1, 4), (4, 4), (1, 1))]  # fmt: skip
    common = {"scenario": "Server"}
    judged = leave_out(four, common, 4)
    assert [layout.reason for layout in judged] == [
        None, None, "takes 16 devices, not 4", "takes 1 device, not 4",
    ]  # fmt: skip
    assert {point.layout.name for point in schedule(plan(*judged))} == {"4x1", "1x4"}
    assert all(layout.reason is None for layout in leave_out(four, common, None))


# -- what was found ---------------------------------------------------------------------------------------------------


def test_throughput_is_that_of_offline_and_latency_that_of_the_scenario() -> None:
    found = layouts.conclude(
        plan(A, B),
        [
            measured(A, ("Offline", made_up(100, 9.0)), ("Server", made_up(20, 0.1))),
            measured(B, ("Offline", made_up(200, 9.0)), ("Server", made_up(20, 0.3))),
        ],
    )
    assert [(row["tokens_per_second"], row["ttft_p99_s"]) for row in found.rows] == [
        pytest.approx((100, 0.1)), pytest.approx((200, 0.3)),
    ]  # fmt: skip
    assert [row["standing"] for row in found.rows] == ["front", "front"]
    assert found.headline == ("b has the highest throughput: 200.0 tokens/s; a has the lowest TTFT p99: 100.0 ms.")
    assert any("taken for noise" in note for note in found.notes)


def test_repeats_show_their_spread() -> None:
    runs = [("Server", made_up(rate, 0.1)) for rate in (90.0, 110.0)]
    asked = plan(A, tests={"Server": COMMON}, repeats=2)
    row = layouts.conclude(asked, [measured(A, *runs)]).rows[0]
    assert (row["tokens_per_second_low"], row["tokens_per_second_high"], row["runs"]) == (90.0, 110.0, 2)


def test_layouts_that_could_not_be_measured_are_rows_with_reasons_and_stand_nowhere() -> None:
    out = Variant("out", {}, "takes 8 devices, not 4")
    asked = plan(A, B, out, Variant("dead", {}), tests={"Server": COMMON})
    found = layouts.conclude(
        asked,
        [
            measured(A, ("Server", made_up())),
            measured(B, ("Server", made_up(900, 0.01, valid=False))),
            measured(out, trouble=out.reason),
            measured(Variant("dead", {}), trouble="no memory left."),
        ],
    )
    assert [row["standing"] for row in found.rows] == ["front", "not valid", "left out", "did not start"]
    assert [row["valid"] for row in found.rows] == [True, False, False, False]
    assert found.rows[1]["tokens_per_second"] == pytest.approx(900), "a run that missed its limits still has figures"
    assert found.extra["front"] == ["a"]
    text = as_text(found)
    for reason in ("b: 1 of 1 Server runs not valid: LoadGen says INVALID", "out: takes 8 devices", "dead: no memory"):
        assert reason in text


def test_a_run_that_was_not_valid_does_not_spoil_the_mean_of_those_that_were() -> None:
    runs = [("Server", made_up(100)), ("Server", made_up(1, valid=False))]
    row = layouts.conclude(plan(A, tests={"Server": COMMON}), [measured(A, *runs)]).rows[0]
    assert row["tokens_per_second"] == pytest.approx(100) and row["valid"]
    assert row["why"] == "1 of 2 Server runs not valid: LoadGen says INVALID"


def test_a_layout_that_fails_later_stands_by_what_it_has() -> None:
    own = measured(A, ("Server", made_up()), trouble="no memory left.")
    row = layouts.conclude(plan(A, tests={"Server": COMMON}, repeats=2), [own]).rows[0]
    assert (row["standing"], row["runs"], row["why"]) == ("front", 1, "no memory left.")


def test_none_measured_is_said_and_draws_nothing() -> None:
    found = layouts.conclude(plan(A), [measured(A, trouble="no such device.")])
    assert found.headline == "None of 1 layouts could be measured." and found.figure is None


def test_offline_alone_compares_throughput_alone() -> None:
    """Latency in plain Offline is the place in the queue; in a closed loop it means something."""
    common = {**COMMON, "scenario": "Offline"}
    asked = Plan([A], {"Offline": common}, "Offline", 1, 0.05)
    assert [aim.key for aim in layouts.aims_of(asked, [])] == ["tokens_per_second"]
    closed = Plan([A], {"Offline": {**common, "concurrency": 4}}, "Offline", 1, 0.05)
    own = measured(A, ("Offline", made_up()))
    assert [aim.key for aim in layouts.aims_of(closed, [own])] == ["tokens_per_second", "ttft_p99_s"]
