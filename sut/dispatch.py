"""Which replica serves a query: the replica's books and the policies that read them.

A policy is asked on every query, so `pick` is O(1). The books (`in_flight` and so on) are kept by the SUT, on its loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from sut.backend import Backend
from sut.errors import ConfigError
from sut.query import Query


@dataclass(slots=True, eq=False)
class Replica:
    """One replica and what it is doing.

    `cap` limits its queries in flight, further ones wait for it in `waiting`; without one, a pulling replica takes its
    backend's capacity and the other policies hand over at once.
    """

    name: str
    backend: Backend
    cap: int | None = None
    in_flight: int = 0
    waiting: deque[Query] = field(default_factory=deque)
    ejected: str | None = None
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
    """Chooses among the replicas that are not ejected."""

    def pick(self, query: Query) -> Replica | None:
        """The replica to serve this query, which is then started; None: keep it queued until one has room."""

    def finished(self, replica: Replica) -> None:
        """A query has left the replica; `replica.in_flight` is already lower."""

    def eject(self, replica: Replica) -> None:
        """No more work for it."""

    def admit(self, replica: Replica) -> None:
        """It may work again."""


class RoundRobin:
    """Each query to the next replica in turn, whatever the replicas are doing."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._live = list(replicas)
        self._next = 0

    def pick(self, query: Query) -> Replica | None:
        if not self._live:
            return None
        self._next = (self._next + 1) % len(self._live)
        return self._live[self._next - 1]

    def finished(self, replica: Replica) -> None:
        pass

    def eject(self, replica: Replica) -> None:
        self._live.remove(replica)

    def admit(self, replica: Replica) -> None:
        self._live.append(replica)


class Pull:
    """One common queue; each replica takes the next query as it has room: none idles while another has a backlog.

    `_roomy` holds every live replica with room, once, and maybe some that have none any more: second attempts are given
    out past this policy. Those fall out when their turn comes, and come back when a query of theirs ends.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._roomy = deque(replicas)
        self._listed = set(replicas)

    def pick(self, query: Query) -> Replica | None:
        while self._roomy:
            replica = self._roomy.popleft()
            if replica.room > 1 and replica.ejected is None:
                self._roomy.append(replica)
                return replica
            self._listed.discard(replica)
            if replica.room > 0 and replica.ejected is None:
                return replica
        return None

    def finished(self, replica: Replica) -> None:
        self.admit(replica)

    def eject(self, replica: Replica) -> None:
        pass

    def admit(self, replica: Replica) -> None:
        if replica not in self._listed and replica.ejected is None:
            self._listed.add(replica)
            self._roomy.append(replica)


POLICIES: dict[str, Callable[[Sequence[Replica]], Policy]] = {"pull": Pull, "round-robin": RoundRobin}


def make_policy(name: str, replicas: Sequence[Replica]) -> Policy:
    """The policy of that name. Raises ConfigError, listing the names."""
    try:
        return POLICIES[name](replicas)
    except KeyError:
        raise ConfigError(f"unknown dispatch policy {name!r}: choose one of {', '.join(POLICIES)}.") from None
