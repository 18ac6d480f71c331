"""No process of ours outlives the harness, whatever ends it.

vLLM's engine processes survive a parent that is killed, and a busy one keeps burning its core. The harness marks its
environment, which every process it starts inherits, and starts a watcher that holds the read end of a pipe. When the
harness is gone, however it went, the pipe closes and the watcher kills what carries the mark. The watcher lives in a
session of its own, so that Ctrl-C in a terminal does not reach it.

This file is also the watcher's program: `python guard.py MARK`, standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

VARIABLE = "LOADGEN_HARNESS_MARK"

_KILL_LIMIT = 3.0


class Guard:
    """Marks this process's environment and watches over what is started from now on."""

    def __init__(self) -> None:
        self.mark = uuid4().hex
        os.environ[VARIABLE] = self.mark
        # setproctitle, which vLLM calls, would overwrite /proc/PID/environ and the mark in it.
        os.environ["SPT_NOENV"] = "1"
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", __file__, self.mark],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={},
        )

    def kill(self) -> None:
        """Kill what was started since and still runs, at once and without a word to it."""
        kill_marked(self.mark, patience=0)

    def close(self) -> None:
        """Kill what still runs and stop watching."""
        self.kill()
        self._watcher.kill()
        self._watcher.communicate()
        os.environ.pop(VARIABLE, None)


def marked(mark: str) -> list[int]:
    """Process ids whose environment carries the mark, but for this process."""
    needle = f"{VARIABLE}={mark}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # gone meanwhile, or another user's
            continue
        if needle in environment:
            found.append(int(entry.name))
    return found


def kill_marked(mark: str, patience: float) -> None:
    """SIGKILL all that carries the mark, but leave multiprocessing's resource trackers `patience` seconds to end.

    A tracker ends by itself when its last client is gone, this process included, and then frees the shared memory that
    they left behind. Without patience none is killed. Gives up after a few seconds on what cannot be killed, such as a
    process that hangs in a driver.
    """
    began = time.monotonic()
    while (pids := marked(mark)) and time.monotonic() < began + patience + _KILL_LIMIT:
        late = bool(patience) and time.monotonic() > began + patience
        doomed = [pid for pid in pids if late or not _is_tracker(pid)]
        for pid in doomed:
            _kill(pid)
        if not doomed and not patience:
            return
        time.sleep(0.02)


def _is_tracker(pid: int) -> bool:
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill(pid: int) -> None:
    with suppress(OSError):  # gone meanwhile
        os.kill(pid, signal.SIGKILL)


def watch(mark: str) -> None:
    """Wait for the end of the harness (end of file on stdin), then kill what it left."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_marked(mark, patience=2.0)


if __name__ == "__main__":
    watch(sys.argv[1])
