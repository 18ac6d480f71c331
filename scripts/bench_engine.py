"""Offline tokens/s of the harness over that of `vllm.LLM.generate`, on the same prompts and the same engine arguments.

    python scripts/bench_engine.py                      7 alternating pairs, engine and worker in one process
    python scripts/bench_engine.py --multiprocessing 1  the same with vLLM's own default

Two processes hold an engine each and are asked in turn: A generates with vLLM's own class, B runs a LoadGen Offline
test through the harness, records and checks on. Every answer is greedy, so the token counts must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from harness.config import RunConfig, resolve
from harness.progress import Progress
from harness.run import check, open_sut, prepare_folder, run_test
from sut.backends import Plan
from sut.backends.vllm_engine import engine_arguments

PASSES = 2
"""How often each of the demo's 1,024 questions is asked in one measurement."""


def configuration(folder: Path) -> RunConfig:
    conf = folder / "bench.conf"
    conf.write_text(
        f"demo.*.performance_sample_count_override = 1024\ndemo.Offline.min_query_count = {PASSES * 1024}\n"
    )
    return resolve(scenario="Offline", user_conf=conf, output_dir=folder / "engine")


def answer(tokens: int, seconds: float) -> None:
    print(json.dumps({"tokens": tokens, "rate": tokens / seconds}), flush=True)


def serve_plain(folder: Path) -> None:
    """Process A: one line on stdin asks for one `LLM.generate` of everything."""
    from vllm import LLM, SamplingParams, TokensPrompt

    config, samples, _ = check(configuration(folder))
    plan = Plan(1, config.model, config.dtype, config.max_model_len, config.generation, None)
    engine = LLM(**engine_arguments(plan), use_tqdm_on_load=False)
    how = SamplingParams(temperature=0, max_tokens=config.generation.max_tokens, min_tokens=1, detokenize=False)
    order = [i for seed in range(PASSES) for i in random.Random(seed).sample(range(len(samples)), len(samples))]
    prompts = [TokensPrompt(prompt_token_ids=samples.prompt(i).tolist()) for i in order]
    engine.generate(prompts[:8], how, use_tqdm=False)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = perf_counter()
        outputs = engine.generate(prompts, how, use_tqdm=False)
        answer(sum(len(output.outputs[0].token_ids) for output in outputs), perf_counter() - began)


def serve_harness(folder: Path) -> None:
    """Process B: one line on stdin asks for one LoadGen Offline test of everything."""
    config, samples, tokenizer = check(configuration(folder))
    with Progress(quiet=True) as progress, open_sut(config, samples, tokenizer, progress) as system:
        print("ready", flush=True)
        for number, _ in enumerate(sys.stdin):
            test = replace(config, output_dir=folder / f"run-{number}")
            prepare_folder(test)
            result = run_test(test, system, progress)
            if not result["valid"]:
                sys.exit(f"not valid: {result['invalid_reasons']}")
            tokens = sum(replica["tokens"] for replica in result["replicas"])
            answer(tokens, tokens / result["metrics"]["tokens_per_second"])
    os._exit(0)


class Side:
    """One of the two processes."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
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
        return {"plain": serve_plain, "harness": serve_harness}[name](Path(folder))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--multiprocessing", choices=["0", "1"], default="0", help="VLLM_ENABLE_V1_MULTIPROCESSING")
    options = parser.parse_args()
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": options.multiprocessing,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    with tempfile.TemporaryDirectory() as place:
        sides = {}
        for name in ("plain", "harness"):
            own = Path(place) / name
            own.mkdir()
            sides[name] = Side(name, own, environment)
        for side in sides.values():
            side.measure()  # the first one is cold
        ratios = []
        for _ in range(options.pairs):
            plain, ours = (sides[name].measure() for name in ("plain", "harness"))
            assert plain["tokens"] == ours["tokens"], (plain, ours)
            ratios.append(ours["rate"] / plain["rate"])
            print(
                f"{ours['tokens']:,} tokens each: LLM.generate {plain['rate']:,.0f} tokens/s, "
                f"harness {ours['rate']:,.0f}, ratio {ratios[-1]:.3f}",
                flush=True,
            )
        for side in sides.values():
            side.stop()
    low, high = interval(ratios)
    print(f"median ratio {statistics.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}, {len(ratios)} pairs")


if __name__ == "__main__":
    main()
