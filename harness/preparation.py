"""`dataset prepare`: from a source to the files of a benchmark's dataset, in parallel and in bounded memory.

The source is read in parts, each is judged by workers before the next is read, and what stays in memory of a row is
its fate and its origin; the texts of the rows that are chosen are read in a second pass.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import __version__
from harness.openorca import (
    CALIBRATION,
    CALIBRATION_SEED,
    FILTER_WORDS,
    FILTERS,
    FIRST_ANSWER_TOKEN,
    HUB_FILE,
    LENGTHS,
    ORIGINS,
    PER_ORIGIN,
    SEED,
    TOKENS,
    Judged,
    Rows,
    choose,
    draw,
    finish,
    judge,
    judged_features,
    outcome_features,
    reference_tokenizer,
)
from harness.progress import clock
from harness.tables import COLUMNS, digest_of, is_hub_id
from sut.errors import ConfigError, SetupError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset  # type: ignore[import-untyped, unused-ignore]

PART = 50_000
"""Rows that are read and judged before the next are; bounds memory and scratch space, and paces the progress."""

DIED = "a worker has died, as happens where memory runs out: try fewer --workers."

# 1: source, tokenizer, recipe, rows, outputs, versions
FORMAT_VERSION = 1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared: `source` is a parquet file or a hub id, `tokenizer` a folder with tokenizer.json."""

    source: str
    tokenizer: Path
    output: Path
    per_origin: int = PER_ORIGIN
    workers: int = 1
    pickle: bool = False

    @property
    def suffix(self) -> tuple[int, ...]:
        """FIRST_ANSWER_TOKEN where it is Llama 2's; in another vocabulary that number is some other token, or none."""
        known = reference_tokenizer(str(self.tokenizer)).id_to_token(FIRST_ANSWER_TOKEN) == "▁"
        return (FIRST_ANSWER_TOKEN,) if known else ()

    @property
    def stem(self) -> str:
        """What files are called by: the reference's name only for what can be the benchmark's own."""
        own = self.per_origin == PER_ORIGIN and self.suffix
        return "open_orca_gpt4_tokenized_llama" if own else "trial"


# -- the source --------------------------------------------------------------------------------------------------------


def find_source(source: str) -> Path:
    """The parquet: a path, or the recipe's file of a hub dataset, in the hub's cache. Raises SetupError."""
    path = Path(source)
    if path.is_file():
        return path
    if not is_hub_id(source) or ":" in source:
        what = "is a folder" if path.is_dir() else "is no file here"
        raise SetupError(f"{source} {what}: name {HUB_FILE}, or the hub id Open-Orca/OpenOrca, with --source.")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, HUB_FILE, repo_type="dataset"))
    except Exception as error:
        raise SetupError(
            f"{HUB_FILE} of {source} is not to be had from the hub ({type(error).__name__}): get it elsewhere and name "
            "the file with --source."
        ) from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises SetupError for what is no parquet, or is a damaged one."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise SetupError(
            f"cannot read {path} as parquet ({str(error).splitlines()[0].rstrip('.')}): is it {HUB_FILE}, whole?"
        ) from error


def open_source(path: Path) -> Any:
    """A pyarrow ParquetFile with the four raw columns of text. Raises SetupError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with readable(path):
        # Else pyarrow holds the columns of a row group as a whole, which may be the file.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    kinds = {field.name: field.type for field in file.schema_arrow}
    missing = [name for name in COLUMNS if name not in kinds]
    if missing:
        raise SetupError(
            f"{path} has no column {', '.join(missing)} but {', '.join(kinds)}: the recipe is for {HUB_FILE}, whose "
            f"columns are {', '.join(COLUMNS)}."
        )
    for name in COLUMNS:
        if not (pa.types.is_string(kinds[name]) or pa.types.is_large_string(kinds[name])):
            raise SetupError(f"{path} has no text in column {name} but {kinds[name]}: is it {HUB_FILE}?")
    return file


def parts(path: Path) -> Iterator[pa.Table]:
    """The raw rows in tables of about PART rows, whatever the row groups. Raises SetupError."""
    import pyarrow as pa

    file = open_source(path)
    batches, begun = file.iter_batches(min(1000, PART), columns=list(COLUMNS), use_threads=False), 0
    held: list[pa.RecordBatch] = []
    while True:
        with readable(path):
            batch = next(batches, None)
            if batch is not None:
                batch.validate(full=True)
        if held and (batch is None or sum(map(len, held)) >= PART):
            yield pa.Table.from_batches(held)
            held = []
        if batch is None:
            return
        held.append(checked(batch, f"{path}", begun))
        begun += len(batch)


def checked(batch: pa.RecordBatch, name: str, begun: int) -> pa.RecordBatch:
    """The batch as plain text columns. Raises SetupError for a row without text; it may lack a system prompt."""
    import pyarrow as pa

    for column in COLUMNS:
        if column != "system_prompt" and batch.column(column).null_count:
            row = begun + batch.column(column).is_null().to_pylist().index(True)
            raise SetupError(f"{name}, row {row}: no text in column {column!r}; is it {HUB_FILE}?")
    return batch.select(list(COLUMNS)).cast(pa.schema([(column, pa.string()) for column in COLUMNS]))


# -- acting ------------------------------------------------------------------------------------------------------------


def prepare(plan: Preparation, say: Say) -> dict[str, Any]:
    """Follow the recipe, and write the outcome into plan.output; returns its manifest.

    Nothing stands there under its own name before it is whole, and the manifest comes last. Raises ConfigError for an
    output folder that holds something, SetupError for anything else that cannot be done.
    """
    from datasets import disable_progress_bars

    disable_progress_bars()  # `say` is told instead
    refuse_used(plan.output)
    suffix = plan.suffix
    source = find_source(plan.source)
    say(f"reading {source}")
    open_source(source)
    digest = digest_of(source)
    with scratch_in(plan.output) as scratch:
        work = Workshop(plan, suffix, scratch)
        judged = judge_all(work, source, say)
        chosen = choose(judged.left, plan.per_origin)
        say(f"tokenising the {len(chosen):,} rows of the outcome")
        sampled = work.map(finish, rows_at(source, chosen), outcome_features())
        calibration = draw(np.arange(len(chosen)), min(CALIBRATION, len(chosen)), CALIBRATION_SEED)
        outcome = {f"sampled_{len(chosen)}": sampled, f"calibration_{len(calibration)}": sampled.select(calibration)}
        say("writing")
        outputs = {
            file.name: {"rows": len(data), "bytes": file.stat().st_size, "sha256": digest_of(file)}
            for name, data in outcome.items()
            for file in write(data, scratch / f"{plan.stem}.{name}", plan.pickle)
        }
        manifest = manifest_of(plan, source, digest, judged, outputs)
        publish(scratch, plan, manifest)
    return manifest


def judge_all(work: Workshop, source: Path, say: Say) -> Judged:
    """Raises SetupError for a row of an origin that the recipe does not know."""
    total, began = open_source(source).metadata.num_rows, monotonic()
    fates, origins, done = [np.empty(0, np.uint8)], [np.empty(0, np.uint8)], 0
    for part in parts(source):
        judged = work.map(judge, part, judged_features()).with_format("arrow")[:]
        found = judged["origin"].to_pylist()
        unknown = [place for place, name in enumerate(found) if name not in ORIGINS]
        if unknown:
            name = part["id"][unknown[0]].as_py()
            raise SetupError(f"{source}, row {done + unknown[0]}: the id {name!r} is of none of {', '.join(ORIGINS)}.")
        fates.append(np.array(judged["fate"].to_pylist(), np.uint8))
        origins.append(np.array([ORIGINS.index(name) for name in found], np.uint8))
        done += len(part)
        left = (monotonic() - began) / done * (total - done)
        say(f"filtered {done:,} of {total:,} rows" + (f", about {clock(left)} left" if done < total else ""))
    return Judged(np.concatenate(fates), np.concatenate(origins))


def rows_at(source: Path, numbers: Rows) -> pa.Table:
    """Rows of the source in the order of their numbers."""
    import pyarrow as pa

    found, begun = [], 0
    ascending = np.sort(numbers)
    for part in parts(source):
        low, high = np.searchsorted(ascending, (begun, begun + len(part)))
        found.append(part.take(pa.array(ascending[low:high] - begun)))
        begun += len(part)
    return pa.concat_tables(found).take(pa.array(np.searchsorted(ascending, numbers)))


@dataclass(frozen=True)
class Workshop:
    """Where tables go through a function of rows, with `datasets`, in parallel."""

    plan: Preparation
    suffix: tuple[int, ...]
    scratch: Path

    def map(self, function: Callable[..., Any], table: pa.Table, features: Any) -> Dataset:
        """The columns that `function` makes of the table's; they lie in scratch until the next call of the same.

        Raises SetupError, also where a worker has died.
        """
        import pyarrow as pa
        from datasets import Dataset

        name = function.__name__
        with writable(self.plan.output):
            source = self.scratch / f"{name}-rows.arrow"
            source.unlink(missing_ok=True)  # not written over: what is mapped into memory stays as it is
            with pa.OSFile(str(source), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=1000)
            workers = min(self.plan.workers, len(table))
            return Dataset.from_file(str(source)).map(
                function,
                batched=True,
                batch_size=500,
                num_proc=workers if workers > 1 else None,
                remove_columns=list(COLUMNS),
                features=features,
                fn_kwargs={"folder": str(self.plan.tokenizer), "suffix": self.suffix},
                cache_file_name=str(self.scratch / f"{name}.arrow"),
                load_from_cache_file=False,
                new_fingerprint=name,
            )


# -- files -------------------------------------------------------------------------------------------------------------


def refuse_used(output: Path) -> None:
    """Raises ConfigError unless the folder is new or empty."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file: name a new folder with --output.")
    held = next(iter(sorted(output.iterdir())), None) if output.exists() else None
    if held is not None:
        raise ConfigError(
            f"{output} already holds {held.name}, and nothing is overwritten: name a new folder with --output."
        )


@contextmanager
def scratch_in(output: Path) -> Iterator[Path]:
    """A folder in the output, from which a rename moves files; gone in the end, as is an output that is empty."""
    new = not output.exists()
    scratch = output / ".preparing"
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
        if new:
            with suppress(OSError):  # it holds the outcome
                output.rmdir()


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Raises SetupError for a full disk, and for a worker that went away; KeyboardInterrupt as it is."""
    from multiprocess import TimeoutError as Covered  # type: ignore[import-untyped, unused-ignore]

    try:
        yield
    except Covered as error:  # datasets raises it over what has made it give up waiting for its workers
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise SetupError(DIED) from error
    except OSError as error:
        raise SetupError(
            f"cannot write below {folder} ({error.strerror or error}): make room, or take another."
        ) from error
    except RuntimeError as error:
        raise SetupError(DIED) from error


def write(data: Dataset, path: Path, pickled: bool) -> list[Path]:
    """The rows as parquet, and if asked as the pickle that MLCommons' scripts read; returns the files."""
    files = [path.with_name(f"{path.name}.parquet")]
    with writable(path.parent.parent):
        data.to_parquet(str(files[0]))
        if pickled:
            files.append(path.with_name(f"{path.name}.pkl"))
            as_frame(data).to_pickle(files[1], protocol=4)  # numpy 1.26 cannot read the arrays of numpy 2's protocol 5
    return files


def as_frame(data: Dataset) -> Any:
    """A DataFrame of Python objects, which pandas of any version reads; tokens are lists, as in the reference's."""
    import pandas as pd

    table = data.with_format("arrow")[:]
    columns: dict[str, Any] = {}
    known: dict[int, int] = {}  # each number once: as objects of their own those of all prompts take half a gigabyte
    for name in table.column_names:
        cells: Any = table[name].to_pylist() if name not in TOKENS else (ids.as_py() for ids in table[name])
        if name in TOKENS:
            cells = [[known.setdefault(number, number) for number in ids] for ids in cells]
        columns[name] = pd.Series(cells, dtype="int64" if name in LENGTHS else object)
    frame = pd.DataFrame(columns)
    frame.columns = pd.Index(list(columns), dtype=object)
    return frame


def manifest_of(
    plan: Preparation, source: Path, digest: str, judged: Judged, outputs: Mapping[str, Any]
) -> dict[str, Any]:
    """What was made of what, by whom; a JSON object."""
    tokenizer = reference_tokenizer(str(plan.tokenizer))
    packages = ("datasets", "numpy", "pandas", "pyarrow", "tokenizers")
    return {
        "format_version": FORMAT_VERSION,
        "recipe": "language/llama2-70b/processorca.py of mlcommons/inference",
        "own_size_and_tokenizer": plan.stem != "trial",
        "source": {"name": plan.source, "file": source.name, "bytes": source.stat().st_size, "sha256": digest},
        "tokenizer": {
            "folder": str(plan.tokenizer),
            "vocabulary": tokenizer.get_vocab_size(),
            "sha256": digest_of(plan.tokenizer / "tokenizer.json"),
            "appended": list(plan.suffix),
        },
        "per_origin": plan.per_origin,
        "seeds": {"sampled": SEED, "calibration": CALIBRATION_SEED},
        "rows": judged.counts,
        "outputs": dict(outputs),
        "versions": {
            "loadgen-harness": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }


def publish(scratch: Path, plan: Preparation, manifest: Mapping[str, Any]) -> None:
    """Move the files out of scratch, all on disk, the manifest last."""
    name = f"{plan.stem}.json"
    with writable(plan.output):
        (scratch / name).write_text(json.dumps(manifest, indent=1) + "\n")
        files = [*manifest["outputs"], name]
        for file in files:
            with (scratch / file).open("rb") as written:
                os.fsync(written.fileno())
        for file in files:
            (scratch / file).rename(plan.output / file)


def summary(manifest: Mapping[str, Any], output: Path) -> str:
    """The manifest for a person."""
    rows = manifest["rows"]
    lines = [f"{rows['read']:>11,} rows read"]
    before = rows["read"]
    for name, what in zip(FILTERS, FILTER_WORDS, strict=True):
        after = rows[f"after_{name}"]
        lines.append(f"{after:>11,} left by the filter of {what} (-{before - after:,})")
        before = after
    lines.append("".ljust(12) + "of them " + ", ".join(f"{n:,} {name}" for name, n in rows["by_origin"].items()))
    lines += [f"{file['rows']:>11,} rows in {output / name}" for name, file in manifest["outputs"].items()]
    if not manifest["own_size_and_tokenizer"]:
        lines.append("A trial: not the benchmark's own, by its size or its tokenizer.")
    return "\n".join(lines)
