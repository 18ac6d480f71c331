"""What a dispatch policy costs per query, and what it gains where replicas are unequal.

    python scripts/bench_dispatch.py             µs per query at 10, 100 and 1,000 replicas, by policy
    python scripts/bench_dispatch.py --unequal   two simulated replicas, one half as fast as the other: Offline rate and
                                                 highest valid Server rate, by policy; some 6 minutes

The cost is that of pick, started and finished, at a constant number in flight that ends in random order; the loop
around them is timed alone and taken off. With --unequal each measurement is a LoadGen run in a process of its own. The
ideal is the sum of what the replicas can serve: their slots over the time a query takes.

A Server run of s seconds at a rate x above what is possible ends with x·s seconds of waiting. Under the demo
benchmark's limit of 2 s on the first token, 12 seconds of a load 16 % too high would be valid: the limit here is
shorter.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from bench_path import figures_of

from harness.config import RunConfig, resolve
from harness.dataset import Samples, Tokenizer
from harness.demo import MODEL
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import open_sut, run_test
from sut.backends.echo import Echo, EchoOptions
from sut.dispatch import POLICIES, Policy, Replica, make_policy
from sut.query import TOKEN_DTYPE, Query

# -- the cost of a policy ---------------------------------------------------------------------------------------------

SIZES = (10, 100, 1_000)
IN_FLIGHT = 16
"""Queries in flight per replica."""

FRAMES = 4
"""Times per query that an answer's progress is told, where that is measured too."""


class Flight(NamedTuple):
    replica: Replica
    query: Query
    tokens: list[int]


class Script(NamedTuple):
    """What happens, step by step: whose answers grow, which flight ends, which query takes its place."""

    grow: Sequence[Sequence[int]]
    ends: Sequence[int]
    queries: Sequence[Query]


def make_script(flights: int, steps: int, frames: int, chance: random.Random) -> Script:
    prompt = np.zeros(1024, TOKEN_DTYPE)
    queries = [Query(i, i, prompt[: chance.randrange(16, 1024)], True, 128, 0.0) for i in range(1024)]
    grow = [[chance.randrange(flights) for _ in range(frames)] for _ in range(steps)]
    return Script(
        grow, [chance.randrange(flights) for _ in range(steps)], [queries[i % 1024] for i in range(steps + flights)]
    )


def with_policy(policy: Policy, flights: list[Flight], script: Script) -> float:
    """Seconds of the whole script. The books are kept as the SUT keeps them."""
    began = perf_counter()
    for grow, end, query in zip(script.grow, script.ends, script.queries, strict=False):
        for which in grow:
            flight = flights[which]
            flight.tokens[0] += 8
            policy.progressed(flight.replica, 8)
        replica, old, tokens = flights[end]
        replica.in_flight -= 1
        policy.finished(replica, old, tokens[0])
        picked = policy.pick(query)
        assert picked is not None
        policy.started(picked, query)
        picked.in_flight += 1
        flights[end] = Flight(picked, query, [0])
    return perf_counter() - began


def without(flights: list[Flight], script: Script) -> float:
    """Seconds of the same script where nobody is asked."""
    began = perf_counter()
    for grow, end, query in zip(script.grow, script.ends, script.queries, strict=False):
        for which in grow:
            flight = flights[which]
            flight.tokens[0] += 8
        replica, _, _ = flights[end]
        replica.in_flight -= 1
        picked = replica
        assert picked is not None
        picked.in_flight += 1
        flights[end] = Flight(picked, query, [0])
    return perf_counter() - began


def cost(name: str, size: int, steps: int, frames: int) -> float:
    """µs per query of the policy alone."""
    flights: list[Flight] = []
    script = make_script(size * IN_FLIGHT, steps, frames, random.Random(size))
    replicas = [
        Replica(f"echo-{i}", Echo(i, EchoOptions()), IN_FLIGHT if name == "pull" else None) for i in range(size)
    ]
    policy = make_policy(name, replicas)
    for query in script.queries[: size * IN_FLIGHT]:
        replica = policy.pick(query)
        assert replica is not None
        policy.started(replica, query)
        replica.in_flight += 1
        flights.append(Flight(replica, query, [0]))
    with_policy(policy, flights, script)  # from the order of the start to that of the long run
    return 1e6 * (with_policy(policy, flights, script) - without(flights, script)) / steps


def print_costs(steps: int, repeats: int) -> None:
    gc.disable()
    sizes = "".join(f"{size:>9,}" for size in SIZES)
    print(f"µs per query by number of replicas, {IN_FLIGHT} in flight on each (median of {repeats})")
    print(f"{'':<20}{sizes}  {SIZES[-1]:,} over {SIZES[0]}   per progress at {SIZES[-1]:,}")
    for name in POLICIES:
        alone = [statistics.median(cost(name, size, steps, 0) for _ in range(repeats)) for size in SIZES]
        told = statistics.median(cost(name, SIZES[-1], steps, FRAMES) for _ in range(repeats))
        row = "".join(f"{each:>9.2f}" for each in alone)
        print(f"{name:<20}{row}{alone[-1] / alone[0]:>12.2f}{max(0.0, told - alone[-1]) / FRAMES:>19.2f}", flush=True)
        gc.collect()


# -- unequal replicas -------------------------------------------------------------------------------------------------

REPLICAS = 2
SLOTS, TTFT, TPOT, TOKENS, SLOWDOWN = 8, 0.05, 0.002, 64, 2.0
TTFT_LIMIT = 0.5
"""Seconds; the slower replica needs 0.1 without any wait for a slot."""

BRACKET = (0.45, 1.05)
"""Server rates that are tried, as shares of the ideal."""


def ideal() -> float:
    """Queries/s of all replicas together."""
    alone = TTFT + TPOT * (TOKENS - 1)
    return sum(SLOTS / (alone * SLOWDOWN**i) for i in range(REPLICAS))


def one_run(scenario: str, dispatch: str, qps: float, queries: int, seconds: float) -> None:
    """A child process: one test, its figures as one line of JSON."""
    samples = made_up_samples(1024, 128)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(scenario, dispatch, qps, queries, seconds, Path(folder))
        prepare_folder(config)
        with Progress(quiet=True) as progress, open_sut(config, samples, Tokenizer(MODEL), progress) as system:
            result = run_test(config, system, progress)
    figures = {
        "valid": result["valid"],
        "why": result["invalid_reasons"],
        "rate": result["metrics"]["samples_per_second"],
        "ttft": result["metrics"]["ttft_s"],
        "replicas": {replica["name"]: replica["queries"] for replica in result["replicas"]},
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)


def made_up_samples(count: int, length: int) -> Samples:
    tokens = np.random.default_rng(0).integers(3, 600, count * length, TOKEN_DTYPE)
    starts = np.arange(count + 1, dtype=np.int64) * length
    return Samples([str(i) for i in range(count)], [""] * count, tokens, starts, "")


def settings(scenario: str, dispatch: str, qps: float, queries: int, seconds: float, folder: Path) -> RunConfig:
    conf = folder / "bench.conf"
    # LoadGen issues whole multiples of the samples it has loaded: few of them, so that a run is as long as asked for.
    conf.write_text(
        f"demo.Server.ttft_latency = {round(1000 * TTFT_LIMIT)}\ndemo.*.performance_sample_count_override = 64\n"
    )
    return resolve(
        scenario=scenario,
        backend="echo",
        replicas=REPLICAS,
        dispatch=dispatch,
        engine_arg={"slots": SLOTS, "ttft": TTFT, "tpot": TPOT, "tokens": str(TOKENS), "slowdown": SLOWDOWN},
        target_qps=qps,
        min_queries=queries,
        min_duration=seconds,
        samples=1024,
        user_conf=conf,
        output_dir=folder / "run",
    )


def measure(scenario: str, dispatch: str, qps: float, queries: int, seconds: float) -> dict[str, Any]:
    arguments = [scenario, dispatch, str(qps), str(queries), str(seconds)]
    figures = figures_of([sys.executable, __file__, "--child", *arguments])
    if not all(reason.startswith("LoadGen says INVALID") for reason in figures["why"]):
        sys.exit(f"the run went wrong, so its figures mean nothing: {figures['why']}")
    return figures


def print_offline(queries: int) -> None:
    print(f"Offline, {queries:,} queries; ideal {ideal():.1f}/s")
    for dispatch in ("pull", "round-robin"):
        run = measure("Offline", dispatch, 1.0, queries, 0.0)
        if not run["valid"]:
            sys.exit(f"the run is not valid, so its figures mean nothing: {run['why']}")
        print(f"  {dispatch:<20}{run['rate']:>7.1f}/s {run['rate'] / ideal():>7.1%}   {shares(run)}", flush=True)


def print_server(dispatch: str, queries: int, seconds: float, probes: int) -> None:
    """The highest valid rate found by bisection, and how each probe went."""
    low, high = (share * ideal() for share in BRACKET)
    best: dict[str, Any] | None = None
    tried = []
    for _ in range(probes):
        middle = round((low + high) / 2, 1)
        run = measure("Server", dispatch, middle, queries, seconds)
        tried.append(f"{middle:.1f} {'valid' if run['valid'] else 'not'} (p99 {run['ttft']['p99']:.2f} s)")
        if run["valid"]:
            low, best = middle, run
        else:
            high = middle
    found = f"{low:>7.1f}/s {low / ideal():>7.1%}   {shares(best)}" if best else f"none from {low:.1f}/s on"
    print(f"  {dispatch:<20}{found}   tried: {', '.join(tried)}", flush=True)


def shares(run: dict[str, Any]) -> str:
    return " + ".join(f"{queries:,}" for queries in run["replicas"].values())


def main() -> None:
    if "--child" in sys.argv:
        scenario, dispatch, qps, queries, seconds = sys.argv[2:]
        one_run(scenario, dispatch, float(qps), int(queries), float(seconds))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20_000, help="queries per measurement of a policy's cost")
    parser.add_argument("--unequal", action="store_true", help="only the runs on unequal replicas")
    parser.add_argument("--queries", type=int, default=1024, help="queries of an Offline run")
    parser.add_argument("--seconds", type=float, default=12.0, help="of a Server run")
    parser.add_argument("--probes", type=int, default=5, help="Server runs per policy")
    options = parser.parse_args()
    if not options.unequal:
        print_costs(options.steps, options.repeats)
        return
    print_offline(options.queries)
    print(f"Server, highest valid rate: p99 of the first token within {TTFT_LIMIT:g} s; ideal {ideal():.1f}/s")
    for dispatch in ("least-outstanding", "power-of-two", "least-tokens", "round-robin"):
        # LoadGen's early stopping needs 459 queries when none is over the limits.
        print_server(dispatch, 480, options.seconds, options.probes)


if __name__ == "__main__":
    main()
