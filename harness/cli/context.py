"""`context`: the longest prompt that a server takes, and what length costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from harness.cli.run import COUNT, literal
from harness.cli.study import conclude, going_on, numbers, resolve_study, show_study, study_options

if TYPE_CHECKING:
    from harness.config import RunConfig

SCENARIO = "SingleStream"

DECIDED = ("scenario", "dataset", "samples", "replicas", "dispatch", "offline_batch", "max_in_flight", "failure_policy",
           "concurrency", "target_qps", "min_duration", "min_queries", "stall_timeout")  # fmt: skip
"""Options of `run` that this study decides: one replica, one prompt at a time, made up, until it fails."""

_NAMED = re.compile(r"\s*([\w.-]+)\s*:\s*(.+)", re.DOTALL)
_COMMA = re.compile(r""",\s*(?=[A-Za-z_][\w.-]*=)""")
"""A comma before the next K=, so that a value may hold commas itself."""

Variation = tuple[dict[str, Any], dict[str, str]]


def configurations(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Variation]:
    """`NAME: K=V, K=V` options as engine arguments and environment variables by name."""
    table: dict[str, Variation] = {}
    for value in values:
        named = _NAMED.fullmatch(value)
        words = [word.partition("=") for word in _COMMA.split(named[2])] if named else []
        if named is None or not all(key.strip() and equals for key, equals, _ in words):
            raise click.BadParameter(f"{value!r} is not of the form NAME: KEY=VALUE, KEY=VALUE.")
        if named[1] in table:
            raise click.BadParameter(f"the name {named[1]!r} stands twice.")
        pairs = [(key.strip(), text.strip()) for key, _, text in words]
        arguments = {key.replace("-", "_"): literal(text) for key, text in pairs if not key.isupper()}
        table[named[1]] = arguments, {key: text for key, text in pairs if key.isupper()}
    return table


def vary(config: RunConfig, variations: Mapping[str, Variation]) -> dict[str, RunConfig]:
    """The configurations by name: the variations, or each endpoint, or the one there is. Raises ConfigError."""
    from dataclasses import replace

    from sut.errors import ConfigError

    if variations and config.endpoint:
        raise ConfigError("--configuration is for engines started here: an endpoint has its own, and a row of its own.")
    if config.endpoint:
        names = [re.sub(r"[^\w.-]+", "-", url.partition("//")[2] or url).strip("-") for url in config.endpoint]
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
            raise ConfigError(f"two endpoints would be the row {twice}: ask one of them in a study of its own.")
        return {
            name: replace(config, endpoint=(url,), replicas=1) for name, url in zip(names, config.endpoint, strict=True)
        }
    if not variations:
        return {"serve" if config.serve else config.backend: config}
    return {
        name: replace(
            config,
            engine_arg={**config.engine_arg, **arguments},
            engine_env={**config.engine_env, **variables},
            dtype=str(arguments.get("dtype", config.dtype)),
        )
        for name, (arguments, variables) in variations.items()
    }


@click.command()
@click.option("--start", type=COUNT, default=1024, show_default=True, help="The first prompt's tokens.")
@click.option(
    "--factor",
    type=click.FloatRange(min=1, min_open=True),
    default=2.0,
    show_default=True,
    help="How many times as long the next one is.",
)
@click.option("--lengths", callback=numbers(int), metavar="N,N,…", help="These lengths, instead of growing ones.")
@click.option("--longest", type=COUNT, default=1 << 24, show_default=True, help="Where growth ends in any case.")
@click.option(
    "--output-tokens",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="Tokens of each answer, whatever the model would say.",
)
@click.option("--repeats", type=COUNT, default=3, show_default=True, help="Queries that a length is measured with.")
@click.option(
    "--configuration",
    "variations",
    multiple=True,
    callback=configurations,
    metavar="'NAME: K=V, K=V'",
    help="Engine arguments, and in capitals environment variables, of one row; may be repeated.",
)
@study_options(*DECIDED)
def context(
    start: int, factor: float, lengths: Sequence[int] | None, longest: int, output_tokens: int, repeats: int,
    variations: dict[str, Variation], as_json: bool, quiet: bool, dry_run: bool, debug: bool, **options: Any,
) -> int:  # fmt: skip
    """Find the longest prompt that is answered, why not a longer one, and what length costs.

    Prompts grow until the server refuses one, the engine's context is full, memory runs out, a deadline passes or the
    engine dies; then the edge is bisected. One prompt at a time; each endpoint, or --configuration, is a row.
    --request-timeout is for one prompt [default: by the time of the one before].

    Exit code: 0 found, 2 usage, 3 no prompt was answered by some configuration, 130 interrupted.
    """
    from harness.progress import Progress
    from harness.signals import raise_on_signals
    from harness.studies.context import Question, asked_of, exit_code, run_context, study_config
    from harness.studies.edge import Growth
    from harness.studies.study import open_study

    raise_on_signals()
    ordered = tuple(sorted(set(lengths))) if lengths else ()
    question = Question(Growth(start, factor, longest, ordered), repeats, options["request_timeout"])
    resolved = resolve_study("context", {**options, "scenario": SCENARIO, "dataset": "made-up prompts"})
    config = study_config(resolved, output_tokens, repeats)
    configs = vary(config, variations)
    if dry_run:
        return show_study(config, asked_of(question, configs), list(configs), as_json)
    with (
        going_on(config.output_dir),
        open_study("context", config, asked_of(question, configs)) as study,
        Progress(quiet) as progress,
    ):
        found = run_context(study, question, configs, progress)
    return conclude(study, found, as_json, exit_code(found))
