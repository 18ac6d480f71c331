"""The parts of a submission for one benchmark in one scenario: accuracy, performance and the compliance tests, one
after the other on one start of the engines, each a complete run in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness import report
from harness.audits import AUDITS
from harness.benchmarks import Number
from harness.config import AUDIT_FILE, RunConfig
from harness.dataset import Samples, Tokenizer
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.results import SUBMISSION, RunResult, write_whole
from harness.run import System, load_samples, run_test
from sut.errors import SetupError

# Format of submission.json.
#   1   the first
FORMAT_VERSION = 1


def plan(config: RunConfig) -> dict[str, RunConfig]:
    """The parts by name, in the order in which they run: what can fail soonest comes first.

    Where accuracy mode asks other samples in another way, it is no part: it needs engines of its own.
    """
    row = config.row
    parts = {"accuracy": part_of(config, "accuracy")} if row.accuracy_set is None else {}
    parts["performance"] = part_of(config, "performance")
    for name in row.audits:
        parts[name] = as_audit(part_of(config, "performance", name), name)
    if "TEST07" in parts:
        # LoadGen keeps what an earlier part has set, so each sets the count that only TEST07 needs.
        parts = {
            name: replace(part, settings=with_count(part, row.performance_samples)) for name, part in parts.items()
        }
        own = parts["TEST07"]
        settings = with_count(own, AUDITS["TEST07"].samples)
        parts["TEST07"] = replace(own, dataset=str(config.audit_dataset), settings=settings)
    return parts


def with_count(part: RunConfig, samples: int) -> dict[str, Number]:
    return {**part.settings, "performance_sample_count_override": samples}


def load_others(parts: Mapping[str, RunConfig], tokenizer: Tokenizer) -> dict[str, Samples]:
    """The samples of the parts that have a dataset of their own. Raises SetupError, also for another number than the
    compliance test has."""
    others = {}
    if "TEST07" in parts:
        part, asked = parts["TEST07"], AUDITS["TEST07"].samples
        others["TEST07"] = load_samples(part, tokenizer)
        if len(others["TEST07"]) != asked:
            raise SetupError(f"{part.dataset} has {len(others['TEST07'])} samples, and TEST07 asks {asked}.")
    return others


def part_of(config: RunConfig, mode: str, name: str | None = None) -> RunConfig:
    return replace(config, mode=mode, output_dir=config.output_dir / (name or mode))


def as_audit(config: RunConfig, name: str) -> RunConfig:
    """A run as a compliance test."""
    return replace(config, audit_config=str(config.output_dir / AUDIT_FILE), audit_text=AUDITS[name].text())


def run_parts(
    config: RunConfig,
    parts: Mapping[str, RunConfig],
    system: System,
    others: Mapping[str, Samples],
    progress: Progress,
) -> dict[str, RunResult]:
    """Run all parts, up to the first that does not come to its end, and write submission.json. `others` are the samples
    of parts that do not ask the system's."""
    results: dict[str, RunResult] = {}
    for number, (name, part) in enumerate(parts.items(), 1):
        progress.say(f"Part {number} of {len(parts)}: {name} …")
        prepare_folder(part)
        own = replace(system, samples=others.get(name, system.samples))
        results[name] = run_test(part, own, progress, proven=proven_by(results))
        if results[name]["status"] != "complete":
            break
    write_whole(config.output_dir / SUBMISSION, json.dumps(summary(config, parts, results), indent=1) + "\n")
    return results


def proven_by(results: Mapping[str, RunResult]) -> dict[str, Any] | None:
    """The accuracy that an earlier part has shown, if it was valid."""
    shown = results.get("accuracy")
    if shown is None or not shown["valid"]:
        return None
    return {"passed": shown["accuracy"]["passed"], "why": "shown by the accuracy run of the same start"}


def why_not_ready(parts: Mapping[str, RunConfig], results: Mapping[str, RunResult]) -> list[str]:
    """What keeps these runs out of a submission, each reason once, with the parts that have it."""
    reasons = [f"{name} was not run to its end" for name in parts if name not in results]
    if "accuracy" not in parts:
        row = next(iter(parts.values())).row
        reasons.append(
            f"accuracy asks other samples: run it by itself, --mode accuracy --dataset {row.file_in('accuracy')}"
        )
    said: dict[str, list[str]] = {}
    for name, result in results.items():
        for reason in result["not_ready_reasons"]:
            said.setdefault(reason, []).append(name)
    return reasons + [f"{', '.join(names)}: {reason}" for reason, names in said.items()]


def summary(config: RunConfig, parts: Mapping[str, RunConfig], results: Mapping[str, RunResult]) -> dict[str, Any]:
    """What submission.json holds; `runs` are the parts that were run, by name, with their folders."""
    reasons = why_not_ready(parts, results)
    return {
        "format_version": FORMAT_VERSION,
        "benchmark": config.benchmark,
        "scenario": config.scenario,
        "status": status(parts, results),
        "submission_ready": not reasons,
        "not_ready_reasons": reasons,
        "runs": {name: name for name in results},
    }


def status(parts: Mapping[str, RunConfig], results: Mapping[str, RunResult]) -> str:
    """complete, or what the part was at which they ended."""
    ended = next((str(result["status"]) for result in results.values() if result["status"] != "complete"), None)
    return ended or ("complete" if results.keys() == parts.keys() else "interrupted")


def exit_code(results: Mapping[str, RunResult]) -> int:
    """The gravest of the parts': interrupted, then not valid, then below target, then undecided."""
    codes = {result.exit_code for result in results.values()}
    return next((code for code in (130, 4, 5, 3) if code in codes), 0)


def as_text(config: RunConfig, parts: Mapping[str, RunConfig], results: Mapping[str, RunResult]) -> str:
    """The summary of all parts, and what keeps them out of a submission."""
    texts = [report.as_text(result, ready=False) for result in results.values()]
    reasons = why_not_ready(parts, results)
    last = "Ready for a submission: pack it with `submission pack`."
    if reasons:
        last = "\n".join(["Not for a submission:", *(f"  - {reason}" for reason in reasons)])
    return "\n\n".join([*texts, f"{last}\nFiles: {config.output_dir}/"])
