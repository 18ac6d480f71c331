"""`fleet`: several models at once, then one after another."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import IO, Any

import click

from harness.cli.run import run_options
from harness.cli.study import conclude, going_on, show_study, study_options

NOT_VALID = 4


@click.command()
@click.option(
    "--member",
    "named",
    multiple=True,
    metavar="'NAME: OPTION=VALUE …'",
    help="One model with what differs from the common options; two or more.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Rounds: all at once, then each alone."
)
@study_options(scenario="Offline")
def fleet(
    named: tuple[str, ...], repeats: int, as_json: bool, quiet: bool, dry_run: bool, debug: bool, **options: Any
) -> int:
    """Do models disturb each other? All at once, then one after another, on engines that stay up.

    \b
    fleet --member 'small: model=A replicas=2' --member 'large: model=B endpoint=http://gpu-2:8000' --concurrency 16
          --min-duration 600 --samples 32        sixteen virtual users each, for ten minutes, on 32 prompts

    Each member is a process with a LoadGen of its own; env.NAME=VALUE sets its environment, such as the devices it sees
    (env.CUDA_VISIBLE_DEVICES=0,1). Exit code: 3 if a member does not come up, 4 if one has no valid
    test together or alone.
    """  # fmt: skip
    from harness.cli.variants import read_variant
    from harness.config import default_output
    from harness.progress import Progress
    from harness.run import check
    from harness.signals import raise_on_signals
    from harness.studies.fleet import Plan, round_names, run_fleet
    from harness.studies.study import open_study
    from harness.studies.variants import question_of, refuse_clashes, resolve_variant
    from sut.errors import ConfigError

    raise_on_signals()
    folder = options.pop("output_dir", None) or default_output(options["benchmark"], options["scenario"], "fleet")
    members = [read_variant(text) for text in named]
    if len(members) < 2:
        raise ConfigError("a fleet has at least two members: --member 'NAME: OPTION=VALUE …' for each.")
    refuse_clashes(members)
    configs = {member.name: check(resolve_variant({**options, "output_dir": folder}, member))[0] for member in members}
    question = {
        "members": {member.name: question_of(configs[member.name], member) for member in members},
        "repeats": repeats,
    }
    base = configs[members[0].name]
    if dry_run:
        return show_study(base, question, round_names(members, repeats), as_json)
    plan = Plan(members, configs, options, repeats)
    with going_on(folder), open_study("fleet", base, question) as study, Progress(quiet) as progress:
        found = run_fleet(study, plan, progress)
    return conclude(study, found, as_json, 0 if all(row["valid"] for row in found.rows) else NOT_VALID)


@click.command(name="fleet-member", hidden=True)
@run_options
def fleet_member(**options: Any) -> int:
    """A member of a fleet, told by its stdin what to do (harness/studies/member.py)."""
    from harness.config import resolve
    from harness.run import check
    from harness.signals import raise_on_signals
    from harness.studies.member import serve

    raise_on_signals()
    orders, say = take_pipes()
    serve(*check(resolve(**options)), orders, say)
    return 0


def take_pipes() -> tuple[IO[str], Callable[[Any], None]]:
    """stdin and stdout for this process alone: what libraries print goes to stderr, and no engine inherits an end."""
    orders, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return orders, lambda reply: print(json.dumps(reply), file=replies, flush=True)
