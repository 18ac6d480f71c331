"""The samples of a test: loaded and checked before anything starts, prompts as one flat int32 array.

Rows are raw or processed. Raw rows have OpenOrca's columns (https://huggingface.co/datasets/Open-Orca/OpenOrca) and
become prompts through the chat template and the tokenizer. Processed rows hold the prompt as token ids and are taken
as they are: what MLCommons' processorca.py writes for llama2-70b, and cnn_eval.json of llama3.1-8b.

A file is read row by row, so that a big one never stands in memory as Python ints; a pickle has no other way.
"""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import json
import pickle
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.unpickle import read_frame
from sut.errors import SetupError
from sut.query import TOKEN_DTYPE, Tokens

COLUMNS = ("id", "system_prompt", "question", "response")
"""The columns of a raw row, all text."""

PROCESSED = ("tok_input", "output")
"""The columns of a processed row: the prompt's token ids, and the reference text. It may have an `id` too."""

WANTED = (*COLUMNS, *PROCESSED)

BATCH = 128
"""Rows that are decoded or tokenised at once."""

JSON_CHUNK = 1 << 20
"""Characters of a JSON list that are read at once."""

FILE_ENDINGS = (".jsonl", ".json", ".parquet", ".pkl", ".pickle", ".gz")


@dataclass(frozen=True, slots=True)
class Samples:
    """`tokens` are all prompts end to end, int32, shape (total,); prompt i is tokens[starts[i]:starts[i + 1]].

    `sha256` is that of the dataset's file; of a hub dataset, that of its ids, a line each, and the bytes of `tokens`.
    """

    ids: list[str]
    references: list[str]
    tokens: Tokens
    starts: npt.NDArray[np.int64]
    sha256: str

    def __len__(self) -> int:
        return len(self.ids)

    def prompt(self, index: int) -> Tokens:
        """A view of one prompt's token ids."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Prompt tokens per sample, shape (samples,)."""
        return np.diff(self.starts)


def chat_prompt(system_prompt: str, question: str) -> str:
    """The Llama-2 chat template, as MLCommons' processorca.py fills it; without <s>, which is prepended as an id."""
    if system_prompt:
        return f"[INST] <<SYS>>\n{system_prompt}\n<</SYS>>\n\n{question} [/INST]"
    return f"[INST] {question} [/INST]"


class Tokenizer:
    """The model's tokenizer.json through the `tokenizers` package: no torch, no transformers."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Fast

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise SetupError(f"{folder} has no tokenizer.json: name a model folder that has one with --model.")
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:
            raise SetupError(f"cannot read the tokenizer {path}: {error}.") from error
        settings = read_json(folder / "tokenizer_config.json")
        bos = settings.get("bos_token")
        name = bos.get("content") if isinstance(bos, dict) else bos
        self.bos: int | None = self._fast.token_to_id(name) if name else None
        self.size: int = self._fast.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, begun by the beginning-of-sequence id once."""
        head = [] if self.bos is None else [self.bos]
        return [head + encoding.ids for encoding in self._fast.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        texts: list[str] = self._fast.decode_batch([list(ids) for ids in answers], skip_special_tokens=True)
        return texts


class Row(NamedTuple):
    """One row as it was read: `place` says where in the file, for a person."""

    place: str
    cells: dict[str, Any]


class Table(NamedTuple):
    """The rows of a dataset, read as they are asked for, and its columns; of JSON, those of the first row."""

    name: str
    columns: list[str]
    rows: Iterator[Row]


class Sample(NamedTuple):
    """One sample on its way into Samples; the prompt is a list or an array of token ids."""

    id: str
    reference: str
    prompt: Sequence[int] | npt.NDArray[Any]


def load(
    source: str,
    tokenizer: Tokenizer,
    *,
    limit: int | None = None,
    suffix: Sequence[int] = (),
    longest: int | None = None,
) -> Samples:
    """Load the first `limit` rows of a dataset, raw or processed; `suffix` ends the prompts of raw rows.

    `source` is a file of rows (.parquet; .pkl or .pkl.gz: a pickled DataFrame; .json: a list of objects; any other
    ending: JSONL) or a hub id, `owner/name` or `owner/name:split`. `longest` is how many prompt tokens fit the model
    beside the answer. Processed prompts are not ended by `suffix`: processorca.py of mlcommons/inference has appended
    it already. Raises SetupError, naming row and remedy, for anything that would only show once an engine has started.
    """
    table = open_table(source)
    if is_processed(table.columns):
        found = processed_samples(table, limit, tokenizer.size)
    else:
        found = raw_samples(table, limit, tokenizer, suffix)
    ids: list[str] = []
    references: list[str] = []
    starts, tokens = array("q", [0]), array("i")
    for sample in found:
        ids.append(sample.id)
        references.append(sample.reference)
        tokens.frombytes(np.asarray(sample.prompt, TOKEN_DTYPE).tobytes())
        starts.append(len(tokens))
    flat, bounds = np.frombuffer(tokens, TOKEN_DTYPE), np.frombuffer(starts, np.int64)
    digest = digest_of_hub(ids, flat) if is_hub_id(source) else digest_of(Path(source))
    samples = Samples(ids, references, flat, bounds, digest)
    refuse_repeated(samples, table.name)
    refuse_long(samples, longest, table.name)
    trim_heap()
    return samples


def read_rows(path: Path, limit: int | None = None) -> tuple[list[dict[str, str]], str]:
    """Raw rows of a file and the file's SHA-256. Raises SetupError for a file that cannot be used as it is."""
    return list(raw_rows(open_table(str(path)), limit)), digest_of(path)


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library is glibc, which else keeps most of what rows took."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# -- what rows mean ------------------------------------------------------------------------------------------------


def is_processed(columns: Sequence[str]) -> bool:
    return set(columns).issuperset(PROCESSED)


def is_raw(columns: Sequence[str]) -> bool:
    """Whether rows are meant to be raw, be it that a column is missing, which is said of the row that lacks it."""
    return set(columns).issuperset(COLUMNS) or (
        ("question" in columns or "response" in columns) and ("tok_input" not in columns)
    )


def raw_rows(table: Table, limit: int | None) -> Iterator[dict[str, str]]:
    """The checked raw rows, ids unique. Raises SetupError."""
    seen: dict[str, str] = {}
    for place, cells in islice(table.rows, limit):
        where = f"{table.name}, {place}"
        row = check_raw(cells, where)
        if row["id"] in seen:
            raise SetupError(f"{where}: the id {row['id']!r} stands already in {seen[row['id']]}.")
        seen[row["id"]] = place
        yield row


def check_raw(row: dict[str, Any], where: str) -> dict[str, str]:
    for column in COLUMNS:
        text = row.get(column)
        if not isinstance(text, str):
            raise SetupError(f"{where}: no text in column {column!r}; raw rows have the columns {', '.join(COLUMNS)}.")
        if not encodable(text):
            raise SetupError(f"{where}: half a surrogate pair in column {column!r}, which is no text: repair the row.")
    if not row["question"].strip():
        raise SetupError(f"{where}: the question is empty.")
    return {column: row[column] for column in COLUMNS}


def encodable(text: str) -> bool:
    """JSON can write half a surrogate pair; UTF-8, and so a tokenizer, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def raw_samples(table: Table, limit: int | None, tokenizer: Tokenizer, suffix: Sequence[int]) -> Iterator[Sample]:
    rows = raw_rows(table, limit)
    while batch := list(islice(rows, BATCH)):
        prompts = tokenizer.encode([chat_prompt(row["system_prompt"], row["question"]) for row in batch])
        for row, prompt in zip(batch, prompts, strict=True):
            yield Sample(row["id"], row["response"], prompt + list(suffix))


def processed_samples(table: Table, limit: int | None, vocabulary: int) -> Iterator[Sample]:
    """A row without an id is called by its number, from 0."""
    for number, (place, cells) in enumerate(islice(table.rows, limit)):
        where = f"{table.name}, {place}"
        reference = cells.get("output")
        if not isinstance(reference, str):
            raise SetupError(f"{where}: no text in column 'output'; processed rows have {' and '.join(PROCESSED)}.")
        name = cells.get("id")
        yield Sample(
            str(number) if name is None else str(name),
            reference,
            check_prompt(cells.get("tok_input"), vocabulary, where),
        )


def check_prompt(cell: Any, vocabulary: int, where: str) -> npt.NDArray[Any]:
    """A processed prompt as an integer array, shape (tokens,). Raises SetupError if it is none."""
    try:
        ids = np.asarray(cell)
    except (ValueError, OverflowError):  # lists of lists of different lengths
        ids = np.asarray(None)
    if ids.shape == (0,):
        raise SetupError(f"{where}: the prompt in column 'tok_input' is empty.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise SetupError(f"{where}: no list of token ids in column 'tok_input'.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise SetupError(
            f"{where}: the token id {low if low < 0 else high} is outside the tokenizer's vocabulary of {vocabulary}: "
            "was the dataset tokenised for another model?"
        )
    return ids


def refuse_repeated(samples: Samples, name: str) -> None:
    """Refuse a row that stands twice; the same id before another prompt does no harm to a processed file."""
    seen: dict[str, int] = {}
    for index, sample_id in enumerate(samples.ids):
        first = seen.setdefault(sample_id, index)
        if first != index and np.array_equal(samples.prompt(first), samples.prompt(index)):
            raise SetupError(f"{name}: the rows {first} and {index} have the same id {sample_id!r} and prompt.")


# -- where rows come from ------------------------------------------------------------------------------------------


def open_table(source: str) -> Table:
    """The rows of a file or of a hub dataset. Raises SetupError, here or while rows are read."""
    table = hub_table(source) if is_hub_id(source) else file_table(Path(source))
    first = next(table.rows, None)
    columns = table.columns or list(first.cells if first else ())
    if columns and not is_processed(columns) and not is_raw(columns):
        raise SetupError(
            f"{table.name} has the columns {', '.join(columns)}; needed are {', '.join(COLUMNS)} (raw rows) or "
            f"{' and '.join(PROCESSED)} (processed ones)."
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


def digest_of(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_hub(ids: Sequence[str], tokens: Tokens) -> str:
    digest = hashlib.sha256("".join(f"{name}\n" for name in ids).encode())
    digest.update(tokens.data)
    return digest.hexdigest()


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


def refuse_long(samples: Samples, longest: int | None, name: str) -> None:
    if longest is None:
        return
    too_long = np.flatnonzero(samples.lengths > longest)
    if len(too_long):
        first = int(too_long[0])
        raise SetupError(
            f"{len(too_long)} prompts of {name} do not fit the model beside their answer (the first, "
            f"{samples.ids[first]!r}, has {samples.lengths[first]} tokens and there is room for {longest}): leave them "
            "out, or take a model with a longer context."
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises SetupError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise SetupError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise SetupError(f"{path} does not hold a JSON object.")
    return content
