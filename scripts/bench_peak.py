"""What `peak` finds, and in what time, beside plain bisection with tests of full length.

    python scripts/bench_peak.py            in virtual time: server shapes x 20 seeds, tests of 600 s; some minutes
    python scripts/bench_peak.py --real 8   by real LoadGen on the echo simulator, the demo's tests of 512 queries, no
                                            longer than a short probe; some 5 minutes

Both know what an Offline run tells: the capacity. Plain bisection tries rates between 0 and 1.1 times the capacity to
the end of each test until the interval is 2 % wide, and answers its lower end; `peak` begins at 0.9 times the capacity.
The truth is the same bisection carried on to 0.05 % (0.5 % with --real), on the same schedule: a seed is another
schedule, other answers and another pace. An error is the answer over the truth, less one; the share is the seconds that
`peak`'s tests took over those of plain bisection.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from harness.conf import round_settings  # noqa: E402
from harness.config import RunConfig, resolve  # noqa: E402
from harness.folder import prepare_folder  # noqa: E402
from harness.progress import Progress  # noqa: E402
from harness.run import check, open_sut, run_test  # noqa: E402
from harness.studies.search import FULL, TOLERANCE, Ask, Limits, Probe, Terms, next_step  # noqa: E402
from tests.virtual_server import VirtualLoadGen, VirtualServer, find_truth  # noqa: E402

SHAPES = {
    "echo, 64 slots": VirtualServer(),
    "echo, 16 slots": VirtualServer(slots=16, tpot=0.01),
    "echo, 256 slots, long answers": VirtualServer(slots=256, tpot=0.03, tokens=(32, 512)),
    "slower under load": VirtualServer(load=1.0),
    "TPOT binds": VirtualServer(slots=512, tpot=0.04, load=9.0),
    "TPOT binds, 256 slots": VirtualServer(slots=256, tpot=0.06, load=4.0),
    "slower under load, 32 slots": VirtualServer(slots=32, load=3.0),
    "TPOT by the square of the load": VirtualServer(slots=512, tpot=0.1, load=1.5, bend=2.0),
    "first tokens stop all others": VirtualServer(slots=100_000, tpot=0.0002, stall=0.04),
}
"""The first five are what the target is asked of; the last two follow another law than the search's own model."""

SEEDS = 20
SECONDS, QUERIES, PASS = 600.0, 512, 1024


class Row(NamedTuple):
    """One seed: errors as shares of the truth, seconds of tests, numbers of tests."""

    error: float
    spent: float
    probes: int
    quick_error: float | None
    """None where no test is longer than a probe: a quick search is then the other one."""
    quick_spent: float
    plain_error: float
    plain_spent: float
    plain_tests: int


# -- in virtual time --------------------------------------------------------------------------------------------------


def bisect(valid: Callable[[float], bool], capacity: float, precision: float) -> float:
    """Plain bisection: the lower end of the interval once that is narrow."""
    low, high = 0.0, 1.1 * capacity
    while high > low * (1 + precision):
        middle = (low + high) / 2
        low, high = (middle, high) if valid(middle) else (low, middle)
    return low


def try_seed(name: str, seed: int) -> Row:
    server = replace(SHAPES[name], seed=seed)
    schedule = int(round_settings("demo", "Server", ["schedule_rng_seed"])["schedule_rng_seed"]) + seed
    terms = Terms(Limits(2.0, 0.2), SECONDS, QUERIES, PASS, schedule, start=0.9 * server.capacity, longest=30.0)
    truth = find_truth(server, terms)
    answer, probes, spent = search(server, terms)
    quick_answer, _, quick_spent = search(server, replace(terms, quick=True, times=3))
    plain = VirtualLoadGen(server, terms, to_the_end=True)
    low = bisect(lambda rate: plain.test(full_test(rate, terms)).valid, server.capacity, TOLERANCE)
    return Row(
        answer / truth - 1,
        spent,
        probes,
        quick_answer / truth - 1,
        quick_spent,
        low / truth - 1,
        plain.spent,
        plain.tests,
    )


def search(server: VirtualServer, terms: Terms) -> tuple[float, int, float]:
    """(the answer, probes, seconds) of peak's own search."""
    loadgen, history = VirtualLoadGen(server, terms), list[Probe]()
    while isinstance(step := next_step(terms, history), Ask):
        history.append(loadgen.test(step))
    return step.rate or 0.0, len(history), loadgen.spent


def full_test(rate: float, terms: Terms) -> Ask:
    return Ask(FULL, True, rate, terms.seconds, terms.queries, 0)


# -- by real LoadGen --------------------------------------------------------------------------------------------------

REAL_SECONDS = 10.0
ECHO = {"slots": 32, "ttft": 0.1, "tpot": 0.014, "tokens": "20-60", "jitter": 0.2}
REAL_CAPACITY = 32 / (0.1 + 0.014 * 39)
AT_ONCE = 8
"""Seeds side by side: each needs about a percent of a core."""


def real_config(seed: int, folder: Path) -> RunConfig:
    options = {**ECHO, "seed": seed}
    return resolve(scenario="Server", backend="echo", engine_arg=options, min_duration=REAL_SECONDS, output_dir=folder)


def try_real(seed: int) -> Row:
    """One seed in processes of its own: LoadGen is set up once per process."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--plain", str(seed), folder]
        plain = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        found, spent, probes = real_peak(seed, Path(folder) / "peak")
    truth = plain["truth"]
    low = plain["low"] / truth - 1
    row = Row(found / truth - 1, spent, probes, None, 0.0, low, plain["spent"], plain["tests"])
    print(f"seed {seed}: {truth:.4g} queries/s; {row}", file=sys.stderr, flush=True)
    return row


def real_peak(seed: int, folder: Path) -> tuple[float, float, int]:
    words = [sys.executable, "-m", "harness", "peak", "--backend", "echo", "--quiet", "--json", "--repeats", "1"]
    words += ["--min-duration", str(REAL_SECONDS), "--target-qps", f"{0.9 * REAL_CAPACITY:g}"]
    for key, value in {**ECHO, "seed": seed}.items():
        words += ["--engine-arg", f"{key}={value}"]
    done = subprocess.run([*words, "--output-dir", str(folder)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"peak ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak_qps"], sum(row["seconds"] for row in found["rows"]), len(found["rows"])


def bisect_real(seed: int, folder: Path) -> None:
    """Plain bisection by real LoadGen on one SUT, carried on to the truth; prints what it came to as JSON."""
    config, samples, tokenizer = check(real_config(seed, folder / "engines"))
    tests: list[tuple[float, bool, float]] = []

    with Progress(quiet=True) as progress, open_sut(config, samples, tokenizer, progress) as system:

        def valid(rate: float) -> bool:
            known = next((verdict for tried, verdict, _ in tests if tried == rate), None)
            if known is not None:
                return known
            own = replace(config, settings={**config.settings, "target_qps": rate}, output_dir=folder / f"{len(tests)}")
            prepare_folder(own)
            result = run_test(own, system, progress)
            tests.append((rate, result["valid"], result["duration_s"]))
            return bool(result["valid"])

        low = bisect(valid, REAL_CAPACITY, TOLERANCE)
        count, spent = len(tests), sum(seconds for _, _, seconds in tests)
        truth = bisect(valid, REAL_CAPACITY, 0.005)
    print(json.dumps({"low": low, "truth": truth, "spent": spent, "tests": count}))


# -- both -------------------------------------------------------------------------------------------------------------


def tell(name: str, rows: Sequence[Row]) -> None:
    def errors(values: Sequence[float]) -> str:
        sizes = [abs(value) for value in values]
        within = sum(size <= TOLERANCE for size in sizes)
        return f"{100 * statistics.median(sizes):5.2f} {100 * max(sizes):6.2f} {within:3}/{len(sizes)}"

    def shares(spent: Sequence[float]) -> str:
        each = [own / row.plain_spent for own, row in zip(spent, rows, strict=True)]
        return f"{sum(spent) / sum(row.plain_spent for row in rows):6.2f} {max(each):5.2f}"

    quick = [row.quick_error for row in rows if row.quick_error is not None]
    hasty = f"{errors(quick)} {shares([row.quick_spent for row in rows])}" if quick else f"{'–':>30}"
    print(
        f"{name:30}  {errors([row.error for row in rows])} {shares([row.spent for row in rows])} "
        f"{statistics.median(row.probes for row in rows):5g}  | {hasty}  | {errors([row.plain_error for row in rows])} "
        f"{statistics.median(row.plain_tests for row in rows):5g}",
        flush=True,
    )


def tell_head() -> None:
    print(f"{'':30}  {'peak':36}  | {'peak --quick':30}  | plain bisection")
    error, share = "med % max %  ≤2 %", "share   max"
    print(f"{'':30}  {error}  {share} probes | {error}  {share}  | {error} tests", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=int, metavar="SEEDS", help="by real LoadGen on echo")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="in virtual time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plain", nargs=2, metavar=("SEED", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plain:
        bisect_real(int(asked.plain[0]), Path(asked.plain[1]))
        return
    began = perf_counter()
    tell_head()
    if asked.real:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tell("real LoadGen, echo, 32 slots", list(pool.map(try_real, range(asked.real))))
    else:
        every: list[Row] = []
        with ProcessPoolExecutor(asked.workers) as pool:
            for name in SHAPES:
                rows = list(pool.map(try_seed, [name] * asked.seeds, range(asked.seeds)))
                tell(name, rows)
                every += rows
        tell("all", every)
    print(f"{perf_counter() - began:,.0f} s")


if __name__ == "__main__":
    main()
