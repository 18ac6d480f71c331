"""`submission check`: every problem of a package, from the rules, with its place and its fix.

A package is walked once; each scenario's directories say what it claims to be, and every file is judged by that claim.
Nothing is changed and nothing in a package is trusted: what cannot be read is a problem like any other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.benchmarks import find
from harness.conf import default_file
from harness.results import DETAIL
from harness.submission import tree
from harness.submission.audits import check_audits
from harness.submission.claim import (
    CHECKED,
    DROPPED,
    ENDPOINTS,
    OTHERS,
    ROUND,
    Claim,
    claimed,
    official_name,
    spelt,
)
from harness.submission.contents import Unreadable, read_bytes, read_object
from harness.submission.description import (
    check_description,
    check_measurements,
    check_readme,
    is_network,
    system_types,
)
from harness.submission.figures import tokens_per_sample
from harness.submission.form import check_summary, open_log, same_loadgen
from harness.submission.layout import (
    STRUCTURE,
    check_extras,
    check_names,
    check_root,
    check_round_conf,
    check_submitter,
)
from harness.submission.logs import DetailLog
from harness.submission.performance import INFERRED, check_performance
from harness.submission.problem import (
    Problem,
    as_json,
    clean,
    counts,
    error,
    note,
    problems_text,
    shown_place,
    sorted_problems,
)
from harness.submission.provenance import check_provenance
from harness.submission.scores import check_accuracy_log, check_answers, check_lengths, check_scores
from harness.submission.tree import Package, Scenario, Submitter
from harness.submission.user_conf import check_user_conf
from sut.errors import ConfigError, SetupError

LOADER = "submission_checker, loader.py"


@dataclass(frozen=True)
class Report:
    """What a check found. `root` is the package's, `results` the number of scenario directories in it."""

    root: Path
    results: int
    checked: int
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        return not any(problem.level == "error" for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "package": os.fspath(self.root),
            "round": ROUND,
            "passed": self.passed,
            "results": self.results,
            "checked": self.checked,
            **counts(self.problems),
            "problems": [as_json(problem, self.root) for problem in self.problems],
        }

    def text(self) -> str:
        found = counts(self.problems)
        said = ", ".join(f"{count} {level}" for level, count in found.items())
        verdict = "no error found" if self.passed else "not fit for a submission"
        last = f"{said} in {self.results} results, of which {self.checked} were checked: {verdict}."
        return "\n".join([problems_text(self.problems, self.root), last] if self.problems else [last])


def check(root: Path, submitter: str | None = None, originals: Path | None = None) -> Report:
    """Check a package, or one submitter's part of it.

    `originals` is a folder with the untruncated accuracy logs at the same paths as in the package, as
    truncate_accuracy_log.py leaves them in its --backup. Raises ConfigError for what is no directory, SetupError
    without the round's settings.
    """
    for folder in (root, *([originals] if originals else [])):
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a directory: name the one that holds closed, open or network.")
    if default_file("mlperf.conf") is None:
        raise SetupError("the round's mlperf.conf is not there: install the harness whole, or run in its checkout.")
    package = tree.walk(root, submitter)
    if submitter is not None and not package.submitters:
        there = sorted({each.name for each in tree.walk(root).submitters})
        raise ConfigError(f"{root} holds no submitter {submitter!r}: there is {clean(', '.join(there)) or 'none'}.")
    problems = sorted_problems(_check_package(package, submitter, originals), root)
    checked = sum(1 for scenario in package.scenarios if _benchmark(scenario) in CHECKED)
    return Report(root, len(package.scenarios), checked, tuple(problems))


def _check_package(package: Package, submitter: str | None, originals: Path | None) -> Iterator[Problem]:
    yield from check_root(package, submitter)
    if submitter is None:
        yield from check_names(package.root, package.root)
    for each in package.submitters:
        if submitter is not None:
            yield from check_names(each.folder, package.root)
        yield from check_submitter(each, package.of(each))
        for system in sorted({scenario.system for scenario in package.of(each)}):
            yield from check_description(each, system)
            yield from _check_system(package, each, system, originals)
        yield from _check_repeated(package.of(each))


def _check_repeated(places: Iterable[Scenario]) -> Iterator[Problem]:
    """No log stands under two results: each is a test of its own, but for those that an edge system may infer."""
    seen: dict[bytes, tuple[Scenario, Path]] = {}
    for place in (each for each in places if _benchmark(each) in CHECKED):
        for path in (place.performance / DETAIL, place.accuracy / DETAIL):
            try:
                digest = hashlib.sha256(read_bytes(path)).digest()
            except Unreadable:
                continue  # said where the file is judged
            other, first = seen.setdefault(digest, (place, path))
            if other != place and (spelt(other.name), spelt(place.name)) not in _SHARED:
                what = f"this is the very file of {shown_place(first, place.submitter.root)}"
                rule = "inference_rules.adoc: each result is a test of its own; the checker of v6.1 does not compare"
                yield error(path, what, rule, "run the test for this result")


# Scenarios in the order of their directories' names, of which one may be inferred from the other.
_SHARED = {tuple(sorted(pair)) for pair in INFERRED}


def _check_system(package: Package, submitter: Submitter, system: str, originals: Path | None) -> Iterator[Problem]:
    try:
        description: Mapping[str, Any] = read_object(submitter.description(system))
    except Unreadable:
        description = {}  # said by check_description
    places = [scenario for scenario in package.of(submitter) if scenario.system == system]
    for benchmark in sorted({place.benchmark for place in places}):
        held = [place for place in places if place.benchmark == benchmark]
        yield from _check_benchmark(held, description, originals)


def _mapping(submitter: Submitter) -> Mapping[str, object]:
    """An open submitter's own names of benchmarks, model_mapping.json."""
    if submitter.division != "open":
        return {}
    try:
        return read_object(submitter.folder / "model_mapping.json")
    except Unreadable:
        return {}


def _benchmark(place: Scenario) -> str:
    return official_name(place.benchmark, _mapping(place.submitter))


def _check_benchmark(
    places: list[Scenario], description: Mapping[str, Any], originals: Path | None
) -> Iterator[Problem]:
    """One benchmark on one system: a known one, in the scenarios that it needs."""
    folder, name = places[0].folder.parent, _benchmark(places[0])
    if name in OTHERS:
        what = f"{name} is no LLM benchmark of this harness and is not checked here"
        yield note(folder, what, f"round {ROUND}", "run the official checker on it")
        return
    if name not in CHECKED:
        what = f"the round {ROUND} has no benchmark of this name" + (" any more" if name in DROPPED else "")
        rule = f"submission_checker, constants.py; {LOADER} crashes on it"
        yield error(folder, what, rule, f"remove it, or use one of the round's names, such as {', '.join(CHECKED)}")
        return
    claims = []
    for place in places:
        scenario = spelt(place.name)
        if scenario is None:
            rule, fix = f"{STRUCTURE}: {{scenario}}", "rename it to Offline, Server, Interactive or SingleStream"
            yield error(place.folder, "the directory is named after no scenario", rule, fix)
            continue
        if scenario != place.name:
            what = f"the scenario is spelt {scenario}"
            yield error(place.folder, what, f"{STRUCTURE}; the checker of v6.1 passes it over", "rename it")
        if scenario in _scenarios(name, place.submitter.division):
            claims.append(claimed(place, name, scenario))
        else:
            yield error(place.folder, f"{name} has no scenario {scenario}", f"{LOADER} check_scenarios", "remove it")
    types = system_types(description)
    yield from _check_scenarios(folder, name, {each.scenario for each in claims}, types, places[0].submitter)
    for each in claims:
        yield from _check_result(each, is_network(description), types, originals)


def _scenarios(name: str, division: str) -> set[str]:
    """The scenarios of a benchmark; the open division may also run those that have no latency limits."""
    own = {each for groups in find(name).required.values() for group in groups for each in group}
    return own | ({"Offline", "SingleStream"} if division == "open" else set())


def _check_scenarios(
    folder: Path, name: str, held: set[str], types: frozenset[str], submitter: Submitter
) -> Iterator[Problem]:
    """The scenarios that a benchmark needs on systems of these types."""
    groups = [group for kind, each in find(name).required.items() if kind in types for group in each]
    if submitter.division == "open" or not types:
        return
    if not groups:
        what = f"{name} is no benchmark of {' and '.join(sorted(types))} systems"
        yield error(folder, what, f"{LOADER} crashes on it", "remove it, or correct system_type")
    for group in groups:
        if not held & set(group):
            what = f"the scenario {' or '.join(group)} is missing"
            yield error(folder, what, f"{LOADER} check_scenarios", f"run {' or '.join(group)} and add it")


def _check_result(claim: Claim, network: bool, types: frozenset[str], originals: Path | None) -> Iterator[Problem]:
    """One scenario's directory against what it claims."""
    place = claim.place
    if place.has_endpoints_form and not _has_loadgen_logs(place):
        yield from _endpoints(claim)
        return
    yield from check_measurements(claim)
    yield from check_readme(claim)
    yield from check_extras(place)
    yield from check_round_conf(place, claim.limits)
    logs: dict[str, DetailLog] = {}
    judged = claim
    for found in open_log(place.performance):
        if isinstance(found, Problem):
            yield found
            continue
        logs["performance"] = found
        judged, inferred = _as_run(claim, found, types)
        yield from inferred
        yield from check_performance(found, judged, network)
        yield from check_summary(found, place.performance, performance=True)
        yield from check_lengths(claim, tokens_per_sample(found, judged))
    yield from check_user_conf(logs.get("performance"), judged)
    for found in open_log(place.accuracy):
        if isinstance(found, Problem):
            yield found
            continue
        logs["accuracy"] = found
        yield from check_accuracy_log(found, _as_run(claim, found, types)[0], network)
        yield from check_summary(found, place.accuracy, performance=False)
    yield from check_scores(claim)
    yield from check_answers(claim, originals)
    for audited in check_audits(claim, originals) if claim.strict else ():
        if isinstance(audited, Problem):
            yield audited
        else:
            logs[audited.path.relative_to(place.folder).parts[0]] = audited
    yield from same_loadgen(logs)
    yield from check_provenance(claim)


def _as_run(claim: Claim, log: DetailLog, types: frozenset[str]) -> tuple[Claim, list[Problem]]:
    """The claim by the scenario that was run, where an edge system may infer one from the other."""
    run = log.values.get("effective_scenario")
    if run == claim.loadgen_scenario or (run, claim.scenario) not in INFERRED or "edge" not in types:
        return claim, []
    what = f"the result of {claim.scenario} is inferred from {run}"
    rule = "submission_checker, inferred_check: edge systems may"
    found = note(claim.folder, what, rule, f"run {claim.scenario} itself")
    return claimed(claim.place, claim.row.name, str(run)), [found]


def _has_loadgen_logs(place: Scenario) -> bool:
    return os.path.lexists(place.performance / DETAIL) or os.path.lexists(place.accuracy / DETAIL)


def _endpoints(claim: Claim) -> Iterator[Problem]:
    rule = "submission_checker, ENDPOINTS_ALLOWED_MODELS"
    if claim.row.name in ENDPOINTS:
        what = "the result was made with mlcommons/endpoints and is not checked here"
        yield note(claim.folder, what, rule, "run the official checker on it")
    else:
        what = f"results of {claim.row.name} cannot be made with mlcommons/endpoints"
        yield error(claim.folder, what, rule, "run the benchmark with LoadGen")
