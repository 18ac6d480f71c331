"""LoadGen's Server schedule, computed beforehand: the same as LoadGen's own, to the microsecond."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from harness.schedule import count_queries, unit_schedule
from tests.harness.conftest import Done

PASS = 64
RATES = {"a count decides": (700.0, 0.2, 500), "the duration decides": (900.0, 1.0, 64), "both": (450.0, 1.1, 480)}


def test_the_schedule_and_its_length_are_loadgens(
    many: Callable[[Mapping[Any, Sequence[str]]], dict[Any, Done]],
) -> None:
    runs = {
        name: (
            f"--scenario Server --backend echo --samples {PASS} --target-qps {rate} --min-duration {seconds} "
            f"--min-queries {queries}"
        ).split()
        for name, (rate, seconds, queries) in RATES.items()
    }
    for name, done in many(runs).items():
        rate, seconds, queries = RATES[name]
        schedule = unit_schedule(done.logged["effective_schedule_rng_seed"], 10_000)
        issued = count_queries(schedule, rate, seconds, queries, PASS)
        assert issued == done.logged["generated_query_count"], name
        assert schedule[issued] / rate == pytest.approx(done.logged["generated_query_duration"] / 1e9, abs=1e-5), name


def test_gaps_are_exponential_and_the_first_query_is_at_once() -> None:
    schedule = unit_schedule(7, 100_000)
    gaps = np.diff(schedule)
    assert schedule[0] == 0
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1, abs=0.02)
    assert (gaps > 1).mean() == pytest.approx(np.exp(-1), abs=0.01)


def test_a_seed_of_64_bits_counts_as_its_lower_half() -> None:
    assert (unit_schedule(2**40 + 5, 50) == unit_schedule(5, 50)).all()
