"""Results as text for a person: the verdict and its reasons first, then the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.journal import JOURNAL
from harness.results import RunResult, finite

_LATENCIES = (
    ("ttft_s", "time to first token"),
    ("tpot_s", "time per output token"),
    ("itl_s", "inter-token latency"),
    ("latency_s", "latency"),
)


def as_text(result: RunResult, ready: bool = True) -> str:
    """The summary that a run prints; `ready` False leaves out whether it can go into a submission."""
    lines = [headline(result), *(f"  ✗ {reason}" for reason in result["invalid_reasons"])]
    answered = result["queries"] - result["failures"]["count"]
    lines += ["", *figures(result["metrics"], answered, result["duration_s"])]
    lines += accuracy_lines(result["accuracy"])
    if compliance := result.content.get("compliance"):
        lines += ["", *compliance_lines(compliance)]
    if len(result["replicas"]) > 1:
        lines += ["", *replica_lines(result["replicas"])]
    lines += [f"  {remark}" for remark in remarks(result)]
    lines += ["", readiness(result)] if ready else []
    lines.append(f"Files: {result.folder}/")
    return "\n".join(lines)


def headline(result: RunResult) -> str:
    return f"{what(result)}: {verdict(result)}"


def what(result: RunResult) -> str:
    cap = result.content.get("config", {}).get("concurrency")
    loop = f" · closed loop of {cap}" if cap is not None else ""
    return f"{result['benchmark']} · {result['scenario']} · {result.content.get('audit') or result['mode']}{loop}"


def verdict(result: RunResult) -> str:
    word = "VALID" if result["valid"] else "NOT VALID"
    if result["status"] != "complete":
        word += f" ({result['status']})"
    compliance = result.content.get("compliance") or {"passed": None}
    if result["valid"] and compliance["passed"] is False:
        word += f", {compliance['test']} FAILED"
    elif result["valid"] and result["mode"] == "accuracy" and result["accuracy"]["passed"] is False:
        word += ", accuracy FAILED"
    return word


def remarks(result: RunResult) -> list[str]:
    """What a reader of the figures must know beside them."""
    lines = []
    if result["retries"]:
        lines.append(f"{result['retries']} queries were served again elsewhere after a failure")
    if result["client_limited"]:
        lines.append("! the harness itself was in the way (client_limited): give it a core, or fewer queries")
    if resumed := result.content.get("resumed"):
        lines.append(f"{resumed:,} answers were taken over from a test that was interrupted")
    if (result.folder / JOURNAL).exists():
        lines.append(
            f"the answers so far are kept: --mode accuracy --resume --output-dir {result.folder} finishes them for a "
            "look; a submission needs a whole run"
        )
    return lines


def figures(metrics: Mapping[str, Any], answered: int, duration: float) -> list[str]:
    lines = [
        f"  {metrics['samples_per_second']:,.2f} samples/s   {metrics['tokens_per_second']:,.1f} tokens/s   "
        f"({answered:,} answered in {duration:,.1f} s; figures by {metrics['source']})"
    ]
    table = [(title, metrics[key]) for key, title in _LATENCIES if metrics.get(key)]
    if table:
        lines.append(f"  {'':<24}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'p99.9':>10}{'max':>10}")
    for title, values in table:
        cells = "".join(f"{readable(values.get(name)):>10}" for name in ("mean", "p50", "p90", "p99", "p99_9", "max"))
        lines.append(f"  {title:<24}{cells}")
    return lines


def readable(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def accuracy_lines(accuracy: Mapping[str, Any]) -> list[str]:
    """The verdict, then a line per score with its target and whether it is met."""
    if "samples" not in accuracy:
        return []
    verdict = {True: "passed", False: "FAILED", None: "not decided"}[accuracy["passed"]]
    lines = ["", f"  accuracy {verdict}" + (f": {accuracy['why']}" if accuracy["why"] else "")]
    for name in (name for name in accuracy if name.startswith("rouge") or name in ("gen_len", "tokens_per_sample")):
        target = accuracy["targets"].get(name, {})
        wanted = ", ".join(f"{word} {target[key]:.4f}" for key, word in _BOUNDS if target.get(key))
        lines.append(f"  {name:<20}{figure(accuracy[name]):>10}   {wanted:<44}{_met(accuracy[name], target)}".rstrip())
    return lines + quick_lines(accuracy.get("quick")) + [f"  note: {note}" for note in accuracy.get("notes", ())]


_BOUNDS = (("low", "at least"), ("high", "at most"))


def figure(value: float) -> str:
    """A score; gen_len alone is a whole number, of characters."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _met(value: float, target: Mapping[str, float | None]) -> str:
    low, high = target.get("low"), target.get("high")
    if low is None and high is None:
        return ""
    return "missed" if (low is not None and value < low) or (high is not None and value > high) else "met"


def quick_lines(quick: Mapping[str, Any] | None) -> list[str]:
    """What the first samples let expect of all of them."""
    if quick is None:
        return []
    lines = [f"  if the other {quick['of'] - quick['samples']:,} samples were like these ({quick['method']}, 95 %):"]
    for name, look in quick["scores"].items():
        low, high = look["interval"]
        sides = [
            f"{look['verdict'][key]} {look['target'][key]:.4f}"
            if look["verdict"][key] != "undecided"
            else f"undecided against {look['target'][key]:.4f}"
            for key, _ in _BOUNDS
            if key in look["verdict"]
        ]
        lines.append(f"  {name:<20}{look['estimate']:>10.4f}   {low:.4f} to {high:.4f}: {', '.join(sides)}")
    return lines


def compliance_lines(compliance: Mapping[str, Any]) -> list[str]:
    verdict = {True: "passed", False: "FAILED", None: "not decided"}[compliance["passed"]]
    words = {True: "yes", False: "NO", None: "not asked"}
    checks = ", ".join(f"{name.replace('_', ' ')} {words[value]}" for name, value in compliance["checks"].items())
    return [f"  {compliance['test']} {verdict}" + (f" ({checks})" if checks else "")] + [
        f"    ✗ {reason}" for reason in compliance["why"]
    ]


def replica_lines(replicas: list[Mapping[str, Any]]) -> list[str]:
    lines = [f"  {'replica':<14}{'queries':>9}{'tokens':>11}{'failures':>10}{'busy':>8}{'idle at end':>13}"]
    for replica in replicas:
        ejected = "" if replica["ejected_s"] is None else f"   ejected after {replica['ejected_s']:.1f} s"
        lines.append(
            f"  {replica['name']:<14}{replica['queries']:>9,}{replica['tokens']:>11,}{replica['failures']:>10,}"
            f"{replica['busy_share']:>8.0%}{replica['tail_idle_s']:>11.2f} s{ejected}"
        )
    return lines


def readiness(result: RunResult) -> str:
    if result["submission_ready"]:
        return "Ready for a submission."
    return "Not for a submission: " + "; ".join(result["not_ready_reasons"]) + "."


def as_json_line(result: RunResult) -> str:
    """The result as one line, for the last line of stdout."""
    return json.dumps(finite(result.content), allow_nan=False)
