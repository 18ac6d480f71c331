"""`compliance`: plan, run and verify the compliance tests of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from harness.cli.run import PATH, run_and_report, run_options, show_plan


@click.group()
def compliance() -> None:
    """Compliance tests (TEST06, TEST07, TEST09): plan, run, verify.

    `run --mode submission` runs what a benchmark asks for by itself, on the same start of the engines.
    """


@compliance.command()
@click.option("--benchmark", required=True, help="Whose tests; any other name lists them.")
@click.option("--output", type=PATH, help="Write each test's audit.config into this folder.")
def plan(benchmark: str, output: Path | None) -> int:
    """Show which tests a benchmark asks for, and the settings of each."""
    from harness import benchmarks
    from harness.audits import AUDITS
    from harness.compliance import write_new

    names = benchmarks.find(benchmark).audits
    if not names:
        click.echo(f"{benchmark} asks for no compliance test.")
    for name in names:
        click.echo(f"{AUDITS[name].text()}# logs {AUDITS[name].samples:,} answers\n")
        if output is not None:
            path = output / name / "audit.config"
            write_new(path, AUDITS[name].text())
            click.echo(f"written: {path}\n")
    return 0


@compliance.command(name="run")
@click.argument("test")
@run_options
@click.option("--json", "as_json", is_flag=True, help="End stdout with the result as one line of JSON.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--dry-run", is_flag=True, help="Resolve, check and print; start nothing.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")
def run_one(test: str, as_json: bool, quiet: bool, dry_run: bool, debug: bool, **options: Any) -> int:
    """Run one TEST that the benchmark asks for and verify its log; takes the options of a performance `run`.

    Exit code: 0 passed, 2 usage, 3 set-up or not decided here, 4 not valid, 5 not passed, 130 interrupted.
    """
    from harness.audits import AUDITS
    from harness.config import one_of, resolve
    from harness.parts import as_audit
    from harness.run import check
    from harness.signals import raise_on_signals
    from sut.errors import ConfigError

    raise_on_signals()
    one_of(test, AUDITS, "compliance test")
    config = resolve(**options)
    if test not in config.row.audits:
        asks = " and ".join(config.row.audits) or "no compliance test"
        raise ConfigError(f"{config.benchmark} asks for {asks}, not for {test}.")
    config, samples, tokenizer = check(as_audit(config, test))
    if dry_run:
        return show_plan(config, samples, tokenizer, as_json)
    return run_and_report(config, samples, tokenizer, as_json, quiet)


# What a compliance test is: a performance run with settings and samples of its own.
_DECIDED = {"mode", "audit_config", "audit_dataset", "resume"}
run_one.params = [option for option in run_one.params if option.name not in _DECIDED]


@compliance.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--test", help="TEST06, TEST07 or TEST09.  [default: what the log's settings say]")
@click.option("--scenario", help="Needed for Interactive runs of another harness.  [default: what the log says]")
@click.option("--model", help="Folder or hub id, for its end-of-sequence ids.  [default: the run's]")
@click.option("--eos", type=int, multiple=True, help="An end-of-sequence id; may be repeated.  [default: the model's]")
@click.option("--accuracy-script", metavar="CMD", help="Scores TEST07's log; {accuracy_log} is where its path goes.")
@click.option("--output", type=PATH, help="Also write the verifier's file into this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")
def verify(
    folder: Path,
    test: str | None,
    scenario: str | None,
    model: str | None,
    eos: tuple[int, ...],
    accuracy_script: str | None,
    output: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Verify the logs of a compliance run in FOLDER, also another harness's.

    Exit code: 0 passed, 3 not decided here, 5 not passed.
    """
    from harness import compliance as rules
    from harness import report
    from harness.run import find_model
    from sut.errors import ConfigError

    found = rules.recognise(folder, test, scenario, model)
    if not eos and found.test == "TEST06":
        if found.model is None:
            raise ConfigError("TEST06 needs the model's end-of-sequence ids: name --model, or the ids with --eos.")
        eos = tuple(rules.eos_ids(find_model(found.model)))
    verdict = rules.verify(found.test, folder, found.scenario, eos, accuracy_script)
    if output is not None:
        rules.save(verdict, output)
    lines = (
        [json.dumps(verdict.as_json())]
        if as_json
        else [line[2:] for line in report.compliance_lines(verdict.as_json())]
    )
    click.echo("\n".join(lines))
    return {True: 0, False: 5, None: 3}[verdict.passed]
