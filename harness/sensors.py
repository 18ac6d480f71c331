"""What happens around a test, read once a second by a process of its own: servers' /metrics, devices, this machine.

A process, because reading takes time and Python: 200 pages of 100 kB a second would hold the interpreter's lock for 8 %
of the time, and the SUT's loop would wait for it (scripts/bench_telemetry.py --sensors). Nothing flows back while a
test runs: readings are lines of a file without a name, which is read when the test has ended. A server that hangs, or
sends anything but metrics, costs this process its patience and nobody else's.

This file is also that process's program, `python sensors.py FD`: what to read comes as one line of JSON on stdin, whose
end is the end of reading; `ready` goes to stdout after the first round. A line of the file FD is [source, seconds of
time.perf_counter, {metric: number}], or [source, seconds, why there is nothing]. API keys and certificates are
those of the queries (scraper.py).
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

INTERVAL = 1.0
"""Seconds between two readings of a source."""

READY_LIMIT = 5.0
END_LIMIT = 2.5
"""Seconds that a test waits for the first readings before it begins, and for the last ones at its end."""

ROOT = Path(__file__).parent.parent

Write = Callable[[str, "Mapping[str, float] | str"], None]


@dataclass(frozen=True)
class Asked:
    """What to read: servers' metrics URLs by source; devices by name (None: all that there are), or why none of this
    machine's is of interest; the memory of the process that is the client."""

    servers: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[str] | None = None
    deviceless: str | None = None
    pid: int = field(default_factory=os.getpid)
    ca_file: str | None = None
    insecure: bool = False


@dataclass(frozen=True)
class Heard:
    """What has been read: per line its source, its moment, and readings or a reason; `complaint` is what the process
    said that was none of these, its last words if it died."""

    lines: Sequence[tuple[str, float, Mapping[str, float] | str]]
    complaint: str | None = None


# -- the harness's side -----------------------------------------------------------------------------------------------


class Sensors:
    """The process, from its start to its end. Never raises: what cannot be read is missing, and why is said."""

    def __init__(self, asked: Asked) -> None:
        self._file: BinaryIO | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._why: str | None = None
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `close` reads and closes it
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(self._file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._file,
                pass_fds=[self._file.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal ends the test, and the test ends this
                env=environment,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(asdict(asked)).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            self._why = f"the process that reads could not be started ({error.strerror})"

    def await_ready(self) -> None:
        """Wait for the first readings, for a few seconds at most."""
        if self._process is None or self._process.stdout is None:
            return
        pipe, until = self._process.stdout.fileno(), time.monotonic() + READY_LIMIT
        while (left := until - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            said = os.read(pipe, 4096)
            if not said or b"ready" in said:
                return

    def close(self) -> Heard:
        """End the process, after one last round of readings, and tell all that it has read."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            with suppress(OSError):  # it has died
                process.stdin.close()
            try:
                process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                self._why = "the process that reads hung and was killed"
                process.kill()
                process.wait()
            process.stdout.close()
        if self._file is None:
            return Heard([], self._why)
        with self._file as file:
            file.seek(0)
            heard = understand(file.read())
        return heard if self._why is None else Heard(heard.lines, self._why)


def understand(written: bytes) -> Heard:
    """The lines of the process's file; the last may be cut off."""
    import msgspec

    decoder = msgspec.json.Decoder(tuple[str, float, dict[str, float] | str])
    lines, complaint = [], None
    for line in written.splitlines():
        try:
            lines.append(decoder.decode(line))
        except msgspec.MsgspecError:
            if line.strip() and not line.startswith(b'["'):
                complaint = line.decode(errors="replace").strip()[:300]
    return Heard(lines, complaint)


# -- the process ------------------------------------------------------------------------------------------------------


def main() -> None:
    file = int(sys.argv[1])
    asked = Asked(**json.loads(sys.stdin.buffer.readline()))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # also where the harness itself has a better one
    os.nice(5)  # what is measured comes first
    stop = threading.Event()

    def write(source: str, found: Mapping[str, float] | str) -> None:
        os.write(file, json.dumps([source, time.perf_counter(), found]).encode() + b"\n")

    tasks = [read_machine, *([read_servers] if asked.servers else [])]
    firsts = [threading.Event() for _ in tasks]
    readers = [
        threading.Thread(target=task, args=(asked, write, first, stop), daemon=True)
        for task, first in zip(tasks, firsts, strict=True)
    ]
    for reader in readers:
        reader.start()
    for first in firsts:
        first.wait(READY_LIMIT)
    with suppress(OSError):  # nobody waits any more
        os.write(1, b"ready\n")
    sys.stdin.buffer.read()
    stop.set()
    for reader in readers:
        reader.join(END_LIMIT)
    os._exit(0)  # a driver that hangs keeps nobody


def read_machine(asked: Asked, write: Write, first: threading.Event, stop: threading.Event) -> None:
    """Devices, the host and the client's memory, until `stop` and then once more."""
    from harness.devices import find_devices

    devices, why = ([], asked.deviceless) if asked.deviceless else find_devices(asked.devices)
    if why is not None:
        write("gpu", why)
    busy = Busy()
    began, last = time.perf_counter(), False
    while True:
        for device in devices:
            write(device.source, device.read())
        write("host", busy.read() | host_memory())
        write("client", client_memory(asked.pid))
        first.set()
        if last:
            return
        last = stop.wait(INTERVAL - (time.perf_counter() - began) % INTERVAL)


class Busy:
    """How busy this machine's processors are between two readings, from 0 to 1 (proc(5), /proc/stat)."""

    def __init__(self) -> None:
        self._idle, self._all = self._ticks()

    def read(self) -> dict[str, float]:
        idle, everything = self._ticks()
        passed = everything - self._all
        if passed < 5:  # ticks of 10 ms: too short a time to say anything
            return {}
        share = 1 - (idle - self._idle) / passed
        self._idle, self._all = idle, everything
        return {"cpu": min(1.0, max(0.0, share))}

    @staticmethod
    def _ticks() -> tuple[int, int]:
        with open("/proc/stat") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)


def host_memory() -> dict[str, float]:
    """What is not available to a new process (proc(5), /proc/meminfo)."""
    with open("/proc/meminfo") as file:
        kilobytes = {line.partition(":")[0]: line.split()[1] for line in file}
    return {"memory_bytes": 1024.0 * (int(kilobytes["MemTotal"]) - int(kilobytes["MemAvailable"]))}


def client_memory(pid: int) -> dict[str, float]:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return {"memory_bytes": float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))}
    except OSError:  # it is gone, and so are we in a moment
        return {}


def read_servers(asked: Asked, write: Write, first: threading.Event, stop: threading.Event) -> None:
    """All servers' metrics, until `stop` and then once more."""
    import uvloop

    from harness.scraper import scrape_all  # which brings the HTTP client, and that takes 0.1 s to import

    uvloop.run(scrape_all(asked.servers, asked.ca_file, asked.insecure, write, first, stop))


if __name__ == "__main__":
    main()
