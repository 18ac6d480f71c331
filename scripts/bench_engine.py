"""Offline tokens/s of the harness over that of `vllm.LLM.generate`, on the same prompts and the same engine arguments.

    python scripts/bench_engine.py                      7 alternating pairs, each engine in processes of its own
    python scripts/bench_engine.py --multiprocessing 0  the harness's own; LLM.generate's engine is then in its process
    python scripts/bench_engine.py --throughput         against `vllm bench throughput` with its defaults
    python scripts/bench_engine.py --remote             `vllm serve` over HTTP against the engine in process

Two processes hold an engine each and are asked in turn: A generates with vLLM's own class, B runs a LoadGen Offline
test through the harness, records and checks on. Every answer is greedy, so the token counts must be equal. The first
pair, in which both sides are still cold, is printed and not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil

from harness.config import RunConfig, resolve
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import check, open_sut, run_test
from sut.backends import Plan
from sut.backends.vllm_engine import engine_arguments
from sut.guard import Guard

ORDER = "order.json"

PASSES = 2
"""How often each of the demo's 1,024 questions is asked in one measurement."""


def configuration(folder: Path, serve: bool = False, silent: bool = False) -> RunConfig:
    conf = folder / "bench.conf"
    conf.write_text(
        f"demo.*.performance_sample_count_override = 1024\ndemo.Offline.min_query_count = {PASSES * 1024}\n"
    )
    how: dict[str, Any] = {"serve": serve, "no_telemetry": silent}
    return resolve(scenario="Offline", user_conf=conf, output_dir=folder / "engine", **how)


def answer(tokens: int, seconds: float, **more: float) -> None:
    print(json.dumps({"tokens": tokens, "rate": tokens / seconds, **more}), flush=True)


def engines_cpu() -> float:
    """CPU seconds that the processes below this one have used so far."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return float(sum(time.user + time.system for time in times))


def serve_plain(folder: Path) -> None:
    """Process A: one line on stdin asks for one `LLM.generate` of everything."""
    from vllm import LLM, SamplingParams, TokensPrompt

    config, samples, _ = check(configuration(folder))
    plan = Plan(1, config.model, config.dtype, config.max_model_len, config.generation)
    engine = LLM(**engine_arguments(plan), use_tqdm_on_load=False)
    how = SamplingParams(temperature=0, max_tokens=config.generation.max_tokens, min_tokens=1, detokenize=False)
    # LoadGen's own order: which answers are begun last decides how long a batch runs half empty at the end.
    order = json.loads((folder.parent / ORDER).read_text())
    prompts = [TokensPrompt(prompt_token_ids=samples.prompt(i).tolist()) for i in order]
    engine.generate(prompts[:8], how, use_tqdm=False)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = perf_counter()
        outputs = engine.generate(prompts, how, use_tqdm=False)
        answer(sum(len(output.outputs[0].token_ids) for output in outputs), perf_counter() - began)


def serve_harness(folder: Path, serve: bool = False, silent: bool = False) -> None:
    """Process B: one line on stdin asks for one LoadGen Offline test of everything."""
    config, samples, tokenizer = check(configuration(folder, serve, silent))
    with Progress(quiet=True) as progress, open_sut(config, samples, tokenizer, progress) as system:
        issue = system.sut.issue

        def issue_and_tell(ids: list[int], indices: list[int]) -> None:
            (folder.parent / ORDER).write_text(json.dumps(indices))
            issue(ids, indices)

        system.sut.issue = issue_and_tell  # type: ignore[method-assign]
        print("ready", flush=True)
        for number, _ in enumerate(sys.stdin):
            test = replace(config, output_dir=folder / f"run-{number}")
            prepare_folder(test)
            before = engines_cpu()
            result = run_test(test, system, progress)
            if not result["valid"]:
                sys.exit(f"not valid: {result['invalid_reasons']}")
            tokens = sum(replica["tokens"] for replica in result["replicas"])
            loop = result["overhead"]["loop_busy_share"] * result["duration_s"]
            seconds = tokens / result["metrics"]["tokens_per_second"]
            answer(tokens, seconds, engine_cpu=engines_cpu() - before, loop_cpu=loop)
    os._exit(0)


def bench_throughput(environment: dict[str, str], folder: Path) -> float:
    """Output tokens/s of `vllm bench throughput` with its defaults, on random prompts as long as the demo's are.

    It detokenises, keeps prefix caching on, and each of its answers has the same length, the demo's mean. The command
    of the CPU wheel does not start (it asks for the metadata of a package called vllm), so its module is called.
    """
    program = (
        "import argparse; from vllm.benchmarks import throughput as t; "
        "p = argparse.ArgumentParser(); t.add_cli_args(p); t.main(p.parse_args())"
    )
    config, samples, _ = check(configuration(folder))
    asked, given = round(float(samples.lengths.mean())), 31
    lengths = ["--input-len", str(asked), "--output-len", str(given), "--num-prompts", str(PASSES * 1024)]
    target = folder / "throughput.json"
    engine = ["--model", config.model, "--dtype", config.dtype, "--enforce-eager", "--dataset-name", "random"]
    command = [sys.executable, "-c", program, *engine, *lengths, "--output-json", str(target)]
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)
    figures = json.loads(target.read_text())
    # It reports prompt and output tokens together; the two differ in a fixed proportion.
    rate: float = figures["tokens_per_second"]
    return rate * given / (asked + given)


class Side:
    """One of the two processes."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir()
        command = [sys.executable, __file__, "--serve", name, str(folder)]
        log = (folder / "stderr.log").open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment
        )
        while (line := self._read()) != "ready":
            assert line, f"{name} did not start; see {log.name}: {Path(log.name).read_text()[-1000:]}"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def measure(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        while not (line := self._read()).startswith("{"):
            assert self._process.poll() is None
        figures: dict[str, Any] = json.loads(line)
        return figures

    def stop(self) -> None:
        self._process.communicate()


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % interval of the median by bootstrap over the pairs."""
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    if "--serve" in sys.argv:
        name, folder = sys.argv[2:]
        if name == "plain":
            return serve_plain(Path(folder))
        return serve_harness(Path(folder), serve="served" in name, silent="silent" in name)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--multiprocessing", choices=["0", "1"], default="1", help="VLLM_ENABLE_V1_MULTIPROCESSING")
    parser.add_argument("--throughput", action="store_true", help="against `vllm bench throughput`")
    parser.add_argument("--remote", action="store_true", help="`vllm serve` against the engine in process")
    options = parser.parse_args()
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if options.remote else options.multiprocessing,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    guard = Guard()  # no engine outlives an interrupted measurement
    with tempfile.TemporaryDirectory() as place:
        ours = Side("harness", Path(place) / "harness", environment)
        ours.measure()  # a first time cold, and it tells the order
        if options.throughput:
            ratios = against_throughput(ours, options.pairs, environment, Path(place))
        elif options.remote:
            served = Side("served", Path(place) / "served", environment)
            ratios = in_pairs(("in process", ours), ("vllm serve", served), options.pairs)
            served.stop()
        else:
            plain = Side("plain", Path(place) / "plain", environment)
            ratios = in_pairs(("LLM.generate", plain), ("harness", ours), options.pairs)
            plain.stop()
        ours.stop()
    guard.close()
    low, high = interval(ratios)
    print(f"median ratio {statistics.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}, {len(ratios)} pairs")


def in_pairs(base: tuple[str, Side], other: tuple[str, Side], pairs: int) -> list[float]:
    """The other's tokens/s over the base's, measured in turn."""
    ratios = []
    for number in range(pairs + 1):
        theirs, mine = base[1].measure(), other[1].measure()
        assert theirs["tokens"] == mine["tokens"], (theirs, mine)
        ratio = mine["rate"] / theirs["rate"]
        figures = f"{base[0]} {theirs['rate']:,.0f} tokens/s, {other[0]} {mine['rate']:,.0f}"
        print(f"{mine['tokens']:,} tokens each: {figures}, ratio {ratio:.3f}{'' if number else ' (cold)'}", flush=True)
        ratios.append(ratio)
    return ratios[1:]


def against_throughput(ours: Side, pairs: int, environment: dict[str, str], folder: Path) -> list[float]:
    ratios = []
    for _ in range(pairs):
        theirs, mine = bench_throughput(environment, folder), ours.measure()["rate"]
        ratios.append(mine / theirs)
        print(f"bench throughput {theirs:,.0f} tokens/s, harness {mine:,.0f}, ratio {ratios[-1]:.3f}", flush=True)
    return ratios


if __name__ == "__main__":
    main()
