"""`context`: the longest prompt that each engine configuration answers, why not a longer one, and what length costs.

    DIR/points/NAME-asks-LENGTH/   one prompt of a length, asked by itself: does it fit (edge.py)
    DIR/points/NAME-LENGTH/        a run of LoadGen's SingleStream at a length that fits: what it costs
    DIR/engines/NAME/              the engines' logs

Lengths are in tokens, by the tokenizer of --model. Prompts are made up and all different: no cache can answer them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from harness.benchmarks import Number
from harness.config import RunConfig, as_json
from harness.dataset import Samples, Tokenizer
from harness.figures import HEIGHT, Spec, colour, line, panel, stack, x, y
from harness.progress import Progress
from harness.report import readable
from harness.results import RunResult
from harness.run import deadlines_of, find_model
from harness.studies.edge import (
    COSTLY,
    DOUBTFUL,
    FITS,
    MEMORY,
    NO_START,
    Growth,
    Probe,
    bounds,
    edge_of,
    next_length,
    says_no_memory,
)
from harness.studies.edge import time_limit as limit_for
from harness.studies.edge import why as why_not
from harness.studies.findings import Column, Findings, Table
from harness.studies.rig import ENGINES, NotUp, Rig
from harness.studies.study import Study
from harness.tables import parquet_columns
from sut.errors import SetupError
from sut.guard import marked
from sut.query import TOKEN_DTYPE, Tokens

DEATH_PATIENCE, DEATH_POLL = 3.0, 0.05
"""Seconds that a replica has, after a failure, to show that it is dead: a server says HTTP 500 first, and then goes."""

_CAN_HIDE_DEATH = {
    "server_error",
    "error_frame",
    "disconnected",
    "malformed",
    "bad_finish",
    "abandoned",
    "backend_error",
}


@dataclass(frozen=True)
class Question:
    """What is asked of each configuration. `repeats` are the queries of a run, `time_limit` the --request-timeout."""

    growth: Growth
    repeats: int
    time_limit: float | None


@dataclass
class Explored:
    """What was found of one configuration; `trouble` is why its engine could not be had, at first or again."""

    name: str
    config: RunConfig
    probes: list[Probe] = field(default_factory=list)
    points: dict[int, RunResult] = field(default_factory=dict)
    trouble: str | None = None


class Prompts:
    """Made-up prompts of ordinary tokens: the same for the same length and number, all others different."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids = np.array(tokenizer.plain, TOKEN_DTYPE)
        self._head = [] if tokenizer.bos is None else [tokenizer.bos]
        if not len(self._ids):
            raise SetupError("the tokenizer has no token that is not special: name another model with --model.")

    def one(self, length: int, number: int) -> Tokens:
        """Token ids, int32, shape (length,)."""
        ids = np.random.default_rng((length, number)).choice(self._ids, length)
        ids[: len(self._head)] = self._head[:length]
        return ids

    def samples(self, length: int, count: int) -> Samples:
        """`count` prompts; number 0 is left to the one that is asked by itself."""
        tokens = np.concatenate([self.one(length, number) for number in range(1, count + 1)])
        names = [f"{length}-{number}" for number in range(1, count + 1)]
        starts = np.arange(count + 1, dtype=np.int64) * length
        return Samples(names, [""] * count, tokens, starts, sha256(tokens.data).hexdigest())


def study_config(config: RunConfig, output_tokens: int, repeats: int) -> RunConfig:
    """A run's configuration for this study: answers of one length whatever the model says, the model's own context
    unless another is asked for, each prompt once, deadlines by length."""
    counts = {"min_duration": 0, "min_query_count": repeats, "performance_sample_count_override": repeats}
    counts |= {"performance_issue_unique": 1, "sample_concatenate_permutation": 0}
    settings: dict[str, Number] = {**config.settings, **counts}
    return replace(
        config,
        generation=replace(config.generation, max_tokens=output_tokens, ignore_eos=True),
        max_model_len=None,
        max_in_flight=1,
        stall_timeout=None,
        settings=settings,
    )


def asked_of(question: Question, configs: Mapping[str, RunConfig]) -> dict[str, Any]:
    """The study's own options, as study.json holds them; of secrets, that there are some."""
    differ = ("engine_arg", "engine_env", "endpoint")
    shown = {name: {key: as_json(config)[key] for key in differ} for name, config in configs.items()}
    return {**asdict(question.growth), "repeats": question.repeats, "configurations": shown}


def run_context(study: Study, question: Question, configs: Mapping[str, RunConfig], progress: Progress) -> Findings:
    """Explore the configurations one after the other, each with an engine of its own. Raises ConfigError for one that
    cannot be, SetupError if none of them came up or a saved point is damaged, KeyboardInterrupt."""
    tokenizer = Tokenizer(find_model(next(iter(configs.values())).model))
    found = [explore(study, name, config, question, tokenizer, progress) for name, config in configs.items()]
    if not any(one.probes for one in found):
        raise SetupError(f"no engine came up: {found[0].trouble}")
    return conclude(found)


def explore(
    study: Study, name: str, config: RunConfig, question: Question, tokenizer: Tokenizer, progress: Progress
) -> Explored:
    """Grow, find the edge, and measure what fits; an engine that cannot be had, or had again, ends it."""
    found, prompts = Explored(name, config), Prompts(tokenizer)
    small = prompts.samples(16, 1)
    with kept_environment(), Rig(study, config, small, tokenizer, progress, f"{ENGINES}/{name}") as rig:
        try:
            while (length := next_length(question.growth, found.probes)) is not None:
                probe = fit(rig, found, length, question, prompts)
                if probe.fits and all(earlier.fits for earlier in found.probes):
                    probe = measure(rig, found, probe, question, prompts)
                found.probes.append(probe)
            longest = next((probe for probe in found.probes if probe.prompt_tokens == bounds(found.probes)[0]), None)
            if longest is not None and longest.prompt_tokens not in found.points:
                found.probes[found.probes.index(longest)] = measure(rig, found, longest, question, prompts)
        except NotUp as error:
            found.trouble = str(error)
    return found


@contextmanager
def kept_environment() -> Iterator[None]:
    """One configuration's environment variables are not the next one's."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


# -- one length -------------------------------------------------------------------------------------------------------


def fit(rig: Rig, found: Explored, length: int, question: Question, prompts: Prompts) -> Probe:
    """Whether a prompt of this length is answered: what is saved of it, or what one says now."""
    point = f"{found.name}-asks-{length}"
    saved = rig.study.saved(point)
    if saved is not None:
        return read_probe(saved)
    rig.progress.say(f"{found.name}: is a prompt of {length:,} tokens answered? …")
    limit = limit_for(question.time_limit, found.probes, length)
    probe = ask(rig, prompts.one(length, 0), limit)
    if probe.edge in DOUBTFUL:
        rig.progress.say(f"{found.name}: {probe.said}; asking once more …")
        try:
            probe = replace(ask(rig, prompts.one(length, 0), limit), at_first=probe.said)
        except NotUp as error:  # if that stays so, the next length says it too
            probe = replace(probe, said=f"{probe.said}; it could not be asked again: {error}")
    rig.study.keep(point, asdict(probe))
    return probe


def read_probe(saved: Mapping[str, Any]) -> Probe:
    """Raises SetupError for what `fit` has not saved."""
    try:
        return Probe(**saved)
    except TypeError as error:
        raise SetupError(
            f"a saved point of this study is damaged ({error}): remove it, and it is asked again."
        ) from error


def ask(rig: Rig, prompt: Tokens, limit: float) -> Probe:
    """Ask one prompt, and find out what became of the engine; one that is dead, or still at work, is taken down."""
    system = rig.system()
    facts = system.sut.replicas[0].backend.facts
    witness = Witness(rig.engines, marked(system.guard.mark))
    outcome = rig.ask(prompt, replace(deadlines_of(rig.config), request=limit, stall=None))
    failure, edge, said = outcome.failure, FITS, None
    if failure is not None:
        death = why_dead(rig, failure.kind)
        said = death or str(failure)
        edge = edge_of(failure.kind, failure.status, death is not None, witness.no_memory(f"{failure} {said}"))
    probe = Probe(
        prompt_tokens=len(prompt),
        output_tokens=rig.config.generation.max_tokens,
        edge=edge,
        limit_s=limit,
        said=said,
        status=None if failure is None else failure.status,
        ttft_s=outcome.first_token - outcome.sent if outcome.first_token else None,
        latency_s=outcome.last_byte - outcome.sent if failure is None else None,
        memory_bytes=witness.peak(),
        context=facts.get("max_model_len") or None,
        kv_cache_tokens=facts.get("kv_cache_tokens"),
        text=facts.get("prompts") == "text",
    )
    if edge in COSTLY:
        rig.take_down()
    return probe


def why_dead(rig: Rig, kind: str) -> str | None:
    """Why the replica cannot serve any more, if so; a failure that a death may be behind gives it time to show."""
    backend = rig.system().sut.replicas[0].backend
    limit = time.monotonic() + (DEATH_PATIENCE if kind in _CAN_HIDE_DEATH else 0.0)
    while (trouble := backend.trouble()) is None and time.monotonic() < limit:
        time.sleep(DEATH_POLL)
    return trouble


class Witness:
    """What can be seen of an engine's memory while it answers: the peak of its processes, whether its log or the kernel
    says that there is none left. Of an engine on another machine, nothing."""

    def __init__(self, logs: Path, pids: Sequence[int]) -> None:
        self._logs = {path: path.stat().st_size for path in logs.glob("*.log")}
        self._folder = logs
        self._pids = pids
        self._kills = oom_kills()
        for pid in pids:
            with suppress(OSError):  # gone, or of another user: then the peak is that of its whole life
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): resets VmHWM

    def peak(self) -> int | None:
        """Bytes, summed over the processes; each one's own peak."""
        peaks = [peak for pid in self._pids if (peak := peak_memory(pid)) is not None]
        return sum(peaks) if peaks and len(peaks) == len(self._pids) else None

    def no_memory(self, words: str) -> bool:
        """Whether memory ran out, by these words, by what was logged since, or by the kernel's killer."""
        return says_no_memory(words) or oom_kills() > self._kills or any(map(says_no_memory, self._logged()))

    def _logged(self) -> Iterator[str]:
        for path in self._folder.glob("*.log"):
            with path.open("rb") as log:
                log.seek(self._logs.get(path, 0))
                yield log.read().decode(errors="replace")


def peak_memory(pid: int) -> int | None:
    """The most bytes that a process has had resident; None of one that is gone."""
    with suppress(OSError, ValueError, IndexError):
        for row in Path(f"/proc/{pid}/status").read_text().splitlines():
            if row.startswith("VmHWM:"):
                return int(row.split()[1]) * 1024
    return None


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, as far as it says."""
    with suppress(OSError, ValueError):
        for row in Path("/proc/vmstat").read_text().splitlines():
            if row.startswith("oom_kill "):
                return int(row.split()[1])
    return 0


def measure(rig: Rig, found: Explored, probe: Probe, question: Question, prompts: Prompts) -> Probe:
    """Run LoadGen at a length that fits; the probe says so no longer if the run has failed."""
    length = probe.prompt_tokens
    if probe.context is not None and probe.total > probe.context:
        return probe  # it takes more than it says; a run's own check would refuse the prompts
    limit = limit_for(question.time_limit, [probe], length)
    samples = prompts.samples(length, question.repeats)
    result = rig.point(f"{found.name}-{length}", samples=samples, request_timeout=limit)
    found.points[length] = result
    failures = result["failures"]
    if not failures["count"]:
        return probe
    kind = next(iter(failures["by_kind"]))
    edge = edge_of(kind, dead=result["status"] != "complete", no_memory=says_no_memory(failures["first"]))
    return replace(probe, edge=edge, said=failures["first"])


# -- what was found ---------------------------------------------------------------------------------------------------


def conclude(found: Sequence[Explored]) -> Findings:
    answers = [answer(one) for one in found]
    rows = [row for one in found for row in rows_of(one)]
    alone = len(found) == 1
    return Findings(
        study="context",
        headline=headline(answers),
        columns=[column for column in COLUMNS[alone:] if any(row.get(column.key) is not None for row in rows)],
        rows=rows,
        notes=notes(found),
        figure=draw(rows, answers),
        summary=Table(ANSWER, answers),
    )


def answer(found: Explored) -> dict[str, Any]:
    """One configuration's largest context. `exact`: one more token does not fit."""
    low, high = bounds(found.probes)
    output = found.config.generation.max_tokens
    last = found.probes[-1] if found.probes else None
    if found.trouble is not None and high is None:
        edge = MEMORY if says_no_memory(found.trouble) else NO_START
        reason = "not to be had again" if low else "did not start" + " for want of memory" * (edge == MEMORY)
    elif high is None:
        edge, reason = None, "not reached: all lengths asked were answered"
    else:
        edge, reason = high.edge, why_not(high, found.config.backend == "remote")
    return {
        "configuration": found.name,
        "prompt_tokens": low or None,
        "output_tokens": output,
        "total_tokens": low + output if low else None,
        "not_answered": None if high is None else high.prompt_tokens,
        "exact": high is not None and high.prompt_tokens == low + 1,
        "edge": edge,
        "reason": reason,
        "said": found.trouble if high is None else high.said,
        "context_said": last.context if last else None,
        "kv_cache_tokens": last.kv_cache_tokens if last else None,
        "asked": len(found.probes),
    }


def headline(answers: Sequence[Mapping[str, Any]]) -> str:
    if len(answers) > 1:
        longest = (f"{one['prompt_tokens']:,}" if one["prompt_tokens"] else "none" for one in answers)
        each = ", ".join(f"{one['configuration']} {length}" for one, length in zip(answers, longest, strict=True))
        return f"Longest prompt in tokens, beside {answers[0]['output_tokens']:,} of its answer: {each}."
    one = answers[0]
    longest, beyond, output = one["prompt_tokens"], one["not_answered"], one["output_tokens"]
    if longest is None:
        return f"No prompt was answered, not even one of {beyond:,} tokens: {one['reason']}."
    if beyond is None:
        return f"Every prompt up to {longest:,} tokens was answered, and none longer was asked: {one['reason']}."
    if one["exact"]:
        whole = f"The longest prompt has {longest:,} tokens, {one['total_tokens']:,} with the {output:,} of its answer"
        return f"{whole}; one token more: {one['reason']}."
    return f"A prompt of {longest:,} tokens is answered, one of {beyond:,} is not: {one['reason']}."


def rows_of(found: Explored) -> list[dict[str, Any]]:
    """A row per length that was measured, and one for the shortest that does not fit."""
    probes = {probe.prompt_tokens: probe for probe in found.probes}
    _, high = bounds(found.probes)
    rows = [measured(found, probes[length], result) for length, result in sorted(found.points.items())]
    if high is not None and high.prompt_tokens not in found.points:
        rows.append(plain_row(found, high))
    return sorted(rows, key=lambda row: row["prompt_tokens"])


def plain_row(found: Explored, probe: Probe) -> dict[str, Any]:
    full = probe.kv_cache_tokens
    return {
        "configuration": found.name,
        "prompt_tokens": probe.prompt_tokens,
        "output_tokens": probe.output_tokens,
        "memory_bytes": probe.memory_bytes,
        "kv_cache_share": probe.total / full if full and probe.fits else None,
        "verdict": "answered" if probe.fits else probe.edge,
        "said": probe.said,
        "at_first": probe.at_first,
    }


def measured(found: Explored, probe: Probe, result: RunResult) -> dict[str, Any]:
    """LoadGen's medians of one run, and how far its queries lie apart by our own clock; seconds, tokens per second."""
    row = plain_row(found, probe)
    if not probe.fits:
        return row
    figures = result["metrics"]
    ttft, latency, tpot = (figures[name].get("p50") for name in ("ttft_s", "latency_s", "tpot_s"))
    spread = times_of(result.folder)
    return row | {
        "repeats": result["queries"],
        "source": figures["source"],
        "ttft_s": ttft,
        "ttft_least_s": min(spread, default=None),
        "ttft_most_s": max(spread, default=None),
        "prefill_tokens_per_s": probe.prompt_tokens / ttft if ttft else None,
        "decode_s": latency - ttft if latency and ttft else None,
        "tpot_s": tpot,
        "latency_s": latency,
        "total_tokens_per_s": probe.total / latency if latency else None,
        **of_telemetry(result.content.get("telemetry") or {}),
    }


def of_telemetry(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What a run's timeline adds: the devices' memory at its peak, in bytes, and how full the KV cache was seen, from 0
    to 1. It looks once a second: a short answer may have come and gone between two looks."""
    series = summary.get("series", {})
    devices = [own["memory_bytes"]["max"] for name, own in series.items() if "gpu-" in name and "memory_bytes" in own]
    fullest = [own["kv_cache_usage"]["max"] for own in series.values() if "kv_cache_usage" in own]
    return {"device_memory_bytes": sum(devices) if devices else None, "kv_cache_seen": max(fullest, default=None)}


def times_of(folder: Path) -> list[float]:
    """The times to first token of a run's queries; empty where its rows are not to be read."""
    with suppress(SetupError):
        column = parquet_columns(folder / "samples.parquet", ["ttft_s"])["ttft_s"]
        return [value for value in column.to_pylist() if value is not None]
    return []


def notes(found: Sequence[Explored]) -> list[str]:
    """What must be known beside the tables."""
    said = []
    if not all(result["valid"] for one in found for result in one.points.values()):
        said.append(
            "LoadGen calls a run VALID from 64 queries on (--repeats 64); the figures of fewer are its own too."
        )
    for one in found:
        low, high = bounds(one.probes)
        first = {
            probe.edge: probe for probe in sorted(one.probes, key=lambda probe: -probe.prompt_tokens) if probe.said
        }
        said += [f"{one.name}, {probe.prompt_tokens:,} tokens: {probe.edge}: {probe.said}" for probe in first.values()]
        if high is not None and high.edge in COSTLY and high.prompt_tokens > low + 1:
            said.append(f"{one.name}: an edge that costs a wait or a new start is not bisected to the token.")
        said += [
            f"{one.name}, {probe.prompt_tokens:,} tokens: answered only when asked again; at first: {probe.at_first}"
            for probe in one.probes
            if probe.fits and probe.at_first
        ]
        if one.trouble is not None:
            said.append(f"{one.name}: the engine could not be had{' again' * bool(one.probes)}: {one.trouble}")
        if any(probe.text for probe in one.probes):
            said.append(
                f"{one.name} takes text, which it cuts itself: lengths are those of our tokenizer, only about its."
            )
        if any(result["client_limited"] for result in one.points.values()):
            said.append(f"{one.name}: the harness itself was in the way of some figures (client_limited).")
    return said


def exit_code(found: Findings) -> int:
    """0: every configuration has an answer; 3: one has none, since its engine did not start or answers nothing."""
    assert found.summary is not None
    return 0 if all(one["prompt_tokens"] for one in found.summary.rows) else 3


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


ANSWER = [
    Column("configuration", "configuration"),
    Column("prompt_tokens", "longest prompt", ",d"),
    Column("output_tokens", "answer", ",d"),
    Column("total_tokens", "together", ",d"),
    Column("not_answered", "not answered", ",d"),
    Column("context_said", "context it says", ",d"),
    Column("kv_cache_tokens", "KV cache", ",d"),
    Column("reason", "why not longer"),
]

COLUMNS = [
    Column("configuration", "configuration"),
    Column("prompt_tokens", "prompt tokens", ",d"),
    Column("ttft_s", "TTFT", readable),
    Column("prefill_tokens_per_s", "prefill tokens/s", ",.0f"),
    Column("decode_s", "decode", readable),
    Column("tpot_s", "TPOT", readable),
    Column("latency_s", "whole", readable),
    Column("total_tokens_per_s", "total tokens/s", ",.0f"),
    Column("memory_bytes", "memory", gigabytes),
    Column("device_memory_bytes", "GPU memory", gigabytes),
    Column("kv_cache_share", "of KV cache", ".1%"),
    Column("verdict", ""),
]


def draw(rows: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> Spec | None:
    """TTFT and total tokens/s against the prompt's length, with each configuration's edge and its reason."""
    shown = [row for row in rows if row.get("ttft_s")]
    if not shown:
        return None
    scale = {"type": "log", "base": 2, "nice": False}
    ticks = sorted({row["prompt_tokens"] for row in shown})
    axis = {"values": ticks, "format": ",d", "labelAngle": -40}
    across = x("prompt_tokens", "prompt, tokens", scale=scale, axis=axis)
    by = colour("configuration", "configuration", legend=None if len(answers) == 1 else {})
    ttft: dict[str, Any] = {"title": "TTFT, s", "scale": {"type": "log"}, "axis": {"format": ",~g"}}
    whiskers = across | by | y("ttft_least_s", **ttft) | {"y2": {"field": "ttft_most_s"}}
    spread = {"mark": {"type": "rule"}, "encoding": whiskers}
    speed = y("total_tokens_per_s", "prompt and answer, tokens/s", axis={"format": ",d"})
    first = [line(across, y("ttft_s", **ttft), by), spread, *edges(answers, across | by)]
    second = [line(across, speed, by), *edges(answers, across | by, words=False)]
    return stack(
        [panel(shown, first), panel(shown, second)],
        "What the length of a prompt costs",
        f"one prompt at a time, {answers[0]['output_tokens']:,} tokens of answer; medians, least to most",
    )


def edges(answers: Sequence[Mapping[str, Any]], place: Spec, words: bool = True) -> list[Spec]:
    """A dashed line at each configuration's longest prompt, and why it is the longest."""
    marks: list[Spec] = []
    for number, one in enumerate(answer for answer in answers if answer["prompt_tokens"]):
        text = f"{one['prompt_tokens']:,}, then: {one['reason'].partition(':')[0]}"
        row = {"prompt_tokens": one["prompt_tokens"], "configuration": one["configuration"], "text": text}
        data = {"values": [row]}
        marks.append({"data": data, "mark": {"type": "rule", "strokeDash": [6, 4]}, "encoding": place})
        if words:
            mark = {"type": "text", "align": "right", "dx": -5, "fontSize": 11}
            height = {"y": {"value": HEIGHT - 10 - 15 * number}, "text": {"field": "text"}}
            marks.append({"data": data, "mark": mark, "encoding": place | height})
    return marks
