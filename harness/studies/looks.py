"""Looking whether replicas are healthy yet: often enough to tell when it happened, too seldom to be in their way.

One timer serves all who wait. A closed port is asked through the kernel alone, some 10 µs, and its server does not
notice; an open one gets GET /health on a kept connection, one at a time. The moment of health lies between the sending
of the last look that found none and the arrival of the one that did: both are kept, so each figure has its bound.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address

from sut.backends.http import Pool
from sut.backends.probe import LOOK_LIMIT, Probe
from sut.errors import QueryFailed, SetupError

TICK = 0.002
"""Seconds between two turns of the timer."""

SHORTEST, LONGEST = 0.005, 1.0
"""Seconds between two looks at one replica."""

RELATIVE = 0.002
"""Of the time waited so far, so long is the pause: a start of 20 s is known to 40 ms."""

SHARE = 2
"""A pause is at least so many times as long as the look before it took: a slow server is asked less often."""

PORT_COST, HEALTH_COST = 0.00004, 0.00025
"""Pause per replica that waits likewise, in seconds: what all their looks take of the harness stays below a third of a
core."""


def pause_after(waited: float, took: float, waiting: int, cost: float) -> float:
    """Seconds until the next look at a replica waited for so long, after one that took `took`, among `waiting`."""
    return max(waiting * cost, min(LONGEST, max(SHORTEST, RELATIVE * waited, SHARE * took)))


@dataclass(eq=False)
class Wait:
    """One replica that is waited for. Times are seconds of `time.monotonic`."""

    probe: Probe
    pool: Pool
    trouble: Callable[[], str | None]
    since: float
    healthy: asyncio.Future[tuple[float, float]]
    """When it was found to be healthy, and how much earlier it may have become so, in seconds."""
    due: float = 0.0
    denied: float = 0.0
    """When the last look that found no health was sent."""
    said: str = "nobody has looked yet"
    listening: bool = False
    looks: int = 0
    task: asyncio.Task[None] | None = field(default=None)


class Looks:
    """All who wait, and the timer that looks after them."""

    def __init__(self) -> None:
        self._waits: set[Wait] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def until_healthy(self, wait: Wait) -> tuple[float, float]:
        """The future's value. Raises SetupError when the replica's maker says that it will never be."""
        wait.denied = wait.since
        self._waits.add(wait)
        if self._timer is None:
            self._turn()
        try:
            return await wait.healthy
        finally:
            self._waits.discard(wait)
            if wait.task is not None:
                wait.task.cancel()

    def _turn(self) -> None:
        if not self._waits:
            self._timer = None
            return
        now = time.monotonic()
        asking = sum(wait.listening for wait in self._waits)
        for wait in list(self._waits):
            if wait.due <= now and wait.task is None and not wait.healthy.done():
                self._look(wait, asking)
        self._timer = asyncio.get_running_loop().call_later(TICK, self._turn)

    def _look(self, wait: Wait, asking: int) -> None:
        sent = time.monotonic()
        if why := wait.trouble():
            wait.healthy.set_exception(SetupError(why))
            return
        wait.looks += 1
        if not wait.listening and refuses(wait.pool.address, wait.pool.origin.port):
            self._deny(wait, sent, "nobody listens on its port", len(self._waits), PORT_COST)
            return
        wait.listening = True
        wait.task = asyncio.get_running_loop().create_task(self._ask(wait, sent, asking))

    async def _ask(self, wait: Wait, sent: float, asking: int) -> None:
        try:
            status = await wait.probe.health(LOOK_LIMIT)
            why = "" if status == 200 else f"/health says HTTP {status}"
        except TimeoutError:
            why = f"/health did not answer within {LOOK_LIMIT:g} s"
        except QueryFailed as error:
            why = str(error)
            wait.listening = False
            with suppress(OSError):  # a name may not be known before its replica is there, or change
                await wait.pool.resolve()
        wait.task = None
        if why:
            self._deny(wait, sent, why, asking, HEALTH_COST)
        elif not wait.healthy.done():
            now = time.monotonic()
            wait.healthy.set_result((now, now - wait.denied))

    def _deny(self, wait: Wait, sent: float, why: str, waiting: int, cost: float) -> None:
        now = time.monotonic()
        wait.denied, wait.said = sent, why
        wait.due = now + pause_after(now - wait.since, now - sent, waiting, cost)


def refuses(address: str, port: int) -> bool:
    """Whether the kernel says at once that nobody listens there; False also where it takes longer to know."""
    if not is_numeric(address):  # a name that is not known yet, which the kernel cannot be asked about
        return False
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        found = trial.connect_ex((address, port))
        if found == errno.EINPROGRESS:  # on the loopback device, the refusal is there by now
            found = trial.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return found == errno.ECONNREFUSED


@cache
def is_numeric(address: str) -> bool:
    try:
        ip_address(address)
    except ValueError:
        return False
    return True
