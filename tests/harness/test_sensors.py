"""The process that reads once a second: what it brings, and that it neither outlives a test nor holds it up."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from harness import sensors
from harness.sensors import Asked, Busy, Heard, Sensors, understand
from tests.stub_replica import Script, Stub


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has other work, the process takes its time to start and to end: it is nice to others."""
    monkeypatch.setattr(sensors, "READY_LIMIT", 30.0)
    monkeypatch.setattr(sensors, "END_LIMIT", 20.0)


def said_by(heard: Heard, source: str) -> list[Any]:
    return [said for name, _, said in heard.lines if name == source]


def process_of(reading: Sensors) -> Any:
    assert reading._process is not None
    return reading._process


def test_machine_client_and_servers_are_read_at_the_beginning_and_at_the_end() -> None:
    with Stub() as stub:
        began = time.perf_counter()
        reading = Sensors(Asked({"remote-0": f"{stub.url}/metrics"}))
        reading.await_ready()
        ready = time.perf_counter()
        pid = process_of(reading).pid
        heard = reading.close()
    assert heard.complaint is None
    for source in ("host", "client", "remote-0"):
        moments = [moment for name, moment, _ in heard.lines if name == source]
        assert began < moments[0] <= ready <= moments[-1] < time.perf_counter(), source  # one clock for both processes
    assert said_by(heard, "remote-0")[0]["running"] == 0
    assert said_by(heard, "host")[0]["memory_bytes"] > 2**20
    assert said_by(heard, "client")[0]["memory_bytes"] > 2**20
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_replicas_on_other_hosts_have_no_devices_here() -> None:
    reading = Sensors(Asked(deviceless="they are elsewhere"))
    reading.await_ready()
    assert said_by(reading.close(), "gpu") == ["they are elsewhere"]


def test_a_hanging_server_holds_up_neither_beginning_nor_end() -> None:
    with Stub(Script(metrics="hang")) as stub:
        reading = Sensors(Asked({"remote-0": f"{stub.url}/metrics"}))
        reading.await_ready()
        heard = reading.close()
    assert heard.complaint is None
    first, *_, last = said_by(heard, "remote-0")
    assert (first, last) == tuple(f"/metrics did not answer within {limit} s" for limit in ("1.5", "1"))


def test_a_process_that_hangs_is_killed_and_what_it_read_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "END_LIMIT", 0.2)
    reading = Sensors(Asked())
    reading.await_ready()
    os.kill(process_of(reading).pid, signal.SIGSTOP)
    heard = reading.close()
    assert heard.complaint == "the process that reads hung and was killed"
    assert said_by(heard, "host")


def test_a_process_that_died_is_no_error() -> None:
    reading = Sensors(Asked())
    reading.await_ready()
    process_of(reading).kill()
    assert said_by(reading.close(), "host")


def test_a_process_that_cannot_be_started_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors.sys, "executable", "/no/such/python")
    reading = Sensors(Asked())
    reading.await_ready()
    assert reading.close() == Heard([], "the process that reads could not be started (No such file or directory)")


def test_a_process_that_fails_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "__file__", "/no/such/sensors.py")
    reading = Sensors(Asked())
    reading.await_ready()
    complaint = reading.close().complaint
    assert complaint is not None and "No such file or directory" in complaint


def test_it_ends_with_the_harness() -> None:
    """However that goes: nobody holds the other end of its stdin any more."""
    reading = Sensors(Asked())
    reading.await_ready()
    process = process_of(reading)
    process.stdin.close()
    assert process.wait(10) == 0
    reading.close()


@pytest.mark.parametrize(
    ("written", "lines", "complaint"),
    [
        (b"", [], None),
        (b'["host",1.5,{"cpu":0.5}]\n["gpu",2,"none"]\n', [("host", 1.5, {"cpu": 0.5}), ("gpu", 2.0, "none")], None),
        (b'["host",1.5,{"cpu":0.5}]\n["host",2.5,{"c', [("host", 1.5, {"cpu": 0.5})], None),  # cut off
        (b'Traceback:\nOSError: no\n["host",1,{}]\n', [("host", 1.0, {})], "OSError: no"),
        (b'["host",1,{"cpu":NaN}]\n["host",1,{"cpu":"x"}]\n[1,2]\n{}\n', [], "{}"),
        (b"\xff\xfe\x00\n", [], "��\x00"),
    ],
)
def test_what_the_process_wrote_is_understood(written: bytes, lines: list[Any], complaint: str | None) -> None:
    assert understand(written) == Heard(lines, complaint)


def test_busy_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(100, 1000), (150, 1200), (152, 1203), (152, 1400)])
    monkeypatch.setattr(Busy, "_ticks", staticmethod(lambda: next(ticks)))
    busy = Busy()
    assert busy.read() == {"cpu": 0.75}
    assert busy.read() == {}  # 30 ms say nothing
    assert busy.read() == {"cpu": pytest.approx(0.99)}  # and are in the next reading


def test_a_device_that_hangs_holds_up_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process, `read_machine` is a thread; here it is one of ours."""
    hang, first, stop = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr("harness.devices.find_devices", lambda names: hang.wait() and ([], None))
    reader = threading.Thread(target=sensors.read_machine, args=(Asked(), lambda *_: None, first, stop), daemon=True)
    reader.start()
    stop.set()
    assert not first.wait(0.05)
    hang.set()
    reader.join(10)
    assert first.is_set()
