"""What differs between results, and what of it may: a comparison of unlike things says nothing about a release.

Results are laid out as flat keys: those of `config` as they are (`engine_arg.max_num_seqs`, `settings.target_qps`),
those of `environment` after that word (`environment.devices.0.name`). RULES says of each what a difference means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any, NamedTuple

from sut.errors import ConfigError


class Kind(Enum):
    """What a difference means."""

    NOISE = "noise"
    """Nothing: repeats differ in it too, and it is not shown."""
    RELEASE = "release"
    """That these are two releases: shown between releases, refused among the repeats of one."""
    CHOICE = "choice"
    """That an engine has settled on it by itself: shown between releases, and allowed among repeats."""
    IDENTITY = "identity"
    """That these are different tests: refused, unless it is the axis that a comparison is about."""


RULES: Sequence[tuple[str, Kind, str]] = (
    (r"output_dir|user_conf|ca_file", Kind.NOISE, "where files lie; what they say stands in other keys"),
    (r"target_qps|min_duration|min_queries|chosen", Kind.NOISE, "the same settings once more"),
    (r"dataset", Kind.NOISE, "its checksum tells, not its place"),
    (r"ready_timeout|(first_token|stall|request)_timeout", Kind.NOISE, "a deadline that nothing ran into"),
    (r"endpoint(\..*)?|environment\.engines\..*\.url", Kind.NOISE, "where a replica is, not what it is"),
    (r"environment\.machine\.(hostname|disks.*|network_cards.*)", Kind.NOISE, "not on the path of a query"),
    (r"environment\.devices\.\d+\.uuid", Kind.NOISE, "another board of the same kind"),
    (r"environment\.variables\.HF_.*", Kind.NOISE, "where a hub's files are kept"),
    (r"served_model|environment\.engines\..*\.(model|route|version|tokenizer|tried)", Kind.RELEASE, "how it is served"),
    (r"environment\.engines\..*\.(dialect|prompts|answers|prefix_caching|dtype)", Kind.IDENTITY, "it changes the work"),
    (r"environment\.engines\..*", Kind.CHOICE, "a default of its release, or what it found room for"),
    (r"environment\.(packages\..*|commit)", Kind.RELEASE, "versions are what a release is"),
    (r"environment\.machine\.(python|distribution)", Kind.RELEASE, "part of the image that is released"),
    (r"environment\..*", Kind.IDENTITY, "another machine"),
    (r".*", Kind.IDENTITY, "another test"),
)
"""The first pattern that fits the whole key holds. Whatever is not named here is part of what was tested."""

OPEN = ("engine_arg", "engine_env", "settings", "environment.variables", "environment.packages", "environment.drivers")
"""Tables whose keys are a person's or a machine's: one that is missing there was not set. Elsewhere it was not
recorded, by a harness that did not know it."""

GIB = 1 << 30


class Difference(NamedTuple):
    """One key that differs; `values` by name of release, None for not set or not recorded."""

    key: str
    kind: Kind
    values: Mapping[str, Any]
    named: bool = False
    """Whether it is on the axis that the comparison is about."""


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """A result's configuration and environment as flat keys."""
    flat = dict(_leaves(content.get("config", {}), ""))
    flat |= dict(_leaves(content.get("environment", {}), "environment."))
    if "environment.dataset_sha256" in flat:
        flat["dataset.sha256"] = flat.pop("environment.dataset_sha256")
    # The size of a machine's memory differs by some pages from boot to boot; a model's folder is known by its name.
    for key, value in flat.items():
        if key.endswith("memory_bytes") and isinstance(value, int):
            flat[key] = f"{value / GIB:.0f} GiB"
    if isinstance(flat.get("model"), str):
        flat["model"] = flat["model"].rstrip("/").split("/")[-1]
    return flat


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key and not key.endswith(".") else f"{key}{name}")
    elif isinstance(value, list) and any(isinstance(entry, Mapping | list) for entry in value):
        yield from _leaves({str(place): entry for place, entry in enumerate(value)}, key)
    else:
        yield key, value


def kind_of(key: str) -> Kind:
    return next(kind for pattern, kind, _ in RULES if re.fullmatch(pattern, key))


def differences(flats: Mapping[str, Mapping[str, Any]], axes: Sequence[str] = ()) -> list[Difference]:
    """What differs among results, by name, noise left out; the gravest first."""
    found = []
    for key in sorted({key for flat in flats.values() for key in flat}):
        kind = kind_of(key)
        values = {name: flat.get(key) for name, flat in flats.items()}
        told = list(values.values()) if key.startswith(OPEN) else [flat[key] for flat in flats.values() if key in flat]
        if kind is not Kind.NOISE and any(value != told[0] for value in told[1:]):
            found.append(Difference(key, kind, values, any(is_on(key, axis) for axis in axes)))
    return sorted(found, key=lambda difference: (difference.kind is not Kind.IDENTITY, difference.key))


def is_on(key: str, axis: str) -> bool:
    """Whether a key is an axis, part of it, or ends in it (`target_qps` for `settings.target_qps`); and what an engine
    tells of an argument that it was given."""
    told = key.startswith("environment.engines.") and key.endswith("." + axis.rpartition(".")[2])
    return key == axis or key.startswith(f"{axis}.") or key.endswith(f".{axis}") or told


def refuse_unlike(found: Iterable[Difference]) -> None:
    """Raises ConfigError for a difference in what was tested that is not on an axis."""
    grave = [difference for difference in found if difference.kind is Kind.IDENTITY and not difference.named]
    if not grave:
        return
    first = grave[0]
    more = f" (and {len(grave) - 1} more: {', '.join(d.key for d in grave[1:4])}…)" if len(grave) > 1 else ""
    raise ConfigError(
        f"these runs are unlike: {first.key} is {pairs(first)}{more}; if that is what you compare, say so with "
        f"--axis {axis_for([difference.key for difference in grave])}."
    )


def axis_for(keys: Sequence[str]) -> str:
    """What to name so that all of these are allowed."""
    tops = dict.fromkeys("environment" if key.startswith("environment.") else key for key in keys)
    names = [name.removeprefix("settings.") for name in tops]
    return " --axis ".join(names[:3])


def refuse_unknown_axes(axes: Sequence[str], flats: Iterable[Mapping[str, Any]]) -> None:
    """Raises ConfigError for an axis that is in no result."""
    keys = sorted({key for flat in flats for key in flat})
    for axis in axes:
        if not any(is_on(key, axis) for key in keys):
            near = get_close_matches(axis, [*keys, *(key.partition(".")[0] for key in keys)], n=1, cutoff=0.5)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ConfigError(f"--axis {axis}: no result has such a key{hint}.")


def pairs(difference: Difference) -> str:
    """`16 in old and 64 in new`."""
    return " and ".join(f"{shown(value)} in {name}" for name, value in difference.values.items())


def shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
