"""The harness on real vLLM engines and the real LoadGen: what it was built to show.

Two engine starts serve most of this file (engine_story.py); the rest kill the harness in the middle of a run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from harness.accuracy import read_log
from harness.demo import MODEL
from harness.results import load, read_detail

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parent.parent


def tell(scenario: str, folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "tests.engine_story", scenario, folder], check=True, timeout=400, cwd=ROOT)
    return folder


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tell("Offline", tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tell("Server", tmp_path_factory.mktemp("server"))


def error_lines(folder: Path) -> tuple[str, ...]:
    return read_detail(folder / "mlperf_log_detail.txt").errors


# -- performance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["performance", "rows"])
def test_offline_performance_is_valid_without_an_error_line(offline: Path, test: str) -> None:
    result = load(offline / test)
    assert (result["valid"], result["invalid_reasons"], error_lines(offline / test)) == (True, [], ())


def test_server_performance_is_valid_without_an_error_line(server: Path) -> None:
    result = load(server / "performance")
    assert (result["valid"], result["invalid_reasons"], error_lines(server / "performance")) == (True, [], ())
    assert result["metrics"]["ttft_s"]["p99"] < 2.0
    assert result["metrics"]["tpot_s"]["p99"] < 0.2


def test_a_closed_loop_streams_and_is_valid_in_offline(offline: Path) -> None:
    result = load(offline / "closed")
    assert (result["valid"], error_lines(offline / "closed"), result["queries"]) == (True, (), 12)
    metrics = result["metrics"]
    assert metrics["source"] == "harness"
    assert 0 < metrics["ttft_s"]["p50"] < metrics["latency_s"]["p50"]


def test_two_replicas_share_the_work(offline: Path) -> None:
    shares = [replica["tokens"] for replica in load(offline / "performance")["replicas"]]
    assert len(shares) == 2
    assert min(shares) > 0.25 * sum(shares)


def test_every_test_of_a_process_has_the_seeds_of_the_round(offline: Path) -> None:
    for test in ("accuracy", "performance", "rows"):
        values = read_detail(offline / test / "mlperf_log_detail.txt").values
        assert values["effective_schedule_rng_seed"] == 16159082839903944936, test


@pytest.mark.parametrize(
    ("scenario", "test"), [("offline", "accuracy"), ("offline", "performance"), ("server", "performance")]
)
def test_the_engines_count_the_tokens_that_were_answered(
    scenario: str, test: str, request: pytest.FixtureRequest
) -> None:
    """From the test's own beginning: these engines have served others before."""
    folder = request.getfixturevalue(scenario) / test
    timeline, samples = pd.read_parquet(folder / "timeline.parquet"), pd.read_parquet(folder / "samples.parquet")
    for replica, own in samples.groupby("replica"):
        told = timeline[timeline.source == replica].groupby("metric").value
        assert told.last()["generation_tokens"] == own.output_tokens.sum()
        assert told.last()["prompt_tokens"] == own.input_tokens.sum()
        assert told.max()["running"] > 0 and told.last()["running"] == 0
        assert 0 < told.max()["kv_cache_usage"] <= 1
    assert [entry["sources"] for entry in load(folder)["telemetry"]["absent"]] in ([], [["gpu"]])


# -- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["offline", "server"])
def test_accuracy_passes_the_target(scenario: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(scenario) / "accuracy"
    result = load(folder)
    assert (result["valid"], result["accuracy"]["passed"], error_lines(folder)) == (True, True, ())


def test_zeroed_weights_fail_the_target(offline: Path) -> None:
    """Held against the benchmark's targets, though the model has another name."""
    result = load(offline / "zeroed-accuracy")
    assert result["valid"]
    assert result["accuracy"]["passed"] is False
    assert result.exit_code == 5
    assert any("the model is" in reason for reason in result["not_ready_reasons"])


def test_one_replica_and_two_give_the_same_tokens(offline: Path, server: Path) -> None:
    """In float32 an answer does not depend on what it is batched with, nor on Offline or Server."""
    ours = read_log(offline / "accuracy" / "mlperf_log_accuracy.json").answers
    theirs = read_log(server / "accuracy" / "mlperf_log_accuracy.json").answers
    assert sorted(ours) == sorted(theirs) == list(range(1024))
    different = [index for index in ours if not np.array_equal(ours[index], theirs[index])]
    assert different == []


def test_raw_rows_are_answered_once_each_in_the_form_of_test06(server: Path) -> None:
    entries = json.loads((server / "rows" / "mlperf_log_accuracy.json").read_text())
    assert sorted(entry["qsl_idx"] for entry in entries) == [0, 1, 2, 3]
    for entry in entries:
        tokens = np.frombuffer(bytes.fromhex(entry["data"]), np.int32)
        first = np.frombuffer(bytes.fromhex(entry["token_data"]), np.int32)
        assert (first.tolist(), len(tokens)) == (tokens[:1].tolist(), entry["token_count"])
    result = load(server / "rows")
    assert (result["valid"], result["accuracy"]["passed"], error_lines(server / "rows")) == (True, None, ())


# -- the end of the harness -------------------------------------------------------------------------------------------


def ours(mark: Path) -> list[psutil.Process]:
    """The harness that writes to this folder, and all that it started."""
    found = [p for p in psutil.process_iter(["cmdline"]) if str(mark) in (p.info["cmdline"] or [])]
    return found + [child for process in found for child in process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[str]:
    return [p.name() for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def left_after(seconds: float, processes: list[psutil.Process]) -> list[str]:
    """What is alive after that time, or at once nothing if all are gone before."""
    until = time.monotonic() + seconds
    while alive(processes) and time.monotonic() < until:
        time.sleep(0.05)
    return alive(processes)


@pytest.fixture
def running(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[subprocess.Popen[str], Path, list[psutil.Process]]]:
    """A Server test that would go on for minutes, in the middle of it; its parameter is further options."""
    folder = tmp_path / "run"
    options = getattr(request, "param", [])
    arguments = ["--scenario", "Server", "--min-duration", "300", "--output-dir", str(folder), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    detail = folder / "mlperf_log_detail.txt"
    while not (detail.exists() and "loaded_qsl_set" in detail.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)
    time.sleep(1.0)
    family = ours(folder)
    assert any("VLLM" in p.name() for p in family), "the engine has a process of its own"
    yield process, folder, family
    for p in family:
        if p.is_running():
            p.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_result_and_no_process(
    running: tuple[subprocess.Popen[str], Path, list[psutil.Process]], number: signal.Signals
) -> None:
    process, folder, family = running
    process.send_signal(number)
    assert process.wait(5) == 130
    result = load(folder)
    assert (result["status"], result["valid"]) == ("interrupted", False)
    assert left_after(5, family) == []


def test_no_process_survives_a_killed_harness(
    running: tuple[subprocess.Popen[str], Path, list[psutil.Process]],
) -> None:
    process, _, family = running
    process.kill()
    process.wait(5)
    assert left_after(5, family) == []


@pytest.mark.parametrize("running", [[], ["--target-qps", "0.01"]], indirect=True, ids=["busy", "idle"])
def test_an_engine_that_dies_ends_the_test_with_its_name(
    running: tuple[subprocess.Popen[str], Path, list[psutil.Process]],
) -> None:
    process, folder, family = running
    for p in family:
        if "VLLM" in p.name():
            p.kill()
    assert process.wait(5) == 4
    result = load(folder)
    assert result["status"] == "aborted"
    assert "the last to go was vllm-0: the vLLM engine died; vllm-0.log ends: " in result["invalid_reasons"][0]
    assert left_after(5, family) == []


# -- what an engine refuses -------------------------------------------------------------------------------------------


def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", "--scenario", "Offline", "--quiet", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def test_an_unknown_engine_argument_names_the_nearest(tmp_path: Path) -> None:
    done = harness("--engine-arg", "max_num_seq=3", "--output-dir", str(tmp_path / "x"))
    assert done.returncode == 2
    assert done.stderr == "error: unknown engine argument of vLLM 'max_num_seq': did you mean 'max_num_seqs'?\n"


def test_a_model_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for file in MODEL.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"not a model")
    done = harness("--model", str(broken), "--output-dir", str(tmp_path / "x"))
    assert done.returncode == 3
    assert done.stderr.startswith("error: the vLLM engine vllm-0 did not start")
    assert done.stderr.count("\n") == 1
