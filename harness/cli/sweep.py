"""`sweep`: throughput and latency by load."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from harness.cli.study import conclude, going_on, numbers, resolve_study, show_study, study_options


def choose(rates: Any, concurrency: Any, options: dict[str, Any]) -> tuple[tuple[float, ...] | None, dict[str, Any]]:
    """The loads, None for `auto`, and the options of `run` that go with their kind. Raises ConfigError for two kinds,
    or one that the scenario does not have."""
    from sut.errors import ConfigError

    if concurrency is None:
        if options["scenario"] not in ("Server", "Interactive"):
            raise ConfigError(
                f"rates are offered in Server or Interactive, and --scenario says {options['scenario']}: in Offline, "
                "--concurrency sweeps the queries in flight."
            )
        return (None if rates in (None, "auto") else rates), options
    if rates is not None:
        raise ConfigError("--rates and --concurrency are two kinds of load: choose one.")
    given = click.get_current_context().get_parameter_source("scenario") is not ParameterSource.DEFAULT
    if given and options["scenario"] != "Offline":
        raise ConfigError(
            f"--concurrency is a closed loop, which is Offline with a cap, and --scenario says {options['scenario']}."
        )
    loads = None if concurrency == "auto" else concurrency
    return loads, {**options, "scenario": "Offline", "concurrency": max(loads or (1,))}


@click.command()
@click.option(
    "--rates",
    callback=numbers(float),
    metavar="R,R,…|auto",
    help="Queries/s that LoadGen offers, in Server or Interactive.  [default: auto]",
)
@click.option(
    "--concurrency",
    callback=numbers(int),
    metavar="N,N,…|auto",
    help="Instead of rates, queries in flight: a closed loop, in Offline.",
)
@study_options("concurrency", "target_qps", scenario="Server")
def sweep(rates: Any, concurrency: Any, as_json: bool, quiet: bool, dry_run: bool, debug: bool, **options: Any) -> int:
    """How throughput and latency go with the load, and where the knee lies.

    `auto` goes from a low load up, twice as high each time, until throughput no longer grows. --min-duration and
    --min-queries are those of a point (default: 60 s or the benchmark's if shorter, and 512 queries; a closed loop
    aims at 30 s and asks 64 queries or more).

    Exit code: 0 though points beyond the knee are INVALID, 4 if no point could be measured (aborted, or queries
    failed), 2 usage, 3 set-up, 130 interrupted: the same command with its --output-dir goes on.
    """  # fmt: skip
    from harness.progress import Progress
    from harness.run import check
    from harness.signals import raise_on_signals
    from harness.studies.rig import Rig
    from harness.studies.study import open_study
    from harness.studies.sweep import announce, plan, run_sweep

    raise_on_signals()
    loads, options = choose(rates, concurrency, options)
    config, samples, tokenizer = check(resolve_study("sweep", options))
    asked, config = plan(config, loads, options["min_duration"], options["min_queries"])
    if dry_run:
        points = [asked.name(load) for load in asked.loads or (asked.start,)]
        return show_study(config, asked.question, points, as_json)
    with (
        going_on(config.output_dir),
        open_study("sweep", config, asked.question) as study,
        Progress(quiet) as progress,
        Rig(study, config, samples, tokenizer, progress) as rig,
    ):
        progress.say(announce(asked))
        found = run_sweep(asked, config, rig, progress)
    return conclude(study, found, as_json, 0 if any(row["measured"] for row in found.rows) else 4)
