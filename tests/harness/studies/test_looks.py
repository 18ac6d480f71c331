"""When replicas are looked at, and what is said of the moment at which they became healthy."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from harness.studies.looks import HEALTH_COST, LONGEST, PORT_COST, SHORTEST, Looks, Wait, pause_after, refuses
from sut.backends import Generation, Plan
from sut.backends.http import Origin, Pool
from sut.backends.probe import Probe, Prompts
from sut.errors import SetupError
from tests.stub_replica import Script, Stub


@pytest.mark.parametrize(
    ("waited", "took", "waiting", "cost", "pause"),
    [
        (0.0, 0.0, 1, PORT_COST, SHORTEST),
        (20.0, 0.001, 1, PORT_COST, 0.04),
        (3600.0, 0.001, 1, PORT_COST, LONGEST),
        (1.0, 0.2, 1, HEALTH_COST, 0.4),
        (1.0, 9.0, 1, HEALTH_COST, LONGEST),
        (1.0, 0.0, 200, PORT_COST, 0.008),
        (1.0, 0.0, 200, HEALTH_COST, 0.05),
        (1.0, 0.0, 50_000, PORT_COST, 2.0),
    ],
    ids=[
        "at first as often as can be",
        "a long start need not be known so exactly",
        "but once a second",
        "a slow server is asked less often",
        "but once a second",
        "many closed ports cost little",
        "many open ones cost more",
        "however many they are, the harness has time for other things",
    ],
)
def test_the_pause_between_two_looks(waited: float, took: float, waiting: int, cost: float, pause: float) -> None:
    assert pause_after(waited, took, waiting, cost) == pytest.approx(pause)


def test_the_kernel_says_at_once_that_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        assert refuses("127.0.0.1", port)
        held.listen()
        assert not refuses("127.0.0.1", port)


@pytest.mark.parametrize("address", ["a-name-to-be-looked-up", "192.0.2.1"], ids=["a name", "far away"])
def test_who_is_not_known_at_once_is_asked_properly(address: str) -> None:
    assert not refuses(address, 80)


async def wait_for(
    url: str, trouble: Callable[[], str | None] = lambda: None, denied: Callable[[], Any] = lambda: None
) -> tuple[Wait, Any]:
    """Wait for one replica; `denied` does something to it once a look has found no health."""
    loop = asyncio.get_running_loop()
    origin = Origin.parse(url)
    pool = Pool(origin)
    plan = Plan(1, "m", "auto", None, Generation(8))
    wait = Wait(Probe(origin, plan, Prompts(plan), pool), pool, trouble, time.monotonic(), loop.create_future())

    async def meanwhile() -> None:
        while not wait.denied > wait.since:
            await asyncio.sleep(0.005)
        denied()

    other = asyncio.ensure_future(meanwhile())
    try:
        async with asyncio.timeout(30):
            return wait, await Looks().until_healthy(wait)
    finally:
        other.cancel()
        pool.close()


def test_health_is_found_and_its_moment_bounded() -> None:
    moments = []
    with Stub(Script(unhealthy=True)) as stub:

        def get_well() -> None:
            stub.set_unhealthy(False)
            moments.append(time.monotonic())

        wait, (healthy, within) = asyncio.run(wait_for(stub.url, denied=get_well))
        assert stub.truth()["requests"] == 0
    assert healthy - within <= moments[0] <= healthy
    assert wait.looks >= 2 and wait.said == "/health says HTTP 503"


def test_a_port_that_opens_is_found_and_a_closed_one_costs_its_server_nothing() -> None:
    with Stub() as stub:
        stub.kill()

        async def run() -> tuple[Wait, Any]:
            loop = asyncio.get_running_loop()
            return await wait_for(stub.url, denied=lambda: loop.run_in_executor(None, stub.revive))

        wait, _ = asyncio.run(run())
        assert stub.truth()["connections"] <= 2, "the trial that was not refused, and the one that asks"
    assert wait.looks >= 2 and wait.said == "nobody listens on its port"


def test_a_replica_that_will_never_be_is_given_up_at_once() -> None:
    with pytest.raises(SetupError, match="it exited"):
        asyncio.run(wait_for("http://127.0.0.1:9", lambda: "it exited with code 1"))
