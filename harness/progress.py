"""The live view of a run: one line that keeps itself up to date on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from time import monotonic
from types import TracebackType
from typing import Any

from sut.work import Counts

PLAIN_INTERVAL = 10.0
_RATE_WINDOW = 5.0


class Progress(AbstractContextManager["Progress"]):
    """Says what happens, on stderr. `say` for a step, `update` for a running test, nothing at all when quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        # A duplicate: stderr itself belongs to an engine's log while that engine is being spawned.
        self._out = os.fdopen(os.dup(2), "w")
        self._live = not quiet and self._out.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._history: list[tuple[float, int, int]] = []
        self._said = monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        with suppress(OSError):  # what could not be written is still in its buffer
            self._out.close()

    def say(self, text: str) -> None:
        """A step begins; on a terminal it shows as going on until the next."""
        if self._quiet:
            return
        self._history.clear()
        self._said = monotonic()
        self._stop()
        if not self._live:
            self._print(text)
            return
        self._show(text)

    def update(self, what: str, counts: Counts, expected: int | None) -> None:
        """A running test, as often as wanted."""
        if self._quiet:
            return
        now = monotonic()
        self._history = [entry for entry in self._history if now - entry[0] < _RATE_WINDOW]
        self._history.append((now, counts.completed, counts.tokens))
        text = describe(what, counts, expected, self._history)
        if self._live:
            self._show(text, counts.completed, expected)
        elif now - self._said >= PLAIN_INTERVAL:
            self._said = now
            self._print(text)

    def _print(self, text: str) -> None:
        try:
            print(text, file=self._out, flush=True)
        except OSError:  # nobody reads stderr any more: that must not cost the run
            self._quiet = True

    def _show(self, text: str, done: int = 0, expected: int | None = None) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TimeElapsedColumn(), BarColumn(bar_width=10), TextColumn("{task.description}")
            self._bar = Progress(*columns, console=Console(file=self._out, highlight=False), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(text, total=expected)
        self._bar.update(self._task, description=text, completed=done, total=expected)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(what: str, counts: Counts, expected: int | None, history: list[tuple[float, int, int]]) -> str:
    """One line: done of how many, rates over the last seconds, in flight, time left, failures."""
    (then, done_then, tokens_then), (now, done, tokens) = history[0], history[-1]
    span = now - then
    rate, token_rate = ((done - done_then) / span, (tokens - tokens_then) / span) if span > 0 else (0.0, 0.0)
    parts = [f"{what}: {done:,}{f' of {expected:,}' if expected else ''} answered"]
    if span > 0:
        parts += [f"{rate:,.1f} samples/s", f"{token_rate:,.0f} tokens/s"]
    parts.append(f"{counts.in_flight:,} in flight")
    if expected and rate > 0 and expected > done:
        parts.append(f"{clock((expected - done) / rate)} left")
    if counts.failed:
        parts.append(f"{counts.failed:,} FAILED")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """41 s, 3:20 or 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
