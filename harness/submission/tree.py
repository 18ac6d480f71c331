"""What a v6.1 package is made of: from a root to divisions, submitters, systems, benchmarks and scenarios.

    <division>/<submitter>/systems/<system>.json
    <division>/<submitter>/src/...                         (`code` in submission_structure.md; the checker wants `src`)
    <division>/<submitter>/documentation/calibration.md
    <division>/<submitter>/results/<system>/<benchmark>/<scenario>/
        README.md  user.conf  measurements.json  [mlperf.conf]
        performance/run_1/  mlperf_log_{summary,detail}.txt  mlperf_log_accuracy.json
        accuracy/           the same and accuracy.txt; mlperf_log_accuracy.json is truncated
        TEST06/             verify_accuracy.txt  accuracy/mlperf_log_accuracy.json
        TEST07/, TEST09/    verify_accuracy.txt or verify_output_len.txt, accuracy/, performance/run_1/

Source: tools/submission/submission_structure.md, submission_checker/constants.py and truncate_accuracy_log.py of
mlcommons/inference (round v6.1), and the paths that its checker reads. Nothing here judges: names are taken as they
stand, links are never followed, and what cannot be listed counts as empty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.answers import GAP
from harness.audits import AUDITS
from harness.results import ACCURACY, DETAIL

DIVISIONS = ("closed", "open", "network")
SUMMARY = "mlperf_log_summary.txt"
SCORES = "accuracy.txt"
LOGS = (SUMMARY, DETAIL, ACCURACY)
PROVENANCE = "provenance.json"
# What each audit's verifier writes, by which the audit is said to have passed.
VERDICTS = {name: audit.verdict for name, audit in AUDITS.items()}
# The first line of a scenario's README.md begins with it where the `echo` backend stood in for a model.
REHEARSAL = "REHEARSAL"

# How truncate_accuracy_log.py shortens the accuracy log, in bytes; a log below LONGEST counts as truncated.
KEPT = 4096
LONGEST = 10 * 1024


@dataclass(frozen=True, order=True)
class Submitter:
    """One submitter in one division."""

    root: Path
    division: str
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.division / self.name

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def descriptions(self) -> Path:
        return self.folder / "systems"

    @property
    def source(self) -> Path:
        return self.folder / "src"

    @property
    def calibration(self) -> Path:
        return self.folder / "documentation" / "calibration.md"

    def description(self, system: str) -> Path:
        return self.descriptions / f"{system}.json"


@dataclass(frozen=True, order=True)
class Scenario:
    """One result: a system under a benchmark in a scenario. `name` is the directory's, whatever its case."""

    submitter: Submitter
    system: str
    benchmark: str
    name: str

    @property
    def folder(self) -> Path:
        return self.submitter.results / self.system / self.benchmark / self.name

    @property
    def performance(self) -> Path:
        return self.folder / "performance" / "run_1"

    @property
    def accuracy(self) -> Path:
        return self.folder / "accuracy"

    @property
    def measurements(self) -> Path:
        return self.folder / "measurements.json"

    @property
    def user_conf(self) -> Path:
        return self.folder / "user.conf"

    @property
    def readme(self) -> Path:
        return self.folder / "README.md"

    @property
    def provenance(self) -> Path:
        return self.folder / PROVENANCE

    def audit(self, test: str) -> Path:
        return self.folder / test

    @property
    def has_endpoints_form(self) -> bool:
        """Made by mlcommons/endpoints: config.yaml and result_summary.json stand in for LoadGen's logs."""
        forms = ("config.yaml", "config.yml", "performance/result_summary.json", "accuracy/accuracy_results.json")
        return any(os.path.isfile(self.folder / form) for form in forms)


@dataclass(frozen=True)
class Package:
    """All that lies under a root. `submitters` and `scenarios` are in the order of their paths."""

    root: Path
    submitters: tuple[Submitter, ...]
    scenarios: tuple[Scenario, ...]

    def of(self, submitter: Submitter) -> tuple[Scenario, ...]:
        return tuple(scenario for scenario in self.scenarios if scenario.submitter == submitter)


def walk(root: Path, submitter: str | None = None) -> Package:
    """The package under a root, or one submitter's part of it. Every directory at a scenario's depth is a scenario."""
    submitters = tuple(
        Submitter(root, division, name)
        for division in folders(root)
        if division in DIVISIONS
        for name in folders(root / division)
        if submitter in (None, name)
    )
    scenarios = tuple(scenario for each in submitters for scenario in _scenarios(each))
    return Package(root, submitters, scenarios)


def _scenarios(submitter: Submitter) -> Iterator[Scenario]:
    for system in folders(submitter.results):
        for benchmark in folders(submitter.results / system):
            for name in folders(submitter.results / system / benchmark):
                yield Scenario(submitter, system, benchmark, name)


def folders(path: Path) -> list[str]:
    """The directories in a directory, by name; links are none."""
    return sorted(entry.name for entry in _entries(path) if entry.is_dir(follow_symlinks=False))


def files(path: Path) -> list[str]:
    """The plain files in a directory, by name; links are none."""
    return sorted(entry.name for entry in _entries(path) if entry.is_file(follow_symlinks=False))


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []


def truncated(log: bytes) -> bytes:
    """An accuracy log as a package carries it: its first and last KEPT bytes (truncate_accuracy_log.py)."""
    return log if len(log) < KEPT else log[:KEPT] + GAP + log[-KEPT:]
