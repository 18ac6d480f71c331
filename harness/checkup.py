"""What `doctor` looks at: this machine as Linux tells of it, packages, processes; and what may crash or hang.

An import, a driver and a server are looked at by processes of their own, which have a limit: this file is their program
too, `python -m harness.checkup PART [WORD…]`, and their last line is their answer as JSON. Nothing is written anywhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from sut.errors import SutError
from sut.guard import VARIABLE

Answer = Mapping[str, Any]

ROOT = Path(__file__).parent.parent

LIMITS = {"harness": 30.0, "vllm": 90.0, "devices": 15.0, "endpoint": 45.0}
"""Seconds that each part may take. vLLM's import takes some 7, and far longer from a cold network disk."""

HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class Need(NamedTuple):
    """What the project's own metadata ask for; `extra` is "" where it is always needed."""

    package: str
    lowest: str
    extra: str


class Process(NamedTuple):
    """A process as /proc has it; `mark` is the guard's, where its environment may be read and has one."""

    pid: int
    parent: int
    title: str
    mark: str | None = None


@dataclass(frozen=True)
class Machine:
    """None is what Linux does not say. `quota` is in cores, `clock_cost` the seconds of one reading."""

    cores: int
    usable: int
    quota: float | None
    memory: int | None
    shared: int | None
    load: float
    governors: frozenset[str]
    clock: str | None
    clock_cost: float
    files: int
    nodes: tuple[str, ...]
    """Files of GPUs in /dev, which are there without any library that reads the GPUs."""


@dataclass(frozen=True)
class Place:
    """The folder that results go to, or the nearest one above it that is there."""

    folder: Path
    writable: bool
    free: int | None


# -- here -------------------------------------------------------------------------------------------------------------


def installed(package: str) -> str | None:
    """A package's version; "" where its metadata are damaged, None where there are none."""
    try:
        return metadata.version(package) or ""
    except metadata.PackageNotFoundError:
        return None
    except Exception:  # noqa: BLE001 - a damaged file may raise anything
        return ""


def needs(project: str = "loadgen-harness") -> list[Need]:
    """What the project needs as its metadata say; nothing where it is not installed."""
    try:
        lines = metadata.requires(project) or []
    except Exception:  # noqa: BLE001 - a damaged file may raise anything
        return []
    found = [re.match(r"([\w.-]+)>=([\w.]+)(?:.*extra == \W(\w+))?", line.replace(" >= ", ">=")) for line in lines]
    return [Need(match[1], match[2], match[3] or "") for match in found if match]


def machine(root: Path = Path("/")) -> Machine:
    """What decides how fast the harness is, and how steady."""
    quota = re.match(r"(\d+) (\d+)$", _read(root / "sys/fs/cgroup/cpu.max"))
    available = re.search(r"^MemAvailable: *(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    limit = _read(root / "sys/fs/cgroup/memory.max")
    memory = [int(available[1]) * 1024] if available else []
    memory += [int(limit)] if limit.isdigit() else []
    cpus = root / "sys/devices/system/cpu"
    return Machine(
        cores=os.cpu_count() or 1,
        usable=len(os.sched_getaffinity(0)),
        quota=int(quota[1]) / int(quota[2]) if quota else None,
        memory=min(memory, default=None),
        shared=_free(root / "dev/shm"),
        load=os.getloadavg()[0],
        governors=frozenset(filter(None, map(_read, cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")))),
        clock=_read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource") or None,
        clock_cost=min(_clock_cost() for _ in range(5)),
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        nodes=tuple(sorted(str(path) for name in ("nvidia[0-9]*", "kfd") for path in (root / "dev").glob(name))),
    )


def _clock_cost(readings: int = 1000) -> float:
    began = time.perf_counter()
    for _ in range(readings):
        time.perf_counter()
    return (time.perf_counter() - began) / readings


def place(folder: Path) -> Place:
    """Where `folder` is, or would be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    return Place(there, there.is_dir() and os.access(there, os.W_OK | os.X_OK), _free(there))


def _free(path: Path) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not there, or a driver that does not answer
        return ""


def processes(proc: Path = Path("/proc")) -> list[Process] | None:
    """All processes that can be seen but this one, or None where nobody says."""
    try:
        pids = sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit())
    except OSError:
        return None
    found = []
    for pid in pids:
        stat = re.match(r"\d+ \(.*\) \S (\d+)", _read(proc / str(pid) / "stat"), re.DOTALL)
        if stat is None or pid == os.getpid():  # gone meanwhile
            continue
        title = _read(proc / str(pid) / "cmdline").replace("\0", " ").strip()
        mark = re.search(rf"(?:^|\0){VARIABLE}=(\w+)", _read(proc / str(pid) / "environ"))
        found.append(Process(pid, int(stat[1]), title, mark[1] if mark else None))
    return found


# -- in processes of their own ----------------------------------------------------------------------------------------


class Looks:
    """Processes that look at one thing each, side by side; all are gone when this is left."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[subprocess.Popen[bytes], int, float, float]] = {}

    def __enter__(self) -> Looks:
        return self

    def __exit__(self, *_: object) -> None:
        for process, heard, *_rest in self._begun.values():
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that hangs in a driver never ends
                process.wait(1.0)
            os.close(heard)

    def start(self, name: str, part: str, *words: str) -> None:
        # In memory, as the disk may be full, and no pipe, as a grandchild may hold one open.
        heard = os.memfd_create(part)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        command = [sys.executable, "-B", "-m", "harness.checkup", part, *words]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=heard, stderr=heard, env=environment)
        self._begun[name] = process, heard, LIMITS[part], time.monotonic()

    def answer(self, name: str) -> Answer:
        """What that process has found out; `error` says why it has not."""
        process, heard, limit, began = self._begun[name]
        try:
            code = process.wait(max(0.0, began + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            return {"error": f"no answer within {limit:g} s"}
        said = os.pread(heard, os.fstat(heard).st_size, 0).decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else "it said nothing"
        if code < 0:
            return {"error": f"its process has died: {signal.strsignal(-code)}"}
        try:
            return dict(json.loads(last)) if code == 0 else {"error": last[:300]}
        except (ValueError, TypeError):
            return {"error": last[:300]}


def look_at_harness() -> Answer:
    """Whether all that a run needs but an engine can be imported, and what of its files and variables is wrong."""
    import harness.loadgen  # noqa: F401 - that it can be
    from harness.conf import default_file, read_conf
    from harness.config import USER_CONF
    from harness.rouge import sentences_missing
    from sut.backends.remote import refuse_odd_talk

    wrong = {}
    try:
        if conf := default_file(USER_CONF):
            read_conf(conf)
    except SutError as error:
        wrong[USER_CONF] = str(error)
    try:
        refuse_odd_talk(None)
    except SutError as error:
        wrong["API key"] = str(error)
    return {"wrong": wrong, "round": default_file("mlperf.conf") is not None, "punkt": sentences_missing()}


def look_at_vllm() -> Answer:
    """Where engines would run, after the import that a run begins with."""
    from sut.backends.vllm_engine import require_vllm

    require_vllm()
    from vllm.platforms import current_platform

    return {"platform": current_platform.device_type}


def look_at_devices() -> Answer:
    """All devices, and those that a variable leaves visible, with the memory that is in use."""
    from harness.devices import find_devices
    from harness.environment import devices

    everything, why = find_devices(None)
    variable = next((name for name in HIDING if name in os.environ), None)
    names = os.environ[variable] if variable else None
    seen = everything
    if names is not None:
        seen, why = find_devices([name.strip() for name in names.split(",")]) if names else ([], "it is empty")
    return {
        "count": len(everything),
        "kinds": sorted({device["name"] for device in devices()}),
        "variable": f"{variable}={names}" if variable else None,
        "why": why,
        "used": {device.source: device.read().get("memory_bytes", 0.0) for device in seen},
    }


def look_at_endpoint(url: str, model: str = "", ca_file: str = "", insecure: str = "") -> Answer:
    """What a run would find out about this server, and how long one round trip takes."""
    from harness.dataset import Tokenizer
    from harness.run import find_model
    from sut.backends import Generation, Plan
    from sut.backends.http import Origin, Pool, tls_context
    from sut.backends.probe import Probe, Prompts

    origin = Origin.parse(url)
    codec = Tokenizer(find_model(model)) if model else None
    plan = Plan(1, model, "auto", None, Generation(16), codec=codec)

    async def look() -> Answer:
        pool = Pool(origin, tls_context(ca_file or None, bool(insecure)) if origin.scheme == "https" else None)
        await pool.resolve()
        probe = Probe(origin, plan, Prompts(plan), pool)
        found = await probe.find_out()
        trips = []
        for _ in range(5):
            began = time.perf_counter()
            await probe.health(5.0)
            trips.append(time.perf_counter() - began)
        return dict(found.facts) | {"round_trip": min(trips)}

    return asyncio.run(look())


PARTS: Mapping[str, Callable[..., Answer]] = {
    "harness": look_at_harness,
    "vllm": look_at_vllm,
    "devices": look_at_devices,
    "endpoint": look_at_endpoint,
}


def main(part: str, *words: str) -> None:
    """Look at one thing and say the answer as the last line; `told` marks an error that says what to do."""
    signal.alarm(int(LIMITS[part]) + 5)  # an import that hangs ends too when nobody waits for it any more
    answer: Answer
    try:
        answer = PARTS[part](*words)
    except SutError as error:
        answer = {"error": str(error), "told": True}
    except Exception as error:  # noqa: BLE001 - whatever an import raises is what was to be found out
        text = (str(error).strip() or "no reason given").splitlines()[0][:300]
        answer = {"error": f"{type(error).__name__}: {text}"}
    with suppress(OSError):
        os.write(1, b"\n" + json.dumps(answer).encode())
    os._exit(0)  # no last words of a library after the answer


if __name__ == "__main__":
    main(*sys.argv[1:])
