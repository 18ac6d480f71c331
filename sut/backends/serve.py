"""`vllm serve` on this machine, for --serve: N processes started, waited for and stopped.

Each is a session of its own: Ctrl-C in a terminal does not reach it, and one signal ends all that it has started.
A process that has ended stays unreaped until `stop`: so long its id, and its group's, can be nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from typing import Any, BinaryIO, NoReturn

from sut.backends import Plan, refuse_unknown
from sut.backends.http import KEY
from sut.backends.vllm_engine import (
    devices_in,
    divide_machine,
    engine_arguments,
    first_line,
    reason,
    require_vllm,
)
from sut.errors import ConfigError, SetupError

HOST = "127.0.0.1"

_POLL = 0.2
_HEALTH_LIMIT = 1.0
_STOP_LIMIT = 10.0
_KILL_LIMIT = 3.0
_LOG_WINDOW = 1 << 18

# Where vLLM keeps the frontend's options: 0.32 and what came before it.
_FRONTENDS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")
# Switches without a `--no-` form.
_ONLY_ON = {"disable_log_stats", "aggregate_engine_logging", "data_parallel_multi_port_external_lb"}

_OTHER_MODEL = "would serve another model than the result says: use --model."
_OUR_ADDRESS = "is not open: the harness decides where its own servers listen."
_REFUSED = {
    "model": _OTHER_MODEL,
    "tokenizer": _OTHER_MODEL,
    "served_model_name": "would rename the model behind the client's back: use --served-model.",
    "host": _OUR_ADDRESS,
    "port": _OUR_ADDRESS,
    "uds": _OUR_ADDRESS,
    "ssl_keyfile": _OUR_ADDRESS,
    "ssl_certfile": _OUR_ADDRESS,
    "hf_token": "would show in every list of processes: set HF_TOKEN in the environment.",
    "api_key": f"would show in every list of processes: set {KEY} in the environment.",
}


class Server:
    """One `vllm serve` process on this machine."""

    def __init__(self, name: str, plan: Plan, environment: Mapping[str, str], cores: Sequence[int]) -> None:
        self.name = name
        self.url = ""  # known after `start`
        self.devices = devices_in(environment)
        self._plan = plan
        self._environment = environment
        self._cores = cores
        self._process: subprocess.Popen[bytes] | None = None
        self._log: BinaryIO | None = None
        self._log_from = 0
        self._log_name = f"{name}.log" if plan.log_dir else "its log"
        self._death: str | None = None

    async def start(self) -> None:
        """Spawn it and wait until it is healthy. Raises SetupError."""
        deadline = time.monotonic() + self._plan.ready_timeout
        why = await self._come_up(deadline)
        if why and "address already in use" in self._logged().lower():  # somebody took the port first
            why = await self._come_up(deadline)
        if why:
            self._close_log()
            raise SetupError(f"the server {self.name} did not start: {why}")

    def trouble(self) -> str | None:
        """Why it cannot serve any more, or None; one look at the process."""
        if self._death is None and self._process is not None and (end := self._end()):
            self._death = f"the server {self.name} {end}{self._tail()}"
        return self._death

    async def stop(self) -> None:
        """Ask it to end, then kill it and all it has started. Right at any time, also twice, also while it starts."""
        process = self._process
        if process is None:
            return
        try:
            with suppress(OSError):
                os.kill(process.pid, signal.SIGTERM)
            limit = time.monotonic() + _STOP_LIMIT
            while self._process is process and not self._end() and time.monotonic() < limit:
                await asyncio.sleep(0.05)
        finally:
            await self._kill()
            self._close_log()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _come_up(self, deadline: float) -> str | None:
        """One attempt: None when it is ready, or why not; then nothing of it is left."""
        try:
            port = self._spawn()
        except OSError as error:
            return first_line(error)
        while True:
            if end := self._end():
                why = f"it {end}"
                break
            if await _healthy(port):
                return None
            if time.monotonic() > deadline:
                why = f"it was not ready within {self._plan.ready_timeout:g} s"
                break
            await asyncio.sleep(_POLL)
        why += self._tail()
        await self._kill()
        return why

    def _spawn(self) -> int:
        self._death = None
        if self._log is None:
            self._log = self._open_log()
        self._log_from = os.fstat(self._log.fileno()).st_size
        with socket.socket() as held:
            held.bind((HOST, 0))
            port = int(held.getsockname()[1])
            words = command(self._plan, port)
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(self._environment),
        )
        self.url = f"http://{HOST}:{port}"
        if self._cores:
            with suppress(OSError):  # gone already
                os.sched_setaffinity(self._process.pid, self._cores)
        return port

    def _end(self) -> str | None:
        """How the process has ended, or None."""
        if self._process is None:
            return "was stopped"
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        if found.si_code == os.CLD_EXITED:
            return f"exited with code {found.si_status}"
        return f"was killed by signal {found.si_status} ({signal.strsignal(found.si_status)})"

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        limit = time.monotonic() + _KILL_LIMIT  # of patience with one that hangs in a driver
        while process.poll() is None and time.monotonic() < limit:
            await asyncio.sleep(0.01)

    def _open_log(self) -> BinaryIO:
        if self._plan.log_dir is None:
            return tempfile.TemporaryFile(buffering=0)
        return open(self._plan.log_dir / f"{self.name}.log", "a+b", buffering=0)

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _logged(self) -> str:
        """The end of what this attempt has logged; leaves alone the place where the process writes."""
        if self._log is None:
            return ""
        file = self._log.fileno()
        begin = max(self._log_from, os.fstat(file).st_size - _LOG_WINDOW)
        return os.pread(file, _LOG_WINDOW, begin).decode(errors="replace")

    def _tail(self) -> str:
        """What the log gives as the reason, as an appendix to a message."""
        text = reason(self._logged())
        return f"; {self._log_name} ends: {text}" if text else ""


def make_servers(plan: Plan) -> list[Server]:
    """One server per replica, none started, the devices of this machine divided. Raises ConfigError or SetupError."""
    AsyncEngineArgs = require_vllm()
    refuse(plan, [field.name for field in fields(AsyncEngineArgs)])
    _refuse_unreadable(command(plan, 0))
    return [Server(f"vllm-{i}", plan, *place) for i, place in enumerate(divide_machine(plan))]


def command(plan: Plan, port: int) -> list[str]:
    """The command line of one server: what an engine in this process would be created with, as flags."""
    arguments = engine_arguments(plan)
    del arguments["disable_log_stats"]  # so that /metrics has something to say, unless the person wants otherwise
    arguments |= plan.engine_args
    if plan.batch:
        arguments = _batch_sizes() | arguments
    if plan.served_model is not None:
        arguments["served_model_name"] = plan.served_model
    known = _frontend_fields()
    for name in ("enable_scale_out", "disable_uvicorn_access_log"):  # the first opens /inference/v1/generate
        if name in known:
            arguments.setdefault(name, True)
    # The command `vllm` of the CPU build does not start; the module does.
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(arguments.pop("model"))]
    words += ["--host", HOST, "--port", str(port)]
    for name, value in arguments.items():
        words += _flag(name, value)
    return words


def _batch_sizes() -> dict[str, int]:
    """vLLM sizes its batches by what an engine is for, and takes every server for one of Server's kind of load."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    try:
        tokens, sequences = EngineArgs.get_batch_defaults(1)
        return {
            "max_num_batched_tokens": tokens[UsageContext.LLM_CLASS],
            "max_num_seqs": sequences[UsageContext.LLM_CLASS],
        }
    except (AttributeError, KeyError, TypeError):  # another vLLM: its server's own defaults
        return {}


def environment(place: Mapping[str, str]) -> dict[str, str]:
    """What a server is spawned with: ours (the guard's mark too), its devices, and the API key, if there is one."""
    ours = {**os.environ, "PYTHONUNBUFFERED": "1", **place}
    if key := ours.pop(KEY, ""):
        ours["VLLM_API_KEY"] = key
    return ours


def refuse(plan: Plan, engine: Sequence[str]) -> None:
    """Raises ConfigError for an argument that no server of ours knows or takes, and for a key of two minds."""
    for name in plan.engine_args:
        if name in _REFUSED:
            raise ConfigError(f"--engine-arg {name}=… {_REFUSED[name]}")
    known = [name for name in (*engine, *_frontend_fields()) if not name.startswith("_") and name not in _REFUSED]
    refuse_unknown(plan.engine_args, known, "argument of vLLM's server")
    theirs = {**os.environ, **plan.engine_env}.get("VLLM_API_KEY")
    if theirs and theirs != os.environ.get(KEY):
        raise ConfigError(f"VLLM_API_KEY would lock the harness out of its own servers: set {KEY} instead.")


def _flag(name: str, value: Any) -> list[str]:
    dashed = name.replace("_", "-")
    if value is True:
        return [f"--{dashed}"]
    if value is False:
        return [] if name in _ONLY_ON else [f"--no-{dashed}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{dashed}", *(json.dumps(item) if isinstance(item, dict | list) else str(item) for item in values)]


def _frontend() -> Any:
    """The module with the options of vLLM's frontend, or None where this vLLM keeps them elsewhere."""
    for name in _FRONTENDS:
        with suppress(ImportError):
            return import_module(name)
    return None


def _frontend_fields() -> Collection[str]:
    module = _frontend()
    return [field.name for field in fields(module.FrontendArgs)] if module else []


def _refuse_unreadable(words: Sequence[str]) -> None:
    """Raises ConfigError for values that vLLM's own parser refuses; it is asked here, not 10 s into a start."""
    module = _frontend()
    if module is None:
        return
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM is not there for mypy
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"vLLM's server refuses its arguments: {message}.")

    stray = getattr(module.make_arg_parser(Parser()).parse_args(words[3:]), "model_tag", None)
    if stray is not None:  # a second value where one is taken is read as a model
        raise ConfigError(f"vLLM's server would take {stray!r} for its model: one --engine-arg has a value too many.")


async def _healthy(port: int) -> bool:
    try:
        async with asyncio.timeout(_HEALTH_LIMIT):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(f"GET /health HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, ValueError):  # ValueError: a line beyond all limits
        return False
