"""`compare`: releases or configurations from saved results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.run import PATH, say

if TYPE_CHECKING:
    from harness.studies.findings import Findings

NOT_VALID = 4


def margin(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """`2%` as 0.02."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 < share < 1 or not text.endswith("%"):
        raise click.BadParameter(f"{text!r} is not a percentage such as 2%.")
    return share


@click.command()
@click.argument("places", metavar="BASELINE RELEASE…", nargs=-1, required=True)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="KEY",
    help="What is meant to differ, such as engine_arg.max_num_seqs or environment; may be repeated.",
)
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="FIGURE:LIMIT",
    help="The most that the last release may be worse, such as ttft_s.p99:5% or rouge1:0.1; may be repeated.",
)
@click.option(
    "--metric",
    "figures",
    multiple=True,
    metavar="FIGURE",
    help="Judge this figure, or `all`; may be repeated. The fewer, the smaller the change that is seen.  "
    "[default: throughput, and TTFT, TPOT, latency at p50 and p99]",
)
@click.option(
    "--margin",
    default="2%",
    show_default=True,
    callback=margin,
    help="A change that is surely smaller is none (`same`).",
)
@click.option("--allow-invalid", is_flag=True, help="Compare runs that are not valid too; said with each.")
@click.option("--output-dir", type=PATH, help="Write findings.json, table.csv and figure.svg there.")
@click.option("--json", "as_json", is_flag=True, help="End stdout with the findings as one line of JSON.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")  # fmt: skip
def compare(
    places: tuple[str, ...],
    axes: tuple[str, ...],
    gates: tuple[str, ...],
    figures: tuple[str, ...],
    margin: float,
    allow_invalid: bool,
    output_dir: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Compare releases or configurations, in the order given, from their saved results.

    Each is a run's folder or a folder with the runs of its repeats; NAME=DIR names it. The first is the baseline. With
    one run of each nothing can be told: how much runs differ by themselves is seen in repeats (5 of each, in turns).

    Exit code: 0 compared, 2 usage, runs that are unlike or no results, 3 a damaged file, or a gate that these runs
    cannot decide, 4 a run that is not valid, 5 a gate broken.
    """
    from harness.results import finite
    from harness.studies import compare as study
    from harness.studies import findings, gate
    from harness.studies.comparison import Asked, compare_releases
    from harness.studies.releases import invalid_runs, read_releases

    asked = Asked(axes, figures, [gate.parse(text) for text in gates], margin)
    refuse_used(output_dir)
    releases = read_releases(places)
    invalid = invalid_runs(releases)
    if invalid and not allow_invalid:
        result = invalid[0].result
        more = f" ({len(invalid)} such runs)" if len(invalid) > 1 else ""
        click.echo(
            f"error: {result.folder} is NOT VALID{more}, and has no figures to compare: {study.first_reason(result)}; "
            "--allow-invalid compares it all the same.",
            err=True,
        )
        return NOT_VALID
    found = compare_releases(releases, asked)
    told = study.as_findings(found)
    text = study.as_text(found, told) + write(told, output_dir)
    line = json.dumps(finite(findings.as_json(told)), allow_nan=False) if as_json else None
    say(text, found.exit_code == 0, line)
    return found.exit_code


def refuse_used(folder: Path | None) -> None:
    """Raises ConfigError for a folder in which something would be written over."""
    from sut.errors import ConfigError

    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty: choose another --output-dir, nothing is overwritten.")


def write(told: Findings, folder: Path | None) -> str:
    """Write the findings where they are asked for; the line that says so."""
    from harness.studies.study import Study

    if folder is None:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    Study("compare", folder).conclude(told)
    return f"\nFiles: {folder}/"
