"""What of the Ray backend needs no cluster: how replicas are laid out, what an address may be, how failures travel."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from sut.backends import Generation, Plan, ray_engine
from sut.backends.ray_cluster import Group, connect, groups_of, refuse_unreachable
from sut.backends.ray_engine import FAILURES, make_replicas, outcome_of
from sut.backends.ray_host import Done
from sut.errors import BackendError, Rejected, ReplicaDied, SetupError

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
