"""Is everything in its place: names, sizes and links, divisions, systems and their results, source, calibration.

Sources: [structure] tools/submission/submission_structure.md, [repository] tools/submission/repository_checks.sh,
[checker] tools/submission/submission_checker, [old] submission_checker_old.py, whose checks of the tree the checker of
v6.1 has flags for and does not do; all of mlcommons/inference.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from harness.benchmarks import Number
from harness.conf import read_conf
from harness.submission.contents import LARGEST, Unreadable, read_text, size_of
from harness.submission.problem import Problem, clean, error, note, warning
from harness.submission.tree import DIVISIONS, Package, Scenario, Submitter, files, folders
from sut.errors import ConfigError

STRUCTURE = "submission_structure.md"
REPOSITORY = "repository_checks.sh"
OLD = "submission_checker_old.py; the checker of v6.1 does not look"

# What a checkout of a submission repository has beside its divisions.
_BESIDE = (".git", ".github", "assets")


def check_names(folder: Path, root: Path) -> Iterator[Problem]:
    """Every entry under a folder: what a repository refuses, or would not carry as it is."""
    for entry in _all_entries(folder, root):
        if isinstance(entry, Problem):
            yield entry
            continue
        path, name = Path(entry.path), entry.name
        if name == ".gitkeep":
            yield warning(path, "a .gitkeep is left over", REPOSITORY, "remove it")
        elif name.startswith("."):
            yield error(path, "the name begins with a dot", REPOSITORY, "remove it or give it another name")
        if any(character.isspace() for character in name):
            yield error(path, "the name has a blank in it", REPOSITORY, "put an underscore for each blank")
        elif not name.isascii() or not name.isprintable():
            yield warning(path, "the name is not plain ASCII", REPOSITORY, "give it a name of letters and digits")
        yield from _check_entry(path, entry)


def _all_entries(folder: Path, root: Path) -> Iterator[os.DirEntry[str] | Problem]:
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as fault:
            yield error(here, f"the directory cannot be listed ({fault.strerror})", REPOSITORY, "make it readable")
            continue
        for entry in entries:
            if here == root and entry.name in _BESIDE:
                continue
            yield entry
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))


def _check_entry(path: Path, entry: os.DirEntry[str]) -> Iterator[Problem]:
    try:
        facts = entry.stat(follow_symlinks=False)
    except OSError as fault:
        yield error(path, f"it cannot be looked at ({fault.strerror})", REPOSITORY, "make it readable")
        return
    if stat.S_ISLNK(facts.st_mode):
        yield error(path, "it is a link", REPOSITORY, "put the file itself in its place")
    elif not stat.S_ISDIR(facts.st_mode) and not stat.S_ISREG(facts.st_mode):
        yield error(path, "it is neither a file nor a directory", REPOSITORY, "remove it")
    elif stat.S_ISREG(facts.st_mode) and facts.st_size > LARGEST:
        size = facts.st_size / 2**20
        yield error(path, f"the file has {size:.1f} MiB, and 50 are allowed", REPOSITORY, "shorten or remove it")


def check_root(package: Package, submitter: str | None) -> Iterator[Problem]:
    """The root holds divisions, the divisions hold submitters."""
    names = folders(package.root)
    for name in names:
        if name.casefold() in DIVISIONS and name not in DIVISIONS:
            yield error(
                package.root / name,
                f"{clean(name)} is no division as MLCommons spells it, and is passed over",
                f"{STRUCTURE}: closed, open, network",
                f"rename it to {name.casefold()}",
            )
        elif name not in (*DIVISIONS, *_BESIDE):
            yield error(
                package.root / name,
                "the directory is no division",
                OLD,
                f"the root holds {', '.join(DIVISIONS)} alone: move it away",
            )
    for name in files(package.root):
        if not name.endswith((".md", ".pdf")):
            yield error(package.root / name, "a file lies outside the divisions", OLD, "move it into a submitter's src")
    for division in DIVISIONS:
        for name in files(package.root / division):
            yield error(package.root / division / name, "a file lies outside the submitters", OLD, "move it away")
    if not package.scenarios:
        whose = f" of {clean(submitter)}" if submitter else ""
        yield error(
            package.root,
            f"there is no result{whose} in it",
            f"{STRUCTURE}: <division>/<submitter>/results/<system>/<benchmark>/<scenario>",
            "give the directory that holds the divisions",
        )


def check_submitter(submitter: Submitter, scenarios: Iterable[Scenario]) -> Iterator[Problem]:
    """Results and their systems' descriptions belong together; source and calibration are there."""
    with_results = {scenario.system for scenario in scenarios}
    for name in folders(submitter.results):
        if name not in with_results:
            yield error(
                submitter.results / name,
                "the system's directory holds no result",
                STRUCTURE,
                "remove it, or put <benchmark>/<scenario> into it",
            )
    described = {name.removesuffix(".json") for name in files(submitter.descriptions) if name.endswith(".json")}
    for name in sorted(described - set(folders(submitter.results))):
        yield error(
            submitter.description(name), "the system has no result", OLD, "remove the description, or add the results"
        )
    for name in files(submitter.descriptions):
        if not name.endswith((".json", "_power.yaml")):
            yield warning(submitter.descriptions / name, "it is no system's description", STRUCTURE, "remove it")
    yield from _check_source(submitter, scenarios)
    if submitter.division != "open":
        yield from _check_calibration(submitter)


def _check_source(submitter: Submitter, scenarios: Iterable[Scenario]) -> Iterator[Problem]:
    rule = f"submission_checker, measurements_checks.py; {STRUCTURE} calls it code"
    held = folders(submitter.source)
    if not held and not files(submitter.source):
        code = os.path.isdir(submitter.folder / "code")
        fix = "rename code to src" if code else "put the source of what ran into src/<benchmark>"
        yield error(submitter.source, "the source directory is missing or empty", rule, fix)
        return
    for name in sorted({scenario.benchmark for scenario in scenarios} - set(held)):
        yield warning(
            submitter.source / name,
            "the source of this benchmark has no directory",
            f"{STRUCTURE}: code/<benchmark_name>",
            f"put what ran into src/{clean(name)}",
        )


def _check_calibration(submitter: Submitter) -> Iterator[Problem]:
    rule = f"submission_rules.adoc, calibration documentation; {OLD}"
    path = next(filter(os.path.lexists, (submitter.calibration, submitter.folder / "calibration.md")), None)
    fix = "describe how the weights were calibrated, or that they were not, in documentation/calibration.md"
    if path is None:
        yield error(submitter.calibration, "the description of the calibration is missing", rule, fix)
        return
    try:
        size = size_of(path)
    except Unreadable as fault:
        yield error(path, f"the description of the calibration {fault}", rule, fix)
        return
    if not size:
        yield error(path, "the description of the calibration is empty", rule, fix)


def check_extras(place: Scenario) -> Iterator[Problem]:
    """What a scenario's directory holds besides, and is not looked at or does not belong there."""
    for name in folders(place.folder / "performance"):
        path = place.folder / "performance" / name
        if name in ("power", "ranging"):
            yield note(path, "power measurements are not checked here", STRUCTURE, "run the official checker on them")
        elif name != "run_1":
            yield warning(path, "only run_1 counts", STRUCTURE, "remove the other runs")
    for folder in (place.folder, place.performance, place.accuracy):
        for name in files(folder):
            if name.startswith("audit.conf"):
                yield warning(
                    folder / name,
                    "an audit's settings lie beside a result",
                    "compliance/README.md: remove audit.config afterwards",
                    "remove it",
                )


def check_round_conf(place: Scenario, limits: Mapping[str, Number]) -> Iterator[Problem]:
    """mlperf.conf may lie beside a result, and is then the round's; LoadGen reads its own copy alone."""
    path, rule = place.folder / "mlperf.conf", "loadgen/mlperf.conf; LoadGen reads its own copy alone"
    if not os.path.lexists(path):
        return
    try:
        read_text(path)
        conf = read_conf(path, refuse=False)
    except (Unreadable, ConfigError) as fault:
        yield warning(path, f"mlperf.conf cannot be used: {clean(str(fault).rstrip('.'))}", rule, "remove it")
        return
    for key, value in limits.items():
        if key.endswith("_rng_seed") and conf.get(("*", "*", key)) != value:
            yield warning(path, "this mlperf.conf is of another round", rule, "remove it, or put the round's")
            return
