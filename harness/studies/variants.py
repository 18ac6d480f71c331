"""Variants of a run: what differs from the options that all runs of a study have in common, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.config import RunConfig, as_json, resolve, shown_environment, shown_options
from sut.errors import ConfigError

MAPPINGS = ("engine_arg", "engine_env")
"""Options that are themselves names with values, changed one by one."""

_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass(frozen=True)
class Variant:
    """`options` are the keywords of `resolve` that differ, `environment` the variables of its process, such as those
    that say which devices it sees; `reason` why this one is left out, if it is."""

    name: str
    options: Mapping[str, Any]
    reason: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.name).strip("_.")

    @property
    def shown(self) -> dict[str, Any]:
        """Its options flat, as a person types them: replicas, engine_arg.dtype, env.NAME; no secrets."""
        flat: dict[str, Any] = {f"env.{key}": own for key, own in shown_environment(self.environment).items()}
        for name, value in shown_options(self.options).items():
            if name in MAPPINGS:
                flat |= {f"{name}.{key}": own for key, own in value.items()}
            else:
                flat[name] = value
        return flat


def merge(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Common options with a variant's over them; engine arguments and variables one by one."""
    merged = {**common, **own}
    for name in MAPPINGS:
        merged[name] = {**(common.get(name) or {}), **(own.get(name) or {})}
    return merged


def resolve_variant(common: Mapping[str, Any], variant: Variant) -> RunConfig:
    """A variant's configuration. Raises ConfigError that names the variant."""
    try:
        return resolve(**merge(common, variant.options))
    except ConfigError as error:
        raise ConfigError(f"{variant.name}: {error}") from error


def question_of(config: RunConfig, variant: Variant) -> dict[str, Any]:
    """All that decides what a variant's runs are, as study.json holds it."""
    return as_json(config) | {"output_dir": None, "environment": shown_environment(variant.environment)}


def refuse_clashes(variants: Iterable[Variant]) -> None:
    """Raises ConfigError for names that cannot be told apart as folders, or that make none."""
    seen: dict[str, str] = {}
    for variant in variants:
        slug = variant.slug.lower()
        if not slug:
            raise ConfigError(f"the name {variant.name!r} holds no letter and no digit: choose another.")
        if slug in seen:
            raise ConfigError(f"{seen[slug]!r} and {variant.name!r} are the same name: give each one of its own.")
        seen[slug] = variant.name


def device_count(config: RunConfig) -> int:
    """Devices that a configuration takes on this machine: replicas × those that one engine spreads over."""
    size = 1
    for name in _PARALLEL:
        value = config.engine_arg.get(name, 1)
        size *= value if isinstance(value, int) and value > 0 else 1
    return config.replicas * size
