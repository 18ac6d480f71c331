"""How many queries of a Server test may be over a limit; LoadGen's own figures stand in the tables."""

from __future__ import annotations

import pytest

from harness.early_stopping import allowed_over, needed


@pytest.mark.parametrize(
    ("over", "queries"),
    [(0, 459), (1, 662), (2, 838), (5, 1307), (10, 2010), (50, 6898)],  # as LoadGen 6.0.17 prints them
)
def test_the_fewest_queries_that_bear_so_many_over_the_limit(over: int, queries: int) -> None:
    assert needed(over) == queries
    assert allowed_over(queries) == over
    assert allowed_over(queries - 1) == over - 1


@pytest.mark.parametrize(
    ("queries", "over"),
    [(24_576, 209), (13_368, 107), (8_313, 62), (6_396, 45), (4_388, 28), (458, -1), (0, -1)],
)
def test_what_a_test_may_bear_is_slightly_below_one_percent(queries: int, over: int) -> None:
    assert allowed_over(queries) == over


def test_a_lower_percentile_bears_more() -> None:
    assert allowed_over(1000, 0.9) > 70 > allowed_over(1000, 0.97) > allowed_over(1000)
