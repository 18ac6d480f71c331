"""`peak`: the highest Server rate that LoadGen calls VALID."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.run import COUNT
from harness.cli.study import conclude, going_on, resolve_study, show_study, study_options

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@study_options("concurrency", scenario="Server")
@click.option("--offline-result", type=FOLDER, help="A saved Offline run: begin near what it reached.")
@click.option(
    "--repeats",
    type=COUNT,
    help="Tests at the peak, most of them VALID.  [default: 3, or 1 where a test lasts two minutes or more]",
)
@click.option("--quick", is_flag=True, help="No tests of full length: an estimate from short ones.")
@click.option("--confirm", is_flag=True, help="At the end the test itself at the peak, as `run` would run it.")
def peak(
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    debug: bool,
    offline_result: Path | None,
    repeats: int | None,
    quick: bool,
    confirm: bool,
    **options: Any,
) -> int:
    """Find the highest rate of Server or Interactive that LoadGen calls VALID.

    Short probes at rising rates, stopped when hopeless, then tests of full length at the edge, until one is VALID and
    one at most 2 % above it is not. Begins at --target-qps. The same command with the same --output-dir goes on with a
    search that was interrupted.

    Exit code: 0 found, 2 usage, 3 set-up, 4 no rate is valid or the peak did not hold, 130 interrupted.
    """
    from harness.progress import Progress
    from harness.run import check
    from harness.signals import raise_on_signals
    from harness.studies import peak as study
    from harness.studies.rig import Rig
    from harness.studies.search import Ask, next_step
    from harness.studies.study import open_study

    study.refuse_scenario(options["scenario"])
    raise_on_signals()
    config, samples, tokenizer = check(resolve_study("peak", options))
    start = study.start_from(offline_result, config) if offline_result else None
    terms = study.make_terms(config, len(samples), start, repeats, quick, config.generation.max_tokens)
    question = {"start": terms.start, "repeats": terms.times, "quick": quick, "confirm": confirm}
    if dry_run:
        first = next_step(terms, [])
        assert isinstance(first, Ask)
        return show_study(config, question, [f"first: {first.rate:g} queries/s for {first.seconds:g} s"], as_json)
    confirmation = None
    with (
        Progress(quiet) as progress,
        going_on(config.output_dir),
        open_study("peak", config, question) as folder,
        Rig(folder, config, samples, tokenizer, progress) as rig,
    ):
        made, answer = study.search(rig, terms)
        if confirm and answer.rate is not None:
            last = Ask("full", True, answer.rate, terms.seconds, terms.queries, 0)
            confirmation = study.make_probe(rig, terms, last, study.CONFIRMATION, to_the_end=True)
        found = study.conclude(config, terms, made, answer, confirmation)
        good = answer.rate is not None and (confirmation is None or bool(confirmation.result["valid"]))
        code = conclude(folder, found, as_json, 0 if good else 4)
    return code
