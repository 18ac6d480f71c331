"""What a server is, found out before the clock starts, and whether it is still there while it runs.

A server that would spoil a test is refused here: one of another model or tokenizer, one that samples, one that does not
say what an answer needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from sut.backends import Plan
from sut.backends.dialects import DIALECTS, Answer, Asking, Dialect, Stream
from sut.backends.http import KEY, UNREADABLE, Origin, Pool, failure_of, fetch, request_bytes
from sut.errors import (
    Disconnected,
    ErrorFrame,
    Malformed,
    Miscounted,
    QueryFailed,
    Rejected,
    ServerError,
    SetupError,
    Unreachable,
)
from sut.query import Tokens, as_tokens

FIRST_LIMIT = 120.0
"""Seconds that a server may take for its first answers: some compile then."""

SYNTHETIC = tuple(range(100, 116))
"""A prompt that is no sample: MLCommons' rules forbid to warm up on those."""

GREEDY_TRIES, GREEDY_TOKENS = 4, 16

LOOK_LIMIT = 10.0
"""Seconds that a look at a replica may take."""

METRICS_LIMIT = 5.0
"""Seconds that a server has for its metrics before the clock starts."""


class Prompts:
    """All samples' prompts as JSON, rendered once for all replicas that take them in the same form."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._source: Sequence[Tokens] = ()
        self._rendered: dict[bool, list[bytes]] = {}

    def render(self, prompts: Sequence[Tokens], as_ids: bool) -> list[bytes]:
        if prompts is not self._source:  # another test's samples
            self._source, self._rendered = prompts, {}
        if as_ids not in self._rendered:
            self._rendered[as_ids] = [self.one(prompt, as_ids) for prompt in prompts]
        return self._rendered[as_ids]

    def one(self, prompt: Tokens, as_ids: bool) -> bytes:
        ids = prompt.tolist()
        if as_ids:
            return msgspec.json.encode(ids)
        assert self._plan.codec is not None, "a text dialect is refused without a tokenizer"
        return msgspec.json.encode(self._plan.codec.decode([ids])[0])


@dataclass(frozen=True, slots=True)
class Found:
    """What a server turned out to be. `limit` is the most tokens of prompt and answer together, where it says so."""

    model: str
    dialect: Dialect
    limit: int | None
    facts: Mapping[str, Any]


class Probe:
    """Short talks with one server, on connections of their own."""

    def __init__(self, origin: Origin, plan: Plan, prompts: Prompts, pool: Pool) -> None:
        self._origin = origin
        self._plan = plan
        self._prompts = prompts
        self._pool = pool

    async def find_out(self) -> Found:
        """Its model, the best dialect that it speaks, and that it decodes greedily. Raises SetupError."""
        try:
            models = await self._models()
            model = choose_model(self._plan.served_model, models, self._origin)
            dialect = await self._choose_dialect(model)
            await self._check_greedy(model, dialect)
            facts = await self._facts(model, dialect)
        except QueryFailed as error:
            raise SetupError(f"{self._origin} is not ready: {error}.") from error
        except TimeoutError as error:
            raise SetupError(f"{self._origin} has not answered a short prompt within {FIRST_LIMIT:g} s.") from error
        if why := (await self.look())[0]:
            raise SetupError(f"{why}: the harness looks there to see that a replica is alive.")
        listed = next((entry for entry in models or [] if entry["id"] == model), {})
        limit = listed.get("max_model_len")
        return Found(model, dialect, limit if isinstance(limit, int) else None, facts | {"max_model_len": limit})

    async def _choose_dialect(self, model: str) -> Dialect:
        families = [self._plan.dialect] if self._plan.dialect else list(DIALECTS)
        refusals: list[str] = []
        for dialect in (dialect for family in families for dialect in DIALECTS[family]):
            why = await self._why_not(model, dialect)
            if why is None:
                return dialect
            if why not in refusals:
                refusals.append(why)
        named = f"the dialect {self._plan.dialect}" if self._plan.dialect else "no dialect known here"
        does = "does not speak" if self._plan.dialect else "speaks"
        raise SetupError(f"{self._origin} {does} {named}: {'; '.join(refusals)}.")

    async def _models(self) -> list[dict[str, Any]] | None:
        status, body = await self._get("/v1/models")
        if status in (401, 403):
            raise SetupError(f"{self._origin} refuses the API key: set the environment variable {KEY}.")
        if status != 200:
            return None
        try:
            listed = msgspec.json.decode(body)["data"]
            return [model for model in listed if isinstance(model["id"], str)]
        except (*UNREADABLE, KeyError, TypeError):
            return None

    async def _why_not(self, model: str, dialect: Dialect) -> str | None:
        """Why this dialect does not serve here, or None."""
        plan, route = self._plan, dialect.path(stream=False)
        if plan.offline_batch > 1 and not dialect.many:
            return f"{route} takes no batches"
        if not dialect.ids_in and plan.codec is None:
            return f"{route} takes text, which needs a tokenizer"
        for stream in (False,) if plan.batch else (False, True):
            does = "streams" if stream else "answers"
            try:
                answer = await self.ask(model, dialect, tokens=4, stream=stream)
            except Rejected as error:
                return f"{route} {does} {error}"
            except (ServerError, Malformed, ErrorFrame, Miscounted, Disconnected) as error:
                return f"{route}: {error}"
            if answer.finish is None:
                return f"{route} {does} without a finish reason"
            if dialect.ids_out and not answer.tokens:
                return f"{route} {does} without token ids"
            if not dialect.ids_out and answer.said is None:
                return f"{route} {does} without saying how many tokens there are (usage)"
        return None

    async def _facts(self, model: str, dialect: Dialect) -> dict[str, Any]:
        status, body = await self._get("/version")
        version = None
        if status == 200:
            with suppress(*UNREADABLE, AttributeError):
                version = msgspec.json.decode(body).get("version")
        return {
            "url": str(self._origin),
            "dialect": dialect.name,
            "tried": dialect.tried,
            "route": dialect.path(not self._plan.batch),
            "prompts": "token ids" if dialect.ids_in else "text",
            "answers": "token ids" if dialect.ids_out else "text",
            "model": model,
            "version": version,
            **await self._cache(),
            "tokenizer": await self._compare_tokenizers(model),
        }

    async def _cache(self) -> dict[str, bool | int | None]:
        """None too where /metrics do not answer: nothing else depends on them."""
        status, metrics = 0, b""
        with suppress(QueryFailed, TimeoutError):
            status, metrics = await self._get("/metrics", METRICS_LIMIT)
        return {
            "prefix_caching": prefix_caching(status, metrics),
            "kv_cache_tokens": kv_cache_tokens(status, metrics),
        }

    async def _check_greedy(self, model: str, dialect: Dialect) -> None:
        """Refuse a server that samples although temperature 0 is asked: its answers to one prompt would differ.

        Two different answers are let pass: in bfloat16 a near tie may fall either way.
        """
        if self._plan.generation.temperature != 0:
            return
        answers = [await self.ask(model, dialect, GREEDY_TOKENS) for _ in range(GREEDY_TRIES)]
        if len({(answer.tokens.tobytes(), "".join(answer.texts)) for answer in answers}) > 2:
            raise SetupError(
                f"{self._origin} samples although temperature 0 is asked: {GREEDY_TRIES} answers to one prompt differ; "
                "look at its generation config."
            )

    async def _compare_tokenizers(self, model: str) -> str:
        """Whether the server cuts a text as we do, where it tells. Raises SetupError if it does otherwise."""
        codec, text = self._plan.codec, "The quick brown fox, 1234 jumps — über\n den Zaun."
        if codec is None:
            return "not checked"
        body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
        status, answer = await self._post("/tokenize", body)
        theirs = None
        with suppress(*UNREADABLE, KeyError, TypeError):
            theirs = msgspec.json.decode(answer)["tokens"] if status == 200 else None
        if not isinstance(theirs, list) or not all(isinstance(token, int) for token in theirs):
            return "not checked"
        if theirs != list(without_head(codec.encode([text])[0], codec.encode([""])[0])):
            raise SetupError(
                f"{self._origin} has another tokenizer than {self._plan.model}: name the model that it serves with "
                "--model."
            )
        return "the same"

    async def ask(self, model: str, dialect: Dialect, tokens: int, stream: bool = False) -> Answer:
        """One short synthetic prompt. Raises QueryFailed or TimeoutError."""
        how = replace(self._plan.generation, max_tokens=tokens)
        before, after = dialect.body(Asking(model, how, stream, max(1, tokens)))
        prompt = self._prompts.one(as_tokens(SYNTHETIC), dialect.ids_in)
        if self._plan.offline_batch > 1:
            prompt = b"[" + prompt + b"]"
        status, body = await self._post(dialect.path(stream), before + prompt + after)
        if status != 200:
            raise failure_of(status, body, None)
        if not stream:
            return dialect.whole(body, 1)[0]
        reader = Stream(dialect)
        reader.feed([body])
        reader.finish()
        return reader.answer

    async def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        return await fetch(self._pool, request_bytes(self._origin.head("POST", path, headers()), body), FIRST_LIMIT)

    async def _get(self, path: str, limit: float = FIRST_LIMIT) -> tuple[int, bytes]:
        return await fetch(self._pool, request_bytes(self._origin.head("GET", path, headers()), b""), limit)

    async def look(self) -> tuple[str | None, bool]:
        """What is wrong with the replica, if anything, and whether that is beyond doubt."""
        try:
            status, _ = await self._get("/health", LOOK_LIMIT)
        except Unreachable as error:
            return str(error), True
        except TimeoutError:
            return f"{self._origin} does not answer /health within {LOOK_LIMIT:g} s", False
        except QueryFailed as error:
            return f"{self._origin} does not answer /health: {error}", False
        return (f"{self._origin} says that it is not healthy (HTTP {status})", True) if status >= 500 else (None, False)

    async def answers(self, found: Found) -> bool:
        """Whether it answers a prompt."""
        try:
            answer = await self.ask(found.model, found.dialect, tokens=4)
        except (QueryFailed, TimeoutError):
            return False
        return bool(answer.tokens) or bool(answer.said)


def prefix_caching(status: int, metrics: bytes) -> bool | None:
    """Whether a server reuses prompts' caches, as vLLM's /metrics tell; None where they do not."""
    found = re.search(rb'cache_config_info\{[^}]*enable_prefix_caching="(True|False)"', metrics)
    return found[1] == b"True" if status == 200 and found else None


def kv_cache_tokens(status: int, metrics: bytes) -> int | None:
    """How many tokens a server's KV cache holds, as vLLM's /metrics tell; None where they do not."""
    found = re.search(rb'cache_config_info\{[^}]*kv_cache_size_tokens="(\d+)"', metrics)
    return int(found[1]) if status == 200 and found else None


def choose_model(asked: str | None, models: Sequence[Mapping[str, Any]] | None, origin: Origin) -> str:
    """The name to ask for. Raises SetupError if it is not served, or not to be known."""
    if not models:  # `transformers serve` lists what is in its cache, which may be nothing
        if asked is None:
            raise SetupError(f"{origin} does not list its models: name the one to ask for with --served-model.")
        return asked
    names = [str(model["id"]) for model in models]
    if asked is not None:
        if asked not in names:
            raise SetupError(f"{origin} does not serve {asked!r}: it serves {', '.join(names)}.")
        return asked
    bases = [str(model["id"]) for model in models if not model.get("parent")]  # vLLM lists adapters too
    if len(bases) != 1:
        raise SetupError(f"{origin} serves {', '.join(names)}: choose with --served-model.")
    return bases[0]


def without_head(ids: Sequence[int], head: Sequence[int]) -> Sequence[int]:
    """Token ids of a text without what the tokenizer puts before any text."""
    return ids[len(head) :] if list(ids[: len(head)]) == list(head) else ids


def headers() -> dict[str, str]:
    """Of every request. The API key lives in the environment only."""
    key = os.environ.get(KEY)
    return {"Content-Type": "application/json", "Accept": "*/*"} | ({"Authorization": f"Bearer {key}"} if key else {})
