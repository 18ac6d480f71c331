"""How the points of a study are run: on one SUT that all of a scenario share, or each in a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from harness import results
from harness.benchmarks import Number
from harness.config import RunConfig, as_arguments, shown_environment, shown_options
from harness.dataset import Samples, Tokenizer
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.results import RunResult
from harness.run import POLL, System, open_sut, run_test
from harness.signals import Noted
from harness.studies.study import Study
from harness.tally import Tally
from sut.errors import SetupError
from sut.health import Deadlines
from sut.query import Outcome, Query, Tokens
from sut.work import Work

ENGINES = "engines"
"""The folder of a study in which its engines' logs lie."""

_ids = count(1)


class NotUp(SetupError):
    """A rig's replicas could not be brought up."""


class Ear:
    """Hears of one query's end, on the SUT's loop."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.outcome: Outcome | None = None

    def first(self, query: Query, ids: Tokens) -> None:
        pass

    def done(self, finished: Sequence[tuple[Query, Outcome]]) -> None:
        self.outcome = finished[-1][1]
        self.ended.set()

    def close(self) -> None:
        pass


class Rig(AbstractContextManager["Rig"]):
    """One SUT for all points of a scenario, brought up when the first point needs it: a study whose points are all done
    starts nothing. After an abort the next point gets replicas that are started anew."""

    def __init__(
        self,
        study: Study,
        config: RunConfig,
        samples: Samples,
        tokenizer: Tokenizer,
        progress: Progress,
        engines: str = ENGINES,
    ) -> None:
        self.study = study
        self.engines = study.folder / engines
        self.config = config
        self.samples = samples
        self.progress = progress
        self._tokenizer = tokenizer
        self._stack = ExitStack()
        self._system: System | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._system = None
        self._stack.__exit__(kind, error, trace)

    def point(
        self,
        name: str,
        settings: Mapping[str, Number] | None = None,
        samples: Samples | None = None,
        tally: Tally | None = None,
        **changes: Any,
    ) -> RunResult:
        """A point's result: the saved one, or that of a run now. `settings` are LoadGen's keys that differ from the
        rig's configuration, `changes` other fields; all points set the same keys, since LoadGen reads them once. With a
        `tally` a run ends as soon as it cannot be VALID any more.

        Raises KeyboardInterrupt when the run was interrupted, ConfigError and SetupError as `open_sut` does.
        """
        done = self.study.result(name)
        if done is not None:
            return done
        config = replace(
            self.config,
            settings={**self.config.settings, **(settings or {})},
            output_dir=self.study.fresh(name),
            **changes,
        )
        system = self.system()
        prepare_folder(config)
        result = run_test(config, replace(system, samples=samples or self.samples), self.progress, tally=tally)
        if result["status"] == "interrupted":
            raise KeyboardInterrupt
        if result["status"] != "complete":
            self.take_down()
        return result

    def system(self) -> System:
        """The SUT, up. Raises NotUp, and ConfigError as `open_sut` does."""
        if self._system is None:
            own = replace(self.config, output_dir=self.engines)
            try:
                self._system = self._stack.enter_context(open_sut(own, self.samples, self._tokenizer, self.progress))
            except SetupError as error:
                raise NotUp(str(error)) from error
        return self._system

    def ask(self, prompt: Tokens, deadlines: Deadlines) -> Outcome:
        """One query without LoadGen, where only its end matters: its times are the SUT's own. A prompt that the replica
        has said it cannot serve is asked all the same. Raises as `point` does."""
        sut, ear = self.system().sut, Ear()
        sut.prepare([])  # what is ready from an earlier test is not for this prompt
        sut.begin(
            Work(lambda _: prompt, self.config.stream, self.config.generation.max_tokens, ear, deadlines=deadlines)
        )
        with Noted() as noted:
            sut.issue([next(_ids)], [0])
            while not ear.ended.wait(POLL) and noted.interrupt is None:
                pass
            if noted.interrupt is not None:
                sut.abandon("the study was interrupted.")
                raise noted.interrupt
            sut.end()
        assert ear.outcome is not None
        return ear.outcome

    def take_down(self) -> None:
        """Stop the replicas; LoadGen first has to come to the end of its schedule, on which this SUT must answer."""
        from harness import loadgen

        if not loadgen.settled():
            self.progress.say("Waiting for LoadGen to end the test that was aborted …")
        loadgen.settle()
        system, self._system = self._system, None
        if system is not None:
            system.sut.close()  # after an abort `open_sut` does not: a test may still be issuing, and the process ends
        self._stack.close()


@dataclass(frozen=True)
class Apart:
    """How a run in a process of its own ended: its result if it has one, its exit code, and what it said if not."""

    result: RunResult | None
    code: int
    said: str


def start_apart(
    options: Mapping[str, Any], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m harness run` with these options (the keywords of `resolve`) and variables beside ours; what it
    prints goes into its folder, beside the command as a person would type it. Who starts it holds a Guard, or sees to
    its end."""
    options = {**options, "output_dir": folder}
    folder.mkdir(parents=True, exist_ok=True)
    variables = [f"{name}={value}" for name, value in shown_environment(environment or {}).items()]
    shown = [*variables, "python", "-m", "harness", "run", *as_arguments(shown_options(options)), "--quiet"]
    (folder / "command.txt").write_text(shlex.join(shown) + "\n")
    words = [sys.executable, "-m", "harness", "run", *as_arguments(options), "--quiet"]
    with (folder / "output.txt").open("wb") as out:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )


def finish_apart(process: subprocess.Popen[bytes], folder: Path) -> Apart:
    """Wait for a run that was started apart. An interrupt is passed on to it, and raised once it has ended."""
    try:
        code = process.wait()
    except KeyboardInterrupt:
        stop_apart(process)
        raise
    return read_apart(code, folder)


def read_apart(code: int, folder: Path) -> Apart:
    """What a run that was started apart has left. Raises SetupError for a damaged result."""
    if (folder / results.RESULT).exists():
        return Apart(results.load(folder), code, "")
    lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    return Apart(None, code, said.removeprefix("error: "))


def stop_apart(process: subprocess.Popen[bytes]) -> None:
    """End a run that was started apart, as Ctrl-C would, and wait for it; a terminal's Ctrl-C may have reached it
    already, and a second one does no harm."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.wait()


def run_apart(
    study: Study,
    name: str,
    options: Mapping[str, Any],
    progress: Progress,
    environment: Mapping[str, str] | None = None,
) -> Apart:
    """A point in a process of its own: the saved result, or that of a run now. Raises KeyboardInterrupt."""
    done = study.result(name)
    if done is not None:
        return Apart(done, done.exit_code, "")
    progress.say(f"{name} …")
    folder = study.fresh(name)
    apart = finish_apart(start_apart(options, folder, environment), folder)
    if apart.code == 130:
        raise KeyboardInterrupt
    return apart
