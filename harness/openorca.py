"""MLCommons' recipe for llama2-70b's dataset: 24,576 rows of OpenOrca's GPT-4 part, and 1,000 of them to calibrate.

The recipe is language/llama2-70b/processorca.py of mlcommons/inference: template, filters, token ids, a sample of each
origin. From the same rows and tokenizer.json come the same rows in the same order with the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.dataset import Tokenizer, chat_prompt, read_json
from harness.tables import COLUMNS
from sut.errors import SetupError

Rows = npt.NDArray[np.int64]
Batch = Mapping[str, Sequence[Any]]

HUB_FILE = "1M-GPT4-Augmented.parquet"
"""The file of https://huggingface.co/datasets/Open-Orca/OpenOrca that the recipe is for."""

ORIGINS = ("cot", "flan", "niv", "t0")
"""The sets OpenOrca was made from, in the order in which their samples stand in the outcome."""

PER_ORIGIN, SEED = 6144, 1337
CALIBRATION, CALIBRATION_SEED = 1000, 12345

TOKEN_LIMIT = 1024
"""A prompt and an answer have fewer tokens than that, special ones and FIRST_ANSWER_TOKEN counted."""

SHORTEST_ANSWER = 3
"""An answer has at least so many tokens, its <s> counted."""

FIRST_ANSWER_TOKEN = 29_871
"""Llama 2's "▁", with which it begins every answer: prompts end in it, so that what is timed is a real first token."""

TYPOGRAPHIC = "’–“”—"
"""The characters outside ASCII that a row may have."""

BAD_PROMPTS = frozenset(
    {
        "",
        "You are an AI assistant that follows instruction extremely well. Help as much as you can.",
        "You are an AI assistant. Provide a detailed answer so user don’t need to search outside to understand the "
        "answer.",
        "You are an AI assistant. Provide a detailed answer so user don't need to search outside to understand the "
        "answer.",
        "User will you give you a task with some instruction. Your job is follow the instructions as faithfully as you "
        "can. While answering think step-by-step and justify your answer.",
        "Explain how you used the definition to come up with the answer.",
    }
)
"""System prompts that Llama 2 answers badly, and the origins in which they do harm."""

BAD_PROMPT_ORIGINS = ("niv", "t0")

FILTERS = ("ascii", "token_lengths", "short_answers", "bad_prompts")
"""In the recipe's order. Its fifth, for key phrases, has none registered and drops nothing."""

FILTER_WORDS = ("characters outside ASCII", "token counts", "short answers", "bad system prompts")

KEPT = len(FILTERS)

OUTCOME = (
    *("id", "system_prompt", "question", "output", "input"),
    *("tok_input", "tok_output", "origin", "tok_input_length", "tok_output_length"),
)
"""The columns of the outcome; TOKENS are lists of ids, LENGTHS whole numbers, the others text."""

TOKENS, LENGTHS = ("tok_input", "tok_output"), ("tok_input_length", "tok_output_length")


# -- one row -----------------------------------------------------------------------------------------------------------


def prompt_text(system_prompt: str | None, question: str) -> str:
    """The prompt as the recipe tokenises it: <s> stands in the text, and the tokenizer adds another."""
    return "<s>" + chat_prompt(system_prompt or "", question)


def is_ascii(text: str) -> bool:
    """Whether a text is ASCII but for TYPOGRAPHIC."""
    return text.isascii() or all(letter.isascii() or letter in TYPOGRAPHIC for letter in text)


def origin_of(name: str) -> str:
    """The set that a row's id says it is from: `flan.1234` is from flan."""
    return name.split(".")[0]


def fate_of(origin: str, system_prompt: str | None, prompt_tokens: int, answer_tokens: int) -> int:
    """The place in FILTERS of the first that drops an ASCII row of these token counts, else KEPT."""
    if prompt_tokens >= TOKEN_LIMIT or answer_tokens >= TOKEN_LIMIT:
        return FILTERS.index("token_lengths")
    if answer_tokens < SHORTEST_ANSWER:
        return FILTERS.index("short_answers")
    if origin in BAD_PROMPT_ORIGINS and system_prompt in BAD_PROMPTS:
        return FILTERS.index("bad_prompts")
    return KEPT


@cache
def reference_tokenizer(folder: str) -> Any:
    """A tokenizers.Tokenizer that gives the ids of LlamaTokenizerFast in transformers 4.31, which the recipe pins.

    That class takes tokenizer.json as it is, but for the special tokens around a text: <s> unless tokenizer_config.json
    says `add_bos_token: false`, and </s> only if it says `add_eos_token: true`. (Version 5 builds a normalizer of its
    own, and the prompts of the published dataset begin 1, 1, 518 and not 1, 1, 29961.) Raises SetupError.
    """
    from tokenizers import Tokenizer as Fast
    from tokenizers.processors import TemplateProcessing

    path = Path(folder)
    if Tokenizer(path).bos is None:
        raise SetupError(f"the tokenizer in {folder} has no beginning-of-sequence token, with which prompts begin.")
    settings = read_json(path / "tokenizer_config.json")
    bos, eos = (token_text(settings.get(f"{name}_token")) for name in ("bos", "eos"))
    around = [
        bos if settings.get("add_bos_token", True) else None,
        "$A",
        eos if settings.get("add_eos_token", False) else None,
    ]
    fast = Fast.from_file(str(path / "tokenizer.json"))
    fast.no_truncation()
    fast.no_padding()
    special = [(name, fast.token_to_id(name)) for name in around if name and name != "$A"]
    fast.post_processor = TemplateProcessing(single=[name for name in around if name], special_tokens=special)
    return fast


def token_text(token: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a text or an object."""
    return token.get("content") if isinstance(token, dict) else token


# -- many rows, in a worker --------------------------------------------------------------------------------------------


def judge(batch: Batch, folder: str, suffix: Sequence[int]) -> dict[str, list[Any]]:
    """Fate and origin of each raw row."""
    system_prompts, answers = batch["system_prompt"], batch["response"]
    prompts = [prompt_text(*pair) for pair in zip(system_prompts, batch["question"], strict=True)]
    origins = [origin_of(name) for name in batch["id"]]
    fates = [FILTERS.index("ascii")] * len(prompts)
    ascii_rows = [i for i, prompt in enumerate(prompts) if is_ascii(prompt) and is_ascii(answers[i])]
    encode = reference_tokenizer(folder).encode_batch_fast
    of_prompts = encode([prompts[i] for i in ascii_rows])
    of_answers = encode([answers[i] for i in ascii_rows])
    for i, prompt, answer in zip(ascii_rows, of_prompts, of_answers, strict=True):
        fates[i] = fate_of(origins[i], system_prompts[i], len(prompt) + len(suffix), len(answer))
    return {"fate": fates, "origin": origins}


def finish(batch: Batch, folder: str, suffix: Sequence[int]) -> dict[str, list[Any]]:
    """The columns of the outcome, in the recipe's order."""
    prompts = [prompt_text(*pair) for pair in zip(batch["system_prompt"], batch["question"], strict=True)]
    encode = reference_tokenizer(folder).encode_batch_fast
    tok_input = [encoding.ids + list(suffix) for encoding in encode(prompts)]
    tok_output = [encoding.ids for encoding in encode(list(batch["response"]))]
    origins = [origin_of(name) for name in batch["id"]]
    texts = [list(batch[name]) for name in COLUMNS]
    lengths = [[len(ids) for ids in rows] for rows in (tok_input, tok_output)]
    return dict(zip(OUTCOME, [*texts, prompts, tok_input, tok_output, origins, *lengths], strict=True))


# -- which rows --------------------------------------------------------------------------------------------------------


def draw(rows: Rows, count: int, seed: int) -> Rows:
    """`count` of the rows, drawn as `DataFrame.sample(n=count, random_state=seed)` draws."""
    import pandas as pd

    drawn: Rows = pd.Series(rows).sample(n=count, random_state=seed).to_numpy()
    return drawn


def choose(left: Mapping[str, Rows], per_origin: int) -> Rows:
    """The numbers of the rows of the outcome, in its order. Raises SetupError where an origin has too few."""
    short = {origin: len(rows) for origin, rows in left.items() if len(rows) < per_origin}
    if short:
        counts = ", ".join(f"{count:,} of {origin}" for origin, count in short.items())
        raise SetupError(
            f"too few rows remain after the filters: {counts}, and {per_origin:,} of each origin are needed; take the "
            "whole source, or --per-origin for a trial."
        )
    return np.concatenate([draw(left[origin], per_origin, SEED) for origin in ORIGINS])


@dataclass(frozen=True)
class Judged:
    """Fate and origin (a place in ORIGINS) of every row, uint8, shape (rows,)."""

    fates: npt.NDArray[np.uint8]
    origins: npt.NDArray[np.uint8]

    @property
    def left(self) -> dict[str, Rows]:
        """The numbers of the rows that no filter drops, by origin, ascending."""
        kept = self.fates == KEPT
        return {name: np.flatnonzero(kept & (self.origins == place)) for place, name in enumerate(ORIGINS)}

    @property
    def counts(self) -> dict[str, Any]:
        """Rows read and left after each filter, and left in the end by origin."""
        after = {f"after_{name}": int((self.fates > place).sum()) for place, name in enumerate(FILTERS)}
        return {"read": len(self.fates), **after, "by_origin": {name: len(rows) for name, rows in self.left.items()}}


# -- columns -----------------------------------------------------------------------------------------------------------


def judged_features() -> Any:
    from datasets import Features, Value  # type: ignore[import-untyped, unused-ignore]

    return Features({"fate": Value("uint8"), "origin": Value("string")})


def outcome_features() -> Any:
    from datasets import Features, Sequence, Value

    kinds = {name: Sequence(Value("int32")) for name in TOKENS} | {name: Value("int64") for name in LENGTHS}
    return Features({name: kinds.get(name, Value("string")) for name in OUTCOME})
