"""Signals: raised where that is safe, noted where it is not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from harness.signals import (
    Noted,
    Terminated,
    current_handlers,
    interrupt_of,
    name_of,
    raise_on_signals,
    restore_signals,
)


@pytest.fixture(autouse=True)
def raising() -> Iterator[None]:
    handlers = current_handlers()
    raise_on_signals()
    yield
    restore_signals(handlers)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_raises_and_has_a_name(number: signal.Signals, name: str) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        send(number)
    assert name_of(caught.value) == name == name_of(interrupt_of(number))


def test_the_first_one_is_noted_and_nothing_raised() -> None:
    with Noted() as noted:
        assert noted.interrupt is None
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert isinstance(noted.interrupt, Terminated) and str(noted.interrupt) == "SIGTERM"
    with pytest.raises(KeyboardInterrupt):  # as before
        send(signal.SIGINT)


def test_a_part_may_raise_and_what_was_noted_is_raised_at_its_beginning() -> None:
    reached = []
    with Noted() as noted:
        with pytest.raises(KeyboardInterrupt), noted.raising():
            reached.append("first")
            send(signal.SIGINT)
        send(signal.SIGTERM)
        with pytest.raises(Terminated), noted.raising():
            reached.append("second")
        send(signal.SIGINT)
    assert reached == ["first"]


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    """SIGHUP under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_on_signals()
    with Noted() as noted:
        send(signal.SIGHUP)
        assert noted.interrupt is None
    send(signal.SIGHUP)
