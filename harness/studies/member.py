"""A member of a fleet: a process with one SUT, which runs a test each time that it is told to.

Who started it writes a line of JSON to its stdin, {"folder": …, "settings": {LoadGen's keys that differ}}. It says a
line on its stdout: {"ready": true} when its replicas are up, {"status": …} at the end of each test. Pipes are the
barrier between members: several are told at once, and one that dies is heard of at once, since its pipe ends. At the
end of its stdin it stops; so it does when whoever started it is gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from harness.benchmarks import Number
from harness.config import RunConfig, as_arguments
from harness.dataset import Samples, Tokenizer
from harness.folder import prepare_folder
from harness.progress import Progress
from harness.run import open_sut, run_test
from harness.studies.rig import read_apart

COMMAND = "fleet-member"
"""The hidden command that `serve` is behind."""


# -- the member's side ------------------------------------------------------------------------------------------------


def serve(
    config: RunConfig, samples: Samples, tokenizer: Tokenizer, orders: Iterable[str], say: Callable[[Any], None]
) -> None:
    """Bring the SUT up and run a test for each order, until there is none or one did not come to its end."""
    with Progress(quiet=True) as progress, open_sut(config, samples, tokenizer, progress) as system:
        say({"ready": True})
        for order in map(json.loads, orders):
            settings = {**config.settings, **order["settings"]}
            own = replace(config, settings=settings, output_dir=Path(order["folder"]))
            prepare_folder(own)
            result = run_test(own, system, progress)
            if result["status"] == "interrupted":
                raise KeyboardInterrupt
            say({"status": result["status"]})
            if result["status"] != "complete":
                break


# -- the side of who starts it ----------------------------------------------------------------------------------------


@dataclass
class Member:
    """A process as its starter sees it."""

    name: str
    folder: Path
    process: subprocess.Popen[str]

    @property
    def replies(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def tell(self, folder: Path, settings: Mapping[str, Number]) -> None:
        """Have it run a test; one that is gone is found out by its silence."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(json.dumps({"folder": str(folder), "settings": dict(settings)}) + "\n")
            self.process.stdin.flush()

    def hear(self) -> dict[str, Any] | None:
        """Its next line; None if it is gone."""
        line = self.replies.readline()
        return dict(json.loads(line)) if line else None

    def last_words(self) -> str:
        """Why it ended."""
        code = self.process.wait()
        said = read_apart(code, self.folder).said
        return said or (
            f"its process was ended by signal {-code}" if code < 0 else f"its process ended with code {code}"
        )

    def dismiss(self) -> None:
        """Let it stop its replicas and end."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def interrupt(self) -> None:
        """End it as Ctrl-C would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        self.process.wait()
        self.dismiss()
        self.replies.close()


def start_member(name: str, options: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> Member:
    """Start a member with these options (the keywords of `resolve`) and variables beside ours; what it prints, and its
    engines' logs, go into its folder. Who starts it holds a Guard."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "harness", COMMAND, *as_arguments({**options, "output_dir": folder})]
    with (folder / "output.txt").open("w") as out:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            env={**os.environ, **environment},
        )
    return Member(name, folder, process)
