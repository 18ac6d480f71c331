"""LoadGen's verdict on a Server test, from the latencies of its queries: how many may be over a limit.

LoadGen asks more than that the 99th percentile meets its limit: with t queries over the limit the test must have so
many that a system that meets the percentile only just would do as well in at most 1 % of all tests
(loadgen/early_stopping.cc, called with confidence 0.99 and tolerance 0; results.cc, EarlyStopping).
"""

from __future__ import annotations

from functools import cache
from math import exp, lgamma, log, log1p

CONFIDENCE = 0.99


def allowed_over(queries: int, percentile: float = 0.99) -> int:
    """How many of so many queries may be over a limit; -1 if the test is too short for any verdict but INVALID."""
    low, high = -1, int(queries * (1 - percentile))  # more than that and the percentile itself is missed
    while low < high:
        middle = (low + high + 1) // 2
        if needed(middle, percentile) <= queries:
            low = middle
        else:
            high = middle - 1
    return low


@cache
def needed(over: int, percentile: float = 0.99) -> int:
    """The fewest queries of a test that is VALID with so many over a limit."""
    low, high = over, max(1024, over)
    while not _convinces(over, high, percentile):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _convinces(over, middle, percentile) else (middle, high)
    return high


def _convinces(over: int, queries: int, percentile: float) -> bool:
    """Whether at most `over` of so many would be over the limit in less than 1 % of all tests at the percentile."""
    if queries <= over:
        return False
    yes, no = log1p(-percentile), log(percentile)
    total = 0.0
    for count in range(over, -1, -1):  # the largest terms first
        ways = lgamma(queries + 1) - lgamma(count + 1) - lgamma(queries - count + 1)
        term = exp(ways + count * yes + (queries - count) * no)
        total += term
        if total >= 1 - CONFIDENCE:
            return False
        if term < 1e-12 * total:
            break
    return True
