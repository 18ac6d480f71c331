"""Real LoadGen on the echo simulator: whole runs of each scenario, and several tests in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from harness import accuracy
from harness.conf import read_conf
from harness.dataset import Tokenizer, load
from harness.demo import MODEL, QUESTIONS

ROOT = Path(__file__).parent.parent.parent

SEEDS = {
    "effective_qsl_rng_seed": 2085463073848966840,
    "effective_sample_index_rng_seed": 2747215439041700203,
    "effective_schedule_rng_seed": 16159082839903944936,
}

ALWAYS = {
    "mlperf_log_summary.txt",
    "mlperf_log_detail.txt",
    "mlperf_log_accuracy.json",
    "user.conf",
    "samples.parquet",
    "timeline.parquet",
    "result.json",
}

FIELDS = [
    "format_version",
    "status",
    "valid",
    "invalid_reasons",
    "submission_ready",
    "not_ready_reasons",
    "client_limited",
    "scenario",
    "mode",
    "benchmark",
    "queries",
    "metrics",
    "accuracy",
    "replicas",
    "failures",
    "retries",
    "overhead",
    "config",
    "environment",
]

# Whole passes over 64 samples in Offline and Server; MultiStream asks 8 at a time.
PERFORMANCE = [("Offline", 64), ("Server", 512), ("Interactive", 512), ("SingleStream", 64), ("MultiStream", 662 * 8)]


@pytest.mark.parametrize(("scenario", "queries"), PERFORMANCE)
def test_a_performance_test_is_valid_and_its_log_clean(runs: dict[Any, Any], scenario: str, queries: int) -> None:
    run = runs[scenario, "performance"]
    assert run.code == 0, run.err
    assert run.error_lines == []
    assert run.logged["result_validity"] == "VALID"
    assert run.logged["num_errors"] == 0
    result = run.result
    assert (result["status"], result["valid"], result["invalid_reasons"]) == ("complete", True, [])
    assert result["scenario"] == scenario
    if scenario == "SingleStream":  # LoadGen plans with the latency that it expects
        assert result["queries"] >= queries
    else:
        assert result["queries"] == queries
    assert result["failures"] == {"count": 0, "by_kind": {}, "by_replica": {}, "first": None}
    assert [replica["queries"] for replica in result["replicas"]] == [result["queries"]]
    assert run.logged.items() >= SEEDS.items()


@pytest.mark.parametrize("scenario", [scenario for scenario, _ in PERFORMANCE])
def test_a_run_leaves_its_files_and_no_others(runs: dict[Any, Any], scenario: str) -> None:
    run = runs[scenario, "performance"]
    found = {path.name for path in run.folder.iterdir()}
    assert found - {"mlperf_log_trace.json"} == ALWAYS  # LoadGen always opens a trace file, and nothing is in it
    assert (run.folder / "mlperf_log_trace.json").stat().st_size == 0
    assert [path.name for path in run.folder.parent.iterdir()] == ["out"]
    assert set(FIELDS) <= set(run.result)
    model = "demo-interactive" if scenario == "Interactive" else "demo"
    part = "Server" if scenario == "Interactive" else scenario
    asked = {(model, part, key): value for key, value in run.result["config"]["settings"].items()}
    assert read_conf(run.folder / "user.conf") == asked


@pytest.mark.parametrize("scenario", [scenario for scenario, _ in PERFORMANCE])
def test_the_table_has_a_row_for_every_query(runs: dict[Any, Any], scenario: str) -> None:
    run = runs[scenario, "performance"]
    table = parquet.read_table(run.folder / "samples.parquet").to_pydict()
    assert len(table["sample_index"]) == run.result["queries"]
    assert set(table["sample_index"]) <= set(range(64))
    assert set(table["replica"]) == {"echo-0"}
    assert set(table["error"]) == {None}
    assert sum(table["output_tokens"]) == run.result["replicas"][0]["tokens"]
    first_tokens = [seconds is not None for seconds in table["ttft_s"]]
    assert not any(first_tokens) if scenario == "Offline" else all(first_tokens)
    if scenario in ("Offline", "Server"):  # whole passes over the loaded samples
        assert set(np.bincount(table["sample_index"])) == {run.result["queries"] // 64}


@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_an_accuracy_test_answers_each_sample_once_in_the_form_of_test06(runs: dict[Any, Any], scenario: str) -> None:
    run = runs[scenario, "accuracy"]
    assert run.code == 0, run.err
    assert run.error_lines == []
    assert run.result["valid"] is True
    entries = json.loads((run.folder / "mlperf_log_accuracy.json").read_text())
    assert sorted(entry["qsl_idx"] for entry in entries) == list(range(64))
    samples = load(str(QUESTIONS), Tokenizer(MODEL), limit=64)
    for entry in entries:
        data = np.frombuffer(bytes.fromhex(entry["data"]), np.int32)
        # echo's answer is the prompt, cut and ended
        assert data[:-1].tolist() == samples.prompt(entry["qsl_idx"])[: len(data) - 1].tolist()
        assert entry["token_count"] == len(data) == 32
        if scenario == "Server":
            assert np.frombuffer(bytes.fromhex(entry["token_data"]), np.int32).tolist() == data[:1].tolist()


@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_an_accuracy_test_is_scored_from_its_log(runs: dict[Any, Any], scenario: str) -> None:
    run = runs[scenario, "accuracy"]
    tokenizer = Tokenizer(MODEL)
    log = accuracy.read_log(run.folder / "mlperf_log_accuracy.json")
    scores = accuracy.score(log.answers, load(str(QUESTIONS), tokenizer, limit=64), tokenizer).scores
    said = run.result["accuracy"]
    assert {name: said[name] for name in scores} == scores
    assert (said["passed"], said["samples"]) == (None, 64)
    assert said["why"].startswith("the targets are for all 1,024 samples and these are the first 64: a smoke test")
    assert said["quick"]["scores"]["rouge1"]["verdict"] == {"low": "below"}  # echo repeats the question
    assert json.loads((run.folder / "accuracy.json").read_text()) == said
    assert f"'rouge1': {scores['rouge1']}" in (run.folder / "accuracy.txt").read_text()


# -- one process, several tests --------------------------------------------------------------------------------

# Accuracy, then performance with another count, then another scenario: only the last takes another process.
DRIVER = """
import sys
from pathlib import Path
from harness.config import resolve
from harness.progress import Progress
from harness.folder import prepare_folder
from harness.run import check, open_sut, run_test
from sut.errors import SetupError

scenario, rate = sys.argv[1], {"target_qps": 2000.0} if sys.argv[1] == "Server" else {}

def config(name, scenario=scenario, **options):
    return check(resolve(scenario=scenario, backend="echo", samples=64, output_dir=Path(name), **rate, **options))

with Progress(quiet=True) as progress:
    first, samples, tokenizer = config("accuracy", mode="accuracy")
    with open_sut(first, samples, tokenizer, progress) as system:
        for test in (first, config("performance", min_queries=640, min_duration=0.0)[0]):
            prepare_folder(test)
            assert run_test(test, system, progress).exit_code == 0
        other = config("other", scenario={"Offline": "Server", "Server": "Offline"}[scenario])[0]
        prepare_folder(other)
        try:
            run_test(other, system, progress)
        except SetupError as error:
            print(error)
"""


@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_one_process_runs_several_tests_of_one_scenario(scenario: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, scenario],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    other = {"Offline": "Server", "Server": "Offline"}[scenario]
    assert done.stdout == (
        f"LoadGen is set up for ('demo', '{scenario}') in this process; ('demo', '{other}') needs a process of its "
        "own.\n"
    )
    for mode, queries in (("accuracy", 64), ("performance", 640)):
        result = json.loads((tmp_path / mode / "result.json").read_text())
        assert (result["valid"], result["mode"], result["queries"]) == (True, mode, queries)
        log = (tmp_path / mode / "mlperf_log_detail.txt").read_text()
        assert '"is_error": true' not in log
        assert "error_invalid_config" not in log
        for name, seed in SEEDS.items():
            assert f'"{name}", "value": {seed},' in log
