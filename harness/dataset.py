"""The samples of a test: loaded and checked before anything starts, prompts as one flat int32 array.

Raw rows have OpenOrca's columns: id, system_prompt, question, response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sut.errors import SetupError
from sut.query import TOKEN_DTYPE, Tokens

COLUMNS = ("id", "system_prompt", "question", "response")


@dataclass(frozen=True, slots=True)
class Samples:
    """`tokens` are all prompts end to end, int32, shape (total,); prompt i is tokens[starts[i]:starts[i + 1]]."""

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


def load(
    source: str,
    tokenizer: Tokenizer,
    *,
    limit: int | None = None,
    suffix: Sequence[int] = (),
    longest: int | None = None,
) -> Samples:
    """Load raw rows from a JSONL file, the first `limit` of them, each prompt ended by `suffix`.

    `longest` is how many prompt tokens fit the model beside the answer. Raises SetupError, naming row and remedy, for
    anything that would only show once an engine has started.
    """
    path = Path(source)
    rows, digest = read_rows(path, limit)
    prompts = tokenizer.encode([chat_prompt(row["system_prompt"], row["question"]) for row in rows])
    if suffix:
        prompts = [ids + list(suffix) for ids in prompts]
    starts = np.zeros(len(prompts) + 1, np.int64)
    np.cumsum([len(ids) for ids in prompts], out=starts[1:])
    tokens = np.fromiter((token for ids in prompts for token in ids), TOKEN_DTYPE, count=int(starts[-1]))
    samples = Samples([row["id"] for row in rows], [row["response"] for row in rows], tokens, starts, digest)
    refuse_long(samples, longest, path)
    return samples


def read_rows(path: Path, limit: int | None = None) -> tuple[list[dict[str, str]], str]:
    """Raw rows of a JSONL file and the file's SHA-256. Raises SetupError for a file that cannot be used as it is."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SetupError(
            f"cannot read the dataset {path}: {error.strerror}; name a JSONL file with --dataset."
        ) from error
    try:
        lines = data.decode("utf-8").split("\n")  # not splitlines: JSON strings may hold U+2028
    except UnicodeDecodeError as error:
        raise SetupError(
            f"the dataset {path} is not UTF-8 text (byte {error.start}): save it as UTF-8 JSONL."
        ) from error
    rows: list[dict[str, str]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_row(line, f"{path}, line {number}")
        if row["id"] in seen:
            raise SetupError(f"{path}, line {number}: the id {row['id']!r} stands already in line {seen[row['id']]}.")
        seen[row["id"]] = number
        rows.append(row)
        if len(rows) == limit:
            break
    if not rows:
        raise SetupError(f"the dataset {path} is empty.")
    return rows, hashlib.sha256(data).hexdigest()


def parse_row(line: str, where: str) -> dict[str, str]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise SetupError(
            f"{where}: not a JSON object ({error.msg}, column {error.colno}); is the file cut off?"
        ) from error
    if not isinstance(row, dict):
        raise SetupError(f"{where}: not a JSON object but {type(row).__name__}.")
    for column in COLUMNS:
        if not isinstance(row.get(column), str):
            raise SetupError(f"{where}: no text in column {column!r}; raw rows have the columns {', '.join(COLUMNS)}.")
    if not row["question"].strip():
        raise SetupError(f"{where}: the question is empty.")
    return {column: row[column] for column in COLUMNS}


def refuse_long(samples: Samples, longest: int | None, path: Path) -> None:
    if longest is None:
        return
    too_long = np.flatnonzero(samples.lengths > longest)
    if len(too_long):
        first = int(too_long[0])
        raise SetupError(
            f"{len(too_long)} prompts of {path} do not fit the model beside their answer (the first, "
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
