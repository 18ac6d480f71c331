"""`NAME: OPTION=VALUE …` and `OPTION=A,B,C`: variants of a run, read by `run`'s own parser."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from typing import Any

import click
from click.core import ParameterSource

from harness.cli.run import run
from harness.studies.variants import MAPPINGS, Variant
from sut.errors import ConfigError

Pair = tuple[str, str]

# Options of `run` that say how a command talks or what a study does, and never differ between its runs.
_NEVER = {"as_json", "quiet", "dry_run", "debug", "output_dir", "mode", "resume", "audit_dataset", "audit_config"}


def read_variant(text: str, fixed: Iterable[str] = ()) -> Variant:
    """`NAME: OPTION=VALUE …`; options that are `fixed` may not differ. Raises ConfigError."""
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not colon or not name or "=" in name:
        raise ConfigError(f"{text!r} is not of the form NAME: OPTION=VALUE OPTION=VALUE …")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"{name}: {str(error).lower()} in {rest.strip()!r}.") from error
    pairs = []
    for word in words:
        option, equals, value = word.partition("=")
        if not equals or not option:
            raise ConfigError(f"{name}: {word!r} is not of the form OPTION=VALUE.")
        pairs.append((option, value))
    return make_variant(pairs, name, fixed)


def read_axes(axes: Sequence[str], fixed: Iterable[str] = ()) -> list[Variant]:
    """Every combination of `OPTION=A,B,C`, the last one changing fastest. Raises ConfigError."""
    table: dict[str, list[str]] = {}
    for axis in axes:
        option, equals, values = axis.partition("=")
        listed = [value.strip() for value in values.split(",")]
        if not equals or not option or not all(listed):
            raise ConfigError(f"{axis!r} is not of the form OPTION=A,B,C.")
        if re.search(r"[{\[\"']", values):
            raise ConfigError(f"{axis!r}: values with brackets or quotes are for NAME: OPTION=VALUE …")
        if option in table:
            raise ConfigError(f"{option} is varied twice: name all of its values in one list.")
        table[option] = listed
    if not table:
        return []
    combinations = [list(zip(table, values, strict=True)) for values in product(*table.values())]
    return [make_variant(pairs, label(pairs), fixed) for pairs in combinations]


def make_variant(pairs: Sequence[Pair], name: str, fixed: Iterable[str]) -> Variant:
    """`env.NAME` are variables of the process, all else options of `run`. Raises ConfigError."""
    environment = {option.removeprefix("env."): value for option, value in pairs if option.startswith("env.")}
    options = read_options([pair for pair in pairs if not pair[0].startswith("env.")], name, fixed)
    return Variant(name, options, environment=environment)


def label(pairs: Sequence[Pair]) -> str:
    """A name for a combination: its values, with the shortest names of the options."""
    return " ".join(f"{option.split('.', 1)[-1]}={value}" for option, value in pairs)


def read_options(pairs: Sequence[Pair], name: str, fixed: Iterable[str] = ()) -> dict[str, Any]:
    """Options as `run` would read them, the keywords of `resolve`. Raises ConfigError that names the variant."""
    words, flags = [], {}
    for option, value in pairs:
        key, dot, inner = option.replace("-", "_").partition(".")
        parameter = find_option(key, inner if dot else None, name, fixed)
        if parameter.is_flag:
            flags[key] = read_flag(option, value, name)
        else:
            words.append(f"{parameter.opts[0]}={inner}={value}" if dot else f"{parameter.opts[0]}={value}")
    return parse(words, name) | flags


def find_option(key: str, inner: str | None, name: str, fixed: Iterable[str]) -> click.Option:
    """`run`'s option of that name. Raises ConfigError, with the nearest one, for what cannot differ."""
    known = {option.name: option for option in run.params if isinstance(option, click.Option)}
    free = [option for option in known if option and option not in _NEVER | set(fixed)]
    if key in known and key not in free:
        raise ConfigError(f"{name}: {key} is the same for all: give it as an option of its own, --{_dashed(key)}.")
    if key not in known or (inner is not None and key not in MAPPINGS):
        near = get_close_matches(key, [*free, *MAPPINGS], n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"an engine's argument is engine_arg.{key}=…"
        raise ConfigError(f"{name}: unknown option {key if inner is None else f'{key}.{inner}'!r}: {hint}")
    if key in MAPPINGS and not inner:
        raise ConfigError(f"{name}: {key} needs a name after it: {key}.NAME=VALUE.")
    return known[key]


def read_flag(option: str, value: str, name: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"{name}: {option} is {value!r}: it is true or false.")
    return value.lower() == "true"


def parse(words: Sequence[str], name: str) -> dict[str, Any]:
    """What `run` takes from these words, without its defaults."""
    try:
        context = run.make_context("run", ["--scenario=Offline", *words])
    except click.ClickException as error:
        raise ConfigError(f"{name}: {error.format_message().rstrip('.')}.") from error
    given: Mapping[str, Any] = {
        key: value
        for key, value in context.params.items()
        if context.get_parameter_source(key) is ParameterSource.COMMANDLINE
    }
    named = any(word.startswith("--scenario=") for word in words)
    return {key: value for key, value in given.items() if key != "scenario" or named}


def _dashed(key: str) -> str:
    return key.replace("_", "-")
