"""What surrounds an engine's start: who gets which cores and devices, and a process that is as it was afterwards.

No engine and no vLLM in here.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from sut.backends import Generation, Plan, vllm_engine
from sut.backends.vllm_engine import (
    Tally,
    _divide_cores,
    _divide_devices,
    _redirect_output,
    _spawn_window,
    listen,
    make_one,
    stat_logger,
)
from sut.errors import ConfigError

NUMBERS = ("VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE")


def plan(replicas: int = 1, engine_env: dict[str, str] | None = None, **engine_args) -> Plan:
    return Plan(replicas, "", "auto", None, Generation(max_tokens=8), None, engine_args, engine_env or {})


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NUMBERS, "DEVICES"):
        monkeypatch.delenv(name, raising=False)


# -- cores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "replicas", "places", "threads"),
    [
        ({0, 1, 2, 3, 4, 5, 6, 7}, 1, [[]], "7"),  # a single engine is not pinned, and leaves a core to the harness
        ({0, 1, 2, 3, 4, 5, 6, 7}, 2, [[0, 1, 2, 3], [4, 5, 6, 7]], "4"),
        ({0, 1, 2, 3, 4, 5, 6, 7}, 3, [[0, 1], [2, 3], [4, 5]], "2"),  # equal shares: none is faster than another
        ({3, 9, 10, 12}, 2, [[3, 9], [10, 12]], "2"),  # what the process may use, not what the machine has
        ({0, 1}, 2, [[0], [1]], "1"),
        ({0}, 1, [[]], "1"),  # one core is shared
    ],
)
def test_cores_are_divided(monkeypatch, machine, replicas, places, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: machine)
    divided = _divide_cores(plan(replicas))
    assert [cores for _, cores in divided] == places
    assert {environment["OMP_NUM_THREADS"] for environment, _ in divided} == {threads}


def test_more_replicas_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    with pytest.raises(ConfigError, match="4 replicas do not fit 3 cores"):
        _divide_cores(plan(4))


def test_engines_may_share_cores_where_speed_is_not_measured(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    divided = _divide_cores(replace(plan(3), share_cores=True))
    assert [cores for _, cores in divided] == [[], [], []], "nobody is pinned to half a core"
    assert {environment["OMP_NUM_THREADS"] for environment, _ in divided} == {"1"}
    assert [cores for _, cores in _divide_cores(replace(plan(2), share_cores=True))] == [[0], [1]]


def test_settings_of_the_person_win_over_ours_and_an_engine_env_over_both(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    for environment, _ in _divide_cores(plan(2, {"OMP_NUM_THREADS": "1", "HF_HOME": "/hub"})):
        assert environment == {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # ours
            "VLLM_CPU_KVCACHE_SPACE": "40",  # of the environment
            "OMP_NUM_THREADS": "1",  # of --engine-env
            "HF_HOME": "/hub",
        }


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "engine_args", "visible", "chunks"),
    [
        (4, {}, None, ["0", "1", "2", "3"]),  # one each
        (2, {"tensor_parallel_size": 2}, None, ["0,1", "2,3"]),
        (1, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, None, ["0,1,2,3"]),
        (1, {"tensor_parallel_size": "2"}, None, ["0,1"]),  # as text, whichever the command line gives
        (2, {}, "6,2", ["6", "2"]),  # only what may be seen, in the order given
        (1, {"tensor_parallel_size": 2}, "3,1,2", ["3,1"]),
        (2, {}, "GPU-aa,MIG-bb", ["GPU-aa", "MIG-bb"]),  # names, not only numbers
    ],
)
def test_devices_are_dealt_out(monkeypatch, replicas, engine_args, visible, chunks):
    if visible is not None:
        monkeypatch.setenv("DEVICES", visible)
    places = _divide_devices(plan(replicas, **engine_args), "DEVICES", 4)
    assert [environment["DEVICES"] for environment, _ in places] == chunks
    assert [cores for _, cores in places] == [[]] * replicas, "beside a GPU an engine may use all cores"


@pytest.mark.parametrize(
    ("replicas", "engine_args", "visible", "says"),
    [
        (5, {}, None, "5 replicas of 1 devices need 5, and 4 are visible"),
        (3, {"tensor_parallel_size": 2}, None, "3 replicas of 2 devices need 6, and 4 are visible"),
        (2, {}, "3", "2 replicas of 1 devices need 2, and 1 are visible"),
    ],
)
def test_more_devices_than_there_are_is_refused(monkeypatch, replicas, engine_args, visible, says):
    if visible is not None:
        monkeypatch.setenv("DEVICES", visible)
    with pytest.raises(ConfigError, match=says):
        _divide_devices(plan(replicas, **engine_args), "DEVICES", 4)


@pytest.mark.parametrize(
    ("argument", "says"), [("max_num_seq", "did you mean 'max_num_seqs'"), ("model", "another model than the result")]
)
def test_an_engine_in_an_actor_is_told_nothing_that_one_here_is_not(monkeypatch, argument, says):
    @dataclass
    class AsyncEngineArgs:
        max_num_seqs: int = 1
        model: str = ""

    monkeypatch.setattr(vllm_engine, "require_vllm", lambda: AsyncEngineArgs)
    with pytest.raises(ConfigError, match=says):
        make_one("ray-0", plan(**{argument: 1}), 0, 1)


def test_an_engine_env_goes_along_with_the_devices():
    ((environment, _),) = _divide_devices(plan(1, {"A": "b"}), "DEVICES", 1)
    assert (environment["DEVICES"], environment["A"]) == ("0", "b")


def test_an_engine_on_a_device_is_spawned_not_forked():
    ((environment, _),) = _divide_devices(plan(1), "DEVICES", 1)
    assert environment.get("VLLM_WORKER_MULTIPROC_METHOD") == "spawn", (
        "a forked child has no mark in /proc/PID/environ and keeps the guard's pipe open: it would outlive the harness"
    )


# -- the spawn window -------------------------------------------------------------------------------------------------


def test_the_window_shows_a_child_its_environment_and_cores_and_leaves_no_trace(monkeypatch):
    monkeypatch.setenv("WAS_SET", "before")
    monkeypatch.delenv("WAS_UNSET", raising=False)
    everywhere = os.sched_getaffinity(0)
    one = [min(everywhere)]
    with _spawn_window({"WAS_SET": "inside", "WAS_UNSET": "inside"}, one, None):
        assert (os.environ["WAS_SET"], os.environ["WAS_UNSET"]) == ("inside", "inside")
        assert os.sched_getaffinity(0) == set(one)
    assert os.environ["WAS_SET"] == "before"
    assert "WAS_UNSET" not in os.environ
    assert os.sched_getaffinity(0) == everywhere


def test_threads_born_inside_the_window_get_all_cores_after_it():
    everywhere = os.sched_getaffinity(0)
    over, seen = threading.Event(), []

    def live() -> None:
        over.wait()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=live)
    with _spawn_window({}, [min(everywhere)], None):
        thread.start()
    over.set()
    thread.join()
    assert seen == [everywhere], "vLLM's threads in our process would otherwise crowd one engine's cores"


def test_an_engine_that_fails_to_start_leaves_no_trace_either(monkeypatch, tmp_path, capfd):
    monkeypatch.delenv("WAS_UNSET", raising=False)
    everywhere = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError), _spawn_window({"WAS_UNSET": "x"}, [min(everywhere)], tmp_path / "engine.log"):
        raise RuntimeError("no such model")
    os.write(1, b"heard again")
    assert capfd.readouterr().out == "heard again"
    assert "WAS_UNSET" not in os.environ
    assert os.sched_getaffinity(0) == everywhere


def test_the_next_engine_is_let_in_once_the_first_has_its_process(monkeypatch):
    monkeypatch.delenv("WHOSE", raising=False)
    inside, ready = threading.Event(), threading.Event()

    def second_engine() -> None:
        ready.wait()
        with _spawn_window({"WHOSE": "second"}, [], None):
            inside.set()

    thread = threading.Thread(target=second_engine)
    thread.start()
    with _spawn_window({"WHOSE": "first"}, [], None):
        ready.set()
        assert not inside.wait(0.1), "two windows at once would mix up their environments"
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        child = spawn.Process(target=theirs.recv)
        child.start()
        assert inside.wait(5), "the first engine's window is still open here"
    thread.join()
    ours.send("the end")
    child.join()
    assert "WHOSE" not in os.environ


# -- the engine's output ----------------------------------------------------------------------------------------------


def test_output_goes_to_the_end_of_the_log_and_comes_back(tmp_path, capfd):
    log = tmp_path / "engine.log"
    log.write_text("an earlier run\n")
    restore = _redirect_output(log)
    os.write(1, b"to stdout\n")
    os.write(2, b"to stderr\n")
    restore()
    os.write(1, b"back on stdout")
    os.write(2, b"back on stderr")
    assert log.read_text() == "an earlier run\nto stdout\nto stderr\n"
    assert capfd.readouterr() == ("back on stdout", "back on stderr")


def test_what_python_has_buffered_stays_on_its_side(tmp_path):
    log = tmp_path / "engine.log"
    program = (
        "import pathlib, sys; from sut.backends.vllm_engine import _redirect_output\n"
        "print('before'); restore = _redirect_output(pathlib.Path(sys.argv[1]))\n"
        "print('during'); restore(); print('after')"
    )
    out = subprocess.run([sys.executable, "-c", program, log], capture_output=True, text=True, check=True).stdout
    assert log.read_text() == "during\n"
    assert out == "before\nafter\n"


def test_no_descriptor_is_left_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    _redirect_output(tmp_path / "engine.log")()
    assert os.listdir("/proc/self/fd") == before


def test_without_a_log_the_output_stays(capfd):
    restore = _redirect_output(None)
    os.write(1, b"still here")
    restore()
    assert capfd.readouterr().out == "still here"


# -- what its engine says of itself ------------------------------------------------------------------------------------


def test_a_tally_that_nobody_wrote_to_knows_nothing():
    assert all(value != value for value in Tally().gauges())


def test_of_several_engines_requests_add_up_and_the_fullest_cache_counts():
    tally = Tally()
    tally.schedule(0, running=3, waiting=1, kv_cache_usage=0.9)
    tally.schedule(1, running=4, waiting=0, kv_cache_usage=0.2)
    tally.schedule(0, running=2, waiting=1, kv_cache_usage=0.8)
    tally.generation_tokens += 70
    assert tally.gauges() == (6, 1, 0.8, 0, 0, 70)


class Prometheus:
    """As much of vLLM's PrometheusStatLogger as counts: made, it would register its metrics; asked, fill them."""

    def __init__(self, *_, **__):
        raise AssertionError("registers metrics")

    record = log_engine_initialized = record_sleep_state = record_admission_rejection = __init__

    def log(self):
        pass


def test_the_logger_tells_of_the_scheduler_in_the_place_of_vllms_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.v1.metrics.loggers", SimpleNamespace(PrometheusStatLogger=Prometheus))
    tally = Tally()
    kind = stat_logger(tally)
    assert issubclass(kind, Prometheus)
    logger = kind(vllm_config=None, engine_indexes=[0])
    scheduler = SimpleNamespace(num_running_reqs=2, num_waiting_reqs=3, num_skipped_waiting_reqs=1, kv_cache_usage=0.5)
    logger.log_engine_initialized()
    logger.record(scheduler, None, mm_cache_stats=None, engine_idx=0)
    logger.record(None, None)  # a step may say nothing
    logger.record_sleep_state(1, 0)
    logger.record_admission_rejection("full")
    assert tally.gauges() == (2, 4, 0.5, 0, 0, 0)


def output(tokens: int, prompt: int = 0, events: tuple[str, ...] = ()) -> SimpleNamespace:
    """As much of an EngineCoreOutput as counts."""
    prefill = SimpleNamespace(num_prompt_tokens=prompt) if prompt else None
    happened = [SimpleNamespace(type=event) for event in events] or None
    return SimpleNamespace(new_token_ids=[7] * tokens, prefill_stats=prefill, events=happened)


@pytest.mark.parametrize("quiet", [True, False])
def test_outputs_are_counted_and_processed_as_ever(monkeypatch, quiet):
    kinds = SimpleNamespace(EngineCoreEventType=SimpleNamespace(PREEMPTED="preempted"))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", kinds)
    heard = []
    processor = SimpleNamespace(log_stats=True, process_outputs=lambda *words, **named: heard.append((words, named)))
    engine, tally = SimpleNamespace(log_stats=True, output_processor=processor), Tally()
    listen(engine, tally, quiet)
    assert (engine.log_stats, processor.log_stats) == (not quiet, not quiet)
    step = [output(1, prompt=40, events=("queued", "scheduled")), output(3), output(0, events=("preempted", "x"))]
    processor.process_outputs(step, 1.5, None, weight_version="v")
    assert heard == [((step, 1.5, None), {"weight_version": "v"})]
    assert (tally.prompt_tokens, tally.generation_tokens, tally.preemptions) == (40, 4, 1)
