"""What the client of remote replicas costs: LoadGen → SUT → HTTP → LoadGen on one core, a stub replica on another.

    python scripts/bench_client.py                all measurements, median of 3 each: some 8 minutes on two idle cores
    python scripts/bench_client.py --only paced   those whose name has this in it
    python scripts/bench_client.py --repeats 1

Real LoadGen, all checks and records on. The stub (tests/stub_replica.py --fast) writes prepared bytes; how busy its
core was is printed, since a figure says something about the client only while the stub had time to spare. Added latency
is LoadGen's percentile less the one that the stub served by its own clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench_path import figures_of, made_up_samples, peak_mb, refuse_invalid

from harness.config import RunConfig, resolve
from harness.dataset import Tokenizer
from harness.demo import MODEL
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import open_sut, run_test

STUB = Path(__file__).parent.parent / "tests" / "stub_replica.py"

PATIENT = "\n".join(f"demo.Server.{key} = 3600000" for key in ("ttft_latency", "tpot_latency"))
"""Limits that no queue breaks: in the measurements of a ceiling all queries come at once."""


@dataclass(frozen=True)
class Measurement:
    """One row: what is asked of the harness and of the stub, and what is to be reached."""

    name: str
    scenario: str
    prompt: int
    tokens: int
    queries: int
    figure: str
    reach: str
    rate: float = 100_000.0
    in_flight: int | None = 256
    interval: int | None = None
    family: str = "vllm"
    ttft: float = 0.0
    tpot: float = 0.0


PACE: dict[str, Any] = {"ttft": 0.02, "tpot": 0.002, "in_flight": None}

MEASUREMENTS = [
    Measurement("whole, 128 prompt ids", "Offline", 128, 100, 60_000, "requests/s", ">= 20,000"),
    Measurement("whole, 1,024 prompt ids", "Offline", 1024, 100, 40_000, "requests/s", ">= 12,000"),
    Measurement("streamed, an event per token, /inference/v1/generate", "Server", 128, 300, 15_000, "events/s",
                ">= 1,000,000", interval=1),
    Measurement("streamed, an event per token, /v1/completions", "Server", 128, 300, 15_000, "events/s",
                ">= 1,000,000", interval=1, family="vllm-completions"),
    Measurement("streamed, stream_interval", "Server", 128, 300, 40_000, "requests/s", ">= 12,000"),
    Measurement("paced, 1,000/s, an event per token", "Server", 128, 100, 10_000, "added", "<= 0.3 / 5 ms", rate=1000,
                interval=1, **PACE),
    Measurement("paced, 200/s, an event per token", "Server", 128, 100, 2_000, "added", "<= 0.2 / 1.5 ms", rate=200,
                interval=1, **PACE),
    Measurement("paced, 1,000/s, stream_interval", "Server", 128, 100, 10_000, "cpu", "<= 0.12 s", rate=1000, **PACE),
    Measurement("10,000 open streams", "Server", 128, 100, 10_000, "memory", "<= 400 MB, none lost", rate=4_000,
                in_flight=None, interval=1, ttft=2.5, tpot=0.1),
]  # fmt: skip


class Stub:
    """The stub replica in a process of its own, on a core of its own."""

    def __init__(self, what: Measurement, core: int, metrics_bytes: int = 0) -> None:
        words = ["--family", what.family, "--tokens", str(what.tokens), "--fast", "--max-model-len", "8192"]
        words += ["--ttft", str(what.ttft), "--tpot", str(what.tpot), "--metrics-bytes", str(metrics_bytes)]
        words += ["--narrow" if not metrics_bytes else "--no-narrow"]
        self._process = subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, str(STUB), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{json.loads(self._process.stdout.readline())['port']}"

    def stop(self) -> None:
        self._process.communicate()


def stats(url: str) -> dict[str, Any]:
    """What the stub says of itself."""
    with urllib.request.urlopen(f"{url}/stats") as response:
        figures: dict[str, Any] = json.load(response)
    return figures


def settings(what: Measurement, url: str, folder: Path) -> RunConfig:
    conf = folder / "user.conf"
    conf.write_text(PATIENT if what.scenario == "Server" else "")
    config = resolve(
        scenario=what.scenario,
        endpoint=[url],
        served_model="stub",
        stream_interval=what.interval,
        max_in_flight=what.in_flight,
        target_qps=what.rate,
        min_queries=what.queries,
        min_duration=0,
        user_conf=conf,
        samples=1024,
        output_dir=folder / "run",
    )
    longest = max(config.generation.max_tokens, what.tokens + 1)
    return replace(config, generation=replace(config.generation, max_tokens=longest))


def child(number: int, url: str) -> None:
    """One test, its figures as one line of JSON."""
    what = MEASUREMENTS[number]
    samples = made_up_samples(1024, what.prompt)
    with tempfile.TemporaryDirectory() as place:
        config = settings(what, url, Path(place))
        prepare_folder(config)
        with Progress(quiet=True) as progress, open_sut(config, samples, Tokenizer(MODEL), progress) as system:
            before = stats(url)["cpu_s"]
            result = run_test(config, system, progress)
            stub = stats(url)
    figures = {
        "valid": result["valid"],
        "why": result["invalid_reasons"],
        "queries": result["queries"],
        "failed": result["failures"]["count"],
        "rate": result["queries"] / result["duration_s"],
        "ttft": result["metrics"]["ttft_s"],
        "overhead": result["overhead"],
        "stub": stub | {"busy": (stub["cpu_s"] - before) / result["duration_s"]},
        "memory_mb": peak_mb(),
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)


def measure(number: int, cores: list[int]) -> dict[str, Any]:
    stub = Stub(MEASUREMENTS[number], cores[1])
    command = ["taskset", "-c", str(cores[0]), sys.executable, __file__, "--child", str(number)]
    figures = figures_of([*command, stub.url])
    stub.stop()
    refuse_invalid(figures)
    return figures


def describe(what: Measurement, runs: list[dict[str, Any]]) -> str:
    """The figure that counts, as the median over the runs, and what else tells how it came about."""

    def median(get: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(get(run) for run in runs)

    def added(key: str) -> float:
        return 1e3 * median(lambda run: run["ttft"][key] - what.ttft - run["stub"]["first_lateness_s"][key])

    rate, cpu = median(lambda run: run["rate"]), median(lambda run: run["overhead"]["cpu_s_per_1000_queries"])
    figure = {
        "requests/s": lambda: f"{rate:,.0f} requests/s",
        "events/s": lambda: f"{rate * what.tokens:,.0f} events/s ({rate:,.0f} requests/s)",
        "added": lambda: f"added TTFT p50 {added('p50'):.2f} ms, p99 {added('p99'):.2f} ms",
        "cpu": lambda: f"{cpu:.3f} s of CPU per 1,000 requests",
        "memory": lambda: (
            f"{median(lambda run: run['memory_mb']):.0f} MB, {sum(run['failed'] for run in runs)} lost, "
            f"{min(run['stub']['peak_running'] for run in runs):,} open at once"
        ),
    }[what.figure]()
    busy = 100 * median(lambda run: run["stub"]["busy"])
    return f"{figure} (asked {what.reach}; {cpu:.3f} CPU s per 1,000; stub's core {busy:.0f} % busy)"


def main() -> None:
    if "--child" in sys.argv:
        return child(int(sys.argv[2]), sys.argv[3])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="measure only what has this in its name")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the client, one for the stub.")
    for number, what in enumerate(MEASUREMENTS):
        if options.only in what.name:
            runs = [measure(number, cores[:2]) for _ in range(options.repeats)]
            print(f"{what.name}: {describe(what, runs)}", flush=True)


if __name__ == "__main__":
    main()
