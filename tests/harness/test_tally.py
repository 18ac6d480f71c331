"""When a running Server test cannot be VALID any more."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest

from harness.tally import Tally
from sut.errors import BackendError
from sut.query import TOKEN_DTYPE, Outcome, Query

PROMPT = np.arange(4, dtype=TOKEN_DTYPE)


def query(age: float) -> Query:
    """A query that was issued so many seconds ago."""
    return Query(1, 0, PROMPT, True, 100, perf_counter() - age)


def answer(pace: float) -> Outcome:
    """Eleven tokens, each further one `pace` seconds after the one before it."""
    return Outcome(np.arange(11, dtype=TOKEN_DTYPE), "stop", first_token=100.0, last_byte=100.0 + 10 * pace)


@pytest.mark.parametrize(
    ("allowed", "late", "slow", "failed", "says"),
    [
        (0, 0, 0, 0, None),
        (2, 2, 2, 0, None),  # each limit has its own count
        (2, 3, 0, 0, "3 queries are over the limit on the first token, and 2 may be"),
        (2, 0, 3, 0, "3 queries are over the limit on the time per output token, and 2 may be"),
        (-1, 0, 0, 0, None),  # too short for any verdict but INVALID, which LoadGen shall say
        (-1, 1, 0, 0, "1 queries are over the limit on the first token, and 0 may be"),
        (5, 0, 0, 1, "1 queries have failed"),
    ],
)
def test_more_over_a_limit_than_may_be_is_hopeless(
    allowed: int, late: int, slow: int, failed: int, says: str | None
) -> None:
    tally = Tally(ttft=2.0, tpot=0.2, allowed=allowed)
    for age in [3.0] * late + [1.0] * 5:
        tally.first(query(age))
    tally.done([(query(0), answer(0.3))] * slow + [(query(0), answer(0.1))] * 5)
    tally.done([(query(0), Outcome(np.empty(0, TOKEN_DTYPE), failure=BackendError("no")))] * failed)
    assert tally.hopeless() == says
