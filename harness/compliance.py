"""Verifying a compliance run: the log of a test against what its verifier asks, and against what the verifier misses.

The official verifiers are compliance/TEST06, TEST07 and TEST09 of mlcommons/inference. TEST06's looks for repeated
end-of-sequence ids of Llama 2 alone and exits with 0 on failure; here the model's own ids count, an answer must not go
on after one, all the samples asked for must be in the log, and LoadGen must have run with the test's settings.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.answers import DTYPES, Entry, read_entries
from harness.audits import AUDITS, Audit
from harness.conf import reported_differences
from harness.config import loadgen_name
from harness.results import ACCURACY, DETAIL, Log, find, read_detail
from sut.errors import ConfigError, SetupError
from sut.query import TOKEN_DTYPE

SCORE = re.compile(r"'exact_match':\s*(\d+(?:\.\d+)?)(?![\d.])")
"""How an evaluation script says its score (TEST07/run_verification.py)."""


@dataclass(frozen=True)
class Verdict:
    """`checks` are the official verifier's by name (None: not asked in this scenario), `why` what is wrong, in
    sentences; `passed` None means not decided. `text` is the official verifier's own words."""

    test: str
    passed: bool | None
    checks: Mapping[str, bool | None]
    why: Sequence[str]
    text: str

    def as_json(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if key != "text"}


def verify(test: str, folder: Path, scenario: str, eos: Collection[int], script: str | None = None) -> Verdict:
    """Verify the logs of a compliance run. `eos` are the model's end-of-sequence ids; `script` is the command that
    scores TEST07's answers, with {accuracy_log} where the log's path goes.

    Raises ConfigError for a test that is none of a language model's, SetupError for logs that cannot be read.
    """
    if test not in AUDITS:
        raise ConfigError(f"{test} is no compliance test of a language model: choose one of {', '.join(AUDITS)}.")
    audit = AUDITS[test]
    path = folder / ACCURACY
    entries = read_entries(path)
    faults = run_faults(audit, scenario, read_detail(folder / DETAIL)) + count_faults(audit, entries)
    if test == "TEST06":
        return judge_tokens(entries, scenario, eos, faults)
    if test == "TEST09":
        return judge_lengths(audit, entries, faults)
    return judge_score(audit, run_script(script, path) if script else None, faults)


class Found(NamedTuple):
    """What a folder's logs are of."""

    test: str
    scenario: str
    model: str | None


def recognise(folder: Path, test: str | None = None, scenario: str | None = None, model: str | None = None) -> Found:
    """Which test's logs a folder holds: what is said, else what result.json says, else LoadGen's settings. Raises
    SetupError if they are no compliance test's."""
    if not (folder / DETAIL).exists():
        parts = [name for name in AUDITS if (folder / name / DETAIL).exists()]
        hint = f": verify {folder / parts[0]}" if parts else ", which LoadGen leaves beside the accuracy log"
        raise SetupError(f"there is no {DETAIL} in {folder}{hint}.")
    log = read_detail(folder / DETAIL)
    if result := find(folder):
        said = result.content
        test, scenario = test or said.get("audit"), scenario or said.get("scenario")
        model = model or said.get("config", {}).get("model")
    scenario = scenario or str(log.values.get("effective_scenario"))
    test = test or next((audit.name for audit in AUDITS.values() if not run_faults(audit, scenario, log)), None)
    if test is None:
        raise SetupError(
            f"the logs in {folder} are of no compliance test: LoadGen has not run with the settings of "
            f"{', '.join(AUDITS)} (was the audit.config where it looks?); name the test with --test."
        )
    return Found(test, scenario, model)


def save(verdict: Verdict, folder: Path) -> Path:
    """Write what a submission holds: the official verifier's words. Raises ConfigError if others stand there."""
    path = folder / AUDITS[verdict.test].verdict
    write_new(path, verdict.text)
    return path


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there, or holds the same. Raises ConfigError for one that holds something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes() != text.encode():
        raise ConfigError(f"{path} already holds something else: name another folder, nothing is overwritten.")
    path.write_text(text)


# -- the run itself ---------------------------------------------------------------------------------------------------


def run_faults(audit: Audit, scenario: str, log: Log) -> list[str]:
    """Where LoadGen did not run the test: no log, an error in it, another mode, other settings."""
    if not log.values:
        return ["there is no log of LoadGen's (mlperf_log_detail.txt)"]
    faults = [f"LoadGen logged {len(log.errors)} errors; the first: {log.errors[0]}"] if log.errors else []
    if (mode := log.values.get("effective_test_mode")) != "PerformanceOnly":
        faults.append(f"LoadGen ran in mode {mode}, and {audit.name} is a performance run")
    ran_as = loadgen_name(scenario)
    if (ran := log.values.get("effective_scenario")) != ran_as:
        faults.append(f"LoadGen ran the scenario {ran}, not {ran_as}")
    else:
        faults += reported_differences(audit.settings, ran_as, log.values)
    return faults


def count_faults(audit: Audit, entries: Sequence[Entry]) -> list[str]:
    """Whether the log holds the samples that the test asks for."""
    faults = []
    if len(entries) < audit.samples:
        faults.append(f"the log holds {len(entries)} answers, and {audit.name} logs {audit.samples}")
    repeated = len(entries) - len({entry.index for entry in entries})
    if audit.distinct and repeated:
        faults.append(f"{repeated} answers in the log are to a sample that was answered before")
    return faults


# -- TEST06: the tokens -----------------------------------------------------------------------------------------------


def judge_tokens(entries: Sequence[Entry], scenario: str, eos: Collection[int], faults: Sequence[str]) -> Verdict:
    """First token, end of sequence and length of each answer; tokens are int32."""
    wrong = list(faults)
    checks: dict[str, bool | None] = {"first_token": None if scenario == "Offline" else True}
    checks |= {"eos": True, "sample_length": True}
    for entry in entries:
        for name, fault in token_faults(entry, scenario, eos):
            if checks[name]:  # one sentence per check, for the first sample that fails it
                wrong.append(f"sample {entry.index}: {fault}")
            checks[name] = False
    passed = not wrong
    first = "Skipped" if checks["first_token"] is None else checks["first_token"]
    text = (
        f"First token check pass: {first}\n"
        f"EOS check pass: {checks['eos']}\n"
        f"Sample length check pass: {checks['sample_length']}\n"
        f"TEST06 verification {'complete' if passed else 'failed'}\n"
    )
    return Verdict("TEST06", passed, checks, wrong, text)


def token_faults(entry: Entry, scenario: str, eos: Collection[int], dtype: str = "int32") -> list[tuple[str, str]]:
    """(check, fault) of one answer."""
    size = DTYPES[dtype].itemsize
    if len(entry.data) % size or len(entry.head) % size:
        return [("sample_length", f"its {len(entry.data)} bytes are no row of {dtype} token ids")]
    tokens, faults = np.frombuffer(entry.data, DTYPES[dtype]), []
    if entry.count != len(tokens) or not len(tokens):
        claims = "has no token count" if entry.count is None else f"claims {entry.count}"
        faults.append(("sample_length", f"it has {len(tokens)} tokens and {claims}"))
    if scenario != "Offline":
        if not entry.head:
            faults.append(("first_token", "no first token was reported with its id"))
        elif not entry.data.startswith(entry.head):
            faults.append(("first_token", "the answer does not begin with the first token that was reported"))
    ends = np.flatnonzero(np.isin(tokens, list(eos)))
    if len(ends) and ends[0] != len(tokens) - 1:
        after = len(tokens) - 1 - int(ends[0])
        faults.append(("eos", f"{after} tokens follow the end-of-sequence id {tokens[ends[0]]}"))
    return faults


# -- TEST09: the lengths ----------------------------------------------------------------------------------------------


def judge_lengths(audit: Audit, entries: Sequence[Entry], faults: Sequence[str]) -> Verdict:
    """The mean length of the answers, in tokens of four bytes, against the round's bounds."""
    low, high = audit.limits["test09_min_output_tokens"], audit.limits["test09_max_output_tokens"]
    lengths = np.array([len(entry.data) // TOKEN_DTYPE().itemsize for entry in entries] or [0])
    mean = float(lengths.mean())
    checks = {"min_output_tokens": mean >= low, "max_output_tokens": mean <= high}
    wrong = [*faults]
    if not all(checks.values()):
        wrong.append(f"answers have {mean:.2f} tokens on average, and the reference's bounds are {low} to {high}")
    thick, thin = "=" * 80, "-" * 40
    text = (
        f"{thick}\nTEST09: Verify Output Token Length in Performance Mode\n{thick}\n\n"
        f"Output Token Length Statistics\n{thin}\n"
        f"Total samples: {len(entries)}\nMean output tokens: {mean:.2f}\n"
        f"Min output tokens: {lengths.min()}\nMax output tokens: {lengths.max()}\n"
        f"Std deviation: {lengths.std():.2f}\n"
        f"\n{thick}\nVerification Results\n{thick}\n"
        f"Mean output tokens: {mean:.2f}\nMin threshold: {low}\nMax threshold: {high}\n"
        f"Min check pass: {checks['min_output_tokens']}\nMax check pass: {checks['max_output_tokens']}\n"
        f"\nTEST {'FAIL' if wrong else 'PASS'}\n"
    )
    return Verdict("TEST09", not wrong, checks, wrong, text)


# -- TEST07: the score ------------------------------------------------------------------------------------------------


def run_script(command: str, log: Path) -> str:
    """What an evaluation script prints. Raises SetupError if it fails, ConfigError if it would not read this log."""
    if "{accuracy_log}" not in command:
        raise ConfigError("--accuracy-script does not say where the log goes: put {accuracy_log} in its place.")
    words = command.replace("{accuracy_log}", shlex.quote(str(log.absolute())))
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SetupError(f"the evaluation script ended with code {done.returncode}: {said[-1] if said else 'no word'}.")
    return done.stdout


def judge_score(audit: Audit, printed: str | None, faults: Sequence[str]) -> Verdict:
    """The score of the answers as an evaluation script prints it, against the round's threshold."""
    threshold = audit.limits["test07_accuracy_threshold"]
    found = SCORE.search(printed or "")
    score = float(found[1]) if found else None
    wrong = list(faults)
    if printed is None:
        wrong.append("its answers are graded by the reference's evaluation script: name it with --accuracy-script")
    elif score is None:
        wrong.append("the evaluation script prints no 'exact_match': SCORE")
    elif score < threshold:
        wrong.append(f"the score is {score:g}, below {threshold:g}")
    passed = None if score is None and not faults else not wrong
    thick = "=" * 80
    scored = "Error: Could not parse accuracy score\n"
    if score is not None:
        scored = (
            f"Accuracy score: {score}\nAccuracy threshold: {threshold}\nAccuracy check pass: {score >= threshold}\n"
        )
    text = (
        f"{printed or ''}\n{thick}\nTEST07 Verification Summary\n{thick}\n{scored}TEST {'PASS' if passed else 'FAIL'}\n"
    )
    return Verdict("TEST07", passed, {"accuracy": None if score is None else score >= threshold}, wrong, text)


# -- the model's own ends ---------------------------------------------------------------------------------------------


def eos_ids(model: Path) -> frozenset[int]:
    """The end-of-sequence ids of a model's folder: those it generates with, else those of its configuration. Raises
    SetupError if it names none."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((model / name).read_text()).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, int):
            return frozenset([found])
        if isinstance(found, list) and found and all(isinstance(number, int) for number in found):
            return frozenset(found)
    raise SetupError(f"{model} does not say which ids end a sequence (eos_token_id): name them with --eos.")
