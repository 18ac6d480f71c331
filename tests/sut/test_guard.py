"""What the harness has started ends with the harness, however that ends. Real processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from sut.guard import VARIABLE, Guard, kill_marked, marked

SLEEP = ["sleep", "60"]

# A harness with a child, a grandchild in a session of its own and the watcher. It says when all are there.
HARNESS = """
import signal, subprocess, sys, time
from sut.guard import Guard

signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
guard = Guard()
middle = "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True); input()"
subprocess.Popen([sys.executable, "-S", "-c", middle], stdin=subprocess.PIPE)
time.sleep(60)
"""


class End:
    """The end of a process, also of one that is not our child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def within(self, seconds: float) -> bool:
        return bool(select.select([self._fd], [], [], seconds)[0])

    def clean_up(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        os.close(self._fd)


class Harness:
    """A process that runs the program above, and everything below it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HARNESS], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        grandchild = int(self.process.stdout.readline())
        below = {child.pid: End(child.pid) for child in psutil.Process(self.process.pid).children(recursive=True)}
        self.below = list(below.values())
        (self.watcher,) = (end for pid, end in below.items() if "guard.py" in " ".join(psutil.Process(pid).cmdline()))
        assert grandchild in below

    def clean_up(self) -> None:
        for end in self.below:
            end.clean_up()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def harness() -> Iterator[Harness]:
    it = Harness()
    yield it
    it.clean_up()


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """A guard of this very process, whose environment is put back afterwards."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("SPT_NOENV", "")
    it = Guard()
    yield it
    it.close()


def test_nothing_outlives_a_harness_that_is_killed(harness):
    assert len(harness.below) == 3, "the watcher, a child and a grandchild"
    harness.process.kill()
    assert [end.within(2) for end in harness.below] == [True, True, True]


def test_the_watcher_outlives_an_interrupt_but_not_the_harness(harness):
    os.killpg(harness.process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
    assert harness.process.stdout.readline() == "interrupted\n"
    assert not harness.watcher.within(0.2)
    harness.process.kill()
    assert all(end.within(2) for end in harness.below)


def test_kill_ends_what_was_started_since_and_nothing_else(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("SPT_NOENV", "")
    with subprocess.Popen(SLEEP) as stranger:
        guard = Guard()
        with subprocess.Popen(SLEEP) as child, subprocess.Popen(SLEEP, start_new_session=True) as apart:
            guard.kill()
            assert child.wait(2) == -signal.SIGKILL
            assert apart.wait(2) == -signal.SIGKILL
        assert stranger.poll() is None, "started before the guard: not ours"
        guard.close()
        assert stranger.poll() is None
        stranger.kill()


def test_close_kills_what_is_left_and_takes_the_mark_away(guard):
    with subprocess.Popen(SLEEP) as child:
        guard.close()
        assert child.wait(2) == -signal.SIGKILL
    assert VARIABLE not in os.environ


def test_the_mark_is_found_in_children_and_not_in_this_process(guard):
    assert marked(guard.mark) == []
    with subprocess.Popen(SLEEP) as child:
        assert marked(guard.mark) == [child.pid]
        child.kill()


def test_another_guards_mark_is_left_alone(guard):
    with subprocess.Popen(SLEEP) as child:
        kill_marked("0" * 32, patience=0)
        assert child.poll() is None
        child.kill()


def tracker(mark: str, stdin: int) -> subprocess.Popen[bytes]:
    """A stand-in for multiprocessing's resource tracker: it ends when its last client has closed the pipe."""
    return subprocess.Popen(
        ["sh", "-c", "read line; exit 0", "resource_tracker"], stdin=stdin, env={**os.environ, VARIABLE: mark}
    )


@pytest.mark.parametrize("patience", [0, 2])
def test_a_resource_tracker_is_left_to_end_by_itself(patience):
    mark = "a tracker whose client is killed"
    reading, writing = os.pipe()
    client = subprocess.Popen(SLEEP, pass_fds=[writing], env={**os.environ, VARIABLE: mark})
    with client, tracker(mark, reading) as it:
        os.close(reading)
        os.close(writing)
        kill_marked(mark, patience)
        assert client.wait(2) == -signal.SIGKILL
        assert it.wait(2) == 0, "killed, it could not free the shared memory that its clients left"


@pytest.mark.parametrize(
    ("patience", "alive"),
    [
        (0, True),  # the harness still runs, and is a client of the tracker itself
        (0.2, False),  # the harness is gone: nothing may stay behind
    ],
)
def test_a_resource_tracker_that_does_not_end(patience, alive):
    mark = "a tracker that hangs"
    reading, writing = os.pipe()
    with tracker(mark, reading) as it:
        kill_marked(mark, patience)
        assert (it.poll() is None) is alive
        os.close(writing)
    os.close(reading)
