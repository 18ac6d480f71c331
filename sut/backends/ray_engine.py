"""vLLM engines as actors on a Ray cluster.

Each replica is an actor that holds a whole backend (vllm_engine's), so the SUT, its policies and its results do not
know the difference: this only carries `submit` there and the sink's calls back. A call that streams costs Ray about
1.5 ms, so one stream per actor brings what all of its queries have to say, a batch whenever there is something.

An actor that dies, or whose node does, is a replica that died. Ray starts it anew where there is room, and the replica
is back when its engine is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from typing import Any

from sut.backend import Backend, Gauges, Sink
from sut.backends import Plan
from sut.backends.ray_cluster import Cluster, first_line
from sut.backends.ray_host import Batch, Done, First, Progress, Sent
from sut.backends.vllm_engine import refuse_another_model
from sut.errors import BackendError, ConfigError, QueryFailed, ReplicaDied, SetupError
from sut.query import NO_TOKENS, TOKEN_DTYPE, Outcome, Query, Tokens

STOP_LIMIT = 10.0
"""Seconds that an engine gets to stop, and to hand over its log."""

RETURN_INTERVAL = 1.0
"""Seconds between two looks whether an actor that died is there again."""

FAILURES = {kind.kind: kind for kind in QueryFailed.__subclasses__()}


class RayEngine:
    """One replica: an actor, and its one stream."""

    drains = False

    def __init__(self, index: int, cluster: Cluster, plan: Plan) -> None:
        self._index = index
        self._cluster = cluster
        self._plan = plan
        self._actor: Any = None
        self._flying: dict[int, tuple[Query, Sink]] = {}  # by the numbers that travel
        self._numbers: dict[int, int] = {}  # these, by query id
        self._number = count()
        self._listener: asyncio.Task[None] | None = None
        self._down: str | None = None
        self._gauges = Gauges()
        self.capacity = 512
        self.facts: Mapping[str, Any] = {}

    async def start(self) -> None:
        await self._cluster.open()
        self._actor = self._cluster.actors[self._index]
        await self._bring_up()
        self._listener = asyncio.get_running_loop().create_task(self._listen())
        self._listener.add_done_callback(self._deaf)

    def _deaf(self, listener: asyncio.Task[None]) -> None:
        """Listening ends with `stop` alone; after a fault of ours, nothing that is heard can be trusted."""
        if not listener.cancelled() and (fault := listener.exception()) is not None:
            context = {"message": "the stream of a Ray actor was not understood", "exception": fault}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _bring_up(self) -> None:
        """Have the actor start its engine. Raises ConfigError or SetupError of the engine, or SetupError for a fault of
        the cluster."""
        from ray.exceptions import RayError, RayTaskError

        try:
            self.capacity, self.facts = await self._actor.start.remote(*await self._cluster.place(self._index))
        except RayTaskError as error:
            if isinstance(error.cause, ConfigError | SetupError):
                raise type(error.cause)(str(error.cause)) from None
            raise SetupError(f"the Ray actor {self._index} did not start: {first_line(error.cause)}") from error
        except RayError as error:
            raise SetupError(f"the Ray actor {self._index} did not start: {first_line(error)}") from error

    async def prepare(self, prompts: Sequence[Tokens]) -> None:
        """Nothing: token ids are what the engine takes."""

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        batch = []
        for query in queries:
            number = self._numbers[query.id] = next(self._number)
            self._flying[number] = query, sink
            batch.append(Sent(number, query.index, query.prompt.tobytes(), query.stream, query.max_tokens))
        self._actor.submit.remote(batch)

    def cancel(self, query: Query) -> None:
        number = self._numbers.pop(query.id, None)
        if number is not None:
            del self._flying[number]
            if self._down is None:
                self._actor.cancel.remote(number)

    def trouble(self) -> str | None:
        return self._down

    def gauges(self) -> Gauges:
        """As they were told last, at most a moment ago; nothing while the actor is away."""
        return self._gauges

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        if self._actor is not None and await asyncio.to_thread(self._cluster.reachable):
            await self._save_log()
        await self._cluster.leave(self._index)

    async def _save_log(self) -> None:
        """Stop the engine, and keep its log, which lies on its own node."""
        from ray.exceptions import RayError

        with suppress(RayError, TimeoutError, OSError):
            async with asyncio.timeout(STOP_LIMIT):
                log = await self._actor.stop.remote()
            if self._plan.log_dir is not None:
                (self._plan.log_dir / f"ray-{self._index}.log").write_text(log)

    # -- the stream ---------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear what the actor says; when it dies, until it is there again."""
        from ray.exceptions import RayError

        while True:
            try:
                stream = self._actor.listen.options(num_returns="streaming").remote()
                async for reference in stream:
                    self._hear(await reference)
                why = "its stream has ended"
            except RayError as error:
                why = type(error).__name__
            self._lose_all(self._down or f"the Ray actor is lost ({why})")
            await self._return()

    def _hear(self, batch: Batch) -> None:
        self._gauges = batch.gauges
        for what in batch.said:
            query, sink = self._flying.get(what.id, (None, None))
            if query is None or sink is None:  # cancelled meanwhile
                continue
            if isinstance(what, First):
                sink.first(query, tokens_of(what.tokens))
            elif isinstance(what, Progress):
                sink.progress(query, what.tokens)
            else:
                del self._flying[what.id], self._numbers[query.id]
                sink.done(query, outcome_of(what))
        if batch.last_words is not None:
            self._lose_all(batch.last_words)

    def _lose_all(self, why: str) -> None:
        self._down, self._gauges = why, Gauges()
        while self._flying:  # the first end may have all others cancelled
            query, sink = self._flying.pop(next(iter(self._flying)))
            del self._numbers[query.id]
            sink.done(query, Outcome(NO_TOKENS, failure=ReplicaDied(why)))

    async def _return(self) -> None:
        """Wait until Ray has started the actor anew, and its engine is up."""
        while self._down is not None:
            await asyncio.sleep(RETURN_INTERVAL)
            with suppress(SetupError, ConfigError):
                await self._bring_up()
                self._down = None


def tokens_of(data: bytes) -> Tokens:
    import numpy as np

    return np.frombuffer(data, TOKEN_DTYPE)


def outcome_of(done: Done) -> Outcome:
    failure = None if done.failure is None else FAILURES.get(done.failure[0], BackendError)(done.failure[1])
    return Outcome(tokens_of(done.tokens), done.finish_reason, failure)


def make_replicas(plan: Plan) -> Sequence[Backend]:
    """An actor per replica. Raises ConfigError, or SetupError without Ray."""
    if find_spec("ray") is None:
        raise SetupError("Ray is not installed here: pip install '.[ray]'.")
    refuse_another_model(plan)
    cluster = Cluster(plan)
    return [RayEngine(index, cluster, plan) for index in range(plan.replicas)]
