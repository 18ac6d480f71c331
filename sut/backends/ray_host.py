"""The actor's side of the Ray backend: a whole backend on a node of the cluster, and one stream of what it says.

What travels is small and flat, since Ray pickles it: queries as `Sent`, a sink's calls as `First`, `Progress`, `Done`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sut.backend import Backend, Gauged, Gauges
from sut.backends import Plan, make_backends
from sut.errors import BackendError
from sut.query import NO_TOKENS, TOKEN_DTYPE, Outcome, Query, Tokens

WATCH_INTERVAL = 0.25
"""Seconds between an actor's looks at its engine."""


class Sent(NamedTuple):
    """A query on its way to an actor; `prompt` are the bytes of its int32 ids.

    `id` is this attempt's own number, here and in what comes back: LoadGen may give a later query the id of an earlier
    one, of which something is still on its way.
    """

    id: int
    sample: int
    prompt: bytes
    stream: bool
    max_tokens: int


class First(NamedTuple):
    """What a sink's `first` says, on its way back."""

    id: int
    tokens: bytes


class Progress(NamedTuple):
    id: int
    tokens: int


class Done(NamedTuple):
    """What a sink's `done` says, on its way back; the failure as its type and text."""

    id: int
    tokens: bytes
    finish_reason: str | None
    failure: tuple[str, str] | None


class Batch(NamedTuple):
    """What the stream brings at once, the engine's gauges along with it; `last_words` say why the engine died, where it
    has."""

    said: Sequence[First | Progress | Done]
    gauges: Gauges
    last_words: str | None


class Host:
    """The actor: a backend of its own, whose sink gathers what is said until the stream takes it."""

    def __init__(self, kind: str, index: int, plan: Plan) -> None:
        self._kind = kind
        self._index = index
        self._plan = replace(plan, log_dir=Path(tempfile.mkdtemp(prefix="loadgen-harness-")))
        self._backend: Backend | None = None
        self._said: list[First | Progress | Done] = []
        self._stirred = asyncio.Event()
        self._queries: dict[int, Query] = {}
        self._last_words: str | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._listeners = 0

    def node(self) -> str:
        """The machine this actor is on; two nodes of a cluster may share one."""
        return socket.gethostname()

    async def start(self, place: int, places: int) -> tuple[int, dict[str, Any]]:
        """Bring the engine up as number `place` of the `places` that this machine has; its capacity and facts.

        An engine that is up already, whose stream alone was lost, makes way first: two would not fit a device.
        """
        await self._stop_engine()
        self._backend = make_backend(self._kind, self._plan, self._index, place, places)
        await self._backend.start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch(self._backend))
        return self._backend.capacity, {**self._backend.facts, "node": self.node()}

    async def _watch(self, backend: Backend) -> None:
        """An engine that died takes its actor along: Ray starts that anew, and with it the engine. Until then, the
        gauges are told a few times a second, also when nothing else is."""
        while backend.trouble() is None:
            await asyncio.sleep(WATCH_INTERVAL)
            if self._plan.gauges:
                self._stirred.set()
        self._last_words = backend.trouble()
        self._stirred.set()
        await asyncio.sleep(WATCH_INTERVAL)  # the last batch is on its way
        os._exit(1)

    async def submit(self, batch: Sequence[Sent]) -> None:
        import numpy as np

        assert self._backend is not None
        queries = [
            Query(sent.id, sent.sample, np.frombuffer(sent.prompt, TOKEN_DTYPE), sent.stream, sent.max_tokens, 0.0)
            for sent in batch
        ]
        self._queries.update((query.id, query) for query in queries)
        try:
            self._backend.submit(queries, self)
        except Exception as error:  # noqa: BLE001 - nobody awaits this call: its queries must hear of it as of an answer
            failure = BackendError(f"submit raised {type(error).__name__}: {error}")
            for query in queries:
                if query.id in self._queries:
                    self.done(query, Outcome(NO_TOKENS, failure=failure))

    async def cancel(self, key: int) -> None:
        query = self._queries.pop(key, None)
        if query is not None and self._backend is not None:
            self._backend.cancel(query)

    async def listen(self) -> AsyncIterator[Batch]:
        """The one stream: what has been said since the last batch, as soon as there is something. It ends when another
        is asked for: one that nobody hears any more would take what is said from the one that is heard."""
        self._listeners += 1
        own = self._listeners
        self._stirred.set()
        while True:
            await self._stirred.wait()
            if own != self._listeners:
                return
            self._stirred.clear()
            said, self._said = self._said, []
            gauges = self._backend.gauges() if isinstance(self._backend, Gauged) else Gauges()
            yield Batch(said, gauges, self._last_words)

    async def stop(self) -> str:
        """Stop the engine, and leave nothing on its node; its log."""
        await self._stop_engine()
        folder = self._plan.log_dir
        assert folder is not None
        log = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
        shutil.rmtree(folder, ignore_errors=True)
        return log

    async def _stop_engine(self) -> None:
        """Also of a start that failed, which has no watcher."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self._backend is not None:
            await self._backend.stop()

    # -- the backend's sink ------------------------------------------------------------------------------------------

    def first(self, query: Query, ids: Tokens) -> None:
        self._say(First(query.id, ids.tobytes()))

    def progress(self, query: Query, tokens: int) -> None:
        self._say(Progress(query.id, tokens))

    def done(self, query: Query, outcome: Outcome) -> None:
        self._queries.pop(query.id, None)
        failure = None if outcome.failure is None else (outcome.failure.kind, str(outcome.failure))
        self._say(Done(query.id, outcome.tokens.tobytes(), outcome.finish_reason, failure))

    def _say(self, what: First | Progress | Done) -> None:
        self._said.append(what)
        self._stirred.set()


def make_backend(kind: str, plan: Plan, index: int, place: int, places: int) -> Backend:
    """The backend inside an actor."""
    if kind != "vllm":
        return make_backends(kind, plan)[index]
    from sut.backends.vllm_engine import make_one

    return make_one(f"ray-{index}", plan, place, places)
