"""A remote replica: HTTP and a dialect.

What a server is – its model, how it is best spoken to, whether it really decodes greedily – is found out before the
clock starts, and one that would spoil a test is refused there. Prompts are rendered to bytes beforehand too.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import msgspec
import numpy as np

from sut.backend import Backend, Sink
from sut.backends import Plan
from sut.backends.dialects import DIALECTS, UNREADABLE, Answer, Asking, Dialect, Stream, excerpt
from sut.backends.http import KEY, Connection, Origin, Pool, Receiver, fetch, hide, request_bytes
from sut.backends.serve import Server, make_servers
from sut.errors import (
    Busy,
    ConfigError,
    Disconnected,
    ErrorFrame,
    Malformed,
    Miscounted,
    QueryFailed,
    Rejected,
    ReplicaDied,
    ServerError,
    SetupError,
    Unreachable,
)
from sut.query import TOKEN_DTYPE, Outcome, Query, Tokens, as_tokens

CAPACITY = 512
"""Queries that a pulling replica holds, as no server says how many it serves at once; --max-in-flight says better."""

PROBE_INTERVAL = 2.0
PROBE_LIMIT = 10.0
MISSES = 3
"""A replica is looked after every so many seconds; it is lost when its port is closed, or so many looks in a row found
no answer within the limit. One that is merely slow under load is not."""

PROGRESS_INTERVAL = 0.25

RETURN_INTERVAL = 0.5
"""Seconds between two looks at a replica that is out."""

FIRST_LIMIT = 120.0
"""Seconds that a server may take for its first answers: some compile then."""

SYNTHETIC = tuple(range(100, 116))
"""A prompt that is no sample: MLCommons' rules forbid to warm up on those."""

GREEDY_TRIES, GREEDY_TOKENS = 4, 16


class Prompts:
    """All samples' prompts as JSON, rendered once for all replicas that take them in the same form."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._source: Sequence[Tokens] = ()
        self._rendered: dict[bool, list[bytes]] = {}

    def render(self, prompts: Sequence[Tokens], as_ids: bool) -> list[bytes]:
        if prompts is not self._source:  # another test's samples
            self._source, self._rendered = prompts, {}
        if as_ids not in self._rendered:
            self._rendered[as_ids] = [self.one(prompt, as_ids) for prompt in prompts]
        return self._rendered[as_ids]

    def one(self, prompt: Tokens, as_ids: bool) -> bytes:
        ids = prompt.tolist()
        if as_ids:
            return msgspec.json.encode(ids)
        assert self._plan.codec is not None, "a text dialect is refused without a tokenizer"
        return msgspec.json.encode(self._plan.codec.decode([ids])[0])


class Remote:
    """One replica behind HTTP, perhaps started by us (`server`)."""

    drains = True  # each answer has a connection of its own

    def __init__(self, origin: Origin, plan: Plan, prompts: Prompts, server: Server | None = None) -> None:
        self.origin = origin
        self.capacity = plan.max_in_flight or max(CAPACITY, 2 * plan.offline_batch)
        self.facts: Mapping[str, Any] = {"url": str(origin)}
        self._plan = plan
        self._prompts = prompts
        self._server = server
        self._context = _tls(plan) if origin.scheme == "https" else None
        self._flying: dict[int, Exchange] = {}
        self._doubtful: list[tuple[Exchange, Disconnected]] = []
        self._rendered: list[bytes] = []
        self._down: str | None = None
        self._suspected = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pools: tuple[Pool, ...] = ()
        self._pool: Pool
        self._probes: Pool
        self._model = ""
        self._limit: int | None = None
        self._dialect: Dialect
        self._head = self._before = self._after = b""

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._server is not None:
            await self._server.start()
            self.origin = Origin.parse(self._server.url)
            self.facts = {"url": str(self.origin)}
        self._pool, self._probes = self._pools = Pool(self.origin, self._context), Pool(self.origin, self._context)
        if why := await self._resolve():
            raise SetupError(f"the host of {self.origin} is not known ({why}).")
        try:
            await self._find_out()
            await self._check_greedy()
            await self._check_tokenizer()
        except QueryFailed as error:
            raise SetupError(f"{self.origin} is not ready: {error}.") from error
        except TimeoutError as error:
            raise SetupError(f"{self.origin} has not answered a short prompt within {FIRST_LIMIT:g} s.") from error
        if why := (await self._look())[0]:
            raise SetupError(f"{why}: the harness looks there to see that a replica is alive.")
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        self._note_progress()

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
        if self._limit is not None and longest + most > self._limit:
            raise SetupError(
                f"{self.origin} takes {self._limit} tokens, and the longest prompt has {longest} beside the {most} of "
                "its answer: serve the model with a longer context (--max-model-len)."
            )
        self._rendered = self._prompts.render(prompts, self._dialect.ids_in)
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

    def trouble(self) -> str | None:
        return (self._server.trouble() if self._server is not None else None) or self._down

    # -- queries -----------------------------------------------------------------------------------------------------

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        size = self._plan.offline_batch
        for start in range(0, len(queries), size):
            self._send(queries[start : start + size], sink)

    def _send(self, queries: Sequence[Query], sink: Sink) -> None:
        kind: type[Exchange] = Streamed if queries[0].stream else Exchange
        exchange = kind(self, self._dialect, queries, sink)
        for query in queries:
            self._flying[query.id] = exchange
        prompts = [self._prompt(query) for query in queries]
        prompt = prompts[0] if self._plan.offline_batch == 1 else b"[" + b",".join(prompts) + b"]"
        self._pool.send(request_bytes(self._head, self._before + prompt + self._after), exchange)

    def _prompt(self, query: Query) -> bytes:
        return self._rendered[query.index] if self._rendered else self._prompts.one(query.prompt, self._dialect.ids_in)

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
        for query, answer in zip(exchange.queries, answers, strict=True):
            if self._release(exchange, query):
                exchange.sink.done(query, self._outcome(answer))

    def _note_progress(self) -> None:
        """A few times a second: tell of bytes that have come and wait to be looked at."""
        for exchange in self._flying.values():
            exchange.note_progress()
        self._timer = asyncio.get_running_loop().call_later(PROGRESS_INTERVAL, self._note_progress)

    def _outcome(self, answer: Answer) -> Outcome:
        failure = None
        if self._dialect.ids_out:
            tokens, text, said = np.frombuffer(answer.tokens, TOKEN_DTYPE), None, 0
            if answer.said is not None and answer.said != len(tokens) and answer.finish in ("stop", "length"):
                failure = Miscounted(f"the answer has {len(tokens)} tokens, and the replica has counted {answer.said}")
        else:
            text, said = "".join(answer.texts), answer.said or 0
            tokens = as_tokens(self._encode(text) if self._plan.tokens_now else [])
            if answer.said is None and answer.finish in ("stop", "length"):
                failure = Miscounted("the replica has not said how many tokens its text has")
        return Outcome(tokens, answer.finish, failure, text=text, said=said)

    def failed(self, exchange: Exchange, failure: QueryFailed) -> None:
        """What travelled together has failed together; after a broken connection, once it is known what has broken."""
        if isinstance(failure, Unreachable):
            self._down = str(failure)
        if not isinstance(failure, Rejected | Busy):
            self._suspected.set()
        if isinstance(failure, Disconnected) and self._down is None:
            self._doubtful.append((exchange, failure))
        else:
            self._end(exchange, failure)

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

    # -- before the clock: what is this server? ----------------------------------------------------------------------

    async def _find_out(self) -> None:
        """Its model, and the best dialect that it speaks. Raises SetupError, QueryFailed or TimeoutError."""
        models = await self._models()
        self._model = choose_model(self._plan.served_model, models, self.origin)
        found = next((model for model in models or [] if model["id"] == self._model), {})
        self._limit = found.get("max_model_len") if isinstance(found.get("max_model_len"), int) else None
        families = [self._plan.dialect] if self._plan.dialect else list(DIALECTS)
        refusals: list[str] = []
        for dialect in (dialect for family in families for dialect in DIALECTS[family]):
            why = await self._why_not(dialect)
            if why is None:
                self._speak(dialect)
                await self._add_facts()
                return
            if why not in refusals:
                refusals.append(why)
        named = f"the dialect {self._plan.dialect}" if self._plan.dialect else "no dialect known here"
        does = "does not speak" if self._plan.dialect else "speaks"
        raise SetupError(f"{self.origin} {does} {named}: {'; '.join(refusals)}.")

    async def _models(self) -> list[dict[str, Any]] | None:
        status, body = await self._get("/v1/models")
        if status in (401, 403):
            raise SetupError(f"{self.origin} refuses the API key: set the environment variable {KEY}.")
        if status != 200:
            return None
        try:
            listed = msgspec.json.decode(body)["data"]
            return [model for model in listed if isinstance(model["id"], str)]
        except (*UNREADABLE, KeyError, TypeError):
            return None

    async def _why_not(self, dialect: Dialect) -> str | None:
        """Why this dialect does not serve here, or None."""
        plan, route = self._plan, dialect.path(stream=False)
        if plan.offline_batch > 1 and not dialect.many:
            return f"{route} takes no batches"
        if not dialect.ids_in and plan.codec is None:
            return f"{route} takes text, which needs a tokenizer"
        for stream in (False,) if plan.batch else (False, True):
            does = "streams" if stream else "answers"
            try:
                answer = await self._ask(dialect, tokens=4, stream=stream)
            except Rejected as error:
                return f"{route} {does} {error}"
            except (ServerError, Malformed, ErrorFrame, Miscounted, Disconnected) as error:
                return f"{route}: {error}"
            if answer.finish is None:
                return f"{route} {does} without a finish reason"
            if dialect.ids_out and not answer.tokens:
                return f"{route} {does} without token ids"
            if not dialect.ids_out and answer.said is None:
                return f"{route} {does} without saying how many tokens there are (usage)"
        return None

    def _speak(self, dialect: Dialect) -> None:
        """Settle on a dialect: from now on a request is a head, what stands before the prompt, it, and what follows."""
        plan = self._plan
        stream = not plan.batch
        interval = plan.stream_interval or max(1, plan.generation.max_tokens)
        asking = Asking(self._model, plan.generation, stream, interval)
        self._dialect = dialect
        self._before, self._after = dialect.body(asking)
        self._head = self.origin.head("POST", dialect.path(stream), headers())

    async def _add_facts(self) -> None:
        status, body = await self._get("/version")
        version = None
        if status == 200:
            with suppress(*UNREADABLE, AttributeError):
                version = msgspec.json.decode(body).get("version")
        self.facts = dict(self.facts) | {
            "dialect": self._dialect.name,
            "tried": self._dialect.tried,
            "route": self._dialect.path(not self._plan.batch),
            "prompts": "token ids" if self._dialect.ids_in else "text",
            "answers": "token ids" if self._dialect.ids_out else "text",
            "model": self._model,
            "max_model_len": self._limit,
            "version": version,
            "prefix_caching": prefix_caching(*await self._get("/metrics")),
        }

    async def _check_greedy(self) -> None:
        """Refuse a server that samples although temperature 0 is asked: its answers to one prompt would differ.

        Two different answers are let pass: in bfloat16 a near tie may fall either way.
        """
        if self._plan.generation.temperature != 0:
            return
        answers = [await self._ask(self._dialect, GREEDY_TOKENS) for _ in range(GREEDY_TRIES)]
        if len({(answer.tokens.tobytes(), "".join(answer.texts)) for answer in answers}) > 2:
            raise SetupError(
                f"{self.origin} samples although temperature 0 is asked: {GREEDY_TRIES} answers to one prompt differ; "
                "look at its generation config."
            )

    async def _check_tokenizer(self) -> None:
        """Refuse a server whose tokenizer cuts a text otherwise, where it tells."""
        codec, text = self._plan.codec, "The quick brown fox, 1234 jumps — über\n den Zaun."
        same = "not checked"
        if codec is not None:
            body = msgspec.json.encode({"model": self._model, "prompt": text, "add_special_tokens": False})
            status, answer = await self._post("/tokenize", body)
            with suppress(*UNREADABLE, KeyError, TypeError):
                theirs = msgspec.json.decode(answer)["tokens"] if status == 200 else None
                if theirs is not None and all(isinstance(token, int) for token in theirs):
                    if list(theirs) != list(without_head(codec.encode([text])[0], codec.encode([""])[0])):
                        raise SetupError(
                            f"{self.origin} has another tokenizer than {self._plan.model}: name the model that it "
                            "serves with --model."
                        )
                    same = "the same"
        self.facts = dict(self.facts) | {"tokenizer": same}

    # -- short talks, off the hot path -------------------------------------------------------------------------------

    async def _ask(self, dialect: Dialect, tokens: int, stream: bool = False) -> Answer:
        """One short synthetic prompt. Raises QueryFailed or TimeoutError."""
        how = replace(self._plan.generation, max_tokens=tokens)
        before, after = dialect.body(Asking(self._model, how, stream, max(1, tokens)))
        prompt = self._prompts.one(as_tokens(SYNTHETIC), dialect.ids_in)
        if self._plan.offline_batch > 1:
            prompt = b"[" + prompt + b"]"
        status, body = await self._post(dialect.path(stream), before + prompt + after)
        if status != 200:
            raise failure_of(status, body, None)
        if not stream:
            return dialect.whole(body, 1)[0]
        reader = Stream(dialect)
        reader.feed([body])
        reader.finish()
        return reader.answer

    async def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        return await fetch(self._probes, request_bytes(self.origin.head("POST", path, headers()), body), FIRST_LIMIT)

    async def _get(self, path: str, limit: float = FIRST_LIMIT) -> tuple[int, bytes]:
        return await fetch(self._probes, request_bytes(self.origin.head("GET", path, headers()), b""), limit)

    # -- while the clock runs: is it still there? --------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look after the replica, at once when it is suspected; one that is out comes back by answering a prompt."""
        misses = 0
        while True:
            pause = PROBE_INTERVAL if self._down is None else RETURN_INTERVAL
            with suppress(TimeoutError):
                await asyncio.wait_for(self._suspected.wait(), pause)
            if self._suspected.is_set() and self._down is not None:
                await asyncio.sleep(RETURN_INTERVAL)
            self._suspected.clear()
            why, final = await self._look()
            misses = misses + 1 if why else 0
            if why and (final or misses >= MISSES):
                self._down = why
                if not final:
                    self._lose_all(why)
            self._end_doubts()
            if self._down is not None:
                await self._resolve()  # it may come back with another address
                if not why and await self._answers():
                    self._down = None

    async def _look(self) -> tuple[str | None, bool]:
        """What is wrong with the replica, if anything, and whether that is beyond doubt."""
        try:
            status, _ = await self._get("/health", PROBE_LIMIT)
        except Unreachable as error:
            return str(error), True
        except TimeoutError:
            return f"{self.origin} does not answer /health within {PROBE_LIMIT:g} s", False
        except QueryFailed as error:
            return f"{self.origin} does not answer /health: {error}", False
        return (f"{self.origin} says that it is not healthy (HTTP {status})", True) if status >= 500 else (None, False)

    async def _answers(self) -> bool:
        try:
            answer = await self._ask(self._dialect, tokens=4)
        except (QueryFailed, TimeoutError):
            return False
        return bool(answer.tokens) or bool(answer.said)

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


# -- decisions ---------------------------------------------------------------------------------------------------------


def failure_of(status: int, body: bytes, retry_after: bytes | None) -> QueryFailed:
    """What an HTTP status other than 200 means for the queries of the request."""
    text = f"HTTP {status}: {message_of(body)}" if body.strip() else f"HTTP {status}"
    if status in (429, 503):
        return Busy(text, pause_of(retry_after))
    return ServerError(text) if status >= 500 else Rejected(text)


def message_of(body: bytes) -> str:
    """The sentence in an error's body, wherever its server puts it; without the API key, which some repeat."""
    with suppress(*UNREADABLE):
        content = msgspec.json.decode(body)
        while isinstance(content, dict):
            content = next((content[key] for key in ("error", "message", "detail") if content.get(key)), "")
        if isinstance(content, str) and content:
            return hide(content)[:200]
    return excerpt(body)


def pause_of(retry_after: bytes | None) -> float:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); 1 without one, never less than 0.1."""
    text = (retry_after or b"1").decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return max(0.1, float(text[:9]))
    try:
        return max(0.1, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, OverflowError):
        return 1.0


def prefix_caching(status: int, metrics: bytes) -> bool | None:
    """Whether a server reuses prompts' caches, as vLLM's /metrics tell; None where they do not."""
    found = re.search(rb'cache_config_info\{[^}]*enable_prefix_caching="(True|False)"', metrics)
    return found[1] == b"True" if status == 200 and found else None


def choose_model(asked: str | None, models: Sequence[Mapping[str, Any]] | None, origin: Origin) -> str:
    """The name to ask for. Raises SetupError if it is not served, or not to be known."""
    if models is None:
        if asked is None:
            raise SetupError(f"{origin} does not list its models: name the one to ask for with --served-model.")
        return asked
    names = [str(model["id"]) for model in models]
    if asked is not None:
        if asked not in names:
            raise SetupError(f"{origin} does not serve {asked!r}: it serves {', '.join(names) or 'nothing'}.")
        return asked
    bases = [str(model["id"]) for model in models if not model.get("parent")]  # vLLM lists adapters too
    if len(bases) != 1:
        raise SetupError(f"{origin} serves {', '.join(names) or 'no model'}: choose with --served-model.")
    return bases[0]


def without_head(ids: Sequence[int], head: Sequence[int]) -> Sequence[int]:
    """Token ids of a text without what the tokenizer puts before any text."""
    return ids[len(head) :] if list(ids[: len(head)]) == list(head) else ids


def headers() -> dict[str, str]:
    """Of every request. The API key lives in the environment only."""
    key = os.environ.get(KEY)
    return {"Content-Type": "application/json", "Accept": "*/*"} | ({"Authorization": f"Bearer {key}"} if key else {})


def _tls(plan: Plan) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=plan.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"cannot read the certificates in {plan.ca_file}: {error}.") from error
    if plan.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def make_replicas(plan: Plan) -> Sequence[Backend]:
    """A replica per endpoint, or per server to be started. Raises ConfigError or SetupError."""
    key = os.environ.get(KEY, "")
    if not all(33 <= ord(letter) <= 126 for letter in key):
        raise ConfigError(f"{KEY} holds characters that no API key has: is there a line end in it?")
    if plan.dialect is not None and plan.dialect not in DIALECTS:
        raise ConfigError(f"unknown dialect {plan.dialect!r}: choose one of {', '.join(DIALECTS)}.")
    _allow_many_files()
    prompts = Prompts(plan)
    if plan.serve:
        servers = make_servers(plan)
        return [Remote(Origin("http", "127.0.0.1", 0), plan, prompts, server) for server in servers]
    if not plan.endpoints:
        raise ConfigError("the remote backend needs replicas: name them with --endpoint, or start some with --serve.")
    return [Remote(Origin.parse(url), plan, prompts) for url in plan.endpoints]


def _allow_many_files() -> None:
    """A connection is a file, and a shell's usual limit is 1,024 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
