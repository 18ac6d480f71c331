"""What is wrong with an answer, a query in flight or a replica, decided by pure functions.

The SUT asks them: `judge` on every answer, `overdue` in one sweep over what is in flight, `may_retry` on a failure.
"""

from __future__ import annotations

from dataclasses import dataclass

from sut.dispatch import Replica
from sut.errors import (
    BadFinish,
    CutShort,
    FirstTokenLate,
    Miscounted,
    NoTokens,
    OneToken,
    QueryFailed,
    Stalled,
    TimedOut,
)
from sut.query import Outcome, Query

SWEEP_INTERVAL = 0.25
"""Seconds between two sweeps: how late a deadline or an idle replica's death may be noticed."""


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt at a query, from its hand-over to a backend until its end.

    Times as in Outcome; `tokens` are those reported so far.
    """

    query: Query
    replica: Replica
    sent: float
    attempt: int = 1
    first_token: float = 0.0
    first_id: int = -1
    latest: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds; None is no deadline. `stall` bounds the time in which nothing at all moves.

    With `each` it also bounds the time between two frames of one answer; that needs a backend that sends frames.
    """

    first_token: float | None = None
    stall: float | None = 300.0
    request: float | None = None
    each: bool = True


def judge(flight: Flight, outcome: Outcome) -> QueryFailed | None:
    """Why this outcome is no right answer, or None. Success is only what the replica said."""
    if outcome.failure is not None:
        return outcome.failure
    if outcome.finish_reason is None:
        return BadFinish("the answer ended without a finish reason")
    if outcome.finish_reason not in ("stop", "length"):
        return BadFinish(f"the answer ended with the finish reason {outcome.finish_reason!r}")
    most = flight.query.max_tokens
    if outcome.count > most:
        return Miscounted(f"the answer has {outcome.count} tokens, and at most {most} were asked for")
    if outcome.count == 0:
        return NoTokens("the answer has no token")
    if outcome.count == 1:
        return OneToken("the answer has one token, which LoadGen counts as an error")
    if outcome.finish_reason == "length" and outcome.count < most:
        return CutShort(f"the answer was cut off after {outcome.count} tokens, and {most} were asked for")
    if flight.query.stream and outcome.text is None and flight.first_id != outcome.tokens[0]:
        return Miscounted("the answer does not begin with the first token that was reported")
    return None


def overdue(flight: Flight, now: float, deadlines: Deadlines) -> QueryFailed | None:
    """The deadline that a query in flight has missed, or None."""
    waited = now - flight.sent
    if deadlines.request is not None and waited > deadlines.request:
        return TimedOut(f"no complete answer within {deadlines.request:g} s")
    if not flight.query.stream:
        return None
    if not flight.first_token:
        if deadlines.first_token is not None and waited > deadlines.first_token:
            return FirstTokenLate(f"no first token within {deadlines.first_token:g} s")
    elif deadlines.each and deadlines.stall is not None and now - flight.latest > deadlines.stall:
        return Stalled(f"no further token for {deadlines.stall:g} s")
    return None


def may_retry(flight: Flight, failure: QueryFailed) -> bool:
    """Whether a resilient SUT serves the query again: nothing of an answer was seen, another replica may do better."""
    return failure.elsewhere and not flight.first_token
