"""The samples of a test: loaded and checked before anything starts, prompts as one flat int32 array.

Rows are raw or processed. Raw rows have OpenOrca's columns (https://huggingface.co/datasets/Open-Orca/OpenOrca) and
become prompts through the chat template and the tokenizer. Processed rows hold the prompt as token ids and are taken
as they are: what MLCommons' processorca.py writes for llama2-70b, and cnn_eval.json of llama3.1-8b.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.tables import BATCH, COLUMNS, PROMPTS, REFERENCE, Table, digest_of, is_hub_id, is_processed, open_table
from sut.errors import SetupError
from sut.query import TOKEN_DTYPE, Tokens


@dataclass(frozen=True)
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

    @property
    def referenced(self) -> bool:
        """Whether answers can be held against references."""
        return any(self.references)

    def prompt(self, index: int) -> Tokens:
        """A view of one prompt's token ids."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    @cached_property
    def prompts(self) -> list[Tokens]:
        """All of them, in order, as views; always the same list, so that what was made of it is known again."""
        return [self.prompt(index) for index in range(len(self))]

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

    @property
    def plain(self) -> list[int]:
        """The ids of ordinary tokens, in order: none that was added to the vocabulary, as special ones are."""
        added = {*self._fast.get_added_tokens_decoder(), self.bos}
        return [token for token in sorted(self._fast.get_vocab().values()) if token not in added]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, begun by the beginning-of-sequence id once."""
        head = [] if self.bos is None else [self.bos]
        return [head + encoding.ids for encoding in self._fast.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        texts: list[str] = self._fast.decode_batch([list(ids) for ids in answers], skip_special_tokens=True)
        return texts


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


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library is glibc, which else keeps most of what rows took."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# -- what rows mean ------------------------------------------------------------------------------------------------


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
    """A row without an id is called by its number, from 0. Where no row has a reference, it is empty."""
    prompts = next(name for name in PROMPTS if name in table.columns)
    referenced = REFERENCE in table.columns
    for number, (place, cells) in enumerate(islice(table.rows, limit)):
        where = f"{table.name}, {place}"
        reference = cells.get(REFERENCE) if referenced else ""
        if not isinstance(reference, str):
            raise SetupError(
                f"{where}: no text in column {REFERENCE!r}; processed rows have {prompts} and {REFERENCE}."
            )
        name = cells.get("id")
        yield Sample(
            str(number) if name is None else str(name),
            reference,
            check_prompt(cells.get(prompts), vocabulary, where),
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


def digest_of_hub(ids: Sequence[str], tokens: Tokens) -> str:
    digest = hashlib.sha256("".join(f"{name}\n" for name in ids).encode())
    digest.update(tokens.data)
    return digest.hexdigest()


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
