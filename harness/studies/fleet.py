"""A fleet: several models at once, then one after another. What does each lose to the others?

Each member is a process with a SUT and a LoadGen of its own (member.py). In a round, all of them are told to test at
once; then each alone, while the others' engines idle. Where a duration is asked in Offline (a closed loop of N users is
one) and no rate, a trial finds how many samples last that long: LoadGen's Offline issues a number of samples, not for a
time.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness import results
from harness.benchmarks import Number
from harness.config import RunConfig
from harness.progress import Progress
from harness.results import RunResult
from harness.studies.findings import Findings
from harness.studies.fleet_findings import Measured, completions, conclude
from harness.studies.member import Member, start_member
from harness.studies.rig import ENGINES
from harness.studies.study import Study
from harness.studies.variants import Variant, merge
from sut.errors import SetupError
from sut.guard import Guard

TRIAL_ROUNDS = 6
"""How many samples a trial asks of each user."""

MARGIN = 1.05
"""By how much a trial may have been slower than the test after it."""

TRIALS = 3
"""How often a size is looked for: a trial on engines that have just started may be far too slow."""

Settings = Mapping[str, Number]


@dataclass(frozen=True)
class Plan:
    """What is asked: the members, their configurations fitted to their datasets by name, the options that they have in
    common, and how often."""

    members: Sequence[Variant]
    configs: Mapping[str, RunConfig]
    common: Mapping[str, Any]
    rounds: int

    @property
    def slugs(self) -> dict[str, str]:
        """The members' names as folders."""
        return {member.name: member.slug for member in self.members}

    @property
    def unsized(self) -> set[str]:
        """The members of which a duration is asked and no rate, so that nobody knows how many samples they need; what
        user.conf says of a rate is meant for a run by itself."""
        return {
            member.name
            for member in self.members
            if self.configs[member.name].scenario == "Offline"
            and duration_of(self.configs[member.name]) > 0
            and merge(self.common, member.options).get("target_qps") is None
        }


@dataclass
class Crew(AbstractContextManager["Crew"]):
    """The members' processes, each started when it is first needed; `lost` says why one is gone."""

    plan: Plan
    folder: Path
    progress: Progress
    members: dict[str, Member] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.members:
            self.progress.say("Stopping the members …")
        for member in self.members.values():
            member.dismiss() if kind is None else member.interrupt()
        for member in self.members.values():
            member.wait()

    def bring_up(self, names: Container[str]) -> None:
        """Start those that are not up, all at once, and wait until they are ready. Raises SetupError for one that does
        not come up: a fleet that lacks a member answers another question."""
        missing = [member for member in self.plan.members if member.name in names and member.name not in self.members]
        if missing:
            self.progress.say(f"Starting {', '.join(member.name for member in missing)} …")
        for member in missing:
            options = merge(self.plan.common, member.options)
            if member.name in self.plan.unsized:
                options |= keyed(self.plan.configs[member.name])
            folder = self.folder / member.slug
            self.members[member.name] = start_member(member.name, options, folder, member.environment)
        for name, reply in self.listen(member.name for member in missing):
            if reply is None:
                raise SetupError(f"{name} did not come up: {self.lost[name]}")

    def listen(self, names: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
        """A reply of each, as they come; None of one that is gone."""
        due = {self.members[name].replies: name for name in names}
        while due:
            for stream in select(list(due), [], [])[0]:
                name = due.pop(stream)
                reply = self.members[name].hear()
                if reply is None:
                    self.lost[name] = self.members[name].last_words()
                yield name, reply


# -- how many samples -------------------------------------------------------------------------------------------------


def duration_of(config: RunConfig) -> float:
    """Seconds that a test has to last; LoadGen's own are 600."""
    return config.settings.get("min_duration", 600_000) / 1000


def keyed(config: RunConfig) -> dict[str, Any]:
    """Options that set the keys which differ between a trial and a sized test: LoadGen reads all keys once."""
    return {"target_qps": 1.0, "min_duration": duration_of(config), "min_queries": least(config)}


def least(config: RunConfig) -> int:
    return int(config.settings.get("min_query_count", 1))


def trial_settings(config: RunConfig) -> Settings:
    """A short test, from which the rate is taken."""
    users = config.concurrency or 1
    return {"target_qps": 1.0, "min_duration": 0, "min_query_count": max(TRIAL_ROUNDS * users, least(config))}


def sized(config: RunConfig, rate: float) -> Settings:
    """LoadGen issues 1.1 × rate × duration samples, and calls a test that is over before its duration INVALID; with a
    margin for the trial's chance, a test lasts some 15 % longer than asked."""
    return {
        "target_qps": MARGIN * rate,
        "min_duration": round(duration_of(config) * 1000),
        "min_query_count": least(config),
    }


def full_load_rates(trials: Mapping[str, Trial]) -> dict[str, float]:
    """Samples/s of each while all users of all were busy: until the first trial has no more samples left than users,
    after which its end idles. A trial that was not half done by then is taken by itself."""
    until = min(trial.busy_until for trial in trials.values())
    return {name: trial.rate(until if trial.count(until) * 2 >= len(trial.done) else trial.busy_until)
            for name, trial in trials.items()}  # fmt: skip


class Trial(NamedTuple):
    """A trial's beginning and the ends of its answers in Unix seconds, in order, and its number of users."""

    began: float
    done: npt.NDArray[np.float64]
    users: int

    @property
    def busy_until(self) -> float:
        """When as many samples were left as there are users."""
        return float(self.done[max(0, len(self.done) - self.users - 1)]) if len(self.done) else self.began

    def count(self, until: float) -> int:
        return int(np.searchsorted(self.done, until, side="right"))

    def rate(self, until: float) -> float:
        """Samples/s up to the last answer by then: users that began together also end in waves."""
        count = self.count(until)
        span = float(self.done[count - 1]) - self.began if count else 0.0
        return count / span if span > 0 else 1.0


def round_names(members: Sequence[Variant], rounds: int) -> list[str]:
    """The points of a fleet, in order, without its trials."""
    numbers = range(1, rounds + 1)
    return [name for n in numbers for name in (f"together-{n}", *(f"alone-{n}-{member.slug}" for member in members))]


# -- running ----------------------------------------------------------------------------------------------------------


def run_fleet(study: Study, plan: Plan, progress: Progress) -> Findings:
    """Run what is not run yet. Raises SetupError for a member that does not come up, KeyboardInterrupt."""
    everybody = list(plan.slugs)
    measured = {name: Measured(variant) for name, variant in zip(everybody, plan.members, strict=True)}
    with closing(Guard()), Crew(plan, study.folder / ENGINES, progress) as crew:
        for number in range(1, plan.rounds + 1):
            found = run_round(study, crew, f"together-{number}", "trial-together", everybody)
            for name in everybody:
                alone = f"alone-{number}-{plan.slugs[name]}", f"trial-alone-{plan.slugs[name]}"
                measured[name].together.append(found.get(name))
                measured[name].alone.append(run_round(study, crew, *alone, [name]).get(name))
        for name, reason in crew.lost.items():
            measured[name].trouble = reason
    return conclude(list(measured.values()))


def run_round(study: Study, crew: Crew, point: str, trial: str, names: Sequence[str]) -> dict[str, RunResult]:
    """The results of members that test at once: saved ones, or those of now, sized by trials where needed. A test that
    is over before its duration is one more trial. Empty if a member is lost: what the others did without it answers
    another question."""
    done = saved_round(study, crew.plan, point, names)
    if done is not None:
        return done
    unsized = [name for name in names if name in crew.plan.unsized]
    if not unsized:
        return test_at_once(study, crew, point, {name: {} for name in names})
    configs = {name: crew.plan.configs[name] for name in unsized}
    trials = [f"{trial}-{number}" for number in range(1, TRIALS + 1)]
    if saved_round(study, crew.plan, trials[0], unsized) is None:
        test_at_once(study, crew, trials[0], {name: trial_settings(config) for name, config in configs.items()})
    while rates := rates_so_far(study, crew.plan, trials, unsized):
        sizes = {name: sized(configs[name], rate) for name, rate in rates.items()}
        found = test_at_once(study, crew, point, {name: sizes.get(name, {}) for name in names})
        short = any(found[name]["duration_s"] < duration_of(configs[name]) for name in unsized if name in found)
        spare = next((place for place in trials if not study.path(place).exists()), None)
        if not short or spare is None:
            return found
        crew.progress.say(f"{point} was too short and counts as a trial.")
        study.path(point).rename(study.path(spare))
    return {}


def rates_so_far(study: Study, plan: Plan, trials: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """The highest rate of each over the trials that there are; empty if there is none."""
    rates: dict[str, float] = {}
    for place in trials:
        tried = {
            name: Trial(run["started_at"] or 0.0, completions(run), plan.configs[name].concurrency or 1)
            for name, run in (saved_round(study, plan, place, names) or {}).items()
        }
        for name, rate in full_load_rates(tried).items() if tried else ():
            rates[name] = max(rate, rates.get(name, 0.0))
    return rates


def saved_round(study: Study, plan: Plan, point: str, names: Sequence[str]) -> dict[str, RunResult] | None:
    if study.saved(point) is None:
        return None
    return {name: results.load(study.path(point) / plan.slugs[name]) for name in names}


def test_at_once(study: Study, crew: Crew, point: str, settings: Mapping[str, Settings]) -> dict[str, RunResult]:
    """Have members test at once, and keep the round if all come to their end; else nothing of it counts."""
    if crew.lost.keys() & settings.keys():
        return {}
    folder = study.fresh(point)
    crew.bring_up(settings)
    crew.progress.say(f"{point} …")
    for name, own in settings.items():
        crew.members[name].tell(folder / crew.plan.slugs[name], own)
    heard = dict(crew.listen(settings))
    if None in heard.values():
        return {}
    found = {name: results.load(folder / crew.plan.slugs[name]) for name in settings}
    for name, run in found.items():
        if run["status"] != "complete":
            crew.lost[name] = f"{point}: {run['invalid_reasons'][0]}"
    if crew.lost.keys() & settings.keys():
        return {}
    study.keep(point, {"members": list(settings)})
    return found
