"""provenance.json, which `submission pack` lays beside a result: does it call the runs fit, and agree with the files?

It is no part of MLCommons' layout, and a package without one is as good. What it says comes from each run's
result.json; where it knows the checksums of a run's files, an edited log shows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.results import ACCURACY, DETAIL
from harness.submission.claim import Claim
from harness.submission.contents import Unreadable, number, read_bytes, read_object, read_text
from harness.submission.description import REHEARSED, RUN_AGAIN
from harness.submission.problem import Problem, clean, error, graded, shown
from harness.submission.scores import said_hash
from harness.submission.tree import SCORES, SUMMARY, VERDICTS

RULE = "provenance.json: what `submission pack` took from each run's result.json"
PACK = "pack the runs again as they are"
EDITED = "put the files back as the run left them"


def check_provenance(claim: Claim) -> Iterator[Problem]:
    path = claim.place.provenance
    if not os.path.lexists(path):
        return
    try:
        content = read_object(path)
    except Unreadable as fault:
        yield error(path, f"provenance.json {fault}", RULE, PACK)
        return
    yield from _check_place(path, content, claim)
    yield from _check_fitness(path, content)
    runs = content.get("runs")
    if not isinstance(runs, dict) or not all(isinstance(run, dict) for run in runs.values()):
        yield error(path, "it does not say which runs were packed", RULE, PACK)
        return
    yield from _check_datasets(path, runs, claim)
    for role, run in sorted(runs.items()):
        yield from _check_run(path, role, run, claim)
        yield from _check_files(role, run, claim)


def _check_place(path: Path, content: Mapping[str, Any], claim: Claim) -> Iterator[Problem]:
    stands = {"benchmark": claim.row.name, "scenario": claim.scenario, "system": claim.place.system}
    for key, value in stands.items():
        if content.get(key) != value:
            what = f"{key} is {shown(content.get(key))}, and the directory says {clean(value)}"
            yield graded(claim.strict, path, what, RULE, PACK)


def _check_fitness(path: Path, content: Mapping[str, Any]) -> Iterator[Problem]:
    reasons = content.get("not_ready_reasons")
    listed = [clean(each, 200) for each in reasons if isinstance(each, str)] if isinstance(reasons, list) else []
    if content.get("rehearsal"):
        yield error(path, "this is a rehearsal: no model answered; it cannot be submitted", REHEARSED, RUN_AGAIN)
    if content.get("submission_ready") is not True:
        why = "; ".join(listed) or "no reason given"
        yield error(path, clean(f"the runs are not fit for a submission: {why}", 1000), RULE, "mend that and run again")
    elif listed:
        yield error(path, f"it calls the runs fit and gives a reason against: {listed[0]}", RULE, PACK)


def _check_datasets(path: Path, runs: Mapping[str, Mapping[str, Any]], claim: Claim) -> Iterator[Problem]:
    if claim.row.accuracy_samples != claim.row.samples:
        return
    digests = [runs[role].get("dataset_sha256") for role in ("performance", "accuracy") if role in runs]
    if len(digests) == 2 and digests[0] != digests[1]:
        what = f"performance ran on the dataset {shown(digests[0])} and accuracy on {shown(digests[1])}"
        yield error(path, what, RULE, "run both on the benchmark's own dataset")


def _check_run(path: Path, role: str, run: Mapping[str, Any], claim: Claim) -> Iterator[Problem]:
    """What a run of the harness knows of itself and LoadGen's log does not show."""
    said = []
    if role not in VERDICTS and run.get("valid") is not True:
        said.append("its result.json does not call it valid")
    if role == "accuracy" and claim.strict and run.get("accuracy_passed") is not True:
        said.append("its result.json does not say that the accuracy is met")
    if role == "performance" and run.get("client_limited"):
        said.append("the harness itself was the limit")
    for key, what in (
        ("failures", "failed queries"),
        ("retries", "retried queries"),
        ("resumed", "answers of an earlier run"),
    ):
        if run.get(key, 0) != 0 or number(run.get(key, 0)) is None:
            said.append(f"it has {what} ({shown(run[key])})")
    for each in said:
        yield error(path, f"of the {clean(role)} run: {each}", RULE, "mend that and run again")


def _check_files(role: str, run: Mapping[str, Any], claim: Claim) -> Iterator[Problem]:
    """The files of a run are as it left them; accuracy.txt and the truncated log by the hash of the whole one."""
    files = run.get("files")
    for name, path in _packed(role, claim).items():
        digest = files.get(name) if isinstance(files, dict) else None
        if not isinstance(digest, str):
            continue
        try:
            found = hashlib.sha256(read_bytes(path)).hexdigest()
        except Unreadable:
            continue  # said where the file is needed
        if found != digest:
            yield error(path, f"the file is not as the {clean(role)} run left it", RULE, EDITED)
    if role == "accuracy" and isinstance(files, dict) and isinstance(files.get(ACCURACY), str):
        path = claim.place.accuracy / SCORES
        try:
            hashes = said_hash(read_text(path))
        except Unreadable:
            return
        if hashes and files[ACCURACY] not in hashes:
            yield error(path, "the hash is not that of the accuracy log that the run left", RULE, EDITED)


def _packed(role: str, claim: Claim) -> dict[str, Path]:
    """Where a run's files lie that a package holds unchanged."""
    place = claim.place
    if role == "performance":
        return {name: place.performance / name for name in (SUMMARY, DETAIL)} | {"user.conf": place.user_conf}
    if role == "accuracy":
        return {name: place.accuracy / name for name in (SUMMARY, DETAIL)}
    if role in claim.row.audits:
        logs = {name: place.audit(role) / "performance" / "run_1" / name for name in (SUMMARY, DETAIL)}
        whole = {ACCURACY: place.audit(role) / "accuracy" / ACCURACY} if role == "TEST06" else {}
        return logs | whole | {VERDICTS[role]: place.audit(role) / VERDICTS[role]}
    return {}
