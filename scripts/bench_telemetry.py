"""What telemetry costs, measured on against off: p99 of the time to first token, throughput of a real engine, CPU.

    python scripts/bench_telemetry.py                 first tokens: echo, and a stub replica with /metrics
    python scripts/bench_telemetry.py --engine        tokens/s of vLLM in process on the demo model, Offline; --pairs
                                                      are rounds here, of three minutes each
    python scripts/bench_telemetry.py --engine --serve        of `vllm serve` over HTTP
    python scripts/bench_telemetry.py --steps         CPU of a vLLM engine's step, its statistics on in every other one
    python scripts/bench_telemetry.py --sensors       200 pages of 100 kB a second, read by a thread or by a process
    python scripts/bench_telemetry.py --parts         CPU time of a pulse on the SUT's loop, and of the sensors

Pairs of tests in turn, off and on, on, off and so on, one SUT for both; what is printed are medians of the pairs'
differences or ratios with a 95 % interval by bootstrap over the pairs. On a machine that others use too, the interval
says how much a figure is worth: more --pairs narrow it. The parts are CPU time, which a busy machine changes little: a
pulse of 30 µs once a second can delay the 0.003 % of the queries that meet it by 30 µs, and no p99 by more.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep, thread_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from bench_client import Measurement, Stub
from bench_engine import Side
from bench_path import made_up_samples

from harness import telemetry
from harness.config import RunConfig, resolve
from harness.dataset import Tokenizer
from harness.demo import MODEL
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import System, make_sut, open_sut, run_test
from harness.scraper import scrape_all
from harness.sensors import Asked, Heard, Sensors
from sut.backends.vllm_engine import Tally
from sut.guard import Guard
from sut.query import NO_TOKENS, Outcome, Query, Tokens
from sut.work import Work

RATE = 1_000
PAGES, BIG = 200, 100_000
"""Of the measurement of the sensors: /metrics pages, and bytes of each."""

PAIRS_A_ROUND = 2
"""Pairs of tests on one pair of engines, after a cold one."""

Figures = dict[str, float]


def interval(values: list[float]) -> str:
    """The median with its 95 % interval by bootstrap over the pairs, as text."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return f"{statistics.median(values):+.4g} (95 % {low:+.4g} to {high:+.4g})"


def test(config: RunConfig, system: System, silent: bool, place: Path, number: int) -> Figures:
    """One Server test; times in µs."""
    own = replace(config, no_telemetry=silent, output_dir=place / f"run-{number}")
    prepare_folder(own)
    with Progress(quiet=True) as progress:
        result = run_test(own, system, progress)
    if not result["valid"]:
        sys.exit(f"the run is not valid, so its figures mean nothing: {result['invalid_reasons']}")
    ttft = result["metrics"]["ttft_s"]
    cpu = 1e6 * result["overhead"]["cpu_s_per_1000_queries"] / 1000
    return {"p50": 1e6 * ttft["p50"], "p99": 1e6 * ttft["p99"], "cpu": cpu}


def in_pairs(
    one: Callable[[int], Figures], other: Callable[[int], Figures], pairs: int
) -> list[tuple[Figures, Figures]]:
    """Pairs of (one, other), which of the two comes first changes; the first pair is cold and dropped."""
    done = []
    for number in range(pairs + 1):
        if number % 2:
            second, first = other(2 * number), one(2 * number + 1)
        else:
            first, second = one(2 * number), other(2 * number + 1)
        done.append((first, second))
        figures = (f"{name} {first[name]:,.4g} and {second[name]:,.4g}" for name in first)
        print(f"off and on{'' if number else ' (cold)'}: {', '.join(figures)}", file=sys.stderr, flush=True)
    return done[1:]


def show(title: str, pairs: list[tuple[Figures, Figures]]) -> None:
    print(
        f"{title}: {len(pairs)} pairs; off: "
        + ", ".join(f"{name} {statistics.median(off[name] for off, _ in pairs):,.0f}" for name in pairs[0][0])
        + " µs"
    )
    for name in pairs[0][0]:
        print(f"  {name:<4} on less off, µs: {interval([on[name] - off[name] for off, on in pairs])}", flush=True)


def server(folder: Path, seconds: float, **options: Any) -> RunConfig:
    return resolve(
        scenario="Server",
        target_qps=RATE,
        min_queries=512,
        min_duration=seconds,
        samples=1024,
        output_dir=folder,
        **options,
    )


def first_tokens(seconds: float, pairs: int) -> None:
    """Echo, then the stub replica on the other core."""
    cores = sorted(os.sched_getaffinity(0))
    stub = Stub(Measurement("", "", 128, 100, 0, "", "", ttft=0.02, tpot=0.002), cores[-1])
    echo = {"backend": "echo", "engine_arg": {"ttft": "0.02", "tpot": "0.002", "tokens": "100", "slots": "4096"}}
    ways: dict[str, dict[str, Any]] = {"echo": echo, "stub replica": {"endpoint": [stub.url], "served_model": "stub"}}
    for name, how in ways.items():
        if os.fork() == 0:  # LoadGen serves one schedule of settings per process
            os.sched_setaffinity(0, cores[:1] if name != "echo" else cores)
            compare(f"first tokens, {name}, {RATE:,}/s", how, seconds, pairs)
            sys.stdout.flush()
            os._exit(0)
        os.wait()
    stub.stop()


def compare(title: str, how: dict[str, Any], seconds: float, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = server(place / "first", seconds, **how)
        samples, tokenizer = made_up_samples(1024, 128), Tokenizer(MODEL)
        with Progress(quiet=True) as progress, open_sut(config, samples, tokenizer, progress) as system:
            off, on = (
                lambda number, silent=silent: test(config, system, silent, place, number) for silent in (True, False)
            )
            show(title, in_pairs(off, on, pairs))


def measuring(side: Side) -> Callable[[int], Figures]:
    return lambda _: side.measure()


def engine(rounds: int, serve: bool) -> None:
    """Two processes with an engine each, one silent; their tokens/s and CPU per token. Each round has new ones, so that
    no luck of one process with its memory counts as telemetry's."""
    environment = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    units = {"rate": "tokens/s", "engine_cpu": "CPU s of the engine", "loop_cpu": "CPU s of the SUT's loop"}
    ratios: dict[str, list[float]] = {figure: [] for figure in units}
    guard = Guard()
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            names = ("silent-served", "served") if serve else ("silent", "harness")
            sides = {name: Side(name, Path(folder) / name, environment) for name in (names, names[::-1])[number % 2]}
            off, on = (sides[name] for name in names)
            done = in_pairs(measuring(off), measuring(on), PAIRS_A_ROUND)
            off.stop()
            on.stop()
        for figure, found in ratios.items():
            found.append(statistics.mean(after[figure] / before[figure] for before, after in done))
    guard.close()
    for figure, unit in units.items():
        print(f"{unit}: on over off less 1: {interval([ratio - 1 for ratio in ratios[figure]])}, {rounds} rounds")


def steps(rounds: int) -> None:
    """One engine in this very process, its statistics on in every other step, and their encoding counted: neighbours
    meet the same machine, however its speed wanders."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.v1.serial_utils import MsgpackEncoder

    engine = LLM(str(MODEL), dtype="float32", enable_prefix_caching=False, enforce_eager=True, max_num_seqs=128,
                 disable_log_stats=False)  # fmt: skip
    core = engine.llm_engine.engine_core.engine_core
    plain, encode = core.step_fn, MsgpackEncoder().encode
    took: list[float] = []

    def timed() -> Any:
        core.scheduler.log_stats = len(took) % 2 == 1
        before = thread_time()
        outputs, executed = plain()
        for output in (outputs or {}).values():
            encode(output)
        took.append(thread_time() - before)
        return outputs, executed

    core.step_fn = timed
    samples = made_up_samples(1024, 128)
    prompts = [TokensPrompt(prompt_token_ids=[3 + int(i) % 600 for i in samples.prompt(n)]) for n in range(1024)]
    how = SamplingParams(temperature=0, max_tokens=64, min_tokens=64, ignore_eos=True, detokenize=False)
    for _ in range(rounds):
        engine.generate(prompts, how, use_tqdm=False)
    pairs = list(zip(took[::2], took[1::2], strict=False))
    usual = 1e3 * statistics.median(off for off, _ in pairs)
    more = interval([on / off - 1 for off, on in pairs])
    print(f"a step of 128 sequences: off {usual:.2f} ms of CPU, on over off less 1: {more}, {len(pairs)} pairs")
    print(f"  on less off, µs: {interval([1e6 * (on - off) for off, on in pairs])}")


class ThreadSensors(Sensors):
    """The servers' pages read by a thread of the harness's own process, for comparison."""

    def __init__(self, asked: Asked) -> None:
        self._stop, self._first = threading.Event(), threading.Event()
        arguments = asked.servers, None, False, lambda *_: None, self._first, self._stop
        self._thread = threading.Thread(target=lambda: asyncio.run(scrape_all(*arguments)), daemon=True)
        self._thread.start()

    def await_ready(self) -> None:
        self._first.wait(5)

    def close(self) -> Heard:
        self._stop.set()
        self._thread.join()
        return Heard([])


def sensors(seconds: float, pairs: int) -> None:
    """Echo at 1,000/s while 200 pages are read each second; the server of the pages has a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    stub = Stub(Measurement("", "", 128, 100, 0, "", ""), cores[-1], metrics_bytes=BIG)
    asked = Asked({f"page-{number}": f"{stub.url}/metrics" for number in range(PAGES)})
    for name, kind in (("a process", Sensors), ("a thread", ThreadSensors)):
        if os.fork() == 0:
            os.sched_setaffinity(0, cores[:1])
            vars(telemetry).update(Sensors=kind, what_to_read=lambda *_: asked)
            how = {"backend": "echo", "engine_arg": {"ttft": "0.02", "tokens": "100", "slots": "4096"}}
            compare(f"{PAGES} pages of {BIG:,} bytes, read by {name}", how, seconds, pairs)
            sys.stdout.flush()
            os._exit(0)
        os.wait()
    stub.stop()


def parts(seconds: float) -> None:
    """CPU time, in this process and in that of the sensors."""
    for count in (1, 8, PAGES):
        config = resolve(scenario="Server", backend="echo", replicas=count)
        own = telemetry.Telemetry(config, make_sut(config, Tokenizer(MODEL)))
        work = Work(lambda _: NO_TOKENS, True, 8, Nobody())
        work.began, pulses = perf_counter(), 2_000
        before = thread_time()
        for _ in range(pulses):
            work.loop_lags.extend([0.0] * 50)
            own.pulse(work, perf_counter())
        print(f"a pulse with {count} replicas: {1e6 * (thread_time() - before) / pulses:.0f} µs of CPU", flush=True)
    output = SimpleNamespace(new_token_ids=[7], prefill_stats=None, events=None)
    tally, step, steps = Tally(), [output] * 256, 2_000
    before = thread_time()
    for _ in range(steps):
        tally.count(step, None)
    print(f"counting an engine's token: {1e6 * (thread_time() - before) / (256 * steps):.2f} µs of CPU", flush=True)
    stubs = [Stub(Measurement("", "", 128, 100, 0, "", ""), max(os.sched_getaffinity(0)), size) for size in (0, BIG)]
    asked: dict[str, dict[str, str]] = {"no servers": {}} | {
        f"{PAGES} servers' {what}": {f"page-{number}": f"{stub.url}/metrics" for number in range(PAGES)}
        for what, stub in zip(("named metrics", f"pages of {BIG:,} bytes"), stubs, strict=True)
    }
    for name, servers in asked.items():
        reading = Sensors(Asked(servers))
        reading.await_ready()
        child = next(p for p in psutil.Process().children() if "sensors.py" in " ".join(p.cmdline()))
        before = sum(child.cpu_times()[:2])
        sleep(seconds)
        used = (sum(child.cpu_times()[:2]) - before) / seconds
        size = child.memory_info().rss / 2**20
        reading.close()
        print(f"the sensors with {name}: {100 * used:.1f} % of a core, {size:.0f} MB", flush=True)
    for stub in stubs:
        stub.stop()


class Nobody:
    """A responder."""

    def first(self, query: Query, ids: Tokens) -> None:
        pass

    def done(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        pass

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each test of first tokens")
    parser.add_argument("--engine", action="store_true", help="only tokens/s of vLLM")
    parser.add_argument("--serve", action="store_true", help="with --engine: behind HTTP")
    parser.add_argument("--steps", action="store_true", help="only an engine's steps; --pairs are rounds of 512")
    parser.add_argument("--sensors", action="store_true", help="only thread against process")
    parser.add_argument("--parts", action="store_true", help="only CPU time by part")
    options = parser.parse_args()
    if options.parts:
        parts(options.seconds)
    elif options.steps:
        steps(options.pairs)
    elif options.engine:
        engine(options.pairs, options.serve)
    elif options.sensors:
        sensors(options.seconds, options.pairs)
    else:
        first_tokens(options.seconds, options.pairs)


if __name__ == "__main__":
    main()
