"""`dataset`: make a benchmark's dataset, and look at one."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import click

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)


@click.group()
def dataset() -> None:
    """Make a benchmark's dataset, and look at one.

    \b
    python -m harness dataset prepare openorca --source 1M-GPT4-Augmented.parquet --output openorca
    python -m harness dataset show openorca/open_orca_gpt4_tokenized_llama.sampled_24576.parquet
    """


@dataset.group()
def prepare() -> None:
    """Follow MLCommons' recipe for a dataset."""


@prepare.command()
@click.option("--source", required=True, help="1M-GPT4-Augmented.parquet, or a hub id that has it: Open-Orca/OpenOrca.")
@click.option("--model", help="Folder or hub id of Llama 2, for its tokenizer.  [default: llama2-70b-99.9's]")
@click.option("--output", required=True, type=PATH, help="New folder for the outcome.")
@click.option("--pickle", is_flag=True, help="Write the pickles that MLCommons' scripts read, too.")
@click.option("--workers", type=COUNT, help="Processes that filter and tokenise.  [default: one per core]")
@click.option("--per-origin", type=COUNT, help="Rows of each origin, for a trial.  [default: 6144]")
@click.option("--json", "as_json", is_flag=True, help="End stdout with the manifest as one line of JSON.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")
def openorca(
    source: str,
    model: str | None,
    output: Path,
    pickle: bool,
    workers: int | None,
    per_origin: int | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """llama2-70b's 24,576 prompts and the 1,000 to calibrate with, out of OpenOrca's GPT-4 rows.

    Exit code: 0 written, 2 usage, 3 source or tokenizer, 130 interrupted.
    """
    heed = alone_with_signals()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is one core; the library would start a thread per core
    from harness.benchmarks import find
    from harness.openorca import PER_ORIGIN
    from harness.preparation import Preparation, prepare, refuse_used, summary
    from harness.progress import Progress

    refuse_used(output)
    plan = Preparation(
        source=source,
        tokenizer=find_tokenizer(model or find("llama2-70b-99.9").model),
        output=output,
        per_origin=per_origin or PER_ORIGIN,
        workers=workers or len(os.sched_getaffinity(0)),
        pickle=pickle,
    )
    with Progress(quiet) as progress:

        def say(what: str) -> None:
            heed()
            progress.say(what)

        manifest = prepare(plan, say)
    tell(summary(manifest, output), manifest, as_json)
    return 0


@dataset.command()
@click.argument("source")
@click.option("--model", help="Folder or hub id whose tokenizer counts what has no token ids; else characters count.")
@click.option("--picture", type=PATH, help="Write the histograms as SVG, too.")
@click.option("--json", "as_json", is_flag=True, help="End stdout with the figures as one line of JSON.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--debug", is_flag=True, help="Tracebacks instead of sentences.")
def show(source: str, model: str | None, picture: Path | None, as_json: bool, quiet: bool, debug: bool) -> int:
    """What a dataset holds: rows, lengths, origins, checksum.

    SOURCE is what `run --dataset` takes: JSONL, JSON, parquet, a pickle (nothing in it is run), a hub id.

    Exit code: 0 shown, 2 usage, 3 a dataset that `run` would refuse, 130 interrupted.
    """
    from harness.dataset import Tokenizer
    from harness.profile import as_json as content_of
    from harness.profile import as_svg, as_text, profile, refuse_picture
    from harness.progress import Progress
    from harness.signals import raise_on_signals

    raise_on_signals()
    refuse_picture(picture)
    tokenizer = Tokenizer(find_tokenizer(model)) if model else None
    with Progress(quiet) as progress:
        found = profile(source, tokenizer, progress.say)
    if picture:
        picture.write_text(as_svg(found), encoding="utf-8")
    width = min(100, os.get_terminal_size().columns) if os.isatty(1) else 80
    tell(as_text(found, width), content_of(found), as_json)
    return 0


def find_tokenizer(model: str) -> Path:
    """A folder, or that of a hub id; a tokenizer needs no config.json beside it. Raises SetupError."""
    from harness.run import find_model

    return Path(model) if Path(model).is_dir() else find_model(model)


def alone_with_signals() -> Callable[[], None]:
    """Ctrl-C, SIGTERM and a lost terminal are this process's affair: workers hear nothing of them, and end with it.

    They have process groups of their own: `multiprocess` waits for ever on a lock that a worker has died with. And
    Linux ends them (prctl(2), PR_SET_PDEATHSIG) if an interrupt comes before `multiprocess` knows of them. Python drops
    what a signal raises within its own hooks around fork(2); what is returned here, called now and then, raises it.
    """
    from harness.signals import SIGNALS, raise_on_signals

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    came: list[int] = []

    def in_child() -> None:
        os.setpgid(0, 0)
        if prctl is not None:
            prctl(1, signal.SIGKILL)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def noted(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
        def note(number: int, frame: FrameType | None) -> None:
            came.append(number)
            handler(number, frame)

        return note

    def heed() -> None:
        if came:
            raise KeyboardInterrupt

    raise_on_signals()
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler):  # SIGHUP stays ignored under nohup
            signal.signal(number, noted(handler))
    os.register_at_fork(after_in_child=in_child)
    return heed


def tell(text: str, content: dict[str, Any], as_json: bool) -> None:
    with suppress(BrokenPipeError):  # whoever read stdout has gone; what was written is on disk
        print(text + (f"\n{json.dumps(content)}" if as_json else ""), flush=True)
