"""The SUT on simulated and scripted replicas: every query is answered once, whatever the replicas do."""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sut.backend import Backend, Sink
from sut.backends.echo import FAULTS, Echo, EchoOptions
from sut.dispatch import POLICIES, Replica
from sut.errors import BackendError, ReplicaDied, SetupError
from sut.health import Deadlines
from sut.query import Outcome, Query, Tokens, as_tokens
from sut.sut import SUT
from sut.work import Work

PATIENCE = 10.0
"""Seconds after which a test has hung."""


@pytest.fixture(autouse=True, scope="module")
def quick_sweeps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sut.sut.SWEEP_INTERVAL", 0.02)
        yield


# -- doubles ----------------------------------------------------------------------------------------------------------


class Recorder:
    """A responder that writes down what it hears, in order, and on which thread."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []
        self.first_ids: dict[int, list[int]] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.threads: set[str] = set()
        self._ends = 0
        self._changed = threading.Condition()

    def first(self, query: Query, ids: Tokens) -> None:
        self.threads.add(threading.current_thread().name)
        self.heard.append(("first", query.id))
        self.first_ids[query.id] = ids.tolist()

    def close(self) -> None:
        self.heard.append(("close", 0))

    def done(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        self.threads.add(threading.current_thread().name)
        with self._changed:
            for query, outcome in finished:
                self.heard.append(("done", query.id))
                self.outcomes[query.id] = outcome
                self._ends += 1
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        """Until so many queries have ended; a test that hangs fails here."""
        with self._changed:
            came = self._changed.wait_for(lambda: self._ends >= number, PATIENCE)
        assert came, f"{self._ends} of {number} queries were answered"

    def kinds(self) -> Counter[str]:
        return Counter(o.failure.kind for o in self.outcomes.values() if o.failure is not None)


class Scripted:
    """A replica that holds what it is given until told to finish it; `act`, if any, is called on each submit."""

    drains = False

    def __init__(self, capacity: int = 4, act: Callable[[Scripted], None] | None = None) -> None:
        self.capacity = capacity
        self.given: list[int] = []
        self.held: dict[int, tuple[Query, Sink]] = {}
        self.most = 0
        self.reason: str | None = None
        self.came = threading.Semaphore(0)
        self._asked = threading.Semaphore(0)
        self._act = act

    async def start(self) -> None:
        pass

    async def prepare(self, prompts: Sequence[Tokens]) -> None:
        pass

    async def stop(self) -> None:
        pass

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        for query in queries:
            self.given.append(query.id)
            self.held[query.id] = query, sink
        self.most = max(self.most, len(self.held))
        self.came.release()
        if self._act is not None:
            self._act(self)

    def cancel(self, query: Query) -> None:
        self.held.pop(query.id, None)

    def trouble(self) -> str | None:
        self._asked.release()
        return self.reason

    def say(self, reason: str | None) -> None:
        """Be in this trouble from now on; returns when the SUT has noticed."""
        self.reason = reason
        while self._asked.acquire(blocking=False):
            pass
        for _ in range(2):  # asked a second time, the first answer has been acted on
            assert self._asked.acquire(timeout=PATIENCE)

    def finish(self, key: int) -> None:
        query, sink = self.held.pop(key)
        sink.done(query, Outcome(as_tokens([5, 6, 7]), "stop"))

    def fail_all(self, failure: type[BackendError | ReplicaDied]) -> None:
        for query, sink in list(self.held.values()):
            if self.held.pop(query.id, None):
                sink.done(query, Outcome(as_tokens([]), failure=failure("as the script says")))


def echo(index: int = 0, **options) -> Echo:
    return Echo(index, EchoOptions(**{"tokens": "4", **options}))


def prompt(index: int) -> Tokens:
    return as_tokens(range(100 + index, 120 + index))


class Bench:
    """A SUT that is up, bound to a test, and its responder."""

    def __init__(
        self, sut: SUT, stream: bool, prompt: Callable[[int], Tokens], concurrency: int | None, gaps: bool
    ) -> None:
        self.sut = sut
        self.stream = stream
        self.prompt = prompt
        self.concurrency = concurrency
        self.gaps = array("d") if gaps else None
        self.begin()

    def begin(self) -> None:
        self.responder = Recorder()
        self.work = Work(self.prompt, self.stream, 8, self.responder, {}, self.concurrency, self.gaps)
        self.sut.begin(self.work)

    def issue(self, *ids: int) -> None:
        """Query n asks for sample 10 n."""
        self.sut.issue(list(ids), [10 * i for i in ids])

    def serve(self, number: int, batch: int | None = None) -> Recorder:
        """Issue queries 1 … number and wait for their ends."""
        for start in range(1, number + 1, batch or number):
            self.issue(*range(start, min(start + (batch or number), number + 1)))
        self.responder.wait(number)
        return self.responder

    def on_loop(self, action: Callable[[], object] = lambda: None) -> None:
        """Do this on the SUT's loop, after all that has been issued and before what follows from it."""

        async def act() -> None:
            action()

        self.sut.run(act())

    def settle(self) -> None:
        """Until what has been said so far has had its consequences (they come a tick of the loop later)."""
        for _ in range(3):
            self.on_loop()


@contextmanager
def bench(
    *backends: Backend,
    dispatch: str = "round-robin",
    stream: bool = True,
    cap: int | None = None,
    deadlines: Deadlines | None = None,
    resilient: bool = False,
    prompt: Callable[[int], Tokens] = prompt,
    concurrency: int | None = None,
    gaps: bool = False,
) -> Iterator[Bench]:
    replicas = [Replica(name, backend, cap) for name, backend in zip("abcdef", backends, strict=False)]
    sut = SUT(replicas, dispatch, deadlines or Deadlines(stall=5.0), resilient)
    sut.open()
    try:
        yield Bench(sut, stream, prompt, concurrency, gaps)
    finally:
        sut.close()


class Gauge:
    """How many queries are at work on all replicas together, and how many were at most."""

    def __init__(self) -> None:
        self.now: set[int] = set()
        self.most = 0


class Metered(Echo):
    """An echo replica whose queries a gauge counts from their submit to their end."""

    def __init__(self, index: int, options: EchoOptions, gauge: Gauge) -> None:
        super().__init__(index, options)
        self._gauge = gauge

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        self._gauge.now.update(query.id for query in queries)
        self._gauge.most = max(self._gauge.most, len(self._gauge.now))
        super().submit(queries, MeteredSink(self._gauge, sink))

    def cancel(self, query: Query) -> None:
        self._gauge.now.discard(query.id)
        super().cancel(query)


class MeteredSink:
    def __init__(self, gauge: Gauge, sink: Sink) -> None:
        self._gauge = gauge
        self._sink = sink
        self.first, self.progress = sink.first, sink.progress

    def done(self, query: Query, outcome: Outcome) -> None:
        self._gauge.now.discard(query.id)
        self._sink.done(query, outcome)


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatch", POLICIES)
def test_every_query_is_answered_with_its_own_answer(dispatch):
    with bench(echo(0, tpot=0.001), echo(1), dispatch=dispatch) as it:
        responder = it.serve(40, batch=7)
    for key in range(1, 41):
        outcome = responder.outcomes[key]
        assert outcome.failure is None
        assert outcome.tokens.tolist() == [*prompt(10 * key)[:3].tolist(), 2]
        assert responder.first_ids[key] == outcome.tokens[:1].tolist()
        assert outcome.tokens.dtype == np.int32
        assert (outcome.finish_reason, outcome.attempts) == ("stop", 1)
        assert outcome.sent <= outcome.first_token <= outcome.last_byte
    assert Counter(o.replica for o in responder.outcomes.values()).keys() == {"a", "b"}


def test_a_first_token_comes_once_and_before_the_end():
    with bench(echo(ttft=0.005, tpot=0.001)) as it:
        responder = it.serve(30, batch=10)
    assert Counter(responder.heard) == {(what, key): 1 for what in ("first", "done") for key in range(1, 31)}
    for key in range(1, 31):
        assert responder.heard.index(("first", key)) < responder.heard.index(("done", key))


def test_without_a_stream_there_is_no_first_token():
    with bench(echo(ttft=0.005, tpot=0.001), stream=False) as it:
        responder = it.serve(10)
    assert {what for what, _ in responder.heard} == {"done"}
    assert responder.kinds() == {}


def test_all_that_the_responder_hears_comes_from_one_thread():
    with bench(echo(0, tpot=0.001, fault="die"), echo(1, tpot=0.001), cap=2) as it:
        it.serve(40, batch=5)
        it.sut.abandon("over")
        it.issue(41)
        it.responder.wait(41)
    assert len(it.responder.threads) == 1, "from two threads LoadGen misorders a first token and its completion"
    assert threading.current_thread().name not in it.responder.threads


def test_the_books_add_up():
    with bench(echo(0, fault="error", fault_every=4), echo(1, fault="error", fault_every=5)) as it:
        it.serve(40)
        counts, books = it.sut.counts(), [replica.books for replica in it.sut.replicas]
    assert [(b.queries, b.failures, b.tokens) for b in books] == [(15, 5, 60), (16, 4, 64)]
    assert (counts.issued, counts.completed, counts.failed, counts.tokens, counts.in_flight) == (40, 40, 9, 124, 0)
    assert it.work.first_failure == "sample 70 on replica a: a scripted fault", "a's fourth query, the seventh of all"


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_known_is_answered_and_nobody_is_asked(stream):
    with bench(echo(tpot=0.001), stream=stream) as it:
        it.work.known = {10 * key: prompt(key) for key in (1, 2, 5)}
        responder = it.serve(6)
        counts = it.sut.counts()
    assert {key for key, outcome in responder.outcomes.items() if outcome.attempts == 0} == {1, 2, 5}
    for key in (1, 2, 5):
        assert responder.outcomes[key].tokens.tolist() == prompt(key).tolist()
        assert responder.outcomes[key].replica == "" and responder.outcomes[key].failure is None
    firsts = [key for what, key in responder.heard if what == "first"]
    assert sorted(firsts) == ([1, 2, 3, 4, 5, 6] if stream else [])
    assert it.sut.replicas[0].books.queries == 3
    assert (counts.issued, counts.completed) == (6, 6)


def test_one_sut_serves_one_test_after_the_other():
    with bench(echo(tpot=0.001)) as it:
        first = it.serve(5)
        it.begin()
        second = it.serve(7)
    assert (len(first.outcomes), len(second.outcomes)) == (5, 7)
    assert it.sut.replicas[0].books.queries == 7, "the books are those of the test"


# -- who serves -------------------------------------------------------------------------------------------------------


def test_pulling_replicas_share_by_speed():
    fast, slow = (echo(index, slots=1, ttft=0.004, tpot=0.001, slowdown=3.0) for index in range(2))
    with bench(fast, slow, dispatch="pull", stream=False) as it:
        it.serve(80)
        shares = [replica.books.queries for replica in it.sut.replicas]
    assert sum(shares) == 80
    assert 1.8 < shares[0] / shares[1] < 5, "one is three times as fast as the other"


def test_round_robin_shares_by_count_whatever_the_speed():
    fast, slow = (echo(index, slots=4, ttft=0.002, tpot=0.001, slowdown=4.0) for index in range(2))
    with bench(fast, slow) as it:
        it.serve(21)
        assert [replica.books.queries for replica in it.sut.replicas] == [11, 10]


def test_a_pulling_replica_takes_queries_in_the_order_issued_up_to_its_capacity():
    replica = Scripted(capacity=3)
    with bench(replica, dispatch="pull", stream=False) as it:
        it.issue(1, 2, 3, 4)
        it.issue(5, 6, 7, 8)
        it.settle()
        assert replica.given == [1, 2, 3]
        it.on_loop(lambda: (replica.finish(2), replica.finish(1)))
        it.settle()
        assert replica.given == [1, 2, 3, 4, 5]
        for key in range(3, 9):
            it.on_loop(lambda key=key: replica.finish(key))
            it.settle()
        it.responder.wait(8)
    assert replica.given == [1, 2, 3, 4, 5, 6, 7, 8]
    assert replica.most == 3


@pytest.mark.parametrize("dispatch", POLICIES)
def test_no_more_than_the_cap_is_in_flight_on_a_replica(dispatch):
    one, other = Scripted(), Scripted()
    with bench(one, other, dispatch=dispatch, cap=2, stream=False) as it:
        it.issue(*range(1, 10))
        it.settle()
        assert it.sut.counts().in_flight == 4
        while one.held or other.held:
            for replica in (one, other):
                it.on_loop(lambda replica=replica: replica.held and replica.finish(min(replica.held)))
            it.settle()
        it.responder.wait(9)
    assert (one.most, other.most) == (2, 2)
    assert it.responder.kinds() == {}


def test_a_query_that_waits_for_its_replica_is_not_overtaken():
    replica = Scripted()
    with bench(replica, cap=1, stream=False) as it:
        it.issue(1, 2)
        it.settle()

        def finish_as_another_comes() -> None:
            it.issue(3)  # is taken before the room that query 1 leaves has been given away
            replica.finish(1)

        it.on_loop(finish_as_another_comes)
        it.settle()
        assert replica.given == [1, 2]
        it.on_loop(lambda: replica.finish(replica.given[-1]))
        it.settle()
        it.on_loop(lambda: replica.finish(replica.given[-1]))
        it.responder.wait(3)


# -- closed loops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatch", POLICIES)
def test_in_a_closed_loop_the_next_query_leaves_as_one_ends(dispatch):
    one, other = Scripted(capacity=1), Scripted(capacity=1)
    with bench(one, other, dispatch=dispatch, concurrency=5, stream=False) as it:
        it.issue(*range(1, 21))
        it.settle()
        for ended in range(15):
            assert sorted([*one.held, *other.held])[-1] == 5 + ended, "in the order issued"
            assert len(one.held) + len(other.held) == 5, "five are in flight as long as others wait"
            replica = max((one, other), key=lambda some: len(some.held))
            it.on_loop(lambda replica=replica: replica.finish(min(replica.held)))
            it.settle()
        it.on_loop(lambda: [some.finish(key) for some in (one, other) for key in list(some.held)])
        it.responder.wait(20)
    assert it.responder.kinds() == {}


def test_a_closed_loop_is_over_with_its_test():
    replica = Scripted()
    with bench(replica, concurrency=2) as it:
        it.issue(1, 2, 3)
        it.settle()
        assert replica.given == [1, 2]
        it.sut.abandon("interrupted.")
        it.concurrency = None
        it.begin()
        it.issue(4, 5, 6)
        it.settle()
        assert replica.given == [1, 2, 4, 5, 6]
        it.on_loop(lambda: [replica.finish(key) for key in (4, 5, 6)])
        it.responder.wait(3)


def test_a_query_is_released_when_its_place_comes_free_and_only_in_a_closed_loop():
    replica = Scripted()
    with bench(replica, concurrency=1) as it:
        it.issue(1, 2)
        it.settle()
        (first, _), now = replica.held[1], time.perf_counter()
        it.on_loop(lambda: replica.finish(1))
        it.settle()
        (second, _) = replica.held[2]
        it.on_loop(lambda: replica.finish(2))
        it.responder.wait(2)
        it.concurrency = None
        it.begin()
        it.issue(3)
        it.settle()
        (open_loop, _) = replica.held[3]
        it.on_loop(lambda: replica.finish(3))
        it.responder.wait(1)
    assert first.issued == second.issued, "LoadGen has issued both at once"
    assert first.issued <= first.released <= now <= second.released
    assert open_loop.released == 0.0


def test_what_waits_for_a_replica_that_dies_keeps_its_place_and_goes_first():
    one, other = Scripted(), Scripted()
    with bench(one, other, cap=1, stream=False, concurrency=4) as it:
        it.issue(*range(1, 9))  # 1 and 2 are at work, 3 and 4 wait for a replica
        it.settle()
        released = it.sut.replicas[0].waiting[0].released
        it.on_loop(lambda: one.fail_all(ReplicaDied))
        it.settle()
        waiting = it.sut.replicas[1].waiting
        assert {query.id: query.released for query in waiting}[3] == released, "its clock runs on"
        while other.held:
            it.on_loop(lambda: other.finish(min(other.held)))
            it.settle()
        it.responder.wait(8)
    assert (one.given, other.given) == ([1], [2, 4, 3, 5, 6, 7, 8])


# -- time between tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "answer", "gaps"),
    [
        ([1, 2], 3, 2),  # each token in a frame of its own, the last with the end of the answer
        ([1, 3], 4, 1),  # two tokens in one frame: when each was there is not known
        ([2, 3], 3, 1),  # the end of the answer brings no further token
        ([], 4, 0),  # no frames at all
    ],
)
def test_the_time_between_two_tokens_is_known_where_each_has_a_frame(frames, answer, gaps):
    replica = Scripted()
    with bench(replica, gaps=True) as it:
        it.issue(1)
        it.settle()
        query, sink = replica.held.pop(1)
        it.on_loop(lambda: sink.first(query, as_tokens([5])))
        for tokens in frames:
            it.on_loop(lambda tokens=tokens: sink.progress(query, tokens))
        it.on_loop(lambda: sink.done(query, Outcome(as_tokens([5] * answer), "stop")))
        it.responder.wait(1)
        work, _ = it.sut.end()
    assert it.responder.kinds() == {}
    assert work.gaps is not None and len(work.gaps) == gaps
    assert all(0 <= gap < PATIENCE for gap in work.gaps)


# -- faults -----------------------------------------------------------------------------------------------------------

QUERIES = 10
NONE: dict[str, int] = {}

# Two replicas, ten queries in turn, and the fault strikes the fifth and last query of the first replica.
# fault, stream: failures under strict; failures and retries under resilient; whether the test is given up
OUTCOMES = [
    # the backend says that the query failed: any other attempt may do
    ("error", True, {"backend_error": 1}, NONE, 1, False),
    ("error", False, {"backend_error": 1}, NONE, 1, False),
    # the whole batch that submit did not take
    ("raise", True, {"backend_error": 5}, NONE, 5, False),
    ("raise", False, {"backend_error": 5}, NONE, 5, False),
    # all five on the replica go down with it
    ("die", True, {"replica_died": 5}, NONE, 5, False),
    ("die", False, {"replica_died": 5}, NONE, 5, False),
    # streamed, the deadline of the first token finds it; else only that nothing moves at all
    ("stall-before", True, {"first_token_late": 1}, NONE, 1, False),
    ("stall-before", False, {"abandoned": 1}, {"abandoned": 1}, 0, True),
    # a stream that has begun is not taken up elsewhere
    ("stall-after", True, {"stalled": 1}, {"stalled": 1}, 0, False),
    ("stall-after", False, {"abandoned": 1}, {"abandoned": 1}, 0, True),
    # wrong answers: never retried
    ("one-token", True, {"one_token": 1}, {"one_token": 1}, 0, False),
    ("one-token", False, {"one_token": 1}, {"one_token": 1}, 0, False),
    ("no-tokens", True, {"no_tokens": 1}, {"no_tokens": 1}, 0, False),
    ("no-tokens", False, {"no_tokens": 1}, {"no_tokens": 1}, 0, False),
    ("abort", True, {"bad_finish": 1}, {"bad_finish": 1}, 0, False),
    ("abort", False, {"bad_finish": 1}, {"bad_finish": 1}, 0, False),
    # the second end is dropped
    ("twice", True, NONE, NONE, 0, False),
    ("twice", False, NONE, NONE, 0, False),
    # without a stream no first token was reported, so none can differ
    ("other-head", True, {"miscounted": 1}, {"miscounted": 1}, 0, False),
    ("other-head", False, NONE, NONE, 0, False),
]


def test_the_table_of_faults_knows_every_fault():
    assert [row[:2] for row in OUTCOMES] == [(fault, stream) for fault in FAULTS for stream in (True, False)]


@pytest.mark.parametrize("resilient", [False, True], ids=["strict", "resilient"])
@pytest.mark.parametrize(("fault", "stream", "strict_failures", "resilient_failures", "retries", "gives_up"), OUTCOMES)
def test_faults(fault, stream, strict_failures, resilient_failures, retries, gives_up, resilient):
    faulty, sound = (
        echo(index, ttft=0.02, tpot=0.005, fault=fault, fault_every=5, fault_replica=0) for index in range(2)
    )
    deadlines = Deadlines(first_token=0.4, stall=0.8)
    with bench(faulty, sound, stream=stream, deadlines=deadlines, resilient=resilient) as it:
        responder = it.serve(QUERIES)
        it.settle()
    assert responder.kinds() == (resilient_failures if resilient else strict_failures)
    assert it.work.failures == responder.kinds()
    assert it.work.retries.total() == (retries if resilient else 0)
    assert sum(outcome.attempts - 1 for outcome in responder.outcomes.values()) == it.work.retries.total()
    assert it.work.late == (fault == "twice")
    assert (it.sut.aborted is not None) is gives_up
    assert [what for what, _ in responder.heard].count("done") == QUERIES


def test_after_a_failure_no_tokens_are_made_up():
    with bench(echo(fault="error", fault_every=1)) as it:
        (outcome,) = it.serve(1).outcomes.values()
    assert len(outcome.tokens) == 0
    assert isinstance(outcome.failure, BackendError)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_is_not_complete_in_time_is_cancelled_and_fails(stream):
    stuck = Scripted()
    with bench(stuck, stream=stream, deadlines=Deadlines(request=0.1, stall=5.0)) as it:
        responder = it.serve(2)
    assert responder.kinds() == {"timed_out": 2}
    assert stuck.held == {}, "the replica no longer works on what nobody waits for"


def test_a_test_may_have_deadlines_of_its_own():
    with bench(Scripted(), Scripted(), deadlines=Deadlines(stall=None)) as it:
        for own, kinds in ((Deadlines(request=0.05, stall=None), {"timed_out": 1}), (None, {})):
            responder = Recorder()
            it.sut.begin(Work(it.work.prompt, True, 8, responder, deadlines=own))
            it.issue(1)
            if kinds:
                responder.wait(1)
            else:
                it.sut.run(asyncio.sleep(0.2))
                assert not responder.heard, "the SUT's own have no limit for a request"
                it.sut.abandon("enough")
                it.sut.end()
                kinds = {"abandoned": 1}
            assert responder.kinds() == kinds


def test_a_test_that_does_not_move_is_given_up_with_a_sentence():
    with bench(echo(0), Scripted(), stream=False, deadlines=Deadlines(stall=0.3)) as it:
        responder = it.serve(2)
    assert it.sut.aborted == (
        "no query has moved for 0.3 s; the oldest is sample 20 on replica b, waiting for its answer."
    )
    assert responder.outcomes[1].failure is None
    assert responder.kinds() == {"abandoned": 1}


def test_time_without_queries_is_no_stall():
    with bench(echo(ttft=0.06, tpot=0.001), stream=False, deadlines=Deadlines(stall=0.2)) as it:
        it.serve(1)
        it.sut.run(asyncio.sleep(0.3))
        it.issue(2)
        it.responder.wait(2)
        assert it.sut.aborted is None, "the clock of the stall starts with the query"


def test_a_first_token_that_comes_again_is_dropped():
    replica = Scripted()
    with bench(replica) as it:
        it.issue(1)
        it.settle()
        query, sink = replica.held[1]
        it.on_loop(lambda: [sink.first(query, as_tokens([5])) for _ in range(2)])
        it.on_loop(lambda: replica.finish(1))
        it.responder.wait(1)
        it.on_loop(lambda: sink.first(query, as_tokens([5])))
    assert it.responder.heard == [("first", 1), ("done", 1)]
    assert it.work.late == 2


def test_what_a_lost_replica_still_says_about_a_query_that_moved_on_is_dropped():
    lost, next_one = Scripted(), Scripted()
    with bench(lost, next_one, resilient=True) as it:
        it.issue(1)
        it.settle()
        query, sink = lost.held[1]
        it.on_loop(lambda: lost.fail_all(ReplicaDied))
        it.settle()
        it.on_loop(lambda: (sink.first(query, as_tokens([8])), sink.done(query, Outcome(as_tokens([8, 9]), "stop"))))
        assert it.responder.heard == []
        it.on_loop(lambda: next_one.held[1][1].first(query, as_tokens([5])))
        it.on_loop(lambda: next_one.finish(1))
        it.responder.wait(1)
    assert it.responder.first_ids == {1: [5]}
    assert it.responder.outcomes[1].tokens.tolist() == [5, 6, 7]
    assert (it.responder.outcomes[1].replica, it.responder.outcomes[1].attempts) == ("b", 2)


# -- replicas that go and come ----------------------------------------------------------------------------------------


def test_a_dead_replica_gets_nothing_more_and_what_waited_for_it_goes_elsewhere():
    one, other = Scripted(), Scripted()
    with bench(one, other, cap=1, stream=False) as it:
        it.issue(1, 2, 3, 4)  # 3 and 4 wait
        it.settle()
        it.on_loop(lambda: one.fail_all(ReplicaDied))
        it.issue(5)
        it.settle()
        while other.held:
            it.on_loop(lambda: other.finish(min(other.held)))
            it.settle()
        it.responder.wait(5)
    assert one.given == [1]
    assert sorted(other.given) == [2, 3, 4, 5]
    assert it.responder.kinds() == {"replica_died": 1}, "strict: only what the dead replica had begun is lost"
    assert it.sut.replicas[0].books.ejected_at is not None
    assert it.sut.aborted is None


def test_an_idle_replica_that_dies_is_noticed():
    replica = Scripted()
    with bench(echo(0), replica) as it:
        replica.say("gone")
        responder = it.serve(6)
    assert {o.replica for o in responder.outcomes.values()} == {"a"}
    assert it.sut.replicas[1].ejected == "gone"


def test_without_any_replica_left_the_test_is_given_up():
    with bench(echo(0, ttft=0.01, tpot=0.01, fault="die", fault_every=3), echo(1, fault="die", fault_every=2)) as it:
        responder = it.serve(12)
        assert it.sut.aborted == "no replica is left; the last to go was b: a scripted fault: the replica died"
        it.issue(13)
        responder.wait(13)
    assert responder.outcomes[13].failure is not None, "what comes later is answered too"


def test_a_replica_that_comes_back_works_again():
    back = echo(0, ttft=0.005, tpot=0.001, fault="die", fault_every=3, down=0.05)
    with bench(back, echo(1, ttft=0.005, tpot=0.001), resilient=True) as it:
        for key in range(1, 200):
            it.issue(key)
            it.responder.wait(key)
            if it.sut.replicas[0].books.queries > 2:
                break
        assert it.sut.replicas[0].books.queries > 2, (
            "its third query killed it, so a third answer is of its second life"
        )
    assert it.responder.kinds() == {}
    assert it.work.retries.total() >= 1


def test_what_no_replica_has_room_for_waits_for_one_that_comes_back():
    one, other = Scripted(capacity=1), Scripted(capacity=1)
    with bench(one, other, dispatch="pull", stream=False) as it:
        one.say("rebooting")
        it.issue(1, 2)
        it.settle()
        assert (one.given, other.given) == ([], [1])
        one.say(None)
        assert one.came.acquire(timeout=PATIENCE)
        assert one.given == [2]
        it.on_loop(lambda: (one.finish(2), other.finish(1)))
        it.responder.wait(2)


@pytest.mark.parametrize("dispatch", POLICIES)
def test_a_test_that_begins_without_a_live_replica_is_given_up_at_once(dispatch):
    replica = Scripted()
    with bench(replica, dispatch=dispatch) as it:
        replica.say("the engine died")
        it.begin()
        assert it.sut.aborted == "no replica is left: the engine died"
        responder = it.serve(3)
    assert responder.kinds() == {"abandoned": 3}
    assert replica.given == []


# -- second attempts --------------------------------------------------------------------------------------------------


def test_a_retry_is_served_elsewhere():
    broken, sound = echo(0, fault="error", fault_every=1, fault_replica=0), echo(1)
    with bench(broken, sound, resilient=True) as it:
        responder = it.serve(3)
    assert responder.kinds() == {}, "a second attempt on the replica that has just failed the query is wasted"
    assert {o.replica for o in responder.outcomes.values()} == {"b"}


def test_a_single_replica_gets_no_second_attempt():
    with bench(echo(fault="error", fault_every=1), resilient=True) as it:
        assert it.serve(3).kinds() == {"backend_error": 3}
        assert it.work.retries.total() == 0


@pytest.mark.parametrize("dispatch", POLICIES)
def test_a_big_batch_that_fails_at_once_is_retried_without_deep_recursion(dispatch):
    broken = [echo(index, fault="error", fault_every=1) for index in range(2)]
    with bench(*broken, dispatch=dispatch, resilient=True, stream=False) as it:
        responder = it.serve(3000)
        assert it.sut.aborted is None
    assert responder.kinds() == {"backend_error": 3000}


def test_nothing_is_handed_to_a_replica_for_a_query_that_has_ended():
    dying = Scripted(act=lambda replica: replica.fail_all(ReplicaDied))
    frail = Scripted(act=lambda replica: replica.fail_all(ReplicaDied))
    with bench(dying, frail, resilient=True, stream=False) as it:
        responder = it.serve(2)
        it.settle()
    assert len(responder.outcomes) == 2
    assert it.work.late == 0, "a replica was given a query that had been answered already"
    assert len(frail.given) <= 1


def test_a_query_is_answered_when_its_replica_dies_and_the_next_one_raises():
    def die_of_two(replica: Scripted) -> None:
        if len(replica.held) == 2:
            replica.fail_all(ReplicaDied)

    def raise_on_more(replica: Scripted) -> None:
        if len(replica.given) > 1:
            raise RuntimeError("too much")

    dying, raising = Scripted(act=die_of_two), Scripted(act=raise_on_more)
    with bench(dying, raising, resilient=True, stream=False) as it:
        it.issue(1, 2)
        it.issue(3, 4)  # the first replica dies of 3, and the second raises when it is given more than 2
        it.settle()
        it.on_loop(lambda: [raising.finish(key) for key in list(raising.held)])
        it.responder.wait(4)
    assert len(it.responder.outcomes) == 4
    assert it.responder.outcomes[2].failure is None, "what the second replica had taken is not touched"


# -- how the harness itself does --------------------------------------------------------------------------------------


def test_a_loop_that_is_held_up_shows_in_its_lags():
    with bench(echo(ttft=0.01, tpot=0.001)) as it:
        it.serve(5)
        calm = len(it.work.loop_lags)
        it.on_loop(lambda: time.sleep(0.1))
        it.sut.run(asyncio.sleep(0.05))
        assert max(it.work.loop_lags[calm:]) >= 0.07
        assert len(it.work.respond_times) >= 1
        assert all(0 <= seconds < PATIENCE for seconds in it.work.respond_times)


# -- the end of a test ------------------------------------------------------------------------------------------------


def test_abandon_answers_what_is_outstanding_and_what_still_comes():
    one, other = Scripted(), Scripted()
    with bench(one, other, cap=1, stream=False) as it:
        it.issue(1, 2, 3, 4, 5)
        it.settle()
        it.on_loop(lambda: one.finish(1))
        it.sut.abandon("interrupted.")
        it.responder.wait(5)
        it.issue(6, 7)
        it.responder.wait(7)
        assert it.sut.counts().in_flight == 0
    assert it.responder.outcomes[1].failure is None
    assert it.responder.kinds() == {"abandoned": 6}
    assert {str(it.responder.outcomes[key].failure) for key in range(2, 8)} == {"interrupted."}
    assert (one.held, other.held) == ({}, {}), "the replicas stop working on it"


def test_a_sut_serves_again_after_a_test_that_was_abandoned():
    with bench(echo(0, ttft=0.05, tpot=0.01), dispatch="pull") as it:
        it.issue(1, 2, 3)
        it.sut.abandon("interrupted.")
        it.responder.wait(3)
        it.begin()
        assert it.serve(5).kinds() == {}
        assert it.sut.aborted is None


def test_an_error_in_the_harness_ends_the_test_with_all_queries_answered():
    def no_such_sample(index: int) -> Tokens:
        raise LookupError(f"no sample {index}")

    with bench(echo(), prompt=no_such_sample) as it:
        it.issue(1, 2)
        it.responder.wait(2)
    assert it.sut.aborted == "an error inside the harness: LookupError: no sample 10."


def test_issuing_to_a_closed_sut_does_not_raise():
    with bench(echo()) as it:
        it.serve(1)
    it.issue(2)
    assert it.sut.aborted == "queries were issued to a closed SUT."


def test_closing_twice_or_unopened_does_no_harm():
    sut = SUT([Replica("a", echo())], "pull")
    sut.close()
    with bench(echo()) as it:
        pass
    it.sut.close()


def test_a_replica_that_does_not_start_is_heard_of_and_the_others_are_not_waited_for():
    class Broken(Scripted):
        async def start(self) -> None:
            raise SetupError("no such model.")

    class Slow(Scripted):
        async def start(self) -> None:
            await asyncio.sleep(60)

    sut = SUT([Replica("a", Slow()), Replica("b", Broken())], "pull")
    with pytest.raises(SetupError, match="no such model"):
        sut.open()
    sut.close()


# -- anything at all --------------------------------------------------------------------------------------------------

REPLICA = st.builds(
    EchoOptions,
    slots=st.integers(1, 4),
    ttft=st.sampled_from([0.0, 0.002]),
    tpot=st.sampled_from([0.0, 0.001]),
    tokens=st.sampled_from(["2", "1-6"]),
    fault=st.sampled_from(["", *FAULTS]),
    fault_every=st.integers(1, 5),
    down=st.sampled_from([0.0, 0.05]),
)


# Not shrunk: a query that is lost takes PATIENCE each time, and the examples are small.
@settings(max_examples=80, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    options=st.lists(REPLICA, min_size=1, max_size=3),
    dispatch=st.sampled_from(list(POLICIES)),
    cap=st.none() | st.integers(1, 3),
    resilient=st.booleans(),
    stream=st.booleans(),
    concurrency=st.none() | st.integers(1, 6),
    batches=st.lists(st.integers(1, 8), min_size=1, max_size=5),
)
def test_every_query_is_answered_exactly_once(options, dispatch, cap, resilient, stream, concurrency, batches):
    gauge = Gauge()
    replicas = [Metered(index, what, gauge) for index, what in enumerate(options)]
    how = {"dispatch": dispatch, "cap": cap, "resilient": resilient, "stream": stream, "concurrency": concurrency}
    number = sum(batches)
    ids = iter(range(1, number + 1))
    with bench(*replicas, **how, deadlines=Deadlines(stall=0.25)) as it:
        for size in batches:
            it.issue(*(next(ids) for _ in range(size)))
        it.responder.wait(number)
        it.settle()
        counts = it.sut.counts()
    heard = it.responder.heard
    assert Counter(key for what, key in heard if what == "done") == dict.fromkeys(range(1, number + 1), 1)
    assert max(Counter(key for what, key in heard if what == "first").values(), default=0) <= 1
    ended = set()
    for what, key in heard:
        assert what == "done" or key not in ended, "a first token after the end"
        if what == "done":
            ended.add(key)
    assert (counts.issued, counts.completed, counts.in_flight) == (number, number, 0)
    assert counts.failed == sum(it.responder.kinds().values())
    assert all(replica.in_flight == 0 and not replica.waiting for replica in it.sut.replicas)
    assert gauge.most <= (concurrency or number), "more in flight than a closed loop allows"


# -- second attempts where the sound replica is busy ------------------------------------------------------------------


@pytest.mark.parametrize("dispatch", POLICIES)
def test_a_replica_that_fails_at_once_does_not_eat_the_second_attempts(dispatch):
    """It always has room, and the sound one seldom: a retry waits for the sound one all the same."""
    broken, sound = echo(0, fault="error", fault_every=1, fault_replica=0), echo(1, slots=2, ttft=0.001)
    with bench(broken, sound, dispatch=dispatch, resilient=True, stream=False, cap=2) as it:
        responder = it.serve(100)
    assert responder.kinds() == {}
    assert {outcome.replica for outcome in responder.outcomes.values()} == {"b"}


def test_each_replica_is_tried_once_and_the_last_failure_stands():
    broken = [echo(index, fault="error", fault_every=1) for index in range(3)]
    with bench(*broken, resilient=True) as it:
        responder = it.serve(5)
        assert it.work.retries.total() == 10
    assert responder.kinds() == {"backend_error": 5}
    assert {outcome.attempts for outcome in responder.outcomes.values()} == {3}


def test_a_test_has_a_pulse_from_its_first_callback_to_its_end(monkeypatch):
    monkeypatch.setattr("sut.sut.PULSE", 0.05)
    held, beats, threads = Scripted(), [], set()

    def pulse(work: Work, now: float) -> None:
        threads.add(threading.current_thread().name)
        beats.append((work.issued, work.completed, now))

    with bench(held, stream=False) as it:
        it.work.pulse = pulse
        it.settle()
        assert beats == []  # not before the first callback
        it.issue(1, 2)
        it.settle()
        assert beats[0][:2] == (0, 0)  # and then before anything is counted
        while len(beats) < 4:
            time.sleep(0.01)
        it.on_loop(lambda: held.finish(1))
        it.responder.wait(1)
        it.sut.end()
        assert beats[-1][:2] == (2, 1)
        number = len(beats)
        time.sleep(0.15)
        assert len(beats) == number
    gaps = np.diff([now for _, _, now in beats[:-1]])
    assert gaps.min() > 0.02
    assert threads == {"sut-loop"}


def test_a_test_that_never_began_has_no_pulse():
    with bench(echo()) as it:
        it.work.pulse = lambda *_: pytest.fail("nothing has happened")
        it.sut.end()


def test_the_books_of_a_test_that_has_ended_change_no_more():
    held = Scripted()
    with bench(held, stream=False) as it:
        it.issue(1, 2)
        it.settle()
        it.on_loop(lambda: held.finish(1))
        it.responder.wait(1)
        work, books = it.sut.end()
        it.on_loop(lambda: held.finish(2))
        it.responder.wait(2)
        assert (work.completed, books[0].queries, len(work.loop_lags)) == (1, 1, len(work.loop_lags))
        assert it.work.completed == 2
