"""What a dataset holds: how many rows, how long their prompts and answers are, where they come from, its checksum."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness import benchmarks
from harness.dataset import Tokenizer, chat_prompt, digest_of_hub, processed_samples, raw_rows, raw_samples
from harness.histogram import Panel, as_bars, figures_text, histogram, statistics
from harness.histogram import as_svg as picture
from harness.tables import BATCH, Table, digest_of, is_hub_id, is_processed, open_table
from sut.errors import ConfigError, SetupError
from sut.query import TOKEN_DTYPE

LONGEST = 5
"""Prompts that are named for their length."""

MANY_ORIGINS = 12
"""More parts than that before the dot of ids are no origins."""

SAID_EVERY = 50_000


@dataclass(frozen=True)
class Profile:
    """`prompts` and `answers` are lengths, int64, shape (rows,), in the unit beside them: tokens or characters.

    `sha256` is what `run` records of the dataset; None of a hub dataset whose prompts are not token ids here.
    """

    source: str
    kind: str
    ids: list[str]
    prompts: npt.NDArray[np.int64]
    prompt_unit: str
    answers: npt.NDArray[np.int64]
    answer_unit: str
    sha256: str | None

    @property
    def origins(self) -> dict[str, int]:
        """Rows by what stands before the dot of their ids, if these are few and all ids have one."""
        found = Counter(name.partition(".")[0] for name in self.ids if "." in name)
        named = found.total() == len(self.ids) and len(found) <= MANY_ORIGINS
        return dict(sorted(found.items())) if named else {}

    @property
    def as_many_as(self) -> list[str]:
        """The benchmarks whose own dataset has as many rows."""
        return [name for name in benchmarks.NAMES if benchmarks.find(name).samples == len(self.ids)]

    @property
    def longest(self) -> list[tuple[str, int]]:
        """(id, length) of the longest prompts."""
        order = np.argsort(-self.prompts, kind="stable")[:LONGEST].tolist()
        return [(self.ids[place], int(self.prompts[place])) for place in order]

    @property
    def panels(self) -> list[Panel]:
        return [
            Panel("Prompts", self.prompt_unit, self.prompts),
            Panel("Reference answers", self.answer_unit, self.answers),
        ]


class Measured(NamedTuple):
    """One row: the token ids of its prompt where they are known, the prompt's length, the answer's text."""

    id: str
    prompt: Sequence[int] | npt.NDArray[Any] | None
    length: int
    answer: str


def profile(source: str, tokenizer: Tokenizer | None, say: Callable[[str], None]) -> Profile:
    """Read a dataset as a run would, holding lengths only. Raises SetupError for what a run would refuse.

    Without a tokenizer, texts are as long as they have characters.
    """
    refuse_missing(source)
    table = open_table(source)
    say(f"reading {source}")
    processed, hub = is_processed(table.columns), is_hub_id(source)
    rows = measured_rows(table, tokenizer)
    ids: list[str] = []
    prompts, answers, tokens = array("q"), array("q"), array("i")
    while batch := list(islice(rows, BATCH)):
        ids.extend(row.id for row in batch)
        prompts.extend(row.length for row in batch)
        answers.extend(answer_lengths([row.answer for row in batch], tokenizer))
        for row in batch:
            if hub and row.prompt is not None:
                tokens.frombytes(np.asarray(row.prompt, TOKEN_DTYPE).tobytes())
        if len(ids) % SAID_EVERY < BATCH <= len(ids):
            say(f"read {len(ids):,} rows")
    known = processed or tokenizer is not None
    return Profile(
        source=source,
        kind="processed" if processed else "raw",
        ids=ids,
        prompts=np.frombuffer(prompts, np.int64),
        prompt_unit="tokens" if known else "characters",
        answers=np.frombuffer(answers, np.int64),
        answer_unit="tokens" if tokenizer else "characters",
        sha256=hub_digest(ids, tokens, known) if hub else digest_of(Path(source)),
    )


def refuse_missing(source: str) -> None:
    if not Path(source).is_file() and not is_hub_id(source):
        what = "is a folder" if Path(source).is_dir() else "is no file here"
        raise SetupError(f"{source} {what}: name a dataset's file, or a hub id.")


def hub_digest(ids: Sequence[str], tokens: array[int], known: bool) -> str | None:
    return digest_of_hub(ids, np.frombuffer(tokens, TOKEN_DTYPE)) if known else None


def measured_rows(table: Table, tokenizer: Tokenizer | None) -> Iterator[Measured]:
    if is_processed(table.columns):
        found = processed_samples(table, None, tokenizer.size if tokenizer else np.iinfo(TOKEN_DTYPE).max)
    elif tokenizer:
        found = raw_samples(table, None, tokenizer, ())
    else:
        for row in raw_rows(table, None):
            yield Measured(row["id"], None, len(chat_prompt(row["system_prompt"], row["question"])), row["response"])
        return
    for sample in found:
        yield Measured(sample.id, sample.prompt, len(sample.prompt), sample.reference)


def answer_lengths(answers: Sequence[str], tokenizer: Tokenizer | None) -> list[int]:
    """Tokens of the texts alone, or their characters."""
    if tokenizer is None:
        return [len(answer) for answer in answers]
    begun = 0 if tokenizer.bos is None else 1
    return [len(ids) - begun for ids in tokenizer.encode(answers)]


# -- telling -----------------------------------------------------------------------------------------------------------


def size_text(found: Profile) -> str:
    rows = f"{len(found.ids):,} {found.kind} rows"
    return f"{rows}, as many as {' and '.join(found.as_many_as)} has of its own" if found.as_many_as else rows


def as_text(found: Profile, width: int) -> str:
    lines = [found.source, size_text(found), f"sha256 {found.sha256 or 'not known without --model'}"]
    if found.origins:
        lines.append("origins: " + ", ".join(f"{count:,} {name}" for name, count in found.origins.items()))
    for panel in found.panels:
        lines += ["", f"{panel.title}, {panel.unit}: {figures_text(statistics(panel.lengths))}"]
        lines += as_bars(histogram(panel.lengths), width)
    longest = ", ".join(f"{name} ({length:,})" for name, length in found.longest)
    return "\n".join([*lines, "", f"longest prompts: {longest}"])


def as_json(found: Profile) -> dict[str, Any]:
    def measured(panel: Panel) -> dict[str, Any]:
        bars = histogram(panel.lengths)
        return {"unit": panel.unit, **statistics(panel.lengths)._asdict(), "histogram": bars._asdict()}

    prompts, answers = found.panels
    return {
        "source": found.source,
        "kind": found.kind,
        "rows": len(found.ids),
        "as_many_as": found.as_many_as,
        "sha256": found.sha256,
        "origins": found.origins,
        "prompts": measured(prompts),
        "answers": measured(answers),
        "longest_prompts": [{"id": name, "length": length} for name, length in found.longest],
    }


def as_svg(found: Profile) -> str:
    checksum = f" · sha256 {found.sha256[:16]}…" if found.sha256 else ""
    return picture(Path(found.source).name, size_text(found) + checksum, found.panels)


def refuse_picture(path: Path | None) -> None:
    """Raises ConfigError for a picture that could not be written in the end."""
    if path is None:
        return
    if path.suffix.lower() != ".svg":
        raise ConfigError(f"--picture {path}: a picture is written as SVG; end its name in .svg.")
    if path.exists():
        raise ConfigError(f"--picture {path} is there already, and nothing is overwritten: name a new file.")
    if not path.parent.is_dir():
        raise ConfigError(f"--picture {path}: there is no folder {path.parent}.")
