"""`submission pack`: from runs to a package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[SYSTEM=]RUN_DIR...")
@click.option("--submitter", required=True, help="Name of the submitting organisation, a directory of the package.")
@click.option("--division", required=True, help="closed, open or network.")
@click.option("--output", "package", type=PATH, required=True, help="The package: a folder that holds nothing yet.")
@click.option("--system-name", metavar="ID", help="Name of the system.  [default: from its accelerators]")
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="[SYSTEM=]FILE.json",
    help="Fields of systems/<system>.json that no machine tells, such as cooling; may be repeated.",
)
@click.option("--calibration", type=FILE, help="Becomes documentation/calibration.md.  [default: a note]")
@click.option("--src", type=FOLDER, help="Source code to copy.  [default: a README that names the commit]")
@click.option("--originals", type=PATH, help="Where the whole accuracy logs go.  [default: beside the package]")
@click.option("--rehearsal", is_flag=True, help="Pack what cannot be submitted, marked as such; echo always is.")
@click.option("--dry-run", is_flag=True, help="Print what would be packed; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="End stdout with the plan as one line of JSON.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")
def pack(words: tuple[str, ...], dry_run: bool, as_json: bool, debug: bool, **options: Any) -> int:
    """Pack runs of one or more systems: directories of `--mode submission`, or of single runs.

    Nothing is overwritten, no log is edited; everything that stands against it is said at once. Exit code: 0 packed,
    2 usage, 3 the runs do not make a submission, 4 a run is not valid, 5 accuracy or compliance is not shown.
    """
    from harness.submission.pack import Request, make_plan, write

    plan = make_plan(words, Request(**options))
    if not plan.refusals and not dry_run:
        write(plan)
    click.echo("\n".join(tell(plan, dry_run)))
    for refusal in plan.refusals:
        click.echo(f"error: {refusal.text}", err=True)
    if as_json:
        click.echo(json.dumps(plan.as_json() | {"packed": not plan.refusals and not dry_run}))
    return plan.exit_code


def tell(plan: Any, dry_run: bool) -> list[str]:
    """What the package holds, what a person must still write, and what to do next."""
    package, lines = plan.request.package, list(plan.notes)
    if plan.refusals:
        return [*lines, f"Nothing was packed; what stands against it: {len(plan.refusals)}."]
    if dry_run:
        lines += [f"{package} would hold:", *(f"  {file.as_text()}" for file in plan.files)]
        lines += [f"{plan.originals_folder} would hold:", *(f"  {file.as_text()}" for file in plan.originals)]
    else:
        lines += [f"Packed {package} ({len(plan.files)} files):", *(f"  {title}" for title in plan.scenarios)]
        lines += [f"The whole accuracy logs are in {plan.originals_folder}: keep them, MLCommons may ask for them."]
    if plan.open_points:
        where = "" if dry_run else f"; the list is {plan.open_points_file}"
        lines.append(f"Still to be written by a person: {len(plan.open_points)}{where}.")
        lines += [f"  {file}: {field}: {question}" for file, field, question in plan.open_points]
    return [*lines, f"Next: python -m harness submission check {package} --originals {plan.originals_folder}"]
