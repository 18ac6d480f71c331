"""What a replica's backend must offer, and what it may call.

A backend pushes: it calls its Sink, and nothing is awaited per query. All of it happens on the SUT's one loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from math import nan
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sut.errors import BackendError, QueryFailed
from sut.query import Outcome, Query, Tokens, as_tokens


class Sink(Protocol):
    """Where a backend delivers what it has; calls for a query that is already done are counted and dropped."""

    def first(self, query: Query, ids: Tokens) -> None:
        """The first token of a streamed answer, int32, shape (1,), or empty from a replica that answers in text; once,
        before `done`."""

    def progress(self, query: Query, tokens: int) -> None:
        """`tokens` of the answer are known to have arrived so far; optional, it feeds the stall deadline and policies
        that weigh tokens."""

    def done(self, query: Query, outcome: Outcome) -> None:
        """The end of a query, once."""


class Backend(Protocol):
    """One replica's engine or connection; touched on the SUT's loop only."""

    capacity: int
    """Queries in flight beyond which a further one only waits; what a pulling replica takes."""

    facts: Mapping[str, Any]
    """What the engine turned out to be, for the record; known after `start`."""

    drains: bool
    """Whether what is in flight may still be answered after `trouble`; if not, it is lost with the replica."""

    async def start(self) -> None:
        """Come up, warmed by synthetic prompts. Raises ConfigError or SetupError."""

    async def prepare(self, prompts: Sequence[Tokens]) -> None:
        """Do before the clock starts what can be done for these prompts, all of the samples, in order. Raises
        SetupError for a prompt that the replica cannot serve."""

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        """Serve these; several are one Offline batch."""

    def cancel(self, query: Query) -> None:
        """Stop working on a query; nothing further is said about it. Never raises."""

    def trouble(self) -> str | None:
        """Why this replica cannot serve any more, or None; asked a few times a second, also when idle."""

    async def stop(self) -> None:
        """Go away; never raises."""


class Gauges(NamedTuple):
    """What an engine says of itself at one moment; nan is what it does not say.

    `running` and `waiting` are requests, `kv_cache_usage` is from 0 to 1; the others count from the engine's start.
    """

    running: float = nan
    waiting: float = nan
    kv_cache_usage: float = nan
    preemptions: float = nan
    prompt_tokens: float = nan
    generation_tokens: float = nan


@runtime_checkable
class Gauged(Protocol):
    """What a backend may offer besides: an engine in this process can be asked at once."""

    def gauges(self) -> Gauges:
        """Its state now, at the cost of reading a few numbers; from any thread. Never raises."""


@runtime_checkable
class Scraped(Protocol):
    """What a backend may offer besides: an engine behind HTTP says it to who asks there."""

    @property
    def metrics_url(self) -> str:
        """Where its /metrics are, in Prometheus' text format; known after `start`."""


async def drive(frames: AsyncIterator[tuple[Sequence[int], str | None]], query: Query, sink: Sink) -> None:
    """Push what an async generator of (new token ids, finish reason or None) yields into a sink; always ends in `done`.

    The first token is the first id alone, also when a late reader finds several merged into one frame.
    """
    ids: list[int] = []
    reason: str | None = None
    failure: QueryFailed | None = None
    try:
        async for new, reason in frames:
            if new:
                if query.stream and not ids:
                    sink.first(query, as_tokens(new[:1]))
                ids.extend(new)
                if reason is None:
                    sink.progress(query, len(ids))
    except QueryFailed as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - an engine's unknown error must still answer the query
        failure = BackendError(f"{type(error).__name__}: {error}")
    sink.done(query, Outcome(as_tokens(ids), reason, failure))
