"""What `readiness` adds to the start of each of 200 replicas, against a truth that is known exactly.

    python scripts/bench_readiness.py [--replicas 200] [--group-size 20 200] [--rounds 3]

The replicas are stubs in a process of their own (tests/stub_fleet.py), ready a scripted time after their creation. Both
processes read the machine's monotonic clock, so what is added is one difference: the moment that `readiness` calls
healthy minus the moment at which the port was opened, or /health turned from 503 to 200; and the moment of the first
right answer minus that moment and the answer's own scripted time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def bring_up(folder: Path, replicas: int, size: int, extra: Sequence[str]) -> tuple[dict[str, Any], list[Any], float]:
    """One study on a new fleet: what was true, what was measured, and the CPU seconds of the harness
    and of the commands."""
    fleet = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/stub_fleet.py"), "--count", str(replicas), "--ttft", "0.02", *extra],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert fleet.stdout is not None
    told = json.loads(fleet.stdout.readline())
    for index, port in enumerate(told["ports"]):
        (folder / f"url-{index}").write_text(f"http://127.0.0.1:{port}\n")
    create = f"bash -c 'printf {{index}} >/dev/udp/127.0.0.1/{told['control']}'; cat {folder}/url-{{index}}"
    words = [sys.executable, "-m", "harness", "readiness", "--replicas", str(replicas), "--group-size", str(size)]
    words += ["--create-cmd", create, "--output-dir", str(folder / "out"), "--quiet", "--ready-timeout", "60"]
    study = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(study.pid, 0)
    study.returncode = os.waitstatus_to_exitcode(status)
    if study.returncode:
        raise SystemExit(f"readiness ended with {study.returncode}")
    truth = json.loads(fleet.communicate()[0])
    points = [json.loads((path / "point.json").read_text()) for path in sorted((folder / "out/points").glob("group-*"))]
    return truth, points, usage.ru_utime + usage.ru_stime


def added(truth: dict[str, Any], points: Sequence[Any]) -> dict[str, list[float]]:
    """Seconds more than the truth, per replica; and by how much more, at most, the study itself says that it may be."""
    table: dict[str, list[float]] = {"healthy": [], "first right answer": [], "its own bound": []}
    for point in points:
        for row in point["replicas"]:
            ready, began = truth["ready"][str(row["index"])], point["monotonic_zero_s"] + row["began_s"]
            healthy, answered = began + row["healthy_s"] - ready, began + row["answer_s"] - ready - truth["ttft"]
            assert healthy <= row["healthy_within_s"] + 0.001, "beyond the bound that was given"
            table["healthy"].append(healthy)
            table["first right answer"].append(answered)
            table["its own bound"].append(row["healthy_within_s"])
    return table


def line(name: str, values: Sequence[float]) -> str:
    ms = sorted(value * 1000 for value in values)
    p99 = ms[min(len(ms) - 1, int(len(ms) * 0.99))]
    return (
        f"    {name:<20} median {statistics.median(ms):6.2f}   p99 {p99:6.2f}   max {ms[-1]:6.2f} ms   "
        f"total {sum(ms) / 1000:6.3f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=200)
    parser.add_argument("--group-size", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for size in options.group_size:
        for what, extra in (("ports closed until ready", []), ("every other one open and 503", ["--half-closed"])):
            print(f"{options.replicas} replicas in groups of {size}, {what}")
            for number in range(options.rounds):
                with tempfile.TemporaryDirectory() as folder:
                    seed = ["--seed", str(number + 1)]
                    truth, points, cpu = bring_up(Path(folder), options.replicas, size, [*extra, *seed])
                for name, values in added(truth, points).items():
                    print(line(name, values))
                measuring = max(point["end_s"] for point in points)
                print(
                    f"    CPU of the harness and its commands {cpu:.1f} s; measuring took {measuring:.1f} s", flush=True
                )


if __name__ == "__main__":
    main()
