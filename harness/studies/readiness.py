"""How fast many replicas come up: from creation to healthy to the first right answer, in groups.

    for each group:  create its replicas → until /health says 200 → until the first question is answered
                     → ask each `validate` questions                                → points/group-N
    at the end:      ask all of them again, all at once                             → points/final

Everything happens on one event loop and by one monotonic clock. LoadGen has no part in it: a few questions, one at a
time per replica, are no load. Whether an answer is right is decided at the end, by what most replicas said
(readiness_findings.py). What an interrupted study has measured stays; a replica that is gone is made again, untimed,
before further groups come up.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import uvloop

from harness.config import RunConfig
from harness.dataset import Samples, Tokenizer
from harness.progress import Progress
from harness.run import plan_of
from harness.signals import current_handlers, interrupt_of, restore_signals
from harness.studies.looks import HEALTH_COST, Looks, Wait, pause_after
from harness.studies.makers import Commanded, Commands, Maker, Served
from harness.studies.rig import ENGINES
from harness.studies.study import Study
from sut.backends import Plan
from sut.backends.dialects import DIALECTS, Dialect
from sut.backends.http import Origin, Pool, tls_context
from sut.backends.probe import FIRST_LIMIT, Probe, Prompts, choose_model
from sut.backends.remote import allow_many_files, outcome_of
from sut.errors import (
    Busy,
    Disconnected,
    NoTokens,
    QueryFailed,
    Rejected,
    ServerError,
    SetupError,
    Unreachable,
)
from sut.guard import Guard
from sut.health import complaint
from sut.query import Tokens

FINAL, REMOVED = "final", "removed"
"""The points beside those of the groups."""

BEFORE_LIMIT = 2.0
"""Seconds that a look may take whether somebody answers at a replica's URL before it is made."""

REFUSAL_LIMIT = 5.0
"""Seconds for which a replica that says to be healthy may give answers that are none; then it is taken at its word."""

COMING_UP = (Busy, ServerError, Unreachable, Disconnected)
"""What a replica that is still coming up may say, until its deadline."""

Row = dict[str, Any]

Said = list[int] | str
"""An answer: token ids, or the text of a replica that gives no ids."""


@dataclass(frozen=True)
class Schedule:
    """`group_size` replicas are brought up at once; the next group begins `pause` seconds after the one before it has
    begun, or with `wait` after it is complete and validated."""

    group_size: int
    pause: float
    wait: bool
    validate: int
    answer_tokens: int


@dataclass(eq=False)
class Life:
    """One replica's, as it goes on. Times are seconds of `time.monotonic`, 0.0 where it did not come to that."""

    index: int
    began: float = 0.0
    healthy: float = 0.0
    within: float = 0.0
    answered: float = 0.0
    validated: float = 0.0
    url: str = ""
    talk: Talk | None = None
    said: Said | None = None
    failure: str | None = None
    last: str = "its create command has not ended"
    looks: int = 0
    validation: list[dict[str, Any]] = field(default_factory=list)


class Talk:
    """Questions to one replica, one at a time; the first finds out its model and dialect."""

    def __init__(self, url: str, plan: Plan, prompts: Prompts, tls: ssl.SSLContext | None, limit: float) -> None:
        self.origin = Origin.parse(url)
        self.pool = Pool(self.origin, tls if self.origin.scheme == "https" else None)
        self.probe = Probe(self.origin, plan, prompts, self.pool)
        self._plan, self._limit = plan, limit
        self._model = ""
        self._dialect: Dialect | None = None

    async def first(self, prompt: Tokens, likely: Dialect | None) -> tuple[Said, Dialect]:
        """The answer to the first question, in the first dialect that gives one; `likely` is tried first. Raises
        QueryFailed or TimeoutError; SetupError for a replica of another model."""
        self._model = choose_model(self._plan.served_model, await self.probe.models(), self.origin)
        families = [self._plan.dialect] if self._plan.dialect else list(DIALECTS)
        known = [dialect for family in families for dialect in DIALECTS[family]]
        refusals: list[QueryFailed] = []
        for dialect in sorted(known, key=lambda dialect: dialect is not likely):
            try:
                said = await self._ask(prompt, dialect)
            except (Rejected, NoTokens) as error:  # another dialect may do
                refusals.append(error)
                continue
            self._dialect = dialect
            return said, dialect
        raise refusals[0]

    async def ask(self, prompt: Tokens) -> Said:
        """Raises QueryFailed or TimeoutError."""
        assert self._dialect is not None, "the first question comes first"
        return await self._ask(prompt, self._dialect)

    async def _ask(self, prompt: Tokens, dialect: Dialect) -> Said:
        most = self._plan.generation.max_tokens
        answer = await self.probe.ask(self._model, dialect, most, prompt=prompt, limit=self._limit)
        outcome = outcome_of(answer, dialect)
        if failure := complaint(outcome, most):
            raise failure
        return outcome.tokens.tolist() if outcome.text is None else outcome.text


class Bringing:
    """The study while it runs, on its loop."""

    def __init__(
        self, study: Study, config: RunConfig, schedule: Schedule, plan: Plan, maker: Maker, samples: Samples
    ) -> None:
        self.troubles: list[str] = []
        """What could not be taken away."""
        self._study, self._config, self._schedule, self._plan, self._maker = study, config, schedule, plan, maker
        self._tls = tls_context(plan.ca_file, plan.insecure)
        self._prompts = Prompts(plan)
        self._questions = samples.prompts
        self._looks = Looks()
        self._likely: Dialect | None = None
        self._lives: dict[int, Life] = {}
        self._made: set[int] = set()
        self._zero = 0.0

    async def run(self, progress: Progress) -> None:
        """All groups and the final validation, but for what is done; then, whatever happens, nothing is left."""
        gc.collect()
        gc.freeze()
        try:
            await self._bring_all(progress)
        finally:
            progress.say("Taking the replicas away …")
            await finish(self._remove())
        self._study.keep(REMOVED, {"troubles": self.troubles})

    async def _bring_all(self, progress: Progress) -> None:
        groups = grouped(self._config.replicas, self._schedule.group_size)
        saved = [self._study.saved(group_name(number)) for number in range(len(groups))]
        done = [row for group in saved if group is not None for row in group["replicas"]]
        self._made |= {row["index"] for row in done if row["began_s"] is not None}
        if self._study.saved(FINAL) is not None:
            return
        await self._take_up(groups, done, progress)
        self._zero = time.monotonic() - max((group["end_s"] for group in saved if group is not None), default=0.0)
        async with all_of() as running:
            for number, indices in enumerate(groups):
                if saved[number] is None:
                    if running:
                        await asyncio.sleep(self._schedule.pause)
                    running.append(asyncio.ensure_future(self._group(number, indices, len(groups), progress)))
                    if self._schedule.wait:
                        await running[-1]
        await self._validate_all(progress)

    async def _take_up(self, groups: Sequence[Sequence[int]], done: Sequence[Row], progress: Progress) -> None:
        """After an interruption: what a group that was not finished has left is taken away, and the replicas of those
        that were are brought up again where they are gone; what was measured of them stays."""
        for number, indices in enumerate(groups):
            if self._study.path(group_name(number)).exists() and self._study.saved(group_name(number)) is None:
                progress.say(f"Taking away what {group_name(number)} has left …")
                await self._maker.remove(indices)
        up = [row for row in done if row["failure"] is None]
        if up:
            progress.say(f"Looking for the {len(up)} that have been measured; what is gone is brought up again …")
        for start in range(0, len(up), self._schedule.group_size):
            await asyncio.gather(*map(self._bring_back, up[start : start + self._schedule.group_size]))

    async def _bring_back(self, row: Row) -> None:
        life = self._lives[row["index"]] = Life(row["index"])
        if self._maker.adopt(life.index, row["url"]):
            life.talk = self._talk(row["url"])
            with suppress(QueryFailed, TimeoutError, SetupError):
                life.said, self._likely = await life.talk.first(self._questions[0], self._likely)
                return
        await self._maker.remove([life.index])
        await self._come_up(life)
        if life.failure is not None:
            life.failure = f"it did not come up again after the interruption: {life.failure}"

    async def _group(self, number: int, indices: Sequence[int], groups: int, progress: Progress) -> None:
        """Bring one group up, ask each of it the questions, and save what was found."""
        progress.say(f"Group {number + 1} of {groups}: {len(indices)} replica{'s' * (len(indices) > 1)} …")
        self._study.path(group_name(number)).mkdir(parents=True, exist_ok=True)  # begun, as an interrupted study sees
        lives = [Life(index) for index in indices]
        async with all_of() as coming:
            for life in lives:
                self._lives[life.index] = life
                coming.append(asyncio.ensure_future(self._come_up(life)))
                await asyncio.sleep(0)  # a process is spawned within a turn of the loop: others are looked at between
        answered = [life for life in lives if life.failure is None]
        await asyncio.gather(*map(self._validate, answered))
        rows = [row_of(life, number, self._maker, self._zero) for life in lives]
        end = time.monotonic() - self._zero
        point = {"group": number + 1, "monotonic_zero_s": self._zero, "end_s": end, "replicas": rows}
        self._study.keep(group_name(number), point)
        slowest = max((row["answer_s"] for row in rows if row["answer_s"] is not None), default=None)
        within = "" if slowest is None else f", the last after {slowest:.2f} s"
        progress.say(f"Group {number + 1} of {groups}: {len(answered)} of {len(lives)} have answered{within}.")

    async def _come_up(self, life: Life) -> None:
        """From creation to the first answer, or to the reason why there is none."""
        limit = self._config.ready_timeout
        try:
            await self._refuse_early(life)
            self._made.add(life.index)
            life.began = time.monotonic()
            async with asyncio.timeout(limit):
                life.url = await self._maker.create(life.index)
                life.talk = self._talk(life.url)
                await self._until_healthy(life, life.talk)
                await self._until_answered(life, life.talk)
        except TimeoutError:
            life.failure = f"no answer within {limit:g} s of its creation: {life.last}"
        except SetupError as error:
            life.failure = str(error).rstrip(".")

    async def _refuse_early(self, life: Life) -> None:
        """Raises SetupError if somebody is healthy already where the replica is to be made."""
        place = self._maker.place(life.index)
        if place is None:
            return
        talk = self._talk(place)
        try:
            early = await talk.probe.health(BEFORE_LIMIT) == 200
        except (QueryFailed, TimeoutError):
            early = False
        finally:
            talk.pool.close()
        if early:
            raise SetupError(f"{place} was healthy before the replica was created: there is no start to be measured")

    async def _until_healthy(self, life: Life, talk: Talk) -> None:
        healthy: asyncio.Future[tuple[float, float]] = asyncio.get_running_loop().create_future()
        wait = Wait(talk.probe, talk.pool, lambda: self._maker.trouble(life.index), life.began, healthy)
        try:
            life.healthy, life.within = await self._looks.until_healthy(wait)
        finally:
            life.last, life.looks = wait.said, wait.looks

    async def _until_answered(self, life: Life, talk: Talk) -> None:
        """The first question, again and again while the replica may still be coming up."""
        while True:
            sent, pause = time.monotonic(), 0.0
            try:
                life.said, self._likely = await talk.first(self._questions[0], self._likely)
                life.answered = time.monotonic()
                return
            except TimeoutError:
                life.last = "it is healthy, and the first question is not answered in time"
            except QueryFailed as error:
                life.last = f"it is healthy, and to the first question: {error}"
                if not isinstance(error, COMING_UP) and sent - life.healthy > REFUSAL_LIMIT:
                    raise SetupError(life.last) from error
                pause = error.pause if isinstance(error, Busy) else 0.0
            if why := self._maker.trouble(life.index):
                raise SetupError(why)
            now = time.monotonic()
            await asyncio.sleep(max(pause, pause_after(now - life.began, now - sent, 1, HEALTH_COST)))

    async def _validate(self, life: Life) -> None:
        """Ask one replica the questions, one after the other."""
        life.validation = await self._ask_all(life)
        life.validated = time.monotonic()

    async def _ask_all(self, life: Life) -> list[dict[str, Any]]:
        assert life.talk is not None
        entries = []
        for number in range(self._schedule.validate):
            entry: dict[str, Any] = {"question": number % len(self._questions)}
            began = time.monotonic()
            try:
                entry["said"] = await life.talk.ask(self._questions[entry["question"]])
            except TimeoutError:
                entry["failure"] = "no answer in time"
            except QueryFailed as error:
                entry["failure"] = self._maker.trouble(life.index) or str(error)
            entries.append(entry | {"seconds": time.monotonic() - began})
        return entries

    async def _validate_all(self, progress: Progress) -> None:
        """All that have ever answered are asked again, all at once: they must be up together."""
        if self._schedule.validate:
            progress.say("Asking all of them again …")
        asked = [life for life in self._lives.values() if life.failure is None]
        entries = await asyncio.gather(*map(self._ask_all, asked))
        rows = [{"index": life.index, "validation": said} for life, said in zip(asked, entries, strict=True)]
        lost = [{"index": i, "failure": life.failure} for i, life in self._lives.items() if life.failure is not None]
        self._study.keep(FINAL, {"replicas": rows + lost})

    async def _remove(self) -> None:
        for life in self._lives.values():
            if life.talk is not None:
                life.talk.pool.close()
        self.troubles = await self._maker.remove(sorted(self._made))

    def _talk(self, url: str) -> Talk:
        return Talk(url, self._plan, self._prompts, self._tls, self._config.request_timeout or FIRST_LIMIT)


# -- small things -----------------------------------------------------------------------------------------------------


def grouped(replicas: int, size: int) -> list[range]:
    """The replicas' indices, group by group."""
    return [range(start, min(start + size, replicas)) for start in range(0, replicas, size)]


def group_name(number: int) -> str:
    """The point of a group, which are counted from 0 here and from 1 for a person."""
    return f"group-{number + 1}"


def row_of(life: Life, group: int, maker: Maker, zero: float) -> Row:
    """What a group's point holds of a replica: `began_s` on the study's clock, all else from there on."""
    created = maker.created(life.index)

    def since(moment: float | None) -> float | None:
        return moment - life.began if moment else None

    return {
        "index": life.index,
        "name": maker.name(life.index),
        "group": group + 1,
        "url": life.url,
        "began_s": life.began - zero if life.began else None,
        "created_s": since(created),
        "healthy_s": since(life.healthy),
        "healthy_within_s": life.within if life.healthy else None,
        "looks": life.looks,
        "answer_s": since(life.answered),
        "validated_s": since(life.validated),
        "said": life.said,
        "validation": life.validation,
        "failure": life.failure,
    }


@asynccontextmanager
async def all_of() -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks to be put in, waited for at the end; if that is given up, none of them goes on."""
    tasks: list[asyncio.Task[None]] = []
    try:
        yield tasks
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Do something to its end, although this task may be cancelled meanwhile."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()


def run_until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a loop of its own; the first signal cancels it, and what it then still does is waited for.
    Raises KeyboardInterrupt, or Terminated with the signal's name."""
    handlers = current_handlers()
    caught: list[int] = []

    async def watched() -> None:
        task = asyncio.ensure_future(work)

        def stop(number: int) -> None:
            caught.append(number)
            if len(caught) == 1:
                task.cancel()

        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, stop, number)
        with suppress(asyncio.CancelledError):
            await task

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(watched())
    finally:
        restore_signals(handlers)
    if caught:
        raise interrupt_of(caught[0])


# -- the study --------------------------------------------------------------------------------------------------------


def bring_up(
    study: Study,
    config: RunConfig,
    schedule: Schedule,
    commands: Commands | None,
    samples: Samples,
    tokenizer: Tokenizer,
    progress: Progress,
    warn: Callable[[str], None],
) -> None:
    """Measure what has not been measured yet, and try again to take away what could not be; the points are in the
    study's folder then. `warn` hears of replicas that could not be taken away. Raises ConfigError, SetupError or
    KeyboardInterrupt."""
    removed = study.saved(REMOVED)
    if removed is not None and not removed["troubles"]:
        return
    allow_many_files()
    folder = study.folder / ENGINES
    folder.mkdir(exist_ok=True)
    most = min(schedule.answer_tokens, config.generation.max_tokens)
    plan = replace(
        plan_of(config, tokenizer),
        generation=replace(config.generation, max_tokens=most),
        log_dir=folder,
        share_cores=True,
    )
    guard = Guard()
    try:
        maker: Maker = Served(plan) if commands is None else Commanded(commands, config.model, folder)
        bringing = Bringing(study, config, schedule, plan, maker, samples)
        try:
            run_until_signal(bringing.run(progress))
        finally:
            for trouble in bringing.troubles:
                warn(trouble)
    finally:
        guard.close()
