"""A thousand replicas behind one client, simulated: 10,000 queries/s through real LoadGen, by dispatch policy.

    python scripts/bench_scale.py                     every policy, 20 s each
    python scripts/bench_scale.py --replicas 1000 --rate 10000 --seconds 20 --spread 2

The replicas are echo simulators in the same process, the slowest `--spread` times as slow as the fastest: what is
measured is what a policy makes of unequal replicas (imbalance: the longest and the shortest share of the time that a
replica was busy, and the waiting for a first token that comes of it), what a query costs the client's core, and memory.
The simulation itself runs on that core too, so the cost is more than a client of real replicas has for dispatch, and
less than it has with sockets (scripts/bench_client.py). A policy's own cost per query is scripts/bench_dispatch.py's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from bench_path import figures_of, made_up_samples, peak_mb, refuse_invalid

from harness.config import RunConfig, resolve
from harness.dataset import Tokenizer
from harness.demo import MODEL
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import open_sut, run_test
from sut.dispatch import POLICIES

SLOTS, TTFT, TPOT, TOKENS = 4, 0.05, 0.005, 32


def settings(dispatch: str, replicas: int, rate: float, seconds: float, spread: float, folder: Path) -> RunConfig:
    slowdown = spread ** (1 / max(1, replicas - 1))
    return resolve(
        scenario="Server",
        backend="echo",
        replicas=replicas,
        dispatch=dispatch,
        max_in_flight=SLOTS if dispatch == "pull" else None,
        engine_arg={"slots": SLOTS, "ttft": TTFT, "tpot": TPOT, "tokens": str(TOKENS), "slowdown": slowdown},
        target_qps=rate,
        min_queries=512,
        min_duration=seconds,
        samples=1024,
        output_dir=folder / "run",
    )


def child(words: list[str]) -> None:
    """One test, its figures as one line of JSON."""
    dispatch, replicas, rate, seconds, spread = words
    samples = made_up_samples(1024, 128)
    idle = peak_mb()
    with tempfile.TemporaryDirectory() as place:
        config = settings(dispatch, int(replicas), float(rate), float(seconds), float(spread), Path(place))
        prepare_folder(config)
        with Progress(quiet=True) as progress, open_sut(config, samples, Tokenizer(MODEL), progress) as system:
            result = run_test(config, system, progress)
    shares = [replica["busy_share"] for replica in result["replicas"]]
    figures = {
        "valid": result["valid"],
        "why": result["invalid_reasons"],
        "rate": result["metrics"]["samples_per_second"],
        "ttft": result["metrics"]["ttft_s"],
        "busy": [min(shares), max(shares)],
        "queries": [pick(replica["queries"] for replica in result["replicas"]) for pick in (min, max)],
        "cpu_us": 1e3 * result["overhead"]["cpu_s_per_1000_queries"],
        "lag_us": 1e6 * result["overhead"]["schedule_lag_s"],
        "memory_mb": peak_mb() - idle,
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)


def main() -> None:
    if "--child" in sys.argv:
        return child(sys.argv[2:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=10_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--spread", type=float, default=2.0)
    options = parser.parse_args()
    work = [str(options.replicas), str(options.rate), str(options.seconds), str(options.spread)]
    print(f"{options.replicas:,} replicas, the slowest {options.spread:g} times as slow, {options.rate:,.0f} queries/s")
    print(f"{'':<20}{'TTFT p50':>10}{'p99':>10}{'queries':>14}{'busy':>14}{'CPU a query':>13}{'lag':>9}{'memory':>9}")
    for name in POLICIES:
        run = figures_of([sys.executable, __file__, "--child", name, *work])
        refuse_invalid(run)
        few, many = run["queries"]
        low, high = run["busy"]
        print(
            f"{name:<20}{1e3 * run['ttft']['p50']:>7.1f} ms{1e3 * run['ttft']['p99']:>7.1f} ms"
            f"{f'{few:,}–{many:,}':>14}{f'{low:.0%}–{high:.0%}':>14}{run['cpu_us']:>10.0f} µs"
            f"{run['lag_us']:>6.0f} µs{run['memory_mb']:>6.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
