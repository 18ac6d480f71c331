"""vLLM engines as actors on a Ray cluster that is up already.

Each replica is an actor that holds a whole backend (vllm_engine's), so the SUT, its policies and its results do not
know the difference: this file only carries `submit` there and the sink's calls back. A call that streams costs Ray
about 1.5 ms, so one stream per actor brings what all of its queries have to say, a batch whenever there is something.

An actor that dies, or whose node does, is a replica that died. Ray starts it anew where there is room, and the replica
is back when its engine is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from sut.backend import Backend, Gauged, Gauges, Sink
from sut.backends import Plan, make_backends
from sut.errors import BackendError, ConfigError, QueryFailed, ReplicaDied, SetupError
from sut.query import NO_TOKENS, TOKEN_DTYPE, Outcome, Query, Tokens

START_LIMIT = 60.0
"""Seconds that the cluster gets to place the replicas."""

REACH_LIMIT = 5.0
"""Seconds that the cluster's address gets to take a connection: Ray itself would try for minutes."""

STOP_LIMIT = 10.0

WATCH_INTERVAL = 0.25
"""Seconds between an actor's looks at its engine."""

RETURN_INTERVAL = 1.0
"""Seconds between two looks whether an actor that died is there again."""


class Sent(NamedTuple):
    """A query on its way to an actor; `prompt` are the bytes of its int32 ids."""

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
        self._watcher: asyncio.Task[None]

    def node(self) -> str:
        """The machine this actor is on; two nodes of a cluster may share one."""
        return socket.gethostname()

    async def start(self, place: int, places: int) -> tuple[int, dict[str, Any]]:
        """Bring the engine up as number `place` of the `places` that this machine has; its capacity and facts."""
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
        self._backend.submit(queries, self)

    async def cancel(self, key: int) -> None:
        query = self._queries.pop(key, None)
        if query is not None and self._backend is not None:
            self._backend.cancel(query)

    async def listen(self) -> AsyncIterator[Batch]:
        """The one stream: what has been said since the last batch, as soon as there is something."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            said, self._said = self._said, []
            gauges = self._backend.gauges() if isinstance(self._backend, Gauged) else Gauges()
            yield Batch(said, gauges, self._last_words)

    async def stop(self) -> str:
        """Stop the engine; its log."""
        if self._backend is not None:
            self._watcher.cancel()
            await self._backend.stop()
        assert self._plan.log_dir is not None
        return "".join(path.read_text(errors="replace") for path in sorted(self._plan.log_dir.glob("*.log")))

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


# -- on the side of the SUT ------------------------------------------------------------------------------------------

FAILURES = {kind.kind: kind for kind in QueryFailed.__subclasses__()}


class RayEngine:
    """One replica: an actor, and its one stream."""

    drains = False

    def __init__(self, index: int, cluster: Cluster, plan: Plan) -> None:
        self._index = index
        self._cluster = cluster
        self._plan = plan
        self._actor: Any = None
        self._flying: dict[int, tuple[Query, Sink]] = {}
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
        self._flying.update((query.id, (query, sink)) for query in queries)
        self._actor.submit.remote(
            [Sent(query.id, query.index, query.prompt.tobytes(), query.stream, query.max_tokens) for query in queries]
        )

    def cancel(self, query: Query) -> None:
        if self._flying.pop(query.id, None) is not None and self._down is None:
            self._actor.cancel.remote(query.id)

    def trouble(self) -> str | None:
        return self._down

    def gauges(self) -> Gauges:
        """As they were told last, at most a moment ago."""
        return self._gauges

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        if self._actor is not None:
            await self._save_log()
        await self._cluster.leave(self._index)

    async def _save_log(self) -> None:
        """Stop the engine, and keep its log, which lies on its own node."""
        from ray.exceptions import RayError

        with suppress(RayError, TimeoutError):
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
                del self._flying[what.id]
                sink.done(query, outcome_of(what))
        if batch.last_words is not None:
            self._lose_all(batch.last_words)

    def _lose_all(self, why: str) -> None:
        self._down = why
        flying, self._flying = self._flying, {}
        for query, sink in flying.values():
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


def first_line(error: BaseException) -> str:
    """What a Ray error says, without its traceback: the last line that is one, or its type."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# -- the cluster -----------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """A placement group: what its bundles reserve, and how Ray lays them out."""

    bundles: list[dict[str, float]]
    strategy: str


def groups_of(replicas: int, size: int, device: str, largest: float) -> list[Group]:
    """How `replicas` of `size` devices each are laid out: packed per replica, spread between.

    A replica that fits a node is one bundle, and Ray spreads the bundles. One that fits none (`largest` devices) is a
    group by itself, whose devices vLLM's own Ray executor takes one by one.
    """
    if size <= largest:
        return [Group([{device: float(size)}] * replicas, "SPREAD")]
    return [Group([{device: 1.0}] * size, "PACK") for _ in range(replicas)]


class Cluster:
    """The connection to Ray that all replicas share, where they are placed, and their actors."""

    def __init__(self, plan: Plan, kind: str = "vllm") -> None:
        self.actors: list[Any] = []
        self._plan = plan
        self._kind = kind
        self._groups: list[Any] = []
        self._members = set(range(plan.replicas))
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Connect and have all actors placed, once. Raises SetupError."""
        async with self._lock:
            if not self.actors:
                await asyncio.to_thread(connect, self._plan.ray_address or "auto")
                await self._place_all()

    async def _place_all(self) -> None:
        import ray
        from ray.exceptions import RayError
        from ray.util.placement_group import placement_group

        plan = self._plan
        size = prod(int(plan.engine_args.get(f"{kind}_parallel_size", 1)) for kind in ("tensor", "pipeline"))
        device = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        nodes = [node["Resources"].get(device, 0.0) for node in ray.nodes() if node["Alive"]]
        groups = groups_of(plan.replicas, size, device, max(nodes))
        if plan.replicas * size > sum(nodes):
            raise SetupError(
                f"the Ray cluster has {sum(nodes):g} {device}s, and {plan.replicas} replicas of {size} need "
                f"{plan.replicas * size}: ask for fewer replicas or add nodes."
            )
        self._groups = [placement_group(group.bundles, group.strategy) for group in groups]
        try:
            async with asyncio.timeout(START_LIMIT):
                await asyncio.gather(*(group.ready() for group in self._groups))
        except (TimeoutError, RayError) as error:
            free = ray.available_resources().get(device, 0.0)
            raise SetupError(
                f"the Ray cluster has not placed {plan.replicas} replicas of {size} {device}s within {START_LIMIT:g} s "
                f"({free:g} are free): is somebody else at work on it?"
            ) from error
        spread = len(groups[0].bundles) == plan.replicas and size <= max(nodes)
        for index in range(plan.replicas):
            group, bundle = (self._groups[0], index) if spread else (self._groups[index], 0)
            amount = groups[0].bundles[0][device] if spread else 0.0
            self.actors.append(self._create(index, group, bundle, device, amount, alone=spread))

    def _create(self, index: int, group: Any, bundle: int, device: str, amount: float, alone: bool) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        plan = replace(self._plan, codec=None, log_dir=None)
        if not alone:
            plan = replace(plan, engine_args={"distributed_executor_backend": "ray", **plan.engine_args})
        where = PlacementGroupSchedulingStrategy(group, bundle, placement_group_capture_child_tasks=True)
        cpus, gpus = (amount, 0.0) if device == "CPU" else (0.0, amount)
        actor = ray.remote(Host).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy=where, max_restarts=-1, max_concurrency=1000
        )
        return actor.remote(self._kind, index, plan)

    async def place(self, index: int) -> tuple[int, int]:
        """Which of how many replicas on its machine this one is; moved actors are counted where they are now."""
        from ray.exceptions import RayError

        async def node(actor: Any) -> str | None:
            with suppress(RayError):
                return str(await actor.node.remote())
            return None

        nodes = await asyncio.gather(*(node(actor) for actor in self.actors))
        own = nodes[index]
        if own is None:
            raise SetupError(f"the Ray actor {index} is not there.")
        return Counter(nodes[:index])[own], Counter(nodes)[own]

    async def leave(self, index: int) -> None:
        """A replica has stopped; the last one takes the actors and the reservation along."""
        self._members.discard(index)
        if not self._members:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        for actor in self.actors:
            ray.kill(actor)
        for group in self._groups:
            remove_placement_group(group)
        ray.shutdown()


def connect(address: str) -> None:
    """Join the cluster at an address. Raises SetupError for one that cannot be joined."""
    import ray

    refuse_unreachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
            runtime_env={"py_modules": [str(Path(__file__).parent.parent)]},
        )
    except ConnectionError as error:
        raise SetupError(
            f"no Ray cluster is found at {address}: start one (ray start --head), or name it with --ray-address."
        ) from error
    except (RuntimeError, ValueError) as error:  # another version of Ray or Python, a token that is not accepted
        raise SetupError(f"the Ray cluster at {address} cannot be joined: {first_line(error)}") from error


def refuse_unreachable(address: str) -> None:
    """Raises SetupError for an address that nobody listens on: Ray would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise SetupError(f"--ray-address {address} is none of auto, local and HOST:PORT of a cluster's head.")
    try:
        socket.create_connection((host, int(port)), REACH_LIMIT).close()
    except (OSError, OverflowError) as error:
        raise SetupError(f"nobody listens at --ray-address {address} ({error}): is the cluster's head up?") from error


def make_replicas(plan: Plan) -> Sequence[Backend]:
    """An actor per replica. Raises SetupError without Ray."""
    if find_spec("ray") is None:
        raise SetupError("Ray is not installed here: pip install '.[ray]'.")
    cluster = Cluster(plan)
    return [RayEngine(index, cluster, plan) for index in range(plan.replicas)]
