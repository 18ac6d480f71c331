"""Many stub replicas in one process, each ready a known time after it was created, and what then really happened.

    python tests/stub_fleet.py --count 200 --delay 0.5:3 --ttft 0.02 --half-closed

Prints {"ports": [...], "control": N} and waits: a UDP packet with an index to the port `control` creates that replica.
Until it is ready its port is closed, or, of every other one with --half-closed, open and /health answers 503. What is
wrong with single ones comes as --odd INDEX=FIELD=VALUE, fields of stub_replica.Script. The end of stdin ends it;
then it prints, per replica, the moments of its creation and readiness in seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.stub_replica import Script, Server


class Fleet(asyncio.DatagramProtocol):
    """The replicas, and the ear for who is to be created."""

    def __init__(self, scripts: list[Script], delays: list[float], closed: list[bool]) -> None:
        self.servers = [Server(script) for script in scripts]
        self.delays, self.closed = delays, closed
        self.held: list[socket.socket] = []
        self.created: dict[int, float] = {}
        self.ready: dict[int, float] = {}
        self.creations = 0

    async def open(self) -> list[int]:
        """Take a port for each: one that is not listened on yet refuses connections."""
        for index, server in enumerate(self.servers):
            if self.closed[index]:
                held = socket.socket()
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind(("127.0.0.1", 0))
                self.held.append(held)
            else:
                server.unhealthy = True
                await server.listen()
        return [self.port(index) for index in range(len(self.servers))]

    def port(self, index: int) -> int:
        listener = self.servers[index]._listener
        if listener is not None:
            return int(listener.sockets[0].getsockname()[1])
        return int(self.held[sum(self.closed[:index])].getsockname()[1])

    def datagram_received(self, data: bytes, _: Any) -> None:
        index = int(data)
        self.creations += 1
        if index not in self.created:
            self.created[index] = time.monotonic()
            asyncio.get_running_loop().create_task(self._become_ready(index))

    async def _become_ready(self, index: int) -> None:
        await asyncio.sleep(self.delays[index])
        server = self.servers[index]
        if self.closed[index]:
            await server.listen(self.port(index))
        else:
            server.unhealthy = False
        self.ready[index] = time.monotonic()


def odd(scripts: list[Script], words: list[str]) -> None:
    for word in words:
        index, name, value = word.split("=", 2)
        before = getattr(scripts[int(index)], name)
        made = value == "True" if isinstance(before, bool) else value if before is None else type(before)(value)
        scripts[int(index)] = replace(scripts[int(index)], **{name: made})


async def run(options: argparse.Namespace) -> None:
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    scripts = [Script(tokens=options.tokens, ttft=options.ttft) for _ in range(options.count)]
    odd(scripts, options.odd)
    low, _, high = options.delay.partition(":")
    chance = random.Random(options.seed)
    delays = [chance.uniform(float(low), float(high or low)) for _ in scripts]
    fleet = Fleet(scripts, delays, [not options.half_closed or index % 2 == 0 for index in range(options.count)])
    ports = await fleet.open()
    transport, _ = await loop.create_datagram_endpoint(lambda: fleet, ("127.0.0.1", 0))
    print(json.dumps({"ports": ports, "control": transport.get_extra_info("sockname")[1]}), flush=True)

    def watch_stdin() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(end.set)

    threading.Thread(target=watch_stdin, daemon=True).start()
    await end.wait()
    truth = {"created": fleet.created, "ready": fleet.ready, "creations": fleet.creations, "ttft": options.ttft}
    requests = [server.truth.requests for server in fleet.servers]
    print(json.dumps(truth | {"requests": requests}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--delay", default="0.5:3", help="seconds, or a range that they are drawn from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--ttft", type=float, default=0.0)
    parser.add_argument("--half-closed", action="store_true")
    parser.add_argument("--odd", action="append", default=[], metavar="INDEX=FIELD=VALUE")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
