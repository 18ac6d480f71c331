"""What a run says while it runs: whole lines where there is no terminal, nothing when quiet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.progress import clock, describe
from sut.work import Counts

# A driver with a stderr of its own: Progress writes to file descriptor 2.
DRIVER = """
import sys, time
from harness import progress
from sut.work import Counts
progress.PLAIN_INTERVAL = 0.05
with progress.Progress(quiet="quiet" in sys.argv) as view:
    view.say("A step begins")
    view.update("Offline performance", Counts(8, 0, 0, 0, 8), 8)
    time.sleep(0.1)
    view.update("Offline performance", Counts(8, 4, 1, 128, 4), 8)
    view.say("The next step")
"""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (40.6, "41 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (200, "3:20"),
        (3599.9, "1:00:00"),
        (3723, "1:02:03"),
        (36_000, "10:00:00"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("counts", "expected", "history", "text"),
    [
        # the first look has no rate yet
        (Counts(8, 0, 0, 0, 8), 8, [(0.0, 0, 0)], "Server: 0 of 8 answered · 8 in flight"),
        # how many are to come is not always known
        (Counts(8, 3, 0, 9, 5), None, [(0.0, 3, 9)], "Server: 3 answered · 5 in flight"),
        (
            Counts(1024, 500, 0, 9000, 24),
            1024,
            [(0.0, 400, 7000), (2.0, 500, 9000)],
            "Server: 500 of 1,024 answered · 50.0 samples/s · 1,000 tokens/s · 24 in flight · 10 s left",
        ),
        # nothing moves: no time left to tell
        (
            Counts(10, 5, 0, 9, 5),
            10,
            [(0.0, 5, 9), (2.0, 5, 9)],
            "Server: 5 of 10 answered · 0.0 samples/s · 0 tokens/s · 5 in flight",
        ),
        # at the end, with failures
        (
            Counts(10, 10, 1200, 90, 0),
            10,
            [(0.0, 0, 0), (1.0, 10, 90)],
            "Server: 10 of 10 answered · 10.0 samples/s · 90 tokens/s · 0 in flight · 1,200 FAILED",
        ),
    ],
)
def test_describe(counts: Counts, expected: int | None, history: list[tuple[float, int, int]], text: str) -> None:
    assert describe("Server", counts, expected, history) == text


def drive(*words: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent.parent
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *words], cwd=root, env=dict(os.environ), capture_output=True, text=True
    )


def test_plain_lines_where_stderr_is_no_terminal() -> None:
    done = drive()
    first, second, third = done.stderr.splitlines()
    assert (first, third) == ("A step begins", "The next step")
    assert second.startswith("Offline performance: 4 of 8 answered · ")
    assert second.endswith(" · 1 FAILED")
    assert "\x1b" not in done.stderr
    assert done.stdout == ""


def test_quiet_says_nothing() -> None:
    done = drive("quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
