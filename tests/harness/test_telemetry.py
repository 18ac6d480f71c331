"""timeline.parquet and its summary: pure functions from numbers to lines, and whole runs in processes of their own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import results, telemetry
from harness.config import RunConfig, resolve
from harness.results import Facts
from harness.sensors import Heard
from harness.telemetry import FILE, Line, Telemetry
from sut.backend import Gauges
from sut.dispatch import Books, Replica
from sut.work import Counts, Work
from tests.stub_replica import Script, Stub

ROOT = Path(__file__).parent.parent.parent

FACTS = Facts(
    status="complete",
    stopped_by=None,
    issued=10,
    completed=10,
    failures={},
    first_failure=None,
    failed_on={},
    retries={},
    first_retry=None,
    duration=10.0,
    replicas=[results.Replica("vllm-0", 10, 500, 0, 1.0, 0.0, None)],
    loop_cpu=1.0,
    process_cpu=2.0,
)


def line(*points: tuple[float, float]) -> Line:
    times, values = zip(*points, strict=True)
    return Line(np.array(times, float), np.array(values, float))


def points(of: Line) -> list[tuple[float, float]]:
    return list(zip(of.times.tolist(), of.values.tolist(), strict=True))


# -- numbers → lines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "counted"),
    [
        ([(-0.5, 100), (0.5, 130), (1.5, 190)], [(-0.5, 0), (0.5, 30), (1.5, 90)]),  # from the reading before the test
        ([(-1.5, 80), (-0.5, 100), (0.5, 130)], [(-1.5, -20), (-0.5, 0), (0.5, 30)]),  # the last of those
        ([(0.0, 100), (1.0, 130)], [(0.0, 0), (1.0, 30)]),
        ([(0.5, 100), (1.5, 130)], [(0.5, 0), (1.5, 30)]),  # none before: from the first
        ([(-0.5, 100), (0.5, 130), (1.5, 20), (2.5, 25)], [(-0.5, 0), (0.5, 30), (1.5, 50), (2.5, 55)]),  # restarted
        ([(1.0, 7)], [(1.0, 0)]),
    ],
)
def test_a_counter_counts_from_the_tests_first_callback(read: Any, counted: Any) -> None:
    assert points(telemetry.since_start(line(*read))) == counted


def test_energy_at_the_first_callback_lies_between_two_readings() -> None:
    counted = telemetry.since_start(line((-0.5, 1000), (0.5, 1100), (1.5, 1200)), steady=True)
    assert points(counted) == [(-0.5, -50), (0.5, 50), (1.5, 150)]


def test_seconds_used_become_a_share_of_time() -> None:
    used = line((0.0, 5.0), (1.0, 5.5), (3.0, 7.5), (3.01, 7.51))
    assert points(telemetry.share_of_time(used)) == [(1.0, 0.5), (3.0, 1.0)]  # and 10 ms say nothing


def test_the_loops_rows_become_lines_without_what_is_unknown() -> None:
    rows = np.array([100.0, 1.0, nan, 101.0, 2.0, inf, 102.0, 3.0, 7.0])
    lines = telemetry.read_rows(rows, [("a", "x"), ("b", "y")], 100.0)
    assert {key: points(of) for key, of in lines.items()} == {
        ("a", "x"): [(0, 1), (1, 2), (2, 3)],
        ("b", "y"): [(2, 7)],
    }
    assert all(len(of) == 0 for of in telemetry.read_rows(np.zeros(0), [("a", "x")], 0.0).values())


def test_readings_and_refusals_of_the_sensors() -> None:
    heard = Heard([("gpu-0", 99.5, {"power_w": 80}), ("r", 100.0, "dead"), ("gpu-0", 100.5, {"power_w": 90, "x": 1})])
    lines, refused = telemetry.read_heard(heard, 100.0)
    assert {key: points(of) for key, of in lines.items()} == {
        ("gpu-0", "power_w"): [(-0.5, 80), (0.5, 90)],
        ("gpu-0", "x"): [(0.5, 1)],
    }
    assert refused == {"r": ["dead"]}


def test_nothing_before_the_test_is_kept() -> None:
    lines = {
        ("gpu-0", "power_w"): line((-0.5, 80), (0.5, 90)),
        ("r", "running"): line((-0.5, 3)),
        ("r", "generation_tokens"): line((-0.5, 100), (0.5, 130)),
    }
    assert {key: points(of) for key, of in telemetry.finish(lines).items()} == {
        ("gpu-0", "power_w"): [(0.5, 90)],
        ("r", "generation_tokens"): [(0.5, 30)],
    }


def test_the_table_is_in_order_of_time(tmp_path: Path) -> None:
    lines = {("b", "y"): line((0.5, 1), (1.5, 2)), ("a", "x"): line((0.0, 3), (1.0, 4), (1.5, 5))}
    assert telemetry.write(lines, tmp_path / FILE) == 5
    table = pd.read_parquet(tmp_path / FILE)
    assert list(table.columns) == ["time_s", "source", "metric", "value"]
    assert table.values.tolist() == [
        [0.0, "a", "x", 3.0],
        [0.5, "b", "y", 1.0],
        [1.0, "a", "x", 4.0],
        [1.5, "b", "y", 2.0],
        [1.5, "a", "x", 5.0],
    ]


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    assert telemetry.write({}, tmp_path / FILE) == 0
    assert list(pd.read_parquet(tmp_path / FILE).columns) == ["time_s", "source", "metric", "value"]


# -- energy -----------------------------------------------------------------------------------------------------------


def config(**options: Any) -> RunConfig:
    return resolve(scenario="Offline", backend=options.pop("backend", "vllm"), **options)


STEADY = line(*((t - 0.5, 100.0) for t in range(12)))
COUNTED = line(*((t - 0.5, 100.0 * (t - 0.5)) for t in range(12)))


@pytest.mark.parametrize(
    ("lines", "joules", "of", "why"),
    [
        ({("gpu-0", "power_w"): STEADY}, 1000.0, ["gpu-0"], None),
        ({("gpu-0", "energy_j"): COUNTED}, 1000.0, ["gpu-0"], None),
        ({("gpu-0", "energy_j"): COUNTED, ("gpu-0", "power_w"): line((0, 1), (10, 1))}, 1000.0, ["gpu-0"], None),
        ({("gpu-0", "power_w"): line((0.5, 0), (10.5, 200))}, 902.5, ["gpu-0"], None),  # 0 to 190 W, from 0.5 s on
        ({("gpu-0", "power_w"): STEADY, ("gpu-1", "energy_j"): COUNTED}, 2000.0, ["gpu-0", "gpu-1"], None),
        ({("gpu-0", "power_w"): STEADY, ("gpu-1", "utilisation"): STEADY}, None, [],
         "gpu-1 did not say how much power it took over the whole test"),
        ({("gpu-0", "power_w"): line((0, 100), (7, 100))}, None, [],
         "gpu-0 did not say how much power it took over the whole test"),
        ({("gpu-0", "energy_j"): line((0, 0), (7, 700)), ("gpu-0", "power_w"): STEADY}, 1000.0, ["gpu-0"], None),
        ({("host", "cpu"): STEADY}, None, [], "no device was heard"),
    ],
)  # fmt: skip
def test_energy_of_ten_seconds_at_100_watts(lines: Any, joules: float | None, of: list[str], why: str | None) -> None:
    assert telemetry.energy(lines, FACTS) == {
        "energy_j": None if joules is None else pytest.approx(joules),
        "energy_j_per_token": None if joules is None else pytest.approx(joules / 500),
        "energy_of": of,
        "energy_why": why,
    }


def test_energy_of_no_token_and_of_no_time() -> None:
    lines = {("gpu-0", "power_w"): STEADY}
    silent = replace(FACTS, replicas=[])
    assert telemetry.energy(lines, silent)["energy_j_per_token"] is None
    assert telemetry.energy(lines, replace(FACTS, duration=0.0))["energy_j"] is None


# -- who was not heard, and what is asked ------------------------------------------------------------------------------


class Engine:
    """As much of a backend as telemetry sees; `metrics_url` and `gauges` are set where a test has them."""

    facts: Mapping[str, Any] = {}

    def __init__(self, **parts: Any) -> None:
        for name, part in parts.items():
            setattr(self, name, part)


def replicas(*backends: Engine) -> list[Replica]:
    return [Replica(f"r-{number}", backend) for number, backend in enumerate(backends)]  # type: ignore[arg-type]


def test_who_was_not_heard_is_named_with_its_reason() -> None:
    all_four = replicas(Engine(metrics_url="a"), Engine(metrics_url="b"), Engine(gauges=Gauges), Engine())
    lines = {("r-0", "running"): STEADY, ("client", "issued"): STEADY}
    assert telemetry.name_absent(lines, {"r-1": ["early", "dead"]}, all_four, None, None) == [
        {"sources": ["r-1"], "why": "dead"},
        {"sources": ["r-2"], "why": "it said nothing"},
        {"sources": ["r-3"], "why": "its backend does not say what its engine does"},
        {"sources": ["gpu"], "why": "no device said anything"},
        {"sources": ["host"], "why": "it was not read before the test ended"},
    ]


def test_one_reason_for_all_is_said_once() -> None:
    two = replicas(Engine(metrics_url="a"), Engine(metrics_url="b"))
    assert telemetry.name_absent({}, {}, two, "the gauges raised X: y", "it died") == [
        {"sources": ["client"], "why": "the gauges raised X: y"},
        {"sources": ["r-0", "r-1", "gpu", "host"], "why": "it died"},
    ]


def test_what_is_asked_for() -> None:
    served = replicas(
        Engine(metrics_url="http://h:1/metrics", facts={"devices": ["0", "1"]}), Engine(facts={"devices": ["2"]})
    )
    asked = telemetry.what_to_read(config(), served)
    assert (asked.servers, asked.devices) == ({"r-0": "http://h:1/metrics"}, ["0", "1", "2"])
    assert asked.deviceless is None


def test_a_device_of_a_ray_node_is_none_of_ours() -> None:
    asked = telemetry.what_to_read(config(backend="ray"), replicas(Engine(facts={"devices": ["0"]})))
    assert asked.deviceless == "the engines are on the nodes of a Ray cluster"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"endpoint": ["http://127.0.0.1:1", "http://localhost:2"]}, None),  # they may use any device of this machine
        ({"endpoint": ["http://localhost:1", "http://box:8000"]}, "http://box:8000 is on another host"),
        ({"serve": True}, "the engines run on processors"),
        ({"backend": "vllm"}, "the engines run on processors"),
        ({"backend": "echo"}, "the echo backend is a rehearsal and has no device"),
    ],
)
def test_replicas_that_were_given_no_device(options: dict[str, Any], why: str | None) -> None:
    asked = telemetry.what_to_read(resolve(scenario="Offline", **options), replicas(Engine()))
    assert (asked.devices, asked.deviceless) == (None, why)


# -- the loop's rows --------------------------------------------------------------------------------------------------


def fake_sut(*backends: Engine) -> Any:
    counts = Counts(issued=9, completed=4, failed=1, tokens=70, in_flight=5)
    return SimpleNamespace(replicas=replicas(*backends), queued=3, counts=lambda: counts)


def work(began: float = 50.0) -> Work:
    made = Work(lambda _: np.zeros(0, np.int32), True, 8, SimpleNamespace())  # type: ignore[arg-type]
    made.began = began
    return made


def test_a_row_holds_what_sut_and_engine_know() -> None:
    sut = fake_sut(Engine(gauges=lambda: Gauges(5, 6, 0.5)))
    replica = sut.replicas[0]
    replica.in_flight, replica.books, replica.serving = 2, Books(queries=4, tokens=70, failures=1), False
    own = Telemetry(config(), sut)
    now = work()
    own.pulse(now, 50.0)
    now.loop_lags.extend([0.001, 0.007, 0.002])
    own.pulse(now, 51.0)
    lines = read(own)
    expected = {"in_flight": 2, "held": 0, "completed": 4, "failures": 1, "answer_tokens": 70, "serving": 0}
    expected |= {"running": 5, "waiting": 6, "kv_cache_usage": 0.5}
    assert {metric: of.values[-1] for (source, metric), of in lines.items() if source == "r-0"} == expected
    client = {metric: of.values[-1] for (source, metric), of in lines.items() if source == "client"}
    assert client.pop("cpu") >= 0 and client.pop("loop_cpu") >= 0
    assert client == {
        "loop_lag_s": 0.007,
        "queued": 3,
        "in_flight": 5,
        "issued": 9,
        "completed": 4,
        "failures": 1,
        "answer_tokens": 70,
    }


def read(own: Telemetry) -> telemetry.Lines:
    kept: list[telemetry.Lines] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "write", lambda lines, path: kept.append(lines) or 0)
        own.save(FACTS)
    return kept[0]


def test_gauges_that_raise_cost_only_the_rows_from_then_on() -> None:
    turns = iter([Gauges(1)])
    own = Telemetry(config(), fake_sut(Engine(gauges=lambda: next(turns))))
    for moment in (50.0, 51.0, 52.0):
        own.pulse(work(), moment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "write", lambda lines, path: len(lines))
        found = own.save(FACTS)
    assert found is not None
    assert found["samples"] == 1
    assert {"sources": ["client"], "why": "the gauges raised StopIteration: "} in found["absent"]


def test_a_file_that_cannot_be_written_is_named() -> None:
    own = Telemetry(config(output_dir=Path("/no/such/place")), fake_sut(Engine()))
    own.pulse(work(), 50.0)
    found = own.save(FACTS)
    assert found is not None
    assert found["absent"][-1]["sources"] == [FILE]
    assert found["absent"][-1]["why"].startswith("it cannot be written: ")


def test_a_test_without_a_callback_has_an_empty_timeline(tmp_path: Path) -> None:
    own = Telemetry(config(output_dir=tmp_path), fake_sut(Engine()))
    with own:
        own.await_ready()
    found = own.save(FACTS)
    assert found is not None
    assert (found["rows"], found["samples"], found["sources"]) == (0, 0, [])


# -- whole runs -------------------------------------------------------------------------------------------------------

SERVER = ["--scenario", "Server", "--samples", "64", "--target-qps", "400", "--min-queries", "500"]
PACED = ["--backend", "echo", "--engine-arg", "ttft=0.01", "--engine-arg", "tpot=0.001"]


@pytest.fixture(scope="module")
def done(many: Callable[[Mapping[Any, Sequence[str]]], dict[Any, Any]]) -> dict[str, Any]:
    return many(
        {
            "two": [*SERVER, *PACED, "--min-duration", "2.2", "--replicas", "2"],
            "silent": [*SERVER, *PACED, "--min-duration", "0", "--no-telemetry"],
            "dies": [*SERVER, *PACED, "--min-duration", "2", "--engine-arg", "fault=die"],
        }
    )


def last(folder: Path, source: str) -> dict[str, float]:
    """The last value of each metric of a source."""
    table = pd.read_parquet(folder / FILE)
    return dict(table[table.source == source].groupby("metric").value.last())


def test_a_run_leaves_a_timeline_of_what_happened(done: dict[str, Any]) -> None:
    run = done["two"]
    table = pd.read_parquet(run.folder / FILE)
    samples = pd.read_parquet(run.folder / "samples.parquet")
    assert list(table.columns) == ["time_s", "source", "metric", "value"]
    assert table.time_s.is_monotonic_increasing and table.time_s.iloc[0] >= 0
    for name, own in samples.groupby("replica"):
        assert last(run.folder, str(name)) == {
            "in_flight": 0,
            "held": 0,
            "completed": len(own),
            "failures": 0,
            "answer_tokens": own.output_tokens.sum(),
            "serving": 1,
            "running": 0,
            "waiting": 0,
            "prompt_tokens": own.input_tokens.sum(),
            "generation_tokens": own.output_tokens.sum(),
        }
    client = last(run.folder, "client")
    assert (client["issued"], client["completed"], client["queued"]) == (len(samples), len(samples), 0)
    told = run.result["telemetry"]
    assert told["rows"] == len(table)
    assert told["samples"] == len(table[(table.source == "client") & (table.metric == "issued")]) >= 4
    assert told["sources"] == ["client", "echo-0", "echo-1", "host"]
    assert [entry["sources"] for entry in told["absent"]] == [["gpu"]]
    assert told["series"]["echo-0"]["generation_tokens"] == last(run.folder, "echo-0")["generation_tokens"]
    assert set(told["series"]["client"]) == {"cpu", "loop_cpu", "loop_lag_s", "memory_bytes"}


def test_pulses_are_a_second_apart_and_counters_never_fall(done: dict[str, Any]) -> None:
    table = pd.read_parquet(done["two"].folder / FILE)
    issued = table[(table.source == "client") & (table.metric == "issued")]
    assert issued.value.is_monotonic_increasing
    assert np.diff(issued.time_s)[:-1].min() > 0.5  # the last comes at the end


def test_every_metric_of_a_run_is_documented(done: dict[str, Any]) -> None:
    assert telemetry.__doc__ is not None
    table = telemetry.__doc__.partition("source        metric")[2]
    documented = set(re.findall(r"[a-z_]+", " ".join(line[14:35] for line in table.splitlines())))
    assert set(pd.read_parquet(done["two"].folder / FILE).metric) <= documented


def test_it_can_be_switched_off(done: dict[str, Any]) -> None:
    run = done["silent"]
    assert (run.code, run.result["telemetry"], (run.folder / FILE).exists()) == (0, None, False)
    assert run.result["config"]["no_telemetry"] is True


def test_an_aborted_test_keeps_its_timeline(done: dict[str, Any]) -> None:
    run = done["dies"]
    assert run.result["status"] == "aborted"
    assert last(run.folder, "echo-0")["serving"] == 0
    assert run.result["telemetry"]["rows"] > 0


def test_an_interrupted_test_keeps_its_timeline(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "harness", *SERVER, *PACED, "--min-duration", "60", "--output-dir", str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 30
        while not (tmp_path / "mlperf_log_summary.txt").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    result = results.load(tmp_path)
    assert (result["status"], result["telemetry"]["samples"] >= 2) == ("interrupted", True)
    assert last(tmp_path, "client")["issued"] == result["queries"]


def remote(harness: Any, *stubs: Stub, options: Sequence[str] = ()) -> Any:
    endpoints = [word for stub in stubs for word in ("--endpoint", stub.url)]
    return harness(*SERVER, "--min-duration", "1.2", "--served-model", "stub", *endpoints, *options)


def test_remote_replicas_are_asked_for_their_metrics(harness: Any) -> None:
    """One tells what is named, one only all, one nothing at all: the run is the same for that."""
    sound = Script(ttft=0.01, tpot=0.001)
    with Stub(sound) as one, Stub(replace(sound, narrow=False)) as two, Stub(replace(sound, metrics="lies")) as three:
        run = remote(harness, one, two, three)
    assert (run.code, run.result["valid"]) == (0, True), run.err
    samples = pd.read_parquet(run.folder / "samples.parquet")
    for name in ("remote-0", "remote-1"):
        own = samples[samples.replica == name]
        told = last(run.folder, name)
        assert (told["generation_tokens"], told["prompt_tokens"]) == (own.output_tokens.sum(), own.input_tokens.sum())
    assert last(run.folder, "remote-2").keys() == set(telemetry.SUT_METRICS)
    absent = {tuple(entry["sources"]): entry["why"] for entry in run.result["telemetry"]["absent"]}
    assert absent[("remote-2",)].startswith("/metrics names nothing that")


def test_no_secret_gets_into_a_result(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_HARNESS_API_KEY", "s3cret-key")
    with Stub(Script(api_key="s3cret-key", metrics="500")) as stub:
        run = remote(harness, stub)
    assert run.result["valid"], run.err
    assert "/metrics answered HTTP 500" in (run.folder / "result.json").read_text()
    for path in run.folder.iterdir():
        assert b"s3cret-key" not in path.read_bytes(), path.name
