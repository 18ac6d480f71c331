"""What the harness itself costs: LoadGen → SUT → echo → LoadGen on one core, recorder and self-measurement on.

    python scripts/bench_path.py                 Offline rate, Server's added latency, µs per stage
    python scripts/bench_path.py --memory        peak memory of 24,576 queries with prompts of 1,024 tokens

Each measurement is a process of its own, pinned to one core, since LoadGen serves one scenario per process. The echo
backend answers at once, so all time from LoadGen's schedule to its completion is the harness's own.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from harness import recorder as recorder_module
from harness.config import RunConfig, resolve
from harness.dataset import Samples, Tokenizer
from harness.demo import MODEL
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import open_sut, run_test
from sut.backends.echo import Echo
from sut.query import TOKEN_DTYPE
from sut.sut import SUT


class Stages:
    """Exclusive time per stage, by wrapping the functions that a query passes; the probes cost some 0.3 µs each."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._open: list[float] = []

    def probe(self, owner: Any, method: str, stage: str) -> None:
        plain = getattr(owner, method)

        @functools.wraps(plain)
        def timed(*arguments: Any) -> Any:
            began = perf_counter()
            self._open.append(0.0)
            try:
                return plain(*arguments)
            finally:
                whole = perf_counter() - began
                self.spent[stage] += whole - self._open.pop()
                if self._open:
                    self._open[-1] += whole

        setattr(owner, method, timed)

    def install(self) -> None:
        from harness import loadgen

        self.probe(SUT, "_accept", "accept and dispatch")
        self.probe(SUT, "_refill", "accept and dispatch")
        self.probe(Echo, "submit", "echo's own simulation")
        self.probe(SUT, "_first", "first token: books")
        self.probe(SUT, "_done", "end of a query: judge, books")
        self.probe(loadgen.Bridge, "first", "FirstTokenComplete")
        self.probe(loadgen.Bridge, "done", "QuerySamplesComplete")
        self.probe(recorder_module.Recorder, "add", "recorder")


def peak_mb() -> float:
    """Peak memory of this program alone: ru_maxrss would count what its parent held when it forked."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def made_up_samples(count: int, length: int) -> Samples:
    tokens = np.random.default_rng(0).integers(3, 600, count * length, TOKEN_DTYPE)
    starts = np.arange(count + 1, dtype=np.int64) * length
    return Samples([str(i) for i in range(count)], [""] * count, tokens, starts, "")


def one_run(scenario: str, qps: float, queries: int, seconds: float, length: int, stages: bool) -> None:
    """A child process: one test, its figures as one line of JSON."""
    probes = Stages()
    if stages:
        probes.install()
    imported = peak_mb()
    samples = made_up_samples(24_576 if length > 128 else 1024, length)
    tokenizer = Tokenizer(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(scenario, qps, queries, seconds, Path(folder) / "run", len(samples))
        prepare_folder(config)
        with Progress(quiet=True) as progress, open_sut(config, samples, tokenizer, progress) as system:
            result = run_test(config, system, progress)
    figures = {
        "valid": result["valid"],
        "why": result["invalid_reasons"],
        "queries": result["queries"],
        "rate": result["metrics"]["samples_per_second"],
        "ttft": result["metrics"]["ttft_s"],
        "overhead": result["overhead"],
        "stages": {stage: 1e6 * spent / result["queries"] for stage, spent in probes.spent.items()},
        "memory_mb": peak_mb() - imported,
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)


def settings(scenario: str, qps: float, queries: int, seconds: float, folder: Path, samples: int) -> RunConfig:
    return resolve(
        scenario=scenario,
        backend="echo",
        engine_arg={"tokens": "100"},
        target_qps=qps,
        min_queries=queries,
        min_duration=seconds,
        samples=samples,
        output_dir=folder,
    )


def measure(core: int, *arguments: str) -> dict[str, Any]:
    figures = figures_of(["taskset", "-c", str(core), sys.executable, __file__, "--child", *arguments])
    refuse_invalid(figures)
    return figures


def figures_of(command: list[str]) -> dict[str, Any]:
    """What a measured process prints in its last line."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the measured process failed: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def refuse_invalid(figures: dict[str, Any]) -> None:
    if not figures["valid"]:
        sys.exit(f"the run is not valid, so its figures mean nothing: {figures['why']}")


def child(arguments: list[str]) -> None:
    scenario, qps, queries, seconds, length, stages = arguments
    one_run(scenario, float(qps), int(queries), float(seconds), int(length), stages == "stages")


def main() -> None:
    if "--child" in sys.argv:
        child(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="only the memory measurement")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.memory:
        figures = measure(options.core, "Offline", "1", "24576", "0", "1024", "plain")
        print(f"24,576 queries, prompts of 1,024 tokens: {figures['memory_mb']:.0f} MB over the same imports idle")
        return
    offline = [measure(options.core, "Offline", "1", "102400", "0", "128", "plain") for _ in range(options.repeats)]
    print(f"Offline, 102,400 queries: {statistics.median(run['rate'] for run in offline):,.0f} queries/s (median)")
    for qps in (1_000, 10_000):
        runs = [measure(options.core, "Server", str(qps), "512", "5", "128", "plain") for _ in range(options.repeats)]
        print(f"Server at {qps:,}/s: {describe(runs)}")
    for scenario, load in (("Offline", ("1", "51200", "0")), ("Server", ("5000", "512", "3"))):
        stages = measure(options.core, scenario, *load, "128", "stages")["stages"]
        print(f"{scenario}, µs per query by stage, probes included ({sum(stages.values()):.1f} in all):")
        for stage, microseconds in stages.items():
            print(f"  {stage:<30}{microseconds:6.1f}")


def describe(runs: list[dict[str, Any]]) -> str:
    """Medians over the runs of what Server's queries waited for us."""
    median = statistics.median
    p50, p99 = (1e3 * median(run["ttft"][key] for run in runs) for key in ("p50", "p99"))
    lag = 1e6 * median(run["overhead"]["schedule_lag_s"] for run in runs)
    rate = median(run["rate"] for run in runs)
    return f"{rate:,.0f}/s done, added TTFT p50 {p50:.3f} ms, p99 {p99:.3f} ms, schedule lag {lag:.0f} µs"


if __name__ == "__main__":
    main()
