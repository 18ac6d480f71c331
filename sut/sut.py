"""The SUT: issue → dispatch → serve → respond.

One asyncio loop in a thread of its own does everything after the hand-over, so there are no locks, and a sample's first
token and its completion reach the responder from one thread: from two, LoadGen silently misorders them.
"""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections import Counter, deque
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from queue import Empty, SimpleQueue
from time import perf_counter, thread_time
from typing import Any, TypeVar

import uvloop

from sut.dispatch import Books, Policy, Replica, make_policy
from sut.errors import Abandoned, BackendError, Busy, QueryFailed, ReplicaDied, Unreachable
from sut.health import SWEEP_INTERVAL, Deadlines, Flight, judge, may_retry, overdue
from sut.query import NO_TOKENS, Outcome, Query, Tokens
from sut.work import Counts, Work

T = TypeVar("T")

LOOP_LIMIT = 30.0
"""Seconds that the loop gets to close a test, which takes it milliseconds unless it hangs."""

STOP_LIMIT = 30.0
"""Seconds that replicas get to stop."""

FAILING, FAILING_PAUSE = 8, 1.0
"""After so many failures in a row, a replica gets no work for so many seconds (under `resilient`)."""

LAG_INTERVAL = 0.02
"""Seconds between two looks at how late the loop is."""

PULSE = 1.0
"""Seconds between two pulses of a test (`Work.pulse`)."""


class ReplicaSink:
    """The SUT's ear at one replica."""

    __slots__ = ("_replica", "_sut")

    def __init__(self, sut: SUT, replica: Replica) -> None:
        self._sut = sut
        self._replica = replica

    def first(self, query: Query, ids: Tokens) -> None:
        self._sut._first(self._replica, query, ids)

    def progress(self, query: Query, tokens: int) -> None:
        self._sut._progress(self._replica, query, tokens)

    def done(self, query: Query, outcome: Outcome) -> None:
        self._sut._done(self._replica, query, outcome)


@dataclass(slots=True)
class Tried:
    """What has been tried for a query that failed: since when, how often, and which replicas are not asked again."""

    since: float
    attempts: int = 0
    replicas: list[Replica] = field(default_factory=list)


class SUT:
    """Serves what is issued on its replicas; outlives tests, so that one start of the engines serves many."""

    def __init__(
        self, replicas: Sequence[Replica], dispatch: str, deadlines: Deadlines | None = None, resilient: bool = False
    ) -> None:
        self.replicas = list(replicas)
        self.aborted: str | None = None
        self._dispatch = dispatch
        self._policy: Policy = make_policy(dispatch, self.replicas)
        self._caps = [replica.cap for replica in self.replicas]
        self._usual = self._deadlines = deadlines or Deadlines()
        self._resilient = resilient
        self._sinks = {replica: ReplicaSink(self, replica) for replica in self.replicas}
        self._flights: dict[int, Flight] = {}
        self._queue: deque[Query] = deque()
        # Queries to be served again, each with the outcome it has if nobody else can; and who has tried each.
        self._again: deque[tuple[Query, Outcome]] = deque()
        self._tried: dict[int, Tried] = {}
        self._finished: list[tuple[Query, Outcome]] = []
        self._freed: list[Replica] = []
        self._moved = 0.0
        self._work: Work | None = None
        # A closed loop: how many queries may be out at once, and how many are: released and not ended.
        self._places: int | None = None
        self._out = 0
        self._gaps: array[float] | None = None
        self._loop = uvloop.new_event_loop()
        self._loop.set_exception_handler(self._crashed)
        self._thread = threading.Thread(target=self._loop.run_forever, name="sut-loop", daemon=True)

    # -- life -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the loop and all replicas at once. Raises ConfigError or SetupError of the first that fails."""
        self._thread.start()
        self.run(self._start_replicas())
        self.run(self._watch())

    def prepare(self, prompts: Sequence[Tokens]) -> None:
        """Have the replicas do beforehand what they can for these prompts. Raises SetupError."""
        self.run(self._prepare(prompts))

    async def _prepare(self, prompts: Sequence[Tokens]) -> None:
        await asyncio.gather(*(replica.backend.prepare(prompts) for replica in self.replicas))

    def close(self) -> None:
        """Stop all replicas and the loop; returns in any case, whatever a replica may still be doing."""
        if not self._thread.is_alive():
            return
        stopped = False
        with suppress(TimeoutError):
            self.run(self._stop_replicas(), STOP_LIMIT)
            stopped = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LOOP_LIMIT)
        if stopped and not self._loop.is_running():  # uvloop may never finish closing a loop with open connections
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T], limit: float | None = None) -> T:
        """Run a coroutine on the loop from another thread; an interrupt of the waiting thread cancels it.

        Raises TimeoutError if the loop has not done it within `limit` seconds.
        """
        # What a signal raises may come at any place of the waiting thread. Inside a concurrent.futures.Future it would
        # leave a lock locked for which the loop then waits for ever; this queue is C's, and whole at any moment.
        ended: SimpleQueue[asyncio.Task[T]] = SimpleQueue()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(ended.put)

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        try:
            self._loop.call_soon_threadsafe(begin)
            return ended.get(timeout=limit).result()
        except Empty:
            raise TimeoutError(f"the SUT's loop was not done within {limit:g} s") from None
        finally:
            self._loop.call_soon_threadsafe(cancel)

    async def _start_replicas(self) -> None:
        starts = [asyncio.ensure_future(replica.backend.start()) for replica in self.replicas]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()

    async def _stop_replicas(self) -> None:
        await asyncio.gather(*(replica.backend.stop() for replica in self.replicas))

    async def _watch(self) -> None:
        self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    def _crashed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something raised on the loop where nothing may: the test cannot be trusted any more."""
        error = context.get("exception")
        what = f"{type(error).__name__}: {error}" if error else context["message"]
        self._give_up(f"an error inside the harness: {what}.")

    # -- one test -------------------------------------------------------------------------------------------------

    def begin(self, work: Work) -> None:
        """Bind the SUT to a test; what is issued from now on belongs to it."""
        self.run(self._begin(work))

    async def _begin(self, work: Work) -> None:
        self._work = work
        self._deadlines = work.deadlines or self._usual
        self.aborted = None
        self._feel_lag(work, perf_counter())
        self._places, self._out, self._gaps = work.concurrency, 0, work.gaps
        for replica, cap in zip(self.replicas, self._caps, strict=True):
            replica.cap = cap if self._dispatch != "pull" else cap or self._pulled(replica, work)
            replica.books = Books(ejected_at=None if replica.ejected is None else perf_counter())
        if not self._any_live():
            self._give_up(f"no replica is left: {self.replicas[-1].ejected}")

    def _pulled(self, replica: Replica, work: Work) -> int:
        """How much a pulling replica takes: what it works on and as much again, or more if a closed loop asks more."""
        return max(replica.backend.capacity, -(-(work.concurrency or 0) // len(self.replicas)))

    def issue(self, ids: list[int], indices: list[int]) -> None:
        """Take queries; called on LoadGen's thread, returns at once and never raises (a raise there is a segfault)."""
        try:
            self._loop.call_soon_threadsafe(self._accept, ids, indices, perf_counter())
        except RuntimeError:  # the loop is closed: the process is on its way out
            self.aborted = self.aborted or "queries were issued to a closed SUT."

    def abandon(self, reason: str) -> None:
        """Answer all that is outstanding, and all that is still to come, as a failure; from another thread."""
        self.run(self._abandon(reason), LOOP_LIMIT)

    async def cut(self, reason: str) -> None:
        """Answer all that is outstanding as a failure, once nothing more is issued; the SUT is fit for another test."""
        if self.aborted is None:
            self._give_up(reason)
            self.aborted = None

    def end(self) -> tuple[Work, list[Books]]:
        """Close the books of the test: copies of them, and of each replica's, that no late answer changes any more."""
        return self.run(self._end_test(), LOOP_LIMIT)

    async def _end_test(self) -> tuple[Work, list[Books]]:
        work = self._work
        assert work is not None
        self._flush()
        pulse, work.pulse = work.pulse, None
        if pulse is not None and work.began:
            pulse(work, perf_counter())
        work.responder.close()
        copy = replace(work, failures=Counter(work.failures), failed_on=Counter(work.failed_on))
        copy.retries = Counter(work.retries)
        copy.loop_lags, copy.respond_times = array("d", work.loop_lags), array("d", work.respond_times)
        copy.gaps = None if work.gaps is None else array("d", work.gaps)
        return copy, [replace(replica.books) for replica in self.replicas]

    @property
    def queued(self) -> int:
        """Queries that no replica has been found for yet; to be read on the loop."""
        return len(self._queue) + len(self._again)

    def counts(self) -> Counts:
        work = self._work
        if work is None:
            return Counts(0, 0, 0, 0, 0)
        return Counts(work.issued, work.completed, work.failures.total(), work.tokens, len(self._flights))

    # -- the life of a query, on the loop -----------------------------------------------------------------------------

    def _accept(self, ids: list[int], indices: list[int], issued: float) -> None:
        work = self._work
        assert work is not None
        if not work.began:
            work.began = issued
            work.cpu_began = thread_time()
            self._beat(work)
        if work.issued == work.completed:
            self._moved = issued
        work.issued += len(ids)
        prompt, stream, most = work.prompt, work.stream, work.max_tokens
        try:
            queries = [Query(i, n, prompt(n), stream, most, issued) for i, n in zip(ids, indices, strict=True)]
        except Exception as error:  # noqa: BLE001 - whatever it is, what was issued must be answered
            self._give_up(f"an error inside the harness: {type(error).__name__}: {error}.")
            queries = [Query(i, n, NO_TOKENS, stream, most, issued) for i, n in zip(ids, indices, strict=True)]
        if work.known:
            queries = self._recall(work, queries)
        self._route(queries)

    def _recall(self, work: Work, queries: Sequence[Query]) -> list[Query]:
        """Answer what is known, by no replica and in no attempt; the rest is to be served."""
        for query in queries:
            if (tokens := work.known.get(query.index)) is not None:
                now = self._moved = perf_counter()
                if query.stream:
                    work.responder.first(query, tokens[:1])
                self._end(query, Outcome(tokens, "stop", attempts=0, first_token=now, last_byte=now))
        return [query for query in queries if query.index not in work.known]

    def _route(self, queries: Iterable[Query]) -> None:
        """Hand each query to the replica that the policy picks; what finds none stays in the common queue."""
        if self.aborted is not None:
            for query in queries:
                self._end(query, Outcome(NO_TOKENS, failure=Abandoned(self.aborted)))
            return
        self._queue.extend(queries)
        batches: dict[Replica, list[Query]] = {}
        self._drain(batches)
        self._submit(batches)

    def _refill(self) -> None:
        """Once a tick after completions: give the replicas that have room again what waits for them."""
        freed, self._freed = self._freed, []
        batches: dict[Replica, list[Query]] = {}
        self._serve_again(batches)
        for replica in freed:
            while replica.waiting and replica.room > 0:
                self._depart(replica, replica.waiting.popleft(), batches)
        self._drain(batches)
        self._submit(batches)

    def _drain(self, batches: dict[Replica, list[Query]]) -> None:
        """Take queries off the common queue, in order, while the policy finds a replica for them and, in a closed loop,
        a place is free; one that has come back from a replica has its place already."""
        queue, pick, places = self._queue, self._policy.pick, self._places
        while queue and (places is None or self._out < places or queue[0].released):
            if (replica := pick(queue[0])) is None:
                break
            query = queue.popleft()
            if places is not None and not query.released:
                query.released = perf_counter()
                self._out += 1
            self._policy.started(replica, query)
            if replica.room > 0 and not replica.waiting:
                self._depart(replica, query, batches)
            else:
                replica.waiting.append(query)

    def _serve_again(self, batches: dict[Replica, list[Query]]) -> None:
        """Second attempts, each on a replica that may still try; they wait until such a one is there and has room."""
        if self._again and self._any_live() and not any(r.serving and r.room > 0 for r in self.replicas):
            return
        for _ in range(len(self._again)):
            query, outcome = self._again.popleft()
            untried = self._untried(query)
            roomy = [replica for replica in untried if replica.serving and replica.room > 0]
            if not untried:
                self._end(query, outcome)
            elif roomy:
                replica = max(roomy, key=lambda other: other.room)
                self._policy.started(replica, query)
                self._depart(replica, query, batches)
            else:
                self._again.append((query, outcome))

    def _untried(self, query: Query) -> list[Replica]:
        tried = self._tried[query.id].replicas if query.id in self._tried else ()
        return [replica for replica in self.replicas if replica.ejected is None and replica not in tried]

    def _depart(self, replica: Replica, query: Query, batches: dict[Replica, list[Query]]) -> None:
        now = perf_counter()
        if replica.in_flight == 0:
            replica.books.busy_since = now
        replica.in_flight += 1
        attempt = 1 + self._tried[query.id].attempts if query.id in self._tried else 1
        self._flights[query.id] = Flight(query, replica, now, attempt)
        batches.setdefault(replica, []).append(query)

    def _submit(self, batches: dict[Replica, list[Query]]) -> None:
        for replica, batch in batches.items():
            try:
                replica.backend.submit(batch, self._sinks[replica])
            except Exception as error:  # noqa: BLE001 - whatever a backend raises, its queries must be answered
                failure = BackendError(f"submit raised {type(error).__name__}: {error}")
                for query in batch:
                    if (flight := self._flights.get(query.id)) is not None and flight.replica is replica:
                        self._fail(flight, failure)

    def _first(self, replica: Replica, query: Query, ids: Tokens) -> None:
        flight = self._flights.get(query.id)
        if flight is None or flight.replica is not replica or flight.first_token:
            self._note_late()
            return
        self._moved = flight.first_token = flight.latest = perf_counter()
        if len(ids):
            flight.first_id = int(ids[0])
        assert self._work is not None
        self._work.responder.first(query, ids)

    def _progress(self, replica: Replica, query: Query, tokens: int) -> None:
        flight = self._flights.get(query.id)
        if flight is not None and flight.replica is replica:
            now = perf_counter()
            if tokens > flight.tokens:
                if self._gaps is not None:
                    self._note_gap(self._gaps, flight, tokens, now)
                self._policy.progressed(replica, tokens - flight.tokens)
                flight.tokens = tokens
            self._moved = flight.latest = now

    def _note_gap(self, gaps: array[float], flight: Flight, tokens: int, now: float) -> None:
        """The time between two tokens, where each came in a frame of its own: of several in one, it is not known."""
        if flight.tokens and tokens == flight.tokens + 1:
            gaps.append(now - flight.latest)

    def _done(self, replica: Replica, query: Query, outcome: Outcome) -> None:
        flight = self._flights.get(query.id)
        if flight is None or flight.replica is not replica:
            self._note_late()
            return
        del self._flights[query.id]
        now = self._moved = perf_counter()
        outcome.failure = judge(flight, outcome)
        outcome.replica, outcome.attempts = replica.name, flight.attempt
        outcome.sent, outcome.first_token, outcome.last_byte = flight.sent, flight.first_token, now
        self._leave(flight, outcome, now)
        if outcome.failure is None:
            if self._gaps is not None:
                self._note_gap(self._gaps, flight, outcome.count, now)
            self._end(query, outcome)
        else:
            self._failed(flight, outcome)

    def _leave(self, flight: Flight, outcome: Outcome, now: float) -> None:
        """Take a finished query off its replica's books."""
        replica = flight.replica
        books = replica.books
        replica.in_flight -= 1
        if replica.in_flight == 0:
            books.busy += now - books.busy_since
        books.last_done = now
        if outcome.failure is None:
            books.queries += 1
            books.tokens += outcome.count
            replica.failing = 0
        else:
            books.failures += 1
            replica.failing += 1
        self._policy.finished(replica, flight.query, flight.tokens)
        self._call_for_refill(replica)

    def _call_for_refill(self, replica: Replica) -> None:
        """Look for work for this replica, and for the common queue, in the next tick: never from within a submit."""
        if not self._freed:
            self._loop.call_soon(self._refill)
        self._freed.append(replica)

    def _failed(self, flight: Flight, outcome: Outcome) -> None:
        query, failure, work = flight.query, outcome.failure, self._work
        assert failure is not None and work is not None
        if isinstance(failure, ReplicaDied | Unreachable):
            self._eject(flight.replica, str(failure))
        tried = self._tried.setdefault(query.id, Tried(flight.sent))
        tried.attempts += 1
        if not (isinstance(failure, Busy) and self._may_wait(tried, failure.pause)):
            tried.replicas.append(flight.replica)  # after a pause it may try again
        if self._resilient:
            self._spare(flight.replica, failure)
        if self._resilient and self.aborted is None and may_retry(flight, failure) and self._untried(query):
            work.retries[failure.kind] += 1
            if work.first_retry is None:
                work.first_retry = f"sample {query.index} on replica {flight.replica.name}: {failure}"
            self._again.append((query, outcome))  # for the refill that `_leave` has called for
        else:
            self._end(query, outcome)

    def _may_wait(self, tried: Tried, pause: float) -> bool:
        """Whether a query may wait for a replica that has asked for a pause: as long as any query may take."""
        return perf_counter() + pause - tried.since < self._patience

    @property
    def _patience(self) -> float:
        return min(self._deadlines.request or inf, self._deadlines.stall or inf)

    def _spare(self, replica: Replica, failure: QueryFailed) -> None:
        """Give no work for a while to a replica that asks for it, or that fails whatever it is given while another does
        well: one that fails at once has room at once, and would take the whole queue."""
        others_do_well = any(other.serving and not other.failing for other in self.replicas)
        if isinstance(failure, Busy):
            self._rest(replica, min(failure.pause, self._patience))
        elif failure.elsewhere and replica.failing >= FAILING and others_do_well:
            self._rest(replica, FAILING_PAUSE)

    def _end(self, query: Query, outcome: Outcome) -> None:
        """A query's one and only end."""
        work = self._work
        assert work is not None
        work.completed += 1
        if outcome.failure is None:
            work.tokens += outcome.count
        else:
            work.failures[outcome.failure.kind] += 1
            if outcome.replica:
                work.failed_on[outcome.replica] += 1
            if work.first_failure is None:
                where = f" on replica {outcome.replica}" if outcome.replica else ""
                work.first_failure = f"sample {query.index}{where}: {outcome.failure}"
        self._tried.pop(query.id, None)
        if query.released:
            self._out -= 1
        if not self._finished:
            self._loop.call_soon(self._flush)
        self._finished.append((query, outcome))

    def _flush(self) -> None:
        finished, self._finished = self._finished, []
        work = self._work
        if not finished or work is None:
            return
        work.responder.done(finished)
        work.ended, work.cpu_ended = perf_counter(), thread_time()
        if oldest := finished[0][1].last_byte:
            work.respond_times.append(work.ended - oldest)

    def _note_late(self) -> None:
        """A frame of an attempt that has already ended, such as one that missed its deadline."""
        if self._work is not None:
            self._work.late += 1

    # -- health, on the loop ------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """One pass over replicas and flights: dead replicas, missed deadlines, and a test that does not move."""
        self._loop.call_later(SWEEP_INTERVAL, self._sweep)
        for replica in self.replicas:
            trouble = replica.backend.trouble()
            if trouble is not None and replica.ejected is None:
                self._eject(replica, trouble)
            elif trouble is None and replica.ejected is not None:
                replica.ejected = None
            self._admit(replica)
            if replica.ejected is not None:
                self._give_up_without_replicas(replica)
        now = perf_counter()
        missed = [(flight, why) for flight in self._flights.values() if (why := overdue(flight, now, self._deadlines))]
        for flight, why in missed:
            self._fail(flight, why)
        stall, work = self._deadlines.stall, self._work
        if work is not None and work.issued > work.completed and stall is not None and now - self._moved > stall:
            self._give_up(f"no query has moved for {stall:g} s; {self._oldest()}.")

    def _oldest(self) -> str:
        if not self._flights:
            return "none is in flight"
        oldest = next(iter(self._flights.values()))
        phase = "its first token" if oldest.query.stream else "its answer"
        return f"the oldest is sample {oldest.query.index} on replica {oldest.replica.name}, waiting for {phase}"

    def _feel_lag(self, work: Work, due: float) -> None:
        """Ring every LAG_INTERVAL while this test is the current one, and note how late."""
        if self._work is work:
            now = perf_counter()
            work.loop_lags.append(now - due)
            self._loop.call_later(LAG_INTERVAL, self._feel_lag, work, now + LAG_INTERVAL)

    def _beat(self, work: Work) -> None:
        """One pulse, and the next when the next second of the test is full; a timer may ring a little early."""
        if work.pulse is not None:
            now = perf_counter()
            work.pulse(work, now)
            due = work.began + (round((now - work.began) / PULSE) + 1) * PULSE
            self._loop.call_later(due - now, self._beat, work)

    def _fail(self, flight: Flight, why: QueryFailed) -> None:
        flight.replica.backend.cancel(flight.query)
        self._done(flight.replica, flight.query, Outcome(NO_TOKENS, failure=why))

    def _eject(self, replica: Replica, reason: str) -> None:
        """Take a replica out that cannot serve: what waits for it goes to others, and what is in flight there is lost
        (or moves on), unless it drains. Without any replica the test is given up."""
        if replica.ejected is not None:  # another query of a replica that drains: maybe the last one
            self._give_up_without_replicas(replica)
            return
        replica.ejected = reason
        replica.books.ejected_at = perf_counter()
        self._bench(replica)
        if not replica.backend.drains:
            for flight in [f for f in self._flights.values() if f.replica is replica]:
                self._fail(flight, ReplicaDied(reason))
        self._call_for_refill(replica)
        self._give_up_without_replicas(replica)

    def _give_up_without_replicas(self, last: Replica) -> None:
        """Nobody is left to serve, and nothing is in flight that might still be answered."""
        if not self._any_live() and not self._flights:
            self._give_up(f"no replica is left; the last to go was {last.name}: {last.ejected}")

    def _rest(self, replica: Replica, pause: float) -> None:
        """Give a replica no work for so many seconds; of several pauses, the one that ends last counts."""
        replica.rests_until = max(replica.rests_until, perf_counter() + pause)
        if replica.serving:
            self._bench(replica)

    def _bench(self, replica: Replica) -> None:
        """No more work for a replica; what waits for it goes back to the head of the common queue."""
        replica.serving = False
        self._policy.eject(replica)
        for query in replica.waiting:
            self._policy.finished(replica, query, 0)
        self._queue.extendleft(reversed(replica.waiting))
        replica.waiting.clear()

    def _admit(self, replica: Replica) -> None:
        """A replica may work again, if it is neither dead nor resting."""
        if replica.ejected is None and not replica.serving and perf_counter() >= replica.rests_until:
            replica.serving = True
            self._policy.admit(replica)
            self._call_for_refill(replica)

    def _any_live(self) -> bool:
        return any(replica.ejected is None for replica in self.replicas)

    async def _abandon(self, reason: str) -> None:
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        if self.aborted is not None:
            return
        self.aborted = reason
        if self._work is None:
            return
        for flight in list(self._flights.values()):
            self._fail(flight, Abandoned(reason))
        again, self._again = self._again, deque()
        for query, outcome in again:
            self._end(query, outcome)
        held = [*self._queue, *(query for replica in self.replicas for query in replica.waiting)]
        self._queue.clear()
        for replica in self.replicas:
            for query in replica.waiting:
                self._policy.finished(replica, query, 0)
            replica.waiting.clear()
        self._route(held)
