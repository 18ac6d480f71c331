"""What repeats say of chance."""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
import pytest

from harness.studies.spread import Noise, paired_ratio, pooled, t_95


@pytest.mark.parametrize(("freedom", "known"), [(1, 12.706), (4, 2.776), (15, 2.131), (20, 2.086), (60, 2.000)])
def test_students_t_is_that_of_the_tables(freedom: int, known: float) -> None:
    assert t_95(freedom) == pytest.approx(known, rel=0.005)


def test_a_ratio_is_taken_round_by_round() -> None:
    """Both figures drift by a factor of 4 between the rounds, and their ratio does not: that is what pairing is for."""
    ratio = paired_ratio([50.0, 200.0, 100.0], [100.0, 400.0, 200.0])
    assert ratio is not None and ratio == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("rounds", [1, 2])
def test_too_few_rounds_have_no_interval(rounds: int) -> None:
    ratio = paired_ratio([50.0] * rounds, [100.0] * rounds)
    assert ratio is not None and ratio == (pytest.approx(0.5), None, None)


def test_rounds_without_both_figures_do_not_count() -> None:
    assert paired_ratio([50.0, None, 9.0], [100.0, 1.0, None]) == (0.5, None, None)
    assert paired_ratio([None], [1.0]) is None


def test_the_interval_of_a_ratio_holds_the_truth_19_times_in_20() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        before = np.exp(draw.normal(0, 0.1, 4))
        now = 0.8 * np.exp(draw.normal(0, 0.1, 4))
        ratio = paired_ratio(list(now), list(before))
        assert ratio is not None and ratio.low is not None and ratio.high is not None
        hits += ratio.low <= 0.8 <= ratio.high
    assert 0.935 <= hits / 2000 <= 0.965


def test_noise_is_pooled_over_groups_of_any_size() -> None:
    noise = pooled({"a": [1.0, exp(0.2)], "b": [100.0, 100.0 * exp(0.2)], "c": [7.0]}, assumed=0.5)
    assert noise.freedom == 2 and noise.deviation == pytest.approx(sqrt(2 * 0.02 / 2))
    assert noise.margin(2, 2) == pytest.approx(4.303 * noise.deviation, rel=1e-3)


def test_without_a_repeat_a_share_is_assumed() -> None:
    noise = pooled({"a": [1.0], "b": [2.0]}, assumed=0.05)
    assert noise == Noise(log(1.05), 0) and noise.margin(1, 1) == log(1.05)
