"""A study that is killed and goes on: what the tests of several studies need to see it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

Marks = dict[str, tuple[int, str]]


def marks(folder: Path) -> Marks:
    """Time and hash of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    }


def wait_for(condition: Callable[[], object], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to this in time"
        time.sleep(0.02)


@contextmanager
def started(words: Sequence[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m harness …` in a session of its own; nothing of it is left in the end, whatever a test finds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *words],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        for one in below(process.pid):
            one.kill()
        process.kill()
        process.communicate()


def below(pid: int) -> list[psutil.Process]:
    """All that a process has started and that still runs."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Send a signal, to the whole group where it is Ctrl-C's; the exit code once nothing it has started is left."""
    there = below(process.pid)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    code = process.wait(30)
    gone, alive = psutil.wait_procs(there, timeout=15)
    assert gone and alive == []
    return code
