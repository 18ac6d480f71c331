"""What of the Ray backend needs no cluster: how replicas are laid out, what an address may be, how an actor holds its
engine, and how answers and failures travel."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sut.backend import Gauges
from sut.backends import Generation, Plan, make_backends, ray_cluster, ray_engine, ray_host
from sut.backends.ray_cluster import Cluster, Group, connect, groups_of, refuse_unreachable
from sut.backends.ray_engine import FAILURES, RayEngine, make_replicas, outcome_of
from sut.backends.ray_host import Batch, Done, First, Host, Sent
from sut.errors import BackendError, ConfigError, Rejected, ReplicaDied, SetupError
from sut.query import TOKEN_DTYPE, Outcome, Query, Tokens

PLAN = Plan(2, "model", "auto", None, Generation(8))


@pytest.mark.parametrize(
    ("replicas", "size", "largest", "groups"),
    [
        (4, 1, 8, [Group([{"GPU": 1.0}] * 4, "SPREAD")]),
        (2, 8, 8, [Group([{"GPU": 8.0}] * 2, "SPREAD")]),
        (2, 16, 8, [Group([{"GPU": 1.0}] * 16, "PACK")] * 2),
    ],
    ids=["a device each, spread", "a node each", "more than a node: its devices one by one"],
)
def test_replicas_are_packed_and_spread_between(replicas: int, size: int, largest: int, groups: list[Group]) -> None:
    assert groups_of(replicas, size, "GPU", largest) == groups


@pytest.mark.parametrize("address", ["auto", "local"])
def test_names_are_left_to_ray(address: str) -> None:
    refuse_unreachable(address)


def test_what_a_start_that_failed_has_left_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    did: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: "init" in did)
    monkeypatch.setattr(ray, "shutdown", lambda: did.append("shutdown"))
    monkeypatch.setattr(ray, "init", lambda **_: did.append("init"))
    connect("auto")
    connect("auto")
    assert did == ["init", "shutdown", "init"], "Ray refuses a second init"


def test_an_address_that_is_listened_on_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        refuse_unreachable(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "none of auto, local and HOST:PORT"),
        ("head", "none of auto, local and HOST:PORT"),
        (":6379", "none of auto, local and HOST:PORT"),
        ("127.0.0.1:99999", "nobody listens"),
        ("no-such-host.invalid:6379", "nobody listens"),
    ],
)
def test_an_address_of_nobody_is_refused_at_once(address: str, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        refuse_unreachable(address)


def test_a_port_that_nobody_listens_on_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SetupError, match="nobody listens"):
        refuse_unreachable(f"127.0.0.1:{port}")


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(SetupError, match="Ray is not installed"):
        make_replicas(PLAN)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("rejected", Rejected), ("replica_died", ReplicaDied), ("of another version", BackendError)],
)
def test_a_failure_comes_back_as_what_it_was(kind: str, expected: type) -> None:
    outcome = outcome_of(Done(1, b"", None, (kind, "why")))
    assert type(outcome.failure) is expected and str(outcome.failure) == "why"


def test_every_failure_can_travel_as_its_kind_and_text() -> None:
    assert all(str(kind("text")) == "text" for kind in FAILURES.values())


# -- the actor's side, without an actor -------------------------------------------------------------------------------

ECHO = Plan(1, "none", "auto", None, Generation(8), engine_args={"ttft": 0.0, "tpot": 0.0, "tokens": "4"})


def sent(number: int) -> Sent:
    return Sent(number, 0, np.arange(3, 9, dtype=TOKEN_DTYPE).tobytes(), True, 8)


async def next_end(stream: Any) -> int:
    """Which attempt is the next to end, by what a stream says."""
    async for batch in stream:
        for what in batch.said:
            if isinstance(what, Done):
                return what.id
    raise AssertionError("the stream has ended")


def test_an_engine_that_did_not_start_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one whose device the engine before it has not left yet."""

    def make_backend(*_: Any) -> Any:
        (backend,) = make_backends("echo", ECHO)
        starts.append(backend)
        if len(starts) == 1:
            backend.start = fail  # type: ignore[method-assign]
        return backend

    async def fail() -> None:
        raise SetupError("no memory is left")

    async def story() -> None:
        host = Host("echo", 0, ECHO)
        with pytest.raises(SetupError):
            await host.start(0, 1)
        await host.start(0, 1)
        await host.submit([sent(1)])
        assert await next_end(host.listen()) == 1
        await host.stop()

    starts: list[Any] = []
    monkeypatch.setattr(ray_host, "make_backend", make_backend)
    asyncio.run(asyncio.wait_for(story(), 30))
    assert len(starts) == 2


def test_a_stream_that_nobody_hears_takes_nothing_from_the_one_that_is_heard() -> None:
    async def story() -> None:
        host = Host("echo", 0, ECHO)
        await host.start(0, 1)
        lost = host.listen()
        await host.submit([sent(1)])
        assert await next_end(lost) == 1
        waits = asyncio.ensure_future(anext(lost))  # as in the actor, whose caller is out of reach
        await asyncio.sleep(0)
        await host.start(0, 1)
        heard = host.listen()
        for number in (2, 3):
            await host.submit([sent(number)])
            assert await next_end(heard) == number
        with pytest.raises(StopAsyncIteration):
            await waits
        await host.stop()

    asyncio.run(asyncio.wait_for(story(), 30))


def test_an_actor_leaves_nothing_on_its_node() -> None:
    async def story() -> str:
        await host.start(0, 1)
        (folder / "vllm.log").write_text("what it said")
        await host.start(0, 1)
        return await host.stop()

    host = Host("echo", 0, ECHO)
    folder = host._plan.log_dir
    assert folder is not None
    assert asyncio.run(asyncio.wait_for(story(), 30)) == "what it said", "of the engine before, too"
    assert not folder.exists()


# -- the SUT's side, without an actor ---------------------------------------------------------------------------------


class Ear:
    """A sink that remembers who has ended, and how; like the SUT, it has all queries cancelled where a replica died."""

    def __init__(self, engine: RayEngine) -> None:
        self.engine = engine
        self.flying: list[Query] = []
        self.ends: list[tuple[int, str]] = []

    def first(self, query: Query, ids: Tokens) -> None: ...

    def progress(self, query: Query, tokens: int) -> None: ...

    def done(self, query: Query, outcome: Outcome) -> None:
        self.ends.append((query.id, outcome.failure.kind if outcome.failure else "right"))
        self.flying.remove(query)
        if isinstance(outcome.failure, ReplicaDied):
            for other in self.flying:
                self.engine.cancel(other)


class Calls:
    """An actor's methods, whose calls go nowhere."""

    def __init__(self) -> None:
        self.submitted: list[Sent] = []
        self.cancelled: list[int] = []
        self.submit = self.cancel = self

    def remote(self, what: Any) -> None:
        if isinstance(what, int):
            self.cancelled.append(what)
        else:
            self.submitted += what


def connected() -> tuple[RayEngine, Calls]:
    engine, calls = RayEngine(0, Cluster(PLAN, "echo"), PLAN), Calls()
    engine._actor = calls
    return engine, calls


def query(key: int) -> Query:
    return Query(key, 0, np.arange(3, dtype=TOKEN_DTYPE), True, 8, 0.0)


def test_a_late_answer_is_not_taken_for_that_of_a_later_query_with_the_same_id() -> None:
    """LoadGen's ids are addresses, and used again by the next test."""
    engine, calls = connected()
    ear = Ear(engine)
    engine.submit([early := query(5)], ear)
    engine.cancel(early)
    ear.flying.append(late := query(5))
    engine.submit([late], ear)
    old, new = (sent.id for sent in calls.submitted)
    assert calls.cancelled == [old]
    answer = np.array([1, 2], TOKEN_DTYPE).tobytes()
    engine._hear(Batch([First(old, answer[:4]), Done(old, answer, "stop", None)], Gauges(), None))
    assert ear.ends == []
    engine._hear(Batch([Done(new, answer, "stop", None)], Gauges(), None))
    assert ear.ends == [(5, "right")]


def test_what_is_cancelled_when_a_replica_dies_is_not_ended_a_second_time() -> None:
    """Else the SUT would count a late frame for each."""
    engine, calls = connected()
    ear = Ear(engine)
    ear.flying = [query(key) for key in (1, 2, 3)]
    engine.submit(ear.flying, ear)
    engine._hear(Batch([], Gauges(running=3), "the engine died"))
    assert ear.ends == [(1, "replica_died")] and calls.cancelled == []
    assert engine.trouble() == "the engine died"
    assert engine.gauges() == Gauges(), "of an engine that is away nothing is known"


# -- the cluster, without one -----------------------------------------------------------------------------------------


def test_a_cluster_that_cannot_be_joined_is_asked_once_for_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt would go on while the first one's failure is told, and the replicas are stopped."""

    def refuse(address: str) -> None:
        asked.append(address)
        raise SetupError("nobody listens")

    async def story() -> list[Any]:
        cluster = Cluster(PLAN, "echo")
        return await asyncio.gather(cluster.open(), cluster.open(), return_exceptions=True)

    asked: list[str] = []
    monkeypatch.setattr(ray_cluster, "connect", refuse)
    assert [str(error) for error in asyncio.run(story())] == ["nobody listens"] * 2
    assert asked == ["auto"]


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("model", "another", "another model than the result says"),
        ("tokenizer", "another", "another model than the result says"),
        ("tensor_parallel_size", "two", "not a whole number"),
        ("data_parallel_size", 0, "not a whole number"),
    ],
)
def test_what_no_engine_may_be_told_is_refused_before_the_cluster_is_asked(
    argument: str, value: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_replicas(replace(PLAN, engine_args={argument: value}))


def test_a_replica_asks_for_the_devices_of_all_its_parallelism() -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "data_parallel_size": "2"}
    assert Cluster(replace(PLAN, engine_args=sizes))._size == 12


class Placed:
    """An actor that says where it is; None: nowhere."""

    def __init__(self, node: str | None) -> None:
        self.where = node
        self.asked = 0
        self.node = self

    async def remote(self) -> str:
        from ray.exceptions import ActorDiedError

        self.asked += 1
        if self.where is None:
            raise ActorDiedError()
        return self.where


def test_where_a_replica_stands_is_asked_of_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand replicas that each ask all others would be a million calls."""

    async def story() -> None:
        await cluster.open()
        assert [await cluster.place(index) for index in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
        assert [actor.asked for actor in cluster.actors] == [2, 2, 2, 2]
        cluster.actors[1].where = None
        with pytest.raises(SetupError, match="actor 1 is not there"):
            await cluster.place(1)
        cluster.actors[1].where = "a"
        assert await cluster.place(1) == (1, 3)

    async def place_all() -> None:
        cluster.actors = [Placed(node) for node in "abab"]

    cluster = Cluster(replace(PLAN, replicas=4), "echo")
    monkeypatch.setattr(ray_cluster, "connect", lambda address: None)
    monkeypatch.setattr(cluster, "_place_all", place_all)
    asyncio.run(story())


def test_a_cluster_that_is_gone_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of this machine's own goes first when a start has failed; Ray would wait for it."""
    import ray

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    did: list[str] = []
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
    monkeypatch.setattr(ray, "kill", lambda actor: did.append("kill"))
    monkeypatch.setattr(ray, "shutdown", lambda: did.append("shutdown"))
    engine, _ = connected()
    asyncio.run(engine.stop())
    engine._cluster.actors = [engine._actor]
    asyncio.run(engine._cluster.leave(1))
    assert did == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        asyncio.run(engine._cluster.leave(1))
    assert did == ["kill", "shutdown"]
