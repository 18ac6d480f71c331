"""Which replica serves a query: the replica's books and the policies that read them.

A policy is asked on every query, so none looks through all replicas for one: at 1,000 of them a query costs at most
three times what it costs at 10 (scripts/bench_dispatch.py). The books (`in_flight` and so on) are kept by the SUT, on
its loop; what a policy needs beyond them it counts itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from random import Random
from typing import Protocol

from sut.backend import Backend
from sut.errors import ConfigError
from sut.query import Query


@dataclass(slots=True, eq=False)
class Replica:
    """One replica and what it is doing.

    `cap` limits its queries in flight, further ones wait for it in `waiting`; without one, a pulling replica takes its
    backend's capacity and the other policies hand over at once. `serving` says whether it may be given work: neither a
    dead replica, whose `ejected` is the reason, nor one that rests until a moment. `failing` counts its failures since
    the last right answer.
    """

    name: str
    backend: Backend
    cap: int | None = None
    in_flight: int = 0
    waiting: deque[Query] = field(default_factory=deque)
    ejected: str | None = None
    serving: bool = True
    rests_until: float = 0.0
    failing: int = 0
    books: Books = field(default_factory=lambda: Books())

    @property
    def room(self) -> float:
        """How many more queries it takes now."""
        return inf if self.cap is None else self.cap - self.in_flight


@dataclass(slots=True)
class Books:
    """What one replica did in one test. Moments are seconds of `time.perf_counter`."""

    queries: int = 0
    tokens: int = 0
    failures: int = 0
    busy: float = 0.0
    busy_since: float = 0.0
    last_done: float = 0.0
    ejected_at: float | None = None


class Policy(Protocol):
    """Chooses among the replicas that are serving, whatever else has happened to them.

    What was started on a replica is finished on it, once, be it ejected by then or back again.
    """

    def pick(self, query: Query) -> Replica | None:
        """The replica to serve this query; None: keep it queued until one has room. Does not count it."""

    def started(self, replica: Replica, query: Query) -> None:
        """The replica was given this query, which is in flight there or waits for it; also one that was not picked."""

    def progressed(self, replica: Replica, tokens: int) -> None:
        """So many further tokens of an answer have arrived from it."""

    def finished(self, replica: Replica, query: Query, tokens: int) -> None:
        """A query has left the replica, of whose answer `progressed` had reported so many tokens in all.

        `replica.in_flight` is already lower.
        """

    def eject(self, replica: Replica) -> None:
        """No more work for it: `serving` is already False. Maybe said twice."""

    def admit(self, replica: Replica) -> None:
        """It may work again: `serving` is already True. Maybe said twice."""


class Uncounted:
    """The part of a policy that keeps no books of its own."""

    def started(self, replica: Replica, query: Query) -> None:
        pass

    def progressed(self, replica: Replica, tokens: int) -> None:
        pass

    def finished(self, replica: Replica, query: Query, tokens: int) -> None:
        pass


class Listed:
    """The part of a policy that keeps a list of the replicas that are serving."""

    _live: MutableSequence[Replica]

    def eject(self, replica: Replica) -> None:
        if replica in self._live:
            self._live.remove(replica)

    def admit(self, replica: Replica) -> None:
        if replica not in self._live:
            self._live.append(replica)


class RoundRobin(Listed, Uncounted):
    """Each query to the next replica in turn, whatever the replicas are doing."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._live: deque[Replica] = deque(replicas)

    def pick(self, query: Query) -> Replica | None:
        if not self._live:
            return None
        self._live.rotate(-1)
        return self._live[-1]


class Pull(Uncounted):
    """One common queue; each replica takes the next query as it has room: none idles while another has a backlog.

    `_roomy` holds every serving replica with room, once, and maybe some that have none any more or are not serving.
    Those fall out when their turn comes, and come back when a query of theirs ends or they are admitted.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._roomy = deque(replicas)
        self._listed = set(replicas)

    def pick(self, query: Query) -> Replica | None:
        while self._roomy:
            replica = self._roomy[0]
            if replica.serving and replica.room > 0:
                self._roomy.rotate(-1)
                return replica
            self._listed.discard(self._roomy.popleft())
        return None

    def finished(self, replica: Replica, query: Query, tokens: int) -> None:
        self.admit(replica)

    def eject(self, replica: Replica) -> None:
        pass

    def admit(self, replica: Replica) -> None:
        if replica not in self._listed and replica.serving:
            self._listed.add(replica)
            self._roomy.append(replica)


Entry = tuple[int, int, int]
"""A place in the order of `Least`: load, turn, the seat's number."""

UNLISTED: Entry = (-1, -1, -1)


@dataclass(slots=True, eq=False)
class Seat:
    """What `Least` knows of a replica: its load, the last turn in which it was given work, its entry that counts."""

    replica: Replica
    number: int
    entry: Entry
    load: int = 0
    turn: int = 0


class Least:
    """The replica with the least load; among equals, the one that was given work longest ago.

    Load and turn mostly grow, so an entry of the heap is a lower bound: growth leaves it as it is, and `pick` corrects
    what it finds on top until that is true. Only a load that falls below its entry needs a new one; the old one is
    dropped when it comes to the top or the heap is made anew. So each call leaves at most one correction to make.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._seats = [Seat(replica, number, (0, 0, number)) for number, replica in enumerate(replicas)]
        self._seat_of = {seat.replica: seat for seat in self._seats}
        self._heap = [seat.entry for seat in self._seats]
        self._longest = 4 * len(self._heap) + 64
        self._turn = 0

    def pick(self, query: Query) -> Replica | None:
        heap = self._heap
        while heap:
            entry = heap[0]
            load, turn, number = entry
            seat = self._seats[number]
            if entry is not seat.entry:
                heappop(heap)
            elif not seat.replica.serving:
                heappop(heap)
                seat.entry = UNLISTED
            elif load == seat.load and turn == seat.turn:
                return seat.replica
            else:
                seat.entry = (seat.load, seat.turn, number)
                heapreplace(heap, seat.entry)
        return None

    def eject(self, replica: Replica) -> None:
        pass

    def admit(self, replica: Replica) -> None:
        seat = self._seat_of[replica]
        if seat.entry is UNLISTED:
            self._list(seat)

    def _add(self, replica: Replica, load: int) -> None:
        self._turn += 1
        seat = self._seat_of[replica]
        seat.load += load
        seat.turn = self._turn

    def _take(self, replica: Replica, load: int) -> None:
        seat = self._seat_of[replica]
        seat.load -= load
        if seat.load < seat.entry[0]:  # never while it is unlisted
            self._list(seat)

    def _list(self, seat: Seat) -> None:
        seat.entry = (seat.load, seat.turn, seat.number)
        heappush(self._heap, seat.entry)
        if len(self._heap) > self._longest:
            self._heap = [seat.entry for seat in self._seats if seat.entry is not UNLISTED]
            heapify(self._heap)


class LeastOutstanding(Least):
    """The load is the number of queries started and not finished."""

    def started(self, replica: Replica, query: Query) -> None:
        self._add(replica, 1)

    def progressed(self, replica: Replica, tokens: int) -> None:
        pass

    def finished(self, replica: Replica, query: Query, tokens: int) -> None:
        self._take(replica, 1)


class LeastTokens(Least):
    """The load is the prompts' lengths and the answers so far of the queries started and not finished.

    How long an answer will be is not guessed from others: that would be to know the dataset.
    """

    def started(self, replica: Replica, query: Query) -> None:
        self._add(replica, len(query.prompt))

    def progressed(self, replica: Replica, tokens: int) -> None:
        self._seat_of[replica].load += tokens

    def finished(self, replica: Replica, query: Query, tokens: int) -> None:
        self._take(replica, len(query.prompt) + tokens)


class PowerOfTwo(Listed):
    """The less outstanding of two replicas drawn at random; the same draws in each run."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._live = list(replicas)
        self._outstanding = dict.fromkeys(replicas, 0)
        self._random = Random(0).random

    def pick(self, query: Query) -> Replica | None:
        live = self._live
        if len(live) < 2:
            return live[0] if live else None
        one = int(self._random() * len(live))
        other = int(self._random() * (len(live) - 1))
        a, b = live[one], live[other + (other >= one)]
        return a if self._outstanding[a] <= self._outstanding[b] else b

    def started(self, replica: Replica, query: Query) -> None:
        self._outstanding[replica] += 1

    def progressed(self, replica: Replica, tokens: int) -> None:
        pass

    def finished(self, replica: Replica, query: Query, tokens: int) -> None:
        self._outstanding[replica] -= 1


POLICIES: dict[str, Callable[[Sequence[Replica]], Policy]] = {
    "pull": Pull,
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
    "least-tokens": LeastTokens,
    "power-of-two": PowerOfTwo,
}


def make_policy(name: str, replicas: Sequence[Replica]) -> Policy:
    """The policy of that name. Raises ConfigError, listing the names."""
    try:
        return POLICIES[name](replicas)
    except KeyError:
        raise ConfigError(f"unknown dispatch policy {name!r}: choose one of {', '.join(POLICIES)}.") from None
