"""One test's work for the SUT: what it asks, who hears of the answers, and the books that are kept of it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sut.health import Deadlines
from sut.query import Outcome, Query, Tokens


class Responder(Protocol):
    """Who hears of answers, on the SUT's loop."""

    def first(self, query: Query, ids: Tokens) -> None:
        """The first token of a streamed answer."""

    def done(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        """Queries that ended in this tick of the loop, in order; arrays may be dropped after return."""

    def close(self) -> None:
        """The test has ended: what is still answered, after a stop, is no longer part of it."""


@dataclass(slots=True)
class Work:
    """What one test asks of the SUT: the prompts by sample index, how to answer, and who hears of it; then its books.
    `known` are answers by sample index that an earlier part of the same test has brought, and that nobody is asked for.
    `concurrency` makes it a closed loop: so many queries at once, the next is released as one ends. `gaps`, if there is
    such an array, takes the seconds between two frames of an answer that brought one token each.
    `pulse` is called on the loop with this work and the moment: at the first callback, each second from then on, and
    once more at the end.
    `deadlines` are the test's own; None: the SUT's.

    `began` and `ended` are the first callback and the end of the last answer, `cpu_*` the CPU time of the loop then.
    `failures` and `retries` count by kind, `failed_on` the failures for good by replica. `loop_lags` are how late a
    timer of the loop rang, `respond_times` how long the oldest answer of a tick waited until the responder had it; in
    seconds.
    """

    prompt: Callable[[int], Tokens]
    stream: bool
    max_tokens: int
    responder: Responder
    known: Mapping[int, Tokens] = field(default_factory=dict)
    concurrency: int | None = None
    gaps: array[float] | None = None
    pulse: Callable[[Work, float], None] | None = None
    deadlines: Deadlines | None = None
    began: float = 0.0
    ended: float = 0.0
    cpu_began: float = 0.0
    cpu_ended: float = 0.0
    issued: int = 0
    completed: int = 0
    tokens: int = 0
    late: int = 0
    loop_lags: array[float] = field(default_factory=lambda: array("d"))
    respond_times: array[float] = field(default_factory=lambda: array("d"))
    failures: Counter[str] = field(default_factory=Counter)
    failed_on: Counter[str] = field(default_factory=Counter)
    first_failure: str | None = None
    retries: Counter[str] = field(default_factory=Counter)
    first_retry: str | None = None


class Counts(NamedTuple):
    """A glance at a running test, readable from any thread."""

    issued: int
    completed: int
    failed: int
    tokens: int
    in_flight: int
