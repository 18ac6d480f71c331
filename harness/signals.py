"""Ctrl-C, SIGTERM and a lost terminal: they end a command in order, and with what is finished saved.

A handler that raises does so at any place, also inside `threading`, where a lock then stays locked for ever, or in a
finalizer, where Python drops what is raised. So while a test runs a signal is only noted, and who waits looks at the
note.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a run as Ctrl-C does; its text is the signal's name."""


def interrupt_of(number: int) -> KeyboardInterrupt:
    """What a signal is raised as."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(signal.Signals(number).name)


def name_of(interrupt: KeyboardInterrupt) -> str:
    return str(interrupt) if isinstance(interrupt, Terminated) else "Ctrl-C"


def raise_on_signals() -> None:
    """Ctrl-C, SIGTERM and a lost terminal raise in the main thread; Ctrl-C also in a shell's background job, which
    inherits SIGINT ignored. Under nohup, SIGHUP stays ignored."""
    assert threading.current_thread() is threading.main_thread()

    def terminate(number: int, frame: FrameType | None) -> None:
        raise interrupt_of(number)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, terminate)


def current_handlers() -> dict[signal.Signals, Any]:
    return {number: signal.getsignal(number) for number in SIGNALS}


def restore_signals(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Noted:
    """As long as this is entered, signals raise nothing: `interrupt` is the first one that came. One that was ignored
    before stays ignored."""

    def __init__(self) -> None:
        self.interrupt: KeyboardInterrupt | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._handlers = current_handlers()
        self._take_notes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore_signals(self._handlers)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Signals raise here as they do outside, the one that was noted at once."""
        try:
            restore_signals(self._handlers)
            if self.interrupt is not None:
                raise self.interrupt
            yield
        finally:
            self._take_notes()

    def _take_notes(self) -> None:
        for number, handler in self._handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.interrupt = self.interrupt or interrupt_of(number)
