"""Do the audits show compliance: what the verifiers wrote, and the answers themselves, verified anew?

Sources: [verifier] compliance/TEST06, TEST07 and TEST09 (run_verification.py, audit.config, README.md), [checker]
submission_checker/checks/compliance_check.py, all of mlcommons/inference; ends of sequence and vocabularies are from
the models' generation_config.json and config.json.

The official verifier of TEST06 knows one end-of-sequence id, Llama 2's, and leaves with 0 even where it fails, so its
text alone shows little.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.answers import DTYPES, Entry
from harness.audits import AUDITS
from harness.benchmarks import Benchmark
from harness.compliance import token_faults
from harness.conf import reported_differences
from harness.results import ACCURACY
from harness.submission.claim import Claim
from harness.submission.contents import Unreadable, read_answers, read_text, size_of
from harness.submission.form import check_errors, check_seeds, check_summary, check_version, open_log, says_audit
from harness.submission.logs import DetailLog
from harness.submission.problem import Problem, clean, error, note
from harness.submission.scores import TRUNCATE, check_original, original_of
from harness.submission.tree import LONGEST, SCORES, VERDICTS

CHECKER = "submission_checker, compliance_check.py"
NOT_READ = "the checker of v6.1 reads the verifier's text alone"
VERIFY = "run the audit and its verifier again and pack what it writes"


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a model's tokens: how many there are, and those that end an answer."""

    size: int
    ends: tuple[int, ...]


VOCABULARIES = {
    "llama2-70b": Vocabulary(32_000, (2,)),
    "llama3_1-8b": Vocabulary(128_256, (128_001, 128_008, 128_009)),
    "deepseek-r1": Vocabulary(129_280, (1,)),
}
_SCORE = AUDITS["TEST07"].limits["test07_accuracy_threshold"]
_SHORT, _LONG = (AUDITS["TEST09"].limits[f"test09_{end}_output_tokens"] for end in ("min", "max"))
# Figures in a verifier's text, with the bounds that audit.config sets and its options could have moved.
_BOUNDS = {
    "TEST06": (),
    "TEST07": (("Accuracy score", _SCORE, 100.0), ("Accuracy threshold", _SCORE, 100.0)),
    "TEST09": tuple((label, _SHORT, _LONG) for label in ("Mean output tokens", "Min threshold", "Max threshold")),
}


def check_audits(claim: Claim, originals: Path | None) -> Iterator[Problem | DetailLog]:
    """Every audit that the benchmark asks for; their detail logs too, where they are packed."""
    for test in claim.row.audits:
        folder = claim.place.audit(test)
        if not os.path.lexists(folder):
            yield error(folder, f"{test} is missing", CHECKER, f"run {test} for this scenario and pack it")
            continue
        yield from _check_verdict(folder, test, claim)
        yield from _check_answers(folder, test, claim, originals)
        yield from _check_logs(folder, test, claim)


# -- what the verifier wrote ------------------------------------------------------------------------------------------

_FIRST = ("First token check pass: True", "First token check pass: Skipped")
_NEEDED = ("EOS check pass: True", "Sample length check pass: True")


def _check_verdict(folder: Path, test: str, claim: Claim) -> Iterator[Problem]:
    path = folder / VERDICTS[test]
    try:
        text = read_text(path)
    except Unreadable as fault:
        yield error(path, f"{path.name} {fault}", CHECKER, VERIFY)
        return
    rows = {row.strip() for row in text.splitlines()}
    if test == "TEST06":
        if not rows & set(_FIRST if claim.scenario == "Offline" else _FIRST[:1]):
            yield error(path, "the verifier does not say that the first tokens are right", CHECKER, VERIFY)
        for row in _NEEDED:
            if row not in rows:
                yield error(path, f"the verifier does not say {row!r}", CHECKER, VERIFY)
        failed = any("verification failed" in row or row.endswith("pass: False") for row in rows)
    else:
        if "TEST PASS" not in text:
            yield error(path, "the verifier does not say TEST PASS", CHECKER, VERIFY)
        failed = "TEST FAIL" in text
    for label, low, high in _BOUNDS[test]:
        found = re.search(rf"{label}: (\d{{1,9}}(\.\d{{1,9}})?)\s*$", text, re.MULTILINE)
        if found is not None and not low <= float(found[1]) <= high:
            what = f"{label} is {found[1]}, which is not from {low} to {high}"
            yield error(path, what, f"compliance/{test}/*/audit.config; {NOT_READ}", VERIFY)
    if failed:
        yield error(path, "the verifier says that the audit has failed", f"run_verification.py; {NOT_READ}", VERIFY)


# -- the answers themselves -------------------------------------------------------------------------------------------


def _check_answers(folder: Path, test: str, claim: Claim, originals: Path | None) -> Iterator[Problem]:
    path = folder / "accuracy" / ACCURACY
    try:
        size = size_of(path)
    except Unreadable as fault:
        what = f"the audit's accuracy log {fault}"
        yield error(path, what, f"compliance/TEST*/run_verification.py copies it into the package; {NOT_READ}", VERIFY)
        return
    whole = path
    if test != "TEST06" and size <= LONGEST:
        if originals is None:
            what = f"the answers of {test} are truncated, so they cannot be verified again here"
            yield note(path, what, TRUNCATE, "give the folder of the originals with --originals")
            return
        whole = original_of(path, claim, originals)
        yield from check_original(path, whole, path.with_name(SCORES))
    try:
        entries = read_answers(whole)
    except Unreadable as fault:
        yield error(path, f"the audit's accuracy log {clean(str(fault))}", f"compliance/{test}", VERIFY)
        return
    expected = AUDITS[test].samples
    if len(entries) != expected:
        what = f"the audit logged {len(entries)} answers, and {expected} are needed"
        yield error(path, what, f"compliance/{test}, audit.config; {NOT_READ}", VERIFY)
    said = answer_faults(entries, claim.row, claim.scenario) if test == "TEST06" else length_faults(entries, test)
    for what in said:
        yield error(path, what, f"compliance/{test}; {NOT_READ}", VERIFY)
    if test == "TEST06" and len(entries) > 1 and len({entry.data for entry in entries}) == 1:
        yield error(path, "all answers are the same: no model gave them", f"compliance/TEST06; {NOT_READ}", VERIFY)


def answer_faults(entries: Sequence[Entry], row: Benchmark, scenario: str) -> Iterator[str]:
    """What TEST06 finds in the answers, with the first sample of each kind; nothing if they are as they must be.

    `data` is ids of the model's vocabulary, `token_count` their number, `token_data` their head outside Offline, and an
    answer has no end-of-sequence but at most one at its end. The ids are int32, or int64 in all answers, which the
    verifier can be told (--dtype).
    """
    known = VOCABULARIES.get(row.loadgen_model)
    width = 8 if entries and all(entry.count and len(entry.data) == 8 * entry.count for entry in entries) else 4
    kinds: dict[str, list[tuple[int, str]]] = {}
    dtype, ends = "int64" if width == 8 else "int32", known.ends if known else ()
    for entry in entries:
        for name, fault in [*token_faults(entry, scenario, ends, dtype), *_limit_faults(entry, known, row, dtype)]:
            kinds.setdefault(name, []).append((entry.index, fault))
    for found in kinds.values():
        yield f"in {len(found)} of {len(entries)} answers (first: sample {found[0][0]}) {found[0][1]}"


def _limit_faults(entry: Entry, known: Vocabulary | None, row: Benchmark, dtype: str) -> Iterator[tuple[str, str]]:
    """What the benchmark rules out beside what TEST06 looks at, as (kind, fault)."""
    if not 0 <= entry.index < row.samples:
        yield "sample", "the sample is none of the dataset"
    if len(entry.data) % DTYPES[dtype].itemsize:
        return
    ids = np.frombuffer(entry.data, DTYPES[dtype])
    if known is not None and len(ids) and (ids.min() < 0 or ids.max() >= known.size):
        yield "vocabulary", f"an id is outside the model's vocabulary of {known.size}"
    if len(ids) > row.generation.max_tokens:
        yield "longest", f"the answer is longer than {row.generation.max_tokens} tokens"


def length_faults(entries: Sequence[Entry], test: str) -> Iterator[str]:
    """What can be seen of TEST07 and TEST09 without a grader: whole ids, counts, and TEST09's mean length."""
    if any(len(entry.data) % 4 for entry in entries):
        yield "some answers are no int32 token ids"
    if any(entry.count is not None and entry.count != len(entry.data) // 4 for entry in entries):
        yield "in some answers token_count is not the number of ids"
    if len({entry.index for entry in entries}) != len(entries):
        yield "some samples were answered more than once"
    mean = sum(len(entry.data) // 4 for entry in entries) / max(len(entries), 1)
    if test == "TEST09" and not _SHORT <= mean <= _LONG:
        yield f"the answers have {mean:.2f} tokens on average, and {_SHORT} to {_LONG} are needed"


# -- the logs of the audit --------------------------------------------------------------------------------------------


def _check_logs(folder: Path, test: str, claim: Claim) -> Iterator[Problem | DetailLog]:
    """TEST07 and TEST09 pack their logs; TEST06 may."""
    run = folder / "performance" / "run_1"
    if test == "TEST06" and not os.path.lexists(run):
        return
    for found in open_log(run):
        yield found
        if isinstance(found, DetailLog):
            yield from check_audit_log(found, test, claim)
            yield from check_summary(found, run, performance=True)


def check_audit_log(log: DetailLog, test: str, claim: Claim) -> Iterator[Problem]:
    """LoadGen ran with this audit's settings, and without an error."""
    yield from check_version(log)
    yield from check_errors(log)
    yield from check_seeds(log, claim.limits)
    fix = f"run {test} with its own audit.config"
    if not says_audit(log):
        yield error(log.path, "LoadGen found no audit.config: this is no audit", "compliance/README.md", fix)
    for key, expected in (("test_mode", "PerformanceOnly"), ("scenario", claim.loadgen_scenario)):
        if log.values.get(f"effective_{key}") != expected:
            what = f"the audit is of {key.removeprefix('test_')} {log.show(f'effective_{key}')}, and not of {expected}"
            yield error(log.path, what, f"compliance/{test}", fix)
    for difference in reported_differences(AUDITS[test].settings, claim.loadgen_scenario, log.values):
        yield error(log.path, f"{test}'s {clean(difference)}", f"compliance/{test}, audit.config", fix)
