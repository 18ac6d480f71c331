"""Rows of a dataset, from wherever they are: JSONL, JSON, parquet, a pickled DataFrame, a hub.

A file is read row by row, so that a big one never stands in memory as Python ints; a pickle has no other way.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Sequence
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from harness.unpickle import read_frame
from sut.errors import SetupError

COLUMNS = ("id", "system_prompt", "question", "response")
"""The columns of a raw row, all text."""

PROMPTS = ("tok_input", "input_tokens")
"""The column of a processed row that holds the prompt's token ids: the second is gpt-oss-120b's since its v4.0
(language/gpt-oss-120b/utils/tokenization.py of mlcommons/inference)."""

REFERENCE = "output"
"""A processed row's reference text. A dataset whose answers are graded otherwise has none. It may have an `id` too."""

WANTED = (*COLUMNS, *PROMPTS, REFERENCE)

BATCH = 128
"""Rows that are decoded or tokenised at once."""

JSON_CHUNK = 1 << 20
"""Characters of a JSON list that are read at once."""

FILE_ENDINGS = (".jsonl", ".json", ".parquet", ".pkl", ".pickle", ".gz")


class Row(NamedTuple):
    """One row as it was read: `place` says where in the file, for a person."""

    place: str
    cells: dict[str, Any]


class Table(NamedTuple):
    """The rows of a dataset, read as they are asked for, and its columns; of JSON, those of the first row."""

    name: str
    columns: list[str]
    rows: Iterator[Row]


def is_processed(columns: Sequence[str]) -> bool:
    return not set(columns).isdisjoint(PROMPTS)


def is_raw(columns: Sequence[str]) -> bool:
    """Whether rows are meant to be raw, be it that a column is missing, which is said of the row that lacks it."""
    return set(columns).issuperset(COLUMNS) or (
        ("question" in columns or "response" in columns) and not is_processed(columns)
    )


def open_table(source: str) -> Table:
    """The rows of a file or of a hub dataset. Raises SetupError, here or while rows are read."""
    table = hub_table(source) if is_hub_id(source) else file_table(Path(source))
    first = next(table.rows, None)
    columns = table.columns or list(first.cells if first else ())
    if columns and not is_processed(columns) and not is_raw(columns):
        raise SetupError(
            f"{table.name} has the columns {', '.join(columns)}; needed are {', '.join(COLUMNS)} (raw rows) or "
            f"{PROMPTS[0]} and {REFERENCE} (processed ones)."
        )
    if first is None:
        raise SetupError(f"the dataset {table.name} is empty.")
    return Table(table.name, columns, chain([first], table.rows))


def file_table(path: Path) -> Table:
    """Rows by the ending of the file's name."""
    if path.name.endswith(".parquet"):
        return parquet_table(path)
    if path.name.endswith((".pkl", ".pickle", ".pkl.gz")):
        return pickle_table(path)
    if path.name.endswith(".json") and begins_a_list(path):
        return Table(str(path), [], json_rows(path))
    return Table(str(path), [], jsonl_rows(path))


def is_hub_id(source: str) -> bool:
    """Whether a name is no file here, nor the name of one, but can be `owner/name` or `owner/name:split` on the hub."""
    named = re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(:[\w.-]{1,95})?", source)
    return bool(named) and not source.endswith(FILE_ENDINGS) and not Path(source).exists()


def open_file(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise SetupError(
            f"cannot read the dataset {path}: {error.strerror}; name a JSONL file with --dataset."
        ) from error


def whole_parquet(path: Path) -> Any:
    """A parquet file as one pyarrow.Table, checked to its last value. Raises SetupError for what is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(f"cannot read {path} as parquet ({why}).") from error
    return table


def parquet_columns(path: Path, numbers: Sequence[str], words: Sequence[str] = (), prefix: str | None = None) -> Any:
    """Columns of a file that a run has written, as a pyarrow.Table: numbers, among them those that begin with `prefix`,
    and words. Raises SetupError for what is no parquet or lacks a column of its kind."""
    import pyarrow as pa

    table = whole_parquet(path)
    more = [name for name in table.column_names if prefix is not None and name.startswith(prefix)]
    for name in (*numbers, *more, *words):
        if name not in table.column_names:
            raise SetupError(f"{path} has no column {name!r}: it is not what a run writes.")
        kind = table[name].type
        if name in words:
            right = pa.types.is_string(kind) or pa.types.is_null(kind)
        else:
            right = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if not right:
            raise SetupError(f"{path}: the column {name!r} is of type {kind}: it is not what a run writes.")
    return table.select([*numbers, *more, *words])


def digest_of(path: Path) -> str:
    """SHA-256 of a file. Raises SetupError for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}.") from error


def jsonl_rows(path: Path) -> Iterator[Row]:
    begun = 0
    with open_file(path) as file:
        for number, line in enumerate(file, 1):  # bytes end at \n only: JSON strings may hold U+2028
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise SetupError(
                    f"the dataset {path} is not UTF-8 text (byte {begun + error.start}): save it as UTF-8 JSONL."
                ) from error
            begun += len(line)
            if text.strip():
                yield Row(f"line {number}", parse_row(text.rstrip("\n"), f"{path}, line {number}"))


def parse_row(line: str, where: str) -> dict[str, Any]:
    """The object of one line. Raises SetupError."""
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise SetupError(
            f"{where}: not a JSON object ({error.msg}, column {error.colno}); is the file cut off?"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists in lists
        raise SetupError(f"{where}: not a JSON object that can be read ({error}).") from error
    return check_object(row, where)


def check_object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SetupError(f"{where}: not a JSON object but {type(row).__name__}.")
    return row


def begins_a_list(path: Path) -> bool:
    """Whether a .json file holds a list; many that are called so are JSONL."""
    with open_file(path) as file:
        return file.read(256).lstrip().startswith(b"[")


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON list one by one; the whole of cnn_eval.json as Python objects takes half a gigabyte."""
    decoder = json.JSONDecoder()
    with open_file(path), path.open(encoding="utf-8", newline="") as file:
        text = read_text(file, JSON_CHUNK, path)
        at = text.index("[") + 1
        if re.match(r"\s*\]", text[at:]):
            return
        number = 0
        while True:
            where = f"{path}, row {number}"
            try:
                value, end = list_item(decoder, text, at)
            except json.JSONDecodeError as error:
                # What is wrong may only be that the rest has not been read. Doubling keeps the whole linear.
                more = read_text(file, len(text) - at + JSON_CHUNK, path)
                if not more:
                    raise SetupError(f"{where}: not a JSON object ({error.msg}); is the file cut off?") from error
                text, at = text[at:] + more, 0
                continue
            except (ValueError, RecursionError) as error:
                raise SetupError(f"{where}: not a JSON object that can be read ({error}).") from error
            yield Row(f"row {number}", check_object(value, where))
            if text[end] == "]":
                return
            at, number = end + 1, number + 1


def list_item(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int]:
    """The item of a list that begins at `at`, and where the comma or bracket after it stands."""
    space = re.compile(r"\s*")
    value, end = decoder.raw_decode(text, space.match(text, at).end())  # type: ignore[union-attr]
    end = space.match(text, end).end()  # type: ignore[union-attr]
    if text[end : end + 1] not in (",", "]"):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
    return value, end


def read_text(file: IO[str], size: int, path: Path) -> str:
    try:
        return file.read(size)
    except UnicodeDecodeError as error:
        raise SetupError(f"the dataset {path} is not UTF-8 text: save it as UTF-8 JSON.") from error


def parquet_table(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows() -> Iterator[Row]:
        begun = 0
        try:
            wanted = [name for name in columns if name in WANTED]
            for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
                yield from arrow_rows(batch, begun)
                begun += batch.num_rows
            pa.default_memory_pool().release_unused()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise broken(error) from error

    def broken(error: Exception) -> SetupError:
        return SetupError(
            f"cannot read {path} as parquet ({str(error).splitlines()[0]}): is the file cut off or damaged?"
        )

    open_file(path).close()
    try:
        # Else pyarrow holds the columns of a row group as a whole, which often is the file.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise broken(error) from error
    columns: list[str] = file.schema_arrow.names
    return Table(str(path), columns, rows())


def hub_table(source: str) -> Table:
    """Rows of a hub dataset through `datasets`, which caches it; without a split, those of `train`."""
    import datasets  # type: ignore[import-untyped, unused-ignore]

    name, _, split = source.partition(":")
    try:
        found = datasets.load_dataset(name, split=split or "train")
    except Exception as error:
        raise SetupError(
            f"the dataset {source} is neither a file here nor to be had from the hub ({type(error).__name__}): name a "
            "file with --dataset, or owner/name:split."
        ) from error
    columns = [column for column in found.column_names if column in WANTED]
    tables = found.select_columns(columns).with_format("arrow").iter(BATCH) if columns else iter(())
    rows = (row for number, batch in enumerate(tables) for row in arrow_rows(batch, number * BATCH))
    return Table(source, list(found.column_names), rows)


def arrow_rows(batch: Any, begun: int) -> Iterator[Row]:
    """The rows of a pyarrow table or batch, the first being row `begun` of the dataset."""
    columns = {name: arrow_cells(batch.column(name)) for name in batch.schema.names}
    for number in range(batch.num_rows):
        yield Row(f"row {begun + number}", {name: cells[number] for name, cells in columns.items()})


def arrow_cells(column: Any) -> Sequence[Any]:
    """Lists of integers as views of one array, anything else as Python objects."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not pa.types.is_integer(kind.value_type) or column.null_count:
        return list(column.to_pylist())
    flat = column.flatten()
    if flat.null_count:
        return list(column.to_pylist())
    values = flat.to_numpy()
    ends = np.cumsum(pc.list_value_length(column).to_numpy()).tolist()
    return [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def pickle_table(path: Path) -> Table:
    """Rows of a pickled DataFrame, read by `harness.unpickle`, which runs nothing of it."""
    try:
        with open_file(path) as file:
            columns, cells = read_frame(gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file, WANTED)
    except pickle.UnpicklingError as error:
        raise SetupError(
            f"cannot read {path} as a pickled table: {str(error).rstrip('.')}; save it as parquet, or get it again "
            "from its source."
        ) from error
    return Table(str(path), columns, frame_rows(cells))


def frame_rows(columns: dict[str, list[Any]]) -> Iterator[Row]:
    for number in range(min(map(len, columns.values()), default=0)):
        cells = {name: cells[number] for name, cells in columns.items()}
        for column in columns.values():
            column[number] = None  # a prompt's ints are given back as soon as they stand in the flat array
        yield Row(f"row {number}", cells)
