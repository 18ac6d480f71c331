"""Is what a person wrote there and sensible: system descriptions, measurements.json, README.md.

Sources: [checker] submission_checker/checks/system_check.py and measurements_checks.py of mlcommons/inference,
[rules] inference_rules.adoc and submission_rules.adoc of mlcommons/inference_policies, [guide] Submission_Guidelines.md
of mlcommons/inference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.submission.claim import Claim
from harness.submission.contents import Unreadable, read_object, read_text
from harness.submission.fields import (
    MEASUREMENTS,
    NETWORK_FIELDS,
    NETWORK_FLAG,
    STATUSES,
    SYSTEM_FIELDS,
    SYSTEM_FILLED,
    SYSTEM_TYPES,
)
from harness.submission.problem import Problem, clean, error, shown, warning
from harness.submission.tree import REHEARSAL, Submitter

SYSTEM = "submission_checker, system_check.py"
MEASURED = "submission_checker, measurements_checks.py"
GUIDE = "Submission_Guidelines.md: closed datacenter systems describe ECC memory and their network"
REHEARSED = "inference_rules.adoc: a result is of the benchmark's model; the echo backend has none"
RUN_AGAIN = "run the benchmark on a real system and pack that"

# Left where somebody had yet to write.
_UNWRITTEN = re.compile(r"\b(todo|tbd|fixme|xxx|fill(ed)? (me )?in|to be (filled|written|done)|lorem ipsum)\b", re.I)
_EMPTY_WORDS = ("n/a", "na", "none", "-", "?", "unknown")
_WHOLE = ("number_of_nodes", "accelerators_per_node")  # which the checker multiplies
_COUNTS = ("host_processors_per_node", "host_processor_core_count")
_MEMORIES = (
    "host_memory_configuration",
    "host_memory_capacity",
    "accelerator_memory_configuration",
    "hw_notes",
    "system_type_detail",
)


def system_types(description: Mapping[str, Any]) -> frozenset[str]:
    """datacenter, edge, both, or nothing for a value that is neither."""
    value = description.get("system_type")
    return frozenset(value.split(",")) if value in SYSTEM_TYPES and isinstance(value, str) else frozenset()


def is_network(description: Mapping[str, Any]) -> bool:
    value = description.get(NETWORK_FLAG)
    return isinstance(value, str) and value.lower() == "true"


def check_description(submitter: Submitter, system: str) -> Iterator[Problem]:
    """systems/<system>.json of a system that has results."""
    path = submitter.description(system)
    try:
        content = read_object(path)
    except Unreadable as fault:
        fix = "describe the system in this file"
        yield error(path, f"the system's description {fault}", f"{SYSTEM}, which crashes on it", fix)
        return
    yield from _check_fields(path, content)
    yield from _check_names(path, content, submitter)
    yield from _check_network(path, content, submitter.division)
    if submitter.division == "closed" and "datacenter" in system_types(content):
        yield from _check_datacenter(path, content)


def _check_fields(path: Path, content: Mapping[str, Any]) -> Iterator[Problem]:
    for key in SYSTEM_FIELDS:
        if key not in content:
            yield error(path, f"the field {key} is missing", SYSTEM, f"add {key}; 35 fields are required")
    for key in SYSTEM_FILLED:
        yield from _check_value(path, key, content[key], SYSTEM) if key in content else ()
    for key in _WHOLE:
        value = content.get(key)
        if _is_filled(value) and not re.fullmatch(r"'\s*\d{1,9}\s*'|\d{1,9}(\.0)?", shown(value)):
            what = f"{key} is {shown(value)}, and must be a whole number"
            yield error(path, what, "submission_checker, results.py, which crashes on it", f'write {key} as "8" or 8')
    for key in ("hw_notes", "sw_notes"):
        if not isinstance(content.get(key, ""), str):
            what = f"{key} is {shown(content[key])}, and must be text"
            yield error(path, what, "submission_checker, results.py, which crashes on it", f"write {key} as text")
    for key in _COUNTS:
        value = content.get(key)
        if _is_filled(value) and not re.match(r"['\s]*\d+\b", shown(value)):
            yield warning(path, f"{key} is {shown(value)}, which is no count", SYSTEM, "write a whole number")


def _check_value(path: Path, key: str, value: object, rule: str) -> Iterator[Problem]:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        yield error(path, f"{key} is {shown(value)}, and must be text or a number", rule, f"write {key} as text")
    elif not value and isinstance(value, int):
        yield error(path, f"{key} is the number 0, which counts as empty", rule, f'write {key} as text: "0"')
    elif not _is_filled(value):
        yield error(path, f"{key} is empty and needs a value", rule, f"fill in {key}")
    elif _UNWRITTEN.search(str(value)):
        yield error(path, f"{key} is {shown(value)}: it is yet to be written", rule, f"fill in {key}")


def _is_filled(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _check_names(path: Path, content: Mapping[str, Any], submitter: Submitter) -> Iterator[Problem]:
    for key, directory in (("submitter", submitter.name), ("division", submitter.division)):
        value = content.get(key)
        if key in content and (not isinstance(value, str) or value.lower() != directory.lower()):
            what = f"{key} is {shown(value)}, and the directory says {clean(directory)}"
            yield error(path, what, SYSTEM, f"make {key} and the directory's name agree")
    value = content.get("status")
    if "status" in content and (not isinstance(value, str) or value.lower() not in STATUSES):
        known = ", ".join(STATUSES)
        yield error(path, f"status is {shown(value)}, which is none of {known}", SYSTEM, f"write one of {known}")
    value = content.get("system_type")
    if "system_type" in content and value not in SYSTEM_TYPES:
        known = "datacenter, edge or datacenter,edge"
        yield error(path, f"system_type is {shown(value)}, which is not {known}", SYSTEM, f"write {known}")


def _check_network(path: Path, content: Mapping[str, Any], division: str) -> Iterator[Problem]:
    flag = content.get(NETWORK_FLAG)
    if flag is not None and not isinstance(flag, str):
        yield error(path, f"{NETWORK_FLAG} is not text, on which the checker fails", SYSTEM, 'write "true" or "false"')
    if division == "network" and not is_network(content):
        fix = f'write "{NETWORK_FLAG}": "true" and describe the network, or move to the closed division'
        yield error(path, f"the network division needs {NETWORK_FLAG} to be true", SYSTEM, fix)
    if division == "closed" and is_network(content):
        fix = "move to the network division, or leave the field out"
        yield error(path, f"{NETWORK_FLAG} is true in the closed division", SYSTEM, fix)
    if flag or division == "network":
        for key in NETWORK_FIELDS:
            if key not in content:
                what = f"the field {key} is missing, which a description with {NETWORK_FLAG} needs"
                fix = f"add {key}" if division == "network" else f"leave {NETWORK_FLAG} out"
                yield error(path, what, SYSTEM, fix)


def _check_datacenter(path: Path, content: Mapping[str, Any]) -> Iterator[Problem]:
    if not any("ecc" in shown(content.get(key)).lower() for key in _MEMORIES):
        yield warning(path, "no field says that the memory is ECC", GUIDE, "say so in host_memory_configuration")
    for key in ("host_networking", "host_networking_topology", "host_network_card_count"):
        value = content.get(key)
        if isinstance(value, str) and value.strip().lower() in _EMPTY_WORDS:
            yield warning(path, f"{key} is {shown(value)}", GUIDE, "describe the network of the system")


def check_measurements(claim: Claim) -> Iterator[Problem]:
    """measurements.json: how the model was made ready."""
    path = claim.place.measurements
    try:
        content = read_object(path)
    except Unreadable as fault:
        yield error(path, f"measurements.json {fault}", MEASURED, f"write it with {', '.join(MEASUREMENTS)}")
        return
    for key in MEASUREMENTS:
        if key in content:
            yield from _check_value(path, key, content[key], MEASURED)
        else:
            yield error(path, f"the field {key} is missing", MEASURED, f"add {key}")
    if claim.strict and _says_yes(content.get("retraining")):
        what, fix = f"retraining is {shown(content['retraining'])}", 'write "No", or submit to the open division'
        yield error(path, what, "inference_rules.adoc, closed: no retraining", fix)
    if content.get("rehearsal"):
        yield error(path, "this is a rehearsal: no model answered; it cannot be submitted", REHEARSED, RUN_AGAIN)


def _says_yes(retraining: object) -> bool:
    said = retraining.strip().lower() if isinstance(retraining, str) else retraining
    return bool(said) and said not in ("no", "n", "none", "false", "n/a")


def check_readme(claim: Claim) -> Iterator[Problem]:
    """README.md: how to do it again."""
    path, fix = claim.place.readme, "write the commands that reproduce this result"
    try:
        text = read_text(path)
    except Unreadable as fault:
        yield error(path, f"README.md {fault}", MEASURED, fix)
        return
    if not text.strip():
        yield error(path, "README.md is empty", MEASURED, fix)
    elif text.lstrip("\ufeff# *\t").startswith(REHEARSAL):
        yield error(path, "this is a rehearsal: no model answered; it cannot be submitted", REHEARSED, RUN_AGAIN)
    elif found := _UNWRITTEN.search(text):
        what = f"README.md says {clean(repr(found.group()))}: it is yet to be written"
        yield warning(path, what, "Submission_Guidelines.md: a result can be reproduced", fix)
