"""`submission`: packages for MLCommons."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.pack import pack

NOT_FIT = 5


@click.group()
def submission() -> None:
    """Packages for MLCommons: their tree, and what is wrong with one."""


submission.add_command(pack)


@submission.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--submitter", help="Check this submitter's part alone.")
@click.option("--version", "version", default="v6.1", show_default=True, help="The round whose rules hold.")
@click.option(
    "--originals",
    type=click.Path(path_type=Path),
    help="Folder of the untruncated accuracy logs, at the same paths as in PACKAGE; their hashes are then verified.",
)
@click.option("--json", "as_json", is_flag=True, help="The last line of stdout is one JSON document.")
def check(package: Path, submitter: str | None, version: str, originals: Path | None, as_json: bool) -> int:
    """Find every problem of the package in the directory PACKAGE, each with its place, its rule and its fix.

    Nothing is changed. An error keeps a package from being accepted or makes it untrue, of a warning a reviewer will
    ask, a note says what was not looked at. Leaves with 0 where there is no error and 5 where there is one.

    \b
    python -m harness submission check out/package
    python -m harness submission check out/package --submitter ACME --originals out/originals --json
    """
    import json

    from harness.submission.check import check as check_package
    from harness.submission.claim import ROUND
    from sut.errors import ConfigError

    if version != ROUND:
        raise ConfigError(f"the rules of round {version!r} are not known here: choose {ROUND}.")
    report = check_package(package, submitter, originals)
    click.echo(report.text())
    if as_json:
        click.echo(json.dumps(report.as_json()))
    return 0 if report.passed else NOT_FIT
