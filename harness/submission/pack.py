"""Packing: from runs to the tree of a v6.1 submission. First a plan, which only reads, then the writing.

    plan = make_plan(["results/offline", "results/server"], Request("Acme", "closed", Path("package")))
    if not plan.refusals:
        write(plan)

Logs are copied as they are. The accuracy log alone is truncated in the package, as truncate_accuracy_log.py of
mlcommons/inference does it; the whole one goes to the originals.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.conf import default_file
from harness.config import without_userinfo
from harness.results import ACCURACY, DETAIL
from harness.submission import documents, tree
from harness.submission.fields import STATUSES, SYSTEM_TYPES
from harness.submission.refusals import UNFIT, USAGE, by_slot, exit_code, refuse, unfit
from harness.submission.runs import Refusal, Run, gather, named
from harness.submission.system import NAME, Description, Value, default_name, describe, read_given
from harness.submission.tree import DIVISIONS, LOGS, SCORES, SUMMARY, VERDICTS, Scenario, Submitter
from harness.submission.verdicts import accuracy_verdict
from harness.tables import digest_of
from sut.errors import ConfigError

LARGEST = 50 * 2**20
"""Bytes of a file (repository_checks.sh of mlcommons/inference)."""

# The compliance tests whose accuracy log is truncated too (truncate_accuracy_log.py); their hash stands alone.
_TRUNCATED = ("TEST07", "TEST09")


@dataclass(frozen=True)
class Request:
    """What is asked of the packer. `systems` and `src` hold names or paths as given, each DIR or NAME=PATH."""

    submitter: str
    division: str
    package: Path
    originals: Path | None = None
    system_name: str | None = None
    systems: Sequence[str] = ()
    calibration: Path | None = None
    src: Path | None = None
    rehearsal: bool = False


@dataclass(frozen=True)
class File:
    """One file to be written: `text`, or a copy of `source`, shortened where `truncated`; `hash_of` is the log whose
    hash is appended."""

    path: Path
    text: str = ""
    source: Path | None = None
    truncated: bool = False
    hash_of: Path | None = None

    def content(self) -> bytes:
        data = self.source.read_bytes() if self.source else self.text.encode()
        if self.truncated:
            data = tree.truncated(data)
        if self.hash_of:
            data += f"{chr(10) * bool(data)}hash={digest_of(self.hash_of)}\n".encode()
        return data

    def as_text(self) -> str:
        if self.source is None:
            return f"{self.path}: written"
        how = "truncated from" if self.truncated else "with the log's hash, from" if self.hash_of else "copied from"
        return f"{self.path}: {how} {self.source}"


@dataclass(frozen=True)
class Plan:
    """What would be packed, and what stands against it; `files` and `originals` are below their own roots."""

    request: Request
    files: Sequence[File] = ()
    originals: Sequence[File] = ()
    refusals: Sequence[Refusal] = ()
    open_points: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    rehearsal: bool = False
    scenarios: Sequence[str] = ()

    @property
    def exit_code(self) -> int:
        return exit_code(self.refusals)

    @property
    def originals_folder(self) -> Path:
        return self.request.originals or beside(self.request.package, "-originals")

    @property
    def open_points_file(self) -> Path:
        """Beside the package, which holds nothing that is not submitted."""
        return beside(self.request.package, "-OPEN_POINTS.md")

    def as_json(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "package": str(self.request.package),
            "originals": str(self.originals_folder),
            "open_points_file": str(self.open_points_file),
            "rehearsal": self.rehearsal,
            "scenarios": list(self.scenarios),
            "files": [str(file.path) for file in self.files],
            "open_points": [dict(zip(("file", "field", "question"), point, strict=True)) for point in self.open_points],
            "notes": list(self.notes),
            "refusals": [{"code": refusal.code, "text": refusal.text} for refusal in self.refusals],
        }


def beside(folder: Path, suffix: str) -> Path:
    """A sibling of a folder, by its full path."""
    whole = Path(os.path.abspath(folder))
    return whole.with_name(whole.name + suffix)


# -- the plan ---------------------------------------------------------------------------------------------------------


def make_plan(words: Sequence[str], request: Request) -> Plan:
    """What packing these run directories would write, and every reason against it; writes nothing.

    Raises ConfigError for names that no directory can have and for files of a person's that cannot be used.
    """
    given = read_systems(request)
    runs, refusals = gather(words, request.system_name)
    runs = [replace(run, system=run.system or default_name(run)) for run in runs]
    systems = describe_systems(runs, request, given)
    refuse_names(request, systems, given)
    rehearsal = request.rehearsal or any(run.is_echo for run in runs)
    types = {name: str(description.fields["system_type"]) for name, description in systems.items()}
    plan = Plan(request, rehearsal=rehearsal, notes=notes(runs, rehearsal))
    refusals += refuse_places(plan) + refuse(runs, request.division, types, rehearsal, all_read=not refusals)
    return replace(plan, refusals=refusals) if refusals else fill(plan, runs, systems)


def fill(plan: Plan, runs: Sequence[Run], systems: Mapping[str, Description]) -> Plan:
    """The plan with its files and open points, for runs against which nothing stands."""
    submitter = Submitter(Path(), plan.request.division, plan.request.submitter)
    files = [File(submitter.description(name), system.text()) for name, system in systems.items()]
    points = [
        (str(submitter.description(name)), *pair)
        for name, system in systems.items()
        for pair in system.questions.items()
    ]
    originals: list[File] = []
    titles = []
    for (system, benchmark, scenario), group in by_slot(runs).items():
        place = Scenario(submitter, str(system), benchmark, scenario)
        members = {run.role: run for run in sorted(group, key=lambda run: _ORDER.get(run.role, len(_ORDER)))}
        fields, asked = documents.measurements(members, plan.request.division, plan.rehearsal)
        points += [(str(place.measurements), *pair) for pair in asked.items()]
        files += [*written(place, members, fields, plan), *copied(place, members)]
        originals += kept_whole(place, members)
        titles.append(f"{system} · {benchmark} · {scenario}: {', '.join(members)}")
    own, asked_of_submitter = submitter_files(submitter, runs, plan.request)
    files, points = files + own, points + asked_of_submitter
    return replace(
        plan, files=files, originals=originals, refusals=refuse_files(files), open_points=points, scenarios=titles
    )


_ORDER = {"performance": 0, "accuracy": 1}


def notes(runs: Sequence[Run], rehearsal: bool) -> list[str]:
    """What is to be said aloud although it stops nothing."""
    said = []
    if rehearsal:
        why = "echo answered, and no model" if any(run.is_echo for run in runs) else "--rehearsal asks for it"
        said.append(f"This is a REHEARSAL ({why}): the package says so itself, and cannot be submitted.")
    unsure = [str(run.folder) for run in runs if not run.files]
    if unsure:
        where = ", ".join(unsure)
        said.append(f"Whether logs were changed after the run cannot be told: result.json has no checksums in {where}.")
    return said


def describe_systems(
    runs: Sequence[Run], request: Request, given: Mapping[str | None, Mapping[str, Value]]
) -> dict[str, Description]:
    """Each system as the first of its runs found it."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(str(run.system), run)
    return {
        name: describe(run, request.submitter, request.division, {**given.get(None, {}), **given.get(name, {})})
        for name, run in first.items()
    }


def read_systems(request: Request) -> dict[str | None, dict[str, Value]]:
    """The fields that a person wrote, by system. Raises ConfigError."""
    found: dict[str | None, dict[str, Value]] = {}
    for word in request.systems:
        name, path = named(word)
        fields = found[name] = read_given(path)
        expected = {"submitter": (request.submitter,), "division": (request.division,), "status": STATUSES}
        for key, values in (expected | {"system_type": SYSTEM_TYPES}).items():
            if key in fields and str(fields[key]) not in values:
                raise ConfigError(f"{path}: {key} is {fields[key]!r}: write {' or '.join(values)}, or leave it out.")
    return found


# -- what stands against it, beside the runs --------------------------------------------------------------------------


def refuse_names(request: Request, systems: Iterable[str], given: Iterable[str | None]) -> None:
    """Raises ConfigError for a division that there is none, and for names that no directory of a package can have."""
    if request.division not in DIVISIONS:
        raise ConfigError(f"unknown division {request.division!r}: choose one of {', '.join(DIVISIONS)}.")
    systems = list(systems)
    for what, name in (("submitter", request.submitter), *(("system", system) for system in systems)):
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"the {what} {name!r} cannot name a directory of a package: use letters, digits, and . _ + - after the "
                "first."
            )
    for owner in given if systems else ():
        if owner is not None and owner not in systems:
            raise ConfigError(f"--system describes {owner}, and no run is of it: there is {', '.join(systems)}.")
        if owner is None and len(systems) > 1:
            raise ConfigError(f"there are several systems: say whose file it is, --system {systems[0]}=FILE.json.")


def refuse_places(plan: Plan) -> list[Refusal]:
    """Where something lies already: nothing is overwritten."""
    package, originals = plan.request.package.absolute(), plan.originals_folder.absolute()
    found = []
    for folder in (package, originals):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            found.append(f"{folder} already holds something: name another place, nothing is overwritten.")
        if beside(folder, ".part").exists():
            found.append(f"{beside(folder, '.part')} is left of a packing that was cut off: remove it.")
    if plan.open_points_file.exists():
        found.append(f"{plan.open_points_file} is there already: move it, nothing is overwritten.")
    if originals.is_relative_to(package) or package.is_relative_to(originals):
        found.append(f"{originals} and {package} lie in each other: originals do not belong into a package.")
    return [Refusal(USAGE, text) for text in found]


def refuse_files(files: Iterable[File]) -> list[Refusal]:
    """Files that no submission may hold (repository_checks.sh)."""
    return [
        Refusal(
            UNFIT,
            f"{file.source} has {file.source.stat().st_size / 2**20:.0f} MiB, and a file may have 50: leave it out.",
        )
        for file in files
        if file.source is not None and not file.truncated and file.source.stat().st_size > LARGEST
    ]


# -- the files --------------------------------------------------------------------------------------------------------


def written(place: Scenario, members: Mapping[str, Run], fields: Mapping[str, Any], plan: Plan) -> Iterator[File]:
    """What is written for a scenario."""
    reasons = why_not_ready(members, plan)
    yield File(place.readme, documents.scenario_readme(place.system, members, reasons, plan.rehearsal))
    yield File(place.measurements, json.dumps(fields, indent=4) + "\n")
    origin = documents.provenance(place.system, members, reasons, plan.rehearsal)
    yield File(place.provenance, without_userinfo(json.dumps(origin, indent=1)) + "\n")


def why_not_ready(members: Mapping[str, Run], plan: Plan) -> list[str]:
    """What keeps a scenario out of a submission: only a rehearsal is packed with any of it."""
    if not plan.rehearsal:
        return []
    reasons = dict.fromkeys(reason for run in members.values() for reason in unfit(run, plan.request.division))
    if accuracy_verdict(members["accuracy"]).passed is not True and plan.request.division != "open":
        reasons["accuracy is below its target or not decided"] = None
    return list(reasons) or ["it was packed as a rehearsal"]


def copied(place: Scenario, members: Mapping[str, Run]) -> Iterator[File]:
    """What a scenario's runs left, as the tree has it."""
    run = members["performance"].folder
    yield File(place.user_conf, source=run / "user.conf")
    if (conf := default_file("mlperf.conf")) is not None:
        yield File(place.folder / "mlperf.conf", source=conf)
    for name in LOGS:
        yield File(place.performance / name, source=run / name)
    run = members["accuracy"].folder
    for name in (SUMMARY, DETAIL):
        yield File(place.accuracy / name, source=run / name)
    yield File(place.accuracy / ACCURACY, source=run / ACCURACY, truncated=True)
    yield File(place.accuracy / SCORES, source=run / SCORES, hash_of=run / ACCURACY)
    for test in VERDICTS.keys() & members:
        yield from audit_files(place.audit(test), test, members[test].folder)


def audit_files(folder: Path, test: str, run: Path) -> Iterator[File]:
    """What a compliance run left, as its verifier lays it out."""
    yield File(folder / VERDICTS[test], source=run / VERDICTS[test])
    yield File(folder / "accuracy" / ACCURACY, source=run / ACCURACY, truncated=test in _TRUNCATED)
    if test in _TRUNCATED:
        yield File(folder / "accuracy" / SCORES, hash_of=run / ACCURACY)
    for name in (SUMMARY, DETAIL):
        yield File(folder / "performance" / "run_1" / name, source=run / name)


def kept_whole(place: Scenario, members: Mapping[str, Run]) -> Iterator[File]:
    """The accuracy logs that the package holds truncated."""
    yield File(place.accuracy / ACCURACY, source=members["accuracy"].folder / ACCURACY)
    for test in _TRUNCATED:
        if test in members:
            yield File(place.audit(test) / "accuracy" / ACCURACY, source=members[test].folder / ACCURACY)


def submitter_files(
    submitter: Submitter, runs: Sequence[Run], request: Request
) -> tuple[list[File], list[tuple[str, str, str]]]:
    """Calibration and source, and what a person must still write there."""
    points = []
    if request.calibration is not None:
        files = [File(submitter.calibration, source=request.calibration)]
    else:
        text, asked = documents.calibration(runs)
        files = [File(submitter.calibration, text)]
        if asked:
            points.append((str(submitter.calibration), "calibration", "how the weights were quantised and calibrated"))
    for benchmark in dict.fromkeys(str(run["benchmark"]) for run in runs):
        own, folder = [run for run in runs if run["benchmark"] == benchmark], submitter.source / benchmark
        files.append(File(folder / "README.md", documents.source_readme(benchmark, own, request.src is not None)))
        if request.src is not None:
            files += [
                File(folder / path.relative_to(request.src.parent), source=path) for path in source_tree(request.src)
            ]
        if request.src is None or any(not run.environment["commit"] or "+" in run.environment["commit"] for run in own):
            points.append(
                (str(folder / "README.md"), "code", "the code of the commit that ran, with every change to it")
            )
    return files, points


def source_tree(folder: Path) -> Iterator[Path]:
    """The files of a source folder, without hidden and compiled ones. Raises ConfigError for what a package may not
    hold (repository_checks.sh): links, and blanks in names."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for path in (Path(place) / name for name in [*folders, *sorted(names)] if not name.startswith(".")):
            if path.is_symlink() or " " in path.name:
                raise ConfigError(
                    f"{path} is a link or has a blank in its name, which no package may hold: leave it out."
                )
            if path.is_file():
                yield path


# -- writing ----------------------------------------------------------------------------------------------------------


def write(plan: Plan) -> None:
    """Write a plan against which nothing stands: originals and package appear whole or not at all.

    Raises OSError.
    """
    roots = ((plan.originals_folder, plan.originals), (plan.request.package.absolute(), plan.files))
    drafts = [beside(root, ".part") for root, _ in roots]
    try:
        for draft, (_, files) in zip(drafts, roots, strict=True):
            for file in files:
                path = draft / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.content())
        for draft, (root, _) in zip(drafts, roots, strict=True):
            draft.replace(root)
    finally:
        for draft in drafts:
            shutil.rmtree(draft, ignore_errors=True)
    plan.open_points_file.write_text(documents.open_points_text(plan.request.package, plan.open_points))
