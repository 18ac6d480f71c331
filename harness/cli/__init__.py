"""The command line: flags → RunConfig → one call; errors → exit codes.

Exit codes: 0 all good · 2 usage or configuration · 3 set-up · 4 run not valid · 5 accuracy below target · 130
interrupted. Nothing heavy is imported before a command runs, so that --help answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click

from harness import __version__
from harness.cli.accuracy import accuracy
from harness.cli.compare import compare
from harness.cli.compliance import compliance
from harness.cli.context import context
from harness.cli.dataset import dataset
from harness.cli.doctor import doctor
from harness.cli.fleet import fleet, fleet_member
from harness.cli.layouts import layouts
from harness.cli.peak import peak
from harness.cli.readiness import readiness
from harness.cli.report import report
from harness.cli.run import run
from harness.cli.submission import submission
from harness.cli.sweep import sweep
from harness.cli.track import track

USAGE, SETUP, INTERRUPTED = 2, 3, 130


COMMANDS = {
    "Tests": (doctor, run, accuracy, compliance, dataset),
    "Studies": (peak, sweep, context, layouts, compare, fleet, readiness),
    "Results": (report, submission, track),
}


class DefaultToRun(click.Group):
    """`run` is meant where the first word is an option; --help lists the commands by what they are for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("--help", "--version"):
            args.insert(0, "run")
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(90)) for command in commands])


@click.group(cls=DefaultToRun, context_settings={"help_option_names": ["--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="loadgen-harness")
def cli() -> None:
    """MLPerf LoadGen for LLM serving.

    \b
    python -m harness --scenario Offline              a test of the embedded demo model
    python -m harness run --help                      all options of a run

    `run` is the default command.
    """


for command in (*(command for group in COMMANDS.values() for command in group), fleet_member):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with the documented exit code."""
    # stderr itself belongs to an engine's log while that engine is being spawned.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = INTERRUPTED  # by a signal that comes while another one's error is told
    try:
        code = call(words, debug="--debug" in words)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a closed pipe
                stream.flush()
    finally:
        # Not sys.exit: LoadGen's thread may still sit in a test that was stopped, and cannot be told to end.
        os._exit(code)


def call(words: Sequence[str], debug: bool = False) -> int:
    """The exit code of a command; an error becomes one sentence on stderr."""
    from sut.errors import ConfigError, SetupError

    try:
        code = cli.main(args=list(words), prog_name="loadgen-harness", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        said = error.format_message().removesuffix(".")
        joined = " " if said.endswith(("?", "?)")) else "; "
        return complain(f"{said}{joined}--help lists the options.", USAGE, debug=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except ConfigError as error:
        return complain(str(error), USAGE, debug)
    except SetupError as error:
        return complain(str(error), SETUP, debug)
    except (KeyboardInterrupt, click.Abort):
        return complain("interrupted.", INTERRUPTED, debug=False)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        return complain(f"{error.strerror or error}{place}.", SETUP, debug)
    except Exception:  # noqa: BLE001 - a fault of ours: the traceback is what a bug report needs
        traceback.print_exc()
        return complain("this is a fault in the harness itself; please report it with the lines above.", 1, debug=False)


def complain(sentence: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    with suppress(OSError):  # nobody reads stderr any more
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    return code
