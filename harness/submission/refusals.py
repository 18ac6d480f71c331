"""What keeps runs out of a package, decided from their results and logs; all of it at once, each with its remedy.

Exit codes: 4 for a run that is not valid, 5 for accuracy or compliance that is below target, undecided or missing, 3
for runs that do not make one submission, 2 for what was asked wrongly.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.results import DETAIL, read_detail
from harness.submission.fields import NETWORK_SUT
from harness.submission.runs import Refusal, Run
from harness.submission.tree import LOGS, SCORES, VERDICTS
from harness.submission.verdicts import (
    accuracy_verdict,
    awaits_grader,
    decided_later,
    file_scores,
    says_passed,
    targets,
)
from harness.tables import digest_of

NOT_VALID, BELOW, UNFIT, USAGE = 4, 5, 3, 2

Slot = tuple[str | None, str, str]

# Options that a scenario's runs have in common; its load and durations may differ.
_OPTIONS = (
    "replicas",
    "endpoint",
    "serve",
    "served_model",
    "dialect",
    "insecure",
    "dispatch",
    "offline_batch",
    "engine_arg",
    "engine_env",
    "max_in_flight",
    "stream_interval",
    "max_model_len",
    "failure_policy",
)

# Reasons of result.json (results.not_ready_reasons) that are decided here otherwise, from the run that shows it.
_DECIDED_HERE = re.compile(
    r"the result is not valid|accuracy is below its target|this run does not show that accuracy is met"
    r"|\d+ answers were taken over .*|\d+ queries were retried|the harness itself was the limit.*"
)
# The load and durations of an accuracy run are no result.
_TIMING = re.compile(r"the benchmark's \w+ is .*|\w+ was set")
_ALLOWED_IN = {
    "closed": re.compile(r"(?!)"),
    "open": re.compile(
        r"the model is .*|answers are not made as .*|answers came as text.*"
        r"|the engine argument .*|prefix caching is on.*"
    ),
    "network": re.compile(r".* is on another host, which only the network division allows"),
}


def exit_code(refusals: Iterable[Refusal]) -> int:
    """The gravest: not valid before below target before the rest; 0 for none."""
    codes = {refusal.code for refusal in refusals}
    return next((code for code in (NOT_VALID, BELOW, UNFIT, USAGE) if code in codes), 0)


def refuse(
    runs: Sequence[Run], division: str, system_types: Mapping[str, str], rehearsal: bool, all_read: bool = True
) -> list[Refusal]:
    """Every reason why these runs cannot be packed; empty if they can. `system_types` is by the system's name.

    Unless all that was named could be read, nobody knows what is missing, and nothing is said of it.
    """
    found: list[Refusal] = []
    for run in runs:
        found += refuse_run(run, division, rehearsal)
    slots = by_slot(runs)
    for slot, members in slots.items():
        found += refuse_repeated(members)
        found += refuse_missing(slot, members, division) if all_read else []
        found += refuse_accuracy(members, division, rehearsal)
    found += refuse_mixed(runs)
    return found + (refuse_scenarios(slots, system_types) if all_read else [])


def by_slot(runs: Iterable[Run]) -> dict[Slot, list[Run]]:
    slots: dict[Slot, list[Run]] = defaultdict(list)
    for run in runs:
        slots[run.slot].append(run)
    return dict(slots)


# -- one run ----------------------------------------------------------------------------------------------------------


def refuse_run(run: Run, division: str, rehearsal: bool) -> list[Refusal]:
    """Why one run cannot be packed, whatever the others are."""
    if not run.row.submittable:
        text = f"{run.folder}: {run['benchmark']} is no benchmark of MLCommons, so no division takes it: run another."
        return [Refusal(USAGE, text)]
    found = [Refusal(NOT_VALID, f"{run.folder}: {text}") for text in why_not_valid(run)]
    found += [Refusal(UNFIT, f"{run.folder}: {text}") for text in [*why_changed(run), *why_unfit(run)]]
    if run.role in VERDICTS:
        found += [Refusal(BELOW, f"{run.folder}: {text}") for text in why_not_compliant(run)]
    if lacks_grading(run):
        found.append(Refusal(BELOW, f"{run.folder}: {run.row.ungraded}, and put what it prints there as {SCORES}."))
    if division == "network":
        found += [Refusal(UNFIT, f"{run.folder}: {text}") for text in why_no_network(run)]
    if not rehearsal:
        texts = (f"{reason}: only --rehearsal packs it, and not for a submission." for reason in unfit(run, division))
        found += [Refusal(UNFIT, f"{run.folder}: {text}") for text in texts]
    return found


def why_not_valid(run: Run) -> list[str]:
    if run["status"] != "complete":
        return [f"the run was {run['status']}: run it again to its end."]
    reasons = [str(reason) for reason in run["invalid_reasons"]]
    log = read_detail(run.folder / DETAIL)
    if run.role in VERDICTS:
        # A compliance run is too short for LoadGen's early stopping: its verifier says what it is worth.
        reasons = [reason for reason in reasons if not reason.startswith("LoadGen says ")]
    elif not run["valid"] and not reasons:
        reasons = ["result.json calls it so and gives no reason"]
    if reasons:
        more = f" (and {len(reasons) - 1} more in its result.json)" if len(reasons) > 1 else ""
        return [f"the run is not valid: {reasons[0]}{more}; run it again."]
    if log.errors:
        return [f"LoadGen's log holds {len(log.errors)} errors, the first {log.errors[0]}: run it again."]
    if not (run.folder / DETAIL).is_file():
        return []  # said with the other files
    if not log.values:
        return [f"{DETAIL} holds nothing that LoadGen wrote: put the original back, or run it again."]
    if run.role == "performance" and log.verdict != "VALID":
        said = log.verdict or "nothing of it (result_validity)"
        return [f"result.json calls the run valid and LoadGen's log says {said}: run it again."]
    return []


def why_changed(run: Run) -> list[str]:
    """Which files are missing, or are not as the run left them."""
    known = {name: digest for name, digest in run.files.items() if name not in decided_later(run)}
    if odd := [name for name in known if name in ("", "..") or Path(name).name != name]:
        return [f"result.json has the checksum of {odd[0]!r}, which is no file of this folder: run it again."]
    scores = {SCORES} if run.role == "accuracy" and not lacks_grading(run) else set()
    needed = {*LOGS, "user.conf"} | scores | known.keys() - set(VERDICTS.values())
    found = [
        f"{name} is missing: run it again, nothing can stand in for a log."
        for name in sorted(needed)
        if not (run.folder / name).is_file()
    ]
    for name, digest in sorted(known.items()):
        path = run.folder / name
        if path.is_file() and digest_of(path) != digest:
            found.append(f"{name} was changed after the run: put the original back, or run it again.")
    if run.role == "accuracy" and (run.folder / SCORES).is_file():
        found += why_other_scores(run)
    return found


def lacks_grading(run: Run) -> bool:
    """Whether the words of MLCommons' grader are missing, which the harness cannot stand in for."""
    return run.role == "accuracy" and run.row.ungraded is not None and not (run.folder / SCORES).is_file()


def why_other_scores(run: Run) -> list[str]:
    """Where accuracy.txt says something else than the result, or nothing, or belongs to a log that was shortened."""
    text = (run.folder / SCORES).read_text(errors="replace")
    if re.search(r"^hash=", text, re.MULTILINE):
        return [f"{SCORES} holds a hash already, so its log was truncated: name the directory with the whole log."]
    said, own = file_scores(run), run["accuracy"]
    # Graders print the mean length in full, the harness with one place.
    margin = 1e-4 if run.row.ungraded is None else 0.0501
    for name in targets(run):
        mine = own.get(name)
        other = next(
            (value for value in said.get(name, []) if mine is not None and not abs(value - mine) <= margin), None
        )
        if other is not None:
            return [
                f"{SCORES} says {name} {other:.10g} and result.json {mine}: put the original back, or run it again."
            ]
    asked = [name for name, target in run.row.targets.items() if target.low is not None]
    known = [name for name in asked if run.row.ungraded or own.get(name) is not None]
    if missing := [name for name in (known or asked) if not said[name]]:
        whose = "the whole of what the grader prints" if run.row.ungraded else "the original back, or run it again"
        return [f"{SCORES} does not say {', '.join(missing)} as MLCommons' checker reads it: put {whose}."]
    return []


def why_unfit(run: Run) -> list[str]:
    """What a valid run may have and a submission never."""
    found = []
    if run.content.get("audit") is None and run.config.get("audit_config") is not None:
        found.append("it ran with an audit file that is no compliance test's: name a run without one.")
    if run.content.get("resumed"):
        found.append(f"{run['resumed']} answers come from an interrupted run: run it again without --resume.")
    if run["retries"]:
        found.append(f"{run['retries']} queries were retried: run it again with --failure-policy strict.")
    if run["client_limited"] and run.role == "performance" and not run.is_echo:
        found.append("the harness itself was the limit (client_limited): give it a core of its own and run it again.")
    return found


def unfit(run: Run, division: str) -> list[str]:
    """The reasons of result.json that keep a run out of a division and are not told otherwise."""
    if run.role in VERDICTS:
        return []
    reasons = [str(reason) for reason in run["not_ready_reasons"] if not _DECIDED_HERE.fullmatch(str(reason))]
    if run.role == "accuracy":
        reasons = [reason for reason in reasons if not _TIMING.fullmatch(reason)]
    return [reason for reason in reasons if not _ALLOWED_IN[division].fullmatch(reason)]


def why_not_compliant(run: Run) -> list[str]:
    """Why a compliance run does not show compliance."""
    path, verdict = run.folder / VERDICTS[run.role], run.content.get("compliance")
    script = " --accuracy-script CMD" if run.role == "TEST07" else ""
    verify = f"`python -m harness compliance verify {run.folder} --test {run.role}{script} --output {run.folder}`"
    if verdict and verdict["passed"] is False:
        return [f"{run.role} has failed ({'; '.join(verdict['why'])}): mend that and run it again."]
    if not path.is_file():
        return [f"{path.name} is missing: verify it with {verify}."]
    if says_passed(run.role, path.read_text(errors="replace")):
        return []
    if verdict and verdict["passed"] is None:
        return [f"{run.role} is not decided ({'; '.join(verdict['why'])}): run {verify}."]
    return [f"{path.name} does not say that {run.role} has passed: verify it with {verify}."]


def why_no_network(run: Run) -> list[str]:
    if not run.config["endpoint"]:
        return ["the network division is for replicas behind a network: run with --endpoint, or pack for closed."]
    name = read_detail(run.folder / DETAIL).values.get("sut_name")
    if name is not None and NETWORK_SUT not in str(name):
        return [
            f"LoadGen's log calls the SUT {name!r}, and the network division asks for {NETWORK_SUT!r} in that name."
        ]
    return []


# -- the runs of one scenario -----------------------------------------------------------------------------------------


def refuse_repeated(members: Sequence[Run]) -> list[Refusal]:
    """Two runs for one place."""
    place = " · ".join(part for part in members[0].slot if part)
    return [
        Refusal(UNFIT, f"{one.folder} and {other.folder} are both the {one.role} run of {place}: name one of them.")
        for one, other in pairwise(sorted(members, key=lambda run: run.role))
        if one.role == other.role
    ]


def refuse_missing(slot: Slot, members: Sequence[Run], division: str) -> list[Refusal]:
    """The parts that a scenario lacks."""
    row = members[0].row
    if not row.submittable:
        return []
    needed = {"performance": UNFIT, "accuracy": BELOW}
    # "Compliance tests not needed for open division": submission_checker/checks/compliance_check.py
    needed |= {} if division == "open" else dict.fromkeys(row.audits, BELOW)
    place = " · ".join(part for part in slot if part)
    shown = ", ".join(str(run.folder) for run in members)
    return [
        Refusal(code, f"{place} ({shown}) has no {part} run: {_how(part)}.")
        for part, code in needed.items()
        if part not in {run.role for run in members}
    ]


def _how(part: str) -> str:
    if part in VERDICTS:
        return f"make one with --mode submission or `compliance run {part}`, and name its directory too"
    return f"make one with --mode {part}, and name its directory too"


def refuse_accuracy(members: Sequence[Run], division: str, rehearsal: bool) -> list[Refusal]:
    """Accuracy that is below its target or undecided; the open division takes any."""
    if rehearsal or division == "open":
        return []
    found = []
    for run in members:
        if run.role != "accuracy" or not run["valid"] or lacks_grading(run):
            continue
        passed, why = accuracy_verdict(run)
        if passed is True or (awaits_grader(run) and why_other_scores(run)):
            continue
        word = "below its target" if passed is False else "not decided"
        text = f"{run.folder}: accuracy is {word} ({why}): only the open division takes it."
        found.append(Refusal(BELOW, text))
    return found


# -- runs together ----------------------------------------------------------------------------------------------------


def refuse_mixed(runs: Sequence[Run]) -> list[Refusal]:
    """Runs of one system, benchmark or scenario that were not made on the same things."""
    found: list[Refusal] = []
    groups = (
        (lambda run: (run.system,), system_facts, "a system has one of each, so name the systems apart (NAME=DIR) or"),
        (lambda run: run.slot[:2], benchmark_facts, "all scenarios of a benchmark share them, so"),
        (lambda run: run.slot, scenario_facts, "all runs of a scenario share them, so"),
    )
    for key, facts, rule in groups:
        together: dict[Any, list[Run]] = defaultdict(list)
        for run in runs:
            together[key(run)].append(run)
        for members in together.values():
            found += _differences(members, [facts(run) for run in members], rule)
    return found


def _differences(members: Sequence[Run], facts: Sequence[Mapping[str, Any]], rule: str) -> list[Refusal]:
    """One refusal for each fact that is not the same in all that have it."""
    found = []
    for name in dict.fromkeys(name for each in facts for name in each):
        having = [(run, each[name]) for run, each in zip(members, facts, strict=True) if name in each]
        run, value = having[0]
        other, theirs = next((pair for pair in having if pair[1] != value), having[0])
        if other is not run:
            text = (
                f"{run.folder} and {other.folder} differ in {name} ({_short(value, theirs)} and "
                f"{_short(theirs, value)}): {rule} run one of them again."
            )
            found.append(Refusal(UNFIT, text))
    return found


def _short(value: Any, other: Any) -> str:
    """A value, and of several only what the other has otherwise."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: value.get(key) for key in value | other if value.get(key) != other.get(key)}
    elif isinstance(value, list) and isinstance(other, list):
        value = [item for item in value if item not in other]
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else f"{text[:117]}…"


def system_facts(run: Run) -> dict[str, Any]:
    """What a system is: machine, devices, software. GPUs tell machines apart for sure; a container's name does not."""
    machine, devices = run.environment["machine"], run.environment["devices"]
    uuids = sorted(device["uuid"] for device in devices if device.get("uuid"))
    identity = {"the GPUs": uuids} if uuids else {"hostname": machine["hostname"]}
    return identity | {
        "machine": {name: machine.get(name) for name in ("cpu", "cores", "usable_cores", "memory_bytes")},
        "operating system": machine["system"],
        "devices": sorted(str(device["name"]) for device in devices),
        "versions": dict(run.environment["packages"]) | {"python": machine["python"]},
        "LoadGen": run["loadgen"]["version"],
        "commit": run.environment["commit"],
        "backend": run.config["backend"],
        "served versions": sorted({str(facts["version"]) for facts in run.engines if facts.get("version")}),
    }


def benchmark_facts(run: Run) -> dict[str, Any]:
    """What a benchmark's scenarios share: weights, data, and how answers are made."""
    config = run.config
    # Some benchmarks ask other samples, or ask them otherwise, for accuracy.
    among = f" of {run.role}" if run.row.accuracy_set or run.row.accuracy_generation else ""
    return {
        "model": config["model"],
        f"dataset{among}": run.environment.get("dataset_sha256"),
        f"generation{among}": config["generation"],
        "dtype": config["dtype"],
        "quantization": config["engine_arg"].get("quantization"),
    }


def scenario_facts(run: Run) -> dict[str, Any]:
    """What the runs of a scenario share: every option of the engines and of the way to them."""
    engines = [{name: value for name, value in facts.items() if name != "url"} for facts in run.engines]
    return {
        "options": {name: run.config.get(name) for name in _OPTIONS},
        "variables": run.environment["variables"],
        "engines": sorted(json.dumps(facts, sort_keys=True) for facts in engines),
    }


def refuse_scenarios(slots: Mapping[Slot, Sequence[Run]], system_types: Mapping[str, str]) -> list[Refusal]:
    """Scenarios that a benchmark lacks on a system, or that it does not have there."""
    have: dict[tuple[str, str], dict[str, Run]] = defaultdict(dict)
    for (system, benchmark, scenario), members in slots.items():
        if members[0].row.submittable:
            have[str(system), benchmark][scenario] = members[0]
    found = []
    for (system, benchmark), scenarios in have.items():
        found += _scenario_faults(f"{system} · {benchmark}", scenarios, system_types[system])
    return [Refusal(UNFIT, text) for text in found]


def _scenario_faults(place: str, scenarios: Mapping[str, Run], system_type: str) -> list[str]:
    """`scenarios` are a benchmark's on one system, each with one of its runs."""
    row = next(iter(scenarios.values())).row
    kinds = {kind: row.required.get(kind, ()) for kind in system_type.split(",")}
    known = {name for groups in kinds.values() for group in groups for name in group}
    lacking = [
        f"{place} lacks a scenario: a {kind} system needs {' or '.join(group)}; run it, and name its directory too."
        for kind, groups in kinds.items()
        for group in groups
        if not set(group) & set(scenarios)
    ]
    strange = [
        f"{run.folder}: {row.name} has no {scenario} on a {system_type} system: leave the run out, or name another "
        "system_type in --system FILE.json."
        for scenario, run in scenarios.items()
        if scenario not in known
    ]
    return lacking + strange
