"""What accuracy and compliance of a run came to: its result.json's word, and where that leaves it open, a file's.

MLCommons' graders alone score some benchmarks (Benchmark.ungraded), and the answers of TEST07. Such a run's result.json
says `"passed": null`, and the words of the grader or of its verifier, laid into the run's folder, decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from harness.benchmarks import Target
from harness.submission.runs import Run
from harness.submission.scores import read_scores
from harness.submission.tree import SCORES, VERDICTS

# A verifier's words for a part or a whole that has failed (compliance/TEST*/run_verification.py).
_FAILED = re.compile(r"pass: False|verification failed|TEST FAIL", re.IGNORECASE)


class Verdict(NamedTuple):
    """`passed` None means not decided; `why` says why it is not True."""

    passed: bool | None
    why: str


def accuracy_verdict(run: Run) -> Verdict:
    """Whether an accuracy run meets its targets."""
    found = run["accuracy"]
    bounds = {name: Target(low=bound.get("low"), high=bound.get("high")) for name, bound in targets(run).items()}
    own = {name: found[name] for name in bounds if found.get(name) is not None}
    said = file_scores(run) if awaits_grader(run) else {}
    below = [
        f"{name} {fault}" for name, value in own.items() if not said.get(name) and (fault := bounds[name].fault(value))
    ]
    if any(said.values()):
        below += score_faults(said, run.row.targets)
        return Verdict(not below, "; ".join(below))
    if below and found["passed"] is True:
        return Verdict(False, f"result.json calls it met, and {'; '.join(below)}")
    if found["passed"] is True and not bounds:
        return Verdict(None, "result.json calls it met, and held it to no target")
    return Verdict(found["passed"], str(found.get("why")))


def targets(run: Run) -> Mapping[str, Mapping[str, float | None]]:
    """The bounds that a run's result.json was held to; empty where none applies."""
    found: Mapping[str, Mapping[str, float | None]] = run["accuracy"].get("targets") or {}
    return found


def awaits_grader(run: Run) -> bool:
    """Whether MLCommons' grader decides the accuracy of a run that asked the benchmark's own samples."""
    return run.row.ungraded is not None and run["accuracy"]["passed"] is None and bool(targets(run))


def file_scores(run: Run) -> dict[str, list[float]]:
    """What accuracy.txt says of each of the benchmark's metrics, as MLCommons' checker finds it; empty lists for
    nothing, and without the file."""
    path = run.folder / SCORES
    return read_scores(path.read_text(errors="replace") if path.is_file() else "", run.row.targets)


def score_faults(said: Mapping[str, list[float]], bounds: Mapping[str, Target]) -> Iterator[str]:
    """Why scores do not meet their targets. An upper bound alone is not missed (submission_checker/checks/
    accuracy_check.py)."""
    for name, target in bounds.items():
        values = said[name]
        if not values:
            if target.low is not None:
                yield f"{SCORES} does not say {name}"
        elif any(value != values[0] for value in values):  # also for nan, which the checker fails on
            yield f"{SCORES} says {name} as {', '.join(f'{value:.10g}' for value in values[:4])}"
        elif (fault := target.fault(values[0])) is not None:
            yield f"{name} {fault}"


def decided_later(run: Run) -> set[str]:
    """The files that decide what result.json leaves open, and are therefore not as the run left them."""
    verdict = run.content.get("compliance")
    verified = {VERDICTS[run.role]} if run.role in VERDICTS and verdict and verdict["passed"] is None else set()
    return verified | ({SCORES} if run.role == "accuracy" and awaits_grader(run) else set())


def says_passed(test: str, text: str) -> bool:
    """Whether the words of a verifier mean that a test has passed, as MLCommons' checker reads them
    (submission_checker/checks/compliance_check.py); words of a failure beside them count, which it passes over."""
    lines = {line.strip() for line in text.splitlines()}
    if _FAILED.search(text):
        return False
    if test != "TEST06":
        return "TEST PASS" in lines
    first = {"First token check pass: True", "First token check pass: Skipped"}
    return bool(first & lines) and {"EOS check pass: True", "Sample length check pass: True"} <= lines
