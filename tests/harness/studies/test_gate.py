"""Gates: passed or broken only where it is sure, undecided with what would decide it, and odd texts refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.studies.change import Sampled, Scale
from harness.studies.gate import BROKEN, PASSED, UNDECIDED, Gate, judge, parse, refuse_odd_limit
from sut.errors import ConfigError

TIME, RATE, SCORE = Scale(-1), Scale(+1), Scale(+1, ratio=False, repeats=False)
FIVE = Gate("ttft_s.p99", 0.05, ratio=True)


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("ttft_s.p99:5%", Gate("ttft_s.p99", 0.05, True)),
        ("tokens_per_second:0%", Gate("tokens_per_second", 0.0, True)),
        ("rouge1:0.1", Gate("rouge1", 0.1, False)),
    ],
)
def test_a_gate_is_read_and_written(text: str, gate: Gate) -> None:
    assert parse(text) == gate
    assert gate.text == text


@pytest.mark.parametrize(
    "text", ["", ":", "ttft_s.p99", "ttft_s.p99:", ":5%", "a:b", "a:-1%", "a:nan", "a:inf", "a:%", "a:100%", "a:5%%"]
)
def test_what_is_no_gate_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"the gate .*\.$"):
        parse(text)


@pytest.mark.parametrize(("gate", "scale"), [(Gate("rouge1", 0.01, True), SCORE), (Gate("ttft_s.p50", 1, False), TIME)])
def test_a_limit_of_another_kind_is_refused(gate: Gate, scale: Scale) -> None:
    with pytest.raises(ConfigError, match="must be"):
        refuse_odd_limit(gate, scale)


@pytest.mark.parametrize(
    ("before", "now", "scale", "state"),
    [
        ([1.00, 1.01, 0.99], [1.01, 1.02, 1.00], TIME, PASSED),  # 1 % slower, surely less than 5
        ([1.00, 1.01, 0.99], [0.50, 0.51, 0.49], TIME, PASSED),  # far better
        ([1.00, 1.01, 0.99], [1.20, 1.21, 1.19], TIME, BROKEN),
        ([1.00, 1.01, 0.99], [0.80, 0.81, 0.79], RATE, BROKEN),  # of a rate, less is worse
        ([1.00, 1.01, 0.99], [1.20, 1.21, 1.19], RATE, PASSED),
        ([1.0, 1.1, 0.9], [1.06, 1.16, 0.96], TIME, UNDECIDED),  # lost in the noise
        ([1.00, 1.01, 0.99], [1.06, 1.07, 1.05], TIME, UNDECIDED),  # beyond, but not surely
        ([1.0], [9.0], TIME, UNDECIDED),  # one run each
    ],
)
def test_a_gate_is_decided_where_that_is_sure(before: list[float], now: list[float], scale: Scale, state: str) -> None:
    assert judge(FIVE, before, now, Sampled(0.001, 30), scale).state == state


def test_a_score_is_judged_in_points() -> None:
    gate = Gate("rouge1", 0.1, ratio=False)
    assert judge(gate, [88.0], [87.95], Sampled(0.01, 1000), SCORE).state == PASSED
    assert judge(gate, [88.0], [87.5], Sampled(0.01, 1000), SCORE).state == BROKEN


def test_what_is_undecided_says_how_many_repeats_would_decide() -> None:
    found = judge(FIVE, [1.00, 1.01, 0.99], [1.06, 1.07, 1.05], None, TIME)
    assert found.repeats is not None and 3 < found.repeats < 30
    assert found.low is not None and found.high is not None
    assert found.low < 0.05 < found.worsening < found.high
    assert judge(FIVE, [1.0, 1.1], [1.05, 1.155], None, TIME).repeats is None  # exactly at the limit: never


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5), st.floats(0, 0.5))
def test_a_release_never_breaks_a_gate_against_itself(values: list[float], error: float) -> None:
    assert judge(FIVE, values, values, Sampled(error, 30), TIME).state != BROKEN


def test_more_gates_are_harder_to_break_and_to_pass() -> None:
    before, now = [1.00, 1.01, 0.99], [1.10, 1.11, 1.09]
    assert judge(FIVE, before, now, None, TIME, gates=1).state == BROKEN
    assert judge(FIVE, before, now, None, TIME, gates=50).state == UNDECIDED
