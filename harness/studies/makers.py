"""How replicas are made and taken away: `vllm serve` processes on this machine, or a person's commands.

A create command is run once per replica, by /bin/sh. Either its output ends in the replica's URL, or a template says
where each replica is; then the command may also go on running, as the server itself. What it starts on this machine
carries the guard's mark and ends with the harness; what it makes elsewhere is the delete command's to take away.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from sut.backends import Plan
from sut.backends.http import Origin
from sut.backends.serve import HOST, make_servers
from sut.backends.vllm_engine import reason
from sut.errors import ConfigError, SetupError

PLACEHOLDERS = ("index", "name", "port", "model")
"""What a template may hold in braces: the replica's number from 0, replica-NUMBER, a free port of this machine, and
--model. Any other braces are left to the shell."""

STOP_LIMIT = 10.0
"""Seconds that a running command gets to end by itself."""

DELETE_LIMIT = 120.0
"""Seconds that a delete command may take."""

DELETES_AT_ONCE = 16

_PLACEHOLDER = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")


class Maker(Protocol):
    """Makes replicas, by their index."""

    def name(self, index: int) -> str: ...

    def place(self, index: int) -> str | None:
        """The URL that one will have, if that is known before it is made."""

    def adopt(self, index: int, url: str) -> bool:
        """Whether one that an interrupted study has made may still be there: then it is this maker's."""

    async def create(self, index: int) -> str:
        """Begin to make one; its URL, as soon as that is known. Raises SetupError."""

    def created(self, index: int) -> float | None:
        """When the command had ended, or the process was there, in seconds of `time.monotonic`; None: not yet."""

    def trouble(self, index: int) -> str | None:
        """Why this one will never come up, or is gone, as far as its maker can tell; one quick look."""

    async def remove(self, indices: Collection[int]) -> list[str]:
        """Take replicas away and end what was started for them; what could not be done, a sentence each."""


class Commands(NamedTuple):
    """What a person gives instead of --serve."""

    create: str
    delete: str | None = None
    endpoint: str | None = None


def refuse_odd_commands(commands: Commands, replicas: int) -> None:
    """Raises ConfigError for templates that cannot be meant."""
    named = {"--create-cmd": commands.create, "--endpoint-template": commands.endpoint, "--delete-cmd": commands.delete}
    for option, template in named.items():
        if template is not None and not template.strip():
            raise ConfigError(f"{option} is empty.")
        if template is not None and replicas > 1 and not set(_PLACEHOLDER.findall(template)) - {"model"}:
            raise ConfigError(
                f"{option} says the same for all {replicas} replicas: put {{index}}, {{name}} or {{port}} into it."
            )
    if commands.delete and "{port}" in commands.delete:
        raise ConfigError("--delete-cmd cannot use {port}, which nobody knows after a crash: use {index} or {name}.")
    if commands.endpoint is not None:
        Origin.parse(_PLACEHOLDER.sub("1", commands.endpoint))


def fill(template: str, values: Mapping[str, str], quote: bool = True) -> str:
    """A template with its placeholders filled in, as the shell's words where it is a command."""
    return _PLACEHOLDER.sub(lambda found: shlex.quote(values[found[1]]) if quote else values[found[1]], template)


def url_of(lines: Sequence[str]) -> str | None:
    """The URL that a create command's output ends in, or None."""
    last = lines[-1].split() if lines else []
    return last[-1] if last and re.fullmatch(r"https?://[!-~]+", last[-1]) else None


class Served:
    """`vllm serve` on this machine. Engines may share cores: what is measured is how they come up."""

    def __init__(self, plan: Plan) -> None:
        self._servers = make_servers(plan)
        self._created: dict[int, float] = {}

    def name(self, index: int) -> str:
        return self._servers[index].name

    def place(self, index: int) -> str | None:
        return None

    def adopt(self, index: int, url: str) -> bool:
        return False  # the guard has ended it

    async def create(self, index: int) -> str:
        server = self._servers[index]
        server.spawn()
        self._created[index] = time.monotonic()
        return server.url

    def created(self, index: int) -> float | None:
        return self._created.get(index)

    def trouble(self, index: int) -> str | None:
        return self._servers[index].trouble()

    async def remove(self, indices: Collection[int]) -> list[str]:
        await asyncio.gather(*(self._servers[index].stop() for index in indices))
        return []


class Command:
    """A shell command that runs in a session of its own, its output in two files.

    A process that has ended stays unreaped until `stop`: so long its group's id can be nobody else's.
    """

    def __init__(self, text: str, log: Path) -> None:
        self.text = text
        self.ended: float | None = None
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._files = [log.with_name(f"{log.name}.{kind}") for kind in ("out", "err")]
        with ExitStack() as stack:
            out, err = (stack.enter_context(path.open("ab")) for path in self._files)
            self._starts = out.tell(), err.tell()
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", text], stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        self._descriptor = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._note_end)

    def _note_end(self) -> None:
        self.ended = time.monotonic()
        self._close()
        if not self._end.done():
            self._end.set_result(None)

    def _close(self) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    async def wait(self) -> None:
        await asyncio.shield(self._end)

    def trouble(self) -> str | None:
        """How it failed, or None for one that runs or has ended well."""
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) if self.ended else None
        if found is None or (found.si_code == os.CLD_EXITED and found.si_status == 0):
            return None
        how = "exited with code" if found.si_code == os.CLD_EXITED else "was killed by signal"
        said = reason(self.output(1)) or reason(self.output(0))
        return f"the command {shown(self.text)} {how} {found.si_status}{f': {said}' if said else ''}"

    def output(self, kind: int = 0) -> str:
        """What it has printed on stdout (0) or stderr (1), at most the last 64 kB."""
        with self._files[kind].open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._starts[kind], size - 65536))
            return file.read().decode(errors="replace")

    async def stop(self, patience: float = STOP_LIMIT) -> None:
        """End it, and what it has left running in its group; right also twice."""
        if self._process.returncode is not None:
            return
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.wait()
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_LIMIT):  # what hangs in a driver is left to the guard
                await self.wait()
        self._process.poll()
        self._close()


class Commanded:
    """Replicas that a person's commands make and take away; what these print goes into `folder`."""

    def __init__(self, commands: Commands, model: str, folder: Path) -> None:
        self._commands = commands
        self._model = model
        self._folder = folder
        self._running: dict[int, Command] = {}
        self._ports: dict[int, int] = {}
        self._urls: dict[str, int] = {}

    def name(self, index: int) -> str:
        return f"replica-{index}"

    def place(self, index: int) -> str | None:
        template = self._commands.endpoint
        return None if template is None else fill(template, self._values(index), quote=False)

    def adopt(self, index: int, url: str) -> bool:
        self._claim(url, index)
        return True

    async def create(self, index: int) -> str:
        command = self._running[index] = self._start(fill(self._commands.create, self._values(index)), index)
        url = self.place(index)
        if url is None:
            await command.wait()
            if why := command.trouble():
                raise SetupError(why)
            url = url_of(lines := command.output().strip().splitlines())
            if url is None:
                raise SetupError(
                    f"the command {shown(command.text)} ended with no URL but with "
                    f"{repr(lines[-1][-80:]) if lines else 'nothing'}: have it print the replica's URL last, or say "
                    "where replicas are with --endpoint-template"
                )
        self._claim(url, index)
        return url

    def _values(self, index: int) -> dict[str, str]:
        if index not in self._ports:
            self._ports[index] = self._free_port()
        own = {"index": str(index), "name": self.name(index), "port": str(self._ports[index])}
        return own | {"model": self._model}

    def _claim(self, url: str, index: int) -> None:
        """Raises SetupError for a URL that is no URL, or another replica's."""
        try:
            key = str(Origin.parse(url))
        except ConfigError as error:
            raise SetupError(str(error).rstrip(".")) from error
        if self._urls.setdefault(key, index) != index:
            raise SetupError(f"{key} is the URL of {self.name(self._urls[key])} too")

    def _start(self, text: str, index: int) -> Command:
        try:
            return Command(text, self._folder / self.name(index))
        except OSError as error:
            raise SetupError(f"the command {shown(text)} could not be started: {error.strerror}") from error

    def created(self, index: int) -> float | None:
        command = self._running.get(index)
        return command.ended if command is not None else None

    def trouble(self, index: int) -> str | None:
        command = self._running.get(index)
        return command.trouble() if command is not None else None

    async def remove(self, indices: Collection[int]) -> list[str]:
        turns = asyncio.Semaphore(DELETES_AT_ONCE)

        async def one(index: int) -> str | None:
            async with turns:
                return await self._remove(index)

        return [why for why in await asyncio.gather(*map(one, indices)) if why]

    async def _remove(self, index: int) -> str | None:
        """A create command that still runs is ended first: it might go on making what is being deleted."""
        command = self._running.pop(index, None)
        if command is not None and command.ended is None:
            await command.stop()
        why = await self._delete(index)
        if command is not None:
            await command.stop(patience=0.0)  # what it has left running here
        self._ports.pop(index, None)
        self._urls = {url: owner for url, owner in self._urls.items() if owner != index}
        return why

    async def _delete(self, index: int) -> str | None:
        if self._commands.delete is None:
            return None
        try:
            command = self._start(fill(self._commands.delete, self._values(index)), index)
        except SetupError as error:
            return f"{self.name(index)} may still be there: {error}."
        try:
            async with asyncio.timeout(DELETE_LIMIT):
                await command.wait()
            why = command.trouble()
        except TimeoutError:
            why = f"the command {shown(command.text)} had not ended after {DELETE_LIMIT:g} s"
        finally:
            await command.stop(patience=0.0)
        return f"{self.name(index)} may still be there: {why}." if why else None

    def _free_port(self) -> int:
        """A port that nobody listens on, another one each time."""
        while True:
            with socket.socket() as held:
                held.bind((HOST, 0))
                port = int(held.getsockname()[1])
            if port not in self._ports.values():
                return port


def shown(command: str) -> str:
    """A command within a sentence."""
    return repr(command if len(command) <= 100 else f"{command[:99]}…")
