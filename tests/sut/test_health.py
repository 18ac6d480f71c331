"""Tables of what is right, late or worth a second attempt."""

from __future__ import annotations

import pytest

from sut.dispatch import Replica
from sut.errors import (
    Abandoned,
    BackendError,
    BadFinish,
    Busy,
    CutShort,
    Disconnected,
    ErrorFrame,
    FirstTokenLate,
    Malformed,
    Miscounted,
    NoTokens,
    OneToken,
    QueryFailed,
    Rejected,
    ReplicaDied,
    ServerError,
    Stalled,
    TimedOut,
    Unreachable,
)
from sut.health import Deadlines, Flight, judge, may_retry, overdue
from sut.query import NO_TOKENS, Outcome, Query, as_tokens

REPLICA = Replica("a", None)


def flight(stream: bool = True, **facts: float) -> Flight:
    """An attempt sent at second 0."""
    return Flight(Query(1, 0, NO_TOKENS, stream, 8, 0.0), REPLICA, 0.0, **facts)


@pytest.mark.parametrize(
    ("stream", "first_id", "ids", "reason", "verdict"),
    [
        # right answers
        (True, 5, [5, 6], "stop", None),
        (True, 5, [5, 6, 7, 8, 9, 9, 9, 9], "length", None),
        (False, -1, [5, 6], "stop", None),  # not streamed: no first token to compare with
        (True, 0, [0, 6], "stop", None),  # token id 0 is a token like any other
        # the replica did not say that the answer is complete
        (True, 5, [5, 6], "abort", BadFinish),
        (True, 5, [5, 6], "tool_calls", BadFinish),
        (True, 5, [5, 6], None, BadFinish),
        (False, -1, [], None, BadFinish),  # cut off before anything came: the missing reason is the reason
        # complete, but no answer that LoadGen can count
        (True, -1, [], "stop", NoTokens),
        (False, -1, [], "length", NoTokens),
        (True, 5, [5], "stop", OneToken),
        (False, -1, [5], "length", OneToken),
        # not the length that was asked for: 8
        (True, 5, [5, 6, 7], "length", CutShort),
        (True, 5, [5, 6, 7, 8, 9, 9, 9, 9, 9], "stop", Miscounted),
        # the first token and the answer disagree
        (True, 7, [5, 6], "stop", Miscounted),
        (True, -1, [5, 6], "stop", Miscounted),  # streamed, and no first token was ever reported
    ],
)
def test_judge(stream, first_id, ids, reason, verdict):
    failure = judge(flight(stream, first_id=first_id), Outcome(as_tokens(ids), reason))
    assert type(failure) is (verdict or type(None))


def test_judge_leaves_a_failure_that_the_backend_reports_as_it_is():
    said = Rejected("too long")
    assert judge(flight(), Outcome(as_tokens([5, 6]), "stop", said)) is said


ALL = Deadlines(first_token=2.0, stall=5.0, request=60.0)


@pytest.mark.parametrize(
    ("stream", "first_token", "latest", "now", "deadlines", "verdict"),
    [
        # streamed, nothing yet
        (True, 0.0, 0.0, 2.0, ALL, None),  # on the deadline is in time
        (True, 0.0, 0.0, 2.1, ALL, FirstTokenLate),
        (True, 0.0, 0.0, 59.0, Deadlines(None, 5.0, 60.0), None),  # the stall limit counts after the first token only
        # streamed, begun
        (True, 1.0, 6.0, 11.0, ALL, None),
        (True, 1.0, 6.0, 11.1, ALL, Stalled),
        (True, 1.0, 50.0, 54.0, ALL, None),
        (True, 1.0, 6.0, 59.0, Deadlines(2.0, None, 60.0), None),
        # the whole request comes first
        (True, 1.0, 6.0, 60.1, ALL, TimedOut),
        (True, 0.0, 0.0, 60.1, ALL, TimedOut),
        # not streamed: nothing shows before the end, so only the whole request counts
        (False, 0.0, 0.0, 59.0, ALL, None),
        (False, 0.0, 0.0, 60.1, ALL, TimedOut),
        # no deadline at all
        (True, 0.0, 0.0, 1e6, Deadlines(None, None, None), None),
        (False, 0.0, 0.0, 1e6, Deadlines(), None),
    ],
)
def test_overdue(stream, first_token, latest, now, deadlines, verdict):
    failure = overdue(flight(stream, first_token=first_token, latest=latest), now, deadlines)
    assert type(failure) is (verdict or type(None))


def test_a_missed_deadline_says_which():
    assert str(overdue(flight(), 3.0, ALL)) == "no first token within 2 s"


@pytest.mark.parametrize(
    ("failure", "again"),
    [
        # another replica may do better
        (ReplicaDied, True),
        (BackendError, True),
        (FirstTokenLate, True),
        (TimedOut, True),
        (Busy, True),
        (ServerError, True),
        (Unreachable, True),
        (Disconnected, True),
        (Malformed, True),
        (ErrorFrame, True),
        # the answer itself is wrong, and a second one would only hide that
        (BadFinish, False),
        (CutShort, False),
        (NoTokens, False),
        (OneToken, False),
        (Miscounted, False),
        # any replica would refuse it
        (Rejected, False),
        # a stream that has begun is never taken up elsewhere
        (Stalled, False),
        # nobody wants it any more
        (Abandoned, False),
    ],
)
def test_may_retry_by_kind(failure, again):
    assert may_retry(flight(), failure("why")) is again


def test_the_table_of_retries_knows_every_kind():
    marks = [mark for mark in test_may_retry_by_kind.pytestmark if mark.name == "parametrize"]
    assert {row[0] for row in marks[0].args[1]} == set(QueryFailed.__subclasses__())


def test_a_stream_that_has_begun_is_not_served_again():
    """LoadGen has its first token: it cannot be taken back."""
    assert not may_retry(flight(first_token=1.0), ReplicaDied("gone"))
    assert may_retry(flight(attempt=2), ReplicaDied("gone")), "how often is not for this table, but for the SUT"
