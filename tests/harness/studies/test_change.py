"""The statistics of a change: Student's t against published tables, and what must hold of every verdict."""

from __future__ import annotations

from math import inf, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.studies.change import (
    BETTER,
    CANNOT_TELL,
    SAME,
    WORSE,
    Noise,
    Sampled,
    Scale,
    compare,
    effect_size,
    repeats_needed,
    run_noise,
    t_quantile,
    t_tail,
)

TIME, RATE, SCORE = Scale(-1), Scale(+1), Scale(+1, ratio=False, repeats=False)
NONE = Sampled(0.0, 30)

figures = st.lists(st.floats(0.01, 1000), min_size=1, max_size=6)
errors = st.one_of(st.none(), st.builds(Sampled, st.floats(0, 0.5), st.integers(2, 30)))


@pytest.mark.parametrize(
    ("share", "freedom", "table"),
    [
        (0.975, 1, 12.7062),
        (0.995, 1, 63.6567),
        (0.99, 2, 6.9646),
        (0.975, 4, 2.7764),
        (0.9995, 8, 5.0413),
        (0.95, 30, 1.6973),
        (0.999, 200, 3.1315),
        (0.975, 1e6, 1.9600),
    ],
)
def test_student_s_t_is_the_one_of_the_tables(share: float, freedom: float, table: float) -> None:
    assert t_quantile(share, freedom) == pytest.approx(table, abs=1e-4)


@given(st.floats(0.6, 0.99999), st.floats(1, 500))
@settings(deadline=None, max_examples=60)
def test_the_quantile_undoes_the_tail(share: float, freedom: float) -> None:
    assert t_tail(t_quantile(share, freedom), freedom) == pytest.approx(1 - share, rel=1e-6)


@given(figures, figures, errors, st.sampled_from([TIME, RATE]), st.floats(0.001, 0.2))
@settings(deadline=None)
def test_releases_swapped_mirror_the_verdict(
    a: list[float], b: list[float], sampled: Sampled | None, scale: Scale, margin: float
) -> None:
    there, back = compare(a, b, sampled, scale, margin), compare(b, a, sampled, scale, margin)
    assert back.verdict == {WORSE: BETTER, BETTER: WORSE}.get(there.verdict, there.verdict)
    assert log(1 + back.change) == pytest.approx(-log(1 + there.change), abs=1e-9)
    assert back.repeats == there.repeats


@given(figures, figures, errors, st.floats(0.001, 1000))
@settings(deadline=None)
def test_another_unit_changes_nothing(a: list[float], b: list[float], sampled: Sampled | None, unit: float) -> None:
    plain = compare(a, b, sampled, TIME, 0.02)
    scaled = compare([unit * value for value in a], [unit * value for value in b], sampled, TIME, 0.02)
    assert scaled.change == pytest.approx(plain.change, rel=1e-6, abs=1e-9)
    # Rounding may move a bound that lies exactly on an edge.
    edges = (0, 0.02, 1 / 1.02 - 1)
    near = any(abs(bound - edge) < 1e-9 for bound in (plain.low, plain.high) if bound is not None for edge in edges)
    assert scaled.verdict == plain.verdict or near


@given(figures, errors, st.sampled_from([TIME, RATE, SCORE]))
@settings(deadline=None)
def test_a_release_is_never_better_or_worse_than_itself(a: list[float], sampled: Sampled | None, scale: Scale) -> None:
    assert compare(a, a, sampled, scale, 0.02).verdict in (SAME, CANNOT_TELL)


@given(figures, figures, st.floats(0, 0.3), st.floats(1, 3))
@settings(deadline=None)
def test_more_noise_never_makes_a_verdict_surer(a: list[float], b: list[float], error: float, more: float) -> None:
    calm = compare(a, b, Sampled(error, 30), TIME, 0.02)
    loud = compare(a, b, Sampled(error * more, 30), TIME, 0.02)
    assert loud.verdict in (calm.verdict, CANNOT_TELL)


@pytest.mark.parametrize(
    ("before", "now", "scale", "verdict"),
    [
        ([1.00, 1.01, 0.99], [1.20, 1.21, 1.19], TIME, WORSE),  # a time that has grown
        ([1.00, 1.01, 0.99], [1.20, 1.21, 1.19], RATE, BETTER),  # a rate that has
        ([1.000, 1.001, 0.999], [1.002, 1.003, 1.001], TIME, SAME),  # surely less than 2 %, although surely not nothing
        ([1.0, 1.1, 0.9], [1.05, 1.15, 0.95], TIME, CANNOT_TELL),  # lost in the noise
        ([1.0, 1.0, 1.0], [1.5, 1.5, 1.5], TIME, WORSE),  # a simulator that repeats itself
        ([1.0], [9.0], TIME, CANNOT_TELL),  # one run each: nobody knows how much runs differ
        ([88.0], [80.0], SCORE, WORSE),  # a score's noise is in its samples
        ([1.00, 1.01, 0.99, 1.0], [1.3], TIME, WORSE),  # a single run against a known noise
    ],
)
def test_a_verdict_says_what_is_sure(before: list[float], now: list[float], scale: Scale, verdict: str) -> None:
    assert compare(before, now, Sampled(0.001, 30), scale, 0.02).verdict == verdict


def test_one_run_each_says_why_and_what_of() -> None:
    found = compare([1.0], [1.3], Sampled(0.01, 30), TIME, 0.02)
    assert "one run each" in found.why
    assert found.low is not None and found.low < 0.3
    assert (found.visible, found.effect, found.repeats) == (None, None, None)


def test_nothing_known_gives_no_interval() -> None:
    found = compare([1.0], [1.3], None, TIME, 0.02)
    assert (found.low, found.high, found.verdict) == (None, None, CANNOT_TELL)


def test_the_wider_of_runs_and_samples_holds() -> None:
    """Repeats that agree by chance do not make a change certain."""
    runs = compare([1.0, 1.0001], [1.05, 1.0501], NONE, TIME, 0.02)
    samples = compare([1.0, 1.0001], [1.05, 1.0501], Sampled(0.05, 30), TIME, 0.02)
    assert (runs.verdict, samples.verdict) == (WORSE, CANNOT_TELL)


def test_the_noise_of_runs_is_welch_s() -> None:
    """The example of Student's t with unequal variances, by the formulas of Welch (1947)."""
    a, b = [27.5, 21.0, 19.0, 23.6, 17.0], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8]
    va, vb = np.var(a, ddof=1) / 5, np.var(b, ddof=1) / 7
    noise = run_noise(a, b)
    assert noise is not None
    assert noise.error == pytest.approx(sqrt(va + vb))
    assert noise.freedom == pytest.approx((va + vb) ** 2 / (va**2 / 4 + vb**2 / 6))


def test_a_single_run_borrows_the_others_noise() -> None:
    noise = run_noise([1.0, 2.0, 3.0], [5.0])
    assert noise == Noise(pytest.approx(sqrt(1 / 3 + 1)), 2)
    assert run_noise([1.0], [2.0]) is None


def test_effect_size_is_hedges_g() -> None:
    # J(4) = Γ(2) / (√2·Γ(1.5)), about 0.798
    assert effect_size([1, 2, 3], [2, 3, 4]) == pytest.approx(0.79788, abs=1e-4)
    assert effect_size([1, 1], [2, 2]) is None
    assert effect_size([1], [2]) is None


def test_the_repeats_asked_for_decide() -> None:
    """With as many repeats of the same noise, the interval is below the room; with one less it is not."""
    a, b = [0.0, 0.02, -0.02], [0.01, 0.03, -0.01]
    count = repeats_needed(a, b, None, 0.01, 0.05)
    assert count is not None
    halves = [Noise(0.02 * sqrt(2 / number), 2 * number - 2).half(0.05) for number in (count - 1, count)]
    assert halves[0] >= 0.01 > halves[1]
    assert repeats_needed(a, b, None, 1e-6, 0.05) is None
    assert repeats_needed([0.0], [1.0], None, 1.0, 0.05) is None


def test_a_visible_change_is_found_nine_times_in_ten() -> None:
    chance = np.random.default_rng(3)
    found, told = 0, []
    for _ in range(400):
        a = np.exp(chance.normal(0, 0.02, 5)).tolist()
        told.append(compare(a, np.exp(chance.normal(0, 0.02, 5)).tolist(), None, TIME, 0.001).visible)
    change = log(1 + float(np.median([value for value in told if value is not None])))
    for _ in range(400):
        a, b = (np.exp(chance.normal(shift, 0.02, 5)).tolist() for shift in (0, change))
        found += compare(a, b, None, TIME, 0.001).verdict == WORSE
    assert 0.85 <= found / 400 <= 0.95


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Also where one release is three times as noisy as the other, and has fewer runs."""
    chance = np.random.default_rng(4)
    missed = 0
    for _ in range(1000):
        a, b = np.exp(chance.normal(0, 0.01, 5)).tolist(), np.exp(chance.normal(0, 0.03, 3)).tolist()
        found = compare(a, b, None, TIME, 0.02)
        assert found.low is not None and found.high is not None
        missed += not found.low <= 0 <= found.high
    assert missed / 1000 <= 0.07


def test_an_endless_change_is_told_and_does_not_overflow() -> None:
    assert compare([1e-300, 1e-300], [1e300, 1.1e300], None, TIME, 0.02).change == inf
