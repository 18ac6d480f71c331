"""The kinds of replica, by name, each imported only when asked for: a missing engine hurts only who wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from sut.backend import Backend
from sut.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Generation:
    """How answers are made; nothing here is left to a backend's default. Greedy unless a benchmark says otherwise."""

    max_tokens: int
    min_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    ignore_eos: bool = False


class Codec(Protocol):
    """The model's tokenizer, for replicas that take or give text."""

    def encode(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Token ids of each text, begun by the beginning-of-sequence id if the tokenizer has one."""

    def decode(self, answers: Sequence[Sequence[int]]) -> Sequence[str]:
        """Texts without special tokens."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backend's factory needs to build its replicas.

    `max_model_len` counts prompt and answer tokens. `batch` says that all work is there from the beginning (Offline),
    so that only throughput counts.

    For remote replicas: `endpoints` are their URLs, or with `serve` that many servers are started here. `offline_batch`
    prompts travel in one request. `tokens_now` asks a replica that answers in text for token ids at once, not only for
    how many there were. The API key is in no plan: it stays in the environment.

    `ray_address`: the Ray cluster, "auto" for the one that this machine belongs to.
    `gauges`: engines in this process keep count of what they are doing.
    """

    replicas: int
    model: str
    dtype: str
    max_model_len: int | None
    generation: Generation
    stream_interval: int | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    engine_env: Mapping[str, str] = field(default_factory=dict)
    log_dir: Path | None = None
    batch: bool = False
    endpoints: Sequence[str] = ()
    serve: bool = False
    served_model: str | None = None
    dialect: str | None = None
    offline_batch: int = 1
    max_in_flight: int | None = None
    ca_file: Path | None = None
    insecure: bool = False
    ready_timeout: float = 1800.0
    tokens_now: bool = False
    ray_address: str | None = None
    gauges: bool = False
    codec: Codec | None = None


Factory = Callable[[Plan], Sequence[Backend]]


def _echo(plan: Plan) -> Sequence[Backend]:
    from sut.backends.echo import make_replicas

    return make_replicas(plan)


def _vllm(plan: Plan) -> Sequence[Backend]:
    from sut.backends.vllm_engine import make_replicas

    return make_replicas(plan)


def _remote(plan: Plan) -> Sequence[Backend]:
    from sut.backends.remote import make_replicas

    return make_replicas(plan)


def _ray(plan: Plan) -> Sequence[Backend]:
    from sut.backends.ray_engine import make_replicas

    return make_replicas(plan)


BACKENDS: dict[str, Factory] = {"vllm": _vllm, "remote": _remote, "ray": _ray, "echo": _echo}


def make_backends(name: str, plan: Plan) -> Sequence[Backend]:
    """The replicas' backends, not yet started. Raises ConfigError for an unknown name, argument or value."""
    try:
        factory = BACKENDS[name]
    except KeyError:
        raise ConfigError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}.") from None
    return factory(plan)


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Raises ConfigError, naming the nearest known name, for the first name that is not known."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
            raise ConfigError(f"unknown {what} {name!r}: {hint}")
