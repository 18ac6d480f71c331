"""What the commands of all studies share: their options, how a folder is opened, how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.cli.run import run_options, say, talk_options

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.studies.findings import Findings
    from harness.studies.study import Study

F = TypeVar("F", bound=Callable[..., Any])

NOT_FOR_STUDIES = ("mode", "resume", "audit_dataset", "audit_config")


def study_options(*without: str, scenario: str | None = None) -> Callable[[F], F]:
    """The options of `run` but those that a study decides itself, with another default for --scenario."""

    def add(command: F) -> F:
        command = run_options(talk_options(command))
        options: list[click.Option] = command.__click_params__  # type: ignore[attr-defined]
        left_out = {*NOT_FOR_STUDIES, *without}
        options[:] = [option for option in options if option.name not in left_out]
        for option in options:
            if option.name == "scenario" and scenario is not None:
                option.required, option.default, option.show_default = False, scenario, True
        return command

    return add


def numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """An option's callback: `1,2,4` as a tuple of positive numbers, each once; None and `auto` stay what they are."""

    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[Any, ...] | str | None:
        if text is None or text == "auto":
            return text
        try:
            values = tuple(kind(word) for word in text.split(","))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,2,4.") from None
        if not all(0 < value < float("inf") for value in values):
            raise click.BadParameter(f"{text!r}: each number must be positive.")
        if len(set(values)) < len(values):
            raise click.BadParameter(f"{text!r} names a number twice: each once.")
        return values

    return read


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Say, when a study is interrupted, how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"The finished points are kept: the same command with --output-dir {folder} goes on.", err=True)
        raise


def resolve_study(name: str, options: dict[str, Any]) -> RunConfig:
    """The configuration of a study, in a folder of its own. Raises ConfigError."""
    from harness.config import default_output, resolve

    folder = options.pop("output_dir", None)
    return resolve(**options, output_dir=folder or default_output(options["benchmark"], options["scenario"], name))


def conclude(study: Study, found: Findings, as_json: bool, code: int = 0) -> int:
    """Write what was found, print it, and give the exit code."""
    from harness.results import finite
    from harness.studies import findings

    study.conclude(found)
    line = json.dumps(finite(findings.as_json(found)), allow_nan=False) if as_json else None
    say(f"{findings.as_text(found)}\nFiles: {study.folder}/", code == 0, line)
    return code


def show_study(config: RunConfig, question: dict[str, Any], points: Sequence[str], as_json: bool) -> int:
    """What --dry-run prints: the configuration and the points that would be run."""
    from harness.config import as_json as config_as_json

    plan = {"question": question, "points": list(points), "config": config_as_json(config)}
    click.echo(json.dumps(plan, indent=None if as_json else 2, default=str))
    return 0
