"""A remote replica: HTTP and a dialect, looked after while it serves.

Prompts are rendered to bytes before the clock starts; from then on a request is a head, what stands before the prompt,
the prompt, and what follows it.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from sut.backend import Backend, Sink
from sut.backends import Plan
from sut.backends.dialects import DIALECTS, Answer, Asking, Dialect, Stream
from sut.backends.http import KEY, Connection, Origin, Pool, Receiver, failure_of, request_bytes, tls_context
from sut.backends.probe import Found, Probe, Prompts, headers, without_head
from sut.backends.serve import Server, make_servers
from sut.errors import (
    Busy,
    ConfigError,
    Disconnected,
    Miscounted,
    QueryFailed,
    Rejected,
    ReplicaDied,
    SetupError,
    Unreachable,
)
from sut.query import TOKEN_DTYPE, Outcome, Query, Tokens, as_tokens

CAPACITY = 512
"""Queries that a pulling replica holds, as no server says how many it serves at once; --max-in-flight says better."""

PROBE_INTERVAL = 2.0
MISSES = 3
"""A replica is looked after every so many seconds; it is lost when its port is closed, or so many looks in a row found
no answer. One that is merely slow under load is not."""

PROGRESS_INTERVAL = 0.25

RETURN_INTERVAL = 0.5
"""Seconds between two looks at a replica that is out."""


class Remote:
    """One replica behind HTTP, perhaps started by us (`server`)."""

    drains = True  # each answer has a connection of its own

    def __init__(self, origin: Origin, plan: Plan, prompts: Prompts, server: Server | None = None) -> None:
        self.origin = origin
        self.capacity = plan.max_in_flight or max(CAPACITY, 2 * plan.offline_batch)
        self.facts: Mapping[str, Any] = {"url": str(origin)}  # until the probe has found out more
        self._plan = plan
        self._prompts = prompts
        self._server = server
        self._context = tls_context(plan.ca_file, plan.insecure) if origin.scheme == "https" else None
        self._flying: dict[int, Exchange] = {}
        self._doubtful: list[tuple[Exchange, Disconnected]] = []
        self._rendered: list[bytes] = []
        self._down: str | None = None
        self._suspected = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pools: tuple[Pool, ...] = ()
        self._pool: Pool
        self._probe: Probe
        self._found: Found
        self._head = self._before = self._after = b""

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._server is not None:
            await self._server.start()
            self.origin = Origin.parse(self._server.url)
        self._pools = Pool(self.origin, self._context), Pool(self.origin, self._context)
        self._pool = self._pools[0]
        self._probe = Probe(self.origin, self._plan, self._prompts, self._pools[1])
        if why := await self._resolve():
            raise SetupError(f"the host of {self.origin} is not known ({why}).")
        self._speak(await self._probe.find_out())
        if self._server is not None and self._server.devices:
            self.facts = {**self.facts, "devices": self._server.devices}
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        self._note_progress()

    def _speak(self, found: Found) -> None:
        """Have ready what all requests have in common."""
        plan, stream = self._plan, not self._plan.batch
        interval = plan.stream_interval or max(1, plan.generation.max_tokens)
        self.facts, self._found = found.facts, found
        self._before, self._after = found.dialect.body(Asking(found.model, plan.generation, stream, interval))
        self._head = self.origin.head("POST", found.dialect.path(stream), headers())

    async def _resolve(self) -> str | None:
        """Look the host up; why that is not possible, or None."""
        try:
            for pool in self._pools:
                await pool.resolve()
        except OSError as error:
            return error.strerror or str(error)
        return None

    async def prepare(self, prompts: Sequence[Tokens]) -> None:
        longest = max((len(prompt) for prompt in prompts), default=0)
        most = self._plan.generation.max_tokens
        limit = self._found.limit
        if limit is not None and longest + most > limit:
            raise SetupError(
                f"{self.origin} takes {limit} tokens, and the longest prompt has {longest} beside the {most} of "
                "its answer: serve the model with a longer context (--max-model-len)."
            )
        self._rendered = self._prompts.render(prompts, self._found.dialect.ids_in)
        await self._pool.warm(min(self.capacity // self._plan.offline_batch, 64))

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        for pool in self._pools:  # also if the start has failed
            pool.close()
        if self._server is not None:
            await self._server.stop()

    @property
    def metrics_url(self) -> str:
        return f"{self.origin}/metrics"

    def trouble(self) -> str | None:
        return (self._server.trouble() if self._server is not None else None) or self._down

    # -- queries -----------------------------------------------------------------------------------------------------

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        size = self._plan.offline_batch
        for start in range(0, len(queries), size):
            self._send(queries[start : start + size], sink)

    def _send(self, queries: Sequence[Query], sink: Sink) -> None:
        kind: type[Exchange] = Streamed if queries[0].stream else Exchange
        exchange = kind(self, self._found.dialect, queries, sink)
        for query in queries:
            self._flying[query.id] = exchange
        prompts = [self._prompt(query) for query in queries]
        prompt = prompts[0] if self._plan.offline_batch == 1 else b"[" + b",".join(prompts) + b"]"
        self._pool.send(request_bytes(self._head, self._before + prompt + self._after), exchange)

    def _prompt(self, query: Query) -> bytes:
        return (
            self._rendered[query.index]
            if self._rendered
            else self._prompts.one(query.prompt, self._found.dialect.ids_in)
        )

    def cancel(self, query: Query) -> None:
        exchange = self._flying.pop(query.id, None)
        if exchange is not None and exchange.is_forgotten():
            self._pool.drop(exchange)
            self._doubtful = [doubt for doubt in self._doubtful if doubt[0] is not exchange]

    def awaits(self, exchange: Exchange, query: Query) -> bool:
        return self._flying.get(query.id) is exchange

    def _release(self, exchange: Exchange, query: Query) -> bool:
        """Whether this exchange is still the one to answer the query: LoadGen's ids come again in another test."""
        if not self.awaits(exchange, query):
            return False
        del self._flying[query.id]
        return True

    def answered(self, exchange: Exchange, answers: Sequence[Answer]) -> None:
        """The answers are there, right or wrong."""
        encode = self._encode if self._plan.tokens_now else None
        for query, answer in zip(exchange.queries, answers, strict=True):
            if self._release(exchange, query):
                exchange.sink.done(query, outcome_of(answer, self._found.dialect, encode))

    def _note_progress(self) -> None:
        """A few times a second: tell of bytes that have come and wait to be looked at."""
        for exchange in self._flying.values():
            exchange.note_progress()
        self._timer = asyncio.get_running_loop().call_later(PROGRESS_INTERVAL, self._note_progress)

    def failed(self, exchange: Exchange, failure: QueryFailed) -> None:
        """What travelled together has failed together; after a broken connection, once it is known what has broken."""
        if isinstance(failure, Unreachable):
            self._down = str(failure)
        if not isinstance(failure, Rejected | Busy):
            self._suspected.set()
        if not isinstance(failure, Disconnected):
            self._end(exchange, failure)
            return
        self._doubtful.append((exchange, failure))
        if self._down is not None:
            self._end_doubts()

    def _end_doubts(self) -> None:
        doubtful, self._doubtful = self._doubtful, []
        for exchange, failure in doubtful:
            self._end(exchange, ReplicaDied(f"{failure}, and {self._down}") if self._down else failure)

    def _end(self, exchange: Exchange, failure: QueryFailed) -> None:
        for query in exchange.queries:
            if self._release(exchange, query):
                exchange.sink.done(query, Outcome(as_tokens([]), failure=failure))

    def _encode(self, text: str) -> Sequence[int]:
        assert self._plan.codec is not None
        return without_head(self._plan.codec.encode([text])[0], self._plan.codec.encode([""])[0])

    # -- while the clock runs: is it still there? --------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look after the replica, at once when it is suspected; one that is out comes back by answering a prompt."""
        misses = 0
        while True:
            pause = RETURN_INTERVAL if self._down is not None or self._doubtful else PROBE_INTERVAL
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # Python 3.11's wait_for may swallow the cancellation of `stop`
                    await self._suspected.wait()
            if self._suspected.is_set() and self._down is not None:
                await asyncio.sleep(RETURN_INTERVAL)
            self._suspected.clear()
            why, final = await self._probe.look()
            misses = misses + 1 if why else 0
            if why and (final or misses >= MISSES):
                self._down = why
                if not final:
                    self._lose_all(why)
            if self._down is not None or not why:  # a server that dies may still take a connection and drop it
                self._end_doubts()
            if self._down is not None:
                await self._resolve()  # it may come back with another address
                if not why and await self._probe.answers(self._found):
                    self._down = None

    def _lose_all(self, why: str) -> None:
        for exchange in set(self._flying.values()):
            self._pool.drop(exchange)
            exchange.failed(ReplicaDied(why))


class Exchange(Receiver):
    """One request that is answered as a whole, and the queries that travel in it."""

    __slots__ = ("_dialect", "_remote", "queries", "sink")

    def __init__(self, remote: Remote, dialect: Dialect, queries: Sequence[Query], sink: Sink) -> None:
        super().__init__()
        self._remote = remote
        self._dialect = dialect
        self.queries = queries
        self.sink = sink

    def note_progress(self) -> None:
        """Asked a few times a second: tell of bytes that have come without being looked at."""

    def is_forgotten(self) -> bool:
        """Whether nobody waits for the response any more."""
        return not any(self._remote.awaits(self, query) for query in self.queries)

    def end(self, connection: Connection) -> None:
        pieces = connection.take()
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if connection.status != 200:
            self.failed(failure_of(connection.status, body, connection.header(b"retry-after")))
            return
        try:
            answers = self._dialect.whole(body, len(self.queries))
        except QueryFailed as failure:
            self.failed(failure)
        else:
            self._remote.answered(self, answers)

    def failed(self, failure: QueryFailed) -> None:
        self._remote.failed(self, failure)


class Streamed(Exchange):
    """One query whose answer comes in events."""

    __slots__ = ("_begun", "_stream")

    def __init__(self, remote: Remote, dialect: Dialect, queries: Sequence[Query], sink: Sink) -> None:
        super().__init__(remote, dialect, queries, sink)
        self._stream = Stream(dialect)
        self._begun = False

    def body(self, connection: Connection) -> None:
        if connection.status != 200 or not connection.pieces:
            return
        try:
            self._read(connection)
        except QueryFailed as failure:
            connection.drop()
            self.failed(failure)

    def _read(self, connection: Connection) -> None:
        stream, query = self._stream, self.queries[0]
        stream.feed(connection.take())
        answer = stream.answer
        if max(len(answer.tokens), len(answer.texts)) > query.max_tokens:
            raise Miscounted(f"the answer goes on after the {query.max_tokens} tokens that were asked for")
        if self._begun:
            self.sink.progress(query, len(answer.tokens))
        elif answer.tokens or answer.texts:
            self._begun = True
            self.sink.first(query, as_tokens(answer.tokens[:1]))
            connection.patient = connection.header(b"transfer-encoding") is not None

    def note_progress(self) -> None:
        connection = self.connection
        if connection is not None and connection.stirred:
            connection.stirred = False
            self.sink.progress(self.queries[0], len(self._stream.answer.tokens))

    def end(self, connection: Connection) -> None:
        if connection.status != 200:
            super().end(connection)
            return
        try:
            if connection.pieces:
                self._read(connection)
            self._stream.finish()
        except QueryFailed as failure:
            self.failed(failure)
            return
        self._remote.answered(self, [self._stream.answer])


def outcome_of(answer: Answer, dialect: Dialect, encode: Callable[[str], Sequence[int]] | None = None) -> Outcome:
    """What a replica has said as an outcome, failed if the replica has counted otherwise; `encode` gives a text's
    tokens, where they are wanted."""
    failure = None
    if dialect.ids_out:
        tokens, text, said = np.frombuffer(answer.tokens, TOKEN_DTYPE), None, 0
        if answer.said is not None and answer.said != len(tokens) and answer.finish in ("stop", "length"):
            failure = Miscounted(f"the answer has {len(tokens)} tokens, and the replica has counted {answer.said}")
    else:
        text, said = "".join(answer.texts), answer.said or 0
        tokens = as_tokens(encode(text) if encode is not None else [])
        if answer.said is None and answer.finish in ("stop", "length"):
            failure = Miscounted("the replica has not said how many tokens its text has")
    return Outcome(tokens, answer.finish, failure, text=text, said=said)


def make_replicas(plan: Plan) -> Sequence[Backend]:
    """A replica per endpoint, or per server to be started. Raises ConfigError or SetupError."""
    refuse_odd_talk(plan.dialect)
    allow_many_files()
    prompts = Prompts(plan)
    if plan.serve:
        servers = make_servers(plan)
        return [Remote(Origin("http", "127.0.0.1", 0), plan, prompts, server) for server in servers]
    if not plan.endpoints:
        raise ConfigError("the remote backend needs replicas: name them with --endpoint, or start some with --serve.")
    return [Remote(Origin.parse(url), plan, prompts) for url in plan.endpoints]


def refuse_odd_talk(dialect: str | None) -> None:
    """Raises ConfigError for an API key that is none, or a dialect that nobody knows here."""
    key = os.environ.get(KEY, "")
    if not all(33 <= ord(letter) <= 126 for letter in key):
        raise ConfigError(f"{KEY} holds characters that no API key has: is there a line end in it?")
    if dialect is not None and dialect not in DIALECTS:
        raise ConfigError(f"unknown dialect {dialect!r}: choose one of {', '.join(DIALECTS)}.")


def allow_many_files() -> None:
    """A connection is a file, and a shell's usual limit is 1,024 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
