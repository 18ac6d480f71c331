"""`doctor`: what of this machine can be used, and what stands in the way."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from harness.cli.run import EXISTING, PATH

IN_THE_WAY = 3


@click.command()
@click.option("--output-dir", type=PATH, default=Path("results"), show_default=True, help="Where results would go.")
@click.option(
    "--endpoint",
    multiple=True,
    metavar="URL",
    help="A server to be asked a few short prompts, as a run does before its clock; may be repeated.",
)
@click.option("--model", default="", help="What the endpoints should serve: its tokenizer is compared with theirs.")
@click.option("--ca-file", type=EXISTING, help="Certificates to trust for https.  [default: the system's]")
@click.option("--insecure", is_flag=True, help="Do not verify certificates.")
@click.option("--json", "as_json", is_flag=True, help="End stdout with the findings as one line of JSON.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")
def doctor(
    output_dir: Path,
    endpoint: tuple[str, ...],
    model: str,
    ca_file: Path | None,
    insecure: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Say what of this machine can be used, and what stands in the way of a true run.

    Each finding is ok, a note or a problem, with what to do next. Nothing is changed. Exit code: 0 nothing stands in
    the way, 2 usage, 3 a problem.
    """
    import json

    from harness.doctor import NOTE, PROBLEM, examine

    words = (model, str(ca_file or ""), "insecure" if insecure else "")
    findings = []
    for finding in examine(output_dir, [(url, *words) for url in dict.fromkeys(endpoint)]):
        findings.append(finding)
        tell(finding.line())
    problems, notes = (sum(finding.mark == mark for finding in findings) for mark in (PROBLEM, NOTE))
    tell(f"{problems or 'Nothing'} in the way, {notes} to note.")
    if as_json:
        tell(json.dumps({"ready": not problems, "findings": [finding._asdict() for finding in findings]}))
    return IN_THE_WAY if problems else 0


def tell(line: str) -> None:
    """Print at once; the exit code stands even where whoever read stdout has gone."""
    with suppress(BrokenPipeError):
        print(line, flush=True)
