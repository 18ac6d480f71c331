"""A deterministic simulator of a continuously batching engine: the tutorial, the rehearsal and the test double.

    python -m harness --scenario Server --backend echo --engine-arg slots=64 --engine-arg ttft=0.02 --engine-arg
    tpot=0.002

A query waits for one of `slots`, gives its first token after `ttft` seconds and `prefill` more per token of its prompt,
and each further one after `tpot`. The answer is the prompt, repeated to the length asked for, as a real int32 array.
With `max_model_len`, prompt and answer together must not be longer. Nothing here is random but by `seed`.
"""

from __future__ import annotations

import asyncio
import heapq
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf, isfinite
from time import perf_counter
from typing import Any

import numpy as np

from sut.backend import Backend, Gauges, Sink
from sut.backends import Plan, refuse_unknown
from sut.errors import BackendError, ConfigError, Rejected, ReplicaDied
from sut.query import NO_TOKENS, Outcome, Query, Tokens

END = 2  # the end-of-sequence id of the Llama-2 family and of the demo's tokenizer

FAULTS = {
    "error": "the query fails",
    "raise": "submit itself raises",
    "die": "the replica dies, for `down` seconds or for good",
    "stall-before": "no first token ever comes",
    "stall-after": "nothing comes after the first token",
    "one-token": "the answer has one token",
    "no-tokens": "the answer is empty",
    "abort": "the stream ends normally with the finish reason 'abort', as a vLLM engine does that is shut down",
    "twice": "the end of the answer is reported twice",
    "other-head": "the whole answer does not begin with the first token",
}


@dataclass(frozen=True, slots=True)
class EchoOptions:
    """What `--engine-arg K=V` takes. `fault` strikes each `fault_every`-th query of `fault_replica` (-1: of all)."""

    slots: int = 64
    ttft: float = 0.0
    tpot: float = 0.0
    prefill: float = 0.0
    max_model_len: int = 0
    tokens: str = "32"
    jitter: float = 0.0
    seed: int = 0
    slowdown: float = 1.0
    """Each replica is this many times as slow as the one before it."""
    fault: str = ""
    fault_every: int = 10
    fault_replica: int = -1
    down: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """A query in a slot. `due` is when its next event happens: the first token, then the end."""

    query: Query
    sink: Sink
    tokens: Tokens
    end: float
    fault: str
    due: float
    begun: bool = False
    cancelled: bool = False

    def __lt__(self, other: Job) -> bool:
        return self.due < other.due


class Echo:
    """One simulated replica."""

    drains = False

    def __init__(self, index: int, options: EchoOptions) -> None:
        self._options = options
        self._low, self._high = _token_range(options.tokens)
        slower = options.slowdown**index
        self._ttft, self._tpot = options.ttft * slower, options.tpot * slower
        self._prefill = options.prefill * slower
        self._strikes = bool(options.fault) and options.fault_replica in (-1, index)
        self._seen = 0
        self._waiting: OrderedDict[int, tuple[Query, Sink]] = OrderedDict()
        self._jobs: dict[int, Job] = {}
        self._events: list[Job] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._dead: str | None = None
        self._back = 0.0
        self._prompt_tokens = self._answer_tokens = 0
        self.capacity = 2 * options.slots
        self.facts: Mapping[str, Any] = asdict(options)

    async def start(self) -> None:
        pass

    async def prepare(self, prompts: Sequence[Tokens]) -> None:
        pass

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._jobs.clear()
        self._waiting.clear()

    def trouble(self) -> str | None:
        if self._dead is not None and self._back and perf_counter() > self._back:
            self._dead = None
        return self._dead

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        self._waiting.update((query.id, (query, sink)) for query in queries)
        self._pump()

    def cancel(self, query: Query) -> None:
        job = self._jobs.pop(query.id, None)
        if job is not None:
            job.cancelled = True
            asyncio.get_running_loop().call_soon(self._pump)
        else:
            self._waiting.pop(query.id, None)

    def gauges(self) -> Gauges:
        """Prompts count when they get a slot, answers when they are complete; a simulator has no KV cache."""
        counted = {"prompt_tokens": self._prompt_tokens, "generation_tokens": self._answer_tokens}
        return Gauges(len(self._jobs), len(self._waiting), **counted)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Fill free slots and ring what is due, until neither is left; then have the timer ring for the next event."""
        while True:
            while self._waiting and len(self._jobs) < self._options.slots and self._dead is None:
                self._begin(*self._waiting.popitem(last=False)[1])
            if not self._events or self._events[0].due > perf_counter():
                break
            self._ring(heapq.heappop(self._events))
        self._set_timer()

    def _begin(self, query: Query, sink: Sink) -> None:
        fault = self._next_fault()
        if fault == "raise":
            raise RuntimeError("a scripted fault: submit raises")
        if fault == "die":
            self._die(query, sink)
            return
        if fault == "error":
            sink.done(query, Outcome(NO_TOKENS, failure=BackendError("a scripted fault")))
            return
        total, limit = len(query.prompt) + query.max_tokens, self._options.max_model_len
        if limit and total > limit:
            refusal = Rejected(f"prompt and answer have {total} tokens together, and the context has {limit}")
            sink.done(query, Outcome(NO_TOKENS, failure=refusal))
            return
        tokens = self._answer(query, fault)
        now = perf_counter()
        ttft, tpot = self._pace(query)
        self._prompt_tokens += len(query.prompt)
        job = Job(query, sink, tokens, now + ttft + tpot * (len(tokens) - 1), fault, now + ttft)
        self._jobs[query.id] = job
        heapq.heappush(self._events, job)

    def _set_timer(self) -> None:
        if not self._events:
            return
        due = self._events[0].due
        if self._timer is None or due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - perf_counter()), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._pump()

    def _ring(self, job: Job) -> None:
        """The next event of a job: its first token, its end, or both at once."""
        if job.cancelled:
            return
        if not job.begun:
            self._ring_first(job)
        if job.end <= job.due:
            self._ring_end(job)
        elif job.end < inf:
            job.due = job.end
            heapq.heappush(self._events, job)

    def _ring_first(self, job: Job) -> None:
        job.begun = True
        if job.fault == "stall-before":
            job.end = inf
        elif job.query.stream and len(job.tokens):
            job.sink.first(job.query, job.tokens[:1])
        if job.fault == "stall-after":
            job.end = inf

    def _ring_end(self, job: Job) -> None:
        del self._jobs[job.query.id]
        tokens = job.tokens
        if job.fault == "other-head":
            tokens = tokens.copy()
            tokens[0] += 1
        self._answer_tokens += len(tokens)
        reason = "length" if len(tokens) >= job.query.max_tokens else "stop"
        for _ in range(2 if job.fault == "twice" else 1):
            job.sink.done(job.query, Outcome(tokens, "abort" if job.fault == "abort" else reason))

    def _next_fault(self) -> str:
        if not self._strikes:
            return ""
        self._seen += 1
        return self._options.fault if self._seen % self._options.fault_every == 0 else ""

    def _die(self, query: Query, sink: Sink) -> None:
        self._dead = "a scripted fault: the replica died"
        self._back = perf_counter() + self._options.down if self._options.down else 0.0
        self._waiting.clear()
        for job in self._jobs.values():
            job.cancelled = True
        self._jobs.clear()
        sink.done(query, Outcome(NO_TOKENS, failure=ReplicaDied(self._dead)))

    def _answer(self, query: Query, fault: str) -> Tokens:
        if fault in ("no-tokens", "one-token"):
            return query.prompt[: fault == "one-token"].copy()
        span = self._high - self._low
        length = self._low + (_hash(self._options.seed, query.index) % (span + 1) if span else 0)
        length = min(length, query.max_tokens)
        tokens = query.prompt[:length].copy() if len(query.prompt) >= length else np.resize(query.prompt, length)
        if length < query.max_tokens:
            tokens[-1] = END
        return tokens

    def _pace(self, query: Query) -> tuple[float, float]:
        """Seconds to the first token and per further token of this query."""
        jitter = self._options.jitter
        ttft = self._ttft + self._prefill * len(query.prompt)
        if not jitter:
            return ttft, self._tpot
        noise = 1.0 + jitter * (2.0 * (_hash(self._options.seed + 1, query.index) % 10_000) / 10_000 - 1.0)
        return ttft * noise, self._tpot * noise


def make_replicas(plan: Plan) -> Sequence[Backend]:
    """Echo replicas from `--engine-arg`s. Raises ConfigError for an unknown one or a value that makes no sense."""
    known = {field.name: field for field in fields(EchoOptions)}
    refuse_unknown(plan.engine_args, list(known), "engine argument of the echo backend")
    options = EchoOptions(**{name: _convert(name, known[name].type, value) for name, value in plan.engine_args.items()})
    _token_range(options.tokens)
    if (
        options.slots < 1
        or options.fault_every < 1
        or min(options.ttft, options.tpot, options.prefill, options.max_model_len) < 0
        or not 0 <= options.jitter < 1
    ):
        raise ConfigError(
            "echo: slots and fault_every are at least 1, ttft and tpot not negative, jitter from 0 to below 1, prefill "
            "and max_model_len not negative."
        )
    if options.fault and options.fault not in FAULTS:
        raise ConfigError(f"echo: unknown fault {options.fault!r}: choose one of {', '.join(FAULTS)}.")
    return [Echo(index, options) for index in range(plan.replicas)]


def _convert(name: str, kind: Any, value: Any) -> Any:
    """A value of the option's type. Raises ConfigError, also for 2.5 slots and for NaN."""
    try:
        converted = {"int": int, "float": float, "str": str}[kind](value)
        fits = isinstance(converted, str) or (isfinite(converted) and converted == float(value))
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ConfigError(f"echo: {name}={value!r} is not {'a whole number' if kind == 'int' else 'a number'}.")
    return converted


def _token_range(text: str) -> tuple[int, int]:
    """`32` or `8-64` as (lowest, highest) answer length in tokens."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise ConfigError(f"echo: tokens={text!r} is neither a number of tokens like 32 nor a range like 8-64.")
    return low, high


def _hash(seed: int, index: int) -> int:
    """A well-mixed number from (seed, index): the finaliser of splitmix64."""
    x = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
