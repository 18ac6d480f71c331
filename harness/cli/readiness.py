"""`readiness`: how fast many replicas come up."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from harness.cli.run import COUNT, SECONDS
from harness.cli.study import conclude, going_on, resolve_study, show_study, study_options

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.studies.makers import Commands

WITHOUT = (
    "scenario", "backend", "endpoint", "offline_batch", "dispatch", "max_in_flight", "stream_interval", "user_conf",
    "target_qps", "min_duration", "min_queries", "samples", "first_token_timeout", "stall_timeout", "failure_policy",
    "concurrency", "ray_address", "no_telemetry", "replicas", "ready_timeout",
)  # fmt: skip
"""Options of LoadGen, scenarios and dispatch, which have no part in this, and two that it tells in its own words."""

OPTIONS = [
    click.option("--create-cmd", metavar="CMD",
                 help="Makes one replica, with {index}, {name}, {port}, {model} filled in; run once per replica by "
                      "/bin/sh.  Its output ends in the replica's URL, unless --endpoint-template says it."),
    click.option("--delete-cmd", metavar="CMD",
                 help="Takes one replica away, with {index}, {name}, {model}; run for each at the end, whatever "
                      "happens."),
    click.option("--endpoint-template", metavar="URL", help="Where a replica is, such as http://{name}.example:8000."),
    click.option("--replicas", type=COUNT, default=1, show_default=True, help="How many are brought up."),
    click.option("--ready-timeout", type=SECONDS, default=1800.0, show_default=True,
                 help="Seconds that a replica has from its creation to its first answer."),
    click.option("--group-size", type=COUNT, help="Replicas that are brought up at once.  [default: all]"),
    click.option("--wait/--no-wait", default=True, show_default=True,
                 help="Whether a group must be complete and validated before the next begins."),
    click.option("--pause", type=click.FloatRange(min=0, max=86400), default=0.0, show_default=True,
                 help="Seconds between groups."),
    click.option("--validate", type=click.IntRange(min=0), default=2, show_default=True,
                 help="Questions that each replica is asked when its group is complete, and again at the end."),
    click.option("--answer-tokens", type=click.IntRange(min=2), default=16, show_default=True,
                 help="Tokens of an answer at most."),
]  # fmt: skip


def readiness_options(command: Any) -> Any:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@readiness_options
@study_options(*WITHOUT)
def readiness(
    create_cmd: str | None,
    delete_cmd: str | None,
    endpoint_template: str | None,
    group_size: int | None,
    wait: bool,
    pause: float,
    validate: int,
    answer_tokens: int,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Bring up N replicas in groups, and time each from its creation to healthy to its first right answer.

    \b
    python -m harness readiness --serve --replicas 3
    python -m harness readiness --replicas 200 --group-size 20 --create-cmd 'deploy {name}' \\
        --endpoint-template 'http://{name}.models.example' --delete-cmd 'undeploy {name}'

    An answer is right if it is what most replicas say: decoding is greedy.  Exit code: 4 if any replica never came to a
    right answer, or gave a wrong one later.
    """
    from harness.config import refuse_odd_seconds
    from harness.progress import Progress
    from harness.run import check
    from harness.signals import raise_on_signals
    from harness.studies.readiness import FINAL, REMOVED, Schedule, bring_up, group_name, grouped
    from harness.studies.readiness_findings import conclude_readiness
    from harness.studies.study import open_study
    from sut.backends.remote import refuse_odd_talk

    raise_on_signals()
    refuse_odd_seconds(pause)
    refuse_odd_talk(options["dialect"])
    config, commands = resolve_readiness(create_cmd, delete_cmd, endpoint_template, validate, options)
    schedule = Schedule(min(group_size or config.replicas, config.replicas), pause, wait, validate, answer_tokens)
    groups = [group_name(number) for number in range(len(grouped(config.replicas, schedule.group_size)))]
    question = asdict(schedule) | {"commands": shown_commands(commands)}
    config, samples, tokenizer = check(config)
    if dry_run:
        return show_study(config, question, [*groups, FINAL], as_json)
    with going_on(config.output_dir), open_study("readiness", config, question) as study, Progress(quiet) as progress:

        def warn(text: str) -> None:
            click.echo(f"warning: {text}", err=True)

        bring_up(study, config, schedule, commands, samples, tokenizer, progress, warn)
        saved = {name: study.saved(name) or {} for name in (*groups, FINAL, REMOVED)}
    troubles = saved[REMOVED]["troubles"]
    found = conclude_readiness(study, [saved[name] for name in groups], saved[FINAL], troubles)
    failed = any(row["failure"] is not None for row in found.rows)
    return conclude(study, found, as_json, 4 if failed else 3 if troubles else 0)


def resolve_readiness(
    create: str | None, delete: str | None, endpoint: str | None, validate: int, options: dict[str, Any]
) -> tuple[RunConfig, Commands | None]:
    """The configuration of a study on servers behind HTTP, and what makes them if --serve does not. Raises
    ConfigError."""
    from harness.studies.makers import Commands, refuse_odd_commands
    from sut.errors import ConfigError

    serve = options.pop("serve")
    if serve == (create is not None):
        raise ConfigError("say how replicas are made: --serve for `vllm serve` here, or --create-cmd for your own.")
    if serve and (delete or endpoint):
        raise ConfigError("--delete-cmd and --endpoint-template belong to --create-cmd: what --serve starts, it stops.")
    if not serve and (options["engine_arg"] or options["engine_env"]):
        raise ConfigError("--engine-arg and --engine-env are for --serve: put them into --create-cmd.")
    config = resolve_study("readiness", {**options, "scenario": "Offline", "serve": True, "samples": max(1, validate)})
    if create is None:
        return config, None
    commands = Commands(create, delete, endpoint)
    refuse_odd_commands(commands, config.replicas)
    return replace(config, serve=False), commands


def shown_commands(commands: Commands | None) -> dict[str, str | None] | None:
    """The commands as study.json may hold them."""
    from harness.config import without_userinfo

    if commands is None:
        return None
    return {name: text and without_userinfo(text) for name, text in commands._asdict().items()}
